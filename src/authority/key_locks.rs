//! One update per key at a time: concurrent ones would make each other's compare-and-set fail, again and
//! again.
//!
//! A change of state takes no lock: it never waits for updates, and loses to the one under way a few times at
//! most. Callers get a key's lock in turn, however many updates each has waiting. Updates of one caller that
//! may take power away wait apart from its others.

use std::collections::HashMap;
use std::sync::Arc;

use keyward_core::id::{ActorId, KeyId, TenantId};
use parking_lot::Mutex;

use super::AuthorityError;
use crate::fair::{Bounds, FairPermit, FairSemaphore};

/// Updates of one key that hold its lock.
const PERMITS: Bounds = Bounds { total: 1, per_party: 1 };
/// Updates of one key that wait for it; one more is refused.
const WAITING: Bounds = Bounds { total: 4_096, per_party: 64 };

/// What turns are counted by: the caller, and whether the update may take power away.
pub(super) type Party = (ActorId, bool);

type Name = (TenantId, KeyId);

/// The locks of the keys that are being updated, one semaphore for each, so that no key waits for another.
#[derive(Default)]
pub(super) struct KeyLocks(Mutex<HashMap<Name, Arc<FairSemaphore<Party>>>>);

impl KeyLocks {
    /// Waits for a key's lock. Dropping the guard releases it.
    ///
    /// # Errors
    /// When too many updates of the key wait, in all or of this caller.
    pub(super) async fn lock(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
        party: Party,
    ) -> Result<KeyLockGuard<'_>, AuthorityError> {
        let name = (tenant.clone(), key_id.clone());
        let new = || Arc::new(FairSemaphore::new(PERMITS, WAITING));
        let semaphore = self.0.lock().entry(name.clone()).or_insert_with(new).clone();
        // Made before the wait, so that a caller who gives up leaves no semaphore behind.
        let mut lock = KeyLockGuard { key_locks: self, name, semaphore: Some(semaphore.clone()), permit: None };
        lock.permit = Some(semaphore.acquire(party).await?);
        Ok(lock)
    }
}

/// A key's lock, or the wait for it.
pub(super) struct KeyLockGuard<'a> {
    key_locks: &'a KeyLocks,
    name: Name,
    semaphore: Option<Arc<FairSemaphore<Party>>>,
    permit: Option<FairPermit<Party>>,
}

impl Drop for KeyLockGuard<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        drop(self.semaphore.take());
        let mut semaphores = self.key_locks.0.lock();
        // The map has the last one, and gives out no other while it is locked.
        if semaphores.get(&self.name).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            semaphores.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    fn party(caller: &str, urgent: bool) -> Party {
        (ActorId::parse(caller).unwrap(), urgent)
    }

    fn name(id: &str) -> (TenantId, KeyId) {
        (TenantId::default_tenant(), KeyId::parse(id).unwrap())
    }

    #[tokio::test]
    async fn a_lock_leaves_nothing_behind_whether_it_was_held_or_given_up() {
        let key_locks = KeyLocks::default();
        let (tenant, id) = name("key");
        let lock = key_locks.lock(&tenant, &id, party("one", false)).await.ok();
        {
            let mut waiting = pin!(key_locks.lock(&tenant, &id, party("two", false)));
            assert!(poll!(&mut waiting).is_pending());
        }
        drop(lock);
        assert!(key_locks.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_caller_with_many_updates_waiting_is_refused_and_no_other_is() {
        let key_locks = KeyLocks::default();
        let (tenant, id) = name("key");
        let lock = key_locks.lock(&tenant, &id, party("one", false)).await.ok().unwrap();
        let mut waiting: Vec<_> =
            (0..64).map(|_| Box::pin(key_locks.lock(&tenant, &id, party("one", false)))).collect();
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        let refused = key_locks.lock(&tenant, &id, party("one", false)).await.err();
        assert!(matches!(refused, Some(AuthorityError::Overloaded)));
        let mut narrowing = pin!(key_locks.lock(&tenant, &id, party("one", true)));
        assert!(poll!(&mut narrowing).is_pending(), "it waits, and is not refused");
        let mut other = pin!(key_locks.lock(&tenant, &id, party("two", false)));
        assert!(poll!(&mut other).is_pending());
        drop(lock);
        // One of those that wait longer, then these.
        let first = waiting.remove(0).await.ok().unwrap();
        drop(first);
        let narrowing = narrowing.await.ok().unwrap();
        drop(narrowing);
        assert!(other.await.is_ok());
    }
}
