//! A channel of events, in order, from calls to their connection.
//!
//! Unlike tokio's channel it keeps no memory for received events, and has no cooperative budget: a connection
//! that stopped receiving half way would keep the replies of a crowd of refused calls meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::call::StreamEvent;
use super::read_turns::wake_later;

/// The queue keeps room for this many events when it is empty.
const KEPT_EVENTS: usize = 4;

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<StreamEvent>,
    waker: Option<Waker>,
    is_open: bool,
}

/// The end of the calls. Clones share the queue.
#[derive(Clone, Debug)]
pub(super) struct EventSender(Arc<Mutex<Queue>>);

/// The end of the connection.
#[derive(Debug)]
pub(super) struct EventReceiver(Arc<Mutex<Queue>>);

/// Both ends, for one connection.
pub(super) fn event_channel() -> (EventSender, EventReceiver) {
    let queue = Arc::new(Mutex::new(Queue { is_open: true, ..Queue::default() }));
    (EventSender(queue.clone()), EventReceiver(queue))
}

impl EventSender {
    /// Sends an event. Does nothing if the connection is gone.
    ///
    /// The connection is woken when this thread has nothing else ready to run. Calls that were waiting for
    /// the same thing end together, and would wake it one by one otherwise.
    pub(super) fn send(&self, event: StreamEvent) {
        let mut queue = self.0.lock();
        if !queue.is_open {
            return;
        }
        queue.events.push_back(event);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            wake_later(&waker);
        }
    }
}

impl EventReceiver {
    /// Receives the next event.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<StreamEvent> {
        let mut queue = self.0.lock();
        if let Some(event) = queue.events.pop_front() {
            return Poll::Ready(event);
        }
        if queue.events.capacity() > KEPT_EVENTS {
            queue.events = VecDeque::new();
        }
        if queue.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            queue.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl EventReceiver {
    /// Drops the queue, and all events that are sent later.
    pub(super) fn close(&mut self) {
        let mut queue = self.0.lock();
        queue.is_open = false;
        let unheard = std::mem::take(&mut queue.events);
        drop(queue);
        drop(unheard);
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use crate::call::Event;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn done(stream: u32) -> StreamEvent {
        StreamEvent { stream, event: Event::Done }
    }

    /// In a task of tokio, whose budget would allow 128 messages of its channel at a time.
    #[tokio::test]
    async fn events_are_received_in_order_and_leave_no_memory_behind() {
        let (events, mut receiver) = event_channel();
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let cx = Context::from_waker(&waker);
        assert!(receiver.poll(&cx).is_pending());
        (0..1_000).for_each(|stream| events.send(done(stream)));
        assert_eq!(woken.0.load(Ordering::SeqCst), 0, "others may send first");
        tokio::task::yield_now().await;
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        for stream in 0..1_000 {
            assert!(matches!(receiver.poll(&cx), Poll::Ready(event) if event.stream == stream));
        }
        assert!(receiver.poll(&cx).is_pending());
        assert!(receiver.0.lock().events.capacity() <= KEPT_EVENTS);
        events.send(done(1));
        tokio::task::yield_now().await;
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn nothing_is_kept_for_a_connection_that_is_gone() {
        let (events, receiver) = event_channel();
        events.send(done(1));
        drop(receiver);
        events.send(done(3));
        assert!(events.0.lock().events.is_empty());
    }
}
