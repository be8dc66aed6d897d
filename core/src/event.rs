//! What the log is made of: revisions and changes.

use std::fmt;
use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::record::{IssuerRecord, KeyRecord, LineRecord, OwnerRecord, PurgeMark, TenantRecord};

/// A position in the log. It only grows; 0 is before the first change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of the next change. It saturates: only damaged bytes have the last one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One durable change: the records that it wrote.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its position in the log.
    pub revision: Revision,
    /// The records as they are from then on.
    pub records: Vec<Record>,
}

/// A record of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A key.
    Key(Arc<KeyRecord>),
    /// A tenant.
    Tenant(Arc<TenantRecord>),
    /// An owner.
    Owner(Arc<OwnerRecord>),
    /// An issuer.
    Issuer(Arc<IssuerRecord>),
    /// That digests lead nowhere any more.
    Purged(Arc<PurgeMark>),
    /// The beginning of a line.
    Line(Arc<LineRecord>),
}

impl Record {
    /// The time of its last change.
    #[must_use]
    pub fn time(&self) -> UnixMillis {
        match self {
            Self::Key(key) => key.updated.time,
            Self::Tenant(tenant) => tenant.updated.as_ref().unwrap_or(&tenant.created).time,
            Self::Owner(owner) => owner.updated.time,
            Self::Issuer(issuer) => issuer.updated.time,
            Self::Purged(mark) => mark.time,
            Self::Line(line) => line.time,
        }
    }

    /// The revision of its last change. That of a line is its first.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Key(key) => key.revision,
            Self::Tenant(tenant) => tenant.revision,
            Self::Owner(owner) => owner.revision,
            Self::Issuer(issuer) => issuer.revision,
            Self::Purged(mark) => mark.revision,
            Self::Line(line) => line.base.next(),
        }
    }
}
