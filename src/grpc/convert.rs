//! Converts between wire and domain types.

use ipnet::IpNet;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::{DenyReason, Policy};
use keyward_core::id::{Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::limits::{
    DESCRIPTION_BYTES_MAX, DISPLAY_NAME_BYTES_MAX, OWNER_BYTES_MAX, SELECTOR_KEY_IDS_MAX, STATE_REASON_BYTES_MAX,
};
use keyward_core::record::{KeyRecord, State, TenantRecord};
use prost_types::Timestamp;

use super::fields::Fields;
use super::pb;
use super::status::Refusal;
use crate::authority::{ChangeOptions, KeyPatch, NewKey, NewTenant, Selector, etag};
use crate::index::Entry;

/// The fields that an update may name, in the order of the documentation.
const UPDATABLE: &str = "must be one of display_name, description, owner, scopes, audiences, allowed_cidrs, labels, \
                         annotations, not_before, expire_time";

/// How many they are.
const UPDATABLE_FIELDS: usize = 10;

/// States that a selector names at most; there are fewer, and one may stand twice.
const SELECTOR_STATES_MAX: usize = 16;

/// Which key a request means.
#[derive(Debug)]
pub struct KeyName {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its id.
    pub key_id: KeyId,
}

/// A change of state, as requested.
#[derive(Debug)]
pub struct StateChange {
    /// Of which key.
    pub key: KeyName,
    /// Why.
    pub reason: String,
    /// How to change it.
    pub options: ChangeOptions,
}

/// Reads the name of a key.
///
/// # Errors
/// When a field breaks its rule.
pub fn key_name(key_id: &str, tenant: &str, default: TenantId) -> Result<KeyName, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", tenant, TenantId::parse, || default);
    let key_id = fields.parse("key_id", key_id, KeyId::parse);
    fields.finish(tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id }))
}

/// Reads the name of a tenant, where one must be given.
///
/// # Errors
/// When it breaks its rule.
pub fn tenant_name(tenant: &str) -> Result<TenantId, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse("tenant", tenant, TenantId::parse);
    fields.finish(tenant)
}

/// Reads what DisableKey, EnableKey and RevokeKey have in common.
///
/// # Errors
/// When a field breaks its rule.
pub fn state_change(
    (key_id, tenant, etag): (&str, &str, String),
    reason: String,
    validate_only: bool,
    default: TenantId,
) -> Result<StateChange, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", tenant, TenantId::parse, || default);
    let key_id = fields.parse("key_id", key_id, KeyId::parse);
    let reason = fields.text("reason", reason, STATE_REASON_BYTES_MAX);
    let key = tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id });
    fields.finish(key.map(|key| StateChange { key, reason, options: options(etag, validate_only) }))
}

/// Reads a key to be, and its tenant.
///
/// # Errors
/// When a field breaks its rule.
pub fn new_key(request: pb::CreateKeyRequest, default: TenantId) -> Result<(TenantId, NewKey), Refusal> {
    let mut fields = Fields::default();
    let f = &mut fields;
    let tenant = f.parse_or("tenant", &request.tenant, TenantId::parse, || default);
    let key_id = f.parse_or("key_id", &request.key_id, |id| KeyId::parse(id).map(Some), || None);
    let environment = f.parse_or("environment", &request.environment, Environment::parse, Environment::live);
    let display_name = f.required_text("display_name", request.display_name, DISPLAY_NAME_BYTES_MAX);
    let description = f.text("description", request.description, DESCRIPTION_BYTES_MAX);
    let owner = f.text("owner", request.owner, OWNER_BYTES_MAX);
    let scopes = f.scopes("scopes", &request.scopes);
    let audiences = f.audiences("audiences", &request.audiences);
    let allowed_cidrs = f.cidrs("allowed_cidrs", &request.allowed_cidrs);
    let labels = f.labels("labels", request.labels);
    let annotations = f.annotations("annotations", request.annotations);
    let not_before = f.time("not_before", request.not_before);
    let expire_time = f.time("expire_time", request.expire_time);
    let new = tenant.zip(key_id).zip(environment).map(|((tenant, key_id), environment)| {
        let disabled = request.disabled;
        let new = NewKey {
            key_id,
            display_name,
            description,
            owner,
            environment,
            scopes,
            audiences,
            allowed_cidrs,
            labels,
            annotations,
            not_before,
            expire_time,
            disabled,
        };
        (tenant, new)
    });
    fields.finish(new)
}

