//! Each limit is where it is set: with two values of a field, what it bounds happens at those two.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant as Time;
use tower_service::Service;

use super::*;
use crate::call::ServiceSpawner;
use crate::events::event_channel;
use crate::{Connection, Handlers, Incoming, NoFastPath, NoObserver, Runs, Runtimes, Shutdown};

/// A field, how to set it, two values, and a measurement that finds the value again.
type Case = (&'static str, fn(&mut Limits, u64), [u64; 2], fn(Limits) -> u64);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const CASES: &[Case] = &[
    (
        "streams_max",
        |limits, n| limits.streams_max = n as usize,
        [1, 5],
        |limits| {
            let (mut conn, spawned) = open_within(limits);
            conn.account.mark_known();
            (0..9).for_each(|nth| receive(&mut conn, &head(2 * nth + 1, "/long")).unwrap());
            spawned.0.borrow().len() as u64
        },
    ),
    (
        "header_bytes_max",
        |limits, n| limits.header_bytes_max = n as usize,
        [300, 1_000],
        |limits| {
            // `:method`, `:scheme`, `:path` and the name of the last field take this much.
            let others = (7 + 4 + 32) + (7 + 4 + 32) + (5 + 1 + 32) + (1 + 32);
            largest(others + 0x7f..4_000, |list_bytes| {
                let (mut conn, _) = open_within(limits.clone());
                let mut bytes = vec![];
                frame::put_headers(&mut bytes, 1, false, |to| {
                    let value = vec![b'y'; (list_bytes - others) as usize];
                    // The length of a value of 127 bytes and more, in three bytes.
                    let length = value.len() - 0x7f;
                    to.extend(b"\x83\x86\x84\0\x01x\x7f");
                    to.extend([0x80 | (length & 0x7f) as u8, (length >> 7) as u8]);
                    to.extend(value);
                });
                receive(&mut conn, &bytes).unwrap();
                !conn.pending_calls.is_empty()
            })
        },
    ),
    (
        "block_frames_max",
        |limits, n| limits.block_frames_max = n as u32,
        [1, 5],
        |limits| {
            let (mut conn, _) = open_within(limits);
            let mut block = vec![];
            frame::put_head(&mut block, 0, kind::HEADERS, 0, 1);
            (1..100_000)
                .take_while(|_| receive(&mut conn, &std::mem::replace(&mut block, continuation())).is_ok())
                .count() as u64
        },
    ),
    (
        "errors_max",
        |limits, n| limits.errors_max = n as u32,
        [0, 3],
        |limits| {
            let (mut conn, _) = open_within(limits);
            let errors = (0..100_000).take_while(|nth| {
                error_of(&mut conn, 2 * nth + 1);
                conn.forced_drain().is_none()
            });
            errors.count() as u64
        },
    ),
    (
        "error_calls",
        |limits, n| (limits.errors_max, limits.error_calls) = (1, n as u32),
        [1, 5],
        |limits| {
            let is_enough = |calls: u32| {
                let (mut conn, _) = open_within(limits.clone());
                error_of(&mut conn, 1);
                for nth in 1..=calls {
                    let mut call = head(2 * nth + 1, "/");
                    frame::put_data(&mut call, 2 * nth + 1, true, b"x");
                    receive(&mut conn, &call).unwrap();
                }
                error_of(&mut conn, 2 * calls + 3);
                conn.forced_drain().is_none()
            };
            (0..1_000).find(|calls| is_enough(*calls)).unwrap().into()
        },
    ),
    (
        "overhead_frames_max",
        |limits, n| limits.overhead_frames_max = n as u32,
        [3, 7],
        |limits| {
            let (mut conn, _) = open_within(limits);
            // The SETTINGS of the peer are the first.
            1 + pings_until_drain(&mut conn)
        },
    ),
    (
        "overhead_frames_paid",
        |limits, n| limits.overhead_frames_paid = n as u32,
        [0, 4],
        |limits| {
            let limits = Limits { overhead_frames_max: 10, ..limits };
            let (mut conn, _) = open_within(limits);
            (0..9).for_each(|_| receive(&mut conn, &ping()).unwrap());
            receive(&mut conn, &head(1, "/long")).unwrap();
            pings_until_drain(&mut conn)
        },
    ),
    (
        "resets_remembered",
        |limits, n| limits.resets_remembered = n as usize,
        [1, 4],
        |limits| {
            let is_remembered = |resets: u32| {
                let (mut conn, _) = open_within(limits.clone());
                (0..resets).for_each(|nth| error_of(&mut conn, 2 * nth + 1));
                conn.out.clear();
                conn.receive(&data(1, 0, b"x"), Instant::now()).unwrap();
                !frames(&conn.out).iter().any(|(kind, ..)| *kind == kind::RST_STREAM)
            };
            (1..100_000).take_while(|resets| is_remembered(*resets)).count() as u64
        },
    ),
    (
        "drain_time_max",
        |limits, n| limits.drain_time_max = ms(n),
        [200, 700],
        |limits| {
            let limits = Limits { overhead_frames_max: 1, overhead_frames_paid: 0, ..limits };
            let spoken = talk(limits, async |peer, _| {
                peer.write_all(&[hello(), head(1, "/"), ping()].concat()).await.unwrap();
                next(peer, kind::GOAWAY).await
            });
            spoken.ended_after_told()
        },
    ),
    (
        "window_bytes",
        |limits, n| limits.window_bytes = n as u32,
        [65_535, 100_000],
        |limits| {
            let (mut conn, _) = open_within(limits);
            receive(&mut conn, &head(1, "/open/stream")).unwrap();
            let mut part = vec![];
            frame::put_data(&mut part, 1, false, b"12345");
            5 * (0..100_000).take_while(|_| receive(&mut conn, &part).is_ok()).count() as u64
        },
    ),
    (
        "window_bytes",
        |limits, n| limits.window_bytes = 4 * n as u32,
        [20_000, 30_000],
        |limits| {
            // See `Limits::whole_bytes_max`.
            longest_kept(limits, CallKind { has_stream: true, runs: Runs::Inline, ..CallKind::default() })
        },
    ),
    (
        "window_bytes",
        |limits, n| limits.window_bytes = 2 * n as u32,
        [40_000, 50_000],
        |limits| {
            // See `Limits::buffered_bytes_all_max`.
            buffered(Limits { buffered_bytes_max: 1 << 20, ..limits })
        },
    ),
    (
        "open_message_bytes_max",
        |limits, n| limits.open_message_bytes_max = n as usize,
        [10, 70],
        |limits| {
            largest(0..100, |length| {
                let (mut conn, spawned) = open_within(limits.clone());
                receive(&mut conn, &head(1, "/open")).unwrap();
                receive(&mut conn, &data(1, 0, &[&[0][..], &(length as u32).to_be_bytes()].concat())).unwrap();
                // A call that is refused is begun for that.
                spawned.0.borrow().is_empty()
            })
        },
    ),
    (
        "open_message_bytes_max",
        |limits, n| limits.open_message_bytes_max = n as usize,
        [10, 70],
        |limits| {
            let kind = CallKind { is_open: true, has_stream: true, runs: Runs::Inline, ..CallKind::default() };
            longest_kept(limits, kind)
        },
    ),
    (
        "stranger_calls_max",
        |limits, n| limits.stranger_calls_max = n as usize,
        [1, 5],
        |limits| {
            let (mut conn, spawned) = open_within(limits);
            let calls = (0..100_000).take_while(|nth| {
                receive(&mut conn, &head(2 * nth + 1, "/open")).unwrap();
                spawned.0.borrow().is_empty()
            });
            calls.count() as u64
        },
    ),
    (
        "stranger_refusals_max",
        |limits, n| limits.stranger_refusals_max = n as u32,
        [0, 3],
        |limits| {
            let (mut conn, spawned) = open_within(Limits { stranger_calls_max: 0, ..limits });
            (0..9).for_each(|nth| receive(&mut conn, &head(2 * nth + 1, "/open")).unwrap());
            spawned.0.borrow().len() as u64
        },
    ),
    (
        "single_bytes_max",
        |limits, n| limits.single_bytes_max = n as usize,
        [10, 70],
        |limits| longest_kept(limits, CallKind { runs: Runs::Inline, ..CallKind::default() }),
    ),
    ("buffered_bytes_max", |limits, n| limits.buffered_bytes_max = n as usize, [10, 70], buffered),
    (
        "prefetch_max",
        |limits, n| limits.prefetch_max = n as usize,
        [1, 5],
        |limits| {
            let bodies = Counting::default();
            let limits = SharedLimits::new(limits).unwrap();
            let mut conn =
                Conn::new(bodies.clone(), Spawned::default(), ReplyBudget::new(1), roomy(), limits, NoObserver);
            let mut bytes = hello();
            for nth in 0..9 {
                bytes.extend(head(2 * nth + 1, "/"));
                frame::put_data(&mut bytes, 2 * nth + 1, true, b"x");
            }
            conn.receive(&bytes, Instant::now()).unwrap();
            bodies.0.borrow()[0] as u64
        },
    ),
    (
        "request_time_max",
        |limits, n| limits.request_time_max = ms(n),
        [200, 700],
        |limits| {
            let spoken = talk(limits, async |peer, _| {
                peer.write_all(&[hello(), head(1, "/")].concat()).await.unwrap();
                next(peer, kind::HEADERS).await
            });
            spoken.told_after_began()
        },
    ),
    (
        "turn_bytes_max",
        |limits, n| limits.turn_bytes_max = n as usize,
        [100, 700],
        |limits| {
            let read = Arc::new(AtomicUsize::new(0));
            runtime().block_on(async {
                let handlers = handlers(NoFastPath, limits);
                // It ends with the stream.
                Connection::new(Offered(read.clone()), handlers).serve(pending(), false).await.unwrap();
            });
            read.load(Ordering::Relaxed) as u64
        },
    ),
    (
        "out_bytes_max",
        |limits, n| limits.out_bytes_max = n as usize,
        [17, 170],
        |limits| {
            let (mut conn, _) = open_within(limits);
            conn.out.clear();
            // The acknowledgement of each PING has 17 bytes.
            conn.receive(&ping().repeat(20), Instant::now()).unwrap();
            conn.out.len() as u64
        },
    ),
    (
        "replies_bytes_max",
        |limits, n| limits.replies_bytes_max = n as usize,
        [20, 100],
        |limits| {
            let mut bytes = PREFACE.to_vec();
            frame::put_settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, 0)]);
            for nth in 0..9 {
                bytes.extend(head(2 * nth + 1, "/"));
                frame::put_data(&mut bytes, 2 * nth + 1, true, b"x");
            }
            bytes.extend(ping());
            let heads = Rc::new(RefCell::new(0));
            let counted = heads.clone();
            talk(limits, async move |peer, _| {
                peer.write_all(&bytes).await.unwrap();
                loop {
                    match read_frame(peer).await {
                        Some(kind::HEADERS) => *counted.borrow_mut() += 1,
                        Some(kind::PING) => return Time::now(),
                        _ => {}
                    }
                }
            });
            // Those of replies of 20 bytes that wait for their windows.
            20 * *heads.borrow()
        },
    ),
    (
        "reply_bytes_ahead",
        |limits, n| limits.reply_bytes_ahead = n as usize,
        [10, 50],
        |limits| {
            let made = Arc::new(AtomicUsize::new(0));
            spawn_inline(limits, CallKind { runs: Runs::Inline, ..CallKind::default() }, b"", Endless(made.clone()));
            // The last one waits.
            10 * (made.load(Ordering::Relaxed) as u64 - 1)
        },
    ),
    (
        "preface_timeout",
        |limits, n| limits.preface_timeout = ms(n),
        [200, 700],
        |limits| talk(limits, async |_, _| Time::now()).ended_after_told(),
    ),
    (
        "keepalive_interval",
        |limits, n| limits.keepalive_interval = ms(n),
        [200, 700],
        |limits| {
            let spoken = talk(limits, async |peer, _| {
                peer.write_all(&hello()).await.unwrap();
                next(peer, kind::PING).await
            });
            spoken.told_after_began()
        },
    ),
    (
        "keepalive_timeout",
        |limits, n| limits.keepalive_timeout = ms(n),
        [200, 700],
        |limits| {
            let spoken = talk(limits, async |peer, _| {
                peer.write_all(&hello()).await.unwrap();
                next(peer, kind::PING).await
            });
            spoken.ended_after_told()
        },
    ),
    (
        "goaway_ack_timeout",
        |limits, n| limits.goaway_ack_timeout = ms(n),
        [200, 700],
        |limits| second_goaway(limits, &[hello(), head(1, "/")].concat()),
    ),
    (
        "idle_goaway_ack_timeout",
        |limits, n| limits.idle_goaway_ack_timeout = ms(n),
        [200, 700],
        |limits| second_goaway(limits, &hello()),
    ),
    (
        "linger_time",
        |limits, n| limits.linger_time = ms(n),
        [200, 700],
        |limits| {
            let spoken = talk(limits, async |peer, _| {
                peer.write_all(&[hello(), continuation()].concat()).await.unwrap();
                next(peer, kind::GOAWAY).await
            });
            spoken.ended_after_told()
        },
    ),
    (
        "idle_linger_time",
        |limits, n| limits.idle_linger_time = ms(n),
        [200, 700],
        |limits| {
            let spoken = talk(limits, async |peer, stop| {
                peer.write_all(&hello()).await.unwrap();
                next(peer, kind::SETTINGS).await;
                stop.send(Shutdown::Graceful).unwrap();
                next(peer, kind::GOAWAY).await;
                next(peer, kind::GOAWAY).await
            });
            spoken.ended_after_told()
        },
    ),
];

