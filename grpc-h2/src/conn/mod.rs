//! The state of a connection, and the rules of the protocol. Frames go in, frames come out; there is no I/O.

mod control;
mod reply;
mod request;
mod request_budget;
mod resets;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use self::request::SlowCall;
use self::resets::{Resets, Side};
use self::stream::{PendingCall, Stream};
use super::body::Incomplete;
use super::budget::{Account, Budget};
use super::buffer::Buffer;
use super::call::CallSpawner;
use super::error::{ConnError, ErrorCode};
use super::frame::{self, BITS_31, FrameHead, PAYLOAD_BYTES_MAX, PREFACE, flag, kind, setting};
use super::head::HeaderDecoder;
use super::hpack::Encoder;
use super::limits::WINDOW_BYTES_AT_FIRST;
use super::reply_budget::ReplyBudget;
use super::{FastPath, Flood, Limits, Observer, SharedLimits};

/// The payload of a keepalive PING.
const PING_KEEPALIVE: [u8; 8] = *b"kw-alive";
/// The payload of the PING whose acknowledgement shows that the peer has read the first GOAWAY.
const PING_DRAIN: [u8; 8] = *b"kw-leave";

pub(super) struct Conn<A: FastPath, C, O> {
    /// The output, not yet written to the network.
    pub(super) out: Buffer,
    pub(super) observer: O,
    limits: SharedLimits,
    fast_path: A,
    calls: C,
    handshake: Handshake,
    header_decoder: HeaderDecoder,
    encoder: Encoder,
    /// A header block that goes on in the next frame.
    block: Option<PartialBlock>,
    /// The highest stream that the peer has begun, including refused ones.
    last_stream: u32,
    /// Calls answered by the fast path.
    answered: u64,
    /// Ordered by stream.
    pending_calls: VecDeque<PendingCall<A::Pass>>,
    buffered_bytes: usize,
    streams: BTreeMap<u32, Stream>,
    /// Streams with something to send, in turns.
    pending_send: VecDeque<u32>,
    reply_budget: ReplyBudget,
    account: Account,
    /// What all calls count in the request budget, in bytes.
    budget_bytes: usize,
    /// Bytes that were read and not parsed.
    rest_bytes: usize,
    /// The peer's SETTINGS_INITIAL_WINDOW_SIZE.
    peer_initial_window: i64,
    /// Bytes that may be sent to the peer.
    send_window: i64,
    /// Bytes that the peer may send.
    window: u32,
    /// Bytes that were read and not yet given back by WINDOW_UPDATE.
    unclaimed: u32,
    resets: Resets,
    /// [`Limits::error_calls`] for each error.
    errors: u32,
    /// Calls refused because an unauthenticated peer had too many, or there was no room.
    crowded: u32,
    overhead_frames: u32,
    /// When errors and overhead frames last decayed.
    decayed_at: Instant,
    drain: Drain,
    /// Why the connection drains because of its peer, and when it is closed at the latest.
    forced_drain: Option<(ConnError, Instant)>,
    /// When the input was read.
    at: Instant,
}

/// The progress of the connection preface (RFC 9113, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handshake {
    /// The client's 24 bytes come next.
    Preface,
    /// Its SETTINGS come next.
    Settings,
    Open,
}

/// The progress of graceful shutdown (RFC 9113, section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    NotStarted,
    /// The first GOAWAY is sent, and the peer has not acknowledged it.
    Announced,
    /// The second GOAWAY named this as the last stream.
    Final(u32),
}

/// A header block in several frames.
struct PartialBlock {
    stream: u32,
    ends_stream: bool,
    frames: u32,
}

