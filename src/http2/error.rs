//! Error codes, and how far an error reaches (RFC 9113, sections 5.4 and 7).

use std::fmt;

/// An error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Nothing is wrong.
    NoError = 0,
    /// A rule that has no code of its own is broken.
    Protocol = 1,
    /// Something failed here.
    Internal = 2,
    /// More was sent than a window allows, or a window is too large.
    FlowControl = 3,
    /// A frame for a stream that has ended.
    StreamClosed = 5,
    /// A frame of a length that it must not have.
    FrameSize = 6,
    /// The call was not begun, and may be tried again.
    RefusedStream = 7,
    /// What header blocks are read by is lost.
    Compression = 9,
    /// The peer makes more work than calls need.
    EnhanceYourCalm = 11,
}

/// An error that ends its connection, and what the peer is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnError {
    /// The code.
    pub code: ErrorCode,
    /// What it is, for whoever looks for the cause.
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
