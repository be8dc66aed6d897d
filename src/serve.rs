//! From accepted connections to calls: HTTP/2 on the core that a connection was given.
//!
//! Connections go to the core that has fewest of them: gRPC keeps few connections for long, and a hash of
//! their ports, as the kernel would spread them over several sockets, puts five of eight on one of two cores
//! on average.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tonic::transport::server::Connected;
use tower_service::Service;

use crate::cores::CoreRuntime;
use crate::http2::{self, Budget, FastPath, Incoming, Shutdown};
use crate::lifecycle::Tasks;
use crate::net::{Conn, CredentialMark, Peer};

/// What answers calls, and where.
#[derive(Clone, Debug)]
pub struct MakeConnection<S, F> {
    /// Answers calls. Each call has a clone of its own.
    pub service: S,
    /// Makes, for a connection, what answers calls at once where it can.
    pub make_fast_path: F,
    /// Whether a call, by its path, is answered on the core of its connection: those that never take long.
    pub runs_inline: fn(&str) -> bool,
    /// Whether a call, by its path, is answered without a credential.
    pub is_open: fn(&str) -> bool,
    /// Whether the request of a call, by its path, is a stream of messages, which may take its time.
    pub has_stream: fn(&str) -> bool,
    /// Whether the reply to a call, by its path, may be long: those of one connection are answered one after the other.
    pub has_long_reply: fn(&str) -> bool,
    /// Whether a call, by its path, goes before others.
    pub is_urgent: fn(&str) -> bool,
    /// Where such calls are answered.
    pub urgent_runtime: Handle,
    /// Where all other calls are answered.
    pub shared_runtime: Handle,
    /// What all connections may hold of requests.
    pub budget: Budget,
}

type Connection<S, A> = http2::Connection<Conn, S, A, Peer>;

impl<S, F> MakeConnection<S, F> {
    fn make<A: FastPath>(self, conn: Conn) -> Connection<S, A>
    where
        F: Fn(Peer, CredentialMark) -> A,
    {
        let Self {
            service,
            make_fast_path,
            runs_inline,
            is_open,
            has_stream,
            has_long_reply,
            is_urgent,
            urgent_runtime,
            shared_runtime,
            budget,
        } = self;
        let peer = conn.connect_info();
        let fast_path = make_fast_path(peer, conn.mark());
        let handlers = http2::Handlers {
            fast_path,
            service,
            runs_inline,
            is_open,
            has_stream,
            has_long_reply,
            is_urgent,
            urgent_runtime,
            shared_runtime,
            extension: peer,
            budget,
        };
        Connection::new(conn, handlers)
    }
}

/// Serves the connections that come in, as long as some may come, until they end, or finish after `tasks` is told to
/// stop.
///
/// A connection stays on its core. Without cores, connections are served on the current runtime.
pub async fn serve<S, B, F, A>(
    tasks: Tasks,
    runtimes: Vec<CoreRuntime>,
    mut incoming: mpsc::Receiver<io::Result<Conn>>,
    make_connection: MakeConnection<S, F>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    F: Fn(Peer, CredentialMark) -> A + Clone + Send + 'static,
    A: FastPath<Pass: Send> + Send + 'static,
{
    let stop = tasks.stop_token();
    let has_core = !runtimes.is_empty();
    let runtimes = if has_core { runtimes } else { vec![CoreRuntime::current()] };
    while let Some(accepted) = incoming.recv().await {
        let Some(runtime) = runtimes.iter().min_by_key(|runtime| runtime.connections()) else { return };
        let Ok(conn) = accepted else { continue };
        // A token of its own: what all share, all cores would wait for.
        let close = conn.close_token();
        let Ok(detached) = conn.detach() else { continue };
        let (guard, make_connection, stop) = (runtime.connection_guard(), make_connection.clone(), stop.clone());
        tasks.spawn_isolated_on(runtime.handle(), async move {
            let _guard = guard;
            // What the kernel has lost meanwhile needs no answer.
            let Ok(conn) = detached.attach() else { return };
            let ending = async {
                close.cancelled().await;
                if stop.is_cancelled() { Shutdown::Graceful } else { Shutdown::Now }
            };
            if let Err(error) = make_connection.make(conn).serve(ending, has_core).await {
                tracing::debug!(%error, "a connection ended with an error");
            }
        });
    }
}
