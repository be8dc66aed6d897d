//! Every key in memory, as Verify needs it: digest -> entry.
//!
//! The index is the result of applying the feed, and nothing else changes it: readers never write back, so a
//! late read cannot bring a disabled key back to life. Readers take no lock, and writers never delay them.
//!
//! Reading order: `shard` (the entries of some digests), `entry` (what is kept of a key) and its `codec`,
//! `interner` (names that keys share), `usage_counts` (which of them are in use), `compaction` (frees those
//! that are not), `state_counts` (keys by state), `ahead` (prefetching for lookups), `checkpoint` (the index
//! as bytes), `follow` (how the log gets here).

pub mod ahead;
pub mod checkpoint;
mod codec;
mod compaction;
mod entry;
pub mod follow;
mod interner;
mod packing;
mod shard;
mod state_counts;
mod usage_counts;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::SecretUse;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::{Change, Record, Revision};
use keyward_core::holds::Holds;
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{KeyRecord, LineRecord, PurgeMark, State, StoredSecret};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use self::compaction::Compaction;
pub use self::compaction::{CompactionStep, compact_when_due};
pub use self::entry::Entry;
pub use self::interner::NameKind;
use self::interner::{Names, OwnerLookup};
use self::packing::{counted_state_of, each_name, pack, revision_of};
use self::shard::{NewEntry, SHARDS, Shard, ShardCell, shard_of};
use self::state_counts::StateCounts;
pub use self::usage_counts::InUse;
use self::usage_counts::UsageCounts;

/// Writers of a shard are serialized by one of this many locks.
const WRITE_LOCKS: usize = 64;

/// The keys, and the revision up to which changes are applied.
#[derive(Debug)]
pub struct Index {
    shards: Box<[ShardCell]>,
    /// The current generation of names. During a compaction, shards move to it.
    current: Mutex<Arc<Names>>,
    /// One compaction at a time, and none while a checkpoint is written.
    compaction: Mutex<Option<Compaction>>,
    compacting: AtomicBool,
    /// The number of finished compactions.
    compactions: AtomicU64,
    /// Notified when a compaction may be due.
    compaction_due: Notify,
    states: StateCounts,
    /// What tenants, owners and issuers are withheld: all that is known, and what verdicts need of it.
    all_holds: Mutex<Holds>,
    holds: ArcSwap<Holds>,
    /// Whether `holds` is not empty. Nearly always it is.
    has_holds: AtomicBool,
    /// Counts the changes of `holds`, before and after each.
    hold_generation: AtomicU64,
    /// The lines of the log, in order.
    lines: ArcSwap<Vec<LineRecord>>,
    /// Digests that lead nowhere any more, until everything is loaded: records that are older than that may
    /// still come.
    gone: Mutex<Option<HashMap<Digest, Revision>>>,
    /// Whether there is one. Set under the lock of the digest's shard, before it is noted.
    any_gone: AtomicBool,
    revision: AtomicU64,
    /// The latest time of a change, in milliseconds.
    time: AtomicI64,
    advanced: watch::Sender<Revision>,
    /// Locks for writers. Readers do not take them.
    write_locks: [Mutex<()>; WRITE_LOCKS],
    peppers: Mutex<HashSet<PepperId>>,
}

/// What a record does to the entry of a digest.
struct EntryChange<'a> {
    digest: Digest,
    to: NewForm<'a>,
}

enum NewForm<'a> {
    /// The entry of a secret of a key.
    Secret { key: &'a KeyRecord, secret: &'a StoredSecret, used: SecretUse },
    /// None, from a revision on.
    Gone(Revision),
}

impl<'a> EntryChange<'a> {
    fn of_key(key: &'a KeyRecord) -> impl Iterator<Item = Self> {
        key.secrets().filter_map(move |secret| {
            let used = key.secret_use(&secret.digest)?;
            Some(Self { digest: secret.digest, to: NewForm::Secret { key, secret, used } })
        })
    }

