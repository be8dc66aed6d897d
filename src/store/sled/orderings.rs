//! Listing keys: the orderings that the table keeps beside its records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, State};
use sled::IVec;

use super::table::Table;
use crate::store::{Held, KeyQuery, PAGE_SCAN_MAX, Page, StoreError};

/// How long one slice of a list takes, or so: somewhat longer than a transaction, so that lists have their part of the time where
/// much is written.
const SLICE_TIME: Duration = Duration::from_millis(25);
/// Keys that one slice looks at, at most. Tests have many slices.
const SLICE_KEYS: usize = if cfg!(test) { 512 } else { 8_192 };
/// The time is looked at after so many keys.
const KEYS_BETWEEN_LOOKS: usize = 32;

type Candidate = (KeyId, Option<IVec>);

/// A list on its way.
#[derive(Debug)]
pub(super) struct Scan {
    /// What is left of it.
    query: KeyQuery,
    found: Vec<Arc<KeyRecord>>,
    examined: usize,
}

impl Scan {
    /// One that has yet to begin.
    pub(super) fn new(query: KeyQuery) -> Self {
        Self { query, found: vec![], examined: 0 }
    }
}

impl Table {
    /// Goes on with a list of keys in the order of their ids, for one slice. It gives the page when that is whole.
    ///
    /// # Errors
    /// When sled fails or a record is damaged.
    pub(super) fn list_on(&self, scan: &mut Scan) -> Result<Option<Page<KeyRecord, KeyId>>, StoreError> {
        let began = Instant::now();
        let mut candidates = self.candidates(&scan.query);
        for number in 1..=SLICE_KEYS {
            let next = candidates.next().transpose()?;
            let Some((key_id, digest)) = next.filter(|_| scan.found.len() <= scan.query.limit) else {
                let found = std::mem::take(&mut scan.found);
                return Ok(Some(Page::first(found.into_iter(), scan.query.limit, |key| key.key_id.clone())));
            };
            if scan.examined == PAGE_SCAN_MAX {
                let (records, next) = (std::mem::take(&mut scan.found), scan.query.after.take());
                return Ok(Some(Page { records, next, held: Held::default() }));
            }
            scan.examined += 1;
            let key = match digest {
                Some(digest) => Some(self.key_of(&digest)?),
                None => self.key(&scan.query.tenant, &key_id)?,
            };
            scan.found.extend(key.filter(|key| scan.query.selects(key)));
            scan.query.after = Some(key_id);
            if number.is_multiple_of(KEYS_BETWEEN_LOOKS) && began.elapsed() >= SLICE_TIME {
                break;
            }
        }
        Ok(None)
    }

    /// The ids of the keys that may meet a query, in order, from the narrowest tree that has them all; and their digests where
    /// that tree has them too.
    fn candidates(&self, query: &KeyQuery) -> Box<dyn Iterator<Item = Result<Candidate, StoreError>> + '_> {
        if !query.key_ids.is_empty() {
            let mut ids = query.key_ids.clone();
            ids.retain(|id| query.after.as_ref().is_none_or(|after| id > after));
            ids.sort_unstable();
            ids.dedup();
            return Box::new(ids.into_iter().map(|id| Ok((id, None))));
        }
        let tenant = query.tenant.as_str();
        let (tree, has_digests, above) = if let Some(owner) = &query.owner {
            (self.facets(), false, joined(&[tenant, "o", owner, ""]))
        } else if let Some((name, value)) = query.labels.first_key_value() {
            (self.facets(), false, joined(&[tenant, "l", name, value, ""]))
        } else if let [state @ (State::Disabled | State::Revoked)] = query.states[..] {
            (self.facets(), false, joined(&[tenant, "s", state_name(state), ""]))
        } else {
            (self.ids(), true, joined(&[tenant, ""]))
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
            let (name, digest) = entry?;
            let id = std::str::from_utf8(&name[above.len()..]).ok().and_then(|id| KeyId::parse(id).ok());
            id.map(|id| (id, has_digests.then_some(digest)))
                .ok_or_else(|| StoreError::Engine("an ordering holds what is not an id".into()))
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
