//! The bounds and times of a connection, and what must hold between them.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::body::PREFIX_BYTES;
use super::frame::BITS_31;
use super::hpack::STRING_BYTES_MAX;

/// The size of windows before any SETTINGS or WINDOW_UPDATE (RFC 9113, section 6.9.2).
pub(super) const WINDOW_BYTES_AT_FIRST: u32 = 65_535;
/// The longest time that can be set. A sum with it never overflows.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The bounds and times of a connection.
///
/// Everything that a peer can make grow has a bound. Most are here; what all connections hold of requests
/// together is bounded by [`Budget`](super::Budget).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls that a connection has under way at most. Further ones are refused with REFUSED_STREAM. A
    /// cancelled call takes its place until its task has ended.
    pub streams_max: usize,
    /// The headers of a call at most, in bytes, counted as SETTINGS_MAX_HEADER_LIST_SIZE does. Longer ones
    /// are answered with status 431. At most 16 KiB.
    pub header_bytes_max: usize,
    /// Frames of a header block at most, of 16 KiB each. A block that is too long for a head is read to its
    /// end, field by field, so that it can be answered and later blocks can be read. At most 48 KiB of it are
    /// kept meanwhile.
    pub block_frames_max: u32,
    /// Resets that a peer may provoke by its own errors, beside those that its calls pay for, before its
    /// connection is drained (MadeYouReset, CVE-2025-8671). Half of them are forgotten in each
    /// `keepalive_interval`.
    pub errors_max: u32,
    /// Calls received and answered in full that pay for one error: a connection that lives long, or carries
    /// the calls of many, always has some that fail.
    pub error_calls: u32,
    /// Frames without progress for a call that a peer may send in a `keepalive_interval`, beside those that
    /// its calls pay for: PING, SETTINGS, PRIORITY, empty DATA, unknown frames, frames for streams that are
    /// gone. Beyond that the connection is drained; beyond as many again, closed.
    pub overhead_frames_max: u32,
    /// Such frames that are paid for by each frame that starts a call, or carries its data in either
    /// direction. Common clients send a PING with each read (to probe the bandwidth), a WINDOW_UPDATE on a
    /// stream that has just ended, or an RST_STREAM for each call that they cancel.
    pub overhead_frames_paid: u32,
    /// Streams that were reset by either side and are remembered, for each side. The peer may still send
    /// frames for them, and those are no errors.
    pub resets_remembered: usize,
    /// How long calls under way may take to end on a connection that is drained because of its peer.
    pub drain_time_max: Duration,
    /// Bytes of requests that a peer may send before they are read, for each call and for all calls of a
    /// connection. At least 65,535, with which a connection begins.
    pub window_bytes: u32,
    /// A message of an open call (one that needs no credential) at most, in bytes. The connection keeps it
    /// until it is whole; a unary open call starts only then. With its prefix of 5 bytes at most half of
    /// `window_bytes`, so that the peer can always send the rest of it.
    pub open_message_bytes_max: usize,
    /// Calls that a connection has under way at most before it has shown a valid credential.
    pub stranger_calls_max: usize,
    /// Calls of such a connection that are refused with a status in a `keepalive_interval`, because there are
    /// too many or there is no room. Further ones are reset, which takes fewer bytes than a request.
    pub stranger_refusals_max: u32,
    /// The connection keeps a unary message until it is whole, unless it is longer than this, in bytes. A
    /// service that reads a part of a message allocates room for all of it.
    pub single_bytes_max: usize,
    /// A longer request takes the slow path, in bytes. Shorter ones are buffered for the fast path.
    pub buffered_bytes_max: usize,
    /// Bodies that are prefetched at a time.
    pub prefetch_max: usize,
    /// How long a request may take from its head to its end, unless it is a stream. Meanwhile its caller has
    /// a slot and the connection keeps what has come.
    pub request_time_max: Duration,
    /// Bytes that are read in a turn: a few hundred calls. The last read may exceed it.
    pub turn_bytes_max: usize,
    /// Bytes that wait to be written to the network. Beyond this nothing is read, and calls send nothing.
    pub out_bytes_max: usize,
    /// Bytes of replies that wait for the peer's windows, of all calls of a connection. Beyond this nothing
    /// takes the fast path, calls under way send nothing, and no call that may have a long reply starts to
    /// answer. Such calls answer one at a time, so one reply may exceed it.
    pub replies_bytes_max: usize,
    /// Bytes of its reply that a call may queue before they are sent. A single message may be longer.
    pub reply_bytes_ahead: usize,
    /// How long a peer may take to send the connection preface, of 24 bytes. Afterwards keepalive watches it.
    pub preface_timeout: Duration,
    /// A silent connection is sent a PING after this time.
    pub keepalive_interval: Duration,
    /// How long its answer may take.
    pub keepalive_timeout: Duration,
    /// How long a peer with calls under way may take to acknowledge the first GOAWAY of a stop, before the
    /// second one names the last call.
    pub goaway_ack_timeout: Duration,
    /// The same for a peer without calls, or that has yet to send anything, so that it does not hold up the
    /// stop. GOAWAY tells it that later calls were not processed.
    pub idle_goaway_ack_timeout: Duration,
    /// How long a peer may take to close its end, so that it reads the last frames.
    pub linger_time: Duration,
    /// The same for a peer that had no calls since the drain began.
    pub idle_linger_time: Duration,
}

