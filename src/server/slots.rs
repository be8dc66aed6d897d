//! Slots for connections. Some are reserved for each listener, and some for connections with a valid
//! credential. When another connection needs a slot, the oldest one without a valid credential is closed.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One part in this many is reserved for each listener.
const KEPT_FOR_LISTENER: usize = 16;
/// One part in this many is reserved for connections with a valid credential.
const KEPT_FOR_KNOWN: usize = 4;
/// One part in this many is kept free, so that a new connection need not wait until another one has closed.
const KEPT_FREE: usize = 64;
/// So long a connection has for its first call. A younger one is not closed for others of its address: many
/// that come at once are most often one service that has just started.
pub const FIRST_CALL_TIME: Duration = Duration::from_secs(5);
/// The least time between two log messages about connections that were turned away.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The slots. Clones share them.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Shared>);

/// How many slots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotUsage {
    /// Slots in all.
    pub of: usize,
    /// Slots that are taken.
    pub all: usize,
    /// Slots of connections without a valid credential.
    pub by_strangers: usize,
    /// Connections that were closed to make room for others.
    pub turned_away: u64,
    /// Whether the next connection needs the slot of another one.
    pub is_full: bool,
    /// Whether they are full of connections that are never closed for others.
    pub is_full_of_known: bool,
}

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    state: Mutex<SlotState>,
    /// Notified when a slot may be free.
    freed: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    all: usize,
    /// Reserved for each listener.
    kept: usize,
    /// For all listeners, beside what is reserved for each.
    common: usize,
    strangers: usize,
    /// How many of `common` and of `strangers` to keep free.
    free: usize,
    /// Whether connections are ever closed for others.
    turns_away: bool,
    /// Connections from one address without a valid credential.
    of_address: usize,
}

#[derive(Debug)]
struct SlotState {
    /// By listener.
    taken: Vec<usize>,
    /// By listener: connections at most, whatever is free besides.
    most: Vec<usize>,
    next: u64,
    /// Connections without a valid credential, the oldest first.
    strangers: BTreeMap<u64, Stranger>,
    /// The numbers of those, by their address.
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    /// Those of them that are told to close and have not closed yet, with their listeners.
    closing: BTreeMap<u64, usize>,
    logged_at: Option<Instant>,
    /// Connections that were turned away since the last log message.
    unlogged: u64,
    /// And in all.
    turned_away: u64,
}

#[derive(Debug)]
struct Stranger {
    listener: usize,
    address: Option<IpAddr>,
    since: Instant,
    close: CancellationToken,
}

/// The slots that a listener may take.
#[derive(Debug)]
pub(super) struct ListenerSlots {
    shared: Arc<Shared>,
    listener: usize,
}

/// The slot of a connection. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    serial: u64,
    listener: usize,
    close: CancellationToken,
}

/// Marks a connection that has shown a valid credential, so that it keeps its slot. Clones are of the same
/// connection.
#[derive(Clone, Debug)]
pub struct CredentialMark {
    shared: Arc<Shared>,
    serial: u64,
    is_set: Arc<AtomicBool>,
}

impl Slots {
    /// This many slots. When all are taken, further connections wait.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let bounds = Bounds {
            all: places,
            kept: 0,
            common: places,
            strangers: places,
            free: 0,
            turns_away: false,
            of_address: usize::MAX,
        };
        Self::within(bounds)
    }

    /// This many slots for this many listeners. A sixteenth is reserved for each listener, and a quarter for
    /// connections with a valid credential. When the others are taken, or one address has `of_address`
    /// connections without one, the oldest of those is closed; of an address, once it has had
    /// [`FIRST_CALL_TIME`].
    #[must_use]
    pub fn kept(places: usize, listeners: usize, of_address: usize) -> Self {
        let kept = (places / KEPT_FOR_LISTENER).min(places / (2 * listeners.max(1)));
        let strangers = (places - places / KEPT_FOR_KNOWN).max(1);
        let (common, free) = (places - kept * listeners, places / KEPT_FREE);
        Self::within(Bounds { all: places, kept, common, strangers, free, turns_away: true, of_address })
    }

    fn within(bounds: Bounds) -> Self {
        let state = SlotState {
            taken: vec![],
            most: vec![],
            next: 0,
            strangers: BTreeMap::new(),
            by_address: HashMap::new(),
            closing: BTreeMap::new(),
            logged_at: None,
            unlogged: 0,
            turned_away: 0,
        };
        Self(Arc::new(Shared { bounds, state: Mutex::new(state), freed: Notify::new() }))
    }

    /// How many slots are taken now.
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

    /// The slots of another listener, which has at most so many.
    pub(super) fn for_listener(&self, most: Option<usize>) -> ListenerSlots {
        let mut state = self.0.state.lock();
        state.taken.push(0);
        state.most.push(most.unwrap_or(usize::MAX));
        ListenerSlots { shared: self.0.clone(), listener: state.taken.len() - 1 }
    }
}

