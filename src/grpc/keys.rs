//! Reads and writes a key's own fields: in one table for CreateKey and UpdateKey.

use std::mem;

use ipnet::IpNet;
use keyward_core::id::{Environment, KeyId, TenantId};
use keyward_core::key_change::KeyChange;
use keyward_core::limits::{DESCRIPTION_BYTES_MAX, DISPLAY_NAME_BYTES_MAX, OVERLAP_MS_MAX, OWNER_BYTES_MAX};
use keyward_core::record::{
    KeyPolicy, KeyRecord, KeySpec, OverlapStart, PreviousSecret, RetiredSecret, State, StoredSecret,
};
use keyward_core::rotation::Overlap;
use prost_types::Duration;

use super::convert::{self, KeyName, timestamp};
use super::fields::Fields;
use super::pb;
use super::retry::take_name;
use super::status::Refusal;
use crate::authority::{ChangeOptions, IssueOptions, Issued, NewKey, etag};
use crate::util::hpke::PublicKey;

/// Reads a field, and says what it changes.
type Read = fn(&mut Fields, &mut pb::Key) -> KeyChange;

/// The fields that an operator gives a key, in the order of the documentation: each with the path by which an
/// update names it.
const FIELDS: &[(&str, Read)] = &[
    ("display_name", |f, key| {
        KeyChange::DisplayName(f.required_text(
            "display_name",
            mem::take(&mut key.display_name),
            DISPLAY_NAME_BYTES_MAX,
        ))
    }),
    ("description", |f, key| {
        KeyChange::Description(f.text("description", mem::take(&mut key.description), DESCRIPTION_BYTES_MAX))
    }),
    ("owner", |f, key| KeyChange::Owner(f.text("owner", mem::take(&mut key.owner), OWNER_BYTES_MAX))),
    ("scopes", |f, key| KeyChange::Scopes(f.scopes("scopes", &key.scopes))),
    ("audiences", |f, key| KeyChange::Audiences(f.audiences("audiences", &key.audiences))),
    ("allowed_cidrs", |f, key| KeyChange::AllowedCidrs(f.cidrs("allowed_cidrs", &key.allowed_cidrs))),
    ("labels", |f, key| KeyChange::Labels(f.labels("labels", mem::take(&mut key.labels)))),
    ("annotations", |f, key| KeyChange::Annotations(f.annotations("annotations", mem::take(&mut key.annotations)))),
    ("not_before", |f, key| KeyChange::NotBefore(f.time("not_before", key.not_before))),
    ("expire_time", |f, key| KeyChange::ExpireTime(f.time("expire_time", key.expire_time))),
    ("delete_protected", |_, key| KeyChange::DeleteProtected(key.delete_protected)),
];

/// Reads a key to be, and its tenant.
///
/// # Errors
/// When a field breaks its rule.
pub fn new_key(
    mut request: pb::CreateKeyRequest,
    default: TenantId,
) -> Result<(TenantId, NewKey, IssueOptions), Refusal> {
    let name = take_name(&mut request)?;
    // Without `..`, so that a new field does not compile until it is read.
    let pb::CreateKeyRequest {
        tenant,
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
        delete_protected,
        validate_only,
        request_id: _,
        reply_public_key,
    } = request;
    let mut given = pb::Key {
        display_name,
        description,
        owner,
        scopes,
        audiences,
        allowed_cidrs,
        labels,
        annotations,
        not_before,
        expire_time,
        delete_protected,
        ..pb::Key::default()
    };
    let mut fields = Fields::default();
    let f = &mut fields;
    let tenant = f.parse_or("tenant", &tenant, TenantId::parse, || default);
    let key_id = f.parse_or("key_id", &key_id, |id| KeyId::parse(id).map(Some), || None);
    let environment = f.parse_or("environment", &environment, Environment::parse, Environment::live);
    let reply_key = f.public_key("reply_public_key", &reply_public_key);
    let (mut spec, mut delete_protected) = (KeySpec::default(), false);
    FIELDS.iter().for_each(|(_, read)| read(f, &mut given).apply(&mut spec, &mut delete_protected));
    spec.policy.state = if disabled { State::Disabled } else { State::Active };
    let new = tenant.zip(key_id).zip(environment).map(|((tenant, key_id), environment)| {
        spec.policy.environment = environment;
        let options = IssueOptions { validate_only, request: name, reply_key };
        (tenant, NewKey { key_id, spec, delete_protected }, options)
    });
    fields.finish(new)
}

