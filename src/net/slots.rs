//! Places for connections: so many in all, of which some are kept for each listener, and some for callers who
//! have given a credential that works. A connection that has had none goes, the oldest first, when another
//! one needs its place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The part of all places that is kept for each listener.
const KEPT_FOR_LISTENER: usize = 16;
/// The part of all places that only connections may have that have had a credential that works.
const KEPT_FOR_KNOWN: usize = 4;
/// The part of all places that is kept free for who comes next, so that nobody waits until another one has gone.
const KEPT_FREE: usize = 64;
/// How often it is logged that connections were turned away.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The places for connections, and who has them. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Shared>);

/// How the places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUsage {
    /// Places that there are.
    pub of: usize,
    /// How many are taken.
    pub all: usize,
    /// How many of these are taken by connections that have not had a credential that works.
    pub by_strangers: usize,
    /// How many connections were turned away so that others get in.
    pub turned_away: u64,
    /// Whether one has to go for the next.
    pub is_full: bool,
    /// Whether that is because of connections that never have to go.
    pub is_full_of_known: bool,
}

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    state: Mutex<SlotState>,
    /// Told when there may be a place.
    freed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    all: usize,
    /// Kept for each listener.
    kept: usize,
    /// For all listeners beside what is kept for them.
    common: usize,
    strangers: usize,
    /// Of both, how many are to be free.
    free: usize,
    /// Whether strangers ever have to go.
    turns_away: bool,
}

#[derive(Debug)]
struct SlotState {
    /// By listener.
    taken: Vec<usize>,
    next: u64,
    /// Connections that have had no credential that works, the oldest first.
    strangers: BTreeMap<u64, Stranger>,
    /// Those of them that have been told to go and have not gone yet.
    closing: BTreeSet<u64>,
    logged_at: Option<Instant>,
    /// Connections that were turned away since then.
    unlogged: u64,
    /// And in all.
    turned_away: u64,
}

#[derive(Debug)]
struct Stranger {
    listener: usize,
    close: CancellationToken,
}

/// Where a listener takes its places.
#[derive(Debug)]
pub(super) struct ListenerSlots {
    shared: Arc<Shared>,
    listener: usize,
}

/// A connection's place, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    serial: u64,
    listener: usize,
    close: CancellationToken,
}

/// Says of a connection that it has had a credential that works: it keeps its place.
#[derive(Debug)]
pub struct CredentialMark {
    shared: Arc<Shared>,
    serial: u64,
    is_set: bool,
}

impl Slots {
    /// So many places. When they are taken, further connections wait.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let bounds = Bounds { all: places, kept: 0, common: places, strangers: places, free: 0, turns_away: false };
        Self::within(bounds)
    }

    /// So many places for so many listeners. A sixteenth is kept for each of them, and a quarter for callers
    /// with a credential that works. When the rest is taken, the oldest connection that has had none goes.
    #[must_use]
    pub fn kept(places: usize, listeners: usize) -> Self {
        let kept = (places / KEPT_FOR_LISTENER).min(places / (2 * listeners.max(1)));
        let strangers = (places - places / KEPT_FOR_KNOWN).max(1);
        let (common, free) = (places - kept * listeners, places / KEPT_FREE);
        Self::within(Bounds { all: places, kept, common, strangers, free, turns_away: true })
    }

    fn within(bounds: Bounds) -> Self {
        let state = SlotState {
            taken: vec![],
            next: 0,
            strangers: BTreeMap::new(),
            closing: BTreeSet::new(),
            logged_at: None,
            unlogged: 0,
            turned_away: 0,
        };
        Self(Arc::new(Shared { bounds, state: Mutex::new(state), freed: Notify::new() }))
    }

    /// How they are taken now.
    #[must_use]
    pub fn usage(&self) -> SlotUsage {
        let Shared { bounds, state, .. } = &*self.0;
        let state = state.lock();
        let is_full = state.needs_place(bounds) || !state.has_common_place(bounds);
        SlotUsage {
            of: bounds.all,
            all: state.all(),
            by_strangers: state.strangers.len(),
            turned_away: state.turned_away,
            is_full,
            is_full_of_known: !state.has_common_place(bounds)
                && state.oldest(bounds).is_none()
                && state.closing.is_empty(),
        }
    }

    /// The door of another listener.
    pub(super) fn for_listener(&self) -> ListenerSlots {
        let mut state = self.0.state.lock();
        state.taken.push(0);
        ListenerSlots { shared: self.0.clone(), listener: state.taken.len() - 1 }
    }
}

