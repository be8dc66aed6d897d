//! Reads the requests of a stream from its body.
//!
//! tonic's reader keeps what it has read until the stream ends, which may take days. A request holds a
//! secret; here its bytes are dropped once it is decoded.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::Request;
use http_body::Body as _;
use parking_lot::Mutex;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;
use zeroize::Zeroize;

use super::calls::STREAM_VERIFY;
use super::status::{Refusal, status};
use super::{STREAM_MESSAGE_BYTES_MAX, codec, pb};

/// Whether a message is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The requests of a StreamVerify, in their order.
///
/// It ends with an error when the body is no row of messages, or with one that is too long; and without one
/// when its caller has gone.
pub struct Messages {
    body: Body,
    /// What has come and was not taken out. However small the pieces come, they are kept as one.
    held: Vec<u8>,
    /// How much of it was taken out.
    taken: usize,
    is_over: bool,
}

/// The service that gets the body of a StreamVerify as [`Detached`], past tonic's reader, and everything else
/// as it is.
#[derive(Clone)]
pub(super) struct Detaching<S>(pub(super) S);

/// The body of a request, as an extension of it.
#[derive(Clone)]
pub(super) struct Detached(Arc<Mutex<Option<Body>>>);

impl<S: Service<Request<Body>>> Service<Request<Body>> for Detaching<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> S::Future {
        if request.uri().path() == STREAM_VERIFY {
            let body = std::mem::take(request.body_mut());
            request.extensions_mut().insert(Detached(Arc::new(Mutex::new(Some(body)))));
        }
        self.0.call(request)
    }
}

impl<S: NamedService> NamedService for Detaching<S> {
    const NAME: &'static str = S::NAME;
}

impl Detached {
    /// The messages in it. There are none the second time.
    pub(super) fn messages(&self) -> Messages {
        self.0.lock().take().map_or_else(Messages::empty, Messages::new)
    }
}

impl Messages {
    /// The messages in a body.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self { body, held: vec![], taken: 0, is_over: false }
    }

    /// None.
    pub(super) fn empty() -> Self {
        Self::new(Body::empty())
    }

    /// Takes out the next message, if all of it is there.
    fn take(&mut self) -> Result<Option<pb::StreamVerifyRequest>, Refusal> {
        let rest = &self.held[self.taken..];
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let [flag, a, b, c, d] = *prefix;
        if flag != 0 {
            return Err(Refusal::Unreadable("messages must not be compressed"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > STREAM_MESSAGE_BYTES_MAX {
            return Err(Refusal::TooLong { max: STREAM_MESSAGE_BYTES_MAX });
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = codec::decode(message);
        self.taken += PREFIX_BYTES + length;
        message.map(Some)
    }

    /// Puts what has come behind what is there, and drops what was taken out of it.
    fn put(&mut self, data: Bytes) {
        self.drop_taken();
        if self.held.is_empty() {
            // With its memory, mostly.
            self.held = data.into();
        } else {
            self.held.extend_from_slice(&data);
        }
    }

    fn drop_taken(&mut self) {
        let rest = self.held.len() - std::mem::take(&mut self.taken);
        if rest == 0 {
            self.held = vec![];
            return;
        }
        let taken = self.held.len() - rest;
        self.held.copy_within(taken.., 0);
        self.held[rest..].zeroize();
        self.held.truncate(rest);
    }
}

impl Stream for Messages {
    type Item = Result<pb::StreamVerifyRequest, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.is_over {
            match this.take() {
                Ok(None) => this.drop_taken(),
                Ok(Some(message)) => {
                    // Nothing is kept while the next one is waited for.
                    if this.taken == this.held.len() {
                        this.drop_taken();
                    }
                    return Poll::Ready(Some(Ok(message)));
                }
                Err(refusal) => {
                    this.is_over = true;
                    this.held = vec![];
                    return Poll::Ready(Some(Err(status(refusal))));
                }
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        this.put(data);
                    }
                }
                Some(Err(error)) => {
                    this.is_over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.is_over = true;
                    let whole = this.held.is_empty();
                    return Poll::Ready(
                        (!whole).then(|| Err(status(Refusal::Unreadable("the last message is not whole")))),
                    );
                }
            }
        }
        Poll::Ready(None)
    }
}
