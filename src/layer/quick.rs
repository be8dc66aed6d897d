//! The short way for Verify and BatchVerify: what most calls are is answered without the router, without a task and without copying.
//!
//! Only a call that is answered with a verdict goes this way. Whatever is out of the ordinary (a caller to be refused, a
//! field that breaks a rule, a revision to wait for, an explanation, a message in many pieces) takes the long way from its
//! beginning, so that there is one place that refuses. A verdict on both ways is made by the same code.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body::{Body as HttpBody, Frame};
use keyward_core::access::{Action, Caller};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::KeyPolicy;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::{Code, Status};
use tower_service::Service;
use tracing::level_filters::LevelFilter;
use zeroize::Zeroizing;

use super::authn::{authenticate, bearer, caller_of};
use super::metrics::UnderWay;
use crate::grpc::ready::{Gate, Ready};
use crate::grpc::verify::{quick_batch_reply, quick_reply};
use crate::metrics::{Call, Calls};
use crate::net::Peer;

/// The calls that have a short way.
pub const PATHS: [&str; 2] = ["/keyward.v1.KeyVerify/Verify", "/keyward.v1.KeyVerify/BatchVerify"];

/// Makes the body of a reply of that of a request, if that can be done at once.
type ToReply = fn(&Ready, &Caller, &[u8]) -> Option<Bytes>;

/// What answers each of them.
const REPLIES: [ToReply; 2] = [quick_reply, quick_batch_reply];

/// A request longer than this takes the long way: a batch of 1,000 is shorter, unless its fields are long.
const BODY_BYTES_MAX: usize = 128 * 1024;

/// Answers Verify, and has `inner` answer everything else. Each clone is for one connection.
pub struct QuickVerify<S> {
    inner: Arc<S>,
    gate: Gate,
    calls: [Arc<Call>; 2],
    known: Option<Known>,
}

/// The caller that a connection's last call had.
struct Known {
    credential: Zeroizing<Box<[u8]>>,
    peer: Option<IpAddr>,
    /// Whatever changes any key makes another revision, and then the caller is looked up again.
    as_of: Revision,
    /// The form of its key.
    revision: Revision,
    policy: KeyPolicy,
    caller: Arc<Caller>,
}

impl<S> QuickVerify<S> {
    /// The short way before a long one.
    #[must_use]
    pub fn new(inner: S, gate: Gate, calls: &Calls) -> Self {
        Self { inner: Arc::new(inner), gate, calls: PATHS.map(|path| calls.of(path)), known: None }
    }

    /// Which call a request is that may take the short way, and its caller.
    fn admit<B>(&mut self, request: &Request<B>) -> Option<(usize, Arc<Caller>)> {
        let headers = request.headers();
        let which = PATHS.iter().position(|path| *path == request.uri().path())?;
        let plain = request.method() == Method::POST
            && headers.get(header::CONTENT_TYPE).is_some_and(is_grpc)
            && !headers.contains_key("grpc-encoding")
            // Each call is to be logged.
            && LevelFilter::current() < LevelFilter::DEBUG;
        if !plain {
            return None;
        }
        let ready = self.gate.ready().ok()?;
        let credential = bearer(headers)?;
        let peer = request.extensions().get::<Peer>().and_then(Peer::ip);
        let now = ready.clock.now();
        if !self.known.as_ref().is_some_and(|known| known.holds(ready, credential, peer, now)) {
            self.known = Known::find(ready, credential, peer, now, self.known.take());
        }
        let known = self.known.as_ref()?;
        known.caller.may_somewhere(Action::Verify).then(|| (which, known.caller.clone()))
    }
}

impl Known {
    fn find(
        ready: &Ready,
        credential: &str,
        peer: Option<IpAddr>,
        now: UnixMillis,
        before: Option<Self>,
    ) -> Option<Self> {
        let (as_of, entry) = authenticate(ready, credential, peer, now).ok()?;
        let revision = entry.revision();
        // The key that has this secret has not changed since; other keys have.
        let same = |known: &Self| known.is(credential, peer) && known.revision == revision;
        if let Some(known) = before.filter(same) {
            return Some(Self { as_of, ..known });
        }
        let caller = Arc::new(caller_of(&entry));
        let credential = Zeroizing::new(credential.as_bytes().into());
        Some(Self { credential, peer, as_of, revision, policy: entry.to_policy(), caller })
    }

    /// Whether a credential is this one, and is still good.
    fn holds(&self, ready: &Ready, credential: &str, peer: Option<IpAddr>, now: UnixMillis) -> bool {
        // The revision is told after the entries: while it stands still, what was read at it has not been overtaken by
        // any change that somebody was told of.
        self.as_of == ready.verifier.index().revision()
            && self.is(credential, peer)
            && super::authn::still_good(&self.policy, peer, now)
    }
}

impl Known {
    /// In a time that says nothing of where credentials differ: one connection may carry the calls of several callers.
    fn is(&self, credential: &str, peer: Option<IpAddr>) -> bool {
        self.peer == peer && constant_time_eq::constant_time_eq(&self.credential, credential.as_bytes())
    }
}