impl SlotState {
    fn all(&self) -> usize {
        self.taken.iter().sum()
    }

    /// Places that are taken beside those that are kept for listeners.
    fn common(&self, bounds: &Bounds) -> usize {
        self.taken.iter().map(|taken| taken.saturating_sub(bounds.kept)).sum()
    }

    /// Places of strangers, also of those who have yet to go.
    fn of_strangers(&self) -> usize {
        self.strangers.len() + self.closing.len()
    }

    fn has_place(&self, bounds: &Bounds, listener: usize) -> bool {
        self.taken[listener] < bounds.kept || self.has_common_place(bounds)
    }

    fn has_common_place(&self, bounds: &Bounds) -> bool {
        self.common(bounds) < bounds.common && self.of_strangers() < bounds.strangers
    }

    /// Whether too few places would be free with the next one, when those have gone who have to.
    fn needs_place(&self, bounds: &Bounds) -> bool {
        bounds.turns_away
            && (self.strangers.len() + bounds.free >= bounds.strangers
                || self.common(bounds) + bounds.free >= bounds.common + self.closing.len())
    }

    /// The stranger who goes next. What is kept for a listener is not taken from its connections for others.
    fn oldest(&self, bounds: &Bounds) -> Option<u64> {
        let takes_common = |stranger: &Stranger| self.taken[stranger.listener] > bounds.kept;
        self.strangers.iter().find(|(_, stranger)| takes_common(stranger)).map(|(serial, _)| *serial)
    }

    /// Tells a stranger to go.
    fn turn_away(&mut self, serial: u64, now: Instant) {
        let Some(stranger) = self.strangers.remove(&serial) else { return };
        self.closing.insert(serial);
        stranger.close.cancel();
        self.turned_away += 1;
        self.unlogged += 1;
        if self.logged_at.is_none_or(|logged_at| now.duration_since(logged_at) >= LOG_INTERVAL) {
            self.logged_at = Some(now);
            tracing::warn!(
                connections = self.all(),
                without_credential = self.strangers.len(),
                turned_away = std::mem::take(&mut self.unlogged),
                "the places for connections are taken: the oldest that have had no credential are turned away"
            );
        }
    }
}

impl Shared {
    /// A place, if there is one. If there are few, a stranger is told to go; if there is none, unless another
    /// one is about to.
    fn acquire(self: &Arc<Self>, listener: usize, end: &CancellationToken) -> Option<Slot> {
        let mut state = self.state.lock();
        let has_place = state.has_place(&self.bounds, listener);
        if state.taken[listener] >= self.bounds.kept
            && (has_place || state.closing.is_empty())
            && state.needs_place(&self.bounds)
            && let Some(oldest) = state.oldest(&self.bounds)
        {
            state.turn_away(oldest, Instant::now());
        }
        if !has_place {
            return None;
        }
        let (serial, close) = (state.next, end.child_token());
        state.next += 1;
        state.taken[listener] += 1;
        state.strangers.insert(serial, Stranger { listener, close: close.clone() });
        Some(Slot { shared: self.clone(), serial, listener, close })
    }
}

impl ListenerSlots {
    /// A place, if there is one. Its connection is told by a child of `end` when it has to go.
    pub(super) fn try_acquire(&self, end: &CancellationToken) -> Option<Slot> {
        self.shared.acquire(self.listener, end)
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, end: &CancellationToken) -> Slot {
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(slot) = self.try_acquire(end) {
                return slot;
            }
            freed.await;
        }
    }
}

impl Slot {
    pub(super) fn mark(&self) -> CredentialMark {
        CredentialMark { shared: self.shared.clone(), serial: self.serial, is_set: false }
    }

    pub(super) fn close_token(&self) -> CancellationToken {
        self.close.clone()
    }
}

