//! Who calls? No role, no call.
//!
//! A caller gives a key of tenant `system` as `authorization: Bearer <key>`. It is verified like any other key, with the
//! audience `keyward` and the connection's address. Health and reflection need none.

use std::future::{Ready as Done, ready};
use std::net::IpAddr;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header};
use keyward_core::access::Caller;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::{DenyReason, decide};
use keyward_core::event::Revision;
use keyward_core::record::KeyPolicy;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::authority::AuthorityError;
use crate::grpc::calls::{STREAM_VERIFY, action_of, is_open, known};
use crate::grpc::ready::{Gate, Ready};
use crate::grpc::standing::{Standing, ask, caller_of};
use crate::grpc::status::{Refusal, status};
use crate::index::Entry;
use crate::net::Peer;
use crate::verify::{Outcome, Verdict};

/// Puts a [`Caller`] on each request, and a [`Standing`] on those that go on, or refuses it.
#[derive(Clone)]
pub struct AuthnLayer {
    gate: Gate,
}

impl AuthnLayer {
    /// The layer over what is behind a gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

impl<S> Layer<S> for AuthnLayer {
    type Service = Authn<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authn { inner, gate: self.gate.clone() }
    }
}

/// See [`AuthnLayer`].
#[derive(Clone)]
pub struct Authn<S> {
    inner: S,
    gate: Gate,
}

impl<S, B> Service<Request<B>> for Authn<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Done<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        if is_open(path) {
            return Either::Left(self.inner.call(request));
        }
        let peer = request.extensions().get::<Peer>().and_then(Peer::ip);
        match admit(&self.gate, path, request.headers(), peer) {
            Ok((caller, standing)) => {
                // Whatever handles the request further has no need of the credential.
                request.headers_mut().remove(header::AUTHORIZATION);
                request.extensions_mut().insert(caller);
                if let Some(standing) = standing {
                    request.extensions_mut().insert(standing);
                }
                Either::Left(self.inner.call(request))
            }
            Err(refusal) => {
                let peer = peer.map(tracing::field::display);
                tracing::info!(call = known(path), peer, reason = %refusal, "call refused");
                Either::Right(ready(Ok(status(refusal).into_http())))
            }
        }
    }
}

/// A caller, and what it takes to check them again.
type Admitted = (Caller, Option<Standing>);

fn admit(gate: &Gate, path: &str, headers: &HeaderMap, peer: Option<IpAddr>) -> Result<Admitted, Refusal> {
    let credential = bearer(headers).ok_or(Refusal::NoCredential)?;
    let ready = gate.ready()?;
    let (_, entry) = authenticate(ready, credential, peer, ready.clock.now()).map_err(Refusal::BadCredential)?;
    let caller = caller_of(&entry);
    // A path that is not a call goes on, and is answered with UNIMPLEMENTED.
    match action_of(path) {
        Some(action) if !caller.may_somewhere(action) => Err(AuthorityError::Denied.into()),
        _ if path != STREAM_VERIFY => Ok((caller, None)),
        _ => {
            let standing = Standing::find(ready, credential, peer);
            Ok((caller, Some(standing.ok_or(Refusal::BadCredential(DenyReason::Unknown))?)))
        }
    }
}

/// The key of a caller, and the revision up to which every change is in it.
pub(super) fn authenticate<'a>(
    ready: &'a Ready,
    credential: &str,
    peer: Option<IpAddr>,
    now: UnixMillis,
) -> Result<(Revision, Entry<'a>), DenyReason> {
    let Verdict { as_of, outcome } = ready.verifier.authenticate(credential, &ask(peer), now);
    match outcome {
        Outcome::Allow(entry) => Ok((as_of, entry)),
        Outcome::Deny(_, reason) | Outcome::NoKey(reason) => Err(reason),
    }
}

/// Whether a caller's key, once found, works now.
pub(super) fn still_good(key: &KeyPolicy, peer: Option<IpAddr>, now: UnixMillis) -> bool {
    decide(key, &ask(peer), now).is_ok()
}

/// The credential of a request. A request with several has none: it is not for us to choose.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    credential_of(value.as_bytes())
}

/// The credential in the value of `authorization`.
pub(super) fn credential_of(value: &[u8]) -> Option<&str> {
    // A credential is ASCII that can be seen.
    let text = str::from_utf8(value).ok().filter(|text| text.is_ascii())?;
    let (scheme, credential) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}
