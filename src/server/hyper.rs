//! HTTP/2 by hyper, for those who would rather rely on it than on [`grpc_h2`] (setting `http2`).
//!
//! Every call takes the same services, on the same runtimes; none takes the fast path. Of the bounds of
//! [`grpc_h2`] it has those that hyper has settings for, the time of a request, and the length of a message.
//! SECURITY.md lists those that it has not.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, MapErr, TryFutureExt};
use grpc_h2::{CallKind, Limits, Runs, Runtimes, SharedLimits, Shutdown};
use http::{Request, Response, response};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use keyward_core::identity::Peer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body as ReplyBody;
use tower_service::Service;

use super::slots::CredentialMark;
use super::stream::Conn;
use crate::metrics::{Closed, Http2Counts};

/// The client connection preface (RFC 9113, section 3.4), in bytes.
const PREFACE_BYTES: usize = 24;

/// Why a connection closed, if not in order.
#[derive(Debug, thiserror::Error)]
pub(super) enum CloseReason {
    /// The peer broke a rule, exceeded a bound or was silent for too long, or the network failed.
    #[error("{0}{cause}", cause = cause_of(.0))]
    Hyper(#[from] hyper::Error),
    /// The connection preface did not come in time.
    #[error("no connection preface has come")]
    PrefaceTimeout,
    /// Another connection needed its slot.
    #[error("another connection needs its place")]
    Evicted,
}

/// hyper's own text names the protocol alone.
fn cause_of(error: &hyper::Error) -> String {
    std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default()
}

impl CloseReason {
    fn counted(&self) -> Closed {
        match self {
            Self::Hyper(error) if error.is_timeout() => Closed::KeepaliveTimeout,
            Self::Hyper(error)
                if std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<io::Error>) =>
            {
                Closed::Network
            }
            // hyper does not say with which code it has ended the connection.
            Self::Hyper(_) => Closed::Error(u32::MAX),
            Self::PrefaceTimeout => Closed::PrefaceTimeout,
            Self::Evicted => Closed::Evicted,
        }
    }
}

/// Counts a connection, and its end when it is dropped.
struct Counting {
    counts: Arc<Http2Counts>,
    closed: Closed,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.counts.closed(self.closed);
    }
}

/// Answers the calls of a connection until it closes. After `stop`, it drains or closes at once.
pub(super) async fn serve<S>(
    conn: Conn,
    calls: Calls<S>,
    counts: Arc<Http2Counts>,
    stop: impl Future<Output = Shutdown>,
) -> Result<(), CloseReason>
where
    S: Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    counts.opened();
    let mut counting = Counting { counts: counts.clone(), closed: Closed::InOrder };
    let serving = async move {
        let tasks = CallTasks::default();
        // Calls end with their connection.
        let _end: DropGuard = tasks.end.clone().drop_guard();
        let received = Arc::new(AtomicUsize::new(0));
        let io = TokioIo::new(Counted { conn, received: received.clone(), counts });
        let limits = calls.limits.clone();
        let mut connection = pin!(builder(tasks.clone(), &limits).serve_connection(io, calls));
        let mut stop = pin!(stop);
        let mut preface_due = pin!(sleep(limits.preface_timeout));
        let mut idle = pin!(Either::Left(pending()));
        let (mut may_lack_preface, mut is_draining) = (true, false);
        loop {
            tokio::select! {
                biased;
                shutdown = stop.as_mut(), if !is_draining => match shutdown {
                    Shutdown::Now => return Err(CloseReason::Evicted),
                    Shutdown::Graceful => {
                        is_draining = true;
                        connection.as_mut().graceful_shutdown();
                        idle.set(Either::Right(tasks.idle(limits.idle_goaway_ack_timeout)));
                    }
                },
                closed = connection.as_mut() => return Ok(closed?),
                () = preface_due.as_mut(), if may_lack_preface => {
                    may_lack_preface = false;
                    if received.load(Ordering::Relaxed) < PREFACE_BYTES {
                        return Err(CloseReason::PrefaceTimeout);
                    }
                }
                // The peer has not acknowledged the GOAWAY; it loses no call.
                () = idle.as_mut() => return Ok(()),
            }
        }
    };
    let ended = serving.await;
    if let Err(reason) = &ended {
        counting.closed = reason.counted();
    }
    ended
}

fn builder(tasks: CallTasks, limits: &Limits) -> http2::Builder<CallTasks> {
    let mut builder = http2::Builder::new(tasks);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(limits.streams_max as u32)
        .max_header_list_size(limits.header_bytes_max as u32)
        .initial_stream_window_size(limits.window_bytes)
        .initial_connection_window_size(limits.window_bytes)
        .max_send_buf_size(limits.reply_bytes_ahead)
        // Streams that the peer may reset before they are served (CVE-2023-44487), and resets that it may
        // provoke by its own errors (CVE-2025-8671).
        .max_pending_accept_reset_streams(limits.errors_max as usize)
        .max_local_error_reset_streams(limits.errors_max as usize)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
}

/// The tasks of a connection's calls, on the runtime of the connection.
#[derive(Clone, Default)]
struct CallTasks {
    tracker: TaskTracker,
    end: CancellationToken,
}

impl CallTasks {
    /// Waits until there have been no calls for as long as an idle peer may take to acknowledge a GOAWAY.
    fn idle(&self, ack_timeout: Duration) -> impl Future<Output = ()> + use<> {
        let tracker = self.tracker.clone();
        tracker.close();
        async move {
            loop {
                tracker.wait().await;
                sleep(ack_timeout).await;
                if tracker.is_empty() {
                    return;
                }
            }
        }
    }
}

