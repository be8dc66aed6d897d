//! The only file that builds a `Status`.
//!
//! Two audiences: the caller learns the reason, in a form that programs can act on (google.rpc ErrorInfo,
//! BadRequest, RetryInfo, after Google's AIP-193); the operator learns the cause, in the log. No cause
//! reaches a caller.

use std::collections::HashMap;
use std::time::Duration;

use keyward_core::decision::DenyReason;
use keyward_core::event::Revision;
use keyward_core::identity::IdentityName;
use keyward_core::record::{ForbiddenChange, LineRecord};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::pb;
use super::refusals;
use crate::authority::{AuthorityError, Exceeded, Resource, Violation};

/// The domain of every ErrorInfo.
pub const ERROR_DOMAIN: &str = "keyward";

/// How long a caller should wait before another try when too many calls of a kind are waiting.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// How long a caller should wait while another backup is being made.
const RETRY_BACKUP_AFTER: Duration = Duration::from_secs(10);

/// How long a caller should wait while the start waits for room on the disk.
const RETRY_ROOM_AFTER: Duration = Duration::from_secs(5);

const IDENTITY_ENDED: &str =
    "the certificate of the connection has ended or is not trusted any more, or the configuration gives it nothing";

/// Why a call is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request has another method than POST.
    #[error("not a POST")]
    NotPost,
    /// The request is not one of gRPC.
    #[error("not of gRPC")]
    NotGrpc,
    /// The caller's `grpc-timeout` is malformed.
    #[error("a malformed grpc-timeout")]
    BadTimeout,
    /// Health is asked for a service that there is not.
    #[error("no such service")]
    NoSuchService,
    /// The call carries no credential.
    #[error("no credential")]
    NoCredential,
    /// The credential is not a working key of tenant `system`.
    #[error("the credential is refused: {0:?}")]
    BadCredential(DenyReason),
    /// The call carries no credential, and the configuration does not name the identity of its connection.
    #[error("no credential, and an identity that is not in the configuration: {}", .0.as_ref().map_or("none", IdentityName::as_str))]
    UnknownIdentity(Option<IdentityName>),
    /// The listener also demands an identity that the configuration names.
    #[error("the connection has no identity that is in the configuration, and the listener demands one")]
    NoIdentity,
    /// The certificate of the connection is not good any more.
    #[error("the certificate of the connection is not good any more")]
    IdentityEnded,
    /// The request breaks rules.
    #[error("bad fields")]
    BadFields(Vec<Violation>),
    /// The data is still being loaded.
    #[error("starting")]
    Starting,
    /// The start goes on when there is room on the disk, and until then verdicts alone are answered.
    #[error("the disk is full, and the start waits for room")]
    StartNeedsRoom,
    /// The revision asked for has not been reached in time.
    #[error("the revision asked for was not reached in time")]
    RevisionNotReached,
    /// The revision is of changes that were lost: the log goes on from an older state since.
    #[error("revision {asked} was lost: the log goes on from revision {} since {}", line.ended, line.time)]
    LostRevision {
        /// The revision that was asked for.
        asked: Revision,
        /// Where the log goes on.
        line: LineRecord,
    },
    /// The request is too long.
    #[error("the request is longer than {max} bytes")]
    TooLong {
        /// How long it may be.
        max: usize,
    },
    /// The request was not whole so long after its headers.
    #[error("the request was not whole in time")]
    TooSlow {
        /// How long it may take.
        max: Duration,
    },
    /// The server holds as much of requests as it may.
    #[error("there is no room for the request")]
    NoRoom,
    /// A connection without a credential has too many calls under way.
    #[error("{max} calls are under way on a connection without a credential")]
    TooManyCalls {
        /// How many there may be.
        max: usize,
    },
    /// As many calls are under way as may be, or half as many of this caller.
    #[error("too many calls are under way, in all or of this caller")]
    TooManyCallsInAll,
    /// The filter of the log cannot be set.
    #[error("the filter of the log cannot be set here")]
    LogNotOurs,
    /// The caller has given the call up.
    #[error("the call was cancelled")]
    Cancelled,
    /// The body of a request is no row of gRPC's messages.
    #[error("the request cannot be read: {0}")]
    Unreadable(&'static str),
    /// The server stops while a stream is open.
    #[error("stopping")]
    Stopping,
    /// The caller waits no longer.
    #[error("the caller's deadline has passed")]
    DeadlineExceeded,
    /// The authority refused.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The status that tells a caller of a refusal; the cause of an internal one goes to the log.
#[must_use]
pub fn status(refusal: impl Into<Refusal>) -> Status {
    let refusal = refusal.into();
    let told = told(&refusal);
    // A stop is the operator's own doing, and ends many streams at a time.
    if told.code == Code::Unavailable && !matches!(refusal, Refusal::Stopping) && refusals::may_log() {
        tracing::warn!(cause = %chain(&refusal), reason = told.reason, "a call could not be answered");
    }
    let mut details = ErrorDetails::with_error_info(told.reason, ERROR_DOMAIN, metadata(&refusal));
    for violation in told.violations {
        details.add_bad_request_violation(&violation.field, &violation.rule);
    }
    if let Some(delay) = told.retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(told.code, told.message, details)
}

/// What programs are told besides the reason.
fn metadata(refusal: &Refusal) -> HashMap<String, String> {
    match refusal {
        Refusal::Authority(AuthorityError::SecretNotKept { tenant, key_id }) => {
            [("tenant", tenant.to_string()), ("key_id", key_id.to_string())]
                .map(|(name, of)| (name.to_owned(), of))
                .into()
        }
        _ => HashMap::new(),
    }
}

/// The same for one item of a batch or a stream.
#[must_use]
pub fn item_error(refusal: &Refusal) -> pb::VerifyError {
    let Told { code, reason, message, .. } = told(refusal);
    pb::VerifyError { code: code.into(), reason: reason.to_owned(), message }
}

/// What the caller is told.
struct Told<'a> {
    code: Code,
    reason: &'static str,
    message: String,
    violations: &'a [Violation],
    retry_after: Option<Duration>,
}