/// Reads a change of fields.
///
/// # Errors
/// When a field breaks its rule, or the mask names one that may not be changed.
pub fn update(
    mut request: pb::UpdateKeyRequest,
    default: TenantId,
) -> Result<(KeyName, Vec<KeyChange>, ChangeOptions), Refusal> {
    let request_name = take_name(&mut request)?;
    let mut fields = Fields::default();
    let f = &mut fields;
    let mask = request.update_mask.unwrap_or_default();
    if mask.paths.is_empty() {
        f.wrong("update_mask", "must name the fields to change");
    }
    let Some(mut key) = request.key else {
        f.wrong("key", "must be given");
        return fields.finish(None);
    };
    let tenant = f.parse_or("key.tenant", &key.tenant, TenantId::parse, || default);
    let key_id = f.parse("key.key_id", &key.key_id, KeyId::parse);
    // Before any field is read: each path costs the reading of its field.
    if mask.paths.len() > FIELDS.len() {
        f.wrong("update_mask", "must name each field once");
        return fields.finish(None);
    }
    let mut changes = Vec::with_capacity(mask.paths.len());
    for (at, path) in mask.paths.iter().enumerate() {
        if mask.paths[..at].contains(path) {
            f.wrong(format!("update_mask.paths[{at}]"), "must not be named twice");
            continue;
        }
        match FIELDS.iter().find(|(name, _)| name == path) {
            Some((_, read)) => changes.push(f.within("key.", |f| read(f, &mut key))),
            None => {
                let names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
                f.wrong(format!("update_mask.paths[{at}]"), format!("must be one of {}", names.join(", ")));
            }
        }
    }
    if !request.etag.is_empty() && !key.etag.is_empty() && request.etag != key.etag {
        f.wrong("etag", "must not contradict key.etag");
    }
    let etag = if request.etag.is_empty() { key.etag } else { request.etag };
    let name = tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id });
    fields.finish(name.map(|name| (name, changes, convert::options(etag, request.validate_only, request_name))))
}

/// A secret for the wire: as it is, or sealed.
#[must_use]
pub fn secret(secret: Issued) -> (String, Vec<u8>) {
    match secret {
        Issued::Nothing => (String::new(), vec![]),
        Issued::Plain(secret) => (mem::take(&mut *secret.reveal()), vec![]),
        Issued::Sealed(sealed) => (String::new(), sealed),
    }
}

/// Reads a rotation.
///
/// # Errors
/// When a field breaks its rule.
pub fn rotation(
    mut request: pb::RotateKeyRequest,
    default: TenantId,
) -> Result<(KeyName, Overlap, ChangeOptions, Option<PublicKey>), Refusal> {
    let request_name = take_name(&mut request)?;
    // Without `..`, so that a new field does not compile until it is read.
    let pb::RotateKeyRequest {
        key_id,
        tenant,
        etag,
        overlap,
        overlap_starts,
        validate_only,
        request_id: _,
        reply_public_key,
    } = request;
    let mut fields = Fields::default();
    let f = &mut fields;
    let tenant = f.parse_or("tenant", &tenant, TenantId::parse, || default);
    let key_id = f.parse("key_id", &key_id, KeyId::parse);
    let ms = f.duration_ms("overlap", overlap, 0..=OVERLAP_MS_MAX, 0);
    let starts = match pb::OverlapStart::try_from(overlap_starts) {
        Ok(pb::OverlapStart::Unspecified | pb::OverlapStart::AtIssue) => OverlapStart::AtIssue,
        Ok(pb::OverlapStart::OnFirstUse) => OverlapStart::OnFirstUse,
        Err(_) => {
            f.wrong("overlap_starts", "must be OVERLAP_START_AT_ISSUE or OVERLAP_START_ON_FIRST_USE");
            OverlapStart::AtIssue
        }
    };
    let reply_key = f.public_key("reply_public_key", &reply_public_key);
    let name = tenant.zip(key_id).map(|(tenant, key_id)| KeyName { tenant, key_id });
    let options = convert::options(etag, validate_only, request_name);
    fields.finish(name.map(|name| (name, Overlap { ms, starts }, options, reply_key)))
}

