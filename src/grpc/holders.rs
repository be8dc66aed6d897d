//! Converts what is changed of tenants, owners and issuers as a whole.

use keyward_core::access::{Caller, ChangeState, Grant};
use keyward_core::clock::UnixMillis;
use keyward_core::id::{ActorId, SecretPrefix, TenantId};
use keyward_core::limits::{DISPLAY_NAME_BYTES_MAX, OWNER_BYTES_MAX, STATE_REASON_BYTES_MAX};
use keyward_core::record::{Hold, IssuerRecord, OwnerRecord, TenantRecord};

use super::convert::{options, timestamp};
use super::fields::Fields;
use super::pb;
use super::retry::take_name;
use super::status::Refusal;
use crate::authority::{AuthorityError, ChangeOptions, OwnerName, RequestName, SoughtText, TenantPatch, etag};

/// A tenant to suspend or resume.
#[derive(Debug)]
pub(super) struct TenantHold {
    /// The tenant.
    pub tenant: TenantId,
    /// Why.
    pub reason: String,
    /// How to change it.
    pub options: ChangeOptions,
}

/// An owner to suspend or resume.
#[derive(Debug)]
pub(super) struct OwnerHold {
    /// The tenant.
    pub tenant: TenantId,
    /// The owner of its keys.
    pub owner: SoughtText,
    /// Why.
    pub reason: String,
    /// How to change it.
    pub options: ChangeOptions,
}

/// An epoch to set.
#[derive(Debug)]
pub(super) struct Epoch {
    /// Of whom.
    pub holder: EpochHolder,
    /// The time. `None`: that of the call.
    pub time: Option<UnixMillis>,
    /// How to change it.
    pub options: ChangeOptions,
}

/// Whose secrets an epoch is about.
#[derive(Debug)]
pub(super) enum EpochHolder {
    /// Those of all keys of a tenant.
    Tenant(TenantId),
    /// Those of an owner's keys.
    Owner(TenantId, SoughtText),
    /// Those that somebody issued.
    Issuer(ActorId),
}

/// Reads a change of a tenant's fields.
///
/// # Errors
/// When a field breaks its rule, or the mask names one that may not be changed.
pub(super) fn tenant_update(
    mut request: pb::UpdateTenantRequest,
) -> Result<(TenantId, TenantPatch, ChangeOptions), Refusal> {
    let name = take_name(&mut request)?;
    let mut fields = Fields::default();
    let f = &mut fields;
    let mask = request.update_mask.unwrap_or_default();
    if mask.paths.is_empty() {
        f.wrong("update_mask", "must name the fields to change");
    }
    let Some(given) = request.tenant else {
        f.wrong("tenant", "must be given");
        return fields.finish(None);
    };
    let tenant = f.parse("tenant.tenant", &given.tenant, TenantId::parse);
    let mut patch = TenantPatch::default();
    // Once each path has been named, a further one is refused whatever it is.
    for (at, path) in mask.paths.iter().enumerate().take(3) {
        match path.as_str() {
            "display_name" if patch.display_name.is_none() => {
                let text = given.display_name.clone();
                patch.display_name = Some(f.text("tenant.display_name", text, DISPLAY_NAME_BYTES_MAX));
            }
            "secret_prefix" if patch.secret_prefix.is_none() => {
                let read = |f: &mut Fields| {
                    f.parse_or("tenant.secret_prefix", &given.secret_prefix, SecretPrefix::parse, SecretPrefix::kw)
                };
                patch.secret_prefix = read(f).or_else(|| Some(SecretPrefix::kw()));
            }
            "display_name" | "secret_prefix" => f.wrong(format!("update_mask.paths[{at}]"), "must not be named twice"),
            _ => f.wrong(format!("update_mask.paths[{at}]"), "must be one of display_name, secret_prefix"),
        }
    }
    if !request.etag.is_empty() && !given.etag.is_empty() && request.etag != given.etag {
        f.wrong("etag", "must not contradict tenant.etag");
    }
    let etag = if request.etag.is_empty() { given.etag } else { request.etag };
    fields.finish(tenant.map(|tenant| (tenant, patch, options(etag, request.validate_only, name))))
}

