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
    /// The send window is the peer's initial window plus this, so that a change of the former moves it.
    pub(super) window_delta: i64,
    /// Where the body goes. `None`: it is whole, or no longer wanted.
    pub(super) recv_buffer: Option<RecvBuffer>,
    pub(super) length: Length,
    /// When the body must be whole. `None`: it is, or it has no deadline.
    pub(super) until: Option<Instant>,
    /// Bytes that the peer may send.
    pub(super) window: u32,
    /// Bytes that came and were not read.
    pub(super) unread: u32,
    /// Bytes that were read and not yet given back by WINDOW_UPDATE.
    pub(super) unclaimed: u32,
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
    pub(super) call: Option<CallHandle>,
    /// Whether the reply is sent, or never will be.
    pub(super) is_closed: bool,
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
    /// The stream of a call. `recv_buffer` is `None` if the body is whole. `unread` bytes of data and
    /// `padding` bytes of padding have come, of a window of `window_bytes`.
    pub(super) fn of_call(
        window_delta: i64,
        recv_buffer: Option<RecvBuffer>,
        call: CallHandle,
        window_bytes: u32,
        unread: u32,
        padding: u32,
    ) -> Self {
        let window = window_bytes.saturating_sub(unread + padding);
        Self { window_delta, recv_buffer, window, unread, unclaimed: padding, call: Some(call), ..Self::default() }
    }

    /// Ends the body with an error if it is due.
    pub(super) fn end_if_late(&mut self, now: Instant) {
        if let Some(recv_buffer) = &self.recv_buffer
            && self.until.is_some_and(|until| until <= now)
        {
            recv_buffer.end(Err(Incomplete::TooSlow));
            self.until = None;
        }
    }

    /// A part of a message of an open stream has come. Its rest must come until then.
    pub(super) fn wait_for_message(&mut self, until: Instant) {
        if self.call_kind.is_open && self.call_kind.has_stream && self.recv_buffer.is_some() {
            self.until = self.until.or(Some(until));
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
        if self.budget_bytes <= self.call_kind.call_bytes() {
            self.until = None;
        }
        less
    }

    /// Gives the stream's window of a unary request back as it comes: its message may be longer than the
    /// window, and the budget bounds it.
    pub(super) fn release_single(&mut self, bytes: usize) {
        if !self.call_kind.has_stream {
            self.unclaimed += bytes as u32;
        }
    }

    /// The stream of a finished reply.
    pub(super) fn of_reply(window_delta: i64, reply: ReplyPart) -> Self {
        Self { window_delta, pieces: VecDeque::from([Piece::Data(reply), Piece::Ok]), ..Self::default() }
    }

    /// Ends the call. Returns how many bytes were not read.
    pub(super) fn cancel(&mut self) -> u32 {
        self.is_closed = true;
        self.pieces.clear();
        if let Some(recv_buffer) = self.recv_buffer.take() {
            recv_buffer.end(Err(Incomplete::Cancelled));
        }
        if let Some(call) = &self.call {
            call.cancel();
        }
        std::mem::take(&mut self.unread)
    }
}
