//! One bound on the bytes of replies that wait on a connection, for both paths.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The budget of a connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ReplyBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// See [`Limits::replies_bytes_max`](super::Limits::replies_bytes_max).
    bytes_max: usize,
    /// Bytes that wait to be sent.
    held_bytes: AtomicUsize,
    /// Notified when [`Self::is_full`](ReplyBudget::is_full) becomes false.
    capacity_freed: Notify,
    /// One permit, for the calls with long replies.
    turn: Arc<Semaphore>,
}

/// A wait for the turn of a call with a long reply.
pub(super) struct ReplyTurn {
    taking: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>,
    permit: TurnPermit,
}

/// Holds the turn once it is taken. Dropping it passes the turn on.
#[derive(Clone, Debug, Default)]
pub(super) struct TurnPermit(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl ReplyTurn {
    pub(super) fn new(budget: &ReplyBudget) -> Self {
        Self { taking: Box::pin(budget.clone().take_turn()), permit: TurnPermit::default() }
    }

    pub(super) fn permit(&self) -> TurnPermit {
        self.permit.clone()
    }

    /// Takes the turn. Ready once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let turn = ready!(self.taking.as_mut().poll(cx));
        *self.permit.0.lock() = turn;
        Poll::Ready(())
    }
}

impl fmt::Debug for ReplyTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyTurn")
    }
}

/// A part of a reply that waits to be sent.
#[derive(Debug)]
pub(super) struct ReplyPart {
    /// What is not sent yet.
    pub(super) bytes: Bytes,
    /// Permits to give back to its call when it is sent; 0 on the fast path.
    pub(super) permits: usize,
    budget: ReplyBudget,
    /// All of its memory is held until the last byte is sent.
    held: usize,
}

impl ReplyBudget {
    /// A budget of this many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self(Arc::new(Inner { bytes_max, held_bytes: AtomicUsize::new(0), capacity_freed: Notify::new(), turn }))
    }

    /// Whether nothing more should be added.
    pub(super) fn is_full(&self) -> bool {
        self.held_bytes() >= self.0.bytes_max
    }

    /// Bytes that wait to be sent.
    pub(super) fn held_bytes(&self) -> usize {
        self.0.held_bytes.load(Ordering::Acquire)
    }

    /// Counts a part that exists already. Callers check [`Self::is_full`] before they make one.
    pub(super) fn add(&self, bytes: Bytes, permits: usize) -> ReplyPart {
        let held = bytes.len();
        self.0.held_bytes.fetch_add(held, Ordering::AcqRel);
        ReplyPart { bytes, permits, budget: self.clone(), held }
    }

    /// Waits until it is not full.
    pub(super) async fn wait_for_capacity(&self) {
        while self.is_full() {
            let capacity_freed = self.0.capacity_freed.notified();
            tokio::pin!(capacity_freed);
            // It may have been freed since the check above.
            if capacity_freed.as_mut().enable() || !self.is_full() {
                continue;
            }
            capacity_freed.await;
        }
    }

    /// Waits until no other call has the turn and the budget is not full. Dropping the permit passes the turn
    /// on.
    pub(super) async fn take_turn(self) -> Option<OwnedSemaphorePermit> {
        let turn = self.0.turn.clone().acquire_owned().await.ok();
        self.wait_for_capacity().await;
        turn
    }
}

impl ReplyPart {
    /// The first bytes were sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }
}

impl Drop for ReplyPart {
    fn drop(&mut self) {
        let Inner { bytes_max, held_bytes, capacity_freed, .. } = &*self.budget.0;
        let before = held_bytes.fetch_sub(self.held, Ordering::AcqRel);
        if before >= *bytes_max && before - self.held < *bytes_max {
            capacity_freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::pin::pin;
    use std::task::{Context, Waker};

    const BYTES_MAX: usize = 1_000;

    fn bytes(len: usize) -> Bytes {
        vec![1; len].into()
    }

    #[test]
    fn a_wait_ends_when_there_is_room() {
        let budget = ReplyBudget::new(BYTES_MAX);
        let cx = &mut Context::from_waker(Waker::noop());
        let (first, second) = (budget.add(bytes(BYTES_MAX - 1), 0), budget.add(bytes(2), 0));
        let mut waiting = pin!(budget.wait_for_capacity());
        assert!(waiting.as_mut().poll(cx).is_pending());
        drop(second);
        assert!(waiting.as_mut().poll(cx).is_ready());
        let mut large = budget.add(bytes(3 * BYTES_MAX), 0);
        drop(first);
        large.advance(3 * BYTES_MAX - 1);
        assert!(budget.is_full(), "its memory is there until it is sent to its end");
        drop(large);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn turns_are_taken_one_by_one_and_when_there_is_room() {
        let budget = ReplyBudget::new(BYTES_MAX);
        let cx = &mut Context::from_waker(Waker::noop());
        let full = budget.add(bytes(BYTES_MAX), 0);
        let (mut first, mut second) = (Box::pin(budget.clone().take_turn()), Box::pin(budget.clone().take_turn()));
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        drop(full);
        assert!(second.as_mut().poll(cx).is_pending(), "not before the first");
        let std::task::Poll::Ready(turn) = first.as_mut().poll(cx) else { unreachable!("there is room") };
        assert!(second.as_mut().poll(cx).is_pending());
        drop(turn);
        assert!(second.as_mut().poll(cx).is_ready());
        // An abandoned wait blocks no other.
        let mut third = Box::pin(budget.clone().take_turn());
        assert!(third.as_mut().poll(cx).is_ready());
    }
}
