//! Listing keys: the orderings that the table keeps beside its records.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, State};
use sled::IVec;

use super::overlay::Overlay;
use super::table::Table;
use crate::store::{Held, KeyQuery, PAGE_SCAN_MAX, Page, StoreError};

/// How long one slice of a list takes, or so. Then another caller's list has its turn.
const SLICE_TIME: Duration = Duration::from_millis(10);
/// Keys that one slice looks at, at most. Tests have many slices.
const SLICE_KEYS: usize = if cfg!(test) { 512 } else { 8_192 };
/// Keys that one slice has from the overlay, at most.
const NEWER_KEYS: usize = if cfg!(test) { 64 } else { 1_024 };
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

    /// The page, when enough has been found, or there is no more.
    fn page(&mut self) -> Page<KeyRecord, KeyId> {
        Page::first(std::mem::take(&mut self.found).into_iter(), self.query.limit, |key| key.key_id.clone())
    }
}

impl Table {
    /// Goes on with a list of keys in the order of their ids, for one slice. It gives the page when that is whole. What
    /// is durable and not in the table yet comes from the overlay: a list does not wait for the table's writer.
    ///
    /// Only in a [`Table::turn_to_list`]: what the overlay has let go of by then is in the table, and nothing else
    /// comes to it.
    ///
    /// # Errors
    /// When sled fails or a record is damaged.
    pub(super) fn list_on(
        &self,
        overlay: &Overlay,
        scan: &mut Scan,
    ) -> Result<Option<Page<KeyRecord, KeyId>>, StoreError> {
        let began = Instant::now();
        let newer = overlay.keys_after(&scan.query.tenant, scan.query.after.as_ref(), NEWER_KEYS);
        let there_are_more = newer.len() == NEWER_KEYS;
        let mut newer = newer.into_iter().peekable();
        let mut candidates = self.candidates(&scan.query);
        let mut older = candidates.next().transpose()?;
        for number in 1..=SLICE_KEYS {
            if scan.found.len() > scan.query.limit {
                return Ok(Some(scan.page()));
            }
            if scan.examined == PAGE_SCAN_MAX {
                let (records, next) = (std::mem::take(&mut scan.found), scan.query.after.take());
                return Ok(Some(Page { records, next, held: Held::default() }));
            }
            // Both are in the order of their ids. Of a key that is in both, the newer form counts.
            let is_next = |newer: &Arc<KeyRecord>| older.as_ref().is_none_or(|(id, _)| newer.key_id <= *id);
            if let Some(key) = newer.next_if(is_next) {
                if older.as_ref().is_some_and(|(id, _)| *id == key.key_id) {
                    older = candidates.next().transpose()?;
                }
                let key_id = key.key_id.clone();
                if scan.query.selects(&key) {
                    scan.examined += 1;
                    scan.found.push(key);
                }
                scan.query.after = Some(key_id);
            } else if there_are_more && newer.peek().is_none() {
                break;
            } else if let Some((key_id, digest)) = older.take() {
                scan.examined += 1;
                let key = match digest {
                    Some(digest) => Some(self.key_of(&digest)?),
                    None => self.key(&scan.query.tenant, &key_id)?,
                };
                scan.found.extend(key.filter(|key| scan.query.selects(key)));
                scan.query.after = Some(key_id);
                older = candidates.next().transpose()?;
            } else {
                return Ok(Some(scan.page()));
            }
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
