//! The body of a request, as it comes in.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::call::{Event, Message};
use super::room::Turn;
use super::{STREAMS_MAX, WINDOW_BYTES};

/// The end of a request that is not longer is told as read only with the end of its call.
pub(super) const UNTOLD_BYTES_MAX: usize = WINDOW_BYTES as usize / 4 / STREAMS_MAX;

/// The body of a request.
///
/// What has come and is not read yet is at most the window of its stream, 1 MiB; reading it lets the peer send more.
/// Trailers of a request mean nothing in gRPC and are not passed on. A body that is not as long as its `content-length`
/// never ends: its call is reset.
///
/// The end of a request whose reply may be long is withheld until it has its turn.
#[derive(Debug)]
pub struct Incoming {
    inbox: Inbox,
    stream: u32,
    events: UnboundedSender<Message>,
    /// What the last of it waits for.
    turn: Option<Turn>,
}

/// Why a body is not whole and never will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The call has ended, and with it its body.
    #[error("the call was cancelled")]
    Cancelled,
    /// It did not come within [`REQUEST_TIME_MAX`](super::REQUEST_TIME_MAX).
    #[error("the request was not whole in time")]
    TooSlow,
}

/// Where the connection puts what comes in. However small the pieces are, they are kept as one.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    data: Vec<u8>,
    end: Option<Result<(), Incomplete>>,
    waker: Option<Waker>,
}

impl Inbox {
    /// Puts data behind what is there.
    pub(super) fn push(&self, data: &[u8]) {
        let mut state = self.0.lock();
        state.data.extend_from_slice(data);
        state.wake();
    }

    /// Nothing more will come, or the call is over.
    pub(super) fn end(&self, end: Result<(), Incomplete>) {
        let mut state = self.0.lock();
        state.end = Some(end);
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Incoming {
    pub(super) fn new(inbox: Inbox, stream: u32, events: UnboundedSender<Message>, turn: Option<Turn>) -> Self {
        Self { inbox, stream, events, turn }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let Self { inbox, stream, events, turn } = self.get_mut();
        let mut state = inbox.0.lock();
        if let (Some(Ok(())), Some(taking)) = (state.end, &mut *turn) {
            // Until then the request is kept as it came, and counts for the window.
            if taking.poll(cx).is_pending() {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            *turn = None;
        }
        match state.end {
            Some(Err(incomplete)) => return Poll::Ready(Some(Err(incomplete))),
            Some(Ok(())) if state.data.is_empty() => return Poll::Ready(None),
            _ => {}
        }
        if state.data.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // With its memory, which is overwritten when it has been read: a stream that goes on keeps nothing of it here.
        let data = Bytes::from(std::mem::take(&mut state.data));
        // The rest of a request is taken for read when its call ends. To wake the connection for few bytes costs more than
        // their room: of all its calls, at most a quarter of the window.
        if state.end.is_none() || data.len() > UNTOLD_BYTES_MAX {
            // If the connection is gone, nobody has to know.
            drop(events.send(Message { stream: *stream, event: Event::Read(data.len()) }));
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.inbox.0.lock();
        self.turn.is_none() && matches!(state.end, Some(Ok(()))) && state.data.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::mpsc::unbounded_channel;

    #[tokio::test]
    async fn what_is_read_is_told_unless_it_is_the_short_end_of_a_request() {
        for (bytes, ended, told) in [(10, true, false), (10, false, true), (UNTOLD_BYTES_MAX + 1, true, true)] {
            let (events, mut heard) = unbounded_channel();
            let inbox = Inbox::default();
            inbox.push(&vec![1; bytes]);
            if ended {
                inbox.end(Ok(()));
            }
            let mut body = pin!(Incoming::new(inbox, 1, events, None));
            let frame = poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().len(), bytes);
            assert_eq!(heard.try_recv().is_ok(), told, "{bytes} bytes");
        }
    }
}