#[test]
fn each_limit_is_where_it_is_set() {
    for (field, set, values, measure) in CASES {
        for value in values {
            let mut limits = Limits::DEFAULT;
            set(&mut limits, *value);
            assert_eq!(measure(limits), *value, "{field}");
        }
    }
}

#[test]
fn no_limit_is_left_out() {
    let text = format!("{:?}", Limits::DEFAULT);
    let fields = text.trim_start_matches("Limits {").split(", ").filter_map(|field| field.split_once(": "));
    let fields: BTreeSet<_> = fields.map(|(name, _)| name.trim()).collect();
    assert_eq!(CASES.iter().map(|(field, ..)| *field).collect::<BTreeSet<_>>(), fields);
}

/// The settings tell the peer.
#[test]
fn the_first_frames_announce_the_limits() {
    let limits = Limits { streams_max: 3, header_bytes_max: 1_000, window_bytes: 100_000, ..LIMITS };
    let limits = SharedLimits::new(limits).unwrap();
    let conn = Conn::new(Echo, Spawned::default(), ReplyBudget::new(1), roomy(), limits, NoObserver);
    let mut expected = vec![];
    frame::put_settings(
        &mut expected,
        &[
            (setting::MAX_CONCURRENT_STREAMS, 3),
            (setting::INITIAL_WINDOW_SIZE, 100_000),
            (setting::MAX_HEADER_LIST_SIZE, 1_000),
        ],
    );
    frame::put_window_update(&mut expected, 0, 100_000 - 65_535);
    assert_eq!(*conn.out, expected);
}