impl SlotState {
    fn all(&self) -> usize {
        self.taken.iter().sum()
    }

    /// Slots taken beside those reserved for listeners.
    fn common(&self, bounds: &Bounds) -> usize {
        self.taken.iter().map(|taken| taken.saturating_sub(bounds.kept)).sum()
    }

    /// Slots of connections without a valid credential, closing ones included.
    fn of_strangers(&self) -> usize {
        self.strangers.len() + self.closing.len()
    }

    fn has_place(&self, bounds: &Bounds, listener: usize) -> bool {
        self.taken[listener] < bounds.kept || self.has_common_place(bounds)
    }

    fn has_common_place(&self, bounds: &Bounds) -> bool {
        self.common(bounds) < bounds.common && self.of_strangers() < bounds.strangers
    }

    /// Whether too few slots would be free after the next connection, even when closing ones have closed.
    fn needs_place(&self, bounds: &Bounds) -> bool {
        bounds.turns_away
            && (self.strangers.len() + bounds.free >= bounds.strangers
                || self.common(bounds) + bounds.free >= bounds.common + self.closing.len())
    }

    /// The connection to close next. Reserved slots of one listener are not taken for another.
    fn oldest(&self, bounds: &Bounds) -> Option<u64> {
        let takes_common = |stranger: &Stranger| self.taken[stranger.listener] > bounds.kept;
        self.strangers.iter().find(|(_, stranger)| takes_common(stranger)).map(|(serial, _)| *serial)
    }

    /// Tells the oldest connection of a listener that may go to close, unless one closes already.
    fn make_room_on(&mut self, listener: usize, now: Instant) {
        if self.closing.values().any(|of| *of == listener) {
            return;
        }
        let of_listener = self.strangers.iter().find(|(_, stranger)| stranger.listener == listener);
        if let Some(oldest) = of_listener.map(|(serial, _)| *serial) {
            self.turn_away(oldest, now);
        }
    }

    /// Forgets a connection without a valid credential.
    fn remove_stranger(&mut self, serial: u64) -> Option<Stranger> {
        let stranger = self.strangers.remove(&serial)?;
        if let Some(address) = stranger.address
            && let Entry::Occupied(mut of_address) = self.by_address.entry(address)
        {
            of_address.get_mut().remove(&serial);
            if of_address.get().is_empty() {
                of_address.remove();
            }
        }
        Some(stranger)
    }

    /// Tells the oldest connections from an address to close, until it has fewer than it may, or those that
    /// are left are young.
    fn make_room_of(&mut self, address: IpAddr, most: usize, now: Instant) {
        loop {
            let of_address = self.by_address.get(&address).filter(|serials| serials.len() >= most);
            let Some(oldest) = of_address.and_then(|serials| serials.first().copied()) else { return };
            let is_young = |stranger: &Stranger| now.duration_since(stranger.since) < FIRST_CALL_TIME;
            if self.strangers.get(&oldest).is_none_or(is_young) {
                return;
            }
            self.turn_away(oldest, now);
        }
    }

    /// Tells a connection to close.
    fn turn_away(&mut self, serial: u64, now: Instant) {
        let Some(stranger) = self.remove_stranger(serial) else { return };
        self.closing.insert(serial, stranger.listener);
        stranger.close.cancel();
        self.turned_away += 1;
        self.unlogged += 1;
        if self.logged_at.is_none_or(|logged_at| now.duration_since(logged_at) >= LOG_INTERVAL) {
            self.logged_at = Some(now);
            tracing::warn!(
                connections = self.all(),
                without_credential = self.strangers.len(),
                turned_away = std::mem::take(&mut self.unlogged),
                "the places for connections, or those of one address, are taken: the oldest that have had no credential are turned away"
            );
        }
    }
}