impl<S> Clone for QuickVerify<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: self.gate.clone(), calls: self.calls.clone(), known: None }
    }
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    matches!(content_type.as_bytes(), b"application/grpc" | b"application/grpc+proto")
}

impl<S, B> Service<Request<B>> for QuickVerify<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Answering<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.admit(&request) {
            Some((which, caller)) => Answering::Short(Some(Short {
                request,
                read: Bytes::new(),
                caller,
                gate: self.gate.clone(),
                under_way: UnderWay::begin(self.calls[which].clone()),
                to_reply: REPLIES[which],
                inner: self.inner.clone(),
            })),
            None => Answering::Long { answer: Box::pin((*self.inner).clone().call(request.map(Body::new))) },
        }
    }
}

/// A call under way.
#[expect(clippy::large_enum_variant, reason = "most calls take the short way, and a box would cost what it saves")]
pub enum Answering<S: Service<Request<Body>>, B> {
    /// On the short way.
    Short(Option<Short<S, B>>),
    /// On the long way.
    Long {
        /// Its answer.
        answer: Pin<Box<S::Future>>,
    },
}

/// A call whose body is being read.
pub struct Short<S, B> {
    request: Request<B>,
    read: Bytes,
    caller: Arc<Caller>,
    gate: Gate,
    under_way: UnderWay,
    to_reply: ToReply,
    inner: Arc<S>,
}

impl<S, B> Future for Answering<S, B>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError>,
{
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Self::Short(short) = &mut *self {
            let failed = match short.as_mut().map(|short| short.read(cx)) {
                Some(Poll::Ready(failed)) => failed,
                Some(Poll::Pending) | None => return Poll::Pending,
            };
            let Some(short) = short.take() else { return Poll::Pending };
            if failed.is_none()
                && let Some(reply) = short.reply()
            {
                short.under_way.end(Code::Ok);
                return Poll::Ready(Ok(reply));
            }
            let answer = Box::pin(short.the_long_way(failed));
            self.set(Self::Long { answer });
        }
        let Self::Long { answer } = &mut *self else { return Poll::Pending };
        answer.as_mut().poll(cx).map_ok(|response| response.map(Reply::Long))
    }
}

impl<S, B> Short<S, B>
where
    S: Service<Request<Body>> + Clone,
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<StdError>,
{
    /// Reads to the end of the body, or as far as is reasonable. It gives the error of the body, if it has one.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Option<B::Error>> {
        let body = self.request.body_mut();
        while self.read.len() <= BODY_BYTES_MAX && !body.is_end_stream() {
            let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => break,
                Some(Err(error)) => return Poll::Ready(Some(error)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) if self.read.is_empty() => self.read = data,
                Ok(data) => {
                    let mut joined = BytesMut::with_capacity(self.read.len() + data.len());
                    joined.extend_from_slice(&self.read);
                    joined.extend_from_slice(&data);
                    self.read = joined.freeze();
                }
                // Trailers of a request mean nothing in gRPC.
                Err(_) => {}
            }
        }
        Poll::Ready(None)
    }

    fn reply(&self) -> Option<Response<Reply>> {
        let data = (self.to_reply)(self.gate.ready().ok()?, &self.caller, &self.read)?;
        let mut response = Response::new(Reply::Short { data: Some(data), ended: false });
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Some(response)
    }

    fn the_long_way(self, failed: Option<B::Error>) -> S::Future {
        self.under_way.forget();
        let Self { request, read, inner, .. } = self;
        let request = request.map(|rest| {
            let read = Some(read).filter(|read| !read.is_empty());
            Body::new(Whole { read, failed: failed.map(Into::into), rest })
        });
        (*inner).clone().call(request)
    }
}

/// The body of a request of which a part was read.
struct Whole<B> {
    read: Option<Bytes>,
    failed: Option<StdError>,
    rest: B,
}

impl<B> HttpBody for Whole<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if let Some(read) = self.read.take() {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        Pin::new(&mut self.rest).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_none() && self.failed.is_none() && self.rest.is_end_stream()
    }
}

/// The body of a reply.
#[derive(Debug)]
pub enum Reply {
    /// A verdict, and the trailers that end it.
    Short {
        /// The message, until it is taken.
        data: Option<Bytes>,
        /// Whether the trailers are taken too.
        ended: bool,
    },
    /// Whatever came from the long way.
    Long(Body),
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Short { data, ended } => Poll::Ready(match data.take() {
                Some(data) => Some(Ok(Frame::data(data))),
                None if *ended => None,
                None => {
                    *ended = true;
                    Some(Ok(Frame::trailers(HeaderMap::from_iter([(GRPC_STATUS, OK)]))))
                }
            }),
            Self::Long(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Short { ended, .. } => *ended,
            Self::Long(body) => body.is_end_stream(),
        }
    }
}

const GRPC_STATUS: header::HeaderName = header::HeaderName::from_static("grpc-status");
const OK: HeaderValue = HeaderValue::from_static("0");
