//! The write buffer: the keys that are durable in the journal but not in the table yet, and every tenant.
//! Reads ask it before the table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::Record;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};
use parking_lot::RwLock;

/// The newest form of each key that the table lacks, and every tenant.
///
/// The keys are bounded by the queue of the table writer. Tenants stay: every new key needs its tenant, and a
/// read of sled waits for the current transaction. They are loaded before the store opens, and only the
/// committer changes them afterwards.
#[derive(Debug, Default)]
pub(in crate::store::local) struct WriteBuffer(RwLock<Maps>);

#[derive(Debug, Default)]
pub(in crate::store::local) struct Maps {
    keys: HashMap<TenantId, BTreeMap<KeyId, Arc<KeyRecord>>>,
    digests: HashSet<Digest>,
    tenants: BTreeMap<TenantId, Arc<TenantRecord>>,
}

impl WriteBuffer {
    pub(in crate::store::local) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.0.read().key(tenant, key_id)
    }

    /// Up to `most` keys of a tenant after an id, in the order of their ids.
    pub(in crate::store::local) fn keys_after(
        &self,
        tenant: &TenantId,
        after: Option<&KeyId>,
        most: usize,
    ) -> Vec<Arc<KeyRecord>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let maps = self.0.read();
        let of_tenant = maps.keys.get(tenant).into_iter();
        of_tenant.flat_map(|keys| keys.range((from, Bound::Unbounded))).take(most).map(|(_, key)| key.clone()).collect()
    }

    /// Those of the given keys of a tenant that are buffered, in the order of `ids`.
    pub(in crate::store::local) fn keys_of(&self, tenant: &TenantId, ids: &[KeyId]) -> Vec<Arc<KeyRecord>> {
        let maps = self.0.read();
        let Some(keys) = maps.keys.get(tenant) else { return vec![] };
        ids.iter().filter_map(|id| keys.get(id)).cloned().collect()
    }

    pub(in crate::store::local) fn has_digest(&self, digest: &Digest) -> bool {
        self.0.read().has_digest(digest)
    }

    /// A tenant. All tenants are here.
    pub(in crate::store::local) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.0.read().tenant(tenant)
    }

    /// How many tenants there are.
    pub(in crate::store::local) fn tenant_count(&self) -> usize {
        self.0.read().tenants()
    }

    /// Up to `most` tenants after one.
    pub(in crate::store::local) fn tenants(&self, after: Option<&TenantId>, most: usize) -> Vec<Arc<TenantRecord>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.0.read().tenants.range((from, Bound::Unbounded)).take(most).map(|(_, tenant)| tenant.clone()).collect()
    }

    /// Adds durable records.
    pub(in crate::store::local) fn insert<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let mut maps = self.0.write();
        records.for_each(|record| maps.insert(record));
    }

    /// Removes keys that the table has now, unless they have changed since.
    pub(in crate::store::local) fn release<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let mut maps = self.0.write();
        records.for_each(|record| maps.release(record));
    }
}

impl Maps {
    pub(in crate::store::local) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.keys.get(tenant)?.get(key_id).cloned()
    }

    pub(in crate::store::local) fn has_digest(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    pub(in crate::store::local) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.tenants.get(tenant).cloned()
    }

    pub(in crate::store::local) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    pub(in crate::store::local) fn insert(&mut self, record: &Record) {
        match record {
            Record::Key(key) => {
                self.digests.insert(key.secret.digest);
                let of_tenant = match self.keys.get_mut(&key.tenant) {
                    Some(of_tenant) => of_tenant,
                    None => self.keys.entry(key.tenant.clone()).or_default(),
                };
                of_tenant.insert(key.key_id.clone(), key.clone());
            }
            Record::Tenant(tenant) => {
                self.tenants.insert(tenant.tenant.clone(), tenant.clone());
            }
        }
    }

    fn release(&mut self, record: &Record) {
        let Record::Key(key) = record else { return };
        let Some(of_tenant) = self.keys.get_mut(&key.tenant) else { return };
        if of_tenant.get(&key.key_id).is_some_and(|held| held.revision <= key.revision) {
            of_tenant.remove(&key.key_id);
            self.digests.remove(&key.secret.digest);
            if of_tenant.is_empty() {
                self.keys.remove(&key.tenant);
            }
        }
    }
}
