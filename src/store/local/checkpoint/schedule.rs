//! Decides when an index checkpoint is made: a step of the maintenance thread.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use keyward_core::event::Revision;

use super::index_checkpoint::{self, Checkpoint};
use super::maintenance::{MaintenanceContext, MaintenanceError};
use super::snapshot::SnapshotError;
use crate::store::local::journal::Position;
use crate::store::local::journal::scan::{segment_numbers, segment_path, segment_start};
use crate::store::local::table::snapshot_scan::ScanError;
use crate::util::files::{create_private_dir, remove_temporary_files};

/// A checkpoint is due when the journal since the last one has this many full segments and at least this
/// fraction of the checkpoint's size. So checkpoints cost a small multiple of what the journal costs, and a
/// start rarely finds one that is not worth reading ([`index_checkpoint::load`]).
const CHECKPOINT_SEGMENTS: u64 = 1;
const CHECKPOINT_FRACTION: u64 = 4;
/// Without a checkpoint, this many keys make one due: reading them from the table takes half a second.
const CHECKPOINT_KEYS: u64 = 100_000;
/// Bytes of a segment read per step of the search.
const LOOKED_AT_BYTES: usize = 16 * 1024;
/// How often, and how long apart, it is checked whether the index has caught up with the journal: 5 seconds
/// in all.
const VIEW_TRIES: usize = 500;
const VIEW_PAUSE: Duration = Duration::from_millis(10);

impl MaintenanceContext {
    /// Makes a checkpoint if one is due.
    pub(super) fn checkpoint_if_due(&self, checkpoint: &mut Option<Checkpoint>) -> Result<(), MaintenanceError> {
        if self.view.chunk_count() == 0 {
            return Ok(());
        }
        let mut later = segment_numbers(&self.journal)?;
        let Some(newest) = later.pop() else { return Ok(()) };
        let start = segment_start(&segment_path(&self.journal, newest))?;
        let lacking = bytes_of_later(&self.journal, later, checkpoint.map(|checkpoint| checkpoint.position.revision))?;
        let due = match *checkpoint {
            Some(checkpoint) => {
                lacking >= (CHECKPOINT_SEGMENTS * self.segment_bytes).max(checkpoint.bytes / CHECKPOINT_FRACTION)
            }
            None => lacking >= CHECKPOINT_SEGMENTS * self.segment_bytes || self.keys()? >= CHECKPOINT_KEYS,
        };
        if !due || checkpoint.is_some_and(|checkpoint| checkpoint.position == start) {
            return Ok(());
        }
        self.write_checkpoint(start, checkpoint)
    }

    /// Called before the journal up to `revision` is deleted: the checkpoint must not need any of it, or the
    /// next start could not use it.
    pub(super) fn checkpoint_past(
        &self,
        revision: Revision,
        checkpoint: &mut Option<Checkpoint>,
    ) -> Result<(), MaintenanceError> {
        if self.view.chunk_count() == 0 || checkpoint.is_none_or(|checkpoint| checkpoint.position.revision >= revision)
        {
            return Ok(());
        }
        let Some(&newest) = segment_numbers(&self.journal)?.last() else { return Ok(()) };
        match self.write_checkpoint(segment_start(&segment_path(&self.journal, newest))?, checkpoint) {
            // Keeping the journal for the checkpoint would only take more space. The checkpoint is a copy and
            // frees its own.
            Err(error) if error.is_disk_full() => {
                tracing::warn!(%error, "no newer index checkpoint can be made; the one that is there goes");
                index_checkpoint::remove_all(&self.checkpoints)?;
                *checkpoint = None;
                Ok(())
            }
            made => made,
        }
    }

    /// Makes a checkpoint whose position is the beginning of a segment.
    fn write_checkpoint(&self, start: Position, checkpoint: &mut Option<Checkpoint>) -> Result<(), MaintenanceError> {
        self.wait_for_view(start.revision)?;
        remove_temporary_files(&self.checkpoints)?;
        create_private_dir(&self.checkpoints)?;
        let disk = self.check_free_space(&self.checkpoints, checkpoint.map_or(0, |checkpoint| checkpoint.bytes))?;
        let check_continue = || self.check_continue(&disk);
        // Nothing is applied to the view before it is durable.
        let newest = || *self.durable.lock();
        let made = index_checkpoint::create(
            &*self.view,
            start,
            newest,
            &self.checkpoint_key,
            &self.checkpoints,
            &check_continue,
        )?;
        tracing::info!(revision = start.revision.0, bytes = made.bytes, "made an index checkpoint");
        *checkpoint = Some(made);
        Ok(())
    }

    /// The index follows the journal by itself, and is rarely far behind.
    fn wait_for_view(&self, revision: Revision) -> Result<(), MaintenanceError> {
        for _ in 0..VIEW_TRIES {
            if self.view.revision() >= revision {
                return Ok(());
            }
            self.check_not_stopping()?;
            sleep(VIEW_PAUSE);
        }
        Err(MaintenanceError::Behind)
    }

    fn keys(&self) -> Result<u64, MaintenanceError> {
        Ok(self.table.checksums().map_err(ScanError::from).map_err(SnapshotError::from)?.keys())
    }
}

/// The bytes of those segments that begin at a revision or after it.
fn bytes_of_later(journal: &Path, mut segments: Vec<u64>, revision: Option<Revision>) -> io::Result<u64> {
    let mut bytes = 0;
    while let Some(number) = segments.pop() {
        let path = segment_path(journal, number);
        if revision.is_some_and(|revision| segment_start(&path).is_ok_and(|at| at.revision < revision)) {
            break;
        }
        bytes += fs::metadata(&path)?.len();
    }
    Ok(bytes)
}

/// About how many bytes of the journal follow a revision that begins a segment. Unreadable segments count as
/// empty here; the start reports them.
pub(in crate::store::local) fn bytes_after(journal: &Path, revision: Revision) -> u64 {
    let Ok(mut segments) = segment_numbers(journal) else { return 0 };
    let Some(newest) = segments.pop() else { return 0 };
    let used = used_bytes(&segment_path(journal, newest)).unwrap_or(0);
    used + bytes_of_later(journal, segments, Some(revision)).unwrap_or(0)
}

/// About how many bytes of a segment are written, by binary search: the rest is zeros, and no frame has as
/// many zeros as one step reads.
fn used_bytes(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let (mut used, mut unused) = (0, file.metadata()?.len() / LOOKED_AT_BYTES as u64 + 1);
    let mut block = vec![0; LOOKED_AT_BYTES];
    while used < unused {
        let middle = u64::midpoint(used, unused);
        let read = file.read_at(&mut block, middle * LOOKED_AT_BYTES as u64)?;
        if block.iter().take(read).all(|byte| *byte == 0) {
            unused = middle;
        } else {
            used = middle + 1;
        }
    }
    Ok(used * LOOKED_AT_BYTES as u64)
}
