//! Streams: the calls of a connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use crate::body::{Incomplete, RecvBuffer};
use crate::call::{CallHandle, CallKind};
use crate::head::RequestHead;
use crate::reply_budget::ReplyPart;

/// Bytes of a body that are still to come, if its head announces a length (RFC 9113, section 8.1.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Length(Option<u64>);

impl Length {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self(head.content_length())
    }

    /// Subtracts data that has come. Returns false if the length does not fit.
    pub(super) fn take(&mut self, bytes: usize, ends: bool) -> bool {
        let Some(left) = &mut self.0 else { return true };
        let Some(rest) = left.checked_sub(bytes as u64) else { return false };
        *left = rest;
        !ends || rest == 0
    }
}

/// A call whose body is still coming, and that has not started.
pub(super) struct PendingCall<P> {
    pub(super) id: u32,
    pub(super) head: Arc<RequestHead>,
    /// What admission returned. `None`: an open unary call, which takes the slow path when its request is
    /// whole.
    pub(super) pass: Option<P>,
    /// What it counts in the request budget, in bytes.
    pub(super) budget_bytes: usize,
    pub(super) body: Vec<u8>,
    /// Padding of its frames, in bytes.
    pub(super) padding: u32,
    pub(super) length: Length,
    pub(super) window_delta: i64,
    /// When the body must be whole.
    pub(super) until: Instant,
}

/// A call on the slow path, or a reply of the fast path that waits for its window.
#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) state: State,
    /// The send window is the peer's initial window plus this, so that a change of the former moves it.
    pub(super) window_delta: i64,
    /// Bytes that came and were not read.
    pub(super) unread: u32,
    /// What its call counts in the request budget, in bytes.
    pub(super) budget_bytes: usize,
    pub(super) call_kind: CallKind,
    /// Whether the request budget bounds its request. The window of the connection is then released as data
    /// comes.
    pub(super) is_budgeted: bool,
    /// The rest of the reply.
    pub(super) pieces: VecDeque<Piece>,
    /// Whether it is in the queue of streams with something to send.
    pub(super) is_queued: bool,
}

/// The state of a stream (RFC 9113, section 5.1).
///
/// An idle stream is not kept. The call of an open stream may also be pending: see [`PendingCall`]. No stream
/// stays half-closed (local): the rest of a request is not needed once the reply is sent, and it is reset. A
/// closed stream is kept until its call has ended.
#[derive(Debug)]
pub(super) enum State {
    /// The request is still coming. `call` is `None` once the call has ended.
    Open { request: Receiving, call: Option<CallHandle> },
    /// The request is whole, and the reply is not sent. `call` is `None` once the call has ended.
    HalfClosedRemote { call: Option<CallHandle> },
    /// The reply is sent, or never will be.
    Closed { call: CallHandle },
}

/// That of a finished reply.
impl Default for State {
    fn default() -> Self {
        Self::HalfClosedRemote { call: None }
    }
}

/// A request that is still coming.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Where the body goes.
    pub(super) buffer: RecvBuffer,
    pub(super) length: Length,
    /// When the body must be whole. `None`: it has no deadline.
    pub(super) until: Option<Instant>,
    /// Bytes that the peer may send.
    pub(super) window: u32,
    /// Bytes that were read and not yet given back by WINDOW_UPDATE.
    pub(super) unclaimed: u32,
}

impl Receiving {
    /// A request of which `bytes` of data and `padding` bytes of padding have come.
    pub(super) fn new(buffer: RecvBuffer, window_bytes: u32, bytes: u32, padding: u32) -> Self {
        let window = window_bytes.saturating_sub(bytes + padding);
        Self { buffer, length: Length::default(), until: None, window, unclaimed: padding }
    }
}

impl State {
    /// The call, if it has not ended.
    pub(super) fn call(&self) -> Option<&CallHandle> {
        match self {
            Self::Open { call, .. } | Self::HalfClosedRemote { call } => call.as_ref(),
            Self::Closed { call } => Some(call),
        }
    }

    /// Its request and its call.
    fn into_parts(self) -> (Option<Receiving>, Option<CallHandle>) {
        match self {
            Self::Open { request, call } => (Some(request), call),
            Self::HalfClosedRemote { call } => (None, call),
            Self::Closed { call } => (None, Some(call)),
        }
    }
}