impl<A: FastPath, C, O: Observer> Conn<A, C, O> {
    pub(super) fn new(
        fast_path: A,
        calls: C,
        reply_budget: ReplyBudget,
        budget: Budget,
        limits: SharedLimits,
        mut observer: O,
    ) -> Self {
        observer.opened();
        let window_bytes = limits.window_bytes;
        let mut out = Buffer::new();
        frame::put_settings(
            &mut out,
            &[
                (setting::MAX_CONCURRENT_STREAMS, limits.streams_max as u32),
                (setting::INITIAL_WINDOW_SIZE, window_bytes),
                (setting::MAX_HEADER_LIST_SIZE, limits.header_bytes_max as u32),
            ],
        );
        frame::put_window_update(&mut out, 0, window_bytes - WINDOW_BYTES_AT_FIRST);
        let at = Instant::now();
        Self {
            out,
            header_decoder: HeaderDecoder::new(),
            observer,
            limits,
            fast_path,
            calls,
            handshake: Handshake::Preface,
            encoder: Encoder::new(),
            block: None,
            last_stream: 0,
            answered: 0,
            pending_calls: VecDeque::new(),
            buffered_bytes: 0,
            streams: BTreeMap::new(),
            pending_send: VecDeque::new(),
            reply_budget,
            account: Account::open(budget),
            budget_bytes: 0,
            rest_bytes: 0,
            peer_initial_window: WINDOW_BYTES_AT_FIRST.into(),
            send_window: WINDOW_BYTES_AT_FIRST.into(),
            window: window_bytes,
            unclaimed: 0,
            resets: Resets::default(),
            errors: 0,
            crowded: 0,
            overhead_frames: 0,
            decayed_at: at,
            drain: Drain::NotStarted,
            forced_drain: None,
            at,
        }
    }
}

impl<A: FastPath, C: CallSpawner, O: Observer> Conn<A, C, O> {
    /// Processes whole frames, and returns how many bytes they have. Stops early when the output is full.
    ///
    /// # Errors
    /// When the connection must close. GOAWAY is then in the output.
    pub(super) fn receive(&mut self, input: &[u8], at: Instant) -> Result<usize, ConnError> {
        self.at = at;
        self.fast_path.begin_batch(at);
        let received = self.receive_frames(input);
        self.fast_path.end_batch();
        if let Err(error) = &received {
            self.goaway(self.last_answered(), error.code, error.what);
        }
        received
    }

    fn receive_frames(&mut self, input: &[u8]) -> Result<usize, ConnError> {
        let mut rest = input;
        if self.handshake == Handshake::Preface {
            match rest.strip_prefix(PREFACE) {
                Some(further) => (self.handshake, rest) = (Handshake::Settings, further),
                None if PREFACE.starts_with(rest) => return Ok(0),
                None => return Err(ConnError::protocol("this is no HTTP/2")),
            }
        }
        // Where prefetching stopped, in bytes before the end of the input.
        let mut unscanned = rest.len();
        let out_bytes_max = self.limits.out_bytes_max;
        while self.out.len() < out_bytes_max
            && let Some(head) = FrameHead::read(rest)
        {
            if head.length > PAYLOAD_BYTES_MAX {
                return Err(ConnError::size("a frame longer than SETTINGS_MAX_FRAME_SIZE"));
            }
            let Some((payload, further)) = head.split_payload(rest) else { break };
            if rest.len() == unscanned {
                unscanned = self.prefetch(rest);
            }
            rest = further;
            self.frame(head, payload)?;
        }
        Ok(input.len() - rest.len())
    }

    /// Passes the next bodies to the fast path, and returns how many bytes were not scanned.
    fn prefetch(&mut self, input: &[u8]) -> usize {
        let (mut rest, mut bodies, streams, bodies_max) = (input, 0, &self.streams, self.limits.prefetch_max);
        let next = std::iter::from_fn(|| {
            while bodies < bodies_max {
                let head = FrameHead::read(rest)?;
                let payload;
                (payload, rest) = head.split_payload(rest)?;
                if head.kind == kind::DATA && head.has(flag::END_STREAM) && !streams.contains_key(&head.stream) {
                    bodies += 1;
                    return head.unpad(payload).ok();
                }
            }
            None
        });
        // Prefetching is best effort: a panic in it must not affect the connection.
        drop(catch_unwind(AssertUnwindSafe(|| self.fast_path.prefetch(next))));
        // No body to prefetch: do not scan the rest of this input again.
        if bodies == 0 { 0 } else { rest.len() }
    }

    /// Whether the connection preface has yet to come.
    pub(super) fn awaits_preface(&self) -> bool {
        self.handshake == Handshake::Preface
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether the output is full.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= self.limits.out_bytes_max
    }

    /// Calls answered by the fast path.
    pub(super) fn answered(&self) -> u64 {
        self.answered
    }
    /// The caller, once there has been a call.
    pub(super) fn caller(&self) -> Option<u64> {
        (self.last_stream > 0).then(|| self.fast_path.caller())
    }

    /// Sends a keepalive PING.
    pub(super) fn ping(&mut self) {
        frame::put_ping(&mut self.out, false, &PING_KEEPALIVE);
    }

