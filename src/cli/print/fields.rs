//! Replies as fields, in the order of their messages: names and forms once for people and for programs.

use std::collections::BTreeMap;

use prost_types::{Duration, Timestamp};

use super::super::when;
use crate::remote::wire;
use crate::util::terminal::harmless;

/// An object: names as in the protos, and values. Those that have their default are left out.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Fields(Vec<(&'static str, Value)>);

#[derive(Clone, Debug)]
pub(in crate::cli) enum Value {
    Text(String),
    /// A value of an enum: its name, and how people say it.
    Word(&'static str, &'static str),
    Texts(Vec<String>),
    Pairs(BTreeMap<String, String>),
    Time(Timestamp),
    Span(Duration),
    Flag(bool),
    /// Of 32 bits.
    Number(u32),
    /// Of 64 bits, which protobuf's JSON writes as text.
    Long(u64),
    Object(Fields),
    Objects(Vec<Fields>),
}

impl Fields {
    fn with(mut self, name: &'static str, value: Value) -> Self {
        let is_default = match &value {
            Value::Text(text) => text.is_empty(),
            Value::Texts(texts) => texts.is_empty(),
            Value::Objects(objects) => objects.is_empty(),
            Value::Pairs(pairs) => pairs.is_empty(),
            Value::Flag(is_set) => !is_set,
            Value::Number(number) => *number == 0,
            Value::Long(number) => *number == 0,
            Value::Word(..) | Value::Time(_) | Value::Span(_) | Value::Object(_) => false,
        };
        if !is_default {
            self.0.push((name, value));
        }
        self
    }

    fn text(self, name: &'static str, text: &str) -> Self {
        self.with(name, Value::Text(text.to_owned()))
    }

    fn texts(self, name: &'static str, texts: &[String]) -> Self {
        self.with(name, Value::Texts(texts.to_vec()))
    }

    fn pairs(self, name: &'static str, pairs: &BTreeMap<String, String>) -> Self {
        self.with(name, Value::Pairs(pairs.clone()))
    }

    fn time(self, name: &'static str, time: Option<&Timestamp>) -> Self {
        match time {
            Some(time) => self.with(name, Value::Time(*time)),
            None => self,
        }
    }

    /// With a text behind the others.
    pub(in crate::cli) fn and_text(self, name: &'static str, text: &str) -> Self {
        self.text(name, text)
    }

    /// With a mark behind the others, if it is set.
    pub(in crate::cli) fn and_flag(self, name: &'static str, is_set: bool) -> Self {
        self.with(name, Value::Flag(is_set))
    }

    /// With an object behind the others.
    pub(in crate::cli) fn and_object(self, name: &'static str, object: Fields) -> Self {
        self.with(name, Value::Object(object))
    }

    /// With a number of 64 bits behind the others.
    pub(in crate::cli) fn and_long(self, name: &'static str, number: u64) -> Self {
        self.with(name, Value::Long(number))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// The value of a field for people. Empty: it is not there.
    pub(super) fn cell(&self, name: &str) -> String {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value.shown()).unwrap_or_default()
    }

    /// A line for each field, names in a column. An object's fields stand among the others.
    pub(super) fn shown(&self) -> String {
        let mut lines = vec![];
        self.lines(&mut lines);
        let column = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        lines.iter().map(|(name, value)| format!("{name:column$}  {value}\n")).collect()
    }

    /// Names and values one after the other.
    fn in_a_line(&self) -> String {
        let values = self.iter().map(|(name, value)| format!("{name} {}", value.shown()));
        values.collect::<Vec<_>>().join("  ")
    }

    fn lines(&self, lines: &mut Vec<(&'static str, String)>) {
        for (name, value) in self.iter() {
            match value {
                Value::Object(fields) => fields.lines(lines),
                // What there is to say of one alone is said by the rest.
                Value::Objects(objects) if objects.len() < 2 => {}
                Value::Objects(objects) => lines.extend(objects.iter().map(|object| (name, object.in_a_line()))),
                value => lines.push((name, value.shown())),
            }
        }
    }
}

impl Value {
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => harmless(text),
            Self::Word(_, word) => (*word).to_owned(),
            Self::Texts(texts) => texts.iter().map(|text| harmless(text)).collect::<Vec<_>>().join(", "),
            Self::Pairs(pairs) => {
                let pairs = pairs.iter().map(|(name, value)| format!("{}={}", harmless(name), harmless(value)));
                pairs.collect::<Vec<_>>().join(", ")
            }
            Self::Time(time) => when::to_the_second(time),
            Self::Span(span) => when::span(span),
            Self::Flag(is_set) => if *is_set { "*" } else { "" }.to_owned(),
            Self::Number(number) => number.to_string(),
            Self::Long(number) => number.to_string(),
            Self::Object(fields) => fields.shown(),
            Self::Objects(objects) => objects.iter().map(Fields::in_a_line).collect::<Vec<_>>().join("; "),
        }
    }
}

