//! Owners and issuers as bytes.

use keyward_core::event::Revision;
use keyward_core::record::{IssuerRecord, OwnerRecord};

use super::{
    DecodeError, HOLD, Known, Version, actor_id, envelope, hold, hold_to_pb, open_second, pb, stamp, tenant_id,
};

const OWNER: Known = Known { fields: &[1, 2, 3, 4, 5, 6], within: &[(3, &HOLD)] };
const ISSUER: Known = Known { fields: &[1, 2, 3, 4, 5], within: &[(2, &HOLD)] };

/// An owner as bytes.
#[must_use]
pub fn encode_owner(owner: &OwnerRecord) -> Vec<u8> {
    let OwnerRecord { tenant, owner, hold, updated, revision } = owner;
    let body = pb::OwnerRecord {
        tenant: tenant.to_string(),
        owner: owner.clone(),
        hold: hold_to_pb(hold),
        update_time_ms: updated.time.0,
        updated_by: updated.actor.to_string(),
        revision: revision.0,
    };
    envelope(Version::Two, &body)
}

/// An owner from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_owner`] wrote.
pub fn decode_owner(bytes: &[u8]) -> Result<OwnerRecord, DecodeError> {
    let pb: pb::OwnerRecord = open_second(bytes, &OWNER)?;
    if pb.owner.is_empty() {
        return Err(DecodeError::Body("owner"));
    }
    Ok(OwnerRecord {
        tenant: tenant_id(&pb.tenant)?,
        owner: pb.owner,
        hold: hold(pb.hold)?,
        updated: stamp(pb.update_time_ms, &pb.updated_by)?,
        revision: Revision(pb.revision),
    })
}

/// An issuer as bytes.
#[must_use]
pub fn encode_issuer(issuer: &IssuerRecord) -> Vec<u8> {
    let IssuerRecord { actor, hold, updated, revision } = issuer;
    let body = pb::IssuerRecord {
        actor: actor.to_string(),
        hold: hold_to_pb(hold),
        update_time_ms: updated.time.0,
        updated_by: updated.actor.to_string(),
        revision: revision.0,
    };
    envelope(Version::Two, &body)
}

/// An issuer from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_issuer`] wrote.
pub fn decode_issuer(bytes: &[u8]) -> Result<IssuerRecord, DecodeError> {
    let pb: pb::IssuerRecord = open_second(bytes, &ISSUER)?;
    Ok(IssuerRecord {
        actor: actor_id(&pb.actor)?,
        hold: hold(pb.hold)?,
        updated: stamp(pb.update_time_ms, &pb.updated_by)?,
        revision: Revision(pb.revision),
    })
}
