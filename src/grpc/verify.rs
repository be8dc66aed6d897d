//! KeyVerify: convert, decide, convert.

use std::time::Duration;

use bytes::Bytes;
use keyward_core::access::{Action, Caller};
use keyward_core::address::parse_address;
use keyward_core::clock::Now;
use keyward_core::decision::{Ask, DenyReason};
use keyward_core::event::Revision;
use keyward_core::id::{Environment, TenantId};
use keyward_core::limits::{AUDIENCE_BYTES_MAX, BATCH_ITEMS_MAX, CORRELATION_ID_BYTES_MAX, SECRET_BYTES_MIN};
use keyward_core::scope::check_required;
use prost::Message;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use zeroize::Zeroizing;

use super::VERIFY_REQUEST_BYTES_MAX;
use super::convert;
use super::fields::Fields;
use super::messages::{Detached, Messages};
use super::pb;
use super::ready::{Detour, Gate, Ready};
use super::standing::Standing;
use super::status::{Refusal, item_error, status};
use super::stream_verify::{Answers, answers};
use super::text;
use super::wire::{Answer, Question, Replies, Told, messages, secret_of_message};
use crate::index::ahead::TOGETHER;
use crate::verify::foreseen::Foreseen;
use crate::verify::{Explained, Outcome, Presented, Verdict, explain};

/// How long a call waits for the revision it asks for.
const MIN_REVISION_WAIT: Duration = Duration::from_millis(50);

/// Items of a batch or a stream that are decided in one go.
pub(super) const TURN_ITEMS: usize = 100;

/// Bytes of an item in a batch, from which the number of items is guessed.
const ITEM_BYTES_TYPICAL: usize = 64;

/// The last of the modes, which are numbered without gaps.
const MODE_MAX: u64 = pb::Mode::Peek as u64;

/// The service.
pub struct VerifyService {
    gate: Gate,
    stop: CancellationToken,
}

impl VerifyService {
    /// The service behind a gate, whose streams end at a stop.
    #[must_use]
    pub fn new(gate: Gate, stop: CancellationToken) -> Self {
        Self { gate, stop }
    }
}

#[tonic::async_trait]
impl pb::key_verify_server::KeyVerify for VerifyService {
    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        let answered = async {
            let ready = self.gate.ready()?;
            let (_, mut extensions, message) = request.into_parts();
            let mut standing = extensions.remove::<Standing>().ok_or(Refusal::NoCredential)?;
            if message.encoded_len() > VERIFY_REQUEST_BYTES_MAX {
                return Err(Refusal::TooLong { max: VERIFY_REQUEST_BYTES_MAX });
            }
            wait_for(ready, Revision(message.min_revision)).await?;
            // The request is whole, and the wait is over: the caller may have lost the role since the head came.
            let caller = standing.caller(ready, Action::Verify, ready.now())?;
            verdict(ready, caller, message)
        };
        answered.await.map(Response::new).map_err(status)
    }

    async fn batch_verify(
        &self,
        request: Request<pb::BatchVerifyRequest>,
    ) -> Result<Response<pb::BatchVerifyResponse>, Status> {
        let answered = async {
            let ready = self.gate.ready()?;
            let (_, mut extensions, message) = request.into_parts();
            let mut standing = extensions.remove::<Standing>().ok_or(Refusal::NoCredential)?;
            let requests = message.requests;
            let mut fields = Fields::default();
            if !(1..=BATCH_ITEMS_MAX).contains(&requests.len()) {
                fields.wrong("requests", format!("must have 1 to {BATCH_ITEMS_MAX} entries"));
            }
            fields.finish(Some(()))?;
            // Once for all of them: whoever asks for a revision that is not reached in this time is told so below.
            let latest = requests.iter().map(|message| message.min_revision).max().unwrap_or_default();
            let _in_time = wait_for(ready, Revision(latest)).await;
            let mut caller = standing.caller(ready, Action::Verify, ready.now())?;
            let mut results = Vec::with_capacity(requests.len());
            for (at, message) in requests.into_iter().enumerate() {
                if at % TURN_ITEMS == TURN_ITEMS - 1 {
                    // Other calls have their turn.
                    tokio::task::yield_now().await;
                    caller = standing.caller(ready, Action::Verify, ready.now())?;
                }
                results.push(item(ready, caller, message));
            }
            Ok(pb::BatchVerifyResponse { results })
        };
        answered.await.map(Response::new).map_err(|refusal: Refusal| status(refusal))
    }

    type StreamVerifyStream = Answers;

    async fn stream_verify(
        &self,
        request: Request<Streaming<pb::StreamVerifyRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (metadata, mut extensions, _) = request.into_parts();
        let messages = extensions.remove::<Detached>().map_or_else(Messages::empty, |body| body.messages());
        let request = Request::from_parts(metadata, extensions, messages);
        answers(self.gate.clone(), &self.stop, request).map(Response::new).map_err(status)
    }
}

