//! A connection without I/O: frames and the events of its calls, in any order.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;

use super::{Input, Peer};
use crate::body::{Delivery, Incoming, RecvBuffer};
use crate::call::{CallHandle, CallKind, CallSpawner, Event, StreamEvent};
use crate::conn::Conn;
use crate::events::{EventReceiver, EventSender, event_channel};
use crate::frame::{PREFACE, put_settings};
use crate::reply_budget::ReplyBudget;
use crate::{Budget, Callers, FastPath, Limits, NoObserver, OWN_BYTES, RequestHead, SharedLimits};

/// Bounds of the budget, so low that inputs reach them.
const STRANGER_BYTES_MAX: usize = 256 * 1024;
const KNOWN_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one read at most.
const READ_BYTES_MAX: usize = 32 * 1024;
/// Bytes that a call sends at most.
const REPLY_BYTES_MAX: usize = 128 * 1024;
/// Pieces of an input. The rest comes at once.
const PIECES_MAX: usize = 200;
/// How often some pieces come.
const REPEATS: usize = 50;
/// Bytes of a piece of the input, by the lowest bits of a step.
const PIECE_BYTES: [usize; 8] = [16_393, 1, 9, 26, 100, 500, 2_000, 8_000];

/// Answers some calls from their bodies.
struct Echo;

impl FastPath for Echo {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn is_known(&mut self, head: &RequestHead) -> bool {
        head.authorization().is_some()
    }

    fn admit(&mut self, head: &RequestHead) -> Option<()> {
        head.path().ends_with(b"/Verify").then_some(())
    }

    fn answer(&mut self, (): &(), body: &[u8]) -> Option<Bytes> {
        (body.len() % 7 != 3).then(|| Bytes::copy_from_slice(&body.repeat(1 + body.len() % 4)))
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}

/// A call under way.
struct Call {
    stream: u32,
    body: Pin<Box<Incoming>>,
    has_head: bool,
    sent: usize,
}

/// Collects the calls that a connection starts.
#[derive(Clone)]
struct Calls {
    calls: Rc<RefCell<Vec<Call>>>,
    events: EventSender,
}

impl CallSpawner for Calls {
    fn call_kind(&self, head: &RequestHead) -> CallKind {
        let path = head.path();
        let is_open = path.starts_with(b"/grpc.");
        CallKind {
            is_open,
            has_stream: path.ends_with(b"Info") || path.ends_with(b"StreamVerify"),
            has_long_reply: path.ends_with(b"ListKeys"),
            ..CallKind::default()
        }
    }

    fn spawn(&mut self, stream: u32, head: &RequestHead, recv_buffer: RecvBuffer) -> Option<CallHandle> {
        let kind = self.call_kind(head);
        let limits = Limits::DEFAULT;
        let whole = Delivery::Whole(limits.whole_bytes_max());
        let delivery = if kind.has_stream { whole } else { Delivery::Unframed };
        let unreported = limits.unreported_bytes_max();
        let body = Box::pin(Incoming::new(recv_buffer, stream, self.events.clone(), delivery, unreported, None));
        head.to_request(())?;
        self.calls.borrow_mut().push(Call { stream, body, has_head: false, sent: 0 });
        Some(CallHandle::never())
    }
}

/// What is driven: a connection, its calls, and its peer.
struct Driven {
    conn: Conn<Echo, Calls, NoObserver>,
    calls: Calls,
    events: EventReceiver,
    reply_budget: ReplyBudget,
    budget: Budget,
    peer: Peer,
    now: Instant,
    unparsed: Vec<u8>,
}

/// Frames and events in any order. Whatever the peer sends, what comes back keeps to RFC 9113 and answers
/// only what was asked; calls and held bytes have their bounds, and nothing is held when the connection is
/// gone.
pub fn frames(data: &[u8]) {
    let mut input = Input::of(data);
    let budget = Budget::new(STRANGER_BYTES_MAX, KNOWN_BYTES_MAX);
    let (events, receiver) = event_channel();
    let calls = Calls { calls: Rc::default(), events };
    let reply_budget = ReplyBudget::new(Limits::DEFAULT.replies_bytes_max);
    let mut driven = Driven {
        conn: Conn::new(Echo, calls.clone(), reply_budget.clone(), budget.clone(), SharedLimits::default(), NoObserver),
        calls,
        events: receiver,
        reply_budget,
        budget: budget.clone(),
        peer: Peer::default(),
        now: Instant::now(),
        unparsed: vec![],
    };
    driven.run(&mut input);
    driven.conn.end_calls();
    drop(driven);
    let held = budget.held(Callers::Strangers) + budget.held(Callers::Known);
    assert_eq!(held, 0, "bytes are held for a connection that is gone");
}

impl Driven {
    fn run(&mut self, input: &mut Input<'_>) {
        if input.step() & 1 == 0 {
            let mut hello = PREFACE.to_vec();
            put_settings(&mut hello, &[]);
            if !self.receive(&hello) {
                return;
            }
        }
        let mut reads = true;
        let mut pieces = 0;
        while !input.bytes.is_empty() {
            let step = input.step();
            let piece_bytes = if pieces < PIECES_MAX { PIECE_BYTES[usize::from(step & 7)] } else { usize::MAX };
            pieces += 1;
            let piece = input.take(piece_bytes);
            let repeats = if step >> 3 & 7 == 7 && piece.len() <= 2_000 { REPEATS } else { 1 };
            for read in piece.repeat(repeats).chunks(READ_BYTES_MAX) {
                if !self.receive(read) {
                    return;
                }
            }
            match step >> 3 & 7 {
                0 => self.now += Duration::from_secs(7),
                1 => drop(self.conn.end_late_requests(self.now)),
                2 if step == 0xd7 => self.conn.start_drain(),
                _ => {
                    let action = input.step();
                    self.act(usize::from(step >> 5), action);
                }
            }
            self.pass_events();
            self.conn.send_pending();
            reads = step >> 6 != 3 && reads;
            if reads || self.conn.is_full() {
                self.write();
            }
            self.check();
        }
        self.write();
    }