/// The largest number of a range for which this is true, as it is for all smaller ones.
fn largest(range: std::ops::Range<u64>, is_so: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (range.start, range.end);
    assert!(is_so(low) && !is_so(high));
    while high - low > 1 {
        let middle = low.midpoint(high);
        *(if is_so(middle) { &mut low } else { &mut high }) = middle;
    }
    low
}

fn hello() -> Vec<u8> {
    let mut hello = PREFACE.to_vec();
    frame::put_settings(&mut hello, &[]);
    hello
}

fn ping() -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_ping(&mut bytes, false, b"12345678");
    bytes
}

fn continuation() -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_head(&mut bytes, 0, kind::CONTINUATION, 0, 1);
    bytes
}

/// A call that is reset for an error of the peer.
fn error_of(conn: &mut Tested, stream: u32) {
    let mut bytes = head(stream, "/long");
    frame::put_window_update(&mut bytes, stream, 0);
    receive(conn, &bytes).unwrap();
}

fn pings_until_drain(conn: &mut Tested) -> u64 {
    let allowed = (0..100_000).take_while(|_| {
        receive(conn, &ping()).unwrap();
        conn.forced_drain().is_none()
    });
    allowed.count() as u64
}

/// How much of a request is buffered for the fast path.
fn buffered(limits: Limits) -> u64 {
    let (mut conn, spawned) = open_within(limits);
    receive(&mut conn, &head(1, "/")).unwrap();
    let mut part = vec![];
    frame::put_data(&mut part, 1, false, b"x");
    let bytes = (0..100_000).take_while(|_| {
        receive(&mut conn, &part).unwrap();
        spawned.0.borrow().is_empty()
    });
    bytes.count() as u64
}