impl Limits {
    /// The defaults, for use in constants.
    pub const DEFAULT: Self = Self {
        streams_max: 256,
        header_bytes_max: 16 * 1024,
        block_frames_max: 16,
        errors_max: 1_024,
        error_calls: 8,
        overhead_frames_max: 10_000,
        overhead_frames_paid: 4,
        resets_remembered: 1_024,
        drain_time_max: Duration::from_secs(30),
        window_bytes: 1024 * 1024,
        open_message_bytes_max: 8 * 1024,
        stranger_calls_max: 64,
        stranger_refusals_max: 16,
        single_bytes_max: 1024 * 1024,
        buffered_bytes_max: 128 * 1024,
        prefetch_max: 16,
        request_time_max: Duration::from_secs(30),
        turn_bytes_max: 32 * 1024,
        out_bytes_max: 128 * 1024,
        replies_bytes_max: 4 * 1024 * 1024,
        reply_bytes_ahead: 64 * 1024,
        preface_timeout: Duration::from_secs(10),
        keepalive_interval: Duration::from_secs(30),
        keepalive_timeout: Duration::from_secs(10),
        goaway_ack_timeout: Duration::from_secs(5),
        idle_goaway_ack_timeout: Duration::from_millis(500),
        linger_time: Duration::from_secs(1),
        idle_linger_time: Duration::from_millis(250),
    };

    /// The connection keeps a message of a stream until it is whole, unless it is longer than this, in bytes.
    /// At most half of the window may be unclaimed, so a peer can always send the rest of such a message.
    #[must_use]
    pub const fn whole_bytes_max(&self) -> usize {
        self.window_bytes as usize / 4
    }

    /// All requests of a connection that are buffered for the fast path, in bytes: half of the window, so
    /// that other calls go on.
    #[must_use]
    pub const fn buffered_bytes_all_max(&self) -> usize {
        self.window_bytes as usize / 2
    }

    /// A WINDOW_UPDATE of the connection is sent once this many bytes are unclaimed.
    pub(super) const fn conn_update_bytes_min(&self) -> u32 {
        self.window_bytes / 4
    }

    /// A WINDOW_UPDATE of a stream is sent once this many bytes are unclaimed.
    pub(super) const fn stream_update_bytes_min(&self) -> u32 {
        self.window_bytes / 2
    }

    /// The end of a request that is not longer than this is reported as read only with the end of its call,
    /// in bytes.
    ///
    /// Buffered, unreported and unclaimed bytes together never fill the window. Otherwise a peer whose calls
    /// wait for the disk could send nothing more, not even calls on the fast path.
    pub(super) const fn unreported_bytes_max(&self) -> usize {
        self.window_bytes as usize / 4 / self.streams_max
    }

    /// The longest time between two looks at the clock: nothing that begins meanwhile is due before the next.
    pub(super) fn tick_max(&self) -> Duration {
        self.keepalive_interval.min(self.request_time_max).min(self.drain_time_max)
    }