/// Reads a change of fields.
///
/// # Errors
/// When a field breaks its rule, or the mask names one that may not be changed.
pub fn update(request: pb::UpdateKeyRequest, default: TenantId) -> Result<(KeyName, KeyPatch, ChangeOptions), Refusal> {
    let mut fields = Fields::default();
    let f = &mut fields;
    let mask = request.update_mask.unwrap_or_default();
    if mask.paths.is_empty() {
        f.wrong("update_mask", "must name the fields to change");
    }
    let Some(key) = request.key else {
        f.wrong("key", "must be given");
        return fields.finish(None);
    };
    let tenant = f.parse_or("key.tenant", &key.tenant, TenantId::parse, || default);
    let key_id = f.parse("key.key_id", &key.key_id, KeyId::parse);
    let mut patch = KeyPatch::default();
    // Before any field is read: each path costs the reading of its field.
    if mask.paths.len() > UPDATABLE_FIELDS {
        f.wrong("update_mask", "must name each field once");
        return fields.finish(None);
    }
    for (at, path) in mask.paths.iter().enumerate() {
        if mask.paths[..at].contains(path) {
            f.wrong(format!("update_mask.paths[{at}]"), "must not be named twice");
            continue;
        }
        match path.as_str() {
            "display_name" => {
                let label = f.required_text("key.display_name", key.display_name.clone(), DISPLAY_NAME_BYTES_MAX);
                patch.display_name = Some(label);
            }
            "description" => {
                patch.description = Some(f.text("key.description", key.description.clone(), DESCRIPTION_BYTES_MAX));
            }
            "owner" => patch.owner = Some(f.text("key.owner", key.owner.clone(), OWNER_BYTES_MAX)),
            "scopes" => patch.scopes = Some(f.scopes("key.scopes", &key.scopes)),
            "audiences" => patch.audiences = Some(f.audiences("key.audiences", &key.audiences)),
            "allowed_cidrs" => patch.allowed_cidrs = Some(f.cidrs("key.allowed_cidrs", &key.allowed_cidrs)),
            "labels" => patch.labels = Some(f.labels("key.labels", key.labels.clone())),
            "annotations" => patch.annotations = Some(f.annotations("key.annotations", key.annotations.clone())),
            "not_before" => patch.not_before = Some(f.time("key.not_before", key.not_before)),
            "expire_time" => patch.expire_time = Some(f.time("key.expire_time", key.expire_time)),
            _ => f.wrong(format!("update_mask.paths[{at}]"), UPDATABLE),
        }
    }
    if !request.etag.is_empty() && !key.etag.is_empty() && request.etag != key.etag {
        f.wrong("etag", "must not contradict key.etag");
    }
    let etag = if request.etag.is_empty() { key.etag } else { request.etag };
    let name = tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id });
    fields.finish(name.map(|name| (name, patch, options(etag, request.validate_only))))
}

/// Reads which keys to list, of which tenant, and how many.
///
/// # Errors
/// When a field breaks its rule.
pub fn list(request: &pb::ListKeysRequest, default: TenantId) -> Result<(TenantId, Selector, usize), Refusal> {
    let mut fields = Fields::default();
    let f = &mut fields;
    let selector = request.selector.clone().unwrap_or_default();
    let tenant = f.parse_or("selector.tenant", &selector.tenant, TenantId::parse, || default);
    let mut states = Vec::new();
    if selector.states.len() > SELECTOR_STATES_MAX {
        f.wrong("selector.states", format!("must have at most {SELECTOR_STATES_MAX} entries"));
    }
    for (at, &state) in selector.states.iter().take(SELECTOR_STATES_MAX).enumerate() {
        match pb::State::try_from(state) {
            Ok(pb::State::Active) => states.push(State::Active),
            Ok(pb::State::Disabled) => states.push(State::Disabled),
            Ok(pb::State::Revoked) => states.push(State::Revoked),
            Ok(pb::State::Unspecified) | Err(_) => {
                f.wrong(format!("selector.states[{at}]"), "must be STATE_ACTIVE, STATE_DISABLED or STATE_REVOKED");
            }
        }
    }
    states.sort_unstable_by_key(|state| *state as u8);
    states.dedup();
    let owner = f.sought_text("selector.owner", selector.owner, OWNER_BYTES_MAX);
    let labels = f.sought_labels("selector.labels", selector.labels);
    let key_ids = f.list("selector.key_ids", &selector.key_ids, SELECTOR_KEY_IDS_MAX, |id| {
        KeyId::parse(id).map_err(|rule| rule.0)
    });
    let page_size = f.page_size("page_size", request.page_size);
    let owner = (!owner.is_empty()).then_some(owner);
    fields.finish(tenant.map(|tenant| (tenant, Selector { states, owner, labels, key_ids }, page_size)))
}

