//! HTTP/2 for a server of gRPC (RFC 9113), on connections that are there already.
//!
//! It does what gRPC needs and nothing beside: no push, no priorities, no CONNECT, no upgrade from HTTP/1. A
//! call that can be answered at once (see [`FastPath`]) is answered where its frames are read, from the bytes
//! that were read, and its reply is written straight behind the others. All other calls take the long way:
//! each is a task, with bodies that flow under HTTP/2's windows, owned by its connection.
//!
//! [`Connection`] is a connection's whole life, which may go on on another runtime than it began on. `frame`
//! and `hpack` read and write what goes over the wire, `head` is a request as far as its headers go, `conn`
//! knows the rules and does no I/O, `call` runs what takes the long way, which says by
//! `events` what it has to, `budget`
//! bounds what all connections hold of requests, `io` moves the bytes and keeps the time, and `busy_poll` says
//! when to wait awake.
//!
//! Everything that a peer can make grow has a bound, all of them here.

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

use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::body::{Incoming, Incomplete};
pub use self::budget::{Budget, Callers};
pub use self::error::{ConnError, ErrorCode};
pub use self::head::RequestHead;
pub use self::io::{CloseReason, Connection, Handlers, Shutdown};

/// Calls that a connection has under way at most. Further ones are refused with REFUSED_STREAM. The place of
/// a call that its caller has given up is free when the call has really ended.
pub const STREAMS_MAX: usize = 256;
/// The headers of a call at most, counted as SETTINGS_MAX_HEADER_LIST_SIZE does. Longer ones are answered
/// with status 431.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Frames that a header block comes in at most, of 16 KiB each. One that is too long for a head is read to its end,
/// field by field, so that it can be answered and those behind it can be read; at most 48 KiB of it are kept meanwhile.
pub const BLOCK_FRAMES_MAX: u32 = 16;
/// Resets that a peer may provoke by errors of its own, beside those that its calls pay for, before its connection is
/// drained (MadeYouReset, CVE-2025-8671). Every [`KEEPALIVE_INTERVAL`] half of them are forgotten.
pub const ERRORS_MAX: u32 = 1_024;
/// So many calls that came whole and were answered whole pay for one of them: a connection that lives long, or carries
/// the calls of many, always has some that fail.
pub const ERROR_CALLS: u32 = 8;
/// Frames that carry no call on and that a peer may send in [`KEEPALIVE_INTERVAL`] beside those that its
/// calls pay for: PING, SETTINGS, PRIORITY, empty DATA, what is unknown or comes for streams that are gone.
/// Beyond it the connection is drained; beyond it once more, closed.
pub const OVERHEAD_FRAMES_MAX: u32 = 10_000;
/// So many of them each frame pays for that begins a call, or carries data of one in either direction. Common
/// clients send a PING with each read (a probe of the bandwidth), a WINDOW_UPDATE on a stream that has just
/// ended, or an RST_STREAM for each call that they give up.
pub const OVERHEAD_FRAMES_PAID: u32 = 4;
/// How long calls under way may take to end on a connection that is drained for what its peer did.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of requests that a peer may send before they are read, for each call and for all calls of a connection.
pub const WINDOW_BYTES: u32 = 1024 * 1024;
/// A message of an open call (one that is answered without a credential) at most. It is kept by the
/// connection until it is whole; a call that is no stream has not begun before that.
pub const OPEN_MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// Calls that a connection has under way at most while it has not had a credential that works.
pub const STRANGER_CALLS_MAX: usize = 64;
/// What each connection may hold of requests, however much all others hold: enough for a probe.
pub const OWN_BYTES: usize = 12 * 1024;
/// What a call under way counts in the budget for requests beside the bytes of its request: its task, and
/// what reads and writes its messages.
pub const CALL_BYTES: usize = 10 * 1024;
/// The same for an open call whose request is a stream of messages: it begins with its head, since its caller
/// may wait for that of the reply.
pub const OPEN_STREAM_BYTES: usize = 20 * 1024;
/// What a call counts in the budget whose request is on its way and that has not begun, beside its head.
pub const PENDING_CALL_BYTES: usize = 256;
/// A message of a stream is kept by the connection until it is whole, unless it is longer. Half of the window
/// may be untold to the peer; so a peer can always send the rest of one.
pub const WHOLE_BYTES_MAX: usize = WINDOW_BYTES as usize / 4;
/// The same of a message of a call that is no stream. Whoever reads a part would make room for all of it.
pub const SINGLE_BYTES_MAX: usize = 1024 * 1024;
/// A request that is gathered to be answered at once: longer ones take the long way.
pub const BUFFERED_BYTES_MAX: usize = 128 * 1024;
/// All of them on a connection: half of the window, so that other calls go on.
pub const BUFFERED_BYTES_ALL_MAX: usize = WINDOW_BYTES as usize / 2;
/// Bodies that are looked at before the first of them is answered.
pub const PREFETCH_MAX: usize = 16;
/// How long a request may take from its head to its end, unless it is a stream of messages. A caller holds a
/// place, and what was sent of the request is kept, for as long.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes that are read in a turn: a few hundred calls. One read more may go beyond it.
pub const TURN_BYTES_MAX: usize = 32 * 1024;
/// Bytes that wait to be written to the network. Beyond it nothing is read, and no call says more.
pub const OUT_BYTES_MAX: usize = 128 * 1024;
/// Bytes of replies that wait for the peer's windows, of all calls of a connection. Beyond it no call is answered at
/// once, a call that is under way says no more, and one whose reply may be long is not begun to be answered; these are
/// answered one at a time, so that one reply may go beyond it.
pub const REPLIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of its reply that a call may say before they are sent; one message may be longer.
pub const REPLY_BYTES_AHEAD: usize = 64 * 1024;
/// A silent connection is asked whether it is still there.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer with calls under way may take to hear of a stop, before it is told which calls were the last.
pub const GOAWAY_ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a peer may take that has none, or has yet to say anything: it must not hold up the stop. It learns of a
/// call that it begins later that nobody has seen it.
pub const IDLE_GOAWAY_ACK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a peer may take to close its end, so that it reads what it was told last.
pub const LINGER_TIME: Duration = Duration::from_secs(1);
/// How long one may take that had no calls since it was told of a stop.
pub const IDLE_LINGER_TIME: Duration = Duration::from_millis(250);