/// The secrets of a key for the wire.
fn secrets(key: &KeyRecord) -> Vec<pb::Secret> {
    let told = |secret: &StoredSecret, state: pb::SecretState| {
        let issued = key.issued(secret);
        pb::Secret {
            version: secret.version,
            hint: secret.hint.clone(),
            state: state.into(),
            create_time: Some(timestamp(issued.time)),
            issued_by: issued.actor.to_string(),
            ..pb::Secret::default()
        }
    };
    let previous = key.previous.as_ref().map(|previous| {
        // Without `..`, so that a new field does not compile until it is answered.
        let PreviousSecret { secret, valid_until: _, overlap_ms, overlap_starts } = previous;
        pb::Secret {
            valid_until: key.previous_end().map(timestamp),
            overlap: Some(span(*overlap_ms)),
            overlap_starts: match overlap_starts {
                OverlapStart::AtIssue => pb::OverlapStart::AtIssue,
                OverlapStart::OnFirstUse => pb::OverlapStart::OnFirstUse,
            }
            .into(),
            ..told(secret, pb::SecretState::Previous)
        }
    });
    let retired = key.retired.as_ref().map(|RetiredSecret { secret, time }| pb::Secret {
        retire_time: Some(timestamp(*time)),
        ..told(secret, pb::SecretState::Retired)
    });
    [Some(told(&key.secret, pb::SecretState::Current)), previous, retired].into_iter().flatten().collect()
}

fn span(ms: u64) -> Duration {
    // What a request could ask for has far fewer seconds.
    let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
    Duration { seconds, nanos: i32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0) }
}

/// A key for the wire, as it is now ([`KeyRecord::as_of`]).
#[must_use]
pub fn key(key: &KeyRecord) -> pb::Key {
    // Without `..`, so that a new field does not compile until it is answered.
    let KeySpec { display_name, description, owner, policy, labels, annotations } = &key.spec;
    let KeyPolicy { environment, state, scopes, audiences, allowed_cidrs, not_before, expire_time } = policy;
    let changed = key.state_changed.as_ref();
    let (state, undelete_state) = match key.deletion {
        Some(_) => (pb::State::Deleted, convert::state(key.undeleted_state())),
        None => (convert::state(*state), pb::State::Unspecified),
    };
    pb::Key {
        key_id: key.key_id.to_string(),
        tenant: key.tenant.to_string(),
        display_name: display_name.clone(),
        description: description.clone(),
        owner: owner.clone(),
        environment: environment.to_string(),
        hint: key.secret.hint.clone(),
        state: state.into(),
        state_reason: key.state_reason.clone(),
        state_by: changed.map(|stamp| stamp.actor.to_string()).unwrap_or_default(),
        state_time: changed.map(|stamp| timestamp(stamp.time)),
        resume_time: key.resume_time.map(timestamp),
        delete_time: key.deletion.map(|deletion| timestamp(deletion.time)),
        purge_time: key.deletion.map(|deletion| timestamp(deletion.purge_time)),
        delete_protected: key.delete_protected,
        undelete_state: undelete_state.into(),
        scopes: scopes.iter().map(|s| s.as_str().to_owned()).collect(),
        audiences: audiences.clone(),
        secrets: secrets(key),
        labels: labels.clone(),
        annotations: annotations.clone(),
        allowed_cidrs: allowed_cidrs.iter().map(IpNet::to_string).collect(),
        not_before: not_before.map(timestamp),
        expire_time: expire_time.map(timestamp),
        create_time: Some(timestamp(key.created.time)),
        created_by: key.created.actor.to_string(),
        update_time: Some(timestamp(key.updated.time)),
        updated_by: key.updated.actor.to_string(),
        revision: key.revision.0,
        etag: etag(key.revision),
    }
}