    /// Receives bytes of the peer. Returns whether the connection is still open.
    fn receive(&mut self, piece: &[u8]) -> bool {
        self.peer.send(piece);
        self.unparsed.extend_from_slice(piece);
        loop {
            let unparsed = std::mem::take(&mut self.unparsed);
            let Ok(done) = self.conn.receive(&unparsed, self.now) else {
                self.write();
                assert!(self.peer.has_received_goaway(), "a connection that closes says why");
                return false;
            };
            self.unparsed = unparsed[done..].to_vec();
            let was_full = self.conn.is_full();
            if was_full {
                self.write();
            }
            if done == 0 || !was_full {
                break;
            }
        }
        assert!(!self.peer.has_sent_endless_block(), "a header block without end is read on");
        if self.conn.update_budget(self.unparsed.len()).is_err() {
            self.write();
            return false;
        }
        !self.conn.is_drained()
    }

    /// Lets one of the calls go on.
    fn act(&mut self, which: usize, action: u8) {
        let mut calls = self.calls.calls.borrow_mut();
        if calls.is_empty() {
            return;
        }
        let at = which % calls.len();
        let call = &mut calls[at];
        let stream = call.stream;
        let mut send = |event| self.conn.on_event(StreamEvent { stream, event });
        let has_ended = match action % 8 {
            0 | 1 => {
                let cx = &mut Context::from_waker(Waker::noop());
                matches!(call.body.as_mut().poll_frame(cx), Poll::Ready(Some(Err(_))))
            }
            2 | 3 if !call.has_head => {
                let (mut parts, ()) = Response::new(()).into_parts();
                parts.headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                let ends = action & 0x80 != 0;
                send(Event::Head(Box::new(parts), ends));
                call.has_head = true;
                ends
            }
            4 | 5 if call.has_head && call.sent < REPLY_BYTES_MAX => {
                let bytes = 1 + usize::from(action) * 100;
                call.sent += bytes;
                send(Event::Data(self.reply_budget.add(vec![b'r'; bytes].into(), bytes)));
                false
            }
            6 if call.has_head => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                send(Event::End((action & 0x80 == 0).then(|| Box::new(trailers))));
                true
            }
            7 if action & 0x40 != 0 => {
                send(Event::Failed);
                true
            }
            _ => false,
        };
        if has_ended {
            send(Event::Done);
            calls.swap_remove(at);
        }
    }

    /// Passes on what reading has reported.
    fn pass_events(&mut self) {
        let cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(event) = self.events.poll(&cx) {
            self.conn.on_event(event);
        }
    }

    fn write(&mut self) {
        let out = self.conn.out.to_vec();
        self.conn.out.clear();
        self.peer.receive(&out);
    }

    fn check(&self) {
        let calls = self.calls.calls.borrow().len();
        assert!(calls <= Limits::DEFAULT.streams_max, "{calls} calls are under way");
        let held = self.budget.held(Callers::Strangers);
        assert!(held <= OWN_BYTES.max(STRANGER_BYTES_MAX / 8), "a stranger holds {held} bytes");
        // Beyond its share, a connection with a credential holds what it has read and not parsed.
        let held = self.budget.held(Callers::Known);
        let most = KNOWN_BYTES_MAX / 8 + self.unparsed.len().next_multiple_of(4096);
        assert!(held <= most, "a caller holds {held} bytes");
    }
}
