//! Enforces `grpc-timeout`: a call that is not answered by then, or a stream that is still open, ends with
//! DEADLINE_EXCEEDED.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
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
        let timeout = timeout_of(request.headers()).ok().flatten();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Limited { inner: self.inner.call(request), deadline, timer: None }
    }
}

pin_project! {
    /// A call under way.
    #[derive(Debug)]
    pub struct Limited<F> {
        #[pin]
        inner: F,
        deadline: Option<Instant>,
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<F, E> Future for Limited<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let deadline = *this.deadline;
        if let Poll::Ready(answered) = this.inner.poll(cx) {
            return Poll::Ready(answered.map(|response| response.map(|body| limit(body, deadline))));
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        ready!(poll_timer(this.timer, deadline, cx));
        Poll::Ready(Ok(status(Refusal::DeadlineExceeded).into_http()))
    }
}

/// Waits for the deadline. The timer is made only here, by who has to wait: most calls are answered at once
/// and need none.
fn poll_timer(mut timer: Pin<&mut Option<Sleep>>, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if timer.is_none() {
        timer.set(Some(sleep_until(deadline)));
    }
    timer.as_pin_mut().map_or(Poll::Pending, |timer| timer.poll(cx))
}

fn limit(body: Body, deadline: Option<Instant>) -> Body {
    match deadline {
        Some(deadline) if !body.is_end_stream() => {
            Body::new(LimitedBody { inner: body, deadline, timer: None, ended: false })
        }
        _ => body,
    }
}

pin_project! {
    /// The body of an answer, which may be a stream that stays open.
    struct LimitedBody {
        #[pin]
        inner: Body,
        deadline: Instant,
        #[pin]
        timer: Option<Sleep>,
        ended: bool,
    }
}

impl HttpBody for LimitedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        // By the clock first: a stream that always has more to say would never come to its timer.
        if Instant::now() < *this.deadline {
            if let Poll::Ready(frame) = this.inner.poll_frame(cx) {
                *this.ended = !matches!(&frame, Some(Ok(frame)) if frame.is_data());
                return Poll::Ready(frame);
            }
            ready!(poll_timer(this.timer, *this.deadline, cx));
        }
        *this.ended = true;
        let mut trailers = HeaderMap::new();
        let told = status(Refusal::DeadlineExceeded).add_header(&mut trailers);
        Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A `grpc-timeout` that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MalformedTimeout;

/// How long the caller will wait, if they say so. Of several the last counts, as in grpc-go.
///
/// # Errors
/// When one of them is malformed.
pub(super) fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>, MalformedTimeout> {
    let mut timeouts = headers.get_all("grpc-timeout").iter().map(|value| read_timeout(value.as_bytes()));
    timeouts.try_fold(None, |_, timeout| Ok(Some(timeout.ok_or(MalformedTimeout)?)))
}

/// Reads a timeout: one to eight digits and a unit (gRPC over HTTP/2, "Requests"). `None`: it is malformed.
pub(crate) fn read_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| 10 * number + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::convert::Infallible;
    use std::future::pending;

    use tokio::time::timeout;
    use tonic::Code;

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

    /// Answers with a stream, whose frames come without end, or not at all.
    struct Streams {
        flows: bool,
    }

    impl Service<Request<()>> for Streams {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            std::future::ready(Ok(Response::new(Body::new(Self { flows: self.flows }))))
        }
    }

    impl HttpBody for Streams {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            if self.flows { Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x"))))) } else { Poll::Pending }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_stream_ends_at_the_deadline_of_its_caller_whether_it_flows_or_not() {
        for flows in [true, false] {
            let request = Request::builder().header("grpc-timeout", "200m").body(()).unwrap();
            let mut body = DeadlineLayer.layer(Streams { flows }).call(request).await.unwrap().into_body();
            let mut frame = async || std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            assert_eq!(timeout(Duration::from_millis(199), frame()).await.is_ok(), flows);
            tokio::time::advance(Duration::from_millis(200)).await;
            let trailers = frame().await.unwrap().unwrap().into_trailers().unwrap();
            assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::DeadlineExceeded);
            assert!(frame().await.is_none());
        }
    }

    #[test]
    fn timeouts_are_read_by_the_grammar_of_grpc() {
        let read = |text: &str| read_timeout(text.as_bytes());
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("200m"), Some(Duration::from_millis(200)));
        assert_eq!(read("200u"), Some(Duration::from_micros(200)));
        assert_eq!(read("200n"), Some(Duration::from_nanos(200)));
        for bad in ["", "S", "1", "1s", "100000000S", "-1S", "+1S", "1 S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        let of = |values: &[&str]| {
            let name = || http::HeaderName::from_static("grpc-timeout");
            timeout_of(&values.iter().map(|value| (name(), value.parse().unwrap())).collect())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["1S", "2S"]), Ok(Some(Duration::from_secs(2))));
        for bad in [&["x"][..], &["1S", "x"], &["x", "1S"]] {
            assert_eq!(of(bad), Err(MalformedTimeout), "{bad:?}");
        }
    }
}
