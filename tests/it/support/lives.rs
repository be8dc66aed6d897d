//! Keys through their whole lives, in an engine without a server: created, changed, rotated, held, deleted
//! and purged. [`super::model`] says what must be there then.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::join_all;
use keyward::store::{RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::ActorId;
use keyward_core::record::{
    AuditStamp, Deletion, Hold, IssuerRecord, KeyRecord, KeySpec, OverlapStart, OwnerRecord, PreviousSecret, PurgeMark,
    RetiredSecret, State, StoredSecret, TenantRecord,
};
use keyward_core::scope::Scope;
use keyward_core::testing::{key_record, tenant_record};
use proptest::prelude::*;

use super::local_store::commit;

/// The time of the first step, in milliseconds since 1970; each takes a second. Issue times before 2020 are
/// not told apart.
pub(crate) const BEGIN_MS: i64 = 1_790_000_000_000;
/// The time of every purge mark: that of the commits.
const COMMITTED: UnixMillis = UnixMillis(1_000);
/// Keys of one writer at a time.
const SLOTS: u8 = 6;
const OWNERS: u8 = 3;
const ISSUERS: u8 = 2;

/// What is done next: to the key in a place, where one is created if there is none, or to all of a holder.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Change(u8, u8),
    /// Whether the overlap has an end.
    Rotate(u8, bool),
    /// The previous secret retires; without one, the retired secret is dropped.
    Finish(u8),
    /// The previous secret is the current one again.
    Revert(u8),
    /// Deletes, or takes that back.
    Delete(u8),
    Purge(u8),
    /// Suspends, limits or releases the tenant, an owner or an issuer.
    Hold(u8, u8),
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let slot = || 0..SLOTS;
    prop_oneof![
        3 => (slot(), any::<u8>()).prop_map(|(slot, what)| Step::Change(slot, what)),
        5 => (slot(), any::<bool>()).prop_map(|(slot, ends)| Step::Rotate(slot, ends)),
        2 => slot().prop_map(Step::Finish),
        1 => slot().prop_map(Step::Revert),
        1 => slot().prop_map(Step::Delete),
        2 => slot().prop_map(Step::Purge),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(whose, how)| Step::Hold(whose, how)),
    ]
}

/// Steps that follow from a seed, without an end.
pub(crate) fn steps(seed: u64) -> impl Iterator<Item = Step> {
    (0_u64..).map(move |nth| {
        let hash = blake3::hash(&[seed.to_le_bytes(), nth.to_le_bytes()].concat());
        let [kind, slot, what, ..] = *hash.as_bytes();
        let slot = slot % SLOTS;
        match kind % 15 {
            0..3 => Step::Change(slot, what),
            3..8 => Step::Rotate(slot, what % 2 == 0),
            8..10 => Step::Finish(slot),
            10 => Step::Revert(slot),
            11 => Step::Delete(slot),
            12..14 => Step::Purge(slot),
            _ => Step::Hold(slot, what),
        }
    })
}

/// A writer of keys of its own tenant. It remembers what it did.
pub(crate) struct Writer {
    number: u32,
    tenant: TenantRecord,
    /// How many steps it took. Names, digests and times follow from it.
    taken: u32,
    slots: [Option<KeyRecord>; SLOTS as usize],
    owners: BTreeMap<u8, OwnerRecord>,
    issuers: BTreeMap<u8, IssuerRecord>,
    /// What it has written, in order.
    pub(crate) history: Vec<Record>,
}

impl Writer {
    /// A writer with a number that no other one has.
    pub(crate) async fn new(store: &dyn Store, number: u32) -> Self {
        let tenant = tenant_record(&format!("tenant-{number}"));
        let slots = Default::default();
        let (owners, issuers) = Default::default();
        let mut writer = Self { number, tenant, taken: 0, slots, owners, issuers, history: vec![] };
        let tenant = writer.tenant.clone();
        writer.tenant.revision = put(store, RecordWrite::NewTenant(Box::new(tenant))).await;
        writer.remember(Record::Tenant(Arc::new(writer.tenant.clone())));
        writer
    }

