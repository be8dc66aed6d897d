//! Calls on the slow path: each is a task that its connection owns, and that sends it events.

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

use super::body::{Delivery, Incoming, RecvBuffer};
use super::buffer::wipe_stack_of_call;
use super::events::EventSender;
use super::head::RequestHead;
use super::reply_budget::{ReplyBudget, ReplyPart, ReplyTurn, TurnPermit};
use super::{CALL_BYTES, Limits, OPEN_STREAM_BYTES, SharedLimits};

/// An event of a call. At most a head, [`Limits::reply_bytes_ahead`] of data and trailers of one call wait
/// in the channel.
#[derive(Debug)]
pub(super) struct StreamEvent {
    pub(super) stream: u32,
    pub(super) event: Event,
}

#[derive(Debug)]
pub(super) enum Event {
    /// The head of the reply, and whether it is the whole reply.
    Head(Box<response::Parts>, bool),
    /// A part of the reply.
    Data(ReplyPart),
    /// The end of the reply, with its trailers if there are any.
    End(Option<Box<HeaderMap>>),
    /// The call failed: there is no more of its reply.
    Failed,
    /// This many bytes of the request were read.
    Read(usize),
    /// The call has ended, and all that it held is dropped. It is the last event of a call.
    Done,
    /// Several of the others, in order.
    Several(Vec<Event>),
}

/// A call under way. Dropping it cancels the call, which sends [`Event::Done`] when it has ended.
#[derive(Debug)]
pub(super) struct CallHandle {
    task: Option<AbortHandle>,
    has_finished: bool,
    /// Bytes that the call may still queue.
    send_permits: Arc<Semaphore>,
}

impl CallHandle {
    /// A call that is never answered.
    #[cfg(any(test, feature = "_fuzz"))]
    pub(super) fn never() -> Self {
        Self { task: None, has_finished: false, send_permits: Arc::new(Semaphore::new(0)) }
    }

    /// A part of the reply was sent.
    pub(super) fn release_permits(&self, bytes: usize) {
        self.send_permits.add_permits(bytes);
    }

    /// Whether the call ended inline, when it was spawned.
    pub(super) fn has_finished(&self) -> bool {
        self.has_finished
    }

    /// Cancels the call. It sends [`Event::Done`] when it has ended.
    pub(super) fn cancel(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Drop for CallHandle {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// How a call is served. Its path decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallKind {
    /// Where it runs.
    pub runs: Runs,
    /// Whether it needs no credential. Its messages are short, and it starts when its request is whole or, as
    /// a stream, with its head.
    pub is_open: bool,
    /// Whether its request is a stream of messages. All others must be whole within
    /// [`Limits::request_time_max`].
    pub has_stream: bool,
    /// Whether its reply may be long. Such calls of one connection are answered one after the other, and wait
    /// while much of earlier replies waits for the peer.
    pub has_long_reply: bool,
}

/// Where a call runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runs {
    /// On the thread of its connection, because it never takes long.
    Inline,
    /// On the runtime that all connections share.
    #[default]
    Shared,
    /// On the runtime of calls that go before others.
    Urgent,
    /// On the runtime of calls whose replies take long to make.
    Bulk,
}

/// The runtimes of calls that are not served inline.
#[derive(Clone, Debug)]
pub struct Runtimes {
    /// See [`Runs::Shared`].
    pub shared: Handle,
    /// See [`Runs::Urgent`].
    pub urgent: Handle,
    /// See [`Runs::Bulk`].
    pub bulk: Handle,
}

impl CallKind {
    /// Bytes that the budget counts for such a call beside its request.
    pub(super) fn call_bytes(self) -> usize {
        if self.is_open && self.has_stream { OPEN_STREAM_BYTES } else { CALL_BYTES }
    }

    fn delivery(self, limits: &Limits) -> Delivery {
        match (self.is_open, self.has_stream) {
            // Its request is whole when it starts.
            (true, false) => Delivery::Unframed,
            (true, true) => Delivery::Short(limits.open_message_bytes_max),
            (false, true) => Delivery::Whole(limits.whole_bytes_max()),
            (false, false) => Delivery::Whole(limits.single_bytes_max),
        }
    }
}

/// Starts the calls of the slow path.
pub(super) trait CallSpawner {
    /// The kind of a call, by its head.
    fn call_kind(&self, head: &RequestHead) -> CallKind;