    fn of_mark(mark: &PurgeMark) -> impl Iterator<Item = Self> {
        mark.digests.iter().map(|digest| Self { digest: *digest, to: NewForm::Gone(mark.revision) })
    }

    fn place(&self) -> &[u8; 32] {
        self.digest.as_bytes()
    }

    fn revision(&self) -> Revision {
        self.to.revision()
    }
}

impl NewForm<'_> {
    fn revision(&self) -> Revision {
        match self {
            Self::Secret { key, .. } => key.revision,
            Self::Gone(revision) => *revision,
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        let names = Names::first();
        let empty = Arc::new(Shard::empty(names.clone()));
        Self {
            shards: std::iter::repeat_with(|| ShardCell::new(empty.clone())).take(SHARDS).collect(),
            current: Mutex::new(names),
            compaction: Mutex::default(),
            compacting: AtomicBool::new(false),
            compactions: AtomicU64::new(0),
            compaction_due: Notify::new(),
            states: StateCounts::default(),
            all_holds: Mutex::default(),
            holds: ArcSwap::default(),
            has_holds: AtomicBool::new(false),
            hold_generation: AtomicU64::new(0),
            lines: ArcSwap::default(),
            gone: Mutex::new(Some(HashMap::new())),
            any_gone: AtomicBool::new(false),
            revision: AtomicU64::new(0),
            time: AtomicI64::new(UnixMillis::MIN.0),
            advanced: watch::Sender::new(Revision(0)),
            write_locks: std::array::from_fn(|_| Mutex::default()),
            peppers: Mutex::default(),
        }
    }
}

impl Index {
    /// The revision up to which every change is in the index. An entry that is read afterwards is at least as
    /// new.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// The latest time of any applied change. It only grows.
    #[must_use]
    pub fn latest_time(&self) -> UnixMillis {
        UnixMillis(self.time.load(Ordering::Relaxed))
    }

    /// Notes that a change was made at this time.
    pub fn advance_time(&self, time: UnixMillis) {
        self.time.fetch_max(time.0, Ordering::Relaxed);
    }

