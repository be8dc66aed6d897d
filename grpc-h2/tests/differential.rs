//! The same bytes to this server and to that of the `h2` crate: each stream and the connection must come to
//! the same end, or the difference stands in a table with its reason. `PROPTEST_CASES=100000` tries more
//! sessions.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use grpc_h2::testing::{
    CONTINUATION, DATA, END, END_HEADERS, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, WITH_PRIORITY, field, frame, settings_payload,
};
use grpc_h2::{Budget, CallKind, Connection, Handlers, Incoming, NoFastPath, NoObserver, Runtimes, SharedLimits};
use http::{Request, Response};
use http_body::Body;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::{Builder, Handle};
use tokio::time::timeout;
use tower_service::Service;

/// Error codes.
const PROTOCOL_ERROR: u32 = 1;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;

/// How a stream ended, if it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A whole reply came.
    Reply,
    /// It was reset.
    Error,
}

/// How everything ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// The code with which the connection ended.
    connection: Option<u32>,
    /// The first end of each stream.
    streams: BTreeMap<u32, End>,
    /// The codes of all resets, also of those after a reply.
    resets: BTreeSet<u32>,
}

impl Outcome {
    fn read(mut bytes: &[u8]) -> Self {
        let mut outcome = Self::default();
        while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
            let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *head;
            let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
            let Some((payload, rest)) = rest.split_at_checked(length) else { break };
            let stream = u32::from_be_bytes([s1, s2, s3, s4]);
            let code = |from: usize| u32::from_be_bytes(payload[from..from + 4].try_into().unwrap());
            match kind {
                DATA | HEADERS if flags & END != 0 => {
                    outcome.streams.entry(stream).or_insert(End::Reply);
                }
                // After a reply it only says that the rest of the request is of no use.
                RST_STREAM => {
                    outcome.resets.insert(code(0));
                    outcome.streams.entry(stream).or_insert(End::Error);
                }
                GOAWAY if code(4) != 0 => outcome.connection = outcome.connection.or(Some(code(4))),
                _ => {}
            }
            bytes = rest;
        }
        outcome
    }

    /// What the other must agree with. Codes may differ; what was answered before a connection error may not
    /// have been sent; and what the peer has `reset` may have been answered or reset before.
    fn class(&self, reset: &BTreeSet<u32>) -> (bool, BTreeMap<u32, End>) {
        let streams = self.streams.iter().filter(|(stream, _)| !reset.contains(stream));
        let streams = streams.map(|(stream, end)| (*stream, *end));
        match self.connection {
            Some(_) => (true, BTreeMap::new()),
            None => (false, streams.collect()),
        }
    }
}

/// Reads requests to their end, and answers.
#[derive(Clone)]
struct Answers;

impl Service<Request<Incoming>> for Answers {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                if frame.is_err() {
                    return pending().await;
                }
            }
            Ok(Response::new("reply".to_owned()))
        })
    }
}

async fn serve_ours(io: DuplexStream) {
    let here = Handle::current();
    let handlers = Handlers {
        fast_path: NoFastPath,
        service: Answers,
        call_kind: |_| CallKind { has_stream: true, ..CallKind::default() },
        runtimes: Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here },
        extension: (),
        budget: Budget::new(1 << 30, 1 << 30),
        limits: SharedLimits::default(),
        observer: NoObserver,
    };
    drop(Connection::new(io, handlers).serve(pending(), false).await);
}

async fn serve_theirs(io: DuplexStream) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(256).initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
    builder.max_header_list_size(16 * 1024).max_concurrent_reset_streams(1_024);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let Ok(data) = data else { return };
                drop(body.flow_control().release_capacity(data.len()));
            }
            if body.trailers().await.is_err() {
                return;
            }
            if let Ok(mut reply) = respond.send_response(Response::new(()), false) {
                drop(reply.send_data(Bytes::from_static(b"reply"), true));
            }
        });
    }
}

/// What a server makes of these bytes. The clock is paused, so the server is through with them when time
/// passes.
fn outcome<F: Future<Output = ()> + Send + 'static>(bytes: &[u8], serve: impl FnOnce(DuplexStream) -> F) -> Outcome {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (io, peer) = tokio::io::duplex(1 << 20);
        let server = tokio::spawn(serve(io));
        let (mut reader, mut writer) = tokio::io::split(peer);
        drop(writer.write_all(bytes).await);
        let mut received = vec![];
        while let Ok(Ok(1..)) = timeout(Duration::from_millis(10), reader.read_buf(&mut received)).await {}
        server.abort();
        Outcome::read(&received)
    })
}