    /// Starts a call. `None`: its head is not that of a request.
    fn spawn(&mut self, stream: u32, head: &RequestHead, recv_buffer: RecvBuffer) -> Option<CallHandle>;
}

/// Starts calls as tasks that a service answers.
pub(super) struct ServiceSpawner<S, X> {
    pub(super) service: S,
    pub(super) call_kind: fn(&str) -> CallKind,
    pub(super) runtimes: Runtimes,
    pub(super) extension: X,
    pub(super) events: EventSender,
    pub(super) reply_budget: ReplyBudget,
    pub(super) limits: SharedLimits,
}

impl<S, B, X> CallSpawner for ServiceSpawner<S, X>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    X: Clone + Send + Sync + 'static,
{
    fn call_kind(&self, head: &RequestHead) -> CallKind {
        str::from_utf8(head.path()).map_or_else(|_| CallKind::default(), self.call_kind)
    }

    fn spawn(&mut self, stream: u32, head: &RequestHead, recv_buffer: RecvBuffer) -> Option<CallHandle> {
        // Refusals run inline: they take the usual path through the service, and never long.
        let is_refused = recv_buffer.incomplete().is_some();
        let kind = CallSpawner::call_kind(self, head);
        let turn = kind.has_long_reply.then(|| ReplyTurn::new(&self.reply_budget));
        let turn_permit = turn.as_ref().map(ReplyTurn::permit);
        let (delivery, unreported) = (kind.delivery(&self.limits), self.limits.unreported_bytes_max());
        let body = Incoming::new(recv_buffer, stream, self.events.clone(), delivery, unreported, turn);
        let mut request = head.to_request(body)?;
        request.extensions_mut().insert(self.extension.clone());
        let bytes_ahead = self.limits.reply_bytes_ahead;
        let send_permits = Arc::new(Semaphore::new(bytes_ahead));
        let channel = CallChannel {
            stream,
            events: self.events.clone(),
            bytes_ahead,
            send_permits: send_permits.clone(),
            reply_budget: self.reply_budget.clone(),
            buffered: Mutex::default(),
            _turn_permit: turn_permit,
        };
        let service = self.service.clone();
        let mut call = Box::pin(async move {
            // A panic ends its call alone.
            if AssertUnwindSafe(answer(service, request, &channel)).catch_unwind().await.is_err() {
                channel.send(Event::Failed);
            }
        });
        let runtime = match kind.runs {
            _ if is_refused => poll_inline(call.as_mut()),
            Runs::Inline => poll_inline(call.as_mut()),
            Runs::Shared => Some(self.runtimes.shared.clone()),
            Runs::Urgent => Some(self.runtimes.urgent.clone()),
            Runs::Bulk => Some(self.runtimes.bulk.clone()),
        };
        let task =
            runtime.map(|runtime| runtime.spawn(poll_fn(move |cx| poll_cleanly(call.as_mut(), cx))).abort_handle());
        let has_finished = task.is_none();
        Some(CallHandle { task, has_finished, send_permits })
    }
}

/// Polls a call on this thread, and gives the runtime to go on if it has not finished.
///
/// Most calls finish at their first poll, which costs less than a task. One that does not is spawned, and a
/// task begins with a poll, so this waker is never needed.
fn poll_inline<F: Future>(call: Pin<&mut F>) -> Option<Handle> {
    poll_cleanly(call, &mut Context::from_waker(Waker::noop())).is_pending().then(Handle::current)
}

/// Polls a call, and overwrites the stack that it used.
fn poll_cleanly<F: Future>(call: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let polled = call.poll(cx);
    wipe_stack_of_call();
    polled
}

/// The call's end of the channel. Dropping it sends [`Event::Done`].
///
/// Events are buffered until the call waits or ends: waking the connection costs two context switches and a
/// write, and most replies are a head, one message and trailers.
struct CallChannel {
    stream: u32,
    events: EventSender,
    /// See [`Limits::reply_bytes_ahead`].
    bytes_ahead: usize,
    /// Bytes that this call may still queue.
    send_permits: Arc<Semaphore>,
    /// The bound for all calls of the connection.
    reply_budget: ReplyBudget,
    buffered: Mutex<Vec<Event>>,
    /// Held by a call with a long reply until all of it is queued.
    _turn_permit: Option<TurnPermit>,
}

impl CallChannel {
    fn send(&self, event: Event) {
        self.buffered.lock().push(event);
    }

    async fn send_data(&self, data: Bytes) {
        let bytes = data.len().min(self.bytes_ahead);
        // It exists already, so it counts before the wait.
        let part = self.reply_budget.add(data, bytes);
        let permits = match self.send_permits.try_acquire_many(bytes as u32) {
            Err(TryAcquireError::NoPermits) => {
                self.flush();
                self.send_permits.acquire_many(bytes as u32).await.ok()
            }
            tried => tried.ok(),
        };
        if let Some(permits) = permits {
            permits.forget();
            self.send(Event::Data(part));
        }
    }

    /// Waits until the connection's replies have room.
    async fn wait_for_capacity(&self) {
        if self.reply_budget.is_full() {
            self.flush();
            self.reply_budget.wait_for_capacity().await;
        }
    }

