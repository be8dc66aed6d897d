//! Drives a connection: reads, writes, and keeps the time.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;
use zeroize::{Zeroize, Zeroizing};

use super::body::Incoming;
use super::budget::Budget;
use super::buffer::{Buffer, wipe_stack_of_answers};
use super::busy_poll::BusyPoll;
use super::call::{CallKind, CallSpawner, Runtimes, ServiceSpawner};
use super::conn::Conn;
use super::error::ConnError;
use super::events::{EventReceiver, event_channel};
use super::read_turns::ReadTurn;
use super::reply_budget::ReplyBudget;
use super::{FastPath, NoObserver, Observer, SharedLimits};

/// Bytes of one read at most.
const READ_BYTES: usize = 64 * 1024;

/// Spare capacity that a waiting output buffer may keep.
const OUT_BYTES_KEPT: usize = 1024;

thread_local! {
    /// The read buffer of this thread. Connections share it, since most have nothing to read most of the
    /// time.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(vec![]) };
    /// The output buffer of this thread, for connections that had nothing left to write.
    static WRITE: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    /// The connection of this thread that was read last, by its address.
    static LAST_READ: Cell<usize> = const { Cell::new(0) };
}

/// What answers the calls of a connection, and on which runtime.
#[derive(Clone, Debug)]
pub struct Handlers<S, A, X, O = NoObserver> {
    /// Answers calls where they are read, when it can.
    pub fast_path: A,
    /// Answers all other calls. Each has its own clone.
    pub service: S,
    /// How a call is served, by its path.
    pub call_kind: fn(&str) -> CallKind,
    /// Where calls of the service run.
    pub runtimes: Runtimes,
    /// Added to each request as an extension.
    pub extension: X,
    /// The bound on what all connections hold of requests.
    pub budget: Budget,
    /// The bounds and times of the connection.
    pub limits: SharedLimits,
    /// Is told of what happens on the connection.
    pub observer: O,
}

/// Why a connection closed, if not in order.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The peer broke a rule, or exceeded a bound.
    #[error("{0}")]
    Error(ConnError),
    /// The connection preface did not come in time.
    #[error("no connection preface has come")]
    PrefaceTimeout,
    /// The peer did not answer a PING.
    #[error("nothing was heard for too long")]
    KeepaliveTimeout,
    /// Another connection needed its slot.
    #[error("another connection needs its place")]
    Evicted,
    /// The network failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A connection and its calls. Dropping it ends both.
pub struct Connection<T, S, A: FastPath, X, O: Observer = NoObserver>(Driver<T, A, ServiceSpawner<S, X>, O>);

/// How to stop a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// When the peer has acknowledged the GOAWAY, and the calls that it began before are answered.
    Graceful,
    /// At once.
    Now,
}

impl<T, S, A: FastPath, X, O: Observer> Connection<T, S, A, X, O> {
    /// A connection on an accepted socket of the current runtime.
    pub fn new(io: T, handlers: Handlers<S, A, X, O>) -> Self {
        let Handlers { fast_path, service, call_kind, runtimes, extension, budget, limits, observer } = handlers;
        let reply_budget = ReplyBudget::new(limits.replies_bytes_max);
        let (events, receiver) = event_channel();
        let calls = ServiceSpawner {
            service,
            call_kind,
            runtimes,
            extension,
            events,
            reply_budget: reply_budget.clone(),
            limits: limits.clone(),
        };
        let now = Instant::now();
        Self(Driver {
            io,
            timer: Box::pin(sleep_until(now + limits.preface_timeout.min(limits.tick_max()))),
            turn: ReadTurn::new(limits.turn_bytes_max),
            received_bytes: 0,
            sent_bytes: 0,
            is_closed_told: false,
            conn: Conn::new(fast_path, calls, reply_budget, budget, limits, observer),
            events: receiver,
            unparsed: Buffer::new(),
            is_backpressured: false,
            stage: Stage::Open,
            opened_at: now,
            last_frame_at: now,
            pinged_at: None,
            drain: None,
            deadline: None,
            busy_poll: BusyPoll::new(std::time::Instant::now()),
        })
    }

