//! A tenant as bytes.

use keyward_core::event::Revision;
use keyward_core::id::SecretPrefix;
use keyward_core::record::{Hold, TenantRecord};

use super::{
    DecodeError, HOLD, Known, Version, envelope, hold, hold_to_pb, open, optional_stamp, pb, stamp, stamp_parts,
    tenant_id,
};

const KNOWN: Known = Known { fields: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], within: &[(7, &HOLD)] };

/// A tenant as bytes.
#[must_use]
pub fn encode_tenant(tenant: &TenantRecord) -> Vec<u8> {
    // Without `..`, so that a new field does not compile until it is stored.
    let TenantRecord { tenant: id, display_name, secret_prefix, hold, keys_max, created, updated, revision } = tenant;
    let (update_time_ms, updated_by) = stamp_parts(updated.as_ref());
    let body = pb::TenantRecord {
        tenant: id.to_string(),
        display_name: display_name.clone(),
        secret_prefix: secret_prefix.to_string(),
        create_time_ms: created.time.0,
        created_by: created.actor.to_string(),
        revision: revision.0,
        hold: hold_to_pb(hold),
        keys_max: keys_max.unwrap_or(0),
        update_time_ms,
        updated_by,
    };
    envelope(version(tenant), &body)
}

fn version(tenant: &TenantRecord) -> Version {
    let TenantRecord { hold, keys_max, created, updated, .. } = tenant;
    let is_first = *hold == Hold::default() && keys_max.is_none() && updated.is_none() && created.actor.is_word();
    if is_first { Version::One } else { Version::Two }
}

/// A tenant from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_tenant`] of this or an earlier program wrote.
pub fn decode_tenant(bytes: &[u8]) -> Result<TenantRecord, DecodeError> {
    let (envelope_version, pb): (_, pb::TenantRecord) = open(bytes, &KNOWN)?;
    let tenant = TenantRecord {
        tenant: tenant_id(&pb.tenant)?,
        display_name: pb.display_name,
        secret_prefix: SecretPrefix::parse(&pb.secret_prefix).map_err(|_| DecodeError::Body("secret_prefix"))?,
        hold: hold(pb.hold)?,
        keys_max: (pb.keys_max != 0).then_some(pb.keys_max),
        created: stamp(pb.create_time_ms, &pb.created_by)?,
        updated: optional_stamp(pb.update_time_ms, &pb.updated_by)?,
        revision: Revision(pb.revision),
    };
    if version(&tenant) != envelope_version { Err(DecodeError::Body("version")) } else { Ok(tenant) }
}
