//! Every key in RAM, as Verify needs it: digest -> entry.
//!
//! The index is the fold of the feed, and nothing else changes it: readers never write back, so a key that is disabled
//! cannot come alive again through a late read. Readers take no lock; a writer never holds them up.
//!
//! Reading order: `shard` (the entries of some digests), `entry` (what is kept of a key) and its `codec`, `names` (what keys
//! share), `ahead` (reading ahead of lookups), `image` (all of it as bytes).

pub mod ahead;
mod codec;
mod entry;
pub mod image;
mod names;
mod shard;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::{Change, Record, Revision};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::entry::Entry;
use self::entry::pack;
use self::names::Names;
use self::shard::{New, Place, SHARDS, Shard, shard_of};

/// Writers of one shard take turns. So many may be at work at a time.
const TURNS: usize = 64;

/// The keys, and the revision up to which they are folded.
#[derive(Debug)]
pub struct Index {
    shards: Box<[Place]>,
    names: Names,
    len: AtomicUsize,
    revision: AtomicU64,
    /// The latest time of a change, in milliseconds.
    time: AtomicI64,
    reached: watch::Sender<Revision>,
    /// Writers take turns. Readers do not come here.
    turns: [Mutex<()>; TURNS],
    peppers: Mutex<HashSet<PepperId>>,
}

impl Default for Index {
    fn default() -> Self {
        let empty = Arc::<Shard>::default();
        Self {
            shards: std::iter::repeat_with(|| Place::new(empty.clone())).take(SHARDS).collect(),
            names: Names::default(),
            len: AtomicUsize::new(0),
            revision: AtomicU64::new(0),
            time: AtomicI64::new(UnixMillis::MIN.0),
            reached: watch::Sender::new(Revision(0)),
            turns: std::array::from_fn(|_| Mutex::default()),
            peppers: Mutex::default(),
        }
    }
}

impl Index {
    /// The revision up to which every change is in the index. Read it before an entry, and the entry is at least as new.
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
    pub fn reach_time(&self, time: UnixMillis) {
        self.time.fetch_max(time.0, Ordering::Relaxed);
    }

    /// The entry of a digest.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Entry<'_>> {
        let shard = self.shards[shard_of(digest)].load();
        let range = shard.find(digest)?;
        Some(Entry::at(range, shard, &self.names))
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
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

    /// Folds records in that are not newer than a change still to come. Older forms of a record are passed over. It costs
    /// least when the records come in the order of their digests.
    pub fn fold(&self, records: &[Record]) {
        if let Some(latest) = records.iter().map(Record::time).max() {
            self.reach_time(latest);
        }
        let mut packed = Vec::with_capacity(records.len() * 64);
        let mut keys = Vec::with_capacity(records.len());
        let mut peppers = HashSet::new();
        for record in records {
            let Record::Key(key) = record else { continue };
            let begin = packed.len();
            pack(key, &self.names, &mut packed);
            keys.push((key.secret.digest, key.revision, begin..packed.len()));
            peppers.insert(key.secret.pepper);
        }
        if keys.is_empty() {
            return;
        }
        // Before the keys, so that whoever finds a key finds its pepper.
        self.peppers.lock().extend(peppers);
        keys.sort_unstable_by(|(a, newer, _), (b, older, _)| (a.as_bytes(), older).cmp(&(b.as_bytes(), newer)));
        keys.dedup_by(|(later, ..), (first, ..)| later == first);
        let new: Vec<_> = keys.into_iter().map(|(digest, _, range)| New { digest, packed: &packed[range] }).collect();
        for new in new.chunk_by(|a, b| shard_of(&a.digest) == shard_of(&b.digest)) {
            self.put(new);
        }
    }

    /// Lets go of every key. The names that they had stay.
    pub fn clear(&self) {
        let empty = Arc::<Shard>::default();
        for (number, place) in self.shards.iter().enumerate() {
            let _turn = self.turns[number % TURNS].lock();
            self.len.fetch_sub(place.swap(empty.clone()).len(), Ordering::Relaxed);
        }
        self.peppers.lock().clear();
        self.time.store(UnixMillis::MIN.0, Ordering::Relaxed);
    }

    /// Puts entries into their shard.
    fn put(&self, new: &[New<'_>]) {
        let Some(number) = new.first().map(|new| shard_of(&new.digest)) else { return };
        let _turn = self.turns[number % TURNS].lock();
        let place = &self.shards[number];
        let old = place.load_full();
        if let Some(changed) = old.with(new) {
            self.len.fetch_add(changed.len() - old.len(), Ordering::Relaxed);
            place.store(Arc::new(changed));
        }
    }

    /// Folds the next changes in.
    pub fn apply(&self, changes: &[Arc<Change>]) {
        for change in changes {
            self.fold(&change.records);
        }
        if let Some(last) = changes.last() {
            self.reach(last.revision);
        }
    }

    /// Declares that every change up to `revision` is folded in.
    pub fn reach(&self, revision: Revision) {
        self.revision.fetch_max(revision.0, Ordering::Release);
        self.reached.send_if_modified(|reached| {
            let later = revision > *reached;
            *reached = revision.max(*reached);
            later
        });
    }

    /// Waits until every change up to `revision` is folded in.
    pub async fn reached(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        // The sender is `self.reached`, so it outlives this wait.
        drop(self.reached.subscribe().wait_for(|reached| *reached >= revision).await);
    }
}
