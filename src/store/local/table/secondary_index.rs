//! Lists of keys, by the secondary index that the table keeps beside its records. A list by several
//! conditions reads the intersection of their entries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::clock::UnixMillis;
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, ShownState};
use sled::IVec;

use super::Table;
use super::index_keys::{due_name, due_name_of, joined, read_due, state_names};
use super::intersection::{Candidate, Intersection, Union};
use crate::store::local::write_buffer::WriteBuffer;
use crate::store::{DueKey, EXAMINED_MIN, EXAMINED_PER_FOUND, KeyQuery, Page, PagePermit, SoughtText, StoreError};

/// About how long one slice of a list takes. Then another caller's list has its turn.
const SLICE_TIME: Duration = Duration::from_millis(10);
/// Keys examined per slice at most. Small in tests, so that lists have many slices.
const SLICE_KEYS: usize = if cfg!(test) { 512 } else { 8_192 };
/// Keys per slice from the write buffer at most: as many as the page may need, within these bounds.
const NEWER_KEYS_MIN: usize = 64;
const NEWER_KEYS_MAX: usize = if cfg!(test) { NEWER_KEYS_MIN } else { 1_024 };
/// Keys between two looks at the clock.
const KEYS_BETWEEN_LOOKS: usize = 32;

/// A list in progress.
#[derive(Debug)]
pub(in crate::store::local) struct ListScan {
    /// What is left of the query, without the ids that it names.
    query: KeyQuery,
    /// The named ids, in order.
    named: Option<Vec<KeyId>>,
    found: Vec<Arc<KeyRecord>>,
    /// Keys of the table examined so far.
    examined: usize,
    /// Keys of the write buffer that were looked at.
    #[cfg(test)]
    buffered: usize,
}

impl ListScan {
    /// A list that has not begun.
    pub(in crate::store::local) fn new(mut query: KeyQuery) -> Self {
        let mut ids = std::mem::take(&mut query.key_ids);
        ids.sort_unstable();
        ids.dedup();
        let named = (!ids.is_empty()).then_some(ids);
        Self {
            query,
            named,
            found: vec![],
            examined: 0,
            #[cfg(test)]
            buffered: 0,
        }
    }

    /// The named ids that are left.
    fn named(&self) -> Option<&[KeyId]> {
        let named = self.named.as_deref()?;
        let done = self.query.after.as_ref().map_or(0, |after| named.partition_point(|id| id <= after));
        named.get(done..)
    }

    /// Keys of the write buffer that were looked at so far.
    #[cfg(test)]
    pub(in crate::store::local) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Keys of the table examined so far.
    #[cfg(test)]
    pub(in crate::store::local) fn examined(&self) -> usize {
        self.examined
    }

    /// The page, once it is full or there are no more keys.
    fn page(&mut self) -> Page<KeyRecord, KeyId> {
        Page::first(std::mem::take(&mut self.found).into_iter(), self.query.limit, |key| key.key_id.clone())
    }

    /// The page, once the examination limit is reached. An empty page would be no progress for the caller.
    fn short_page(&mut self) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        if self.found.is_empty() {
            return Err(StoreError::TooSparse);
        }
        let (records, next) = (std::mem::take(&mut self.found), self.query.after.take());
        Ok(Page { records, next, permit: PagePermit::default() })
    }

    /// Whether the examination limit is reached. Named keys are few and not limited.
    fn has_examined_enough(&self) -> bool {
        self.named.is_none() && self.examined >= EXAMINED_MIN + EXAMINED_PER_FOUND * self.found.len()
    }
}

