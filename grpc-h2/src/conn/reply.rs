//! Sends replies, as far as the peer's windows allow, one frame of each stream in turn.

use bytes::Bytes;

use super::stream::{Piece, Stream};
use super::{Conn, frame};
use crate::call::{CallSpawner, Event, StreamEvent};
use crate::error::{ConnError, ErrorCode};
use crate::frame::{BITS_31, FrameHead, PAYLOAD_BYTES_MAX};
use crate::{FastPath, Observer};

/// What sending a frame of a stream did.
enum Sent {
    /// The reply is sent.
    All,
    /// A frame was sent, and another one may follow.
    Some,
    /// Nothing is left to send, or the window of the stream is used up.
    Enough,
    /// The window of the connection is used up.
    Nothing,
}

impl<A: FastPath, C: CallSpawner, O: Observer> Conn<A, C, O> {
    /// Sends a successful gRPC reply. Most are written at once.
    pub(super) fn reply(&mut self, id: u32, window_delta: i64, reply: Bytes) {
        frame::put_headers(&mut self.out, id, false, |to| self.encoder.grpc_headers(to));
        let bytes = reply.len() as i64;
        let fits = bytes <= self.send_window
            && bytes <= self.peer_initial_window + window_delta
            && reply.len() <= PAYLOAD_BYTES_MAX;
        if fits {
            self.pay_for_error();
            self.send_window -= bytes;
            frame::put_data(&mut self.out, id, false, &reply);
            frame::put_headers(&mut self.out, id, true, |to| self.encoder.grpc_ok(to));
            return;
        }
        let reply = self.reply_budget.add(reply, 0);
        self.add_stream(id, Stream::of_reply(window_delta, reply));
        self.queue(id);
    }

    /// Handles an event of a call.
    pub(crate) fn on_event(&mut self, StreamEvent { stream: id, event }: StreamEvent) {
        if let Event::Several(events) = event {
            return events.into_iter().for_each(|event| self.on_event(StreamEvent { stream: id, event }));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match event {
            Event::Several(_) => {} // above
            Event::Done => {
                // Its request is dropped with it.
                self.budget_bytes -= std::mem::take(&mut stream.budget_bytes);
                if stream.end_call() {
                    self.streams.remove(&id);
                } else if !matches!(stream.pieces.back(), Some(Piece::Trailers(_) | Piece::End)) {
                    // Its runtime has shut down.
                    self.reset(id, ErrorCode::Internal);
                }
            }
            Event::Read(bytes) => self.was_read(id, bytes),
            // The stream is cancelled.
            _ if stream.is_closed() => {}
            Event::Head(parts, ends) => {
                frame::put_headers(&mut self.out, id, ends, |to| {
                    self.encoder.headers(parts.status, &parts.headers, to)
                });
                if ends {
                    self.finish(id);
                }
            }
            Event::Data(part) => {
                stream.pieces.push_back(Piece::Data(part));
                self.queue(id);
            }
            Event::End(trailers) => {
                stream.pieces.push_back(trailers.map_or(Piece::End, Piece::Trailers));
                self.queue(id);
            }
            Event::Failed => self.reset(id, ErrorCode::Internal),
        }
    }

    /// A call has read this many bytes of its request.
    fn was_read(&mut self, id: u32, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.budget_bytes -= stream.was_read(bytes);
        if stream.is_budgeted {
            if stream.call_kind.has_stream {
                stream.release(bytes as u32);
            }
            return self.send_window_update(id);
        }
        // The unread bytes of a cancelled stream were released before.
        let bytes = stream.unread.min(bytes as u32);
        stream.unread -= bytes;
        stream.release(bytes);
        self.send_window_update(id);
        self.release_capacity(bytes as usize);
    }

    /// Sends a WINDOW_UPDATE of a stream, once there is enough to give back.
    pub(super) fn send_window_update(&mut self, id: u32) {
        if let Some(request) = self.streams.get_mut(&id).and_then(Stream::request)
            && request.unclaimed >= self.limits.stream_update_bytes_min()
        {
            request.window += request.unclaimed;
            frame::put_window_update(&mut self.out, id, std::mem::take(&mut request.unclaimed));
        }
    }

    /// Sends what the windows allow.
    pub(crate) fn send_pending(&mut self) {
        // Streams left to try since something was sent. The loop ends after a round that sends nothing.
        let mut left = self.pending_send.len();
        while left > 0
            && !self.is_full()
            && let Some(id) = self.pending_send.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else {
                left -= 1;
                continue;
            };
            stream.is_queued = false;
            match self.send_frame_of(id) {
                Sent::All => {
                    self.finish(id);
                    left = self.pending_send.len();
                }
                Sent::Some => {
                    self.queue(id);
                    left = self.pending_send.len();
                }
                Sent::Enough => left -= 1,
                Sent::Nothing => {
                    self.queue(id);
                    left -= 1;
                }
            }
        }
    }