    /// Sends what is buffered.
    fn flush(&self) {
        let mut buffered = std::mem::take(&mut *self.buffered.lock());
        let event = match buffered.len() {
            0 => return,
            1 => buffered.remove(0),
            _ => Event::Several(buffered),
        };
        self.events.send(StreamEvent { stream: self.stream, event });
    }
}

impl Drop for CallChannel {
    fn drop(&mut self) {
        self.send(Event::Done);
        self.flush();
    }
}

async fn answer<S, B>(mut service: S, request: Request<Incoming>, channel: &CallChannel)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
{
    // Always ready: no layer waits before a call.
    let Ok(response) = service.call(request).await;
    let (parts, body) = response.into_parts();
    let ended = body.is_end_stream();
    channel.send(Event::Head(Box::new(parts), ended));
    if ended {
        return;
    }
    let mut body = pin!(body);
    let mut next = async || {
        channel.wait_for_capacity().await;
        poll_fn(|cx| {
            let polled = body.as_mut().poll_frame(cx).map_err(drop);
            if polled.is_pending() {
                channel.flush();
            }
            polled
        })
        .await
    };
    while let Some(frame) = next().await {
        let Ok(frame) = frame else { return channel.send(Event::Failed) };
        match frame.into_data() {
            Ok(data) if data.is_empty() => {}
            Ok(data) => channel.send_data(data).await,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return channel.send(Event::End(Some(Box::new(trailers))));
                }
            }
        }
    }
    channel.send(Event::End(None));
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::Cell;

    use crate::events::event_channel;
    use http_body::Frame;

    const REPLIES_BYTES_MAX: usize = 20_000;
    const BYTES_AHEAD: usize = 5_000;

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

    /// An endless reply, which counts its messages.
    struct Endless<'a>(&'a Cell<usize>);

    impl Body for Endless<'_> {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.set(self.0.get() + 1);
            Poll::Ready(Some(Ok(Frame::data(vec![1; 1_000].into()))))
        }
    }

    /// Answers with an endless reply.
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
    fn replies_are_polled_only_while_the_budget_has_room() {
        let (reply_budget, made) = (ReplyBudget::new(REPLIES_BYTES_MAX), Cell::new(0));
        let (events, mut receiver) = event_channel();
        let channel = |stream| CallChannel {
            stream,
            events: events.clone(),
            bytes_ahead: BYTES_AHEAD,
            send_permits: Arc::new(Semaphore::new(BYTES_AHEAD)),
            reply_budget: reply_budget.clone(),
            buffered: Mutex::default(),
            _turn_permit: None,
        };
        let channels: Vec<_> = (0..8).map(channel).collect();
        let request =
            || Request::new(Incoming::new(RecvBuffer::default(), 1, events.clone(), Delivery::Unframed, 0, None));
        let mut calls: Vec<_> =
            channels.iter().map(|channel| Box::pin(answer(Streams(&made), request(), channel))).collect();
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            calls.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
            let most = REPLIES_BYTES_MAX.div_ceil(1_000);
            assert!((most - 1..=most).contains(&made.get()), "{} of {most}", made.get());
        }
        // They go on when something was sent.
        while reply_budget.is_full() {
            assert!(receiver.poll(cx).is_ready());
        }
        let before = made.get();
        calls.iter_mut().for_each(|call| assert!(call.as_mut().poll(cx).is_pending()));
        assert!(made.get() > before);
    }

    #[tokio::test]
    async fn a_finished_reply_is_sent_as_one_event() {
        let (events, mut receiver) = event_channel();
        let send_permits = Arc::new(Semaphore::new(BYTES_AHEAD));
        let (buffered, reply_budget, bytes_ahead) =
            (Mutex::default(), ReplyBudget::new(REPLIES_BYTES_MAX), BYTES_AHEAD);
        let channel = CallChannel {
            stream: 1,
            events: events.clone(),
            bytes_ahead,
            send_permits,
            reply_budget,
            buffered,
            _turn_permit: None,
        };
        let request = Request::new(Incoming::new(RecvBuffer::default(), 1, events, Delivery::Unframed, 0, None));
        answer(Answers, request, &channel).await;
        drop(channel);
        let cx = Context::from_waker(Waker::noop());
        let Poll::Ready(StreamEvent { stream: 1, event: Event::Several(sent) }) = receiver.poll(&cx) else {
            unreachable!("nothing is sent, or in parts");
        };
        assert!(
            matches!(&sent[..], [Event::Head(_, false), Event::Data(..), Event::End(None), Event::Done]),
            "{sent:?}"
        );
        assert!(receiver.poll(&cx).is_pending());
    }
}