    pub(crate) async fn take(&mut self, store: &dyn Store, step: Step) {
        self.taken += 1;
        match step {
            Step::Hold(whose, how) => self.hold(store, whose, how).await,
            Step::Change(slot, _)
            | Step::Rotate(slot, _)
            | Step::Finish(slot)
            | Step::Revert(slot)
            | Step::Delete(slot)
            | Step::Purge(slot) => match self.slots[usize::from(slot)].take() {
                None => self.create(store, slot).await,
                Some(key) => self.change(store, slot, key, step).await,
            },
        }
    }

    async fn create(&mut self, store: &dyn Store, slot: u8) {
        let number = self.number * 1_000_000 + self.taken;
        let mut key = KeyRecord { tenant: self.tenant.tenant.clone(), created: self.stamp(), ..key_record(number) };
        key.updated = key.created.clone();
        key.secret.digest = self.secret(&key, 0).digest;
        key.spec = self.spec(slot);
        let revision = put(store, RecordWrite::NewKey(Box::new(key.clone()))).await;
        let there = store.key(&key.tenant, &key.key_id).await.unwrap().unwrap();
        self.keep(slot, KeyRecord { revision, ordinal: there.ordinal, ..key });
    }

    async fn change(&mut self, store: &dyn Store, slot: u8, key: KeyRecord, step: Step) {
        let mut next = KeyRecord { updated: self.stamp(), ..key.clone() };
        let is_rotation = match step {
            Step::Change(_, what) => {
                self.edit(&mut next, what);
                false
            }
            Step::Delete(_) => {
                let deletion = Deletion { time: self.now(), purge_time: UnixMillis(i64::MAX) };
                next.deletion = if key.deletion.is_none() { Some(deletion) } else { None };
                false
            }
            Step::Rotate(_, ends) => {
                next.retired = key.previous.map(|previous| self.retired(previous.secret));
                next.previous = Some(PreviousSecret {
                    secret: key.secret.clone(),
                    valid_until: ends.then(|| self.now()),
                    overlap_ms: 1_000,
                    overlap_starts: if ends { OverlapStart::AtIssue } else { OverlapStart::OnFirstUse },
                });
                next.secret = StoredSecret { version: key.secret.version + 1, ..self.secret(&next, 1) };
                true
            }
            Step::Finish(_) => {
                next.retired = key.previous.map(|previous| self.retired(previous.secret));
                next.previous = None;
                true
            }
            Step::Revert(_) => {
                if let Some(previous) = key.previous {
                    next.retired = Some(self.retired(key.secret));
                    next.secret = previous.secret;
                }
                next.previous = None;
                true
            }
            Step::Purge(_) => return self.purge(store, &key).await,
            Step::Hold(..) => unreachable!("it is of no key"),
        };
        let write = if is_rotation { RecordWrite::RotatedKey } else { RecordWrite::Key };
        next.revision = put(store, write(Box::new(next.clone()))).await;
        self.keep(slot, next);
    }

    async fn purge(&mut self, store: &dyn Store, key: &KeyRecord) {
        let (tenant, key_id, revision) = (key.tenant.clone(), key.key_id.clone(), key.revision);
        let write = RecordWrite::Purge { tenant: tenant.clone(), key_id: key_id.clone(), revision };
        let (digests, revision) = (key.digests().collect(), put(store, write).await);
        let mark = PurgeMark { tenant, key_id, digests, key_lives: false, time: COMMITTED, revision };
        self.remember(Record::Purged(Arc::new(mark)));
    }