    /// Ends requests that are not whole in time, and returns when the next one is due.
    pub(super) fn end_late_requests(&mut self, now: Instant) -> Option<Instant> {
        // Ordered by their deadlines.
        while self.pending_calls.front().is_some_and(|pending| pending.until <= now)
            && let Some(pending) = self.take_pending(0)
        {
            // Fails for invalid heads only, and those are never pending.
            let _refused = self.refuse(SlowCall::of(&pending), pending.body.len(), false, Incomplete::TooSlow);
        }
        self.streams.values_mut().for_each(|stream| stream.end_if_late(now));
        let pending = self.pending_calls.front().map(|pending| pending.until);
        pending.into_iter().chain(self.streams.values().filter_map(Stream::due)).min()
    }

    /// Announces the end of the connection. Calls are taken until the peer acknowledges it.
    pub(super) fn start_drain(&mut self) {
        if self.drain == Drain::NotStarted {
            self.drain = Drain::Announced;
            self.goaway(BITS_31, ErrorCode::NoError, "");
            frame::put_ping(&mut self.out, false, &PING_DRAIN);
        }
    }

    pub(super) fn has_no_calls(&self) -> bool {
        self.streams.is_empty() && self.pending_calls.is_empty()
    }

    /// The highest stream that the peer has begun.
    pub(super) fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// The last stream that is answered, for GOAWAY. It never grows (section 6.8).
    fn last_answered(&self) -> u32 {
        if let Drain::Final(last) = self.drain { last } else { self.last_stream }
    }

    /// Whether the peer has yet to acknowledge the announcement.
    pub(super) fn awaits_drain_ack(&self) -> bool {
        self.drain == Drain::Announced
    }

    /// Takes no more calls, and names the last one.
    pub(super) fn finish_drain(&mut self) {
        if !matches!(self.drain, Drain::Final(_)) {
            self.drain = Drain::Final(self.last_stream);
            self.goaway(self.last_answered(), ErrorCode::NoError, "");
        }
    }

    /// Tells the peer that its connection closes now.
    pub(super) fn evict(&mut self) {
        self.goaway(self.last_answered(), ErrorCode::NoError, "others need its place");
    }

    fn goaway(&mut self, last_stream: u32, code: ErrorCode, what: &str) {
        frame::put_goaway(&mut self.out, last_stream, code, what);
        self.observer.goaway_sent(code);
    }

    /// Why the connection drains because of its peer, and when it is closed at the latest.
    pub(super) fn forced_drain(&self) -> Option<(ConnError, Instant)> {
        self.forced_drain
    }

    /// Drains the connection because of its peer. Calls under way are answered: behind a proxy they may be
    /// those of other callers. A peer that goes on is cut off.
    fn force_drain(&mut self, by: Flood) -> Result<(), ConnError> {
        let error = ConnError::enhance_your_calm(match by {
            Flood::OverheadFrames => "too many frames that carry no call on",
            Flood::Errors => "too many errors",
        });
        if self.forced_drain.is_some() {
            return Err(error);
        }
        self.observer.flooded(by);
        self.forced_drain = Some((error, self.at + self.limits.drain_time_max));
        (self.overhead_frames, self.errors) = (0, 0);
        self.drain = Drain::Final(self.last_answered());
        self.goaway(self.last_answered(), error.code, error.what);
        Ok(())
    }

    pub(super) fn end_calls(&mut self) {
        self.cancel_pending();
        self.pending_calls.clear();
        self.streams.clear();
        (self.budget_bytes, self.buffered_bytes) = (0, 0);
    }

