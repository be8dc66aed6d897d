//! One request of Verify, whichever way it came: its fields are checked and it is decided here, once.
//!
//! The fast path reads a query from bytes and writes the ruling by hand ([`crate::fast_path`]); all other
//! calls read and write with prost.

use keyward_core::access::Caller;
use keyward_core::clock::{Now, UnixMillis};
use keyward_core::decision::{AccessRequest, DenyReason};
use keyward_core::id::{Environment, TenantId};
use keyward_core::limits::{AUDIENCE_BYTES_MAX, CORRELATION_ID_BYTES_MAX};

use super::convert;
use super::fields::Fields;
use super::pb;
use super::state::VerifyState;
use super::status::Refusal;
use super::text;
use crate::index::Entry;
use crate::verify::{Explained, Outcome, Presented, Verdict, explain};

/// What a VerifyRequest asks, without its secret and the revision to wait for. The fields are those of the
/// proto, as they came.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyQuery<'a> {
    /// See the proto.
    pub tenant: &'a str,
    /// See the proto.
    pub all_scopes: &'a [&'a str],
    /// See the proto.
    pub any_scopes: &'a [&'a str],
    /// See the proto.
    pub audience: &'a str,
    /// See the proto.
    pub client_ip: &'a str,
    /// See the proto.
    pub mode: i32,
    /// See the proto.
    pub explain: bool,
    /// See the proto.
    pub correlation_id: &'a str,
    /// See the proto.
    pub environment: &'a str,
}

/// The answer to a query.
pub struct Ruling<'a> {
    /// The verdict.
    pub verdict: Verdict<'a>,
    /// Each check and its result, if the query asked for that.
    pub checks: Vec<Explained>,
    /// Which secret was presented.
    pub matched: Matched,
}

/// Which secret of a key was presented, and what there is to know of the other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// See the proto.
    pub secret: pb::Matched,
    /// See the proto.
    pub previous_valid_until: Option<UnixMillis>,
    /// It is a use of the new secret, and the overlap with the one before waits for that.
    pub begins_overlap: bool,
}

/// Checks the fields of a query, and decides about a secret.
///
/// # Errors
/// With all fields that break a rule.
#[inline(always)]
pub fn evaluate<'r>(
    ready: &'r VerifyState,
    caller: &Caller,
    query: &VerifyQuery<'_>,
    secret: &Presented<'_>,
    now: Now,
) -> Result<Ruling<'r>, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", query.tenant, |text| TenantId::parse(text).map(Some), || None);
    fields.required_scopes("all_scopes", query.all_scopes);
    fields.required_scopes("any_scopes", query.any_scopes);
    let client_ip = fields.ip("client_ip", query.client_ip);
    fields.parse_or("environment", query.environment, |text| Environment::parse(text).map(drop), || ());
    fields.opaque("audience", query.audience, AUDIENCE_BYTES_MAX);
    fields.opaque("correlation_id", query.correlation_id, CORRELATION_ID_BYTES_MAX);
    if pb::Mode::try_from(query.mode).is_err() {
        fields.wrong("mode", "must be MODE_ENFORCE or MODE_PEEK");
    }
    let tenant = fields.finish(tenant)?;

    let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
    // Where the caller's identity has an audience, the request cannot choose another one.
    let audience = caller.audience().unwrap_or(query.audience);
    let mut ask = AccessRequest {
        all_scopes: query.all_scopes,
        any_scopes: query.any_scopes,
        environment: given(query.environment),
        audience: given(audience),
        client_ip,
    };
    let mut verdict = ready.verifier.verify(caller, secret, tenant.as_ref(), &ask, now);
    // Audiences are stored in one normalization form, except old ones. So the text as it came is compared
    // first.
    let normalized;
    if matches!(verdict.outcome, Outcome::Deny(_, DenyReason::AudienceMismatch)) && !audience.is_ascii() {
        normalized = text::normalized(audience.to_owned());
        if normalized != audience {
            ask.audience = Some(&normalized);
            verdict = ready.verifier.verify(caller, secret, tenant.as_ref(), &ask, now);
        }
    }
    let checks = if query.explain {
        explain(secret, &verdict.outcome, &ask, now, &ready.verifier.index().holds())
    } else {
        vec![]
    };
    let matched = match &verdict.outcome {
        Outcome::Allow(entry) if entry.is_rotating() => {
            Matched::of_rotating(entry, query.mode != i32::from(pb::Mode::Peek), now)
        }
        Outcome::Allow(_) => Matched { secret: pb::Matched::Current, ..Matched::default() },
        Outcome::Deny(..) | Outcome::NoKey(_) => Matched::default(),
    };
    Ok(Ruling { verdict, checks, matched })
}

impl Matched {
    #[cold]
    fn of_rotating(entry: &Entry<'_>, is_use: bool, now: Now) -> Self {
        let (is_previous, end) = (entry.is_of_previous(), entry.previous_end());
        Self {
            secret: if is_previous { pb::Matched::Previous } else { pb::Matched::Current },
            previous_valid_until: end.filter(|end| now.latest() < *end),
            begins_overlap: is_use && !is_previous && end.is_none(),
        }
    }
}

impl Ruling<'_> {
    /// Why the key is denied. `None`: it is allowed.
    #[must_use]
    pub fn failure(&self) -> Option<DenyReason> {
        match self.verdict.outcome {
            Outcome::Allow(_) => None,
            Outcome::Deny(_, reason) | Outcome::NoKey(reason) => Some(reason),
        }
    }

    /// The decision.
    #[must_use]
    pub fn decision(&self) -> pb::Decision {
        if self.failure().is_none() { pb::Decision::Allow } else { pb::Decision::Deny }
    }

    /// What a web service should answer.
    #[must_use]
    pub fn http_status(&self) -> u32 {
        self.failure().map_or(200, DenyReason::http_status)
    }

    /// The message, for prost.
    #[must_use]
    pub fn to_pb(&self, correlation_id: String) -> pb::VerifyResponse {
        let key = match &self.verdict.outcome {
            Outcome::Allow(entry) => Some(convert::verified_key(entry)),
            Outcome::Deny(entry, _) => {
                Some(pb::VerifiedKey { key_id: entry.key_id().to_owned(), ..Default::default() })
            }
            Outcome::NoKey(_) => None,
        };
        pb::VerifyResponse {
            decision: self.decision().into(),
            reason: convert::reason(self.failure()).into(),
            http_status: self.http_status(),
            key,
            matched: self.matched.secret.into(),
            previous_valid_until: self.matched.previous_valid_until.map(convert::timestamp),
            as_of_revision: self.verdict.as_of.0,
            checks: self.checks.iter().map(check).collect(),
            correlation_id,
        }
    }
}

fn check(line: &Explained) -> pb::Check {
    pb::Check {
        check: line.check.to_owned(),
        passed: line.failure.is_none(),
        reason: convert::reason(line.failure).into(),
        detail: line.detail.clone(),
    }
}
