//! A cut: every record of the table as it is at one position, read while the table is being written.
//!
//! The cut reads in batches. Before the table's writer overwrites a record, it puts the old bytes aside, unless the cut has
//! passed it already; and the cut takes what was put aside over what it finds. So the writer never waits for the whole of a
//! cut, and a cut holds no more in memory than what changed meanwhile.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;
use sled::IVec;

use super::sums::Sums;
use super::table::{Table, TableError};

/// Records that one batch holds at most. The table's writer waits for one batch at most.
const BATCH_RECORDS: usize = 512;
/// Records that may change while one cut is read.
const ASIDE_MAX: usize = 2_000_000;

/// The kinds of records, in the order of a cut. The numbers are those of a snapshot's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum Kind {
    Tenant = 1,
    Key = 2,
}

/// A record's kind and its name in its tree.
type Place = (Kind, Vec<u8>);

/// The cut that is being read, if there is one. The table has one of these, and holds it while it writes.
pub(super) type CutSlot = Mutex<Option<Aside>>;

/// What the writer has put aside for a cut.
#[derive(Debug, Default)]
pub(super) struct Aside {
    passed: Option<Place>,
    /// `None`: there was no such record.
    before: BTreeMap<Place, Option<IVec>>,
    overflowed: bool,
}

impl Aside {
    /// Puts a record aside as it was before the first change since the cut began.
    pub(super) fn keep(&mut self, kind: Kind, name: &[u8], before: Option<&IVec>) {
        let place = (kind, name.to_vec());
        if self.overflowed || self.passed.as_ref().is_some_and(|passed| place <= *passed) {
            return;
        }
        self.before.entry(place).or_insert_with(|| before.cloned());
        if self.before.len() > ASIDE_MAX {
            self.before.clear();
            self.overflowed = true;
        }
    }
}

/// Why there is no cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// One is being read already.
    #[error("another backup or snapshot is being made")]
    Busy,
    /// Too much changed while it was read.
    #[error("more than {ASIDE_MAX} keys changed while they were read; try again when less is going on")]
    Overtaken,
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// Reads a cut. It ends when this is dropped.
pub(super) struct Cut {
    table: Arc<Table>,
    sums: Sums,
    kind: Kind,
    last: Option<Vec<u8>>,
}

/// A record of a cut.
pub(super) type CutRecord = (Kind, IVec);

impl Cut {
    /// Begins a cut at the position that the table covers now.
    pub(super) fn begin(table: &Arc<Table>) -> Result<Self, CutError> {
        let mut slot = table.cut_slot().lock();
        if slot.is_some() {
            return Err(CutError::Busy);
        }
        let sums = table.sums()?;
        *slot = Some(Aside::default());
        drop(slot);
        Ok(Self { table: table.clone(), sums, kind: Kind::Tenant, last: None })
    }

    /// What the cut holds.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The next records: tenants, then keys, each in the order of their names. `None`: those were all.
    pub(super) fn next_batch(&mut self) -> Result<Option<Vec<CutRecord>>, CutError> {
        loop {
            let (batch, read) = self.batch()?;
            match (read, self.kind) {
                (0, Kind::Tenant) => (self.kind, self.last) = (Kind::Key, None),
                (0, Kind::Key) => return Ok(None),
                // All of them may be newer than the cut.
                _ if batch.is_empty() => {}
                _ => return Ok(Some(batch)),
            }
        }
    }

    /// Reads on in the current tree: what belongs to the cut, and how many records were looked at.
    fn batch(&mut self) -> Result<(Vec<CutRecord>, usize), CutError> {
        let mut slot = self.table.cut_slot().lock();
        let aside = slot.as_mut().filter(|aside| !aside.overflowed).ok_or(CutError::Overtaken)?;
        let from = self.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let tree = self.table.tree(self.kind);
        let (mut batch, mut read) = (Vec::with_capacity(BATCH_RECORDS), 0);
        let mut last = None;
        for entry in tree.range::<&[u8], _>((from, Bound::Unbounded)).take(BATCH_RECORDS) {
            let (name, now) = entry.map_err(TableError::from)?;
            let place = (self.kind, name.to_vec());
            let then = aside.before.remove(&place).unwrap_or(Some(now));
            batch.extend(then.map(|bytes| (self.kind, bytes)));
            read += 1;
            last = Some(place);
        }
        if let Some(last) = last {
            self.last = Some(last.1.clone());
            aside.passed = Some(last);
        }
        Ok((batch, read))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        // What was put aside may be much: it is freed when the writer can go on.
        let aside = self.table.cut_slot().lock().take();
        drop(aside);
    }
}