    /// What is out of its range, if anything is.
    fn error(&self) -> Option<LimitsError> {
        let window_half = u64::from(self.window_bytes / 2);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (any, time_max) = (u64::from(u32::MAX) - 1, ms(TIME_MAX));
        // The timer's resolution is a millisecond: a time of 0 that comes again and again would never end.
        let ranges = [
            ("streams_max", self.streams_max as u64, 1, any),
            ("header_bytes_max", self.header_bytes_max as u64, 1, STRING_BYTES_MAX as u64),
            ("block_frames_max", self.block_frames_max.into(), 1, any),
            // The product of these two is counted in 32 bits.
            ("errors_max", self.errors_max.into(), 0, 1_000_000),
            ("error_calls", self.error_calls.into(), 0, 1_000),
            ("overhead_frames_max", self.overhead_frames_max.into(), 0, any),
            ("overhead_frames_paid", self.overhead_frames_paid.into(), 0, any),
            ("resets_remembered", self.resets_remembered as u64, 1, any),
            ("drain_time_max", ms(self.drain_time_max), 1, time_max),
            ("window_bytes", self.window_bytes.into(), WINDOW_BYTES_AT_FIRST.into(), BITS_31.into()),
            ("open_message_bytes_max", self.open_message_bytes_max as u64, 0, window_half - PREFIX_BYTES as u64),
            ("stranger_calls_max", self.stranger_calls_max as u64, 0, any),
            ("stranger_refusals_max", self.stranger_refusals_max.into(), 0, any),
            ("single_bytes_max", self.single_bytes_max as u64, 0, any),
            ("buffered_bytes_max", self.buffered_bytes_max as u64, 0, any),
            ("prefetch_max", self.prefetch_max as u64, 0, any),
            ("request_time_max", ms(self.request_time_max), 1, time_max),
            ("turn_bytes_max", self.turn_bytes_max as u64, 1, any),
            ("out_bytes_max", self.out_bytes_max as u64, 1, any),
            ("replies_bytes_max", self.replies_bytes_max as u64, 1, any),
            ("reply_bytes_ahead", self.reply_bytes_ahead as u64, 1, any),
            ("preface_timeout", ms(self.preface_timeout), 0, time_max),
            ("keepalive_interval", ms(self.keepalive_interval), 1, time_max),
            ("keepalive_timeout", ms(self.keepalive_timeout), 1, time_max),
            ("goaway_ack_timeout", ms(self.goaway_ack_timeout), 0, time_max),
            ("idle_goaway_ack_timeout", ms(self.idle_goaway_ack_timeout), 0, time_max),
            ("linger_time", ms(self.linger_time), 0, time_max),
            ("idle_linger_time", ms(self.idle_linger_time), 0, time_max),
        ];
        let wrong = ranges.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value));
        wrong.map(|(field, value, min, max)| LimitsError { field, value, min, max })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A limit that is out of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}, and must be from {min} to {max}")]
pub struct LimitsError {
    /// The field of [`Limits`].
    pub field: &'static str,
    /// Its value; of a time, in milliseconds.
    pub value: u64,
    /// The least that it may be.
    pub min: u64,
    /// The most that it may be.
    pub max: u64,
}

/// Limits that were checked. Clones share them.
#[derive(Clone, Debug)]
pub struct SharedLimits(Arc<Limits>);

impl SharedLimits {
    /// Checks limits.
    ///
    /// # Errors
    /// When one is out of its range.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        match limits.error() {
            Some(error) => Err(error),
            None => Ok(Self(Arc::new(limits))),
        }
    }
}

impl Default for SharedLimits {
    fn default() -> Self {
        Self(Arc::new(Limits::DEFAULT))
    }
}

impl Deref for SharedLimits {
    type Target = Limits;

    fn deref(&self) -> &Limits {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges() {
        assert_eq!(Limits::DEFAULT.error(), None);
    }

    #[test]
    fn a_limit_out_of_its_range_is_named() {
        let wrong = |change: fn(&mut Limits)| {
            let mut limits = Limits::DEFAULT;
            change(&mut limits);
            SharedLimits::new(limits).map(drop).map_err(|error| error.field)
        };
        assert_eq!(wrong(|limits| limits.streams_max = 0), Err("streams_max"));
        assert_eq!(wrong(|limits| limits.header_bytes_max = 16 * 1024 + 1), Err("header_bytes_max"));
        assert_eq!(wrong(|limits| limits.window_bytes = 65_534), Err("window_bytes"));
        assert_eq!(wrong(|limits| limits.window_bytes = 1 << 31), Err("window_bytes"));
        assert_eq!(wrong(|limits| limits.window_bytes = 65_535), Ok(()));
        assert_eq!(wrong(|limits| limits.open_message_bytes_max = 512 * 1024 - 4), Err("open_message_bytes_max"));
        assert_eq!(wrong(|limits| limits.open_message_bytes_max = 512 * 1024 - 5), Ok(()));
        assert_eq!(wrong(|limits| limits.keepalive_interval = Duration::from_micros(999)), Err("keepalive_interval"));
        assert_eq!(wrong(|limits| limits.drain_time_max = Duration::MAX), Err("drain_time_max"));
        let error = SharedLimits::new(Limits { errors_max: 1_000_001, ..Limits::DEFAULT }).unwrap_err();
        assert_eq!(error.to_string(), "errors_max is 1000001, and must be from 0 to 1000000");
    }

    /// However the window and the number of streams are chosen, a peer can always send more.
    #[test]
    fn what_is_held_of_a_window_never_fills_it() {
        for window_bytes in (WINDOW_BYTES_AT_FIRST..WINDOW_BYTES_AT_FIRST + 9).chain([1 << 20, BITS_31]) {
            for streams_max in [1, 2, 3, 100, 256, 1_000_000] {
                let limits = Limits { window_bytes, streams_max, ..Limits::DEFAULT };
                let held = limits.conn_update_bytes_min() as usize - 1
                    + limits.buffered_bytes_all_max()
                    + limits.streams_max * limits.unreported_bytes_max();
                assert!(held < window_bytes as usize, "{window_bytes} {streams_max}");
            }
        }
    }
}
