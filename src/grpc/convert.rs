//! Converts between wire and domain types.

use keyward_core::clock::UnixMillis;
use keyward_core::decision::{DenyReason, Policy};
use keyward_core::id::{KeyId, SecretPrefix, TenantId};
use keyward_core::limits::{DISPLAY_NAME_BYTES_MAX, OWNER_BYTES_MAX, SELECTOR_KEY_IDS_MAX, STATE_REASON_BYTES_MAX};
use keyward_core::record::{ShownState, State};
use prost_types::Timestamp;

use super::fields::Fields;
use super::pb;
use super::status::Refusal;
use crate::authority::{ChangeOptions, NewTenant, RequestName, Selector};
use crate::index::Entry;

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

/// Reads what DisableKey, EnableKey, RevokeKey and UndeleteKey have in common.
///
/// # Errors
/// When a field breaks its rule.
pub fn state_change(
    name: (&str, &str, String),
    reason: String,
    (validate_only, request): (bool, Option<RequestName>),
    default: TenantId,
) -> Result<StateChange, Refusal> {
    state_change_with(name, reason, (validate_only, request), default, |_| ()).map(|(change, ())| change)
}

/// The same with fields of the call's own.
///
/// # Errors
/// When a field breaks its rule.
pub fn state_change_with<T>(
    (key_id, tenant, etag): (&str, &str, String),
    reason: String,
    (validate_only, request): (bool, Option<RequestName>),
    default: TenantId,
    own: impl FnOnce(&mut Fields) -> T,
) -> Result<(StateChange, T), Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse_or("tenant", tenant, TenantId::parse, || default);
    let key_id = fields.parse("key_id", key_id, KeyId::parse);
    let reason = fields.text("reason", reason, STATE_REASON_BYTES_MAX);
    let key = tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id });
    let own = own(&mut fields);
    fields.finish(key.map(|key| (StateChange { key, reason, options: options(etag, validate_only, request) }, own)))
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
            Ok(pb::State::Active) => states.push(ShownState::Active),
            Ok(pb::State::Disabled) => states.push(ShownState::Disabled),
            Ok(pb::State::Revoked) => states.push(ShownState::Revoked),
            Ok(pb::State::Deleted) => states.push(ShownState::Deleted),
            Ok(pb::State::Unspecified) | Err(_) => f.wrong(
                format!("selector.states[{at}]"),
                "must be STATE_ACTIVE, STATE_DISABLED, STATE_REVOKED or STATE_DELETED",
            ),
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
    let with_deleted = request.show_deleted;
    let selector = Selector { states, with_deleted, owner, labels, key_ids };
    fields.finish(tenant.map(|tenant| (tenant, selector, page_size)))
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
        Some(DenyReason::RotatedOut) => pb::Reason::RotatedOut,
        Some(DenyReason::OwnerSuspended) => pb::Reason::OwnerSuspended,
        Some(DenyReason::EpochRejected) => pb::Reason::EpochRejected,
        Some(DenyReason::Disabled) => pb::Reason::Disabled,
        Some(DenyReason::Suspended) => pb::Reason::Suspended,
        Some(DenyReason::Revoked) => pb::Reason::Revoked,
        Some(DenyReason::NotYetValid) => pb::Reason::NotYetValid,
        Some(DenyReason::Expired) => pb::Reason::Expired,
        Some(DenyReason::EnvironmentMismatch) => pb::Reason::EnvironmentMismatch,
        Some(DenyReason::AudienceMismatch) => pb::Reason::AudienceMismatch,
        Some(DenyReason::IpNotAllowed) => pb::Reason::IpNotAllowed,
        Some(DenyReason::ScopeMissing) => pb::Reason::ScopeMissing,
    }
}

pub(super) fn state(state: State) -> pb::State {
    match state {
        State::Active => pb::State::Active,
        State::Disabled => pb::State::Disabled,
        State::Revoked => pb::State::Revoked,
    }
}

/// A time for the wire.
#[must_use]
pub fn timestamp(time: UnixMillis) -> Timestamp {
    let nanos = i32::try_from(time.0.rem_euclid(1_000) * 1_000_000).unwrap_or(0); // below 10^9
    Timestamp { seconds: time.0.div_euclid(1_000), nanos }
}

pub(super) fn options(etag: String, validate_only: bool, request: Option<RequestName>) -> ChangeOptions {
    ChangeOptions { etag: (!etag.is_empty()).then_some(etag), validate_only, request }
}
