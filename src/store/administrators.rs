//! The lasting administrators of an engine ([`keyward_core::administrators`]). A change that would leave none
//! is refused where its other preconditions are checked, so that two administrators who disable each other at
//! the same moment are ordered.

use std::collections::HashMap;

use keyward_core::administrators::lasting_from;
use keyward_core::clock::UnixMillis;
use keyward_core::event::Record;
use keyward_core::id::KeyId;

use super::CommitError;

/// The keys that are lasting administrators.
#[derive(Debug, Default)]
pub(super) struct Administrators {
    lasting: HashMap<KeyId, Lasting>,
    /// Whether the log has been warned that there is none.
    warned: bool,
}

/// A key that is, or will be, a lasting administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lasting {
    /// From when on.
    from: UnixMillis,
    /// The version of its current secret.
    version: u32,
    /// Until when the secret before that works too. `None`: there is none.
    previous_end: Option<UnixMillis>,
}

impl Lasting {
    /// Whether a rotation is pending.
    fn is_rotating(&self, at: UnixMillis) -> bool {
        self.previous_end.is_some_and(|end| at < end)
    }
}

/// The state before a record was applied, to undo it.
#[derive(Debug)]
pub(super) struct Undo {
    key_id: KeyId,
    before: Option<Lasting>,
}

impl Administrators {
    /// How many there are at time `at`.
    pub(super) fn count(&self, at: UnixMillis) -> usize {
        self.lasting.values().filter(|it| it.from <= at).count()
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
        let written = || records.clone().filter_map(of_system);
        let lasts = |key_id: &KeyId| self.lasting.get(key_id).is_some_and(|it| it.from <= at);
        let will_last = |key_id: &KeyId, after: Option<Lasting>| {
            let is_known = |after: &Lasting| match self.lasting.get(key_id) {
                Some(before) => after.version <= before.version || after.is_rotating(at) && !before.is_rotating(at),
                None => true,
            };
            after.filter(is_known).is_some_and(|it| it.from <= at)
        };
        let loses_one = written().any(|(key_id, after)| lasts(key_id) && !will_last(key_id, after));
        let untouched = || self.lasting.keys().any(|id| lasts(id) && written().all(|(key_id, _)| key_id != id));
        if loses_one && !untouched() && !written().any(|(key_id, after)| will_last(key_id, after)) {
            return Err(CommitError::LastAdministrator);
        }
        Ok(())
    }

    /// Applies a record that is written.
    pub(super) fn apply(&mut self, record: &Record) -> Option<Undo> {
        let (key_id, after) = of_system(record)?;
        let before = match after {
            Some(lasting) => self.lasting.insert(key_id.clone(), lasting),
            None => self.lasting.remove(key_id),
        };
        Some(Undo { key_id: key_id.clone(), before })
    }

    /// Undoes records that were not written after all.
    pub(super) fn undo(&mut self, taken: Vec<Undo>) {
        for Undo { key_id, before } in taken.into_iter().rev() {
            match before {
                Some(lasting) => self.lasting.insert(key_id, lasting),
                None => self.lasting.remove(&key_id),
            };
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

/// The key of tenant `system` that a record is about, and how it is a lasting administrator.
fn of_system(record: &Record) -> Option<(&KeyId, Option<Lasting>)> {
    match record {
        Record::Key(key) => {
            let waits = key.previous.as_ref().map(|_| UnixMillis(i64::MAX));
            let (version, previous_end) = (key.secret.version, key.previous_end().or(waits));
            let lasting = lasting_from(key).map(|from| Lasting { from, version, previous_end });
            key.tenant.is_system().then_some((&key.key_id, lasting))
        }
        Record::Purged(mark) => (mark.tenant.is_system() && !mark.key_lives).then_some((&mark.key_id, None)),
        Record::Tenant(_) | Record::Owner(_) | Record::Issuer(_) | Record::Line(_) => None,
    }
}

/// Whether a record is about a key of tenant `system`.
pub(super) fn is_relevant(record: &Record) -> bool {
    of_system(record).is_some()
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
        assert_eq!(administrators.lasting.keys().collect::<Vec<_>>(), [&other.key_id]);
        administrators.undo(taken);
        assert_eq!(administrators.lasting.keys().collect::<Vec<_>>(), [&key.key_id]);
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
        let beside = rotated(&key, 5);
        assert!(check(&administrators, &beside).is_ok());
        administrators.apply(&record(&beside));
        // Of two secrets that nobody may have, one is no help; and the older one would end.
        assert!(check(&administrators, &rotated(&beside, 5)).is_err());
        // To end the older one, or to take the newer one back, is to say that the other one is there.
        let (mut finished, mut cancelled) = (beside.clone(), beside.clone());
        finished.finish_rotation(&stamp()).unwrap();
        cancelled.cancel_rotation(&stamp()).unwrap();
        assert!(check(&administrators, &finished).is_ok() && check(&administrators, &cancelled).is_ok());
        let ended = KeyRecord { previous: None, ..beside.clone() };
        administrators.apply(&record(&ended));
        assert!(check(&administrators, &rotated(&ended, 5)).is_ok());
        administrators.apply(&record(&KeyRecord { key_id: key_record(2).key_id, ..key.clone() }));
        assert!(check(&administrators, &rotated(&beside, 0)).is_ok());
    }
}
