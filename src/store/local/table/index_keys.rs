//! The names of entries in the table's trees of ids and facets.

use keyward_core::digest::Digest;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::KeyRecord;

/// The key of an id in its tree.
pub(super) fn id_name(tenant: &TenantId, key_id: &KeyId) -> Vec<u8> {
    joined(&[tenant.as_str(), key_id.as_str()])
}

/// The secondary index entries of a key. Each contains the state, so that a list by state reads no others.
pub(super) fn index_keys(key: &KeyRecord) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (tenant, id, state) = (key.tenant.as_str(), key.key_id.as_str(), key.spec.policy.state.name());
    let owner = (!key.spec.owner.is_empty()).then(|| joined(&[tenant, "o", &key.spec.owner, state, id]));
    let labels = key.spec.labels.iter().map(move |(name, value)| joined(&[tenant, "l", name, value, state, id]));
    owner.into_iter().chain(labels).chain([joined(&[tenant, "s", state, id])])
}

/// The digests of a key's secrets before the current one.
pub(super) fn aliases_of(key: &KeyRecord) -> impl Iterator<Item = Digest> {
    key.digests().skip(1)
}

/// Joins parts with zero bytes. No part contains one: texts with zero bytes are refused at the edge.
pub(super) fn joined(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}
