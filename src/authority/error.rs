//! Errors of the authority.

use std::fmt;

use keyward_core::access::{Denied, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::DenyReason;
use keyward_core::entropy::EntropyError;
use keyward_core::event::Revision;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::ForbiddenChange;

use crate::fair::Crowded;
use crate::store::{BackupLimit, CommitError, Exceeded, StoreError};

/// The kind of resource that a call was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A key.
    Key,
    /// A tenant.
    Tenant,
}

/// A field that breaks its rule. It has the field and the rule, never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as a path in the request.
    pub field: String,
    /// What it must be.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.rule)
    }
}

/// Why a call failed. It has changed nothing, except that after [`AuthorityError::Store`] this may be
/// unknown.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Fields break their rules.
    #[error("{}", .0.iter().map(Violation::to_string).collect::<Vec<_>>().join("; "))]
    BadFields(Vec<Violation>),
    /// The caller's key has stopped working since the call was admitted.
    #[error("the caller's key is refused: {0:?}")]
    CallerRefused(DenyReason),
    /// The identity of the caller's connection has ended since the call was admitted.
    #[error("the identity of the caller's connection is refused")]
    IdentityRefused,
    /// The caller has no role for the call.
    #[error("the caller holds no role for this")]
    Denied,
    /// There is no such resource, or the caller may not know that there is.
    #[error("not found")]
    NotFound(Resource),
    /// There is such a resource already.
    #[error("it exists already")]
    AlreadyExists(Resource),
    /// The etag is not that of the current version, or too many other changes of the key came in between.
    #[error("the key has changed meanwhile")]
    Outdated,
    /// The key's state forbids it.
    #[error(transparent)]
    Forbidden(#[from] ForbiddenChange),
    /// The key is protected from deletion.
    #[error("the key is delete_protected: take that back first, by UpdateKey with delete_protected false")]
    DeleteProtected,
    /// A key may not change what it may do itself, nor end the secret that it calls with.
    #[error(
        "a key cannot change its own state, scopes, networks, audiences or times, nor end the secret that it calls \
         with, nor have itself refused for its owner, its issuer or its secret's time of issue; use another key"
    )]
    OwnKey,
    /// The key's owner is suspended, or refuses its secret: to move it away takes the right to resume it.
    #[error(
        "key.owner: the owner that the key has now is suspended, or refuses a secret of it by its epoch: to give it \
         another owner takes a role that changes states too, such as keyward.operator"
    )]
    HeldOwner,
    /// Tenant `system` cannot be suspended.
    #[error(
        "tenant: 'system' cannot be suspended: its keys are those of Keyward's own callers, and nobody would be left \
         who could resume it; disable callers, or suspend an owner of them"
    )]
    SystemTenant,
    /// An epoch only grows.
    #[error("reject_issued_before: it is later already, {later}, and only grows")]
    EpochLowered {
        /// The present one.
        later: UnixMillis,
    },
    /// The same request was made in the change of this revision. A caller is told what it came to instead.
    #[error("the request was made before, in revision {0}")]
    Repeated(Revision),
    /// The caller used the request id for another request.
    #[error("request_id: it was used for another request in the last ten minutes; choose a new one for each change")]
    RequestIdReused,
    /// As many requests are remembered as may be.
    #[error("as many requests with a request_id are remembered as may be; without one, the change is made")]
    TooManyRequests,
    /// The request was made before, and the secret that it issued is not kept.
    #[error(
        "the first call of this request_id issued key {key_id} of tenant {tenant}, and only its own reply had the \
         secret: rotate the key for another one, or revoke it"
    )]
    SecretNotKept {
        /// The tenant.
        tenant: TenantId,
        /// The key.
        key_id: KeyId,
    },
    /// No lasting administrator would be left, who could make another one.
    #[error(
        "no lasting administrator would be left: make another one first, a key of tenant 'system' with keyward.admin that has no \
         expire_time, no allowed_cidrs and no audiences but 'keyward'; the last one can be rotated with an \
         overlap, while no rotation of it is pending"
    )]
    LastAdministrator,
    /// Each field is within its limit, but the record is too large.
    #[error("the key has {bytes} bytes in all, of at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Each record is within its limit, but the change is too large to be made at once.
    #[error("the change has {bytes} bytes in all, of at most {max}: make it in parts")]
    ChangeTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The change needs a name that is not in use yet, and the limit for names of its kind is reached.
    #[error("{violation}")]
    LimitReached {
        /// The limit.
        exceeded: Exceeded,
        /// The field, and the rule.
        violation: Violation,
    },
    /// Too many calls of this kind wait, in all or of this caller.
    #[error("too many calls of this kind are waiting")]
    Overloaded,
    /// Too few keys of a list meet all of its conditions.
    #[error(
        "selector: each of these conditions has many keys, and all of them together next to none: give the keys you look for one \
         label of their own and list by that, or list by one condition and compare the rest yourself"
    )]
    TooSparse,
    /// The disk is full.
    #[error("the disk has no room for the change")]
    NoRoom,
    /// Another backup is being made.
    #[error("another backup is being made")]
    BackupUnderWay,
    /// The backup exceeded a limit.
    #[error(transparent)]
    BackupAborted(BackupLimit),
    /// There are records that a backup of format 1 cannot have.
    #[error("there are records that a backup of format 1 cannot have")]
    BackupNeedsSecondFormat,
    /// The backup failed.
    #[error("the backup failed: {0}")]
    BackupFailed(String),
    /// The source of randomness failed.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for AuthorityError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Overloaded => Self::Overloaded,
            StoreError::TooSparse => Self::TooSparse,
            error @ (StoreError::Closed | StoreError::Engine(_) | StoreError::Decode(_)) => Self::Store(error),
        }
    }
}

