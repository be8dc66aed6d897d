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
pub(super) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Told when they are few enough again.
    freed: Notify,
    /// The turn of calls whose replies may be long.
    turn: Arc<Semaphore>,
}

/// The wait for the turn of a call whose reply may be long.
pub(super) struct Turn {
    taking: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>,
    place: Place,
}

/// Where a turn is kept when it is taken. It is given on when this is dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Turn {
    pub(super) fn new(room: &Room) -> Self {
        Self { taking: Box::pin(room.clone().take_turn()), place: Place::default() }
    }

    pub(super) fn place(&self) -> Place {
        self.place.clone()
    }

    /// Takes it. It is ready once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let turn = ready!(self.taking.as_mut().poll(cx));
        *self.place.0.lock() = turn;
        Poll::Ready(())
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn")
    }
}

/// A part of a reply that waits until it is sent, or is dropped.
#[derive(Debug)]
pub(super) struct Part {
    /// What is not sent yet.
    pub(super) bytes: Bytes,
    /// What its call gets back of its own room when it is sent; 0 if it was made at once, without a call.
    pub(super) ahead: usize,
    room: Room,
    /// All of its memory stays until the last byte is sent.
    held: usize,
}

impl Default for Room {
    fn default() -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self(Arc::new(Inner { waiting: AtomicUsize::new(0), freed: Notify::new(), turn }))
    }
}

impl Room {
    /// Whether so much waits that nothing should be added to it.
    pub(super) fn is_full(&self) -> bool {
        self.waiting() >= REPLIES_BYTES_MAX
    }

    /// Bytes that wait.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Acquire)
    }

    /// Takes up room for a part that is there. It is never refused: whoever makes one asks first whether there is room.
    pub(super) fn hold(&self, bytes: Bytes, ahead: usize) -> Part {
        let held = bytes.len();
        self.0.waiting.fetch_add(held, Ordering::AcqRel);
        Part { bytes, ahead, room: self.clone(), held }
    }

    /// Waits until there is room.
    pub(super) async fn wait(&self) {
        while self.is_full() {
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            // It may have been freed since the look above.
            if freed.as_mut().enable() || !self.is_full() {
                continue;
            }
            freed.await;
        }
    }

    /// Waits until there is room, and no other call has the turn. Whoever drops the permit gives it on. `None`: never.
    pub(super) async fn take_turn(self) -> Option<OwnedSemaphorePermit> {
        let turn = self.0.turn.clone().acquire_owned().await.ok();
        self.wait().await;
        turn
    }
}

impl Part {
    /// The first bytes are sent.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.advance(bytes);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let before = self.room.0.waiting.fetch_sub(self.held, Ordering::AcqRel);
        if before >= REPLIES_BYTES_MAX && before - self.held < REPLIES_BYTES_MAX {
            self.room.0.freed.notify_waiters();
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
        let room = Room::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let (first, second) = (room.hold(bytes(REPLIES_BYTES_MAX - 1), 0), room.hold(bytes(2), 0));
        let mut waiting = pin!(room.wait());
        assert!(waiting.as_mut().poll(cx).is_pending());
        drop(second);
        assert!(waiting.as_mut().poll(cx).is_ready());
        let mut large = room.hold(bytes(3 * REPLIES_BYTES_MAX), 0);
        drop(first);
        large.advance(3 * REPLIES_BYTES_MAX - 1);
        assert!(room.is_full(), "its memory is there until it is sent to its end");
        drop(large);
        assert_eq!(room.waiting(), 0);
    }

    #[test]
    fn turns_are_taken_one_by_one_and_when_there_is_room() {
        let room = Room::default();
        let cx = &mut Context::from_waker(Waker::noop());
        let full = room.hold(bytes(REPLIES_BYTES_MAX), 0);
        let (mut first, mut second) = (Box::pin(room.clone().take_turn()), Box::pin(room.clone().take_turn()));
        assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
        drop(full);
        assert!(second.as_mut().poll(cx).is_pending(), "not before the first");
        let std::task::Poll::Ready(turn) = first.as_mut().poll(cx) else { unreachable!("there is room") };
        assert!(second.as_mut().poll(cx).is_pending());
        drop(turn);
        assert!(second.as_mut().poll(cx).is_ready());
        // Whoever gives up waiting holds up nobody.
        let mut third = Box::pin(room.clone().take_turn());
        assert!(third.as_mut().poll(cx).is_ready());
    }
}
