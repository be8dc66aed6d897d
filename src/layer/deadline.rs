//! Callers say in `grpc-timeout` how long they will wait. A call that is not answered by then is ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::grpc::status::{Refusal, status};

/// Ends calls at their deadlines.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner }
    }
}

/// See [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadline<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Limited<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let timeout = timeout_of(request.headers());
        Limited { inner: self.inner.call(request), timeout, deadline: None }
    }
}

pin_project! {
    /// A call under way.
    #[derive(Debug)]
    pub struct Limited<F> {
        #[pin]
        inner: F,
        timeout: Option<Duration>,
        #[pin]
        deadline: Option<Sleep>,
    }
}

impl<F, E> Future for Limited<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let answered @ Poll::Ready(_) = this.inner.poll(cx) {
            return answered;
        }
        // Only now: most calls are answered at once and need no timer.
        if let Some(timeout) = this.timeout.take() {
            this.deadline.set(Some(sleep(timeout)));
        }
        let Some(deadline) = this.deadline.as_pin_mut() else { return Poll::Pending };
        ready!(deadline.poll(cx));
        Poll::Ready(Ok(status(Refusal::DeadlineExceeded).into_http()))
    }
}

/// How long the caller will wait: at most eight digits and a unit. What is no such thing is no deadline.
fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::convert::Infallible;
    use std::future::pending;

    use tokio::time::timeout;
    use tonic::{Code, Status};

    /// Never answers.
    struct Stuck;

    impl Service<Request<()>> for Stuck {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            pending()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_at_the_deadline_of_its_caller() {
        let request = Request::builder().header("grpc-timeout", "200m").body(()).unwrap();
        let mut called = std::pin::pin!(DeadlineLayer.layer(Stuck).call(request));
        assert!(timeout(Duration::from_millis(199), &mut called).await.is_err());
        let answered = timeout(Duration::from_millis(10), called).await.unwrap().unwrap();
        assert_eq!(Status::from_header_map(answered.headers()).unwrap().code(), Code::DeadlineExceeded);
    }

    #[test]
    fn timeouts_are_read_by_the_grammar_of_grpc() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout_of(&headers)
        };
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("200m"), Some(Duration::from_millis(200)));
        assert_eq!(read("200u"), Some(Duration::from_micros(200)));
        assert_eq!(read("200n"), Some(Duration::from_nanos(200)));
        for bad in ["", "S", "1", "1s", "100000000S", "-1S", "+1S", "1 S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }
}
