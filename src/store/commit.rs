//! A change as an engine commits it, and why it does not.

use keyward_core::access::{Authorization, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, TenantRecord};

use super::{Exceeded, RetryEntry, StoreError};

/// A change, and who makes it.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Who.
    pub actor: ActorId,
    /// What the caller must still be authorized for when the change is made. `None`: Keyward makes it itself.
    pub authorization: Option<Authorization>,
    /// The call, such as `DisableKey`.
    pub method: &'static str,
    /// What it is done to: `<tenant>/<key_id>` or `<tenant>`.
    pub target: String,
    /// When.
    pub time: UnixMillis,
    /// The change may turn a verdict from allow to deny ([`keyward_core::narrowing::narrows`]). It overtakes
    /// all other changes, and is made even when the disk is nearly full.
    pub narrows: bool,
    /// The change overtakes all others, whether or not it narrows: it gives no power, and its caller means to
    /// take some. It is made with little disk space, but not with the last, which is reserved for narrowings.
    pub urgent: bool,
    /// The records to write.
    pub writes: Vec<RecordWrite>,
    /// How its request is recognised when it is asked for again, and the sealed part of the reply that is
    /// kept for that. `None`: not at all.
    pub retry: Option<RetryEntry>,
}

impl Commit {
    /// Whether it takes power away, or its caller means to.
    pub(crate) fn takes_power(&self) -> bool {
        self.narrows || self.urgent
    }

    /// The clock's reading at the request; without a caller, the time of the change.
    pub(crate) fn clock(&self) -> UnixMillis {
        self.authorization.as_ref().map_or(self.time, Authorization::clock)
    }
}

/// A record to write, with its precondition.
#[derive(Clone, Debug)]
pub enum RecordWrite {
    /// A key that must not exist yet: neither its id nor its digest.
    NewKey(Box<KeyRecord>),
    /// A key whose current revision must be that of the record. Its id, tenant and secrets stay as they are.
    Key(Box<KeyRecord>),
    /// The same, with other secrets. New ones must not exist yet; those that it has no more lead nowhere from
    /// then on.
    RotatedKey(Box<KeyRecord>),
    /// A key that is to be gone for good, with all its secrets. Its id stays taken until nothing that is kept
    /// is older than this change.
    Purge {
        /// The tenant.
        tenant: TenantId,
        /// The key.
        key_id: KeyId,
        /// Its current revision.
        revision: Revision,
    },
    /// A tenant that must not exist yet.
    NewTenant(Box<TenantRecord>),
    /// A tenant whose current revision must be that of the record.
    Tenant(Box<TenantRecord>),
    /// An owner whose current revision must be that of the record; 0: there is no record of it yet.
    Owner(Box<OwnerRecord>),
    /// An issuer, likewise.
    Issuer(Box<IssuerRecord>),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The caller is no longer authorized for the change.
    #[error(transparent)]
    Unauthorized(#[from] Unauthorized),
    /// The same request of this caller was made in the change of this revision.
    #[error("it was made already, in revision {0}")]
    Repeated(Revision),
    /// The caller used the request id for something else.
    #[error("the request id was used for another request")]
    RequestIdReused,
    /// As many requests are remembered as may be, or sealed replies take as much space as they may.
    #[error("too many requests are remembered")]
    TooManyRequests,
    /// The key or tenant exists already, or its id is still taken by one that was purged.
    #[error("it exists already")]
    Exists,
    /// The key has another revision than the commit expects.
    #[error("it has changed meanwhile")]
    Outdated,
    /// The record is too large to store.
    #[error("the record has {bytes} bytes, of at most {}", keyward_core::limits::RECORD_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The record has a value that cannot be stored: a time of 0, or an empty name.
    #[error("the record has a time of 0 or an empty name, which cannot be stored")]
    Unstorable,
    /// All records of the commit together are too large for one frame of the journal.
    #[error("the change has {bytes} bytes, of at most {max}")]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The commit brings a new name into use, and the tenant has as many as it may have; or there may be no
    /// more tenants.
    #[error("{0}")]
    Bounded(Exceeded),
    /// The commit would remove the last lasting administrator.
    #[error("no lasting administrator would be left")]
    LastAdministrator,
    /// The commit would make the caller's own key be refused.
    #[error("the caller's own key would be refused")]
    OwnKey,
    /// The queue of commits is full.
    #[error("too many changes are waiting")]
    Overloaded,
    /// The disk has no room.
    #[error("the disk has no room for the change")]
    DiskFull,
    /// The engine failed or is closing.
    #[error(transparent)]
    Store(#[from] StoreError),
}