    async fn hold(&mut self, store: &dyn Store, whose: u8, how: u8) {
        let hold = Hold {
            suspended: how.is_multiple_of(3),
            reject_issued_before: (how % 3 == 1).then(|| self.now()),
            ..Hold::default()
        };
        let (tenant, updated) = (self.tenant.tenant.clone(), self.stamp());
        let record = match whose % (1 + OWNERS + ISSUERS) {
            0 => {
                let mut record = TenantRecord { hold, updated: Some(updated), ..self.tenant.clone() };
                record.revision = put(store, RecordWrite::Tenant(Box::new(record.clone()))).await;
                self.tenant = record.clone();
                Record::Tenant(Arc::new(record))
            }
            owner @ 1..=OWNERS => {
                let revision = self.owners.get(&owner).map_or(Revision(0), |before| before.revision);
                let mut record = OwnerRecord { tenant, owner: owner_name(owner), hold, updated, revision };
                record.revision = put(store, RecordWrite::Owner(Box::new(record.clone()))).await;
                self.owners.insert(owner, record.clone());
                Record::Owner(Arc::new(record))
            }
            issuer => {
                let revision = self.issuers.get(&issuer).map_or(Revision(0), |before| before.revision);
                let actor = self.issuer(issuer);
                let mut record = IssuerRecord { actor, hold, updated, revision };
                record.revision = put(store, RecordWrite::Issuer(Box::new(record.clone()))).await;
                self.issuers.insert(issuer, record.clone());
                Record::Issuer(Arc::new(record))
            }
        };
        self.remember(record);
    }

    fn keep(&mut self, slot: u8, key: KeyRecord) {
        self.remember(Record::Key(Arc::new(key.clone())));
        self.slots[usize::from(slot)] = Some(key);
    }

    fn remember(&mut self, record: Record) {
        self.history.push(record);
    }

    fn edit(&self, key: &mut KeyRecord, what: u8) {
        key.resume_time = None;
        match what % 6 {
            0 => key.spec.display_name = format!("Name {}", self.taken),
            1 => key.spec.policy.state = State::Active,
            2 => key.spec.policy.state = State::Revoked,
            3 => {
                key.spec.policy.state = State::Disabled;
                key.resume_time = Some(self.now());
            }
            _ => key.spec = self.spec(what),
        }
    }

    fn spec(&self, what: u8) -> KeySpec {
        let mut spec = KeySpec {
            display_name: format!("Key {}", self.taken),
            owner: owner_name(1 + what % OWNERS),
            labels: BTreeMap::from([("n".to_owned(), (what % 2).to_string())]),
            ..KeySpec::default()
        };
        spec.policy.scopes = (0..what % 4).map(|nth| Scope::parse(&format!("s{nth}.{}", what % 5)).unwrap()).collect();
        spec.policy.expire_time = what.is_multiple_of(7).then(|| self.now());
        spec
    }

    /// A secret that no key had. Its issue is that of the key, if it is the key's first.
    fn secret(&self, key: &KeyRecord, issue: u8) -> StoredSecret {
        let name = [self.number.to_le_bytes(), self.taken.to_le_bytes()].concat();
        let digest = Digest::from_bytes(*blake3::hash(&name).as_bytes());
        StoredSecret { digest, issued: (issue > 0).then(|| self.stamp()), ..key.secret.clone() }
    }

    fn retired(&self, secret: StoredSecret) -> RetiredSecret {
        RetiredSecret { secret, time: self.now() }
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(BEGIN_MS + 1_000 * i64::from(self.taken))
    }

    fn stamp(&self) -> AuditStamp {
        AuditStamp { time: self.now(), actor: self.issuer((self.taken % u32::from(ISSUERS)) as u8) }
    }

    fn issuer(&self, issuer: u8) -> ActorId {
        ActorId::parse(&format!("issuer-{}-{}", self.number, issuer % ISSUERS)).unwrap()
    }
}

async fn put(store: &dyn Store, write: RecordWrite) -> Revision {
    store.commit(commit(vec![write])).await.unwrap()
}

fn owner_name(owner: u8) -> String {
    format!("owner-{owner}")
}

/// New writers with these numbers.
pub(crate) async fn writers(store: &dyn Store, numbers: Range<u32>) -> Vec<Writer> {
    join_all(numbers.map(|number| Writer::new(store, number))).await
}

/// Lets writers take steps beside each other.
pub(crate) async fn write(store: &dyn Store, writers: &mut [Writer], steps_each: usize) {
    let each = writers.iter_mut().map(async |writer| {
        let seed = u64::from(writer.number) << 32 | u64::from(writer.taken);
        for step in steps(seed).take(steps_each) {
            writer.take(store, step).await;
        }
    });
    join_all(each).await;
}