    /// Answers its calls until it closes. After `stop`, it drains or closes at once. On the thread of a core
    /// (`has_core`) callers take turns, and the connection may poll for the next call instead of sleeping.
    ///
    /// # Errors
    /// See [`CloseReason`].
    pub async fn serve<B>(&mut self, stop: impl Future<Output = Shutdown>, has_core: bool) -> Result<(), CloseReason>
    where
        T: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        X: Clone + Send + Sync + 'static,
    {
        let mut stop = pin!(stop);
        loop {
            let polled = poll_fn(|cx| match self.0.poll(cx, stop.as_mut(), has_core) {
                Poll::Pending if has_core && self.0.busy_poll.should_spin(std::time::Instant::now) => Poll::Ready(None),
                polled => polled.map(Some),
            });
            match polled.await {
                Some(ended) => {
                    self.0.tell_closed(ended.as_ref().err());
                    return ended;
                }
                // Lets the runtime poll all of its sockets.
                None => yield_now().await,
            }
        }
    }
}

/// A connection with its socket and its timer.
struct Driver<T, A: FastPath, C, O: Observer> {
    io: T,
    conn: Conn<A, C, O>,
    events: EventReceiver,
    /// What was read and not parsed: a part of a frame, or frames that the output has no room to answer.
    unparsed: Buffer,
    is_backpressured: bool,
    stage: Stage,
    timer: Pin<Box<Sleep>>,
    opened_at: Instant,
    /// When the last whole frame came. Parts of frames are no sign of life.
    last_frame_at: Instant,
    /// When the peer was sent a PING that it has not answered.
    pinged_at: Option<Instant>,
    /// When the drain began.
    drain: Option<DrainStart>,
    /// When to close for good, once nothing more is read.
    deadline: Option<Instant>,
    busy_poll: BusyPoll,
    turn: ReadTurn,
    /// Bytes that the observer was not told of yet.
    received_bytes: u32,
    sent_bytes: u32,
    /// Whether the observer was told that the connection has closed.
    is_closed_told: bool,
}

/// The state of a connection when its drain began.
#[derive(Clone, Copy)]
struct DrainStart {
    at: Instant,
    was_idle: bool,
    last_stream: u32,
}

/// What a connection still does.
enum Stage {
    Open,
    /// Nothing more is read. The output is written.
    Flushing(Option<ConnError>),
    /// The write half is closed. Closing the read half on a peer that still sends could lose our last frames.
    Lingering(Option<ConnError>),
}

impl<T, A: FastPath, C, O: Observer> Driver<T, A, C, O> {
    fn tell_closed(&mut self, why: Option<&CloseReason>) {
        if !std::mem::replace(&mut self.is_closed_told, true) {
            self.conn.observer.closed(why);
        }
    }
}

impl<T, A: FastPath, C, O: Observer> Drop for Driver<T, A, C, O> {
    fn drop(&mut self) {
        self.tell_closed(None);
    }
}

