//! The lasting administrators of an engine ([`keyward_core::administrators`]). A change that would leave none
//! is refused where its other preconditions are checked, so that two administrators who disable each other at
//! the same moment are ordered.

use std::borrow::Cow;
use std::collections::HashMap;

use keyward_core::administrators::LastingAdministrator;
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::holds::{Holder, Holds, Kept};
use keyward_core::id::KeyId;
use keyward_core::record::KeyRecord;
use keyward_core::rotation::REPLY_TIME_MS;

use super::CommitError;

/// The keys that are lasting administrators, each with what that depends on.
#[derive(Debug, Default)]
pub(super) struct Administrators {
    keys: HashMap<KeyId, Lasting>,
    /// Of tenant `system`, its owners, and issuers.
    holds: Holds,
    /// Whether the log has been warned that there is none.
    warned: bool,
}

/// A key that is, or will be, a lasting administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lasting {
    key: LastingAdministrator,
    /// The version of its current secret.
    version: u32,
}

impl Lasting {
    fn of(key: &KeyRecord) -> Option<Self> {
        let version = key.secret.version;
        LastingAdministrator::of(key).map(|key| Self { key, version })
    }

    fn works(&self, holds: &Holds, at: UnixMillis) -> bool {
        self.key.works(holds, at)
    }
}

/// The state before a record was applied, to undo it.
#[derive(Debug)]
pub(super) enum Undo {
    Key(KeyId, Option<Lasting>),
    Hold(Holder, Option<(Revision, Kept)>),
}

/// What a record says of lasting administrators.
enum Bearing<'a> {
    Key(&'a KeyId, Option<Lasting>),
    Hold(Holder, Kept),
}

impl Administrators {
    /// How many there are at time `at`.
    pub(super) fn count(&self, at: UnixMillis) -> usize {
        self.keys.values().filter(|key| key.works(&self.holds, at)).count()
    }

    /// Checks that one remains when these records are written. If there is none beforehand, nothing is
    /// refused: that would lock out the administrator who is to repair it. One that gets a new secret does
    /// not count unless the one before it works on, and was not itself waiting for that: the reply that shows
    /// a secret can be lost, and then nobody has it.
    pub(super) fn check<'a>(
        &self,
        records: impl Iterator<Item = &'a Record> + Clone,
        at: UnixMillis,
    ) -> Result<(), CommitError> {
        let mut holds = Cow::Borrowed(&self.holds);
        let mut written = HashMap::new();
        for bearing in records.filter_map(Bearing::of) {
            match bearing {
                Bearing::Key(key_id, key) => drop(written.insert(key_id, key)),
                Bearing::Hold(holder, kept) => drop(holds.to_mut().replace(holder, Some((Revision::default(), kept)))),
            }
        }
        // The secret before works so long, if not until the new one is used.
        let reply_time = UnixMillis(at.0.saturating_add(REPLY_TIME_MS - 1));
        let lasts = |key: &Lasting| key.works(&self.holds, at);
        let will_last = |key: &Lasting| key.works(&holds, at);
        let is_known = |key_id: &KeyId, after: &Lasting| match self.keys.get(key_id) {
            Some(before) => {
                after.version <= before.version || after.key.is_rotating(reply_time) && !before.key.is_rotating(at)
            }
            None => true,
        };
        let of_written = |(key_id, after): (&&KeyId, &Option<Lasting>)| {
            after.as_ref().is_some_and(|after| is_known(key_id, after) && will_last(after))
        };
        let untouched = || self.keys.iter().any(|(id, key)| !written.contains_key(id) && will_last(key));
        let is_left = || untouched() || written.iter().any(of_written);
        if !is_left() && self.keys.values().any(lasts) { Err(CommitError::LastAdministrator) } else { Ok(()) }
    }

    /// Applies a record that is written.
    pub(super) fn apply(&mut self, record: &Record) -> Option<Undo> {
        Some(match Bearing::of(record)? {
            Bearing::Key(key_id, Some(key)) => Undo::Key(key_id.clone(), self.keys.insert(key_id.clone(), key)),
            Bearing::Key(key_id, None) => Undo::Key(key_id.clone(), self.keys.remove(key_id)),
            Bearing::Hold(holder, kept) => {
                let before = self.holds.replace(holder.clone(), Some((record.revision(), kept)));
                Undo::Hold(holder, before)
            }
        })
    }

    /// Undoes records that were not written after all.
    pub(super) fn undo(&mut self, taken: Vec<Undo>) {
        for undo in taken.into_iter().rev() {
            match undo {
                Undo::Key(key_id, Some(key)) => drop(self.keys.insert(key_id, key)),
                Undo::Key(key_id, None) => drop(self.keys.remove(&key_id)),
                Undo::Hold(holder, before) => drop(self.holds.replace(holder, before)),
            }
        }
    }

    /// Logs a warning, once, if there is none.
    pub(super) fn warn_if_none(&mut self, at: UnixMillis) {
        let lacking = self.count(at) == 0;
        if lacking && !self.warned {
            tracing::warn!(
                "there is no lasting administrator: no key of tenant 'system' that is active now, without an end, with \
                 keyward.admin of all tenants, and bound to no network and no other audience; nothing keeps the last \
                 administrator from being lost; create such a key, or make one offline with `keyward admin-key`"
            );
        }
        self.warned = lacking;
    }
}

