//! What happens on a connection, for metrics and logs.

use super::error::ErrorCode;
use super::io::CloseReason;

/// Is told of what happens on one connection.
///
/// Its methods do nothing by default. They are called where frames are processed, so they must not wait.
/// [`Observer::transferred`] is called after each poll that moved bytes; the others are rarer.
pub trait Observer {
    /// The connection is made.
    fn opened(&mut self) {}

    /// The connection has closed. `None`: in order, or because it was dropped.
    fn closed(&mut self, why: Option<&CloseReason>) {
        let _ = why;
    }

    /// A stream was reset here.
    fn reset_sent(&mut self, code: ErrorCode) {
        let _ = code;
    }

    /// A stream was reset by the peer, with an error code of RFC 9113, section 7, or an unknown one.
    fn reset_received(&mut self, code: u32) {
        let _ = code;
    }

    /// A call was refused with REFUSED_STREAM. [`Observer::reset_sent`] is called too.
    fn stream_refused(&mut self, why: Refused) {
        let _ = why;
    }

    /// The connection is drained because of its peer. It is told once for a connection; if the peer goes on,
    /// [`Observer::closed`] has the error.
    fn flooded(&mut self, by: Flood) {
        let _ = by;
    }

    /// GOAWAY was sent.
    fn goaway_sent(&mut self, code: ErrorCode) {
        let _ = code;
    }

    /// GOAWAY was received, with an error code of RFC 9113, section 7, or an unknown one.
    fn goaway_received(&mut self, code: u32) {
        let _ = code;
    }

    /// Bytes were read from the network or written to it: the sums of one poll of the connection.
    fn transferred(&mut self, received: usize, sent: usize) {
        let _ = (received, sent);
    }
}

/// Why a call is refused with REFUSED_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// [`Limits::streams_max`](super::Limits::streams_max) calls are under way.
    TooManyStreams,
    /// The connection has shown no valid credential, and
    /// [`Limits::stranger_refusals_max`](super::Limits::stranger_refusals_max) of its calls were refused with
    /// a status before.
    TooManyRefusals,
}

/// What a peer sends too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames without progress for a call: see
    /// [`Limits::overhead_frames_max`](super::Limits::overhead_frames_max).
    OverheadFrames,
    /// Errors of its own: see [`Limits::errors_max`](super::Limits::errors_max).
    Errors,
}

/// Does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
