//! The protocol without a network. Calls do what the test says.

mod limits;
mod observer;
mod prefetch;
mod request_budget;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::stream::Piece;
use super::*;
use crate::body::RecvBuffer;
use crate::call::{CallHandle, CallKind, Event, StreamEvent};
use crate::frame::FRAME_HEAD_BYTES;
use crate::head::RequestHead;
use crate::{Callers, CloseReason, Refused};

const LIMITS: Limits = Limits::DEFAULT;
const WINDOW_BYTES: u32 = LIMITS.window_bytes;

/// Echoes bodies on the fast path, except those that begin with `l`.
struct Echo;

impl FastPath for Echo {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn is_known(&mut self, head: &RequestHead) -> bool {
        head.authorization().is_some()
    }

    fn admit(&mut self, head: &RequestHead) -> Option<()> {
        (head.path() == b"/").then_some(())
    }

    fn answer(&mut self, (): &(), body: &[u8]) -> Option<Bytes> {
        assert_ne!(body, b"panic");
        (body.first() != Some(&b'l')).then(|| Bytes::copy_from_slice(&body.repeat(20)))
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

/// Spawns calls that never answer.
#[derive(Clone, Default)]
struct Spawned(Rc<RefCell<Vec<u32>>>);

impl CallSpawner for Spawned {
    fn call_kind(&self, head: &RequestHead) -> CallKind {
        let path = head.path();
        CallKind { is_open: path.starts_with(b"/open"), has_stream: path.ends_with(b"stream"), ..CallKind::default() }
    }

    fn spawn(&mut self, stream: u32, _: &RequestHead, _: RecvBuffer) -> Option<CallHandle> {
        self.0.borrow_mut().push(stream);
        Some(CallHandle::never())
    }
}

/// Notes what it is told.
#[derive(Clone, Default)]
struct Notes(Rc<RefCell<Vec<String>>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        self.0.take()
    }

    fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().push(what.into());
    }
}

impl Observer for Notes {
    fn opened(&mut self) {
        self.note("opened");
    }

    fn closed(&mut self, why: Option<&CloseReason>) {
        self.note(why.map_or("closed".to_owned(), |why| format!("closed: {why}")));
    }

    fn reset_sent(&mut self, code: ErrorCode) {
        self.note(format!("reset sent: {code:?}"));
    }

    fn reset_received(&mut self, code: u32) {
        self.note(format!("reset received: {code}"));
    }

    fn stream_refused(&mut self, why: Refused) {
        self.note(format!("refused: {why:?}"));
    }

    fn flooded(&mut self, by: Flood) {
        self.note(format!("flooded: {by:?}"));
    }

    fn goaway_sent(&mut self, code: ErrorCode) {
        self.note(format!("goaway sent: {code:?}"));
    }

    fn goaway_received(&mut self, code: u32) {
        self.note(format!("goaway received: {code}"));
    }

    fn transferred(&mut self, received: usize, sent: usize) {
        self.note(format!("transferred: {received} {sent}"));
    }
}

type Tested = Conn<Echo, Spawned, Notes>;

/// More than any test uses.
fn roomy() -> Budget {
    Budget::new(1 << 30, 1 << 30)
}

fn open() -> (Tested, Spawned) {
    open_within(LIMITS)
}

fn open_within(limits: Limits) -> (Tested, Spawned) {
    open_with(limits, roomy())
}

fn open_with(limits: Limits, budget: Budget) -> (Tested, Spawned) {
    let (spawned, limits) = (Spawned::default(), SharedLimits::new(limits).unwrap());
    let mut conn =
        Conn::new(Echo, spawned.clone(), ReplyBudget::new(limits.replies_bytes_max), budget, limits, Notes::default());
    let mut hello = PREFACE.to_vec();
    frame::put_settings(&mut hello, &[]);
    assert_eq!(receive(&mut conn, &hello), Ok(()));
    (conn, spawned)
}

/// Receives everything, and drops the output.
fn receive(conn: &mut Tested, mut bytes: &[u8]) -> Result<(), ConnError> {
    loop {
        conn.out.clear();
        let done = conn.receive(bytes, Instant::now())?;
        conn.send_pending();
        if done == 0 {
            return Ok(());
        }
        bytes = &bytes[done..];
    }
}

