//! A whole connection over a pipe in memory. Its peer sends anything in any pieces, reads or not, and lets
//! time pass. What comes back keeps to RFC 9113 and answers only what was asked; what the connection holds
//! has its bound; it ends when its peer is gone, with all of its calls, and nothing is held then.
#![no_main]

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use grpc_h2::fuzz_targets::{Input, Peer};
use grpc_h2::{
    Budget, CallKind, Callers, Connection, FastPath, Handlers, Incoming, Limits, NoObserver, OWN_BYTES, RequestHead,
    Runs, Runtimes, SharedLimits, Shutdown,
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower_service::Service;

/// Bounds of the budget, so low that inputs reach them.
const STRANGER_BYTES_MAX: usize = 256 * 1024;
const KNOWN_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one read of a connection at most.
const READ_BYTES_MAX: usize = 64 * 1024;
/// What the service reads of a request at most.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// How often some pieces come.
const REPEATS: usize = 50;
/// Bytes that the peer sends at most, with all repetitions.
const SENT_BYTES_MAX: usize = 512 * 1024;
/// Pieces in which it sends them. The rest comes at once.
const PIECES_MAX: usize = 200;
/// Longer than any connection may live without a peer.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of a piece of the input, by the lowest bits of a step.
const PIECE_BYTES: [usize; 8] = [16_393, 1, 9, 26, 100, 500, 2_000, 8_000];

/// Calls that the service answers just now.
type Alive = Arc<AtomicUsize>;

struct Echo;

impl FastPath for Echo {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        assert!(bodies.count() <= Limits::DEFAULT.prefetch_max, "too many bodies are fetched together");
    }

    fn is_known(&mut self, head: &RequestHead) -> bool {
        head.authorization().is_some()
    }

    fn admit(&mut self, head: &RequestHead) -> Option<()> {
        head.path().ends_with(b"Verify").then_some(())
    }

    fn answer(&mut self, (): &(), body: &[u8]) -> Option<Bytes> {
        (body.len() % 7 != 3).then(|| Bytes::copy_from_slice(&body.repeat(1 + body.len() % 4)))
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

fn call_kind(path: &str) -> CallKind {
    let runs = if path.len().is_multiple_of(2) { Runs::Inline } else { Runs::Shared };
    CallKind {
        runs,
        is_open: path.starts_with("/grpc."),
        has_stream: path.ends_with("Info") || path.ends_with("StreamVerify"),
        has_long_reply: path.ends_with("ListKeys") || path.ends_with("Backup"),
    }
}

/// Counts a call until it is dropped.
struct Counted(Alive);

impl Counted {
    fn new(alive: &Alive) -> Self {
        alive.fetch_add(1, Ordering::Relaxed);
        Self(alive.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Answers(Alive);

/// A reply: what the request holds, or so many bytes, and trailers.
struct Reply {
    echoed: Option<Incoming>,
    left: usize,
    has_trailers: bool,
    _counted: Counted,
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(echoed) = &mut self.echoed {
            match Pin::new(echoed).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(_) => self.echoed = None,
            }
        }
        if self.left > 0 {
            let bytes = self.left.min(10_000);
            self.left -= bytes;
            return Poll::Ready(Some(Ok(Frame::data(vec![b'r'; bytes].into()))));
        }
        let trailers = || HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from(0))]);
        Poll::Ready(std::mem::take(&mut self.has_trailers).then(|| Ok(Frame::trailers(trailers()))))
    }
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let counted = Counted::new(&self.0);
        Box::pin(async move {
            let (parts, mut body) = request.into_parts();
            let path = parts.uri.path().to_owned();
            let kind = call_kind(&path);
            if path.ends_with("Watch") {
                return pending().await;
            }
            let mut left = 0;
            if !kind.has_stream {
                while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
                    && left < REQUEST_BYTES_MAX
                {
                    left += frame.data_ref().map_or(0, Bytes::len);
                }
                if path.ends_with("UpdateKey") {
                    sleep(Duration::from_secs(40)).await;
                }
            }
            if kind.has_long_reply {
                left = 300_000;
            }
            let has_trailers = !path.ends_with("CreateKey");
            let echoed = kind.has_stream.then_some(body);
            let mut response = Response::new(Reply { echoed, left, has_trailers, _counted: counted });
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok(response)
        })
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(session(Input::of(data)));
});