impl<F> Executor<F> for CallTasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, call: F) {
        let end = self.end.clone();
        self.tracker.spawn(async move { drop(end.run_until_cancelled(call).await) });
    }
}

/// Answers the calls of a connection.
#[derive(Clone)]
pub(super) struct Calls<S> {
    pub(super) limits: SharedLimits,
    pub(super) service: S,
    /// How a call is served, by its path.
    pub(super) call_kind: fn(&str) -> CallKind,
    /// Where calls run.
    pub(super) runtimes: Runtimes,
    pub(super) peer: Peer,
    pub(super) mark: CredentialMark,
}

/// A call panicked. Its stream is reset.
#[derive(Debug, thiserror::Error)]
#[error("the call failed")]
pub(super) struct CallFailed;

type Answer = Result<Response<ReplyBody>, CallFailed>;

impl<S> hyper::service::Service<Request<Incoming>> for Calls<S>
where
    S: Service<Request<Incoming>, Response = Response<ReplyBody>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<ReplyBody>;
    type Error = CallFailed;
    type Future = Either<MapErr<S::Future, fn(Infallible) -> CallFailed>, RemoteCall>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let kind = (self.call_kind)(request.uri().path());
        request.extensions_mut().insert(self.peer.clone());
        request.extensions_mut().insert(self.mark.clone());
        // Always ready: no layer waits before a call.
        let mut service = self.service.clone();
        let runtime = match kind.runs {
            Runs::Inline => return Either::Left(service.call(request).map_err(|never| match never {})),
            Runs::Shared => &self.runtimes.shared,
            Runs::Urgent => &self.runtimes.urgent,
            Runs::Bulk => &self.runtimes.bulk,
        };
        Either::Right(RemoteCall::spawn(runtime, async move { service.call(request).await }))
    }
}

/// A call on another runtime, which makes its reply there too. Dropping it cancels the call.
pub(super) struct RemoteCall {
    head: oneshot::Receiver<(response::Parts, Option<Frames>)>,
    task: Option<CancelOnDrop>,
}

/// The frames of a reply. One waits at a time.
type Frames = mpsc::Receiver<Result<Frame<Bytes>, Status>>;

impl RemoteCall {
    fn spawn(
        runtime: &Handle,
        call: impl Future<Output = Result<Response<ReplyBody>, Infallible>> + Send + 'static,
    ) -> Self {
        let (to, head) = oneshot::channel();
        let task = runtime.spawn(async move {
            let Ok(response) = call.await;
            let (parts, body) = response.into_parts();
            let (frames, receiver) = mpsc::channel(1);
            let receiver = (!body.is_end_stream()).then_some(receiver);
            // It fails only when the call is cancelled.
            if to.send((parts, receiver)).is_err() {
                return;
            }
            let mut body = pin!(body);
            while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await
                && frames.send(frame).await.is_ok()
            {}
        });
        Self { head, task: Some(CancelOnDrop(task.abort_handle())) }
    }
}

impl Future for RemoteCall {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let (parts, frames) = ready!(Pin::new(&mut self.head).poll(cx)).map_err(|_| CallFailed)?;
        let body = match frames {
            Some(frames) => ReplyBody::new(RemoteBody { frames, _task: self.task.take() }),
            None => ReplyBody::empty(),
        };
        Poll::Ready(Ok(Response::from_parts(parts, body)))
    }
}

/// The body of a reply that is made on another runtime. Dropping it cancels the call.
struct RemoteBody {
    frames: Frames,
    _task: Option<CancelOnDrop>,
}

impl HttpBody for RemoteBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.frames.poll_recv(cx)
    }
}

struct CancelOnDrop(AbortHandle);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection that counts its bytes.
struct Counted {
    conn: Conn,
    /// Bytes that it has received.
    received: Arc<AtomicUsize>,
    counts: Arc<Http2Counts>,
}

impl Counted {
    fn has_sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.counts.transferred(0, bytes);
        }
        written
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.conn).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.counts.transferred(bytes, 0);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.conn).poll_write(cx, buf);
        self.has_sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.conn).poll_write_vectored(cx, bufs);
        self.has_sent(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conn).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply without end. It is gone when the sender is.
    struct Endless {
        _held: oneshot::Sender<()>,
    }

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_call_on_another_runtime_ends_when_its_connection_drops_it() {
        let (held, gone) = oneshot::channel::<()>();
        let call = RemoteCall::spawn(&Handle::current(), async move {
            let _held = held;
            pending().await
        });
        tokio::task::yield_now().await;
        drop(call);
        gone.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_reply_on_another_runtime_ends_when_its_connection_drops_it() {
        let (held, gone) = oneshot::channel::<()>();
        let answered = async { Ok(Response::new(ReplyBody::new(Endless { _held: held }))) };
        let response = RemoteCall::spawn(&Handle::current(), answered).await.unwrap();
        drop(response);
        gone.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_call_that_panics_fails_alone() {
        let call = RemoteCall::spawn(&Handle::current(), async { panic!("it is a bug") });
        assert!(call.await.is_err());
    }

    #[tokio::test]
    async fn calls_end_with_their_connection() {
        let (held, gone) = oneshot::channel::<()>();
        let tasks = CallTasks::default();
        tasks.execute(async move {
            let _held = held;
            pending::<()>().await;
        });
        drop(tasks.end.clone().drop_guard());
        gone.await.unwrap_err();
    }
}
