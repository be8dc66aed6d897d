//! Fairness between callers: however much one of them asks for, the others have their turn next.
//!
//! [`Queue`] holds what waits, with a bound in all and one for each party; parties take turns, and what one of them has put
//! in goes in its order. [`Gate`] lets a number of them in at a time, from such a queue.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What waits, by party. Parties are found by a keyed hash (SipHash), so none can be chosen to be in another's way.
#[derive(Debug)]
pub struct Queue<P, T> {
    bounds: Bounds,
    len: usize,
    /// None of these is empty.
    parties: HashMap<P, VecDeque<T>>,
    /// Each party that waits, once, the next one first.
    turns: VecDeque<P>,
}

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In all.
    pub of_all: usize,
    /// Of one party.
    pub of_one: usize,
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

    /// Adds one at the end of its party's.
    ///
    /// # Errors
    /// Gives it back where there are too many, in all or of this party.
    pub fn push(&mut self, party: P, item: T) -> Result<(), T> {
        let own = self.parties.get(&party).map_or(0, VecDeque::len);
        if self.len >= self.bounds.of_all || own >= self.bounds.of_one {
            return Err(item);
        }
        self.of(party).push_back(item);
        Ok(())
    }

    /// Puts back what was taken and is not done: before all others of its party, whose turn comes after those of others. There
    /// is always room for it.
    pub fn push_again(&mut self, party: P, item: T) {
        self.of(party).push_front(item);
    }

    fn of(&mut self, party: P) -> &mut VecDeque<T> {
        self.len += 1;
        if !self.parties.contains_key(&party) {
            self.turns.push_back(party.clone());
        }
        self.parties.entry(party).or_default()
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<(P, T)> {
        self.pop_of(|_| true)
    }

    /// Takes the next one of a party that may.
    pub fn pop_of(&mut self, may: impl Fn(&P) -> bool) -> Option<(P, T)> {
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

    /// Lets go of what a party has put in, save what is to stay.
    pub fn retain_of(&mut self, party: &P, stays: impl FnMut(&T) -> bool) {
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

/// Lets so many in at a time; the others wait. Nobody is forgotten who gives up waiting, or leaves by a panic.
#[derive(Debug)]
pub struct Gate<P: Clone + Eq + Hash> {
    places: Bounds,
    state: Mutex<Doorway<P>>,
}

#[derive(Debug)]
struct Doorway<P> {
    taken: usize,
    /// By party. None of these is 0.
    held: HashMap<P, usize>,
    waiting: Queue<P, oneshot::Sender<()>>,
}

/// Too many wait at a gate, in all or of one party.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many are waiting")]
pub struct Crowded;

impl<P: Clone + Eq + Hash> Gate<P> {
    /// A gate with so many places, before which so many may wait.
    #[must_use]
    pub fn new(places: Bounds, waiting: Bounds) -> Self {
        let state = Doorway { taken: 0, held: HashMap::new(), waiting: Queue::new(waiting) };
        Self { places, state: Mutex::new(state) }
    }

    /// Waits for a place, which is free again when it is dropped.
    ///
    /// # Errors
    /// When too many wait already.
    pub async fn enter(self: &Arc<Self>, party: P) -> Result<Place<P>, Crowded> {
        let granted = {
            let mut state = self.state.lock();
            if state.may_take(&party, self.places) {
                state.take(party.clone());
                None
            } else {
                let (grant, granted) = oneshot::channel();
                let refused = match state.waiting.push(party.clone(), grant) {
                    Ok(()) => None,
                    Err(grant) => {
                        // Those that have given up do not count.
                        state.waiting.retain_of(&party, |waiting| !waiting.is_closed());
                        state.waiting.push(party.clone(), grant).err()
                    }
                };
                if refused.is_some() {
                    return Err(Crowded);
                }
                Some(granted)
            }
        };
        let mut place = Place { gate: self.clone(), party, granted };
        if let Some(granted) = &mut place.granted {
            // Its sender waits in the gate, and is used or kept.
            granted.await.map_err(|_| Crowded)?;
            place.granted = None;
        }
        Ok(place)
    }

    fn leave(&self, party: &P) {
        let mut state = self.state.lock();
        state.taken -= 1;
        if let Some(held) = state.held.get_mut(party) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(party);
            }
        }
        state.let_in(self.places);
    }
}

impl<P: Clone + Eq + Hash> Doorway<P> {
    /// Whoever waits has too many places already, or there is none.
    fn may_take(&self, party: &P, places: Bounds) -> bool {
        self.taken < places.of_all && self.held.get(party).is_none_or(|held| *held < places.of_one)
    }

    fn take(&mut self, party: P) {
        self.taken += 1;
        *self.held.entry(party).or_default() += 1;
    }

    fn let_in(&mut self, places: Bounds) {
        while self.taken < places.of_all {
            let held = &self.held;
            let may = |party: &P| held.get(party).is_none_or(|held| *held < places.of_one);
            let Some((party, grant)) = self.waiting.pop_of(may) else { return };
            if grant.send(()).is_ok() {
                self.take(party);
            }
        }
    }
}

/// A place in a gate, or the wait for one.
#[derive(Debug)]
pub struct Place<P: Clone + Eq + Hash> {
    gate: Arc<Gate<P>>,
    party: P,
    granted: Option<oneshot::Receiver<()>>,
}

impl<P: Clone + Eq + Hash> Drop for Place<P> {
    fn drop(&mut self) {
        let has_place = self.granted.as_mut().is_none_or(|granted| {
            granted.close();
            granted.try_recv().is_ok()
        });
        if has_place {
            self.gate.leave(&self.party);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use std::pin::pin;
    use std::task::Poll;

    fn queue(of_all: usize, of_one: usize) -> Queue<&'static str, u32> {
        Queue::new(Bounds { of_all, of_one })
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
    fn one_party_cannot_take_all_the_room() {
        let mut queue = queue(4, 3);
        assert_eq!((0..5).map(|number| queue.push("much", number).is_ok()).filter(|ok| *ok).count(), 3);
        queue.push("little", 9).unwrap();
        assert_eq!(queue.push("third", 9), Err(9), "there is no room in all");
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn what_is_not_done_comes_before_its_party_and_after_others() {
        let mut queue = queue(10, 10);
        for (party, item) in [("a", 1), ("a", 2), ("b", 3)] {
            queue.push(party, item).unwrap();
        }
        let (party, item) = queue.pop().unwrap();
        queue.push_again(party, item);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, item)| item).collect();
        assert_eq!(order, [3, 1, 2]);
    }

    fn gate() -> Arc<Gate<&'static str>> {
        Arc::new(Gate::new(Bounds { of_all: 3, of_one: 2 }, Bounds { of_all: 4, of_one: 2 }))
    }

    #[tokio::test]
    async fn a_gate_keeps_places_for_others_and_lets_them_in_first() {
        let gate = gate();
        let first = gate.enter("much").await.unwrap();
        let second = gate.enter("much").await.unwrap();
        let mut third = pin!(gate.enter("much"));
        assert!(poll!(&mut third).is_pending(), "the third place is not for it");
        let other = gate.enter("little").await.unwrap();
        let mut next = pin!(gate.enter("other"));
        assert!(poll!(&mut next).is_pending());
        drop(other);
        assert!(poll!(&mut third).is_pending());
        let next = next.await.unwrap();
        drop(first);
        let third = third.await.unwrap();
        drop((second, third, next));
        assert_eq!(gate.state.lock().taken, 0);
        assert!(gate.state.lock().held.is_empty());
    }

    #[tokio::test]
    async fn whoever_gives_up_leaves_no_trace() {
        let gate = gate();
        let places = [gate.enter("a").await.unwrap(), gate.enter("a").await.unwrap(), gate.enter("b").await.unwrap()];
        for _ in 0..10 {
            // More than may wait: those that have given up do not count.
            let mut given_up = Box::pin(gate.enter("a"));
            assert!(poll!(&mut given_up).is_pending());
        }
        let mut granted = Box::pin(gate.enter("c"));
        assert!(poll!(&mut granted).is_pending());
        drop(places);
        // It has been let in, and goes without having noticed.
        drop(granted);
        assert_eq!(gate.state.lock().taken, 0);
        assert_eq!(gate.state.lock().waiting.len(), 0);
    }

    #[tokio::test]
    async fn too_many_of_one_party_are_refused_and_others_are_not() {
        let gate = gate();
        let _places = [gate.enter("a").await.unwrap(), gate.enter("a").await.unwrap(), gate.enter("b").await.unwrap()];
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(gate.enter("a"))).collect();
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        assert_eq!(gate.enter("a").await.err(), Some(Crowded));
        let mut other = pin!(gate.enter("c"));
        assert!(matches!(poll!(&mut other), Poll::Pending));
    }
}