fn item(ready: &Ready, caller: &Caller, message: pb::VerifyRequest) -> pb::BatchVerifyResult {
    let reached = ready.verifier.index().revision() >= Revision(message.min_revision);
    let answered = if reached { verdict(ready, caller, message) } else { Err(Refusal::RevisionNotReached) };
    let result = match answered {
        Ok(response) => pb::batch_verify_result::Result::Response(response),
        Err(refusal) => pb::batch_verify_result::Result::Error(item_error(&refusal)),
    };
    pb::BatchVerifyResult { result: Some(result) }
}

pub(super) async fn wait_for(ready: &Ready, revision: Revision) -> Result<(), Refusal> {
    let index = ready.verifier.index();
    if index.revision() >= revision {
        return Ok(());
    }
    timeout(MIN_REVISION_WAIT, index.reached(revision)).await.map_err(|_| Refusal::RevisionNotReached)
}

pub(super) fn verdict(
    ready: &Ready,
    caller: &Caller,
    message: pb::VerifyRequest,
) -> Result<pb::VerifyResponse, Refusal> {
    let secret = Zeroizing::new(message.secret);
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", &message.tenant, |t| TenantId::parse(t).map(Some), || None);
    fields.required_scopes("all_scopes", &message.all_scopes);
    fields.required_scopes("any_scopes", &message.any_scopes);
    let client_ip = fields.ip("client_ip", &message.client_ip);
    let environment =
        fields.parse_or("environment", &message.environment, |e| Environment::parse(e).map(Some), || None);
    let audience = fields.opaque_text("audience", message.audience, AUDIENCE_BYTES_MAX);
    let correlation_id = fields.opaque_text("correlation_id", message.correlation_id, CORRELATION_ID_BYTES_MAX);
    if pb::Mode::try_from(message.mode).is_err() {
        fields.wrong("mode", "must be MODE_ENFORCE or MODE_PEEK");
    }
    let tenant = fields.finish(tenant)?;

    let (all_scopes, any_scopes) = (borrowed(&message.all_scopes), borrowed(&message.any_scopes));
    let mut ask = Ask {
        all_scopes: &all_scopes,
        any_scopes: &any_scopes,
        environment: environment.as_ref().and_then(Option::as_ref).map(Environment::as_str),
        audience: (!audience.is_empty()).then_some(&*audience),
        client_ip,
    };
    let now = ready.now();
    let presented = ready.verifier.read(&secret);
    let mut verdict = ready.verifier.verify(caller, &presented, tenant.as_ref(), &ask, now);
    // Audiences are kept in one form, save those that were kept before: so the text as it is comes first.
    let one_form = text::normalized(audience.clone());
    if is_of_another_audience(&verdict.outcome) && one_form != audience {
        ask.audience = Some(&one_form);
        verdict = ready.verifier.verify(caller, &presented, tenant.as_ref(), &ask, now);
    }
    let Verdict { as_of, outcome } = verdict;
    let checks = if message.explain { explain(&presented, &outcome, &ask, now) } else { vec![] };
    let (failure, key) = match outcome {
        Outcome::Allow(entry) => (None, Some(convert::verified_key(&entry))),
        Outcome::Deny(entry, reason) => {
            let key = pb::VerifiedKey { key_id: entry.key_id().to_owned(), ..Default::default() };
            (Some(reason), Some(key))
        }
        Outcome::NoKey(reason) => (Some(reason), None),
    };
    ready.verdicts.count(failure);
    let decision = if failure.is_none() { pb::Decision::Allow } else { pb::Decision::Deny };
    Ok(pb::VerifyResponse {
        decision: decision.into(),
        reason: convert::reason(failure).into(),
        http_status: failure.map_or(200, |reason| reason.http_status()),
        key,
        as_of_revision: as_of.0,
        checks: checks.into_iter().map(check).collect(),
        correlation_id,
    })
}

