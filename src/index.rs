//! Every key in RAM, as Verify needs it: digest -> entry.
//!
//! The index is the fold of the feed, and nothing else changes it: readers never write back, so a key that is disabled
//! cannot come alive again through a late read. Readers take no lock; a writer never holds them up.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::{Environment, KeyId, TenantId};
use keyward_core::record::{KeyPolicy, KeyRecord};
use parking_lot::Mutex;
use tokio::sync::watch;

/// What Verify needs of a key.
#[derive(Debug)]
pub struct Entry {
    /// Identity within the tenant.
    pub key_id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// The label that people see.
    pub display_name: Box<str>,
    /// Who the key was issued to.
    pub owner: Box<str>,
    /// Part of the secret.
    pub environment: Environment,
    /// What a verdict depends on.
    pub policy: KeyPolicy,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    revision: Revision,
}

impl Entry {
    fn of(key: &KeyRecord) -> Self {
        Self {
            key_id: key.key_id.clone(),
            tenant: key.tenant.clone(),
            display_name: key.display_name.as_str().into(),
            owner: key.owner.as_str().into(),
            environment: key.environment.clone(),
            policy: key.policy.clone(),
            labels: key.labels.clone(),
            revision: key.revision,
        }
    }

    /// When the key ends.
    #[must_use]
    pub fn expire_time(&self) -> Option<UnixMillis> {
        self.policy.expire_time
    }
}

/// The keys, and the revision up to which they are folded.
#[derive(Debug)]
pub struct Index {
    entries: papaya::HashMap<Digest, Arc<Entry>, BuildHasherDefault<DigestHasher>>,
    revision: AtomicU64,
    reached: watch::Sender<Revision>,
    /// Writers take turns. Readers do not come here.
    folding: Mutex<HashSet<PepperId>>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            entries: papaya::HashMap::default(),
            revision: AtomicU64::new(0),
            reached: watch::Sender::new(Revision(0)),
            folding: Mutex::default(),
        }
    }
}

impl Index {
    /// The revision up to which every change is in the index. Read it before an entry, and the entry is at least as new.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// The entry of a digest.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Arc<Entry>> {
        self.entries.pin().get(digest).cloned()
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The peppers under which keys have been folded in.
    #[must_use]
    pub fn peppers(&self) -> HashSet<PepperId> {
        self.folding.lock().clone()
    }

    /// Folds records in that are not newer than a change still to come. Older forms of a record are passed over.
    pub fn fold(&self, records: &[Record]) {
        let mut peppers = self.folding.lock();
        let entries = self.entries.pin();
        for record in records {
            let Record::Key(key) = record else { continue };
            if entries.get(&key.secret.digest).is_none_or(|held| held.revision < key.revision) {
                peppers.insert(key.secret.pepper);
                entries.insert(key.secret.digest, Arc::new(Entry::of(key)));
            }
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
        // The sender is `self.reached`, so it outlives this wait.
        drop(self.reached.subscribe().wait_for(|reached| *reached >= revision).await);
    }
}

/// Digests hash themselves: their bytes are uniform.
#[derive(Debug, Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
