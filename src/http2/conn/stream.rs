//! The calls of a connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;

use crate::http2::body::{Incomplete, RecvBuffer};
use crate::http2::call::{CallHandle, CallKind};
use crate::http2::head::RequestHead;
use crate::http2::reply_budget::ReplyPart;
use crate::http2::{REQUEST_TIME_MAX, WINDOW_BYTES};

/// How many bytes of a body are still to come, if its head says how long it is (RFC 9113, section 8.1.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Length(Option<u64>);

impl Length {
    pub(super) fn of(head: &RequestHead) -> Self {
        Self(head.content_length())
    }

    /// So many bytes have come, and perhaps the end. It says whether that fits.
    pub(super) fn take(&mut self, bytes: usize, ends: bool) -> bool {
        let Some(left) = &mut self.0 else { return true };
        let Some(rest) = left.checked_sub(bytes as u64) else { return false };
        *left = rest;
        !ends || rest == 0
    }
}

/// A call that may be answered at once, and whose body is still on its way.
pub(super) struct PendingCall<P> {
    pub(super) id: u32,
    pub(super) head: Arc<RequestHead>,
    /// What admitted it. `None`: it is an open call, which takes the long way when its request is whole.
    pub(super) pass: Option<P>,
    /// What it counts in the budget for requests.
    pub(super) budget_bytes: usize,
    pub(super) body: Vec<u8>,
    /// Bytes of padding that came with it.
    pub(super) padding: u32,
    pub(super) length: Length,
    pub(super) window_delta: i64,
    /// When the body must be whole.
    pub(super) until: Instant,
}

/// A call on the long way, or a reply that waits for its window.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// What the peer's initial window and this come to is the window: it follows when the former is set anew.
    pub(super) window_delta: i64,
    /// Where the body goes; `None` when all of it is there, or nobody wants it any more.
    pub(super) recv_buffer: Option<RecvBuffer>,
    pub(super) length: Length,
    /// When the body must be whole; `None` when it is, or may take its time.
    pub(super) until: Option<Instant>,
    /// Bytes that the peer may send.
    pub(super) window: u32,
    /// Bytes that came and are not read.
    pub(super) unread: u32,
    /// Bytes that were read, and that the peer has not been told of.
    pub(super) unclaimed: u32,
    /// What its call counts in the budget for requests.
    pub(super) budget_bytes: usize,
    pub(super) call_kind: CallKind,
    /// Whether what came of its request is taken for read by the window of the connection, because the budget
    /// bounds it.
    pub(super) is_budgeted: bool,
    /// What is to be sent.
    pub(super) pieces: VecDeque<Piece>,
    /// Whether it is in the queue of those that have something to send.
    pub(super) is_queued: bool,
    pub(super) call: Option<CallHandle>,
    /// Whether the reply is sent, or will never be.
    pub(super) is_closed: bool,
}

/// A part of a reply that is to be sent.
#[derive(Debug)]
pub(super) enum Piece {
    /// A part of the body.
    Data(ReplyPart),
    /// The trailers of any reply.
    Trailers(Box<HeaderMap>),
    /// The trailers of a reply of gRPC that went well.
    Ok,
    /// There are no trailers.
    End,
}

impl Stream {
    /// The stream of a call whose body goes to this inbox, or is all there. So much of it has come, with so
    /// much padding.
    pub(super) fn of_call(
        window_delta: i64,
        recv_buffer: Option<RecvBuffer>,
        call: CallHandle,
        unread: u32,
        padding: u32,
    ) -> Self {
        let window = WINDOW_BYTES.saturating_sub(unread + padding);
        Self { window_delta, recv_buffer, window, unread, unclaimed: padding, call: Some(call), ..Self::default() }
    }

    /// Ends the wait for the rest of the body, if it is due by now.
    pub(super) fn end_if_late(&mut self, now: Instant) {
        if let Some(recv_buffer) = &self.recv_buffer
            && self.until.is_some_and(|until| until <= now)
        {
            recv_buffer.end(Err(Incomplete::TooSlow));
            self.until = None;
        }
    }

    /// A part of a message has come to an open call that goes on: the rest may take as long as a request.
    pub(super) fn wait_for_message(&mut self, now: Instant) {
        if self.call_kind.is_open && self.call_kind.has_stream && self.recv_buffer.is_some() {
            self.until = self.until.or(Some(now + REQUEST_TIME_MAX));
        }
    }

    /// So much of its request was read and is gone. It says how much less it counts.
    pub(super) fn was_read(&mut self, bytes: usize) -> usize {
        if !self.call_kind.has_stream {
            // Whoever reads keeps it until the call ends.
            return 0;
        }
        let less = bytes.min(self.budget_bytes.saturating_sub(self.call_kind.call_bytes()));
        self.budget_bytes -= less;
        if self.budget_bytes <= self.call_kind.call_bytes() {
            self.until = None;
        }
        less
    }

    /// The peer may send as many bytes again of a request that is no stream, whose message may be longer than
    /// the window: what is kept of it is bounded by the budget.
    pub(super) fn release_single(&mut self, bytes: usize) {
        if !self.call_kind.has_stream {
            self.unclaimed += bytes as u32;
        }
    }

    /// The stream of a reply that is there.
    pub(super) fn of_reply(window_delta: i64, reply: ReplyPart) -> Self {
        Self { window_delta, pieces: VecDeque::from([Piece::Data(reply), Piece::Ok]), ..Self::default() }
    }

    /// Ends everything that goes on for it. It gives how many bytes came and were not read.
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
