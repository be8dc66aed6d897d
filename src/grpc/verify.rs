//! KeyVerify: convert, decide, convert.

use std::time::Duration;

use keyward_core::access::Caller;
use keyward_core::decision::Ask;
use keyward_core::event::Revision;
use keyward_core::id::TenantId;
use keyward_core::limits::AUDIENCE_BYTES_MAX;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use zeroize::Zeroizing;

use super::convert;
use super::fields::Fields;
use super::pb;
use super::ready::{Gate, Ready};
use super::status::{Refusal, status};
use crate::verify::{Explained, Outcome, Verdict, explain};

/// How long a call waits for the revision it asks for.
const MIN_REVISION_WAIT: Duration = Duration::from_millis(50);

/// The service.
pub struct VerifyService {
    gate: Gate,
}

impl VerifyService {
    /// The service behind a gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

#[tonic::async_trait]
impl pb::key_verify_server::KeyVerify for VerifyService {
    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        let answered = async {
            let ready = self.gate.ready()?;
            let caller = request.extensions().get::<Caller>().cloned().ok_or(Refusal::NoCredential)?;
            let message = request.into_inner();
            wait_for(ready, Revision(message.min_revision)).await?;
            verdict(ready, &caller, message)
        };
        answered.await.map(Response::new).map_err(status)
    }
}

async fn wait_for(ready: &Ready, revision: Revision) -> Result<(), Refusal> {
    let index = ready.verifier.index();
    if index.revision() >= revision {
        return Ok(());
    }
    timeout(MIN_REVISION_WAIT, index.reached(revision)).await.map_err(|_| Refusal::RevisionNotReached)
}

fn verdict(ready: &Ready, caller: &Caller, message: pb::VerifyRequest) -> Result<pb::VerifyResponse, Refusal> {
    let secret = Zeroizing::new(message.secret);
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", &message.tenant, |t| TenantId::parse(t).map(Some), || None);
    fields.required_scopes("all_scopes", &message.all_scopes);
    fields.required_scopes("any_scopes", &message.any_scopes);
    let client_ip = fields.ip("client_ip", &message.client_ip);
    let audience = fields.text("audience", message.audience, AUDIENCE_BYTES_MAX);
    if pb::Mode::try_from(message.mode).is_err() {
        fields.wrong("mode", "must be MODE_ENFORCE or MODE_PEEK");
    }
    let tenant = fields.finish(tenant)?;

    let ask = Ask {
        all_scopes: &message.all_scopes,
        any_scopes: &message.any_scopes,
        audience: (!audience.is_empty()).then_some(&*audience),
        client_ip,
    };
    let now = ready.clock.now();
    let Verdict { as_of, outcome } = ready.verifier.verify(caller, &secret, tenant.as_ref(), &ask, now);
    let checks = if message.explain { explain(&outcome, &ask, now) } else { vec![] };
    let (failure, key) = match outcome {
        Outcome::Allow(entry) => (None, Some(convert::verified_key(&entry))),
        Outcome::Deny(entry, reason) => {
            let key = pb::VerifiedKey { key_id: entry.key_id.to_string(), ..Default::default() };
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
    })
}

fn check(line: Explained) -> pb::Check {
    pb::Check {
        check: line.check.to_owned(),
        passed: line.failure.is_none(),
        reason: convert::reason(line.failure).into(),
    }
}