impl Shared {
    /// Takes a slot, if there is one. If few are free, another connection is told to close; if none is,
    /// unless one is closing already.
    fn acquire(self: &Arc<Self>, listener: usize, from: Option<IpAddr>, end: &CancellationToken) -> Option<Slot> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        if state.taken[listener] >= state.most[listener] {
            state.make_room_on(listener, now);
            return None;
        }
        let has_place = state.has_place(&self.bounds, listener);
        if state.taken[listener] >= self.bounds.kept
            && (has_place || state.closing.is_empty())
            && state.needs_place(&self.bounds)
            && let Some(oldest) = state.oldest(&self.bounds)
        {
            state.turn_away(oldest, now);
        }
        if !has_place {
            return None;
        }
        let (serial, close) = (state.next, end.child_token());
        state.next += 1;
        state.taken[listener] += 1;
        let address = from.map(network_of);
        if let Some(address) = address {
            state.make_room_of(address, self.bounds.of_address, now);
            state.by_address.entry(address).or_default().insert(serial);
        }
        state.strangers.insert(serial, Stranger { listener, address, since: now, close: close.clone() });
        Some(Slot { shared: self.clone(), serial, listener, close })
    }
}

impl ListenerSlots {
    /// Takes a slot, if there is one, for a connection from an address that is to be counted. It closes when
    /// its child token of `end` is cancelled.
    pub(super) fn try_acquire(&self, from: Option<IpAddr>, end: &CancellationToken) -> Option<Slot> {
        self.shared.acquire(self.listener, from, end)
    }

    /// Waits for a slot.
    pub(super) async fn acquire(&self, from: Option<IpAddr>, end: &CancellationToken) -> Slot {
        loop {
            let freed = self.shared.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(slot) = self.try_acquire(from, end) {
                return slot;
            }
            freed.await;
        }
    }
}

/// What is counted as one address: of IPv6 the first 64 bits, which one host often has all of (RFC 4291,
/// section 2.5.4).
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Slot {
    pub(super) fn mark(&self) -> CredentialMark {
        CredentialMark { shared: self.shared.clone(), serial: self.serial, is_set: Arc::default() }
    }

    pub(super) fn close_token(&self) -> CancellationToken {
        self.close.clone()
    }
}