impl<T, A, C, O> Driver<T, A, C, O>
where
    T: AsyncRead + AsyncWrite + Unpin,
    A: FastPath,
    C: CallSpawner,
    O: Observer,
{
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stop: Pin<&mut impl Future<Output = Shutdown>>,
        has_core: bool,
    ) -> Poll<Result<(), CloseReason>> {
        if self.conn.out.capacity() == 0 {
            self.conn.out = WRITE.take();
        }
        let polled = self.poll_stages(cx, stop, has_core);
        if has_core {
            self.turn.after_poll();
        }
        if self.received_bytes > 0 || self.sent_bytes > 0 {
            let (received, sent) = (std::mem::take(&mut self.received_bytes), std::mem::take(&mut self.sent_bytes));
            self.conn.observer.transferred(received as usize, sent as usize);
        }
        if self.conn.out.is_empty() {
            let out = std::mem::take(&mut self.conn.out);
            WRITE.with_borrow_mut(|kept| {
                if (kept.capacity()..=2 * self.conn.limits().out_bytes_max).contains(&out.capacity()) {
                    *kept = out;
                }
            });
        } else if self.conn.out.capacity() > 2 * self.conn.out.len() + OUT_BYTES_KEPT {
            // The peer does not read, and many peers may do so at once.
            self.conn.out.shrink_to_fit();
        }
        polled
    }

    fn poll_stages(
        &mut self,
        cx: &mut Context<'_>,
        mut stop: Pin<&mut impl Future<Output = Shutdown>>,
        has_core: bool,
    ) -> Poll<Result<(), CloseReason>> {
        loop {
            match self.stage {
                Stage::Open => {
                    if self.drain.is_none()
                        && let Poll::Ready(stop) = stop.as_mut().poll(cx)
                    {
                        if stop == Shutdown::Now {
                            self.conn.evict();
                            // Tells the peer if it reads, and does not wait if it does not.
                            drop(self.poll_write(cx));
                            return Poll::Ready(Err(CloseReason::Evicted));
                        }
                        self.start_drain();
                    }
                    while !self.conn.is_full()
                        && let Poll::Ready(event) = self.events.poll(cx)
                    {
                        self.conn.on_event(event);
                    }
                    // The last call may just have ended.
                    if let Some(due) = self.drain_due() {
                        self.wake_by(due);
                    }
                    self.poll_timer(cx)?;
                    self.conn.send_pending();
                    let was_full = self.conn.is_full();
                    let written = self.poll_write(cx)?;
                    // From here on, what is held may be held for long.
                    if let Err(error) = self.conn.update_budget(self.unparsed.len()) {
                        // Waiting for a peer that does not read would hold the memory that is missing.
                        drop(self.poll_write(cx));
                        return Poll::Ready(Err(CloseReason::Error(error)));
                    }
                    if self.conn.is_drained() {
                        self.stop_reading(self.conn.forced_drain().map(|(error, _)| error));
                    } else if was_full {
                        // There may be more to send than the output had room for.
                        ready!(written);
                    } else if ready!(self.poll_receive(cx, has_core))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Stage::Flushing(error) => {
                    if self.poll_deadline(cx).is_ready() {
                        return Poll::Ready(close_result(error));
                    }
                    let written = self.poll_write(cx)?;
                    if self.conn.update_budget(0).is_err() {
                        return Poll::Ready(close_result(error));
                    }
                    ready!(written);
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    if self.had_no_calls_since_drain() {
                        self.set_deadline(self.conn.limits().idle_linger_time);
                    }
                    self.stage = Stage::Lingering(error);
                }
                Stage::Lingering(error) => {
                    if self.poll_deadline(cx).is_ready() || ready!(self.poll_discard(cx))? {
                        return Poll::Ready(close_result(error));
                    }
                }
            }
        }
    }

    /// Writes the output. Ready when all is written and flushed: a stream that encrypts may keep a part.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, CloseReason> {
        let mut written = 0;
        while let Some(pending) = self.conn.out.get(written..).filter(|pending| !pending.is_empty()) {
            match Pin::new(&mut self.io).poll_write(cx, pending)? {
                Poll::Ready(0) => return Err(CloseReason::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(bytes) => {
                    written += bytes;
                    self.sent_bytes = self.sent_bytes.saturating_add(bytes as u32);
                }
                Poll::Pending => {
                    self.conn.out.consume(written);
                    return Ok(Poll::Pending);
                }
            }
        }
        self.conn.out.clear();
        Ok(Pin::new(&mut self.io).poll_flush(cx)?)
    }

    /// Reads, and processes what was read. Returns whether the peer has closed its end.
    fn poll_receive(&mut self, cx: &mut Context<'_>, has_core: bool) -> Poll<Result<bool, CloseReason>> {
        // The first call of a connection waits for no turn, however busy other unknown callers are.
        match self.conn.caller().filter(|_| !self.is_backpressured) {
            _ if !has_core => ready!(self.turn.poll_alone(cx)),
            Some(caller) => ready!(self.turn.poll(caller, cx)),
            None => {}
        }
        let mut buffer = READ.take();
        buffer.resize(READ_BYTES, 0);
        let received = self.poll_receive_into(cx, has_core, &mut buffer);
        READ.set(buffer);
        received
    }

    fn poll_receive_into(
        &mut self,
        cx: &mut Context<'_>,
        has_core: bool,
        buffer: &mut [u8],
    ) -> Poll<Result<bool, CloseReason>> {
        let mut filled = self.unparsed.len();
        if !self.is_backpressured {
            let most = buffer.len().min(filled + self.conn.limits().turn_bytes_max);
            let mut space = ReadBuf::new(&mut buffer[filled..most]);
            let read = Pin::new(&mut self.io).poll_read(cx, &mut space);
            let bytes = space.filled().len();
            self.turn.has_read(bytes, has_core);
            self.received_bytes = self.received_bytes.saturating_add(bytes as u32);
            ready!(read)?;
            if bytes == 0 {
                return Poll::Ready(Ok(true));
            }
            filled += bytes;
        }
        buffer[..self.unparsed.len()].copy_from_slice(&self.unparsed);
        let now = Instant::now();
        let answered = self.conn.answered();
        let done = match self.conn.receive(&buffer[..filled], now.into_std()) {
            Ok(done) => done,
            Err(error) => {
                self.conn.end_calls();
                self.stop_reading(Some(error));
                filled
            }
        };
        if done > 0 {
            (self.last_frame_at, self.pinged_at) = (now, None);
        }
        let address = std::ptr::from_ref(self).addr();
        let is_alone = LAST_READ.replace(address) == address;
        self.busy_poll.on_read(self.conn.answered() - answered, is_alone, std::time::Instant::now);
        self.is_backpressured = self.conn.is_full();
        self.unparsed.replace(&buffer[done..filled]);
        if self.unparsed.is_empty() {
            self.unparsed = Buffer::new();
        }
        // It held credentials and secrets.
        buffer[..filled].zeroize();
        wipe_stack_of_answers();
        Poll::Ready(Ok(false))
    }

    /// Reads and drops. Returns whether the peer has closed its end.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, CloseReason>> {
        let mut buffer = Zeroizing::new([0; 4096]);
        let mut space = ReadBuf::new(&mut *buffer);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut space))?;
        self.received_bytes = self.received_bytes.saturating_add(space.filled().len() as u32);
        Poll::Ready(Ok(space.filled().is_empty()))
    }

    /// Reads nothing more.
    fn stop_reading(&mut self, error: Option<ConnError>) {
        self.events.close();
        self.stage = Stage::Flushing(error);
        self.set_deadline(self.conn.limits().linger_time);
    }

    fn start_drain(&mut self) {
        self.drain = Some(DrainStart {
            at: Instant::now(),
            was_idle: self.conn.has_no_calls(),
            last_stream: self.conn.last_stream(),
        });
        self.conn.start_drain();
    }

    /// When to stop waiting for the peer to acknowledge the GOAWAY.
    fn drain_due(&self) -> Option<Instant> {
        let (drain, limits) = (self.drain.filter(|_| self.conn.awaits_drain_ack())?, self.conn.limits());
        let is_idle = self.conn.has_no_calls();
        Some(drain.at + if is_idle { limits.idle_goaway_ack_timeout } else { limits.goaway_ack_timeout })
    }

    fn had_no_calls_since_drain(&self) -> bool {
        self.drain.is_some_and(|drain| drain.was_idle && drain.last_stream == self.conn.last_stream())
    }

    fn set_deadline(&mut self, time: std::time::Duration) {
        let deadline = Instant::now() + time;
        self.deadline = Some(deadline);
        self.wake_by(deadline);
    }

    fn wake_by(&mut self, time: Instant) {
        if time < self.timer.deadline() {
            self.timer.as_mut().reset(time);
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline.unwrap_or_else(Instant::now);
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), CloseReason> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let next = self.tick(Instant::now())?;
            self.timer.as_mut().reset(next);
        }
        Ok(())
    }

    /// Does what is due, and returns when to call it again.
    fn tick(&mut self, now: Instant) -> Result<Instant, CloseReason> {
        // What begins later is due later than the next tick.
        let late = self.conn.end_late_requests(now.into_std());
        let limits = self.conn.limits();
        let (tick_max, preface_timeout) = (limits.tick_max(), limits.preface_timeout);
        let keepalive_timeout = limits.keepalive_timeout;
        let mut next = self.last_frame_at + limits.keepalive_interval;
        if let Some(pinged_at) = self.pinged_at {
            next = pinged_at + keepalive_timeout;
            if now >= next {
                return Err(CloseReason::KeepaliveTimeout);
            }
        } else if now >= next {
            self.conn.ping();
            self.pinged_at = Some(now);
            next = now + keepalive_timeout;
        }
        if self.conn.awaits_preface() {
            let due = self.opened_at + preface_timeout;
            next = next.min(due);
            if now >= due {
                return Err(CloseReason::PrefaceTimeout);
            }
        }
        if let Some(due) = self.drain_due() {
            if now >= due {
                self.conn.finish_drain();
            } else {
                next = next.min(due);
            }
        }
        if let Some((error, until)) = self.conn.forced_drain() {
            next = next.min(until.into());
            if now >= until.into() {
                return Err(CloseReason::Error(error));
            }
        }
        Ok(late.map_or(next, |late| next.min(late.into())).min(now + tick_max))
    }
}

fn close_result(error: Option<ConnError>) -> Result<(), CloseReason> {
    error.map_or(Ok(()), |error| Err(CloseReason::Error(error)))
}
