//! The body of a request, as it comes in.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use parking_lot::Mutex;

use super::call::{Event, StreamEvent};
use super::events::EventSender;
use super::reply_budget::ReplyTurn;
use super::{OPEN_MESSAGE_BYTES_MAX, SINGLE_BYTES_MAX, STREAMS_MAX, WHOLE_BYTES_MAX, WINDOW_BYTES};

/// The end of a request that is not longer is told as read only with the end of its call.
pub(super) const UNREPORTED_BYTES_MAX: usize = WINDOW_BYTES as usize / 4 / STREAMS_MAX;
/// Whether a message is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The body of a request.
///
/// What has come and is not read yet is bounded by the budget or, of an open call, by the window of its stream.
/// Trailers of a request mean nothing in gRPC and are not passed on. A body that is not as long as its `content-length`
/// never ends: its call is reset.
///
/// The end of a request whose reply may be long is withheld until it has its turn. What is not a whole
/// message is not read.
#[derive(Debug)]
pub struct Incoming {
    recv_buffer: RecvBuffer,
    stream: u32,
    events: EventSender,
    delivery: Delivery,
    /// Bytes of whole messages that were given, and are told as read when more is asked for: until then
    /// whoever asks has them.
    unreported: usize,
    /// What the last of it waits for.
    turn: Option<ReplyTurn>,
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
    /// A message is longer than [`OPEN_MESSAGE_BYTES_MAX`], of a call that has no more.
    #[error("a message is too long")]
    TooLong,
    /// All connections, or this one, hold as much of requests as they may.
    #[error("there is no room for the request")]
    NoRoom,
    /// Its connection has [`STRANGER_CALLS_MAX`](super::STRANGER_CALLS_MAX) calls under way, and no credential.
    #[error("there are too many calls without a credential")]
    Crowded,
}

/// How the body of a request is given to who answers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Delivery {
    /// As it comes.
    #[default]
    Unframed,
    /// Whole messages, as long as they are not longer than [`WHOLE_BYTES_MAX`].
    Whole,
    /// Whole messages, as long as they are not longer than [`SINGLE_BYTES_MAX`].
    Single,
    /// Whole messages of at most [`OPEN_MESSAGE_BYTES_MAX`].
    Short,
}

/// What is there of the first message in some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FirstMessage {
    /// A part.
    Part,
    /// All of it: so many bytes, with its prefix.
    Whole(usize),
    /// It says that it is longer than it may be.
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
    /// How many of the first of these bytes may be read. `None`: a message is too long.
    fn readable(self, bytes: &[u8]) -> Option<usize> {
        let bytes_max = match self {
            Self::Unframed => return Some(bytes.len()),
            Self::Whole => WHOLE_BYTES_MAX,
            Self::Single => SINGLE_BYTES_MAX,
            Self::Short => OPEN_MESSAGE_BYTES_MAX,
        };
        let mut readable = 0;
        loop {
            match FirstMessage::of(&bytes[readable..], bytes_max) {
                FirstMessage::Part => return Some(readable),
                FirstMessage::Whole(length) => readable += length,
                // Whoever reads it says what is wrong with it.
                FirstMessage::TooLong if self == Self::Short => return (readable > 0).then_some(readable),
                FirstMessage::TooLong => return Some(bytes.len()),
            }
        }
    }
}

/// Where the connection puts what comes in. However small the pieces are, they are kept as one.
#[derive(Clone, Debug, Default)]
pub(super) struct RecvBuffer(Arc<Mutex<RecvState>>);

#[derive(Debug, Default)]
struct RecvState {
    data: Vec<u8>,
    end: Option<Result<(), Incomplete>>,
    waker: Option<Waker>,
}

impl RecvBuffer {
    /// Puts data behind what is there. It says whether anybody wants it.
    pub(super) fn push(&self, data: &[u8]) -> bool {
        let mut state = self.0.lock();
        if state.end.is_some() {
            return false;
        }
        state.data.extend_from_slice(data);
        state.wake();
        true
    }

    /// Why all of it will never come, if that is known.
    pub(super) fn incomplete(&self) -> Option<Incomplete> {
        self.0.lock().end.and_then(Result::err)
    }

    /// Nothing more will come, or the call is over. What was said first counts.
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
        turn: Option<ReplyTurn>,
    ) -> Self {
        Self { recv_buffer, stream, events, delivery, unreported: 0, turn }
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
        let Self { recv_buffer, stream, events, delivery, unreported, turn } = self.get_mut();
        if *unreported > 0 {
            events.send(StreamEvent { stream: *stream, event: Event::Read(std::mem::take(unreported)) });
        }
        let mut state = recv_buffer.0.lock();
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
        let Some(mut readable) = delivery.readable(&state.data) else {
            return Poll::Ready(Some(Err(Incomplete::TooLong)));
        };
        if state.end.is_some() {
            // What is not whole never will be.
            readable = state.data.len();
        }
        if readable == 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // With its memory, which is overwritten when it has been read: a stream that goes on keeps nothing of it here.
        let rest = state.data.split_off(readable);
        let data = Bytes::from(std::mem::replace(&mut state.data, rest));
        if *delivery != Delivery::Unframed {
            *unreported = readable;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        // The rest of a request is taken for read when its call ends. To wake the connection for few bytes
        // costs more than their room: of all its calls, at most a quarter of the window.
        if state.end.is_none() || data.len() > UNREPORTED_BYTES_MAX {
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

    use crate::http2::events::event_channel;

    #[tokio::test]
    async fn what_is_read_is_told_unless_it_is_the_short_end_of_a_request() {
        for (bytes, ended, told) in [(10, true, false), (10, false, true), (UNREPORTED_BYTES_MAX + 1, true, true)] {
            let (events, mut receiver) = event_channel();
            let recv_buffer = RecvBuffer::default();
            assert!(recv_buffer.push(&vec![1; bytes]));
            if ended {
                recv_buffer.end(Ok(()));
            }
            let mut body = pin!(Incoming::new(recv_buffer, 1, events, Delivery::Unframed, None));
            let frame = poll_fn(|cx| body.as_mut().poll_frame(cx)).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().len(), bytes);
            let is_told = receiver.poll(&Context::from_waker(Waker::noop())).is_ready();
            assert_eq!(is_told, told, "{bytes} bytes");
        }
    }
}