    /// Whether nothing more will be sent.
    pub(super) fn is_drained(&self) -> bool {
        matches!(self.drain, Drain::Final(_)) && self.has_no_calls()
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if self.handshake == Handshake::Settings {
            if head.kind != kind::SETTINGS || head.has(flag::ACK) {
                return Err(ConnError::protocol("the first frame is not SETTINGS"));
            }
            self.handshake = Handshake::Open;
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return Err(ConnError::protocol("a header block is interrupted"));
        }
        match head.kind {
            kind::DATA => self.data(head, payload),
            kind::HEADERS => self.headers(head, payload),
            kind::CONTINUATION => self.continuation(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::SETTINGS => self.settings(head, payload),
            kind::PING => self.ping_received(head, payload),
            kind::RST_STREAM => self.reset_by_peer(head, payload),
            kind::GOAWAY => self.goaway_received(head, payload),
            kind::PRIORITY => self.priority(head, payload),
            kind::PUSH_PROMISE => Err(ConnError::protocol("a client cannot push")),
            // Unknown types are ignored (section 4.1).
            _ => self.overhead_frame(),
        }
    }

    /// Halves the errors, and resets the other counts, for each keepalive interval that has passed.
    fn decay_rate_limits(&mut self) {
        let (passed, interval) = (self.at.saturating_duration_since(self.decayed_at), self.limits.keepalive_interval);
        if passed >= interval {
            let halved = passed.as_nanos() / interval.as_nanos();
            self.decayed_at = self.at;
            (self.overhead_frames, self.crowded) = (0, 0);
            self.errors = u32::try_from(halved).ok().and_then(|halved| self.errors.checked_shr(halved)).unwrap_or(0);
        }
    }

    /// Counts a frame that makes no progress for a call.
    fn overhead_frame(&mut self) -> Result<(), ConnError> {
        self.decay_rate_limits();
        self.overhead_frames += 1;
        if self.overhead_frames > self.limits.overhead_frames_max {
            return self.force_drain(Flood::OverheadFrames);
        }
        Ok(())
    }

    /// A frame that starts a call or carries its data pays for some overhead frames.
    fn pay_for_overhead(&mut self) {
        self.overhead_frames = self.overhead_frames.saturating_sub(self.limits.overhead_frames_paid);
    }

    /// Whether a stream is idle (RFC 9113, section 5.1): it was never begun.
    fn is_idle(&self, stream: u32) -> bool {
        stream > self.last_stream || stream.is_multiple_of(2)
    }

    /// Whether there are as many calls as SETTINGS_MAX_CONCURRENT_STREAMS allows.
    fn has_max_streams(&self) -> bool {
        self.streams.len() + self.pending_calls.len() >= self.limits.streams_max
    }

    /// A call was received and answered in full.
    fn pay_for_error(&mut self) {
        self.errors = self.errors.saturating_sub(1);
    }

    /// Resets a stream for an error of the peer.
    fn reset_for(&mut self, stream: u32, code: ErrorCode) -> Result<(), ConnError> {
        self.decay_rate_limits();
        let error_calls = self.limits.error_calls;
        self.errors += error_calls;
        if self.errors > self.limits.errors_max * error_calls {
            self.force_drain(Flood::Errors)?;
        }
        self.reset(stream, code);
        Ok(())
    }

    /// Resets a stream, and ends its call.
    fn reset(&mut self, stream: u32, code: ErrorCode) {
        self.put_reset(stream, code);
        self.remember_reset(stream);
        self.cancel_stream(stream);
    }

    fn put_reset(&mut self, stream: u32, code: ErrorCode) {
        frame::put_reset(&mut self.out, stream, code);
        self.observer.reset_sent(code);
    }

    /// Remembers that frames of this stream are no errors: the peer may not know of the reset yet.
    fn remember_reset(&mut self, stream: u32) {
        self.resets.remember(Side::Us, stream, self.limits.resets_remembered);
    }

    /// Ends the call of a stream. It counts until its task has ended.
    fn cancel_stream(&mut self, id: u32) {
        if let Some(at) = self.find_pending(id)
            && let Some(pending) = self.take_pending(at)
        {
            if let Some(pass) = &pending.pass {
                self.fast_path.on_cancel(pass);
            }
            self.release_capacity(pending.body.len());
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            let unread = std::mem::take(&mut stream.unread);
            let is_gone = stream.cancel();
            self.release_capacity(unread as usize);
            if is_gone {
                self.remove_stream(id);
            }
        }
    }

    /// The index of a pending call.
    fn find_pending(&self, id: u32) -> Option<usize> {
        // Bodies mostly come in the order of their heads.
        if self.pending_calls.front()?.id == id {
            return Some(0);
        }
        self.pending_calls.binary_search_by_key(&id, |pending| pending.id).ok()
    }

    /// Gives bytes of the connection's window back to the peer, by WINDOW_UPDATE once there are enough.
    fn release_capacity(&mut self, bytes: usize) {
        self.unclaimed += bytes as u32;
        if self.unclaimed >= self.limits.conn_update_bytes_min() {
            self.window += self.unclaimed;
            frame::put_window_update(&mut self.out, 0, std::mem::take(&mut self.unclaimed));
        }
    }
}

impl<A: FastPath, C, O> Conn<A, C, O> {
    fn cancel_pending(&mut self) {
        for pass in self.pending_calls.iter().filter_map(|pending| pending.pass.as_ref()) {
            self.fast_path.on_cancel(pass);
        }
    }
}

impl<A: FastPath, C, O> Drop for Conn<A, C, O> {
    fn drop(&mut self) {
        self.cancel_pending();
    }
}
