//! What a transaction of the table does for a key: its record, and all that leads to it.

use keyward_core::event::Record;
use keyward_core::record::{KeyRecord, PurgeMark};
use sled::IVec;
use sled::transaction::{ConflictableTransactionError, TransactionalTree, UnabortableTransactionError};

use super::checksums::{ChecksumKey, Checksums};
use super::error::TableError;
use super::index_keys::{aliases_of, id_name, index_keys};
use super::pre_images::SnapshotScans;
use super::row::Row;
use crate::store::record::{RecordKind, decode_key};

/// A transaction under way. The checksums have its rows already, and lose what they replace.
pub(super) struct RowTransaction<'a> {
    pub(super) keys: &'a TransactionalTree,
    pub(super) ids: &'a TransactionalTree,
    pub(super) facets: &'a TransactionalTree,
    pub(super) aliases: &'a TransactionalTree,
    pub(super) key: &'a ChecksumKey,
    pub(super) scans: &'a mut SnapshotScans,
    pub(super) checksums: Checksums,
    /// Bytes of the names and records that are replaced.
    pub(super) replaced: u64,
}

type Outcome<T> = Result<T, ConflictableTransactionError<TableError>>;

impl RowTransaction<'_> {
    /// Writes a key under its current digest. If that has changed, the record under the old one goes.
    pub(super) fn put_key(&mut self, row: &Row, key: &KeyRecord) -> Outcome<()> {
        let moved_from = self.ids.insert(id_name(&key.tenant, &key.key_id), row.name())?;
        let moved_from = moved_from.filter(|old| old != row.name());
        let there = self.keys.insert(row.name(), &*row.bytes)?;
        self.note(RecordKind::Key, row.name(), there.as_ref());
        let old = match moved_from {
            None => there,
            Some(digest) => self.take_key(&digest)?,
        };
        let before = old.as_ref().map(decoded).transpose()?;
        for facet in before.iter().flat_map(index_keys) {
            self.facets.remove(facet)?;
        }
        for facet in index_keys(key) {
            self.facets.insert(facet, &[])?;
        }
        for alias in before.iter().flat_map(aliases_of) {
            self.aliases.remove(alias.as_bytes().as_slice())?;
        }
        for alias in aliases_of(key) {
            self.aliases.insert(alias.as_bytes().as_slice(), row.name())?;
        }
        Ok(())
    }

    /// Removes a key, and all that leads to it.
    pub(super) fn purge(&mut self, mark: &PurgeMark) -> Outcome<()> {
        let Some(digest) = self.ids.remove(id_name(&mark.tenant, &mark.key_id))? else { return Ok(()) };
        let Some(old) = self.take_key(&digest)? else { return Ok(()) };
        let before = decoded(&old)?;
        for facet in index_keys(&before) {
            self.facets.remove(facet)?;
        }
        for alias in aliases_of(&before) {
            self.aliases.remove(alias.as_bytes().as_slice())?;
        }
        Ok(())
    }

    /// Removes the purge marks of keys that are there.
    pub(super) fn forget_marks_of(&mut self, rows: &[&Row], purged: &TransactionalTree) -> Outcome<()> {
        for row in rows {
            let Record::Key(key) = &row.record else { continue };
            let id = id_name(&key.tenant, &key.key_id);
            // Unless it was purged in the same transaction.
            if self.ids.get(&id)?.is_some()
                && let Some(old) = purged.remove(id.as_slice())?
            {
                self.note(RecordKind::Purged, &id, Some(&old));
            }
        }
        Ok(())
    }

    /// Notes a record that was replaced, or that there was none.
    pub(super) fn note(&mut self, kind: RecordKind, name: &[u8], old: Option<&IVec>) {
        self.scans.keep(kind, name, old);
        if let Some(old) = old {
            self.replaced += (name.len() + old.len()) as u64;
            self.checksums.of_mut(kind).remove(self.key, name, old);
        }
    }

    fn take_key(&mut self, digest: &[u8]) -> Result<Option<IVec>, UnabortableTransactionError> {
        let old = self.keys.remove(digest)?;
        if old.is_some() {
            self.note(RecordKind::Key, digest, old.as_ref());
        }
        Ok(old)
    }
}

fn decoded(bytes: &IVec) -> Outcome<KeyRecord> {
    decode_key(bytes).map_err(|damage| ConflictableTransactionError::Abort(damage.into()))
}
