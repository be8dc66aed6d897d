//! Purge marks as bytes.

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::PurgeMark;

use super::{DecodeError, Known, Version, digest, envelope, key_id, open_second, pb, tenant_id};

const KNOWN: Known = Known { fields: &[1, 2, 3, 4, 5, 6], within: &[] };

/// A purge mark as bytes.
#[must_use]
pub fn encode_purge_mark(mark: &PurgeMark) -> Vec<u8> {
    let PurgeMark { tenant, key_id, digests, key_lives, time, revision } = mark;
    let body = pb::PurgeMark {
        tenant: tenant.to_string(),
        key_id: key_id.to_string(),
        digests: digests.iter().map(|digest| digest.as_bytes().to_vec()).collect(),
        key_lives: *key_lives,
        time_ms: time.0,
        revision: revision.0,
    };
    envelope(Version::Two, &body)
}

/// A purge mark from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_purge_mark`] wrote.
pub fn decode_purge_mark(bytes: &[u8]) -> Result<PurgeMark, DecodeError> {
    let pb: pb::PurgeMark = open_second(bytes, &KNOWN)?;
    Ok(PurgeMark {
        tenant: tenant_id(&pb.tenant)?,
        key_id: key_id(&pb.key_id)?,
        digests: pb.digests.into_iter().map(digest).collect::<Result<_, _>>()?,
        key_lives: pb.key_lives,
        time: UnixMillis(pb.time_ms),
        revision: Revision(pb.revision),
    })
}
