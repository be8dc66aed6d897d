//! HTTP/2 for gRPC servers (RFC 9113), on connections that are already accepted.
//!
//! It does what gRPC needs: no push, no priorities, no CONNECT, no upgrade from HTTP/1. The [`FastPath`]
//! answers a call where its frames are read, from the bytes that were read, and its reply is written behind
//! the others. Every other call takes the slow path: a task that its connection owns, with bodies under
//! HTTP/2's flow control.
//!
//! [`Connection`] serves one connection. `frame` and `hpack` encode and decode, `head` is the head of a
//! request, `conn` is the protocol without I/O, `call` runs the calls of the slow path, `events` carries what
//! they send, `budget` bounds the requests that all connections hold, `reply_budget` the replies of one,
//! `read_turns` shares a thread among callers, `io` moves bytes and keeps the time, and `busy_poll` says when
//! to poll instead of sleeping.
//!
//! Everything that a peer can make grow has a bound, and all of the bounds are here.

mod body;
mod budget;
mod buffer;
mod busy_poll;
mod call;
mod conn;
mod error;
mod events;
mod frame;
mod head;
mod hpack;
mod io;
mod read_turns;
mod reply_budget;
#[cfg(feature = "testing")]
pub mod testing;

use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::body::{Incoming, Incomplete};
pub use self::budget::{Budget, Callers};
pub use self::call::{CallKind, Runs, Runtimes};
pub use self::error::{ConnError, ErrorCode};
pub use self::head::RequestHead;
pub use self::io::{CloseReason, Connection, Handlers, Shutdown};

/// Calls that a connection has under way at most. Further ones are refused with REFUSED_STREAM. A cancelled
/// call takes its place until its task has ended.
pub const STREAMS_MAX: usize = 256;
/// The headers of a call at most, in bytes, counted as SETTINGS_MAX_HEADER_LIST_SIZE does. Longer ones are
/// answered with status 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Frames of a header block at most, of 16 KiB each. A block that is too long for a head is read to its end,
/// field by field, so that it can be answered and later blocks can be read. At most 48 KiB of it are kept
/// meanwhile.
pub const BLOCK_FRAMES_MAX: u32 = 16;
/// Resets that a peer may provoke by its own errors, beside those that its calls pay for, before its
/// connection is drained (MadeYouReset, CVE-2025-8671). Half of them are forgotten in each
/// [`KEEPALIVE_INTERVAL`].
pub const ERRORS_MAX: u32 = 1_024;
/// Calls received and answered in full that pay for one error: a connection that lives long, or carries the
/// calls of many, always has some that fail.
pub const ERROR_CALLS: u32 = 8;
/// Frames without progress for a call that a peer may send in a [`KEEPALIVE_INTERVAL`], beside those that its
/// calls pay for: PING, SETTINGS, PRIORITY, empty DATA, unknown frames, frames for streams that are gone.
/// Beyond that the connection is drained; beyond as many again, closed.
pub const OVERHEAD_FRAMES_MAX: u32 = 10_000;
/// Such frames that are paid for by each frame that starts a call, or carries its data in either direction.
/// Common clients send a PING with each read (to probe the bandwidth), a WINDOW_UPDATE on a stream that has
/// just ended, or an RST_STREAM for each call that they cancel.
pub const OVERHEAD_FRAMES_PAID: u32 = 4;
/// How long calls under way may take to end on a connection that is drained because of its peer.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of requests that a peer may send before they are read, for each call and for all calls of a
/// connection.
pub const WINDOW_BYTES: u32 = 1024 * 1024;
/// A message of an open call (one that needs no credential) at most, in bytes. The connection keeps it until
/// it is whole; a unary open call starts only then.
pub const OPEN_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Calls that a connection has under way at most before it has shown a valid credential.
pub const STRANGER_CALLS_MAX: usize = 64;
/// Bytes of requests that each connection may hold, whatever the others hold: enough for a probe.
pub const OWN_BYTES: usize = 12 * 1024;
/// Bytes that the budget for requests counts for each call under way beside its request: its task, and what
/// reads and writes its messages.
pub const CALL_BYTES: usize = 10 * 1024;
/// The same for an open call whose request is a stream. It starts with its head, since its caller may wait
/// for the head of the reply.
pub const OPEN_STREAM_BYTES: usize = 20 * 1024;
/// Bytes that the budget counts for a call whose request is still coming and that has not started, beside its
/// head.
pub const PENDING_CALL_BYTES: usize = 256;
/// The connection keeps a message of a stream until it is whole, unless it is longer than this. At most half
/// of the window may be unclaimed, so a peer can always send the rest of such a message.
pub const WHOLE_BYTES_MAX: usize = WINDOW_BYTES as usize / 4;
/// The same for a unary message. A service that reads a part of a message allocates room for all of it.
pub const SINGLE_BYTES_MAX: usize = 1024 * 1024;
/// A longer request takes the slow path. Shorter ones are buffered for the fast path.
pub const BUFFERED_BYTES_MAX: usize = 128 * 1024;
/// All buffered requests of a connection, in bytes: half of the window, so that other calls go on.
pub const BUFFERED_BYTES_ALL_MAX: usize = WINDOW_BYTES as usize / 2;
/// Bodies that are prefetched at a time.
pub const PREFETCH_MAX: usize = 16;
/// How long a request may take from its head to its end, unless it is a stream. Meanwhile its caller has a
/// slot and the connection keeps what has come.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read in a turn: a few hundred calls. The last read may exceed it.
pub const TURN_BYTES_MAX: usize = 32 * 1024;
/// Bytes that wait to be written to the network. Beyond this nothing is read, and calls send nothing.
pub const OUT_BYTES_MAX: usize = 128 * 1024;
/// Bytes of replies that wait for the peer's windows, of all calls of a connection. Beyond this nothing takes
/// the fast path, calls under way send nothing, and no call that may have a long reply starts to answer. Such
/// calls answer one at a time, so one reply may exceed it.
pub const REPLIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of its reply that a call may queue before they are sent. A single message may be longer.
pub const REPLY_BYTES_AHEAD: usize = 64 * 1024;
/// How long a peer may take to send the connection preface, of 24 bytes. Afterwards keepalive watches it.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is sent a PING after this time.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long its answer may take.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer with calls under way may take to acknowledge the first GOAWAY of a stop, before the second
/// one names the last call.
pub const GOAWAY_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for a peer without calls, or that has yet to send anything, so that it does not hold up the stop.
/// GOAWAY tells it that later calls were not processed.
pub const IDLE_GOAWAY_ACK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a peer may take to close its end, so that it reads the last frames.
pub const LINGER_TIME: Duration = Duration::from_secs(1);
/// The same for a peer that had no calls since the drain began.
pub const IDLE_LINGER_TIME: Duration = Duration::from_millis(250);