impl Table {
    /// Continues a list, in the order of ids, for one slice. Returns the page when it is complete. Keys that
    /// are durable but not in the table yet come from the write buffer, so a list does not wait for the table
    /// writer.
    ///
    /// Requires a turn of [`ListTurns`](super::list_turns::ListTurns): what has left the write buffer by then
    /// is in the table, and the table does not change meanwhile.
    ///
    /// # Errors
    /// When sled fails or a record is damaged; [`StoreError::TooSparse`] when several conditions have next to
    /// nothing in common.
    pub(in crate::store::local) fn resume_list(
        &self,
        write_buffer: &WriteBuffer,
        scan: &mut ListScan,
    ) -> Result<Option<Page<KeyRecord, KeyId>>, StoreError> {
        let began = Instant::now();
        let (tenant, after) = (&scan.query.tenant, scan.query.after.as_ref());
        let (newer, there_are_more) = match scan.named() {
            // Named keys are few, however full the write buffer is.
            Some(named) => (write_buffer.keys_of(tenant, named), false),
            None => {
                let most = (scan.query.limit + 1).clamp(NEWER_KEYS_MIN, NEWER_KEYS_MAX);
                let newer = write_buffer.keys_after(tenant, after, most);
                let there_are_more = newer.len() == most;
                (newer, there_are_more)
            }
        };
        #[cfg(test)]
        {
            scan.buffered += newer.len();
        }
        let mut newer = newer.into_iter().peekable();
        let mut candidates = self.candidates(scan);
        let mut older = candidates.next()?;
        for number in 1..=SLICE_KEYS {
            if scan.found.len() > scan.query.limit {
                return Ok(Some(scan.page()));
            }
            if scan.has_examined_enough() {
                return scan.short_page().map(Some);
            }
            // Merges two sources in the order of ids. Of a key in both, the newer form wins.
            let is_next = |(newer, _): &(KeyId, _)| older.as_ref().is_none_or(|older| *newer <= older.key_id);
            if let Some((key_id, key)) = newer.next_if(is_next) {
                if older.as_ref().is_some_and(|older| older.key_id == key_id) {
                    older = candidates.next()?;
                }
                scan.found.extend(key.key().filter(|key| scan.query.selects(key)));
                scan.query.after = Some(key_id);
            } else if there_are_more && newer.peek().is_none() {
                break;
            } else if let Some(Candidate { key_id, value: digest, is_in_all }) = older.take() {
                scan.examined += 1;
                if is_in_all {
                    let key = match &*digest {
                        [] => self.key(&scan.query.tenant, &key_id)?,
                        digest => Some(self.key_of(digest)?),
                    };
                    scan.examined -= usize::from(key.as_ref().is_some_and(|key| scan.query.passes_over(key)));
                    scan.found.extend(key.filter(|key| scan.query.selects(key)));
                }
                scan.query.after = Some(key_id);
                older = candidates.next()?;
            } else {
                return Ok(Some(scan.page()));
            }
            if number.is_multiple_of(KEYS_BETWEEN_LOOKS) && began.elapsed() >= SLICE_TIME {
                break;
            }
        }
        Ok(None)
    }

    /// Up to `limit` keys that are due by a time, after another one, in the order of their times.
    ///
    /// # Errors
    /// When sled fails.
    pub(in crate::store::local) fn due(
        &self,
        after: Option<&DueKey>,
        until: UnixMillis,
        limit: usize,
    ) -> Result<Vec<DueKey>, StoreError> {
        let past = |due| [due_name_of(due), vec![0]].concat();
        let from = after.map_or_else(|| due_name(UnixMillis(0), &[]), past);
        let mut found = vec![];
        for entry in self.facets().range(from..due_name(UnixMillis(until.0.saturating_add(1)), &[])).take(limit) {
            let (name, _) = entry?;
            found.push(read_due(&name).ok_or_else(|| StoreError::Engine("an ordering holds what is no time".into()))?);
        }
        Ok(found)
    }

    /// The candidates of a query, in the order of their ids.
    fn candidates(&self, scan: &ListScan) -> Candidates<'_> {
        if let Some(named) = scan.named() {
            return Candidates::Named(Vec::from(named).into_iter());
        }
        let query = &scan.query;
        let shown = if query.states.is_empty() { &ShownState::ALL[..] } else { &query.states };
        let is_shown = |state: &ShownState| !query.states.is_empty() || *state != ShownState::Deleted;
        let mut states: Vec<_> =
            shown.iter().filter(|state| is_shown(state)).flat_map(|state| state_names(*state)).copied().collect();
        states.sort_unstable();
        states.dedup();
        let states = &states;
        let tenant = query.tenant.as_str();
        let union = |facet: &[&str], text: &SoughtText| {
            let of_form = |form| states.iter().map(move |state| (form, *state));
            let prefixes = text.forms().flat_map(of_form);
            let prefixes = prefixes.map(|(form, state)| joined(&[&[tenant], facet, &[form, state, ""]].concat()));
            Union::new(self.facets(), prefixes)
        };
        let owner = query.owner.iter().map(|owner| union(&["o"], owner));
        let labels = query.labels.iter().map(|(name, value)| union(&["l", name], value));
        let mut unions: Vec<_> = owner.chain(labels).collect();
        if unions.is_empty() {
            let are_some = !query.states.is_empty() && query.states.len() < ShownState::ALL.len();
            unions.push(if are_some {
                Union::new(self.facets(), states.iter().map(|state| joined(&[tenant, "s", state, ""])))
            } else {
                Union::new(self.ids(), [joined(&[tenant, ""])])
            });
        }
        Candidates::Intersected(Intersection::new(unions, query.after.as_ref()))
    }
}

/// Candidates of a query.
enum Candidates<'a> {
    /// The ids that it names.
    Named(std::vec::IntoIter<KeyId>),
    /// The ids in the intersection of its conditions.
    Intersected(Intersection<'a>),
}

impl Candidates<'_> {
    fn next(&mut self) -> Result<Option<Candidate>, StoreError> {
        match self {
            Self::Named(ids) => {
                Ok(ids.next().map(|key_id| Candidate { key_id, value: IVec::default(), is_in_all: true }))
            }
            Self::Intersected(all) => all.next(),
        }
    }
}