/// Reads what SuspendTenant and ResumeTenant have in common.
///
/// # Errors
/// When a field breaks its rule.
pub(super) fn tenant_hold(
    tenant: &str,
    etag: String,
    reason: String,
    (validate_only, request): (bool, Option<RequestName>),
) -> Result<TenantHold, Refusal> {
    let mut fields = Fields::default();
    let tenant = fields.parse("tenant", tenant, TenantId::parse);
    let reason = fields.text("reason", reason, STATE_REASON_BYTES_MAX);
    fields.finish(tenant.map(|tenant| TenantHold { tenant, reason, options: options(etag, validate_only, request) }))
}

/// Reads what SuspendOwner and ResumeOwner have in common.
///
/// # Errors
/// When a field breaks its rule.
pub(super) fn owner_hold(
    (owner, tenant, etag): (String, &str, String),
    reason: String,
    (validate_only, request): (bool, Option<RequestName>),
    default: TenantId,
) -> Result<OwnerHold, Refusal> {
    let mut fields = Fields::default();
    let name = owner_fields(&mut fields, "", owner, tenant, default);
    let reason = fields.text("reason", reason, STATE_REASON_BYTES_MAX);
    let options = options(etag, validate_only, request);
    fields.finish(name.map(|(tenant, owner)| OwnerHold { tenant, owner, reason, options }))
}

/// Reads the name of an owner.
///
/// # Errors
/// When a field breaks its rule.
pub(super) fn owner_name(owner: String, tenant: &str, default: TenantId) -> Result<(TenantId, SoughtText), Refusal> {
    let mut fields = Fields::default();
    let name = owner_fields(&mut fields, "", owner, tenant, default);
    fields.finish(name)
}

/// Reads the name of an issuer.
///
/// # Errors
/// When it breaks its rule.
pub(super) fn issuer_name(issuer: &str) -> Result<ActorId, Refusal> {
    let mut fields = Fields::default();
    let issuer = fields.parse("issuer", issuer, ActorId::parse);
    fields.finish(issuer)
}

/// Reads an epoch to set.
///
/// # Errors
/// When a field breaks its rule, or none says whose secrets it is about.
pub(super) fn epoch(mut request: pb::SetEpochRequest, default: TenantId) -> Result<Epoch, Refusal> {
    let name = take_name(&mut request)?;
    use pb::set_epoch_request::Holder;
    let mut fields = Fields::default();
    let f = &mut fields;
    let holder = match request.holder {
        Some(Holder::Tenant(tenant)) => f.parse("tenant", &tenant, TenantId::parse).map(EpochHolder::Tenant),
        Some(Holder::Owner(name)) => owner_fields(f, "owner.", name.owner, &name.tenant, default)
            .map(|(tenant, owner)| EpochHolder::Owner(tenant, owner)),
        Some(Holder::Issuer(issuer)) => f.parse("issuer", &issuer, ActorId::parse).map(EpochHolder::Issuer),
        None => {
            f.wrong("holder", "must be given: tenant, owner or issuer");
            None
        }
    };
    let time = f.time("reject_issued_before", request.reject_issued_before);
    let options = options(request.etag, request.validate_only, name);
    fields.finish(holder.map(|holder| Epoch { holder, time, options }))
}

/// A grant to set the epoch of an issuer: its secrets may be of any tenant, `system` included.
///
/// # Errors
/// When the caller is no administrator of all tenants.
pub(super) fn issuer_grant(caller: &Caller) -> Result<Grant<ChangeState>, AuthorityError> {
    caller.grant(TenantId::system()).map_err(|_| AuthorityError::Denied)
}

