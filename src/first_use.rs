//! First uses of new secrets, on their way from verdicts to the task that records them.
//!
//! A verdict notes and never waits: there is a bounded queue, and a use that finds it full is dropped and
//! counted. Nothing is lost by that for good: the next use of the secret is a first one again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_core::digest::Digest;
use keyward_core::id::{KeyId, TenantId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// First uses that wait to be recorded, at most.
pub const WAITING_MAX: usize = 4_096;

/// Places in which the uses that wait are remembered, so that a busy key is noted once. Two that fall on one
/// place may both be noted several times.
const PLACES: usize = 4_096;

/// That a new secret was used, while the one before it waits for that.
#[derive(Clone, Debug)]
pub struct FirstUse {
    /// The tenant.
    pub tenant: TenantId,
    /// The key.
    pub key_id: KeyId,
    /// The digest of the secret that was used.
    pub digest: Digest,
    /// See [`FirstUses::is_noted`].
    pub mark: u64,
}

/// Where verdicts note first uses. Clones share it.
#[derive(Clone)]
pub struct FirstUses(Arc<Shared>);

struct Shared {
    noted: Box<[AtomicU64]>,
    queue: mpsc::Sender<FirstUse>,
    receiver: Mutex<Option<mpsc::Receiver<FirstUse>>>,
    dropped: AtomicU64,
}

impl Default for FirstUses {
    fn default() -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let noted = std::iter::repeat_with(|| AtomicU64::new(0)).take(PLACES).collect();
        let receiver = Mutex::new(Some(receiver));
        Self(Arc::new(Shared { noted, queue, receiver, dropped: AtomicU64::new(0) }))
    }
}

impl FirstUses {
    /// A number of a secret, by which its uses are told apart: a part of its digest under the current pepper.
    #[must_use]
    pub fn mark_of(digest: &Digest) -> u64 {
        digest.as_bytes().first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes) | 1)
    }

    /// Whether a use of this mark waits to be recorded.
    #[must_use]
    pub fn is_noted(&self, mark: u64) -> bool {
        self.place(mark).load(Ordering::Relaxed) == mark
    }

    /// Notes a use, unless one of the same mark waits. It never waits itself.
    pub fn note(&self, used: FirstUse) {
        let mark = used.mark;
        if self.place(mark).swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        if self.0.queue.try_send(used).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            self.forget(mark);
        }
    }

    /// Declares that a use was dealt with: the next one is noted again.
    pub fn forget(&self, mark: u64) {
        // Another one may have taken the place.
        let _was_it = self.place(mark).compare_exchange(mark, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The queue, for the one task that records. `None`: it was given out.
    #[must_use]
    pub fn take_queue(&self) -> Option<mpsc::Receiver<FirstUse>> {
        self.0.receiver.lock().take()
    }

    /// How many uses were dropped because the queue was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    fn place(&self, mark: u64) -> &AtomicU64 {
        &self.0.noted[(mark >> 1) as usize % PLACES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(number: u64) -> FirstUse {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&(number << 1).to_le_bytes());
        let digest = Digest::from_bytes(digest);
        let (tenant, key_id) = (TenantId::default_tenant(), KeyId::parse("key").unwrap());
        FirstUse { tenant, key_id, digest, mark: FirstUses::mark_of(&digest) }
    }

    #[test]
    fn a_use_is_noted_once_until_it_was_dealt_with() {
        let uses = FirstUses::default();
        let mut queue = uses.take_queue().unwrap();
        assert!(uses.take_queue().is_none());
        uses.note(used(1));
        uses.note(used(1));
        assert_eq!(queue.try_recv().unwrap().mark, used(1).mark);
        assert!(queue.try_recv().is_err() && uses.is_noted(used(1).mark));
        uses.forget(used(1).mark);
        uses.note(used(1));
        assert!(queue.try_recv().is_ok());
    }

    #[test]
    fn a_use_that_finds_the_queue_full_is_dropped_counted_and_noted_when_it_comes_again() {
        let uses = FirstUses::default();
        let mut queue = uses.take_queue().unwrap();
        let most = WAITING_MAX as u64;
        (0..=most).for_each(|number| uses.note(used(number)));
        assert_eq!(uses.dropped(), 1);
        assert!(!uses.is_noted(used(most).mark) && uses.is_noted(used(1).mark));
        queue.try_recv().unwrap();
        uses.note(used(most));
        assert_eq!(uses.dropped(), 1);
        assert!(std::iter::from_fn(|| queue.try_recv().ok()).any(|noted| noted.mark == used(most).mark));
    }
}