/// A part of a reply.
#[derive(Debug)]
pub(super) enum Piece {
    Data(ReplyPart),
    /// Trailers.
    Trailers(Box<HeaderMap>),
    /// The trailers of a successful gRPC reply.
    Ok,
    /// The end, without trailers.
    End,
}

impl Stream {
    /// The stream of a call. `request` is `None` if it is whole.
    pub(super) fn of_call(window_delta: i64, request: Option<Receiving>, call: CallHandle) -> Self {
        let call = Some(call);
        let state = match request {
            Some(request) => State::Open { request, call },
            None => State::HalfClosedRemote { call },
        };
        Self { state, window_delta, ..Self::default() }
    }

    /// The stream of a finished reply.
    pub(super) fn of_reply(window_delta: i64, reply: ReplyPart) -> Self {
        Self { window_delta, pieces: VecDeque::from([Piece::Data(reply), Piece::Ok]), ..Self::default() }
    }

    /// Its request, if that is still coming.
    pub(super) fn request(&mut self) -> Option<&mut Receiving> {
        match &mut self.state {
            State::Open { request, .. } => Some(request),
            State::HalfClosedRemote { .. } | State::Closed { .. } => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// When its request must be whole, if it has a deadline.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Open { request, .. } => request.until,
            State::HalfClosedRemote { .. } | State::Closed { .. } => None,
        }
    }

    /// Ends the body with an error if it is due.
    pub(super) fn end_if_late(&mut self, now: Instant) {
        if let Some(request) = self.request()
            && request.until.is_some_and(|until| until <= now)
        {
            request.buffer.end(Err(Incomplete::TooSlow));
            request.until = None;
        }
    }

    /// A part of a message of an open stream has come. Its rest must come until then.
    pub(super) fn wait_for_message(&mut self, until: Instant) {
        if self.call_kind.is_open
            && self.call_kind.has_stream
            && let Some(request) = self.request()
        {
            request.until = request.until.or(Some(until));
        }
    }

    /// Data of the request was read. Returns how much less it counts.
    pub(super) fn was_read(&mut self, bytes: usize) -> usize {
        if !self.call_kind.has_stream {
            // The reader holds all of it until the call ends.
            return 0;
        }
        let less = bytes.min(self.budget_bytes.saturating_sub(self.call_kind.call_bytes()));
        self.budget_bytes -= less;
        if self.budget_bytes <= self.call_kind.call_bytes()
            && let Some(request) = self.request()
        {
            request.until = None;
        }
        less
    }

    /// Bytes of the request can be given back to the peer by WINDOW_UPDATE.
    pub(super) fn release(&mut self, bytes: u32) {
        if let Some(request) = self.request() {
            request.unclaimed += bytes;
        }
    }

    /// Gives the stream's window of a unary request back as it comes: its message may be longer than the
    /// window, and the budget bounds it.
    pub(super) fn release_single(&mut self, bytes: usize) {
        if !self.call_kind.has_stream {
            self.release(bytes as u32);
        }
    }

    /// The request is whole.
    pub(super) fn end_request(&mut self) {
        if self.is_open() {
            let (request, call) = std::mem::take(&mut self.state).into_parts();
            self.state = State::HalfClosedRemote { call };
            if let Some(request) = request {
                request.buffer.end(Ok(()));
            }
        }
    }

    /// The call has ended. Returns whether nothing is left of the stream.
    pub(super) fn end_call(&mut self) -> bool {
        match &mut self.state {
            State::Open { call, .. } | State::HalfClosedRemote { call } => *call = None,
            State::Closed { .. } => return true,
        }
        false
    }

    /// The reply is sent, and its request is whole. Returns whether nothing is left of the stream.
    pub(super) fn close(&mut self) -> bool {
        let (_, call) = std::mem::take(&mut self.state).into_parts();
        let Some(call) = call else { return true };
        self.state = State::Closed { call };
        false
    }

    /// Ends the stream before its reply is sent, or its request is whole. Returns whether nothing is left of
    /// it.
    pub(super) fn cancel(&mut self) -> bool {
        self.pieces.clear();
        let (request, call) = std::mem::take(&mut self.state).into_parts();
        if let Some(request) = request {
            request.buffer.end(Err(Incomplete::Cancelled));
        }
        let Some(call) = call else { return true };
        call.cancel();
        self.state = State::Closed { call };
        false
    }
}