/// The longest message of which a service sees nothing before it is whole.
fn longest_kept(limits: Limits, kind: CallKind) -> u64 {
    largest(2..100_000, |length| {
        let seen = Arc::new(AtomicUsize::new(0));
        let part = [&[0][..], &(length as u32).to_be_bytes(), b"x"].concat();
        spawn_inline(limits.clone(), kind, &part, Reads(seen.clone()));
        seen.load(Ordering::Relaxed) == 0
    })
}

/// Starts a call of a request that has come in part, and polls it once.
fn spawn_inline<S, B>(limits: Limits, kind: CallKind, part: &[u8], service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    let runtime = runtime();
    let _entered = runtime.enter();
    let here = runtime.handle().clone();
    let runtimes = Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here };
    let (events, _receiver) = event_channel();
    let call_kind = match (kind.is_open, kind.has_stream) {
        (false, false) => |_: &str| CallKind { runs: Runs::Inline, ..CallKind::default() },
        (false, true) => |_: &str| CallKind { runs: Runs::Inline, has_stream: true, ..CallKind::default() },
        (true, _) => |_: &str| CallKind { runs: Runs::Inline, has_stream: true, is_open: true, ..CallKind::default() },
    };
    let limits = SharedLimits::new(limits).unwrap();
    let reply_budget = ReplyBudget::new(limits.replies_bytes_max);
    let mut spawner = ServiceSpawner { service, call_kind, runtimes, extension: (), events, reply_budget, limits };
    let recv_buffer = RecvBuffer::default();
    recv_buffer.push(part);
    let mut heads = HeaderDecoder::new();
    spawner.spawn(1, heads.read(b"\x83\x86\x84", 1_000).unwrap(), recv_buffer).unwrap();
}