/// A name as protobuf's JSON has it: `key_id` is `keyId`.
pub(super) fn json_name(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

/// A key.
pub(in crate::cli) fn key(key: &wire::Key) -> Fields {
    let state = key.state();
    let word = match state {
        wire::State::Unspecified => "unknown",
        // A time, not a state; people look for it here.
        wire::State::Active if key.expire_time.as_ref().is_some_and(when::has_come) => "expired",
        wire::State::Active => "active",
        wire::State::Disabled => "disabled",
        wire::State::Revoked => "revoked",
        wire::State::Deleted => "deleted",
    };
    let fields = Fields::default()
        .text("key_id", &key.key_id)
        .text("tenant", &key.tenant)
        .text("display_name", &key.display_name)
        .text("description", &key.description)
        .text("owner", &key.owner)
        .text("environment", &key.environment)
        .text("hint", &key.hint)
        .with("state", Value::Word(state.as_str_name(), word))
        .text("state_reason", &key.state_reason)
        .text("state_by", &key.state_by)
        .time("state_time", key.state_time.as_ref())
        .time("resume_time", key.resume_time.as_ref())
        .time("delete_time", key.delete_time.as_ref())
        .time("purge_time", key.purge_time.as_ref())
        .with("delete_protected", Value::Flag(key.delete_protected));
    let fields = match key.undelete_state() {
        wire::State::Unspecified => fields,
        state if state == wire::State::Revoked => {
            fields.with("undelete_state", Value::Word(state.as_str_name(), "revoked"))
        }
        state => fields.with("undelete_state", Value::Word(state.as_str_name(), "disabled")),
    };
    fields
        .texts("scopes", &key.scopes)
        .texts("audiences", &key.audiences)
        .with("secrets", Value::Objects(key.secrets.iter().map(secret).collect()))
        .texts("allowed_cidrs", &key.allowed_cidrs)
        .pairs("labels", &key.labels)
        .pairs("annotations", &key.annotations)
        .time("not_before", key.not_before.as_ref())
        .time("expire_time", key.expire_time.as_ref())
        .time("create_time", key.create_time.as_ref())
        .text("created_by", &key.created_by)
        .time("update_time", key.update_time.as_ref())
        .text("updated_by", &key.updated_by)
        .with("revision", Value::Long(key.revision))
        .text("etag", &key.etag)
}

/// A secret of a key.
fn secret(secret: &wire::Secret) -> Fields {
    let (state, starts) = (secret.state(), secret.overlap_starts());
    let state_word = match state {
        wire::SecretState::Unspecified => "unknown",
        wire::SecretState::Current => "current",
        wire::SecretState::Previous if secret.valid_until.as_ref().is_some_and(when::has_come) => "ended",
        wire::SecretState::Previous => "previous",
        wire::SecretState::Retired => "retired",
    };
    let starts_word = match starts {
        wire::OverlapStart::Unspecified => None,
        wire::OverlapStart::AtIssue => Some("issue"),
        wire::OverlapStart::OnFirstUse => Some("first-use"),
    };
    let fields = Fields::default()
        .with("version", Value::Number(secret.version))
        .text("hint", &secret.hint)
        .with("state", Value::Word(state.as_str_name(), state_word))
        .time("create_time", secret.create_time.as_ref())
        .text("issued_by", &secret.issued_by)
        .time("valid_until", secret.valid_until.as_ref());
    let fields = match &secret.overlap {
        Some(overlap) => fields.with("overlap", Value::Span(*overlap)),
        None => fields,
    };
    let fields = match starts_word {
        Some(word) => fields.with("overlap_starts", Value::Word(starts.as_str_name(), word)),
        None => fields,
    };
    fields.time("retire_time", secret.retire_time.as_ref())
}

/// A tenant.
pub(in crate::cli) fn tenant(tenant: &wire::Tenant) -> Fields {
    Fields::default()
        .text("tenant", &tenant.tenant)
        .text("display_name", &tenant.display_name)
        .text("secret_prefix", &tenant.secret_prefix)
        .with("state", holder_state(tenant.state()))
        .text("state_reason", &tenant.state_reason)
        .text("state_by", &tenant.state_by)
        .time("state_time", tenant.state_time.as_ref())
        .time("reject_issued_before", tenant.reject_issued_before.as_ref())
        .time("create_time", tenant.create_time.as_ref())
        .text("created_by", &tenant.created_by)
        .time("update_time", tenant.update_time.as_ref())
        .text("updated_by", &tenant.updated_by)
        .with("revision", Value::Long(tenant.revision))
        .text("etag", &tenant.etag)
}

/// An owner.
pub(in crate::cli) fn owner(owner: &wire::Owner) -> Fields {
    Fields::default()
        .text("owner", &owner.owner)
        .text("tenant", &owner.tenant)
        .with("state", holder_state(owner.state()))
        .text("state_reason", &owner.state_reason)
        .text("state_by", &owner.state_by)
        .time("state_time", owner.state_time.as_ref())
        .time("reject_issued_before", owner.reject_issued_before.as_ref())
        .time("update_time", owner.update_time.as_ref())
        .text("updated_by", &owner.updated_by)
        .with("revision", Value::Long(owner.revision))
        .text("etag", &owner.etag)
}

/// An issuer.
pub(in crate::cli) fn issuer(issuer: &wire::Issuer) -> Fields {
    Fields::default()
        .text("issuer", &issuer.issuer)
        .time("reject_issued_before", issuer.reject_issued_before.as_ref())
        .time("update_time", issuer.update_time.as_ref())
        .text("updated_by", &issuer.updated_by)
        .with("revision", Value::Long(issuer.revision))
        .text("etag", &issuer.etag)
}

fn holder_state(state: wire::HolderState) -> Value {
    let word = match state {
        wire::HolderState::Unspecified => "unknown",
        wire::HolderState::Active => "active",
        wire::HolderState::Suspended => "suspended",
    };
    Value::Word(state.as_str_name(), word)
}

/// A verdict. `key` stands for the little that the verdict says of the key.
pub(in crate::cli) fn verdict(verdict: &wire::VerifyResponse, key: Option<Fields>) -> Fields {
    let decision = match verdict.decision() {
        wire::Decision::Allow => "allow",
        wire::Decision::Deny | wire::Decision::Unspecified => "deny",
    };
    let reason = verdict.reason().as_str_name();
    let shown = reason.strip_prefix("REASON_").unwrap_or(reason);
    let fields = Fields::default()
        .with("decision", Value::Word(verdict.decision().as_str_name(), decision))
        .with("reason", Value::Word(reason, shown))
        .with("http_status", Value::Number(verdict.http_status));
    let matched = match verdict.matched() {
        wire::Matched::Unspecified => None,
        wire::Matched::Current => Some("current"),
        wire::Matched::Previous => Some("previous"),
    };
    let fields = match matched {
        Some(word) => fields.with("matched", Value::Word(verdict.matched().as_str_name(), word)),
        None => fields,
    };
    let fields = fields.time("previous_valid_until", verdict.previous_valid_until.as_ref());
    let fields = match key.or_else(|| verdict.key.as_ref().map(verified_key)) {
        Some(key) => fields.with("key", Value::Object(key)),
        None => fields,
    };
    fields.with("as_of_revision", Value::Long(verdict.as_of_revision))
}

/// What a verdict says of its key.
fn verified_key(key: &wire::VerifiedKey) -> Fields {
    Fields::default()
        .text("key_id", &key.key_id)
        .text("tenant", &key.tenant)
        .text("display_name", &key.display_name)
        .text("owner", &key.owner)
        .text("environment", &key.environment)
        .texts("scopes", &key.scopes)
        .pairs("labels", &key.labels)
        .time("expire_time", key.expire_time.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_key_is_expired_for_people_and_active_for_programs() {
        let expire_time = Some(Timestamp { seconds: 1, nanos: 0 });
        let fields = key(&wire::Key { state: wire::State::Active.into(), expire_time, ..Default::default() });
        assert_eq!(fields.cell("state"), "expired");
        assert!(serde_json::to_string(&fields).unwrap().contains("\"STATE_ACTIVE\""));
    }

    #[test]
    fn names_are_those_of_protobufs_json() {
        for (name, json) in [("key_id", "keyId"), ("as_of_revision", "asOfRevision"), ("etag", "etag")] {
            assert_eq!(json_name(name), json);
        }
    }
}
