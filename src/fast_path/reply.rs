//! The bodies of replies, made from the bodies of requests.

use bytes::Bytes;
use keyward_core::access::Caller;
use keyward_core::clock::Now;
use keyward_core::event::Revision;
use keyward_core::limits::BATCH_ITEMS_MAX;

use super::codec::{Answer, BatchAnswer, Request, ToldKey, messages, secret_of_message};
use super::prefetch::Prefetched;
use crate::grpc::VERIFY_REQUEST_BYTES_MAX;
use crate::grpc::convert;
use crate::grpc::query::{Ruling, evaluate};
use crate::grpc::state::VerifyState;
use crate::index::ahead::TOGETHER;
use crate::metrics::SlowPathReason;
use crate::verify::{Outcome, Presented};

/// Bytes of an item in a batch, from which the number of items is guessed.
const ITEM_BYTES_TYPICAL: usize = 64;

/// Makes the body of a reply from that of a request, or says why the slow path must.
pub(super) type ToReply = fn(&VerifyState, &Caller, &mut Prefetched, &[u8]) -> Result<Bytes, SlowPathReason>;

/// Answers a call of Verify.
///
/// # Errors
/// When the request breaks a rule or asks for more than a verdict.
pub(super) fn verify(
    ready: &VerifyState,
    caller: &Caller,
    prefetched: &mut Prefetched,
    body: &[u8],
) -> Result<Bytes, SlowPathReason> {
    if body.len() > VERIFY_REQUEST_BYTES_MAX {
        return Err(SlowPathReason::LongRequest);
    }
    let request = Request::of_body(body).ok_or(SlowPathReason::Message)?;
    let secret = prefetched.find(request.secret).unwrap_or_else(|| ready.verifier.read(request.secret));
    let ruling = rule(ready, caller, &request, &secret, ready.now())?;
    ready.verdicts.count(caller, ruling.failure());
    if let Some(used) = ready.first_use(&ruling, &secret) {
        ready.first_uses.note(used);
    }
    Ok(answer(&ruling, &request).to_body())
}

/// Answers a call of BatchVerify, all of whose items can be answered with a verdict.
///
/// # Errors
/// As [`verify`], for any item.
pub(super) fn batch_verify(
    ready: &VerifyState,
    caller: &Caller,
    _: &mut Prefetched,
    body: &[u8],
) -> Result<Bytes, SlowPathReason> {
    let now = ready.now();
    let about = (body.len() / ITEM_BYTES_TYPICAL + 1).min(BATCH_ITEMS_MAX);
    let (mut answers, mut failures) = (BatchAnswer::with_room_for(about), Vec::with_capacity(about));
    let mut messages = messages(body).ok_or(SlowPathReason::Message)?;
    let is_large = ready.verifier.index().is_large();
    let (mut together, mut first_uses) = (Vec::with_capacity(TOGETHER), vec![]);
    loop {
        for message in messages.by_ref().take(TOGETHER) {
            let message = message.ok_or(SlowPathReason::Message)?;
            let secret = secret_of_message(message).filter(|_| is_large).map(|secret| ready.verifier.read(secret));
            together.push((message, secret));
        }
        if together.is_empty() {
            break;
        }
        if failures.len() + together.len() > BATCH_ITEMS_MAX {
            return Err(SlowPathReason::Message);
        }
        ready.verifier.read_ahead(together.iter().filter_map(|(_, secret)| secret.as_ref()));
        for (message, secret) in together.drain(..) {
            let request = Request::of_message(message).ok_or(SlowPathReason::Message)?;
            let is_its_own = |secret: &Presented<'_>| secret.is(request.secret);
            let secret = secret.filter(is_its_own).unwrap_or_else(|| ready.verifier.read(request.secret));
            let ruling = rule(ready, caller, &request, &secret, now)?;
            failures.push(ruling.failure());
            first_uses.extend(ready.first_use(&ruling, &secret));
            answers.push(&answer(&ruling, &request));
        }
    }
    if failures.is_empty() {
        return Err(SlowPathReason::Message);
    }
    // Counted only when it is certain that this is the answer.
    failures.into_iter().for_each(|failure| ready.verdicts.count(caller, failure));
    first_uses.into_iter().for_each(|used| ready.first_uses.note(used));
    Ok(answers.to_body())
}

#[inline(always)]
fn rule<'r>(
    ready: &'r VerifyState,
    caller: &Caller,
    request: &Request<'_>,
    secret: &Presented<'_>,
    now: Now,
) -> Result<Ruling<'r>, SlowPathReason> {
    if request.explain {
        return Err(SlowPathReason::Explain);
    }
    if request.min_revision > 0 && ready.verifier.index().has(Revision(request.min_revision)) != Ok(true) {
        return Err(SlowPathReason::MinRevision);
    }
    // A refusal is written in one place, which is not here.
    evaluate(ready, caller, &request.query(), secret, now).map_err(|_| SlowPathReason::Message)
}

fn answer<'a>(ruling: &'a Ruling<'_>, request: &Request<'a>) -> Answer<'a> {
    Answer {
        decision: ruling.decision(),
        reason: convert::reason(ruling.failure()),
        http_status: ruling.http_status(),
        key: match &ruling.verdict.outcome {
            Outcome::Allow(entry) => ToldKey::All(entry),
            Outcome::Deny(entry, _) => ToldKey::Id(entry.key_id_bytes()),
            Outcome::NoKey(_) => ToldKey::Nothing,
        },
        matched: ruling.matched.secret,
        previous_valid_until: ruling.matched.previous_valid_until,
        as_of_revision: ruling.verdict.as_of.0,
        correlation_id: request.correlation_id,
    }
}
