//! Frames of requests: heads, bodies, trailers, resets.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, StatusCode};

use super::request_budget::pending_call_bytes;
use super::resets::Side;
use super::stream::{Length, PendingCall, Receiving, Stream};
use super::{Conn, Drain, PartialBlock};
use crate::body::{FirstMessage, Incomplete, RecvBuffer};
use crate::call::{CallKind, CallSpawner};
use crate::error::{ConnError, ErrorCode};
use crate::frame::{self, FrameHead, flag};
use crate::head::{HeaderError, RequestHead};
use crate::{Bypass, FastPath, Observer, Refused};

/// The state of header compression is lost (RFC 9113, section 4.3).
const UNREAD: ConnError = ConnError::new(ErrorCode::Compression, "a header block cannot be read");

/// The length of the priority fields of a HEADERS frame (RFC 9113, section 6.2).
const PRIORITY_BYTES: usize = 5;

/// A call that takes the slow path.
pub(super) struct SlowCall<'a> {
    id: u32,
    head: &'a RequestHead,
    window_delta: i64,
    padding: u32,
    length: Length,
    until: Instant,
    call_kind: CallKind,
}

impl<'a> SlowCall<'a> {
    pub(super) fn of<P>(pending: &'a PendingCall<P>) -> Self {
        Self {
            id: pending.id,
            head: &pending.head,
            window_delta: pending.window_delta,
            padding: pending.padding,
            length: pending.length,
            until: pending.until,
            call_kind: CallKind { is_open: pending.pass.is_none(), ..CallKind::default() },
        }
    }
}

impl<A: FastPath, C: CallSpawner, O: Observer> Conn<A, C, O> {
    pub(super) fn headers(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if frame.stream.is_multiple_of(2) {
            return Err(ConnError::protocol("HEADERS on a stream that no client begins"));
        }
        let mut fragment = frame.unpad(payload)?;
        if frame.has(flag::PRIORITY) {
            fragment = fragment.get(PRIORITY_BYTES..).ok_or(ConnError::size("HEADERS without their priority"))?;
        }
        let ends_stream = frame.has(flag::END_STREAM);
        let bytes_max = self.limits.header_bytes_max;
        // Every block is decoded, since it may change the dynamic table.
        if frame.has(flag::END_HEADERS) {
            let head = self.header_decoder.read(fragment, bytes_max).map_err(|_| UNREAD)?.clone();
            return self.head(frame.stream, ends_stream, head);
        }
        self.header_decoder.read_piece(fragment, false, bytes_max).map_err(|_| UNREAD)?;
        self.block = Some(PartialBlock { stream: frame.stream, ends_stream, frames: 1 });
        Ok(())
    }

    pub(super) fn continuation(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        let Some(mut block) = self.block.take() else {
            return Err(ConnError::protocol("CONTINUATION of nothing"));
        };
        block.frames += 1;
        if block.frames > self.limits.block_frames_max {
            return Err(ConnError::enhance_your_calm("a header block without end"));
        }
        let (is_last, bytes_max) = (frame.has(flag::END_HEADERS), self.limits.header_bytes_max);
        let read = self.header_decoder.read_piece(payload, is_last, bytes_max).map_err(|_| UNREAD)?;
        let Some(head) = read.cloned() else {
            self.block = Some(block);
            return Ok(());
        };
        self.head(block.stream, block.ends_stream, head)
    }

