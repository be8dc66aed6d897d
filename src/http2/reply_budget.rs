//! How much of replies may wait on a connection for its peer to read it: one bound, whichever way they were made.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::REPLIES_BYTES_MAX;

/// The room of a connection. Clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct ReplyBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes that wait.
    held_bytes: AtomicUsize,
    /// Told when they are few enough again.
    capacity_freed: Notify,
    /// The turn of calls whose replies may be long.
    turn: Arc<Semaphore>,
}

/// The wait for the turn of a call whose reply may be long.
pub(super) struct ReplyTurn {
    taking: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>,
    permit: TurnPermit,
}

/// Where a turn is kept when it is taken. It is given on when this is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct TurnPermit(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl ReplyTurn {
    pub(super) fn new(budget: &ReplyBudget) -> Self {
        Self { taking: Box::pin(budget.clone().take_turn()), permit: TurnPermit::default() }
    }

    pub(super) fn permit(&self) -> TurnPermit {
        self.permit.clone()
    }

    /// Takes it. It is ready once.
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

/// A part of a reply that waits until it is sent, or is dropped.
#[derive(Debug)]
pub(super) struct ReplyPart {
    /// What is not sent yet.
    pub(super) bytes: Bytes,
    /// What its call gets back of its own room when it is sent; 0 if it was made at once, without a call.
    pub(super) permits: usize,
    budget: ReplyBudget,
    /// All of its memory stays until the last byte is sent.
    held: usize,
}

impl Default for ReplyBudget {
    fn default() -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self(Arc::new(Inner { held_bytes: AtomicUsize::new(0), capacity_freed: Notify::new(), turn }))
    }
}

impl ReplyBudget {
    /// Whether so much waits that nothing should be added to it.
    pub(super) fn is_full(&self) -> bool {
        self.held_bytes() >= REPLIES_BYTES_MAX
    }

    /// Bytes that wait.
    pub(super) fn held_bytes(&self) -> usize {
        self.0.held_bytes.load(Ordering::Acquire)
    }

    /// Takes up room for a part that is there. It is never refused: whoever makes one asks first whether there is room.
    pub(super) fn add(&self, bytes: Bytes, permits: usize) -> ReplyPart {
        let held = bytes.len();
        self.0.held_bytes.fetch_add(held, Ordering::AcqRel);
        ReplyPart { bytes, permits, budget: self.clone(), held }
    }

    /// Waits until there is room.
    pub(super) async fn wait_for_capacity(&self) {
        while self.is_full() {
            let capacity_freed = self.0.capacity_freed.notified();
            tokio::pin!(capacity_freed);
            // It may have been freed since the look above.
            if capacity_freed.as_mut().enable() || !self.is_full() {
                continue;
            }
            capacity_freed.await;
        }
    }

    /// Waits until there is room, and no other call has the turn. Whoever drops the permit gives it on. `None`: never.
    pub(super) async fn take_turn(self) -> Option<OwnedSemaphorePermit> {
        let turn = self.0.turn.clone().acquire_owned().await.ok();
        self.wait_for_capacity().await;
        turn
    }
}

impl ReplyPart {
    /// The first bytes are sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }
}

impl Drop for ReplyPart {
    fn drop(&mut self) {
        let before = self.budget.0.held_bytes.fetch_sub(self.held, Ordering::AcqRel);
        if before >= REPLIES_BYTES_MAX && before - self.held < REPLIES_BYTES_MAX {
            self.budget.0.capacity_freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::pin::pin;
    use std::task::{Context, Waker};

    fn bytes(len: usize) -> Bytes {
        vec![1; len].into()
    }

    #[test]
    fn whoever_waits_goes_on_when_there_is_room() {
        let budget = ReplyBudget::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let (first, second) = (budget.add(bytes(REPLIES_BYTES_MAX - 1), 0), budget.add(bytes(2), 0));
        let mut waiting = pin!(budget.wait_for_capacity());
        assert!(waiting.as_mut().poll(cx).is_pending());
        drop(second);
        assert!(waiting.as_mut().poll(cx).is_ready());
        let mut large = budget.add(bytes(3 * REPLIES_BYTES_MAX), 0);
        drop(first);
        large.advance(3 * REPLIES_BYTES_MAX - 1);
        assert!(budget.is_full(), "its memory is there until it is sent to its end");
        drop(large);
        assert_eq!(budget.held_bytes(), 0);
    }

    #[test]
    fn turns_are_taken_one_by_one_and_when_there_is_room() {
        let budget = ReplyBudget::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let full = budget.add(bytes(REPLIES_BYTES_MAX), 0);
        let (mut first, mut second) = (Box::pin(budget.clone().take_turn()), Box::pin(budget.clone().take_turn()));
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        drop(full);
        assert!(second.as_mut().poll(cx).is_pending(), "not before the first");
        let std::task::Poll::Ready(turn) = first.as_mut().poll(cx) else { unreachable!("there is room") };
        assert!(second.as_mut().poll(cx).is_pending());
        drop(turn);
        assert!(second.as_mut().poll(cx).is_ready());
        // Whoever gives up waiting holds up nobody.
        let mut third = Box::pin(budget.clone().take_turn());
        assert!(third.as_mut().poll(cx).is_ready());
    }
}