    /// Sends one DATA frame of a stream, and its trailers if they come next.
    fn send_frame_of(&mut self, id: u32) -> Sent {
        let Some(stream) = self.streams.get_mut(&id) else { return Sent::Enough };
        if let Some(Piece::Data(part)) = stream.pieces.front_mut() {
            let window = self.peer_initial_window + stream.window_delta;
            let allowed = window.min(self.send_window).min(PAYLOAD_BYTES_MAX as i64);
            let Some(allowed) = usize::try_from(allowed).ok().filter(|allowed| *allowed > 0) else {
                return if window <= 0 { Sent::Enough } else { Sent::Nothing };
            };
            let bytes = allowed.min(part.bytes.len());
            let whole = bytes == part.bytes.len();
            frame::put_data(&mut self.out, id, false, &part.bytes[..bytes]);
            self.overhead_frames = self.overhead_frames.saturating_sub(self.limits.overhead_frames_paid);
            part.advance(bytes);
            self.send_window -= bytes as i64;
            stream.window_delta -= bytes as i64;
            if !whole {
                return Sent::Some;
            }
            if let Some(call) = stream.state.call() {
                call.release_permits(part.permits);
            }
            stream.pieces.pop_front();
        }
        match stream.pieces.pop_front() {
            None => return Sent::Enough,
            Some(next @ Piece::Data(..)) => {
                stream.pieces.push_front(next);
                return Sent::Some;
            }
            Some(Piece::Ok) => frame::put_headers(&mut self.out, id, true, |to| self.encoder.grpc_ok(to)),
            Some(Piece::End) => frame::put_data(&mut self.out, id, true, &[]),
            Some(Piece::Trailers(trailers)) => {
                frame::put_headers(&mut self.out, id, true, |to| self.encoder.trailers(&trailers, to));
            }
        }
        Sent::All
    }

    /// The whole reply is sent.
    fn finish(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_open() {
            // The rest of the request is not needed (RFC 9113, section 8.1).
            self.reset(id, ErrorCode::NoError);
            return;
        }
        let unread = std::mem::take(&mut stream.unread);
        if stream.close() {
            self.remove_stream(id);
        }
        self.pay_for_error();
        self.release_capacity(unread as usize);
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.is_queued, true)
        {
            self.pending_send.push_back(id);
        }
    }

    pub(super) fn window_update(&mut self, frame: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        let Some(bytes) = frame::read_31(payload).filter(|_| payload.len() == 4) else {
            return Err(ConnError::size("WINDOW_UPDATE that is not of 4 bytes"));
        };
        let (id, bytes) = (frame.stream, i64::from(bytes));
        if id == 0 {
            if bytes == 0 {
                return Err(ConnError::protocol("WINDOW_UPDATE by nothing"));
            }
            self.send_window += bytes;
            if self.send_window > BITS_31.into() {
                return Err(ConnError::new(ErrorCode::FlowControl, "a window beyond 2^31-1"));
            }
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(ConnError::protocol("WINDOW_UPDATE of a stream that was never begun"));
        }
        let at = self.find_pending(id);
        let window_delta = match at.and_then(|at| self.pending_calls.get_mut(at)) {
            Some(pending) => &mut pending.window_delta,
            None => match self.streams.get_mut(&id).filter(|stream| !stream.is_closed()) {
                Some(stream) => &mut stream.window_delta,
                None => return self.overhead_frame(),
            },
        };
        if bytes == 0 {
            return self.reset_for(id, ErrorCode::Protocol);
        }
        *window_delta += bytes;
        if self.peer_initial_window + *window_delta > BITS_31.into() {
            return self.reset_for(id, ErrorCode::FlowControl);
        }
        if self.streams.get(&id).is_some_and(|stream| !stream.pieces.is_empty()) {
            self.queue(id);
        }
        Ok(())
    }

    /// Applies the peer's SETTINGS_INITIAL_WINDOW_SIZE, which moves the windows of all streams.
    pub(super) fn set_peer_initial_window(&mut self, bytes: i64) -> Result<(), ConnError> {
        self.peer_initial_window = bytes;
        let window_deltas = self.pending_calls.iter().map(|pending| pending.window_delta);
        // Nothing more is sent on a closed stream, whose call may still have to end.
        let open = self.streams.values().filter(|stream| !stream.is_closed());
        let window_deltas = window_deltas.chain(open.map(|stream| stream.window_delta));
        if window_deltas.max().is_some_and(|window_delta| bytes + window_delta > BITS_31.into()) {
            return Err(ConnError::new(
                ErrorCode::FlowControl,
                "INITIAL_WINDOW_SIZE makes a window larger than 2^31-1",
            ));
        }
        let stuck: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| !stream.pieces.is_empty()).map(|(id, _)| *id).collect();
        for id in stuck {
            self.queue(id);
        }
        Ok(())
    }

    /// Resetting a stream that is gone is overhead.
    pub(super) fn overhead_frame_if_gone(&mut self, id: u32) -> Result<(), ConnError> {
        if self.streams.contains_key(&id) { Ok(()) } else { self.overhead_frame() }
    }
}
