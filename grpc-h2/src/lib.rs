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
//! `limits` has all other bounds, `read_turns` shares a thread among callers, `io` moves bytes and keeps the
//! time, `observer` tells of what happens, and `busy_poll` says when to poll instead of sleeping.
//!
//! Everything that a peer can make grow has a bound: see [`Limits`] and [`Budget`].

mod body;
mod budget;
mod buffer;
mod busy_poll;
mod call;
mod conn;
mod error;
mod events;
mod frame;
#[cfg(feature = "_fuzz")]
pub mod fuzz_targets;
mod head;
mod hpack;
mod io;
mod limits;
mod observer;
mod read_turns;
mod reply_budget;
#[cfg(feature = "testing")]
pub mod testing;

use std::time::Instant;

use bytes::Bytes;

pub use self::body::{Incoming, Incomplete};
pub use self::budget::{Budget, Callers};
pub use self::call::{CallKind, Runs, Runtimes};
pub use self::error::{ConnError, ErrorCode};
pub use self::head::RequestHead;
pub use self::io::{CloseReason, Connection, Handlers, Shutdown};
pub use self::limits::{Limits, LimitsError, SharedLimits};
pub use self::observer::{Flood, NoObserver, Observer, Refused};

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

/// Why a connection bypasses the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// [`Limits::replies_bytes_max`] wait to be sent.
    RepliesPending,
    /// The request is longer than [`Limits::buffered_bytes_max`], or all buffered ones are longer than
    /// [`Limits::buffered_bytes_all_max`].
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
