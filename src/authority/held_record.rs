//! The records that have a hold: of tenants, owners and issuers.

use std::sync::Arc;

use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{AuditStamp, Hold, IssuerRecord, OwnerRecord, TenantRecord};

use super::{AuthorityError, ISSUER, Resource};
use crate::index::Index;
use crate::store::{RecordWrite, Store};

/// The name of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerName {
    /// The tenant.
    pub tenant: TenantId,
    /// The owner of its keys.
    pub owner: String,
}

/// A record with a hold.
pub(super) trait HeldRecord: Clone + Send + Sync {
    type Name: Sync;

    /// Reads one. Of an owner or an issuer that has none, one that holds nothing.
    fn read(
        store: &dyn Store,
        name: &Self::Name,
        by: &AuditStamp,
    ) -> impl Future<Output = Result<Self, AuthorityError>> + Send;
    fn target(name: &Self::Name) -> String;
    /// The record in a change, if it is of this kind.
    fn of(record: &Record) -> Option<Self>;
    fn hold(&self) -> &Hold;
    fn hold_mut(&mut self) -> &mut Hold;
    fn revision(&self) -> Revision;
    fn set_revision(&mut self, revision: Revision);
    fn set_updated(&mut self, by: AuditStamp);
    fn record(self) -> Record;
    fn write(self) -> RecordWrite;
    /// The secrets that are kept of the keys that it is about.
    fn secrets(&self, index: &Index) -> usize;
}

/// What every such record has in fields of the same names.
macro_rules! held_fields {
    () => {
        fn hold(&self) -> &Hold {
            &self.hold
        }

        fn hold_mut(&mut self) -> &mut Hold {
            &mut self.hold
        }

        fn revision(&self) -> Revision {
            self.revision
        }

        fn set_revision(&mut self, revision: Revision) {
            self.revision = revision;
        }
    };
}

impl HeldRecord for TenantRecord {
    type Name = TenantId;

    fn of(record: &Record) -> Option<Self> {
        if let Record::Tenant(found) = record { Some(Self::clone(found)) } else { None }
    }

    async fn read(store: &dyn Store, name: &TenantId, _: &AuditStamp) -> Result<Self, AuthorityError> {
        let found = store.tenant(name).await?.ok_or(AuthorityError::NotFound(Resource::Tenant))?;
        Ok(Self::clone(&found))
    }

    fn target(name: &TenantId) -> String {
        name.to_string()
    }

    held_fields!();

    fn set_updated(&mut self, by: AuditStamp) {
        self.updated = Some(by);
    }

    fn record(self) -> Record {
        Record::Tenant(Arc::new(self))
    }

    fn write(self) -> RecordWrite {
        RecordWrite::Tenant(Box::new(self))
    }

    fn secrets(&self, index: &Index) -> usize {
        index.secrets_of_tenant(&self.tenant)
    }
}

impl HeldRecord for OwnerRecord {
    type Name = OwnerName;

    fn of(record: &Record) -> Option<Self> {
        if let Record::Owner(found) = record { Some(Self::clone(found)) } else { None }
    }

    async fn read(store: &dyn Store, name: &OwnerName, by: &AuditStamp) -> Result<Self, AuthorityError> {
        let OwnerName { tenant, owner } = name.clone();
        let found = store.owner(&tenant, &owner).await?;
        let none = Self { tenant, owner, hold: Hold::default(), updated: by.clone(), revision: Revision(0) };
        Ok(found.map_or(none, |found| Self::clone(&found)))
    }

    fn target(OwnerName { tenant, owner }: &OwnerName) -> String {
        format!("{tenant}/owner:{owner}")
    }

    held_fields!();

    fn set_updated(&mut self, by: AuditStamp) {
        self.updated = by;
    }

    fn record(self) -> Record {
        Record::Owner(Arc::new(self))
    }

    fn write(self) -> RecordWrite {
        RecordWrite::Owner(Box::new(self))
    }

    fn secrets(&self, index: &Index) -> usize {
        index.secrets_of_owner(&self.tenant, &self.owner)
    }
}

impl HeldRecord for IssuerRecord {
    type Name = ActorId;

    fn of(record: &Record) -> Option<Self> {
        if let Record::Issuer(found) = record { Some(Self::clone(found)) } else { None }
    }

    async fn read(store: &dyn Store, name: &ActorId, by: &AuditStamp) -> Result<Self, AuthorityError> {
        let (actor, found) = (name.clone(), store.issuer(name).await?);
        let none = Self { actor, hold: Hold::default(), updated: by.clone(), revision: Revision(0) };
        Ok(found.map_or(none, |found| Self::clone(&found)))
    }

    fn target(name: &ActorId) -> String {
        format!("{ISSUER}{name}")
    }

    held_fields!();

    fn set_updated(&mut self, by: AuditStamp) {
        self.updated = by;
    }

    fn record(self) -> Record {
        Record::Issuer(Arc::new(self))
    }

    fn write(self) -> RecordWrite {
        RecordWrite::Issuer(Box::new(self))
    }

    fn secrets(&self, index: &Index) -> usize {
        index.secrets_of_issuer(&self.actor)
    }
}
