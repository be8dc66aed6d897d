//! Reads of the admin path, and a page of what they find.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use keyward_core::clock::UnixMillis;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{KeyRecord, ShownState};

/// On whose behalf a key is read, and how urgently.
#[derive(Clone, Debug)]
pub struct ReadContext {
    /// Who asks.
    pub caller: ActorId,
    /// The read precedes a narrowing. It waits for no other kind of read.
    pub urgent: bool,
}

/// Which keys to list.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    /// Who asks.
    pub caller: ActorId,
    /// Of this tenant.
    pub tenant: TenantId,
    /// In one of these states at the time `clock`. Empty: in any but deleted.
    pub states: Vec<ShownState>,
    /// The time by the clock: a suspension may have ended.
    pub clock: UnixMillis,
    /// Of exactly this owner.
    pub owner: Option<SoughtText>,
    /// With all of these labels.
    pub labels: BTreeMap<String, SoughtText>,
    /// One of these keys. Empty: any.
    pub key_ids: Vec<KeyId>,
    /// Only keys past this one.
    pub after: Option<KeyId>,
    /// At most this many.
    pub limit: usize,
}

impl KeyQuery {
    /// Whether a key meets every condition.
    #[must_use]
    pub fn selects(&self, key: &KeyRecord) -> bool {
        key.tenant == self.tenant
            && self.has_state(key)
            && self.owner.as_ref().is_none_or(|owner| owner.is(&key.spec.owner))
            && self.labels.iter().all(|(name, value)| key.spec.labels.get(name).is_some_and(|found| value.is(found)))
            && (self.key_ids.is_empty() || self.key_ids.contains(&key.key_id))
            && self.after.as_ref().is_none_or(|after| key.key_id > *after)
    }

    fn has_state(&self, key: &KeyRecord) -> bool {
        match (key.shown_state(self.clock), &self.states[..]) {
            (state, []) => state != ShownState::Deleted,
            (state, states) => states.contains(&state),
        }
    }

    /// Whether a key is left out for what can only be told by its record and the clock: such keys are not
    /// counted among those that a page examines, so that no list ends because of them.
    pub(crate) fn passes_over(&self, key: &KeyRecord) -> bool {
        (key.deletion.is_some() || key.resume_time.is_some()) && !self.has_state(key)
    }
}

/// A key of which something is to become at a time: see [`KeyRecord::due_time`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DueKey {
    /// When.
    pub time: UnixMillis,
    /// Its tenant.
    pub tenant: TenantId,
    /// The key.
    pub key_id: KeyId,
}

/// A text that keys must have. Texts are stored in one normalization form, but those of old records are as
/// they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoughtText {
    stored: String,
    /// If it differs.
    given: Option<String>,
}

impl SoughtText {
    /// A text as it was given, and in the form in which texts are stored.
    #[must_use]
    pub fn new(given: String, stored: String) -> Self {
        Self { given: Some(given).filter(|given| *given != stored), stored }
    }

    /// The text as it was given.
    #[must_use]
    pub fn given(&self) -> &str {
        self.given.as_deref().unwrap_or(&self.stored)
    }

    /// The text in the form in which texts are stored.
    #[must_use]
    pub fn stored(&self) -> &str {
        &self.stored
    }

    /// The forms in which a key may have it.
    pub fn forms(&self) -> impl Iterator<Item = &str> {
        [&*self.stored].into_iter().chain(self.given.as_deref())
    }

    /// Whether a stored text is this one.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        self.forms().any(|form| form == text)
    }
}

/// A text that is in the form in which texts are stored.
impl From<&str> for SoughtText {
    fn from(text: &str) -> Self {
        Self { stored: text.to_owned(), given: None }
    }
}

/// A page of records.
#[derive(Debug)]
pub struct Page<R, I> {
    /// The records.
    pub records: Vec<Arc<R>>,
    /// Where the next page begins. `None`: this is the last page.
    pub next: Option<I>,
    /// To be dropped when the page has been used: the number of pages in flight is bounded.
    pub permit: PagePermit,
}

/// A permit that is released by dropping it.
#[derive(Default)]
pub struct PagePermit(Option<Box<dyn Send + Sync>>);

impl PagePermit {
    /// Wraps a permit.
    pub(crate) fn of(held: impl Send + Sync + 'static) -> Self {
        Self(Some(Box::new(held)))
    }
}

impl fmt::Debug for PagePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "PagePermit" } else { "PagePermit(none)" })
    }
}

impl<R, I> Page<R, I> {
    /// The first `limit` of the records. One more is read, to know whether there is a next page.
    pub(crate) fn first(records: impl Iterator<Item = Arc<R>>, limit: usize, id: impl Fn(&R) -> I) -> Self {
        let mut records: Vec<_> = records.take(limit.saturating_add(1)).collect();
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|last| id(last));
        Self { records, next, permit: PagePermit::default() }
    }
}
