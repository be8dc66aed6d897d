//! The body of a request as services read it: one that is not whole says why, in a status.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;
use tower_layer::Layer;
use tower_service::Service;

use crate::grpc::status::{Refusal, status};
use crate::http2::{Incoming, Incomplete, REQUEST_TIME_MAX};

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

impl<S> Service<Request<Incoming>> for Handing<S>
where
    S: Service<Request<RequestBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        self.inner.call(request.map(RequestBody))
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody(Incoming);

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|incomplete| match incomplete {
                Incomplete::Cancelled => status(Refusal::Cancelled),
                Incomplete::TooSlow => status(Refusal::TooSlow { max: REQUEST_TIME_MAX }),
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
