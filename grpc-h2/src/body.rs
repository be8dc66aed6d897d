//! The body of a request on the slow path.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;

use super::call::{Event, StreamEvent};
use super::events::EventSender;
use super::reply_budget::ReplyTurn;

/// The prefix of a gRPC message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;

/// The body of a request.
///
/// What has come and is not read yet is bounded by the budget or, for an open call, by the window of its
/// stream. Trailers mean nothing in gRPC requests and are dropped. A body whose length differs from its
/// `content-length` never ends: its call is reset.
///
/// The end of a request that may have a long reply is withheld until its turn comes. Only whole messages are
/// read.
#[derive(Debug)]
pub struct Incoming {
    recv_buffer: RecvBuffer,
    stream: u32,
    events: EventSender,
    delivery: Delivery,
    /// See [`Limits::unreported_bytes_max`](super::Limits::unreported_bytes_max).
    unreported_bytes_max: usize,
    /// Bytes of whole messages that were handed out. They are reported as read when more is asked for, since
    /// the reader holds them until then.
    unreported: usize,
    /// The turn that the end of the body waits for.
    turn: Option<ReplyTurn>,
}

/// Why a body will never be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The call has ended.
    #[error("the call was cancelled")]
    Cancelled,
    /// It did not come within [`Limits::request_time_max`](super::Limits::request_time_max).
    #[error("the request was not whole in time")]
    TooSlow,
    /// A message of a unary open call is longer than
    /// [`Limits::open_message_bytes_max`](super::Limits::open_message_bytes_max).
    #[error("a message is too long")]
    TooLong,
    /// The process, or this connection, holds as much of requests as it may.
    #[error("there is no room for the request")]
    NoRoom,
    /// Its connection has [`Limits::stranger_calls_max`](super::Limits::stranger_calls_max) calls under way,
    /// and no credential.
    #[error("there are too many calls without a credential")]
    Crowded,
}

/// How the body is handed to the service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Delivery {
    /// As it comes.
    #[default]
    Unframed,
    /// Whole messages. Longer ones than this many bytes come as they come.
    Whole(usize),
    /// Whole messages of at most this many bytes.
    Short(usize),
}

/// How much of the first message some bytes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstMessage {
    /// A part.
    Part,
    /// All of it: this many bytes, prefix included.
    Whole(usize),
    /// Its prefix announces more bytes than allowed.
    TooLong,
}

impl FirstMessage {
    pub(super) fn of(bytes: &[u8], bytes_max: usize) -> Self {
        let Some([_, length @ ..]) = bytes.first_chunk::<PREFIX_BYTES>() else { return Self::Part };
        let length = u32::from_be_bytes(*length) as usize;
        match length {
            _ if length > bytes_max => Self::TooLong,
            _ if bytes.len() < PREFIX_BYTES + length => Self::Part,
            _ => Self::Whole(PREFIX_BYTES + length),
        }
    }
}

impl Delivery {
    /// How many of these bytes may be read. `None`: a message is too long.
    fn readable(self, bytes: &[u8]) -> Option<usize> {
        let bytes_max = match self {
            Self::Unframed => return Some(bytes.len()),
            Self::Whole(bytes_max) | Self::Short(bytes_max) => bytes_max,
        };
        let mut readable = 0;
        loop {
            match FirstMessage::of(&bytes[readable..], bytes_max) {
                FirstMessage::Part => return Some(readable),
                FirstMessage::Whole(length) => readable += length,
                // The reader refuses it, with a reason.
                FirstMessage::TooLong if matches!(self, Self::Short(_)) => return (readable > 0).then_some(readable),
                FirstMessage::TooLong => return Some(bytes.len()),
            }
        }
    }
}

/// Where the connection puts the data of a body. Small frames are joined.
#[derive(Clone, Debug, Default)]
pub(super) struct RecvBuffer(Arc<Mutex<RecvState>>);

