//! The memory that a change takes while the feed keeps it.
//!
//! Encoded bytes do not bound it: a record of many short texts takes ten times as much memory as it has
//! bytes. So the parts are added up instead, each allocation with its overhead. The sum is an upper estimate.

use std::collections::BTreeMap;
use std::mem::size_of;

use keyward_core::event::{Change, Record};
use keyward_core::record::{
    AuditStamp, Hold, IssuerRecord, KeyPolicy, KeyRecord, KeySpec, LineRecord, OwnerRecord, PurgeMark, StoredSecret,
    TenantRecord,
};

/// What an allocation takes besides its contents: the counts of an `Arc`, rounding, and the allocator's own
/// notes.
const ALLOCATION_BYTES: usize = 32;
/// What an entry of a map of texts takes besides the texts. A node has room for 11 entries and is at least
/// half full, unless it is the only one.
const MAP_ENTRY_BYTES: usize = 128;
/// A node of such a map.
const MAP_NODE_BYTES: usize = 704;

/// The memory of a change, in bytes.
pub(super) fn change_bytes(change: &Change) -> usize {
    let records = &change.records;
    let lists = size_of::<Change>() + ALLOCATION_BYTES + list_bytes(records.capacity(), size_of::<Record>());
    lists + records.iter().map(record_bytes).sum::<usize>()
}

fn record_bytes(record: &Record) -> usize {
    ALLOCATION_BYTES
        + match record {
            Record::Key(key) => size_of::<KeyRecord>() + key_bytes(key),
            Record::Tenant(tenant) => size_of::<TenantRecord>() + tenant_bytes(tenant),
            Record::Owner(owner) => size_of::<OwnerRecord>() + owner_bytes(owner),
            Record::Issuer(issuer) => size_of::<IssuerRecord>() + issuer_bytes(issuer),
            Record::Purged(mark) => size_of::<PurgeMark>() + mark_bytes(mark),
            Record::Line(_) => size_of::<LineRecord>(),
        }
}

/// What a key has on the heap. Without `..`, so that a new field does not compile until it is counted.
fn key_bytes(key: &KeyRecord) -> usize {
    let KeyRecord { key_id, tenant, secret, previous, retired, spec, state_reason, state_changed, .. } = key;
    let KeyRecord {
        resume_time: _, deletion: _, delete_protected: _, ordinal: _, created, updated, revision: _, ..
    } = key;
    let older = [previous.as_ref().map(|it| &it.secret), retired.as_ref().map(|it| &it.secret)];
    let secrets = [secret].into_iter().chain(older.into_iter().flatten()).map(secret_bytes).sum::<usize>();
    let KeySpec { display_name, description, owner, policy, labels, annotations } = spec;
    let KeyPolicy { environment, state: _, scopes, audiences, allowed_cidrs, not_before: _, expire_time: _ } = policy;
    let stamps = state_changed.iter().chain([created, updated]).map(stamp_bytes).sum::<usize>();
    let names = [key_id.as_str(), tenant.as_str(), environment.as_str()].into_iter().map(text_bytes).sum::<usize>();
    let texts = [display_name, description, owner, state_reason].into_iter().map(string_bytes).sum::<usize>();
    let scopes = list_bytes(scopes.capacity(), size_of_item(scopes))
        + scopes.iter().map(|scope| text_bytes(scope.as_str())).sum::<usize>();
    let audiences =
        list_bytes(audiences.capacity(), size_of_item(audiences)) + audiences.iter().map(string_bytes).sum::<usize>();
    let networks = list_bytes(allowed_cidrs.capacity(), size_of_item(allowed_cidrs));
    secrets + stamps + names + texts + scopes + audiences + networks + map_bytes(labels) + map_bytes(annotations)
}

fn secret_bytes(secret: &StoredSecret) -> usize {
    let StoredSecret { version: _, digest: _, pepper: _, hint, issued } = secret;
    string_bytes(hint) + issued.as_ref().map_or(0, stamp_bytes)
}

fn tenant_bytes(tenant: &TenantRecord) -> usize {
    let TenantRecord { tenant, display_name, secret_prefix, hold, keys_max: _, created, updated, revision: _ } = tenant;
    let names = text_bytes(tenant.as_str()) + text_bytes(secret_prefix.as_str()) + string_bytes(display_name);
    names + hold_bytes(hold) + stamp_bytes(created) + updated.as_ref().map_or(0, stamp_bytes)
}

fn owner_bytes(owner: &OwnerRecord) -> usize {
    let OwnerRecord { tenant, owner, hold, updated, revision: _ } = owner;
    text_bytes(tenant.as_str()) + string_bytes(owner) + hold_bytes(hold) + stamp_bytes(updated)
}

fn issuer_bytes(issuer: &IssuerRecord) -> usize {
    let IssuerRecord { actor, hold, updated, revision: _ } = issuer;
    text_bytes(actor.as_str()) + hold_bytes(hold) + stamp_bytes(updated)
}

fn mark_bytes(mark: &PurgeMark) -> usize {
    let PurgeMark { tenant, key_id, digests, key_lives: _, time: _, revision: _ } = mark;
    text_bytes(tenant.as_str()) + text_bytes(key_id.as_str()) + list_bytes(digests.capacity(), size_of_item(digests))
}

fn hold_bytes(hold: &Hold) -> usize {
    let Hold { suspended: _, reason, reject_issued_before: _, changed } = hold;
    string_bytes(reason) + changed.as_ref().map_or(0, stamp_bytes)
}

fn stamp_bytes(AuditStamp { time: _, actor }: &AuditStamp) -> usize {
    text_bytes(actor.as_str())
}

fn text_bytes(text: &str) -> usize {
    text.len() + ALLOCATION_BYTES
}

fn string_bytes(text: &String) -> usize {
    list_bytes(text.capacity(), 1)
}

/// The allocation of a list. An empty one has none.
fn list_bytes(capacity: usize, item_bytes: usize) -> usize {
    if capacity == 0 { 0 } else { capacity * item_bytes + ALLOCATION_BYTES }
}

fn size_of_item<T>(_: &[T]) -> usize {
    size_of::<T>()
}

fn map_bytes(map: &BTreeMap<String, String>) -> usize {
    let texts = map.iter().map(|(name, value)| string_bytes(name) + string_bytes(value)).sum::<usize>();
    if map.is_empty() { 0 } else { texts + MAP_NODE_BYTES + map.len() * MAP_ENTRY_BYTES }
}