fn head(stream: u32, path: &str) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_headers(&mut bytes, stream, false, |to| {
        to.extend([0x83, 0x86, 0x04, path.len() as u8]);
        to.extend(path.as_bytes());
    });
    bytes
}

fn data(stream: u32, padding: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_head(&mut bytes, 1 + data.len() + usize::from(padding), kind::DATA, flag::PADDED, stream);
    bytes.push(padding);
    bytes.extend(data);
    bytes.resize(bytes.len() + usize::from(padding), 0);
    bytes
}

/// The frames in the output.
fn frames(mut out: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = vec![];
    while let Some(head) = FrameHead::read(out) {
        let (payload, rest) = out[FRAME_HEAD_BYTES..].split_at(head.length);
        frames.push((head.kind, head.stream, payload.to_vec()));
        out = rest;
    }
    frames
}

#[test]
fn a_peer_that_sends_more_than_the_window_of_the_connection_is_cut_off() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/open/stream")).unwrap();
    receive(&mut conn, &head(3, "/open/stream")).unwrap();
    let mut part = vec![];
    frame::put_data(&mut part, 1, false, &[0; PAYLOAD_BYTES_MAX]);
    for _ in 0..WINDOW_BYTES as usize / PAYLOAD_BYTES_MAX {
        receive(&mut conn, &part).unwrap();
    }
    part.clear();
    frame::put_data(&mut part, 3, false, b"x");
    assert_eq!(receive(&mut conn, &part).unwrap_err().code, ErrorCode::FlowControl);
}

#[test]
fn a_peer_that_sends_more_than_the_window_of_a_stream_has_it_reset() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/long")).unwrap();
    // The connection's window is released as data comes; only the stream's shrinks.
    conn.streams.get_mut(&1).unwrap().request().unwrap().window = 100;
    receive(&mut conn, &data(1, 90, b"123456789")).unwrap();
    conn.out.clear();
    conn.receive(&data(1, 0, b""), Instant::now()).unwrap();
    let code = (ErrorCode::FlowControl as u32).to_be_bytes().to_vec();
    assert_eq!(frames(&conn.out), [(kind::RST_STREAM, 1, code)]);
}

#[test]
fn padding_is_released_at_once() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/long")).unwrap();
    for _ in 0..3 * WINDOW_BYTES / 256 {
        conn.overhead_frames = 0;
        receive(&mut conn, &data(1, 255, b"")).unwrap();
    }
}

#[test]
fn the_window_of_the_peer_is_the_one_that_is_kept() {
    for path in ["/long", "/open/stream"] {
        let (mut conn, _) = open();
        let mut told = i64::from(WINDOW_BYTES);
        receive(&mut conn, &head(1, path)).unwrap();
        for round in 0..1_000 {
            conn.out.clear();
            let mut part = vec![];
            frame::put_data(&mut part, 1, false, &[0; 10_000]);
            conn.receive(&part, Instant::now()).unwrap();
            told -= 10_000;
            conn.on_event(StreamEvent { stream: 1, event: Event::Read(10_000 - round % 2) });
            conn.on_event(StreamEvent { stream: 1, event: Event::Read(round % 2) });
            for (kind, stream, payload) in frames(&conn.out) {
                if kind == kind::WINDOW_UPDATE && stream == 0 {
                    told += i64::from(frame::read_31(&payload).unwrap());
                }
            }
            assert_eq!(told, i64::from(conn.window), "{path}");
            assert!(told >= i64::from(WINDOW_BYTES) / 2 - 10_000, "{path}");
        }
        assert_eq!(conn.streams[&1].unread, 0, "{path}");
    }
}

/// A message with its prefix may exceed the window of its stream, and is not read before it is whole.
#[test]
fn the_window_of_a_call_is_given_back_as_its_request_comes() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/long")).unwrap();
    for _ in 0..2 * WINDOW_BYTES / 10_000 {
        let mut part = vec![];
        frame::put_data(&mut part, 1, false, &[0; 10_000]);
        receive(&mut conn, &part).unwrap();
        let request = conn.streams.get_mut(&1).and_then(Stream::request).unwrap();
        assert_eq!(request.window + request.unclaimed, WINDOW_BYTES);
    }
}

