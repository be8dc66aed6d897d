//! Serves accepted connections over HTTP/2, each on a core.
//!
//! A connection goes to the core with the fewest connections: gRPC clients keep few connections for long, and
//! a hash of their ports, as the kernel would spread them over several sockets, puts five of eight on one of
//! two cores on average.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use ::hyper::body;
use grpc_h2::{Budget, CallKind, FastPath, Incoming, Runtimes, SharedLimits};
use http::{Request, Response};
use keyward_core::identity::Peer;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower_service::Service;

use super::age::{ConnectionAge, Ending};
use super::cores::CoreRuntime;
use super::hyper;
use super::lifecycle::Tasks;
use super::observer::ConnObserver;
use super::slots::CredentialMark;
use super::stream::{Conn, EncryptsWith};
use super::tls::handshake::{HandshakeError, Turns};
use crate::metrics::{Http2Counts, TlsCounts};

/// The implementation of HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Http2 {
    /// [`grpc_h2`], with the fast path and all bounds.
    #[default]
    Own,
    /// The one of hyper, which most servers in Rust use. It has neither the fast path nor all bounds.
    Hyper,
}

/// How connections speak HTTP/2.
#[derive(Clone, Debug)]
pub struct Transport {
    /// The implementation.
    pub http2: Http2,
    /// The bound on what all connections hold of requests. hyper has none.
    pub budget: Budget,
    /// The bounds and times of each connection. hyper has some of them.
    pub limits: SharedLimits,
    /// Counts what happens on connections. hyper tells of their ends alone.
    pub counts: Arc<Http2Counts>,
    /// Counts handshakes.
    pub tls_counts: Arc<TlsCounts>,
    /// When connections end by their age.
    pub age: ConnectionAge,
}

/// Makes connections from accepted sockets: what answers their calls, and on which runtime.
#[derive(Clone, Debug)]
pub struct MakeConnection<S, F> {
    /// How they speak HTTP/2.
    pub transport: Transport,
    /// Answers calls. Each call has its own clone.
    pub service: S,
    /// Makes the fast path of a connection.
    pub make_fast_path: F,
    /// How a call is served, by its path.
    pub call_kind: fn(&str) -> CallKind,
    /// Where calls of the service run.
    pub runtimes: Runtimes,
    /// How connections are encrypted. `None`: not at all.
    pub encryption: Option<EncryptsWith>,
}

/// Connections as a listener accepts them.
pub type Accepted = mpsc::Receiver<io::Result<Conn>>;

type Connection<S, A> = grpc_h2::Connection<Conn, S, A, Peer, ConnObserver>;

impl<S, F> MakeConnection<S, F> {
    fn make<A: FastPath>(self, conn: Conn) -> Connection<S, A>
    where
        F: Fn(Peer, CredentialMark) -> A,
    {
        let Self { transport, service, make_fast_path, call_kind, runtimes, .. } = self;
        let Transport { budget, limits, counts, .. } = transport;
        let peer = conn.peer();
        let fast_path = make_fast_path(peer.clone(), conn.mark());
        let observer = ConnObserver::new(counts, peer.ip());
        let extension = peer;
        let handlers =
            grpc_h2::Handlers { fast_path, service, call_kind, runtimes, extension, budget, limits, observer };
        Connection::new(conn, handlers)
    }

    fn hyper_calls(self, conn: &Conn) -> hyper::Calls<S> {
        let Self { transport, service, call_kind, runtimes, .. } = self;
        hyper::Calls { limits: transport.limits, service, call_kind, runtimes, peer: conn.peer(), mark: conn.mark() }
    }
}

/// Serves incoming connections, until the channel is closed. They drain when `tasks` is told to stop.
///
/// A connection stays on its core. Without cores, connections are served on the current runtime.
pub async fn serve<S, F, A>(
    tasks: Tasks,
    runtimes: Vec<CoreRuntime>,
    mut incoming: Accepted,
    make_connection: MakeConnection<S, F>,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Service<Request<body::Incoming>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    F: Fn(Peer, CredentialMark) -> A + Clone + Send + 'static,
    A: FastPath<Pass: Send> + Send + 'static,
{
    let stop = tasks.stop_token();
    let has_core = !runtimes.is_empty();
    let runtimes = if has_core { runtimes } else { vec![CoreRuntime::current()] };
    while let Some(accepted) = incoming.recv().await {
        let Some(runtime) = runtimes.iter().min_by_key(|runtime| runtime.connections()) else { return };
        let Ok(conn) = accepted else { continue };
        // A token of its own, so that cores do not contend for a shared one.
        let close = conn.close_token();
        let Ok(detached) = conn.detach() else { continue };
        let (guard, turns) = (runtime.connection_guard(), runtime.handshakes());
        let (make_connection, stop) = (make_connection.clone(), stop.clone());
        let encryption = make_connection.encryption.clone();
        tasks.spawn_isolated_on(runtime.handle(), async move {
            let _guard = guard;
            // The socket failed meanwhile.
            let Ok(conn) = detached.attach() else { return };
            let Some(conn) =
                encrypt(conn, encryption.as_ref(), &make_connection.transport.tls_counts, &turns, &close).await
            else {
                return;
            };
            let age = make_connection.transport.age.clone();
            let serve = async |ending: Ending| match make_connection.transport.http2 {
                Http2::Own => note_end(make_connection.make(conn).serve(ending.wait(), has_core).await),
                Http2::Hyper => {
                    let counts = make_connection.transport.counts.clone();
                    let calls = make_connection.hyper_calls(&conn);
                    // Apart, so that connections of the other kind need no room for it.
                    note_end(Box::pin(hyper::serve(conn, calls, counts, ending.wait())).await);
                }
            };
            age.limit(&close, &stop, serve).await;
        });
    }
}

/// Answers the handshake, if there must be one. `None`: there is no connection.
async fn encrypt(
    conn: Conn,
    encryption: Option<&EncryptsWith>,
    counts: &TlsCounts,
    turns: &Turns,
    close: &CancellationToken,
) -> Option<Conn> {
    let Some(encryption) = encryption else { return Some(conn) };
    let peer = conn.peer();
    // Apart, so that connections that are not encrypted need no room for it.
    let handshake = Box::pin(conn.encrypt(encryption, turns));
    let done = close.run_until_cancelled(handshake).await.unwrap_or(Err(HandshakeError::Evicted));
    counts.handshake(done.as_ref().err().map(HandshakeError::kind));
    done.map_err(|error| tracing::debug!(?peer, %error, "a TLS handshake failed")).ok()
}

fn note_end(closed: Result<(), impl std::error::Error>) {
    if let Err(error) = closed {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