/// Reads a tenant to be.
///
/// # Errors
/// When a field breaks its rule.
pub fn new_tenant(request: pb::CreateTenantRequest) -> Result<NewTenant, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse("tenant", &request.tenant, TenantId::parse);
    let prefix = fields.parse_or("secret_prefix", &request.secret_prefix, SecretPrefix::parse, SecretPrefix::kw);
    let display_name = fields.text("display_name", request.display_name, DISPLAY_NAME_BYTES_MAX);
    let new = tenant.zip(prefix);
    fields.finish(new.map(|(tenant, secret_prefix)| NewTenant { tenant, display_name, secret_prefix }))
}

/// A key for the wire.
#[must_use]
pub fn key(key: &KeyRecord) -> pb::Key {
    pb::Key {
        key_id: key.key_id.to_string(),
        tenant: key.tenant.to_string(),
        display_name: key.display_name.clone(),
        description: key.description.clone(),
        owner: key.owner.clone(),
        environment: key.policy.environment.to_string(),
        hint: key.secret.hint.clone(),
        state: state(key.policy.state).into(),
        state_reason: key.state_reason.clone(),
        state_by: key.state_changed.as_ref().map(|state_changed| state_changed.actor.to_string()).unwrap_or_default(),
        state_time: key.state_changed.as_ref().map(|state_changed| timestamp(state_changed.time)),
        scopes: key.policy.scopes.iter().map(|s| s.as_str().to_owned()).collect(),
        audiences: key.policy.audiences.clone(),
        labels: key.labels.clone(),
        annotations: key.annotations.clone(),
        allowed_cidrs: key.policy.allowed_cidrs.iter().map(IpNet::to_string).collect(),
        not_before: key.policy.not_before.map(timestamp),
        expire_time: key.policy.expire_time.map(timestamp),
        create_time: Some(timestamp(key.created.time)),
        created_by: key.created.actor.to_string(),
        update_time: Some(timestamp(key.updated.time)),
        updated_by: key.updated.actor.to_string(),
        revision: key.revision.0,
        etag: etag(key.revision),
    }
}

/// A tenant for the wire.
#[must_use]
pub fn tenant(tenant: &TenantRecord) -> pb::Tenant {
    pb::Tenant {
        tenant: tenant.tenant.to_string(),
        display_name: tenant.display_name.clone(),
        secret_prefix: tenant.secret_prefix.to_string(),
        create_time: Some(timestamp(tenant.created.time)),
        created_by: tenant.created.actor.to_string(),
        revision: tenant.revision.0,
        etag: etag(tenant.revision),
    }
}

/// What a service learns of a key that it may serve.
#[must_use]
pub fn verified_key(entry: &Entry<'_>) -> pb::VerifiedKey {
    pb::VerifiedKey {
        key_id: entry.key_id().to_owned(),
        tenant: entry.tenant().to_string(),
        display_name: entry.display_name().to_owned(),
        owner: entry.owner().to_owned(),
        environment: entry.environment().to_string(),
        scopes: entry.scopes().map(|s| s.as_str().to_owned()).collect(),
        labels: entry.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        expire_time: entry.expire_time().map(timestamp),
    }
}

/// A reason for the wire.
#[must_use]
pub fn reason(reason: Option<DenyReason>) -> pb::Reason {
    match reason {
        None => pb::Reason::Ok,
        Some(DenyReason::Malformed) => pb::Reason::Malformed,
        Some(DenyReason::Unknown) => pb::Reason::Unknown,
        Some(DenyReason::Disabled) => pb::Reason::Disabled,
        Some(DenyReason::Revoked) => pb::Reason::Revoked,
        Some(DenyReason::NotYetValid) => pb::Reason::NotYetValid,
        Some(DenyReason::Expired) => pb::Reason::Expired,
        Some(DenyReason::EnvironmentMismatch) => pb::Reason::EnvironmentMismatch,
        Some(DenyReason::AudienceMismatch) => pb::Reason::AudienceMismatch,
        Some(DenyReason::IpNotAllowed) => pb::Reason::IpNotAllowed,
        Some(DenyReason::ScopeMissing) => pb::Reason::ScopeMissing,
    }
}

fn state(state: State) -> pb::State {
    match state {
        State::Active => pb::State::Active,
        State::Disabled => pb::State::Disabled,
        State::Revoked => pb::State::Revoked,
    }
}

fn timestamp(time: UnixMillis) -> Timestamp {
    let nanos = i32::try_from(time.0.rem_euclid(1_000) * 1_000_000).unwrap_or(0); // below 10^9
    Timestamp { seconds: time.0.div_euclid(1_000), nanos }
}

fn options(etag: String, validate_only: bool) -> ChangeOptions {
    ChangeOptions { etag: (!etag.is_empty()).then_some(etag), validate_only }
}