fn is_of_another_audience(outcome: &Outcome<'_>) -> bool {
    matches!(outcome, Outcome::Deny(_, DenyReason::AudienceMismatch))
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// The body of the reply to a call of Verify that can be answered with a verdict at once.
///
/// # Errors
/// With why it cannot: the request breaks a rule, or asks for more than that, and [`VerifyService`] says what.
pub fn quick_reply(ready: &Ready, caller: &Caller, foreseen: &mut Foreseen, body: &[u8]) -> Result<Bytes, Detour> {
    if body.len() > VERIFY_REQUEST_BYTES_MAX {
        return Err(Detour::LongRequest);
    }
    let question = Question::of_body(body).ok_or(Detour::Message)?;
    let secret = foreseen.find(question.secret).unwrap_or_else(|| ready.verifier.read(question.secret));
    let judged = Judged::of(ready, caller, &question, &secret, ready.now())?;
    ready.verdicts.count(judged.failure());
    Ok(judged.answer().to_body())
}

/// The same for a call of BatchVerify, all of whose items can be answered with a verdict at once.
///
/// # Errors
/// As [`quick_reply`], for any item.
pub fn quick_batch_reply(ready: &Ready, caller: &Caller, _: &mut Foreseen, body: &[u8]) -> Result<Bytes, Detour> {
    let now = ready.now();
    let about = (body.len() / ITEM_BYTES_TYPICAL + 1).min(BATCH_ITEMS_MAX);
    let (mut replies, mut failures) = (Replies::with_room_for(about), Vec::with_capacity(about));
    let mut messages = messages(body).ok_or(Detour::Message)?;
    let is_large = ready.verifier.index().is_large();
    let mut together = Vec::with_capacity(TOGETHER);
    loop {
        for message in messages.by_ref().take(TOGETHER) {
            let message = message.ok_or(Detour::Message)?;
            let secret = secret_of_message(message).filter(|_| is_large).map(|secret| ready.verifier.read(secret));
            together.push((message, secret));
        }
        if together.is_empty() {
            break;
        }
        if failures.len() + together.len() > BATCH_ITEMS_MAX {
            return Err(Detour::Message);
        }
        ready.verifier.read_ahead(together.iter().filter_map(|(_, secret)| secret.as_ref()));
        for (message, secret) in together.drain(..) {
            let question = Question::of_message(message).ok_or(Detour::Message)?;
            let is_its_own = |secret: &Presented<'_>| secret.is(question.secret);
            let secret = secret.filter(is_its_own).unwrap_or_else(|| ready.verifier.read(question.secret));
            let judged = Judged::of(ready, caller, &question, &secret, now)?;
            failures.push(judged.failure());
            replies.push(&judged.answer());
        }
    }
    if failures.is_empty() {
        return Err(Detour::Message);
    }
    // Only now that it is certain that this is the answer.
    failures.into_iter().for_each(|failure| ready.verdicts.count(failure));
    Ok(replies.to_body())
}

/// A verdict that is not written yet.
struct Judged<'a>(Verdict<'a>);

impl<'a> Judged<'a> {
    fn of(
        ready: &'a Ready,
        caller: &Caller,
        question: &Question<'_>,
        secret: &Presented<'_>,
        now: Now,
    ) -> Result<Self, Detour> {
        let (all_scopes, any_scopes) = (question.all_scopes.as_slice(), question.any_scopes.as_slice());
        let well_formed =
            all_scopes.iter().chain(any_scopes).all(|scope| is_plain(scope) && check_required(scope).is_ok())
                && is_plain(question.audience)
                && !question.audience.chars().any(char::is_control)
                && question.mode <= MODE_MAX;
        if !well_formed {
            return Err(Detour::Message);
        }
        if question.explain {
            return Err(Detour::Explain);
        }
        if Revision(question.min_revision) > ready.verifier.index().revision() {
            return Err(Detour::MinRevision);
        }
        let given = |text: &str| !text.is_empty();
        let tenant = given(question.tenant)
            .then(|| TenantId::parse(question.tenant))
            .transpose()
            .map_err(|_| Detour::Message)?;
        let client_ip = match question.client_ip {
            "" => None,
            text => Some(parse_address(text).ok_or(Detour::Message)?),
        };
        if given(question.environment) {
            Environment::parse(question.environment).map_err(|_| Detour::Message)?;
        }
        let ask = Ask {
            all_scopes,
            any_scopes,
            audience: given(question.audience).then_some(question.audience),
            client_ip,
            environment: given(question.environment).then_some(question.environment),
        };
        let verdict = ready.verifier.verify(caller, secret, tenant.as_ref(), &ask, now);
        let is_final = !is_of_another_audience(&verdict.outcome) || question.audience.is_ascii();
        if is_final { Ok(Self(verdict)) } else { Err(Detour::Message) }
    }

    fn failure(&self) -> Option<DenyReason> {
        match self.0.outcome {
            Outcome::Allow(_) => None,
            Outcome::Deny(_, reason) | Outcome::NoKey(reason) => Some(reason),
        }
    }

    fn answer(&self) -> Answer<'_> {
        let failure = self.failure();
        Answer {
            decision: if failure.is_none() { pb::Decision::Allow } else { pb::Decision::Deny },
            reason: convert::reason(failure),
            http_status: failure.map_or(200, DenyReason::http_status),
            key: match &self.0.outcome {
                Outcome::Allow(entry) => Told::All(entry),
                Outcome::Deny(entry, _) => Told::Id(entry.key_id_bytes()),
                Outcome::NoKey(_) => Told::Nothing,
            },
            as_of_revision: self.0.as_of.0,
        }
    }
}

/// Whether a text is too short to hold a secret, which must not stand in any field but its own.
fn is_plain(text: &str) -> bool {
    text.len() < SECRET_BYTES_MIN
}

fn check(line: Explained) -> pb::Check {
    pb::Check {
        check: line.check.to_owned(),
        passed: line.failure.is_none(),
        reason: convert::reason(line.failure).into(),
        detail: line.detail,
    }
}
