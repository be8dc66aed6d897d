//! Takes purge marks out of the table once nothing that is kept is older than they are.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

use keyward_core::event::Revision;
use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError};

use super::{APPLIED, Table, TableError};
use crate::store::record::{RecordKind, decode_purge_mark};

/// Marks that are removed in one transaction.
const MARKS: usize = 1_024;

impl Table {
    /// Forgets the purge marks up to a revision: the journal must begin after it, and every snapshot must be
    /// at least as new. From then on their ids may be used again. Returns how many there were.
    ///
    /// This is no change of the log: a table that is rebuilt from a snapshot has the marks that the snapshot
    /// has, until this is called again.
    pub(in crate::store::local) fn forget_purge_marks(&self, until: Revision) -> Result<usize, TableError> {
        let mut forgotten = 0;
        let mut expired = Vec::with_capacity(MARKS);
        for entry in self.tree(RecordKind::Purged) {
            let (name, bytes) = entry?;
            if decode_purge_mark(&bytes)?.revision <= until {
                expired.push((name, bytes));
            }
            if expired.len() == MARKS {
                forgotten += self.remove_marks(&expired)?;
                expired.clear();
            }
        }
        Ok(forgotten + self.remove_marks(&expired)?)
    }

    /// Removes marks that are still as they were read. Returns how many.
    fn remove_marks(&self, marks: &[(sled::IVec, sled::IVec)]) -> Result<usize, TableError> {
        if marks.is_empty() {
            return Ok(0);
        }
        // As for any change: a snapshot scan reads between two transactions.
        let scans = RefCell::new(self.scans.lock());
        let before = self.checksums()?;
        let (removed, bytes) = (Cell::new(0), Cell::new(0));
        let outcome = (&self.purged, &self.meta).transaction(|(purged, meta)| {
            let mut checksums = before;
            removed.set(0);
            bytes.set(0);
            for (name, mark) in marks {
                if purged.get(name)?.as_ref() != Some(mark) {
                    continue;
                }
                purged.remove(name)?;
                scans.borrow_mut().keep(RecordKind::Purged, name, Some(mark));
                checksums.of_mut(RecordKind::Purged).remove(&self.checksum_key, name, mark);
                removed.set(removed.get() + 1);
                bytes.set(bytes.get() + (name.len() + mark.len()) as u64);
            }
            meta.insert(APPLIED, checksums.encode(&self.checksum_key))?;
            Ok::<_, ConflictableTransactionError<TableError>>(())
        });
        outcome.map_err(|error| match error {
            TransactionError::Storage(error) => TableError::from(error),
            TransactionError::Abort(error) => error,
        })?;
        self.size.records.fetch_sub(bytes.get(), Ordering::Relaxed);
        Ok(removed.get())
    }
}