/// Why a connection has no call answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// [`REPLIES_BYTES_MAX`] wait.
    RepliesPending,
    /// Its request is longer than [`BUFFERED_BYTES_MAX`], or all together than [`BUFFERED_BYTES_ALL_MAX`].
    RequestTooLong,
}

/// Answers calls where they are read, if that can be done at once. Each connection has its own.
pub trait FastPath {
    /// What admitted a call, until it is answered.
    type Pass;

    /// Frames have been read, at this time, and are gone through now.
    fn begin_batch(&mut self, at: Instant);

    /// Bodies that were read and come next, whole and in this order, of calls that may be answered at once: what their
    /// answers take can be got for all of them together. It may be told of none, and need not take any.
    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        drop(bodies);
    }

    /// Whether the head of a call that is not answered at once has a credential that works. It is asked until
    /// one has, or a call was admitted: then its connection is no stranger's.
    fn is_known(&mut self, head: &RequestHead) -> bool;

    /// Whether a call may be answered at once, by its head alone.
    fn admit(&mut self, head: &RequestHead) -> Option<Self::Pass>;

    /// The reply to a call by its whole body, as the body of a reply of gRPC whose status is OK. `None`: it
    /// takes the long way after all.
    fn answer(&mut self, pass: &Self::Pass, body: &[u8]) -> Option<Bytes>;

    /// A call takes the long way by its connection's doing, before or after it was admitted.
    fn on_bypass(&mut self, head: &RequestHead, why: Bypass) {
        let _ = (head, why);
    }

    /// A call that was admitted will not be answered: its caller has given it up, or it failed.
    fn on_cancel(&mut self, pass: &Self::Pass);

    /// Whose calls these are, as a number: callers take turns on a thread, and all who are not known are one of them.
    fn caller(&self) -> u64 {
        0
    }

    /// What was read is gone through, and the replies are about to be written.
    fn end_batch(&mut self);
}