/// However a call ends, its unread bytes are released.
#[test]
fn unread_bytes_of_a_call_are_released() {
    let all_of = |conn: &Tested| conn.window + conn.unclaimed;
    let mut reset = vec![];
    frame::put_reset(&mut reset, 1, ErrorCode::NoError);
    let ends: [&dyn Fn(&mut Tested); 4] = [
        &|conn| receive(conn, &reset).unwrap(),
        &|conn| receive(conn, &head(1, "x")).unwrap(),
        &|conn| conn.on_event(StreamEvent { stream: 1, event: Event::Failed }),
        &|conn| {
            let (parts, ()) = http::Response::new(()).into_parts();
            conn.on_event(StreamEvent { stream: 1, event: Event::Head(Box::new(parts), true) });
        },
    ];
    for path in ["/open/stream", "/"] {
        for (at, end) in ends.iter().enumerate().filter(|(at, _)| path == "/open/stream" || *at < 2) {
            let (mut conn, _) = open();
            receive(&mut conn, &head(1, path)).unwrap();
            receive(&mut conn, &data(1, 3, &[0; 1_000])).unwrap();
            assert_eq!(all_of(&conn), WINDOW_BYTES - 1_000, "{path} {at}");
            end(&mut conn);
            assert_eq!(all_of(&conn), WINDOW_BYTES, "{path} {at}");
        }
    }
}

#[test]
fn a_call_counts_until_it_has_ended() {
    let streams_max = 5;
    let (mut conn, spawned) = open_within(Limits { streams_max, ..LIMITS });
    conn.account.mark_known();
    let reset = |stream| {
        let mut bytes = vec![];
        frame::put_reset(&mut bytes, stream, ErrorCode::NoError);
        bytes
    };
    let last = 2 * streams_max as u32 - 1;
    for stream in (1..=last).step_by(2) {
        receive(&mut conn, &[head(stream, "/long"), reset(stream)].concat()).unwrap();
    }
    assert_eq!(spawned.0.borrow().len(), streams_max);
    receive(&mut conn, &head(last + 2, "/long")).unwrap();
    assert_eq!(spawned.0.borrow().len(), streams_max, "it is refused");
    conn.on_event(StreamEvent { stream: 5, event: Event::Done });
    receive(&mut conn, &head(last + 4, "/long")).unwrap();
    assert_eq!(spawned.0.borrow().last(), Some(&(last + 4)));
}

/// A stream that is reset shortly before its request is due, and whose call has not ended.
#[test]
fn a_closed_stream_is_not_waited_for() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/long")).unwrap();
    assert!(conn.end_late_requests(Instant::now()).is_some());
    let mut reset = vec![];
    frame::put_reset(&mut reset, 1, ErrorCode::NoError);
    receive(&mut conn, &reset).unwrap();
    assert!(!conn.has_no_calls());
    assert_eq!(conn.end_late_requests(Instant::now()), None);
}

#[test]
fn a_panic_ends_its_call_alone() {
    let (mut conn, _) = open();
    let mut bytes = head(1, "/");
    frame::put_data(&mut bytes, 1, true, b"panic");
    bytes.extend(head(3, "/"));
    frame::put_data(&mut bytes, 3, true, b"fine!");
    conn.out.clear();
    conn.receive(&bytes, Instant::now()).unwrap();
    let code = (ErrorCode::Internal as u32).to_be_bytes().to_vec();
    let written = frames(&conn.out);
    assert_eq!(written[0], (kind::RST_STREAM, 1, code));
    assert!(written.iter().any(|(kind, stream, _)| (*kind, *stream) == (kind::DATA, 3)));
}

