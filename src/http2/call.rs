//! A call on the long way: a task that belongs to its connection, and what it has to say to it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response, response};
use http_body::Body;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, TryAcquireError};
use tokio::task::AbortHandle;
use tower_service::Service;

use super::body::{Inbox, Incoming, Messages};
use super::buffer::wipe_stack_of_call;
use super::events::Events;
use super::head::RequestHead;
use super::room::{Part, Place, Room, Turn};
use super::{CALL_BYTES, OPEN_STREAM_BYTES, REPLY_BYTES_AHEAD};

/// What a call has to say. What waits to be heard of one call is a head, [`REPLY_BYTES_AHEAD`], and trailers at most.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) stream: u32,
    pub(super) event: Event,
}

#[derive(Debug)]
pub(super) enum Event {
    /// The head of the reply, and whether that is all of it.
    Head(Box<response::Parts>, bool),
    /// A part of the reply.
    Data(Part),
    /// The trailers that end the reply, or none.
    End(Option<Box<HeaderMap>>),
    /// There will be no (further) reply.
    Failed,
    /// So many bytes of the request have been read.
    Read(usize),
    /// The call has ended and all that it held is dropped. It is the last event of each.
    Done,
    /// These, in order. None of them is another of these.
    Several(Vec<Event>),
}

/// A call under way, which is ended by dropping this. It says [`Event::Done`] when it has.
#[derive(Debug)]
pub(super) struct Running {
    task: Option<AbortHandle>,
    has_ended: bool,
    /// How much the call may say before it is sent, in bytes.
    room: Arc<Semaphore>,
}

impl Running {
    /// A call that nobody answers.
    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self { task: None, has_ended: false, room: Arc::new(Semaphore::new(REPLY_BYTES_AHEAD)) }
    }

    /// A part of the reply is sent.
    pub(super) fn make_room(&self, bytes: usize) {
        self.room.add_permits(bytes);
    }

    /// Whether it has ended already, where it was begun.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Ends the call, soon: it says when it has ended.
    pub(super) fn cancel(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What a connection has to know of a call before it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Whether it is answered without a credential: its messages are short, and it begins when its request is
    /// whole or has no end that is near.
    pub(super) is_open: bool,
    /// Whether its request is a stream of messages, which may take its time.
    pub(super) has_stream: bool,
}

impl Manner {
    /// What such a call counts in the budget for requests, beside the bytes of its request.
    pub(super) fn call_bytes(self) -> usize {
        match self {
            Self { is_open: true, has_stream: true } => OPEN_STREAM_BYTES,
            _ => CALL_BYTES,
        }
    }

    fn messages(self) -> Messages {
        match self {
            // It has begun when it was whole.
            Self { is_open: true, has_stream: false } => Messages::AsTheyCome,
            Self { is_open: true, has_stream: true } => Messages::Short,
            Self { is_open: false, has_stream: true } => Messages::Whole,
            Self { is_open: false, has_stream: false } => Messages::Single,
        }
    }
}

/// Begins calls.
pub(super) trait Begin {
    /// What a connection has to know of a call, by its head.
    fn manner(&self, head: &RequestHead) -> Manner;

    /// Begins a call. `None`: its head is of no request.
    fn begin(&mut self, stream: u32, head: &RequestHead, inbox: Inbox) -> Option<Running>;
}

/// Begins the calls of one connection.
pub(super) struct Calls<S, X> {
    pub(super) service: S,
    pub(super) at_home: fn(&str) -> bool,
    pub(super) is_open: fn(&str) -> bool,
    pub(super) has_stream: fn(&str) -> bool,
    pub(super) is_long: fn(&str) -> bool,
    pub(super) is_urgent: fn(&str) -> bool,
    pub(super) urgent: Handle,
    pub(super) elsewhere: Handle,
    pub(super) extension: X,
    pub(super) events: Events,
    pub(super) room: Room,
}

