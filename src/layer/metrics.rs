//! Counts each call once, by its path and its code: also calls that authentication refuses, and those that
//! the caller cancels.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Request, Response};
use pin_project_lite::pin_project;
use tonic::Code;
use tower_layer::Layer;
use tower_service::Service;

use super::log::code_of;
use crate::metrics::{CallMetrics, Calls};

/// Counts each call.
#[derive(Clone, Debug)]
pub struct MetricsLayer {
    calls: Arc<Calls>,
}

impl MetricsLayer {
    /// The layer that counts here.
    #[must_use]
    pub fn new(calls: Arc<Calls>) -> Self {
        Self { calls }
    }
}

impl<S> Layer<S> for MetricsLayer {
    type Service = Metrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics { inner, calls: self.calls.clone() }
    }
}

/// See [`MetricsLayer`].
#[derive(Clone, Debug)]
pub struct Metrics<S> {
    inner: S,
    calls: Arc<Calls>,
}

impl<S, B, R> Service<Request<B>> for Metrics<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Counted<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = UnderWay::begin(self.calls.of(request.uri().path()));
        Counted { inner: self.inner.call(request), call: Some(call) }
    }
}

pin_project! {
    /// A call under way.
    #[derive(Debug)]
    pub struct Counted<F> {
        #[pin]
        inner: F,
        call: Option<UnderWay>,
    }
}

impl<F, R, E> Future for Counted<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.inner.poll(cx));
        if let Some(call) = this.call.take() {
            call.end(answered.as_ref().map_or(Code::Unknown, code_of));
        }
        Poll::Ready(answered)
    }
}

/// Counts its call when it is dropped. Until somebody knows better, the caller has gone away.
#[derive(Debug)]
struct UnderWay {
    call: Arc<CallMetrics>,
    began: Instant,
    code: Code,
}

impl UnderWay {
    fn begin(call: Arc<CallMetrics>) -> Self {
        Self { call, began: Instant::now(), code: Code::Cancelled }
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.call.count(self.code.into(), self.began.elapsed());
    }
}