fn told(refusal: &Refusal) -> Told<'_> {
    let plain = |code, reason, message: &str| Told {
        code,
        reason,
        message: message.to_owned(),
        violations: &[],
        retry_after: None,
    };
    match refusal {
        // The codes of the first three are those of grpc-go.
        Refusal::NotPost => plain(Code::Internal, "NOT_POST", "a call of gRPC is a POST"),
        Refusal::NotGrpc => plain(Code::InvalidArgument, "NOT_GRPC", "the content-type must be application/grpc"),
        Refusal::BadTimeout => {
            plain(Code::Internal, "TIMEOUT_MALFORMED", "grpc-timeout must be 1 to 8 digits and one of H, M, S, m, u, n")
        }
        Refusal::NoSuchService => plain(Code::NotFound, "SERVICE_UNKNOWN", "service: there is no such service"),
        Refusal::NoCredential
        | Refusal::BadCredential(_)
        | Refusal::UnknownIdentity(_)
        | Refusal::NoIdentity
        | Refusal::IdentityEnded => unauthenticated(refusal),
        Refusal::BadFields(violations) => bad_fields(violations),
        Refusal::Starting => Told {
            retry_after: Some(RETRY_AFTER),
            ..plain(Code::Unavailable, "STARTING", "keyward is loading its data; try again")
        },
        Refusal::StartNeedsRoom => Told {
            retry_after: Some(RETRY_ROOM_AFTER),
            ..plain(
                Code::Unavailable,
                "DISK_FULL",
                "keyward was started on a full disk and answers verdicts alone until there is room; its log says more",
            )
        },
        Refusal::LostRevision { asked, line } => Told {
            message: format!(
                "min_revision {asked} is of a change that this log does not have: it was restored to revision \
                 {}; ask for what is needed again, and use the revisions of those answers",
                line.ended
            ),
            ..plain(Code::FailedPrecondition, "REVISION_OF_ANOTHER_LINE", "")
        },
        Refusal::RevisionNotReached => Told {
            retry_after: Some(RETRY_AFTER),
            ..plain(Code::FailedPrecondition, "REVISION_NOT_REACHED", "min_revision was not reached in time")
        },
        Refusal::TooLong { max } => {
            // The code that grpc-go, grpc-java and the C core have for the same.
            let message = format!("the request must be at most {max} bytes");
            plain(Code::ResourceExhausted, "REQUEST_TOO_LONG", &message)
        }
        Refusal::TooSlow { max } => {
            let message = format!("the request was not whole {} s after its headers", max.as_secs());
            plain(Code::DeadlineExceeded, "REQUEST_TOO_SLOW", &message)
        }
        Refusal::NoRoom => Told {
            retry_after: Some(RETRY_AFTER),
            ..plain(
                Code::ResourceExhausted,
                "NO_ROOM_FOR_REQUEST",
                "keyward holds as much of requests that are under way as it may; try again",
            )
        },
        Refusal::TooManyCalls { max } => {
            let message = format!("a connection may have {max} calls at a time until one of them has a credential");
            plain(Code::ResourceExhausted, "TOO_MANY_CALLS", &message)
        }
        Refusal::TooManyCallsInAll => Told {
            retry_after: Some(RETRY_AFTER),
            ..plain(
                Code::ResourceExhausted,
                "TOO_MANY_CALLS_IN_ALL",
                "as many calls are under way as there may be (slow_calls_max), or half as many are this caller's; try again",
            )
        },
        Refusal::LogNotOurs => plain(
            Code::FailedPrecondition,
            "LOG_NOT_OURS",
            "the log of this server is that of the program it is a part of",
        ),
        Refusal::Cancelled => plain(Code::Cancelled, "CANCELLED", "the call was cancelled"),
        // The code that the library has for the same.
        Refusal::Unreadable(why) => {
            plain(Code::Internal, "REQUEST_UNREADABLE", &format!("the request cannot be read: {why}"))
        }
        Refusal::Stopping => {
            plain(Code::Unavailable, "STOPPING", "keyward is stopping; open another stream and ask again there")
        }
        Refusal::DeadlineExceeded => {
            plain(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the call was not answered within its grpc-timeout")
        }
        Refusal::Authority(error) => told_by_authority(error),
    }
}

