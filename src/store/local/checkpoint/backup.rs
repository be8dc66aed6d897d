//! A backup: a snapshot scan of the table as a stream of bytes.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::UnixMillis;
use tokio::runtime::Handle;
use tokio::sync::{OwnedMutexGuard, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, error::Elapsed, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::snapshot::{self, Form, SnapshotError};
use crate::store::local::cached_stats::CachedStats;
use crate::store::local::options::BackupLimits;
use crate::store::local::table::Table;
use crate::store::local::table::snapshot_scan::{ScanError, SnapshotScan};
use crate::store::{Backup, BackupError, BackupLimit};

/// The size of one piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces buffered for the reader at most.
const PIECES_WAITING: usize = 4;
/// A reader that takes no piece for this long is dropped: pre-images are kept in memory for it.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// Begins a backup at the table's current position. `turn` is released before the reader sees the end.
pub(in crate::store::local) async fn start(
    table: Arc<Table>,
    form: Form,
    time: UnixMillis,
    limits: BackupLimits,
    turn: OwnedMutexGuard<()>,
    stats: Arc<CachedStats>,
) -> Result<Backup, BackupError> {
    let deadline = Instant::now().checked_add(limits.time);
    let begun = spawn_blocking({
        let table = table.clone();
        move || SnapshotScan::begin(&table, limits.aside_bytes)
    });
    let mut scan = begun.await.map_err(|panic| BackupError::Failed(panic.to_string()))?.map_err(of_scan)?;
    let revision = scan.checksums().position.revision;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING + 1);
    // Reserved for the error: without it, a broken-off backup would look complete.
    let last = sender.clone().try_reserve_owned().map_err(|error| BackupError::Failed(error.to_string()))?;
    let handle = Handle::current();
    // The task ends with its channel, at a limit, or when the reader is idle for too long.
    drop(spawn_blocking(move || {
        let (piece, overflowed) = (Vec::with_capacity(PIECE_BYTES), scan.overflowed());
        let mut pieces = Pieces { sender, handle, piece, limits, deadline, overflowed, broke_off: None };
        let written = snapshot::write(&mut scan, form, table.checksum_key(), time, &mut pieces);
        // Before the reader sees the end, so that it may ask for the next backup.
        drop(scan);
        drop(turn);
        if written.is_ok() {
            stats.note_backup(time);
        }
        if let Err(error) = written {
            let why = pieces.broke_off.unwrap_or_else(|| of_snapshot(error));
            tracing::warn!(error = %why, revision = revision.0, "a backup broke off");
            last.send(Err(why));
        }
    }));
    Ok(Backup { revision, pieces })
}

fn of_scan(error: ScanError) -> BackupError {
    match error {
        ScanError::Overflowed { bytes_max } => BackupError::Aborted(BackupLimit::Aside(bytes_max)),
        ScanError::Table(error) => BackupError::Failed(error.to_string()),
    }
}

fn of_snapshot(error: SnapshotError) -> BackupError {
    match error {
        SnapshotError::SnapshotScan(error) => of_scan(error),
        SnapshotError::NeedsSecondForm => BackupError::NeedsSecondFormat,
        error => BackupError::Failed(error.to_string()),
    }
}

/// A writer that sends pieces to the reader.
struct Pieces {
    sender: mpsc::Sender<Result<Vec<u8>, BackupError>>,
    handle: Handle,
    piece: Vec<u8>,
    limits: BackupLimits,
    /// `None`: no deadline.
    deadline: Option<Instant>,
    overflowed: CancellationToken,
    broke_off: Option<BackupError>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let some = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..some]);
        if self.piece.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let handle = self.handle.clone();
        handle.block_on(self.hand_on(piece)).map_err(|why| {
            let error = io::Error::other(why.to_string());
            self.broke_off = Some(why);
            error
        })
    }
}

impl Pieces {
    /// Sends a piece, within the backup's limits. They hold for a fast reader too.
    async fn hand_on(&self, piece: Vec<u8>) -> Result<(), BackupError> {
        let deadline = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.overflowed.cancelled() => Err(BackupError::Aborted(BackupLimit::Aside(self.limits.aside_bytes))),
            () = deadline => Err(BackupError::Aborted(BackupLimit::Time(self.limits.time))),
            handed_on = timeout(READER_PATIENCE, self.sender.send(Ok(piece))) => match handed_on {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(BackupError::Failed("its reader has gone".to_owned())),
                Err(Elapsed { .. }) => Err(BackupError::Aborted(BackupLimit::Idle(READER_PATIENCE))),
            },
        }
    }
}
