//! The body of a request, as it comes in.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::call::{Event, Message};

/// The body of a request.
///
/// What has come and is not read yet is at most the window of its stream, 1 MiB; reading it lets the peer send more.
/// Trailers of a request mean nothing in gRPC and are not passed on, and a `content-length` is not held against what
/// comes: messages say their own length.
#[derive(Debug)]
pub struct Incoming {
    inbox: Inbox,
    stream: u32,
    events: UnboundedSender<Message>,
}

/// The call has ended, and with it its body, which is not whole.
#[derive(Clone, Copy, Debug)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call was cancelled")
    }
}

impl std::error::Error for Cancelled {}

/// Where the connection puts what comes in. However small the pieces are, they are kept as one.
#[derive(Clone, Debug, Default)]
pub(super) struct Inbox(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    data: BytesMut,
    end: Option<Result<(), Cancelled>>,
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
    pub(super) fn end(&self, end: Result<(), Cancelled>) {
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
    pub(super) fn new(inbox: Inbox, stream: u32, events: UnboundedSender<Message>) -> Self {
        Self { inbox, stream, events }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Cancelled;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cancelled>>> {
        let mut state = self.inbox.0.lock();
        match state.end {
            Some(Err(cancelled)) => return Poll::Ready(Some(Err(cancelled))),
            Some(Ok(())) if state.data.is_empty() => return Poll::Ready(None),
            _ => {}
        }
        if state.data.is_empty() {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let data = state.data.split().freeze();
        // If the connection is gone, nobody has to know.
        drop(self.events.send(Message { stream: self.stream, event: Event::Read(data.len()) }));
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.inbox.0.lock();
        matches!(state.end, Some(Ok(()))) && state.data.is_empty()
    }
}