/// What GOAWAY has given up stays given up (RFC 9113, section 6.8): the peer may have made those calls
/// elsewhere.
#[test]
fn no_later_goaway_names_a_later_stream() {
    let ends: [&dyn Fn(&mut Tested); 3] = [
        &|conn| assert!(conn.receive(&head(2, "/"), Instant::now()).is_err()),
        &|conn| conn.force_drain(Flood::Errors).unwrap(),
        &|conn| conn.evict(),
    ];
    for end in ends {
        let (mut conn, _) = open();
        receive(&mut conn, &head(1, "/long")).unwrap();
        conn.finish_drain();
        receive(&mut conn, &head(3, "/long")).unwrap();
        conn.out.clear();
        end(&mut conn);
        let written = frames(&conn.out);
        let [(kind::GOAWAY, 0, payload)] = &written[..] else { unreachable!("{written:?}") };
        assert_eq!(frame::read_31(payload), Some(1));
    }
}

#[test]
fn a_call_that_ends_without_an_answer_is_reset() {
    let (mut conn, _) = open();
    receive(&mut conn, &head(1, "/long")).unwrap();
    conn.out.clear();
    conn.on_event(StreamEvent { stream: 1, event: Event::Done });
    let code = (ErrorCode::Internal as u32).to_be_bytes().to_vec();
    assert_eq!(frames(&conn.out), [(kind::RST_STREAM, 1, code)]);
    assert!(conn.streams.is_empty());
}

/// Errors that are allowed in the tests of them.
const ERRORS_MAX: u32 = 64;

/// Whether a connection survives this many rounds of calls, this far apart, with some calls in error and some
/// answered.
fn outlives(rounds: u32, apart: Duration, in_error: u32, answered: u32) -> bool {
    let (mut conn, _) = open_within(Limits { errors_max: ERRORS_MAX, ..LIMITS });
    let (began, mut stream) = (Instant::now(), 1);
    (0..rounds).all(|round| {
        for call in 0..in_error + answered {
            let mut bytes = head(stream, if call < in_error { "/long" } else { "/" });
            if call < in_error {
                frame::put_window_update(&mut bytes, stream, 0);
            } else {
                frame::put_data(&mut bytes, stream, true, b"x");
                frame::put_window_update(&mut bytes, 0, 20);
            }
            conn.out.clear();
            assert_eq!(conn.receive(&bytes, began + apart * round), Ok(bytes.len()));
            conn.on_event(StreamEvent { stream, event: Event::Done });
            stream += 2;
        }
        conn.forced_drain().is_none()
    })
}

/// Rare errors are no attack, however long they go on.
#[test]
fn errors_of_a_peer_are_weighed_against_its_calls_and_time() {
    let (now, many) = (Duration::ZERO, 3 * ERRORS_MAX);
    assert!(outlives(many, now, 1, LIMITS.error_calls), "one of nine calls is in error");
    assert!(!outlives(many, now, 1, LIMITS.error_calls / 2), "one of five is");
    assert!(!outlives(many, now, 1, 0), "all of them are");
    assert!(outlives(many, Duration::from_secs(1), 1, 0), "one a second is");
    assert!(outlives(100, LIMITS.keepalive_interval, ERRORS_MAX / 2, 0), "so many are forgotten meanwhile");
    assert!(!outlives(100, LIMITS.keepalive_interval, ERRORS_MAX / 2 + 10, 0), "and no more");
}