/// An owner for the wire.
#[must_use]
pub(super) fn owner(name: &OwnerName, record: Option<&OwnerRecord>) -> pb::Owner {
    let none = Hold::default();
    let hold = record.map_or(&none, |record| &record.hold);
    let revision = record.map_or_else(Default::default, |record| record.revision);
    pb::Owner {
        owner: name.owner.clone(),
        tenant: name.tenant.to_string(),
        state: state(hold).into(),
        state_reason: hold.reason.clone(),
        state_by: hold.changed.as_ref().map(|by| by.actor.to_string()).unwrap_or_default(),
        state_time: hold.changed.as_ref().map(|by| timestamp(by.time)),
        reject_issued_before: hold.reject_issued_before.map(timestamp),
        update_time: record.map(|record| timestamp(record.updated.time)),
        updated_by: record.map(|record| record.updated.actor.to_string()).unwrap_or_default(),
        revision: revision.0,
        etag: etag(revision),
    }
}

/// An owner for the wire, after a change. One that was left as it is may have no record.
#[must_use]
pub(super) fn changed_owner(record: &OwnerRecord) -> pb::Owner {
    let name = OwnerName { tenant: record.tenant.clone(), owner: record.owner.clone() };
    owner(&name, Some(record).filter(|record| has_record(record.revision, &record.hold)))
}

/// An issuer for the wire.
#[must_use]
pub(super) fn issuer(actor: &ActorId, record: Option<&IssuerRecord>) -> pb::Issuer {
    let revision = record.map_or_else(Default::default, |record| record.revision);
    pb::Issuer {
        issuer: actor.to_string(),
        reject_issued_before: record.and_then(|record| record.hold.reject_issued_before).map(timestamp),
        update_time: record.map(|record| timestamp(record.updated.time)),
        updated_by: record.map(|record| record.updated.actor.to_string()).unwrap_or_default(),
        revision: revision.0,
        etag: etag(revision),
    }
}

/// An issuer for the wire, after a change.
#[must_use]
pub(super) fn changed_issuer(record: &IssuerRecord) -> pb::Issuer {
    issuer(&record.actor, Some(record).filter(|record| has_record(record.revision, &record.hold)))
}

/// A tenant for the wire.
#[must_use]
pub(super) fn tenant(tenant: &TenantRecord) -> pb::Tenant {
    // Without `..`, so that a new field does not compile until it is answered.
    let TenantRecord { tenant: id, display_name, secret_prefix, hold, keys_max: _, created, updated, revision } =
        tenant;
    let changed = hold.changed.as_ref();
    pb::Tenant {
        tenant: id.to_string(),
        display_name: display_name.clone(),
        secret_prefix: secret_prefix.to_string(),
        create_time: Some(timestamp(created.time)),
        created_by: created.actor.to_string(),
        revision: revision.0,
        etag: etag(*revision),
        state: state(hold).into(),
        state_reason: hold.reason.clone(),
        state_by: changed.map(|by| by.actor.to_string()).unwrap_or_default(),
        state_time: changed.map(|by| timestamp(by.time)),
        reject_issued_before: hold.reject_issued_before.map(timestamp),
        update_time: updated.as_ref().map(|by| timestamp(by.time)),
        updated_by: updated.as_ref().map(|by| by.actor.to_string()).unwrap_or_default(),
    }
}

fn owner_fields(
    fields: &mut Fields,
    at: &'static str,
    owner: String,
    tenant: &str,
    default: TenantId,
) -> Option<(TenantId, SoughtText)> {
    fields.within(at, |f| {
        let tenant = f.parse_or("tenant", tenant, TenantId::parse, || default);
        if owner.is_empty() {
            f.wrong("owner", "must be given");
        }
        tenant.zip(f.sought_text("owner", owner, OWNER_BYTES_MAX))
    })
}

/// Whether a record is more than what stands for an owner or an issuer without one.
fn has_record(revision: keyward_core::event::Revision, hold: &Hold) -> bool {
    revision.0 > 0 || *hold != Hold::default()
}

fn state(hold: &Hold) -> pb::HolderState {
    if hold.suspended { pb::HolderState::Suspended } else { pb::HolderState::Active }
}