impl CredentialMark {
    /// The connection has shown a valid credential.
    pub fn mark_known(&self) {
        // Touches the shared state once only.
        if !self.is_set.swap(true, Ordering::Relaxed) && self.shared.state.lock().remove_stranger(self.serial).is_some()
        {
            // Another connection without a credential may fit now.
            self.shared.freed.notify_waiters();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.taken[self.listener] -= 1;
            state.remove_stranger(self.serial);
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
        let slots = Slots::kept(32, 1, usize::MAX);
        let (listener, stop) = (slots.for_listener(None), stop());
        let acquire = || slots.0.acquire(listener.listener, None, &stop);
        let mut strangers: Vec<_> = std::iter::from_fn(acquire).collect();
        // A quarter is reserved for connections with a credential.
        assert_eq!(strangers.len(), 24);
        assert!(goes(&strangers[0]) && !goes(&strangers[1]), "the last one that found no place needs one");
        assert!(acquire().is_none() && !goes(&strangers[1]), "one is about to go");
        drop(strangers.remove(0));
        strangers[0].mark().mark_known();
        // A connection with a credential is none of them.
        let newest = [acquire().unwrap(), acquire().unwrap()];
        assert!(acquire().is_none() && !goes(&strangers[0]) && goes(&strangers[1]));
        assert!(newest.iter().all(|slot| !goes(slot)));
        let taken = slots.usage();
        assert_eq!((taken.of, taken.all, taken.by_strangers, taken.turned_away), (32, 25, 23, 2));
        assert!(taken.is_full && !taken.is_full_of_known);
    }

    #[test]
    fn a_listener_has_its_slots_whatever_others_take() {
        let slots = Slots::kept(32, 2, usize::MAX);
        let (tcp, unix, stop) = (slots.for_listener(None), slots.for_listener(None), stop());
        let known: Vec<_> = std::iter::from_fn(|| {
            let slot = slots.0.acquire(tcp.listener, None, &stop)?;
            slot.mark().mark_known();
            Some(slot)
        })
        .collect();
        assert_eq!(known.len(), 30);
        assert!(slots.usage().is_full_of_known);
        let local: Vec<_> = std::iter::from_fn(|| slots.0.acquire(unix.listener, None, &stop)).collect();
        assert_eq!(local.len(), 2);
        assert!(local.iter().chain(&known).all(|slot| !goes(slot)), "these are its own, and known callers stay");
        assert_eq!(slots.usage().all, 32);
    }

    #[test]
    fn some_of_many_slots_are_kept_free() {
        let slots = Slots::kept(128, 1, usize::MAX);
        let (listener, stop) = (slots.for_listener(None), stop());
        let mut strangers: Vec<_> = (0..94).map(|_| slots.0.acquire(listener.listener, None, &stop).unwrap()).collect();
        assert!(slots.usage().is_full && strangers.iter().all(|slot| !goes(slot)));
        // Two come in without a wait.
        for nth in 0..2 {
            strangers.push(slots.0.acquire(listener.listener, None, &stop).unwrap());
            assert!(goes(&strangers[nth]) && !goes(&strangers[nth + 1]));
        }
        assert!(slots.0.acquire(listener.listener, None, &stop).is_none());
        drop(strangers.remove(0));
        strangers.push(slots.0.acquire(listener.listener, None, &stop).unwrap());
        let taken = slots.usage();
        assert_eq!((taken.all, taken.by_strangers, taken.turned_away), (96, 94, 3));
        assert!(taken.is_full && !taken.is_full_of_known);
    }

    #[test]
    fn a_listener_at_its_own_limit_makes_room_among_its_own() {
        let slots = Slots::kept(32, 2, usize::MAX);
        let (limited, other, stop) = (slots.for_listener(Some(2)), slots.for_listener(None), stop());
        let elsewhere = slots.0.acquire(other.listener, None, &stop).unwrap();
        let [known, oldest] = std::array::from_fn(|_| slots.0.acquire(limited.listener, None, &stop).unwrap());
        known.mark().mark_known();
        for _ in 0..2 {
            assert!(slots.0.acquire(limited.listener, None, &stop).is_none());
        }
        assert!(goes(&oldest) && !goes(&known) && !goes(&elsewhere));
        drop(oldest);
        let next = slots.0.acquire(limited.listener, None, &stop).unwrap();
        next.mark().mark_known();
        assert!(slots.0.acquire(limited.listener, None, &stop).is_none() && !goes(&next), "known callers stay");
        assert!(slots.0.acquire(other.listener, None, &stop).is_some());
    }

    #[tokio::test]
    async fn a_wait_for_a_slot_ends_when_one_is_free() {
        let slots = Slots::kept(1, 1, usize::MAX);
        let (listener, stop) = (slots.for_listener(None), stop());
        let first = listener.acquire(None, &stop).await;
        let mut second = std::pin::pin!(listener.acquire(None, &stop));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(second.as_mut().poll(cx).is_pending() && goes(&first));
        drop(first);
        second.await;
        assert_eq!(slots.usage().all, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_an_address_that_has_too_many_make_room_for_its_next_when_they_had_their_time() {
        let slots = Slots::kept(64, 1, 2);
        let (listener, stop) = (slots.for_listener(None), stop());
        let from = |text: &str| slots.0.acquire(listener.listener, Some(text.parse().unwrap()), &stop).unwrap();
        let [known, second, other] = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(from);
        known.mark().mark_known();
        let crowd: Vec<_> = (0..5).map(|_| from("192.0.2.1")).collect();
        assert!([&known, &second, &other].into_iter().chain(&crowd).all(|slot| !goes(slot)), "they have just come");
        tokio::time::advance(FIRST_CALL_TIME).await;
        let next = from("192.0.2.1");
        assert!(goes(&second) && crowd[..4].iter().all(goes), "there are two again");
        assert!([&known, &other, &crowd[4], &next].iter().all(|slot| !goes(slot)));
        // Of IPv6 a whole network counts as one.
        let network = ["2001:db8::1", "2001:db8::2:3", "2001:db8:0:1::1"].map(from);
        tokio::time::advance(FIRST_CALL_TIME).await;
        let last = from("2001:db8::ffff:0:0:1");
        assert!(goes(&network[0]) && [&network[1], &network[2], &last].iter().all(|slot| !goes(slot)));
        drop((known, second, other, crowd, next, network, last));
        assert!(slots.0.state.lock().by_address.is_empty());
    }

    #[test]
    fn without_reserved_slots_connections_wait() {
        let slots = Slots::new(1);
        let (listener, stop) = (slots.for_listener(None), stop());
        let first = slots.0.acquire(listener.listener, None, &stop).unwrap();
        assert!(slots.0.acquire(listener.listener, None, &stop).is_none() && !goes(&first));
        drop(first);
        assert!(slots.0.acquire(listener.listener, None, &stop).is_some());
    }
}