impl<S, B, X> Begin for Calls<S, X>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    X: Clone + Send + Sync + 'static,
{
    fn manner(&self, head: &RequestHead) -> Manner {
        let Ok(path) = str::from_utf8(head.path()) else { return Manner::default() };
        Manner { is_open: (self.is_open)(path), has_stream: (self.has_stream)(path) }
    }

    fn begin(&mut self, stream: u32, head: &RequestHead, inbox: Inbox) -> Option<Running> {
        // There is one place that refuses, and it does not take long.
        let is_refused = inbox.incomplete().is_some();
        let turn = str::from_utf8(head.path()).is_ok_and(self.is_long).then(|| Turn::new(&self.room));
        let has_turn = turn.as_ref().map(Turn::place);
        let body = Incoming::new(inbox, stream, self.events.clone(), self.manner(head).messages(), turn);
        let mut request = head.to_request(body)?;
        let path = request.uri().path();
        let (at_home, is_urgent) = (is_refused || (self.at_home)(path), (self.is_urgent)(path));
        request.extensions_mut().insert(self.extension.clone());
        let room = Arc::new(Semaphore::new(REPLY_BYTES_AHEAD));
        let link = Link {
            stream,
            events: self.events.clone(),
            ahead: room.clone(),
            room: self.room.clone(),
            held: Mutex::default(),
            _turn: has_turn,
        };
        let service = self.service.clone();
        let mut call = Box::pin(async move {
            // A panic ends its call and nothing else.
            if AssertUnwindSafe(answer(service, request, &link)).catch_unwind().await.is_err() {
                link.say(Event::Failed);
            }
        });
        let runtime = if at_home {
            // Most calls are answered at once, and a task costs more than they do. Who has to wait is asked again as a
            // task, which begins with a poll: the waker of this one is not needed.
            let pending = poll_cleanly(call.as_mut(), &mut Context::from_waker(Waker::noop())).is_pending();
            pending.then(Handle::current)
        } else if is_urgent {
            Some(self.urgent.clone())
        } else {
            Some(self.elsewhere.clone())
        };
        let task =
            runtime.map(|runtime| runtime.spawn(poll_fn(move |cx| poll_cleanly(call.as_mut(), cx))).abort_handle());
        let has_ended = task.is_none();
        Some(Running { task, has_ended, room })
    }
}

/// Polls a call, and leaves nothing on the stack of what it has worked on.
fn poll_cleanly<F: Future>(call: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let polled = call.poll(cx);
    wipe_stack_of_call();
    polled
}

/// The call's end of the talk. When it is dropped, the call has ended.
///
/// What is said is held until the call has to wait or ends, and is then told at once: each time that its
/// connection hears of something costs two changes of threads and a write to the network, and a reply is
/// mostly a head, one message and trailers.
struct Link {
    stream: u32,
    events: Events,
    /// How much the call may say before it is sent.
    ahead: Arc<Semaphore>,
    /// How much all calls of the connection may.
    room: Room,
    held: Mutex<Vec<Event>>,
    /// The turn of a call whose reply may be long: until it is said.
    _turn: Option<Place>,
}

impl Link {
    fn say(&self, event: Event) {
        self.held.lock().push(event);
    }

    async fn say_data(&self, data: Bytes) {
        let bytes = data.len().min(REPLY_BYTES_AHEAD);
        // It is there already, and counts.
        let part = self.room.hold(data, bytes);
        let ahead = match self.ahead.try_acquire_many(bytes as u32) {
            Err(TryAcquireError::NoPermits) => {
                self.tell();
                self.ahead.acquire_many(bytes as u32).await.ok()
            }
            tried => tried.ok(),
        };
        if let Some(ahead) = ahead {
            ahead.forget();
            self.say(Event::Data(part));
        }
    }

    /// Waits until more may be said.
    async fn wait_for_room(&self) {
        if self.room.is_full() {
            self.tell();
            self.room.wait().await;
        }
    }

    /// Tells what is held.
    fn tell(&self) {
        let mut held = std::mem::take(&mut *self.held.lock());
        let event = match held.len() {
            0 => return,
            1 => held.remove(0),
            _ => Event::Several(held),
        };
        self.events.send(Message { stream: self.stream, event });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.say(Event::Done);
        self.tell();
    }
}

