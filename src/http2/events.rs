//! What calls have to say, in order, until their connection hears it.
//!
//! Unlike a channel of the runtime it keeps no memory for those that are heard, and gives all that there is:
//! a connection that stops in between, because it has had its turn, would keep the replies of a crowd of
//! refused calls meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::call::Message;

/// Messages that room is kept for when there are none.
const KEPT: usize = 4;

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    waker: Option<Waker>,
    has_listener: bool,
}

/// Where calls say something. Clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct Events(Arc<Mutex<Queue>>);

/// Where their connection hears it.
#[derive(Debug)]
pub(super) struct Heard(Arc<Mutex<Queue>>);

/// Both ends, of one connection.
pub(super) fn events() -> (Events, Heard) {
    let queue = Arc::new(Mutex::new(Queue { has_listener: true, ..Queue::default() }));
    (Events(queue.clone()), Heard(queue))
}

impl Events {
    /// Says something. Of a connection that is gone, nobody has to know.
    pub(super) fn send(&self, message: Message) {
        let mut queue = self.0.lock();
        if !queue.has_listener {
            return;
        }
        queue.messages.push_back(message);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Heard {
    /// What was said next.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Message> {
        let mut queue = self.0.lock();
        if let Some(message) = queue.messages.pop_front() {
            return Poll::Ready(message);
        }
        if queue.messages.capacity() > KEPT {
            queue.messages = VecDeque::new();
        }
        if queue.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            queue.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Heard {
    /// Hears nothing any more.
    pub(super) fn close(&mut self) {
        let mut queue = self.0.lock();
        queue.has_listener = false;
        let unheard = std::mem::take(&mut queue.messages);
        drop(queue);
        drop(unheard);
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use crate::http2::call::Event;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn said(stream: u32) -> Message {
        Message { stream, event: Event::Done }
    }

    /// In a task of a runtime, which may take 128 messages of a channel before it must give way.
    #[tokio::test]
    async fn all_that_was_said_is_heard_in_order_and_leaves_no_room_behind() {
        let (events, mut heard) = events();
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let cx = Context::from_waker(&waker);
        assert!(heard.poll(&cx).is_pending());
        (0..1_000).for_each(|stream| events.send(said(stream)));
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        for stream in 0..1_000 {
            assert!(matches!(heard.poll(&cx), Poll::Ready(message) if message.stream == stream));
        }
        assert!(heard.poll(&cx).is_pending());
        assert!(heard.0.lock().messages.capacity() <= KEPT);
        events.send(said(1));
        assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn nothing_is_kept_for_a_connection_that_is_gone() {
        let (events, heard) = events();
        events.send(said(1));
        drop(heard);
        events.send(said(3));
        assert!(events.0.lock().messages.is_empty());
    }
}