/// Why a connection bypasses the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// [`REPLIES_BYTES_MAX`] wait to be sent.
    RepliesPending,
    /// The request is longer than [`BUFFERED_BYTES_MAX`], or all buffered ones are longer than
    /// [`BUFFERED_BYTES_ALL_MAX`].
    RequestTooLong,
}

/// Answers calls where they are read, when it can do so without waiting. Each connection has its own.
pub trait FastPath {
    /// What admission learned, kept until the call is answered.
    type Pass;

    /// A batch of frames was read at this time, and is about to be processed.
    fn begin_batch(&mut self, at: Instant);

    /// The whole bodies that come next, in this order, of calls that may be admitted, so that data for all of
    /// them can be fetched together. There may be none. Implementations need not consume the iterator.
    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        drop(bodies);
    }

    /// Whether the head of a call that takes the slow path has a valid credential. It is called until one
    /// has, or a call was admitted.
    fn is_known(&mut self, head: &RequestHead) -> bool;

    /// Admits a call, by its head alone. `None`: it takes the slow path.
    fn admit(&mut self, head: &RequestHead) -> Option<Self::Pass>;

    /// The reply to a call, by its whole body, as the body of a gRPC reply whose status is OK. `None`: it
    /// takes the slow path after all.
    fn answer(&mut self, pass: &Self::Pass, body: &[u8]) -> Option<Bytes>;

    /// The connection sends a call down the slow path, before or after it was admitted.
    fn on_bypass(&mut self, head: &RequestHead, why: Bypass) {
        let _ = (head, why);
    }

    /// An admitted call will not be answered: it was cancelled, or failed.
    fn on_cancel(&mut self, pass: &Self::Pass);

    /// The caller, as a number. Callers take turns on a thread; all unknown ones are one caller.
    fn caller(&self) -> u64 {
        0
    }

    /// The batch is processed, and its replies are about to be written.
    fn end_batch(&mut self);
}

/// No fast path: every call goes to the service. Every connection counts as one that has shown a valid
/// credential, so the bounds for strangers do not apply.
#[derive(Clone, Copy, Debug)]
pub struct NoFastPath;

impl FastPath for NoFastPath {
    type Pass = ();

    fn begin_batch(&mut self, _: Instant) {}

    fn is_known(&mut self, _: &RequestHead) -> bool {
        true
    }

    fn admit(&mut self, _: &RequestHead) -> Option<()> {
        None
    }

    fn answer(&mut self, (): &(), _: &[u8]) -> Option<Bytes> {
        None
    }

    fn on_cancel(&mut self, (): &()) {}

    fn end_batch(&mut self) {}
}
