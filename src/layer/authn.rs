//! Authenticates callers. A caller presents a key of tenant `system` as `authorization: Bearer <key>`. It is
//! verified like any other key, with the audience `keyward` and the connection's address. Without a key, the
//! identity that the connection proves counts, if the configuration names it. Health and reflection need
//! neither.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::future::Either;
use grpc_h2::Runs;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use keyward_core::access::Action;
use keyward_core::identity::Peer;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::failures::{AuthnFailures, Wait};
use super::in_flight::{CallInFlight, CallsInFlight};
use super::judged::judged;
use crate::grpc::calls::{Rpc, log_name, rpc};
use crate::grpc::refusals::{self, RefusedCaller};
use crate::grpc::session::CallerSession;
use crate::grpc::state::StateHandle;
use crate::grpc::status::{Refusal, status};
use crate::server::slots::CredentialMark;
use crate::services::{Demand, FORWARDED_FOR, Terms};

/// Puts a [`CallerSession`] on each request, or refuses it. The reply goes out only while the caller may have
/// it.
#[derive(Clone)]
pub struct AuthnLayer {
    state: StateHandle,
    terms: Terms,
    limits: CallerLimits,
}

/// What is counted of the callers of all listeners. Clones share the counts.
#[derive(Clone, Debug)]
pub struct CallerLimits {
    /// The calls under way.
    pub in_flight: CallsInFlight,
    /// The failed authentications.
    pub failures: AuthnFailures,
}

impl AuthnLayer {
    /// The layer over what is behind a state, on a listener with these terms.
    #[must_use]
    pub fn new(state: StateHandle, terms: Terms, limits: CallerLimits) -> Self {
        Self { state, terms, limits }
    }
}

impl<S> Layer<S> for AuthnLayer {
    type Service = Authn<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authn { inner, state: self.state.clone(), terms: self.terms.clone(), limits: self.limits.clone() }
    }
}

/// See [`AuthnLayer`].
#[derive(Clone)]
pub struct Authn<S> {
    inner: S,
    state: StateHandle,
    terms: Terms,
    limits: CallerLimits,
}

impl<S, B> Service<Request<B>> for Authn<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Admitted<S::Future>, Refused<S::Error>>;

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
        let action = action.filter(|_| self.terms.services.serve_path(path));
        let call = log_name(path);
        // Every connection has one; without it there is no address that a key's networks could have.
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let forwarded = || request.headers().get_all(FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let from = self.terms.address_of(&peer, forwarded);
        let peer = peer.on_behalf_of(from);
        match admit(&self.state, (action, call), request.headers(), &peer, self.terms.demand) {
            Ok(session) => {
                // Where the transport has not looked at the credential.
                if let Some(connection) = request.extensions().get::<CredentialMark>() {
                    connection.mark_known();
                }
                // Whatever handles the request further has no need of the credential.
                request.headers_mut().remove(header::AUTHORIZATION);
                // Verdicts, and what takes power away, are never refused for what others are at.
                let is_counted = match kind.runs {
                    Runs::Urgent => false,
                    Runs::Inline => kind.has_stream,
                    Runs::Shared | Runs::Bulk => true,
                };
                let is_counted = is_counted && action.is_some();
                let in_flight = is_counted.then(|| self.limits.in_flight.begin(session.number())).flatten();
                if is_counted && in_flight.is_none() {
                    let refusal = Refusal::TooManyCallsInAll;
                    refusals::log(call, &session.identity().into(), &refusal);
                    return Either::Right(Refused::new(refusal, None));
                }
                request.extensions_mut().insert(session.clone());
                let by = action.map(|action| Admission { state: self.state.clone(), session, action, call, in_flight });
                Either::Left(Admitted { inner: self.inner.call(request), by })
            }
            Err(refusal) => {
                let wait = self.limits.failures.note(&refusal, &peer);
                Either::Right(Refused::new(refusal, wait))
            }
        }
    }
}

/// Who calls; or why not, which is logged.
fn admit(
    state: &StateHandle,
    (action, call): (Option<Action>, &'static str),
    headers: &HeaderMap,
    peer: &Peer,
    demand: Demand,
) -> Result<CallerSession, Refusal> {
    let found = || {
        let credential = bearer(headers)?;
        let ready = state.ready()?;
        Ok((ready, CallerSession::find(ready, credential, peer, demand)?))
    };
    let (ready, mut session) =
        found().inspect_err(|refusal| refusals::log(call, &RefusedCaller::unknown(peer), refusal))?;
    let now = ready.now();
    let judged = match action {
        Some(action) => session.caller(ready, action, now).map(drop),
        // A path that is not a call goes on, and is answered with UNIMPLEMENTED.
        None => session.works(ready, now),
    };
    judged.inspect_err(|refusal| refusals::log(call, &session.identity().into(), refusal))?;
    Ok(session)
}

/// Who was admitted to do what.
pub(super) struct Admission {
    pub(super) state: StateHandle,
    pub(super) session: CallerSession,
    pub(super) action: Action,
    pub(super) call: &'static str,
    /// Until the last of the reply has gone.
    #[expect(dead_code, reason = "it counts until it is dropped")]
    in_flight: Option<CallInFlight>,
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

/// The answer to a call that was not admitted, which may have to wait.
pub struct Refused<E> {
    answer: Option<Response<Body>>,
    wait: Option<(Pin<Box<Sleep>>, Wait)>,
    error: PhantomData<fn() -> E>,
}

impl<E> Refused<E> {
    fn new(refusal: Refusal, wait: Option<(Duration, Wait)>) -> Self {
        let wait = wait.map(|(delay, wait)| (Box::pin(sleep(delay)), wait));
        Self { answer: Some(status(refusal).into_http()), wait, error: PhantomData }
    }
}

impl<E> Future for Refused<E> {
    type Output = Result<Response<Body>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some((delay, _)) = &mut self.wait {
            ready!(delay.as_mut().poll(cx));
        }
        self.wait = None;
        self.answer.take().map_or(Poll::Pending, |answer| Poll::Ready(Ok(answer)))
    }
}

/// The credential of a request, if it has one.
///
/// # Errors
/// When it has several, or one that is malformed: it is not for us to choose, nor to take the identity of the
/// connection instead.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => credential_of(value.as_bytes()).map(Some).ok_or(Refusal::NoCredential),
        (Some(_), Some(_)) => Err(Refusal::NoCredential),
    }
}

/// The credential in the value of `authorization`.
pub(crate) fn credential_of(value: &[u8]) -> Option<&str> {
    // A credential is ASCII that can be seen.
    let text = str::from_utf8(value).ok().filter(|text| text.is_ascii())?;
    let (scheme, credential) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}