impl<'a> Bearing<'a> {
    /// `None`: it has none.
    fn of(record: &'a Record) -> Option<Self> {
        match record {
            Record::Key(key) => key.tenant.is_system().then(|| Self::Key(&key.key_id, Lasting::of(key))),
            Record::Purged(mark) => {
                (mark.tenant.is_system() && !mark.key_lives).then_some(Self::Key(&mark.key_id, None))
            }
            Record::Tenant(_) | Record::Owner(_) | Record::Issuer(_) => {
                let (holder, hold) = Holder::of(record)?;
                let bears = match &holder {
                    Holder::Tenant(tenant) | Holder::Owner(tenant, _) => tenant.is_system(),
                    Holder::Issuer(_) => true,
                };
                bears.then(|| Self::Hold(holder, Kept::of(hold)))
            }
            Record::Line(_) => None,
        }
    }
}

/// Whether a record may make lasting administrators more or fewer.
pub(super) fn is_relevant(record: &Record) -> bool {
    Bearing::of(record).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward_core::id::TenantId;
    use keyward_core::record::{KeyPolicy, KeyRecord, KeySpec, StoredSecret};
    use keyward_core::rotation::Overlap;
    use keyward_core::scope::Scope;
    use keyward_core::testing::{key_record, stamp};

    use super::*;

    /// A group of changes that found the disk full was not made.
    #[test]
    fn what_was_not_written_is_taken_back() {
        let scopes = vec![Scope::parse("keyward.admin").unwrap()];
        let policy = KeyPolicy { scopes, ..KeyPolicy::default() };
        let spec = KeySpec { policy, ..KeySpec::default() };
        let key = KeyRecord { tenant: TenantId::system(), spec, ..key_record(1) };
        let now = UnixMillis(1_000);
        let record = |key: &KeyRecord| Record::Key(Arc::new(key.clone()));
        let mut dated = key.clone();
        dated.spec.policy.expire_time = Some(UnixMillis(2_000));
        let other = KeyRecord { key_id: key_record(2).key_id, ..key.clone() };

        let mut administrators = Administrators::default();
        administrators.apply(&record(&key));
        let taken: Vec<_> = [record(&dated), record(&key), record(&dated), record(&other)]
            .iter()
            .filter_map(|record| administrators.apply(record))
            .collect();
        assert_eq!(administrators.keys.keys().collect::<Vec<_>>(), [&other.key_id]);
        administrators.undo(taken);
        assert_eq!(administrators.keys.keys().collect::<Vec<_>>(), [&key.key_id]);
        assert!(administrators.check([&record(&dated)].into_iter(), now).is_err());
    }

    #[test]
    fn the_last_one_gets_a_new_secret_only_beside_an_older_one() {
        let scopes = vec![Scope::parse("keyward.admin").unwrap()];
        let policy = KeyPolicy { scopes, ..KeyPolicy::default() };
        let spec = KeySpec { policy, ..KeySpec::default() };
        let key = KeyRecord { tenant: TenantId::system(), spec, ..key_record(1) };
        let now = UnixMillis(1_000);
        let record = |key: &KeyRecord| Record::Key(Arc::new(key.clone()));
        let rotated = |key: &KeyRecord, ms| {
            let mut key = key.clone();
            let secret = StoredSecret { version: key.next_secret_version(), ..key_record(7).secret };
            key.rotate(secret, Overlap { ms, ..Overlap::default() }, &stamp()).unwrap();
            key
        };
        let mut administrators = Administrators::default();
        administrators.apply(&record(&key));
        let check = |all: &Administrators, key: &KeyRecord| all.check([&record(key)].into_iter(), now);
        assert!(check(&administrators, &rotated(&key, 0)).is_err());
        let beside = rotated(&key, REPLY_TIME_MS.unsigned_abs());
        assert!(check(&administrators, &beside).is_ok());
        administrators.apply(&record(&beside));
        // Of two secrets that nobody may have, one is no help; and the older one would end.
        assert!(check(&administrators, &rotated(&beside, REPLY_TIME_MS.unsigned_abs())).is_err());
        // To end the older one, or to take the newer one back, is to say that the other one is there.
        let (mut finished, mut cancelled) = (beside.clone(), beside.clone());
        finished.finish_rotation(&stamp()).unwrap();
        cancelled.cancel_rotation(&stamp()).unwrap();
        assert!(check(&administrators, &finished).is_ok() && check(&administrators, &cancelled).is_ok());
        let ended = KeyRecord { previous: None, ..beside.clone() };
        administrators.apply(&record(&ended));
        assert!(check(&administrators, &rotated(&ended, REPLY_TIME_MS.unsigned_abs())).is_ok());
        administrators.apply(&record(&KeyRecord { key_id: key_record(2).key_id, ..key.clone() }));
        assert!(check(&administrators, &rotated(&beside, 0)).is_ok());
    }
}
