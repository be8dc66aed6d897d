//! Fairness between parties: however much one asks for, the others have their turn next.
//!
//! [`Queue`] is bounded in all and per party. Parties take turns, and the items of one party stay in order.
//! [`FairSemaphore`] grants permits from such a queue.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A queue of items by party. The map hashes with a secret key (SipHash), so that no party can be chosen to
/// collide with another.
#[derive(Debug)]
pub struct Queue<P, T> {
    bounds: Bounds,
    len: usize,
    /// Never an empty queue.
    parties: HashMap<P, VecDeque<T>>,
    /// Each party with items, once, the next one first.
    turns: VecDeque<P>,
}

/// Bounds on a number.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In all.
    pub total: usize,
    /// Of one party.
    pub per_party: usize,
}

impl<P: Clone + Eq + Hash, T> Queue<P, T> {
    /// An empty queue.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, len: 0, parties: HashMap::new(), turns: VecDeque::new() }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends an item to those of its party.
    ///
    /// # Errors
    /// Returns the item if there are too many, in all or of this party.
    pub fn push(&mut self, party: P, item: T) -> Result<(), T> {
        let own = self.parties.get(&party).map_or(0, VecDeque::len);
        if self.len >= self.bounds.total || own >= self.bounds.per_party {
            return Err(item);
        }
        self.of(party).push_back(item);
        Ok(())
    }

    /// Puts an unfinished item back, before the others of its party; the next turn of the party comes after
    /// those of the others. It ignores the bounds.
    pub fn push_front(&mut self, party: P, item: T) {
        self.of(party).push_front(item);
    }

    fn of(&mut self, party: P) -> &mut VecDeque<T> {
        self.len += 1;
        if !self.parties.contains_key(&party) {
            self.turns.push_back(party.clone());
        }
        self.parties.entry(party).or_default()
    }

    /// Takes the next item.
    pub fn pop(&mut self) -> Option<(P, T)> {
        self.pop_where(|_| true)
    }

    /// Takes the next item of a party for which `may` returns true.
    pub fn pop_where(&mut self, may: impl Fn(&P) -> bool) -> Option<(P, T)> {
        let at = self.turns.iter().position(may)?;
        let party = self.turns.remove(at)?;
        let own = self.parties.get_mut(&party)?;
        let item = own.pop_front()?;
        self.len -= 1;
        if own.is_empty() {
            self.parties.remove(&party);
        } else {
            self.turns.push_back(party.clone());
        }
        Some((party, item))
    }

    /// Drops items of a party for which `stays` returns false.
    pub fn retain_where(&mut self, party: &P, stays: impl FnMut(&T) -> bool) {
        let Some(own) = self.parties.get_mut(party) else { return };
        let before = own.len();
        own.retain(stays);
        self.len -= before - own.len();
        if own.is_empty() {
            self.parties.remove(party);
            self.turns.retain(|other| other != party);
        }
    }
}

/// A semaphore that is fair between parties. Dropping a wait, also by a panic, is safe.
#[derive(Debug)]
pub struct FairSemaphore<P: Clone + Eq + Hash> {
    permits: Bounds,
    state: Mutex<SemaphoreState<P>>,
}

#[derive(Debug)]
struct SemaphoreState<P> {
    taken: usize,
    /// Permits by party, never 0.
    held: HashMap<P, usize>,
    waiting: Queue<P, oneshot::Sender<()>>,
}

/// Too many wait already, in all or of one party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are waiting")]
pub struct Crowded;

impl<P: Clone + Eq + Hash> FairSemaphore<P> {
    /// A semaphore with so many permits, for which so many may wait.
    #[must_use]
    pub fn new(permits: Bounds, waiting: Bounds) -> Self {
        let state = SemaphoreState { taken: 0, held: HashMap::new(), waiting: Queue::new(waiting) };
        Self { permits, state: Mutex::new(state) }
    }

    /// Waits for a permit. Dropping it gives it back.
    ///
    /// # Errors
    /// When too many wait already.
    pub async fn acquire(self: &Arc<Self>, party: P) -> Result<FairPermit<P>, Crowded> {
        let granted = {
            let mut state = self.state.lock();
            if state.may_acquire(&party, self.permits) {
                state.take(party.clone());
                None
            } else {
                let (grant, granted) = oneshot::channel();
                let refused = match state.waiting.push(party.clone(), grant) {
                    Ok(()) => None,
                    Err(grant) => {
                        // Abandoned waits do not count.
                        state.waiting.retain_where(&party, |waiting| !waiting.is_closed());
                        state.waiting.push(party.clone(), grant).err()
                    }
                };
                if refused.is_some() {
                    return Err(Crowded);
                }
                Some(granted)
            }
        };
        let mut permit = FairPermit { semaphore: self.clone(), party, granted };
        if let Some(granted) = &mut permit.granted {
            // The sender is in the queue until it is used, so this does not fail.
            granted.await.map_err(|_| Crowded)?;
            permit.granted = None;
        }
        Ok(permit)
    }