async fn session(mut input: Input<'_>) {
    let (alive, budget) = (Alive::default(), Budget::new(STRANGER_BYTES_MAX, KNOWN_BYTES_MAX));
    let first = input.step();
    let (io, ours) = duplex([64 * 1024, 7, 1024, 256 * 1024][usize::from(first >> 6)]);
    let here = Handle::current();
    let handlers = Handlers {
        fast_path: Echo,
        service: Answers(alive.clone()),
        call_kind,
        runtimes: Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here },
        extension: (),
        budget: budget.clone(),
        limits: SharedLimits::default(),
        observer: NoObserver,
    };
    let mut connection = Connection::new(io, handlers);
    let (stop, stopped) = watch::channel(None);
    let mut driver = Driver { io: Some(ours), peer: Peer::default(), sent: 0, budget: budget.clone(), stop };
    let has_ended = {
        let mut served = pin!(connection.serve(stopped_by(stopped), first & 2 == 0));
        let driven = async {
            if first & 1 == 0 {
                driver.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", true).await;
            }
            driver.run(&mut input).await;
        };
        tokio::select! {
            _ = &mut served => true,
            () = driven => timeout(LIMIT, served).await.is_ok(),
        }
    };
    assert!(has_ended, "a connection outlives its peer");
    drop(connection);
    let held = budget.held(Callers::Strangers) + budget.held(Callers::Known);
    assert_eq!(held, 0, "bytes are held for a connection that is gone");
    // What it has sent last.
    while driver.read().await {}
    // Calls that it has cancelled are dropped when they are scheduled.
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive.load(Ordering::Relaxed), 0, "calls outlive their connection");
}

async fn stopped_by(mut stop: watch::Receiver<Option<Shutdown>>) -> Shutdown {
    match stop.wait_for(Option::is_some).await.ok().and_then(|stop| *stop) {
        Some(stop) => stop,
        None => pending().await,
    }
}

/// The peer of a connection.
struct Driver {
    /// `None`: it has closed.
    io: Option<DuplexStream>,
    peer: Peer,
    sent: usize,
    budget: Budget,
    stop: watch::Sender<Option<Shutdown>>,
}

impl Driver {
    async fn run(&mut self, input: &mut Input<'_>) {
        let mut pieces = 0;
        while !input.bytes.is_empty() && self.sent < SENT_BYTES_MAX {
            let step = input.step();
            let piece_bytes = if pieces < PIECES_MAX { PIECE_BYTES[usize::from(step & 7)] } else { usize::MAX };
            pieces += 1;
            let piece = input.take(piece_bytes);
            let reads = step & 0x18 != 0x18;
            let repeats = if step >> 5 == 6 && piece.len() <= 2_000 { REPEATS } else { 1 };
            let bytes = piece.repeat(repeats);
            self.sent += bytes.len();
            if !self.send(&bytes, reads).await {
                break;
            }
            match step >> 5 {
                4 => sleep(Duration::from_secs(1)).await,
                5 => sleep(Duration::from_secs(11)).await,
                7 if step == 0xff => drop(self.stop.send(Some(Shutdown::Now))),
                7 if step & 0x18 == 0x10 => drop(self.stop.send(Some(Shutdown::Graceful))),
                _ => tokio::task::yield_now().await,
            }
            self.check();
        }
        if input.step() & 1 == 0 {
            // The connection has all, and some time for it.
            let read_all = async { while self.read().await {} };
            drop(timeout(Duration::from_secs(3), read_all).await);
        }
        self.io = None;
    }

    /// Reads something. Returns false at the end.
    async fn read(&mut self) -> bool {
        let Some(io) = &mut self.io else { return false };
        let mut buffer = vec![0; 32 * 1024];
        let bytes = io.read(&mut buffer).await.unwrap_or_default();
        self.peer.receive(&buffer[..bytes]);
        self.check();
        bytes > 0
    }

    /// Sends, and reads meanwhile. Returns false if the connection has closed, or does not read for long.
    async fn send(&mut self, bytes: &[u8], reads: bool) -> bool {
        self.peer.send(bytes);
        let mut rest = bytes;
        let mut buffer = vec![0; 32 * 1024];
        while !rest.is_empty() {
            let Some(io) = &mut self.io else { return false };
            let (mut reader, mut writer) = tokio::io::split(io);
            tokio::select! {
                biased;
                read = reader.read(&mut buffer), if reads => match read {
                    Ok(bytes @ 1..) => self.peer.receive(&buffer[..bytes]),
                    _ => return false,
                },
                written = timeout(Duration::from_secs(1), writer.write(rest)) => match written {
                    Ok(Ok(bytes)) => rest = &rest[bytes..],
                    _ => return false,
                },
            }
            self.check();
        }
        true
    }

    fn check(&self) {
        let held = self.budget.held(Callers::Strangers);
        assert!(held <= OWN_BYTES.max(STRANGER_BYTES_MAX / 8), "a stranger holds {held} bytes");
        // Beyond its share, a connection with a credential holds what it has read and not parsed.
        let held = self.budget.held(Callers::Known);
        assert!(held <= KNOWN_BYTES_MAX / 8 + READ_BYTES_MAX, "a caller holds {held} bytes");
    }
}