/// What a caller is told who is not authenticated.
fn unauthenticated(refusal: &Refusal) -> Told<'_> {
    let (reason, message) = match refusal {
        Refusal::BadCredential(reason) => ("CREDENTIAL_REFUSED", credential_message(*reason).to_owned()),
        Refusal::UnknownIdentity(name) => {
            let whose = match name {
                Some(name) => format!("{name} is in no [[identity]] of the configuration"),
                None => "the client certificate has neither one SPIFFE id nor one DNS name".to_owned(),
            };
            ("IDENTITY_UNKNOWN", format!("{whose}; without that, a call needs metadata 'authorization: Bearer <key>'"))
        }
        Refusal::NoIdentity => (
            "IDENTITY_MISSING",
            "besides a key, this listener demands a client certificate, or a user on a Unix socket, that is in an [[identity]] of \
             the configuration"
                .to_owned(),
        ),
        Refusal::IdentityEnded => ("IDENTITY_REFUSED", IDENTITY_ENDED.to_owned()),
        _ => ("CREDENTIAL_MISSING", "give a key of tenant 'system' as metadata 'authorization: Bearer <key>'".to_owned()),
    };
    Told { code: Code::Unauthenticated, reason, message, violations: &[], retry_after: None }
}

fn told_by_authority(error: &AuthorityError) -> Told<'_> {
    let (code, reason, message) = match error {
        AuthorityError::BadFields(violations) => return bad_fields(violations),
        AuthorityError::CallerRefused(reason) => {
            (Code::Unauthenticated, "CREDENTIAL_REFUSED", credential_message(*reason).to_owned())
        }
        AuthorityError::IdentityRefused => (Code::Unauthenticated, "IDENTITY_REFUSED", IDENTITY_ENDED.to_owned()),
        AuthorityError::Denied => {
            (Code::PermissionDenied, "ROLE_MISSING", "the caller holds no role for this".to_owned())
        }
        AuthorityError::NotFound(Resource::Key) => (Code::NotFound, "KEY_NOT_FOUND", "there is no such key".to_owned()),
        AuthorityError::NotFound(Resource::Tenant) => {
            (Code::NotFound, "TENANT_NOT_FOUND", "tenant: there is no such tenant".to_owned())
        }
        AuthorityError::AlreadyExists(Resource::Key) => {
            (Code::AlreadyExists, "KEY_EXISTS", "key_id: the tenant has a key of this id already".to_owned())
        }
        AuthorityError::AlreadyExists(Resource::Tenant) => {
            (Code::AlreadyExists, "TENANT_EXISTS", "tenant: there is a tenant of this id already".to_owned())
        }
        AuthorityError::Outdated => {
            (Code::Aborted, "ETAG_MISMATCH", "etag: it has changed meanwhile; read it again and decide anew".to_owned())
        }
        // Known to be ten minutes old only once it was looked up: to be asked for as something new.
        AuthorityError::Repeated(_) => (Code::Aborted, "REQUEST_FORGOTTEN", error.to_string()),
        AuthorityError::RequestIdReused => (Code::Aborted, "REQUEST_ID_REUSED", error.to_string()),
        AuthorityError::TooManyRequests => (Code::ResourceExhausted, "TOO_MANY_REQUEST_IDS", error.to_string()),
        AuthorityError::SecretNotKept { .. } => (Code::FailedPrecondition, "SECRET_NOT_KEPT", error.to_string()),
        AuthorityError::Forbidden(error @ ForbiddenChange::NoRotation) => {
            (Code::FailedPrecondition, "NO_ROTATION_PENDING", error.to_string())
        }
        AuthorityError::Forbidden(error) => (Code::FailedPrecondition, "STATE_FORBIDS", error.to_string()),
        AuthorityError::DeleteProtected => (Code::FailedPrecondition, "DELETE_PROTECTED", error.to_string()),
        AuthorityError::OwnKey => (Code::FailedPrecondition, "OWN_KEY", error.to_string()),
        AuthorityError::LastAdministrator | AuthorityError::SystemTenant => {
            (Code::FailedPrecondition, "LAST_ADMINISTRATOR", error.to_string())
        }
        AuthorityError::HeldOwner => (Code::PermissionDenied, "OWNER_HELD", error.to_string()),
        AuthorityError::EpochLowered { .. } => (Code::FailedPrecondition, "EPOCH_LOWERED", error.to_string()),
        AuthorityError::TooLarge { .. } => (Code::InvalidArgument, "KEY_TOO_LARGE", error.to_string()),
        AuthorityError::ChangeTooLarge { .. } => (Code::InvalidArgument, "CHANGE_TOO_LARGE", error.to_string()),
        AuthorityError::LimitReached { exceeded, violation } => {
            let reason = match exceeded {
                Exceeded::Tenants { .. } => "TOO_MANY_TENANTS",
                Exceeded::Owners { .. } => "TOO_MANY_OWNERS",
                Exceeded::Scopes { .. } => "TOO_MANY_SCOPES",
                Exceeded::Issuers { .. } => "TOO_MANY_ISSUERS",
            };
            let (message, violations) = (violation.to_string(), std::slice::from_ref(violation));
            return Told { code: Code::ResourceExhausted, reason, message, violations, retry_after: None };
        }
        AuthorityError::TooSparse => (Code::FailedPrecondition, "SELECTOR_TOO_SPARSE", error.to_string()),
        AuthorityError::Overloaded => {
            let message = "too many calls of this kind are waiting; try again".to_owned();
            let retry_after = Some(RETRY_AFTER);
            return Told { code: Code::ResourceExhausted, reason: "OVERLOADED", message, violations: &[], retry_after };
        }
        AuthorityError::BackupUnderWay => {
            let message = "another backup is being made; try again when it is done".to_owned();
            let retry_after = Some(RETRY_BACKUP_AFTER);
            let reason = "BACKUP_UNDER_WAY";
            return Told { code: Code::ResourceExhausted, reason, message, violations: &[], retry_after };
        }
        AuthorityError::BackupNeedsSecondFormat => (
            Code::FailedPrecondition,
            "BACKUP_NEEDS_FORMAT_2",
            "there are records that a backup of format 1 cannot have: a key was rotated, suspended until a time, \
             deleted or protected from that, was changed by an author that is no key, or a tenant, an owner or an issuer is or was \
             suspended; make one of format 2"
                .to_owned(),
        ),
        AuthorityError::BackupAborted(limit) => (Code::Aborted, "BACKUP_ABORTED", limit.to_string()),
        AuthorityError::BackupFailed(_) => {
            (Code::Unavailable, "BACKUP_FAILED", "the backup could not be made; keyward's log says why".to_owned())
        }
        AuthorityError::NoRoom => (
            Code::ResourceExhausted,
            "DISK_FULL",
            "keyward's disk has no room for this change; verdicts go on, and its log says more".to_owned(),
        ),
        AuthorityError::Entropy(_) => (
            Code::Unavailable,
            "RANDOMNESS_UNAVAILABLE",
            "keyward has no randomness and issues nothing; its log says why".to_owned(),
        ),
        AuthorityError::Store(_) => {
            (Code::Unavailable, "STORE_UNAVAILABLE", "keyward's store failed; its log says why".to_owned())
        }
    };
    Told { code, reason, message, violations: &[], retry_after: None }
}

