//! Logs one line for each admitted call: its path, caller, peer, code and duration, and of a verdict its
//! reason and its key; never a secret. Of verdicts, which come by the thousand, it logs a sample: at level
//! debug, or as the setting `access_log_sample` says. docs/logging.md has the fields.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::grpc::verify::Decided;

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

/// Which calls for verdicts have a line at level info.
#[derive(Clone, Debug, Default)]
pub struct AccessLog {
    every: u64,
    /// Whether those that come here were chosen already, where they were read.
    is_chosen: bool,
    calls: Arc<AtomicU64>,
}

impl AccessLog {
    /// One call in so many; 0: none. With `is_chosen` those that are answered where they are read are chosen
    /// there ([`AccessLog::chooses`]), and all others have a line.
    #[must_use]
    pub fn one_in(every: u32, is_chosen: bool) -> Self {
        Self { every: every.into(), is_chosen, calls: Arc::default() }
    }

    /// Whether this call is one of the sample. `calls` counts those of a connection.
    #[must_use]
    pub fn chooses(&self, calls: &mut u64) -> bool {
        if self.every == 0 {
            return false;
        }
        *calls += 1;
        calls.is_multiple_of(self.every)
    }

    /// Whether a call that came here has a line.
    fn takes(&self) -> bool {
        let nth = || self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(self.every);
        self.every > 0 && (self.is_chosen || nth())
    }
}

/// Logs each call.
#[derive(Clone, Debug)]
pub struct LogLayer {
    access_log: AccessLog,
}

impl LogLayer {
    /// The layer that logs these.
    #[must_use]
    pub fn new(access_log: AccessLog) -> Self {
        Self { access_log }
    }
}

impl<S> Layer<S> for LogLayer {
    type Service = Log<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Log { inner, access_log: self.access_log.clone() }
    }
}

/// See [`LogLayer`].
#[derive(Clone, Debug)]
pub struct Log<S> {
    inner: S,
    access_log: AccessLog,
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
        let call = CallLine::of(&request, &self.access_log);
        Logged { inner: self.inner.call(request), call }
    }
}

pin_project! {
    /// A call under way.
    #[derive(Debug)]
    pub struct Logged<F> {
        #[pin]
        inner: F,
        call: Option<CallLine>,
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
            call.log(code_of(response), response.extensions().get::<Decided>());
        }
        Poll::Ready(answered)
    }
}

#[derive(Debug)]
struct CallLine {
    path: &'static str,
    caller: ActorId,
    identity: Option<IdentityName>,
    peer: Option<IpAddr>,
    level: tracing::Level,
    began: Instant,
}

impl CallLine {
    /// What is to be logged of a call: admin calls and the sample of verifications at INFO, other
    /// verifications at DEBUG, probes not at all.
    fn of<B>(request: &Request<B>, access_log: &AccessLog) -> Option<Self> {
        let session = request.extensions().get::<CallerSession>()?;
        let (caller, peer) = (session.actor(), session.peer());
        let identity = session.identity().proven_besides().cloned();
        let level = match rpc(request.uri().path()).action {
            Some(Action::Verify) if !access_log.takes() => tracing::Level::DEBUG,
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

    fn log(self, code: Code, decided: Option<&Decided>) {
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Self { path, caller, level, .. } = self;
        let peer = self.peer.map(tracing::field::display);
        let identity = self.identity.map(tracing::field::display);
        let verdict = decided.map(|decided| decided.reason);
        let (tenant, key_id) =
            decided.map_or((None, None), |decided| (decided.tenant.as_ref(), decided.key_id.as_ref()));
        if level == tracing::Level::DEBUG {
            tracing::debug!(
                call = path, %caller, identity, peer, ?code, verdict, tenant, key_id, duration_us = micros, "call"
            );
        } else {
            tracing::info!(
                call = path, %caller, identity, peer, ?code, verdict, tenant, key_id, duration_us = micros, "call"
            );
        }
    }
}

/// The code of a reply. A refusal has it in its headers; a reply with a body has it in trailers, and is OK.
pub(super) fn code_of<R>(response: &Response<R>) -> Code {
    response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}
