//! The lasting administrators of an engine ([`keyward_core::administrators`]). A change that would leave none
//! is refused where its other preconditions are checked, so that two administrators who disable each other at
//! the same moment are ordered.

use std::collections::HashMap;

use keyward_core::administrators::lasting_from;
use keyward_core::clock::UnixMillis;
use keyward_core::event::Record;
use keyward_core::id::KeyId;

use super::CommitError;

/// The keys that are lasting administrators, each with the time from which it is one.
#[derive(Debug, Default)]
pub(super) struct Administrators {
    from: HashMap<KeyId, UnixMillis>,
    /// Whether the log has been warned that there is none.
    warned: bool,
}

/// The state before a record was applied, to undo it.
#[derive(Debug)]
pub(super) struct Undo {
    key_id: KeyId,
    from: Option<UnixMillis>,
}

impl Administrators {
    /// How many there are at time `at`.
    pub(super) fn count(&self, at: UnixMillis) -> usize {
        self.from.values().filter(|from| **from <= at).count()
    }

    /// Checks that one remains when these records are written. If there is none beforehand, nothing is
    /// refused: that would lock out the administrator who is to repair it.
    pub(super) fn check<'a>(
        &self,
        records: impl Iterator<Item = &'a Record> + Clone,
        at: UnixMillis,
    ) -> Result<(), CommitError> {
        let written = || records.clone().filter_map(of_system);
        let lasts = |key_id: &KeyId| self.from.get(key_id).is_some_and(|from| *from <= at);
        let will_last = |from: Option<UnixMillis>| from.is_some_and(|from| from <= at);
        let loses_one = written().any(|(key_id, from)| lasts(key_id) && !will_last(from));
        let untouched = || self.from.keys().any(|id| lasts(id) && written().all(|(key_id, _)| key_id != id));
        if loses_one && !untouched() && !written().any(|(_, from)| will_last(from)) {
            return Err(CommitError::LastAdministrator);
        }
        Ok(())
    }

    /// Applies a record that is written.
    pub(super) fn apply(&mut self, record: &Record) -> Option<Undo> {
        let (key_id, from) = of_system(record)?;
        let before = match from {
            Some(from) => self.from.insert(key_id.clone(), from),
            None => self.from.remove(key_id),
        };
        Some(Undo { key_id: key_id.clone(), from: before })
    }

    /// Undoes records that were not written after all.
    pub(super) fn undo(&mut self, taken: Vec<Undo>) {
        for Undo { key_id, from } in taken.into_iter().rev() {
            match from {
                Some(from) => self.from.insert(key_id, from),
                None => self.from.remove(&key_id),
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

/// The key of tenant `system` that a record is about, and from when it is a lasting administrator.
fn of_system(record: &Record) -> Option<(&KeyId, Option<UnixMillis>)> {
    match record {
        Record::Key(key) => key.tenant.is_system().then(|| (&key.key_id, lasting_from(key))),
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
    use keyward_core::record::{KeyPolicy, KeyRecord, KeySpec};
    use keyward_core::scope::Scope;
    use keyward_core::testing::key_record;

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
        assert_eq!(administrators.from.keys().collect::<Vec<_>>(), [&other.key_id]);
        administrators.undo(taken);
        assert_eq!(administrators.from.keys().collect::<Vec<_>>(), [&key.key_id]);
        assert!(administrators.check([&record(&dated)].into_iter(), now).is_err());
    }
}
