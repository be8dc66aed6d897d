//! Updates of one key take turns: arriving together, they would undo each other's reading again and again.
//!
//! Only updates: a disable never waits for them, and wins against the one that is under way at most a few times later. Callers
//! have their turns one after the other, however many updates one of them has waiting; and updates of one caller that may take
//! power away have theirs beside those that may not.

use std::collections::HashMap;
use std::sync::Arc;

use keyward_core::id::{ActorId, KeyId, TenantId};
use parking_lot::Mutex;

use super::AuthorityError;
use crate::fair::{Bounds, FairPermit, FairSemaphore};

/// One update of a key at a time.
const PLACES: Bounds = Bounds { total: 1, per_party: 1 };
/// Updates of one key that wait; one more is refused.
const WAITING: Bounds = Bounds { total: 4_096, per_party: 64 };

/// Who has turns: a caller, with the updates that may take power away or with the others.
pub(super) type Party = (ActorId, bool);

type Name = (TenantId, KeyId);

/// The keys that are being updated. Each has a gate of its own: no key is ever in the way of another.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Name, Arc<FairSemaphore<Party>>>>);

impl Turns {
    /// Waits for the turn of a key's update. It ends when this is dropped.
    pub(super) async fn take(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
        party: Party,
    ) -> Result<Turn<'_>, AuthorityError> {
        let name = (tenant.clone(), key_id.clone());
        let new = || Arc::new(FairSemaphore::new(PLACES, WAITING));
        let gate = self.0.lock().entry(name.clone()).or_insert_with(new).clone();
        // From here on, so that whoever gives up waiting leaves nothing behind.
        let mut turn = Turn { turns: self, name, gate: Some(gate.clone()), place: None };
        turn.place = Some(gate.acquire(party).await?);
        Ok(turn)
    }
}

/// The turn of an update, or the wait for it.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    name: Name,
    gate: Option<Arc<FairSemaphore<Party>>>,
    place: Option<FairPermit<Party>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.place.take());
        drop(self.gate.take());
        let mut gates = self.turns.0.lock();
        // Nobody else has it, and nobody can get it meanwhile.
        if gates.get(&self.name).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.name);
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
    async fn a_turn_leaves_nothing_behind_whether_it_was_had_or_given_up() {
        let turns = Turns::default();
        let (tenant, id) = name("key");
        let turn = turns.take(&tenant, &id, party("one", false)).await.ok();
        {
            let mut waiting = pin!(turns.take(&tenant, &id, party("two", false)));
            assert!(poll!(&mut waiting).is_pending());
        }
        drop(turn);
        assert!(turns.0.lock().is_empty());
    }

    #[tokio::test]
    async fn whoever_has_many_updates_waiting_is_refused_and_nobody_else_is() {
        let turns = Turns::default();
        let (tenant, id) = name("key");
        let turn = turns.take(&tenant, &id, party("one", false)).await.ok().unwrap();
        let mut waiting: Vec<_> = (0..64).map(|_| Box::pin(turns.take(&tenant, &id, party("one", false)))).collect();
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        let refused = turns.take(&tenant, &id, party("one", false)).await.err();
        assert!(matches!(refused, Some(AuthorityError::Overloaded)));
        let mut narrowing = pin!(turns.take(&tenant, &id, party("one", true)));
        assert!(poll!(&mut narrowing).is_pending(), "it waits, and is not refused");
        let mut other = pin!(turns.take(&tenant, &id, party("two", false)));
        assert!(poll!(&mut other).is_pending());
        drop(turn);
        // One of those that wait longer, then these.
        let first = waiting.remove(0).await.ok().unwrap();
        drop(first);
        let narrowing = narrowing.await.ok().unwrap();
        drop(narrowing);
        assert!(other.await.is_ok());
    }
}
