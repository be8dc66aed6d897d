//! A connection stays on its core, whatever it asks for. Calls that may take long run on the shared runtime.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grpc_h2::{Budget, CallKind, FastPath, RequestHead, Runs, Runtimes, SharedLimits};
use http::{Request, Response};
use keyward::grpc::calls::rpc;
use keyward::metrics::{MetricSources, Metrics};
use keyward::server::addr::ListenAddr;
use keyward::server::age::ConnectionAge;
use keyward::server::connections::{Http2, MakeConnection, Transport, serve};
use keyward::server::cores::Cores;
use keyward::server::lifecycle::Tasks;
use keyward::server::listener::{Admission, Listener};
use keyward::server::slots::Slots;
use tokio::sync::mpsc;
use tonic::body::Body;
use tower_service::Service;

use crate::support::h2peer::*;

const HOME: &str = "/home";
const AWAY: &str = "/away";
const BULK: &str = "/bulk";

/// Answers calls of [`HOME`] on the fast path, with the name of the thread.
struct Here;

impl FastPath for Here {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn is_known(&mut self, _: &RequestHead) -> bool {
        true
    }

    fn admit(&mut self, head: &RequestHead) -> Option<()> {
        (head.path() == HOME.as_bytes()).then_some(())
    }

    fn answer(&mut self, (): &(), _: &[u8]) -> Option<Bytes> {
        Some(thread_name().into())
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

/// Answers all others with it.
#[derive(Clone)]
struct There;

impl<B> Service<Request<B>> for There {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Body::new(thread_name()))))
    }
}

fn thread_name() -> String {
    std::thread::current().name().unwrap_or("nameless").to_owned()
}

/// A server on one core. The test's runtime is the shared one.
async fn start(tasks: &Tasks, cores: &Cores, http2: Http2) -> ListenAddr {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = listener.addr().clone();
    let (accepted, incoming) = mpsc::channel(1);
    let stop = tasks.stop_token();
    tasks.spawn("accept", listener.accept(Admission::of_all(Slots::new(8)), accepted, stop.clone(), stop));
    let shared = tokio::runtime::Handle::current();
    let metrics = Metrics::new([], [""; 2], MetricSources::default());
    let make_connection = MakeConnection {
        transport: Transport {
            http2,
            budget: Budget::new(1 << 30, 1 << 30),
            limits: SharedLimits::default(),
            counts: metrics.http2(),
            tls_counts: metrics.tls(),
            age: ConnectionAge::about(Duration::from_secs(3_600)),
        },
        service: There,
        make_fast_path: |_, _| Here,
        call_kind: |path| {
            let runs = match path {
                HOME => Runs::Inline,
                BULK => Runs::Bulk,
                _ => Runs::Shared,
            };
            CallKind { runs, ..CallKind::default() }
        },
        runtimes: Runtimes { shared, urgent: cores.urgent(), bulk: cores.bulk() },
        encryption: None,
    };
    tasks.spawn("serve", serve(tasks.clone(), cores.runtimes().to_vec(), incoming, make_connection));
    addr
}

async fn connect(addr: &ListenAddr) -> Peer {
    let mut peer = Peer::to(addr).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    peer
}

/// The thread that answers a call.
async fn thread_of(peer: &mut Peer, stream: u32, path: &str) -> String {
    peer.call(stream, &head(path), b"").await;
    answer(peer, stream).await
}

async fn answer(peer: &mut Peer, stream: u32) -> String {
    let data = peer.find(|frame| frame.kind == DATA && frame.stream == stream).await;
    String::from_utf8(data.payload).unwrap()
}

/// Clients share one connection for all calls, so one call must not decide where others run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_stays_on_its_core_and_its_other_calls_are_answered_elsewhere() {
    for http2 in [Http2::Own, Http2::Hyper] {
        let (tasks, cores) = (Tasks::default(), Cores::start(1, || ()).unwrap());
        let addr = start(&tasks, &cores, http2).await;
        let (mut asks, mut changes) = (connect(&addr).await, connect(&addr).await);
        for peer in [&mut asks, &mut changes] {
            assert_eq!(thread_of(peer, 1, HOME).await, "core-0", "{http2:?}");
        }
        let before = cores.runtimes()[0].connections();
        for stream in [3, 7, 11] {
            assert_ne!(thread_of(&mut changes, stream, AWAY).await, "core-0", "{http2:?}");
            assert_eq!(thread_of(&mut changes, stream + 2, HOME).await, "core-0", "{http2:?}");
        }
        assert_eq!(thread_of(&mut changes, 15, BULK).await, "bulk", "{http2:?}");
        assert_eq!(cores.runtimes()[0].connections(), before);
        assert_eq!(thread_of(&mut asks, 3, HOME).await, "core-0", "{http2:?}");
        assert!(tasks.stop(std::time::Duration::from_secs(20)).await, "it ends in order");
        cores.stop();
    }
    assert_eq!(rpc("/keyward.v1.KeyAdmin/ListKeys").kind.runs, Runs::Bulk);
}
