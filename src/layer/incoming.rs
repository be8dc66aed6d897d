//! Request bodies as services read them. A body that is not whole, or has a message that is too long, ends
//! with a status that says why. A call that is only begun to be refused reaches no service.

use std::future::{Ready, ready as done};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::Either;
use grpc_h2::Incomplete;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body as ReplyBody;
use tower_layer::Layer;
use tower_service::Service;

use crate::grpc::calls::{Rpc, rpc};
use crate::grpc::status::{Refusal, status};
use crate::grpc::{LIMITS, STREAM_MESSAGE_BYTES_MAX};

// What a stream holds of a message that is not whole is then held by its connection, and counted.
const _: () = assert!(STREAM_MESSAGE_BYTES_MAX <= LIMITS.whole_bytes_max());

/// Hands bodies on as [`RequestBody`].
#[derive(Clone, Copy, Debug)]
pub struct IncomingLayer;

impl<S> Layer<S> for IncomingLayer {
    type Service = Handing<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Handing { inner }
    }
}

/// See [`IncomingLayer`].
#[derive(Clone, Debug)]
pub struct Handing<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Handing<S>
where
    S: Service<Request<RequestBody>>,
    B: Into<Received>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Rpc { kind, message_bytes_max, .. } = *rpc(request.uri().path());
        let lengths = Lengths::of_at_most(message_bytes_max);
        let timed = |body| if kind.has_stream { body } else { Received::in_time(body) };
        self.inner.call(request.map(|body| RequestBody { body: timed(body.into()), lengths }))
    }
}

/// A body as its transport hands it on.
#[derive(Debug)]
pub enum Received {
    /// Of [`grpc_h2`].
    Own(grpc_h2::Incoming),
    /// Of hyper, and when it must be whole.
    Hyper(hyper::body::Incoming, Option<Pin<Box<Sleep>>>),
}

impl From<grpc_h2::Incoming> for Received {
    fn from(body: grpc_h2::Incoming) -> Self {
        Self::Own(body)
    }
}

impl From<hyper::body::Incoming> for Received {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Hyper(body, None)
    }
}

impl Received {
    /// The body of a request that must be whole within the time of a request. [`grpc_h2`] sees to that
    /// itself.
    fn in_time(self) -> Self {
        match self {
            Self::Hyper(body, _) if !body.is_end_stream() => {
                Self::Hyper(body, Some(Box::pin(sleep(LIMITS.request_time_max))))
            }
            other => other,
        }
    }

    /// Why it will never be whole, if that is known before it is read.
    fn incomplete(&self) -> Option<Incomplete> {
        match self {
            Self::Own(body) => body.incomplete(),
            Self::Hyper(..) => None,
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        match self {
            Self::Own(body) => Pin::new(body).poll_frame(cx),
            Self::Hyper(body, due) => {
                if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
                    return Poll::Ready(frame.map(|frame| frame.map_err(|_| Incomplete::Cancelled)));
                }
                match due.as_mut().map(|due| due.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => Poll::Ready(Some(Err(Incomplete::TooSlow))),
                    _ => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Hyper(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Hyper(body, _) => body.size_hint(),
        }
    }
}

fn refusal_of(incomplete: Incomplete) -> Refusal {
    match incomplete {
        Incomplete::Cancelled => Refusal::Cancelled,
        Incomplete::TooSlow => Refusal::TooSlow { max: LIMITS.request_time_max },
        Incomplete::TooLong => Refusal::TooLong { max: LIMITS.open_message_bytes_max },
        Incomplete::NoRoom => Refusal::NoRoom,
        Incomplete::Crowded => Refusal::TooManyCalls { max: LIMITS.stranger_calls_max },
    }
}

/// Answers calls whose requests will never be whole.
#[derive(Clone, Copy, Debug)]
pub struct IncompleteLayer;

impl<S> Layer<S> for IncompleteLayer {
    type Service = Refusing<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Refusing { inner }
    }
}

/// See [`IncompleteLayer`].
#[derive(Clone, Debug)]
pub struct Refusing<S> {
    inner: S,
}

impl<S> Service<Request<RequestBody>> for Refusing<S>
where
    S: Service<Request<RequestBody>, Response = Response<ReplyBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        match request.body().body.incomplete() {
            None => Either::Left(self.inner.call(request)),
            Some(incomplete) => Either::Right(done(Ok(status(refusal_of(incomplete)).into_http()))),
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {
    body: Received,
    lengths: Lengths,
}

/// The length of a message, and whether it is compressed.
const PREFIX_BYTES: usize = 5;

/// Reads the lengths of messages as they pass. tonic has bounds of its own for them, and its refusals tell
/// programs nothing.
#[derive(Debug)]
struct Lengths {
    max: usize,
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Of the message that passes.
    bytes_left: usize,
}

impl Lengths {
    fn of_at_most(max: usize) -> Self {
        Self { max, prefix: [0; PREFIX_BYTES], prefix_bytes: 0, bytes_left: 0 }
    }

    fn pass(&mut self, mut data: &[u8]) -> Result<(), Refusal> {
        while let Some((first, rest)) = data.split_first() {
            if self.bytes_left > 0 {
                let passed = self.bytes_left.min(data.len());
                (self.bytes_left, data) = (self.bytes_left - passed, &data[passed..]);
                continue;
            }
            self.prefix[self.prefix_bytes] = *first;
            (self.prefix_bytes, data) = (self.prefix_bytes + 1, rest);
            if self.prefix_bytes == PREFIX_BYTES {
                let [_, a, b, c, d] = self.prefix;
                (self.prefix_bytes, self.bytes_left) = (0, u32::from_be_bytes([a, b, c, d]) as usize);
                if self.bytes_left > self.max {
                    return Err(Refusal::TooLong { max: self.max });
                }
            }
        }
        Ok(())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(self.body.poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|incomplete| status(refusal_of(incomplete)))?;
            if let Some(data) = frame.data_ref() {
                self.lengths.pass(data).map_err(status)?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX_BYTES + length as usize, 7);
        bytes
    }

    #[test]
    fn each_message_is_measured_however_its_bytes_come() {
        let sound = [message(0), message(10), message(3), message(10)].concat();
        let long = [sound.clone(), message(11)].concat();
        for pieces in 1..=sound.len() {
            let mut lengths = Lengths::of_at_most(10);
            assert!(sound.chunks(pieces).all(|piece| lengths.pass(piece).is_ok()), "{pieces}");
            let mut lengths = Lengths::of_at_most(10);
            let refused = long.chunks(pieces).find_map(|piece| lengths.pass(piece).err());
            assert!(matches!(refused, Some(Refusal::TooLong { max: 10 })), "{pieces}");
        }
    }
}
