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
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tower_service::Service;

use crate::cores::Home;
use crate::http2::{self, AtOnce, Budget, Incoming, Served, Stop};
use crate::lifecycle::Tasks;
use crate::net::{Conn, Mark, Parked, Peer};

/// What answers calls, and where.
#[derive(Clone, Debug)]
pub struct Answering<S, F> {
    /// Answers calls. Each call has a clone of its own.
    pub service: S,
    /// Makes, for a connection, what answers calls at once where it can.
    pub at_once: F,
    /// Whether a call, by its path, is answered on the core of its connection: those that never take long.
    pub at_home: fn(&str) -> bool,
    /// Whether a call, by its path, is answered without a credential.
    pub is_open: fn(&str) -> bool,
    /// Whether the request of a call, by its path, is a stream of messages, which may take its time.
    pub has_stream: fn(&str) -> bool,
    /// Whether the reply to a call, by its path, may be long: those of one connection are answered one after the other.
    pub is_long: fn(&str) -> bool,
    /// Whether a call, by its path, goes before others.
    pub is_urgent: fn(&str) -> bool,
    /// Where such calls are answered. Their connections stay where they are.
    pub urgent: Handle,
    /// Where all other calls are answered, and connections live once they have had such a call.
    pub elsewhere: Handle,
    /// What all connections may hold of requests.
    pub budget: Budget,
}

type Connection<S, A> = http2::Connection<Conn, S, A, Peer>;

impl<S, F> Answering<S, F> {
    fn begin<A: AtOnce>(self, conn: Conn) -> Connection<S, A>
    where
        F: Fn(Peer, Mark) -> A,
    {
        let Self { service, at_once, at_home, is_open, has_stream, is_long, is_urgent, urgent, elsewhere, budget } =
            self;
        let peer = conn.connect_info();
        let at_once = at_once(peer, conn.mark());
        let answering = http2::Answering {
            at_once,
            service,
            at_home,
            is_open,
            has_stream,
            is_long,
            is_urgent,
            urgent,
            elsewhere,
            extension: peer,
            budget,
        };
        Connection::new(conn, answering)
    }
}

/// Serves the connections that come in, as long as some may come, until they end, or finish after `tasks` is told to
/// stop.
///
/// Without homes, connections live on the current runtime. With homes, one that calls for what is answered
/// elsewhere goes there, once and for all: whoever makes changes, hundreds at a time, takes nothing from
/// verdicts on the core that he was given.
pub async fn serve<S, B, F, A>(
    tasks: Tasks,
    homes: Vec<Home>,
    mut incoming: mpsc::Receiver<io::Result<Conn>>,
    answering: Answering<S, F>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    F: Fn(Peer, Mark) -> A + Clone + Send + 'static,
    A: AtOnce<Pass: Send> + Send + 'static,
{
    let stop = tasks.stop_token();
    let moves = !homes.is_empty();
    let homes = if moves { homes } else { vec![Home::here()] };
    while let Some(accepted) = incoming.recv().await {
        let Some(home) = homes.iter().min_by_key(|home| home.taken()) else { return };
        let Ok(conn) = accepted else { continue };
        // A token of its own: what all share, all cores would wait for.
        let leave = conn.leave();
        let Ok(parked) = conn.park() else { continue };
        let (place, answering, stop) = (home.place(), answering.clone(), stop.clone());
        let owner = tasks.clone();
        tasks.spawn_lone_on(home.runtime(), async move {
            // What the kernel has lost meanwhile needs no answer.
            let Ok(conn) = parked.unpark() else { return };
            let elsewhere = answering.elsewhere.clone();
            let Some(leaving) = converse(answering.begin(conn), &leave, &stop, moves).await else { return };
            drop(place);
            let Ok(leaving) = leaving.transfer(Conn::park) else { return };
            owner.spawn_lone_on(&elsewhere, async move {
                if let Ok(arrived) = leaving.transfer(Parked::unpark) {
                    converse(arrived, &leave, &stop, false).await;
                }
            });
        });
    }
}

/// Answers the calls of one connection until it ends, or leaves: then it is given back.
async fn converse<S, B, A>(
    mut connection: Connection<S, A>,
    leave: &CancellationToken,
    stop: &CancellationToken,
    leaves: bool,
) -> Option<Connection<S, A>>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    A: AtOnce,
{
    let leaving = async {
        leave.cancelled().await;
        if stop.is_cancelled() { Stop::InOrder } else { Stop::AtOnce }
    };
    match connection.serve(leaving, leaves).await {
        Ok(Served::ToItsEnd) => None,
        Ok(Served::UntilItLeaves) => Some(connection),
        Err(error) => {
            tracing::debug!(%error, "a connection ended with an error");
            None
        }
    }
}