    /// A header block is decoded.
    fn head(&mut self, id: u32, ends: bool, head: Arc<RequestHead>) -> Result<(), ConnError> {
        if id <= self.last_stream {
            return self.trailers(id, ends, head.trailers_error());
        }
        self.last_stream = id;
        if let Drain::Final(_) = self.drain {
            // The peer was told by GOAWAY, and will retry elsewhere.
            self.remember_reset(id);
            return self.overhead_frame();
        }
        if self.has_max_streams() {
            self.observer.stream_refused(Refused::TooManyStreams);
            self.reset(id, ErrorCode::RefusedStream);
            // Not an error: the peer may count calls as ended that have not ended yet.
            return self.overhead_frame();
        }
        self.pay_for_overhead();
        match head.request_error() {
            Some(HeaderError::Malformed) => return self.reset_for(id, ErrorCode::Protocol),
            Some(HeaderError::TooLong) => {
                return self.answer_with(id, ends, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
            None => {}
        }
        let mut length = Length::of(&head);
        if ends && !length.take(0, true) {
            return self.reset_for(id, ErrorCode::Protocol);
        }
        // The fast path cannot wait for room.
        let pass = if self.reply_budget.is_full() {
            self.fast_path.on_bypass(&head, Bypass::RepliesPending);
            None
        } else {
            self.fast_path.admit(&head)
        };
        let until = self.at + self.limits.request_time_max;
        if !self.account.is_known() && (pass.is_some() || self.fast_path.is_known(&head)) {
            self.account.mark_known();
        }
        let pending =
            PendingCall { id, head, pass, budget_bytes: 0, body: vec![], padding: 0, length, window_delta: 0, until };
        if pending.pass.is_none() {
            return self.start_or_wait(pending, ends);
        }
        if ends {
            return self.answer(pending, &[]);
        }
        self.add_pending(pending);
        Ok(())
    }

    /// Starts a call on the slow path or, if it is open and unary, waits until its request is whole.
    fn start_or_wait(&mut self, call: PendingCall<A::Pass>, ends: bool) -> Result<(), ConnError> {
        let call_kind = self.calls.call_kind(&call.head);
        let slow_call = SlowCall { call_kind, ..SlowCall::of(&call) };
        if !self.account.is_known() && self.is_at_stranger_limit() {
            return self.refuse(slow_call, 0, ends, Incomplete::Crowded);
        }
        if ends || call_kind.has_stream || !call_kind.is_open {
            return self.start(slow_call, &[], ends);
        }
        if !self.account.is_known() && !self.has_room_for(pending_call_bytes(&call.head)) {
            return self.refuse(slow_call, 0, ends, Incomplete::NoRoom);
        }
        self.add_pending(call);
        Ok(())
    }

    fn is_at_stranger_limit(&self) -> bool {
        // Calls that ended inline have not been removed yet, and do not count.
        let calls_max = self.limits.stranger_calls_max;
        let is_under_way = |stream: &&Stream| stream.state.call().is_none_or(|call| !call.has_finished());
        self.pending_calls.len() + self.streams.len() >= calls_max
            && self.pending_calls.len() + self.streams.values().filter(is_under_way).count() >= calls_max
    }

    /// Trailers of a request mean nothing in gRPC, but end its body.
    fn trailers(&mut self, id: u32, ends: bool, error: Option<HeaderError>) -> Result<(), ConnError> {
        let at = self.find_pending(id);
        let length = match at.and_then(|at| self.pending_calls.get_mut(at)) {
            Some(pending) => Some(&mut pending.length),
            None => self.streams.get_mut(&id).and_then(Stream::request).map(|request| &mut request.length),
        };
        let Some(length) = length else {
            return match self.resets.find(id) {
                Some(Side::Us) => self.overhead_frame(),
                _ if self.streams.contains_key(&id) => self.reset_for(id, ErrorCode::StreamClosed),
                _ => Err(ConnError::new(ErrorCode::StreamClosed, "HEADERS on a stream that has ended")),
            };
        };
        if !ends || error.is_some() || !length.take(0, true) {
            return self.reset_for(id, ErrorCode::Protocol);
        }
        if let Some(pending) = at.and_then(|at| self.take_pending(at)) {
            return self.answer_buffered(pending);
        }
        self.end_body(id)
    }

    pub(super) fn data(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        let id = frame.stream;
        if self.is_idle(id) {
            return Err(ConnError::protocol("DATA on a stream that was never begun"));
        }
        let bytes = payload.len() as u32;
        let over = ConnError::new(ErrorCode::FlowControl, "more DATA than the connection's window");
        self.window = self.window.checked_sub(bytes).ok_or(over)?;
        let data = frame.unpad(payload)?;
        let padding = bytes - data.len() as u32;
        self.release_capacity(padding as usize);
        let ends = frame.has(flag::END_STREAM);
        if !data.is_empty() {
            self.pay_for_overhead();
        } else if !ends {
            self.overhead_frame()?;
        }
        if let Some(at) = self.find_pending(id) {
            return self.data_of_pending(at, data, padding, ends);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return self.data_of_closed(id, data.len()) };
        let Some(request) = stream.request() else { return self.data_of_closed(id, data.len()) };
        let Some(window) = request.window.checked_sub(bytes) else {
            self.release_capacity(data.len());
            return self.reset_for(id, ErrorCode::FlowControl);
        };
        request.window = window;
        if !request.length.take(data.len(), ends) {
            self.release_capacity(data.len());
            return self.reset_for(id, ErrorCode::Protocol);
        }
        // Padding is released at once.
        request.unclaimed += padding;
        if !data.is_empty() {
            let is_kept = request.buffer.push(data);
            if is_kept {
                stream.budget_bytes += data.len();
                self.budget_bytes += data.len();
                stream.wait_for_message(self.at + self.limits.request_time_max);
            } else {
                request.unclaimed += data.len() as u32;
            }
            if is_kept && !stream.is_budgeted {
                stream.unread += data.len() as u32;
            } else {
                if is_kept {
                    stream.release_single(data.len());
                }
                self.release_capacity(data.len());
            }
        }
        if ends {
            return self.end_body(id);
        }
        self.send_window_update(id);
        Ok(())
    }

    /// Data of a stream whose request has ended.
    fn data_of_closed(&mut self, id: u32, bytes: usize) -> Result<(), ConnError> {
        self.release_capacity(bytes);
        match self.resets.find(id) {
            Some(Side::Us) => self.overhead_frame(),
            Some(Side::Peer) => {
                // grpc-java sends the rest of a cancelled request behind its RST_STREAM.
                self.put_reset(id, ErrorCode::StreamClosed);
                self.overhead_frame()
            }
            None => self.reset_for(id, ErrorCode::StreamClosed),
        }
    }

    fn data_of_pending(&mut self, at: usize, data: &[u8], padding: u32, ends: bool) -> Result<(), ConnError> {
        let Some(pending) = self.pending_calls.get_mut(at) else { return Ok(()) };
        pending.padding += padding;
        if !pending.length.take(data.len(), ends) {
            let id = pending.id;
            self.release_capacity(data.len());
            return self.reset_for(id, ErrorCode::Protocol);
        }
        if pending.pass.is_none() {
            return self.data_of_open(at, data, ends);
        }
        if ends && pending.body.is_empty() {
            // The usual case: the body comes in one frame, and is read in place.
            let pending = self.take_pending(at);
            return pending.map_or(Ok(()), |pending| self.answer(pending, data));
        }
        let bytes_max = self.limits.buffered_bytes_max;
        let is_long = pending.body.len() + data.len() > bytes_max
            || self.buffered_bytes + data.len() > self.limits.buffered_bytes_all_max()
            || pending.padding as usize > bytes_max;
        if !is_long {
            pending.body.extend_from_slice(data);
            pending.budget_bytes += data.len();
            self.budget_bytes += data.len();
            self.buffered_bytes += data.len();
            if !ends {
                return Ok(());
            }
            let pending = self.take_pending(at);
            return pending.map_or(Ok(()), |pending| self.answer_buffered(pending));
        }
        let Some(mut pending) = self.take_pending(at) else { return Ok(()) };
        self.fast_path.on_bypass(&pending.head, Bypass::RequestTooLong);
        pending.body.extend_from_slice(data);
        self.start(SlowCall::of(&pending), &pending.body, ends)
    }

    /// Data of a unary open call, which starts when its request is whole.
    fn data_of_open(&mut self, at: usize, data: &[u8], ends: bool) -> Result<(), ConnError> {
        let Some(pending) = self.pending_calls.get_mut(at) else { return Ok(()) };
        pending.body.extend_from_slice(data);
        pending.budget_bytes += data.len();
        self.budget_bytes += data.len();
        self.buffered_bytes += data.len();
        let is_long = match FirstMessage::of(&pending.body, self.limits.open_message_bytes_max) {
            FirstMessage::TooLong => true,
            FirstMessage::Whole(bytes) => pending.body.len() > bytes,
            FirstMessage::Part => false,
        };
        let is_long = is_long || pending.padding as usize > self.limits.buffered_bytes_max;
        if !is_long && !ends {
            return Ok(());
        }
        let Some(pending) = self.take_pending(at) else { return Ok(()) };
        if is_long {
            return self.refuse(SlowCall::of(&pending), pending.body.len(), ends, Incomplete::TooLong);
        }
        self.start(SlowCall::of(&pending), &pending.body, ends)
    }

    /// Answers a call whose body came in several frames.
    fn answer_buffered(&mut self, mut pending: PendingCall<A::Pass>) -> Result<(), ConnError> {
        let body = std::mem::take(&mut pending.body);
        self.answer(pending, &body)
    }

    /// Answers a call on the fast path, if possible.
    fn answer(&mut self, pending: PendingCall<A::Pass>, body: &[u8]) -> Result<(), ConnError> {
        let pass = pending.pass.as_ref().filter(|_| !self.reply_budget.is_full());
        let Some(pass) = pass else {
            if pending.pass.is_some() {
                self.fast_path.on_bypass(&pending.head, Bypass::RepliesPending);
            }
            return self.start(SlowCall::of(&pending), body, true);
        };
        // A panic ends its call alone.
        match catch_unwind(AssertUnwindSafe(|| self.fast_path.answer(pass, body))) {
            Ok(Some(reply)) => {
                self.answered += 1;
                self.reply(pending.id, pending.window_delta, reply);
            }
            Ok(None) => return self.start(SlowCall::of(&pending), body, true),
            Err(_) => {
                self.fast_path.on_cancel(pass);
                self.reset(pending.id, ErrorCode::Internal);
            }
        }
        self.release_capacity(body.len());
        Ok(())
    }

    /// Starts a call on the slow path, with the part of its body that has come.
    fn start(&mut self, slow_call: SlowCall<'_>, body: &[u8], ends: bool) -> Result<(), ConnError> {
        let budget_bytes = slow_call.call_kind.call_bytes() + body.len();
        if !self.has_room_for(budget_bytes) {
            return self.refuse(slow_call, body.len(), ends, Incomplete::NoRoom);
        }
        let SlowCall { id, head, window_delta, padding, length, until, call_kind } = slow_call;
        let recv_buffer = RecvBuffer::default();
        if !body.is_empty() {
            recv_buffer.push(body);
        }
        if ends {
            recv_buffer.end(Ok(()));
        }
        let Some(call) = self.calls.spawn(id, head, recv_buffer.clone()) else {
            self.release_capacity(body.len());
            return self.reset_for(id, ErrorCode::Protocol);
        };
        let request = (!ends).then(|| Receiving {
            length,
            until: (!call_kind.has_stream).then_some(until),
            ..Receiving::new(recv_buffer, self.limits.window_bytes, body.len() as u32, padding)
        });
        // A call that ended inline holds nothing.
        let budget_bytes = if call.has_finished() { 0 } else { budget_bytes };
        let (is_budgeted, unread) = (!call_kind.is_open, body.len() as u32);
        let mut stream =
            Stream { unread, budget_bytes, call_kind, is_budgeted, ..Stream::of_call(window_delta, request, call) };
        if !body.is_empty() {
            stream.wait_for_message(self.at + self.limits.request_time_max);
        }
        if is_budgeted {
            stream.unread = 0;
            stream.release_single(body.len());
            self.release_capacity(body.len());
        }
        self.add_stream(id, stream);
        Ok(())
    }

    /// Starts a call only to be refused by the service, where all refusals are made. `bytes` of its body have
    /// come.
    pub(super) fn refuse(
        &mut self,
        slow_call: SlowCall<'_>,
        bytes: usize,
        ends: bool,
        why: Incomplete,
    ) -> Result<(), ConnError> {
        if why == Incomplete::NoRoom {
            self.account.count_refusal();
        }
        self.release_capacity(bytes);
        if !self.account.is_known() && matches!(why, Incomplete::NoRoom | Incomplete::Crowded) {
            self.decay_rate_limits();
            self.crowded += 1;
            if self.crowded > self.limits.stranger_refusals_max {
                // The peer was told before, and gets no reply that is longer than its request.
                self.observer.stream_refused(Refused::TooManyRefusals);
                self.reset(slow_call.id, ErrorCode::RefusedStream);
                return self.overhead_frame();
            }
        }
        let recv_buffer = RecvBuffer::default();
        recv_buffer.end(Err(why));
        let SlowCall { id, head, window_delta, padding, length, .. } = slow_call;
        let Some(call) = self.calls.spawn(id, head, recv_buffer.clone()) else {
            return self.reset_for(id, ErrorCode::Protocol);
        };
        let mut request = Receiving::new(recv_buffer, self.limits.window_bytes, bytes as u32, padding);
        (request.length, request.unclaimed) = (length, request.unclaimed + bytes as u32);
        self.add_stream(id, Stream::of_call(window_delta, (!ends).then_some(request), call));
        Ok(())
    }

    /// The body of a call is whole. From now on it is not refused, so there must be room for it.
    fn end_body(&mut self, id: u32) -> Result<(), ConnError> {
        while !self.has_room_for(0) && self.refuse_youngest()? {}
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.end_request();
        }
        Ok(())
    }

    /// Answers with an HTTP status alone.
    fn answer_with(&mut self, id: u32, ends: bool, status: StatusCode) -> Result<(), ConnError> {
        frame::put_headers(&mut self.out, id, true, |to| self.encoder.headers(status, &HeaderMap::new(), to));
        if !ends {
            self.reset(id, ErrorCode::NoError);
        }
        self.overhead_frame()
    }

    pub(super) fn reset_by_peer(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        let Ok(code) = payload.try_into().map(u32::from_be_bytes) else {
            return Err(ConnError::size("RST_STREAM that is not of 4 bytes"));
        };
        if self.is_idle(frame.stream) {
            return Err(ConnError::protocol("RST_STREAM of a stream that was never begun"));
        }
        self.observer.reset_received(code);
        self.cancel_stream(frame.stream);
        self.resets.remember(Side::Peer, frame.stream, self.limits.resets_remembered);
        self.overhead_frame_if_gone(frame.stream)
    }
}