impl CredentialMark {
    /// The connection has had a credential that works.
    pub fn mark_known(&mut self) {
        // What all connections share is not touched again.
        if !std::mem::replace(&mut self.is_set, true)
            && self.shared.state.lock().strangers.remove(&self.serial).is_some()
        {
            // There may be room for another stranger.
            self.shared.freed.notify_waiters();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.taken[self.listener] -= 1;
            state.strangers.remove(&self.serial);
            state.closing.remove(&self.serial);
        }
        self.shared.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::task::{Context, Waker};

    fn stop() -> CancellationToken {
        CancellationToken::new()
    }

    fn goes(slot: &Slot) -> bool {
        slot.close.is_cancelled()
    }

    #[test]
    fn the_oldest_connection_without_a_credential_makes_room_for_the_next() {
        let slots = Slots::kept(32, 1);
        let (listener, stop) = (slots.for_listener(), stop());
        let acquire = || slots.0.acquire(listener.listener, &stop);
        let mut strangers: Vec<_> = std::iter::from_fn(acquire).collect();
        // A quarter is kept for those who have a credential.
        assert_eq!(strangers.len(), 24);
        assert!(goes(&strangers[0]) && !goes(&strangers[1]), "the last one that found no place needs one");
        assert!(acquire().is_none() && !goes(&strangers[1]), "one is about to go");
        drop(strangers.remove(0));
        strangers[0].mark().mark_known();
        // Whoever has a credential is none of them.
        let newest = [acquire().unwrap(), acquire().unwrap()];
        assert!(acquire().is_none() && !goes(&strangers[0]) && goes(&strangers[1]));
        assert!(newest.iter().all(|slot| !goes(slot)));
        let taken = slots.usage();
        assert_eq!((taken.of, taken.all, taken.by_strangers, taken.turned_away), (32, 25, 23, 2));
        assert!(taken.is_full && !taken.is_full_of_known);
    }

    #[test]
    fn a_listener_has_its_places_whatever_others_take() {
        let slots = Slots::kept(32, 2);
        let (tcp, unix, stop) = (slots.for_listener(), slots.for_listener(), stop());
        let known: Vec<_> = std::iter::from_fn(|| {
            let slot = slots.0.acquire(tcp.listener, &stop)?;
            slot.mark().mark_known();
            Some(slot)
        })
        .collect();
        assert_eq!(known.len(), 30);
        assert!(slots.usage().is_full_of_known);
        let local: Vec<_> = std::iter::from_fn(|| slots.0.acquire(unix.listener, &stop)).collect();
        assert_eq!(local.len(), 2);
        assert!(local.iter().chain(&known).all(|slot| !goes(slot)), "these are its own, and known callers stay");
        assert_eq!(slots.usage().all, 32);
    }

    #[test]
    fn of_many_places_some_are_kept_free_for_who_comes_next() {
        let slots = Slots::kept(128, 1);
        let (listener, stop) = (slots.for_listener(), stop());
        let mut strangers: Vec<_> = (0..94).map(|_| slots.0.acquire(listener.listener, &stop).unwrap()).collect();
        assert!(slots.usage().is_full && strangers.iter().all(|slot| !goes(slot)));
        // Two come in without a wait.
        for nth in 0..2 {
            strangers.push(slots.0.acquire(listener.listener, &stop).unwrap());
            assert!(goes(&strangers[nth]) && !goes(&strangers[nth + 1]));
        }
        assert!(slots.0.acquire(listener.listener, &stop).is_none());
        drop(strangers.remove(0));
        strangers.push(slots.0.acquire(listener.listener, &stop).unwrap());
        let taken = slots.usage();
        assert_eq!((taken.all, taken.by_strangers, taken.turned_away), (96, 94, 3));
        assert!(taken.is_full && !taken.is_full_of_known);
    }

    #[tokio::test]
    async fn whoever_waits_for_a_place_gets_in_when_there_is_one() {
        let slots = Slots::kept(1, 1);
        let (listener, stop) = (slots.for_listener(), stop());
        let first = listener.acquire(&stop).await;
        let mut second = std::pin::pin!(listener.acquire(&stop));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(cx).is_pending() && goes(&first));
        drop(first);
        second.await;
        assert_eq!(slots.usage().all, 0);
    }

    #[test]
    fn places_of_which_none_are_kept_are_waited_for() {
        let slots = Slots::new(1);
        let (listener, stop) = (slots.for_listener(), stop());
        let first = slots.0.acquire(listener.listener, &stop).unwrap();
        assert!(slots.0.acquire(listener.listener, &stop).is_none() && !goes(&first));
        drop(first);
        assert!(slots.0.acquire(listener.listener, &stop).is_some());
    }
}
