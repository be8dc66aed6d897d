//! The write buffer: the keys that are durable in the journal but not in the table yet, and every tenant,
//! owner and issuer. Reads ask it before the table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::holds::Holds;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, TenantRecord};
use parking_lot::RwLock;

/// The newest form of each key that the table lacks, and every tenant, owner and issuer.
///
/// The keys are bounded by the queue of the table writer. Tenants stay: every new key needs its tenant, and a
/// read of sled waits for the current transaction. Owners and issuers that have a record are few. All are
/// loaded before the store opens, and only the committer changes them afterwards.
#[derive(Debug, Default)]
pub(in crate::store::local) struct WriteBuffer(RwLock<Maps>);

/// A key that the table lacks.
#[derive(Clone, Debug)]
pub(in crate::store::local) enum Buffered {
    /// Its newest form.
    Key(Arc<KeyRecord>),
    /// It was purged at a revision.
    Purged(Revision),
}

#[derive(Debug, Default)]
pub(in crate::store::local) struct Maps {
    keys: HashMap<TenantId, BTreeMap<KeyId, Buffered>>,
    digests: HashSet<Digest>,
    tenants: BTreeMap<TenantId, Arc<TenantRecord>>,
    owners: HashMap<TenantId, HashMap<Box<str>, Arc<OwnerRecord>>>,
    issuers: HashMap<ActorId, Arc<IssuerRecord>>,
    holds: Holds,
}

impl Buffered {
    /// The key, if it was not purged.
    pub(in crate::store::local) fn key(self) -> Option<Arc<KeyRecord>> {
        match self {
            Self::Key(key) => Some(key),
            Self::Purged(_) => None,
        }
    }

    fn revision(&self) -> Revision {
        match self {
            Self::Key(key) => key.revision,
            Self::Purged(revision) => *revision,
        }
    }
}

impl WriteBuffer {
    /// `None`: the table has its newest form.
    pub(in crate::store::local) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Buffered> {
        self.0.read().key(tenant, key_id)
    }

