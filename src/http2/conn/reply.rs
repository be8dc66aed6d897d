//! What is sent of replies, and when: as the windows of the peer allow, each stream in its turn.

use bytes::Bytes;

use super::stream::{Piece, Stream};
use super::{Conn, frame};
use crate::http2::call::{CallSpawner, Event, StreamEvent};
use crate::http2::error::{ConnError, ErrorCode};
use crate::http2::frame::{BITS_31, FrameHead, PAYLOAD_BYTES_MAX};
use crate::http2::{FastPath, IDLE_FRAMES_PAID, WINDOW_BYTES};

/// How sending went on for a stream.
enum Sent {
    /// All of its reply.
    All,
    /// A part: another one is to follow.
    Some,
    /// All that is there, or that its own window allows.
    Enough,
    /// Nothing, for the window of the connection.
    Nothing,
}

impl<A: FastPath, C: CallSpawner> Conn<A, C> {
    /// A reply of gRPC that went well. Most often it is written at once.
    pub(super) fn reply(&mut self, id: u32, credit: i64, reply: Bytes) {
        frame::put_headers(&mut self.out, id, false, |to| self.encoder.grpc_headers(to));
        let bytes = reply.len() as i64;
        let fits = bytes <= self.send_window && bytes <= self.peer_window + credit && reply.len() <= PAYLOAD_BYTES_MAX;
        if fits {
            self.pay_for_errors();
            self.send_window -= bytes;
            frame::put_data(&mut self.out, id, false, &reply);
            frame::put_headers(&mut self.out, id, true, |to| self.encoder.grpc_ok(to));
            return;
        }
        let reply = self.reply_budget.add(reply, 0);
        self.add_stream(id, Stream::of_reply(credit, reply));
        self.queue(id);
    }

    /// What a call has to say.
    pub(in crate::http2) fn on_event(&mut self, StreamEvent { stream: id, event }: StreamEvent) {
        if let Event::Several(events) = event {
            return events.into_iter().for_each(|event| self.on_event(StreamEvent { stream: id, event }));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        match event {
            Event::Several(_) => {} // above
            Event::Done => {
                stream.call = None;
                // Its request is gone with it.
                self.counted -= std::mem::take(&mut stream.counted);
                if stream.is_over {
                    self.streams.remove(&id);
                } else if !matches!(stream.pieces.back(), Some(Piece::Trailers(_) | Piece::End)) {
                    // Its runtime has ended it.
                    self.reset(id, ErrorCode::Internal);
                }
            }
            Event::Read(bytes) => self.was_read(id, bytes),
            // Its caller wants to hear nothing more.
            _ if stream.is_over => {}
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

    /// A call has read a part of its request.
    fn was_read(&mut self, id: u32, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.counted -= stream.was_read(bytes);
        if stream.is_free {
            if stream.call_kind.has_stream {
                stream.untold += bytes as u32;
            }
            return self.tell_of_window(id);
        }
        // What a call reads of a stream that was given up has been counted then.
        let bytes = stream.unread.min(bytes as u32);
        stream.unread -= bytes;
        stream.untold += bytes;
        self.tell_of_window(id);
        self.give_back(bytes as usize);
    }

    /// Tells the peer how much more it may send of a request, when that is much.
    pub(super) fn tell_of_window(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.recv_buffer.is_some()
            && stream.untold >= WINDOW_BYTES / 2
        {
            stream.window += stream.untold;
            frame::put_window_update(&mut self.out, id, std::mem::take(&mut stream.untold));
        }
    }

    /// Sends what may be sent.
    pub(in crate::http2) fn send(&mut self) {
        // How many streams have had no turn since something was sent: the last round ends when nothing more goes.
        let mut left = self.sendable.len();
        while left > 0
            && !self.is_full()
            && let Some(id) = self.sendable.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id) else {
                left -= 1;
                continue;
            };
            stream.is_queued = false;
            match self.send_of(id) {
                Sent::All => {
                    self.finish(id);
                    left = self.sendable.len();
                }
                Sent::Some => {
                    self.queue(id);
                    left = self.sendable.len();
                }
                Sent::Enough => left -= 1,
                Sent::Nothing => {
                    self.queue(id);
                    left -= 1;
                }
            }
        }
    }

    /// Sends one frame of a stream's body, and what ends it.
    fn send_of(&mut self, id: u32) -> Sent {
        let Some(stream) = self.streams.get_mut(&id) else { return Sent::Enough };
        if let Some(Piece::Data(part)) = stream.pieces.front_mut() {
            let window = self.peer_window + stream.credit;
            let allowed = window.min(self.send_window).min(PAYLOAD_BYTES_MAX as i64);
            let Some(allowed) = usize::try_from(allowed).ok().filter(|allowed| *allowed > 0) else {
                return if window <= 0 { Sent::Enough } else { Sent::Nothing };
            };
            let bytes = allowed.min(part.bytes.len());
            let whole = bytes == part.bytes.len();
            frame::put_data(&mut self.out, id, false, &part.bytes[..bytes]);
            self.idle_frames = self.idle_frames.saturating_sub(IDLE_FRAMES_PAID);
            part.advance(bytes);
            self.send_window -= bytes as i64;
            stream.credit -= bytes as i64;
            if !whole {
                return Sent::Some;
            }
            if let Some(call) = &stream.call {
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

    /// All of a reply is sent.
    fn finish(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.is_over = true;
        if stream.recv_buffer.is_some() {
            // The rest of the request is of no use (RFC 9113, section 8.1).
            self.reset(id, ErrorCode::NoError);
            return;
        }
        let unread = std::mem::take(&mut stream.unread);
        if stream.call.is_none() {
            self.remove_stream(id);
        }
        self.pay_for_errors();
        self.give_back(unread as usize);
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !std::mem::replace(&mut stream.is_queued, true)
        {
            self.sendable.push_back(id);
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
        let at = self.find_waiting(id);
        let credit = match at.and_then(|at| self.waiting.get_mut(at)) {
            Some(waiting) => &mut waiting.credit,
            None => match self.streams.get_mut(&id) {
                Some(stream) => &mut stream.credit,
                None => return self.idle_frame(),
            },
        };
        if bytes == 0 {
            return self.reset_for(id, ErrorCode::Protocol);
        }
        *credit += bytes;
        if self.peer_window + *credit > BITS_31.into() {
            return self.reset_for(id, ErrorCode::FlowControl);
        }
        if self.streams.get(&id).is_some_and(|stream| !stream.pieces.is_empty()) {
            self.queue(id);
        }
        Ok(())
    }

    /// The peer sets the window that streams begin with, and moves those of all that there are by as much.
    pub(super) fn set_peer_window(&mut self, bytes: i64) -> Result<(), ConnError> {
        self.peer_window = bytes;
        let credits = self.waiting.iter().map(|waiting| waiting.credit);
        let credits = credits.chain(self.streams.values().map(|stream| stream.credit));
        if credits.max().is_some_and(|credit| bytes + credit > BITS_31.into()) {
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

    /// A reset of a stream that is gone carries no call on.
    pub(super) fn idle_frame_if_gone(&mut self, id: u32) -> Result<(), ConnError> {
        if self.streams.contains_key(&id) { Ok(()) } else { self.idle_frame() }
    }
}