    /// The entry of a digest.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Entry<'_>> {
        // Holds are rare: without any, a verdict does not pay for them.
        if self.hold_generation.load(Ordering::Acquire) == 0 {
            let shard = self.shards[shard_of(digest)].load();
            let range = shard.find(digest)?;
            let entry = Entry::at(range, shard);
            if self.hold_generation.load(Ordering::Acquire) == 0 {
                return Some(entry);
            }
        }
        self.get_held(digest)
    }

    /// [`Index::get`] where there are holds, or were.
    #[inline(never)]
    fn get_held(&self, digest: &Digest) -> Option<Entry<'_>> {
        loop {
            let generation = self.hold_generation.load(Ordering::Acquire);
            let shard = self.shards[shard_of(digest)].load();
            let range = shard.find(digest)?;
            let mut entry = Entry::at(range, shard);
            if self.has_holds.load(Ordering::Acquire) {
                entry.hold_by(&self.holds.load());
            }
            // So that the entry and the holds were there at one moment. Holds change so seldom that nobody
            // reads twice in a row.
            if self.hold_generation.load(Ordering::Acquire) == generation {
                return Some(entry);
            }
        }
    }

    /// Whether every change up to a revision is in the index.
    ///
    /// # Errors
    /// With the beginning of the line that goes on without it, if it is of a change that was lost.
    pub fn has(&self, revision: Revision) -> Result<bool, LineRecord> {
        if revision > self.revision() {
            return Ok(false);
        }
        self.lines.load().iter().find(|line| line.is_gap(revision)).map_or(Ok(true), |line| Err(*line))
    }

    /// The number of keys that are not deleted.
    #[must_use]
    pub fn len(&self) -> usize {
        State::ALL.into_iter().map(|state| self.states.of(state)).sum()
    }

    /// The number of keys in a state that are not deleted. While changes are being applied, the sum over all
    /// states may differ by those.
    #[must_use]
    pub fn len_in(&self, state: State) -> usize {
        self.states.of(state)
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The peppers of all keys that have been applied.
    #[must_use]
    pub fn peppers(&self) -> HashSet<PepperId> {
        self.peppers.lock().clone()
    }

    /// Applies records that are not newer than a change still to come. Older forms of a record are skipped.
    /// Cheapest when the records are in the order of their digests.
    ///
    /// Until [`Index::finish_loading`] they may come in any order, and more than once: each digest has the
    /// newest form that was applied, or none if that was a purge mark.
    pub fn apply_records(&self, records: &[Record]) {
        if let Some(latest) = records.iter().map(Record::time).max() {
            self.advance_time(latest);
        }
        self.apply_holds(records);
        let mut changes = Vec::with_capacity(records.len());
        let mut peppers = HashSet::new();
        for record in records {
            match record {
                Record::Key(key) => {
                    peppers.extend(key.secrets().map(|secret| secret.pepper));
                    changes.extend(EntryChange::of_key(key));
                }
                Record::Purged(mark) => changes.extend(EntryChange::of_mark(mark)),
                Record::Tenant(_) | Record::Owner(_) | Record::Issuer(_) => {}
                Record::Line(line) => self.apply_line(line),
            }
        }
        if changes.is_empty() {
            return;
        }
        // Before the keys, so that a reader who finds a key also finds its pepper.
        self.peppers.lock().extend(peppers);
        changes.sort_unstable_by(|a, b| (a.place(), b.revision()).cmp(&(b.place(), a.revision())));
        changes.dedup_by(|older, newest| older.place() == newest.place());
        let mut packed = Vec::new();
        for changes in changes.chunk_by(|a, b| shard_of(&a.digest) == shard_of(&b.digest)) {
            self.put(changes, &mut packed);
        }
    }

    /// Declares that records come in order from now on.
    pub fn finish_loading(&self) {
        *self.gone.lock() = None;
        self.any_gone.store(false, Ordering::Release);
    }

    fn apply_holds(&self, records: &[Record]) {
        if !records.iter().any(|it| matches!(it, Record::Tenant(_) | Record::Owner(_) | Record::Issuer(_))) {
            return;
        }
        let mut all = self.all_holds.lock();
        if records.iter().filter(|record| all.apply(record)).count() > 0 {
            self.publish_holds(&all);
        }
    }

    fn publish_holds(&self, all: &Holds) {
        let are_some = all.hold_any();
        if !are_some && !self.has_holds.load(Ordering::Acquire) {
            return;
        }
        self.hold_generation.fetch_add(1, Ordering::AcqRel);
        self.holds.store(Arc::new(all.clone()));
        self.has_holds.store(are_some, Ordering::Release);
        self.hold_generation.fetch_add(1, Ordering::AcqRel);
    }

    fn apply_line(&self, line: &LineRecord) {
        self.lines.rcu(|lines| {
            let mut lines = Vec::clone(lines);
            lines.retain(|other| other.base != line.base);
            lines.push(*line);
            lines.sort_unstable_by_key(|line| line.base);
            lines
        });
    }

    /// Removes everything. What comes next may come in any order.
    pub fn clear(&self) {
        let mut compaction = self.compaction.lock();
        *compaction = None;
        self.compacting.store(false, Ordering::Relaxed);
        let names = Names::first();
        let empty = Arc::new(Shard::empty(names.clone()));
        *self.current.lock() = names;
        for (number, cell) in self.shards.iter().enumerate() {
            let _lock = self.write_locks[number % WRITE_LOCKS].lock();
            let gone = cell.swap(empty.clone());
            gone.all_packed().filter_map(counted_state_of).for_each(|state| self.states.remove(state));
        }
        self.peppers.lock().clear();
        *self.gone.lock() = Some(HashMap::new());
        let mut holds = self.all_holds.lock();
        *holds = Holds::default();
        self.publish_holds(&holds);
        self.lines.store(Arc::default());
        self.time.store(UnixMillis::MIN.0, Ordering::Relaxed);
    }

    /// Makes changes, sorted by digest, in their shard. Those that are not newer than what is there are
    /// skipped.
    fn put(&self, changes: &[EntryChange<'_>], packed: &mut Vec<u8>) {
        let Some(number) = changes.first().map(|change| shard_of(&change.digest)) else { return };
        let _lock = self.write_locks[number % WRITE_LOCKS].lock();
        let cell = &self.shards[number];
        let old = cell.load_full();
        // The names of the present shard, which stays until the lock is released: a compaction takes the lock
        // too.
        let names = old.names();
        packed.clear();
        let (mut put, mut replaced) = (Vec::with_capacity(changes.len()), vec![]);
        for EntryChange { digest, to } in changes {
            let held = old.find(digest);
            if held.clone().is_some_and(|held| revision_of(&old.bytes()[held]) >= to.revision()) {
                continue;
            }
            match to {
                NewForm::Secret { key, secret, used } => {
                    if self.is_gone(digest, key.revision) {
                        continue;
                    }
                    let begin = packed.len();
                    pack(key, secret, *used, names, packed);
                    counted_state_of(&packed[begin..]).into_iter().for_each(|state| self.states.add(state));
                    put.push((*digest, Some(begin..packed.len())));
                }
                NewForm::Gone(revision) => {
                    self.note_gone(digest, *revision);
                    if held.is_none() {
                        continue;
                    }
                    put.push((*digest, None));
                }
            }
            replaced.extend(held);
        }
        if put.is_empty() {
            return;
        }
        let new = put.into_iter().map(|(digest, range)| NewEntry { digest, packed: range.map(|range| &packed[range]) });
        let changed = old.with(&new.collect::<Vec<_>>());
        cell.store(Arc::new(changed));
        for held in replaced {
            let held = &old.bytes()[held];
            counted_state_of(held).into_iter().for_each(|state| self.states.remove(state));
            each_name(held, |kind, number| names.release_kind(kind, number));
        }
    }

    fn is_gone(&self, digest: &Digest, revision: Revision) -> bool {
        if !self.any_gone.load(Ordering::Acquire) {
            return false;
        }
        let gone = self.gone.lock();
        gone.as_ref().and_then(|gone| gone.get(digest)).is_some_and(|since| *since >= revision)
    }

    fn note_gone(&self, digest: &Digest, revision: Revision) {
        if let Some(gone) = &mut *self.gone.lock() {
            self.any_gone.store(true, Ordering::Release);
            let since = gone.entry(*digest).or_default();
            *since = revision.max(*since);
        }
    }

    /// The number of names of a kind that keys use.
    #[must_use]
    pub fn names_in_use(&self, kind: NameKind) -> usize {
        self.current.lock().usage.of_kind(kind)
    }

    /// The number of names kept that no key uses.
    #[must_use]
    pub fn names_unused(&self) -> usize {
        let names = self.current.lock().clone();
        names.len().saturating_sub(names.len_used())
    }

    /// How often unused names were freed.
    #[must_use]
    pub fn compactions(&self) -> u64 {
        self.compactions.load(Ordering::Relaxed)
    }

    /// The number of secrets that are kept of a tenant's keys: of a key that was rotated more than one, and
    /// those of deleted keys too.
    #[must_use]
    pub fn secrets_of_tenant(&self, tenant: &TenantId) -> usize {
        self.usage().uses(|names| names.tenants.uses(tenant))
    }

    /// The same of the keys of an owner.
    #[must_use]
    pub fn secrets_of_owner(&self, tenant: &TenantId, owner: &str) -> usize {
        self.usage().uses(|names| {
            let tenant = names.tenants.find(tenant)?;
            names.owners.uses(&OwnerLookup { tenant, name: owner })
        })
    }

    /// The number of secrets that somebody issued and that are kept.
    #[must_use]
    pub fn secrets_of_issuer(&self, issuer: &ActorId) -> usize {
        self.usage().uses(|names| names.issuers.uses(issuer))
    }

    /// What tenants, owners and issuers are withheld.
    #[must_use]
    pub fn holds(&self) -> Arc<Holds> {
        self.holds.load_full()
    }

    fn usage(&self) -> Arc<UsageCounts> {
        self.current.lock().usage.clone()
    }

    /// The number of owners among a tenant's keys, and which of `asked` are not among them. Keys without an
    /// owner do not count.
    #[must_use]
    pub fn owners_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.usage().owners(tenant, asked)
    }

    /// The number of scopes among a tenant's keys, and which of `asked` are not among them.
    #[must_use]
    pub fn scopes_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.usage().scopes(tenant, asked)
    }

    /// Applies the next changes.
    pub fn apply(&self, changes: &[Arc<Change>]) {
        for change in changes {
            self.apply_records(&change.records);
        }
        if let Some(last) = changes.last() {
            self.advance_to(last.revision);
        }
        if self.wants_compaction() {
            self.compaction_due.notify_one();
        }
    }

    /// Declares that every change up to `revision` is applied.
    pub fn advance_to(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Release);
        self.advanced.send_if_modified(|advanced| {
            let later = revision > *advanced;
            *advanced = revision.max(*advanced);
            later
        });
    }

    /// Waits until every change up to `revision` is applied.
    pub async fn wait_for(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        // The sender is `self.advanced`, so it outlives this wait.
        drop(self.advanced.subscribe().wait_for(|advanced| *advanced >= revision).await);
    }
}