#[derive(Debug, Default)]
struct RecvState {
    data: Vec<u8>,
    end: Option<Result<(), Incomplete>>,
    waker: Option<Waker>,
}

impl RecvBuffer {
    /// Appends data. Returns false if nobody reads it any more.
    pub(super) fn push(&self, data: &[u8]) -> bool {
        let mut state = self.0.lock();
        if state.end.is_some() {
            return false;
        }
        state.data.extend_from_slice(data);
        state.wake();
        true
    }

    /// Why the body will never be whole, if that is known.
    pub(super) fn incomplete(&self) -> Option<Incomplete> {
        self.0.lock().end.and_then(Result::err)
    }

    /// Nothing more will come, or the call has ended. An error that was set first stays.
    pub(super) fn end(&self, end: Result<(), Incomplete>) {
        let mut state = self.0.lock();
        if end.is_err() {
            state.data = vec![];
        }
        if !matches!(state.end, Some(Err(_))) {
            state.end = Some(end);
        }
        state.wake();
    }
}

impl RecvState {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Incoming {
    pub(super) fn new(
        recv_buffer: RecvBuffer,
        stream: u32,
        events: EventSender,
        delivery: Delivery,
        unreported_bytes_max: usize,
        turn: Option<ReplyTurn>,
    ) -> Self {
        Self { recv_buffer, stream, events, delivery, unreported_bytes_max, unreported: 0, turn }
    }

    /// Why it will never be whole, if that is known.
    #[must_use]
    pub fn incomplete(&self) -> Option<Incomplete> {
        self.recv_buffer.incomplete()
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let Self { recv_buffer, stream, events, delivery, unreported_bytes_max, unreported, turn } = self.get_mut();
        if *unreported > 0 {
            events.send(StreamEvent { stream: *stream, event: Event::Read(std::mem::take(unreported)) });
        }
        let mut state = recv_buffer.0.lock();
        if let (Some(Ok(())), Some(taking)) = (state.end, &mut *turn) {
            // Until its turn the request stays in the buffer, and counts for the window.
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
        let Some(mut readable) = delivery.readable(&state.data) else {
            return Poll::Ready(Some(Err(Incomplete::TooLong)));
        };
        if state.end.is_some() {
            // A part of a message is all that will come.
            readable = state.data.len();
        }
        if readable == 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Moves the memory out too: the reader overwrites it, and a long stream keeps nothing here.
        let rest = state.data.split_off(readable);
        let data = Bytes::from(std::mem::replace(&mut state.data, rest));
        if *delivery != Delivery::Unframed {
            *unreported = readable;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        // The rest of a request counts as read when its call ends. Waking the connection for few bytes costs
        // more than the window that they hold: at most a quarter of it, for all calls.
        if state.end.is_none() || data.len() > *unreported_bytes_max {
            events.send(StreamEvent { stream: *stream, event: Event::Read(data.len()) });
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.recv_buffer.0.lock();
        self.turn.is_none() && matches!(state.end, Some(Ok(()))) && state.data.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::future::poll_fn;
    use std::pin::pin;

    use crate::events::event_channel;

    #[tokio::test]
    async fn reads_are_reported_unless_they_are_the_short_end_of_a_request() {
        for (bytes, ended, told) in [(10, true, false), (10, false, true), (1_025, true, true), (1_024, true, false)] {
            let (events, mut receiver) = event_channel();
            let recv_buffer = RecvBuffer::default();
            assert!(recv_buffer.push(&vec![1; bytes]));
            if ended {
                recv_buffer.end(Ok(()));
            }
            let mut body = pin!(Incoming::new(recv_buffer, 1, events, Delivery::Unframed, 1_024, None));
            let frame = poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().len(), bytes);
            let is_told = receiver.poll(&Context::from_waker(Waker::noop())).is_ready();
            assert_eq!(is_told, told, "{bytes} bytes");
        }
    }
}
