//! Listing keys: the orderings that the table keeps beside its records.

use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, State};

use super::table::Table;
use crate::store::{KeyQuery, PAGE_SCAN_MAX, Page, StoreError};

impl Table {
    /// A page of keys in the order of their ids.
    ///
    /// # Errors
    /// When sled fails or a record is damaged.
    pub fn keys(&self, query: &KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        let mut found = Vec::new();
        let mut examined = None;
        for (count, key_id) in self.candidates(query).enumerate() {
            let key_id = key_id?;
            if count == PAGE_SCAN_MAX {
                return Ok(Page { records: found, next: examined });
            }
            if let Some(key) = self.key(&query.tenant, &key_id)?.filter(|key| query.selects(key)) {
                found.push(key);
                if found.len() > query.limit {
                    break;
                }
            }
            examined = Some(key_id);
        }
        Ok(Page::first(found.into_iter(), query.limit, |key| key.key_id.clone()))
    }

    /// The ids of the keys that may meet a query, in order, from the narrowest tree that has them all.
    fn candidates(&self, query: &KeyQuery) -> Box<dyn Iterator<Item = Result<KeyId, StoreError>> + '_> {
        if !query.key_ids.is_empty() {
            let mut ids = query.key_ids.clone();
            ids.sort_unstable();
            ids.dedup();
            return Box::new(ids.into_iter().map(Ok));
        }
        let tenant = query.tenant.as_str();
        let (tree, above) = if let Some(owner) = &query.owner {
            (self.facets(), joined(&[tenant, "o", owner, ""]))
        } else if let Some((name, value)) = query.labels.first_key_value() {
            (self.facets(), joined(&[tenant, "l", name, value, ""]))
        } else if let [state @ (State::Disabled | State::Revoked)] = query.states[..] {
            (self.facets(), joined(&[tenant, "s", state_name(state), ""]))
        } else {
            (self.ids(), joined(&[tenant, ""]))
        };
        let mut from = above.clone();
        if let Some(after) = &query.after {
            from.extend_from_slice(after.as_str().as_bytes());
            from.push(0); // the least name past `after`
        }
        let inside = tree.range(from..).take_while({
            let above = above.clone();
            move |entry| entry.as_ref().is_ok_and(|(name, _)| name.starts_with(&above)) || entry.is_err()
        });
        Box::new(inside.map(move |entry| {
            let (name, _) = entry?;
            let id = std::str::from_utf8(&name[above.len()..]).ok().and_then(|id| KeyId::parse(id).ok());
            id.ok_or_else(|| StoreError::Engine("an ordering holds what is not an id".into()))
        }))
    }
}

/// The name of a key's id.
pub(super) fn id_name(tenant: &TenantId, key_id: &KeyId) -> Vec<u8> {
    joined(&[tenant.as_str(), key_id.as_str()])
}

/// The names by which a key may be listed.
pub(super) fn facets_of(key: &KeyRecord) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (tenant, id) = (key.tenant.as_str(), key.key_id.as_str());
    let owner = (!key.owner.is_empty()).then(|| joined(&[tenant, "o", &key.owner, id]));
    let labels = key.labels.iter().map(move |(name, value)| joined(&[tenant, "l", name, value, id]));
    let state = match key.policy.state {
        State::Active => None, // nearly all keys: the ids are their ordering
        state @ (State::Disabled | State::Revoked) => Some(joined(&[tenant, "s", state_name(state), id])),
    };
    owner.into_iter().chain(labels).chain(state)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Disabled => "disabled",
        State::Revoked => "revoked",
    }
}

/// Parts with zero bytes between them. No part contains one: every text of a record is refused at the edge if it does.
pub(super) fn joined(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}