/// What was said and when, on a clock that skips all waits.
struct Talk {
    began: Time,
    told: Time,
    ended: Time,
}

impl Talk {
    fn told_after_began(&self) -> u64 {
        rounded(self.told - self.began)
    }

    fn ended_after_told(&self) -> u64 {
        rounded(self.ended - self.told)
    }
}

/// In milliseconds, to the nearest ten: the timer's resolution is one.
fn rounded(time: Duration) -> u64 {
    (time.as_millis() as u64 + 5) / 10 * 10
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// On the current runtime.
fn handlers<A: FastPath>(fast_path: A, limits: Limits) -> Handlers<Late, A, ()> {
    let here = Handle::current();
    Handlers {
        fast_path,
        service: Late,
        call_kind: |_| CallKind::default(),
        runtimes: Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here },
        extension: (),
        budget: roomy(),
        limits: SharedLimits::new(limits).unwrap(),
        observer: NoObserver,
    }
}

/// Serves a peer to the end of its connection. The peer returns when it was told what it waited for; it stays
/// there, and says nothing more.
fn talk(limits: Limits, peer: impl AsyncFnOnce(&mut DuplexStream, oneshot::Sender<Shutdown>) -> Time) -> Talk {
    runtime().block_on(async {
        let (io, mut peer_io) = tokio::io::duplex(64 * 1024);
        let (stop, stopped) = oneshot::channel();
        let began = Time::now();
        let mut connection = Connection::new(io, handlers(Echo, limits));
        let stopped = async {
            match stopped.await {
                Ok(stop) => stop,
                Err(_) => pending().await,
            }
        };
        let serving = async {
            drop(connection.serve(stopped, false).await);
            Time::now()
        };
        let (ended, told) = tokio::join!(serving, peer(&mut peer_io, stop));
        Talk { began, told, ended }
    })
}