/// Any frame, more often a valid one.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![4 => (0_u32..12).prop_map(|n| 2 * n + 1), 1 => 0_u32..8];
    let block = prop_oneof![
        Just(b"\x83\x86\x84".to_vec()),
        Just(b"\x83\x86\x04\x05/long".to_vec()),
        Just(b"\x83\x86\x84\x40\x01x\x01y".to_vec()),
        Just(b"\x83\x86\x84\xbe".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    let payload = prop_oneof![
        3 => block,
        2 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(vec![0; 4]),
        1 => Just(vec![0, 0, 1, 0]),
        1 => Just(vec![0; 8]),
        1 => (0_usize..16_384).prop_map(|n| vec![b'd'; n]),
    ];
    let wild = (0_u8..11, any::<u8>(), stream, payload).prop_map(|(kind, flags, stream, payload)| {
        let mut bytes = vec![];
        frame::put_head(&mut bytes, payload.len(), kind, flags & 0x0d, stream);
        bytes.extend(payload);
        bytes
    });
    // Invalid frames mostly end the connection, so that little would come after them.
    let number = || 0_u32..12;
    let sound = prop_oneof![
        (number(), 0_u8..2).prop_map(|(n, path)| head(2 * n + 1, if path == 0 { "/" } else { "/long" })),
        (number(), 0_u8..40, 0_usize..5_000).prop_map(|(n, padding, length)| data(
            2 * n + 1,
            padding,
            &vec![b'd'; length]
        )),
        (number(), any::<bool>(), 0_usize..5_000).prop_map(|(n, ends, length)| {
            let mut bytes = vec![];
            frame::put_data(&mut bytes, 2 * n + 1, ends, &vec![b'd'; length]);
            bytes
        }),
        number().prop_map(|n| {
            let mut bytes = vec![];
            frame::put_reset(&mut bytes, 2 * n + 1, ErrorCode::NoError);
            bytes
        }),
        (0_u32..6, 1_u32..100_000).prop_map(|(n, more)| {
            let mut bytes = vec![];
            frame::put_window_update(&mut bytes, if n == 0 { 0 } else { 2 * n - 1 }, more);
            bytes
        }),
        (0_u32..100_000).prop_map(|window| {
            let mut bytes = vec![];
            frame::put_settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, window)]);
            bytes
        }),
    ];
    prop_oneof![12 => sound, 1 => wild]
}

fn any_event() -> impl Strategy<Value = StreamEvent> {
    let event = prop_oneof![
        Just(()).prop_map(|()| {
            let (parts, ()) = http::Response::new(()).into_parts();
            Event::Head(Box::new(parts), false)
        }),
        (1_usize..40_000).prop_map(|n| Event::Data(ReplyBudget::new(1).add(vec![b'r'; n].into(), n.min(65_536)))),
        Just(()).prop_map(|()| Event::End(None)),
        Just(()).prop_map(|()| Event::Failed),
        (1_usize..40_000).prop_map(Event::Read),
        Just(()).prop_map(|()| Event::Done),
    ];
    ((0_u32..12).prop_map(|n| 2 * n + 1), event).prop_map(|(stream, event)| StreamEvent { stream, event })
}

proptest! {
    /// Whatever the peer and calls send, nothing panics, and the accounts agree.
    #[test]
    fn the_accounts_agree_whatever_comes(
        steps in prop::collection::vec(prop_oneof![3 => any_frame().prop_map(Ok), 1 => any_event().prop_map(Err)], 1..80),
    ) {
        let (mut conn, _) = open();
        // Begins all streams, so that their frames are no errors.
        for stream in (1..8).step_by(2) {
            receive(&mut conn, &head(stream, if stream % 4 == 1 { "/" } else { "/long" })).unwrap();
        }
        for step in steps {
            conn.out.clear();
            match step {
                Ok(frame) => if conn.receive(&frame, Instant::now()).is_err() { return Ok(()) },
                Err(message) => conn.on_event(message),
            }
            conn.send_pending();
            prop_assert!(conn.streams.len() + conn.pending_calls.len() <= LIMITS.streams_max);
            let buffered: usize = conn.pending_calls.iter().map(|pending| pending.body.len()).sum();
            prop_assert_eq!(buffered, conn.buffered_bytes);
            let pending: usize = conn.pending_calls.iter().map(|pending| pending.budget_bytes).sum();
            let of_streams: usize = conn.streams.values().map(|stream| stream.budget_bytes).sum();
            prop_assert_eq!(pending + of_streams, conn.budget_bytes);
            let pieces = conn.streams.values().flat_map(|stream| &stream.pieces);
            let made_at_once = pieces.filter(|piece| matches!(piece, Piece::Data(part) if part.permits == 0));
            prop_assert_eq!(made_at_once.count() > 0, conn.reply_budget.held_bytes() > 0);
            // Window, unclaimed, unread and buffered bytes add up.
            let unread: u32 = conn.streams.values().map(|stream| stream.unread).sum();
            prop_assert_eq!(conn.window + conn.unclaimed + unread + buffered as u32, WINDOW_BYTES);
        }
    }
}