#[cfg(test)]
mod tests {
    use keyward_core::decision::Policy;
    use keyward_core::record::{Hold, OwnerRecord};
    use keyward_core::testing::{key_record, stamp};

    use super::*;

    fn owner(suspended: bool, revision: u64) -> Record {
        let hold = Hold { suspended, ..Hold::default() };
        let (tenant, owner, revision) = (TenantId::default_tenant(), "customer-7".to_owned(), Revision(revision));
        Record::Owner(Arc::new(OwnerRecord { tenant, owner, hold, updated: stamp(), revision }))
    }

    /// However many keys the owner has. What is issued later finds the hold too.
    #[test]
    fn a_hold_touches_no_entry_of_a_key() {
        let index = Index::default();
        let key = |number: u32| {
            let mut key = KeyRecord { revision: Revision(u64::from(number)), ..key_record(number) };
            key.spec.owner = "customer-7".into();
            key
        };
        let keys: Vec<_> = (1..=5_000).map(|number| Record::Key(Arc::new(key(number)))).collect();
        index.apply_records(&keys);
        let shards = || index.shards.iter().map(|cell| Arc::as_ptr(&cell.load_full())).collect::<Vec<_>>();
        let is_held = |number: u32| {
            let standing = index.get(&key(number).secret.digest).map(|entry| entry.standing());
            standing.is_some_and(|standing| standing.is_held)
        };
        let before = shards();
        for (suspended, revision) in [(true, 5_001), (false, 5_002), (true, 5_003)] {
            index.apply_records(&[owner(suspended, revision)]);
            assert_eq!((shards() == before, index.all_holds.lock().len()), (true, 1), "{revision}");
            assert_eq!((is_held(1), is_held(5_000)), (suspended, suspended), "{revision}");
        }
        index.apply_records(&[Record::Key(Arc::new(key(5_001)))]);
        assert!(is_held(5_001) && shards() != before);
        assert_eq!(index.secrets_of_owner(&TenantId::default_tenant(), "customer-7"), 5_001);
    }
}
