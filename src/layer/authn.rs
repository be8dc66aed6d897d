//! Authenticates callers. A caller presents a key of tenant `system` as `authorization: Bearer <key>`. It is
//! verified like any other key, with the audience `keyward` and the connection's address. Health and
//! reflection need none.

use std::future::{Future, Ready as Done, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response, header};
use keyward_core::access::Action;
use keyward_core::id::KeyId;
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::judged::judged;
use crate::grpc::calls::{Rpc, log_name, rpc};
use crate::grpc::refusals;
use crate::grpc::session::CallerSession;
use crate::grpc::state::StateHandle;
use crate::grpc::status::{Refusal, status};
use crate::server::slots::CredentialMark;
use crate::server::stream::Peer;
use crate::services::Services;

/// Puts a [`CallerSession`] on each request, or refuses it. The reply goes out only while the caller may have
/// it.
#[derive(Clone)]
pub struct AuthnLayer {
    state: StateHandle,
    services: Services,
}

impl AuthnLayer {
    /// The layer over what is behind a state, on a listener that serves these.
    #[must_use]
    pub fn new(state: StateHandle, services: Services) -> Self {
        Self { state, services }
    }
}

impl<S> Layer<S> for AuthnLayer {
    type Service = Authn<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authn { inner, state: self.state.clone(), services: self.services }
    }
}

/// See [`AuthnLayer`].
#[derive(Clone)]
pub struct Authn<S> {
    inner: S,
    state: StateHandle,
    services: Services,
}

impl<S, B> Service<Request<B>> for Authn<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Admitted<S::Future>, Done<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let Rpc { action, kind, .. } = *rpc(path);
        if kind.is_open {
            return Either::Left(Admitted { inner: self.inner.call(request), by: None });
        }
        // What is not served here is no call, whoever makes it.
        let action = action.filter(|_| self.services.serve_path(path));
        let call = log_name(path);
        let peer = request.extensions().get::<Peer>().and_then(Peer::ip);
        match admit(&self.state, action, request.headers(), peer) {
            Ok(session) => {
                // Where the transport has not looked at the credential.
                if let Some(connection) = request.extensions().get::<CredentialMark>() {
                    connection.mark_known();
                }
                // Whatever handles the request further has no need of the credential.
                request.headers_mut().remove(header::AUTHORIZATION);
                request.extensions_mut().insert(session.clone());
                let by = action.map(|action| Admission { state: self.state.clone(), session, action, call });
                Either::Left(Admitted { inner: self.inner.call(request), by })
            }
            Err((caller, refusal)) => {
                refusals::log(call, caller.as_ref(), peer, &refusal);
                Either::Right(ready(Ok(status(refusal).into_http())))
            }
        }
    }
}

/// Who calls; or why not, and whose credential it is, if that is known.
fn admit(
    state: &StateHandle,
    action: Option<Action>,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<CallerSession, (Option<KeyId>, Refusal)> {
    let found = || {
        let credential = bearer(headers).ok_or(Refusal::NoCredential)?;
        let ready = state.ready()?;
        Ok((ready, CallerSession::find(ready, credential, peer).map_err(Refusal::BadCredential)?))
    };
    let (ready, mut session) = found().map_err(|refusal| (None, refusal))?;
    let now = ready.now();
    let judged = match action {
        Some(action) => session.caller(ready, action, now).map(drop),
        // A path that is not a call goes on, and is answered with UNIMPLEMENTED.
        None => session.works(ready, now),
    };
    match judged {
        Ok(()) => Ok(session),
        Err(refusal) => Err((Some(session.key_id().clone()), refusal)),
    }
}

/// Who was admitted to do what.
pub(super) struct Admission {
    pub(super) state: StateHandle,
    pub(super) session: CallerSession,
    pub(super) action: Action,
    pub(super) call: &'static str,
}

pin_project! {
    /// An admitted call under way.
    pub struct Admitted<F> {
        #[pin]
        inner: F,
        by: Option<Admission>,
    }
}

impl<F, E> Future for Admitted<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.inner.poll(cx));
        Poll::Ready(match this.by.take() {
            Some(by) => answered.map(|response| response.map(|body| judged(body, by))),
            None => answered,
        })
    }
}

/// The credential of a request. A request with several has none: it is not for us to choose.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    credential_of(value.as_bytes())
}

/// The credential in the value of `authorization`.
pub(crate) fn credential_of(value: &[u8]) -> Option<&str> {
    // A credential is ASCII that can be seen.
    let text = str::from_utf8(value).ok().filter(|text| text.is_ascii())?;
    let (scheme, credential) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}
