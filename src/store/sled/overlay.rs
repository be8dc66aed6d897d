//! What is durable in the journal and not yet in the table.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};
use parking_lot::RwLock;

/// The newest form of each record that the table lacks. Its size is bounded by the queue of the table's writer.
#[derive(Debug, Default)]
pub(super) struct Overlay(RwLock<Maps>);

#[derive(Debug, Default)]
pub(super) struct Maps {
    keys: HashMap<(TenantId, KeyId), Arc<KeyRecord>>,
    digests: HashSet<Digest>,
    tenants: HashMap<TenantId, Arc<TenantRecord>>,
}

impl Overlay {
    pub(super) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.0.read().key(tenant, key_id)
    }

    pub(super) fn has_digest(&self, digest: &Digest) -> bool {
        self.0.read().has_digest(digest)
    }

    pub(super) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.0.read().tenant(tenant)
    }

    /// Adds records that have become durable.
    pub(super) fn insert<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let mut maps = self.0.write();
        records.for_each(|record| maps.insert(record));
    }

    /// Lets go of records that the table holds now, unless they have changed since.
    pub(super) fn release<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let mut maps = self.0.write();
        records.for_each(|record| maps.release(record));
    }
}

impl Maps {
    pub(super) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.keys.get(&(tenant.clone(), key_id.clone())).cloned()
    }

    pub(super) fn has_digest(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    pub(super) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.tenants.get(tenant).cloned()
    }

    pub(super) fn insert(&mut self, record: &Record) {
        match record {
            Record::Key(key) => {
                self.digests.insert(key.secret.digest);
                self.keys.insert((key.tenant.clone(), key.key_id.clone()), key.clone());
            }
            Record::Tenant(tenant) => {
                self.tenants.insert(tenant.tenant.clone(), tenant.clone());
            }
        }
    }

    fn release(&mut self, record: &Record) {
        fn newest<T>(held: Option<&Arc<T>>, revision: impl Fn(&T) -> Revision, released: Revision) -> bool {
            held.is_some_and(|held| revision(held) <= released)
        }
        match record {
            Record::Key(key) => {
                let id = (key.tenant.clone(), key.key_id.clone());
                if newest(self.keys.get(&id), |k| k.revision, key.revision) {
                    self.keys.remove(&id);
                    self.digests.remove(&key.secret.digest);
                }
            }
            Record::Tenant(tenant) => {
                if newest(self.tenants.get(&tenant.tenant), |t| t.revision, tenant.revision) {
                    self.tenants.remove(&tenant.tenant);
                }
            }
        }
    }
}
