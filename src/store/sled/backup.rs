//! A backup: a cut of the table as a stream of bytes, for whoever asks.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::UnixMillis;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::cut::{Cut, CutError};
use super::snapshot;
use super::table::Table;
use crate::store::{Backup, BackupError};

/// The size of one piece.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait for the reader at most.
const PIECES_WAITING: usize = 4;
/// A reader that takes no piece for this long is given up: what changes meanwhile is kept in memory for it.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// Begins a backup at the position that the table covers now.
pub(super) async fn start(table: Arc<Table>, time: UnixMillis) -> Result<Backup, BackupError> {
    let begun = spawn_blocking({
        let table = table.clone();
        move || Cut::begin(&table)
    });
    let mut cut =
        begun.await.map_err(|panic| BackupError::Failed(panic.to_string()))?.map_err(|error| match error {
            CutError::Busy => BackupError::Busy,
            error => BackupError::Failed(error.to_string()),
        })?;
    let revision = cut.sums().position.revision;
    let (sender, pieces) = mpsc::channel(PIECES_WAITING);
    let handle = Handle::current();
    // It ends with its channel, or with the reader's patience.
    drop(spawn_blocking(move || {
        let mut pieces = Pieces { sender, handle, piece: Vec::with_capacity(PIECE_BYTES) };
        let written = snapshot::write(&mut cut, table.sum_key(), time, &mut pieces);
        // Before the reader sees the end: who has a whole backup may ask for the next one.
        drop(cut);
        if let Err(error) = written {
            tracing::warn!(%error, revision = revision.0, "a backup broke off");
            let told = pieces.sender.send(Err(BackupError::Failed(error.to_string())));
            drop(pieces.handle.block_on(timeout(READER_PATIENCE, told)));
        }
    }));
    Ok(Backup { revision, pieces })
}

/// Hands on what is written, in pieces.
struct Pieces {
    sender: mpsc::Sender<Result<Vec<u8>, BackupError>>,
    handle: Handle,
    piece: Vec<u8>,
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
        match self.handle.block_on(timeout(READER_PATIENCE, self.sender.send(Ok(piece)))) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "its reader has gone")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "its reader takes nothing")),
        }
    }
}
