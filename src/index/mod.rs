//! Every key in RAM, as Verify needs it: digest -> entry.
//!
//! The index is the fold of the feed, and nothing else changes it: readers never write back, so a key that is disabled
//! cannot come alive again through a late read. Readers take no lock; a writer never holds them up.
//!
//! Reading order: `shard` (the entries of some digests), `entry` (what is kept of a key) and its `codec`, `interner`
//! (names that keys share), `usage_counts` (which of them are in use), `compaction` (frees those that are not),
//! `state_counts` (keys by state), `ahead` (prefetching for lookups), `checkpoint` (the index as bytes).

pub mod ahead;
pub mod checkpoint;
mod codec;
mod compaction;
mod entry;
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
pub use self::compaction::CompactionStep;
pub use self::entry::Entry;
use self::entry::{each_name, pack, revision_of, state_of};
pub use self::interner::NameKind;
use self::interner::Names;
use self::shard::{NewEntry, SHARDS, Shard, ShardCell, shard_of};
use self::state_counts::StateCounts;
pub use self::usage_counts::InUse;

/// Writers of one shard take turns. So many may be at work at a time.
const WRITE_LOCKS: usize = 64;

/// The keys, and the revision up to which they are folded.
#[derive(Debug)]
pub struct Index {
    shards: Box<[ShardCell]>,
    /// The generation of names that shards are of, or are to be.
    current: Mutex<Arc<Names>>,
    /// One compaction at a time, and none while a checkpoint is written.
    compaction: Mutex<Option<Compaction>>,
    compacting: AtomicBool,
    /// How many there were.
    compactions: AtomicU64,
    /// Told when there may be reason for one.
    compaction_due: Notify,
    len: AtomicUsize,
    states: StateCounts,
    revision: AtomicU64,
    /// The latest time of a change, in milliseconds.
    time: AtomicI64,
    advanced: watch::Sender<Revision>,
    /// Writers take turns. Readers do not come here.
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
    /// The revision up to which every change is in the index. Read it before an entry, and the entry is at
    /// least as new.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// The latest time of any change that has been folded in. It only grows.
    #[must_use]
    pub fn latest_time(&self) -> UnixMillis {
        UnixMillis(self.time.load(Ordering::Relaxed))
    }

    /// Declares that there was a change at this time.
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

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// How many keys there are in a state. While changes are folded in, the sum over all states may be off by those.
    #[must_use]
    pub fn len_in(&self, state: State) -> usize {
        self.states.of(state)
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The peppers under which keys have been folded in.
    #[must_use]
    pub fn peppers(&self) -> HashSet<PepperId> {
        self.peppers.lock().clone()
    }

    /// Folds records in that are not newer than a change still to come. Older forms of a record are passed
    /// over. It costs least when the records come in the order of their digests.
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
        // Before the keys, so that whoever finds a key finds its pepper.
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

    /// Lets go of every key and name.
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

    /// Puts the newest forms of keys into their shard, in the order of their digests. Forms that are there
    /// already in a newer one are passed over.
    fn put(&self, keys: &[&KeyRecord], packed: &mut Vec<u8>) {
        let Some(number) = keys.first().map(|key| shard_of(&key.secret.digest)) else { return };
        let _lock = self.write_locks[number % WRITE_LOCKS].lock();
        let cell = &self.shards[number];
        let old = cell.load_full();
        // Those of the shard that is there, and will be until the turn ends: a compaction waits for it, too.
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
            self.states.add(key.policy.state);
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

    /// How many names of a kind keys use.
    #[must_use]
    pub fn names_in_use(&self, kind: NameKind) -> usize {
        self.current.lock().usage.of_kind(kind)
    }

    /// How many names are kept that no key uses.
    #[must_use]
    pub fn names_unused(&self) -> usize {
        let names = self.current.lock().clone();
        names.len().saturating_sub(names.len_used())
    }

    /// How often the room of unused names was given back.
    #[must_use]
    pub fn compactions(&self) -> u64 {
        self.compactions.load(Ordering::Relaxed)
    }

    /// How many owners the keys of a tenant have, and which of some they have not. Keys without an owner do not count.
    #[must_use]
    pub fn owners_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.current.lock().usage.clone().owners(tenant, asked)
    }

    /// How many scopes the keys of a tenant have, and which of some they have not.
    #[must_use]
    pub fn scopes_in_use(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        self.current.lock().usage.clone().scopes(tenant, asked)
    }

    /// Folds the next changes in.
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

    /// Declares that every change up to `revision` is folded in.
    pub fn advance_to(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Release);
        self.advanced.send_if_modified(|advanced| {
            let later = revision > *advanced;
            *advanced = revision.max(*advanced);
            later
        });
    }

    /// Waits until every change up to `revision` is folded in.
    pub async fn wait_for(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        // The sender is `self.advanced`, so it outlives this wait.
        drop(self.advanced.subscribe().wait_for(|advanced| *advanced >= revision).await);
    }
}