async fn answer<S, B>(mut service: S, request: Request<Incoming>, link: &Link)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    // Always ready: nothing in it waits before a call.
    let Ok(response) = service.call(request).await;
    let (parts, body) = response.into_parts();
    let ended = body.is_end_stream();
    link.say(Event::Head(Box::new(parts), ended));
    if ended {
        return;
    }
    let mut body = pin!(body);
    let mut next = async || {
        link.wait_for_room().await;
        poll_fn(|cx| {
            let polled = body.as_mut().poll_frame(cx).map_err(drop);
            if polled.is_pending() {
                link.tell();
            }
            polled
        })
        .await
    };
    while let Some(frame) = next().await {
        let Ok(frame) = frame else { return link.say(Event::Failed) };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => link.say_data(data).await,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return link.say(Event::End(Some(Box::new(trailers))));
                }
            }
        }
    }
    link.say(Event::End(None));
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;

    use crate::http2::events::events;
    use http_body::Frame;

    use crate::http2::{REPLIES_BYTES_MAX, STREAMS_MAX};

    /// Answers with one message.
    #[derive(Clone)]
    struct Answers;

    impl Service<Request<Incoming>> for Answers {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Incoming>) -> Self::Future {
            std::future::ready(Ok(Response::new("reply".to_owned())))
        }
    }

    /// A reply of one message after another, without an end. It counts them.
    struct Endless<'a>(&'a Cell<usize>);

    impl Body for Endless<'_> {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.set(self.0.get() + 1);
            Poll::Ready(Some(Ok(Frame::data(vec![1; 1_000].into()))))
        }
    }

    /// Answers with such a reply.
    struct Streams<'a>(&'a Cell<usize>);

    impl<'a> Service<Request<Incoming>> for Streams<'a> {
        type Response = Response<Endless<'a>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Incoming>) -> Self::Future {
            std::future::ready(Ok(Response::new(Endless(self.0))))
        }
    }

    #[test]
    fn streams_are_asked_for_no_more_than_there_is_room_for_all_of_them() {
        let (room, made) = (Room::default(), Cell::new(0));
        let (events, mut heard) = events();
        let link = |stream| Link {
            stream,
            events: events.clone(),
            ahead: Arc::new(Semaphore::new(REPLY_BYTES_AHEAD)),
            room: room.clone(),
            held: Mutex::default(),
            _turn: None,
        };
        let links: Vec<_> = (0..STREAMS_MAX as u32).map(link).collect();
        let request = || Request::new(Incoming::new(Inbox::default(), 1, events.clone(), Messages::AsTheyCome, None));
        let mut calls: Vec<_> = links.iter().map(|link| Box::pin(answer(Streams(&made), request(), link))).collect();
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            calls.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
            let most = REPLIES_BYTES_MAX.div_ceil(1_000);
            assert!((most - 1..=most).contains(&made.get()), "{} of {most}", made.get());
        }
        // When something has been sent, they go on.
        while room.is_full() {
            assert!(heard.poll(cx).is_ready());
        }
        let before = made.get();
        calls.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
        assert!(made.get() > before);
    }

    #[tokio::test]
    async fn a_reply_that_is_there_is_told_at_once() {
        let (events, mut heard) = events();
        let ahead = Arc::new(Semaphore::new(REPLY_BYTES_AHEAD));
        let (held, room) = (Mutex::default(), Room::default());
        let link = Link { stream: 1, events: events.clone(), ahead, room, held, _turn: None };
        let request = Request::new(Incoming::new(Inbox::default(), 1, events, Messages::AsTheyCome, None));
        answer(Answers, request, &link).await;
        drop(link);
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Message { stream: 1, event: Event::Several(told) }) = heard.poll(&cx) else {
            unreachable!("nothing is told, or in parts");
        };
        assert!(
            matches!(&told[..], [Event::Head(_, false), Event::Data(..), Event::End(None), Event::Done]),
            "{told:?}"
        );
        assert!(heard.poll(&cx).is_pending());
    }
}