    /// Up to `most` keys of a tenant after an id, in the order of their ids.
    pub(in crate::store::local) fn keys_after(
        &self,
        tenant: &TenantId,
        after: Option<&KeyId>,
        most: usize,
    ) -> Vec<(KeyId, Buffered)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let maps = self.0.read();
        let of_tenant = maps.keys.get(tenant).into_iter();
        let keys = of_tenant.flat_map(|keys| keys.range((from, Bound::Unbounded))).take(most);
        keys.map(|(key_id, key)| (key_id.clone(), key.clone())).collect()
    }

    /// Those of the given keys of a tenant that are buffered, in the order of `ids`.
    pub(in crate::store::local) fn keys_of(&self, tenant: &TenantId, ids: &[KeyId]) -> Vec<(KeyId, Buffered)> {
        let maps = self.0.read();
        let Some(keys) = maps.keys.get(tenant) else { return vec![] };
        ids.iter().filter_map(|id| Some((id.clone(), keys.get(id)?.clone()))).collect()
    }

    pub(in crate::store::local) fn has_digest(&self, digest: &Digest) -> bool {
        self.0.read().has_digest(digest)
    }

    /// A tenant. All tenants are here.
    pub(in crate::store::local) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.0.read().tenant(tenant)
    }

    /// An owner. All that have a record are here.
    pub(in crate::store::local) fn owner(&self, tenant: &TenantId, owner: &str) -> Option<Arc<OwnerRecord>> {
        self.0.read().owner(tenant, owner)
    }

    /// An issuer. All that have a record are here.
    pub(in crate::store::local) fn issuer(&self, actor: &ActorId) -> Option<Arc<IssuerRecord>> {
        self.0.read().issuer(actor)
    }

    /// The holds of all of them.
    pub(in crate::store::local) fn holds(&self) -> Holds {
        self.0.read().holds.clone()
    }

    /// How many owners of a tenant have a record.
    pub(in crate::store::local) fn owner_count(&self, tenant: &TenantId) -> usize {
        self.0.read().owner_count(tenant)
    }

    /// How many issuers have a record.
    pub(in crate::store::local) fn issuer_count(&self) -> usize {
        self.0.read().issuers.len()
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
    pub(in crate::store::local) fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Buffered> {
        self.keys.get(tenant)?.get(key_id).cloned()
    }

    pub(in crate::store::local) fn has_digest(&self, digest: &Digest) -> bool {
        self.digests.contains(digest)
    }

    pub(in crate::store::local) fn tenant(&self, tenant: &TenantId) -> Option<Arc<TenantRecord>> {
        self.tenants.get(tenant).cloned()
    }

    pub(in crate::store::local) fn owner(&self, tenant: &TenantId, owner: &str) -> Option<Arc<OwnerRecord>> {
        self.owners.get(tenant)?.get(owner).cloned()
    }

    pub(in crate::store::local) fn issuer(&self, actor: &ActorId) -> Option<Arc<IssuerRecord>> {
        self.issuers.get(actor).cloned()
    }

    pub(in crate::store::local) fn tenants(&self) -> usize {
        self.tenants.len()
    }

    pub(in crate::store::local) fn owner_count(&self, tenant: &TenantId) -> usize {
        self.owners.get(tenant).map_or(0, HashMap::len)
    }

    pub(in crate::store::local) fn issuer_count(&self) -> usize {
        self.issuers.len()
    }

    /// The holds of its tenants, owners and issuers.
    pub(in crate::store::local) fn holds(&self) -> &Holds {
        &self.holds
    }

    pub(in crate::store::local) fn insert(&mut self, record: &Record) {
        self.holds.apply(record);
        match record {
            Record::Key(key) => {
                self.digests.extend(key.digests());
                let held = Buffered::Key(key.clone());
                self.of_tenant(&key.tenant).insert(key.key_id.clone(), held);
            }
            Record::Purged(mark) if !mark.key_lives => {
                self.of_tenant(&mark.tenant).insert(mark.key_id.clone(), Buffered::Purged(mark.revision));
            }
            Record::Tenant(tenant) => {
                self.tenants.insert(tenant.tenant.clone(), tenant.clone());
            }
            Record::Owner(owner) => {
                let of_tenant = self.owners.entry(owner.tenant.clone()).or_default();
                of_tenant.insert(owner.owner.as_str().into(), owner.clone());
            }
            Record::Issuer(issuer) => {
                self.issuers.insert(issuer.actor.clone(), issuer.clone());
            }
            Record::Purged(_) | Record::Line(_) => {}
        }
    }

    fn of_tenant(&mut self, tenant: &TenantId) -> &mut BTreeMap<KeyId, Buffered> {
        self.keys.entry(tenant.clone()).or_default()
    }

    fn release(&mut self, record: &Record) {
        let (tenant, key_id, digests) = match record {
            Record::Key(key) => (&key.tenant, &key.key_id, key.digests().collect::<Vec<_>>()),
            Record::Purged(mark) if mark.key_lives => {
                // No later form of the key has them.
                for digest in &mark.digests {
                    self.digests.remove(digest);
                }
                return;
            }
            Record::Purged(mark) => (&mark.tenant, &mark.key_id, mark.digests.clone()),
            _ => return,
        };
        let Some(of_tenant) = self.keys.get_mut(tenant) else { return };
        if of_tenant.get(key_id).is_some_and(|held| held.revision() <= record.revision()) {
            of_tenant.remove(key_id);
            for digest in &digests {
                self.digests.remove(digest);
            }
            if of_tenant.is_empty() {
                self.keys.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use keyward_core::record::{PurgeMark, RetiredSecret};
    use keyward_core::testing::{CREATED, key_record, rotated};

    use super::*;

    /// A key that is rotated and purged while the table has none of that, as the records of its changes.
    fn changes() -> Vec<Vec<Record>> {
        let mark = |key: &KeyRecord, digests: Vec<Digest>, key_lives| {
            let (tenant, key_id, revision) = (key.tenant.clone(), key.key_id.clone(), key.revision);
            Record::Purged(Arc::new(PurgeMark { tenant, key_id, digests, key_lives, time: CREATED, revision }))
        };
        let (mut key, mut changes) = (KeyRecord { revision: Revision(1), ..key_record(1) }, vec![]);
        changes.push(vec![Record::Key(Arc::new(key.clone()))]);
        for revision in 2..6 {
            let next = KeyRecord { revision: Revision(revision), ..rotated(&key, revision as u32) };
            let dropped: Vec<_> = key.digests().filter(|digest| next.secret_use(digest).is_none()).collect();
            let marked = (!dropped.is_empty()).then(|| mark(&next, dropped, true));
            changes.push([Record::Key(Arc::new(next.clone()))].into_iter().chain(marked).collect());
            key = next;
        }
        let last = key.previous.take().map(|previous| RetiredSecret { secret: previous.secret, time: CREATED });
        let dropped = key.retired.take().map(|retired| retired.secret.digest).into_iter().collect();
        key = KeyRecord { retired: last, revision: Revision(6), ..key };
        changes.push(vec![Record::Key(Arc::new(key.clone())), mark(&key, dropped, true)]);
        let gone = KeyRecord { revision: Revision(7), ..key };
        changes.push(vec![mark(&gone, gone.digests().collect(), false)]);
        changes
    }

    #[test]
    fn nothing_of_a_key_is_kept_once_the_table_has_all_of_it() {
        let changes = changes();
        for last in 0..=changes.len() {
            let (buffer, made) = (WriteBuffer::default(), changes[..last].concat());
            buffer.insert(made.iter());
            let digests: Vec<_> = (made.iter())
                .flat_map(|record| match record {
                    Record::Key(key) => key.digests().collect(),
                    _ => vec![],
                })
                .collect();
            assert!(digests.iter().all(|digest| buffer.has_digest(digest)), "the table may lack them");
            buffer.release(made.iter());
            let maps = buffer.0.read();
            assert!(maps.keys.is_empty() && maps.digests.is_empty(), "after {last} changes: {:?}", maps.digests);
        }
    }
}
