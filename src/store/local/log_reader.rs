//! Reads changes from the journal while the committer appends to it: for a view that fell behind the feed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::Builder;

use keyward_core::event::{Change, Revision};
use tokio::sync::mpsc;

use super::journal::scan::{Piece, scan_between, segment_numbers, segment_path, segment_start};
use super::journal::{ChainKey, JournalError};
use super::recovery::rebuild::rows_of;
use crate::store::record::pb;
use crate::store::{LogStream, StoreError};

/// Batches that wait for their reader, each the changes of one frame. Besides them, the thread has one
/// segment and one more frame in memory.
const BATCHES_WAITING_MAX: usize = 2;

/// Reads the changes after a revision up to another one, at which a frame ends, on a thread of its own. The
/// thread waits for its reader, and ends at the end of a segment once the reader is gone.
///
/// # Errors
/// When the system refuses a thread. Errors of the journal are in the stream.
pub(super) fn read(
    journal: PathBuf,
    key: Arc<ChainKey>,
    after: Revision,
    until: Revision,
) -> Result<LogStream, StoreError> {
    let (batches, receiver) = mpsc::channel(BATCHES_WAITING_MAX);
    if after < until {
        let send = move |batch| batches.blocking_send(batch).is_ok();
        let reader = LogReader { journal, key, send };
        let thread = Builder::new().name("log reader".into()).spawn(move || reader.run(after, until));
        thread.map_err(|error| StoreError::Engine(error.to_string()))?;
    }
    Ok(LogStream::new(after, until, receiver))
}

struct LogReader<S> {
    journal: PathBuf,
    key: Arc<ChainKey>,
    /// Hands a batch or an error to the reader, and waits for it. `false`: the reader is gone.
    send: S,
}

impl<S: Fn(Result<Vec<Arc<Change>>, StoreError>) -> bool> LogReader<S> {
    fn run(&self, after: Revision, until: Revision) {
        if let Err(error) = self.read(after, until) {
            // Nobody needs the error if the reader is gone.
            let _gone = (self.send)(Err(error));
        }
    }

    /// Reads segment by segment: each is in memory as a whole while it is read.
    fn read(&self, after: Revision, until: Revision) -> Result<(), StoreError> {
        let mut at = after;
        for end in segment_ends(&self.journal, after)?.into_iter().filter(|end| *end < until).chain([until]) {
            if !self.read_segment(at, end)? {
                break;
            }
            at = end;
        }
        Ok(())
    }

    /// Reads the changes between two revisions of one segment. `false`: the reader is gone. What follows the
    /// second one is not looked at: the committer may be writing it.
    fn read_segment(&self, after: Revision, until: Revision) -> Result<bool, StoreError> {
        let mut outcome = Ok(true);
        let visit = |piece: Piece<_>| {
            let Piece::Entries(entries, _) = piece else { return };
            if matches!(outcome, Ok(true)) {
                outcome = changes_of(&entries, after).map(|batch| batch.is_empty() || (self.send)(Ok(batch)));
            }
        };
        scan_between(&self.journal, &self.key, after, Some(until), visit).map_err(unreadable)?;
        outcome
    }
}

/// The revisions at which the segments end that have changes after `revision`, without the last segment.
fn segment_ends(journal: &Path, revision: Revision) -> Result<Vec<Revision>, StoreError> {
    let mut ends = vec![];
    // From the newest on: older ones may be deleted meanwhile.
    for &number in segment_numbers(journal).map_err(unreadable)?.iter().rev() {
        let start = segment_start(&segment_path(journal, number)).map_err(unreadable)?.revision;
        if start <= revision {
            ends.reverse();
            return Ok(ends);
        }
        ends.push(start);
    }
    Err(StoreError::Engine(format!("the journal no longer goes back to revision {revision}")))
}

/// The changes of a frame after a revision.
fn changes_of(entries: &[pb::JournalEntry], after: Revision) -> Result<Vec<Arc<Change>>, StoreError> {
    let lacking = entries.iter().filter(|entry| Revision(entry.revision) > after);
    let change = |entry: &pb::JournalEntry| {
        let records = rows_of(entry)?.into_iter().map(|row| row.record).collect();
        Ok(Arc::new(Change { revision: Revision(entry.revision), records }))
    };
    lacking.map(change).collect()
}

fn unreadable(error: JournalError) -> StoreError {
    StoreError::Engine(error.to_string())
}