fn bad_fields(violations: &[Violation]) -> Told<'_> {
    let message = violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("; ");
    Told { code: Code::InvalidArgument, reason: "BAD_FIELDS", message, violations, retry_after: None }
}

fn credential_message(reason: DenyReason) -> &'static str {
    match reason {
        DenyReason::Malformed => "the credential is not a key: it is incomplete or mistyped",
        DenyReason::Unknown => "the credential is not a key of tenant 'system'",
        DenyReason::RotatedOut => "the credential was replaced by a newer secret of the caller's key",
        DenyReason::OwnerSuspended => "the owner or the issuer of the caller's key is suspended",
        DenyReason::EpochRejected => "the credential was issued too early to be accepted any more",
        DenyReason::Disabled => "the caller's key is disabled",
        DenyReason::Suspended => "the caller's key is suspended",
        DenyReason::Revoked => "the caller's key is revoked",
        DenyReason::NotYetValid => "the caller's key is not valid yet",
        DenyReason::Expired => "the caller's key has expired",
        DenyReason::EnvironmentMismatch => "the caller's key is of another environment",
        DenyReason::AudienceMismatch => "the caller's key is for other audiences than 'keyward'",
        DenyReason::IpNotAllowed => "the caller's key may not be used from this address",
        DenyReason::ScopeMissing => "the caller's key lacks a scope",
    }
}

/// An error and what caused it, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No call makes so large a change yet.
    #[test]
    fn a_change_that_no_frame_takes_is_refused_as_an_invalid_argument() {
        let error = AuthorityError::ChangeTooLarge { bytes: 1_048_521, max: 1_048_520 };
        let told = told_by_authority(&error);
        assert_eq!((told.code, told.reason), (Code::InvalidArgument, "CHANGE_TOO_LARGE"));
        assert_eq!(told.message, "the change has 1048521 bytes in all, of at most 1048520: make it in parts");
    }
}
