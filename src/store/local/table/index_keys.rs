//! The names of entries in the table's trees of ids and facets.

use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, ShownState, State};

use crate::store::DueKey;

/// What the names of keys that are due begin with. No tenant has an empty name.
const DUE: &[u8] = b"\0d\0";
/// The time that follows, in milliseconds since 1970, big-endian.
const TIME_BYTES: usize = 8;

/// The state of a deleted key, and that of one that is disabled until a time.
const DELETED: &str = "deleted";
const SUSPENDED: &str = "suspended";

/// The key of an id in its tree.
pub(super) fn id_name(tenant: &TenantId, key_id: &KeyId) -> Vec<u8> {
    joined(&[tenant.as_str(), key_id.as_str()])
}

/// The secondary index entries of a key. Each contains the state, so that a list by state reads no others;
/// one more has the time at which the key is due, if it is.
pub(super) fn index_keys(key: &KeyRecord) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (tenant, id, state) = (key.tenant.as_str(), key.key_id.as_str(), state_name(key));
    let due = key.due_time().map(|time| due_name(time, &id_name(&key.tenant, &key.key_id)));
    let owner = (!key.spec.owner.is_empty()).then(|| joined(&[tenant, "o", &key.spec.owner, state, id]));
    let labels = key.spec.labels.iter().map(move |(name, value)| joined(&[tenant, "l", name, value, state, id]));
    owner.into_iter().chain(labels).chain([joined(&[tenant, "s", state, id])]).chain(due)
}

/// The state of a key in the names of its entries. It does not change with the time.
fn state_name(key: &KeyRecord) -> &'static str {
    match key.spec.policy.state {
        _ if key.deletion.is_some() => DELETED,
        State::Disabled if key.resume_time.is_some() => SUSPENDED,
        state => state.name(),
    }
}

/// The names of the states in which there may be keys that are shown in one.
pub(super) fn state_names(shown: ShownState) -> &'static [&'static str] {
    match shown {
        ShownState::Active => &["active", SUSPENDED],
        ShownState::Disabled => &["disabled", SUSPENDED],
        ShownState::Revoked => &["revoked"],
        ShownState::Deleted => &[DELETED],
    }
}

/// What the name of each key that is due at a time begins with, in the order of times.
pub(super) fn due_name(time: UnixMillis, id_name: &[u8]) -> Vec<u8> {
    // The times of records are past 1970.
    let time = u64::try_from(time.0).unwrap_or(0);
    [DUE, &time.to_be_bytes(), id_name].concat()
}

/// The name of a key that is due.
pub(super) fn due_name_of(due: &DueKey) -> Vec<u8> {
    due_name(due.time, &id_name(&due.tenant, &due.key_id))
}

/// Reads the name of a key that is due. `None`: it is none.
pub(super) fn read_due(name: &[u8]) -> Option<DueKey> {
    let (time, id) = name.strip_prefix(DUE)?.split_first_chunk::<TIME_BYTES>()?;
    let (tenant, key_id) = std::str::from_utf8(id).ok()?.split_once('\0')?;
    let time = UnixMillis(i64::try_from(u64::from_be_bytes(*time)).ok()?);
    Some(DueKey { time, tenant: TenantId::parse(tenant).ok()?, key_id: KeyId::parse(key_id).ok()? })
}

/// The digests of a key's secrets before the current one.
pub(super) fn aliases_of(key: &KeyRecord) -> impl Iterator<Item = Digest> {
    key.digests().skip(1)
}

/// Joins parts with zero bytes. No part contains one: texts with zero bytes are refused at the edge.
pub(super) fn joined(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}
