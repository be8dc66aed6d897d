//! Takes purge marks out of the table once nothing that is kept is older than they are.

use std::cell::RefCell;

use keyward_core::event::Revision;
use sled::Transactional;
use sled::transaction::TransactionError;

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
        let mut expired = vec![];
        for entry in self.tree(RecordKind::Purged) {
            let (name, bytes) = entry?;
            if decode_purge_mark(&bytes)?.revision <= until {
                expired.push((name, bytes));
            }
        }
        for marks in expired.chunks(MARKS) {
            // As for any change: a snapshot scan reads between two transactions.
            let scans = RefCell::new(self.scans.lock());
            let mut checksums = self.checksums()?;
            for (name, bytes) in marks {
                checksums.of_mut(RecordKind::Purged).remove(&self.checksum_key, name, bytes);
            }
            let noted = checksums.encode(&self.checksum_key);
            let removed = (&self.purged, &self.meta).transaction(|(purged, meta)| {
                for (name, _) in marks {
                    let old = purged.remove(name)?;
                    scans.borrow_mut().keep(RecordKind::Purged, name, old.as_ref());
                }
                meta.insert(APPLIED, noted.clone())?;
                Ok::<_, sled::transaction::ConflictableTransactionError<TableError>>(())
            });
            removed.map_err(|error| match error {
                TransactionError::Storage(error) => TableError::from(error),
                TransactionError::Abort(error) => error,
            })?;
        }
        Ok(expired.len())
    }
}
