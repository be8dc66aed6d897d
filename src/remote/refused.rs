//! What a server says when it refuses a call, as programs can act on it.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A refusal.
#[derive(Debug)]
pub struct Refused {
    /// The call.
    pub call: &'static str,
    /// The least role that may make the call.
    pub role: &'static str,
    /// What kind of refusal it is.
    pub kind: RefusedKind,
    /// The code of gRPC.
    pub code: Code,
    /// The reason of ErrorInfo, such as KEY_NOT_FOUND. Empty where the refusal is not Keyward's.
    pub reason: String,
    /// The reason for people.
    pub message: String,
    /// The fields at fault, each with what it must be.
    pub violations: Vec<(String, String)>,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// The request breaks rules, whatever there is.
    BadRequest,
    /// What the request names is not there.
    NotFound,
    /// The caller may not do this, or is not known.
    Denied,
    /// What is there forbids it.
    Conflict,
    /// Not now.
    Unavailable,
    /// Anything else.
    Other,
}

impl Refused {
    /// Reads the status that a server answered with.
    pub(super) fn read(call: &'static str, role: &'static str, status: &Status) -> Self {
        let details = status.get_error_details();
        let violations = details.bad_request().map(|bad| &bad.field_violations[..]).unwrap_or_default();
        let kind = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => RefusedKind::BadRequest,
            Code::NotFound => RefusedKind::NotFound,
            Code::Unauthenticated | Code::PermissionDenied => RefusedKind::Denied,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => RefusedKind::Conflict,
            Code::Unavailable | Code::ResourceExhausted => RefusedKind::Unavailable,
            _ => RefusedKind::Other,
        };
        Self {
            call,
            role,
            kind,
            code: status.code(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            violations: violations.iter().map(|bad| (bad.field.clone(), bad.description.clone())).collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
        }
    }

    /// Whether the server, or something before it, could not answer at all.
    pub(super) fn is_unavailable(&self) -> bool {
        self.code == Code::Unavailable
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, reason, message, .. } = self;
        match &**reason {
            "" => write!(f, "{call}: {message} ({code:?})"),
            reason => write!(f, "{call}: {message} ({reason})"),
        }
    }
}