/// The head of a request, with something about it.
fn block(what: u8) -> Vec<u8> {
    let (method, scheme, path) = (field(0, ":method", "POST"), field(0, ":scheme", "http"), field(0, ":path", "/a/b"));
    let (authority, content) = (field(0, ":authority", "x"), field(0, "content-type", "application/grpc"));
    let (te, good) = (field(0, "te", "trailers"), [&method[..], &scheme, &path, &authority].concat());
    match what {
        0 => [&good[..], &content].concat(),
        1 => [&good[..], &content, &te].concat(),
        // With the dynamic table: put in, and used.
        2 => [&good[..], &field(0x40, "x-index", "1")].concat(),
        3 => [&good[..], &[0xbe]].concat(),
        4 => [&[0x20][..], &good].concat(),
        5 => [&good[..], &[0x20]].concat(),
        6 => [&method[..], &scheme, &authority].concat(),
        7 => [&scheme[..], &path, &authority].concat(),
        8 => [&method[..], &path, &authority].concat(),
        9 => [&good[..], &path].concat(),
        10 => [&good[..], &content, &path].concat(),
        11 => [&good[..], &field(0, "X-Upper", "1")].concat(),
        12 => [&good[..], &field(0, "connection", "close")].concat(),
        13 => [&good[..], &field(0, "te", "gzip")].concat(),
        14 => [&good[..], &field(0, ":status", "200")].concat(),
        15 => [&good[..], &field(0, "content-length", "5")].concat(),
        16 => [&good[..], &field(0, "content-length", "x")].concat(),
        17 => [&good[..], &field(0, "", "1")].concat(),
        18 => [&good[..], &field(0, "x", "a\0b")].concat(),
        19 => [&good[..], &field(0, "x y", "1")].concat(),
        20 => [&good[..], &field(0, ":unknown", "1")].concat(),
        21 => [&method[..], &scheme, &field(0, ":path", ""), &authority].concat(),
        22 => [&good[..], &field(0, "transfer-encoding", "chunked")].concat(),
        23 => [&good[..], &field(0, "x", " padded ")].concat(),
        24 => [&good[..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(),
        25 => [&good[..], &[0x80]].concat(),
        26 => [&good[..], &[0, 0x81, 0, 0]].concat(),
        27 => good[..good.len() - 1].to_vec(),
        _ => vec![],
    }
}

const BLOCKS: u8 = 29;
/// The blocks with a field that h2 cannot represent.
const MALFORMED: [u8; 5] = [11, 17, 18, 19, 20];

/// A part of a session. Streams are counted from the newest one: 0 begins another.
#[derive(Clone, Debug)]
enum Part {
    Headers { stream: Which, ends: bool, what: u8, padding: Option<u8>, priority: bool, pieces: u8 },
    Data { stream: Which, ends: bool, bytes: usize, padding: Option<u8> },
    Settings(Vec<(u16, u32)>),
    Reset(Which, u32),
    WindowUpdate(Which, u32),
    Priority(Which, bool),
    Other(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Next,
    /// The newest, or one before.
    Back(i32),
    /// Beyond the newest.
    Ahead(i32),
    Number(i32),
}

impl Which {
    /// `newest` is -1 if none has begun.
    fn number(self, newest: i32) -> u32 {
        let number = match self {
            Self::Next => newest + 2,
            Self::Back(back) => newest - 2 * back,
            Self::Ahead(ahead) => newest + 2 * ahead,
            Self::Number(number) => number,
        };
        number.max(0) as u32
    }
}

/// The bytes of a session, and the streams that it resets.
fn session(parts: &[Part]) -> (Vec<u8>, BTreeSet<u32>) {
    let mut reset = BTreeSet::new();
    let (mut bytes, mut newest) = ([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat(), -1);
    let padded = |padding: Option<u8>, payload: &[u8]| match padding {
        Some(padding) => [&[padding][..], payload, &vec![0; padding.into()]].concat(),
        None => payload.to_vec(),
    };
    for part in parts {
        let number = |which: Which| which.number(newest);
        match part {
            Part::Headers { stream, ends, what, padding, priority, pieces } => {
                let id = number(*stream);
                if reset.contains(&id) {
                    continue;
                }
                let is_new = id as i32 > newest && id % 2 == 1;
                if is_new {
                    newest = id as i32;
                }
                let block = if is_new { block(*what) } else { field(0, "trailer", "1") };
                let flags = if *ends { END } else { 0 } | if padding.is_some() { PADDED } else { 0 };
                let (flags, front) = match priority {
                    true => (flags | WITH_PRIORITY, &[0, 0, 0, 0, 7][..]),
                    false => (flags, &[][..]),
                };
                let size = block.len().div_ceil(usize::from(*pieces)).max(1);
                let mut chunks = block.chunks(size);
                let first = padded(*padding, &[front, chunks.next().unwrap_or_default()].concat());
                let mut rest = chunks.peekable();
                let last = |is_last: bool| if is_last { END_HEADERS } else { 0 };
                bytes.extend(frame(HEADERS, flags | last(rest.peek().is_none()), id, &first));
                while let Some(piece) = rest.next() {
                    bytes.extend(frame(CONTINUATION, last(rest.peek().is_none()), id, piece));
                }
            }
            Part::Data { stream, .. } if reset.contains(&number(*stream)) => {}
            Part::Data { stream, ends, bytes: length, padding } => {
                let flags = if *ends { END } else { 0 } | if padding.is_some() { PADDED } else { 0 };
                bytes.extend(frame(DATA, flags, number(*stream), &padded(*padding, &vec![0; *length])));
            }
            Part::Settings(settings) => bytes.extend(frame(SETTINGS, 0, 0, &settings_payload(settings))),
            Part::Reset(stream, code) => {
                reset.insert(number(*stream));
                bytes.extend(frame(RST_STREAM, 0, number(*stream), &code.to_be_bytes()));
            }
            Part::WindowUpdate(stream, by) => bytes.extend(frame(WINDOW_UPDATE, 0, number(*stream), &by.to_be_bytes())),
            Part::Priority(stream, is_whole) => {
                let payload = if *is_whole { &[0, 0, 0, 0, 7][..] } else { &[0, 0, 0, 0] };
                bytes.extend(frame(PRIORITY, 0, number(*stream), payload));
            }
            Part::Other(frame) => bytes.extend(frame),
        }
    }
    (bytes, reset)
}

fn which() -> impl Strategy<Value = Which> {
    prop_oneof![
        6 => Just(Which::Next),
        6 => (0..3).prop_map(Which::Back),
        1 => (1..3).prop_map(Which::Ahead),
        1 => (0..9).prop_map(Which::Number),
    ]
}

fn old() -> impl Strategy<Value = Which> {
    prop_oneof![8 => Just(Which::Back(0)), 4 => (1..3).prop_map(Which::Back), 1 => which()]
}

fn padding() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![8 => Just(None), 1 => (0..40u8).prop_map(Some)]
}

fn part() -> impl Strategy<Value = Part> {
    let what =
        prop_oneof![3 => Just(0), 1 => (0..BLOCKS).prop_filter("in the table", |what| !MALFORMED.contains(what))];
    let headers = (which(), any::<bool>(), what, padding(), prop::bool::weighted(0.1), 1..4u8).prop_map(
        |(stream, ends, what, padding, priority, pieces)| Part::Headers {
            stream,
            ends,
            what,
            padding,
            priority,
            pieces,
        },
    );
    let data = (old(), any::<bool>(), prop_oneof![0..20usize, Just(16_384), Just(16_385)], padding())
        .prop_map(|(stream, ends, bytes, padding)| Part::Data { stream, ends, bytes, padding });
    let value = prop_oneof![Just(0), Just(1), Just(2), Just(65_535), Just(16_384), Just(0x7fff_ffff), any::<u32>()];
    let settings = prop::collection::vec((0..8u16, value), 0..3).prop_map(Part::Settings);
    let kinds = prop_oneof![Just(SETTINGS), Just(PING), Just(DATA), PRIORITY..PUSH_PROMISE, WINDOW_UPDATE..16];
    let other = (kinds, any::<u8>(), 0..5u32, prop_oneof![Just(8usize), Just(0), 0..13usize])
        .prop_map(|(kind, flags, stream, length)| Part::Other(frame(kind, flags, stream, &vec![0; length])));
    let by = prop_oneof![Just(1u32), Just(0x7fff_ffff)];
    let widened = (old(), by).prop_map(|(stream, by)| Part::WindowUpdate(stream, by));
    prop_oneof![
        8 => headers,
        8 => data,
        1 => settings,
        2 => (old(), prop_oneof![Just(8u32), any::<u32>()]).prop_map(|(stream, code)| Part::Reset(stream, code)),
        2 => widened,
        1 => (old(), prop::bool::weighted(0.8)).prop_map(|(stream, whole)| Part::Priority(stream, whole)),
        1 => other,
    ]
}

/// Whether the difference is that h2 ends the connection where RFC 9113 has a stream error: for DATA or
/// HEADERS on a stream that has ended (section 5.1), and for PRIORITY that is not of 5 bytes (section 6.3).
fn is_known(ours: &Outcome, theirs: &Outcome) -> bool {
    let is_milder = [STREAM_CLOSED, FRAME_SIZE_ERROR].iter().any(|code| ours.resets.contains(code));
    ours.connection.is_none() && theirs.connection.is_some() && is_milder
}

/// The other differences. Random sessions are without them.
#[test]
fn all_known_differences_are_as_the_rfc_has_it_or_as_it_allows() {
    let headers = |stream, ends, what| Part::Headers { stream, ends, what, padding: None, priority: false, pieces: 1 };
    let (open, whole) = (headers(Which::Next, false, 0), headers(Which::Next, true, 0));
    let first = |parts: &[Part]| [std::slice::from_ref(&open), parts].concat();
    let other = |kind, flags, stream, payload: &[u8]| Part::Other(frame(kind, flags, stream, payload));
    let (error, reply) = (|code| (Some(code), None), |connection| (connection, Some(End::Reply)));
    let mut table = vec![
        // Section 6.9: a stream error.
        (first(&[Part::WindowUpdate(Which::Back(0), 0)]), (None, Some(End::Error)), error(PROTOCOL_ERROR)),
        // Section 8.1: trailers have no pseudo-header fields.
        (first(&[other(HEADERS, END | END_HEADERS, 1, &block(0))]), (None, Some(End::Error)), reply(None)),
        // Section 8.4: a client cannot push.
        (vec![other(PUSH_PROMISE, 0, 1, &[0; 8])], error(PROTOCOL_ERROR), (None, None)),
        // Section 5.1.1: a client's streams are odd, whatever they carry.
        (vec![other(HEADERS, 0, 2, &[])], error(PROTOCOL_ERROR), (None, None)),
        // RFC 8441, section 3, is for servers. Section 6.5.2: what is unknown is ignored.
        (vec![Part::Settings(vec![(8, 2)]), whole.clone()], reply(None), error(PROTOCOL_ERROR)),
        // Section 5.1: what a peer sends behind its own RST_STREAM is at most an error of that stream.
        (
            vec![headers(Which::Next, false, 6), other(RST_STREAM, 0, 1, &[0; 4]), other(DATA, 0, 1, &[])],
            (None, Some(End::Error)),
            error(PROTOCOL_ERROR),
        ),
        // Section 6.8: a peer that says GOAWAY is about to close, and we close first.
        (vec![other(GOAWAY, 0, 0, &[0; 8]), whole.clone()], (None, None), reply(None)),
    ];
    // Section 8.1.1: a malformed request is a stream error.
    let malformed =
        MALFORMED.map(|what| (vec![headers(Which::Next, true, what)], (None, Some(End::Error)), error(PROTOCOL_ERROR)));
    table.extend(malformed);
    for (parts, ours, theirs) in table {
        let (bytes, _) = session(&parts);
        let ended = |outcome: Outcome| (outcome.connection, outcome.streams.get(&1).copied());
        let found = (ended(outcome(&bytes, serve_ours)), ended(outcome(&bytes, serve_theirs)));
        assert_eq!(found, (ours, theirs), "{parts:?}");
    }
}

/// Sessions that once ended differently.
#[test]
fn sessions_that_once_differed_end_as_with_h2() {
    let headers =
        |what, pieces| Part::Headers { stream: Which::Next, ends: false, what, padding: None, priority: false, pieces };
    let widest = Part::WindowUpdate(Which::Back(0), 0x7fff_ffff);
    for parts in [
        // A block in pieces that begins with a table size, after another block.
        vec![headers(0, 1), headers(4, 2)],
        // A stream that was reset for its window, and the window of all streams moves.
        vec![headers(0, 1), widest.clone(), Part::Settings(vec![(4, 1)])],
        vec![headers(0, 1), widest.clone(), widest],
    ] {
        let (bytes, reset) = session(&parts);
        let (ours, theirs) = (outcome(&bytes, serve_ours), outcome(&bytes, serve_theirs));
        assert_eq!(ours.class(&reset), theirs.class(&reset), "{parts:?}: ours {ours:?}, theirs {theirs:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streams_and_connections_end_as_with_h2(parts in prop::collection::vec(part(), 1..12)) {
        let (bytes, reset) = session(&parts);
        let (ours, theirs) = (outcome(&bytes, serve_ours), outcome(&bytes, serve_theirs));
        if !is_known(&ours, &theirs) {
            prop_assert_eq!(ours.class(&reset), theirs.class(&reset), "ours: {:?}, theirs: {:?}", ours, theirs);
        }
    }
}
