//! Error codes, and connection errors (RFC 9113, sections 5.4 and 7).

use std::fmt;

/// An error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Nothing is wrong.
    NoError = 0,
    /// A rule without a code of its own is broken.
    Protocol = 1,
    /// Something failed in this server.
    Internal = 2,
    /// More was sent than a window allows, or a window is too large.
    FlowControl = 3,
    /// A frame came for a stream that has ended.
    StreamClosed = 5,
    /// A frame has an invalid length.
    FrameSize = 6,
    /// The call was not started, and may be tried again.
    RefusedStream = 7,
    /// The state of header compression is lost.
    Compression = 9,
    /// The peer makes more work than its calls need.
    EnhanceYourCalm = 11,
}

/// An error that closes the connection. The peer is sent both fields in GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnError {
    /// The code.
    pub code: ErrorCode,
    /// What went wrong, for the operator.
    pub what: &'static str,
}

impl fmt::Display for ConnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.what, self.code)
    }
}

impl ConnError {
    pub(super) const fn new(code: ErrorCode, what: &'static str) -> Self {
        Self { code, what }
    }

    pub(super) const fn protocol(what: &'static str) -> Self {
        Self::new(ErrorCode::Protocol, what)
    }

    pub(super) const fn size(what: &'static str) -> Self {
        Self::new(ErrorCode::FrameSize, what)
    }

    pub(super) const fn enhance_your_calm(what: &'static str) -> Self {
        Self::new(ErrorCode::EnhanceYourCalm, what)
    }
}
