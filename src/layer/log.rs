//! Logs one line for each admitted call: its path, caller, peer, code and duration, and nothing of its
//! content.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::{Request, Response};
use keyward_core::access::Action;
use keyward_core::id::ActorId;
use keyward_core::identity::IdentityName;
use pin_project_lite::pin_project;
use tonic::Code;
use tower_layer::Layer;
use tower_service::Service;
use tracing::Level;

use crate::grpc::calls::{log_name, rpc};
use crate::grpc::refusals::Lines;
use crate::grpc::session::CallerSession;

/// Calls of the fast path that are logged in a second, at level debug.
pub const SAMPLES_MAX: u32 = 100;

static SAMPLES: Lines = Lines::new(SAMPLES_MAX);

/// Whether calls of the fast path are logged. Other parts of the program may log at level debug without that.
#[must_use]
pub fn is_on() -> bool {
    tracing::enabled!(Level::DEBUG)
}

/// Whether this call of the fast path is one of the sample: it takes the slow path, which logs it.
#[must_use]
pub fn takes_sample() -> bool {
    SAMPLES.admit(Instant::now())
}

/// Logs each call.
#[derive(Clone, Copy, Debug)]
pub struct LogLayer;

impl<S> Layer<S> for LogLayer {
    type Service = Log<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Log { inner }
    }
}

/// See [`LogLayer`].
#[derive(Clone, Debug)]
pub struct Log<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Log<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Logged<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = CallMetrics::of(&request);
        Logged { inner: self.inner.call(request), call }
    }
}

pin_project! {
    /// A call under way.
    #[derive(Debug)]
    pub struct Logged<F> {
        #[pin]
        inner: F,
        call: Option<CallMetrics>,
    }
}

impl<F, R, E> Future for Logged<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.inner.poll(cx));
        if let (Some(call), Ok(response)) = (this.call.take(), &answered) {
            call.log(code_of(response));
        }
        Poll::Ready(answered)
    }
}

#[derive(Debug)]
struct CallMetrics {
    path: &'static str,
    caller: ActorId,
    identity: Option<IdentityName>,
    peer: Option<IpAddr>,
    level: tracing::Level,
    began: Instant,
}

impl CallMetrics {
    /// What is to be logged of a call: admin calls at INFO, verifications at DEBUG, probes not at all.
    fn of<B>(request: &Request<B>) -> Option<Self> {
        let session = request.extensions().get::<CallerSession>()?;
        let (caller, peer) = (session.actor(), session.peer());
        let identity = session.identity().proven_besides().cloned();
        let level = match rpc(request.uri().path()).action {
            Some(Action::Verify) => tracing::Level::DEBUG,
            _ => tracing::Level::INFO,
        };
        let wanted = level <= tracing::level_filters::LevelFilter::current();
        wanted.then(|| Self {
            path: log_name(request.uri().path()),
            caller,
            identity,
            peer,
            level,
            began: Instant::now(),
        })
    }

    fn log(self, code: Code) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Self { path, caller, level, .. } = self;
        let peer = self.peer.map(tracing::field::display);
        let identity = self.identity.map(tracing::field::display);
        if level == tracing::Level::DEBUG {
            tracing::debug!(call = path, %caller, identity, peer, ?code, duration_us = micros, "call");
        } else {
            tracing::info!(call = path, %caller, identity, peer, ?code, duration_us = micros, "call");
        }
    }
}

/// The code of a reply. A refusal has it in its headers; a reply with a body has it in trailers, and is OK.
pub(super) fn code_of<R>(response: &Response<R>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}