    fn release(&self, party: &P) {
        let mut state = self.state.lock();
        state.taken -= 1;
        if let Some(held) = state.held.get_mut(party) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(party);
            }
        }
        state.grant_waiting(self.permits);
    }
}

impl<P: Clone + Eq + Hash> SemaphoreState<P> {
    /// Whether a party may have one more permit now.
    fn may_acquire(&self, party: &P, permits: Bounds) -> bool {
        self.taken < permits.total && self.held.get(party).is_none_or(|held| *held < permits.per_party)
    }

    fn take(&mut self, party: P) {
        self.taken += 1;
        *self.held.entry(party).or_default() += 1;
    }

    fn grant_waiting(&mut self, permits: Bounds) {
        while self.taken < permits.total {
            let held = &self.held;
            let may = |party: &P| held.get(party).is_none_or(|held| *held < permits.per_party);
            let Some((party, grant)) = self.waiting.pop_where(may) else { return };
            if grant.send(()).is_ok() {
                self.take(party);
            }
        }
    }
}

/// A permit, or the wait for one.
#[derive(Debug)]
pub struct FairPermit<P: Clone + Eq + Hash> {
    semaphore: Arc<FairSemaphore<P>>,
    party: P,
    granted: Option<oneshot::Receiver<()>>,
}

impl<P: Clone + Eq + Hash> Drop for FairPermit<P> {
    fn drop(&mut self) {
        let has_place = self.granted.as_mut().is_none_or(|granted| {
            granted.close();
            granted.try_recv().is_ok()
        });
        if has_place {
            self.semaphore.release(&self.party);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;
    use std::task::Poll;

    fn queue(total: usize, per_party: usize) -> Queue<&'static str, u32> {
        Queue::new(Bounds { total, per_party })
    }

    #[test]
    fn parties_take_turns_and_each_keeps_its_order() {
        let mut queue = queue(100, 100);
        for number in 0..4 {
            queue.push("much", number).unwrap();
        }
        queue.push("little", 10).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, [0, 10, 1, 2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn one_party_cannot_fill_the_queue() {
        let mut queue = queue(4, 3);
        assert_eq!((0..5).map(|number| queue.push("much", number).is_ok()).filter(|ok| *ok).count(), 3);
        queue.push("little", 9).unwrap();
        assert_eq!(queue.push("third", 9), Err(9), "there is no room in all");
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn an_item_put_back_comes_before_its_party_and_after_others() {
        let mut queue = queue(10, 10);
        for (party, item) in [("a", 1), ("a", 2), ("b", 3)] {
            queue.push(party, item).unwrap();
        }
        let (party, item) = queue.pop().unwrap();
        queue.push_front(party, item);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, [3, 1, 2]);
    }

    fn new_semaphore() -> Arc<FairSemaphore<&'static str>> {
        Arc::new(FairSemaphore::new(Bounds { total: 3, per_party: 2 }, Bounds { total: 4, per_party: 2 }))
    }

    #[tokio::test]
    async fn permits_are_kept_for_other_parties_and_granted_to_them_first() {
        let semaphore = new_semaphore();
        let first = semaphore.acquire("much").await.unwrap();
        let second = semaphore.acquire("much").await.unwrap();
        let mut third = pin!(semaphore.acquire("much"));
        assert!(poll!(&mut third).is_pending(), "the third place is not for it");
        let other = semaphore.acquire("little").await.unwrap();
        let mut next = pin!(semaphore.acquire("other"));
        assert!(poll!(&mut next).is_pending());
        drop(other);
        assert!(poll!(&mut third).is_pending());
        let next = next.await.unwrap();
        drop(first);
        let third = third.await.unwrap();
        drop((second, third, next));
        assert_eq!(semaphore.state.lock().taken, 0);
        assert!(semaphore.state.lock().held.is_empty());
    }

    #[tokio::test]
    async fn an_abandoned_wait_leaves_no_trace() {
        let semaphore = new_semaphore();
        let permits = [
            semaphore.acquire("a").await.unwrap(),
            semaphore.acquire("a").await.unwrap(),
            semaphore.acquire("b").await.unwrap(),
        ];
        for _ in 0..10 {
            // More than may wait: abandoned waits do not count.
            let mut given_up = Box::pin(semaphore.acquire("a"));
            assert!(poll!(&mut given_up).is_pending());
        }
        let mut granted = Box::pin(semaphore.acquire("c"));
        assert!(poll!(&mut granted).is_pending());
        drop(permits);
        // It was granted, and is dropped before it notices.
        drop(granted);
        assert_eq!(semaphore.state.lock().taken, 0);
        assert_eq!(semaphore.state.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn too_many_of_one_party_are_refused_and_others_are_not() {
        let semaphore = new_semaphore();
        let _permits = [
            semaphore.acquire("a").await.unwrap(),
            semaphore.acquire("a").await.unwrap(),
            semaphore.acquire("b").await.unwrap(),
        ];
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(semaphore.acquire("a"))).collect();
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        assert_eq!(semaphore.acquire("a").await.err(), Some(Crowded));
        let mut other = pin!(semaphore.acquire("c"));
        assert!(matches!(poll!(&mut other), Poll::Pending));
    }
}
