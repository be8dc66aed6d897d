//! What the log is made of: revisions and changes.

use std::fmt;
use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::record::{KeyRecord, TenantRecord};

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

/// A record of either kind.
#[derive(Clone, Debug)]
pub enum Record {
    /// A key.
    Key(Arc<KeyRecord>),
    /// A tenant.
    Tenant(Arc<TenantRecord>),
}

impl Record {
    /// The time of its last change.
    #[must_use]
    pub fn time(&self) -> UnixMillis {
        match self {
            Self::Key(key) => key.updated.time,
            Self::Tenant(tenant) => tenant.created.time,
        }
    }
}