/// When the second GOAWAY of a stop comes, after the first.
fn second_goaway(limits: Limits, said: &[u8]) -> u64 {
    let first = Rc::new(RefCell::new(None));
    let came = first.clone();
    let spoken = talk(limits, async move |peer, stop| {
        peer.write_all(&[said, &ping()].concat()).await.unwrap();
        next(peer, kind::PING).await;
        stop.send(Shutdown::Graceful).unwrap();
        *came.borrow_mut() = Some(next(peer, kind::GOAWAY).await);
        next(peer, kind::GOAWAY).await
    });
    rounded(spoken.told - first.take().unwrap())
}

/// When the next frame of a kind comes.
async fn next(peer: &mut DuplexStream, kind: u8) -> Time {
    while read_frame(peer).await.expect("the connection has ended") != kind {}
    Time::now()
}

/// The kind of the next frame. `None` at the end.
async fn read_frame(peer: &mut DuplexStream) -> Option<u8> {
    let mut head = [0; FRAME_HEAD_BYTES];
    peer.read_exact(&mut head).await.ok()?;
    let head = FrameHead::read(&head)?;
    let mut payload = vec![0; head.length];
    peer.read_exact(&mut payload).await.ok()?;
    Some(head.kind)
}

/// Answers a call only when its request will never be whole.
#[derive(Clone)]
struct Late;

impl Service<Request<Incoming>> for Late {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(async move {
            let mut body = request.into_body();
            loop {
                match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return Ok(Response::new("late".to_owned())),
                    None => pending().await,
                }
            }
        })
    }
}

/// Counts what it sees of its request, and answers nothing.
#[derive(Clone)]
struct Reads(Arc<AtomicUsize>);

impl Service<Request<Incoming>> for Reads {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let seen = self.0.clone();
        Box::pin(async move {
            let mut body = pin!(request.into_body());
            // Data, or the refusal of a message that is too long.
            std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
            seen.fetch_add(1, Ordering::Relaxed);
            pending().await
        })
    }
}

/// Answers with messages of 10 bytes without end, and counts them.
#[derive(Clone)]
struct Endless(Arc<AtomicUsize>);

impl Service<Request<Incoming>> for Endless {
    type Response = Response<Self>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Incoming>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.clone())))
    }
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"ten bytes!")))))
    }
}

/// Notes how many bodies are prefetched at a time.
#[derive(Clone, Default)]
struct Counting(Rc<RefCell<Vec<usize>>>);

impl FastPath for Counting {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        self.0.borrow_mut().push(bodies.count());
    }

    fn is_known(&mut self, _: &RequestHead) -> bool {
        true
    }

    fn admit(&mut self, _: &RequestHead) -> Option<()> {
        Some(())
    }

    fn answer(&mut self, (): &(), _: &[u8]) -> Option<Bytes> {
        Some(Bytes::new())
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

/// A stream that ends, and notes how many bytes the first read asks for.
struct Offered(Arc<AtomicUsize>);

impl AsyncRead for Offered {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.store(buffer.remaining(), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Offered {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
