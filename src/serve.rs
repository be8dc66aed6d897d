//! From accepted connections to calls: HTTP/2 on the core that a connection was given.
//!
//! Connections go to the core that has fewest of them: gRPC keeps few connections for long, and a hash of their ports, as
//! the kernel would spread them over several sockets, puts five of eight on one of two cores on average.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body, Bytes, Incoming};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tower_service::Service;

use crate::cores::Home;
use crate::lifecycle::Tasks;
use crate::net::{Conn, Peer};

/// Streams that one connection has open at most.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Headers of one call at most.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Resets that a peer may provoke by its own errors before its connection is closed (the guard against MadeYouReset).
const ERROR_RESETS_MAX: usize = 1_024;
/// A silent connection is asked whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What answers calls, and where.
#[derive(Clone, Debug)]
pub struct Answering<S> {
    /// Answers calls. Each connection has a clone of its own.
    pub service: S,
    /// Whether a call, by its path, is answered on the core of its connection: those that never take long.
    pub at_home: fn(&str) -> bool,
    /// Where all other calls are answered.
    pub elsewhere: Handle,
}

/// Serves the connections that come in until they end, or finish after `tasks` is told to stop.
///
/// Without homes, connections live on the current runtime.
pub async fn serve<S, B>(
    tasks: Tasks,
    homes: Vec<Home>,
    mut incoming: mpsc::Receiver<io::Result<Conn>>,
    answering: Answering<S>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let stop = tasks.stop_token();
    let moves = !homes.is_empty();
    let homes = if moves { homes } else { vec![Home::here()] };
    while let Some(Some(accepted)) = stop.run_until_cancelled(incoming.recv()).await {
        let Some(home) = homes.iter().min_by_key(|home| home.taken()) else { return };
        let Ok(parked) = accepted.and_then(Conn::park) else { continue };
        let (place, answering, stop) = (home.place(), answering.clone(), stop.clone());
        tasks.spawn_lone_on(home.runtime(), async move {
            // What the kernel has lost meanwhile needs no answer.
            if let Ok(conn) = parked.unpark() {
                converse(conn, answering, stop).await;
            }
            drop(place);
        });
    }
}

/// Answers the calls of one connection.
async fn converse<S, B>(conn: Conn, answering: Answering<S>, stop: CancellationToken)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let calls = Calls { away: Arc::default(), elsewhere: answering.elsewhere.clone() };
    let service = Conversation {
        peer: conn.connect_info(),
        service: RefCell::new(answering.service),
        at_home: answering.at_home,
        away: calls.away.clone(),
    };
    let served = http2::Builder::new(calls)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(conn), service);
    let mut served = std::pin::pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

/// The calls of one connection.
struct Conversation<S> {
    peer: Peer,
    service: RefCell<S>,
    at_home: fn(&str) -> bool,
    away: Arc<AtomicBool>,
}

impl<S> hyper::service::Service<Request<Incoming>> for Conversation<S>
where
    S: Service<Request<Incoming>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> S::Future {
        self.away.store(!(self.at_home)(request.uri().path()), Ordering::Relaxed);
        request.extensions_mut().insert(self.peer);
        // Always ready: nothing in it waits before a call.
        self.service.borrow_mut().call(request)
    }
}

/// Runs calls where they belong. The connection owns them: when it is gone, they end.
#[derive(Clone, Debug)]
struct Calls {
    /// Whether the call that the connection has just begun belongs elsewhere. Hyper runs a call right after it asked the
    /// service for it, on the same thread, so nothing comes between.
    away: Arc<AtomicBool>,
    elsewhere: Handle,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        if self.away.load(Ordering::Relaxed) {
            drop(self.elsewhere.spawn(call));
            return;
        }
        // Most calls are answered at once, and a task costs more than they do. Who has to wait is asked again as a task,
        // which begins with a poll: the waker of this one is not needed. A panic ends the call and not the connection.
        let mut call = Box::pin(call);
        let polled = catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        if let Ok(Poll::Pending) = polled {
            drop(Handle::current().spawn(call));
        }
    }
}