impl From<Crowded> for AuthorityError {
    fn from(_: Crowded) -> Self {
        Self::Overloaded
    }
}

impl AuthorityError {
    /// A field breaks its rule.
    pub fn bad_field(field: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::BadFields(vec![Violation { field: field.into(), rule: rule.into() }])
    }

    /// The error for a caller who is denied. A resource that the caller may not see is answered as if it did
    /// not exist.
    #[must_use]
    pub fn from_denial(denied: Denied, resource: Resource) -> Self {
        match denied {
            Denied::Role => Self::Denied,
            Denied::NotVisible => Self::NotFound(resource),
        }
    }

    fn from_exceeded(exceeded: Exceeded) -> Self {
        let (field, rule) = match exceeded {
            Exceeded::Tenants { max } => (
                "tenant".to_owned(),
                format!("would be one more than {max} tenants, which is all there may be (tenants_max)"),
            ),
            Exceeded::Owners { max } => (
                "owner".to_owned(),
                format!(
                    "must be one that the tenant's keys have already: there may be {max} different ones (owners_per_tenant_max)"
                ),
            ),
            Exceeded::Issuers { max } => (
                "issuer".to_owned(),
                format!("must be one that has an epoch already: {max} have one, which is all that may"),
            ),
            Exceeded::Scopes { max, nth } => (
                format!("scopes[{nth}]"),
                format!(
                    "must be one that the tenant's keys have already: there may be {max} different ones (scopes_per_tenant_max)"
                ),
            ),
        };
        Self::LimitReached { exceeded, violation: Violation { field, rule } }
    }

    /// The same error with `prefix` before the path of its field, such as `key.`.
    #[must_use]
    pub(super) fn with_field_prefix(self, prefix: &str) -> Self {
        match self {
            Self::LimitReached { exceeded, violation: Violation { field, rule } } => {
                Self::LimitReached { exceeded, violation: Violation { field: format!("{prefix}{field}"), rule } }
            }
            other => other,
        }
    }

    pub(super) fn from_commit(error: CommitError, resource: Resource) -> Self {
        match error {
            CommitError::Unauthorized(Unauthorized::Key(reason)) => Self::CallerRefused(reason),
            CommitError::Unauthorized(Unauthorized::Identity) => Self::IdentityRefused,
            CommitError::Unauthorized(Unauthorized::Role) => Self::Denied,
            CommitError::Unauthorized(Unauthorized::HeldOwner) => Self::HeldOwner,
            CommitError::Repeated(revision) => Self::Repeated(revision),
            CommitError::RequestIdReused => Self::RequestIdReused,
            CommitError::TooManyRequests => Self::TooManyRequests,
            CommitError::Exists => Self::AlreadyExists(resource),
            CommitError::Outdated => Self::Outdated,
            CommitError::TooLarge { bytes } => Self::TooLarge { bytes, max: RECORD_BYTES_MAX },
            CommitError::Unstorable => Self::Store(StoreError::Engine(CommitError::Unstorable.to_string())),
            CommitError::TooLong { bytes, max } => Self::ChangeTooLarge { bytes, max },
            CommitError::Bounded(exceeded) => Self::from_exceeded(exceeded),
            CommitError::LastAdministrator => Self::LastAdministrator,
            CommitError::OwnKey => Self::OwnKey,
            CommitError::Overloaded => Self::Overloaded,
            CommitError::DiskFull => Self::NoRoom,
            CommitError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_no_frame_takes_is_told_from_a_key_that_is_too_large() {
        let error = |error| AuthorityError::from_commit(error, Resource::Key);
        let change = error(CommitError::TooLong { bytes: 1_048_521, max: 1_048_520 });
        assert!(matches!(change, AuthorityError::ChangeTooLarge { bytes: 1_048_521, max: 1_048_520 }), "{change}");
        let key = error(CommitError::TooLarge { bytes: 5_000 });
        assert!(matches!(key, AuthorityError::TooLarge { bytes: 5_000, .. }), "{key}");
    }
}
