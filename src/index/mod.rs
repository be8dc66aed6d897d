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
mod shard;
mod state_counts;
mod usage_counts;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::{KeyRecord, State};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use self::compaction::Compaction;
pub use self::compaction::{CompactionStep, compact_when_due};
pub use self::entry::Entry;
use self::entry::{each_name, pack, revision_of, state_of};
pub use self::interner::NameKind;
use self::interner::Names;
use self::shard::{NewEntry, SHARDS, Shard, ShardCell, shard_of};
use self::state_counts::StateCounts;
pub use self::usage_counts::InUse;

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
    len: AtomicUsize,
    states: StateCounts,
    revision: AtomicU64,
    /// The latest time of a change, in milliseconds.
    time: AtomicI64,
    advanced: watch::Sender<Revision>,
    /// Locks for writers. Readers do not take them.
    write_locks: [Mutex<()>; WRITE_LOCKS],
    peppers: Mutex<HashSet<PepperId>>,
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
            len: AtomicUsize::new(0),
            states: StateCounts::default(),
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
        let shard = self.shards[shard_of(digest)].load();
        let range = shard.find(digest)?;
        Some(Entry::at(range, shard))
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The number of keys in a state. While changes are being applied, the sum over all states may differ by
    /// those.
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
    pub fn apply_records(&self, records: &[Record]) {
        if let Some(latest) = records.iter().map(Record::time).max() {
            self.advance_time(latest);
        }
        let keys = records.iter().filter_map(|record| match record {
            Record::Key(key) => Some(&**key),
            Record::Tenant(_) => None,
        });
        let mut keys: Vec<_> = keys.collect();
        if keys.is_empty() {
            return;
        }
        // Before the keys, so that a reader who finds a key also finds its pepper.
        let peppers: HashSet<_> = keys.iter().map(|key| key.secret.pepper).collect();
        self.peppers.lock().extend(peppers);
        let place = |key: &KeyRecord| *key.secret.digest.as_bytes();
        keys.sort_unstable_by(|a, b| (place(a), b.revision).cmp(&(place(b), a.revision)));
        keys.dedup_by(|older, newest| older.secret.digest == newest.secret.digest);
        let mut packed = Vec::new();
        for keys in keys.chunk_by(|a, b| shard_of(&a.secret.digest) == shard_of(&b.secret.digest)) {
            self.put(keys, &mut packed);
        }
    }

    /// Removes every key and name.
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
            self.len.fetch_sub(gone.len(), Ordering::Relaxed);
            gone.all_packed().for_each(|packed| self.states.remove(state_of(packed)));
        }
        self.peppers.lock().clear();
        self.time.store(UnixMillis::MIN.0, Ordering::Relaxed);
    }

    /// Puts the newest forms of keys, sorted by digest, into their shard. Forms that are not newer than those
    /// present are skipped.
    fn put(&self, keys: &[&KeyRecord], packed: &mut Vec<u8>) {
        let Some(number) = keys.first().map(|key| shard_of(&key.secret.digest)) else { return };
        let _lock = self.write_locks[number % WRITE_LOCKS].lock();
        let cell = &self.shards[number];
        let old = cell.load_full();
        // The names of the present shard, which stays until the lock is released: a compaction takes the lock
        // too.
        let names = old.names();
        packed.clear();
        let (mut put, mut replaced) = (Vec::with_capacity(keys.len()), vec![]);
        for key in keys {
            let digest = key.secret.digest;
            let held = old.find(&digest);
            if held.clone().is_some_and(|held| revision_of(&old.bytes()[held]) >= key.revision) {
                continue;
            }
            let begin = packed.len();
            pack(key, names, packed);
            self.states.add(key.spec.policy.state);
            put.push((digest, begin..packed.len()));
            replaced.extend(held);
        }
        if put.is_empty() {
            return;
        }
        let new: Vec<_> = put.into_iter().map(|(digest, range)| NewEntry { digest, packed: &packed[range] }).collect();
        let changed = old.with(&new);
        self.len.fetch_add(changed.len() - old.len(), Ordering::Relaxed);
        cell.store(Arc::new(changed));
        for held in replaced {
            self.states.remove(state_of(&old.bytes()[held.clone()]));
            each_name(&old.bytes()[held], |kind, number| names.release_kind(kind, number));
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

    /// The number of owners among a tenant's keys, and which of `asked` are not among them. Keys without an
    /// owner do not count.
    #[must_use]
    pub fn owners_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.current.lock().usage.clone().owners(tenant, asked)
    }

    /// The number of scopes among a tenant's keys, and which of `asked` are not among them.
    #[must_use]
    pub fn scopes_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.current.lock().usage.clone().scopes(tenant, asked)
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
