//! Index checkpoints: a view's contents at one position of the log, so that a start need not read every
//! record.
//!
//! ```text
//! <data>/index/NNNNNNNNNNNNNNNNNNNN.kwi      its name is its revision
//!
//! chunks, one after the other                 what the view wrote
//! directory: for each chunk                   length u64 │ keyed blake3 of its number u64 and its bytes, 32 bytes
//! end, 144 bytes: "KEYWARDI" │ version u32 │ form of the chunks u32 │ position: revision u64 │ chain, 32 bytes
//!                 │ latest position: revision u64 │ chain, 32 bytes │ chunks u32 │ 0 u32
//!                 │ latest time of a change in ms i64
//!                 │ keyed blake3 of the directory and the 112 bytes before, 32 bytes
//! ```
//!
//! All numbers are little-endian. Changes go on while a checkpoint is written, so it may contain some after
//! its position, but none after its latest position. On load, the journal is applied from the position on;
//! changes already contained are skipped, because no form of a record replaces a newer one.
//!
//! A checkpoint is used if its seals verify and both its positions are in the journal: then everything in it
//! is of this log. It is only a copy: without one, or in doubt, the table is read. A checkpoint ahead of the
//! journal proves that acknowledged changes are missing.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::snapshot::{ContinueCheck, Interruptible};
use crate::bytes_codec::Cursor;
use crate::store::MaterializedView;
use crate::store::local::journal::{Chain, ChainKey, Position};
use crate::util::files::{NewFile, create_private_dir, numbered};
use crate::util::parallel;
use crate::util::progress::Progress;

/// The version of checkpoints that this program writes, and the only one it reads.
const VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"KEYWARDI";
const EXTENSION: &str = "kwi";
const ENTRY_BYTES: usize = 8 + 32;
const COVERED_BYTES: usize = 112;
const END_BYTES: usize = COVERED_BYTES + 32;
/// Longer chunks, or more of them, are invalid.
const CHUNK_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const CHUNKS_MAX: usize = 4_096;
const BUFFER_BYTES: usize = 1024 * 1024;

/// The key of the seals.
pub(in crate::store::local) struct CheckpointKey(Zeroizing<[u8; 32]>);

impl CheckpointKey {
    pub(in crate::store::local) fn of(key: &ChainKey) -> Self {
        Self(Zeroizing::new(blake3::derive_key("keyward 2026-11-25 index image v1", &key.0[..])))
    }

    fn of_chunk(&self, number: usize, bytes: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&(number as u64).to_le_bytes()).update(bytes).finalize()
    }

    pub(in crate::store::local) fn of_end(&self, directory: &[u8], covered: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.0).update(directory).update(covered).finalize()
    }
}

/// Why a checkpoint is not used.
#[derive(Debug, thiserror::Error)]
pub(in crate::store::local) enum CheckpointError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is of another version or form")]
    OtherForm,
    #[error("it is damaged, or was not made with this pepper file")]
    Damaged,
}

/// A checkpoint that a view was loaded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) struct Checkpoint {
    /// Where the journal continues from it.
    pub(in crate::store::local) position: Position,
    /// It contains no change after this position.
    pub(in crate::store::local) latest: Position,
    /// Its size.
    pub(in crate::store::local) bytes: u64,
}

/// The checkpoints in a directory, newest first.
pub(in crate::store::local) fn list(dir: &Path) -> io::Result<Vec<(Revision, PathBuf)>> {
    let found = numbered(dir, EXTENSION)?;
    Ok(found.into_iter().map(|(number, path)| (Revision(number), path)).collect())
}

/// The outcome of loading the newest checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) enum CheckpointLoad {
    /// There is no valid one.
    Missing,
    /// The view was loaded from it.
    Loaded(Checkpoint),
    /// It was not read: reading the journal since then would take longer than reading the table.
    Skipped(Checkpoint),
}

/// Loads the newest checkpoint into a view, if it is valid and worth reading. `journal_bytes_after` returns
/// the bytes of the journal after a revision.
///
/// It is worth reading if the journal after it is no longer than the checkpoint itself. The checkpoint holds
/// less of each key than the table's record, and is much faster to read per byte, because it is loaded as it
/// is. A byte of the journal takes no longer than one of the table: both hold records. So a start from a
/// checkpoint reads less of what takes longest.
pub(in crate::store::local) fn load(
    dir: &Path,
    key: &CheckpointKey,
    view: &dyn MaterializedView,
    journal_bytes_after: impl Fn(Revision) -> u64,
) -> CheckpointLoad {
    if view.chunk_count() == 0 {
        return CheckpointLoad::Missing;
    }
    let newest = match list(dir) {
        Ok(checkpoints) => checkpoints.into_iter().next(),
        Err(error) => {
            discard(dir, &error, view);
            return CheckpointLoad::Missing;
        }
    };
    let Some((_, path)) = newest else { return CheckpointLoad::Missing };
    let found = read_summary(&path, key, view).and_then(|checkpoint| {
        let lacking = journal_bytes_after(checkpoint.position.revision);
        if lacking > checkpoint.bytes {
            tracing::info!(
                image = checkpoint.bytes,
                journal = lacking,
                "the journal since the index checkpoint is longer than the checkpoint; the table is read instead"
            );
            return Ok(CheckpointLoad::Skipped(checkpoint));
        }
        Ok(CheckpointLoad::Loaded(read(&path, key, view)?))
    });
    found.unwrap_or_else(|error| {
        discard(&path, &error, view);
        CheckpointLoad::Missing
    })
}

/// Reads the summary at a checkpoint's end.
fn read_summary(path: &Path, key: &CheckpointKey, view: &dyn MaterializedView) -> Result<Checkpoint, CheckpointError> {
    let contents = Contents::read(&File::open(path)?, key)?;
    if contents.form != view.format_version() || contents.chunks.len() != view.chunk_count() {
        return Err(CheckpointError::OtherForm);
    }
    Ok(contents.checkpoint)
}

/// Discards what a view has loaded from a checkpoint.
pub(in crate::store::local) fn discard(
    path: &Path,
    why: &dyn fmt::Display,
    view: &dyn MaterializedView,
) -> Option<Checkpoint> {
    tracing::warn!(path = %path.display(), %why, "the index checkpoint is of no use; the table is read instead");
    view.reset();
    None
}

/// Loads a checkpoint into a view, on all cores.
pub(in crate::store::local) fn read(
    path: &Path,
    key: &CheckpointKey,
    view: &dyn MaterializedView,
) -> Result<Checkpoint, CheckpointError> {
    let file = File::open(path)?;
    let contents = Contents::read(&file, key)?;
    if contents.form != view.format_version() || contents.chunks.len() != view.chunk_count() {
        return Err(CheckpointError::OtherForm);
    }
    let progress = Mutex::new(Progress::begin("reading the index checkpoint, in parts", contents.chunks.len() as u64));
    let failed = AtomicBool::new(false);
    let read = parallel::map(contents.chunks.len(), |nth| {
        if failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The last one first: it is a single piece of work, and the others can be read beside it.
        let number = contents.chunks.len() - 1 - nth;
        let read = contents
            .chunk(&file, key, number)
            .and_then(|bytes| view.read_chunk(number, &bytes).ok_or(CheckpointError::Damaged));
        failed.fetch_or(read.is_err(), Ordering::Relaxed);
        progress.lock().advance(1);
        read
    });
    read.into_iter().collect::<Result<(), _>>()?;
    view.advance_time(contents.latest_time);
    Ok(contents.checkpoint)
}

/// Reads a checkpoint completely and checks its seals.
pub(in crate::store::local) fn verify(path: &Path, key: &CheckpointKey) -> Result<Checkpoint, CheckpointError> {
    let file = File::open(path)?;
    let contents = Contents::read(&file, key)?;
    for number in 0..contents.chunks.len() {
        contents.chunk(&file, key, number)?;
    }
    Ok(contents.checkpoint)
}

/// Writes a checkpoint of a view atomically, and removes older ones. The view must have reached `position`,
/// and must hold nothing after what `newest` returns once everything is written. Interrupted by the error of
/// `check_continue`.
pub(in crate::store::local) fn create(
    view: &dyn MaterializedView,
    position: Position,
    newest: impl FnOnce() -> Position,
    key: &CheckpointKey,
    dir: &Path,
    check_continue: ContinueCheck<'_>,
) -> io::Result<Checkpoint> {
    create_private_dir(dir)?;
    let path = dir.join(format!("{:020}.{EXTENSION}", position.revision.0));
    let mut file = NewFile::create(&path)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, Interruptible { inner: &mut file, check_continue });
    let checkpoint = write(view, position, newest, key, &mut out)?;
    out.flush()?;
    drop(out);
    file.commit()?;
    // One that cannot be removed is skipped, as long as there is a newer one.
    for (_, other) in list(dir)?.iter().filter(|(_, other)| *other != path) {
        if let Err(error) = fs::remove_file(other) {
            tracing::warn!(path = %other.display(), %error, "an older index checkpoint cannot be removed");
        }
    }
    Ok(checkpoint)
}

/// Removes all checkpoints. A start then reads the table.
pub(super) fn remove_all(dir: &Path) -> io::Result<()> {
    list(dir)?.iter().try_for_each(|(_, path)| fs::remove_file(path))
}

/// Writes a checkpoint, see [`create`].
pub(in crate::store::local) fn write(
    view: &dyn MaterializedView,
    position: Position,
    newest: impl FnOnce() -> Position,
    key: &CheckpointKey,
    out: &mut impl Write,
) -> io::Result<Checkpoint> {
    let (mut chunk, mut directory, mut bytes) = (vec![], vec![], 0);
    let mut writer = view.chunk_writer();
    for number in 0..view.chunk_count() {
        chunk.clear();
        writer.write_chunk(number, &mut chunk);
        out.write_all(&chunk)?;
        bytes += chunk.len() as u64;
        directory.extend_from_slice(&(chunk.len() as u64).to_le_bytes());
        directory.extend_from_slice(key.of_chunk(number, &chunk).as_bytes());
    }
    drop(writer);
    // In this order: changes in between are in the journal after the checkpoint's position.
    let (latest_time, latest) = (view.latest_time(), newest());
    let mut end = Vec::with_capacity(END_BYTES);
    end.extend_from_slice(MAGIC);
    end.extend_from_slice(&VERSION.to_le_bytes());
    end.extend_from_slice(&view.format_version().to_le_bytes());
    for at in [&position, &latest] {
        end.extend_from_slice(&at.revision.0.to_le_bytes());
        end.extend_from_slice(&at.chain.0);
    }
    end.extend_from_slice(&u32::try_from(view.chunk_count()).unwrap_or(u32::MAX).to_le_bytes());
    end.extend_from_slice(&0_u32.to_le_bytes());
    end.extend_from_slice(&latest_time.0.to_le_bytes());
    let seal = key.of_end(&directory, &end);
    end.extend_from_slice(seal.as_bytes());
    out.write_all(&directory)?;
    out.write_all(&end)?;
    Ok(Checkpoint { position, latest, bytes: bytes + (directory.len() + end.len()) as u64 })
}

/// A checkpoint's summary and directory.
struct Contents {
    checkpoint: Checkpoint,
    form: u32,
    latest_time: UnixMillis,
    /// Offset, length and seal of each chunk.
    chunks: Vec<(u64, usize, [u8; 32])>,
}

impl Contents {
    fn read(file: &File, key: &CheckpointKey) -> Result<Self, CheckpointError> {
        let bytes = file.metadata()?.len();
        let end_at = bytes.checked_sub(END_BYTES as u64).ok_or(CheckpointError::Damaged)?;
        let mut end = [0; END_BYTES];
        file.read_exact_at(&mut end, end_at)?;
        let mut rest = Cursor(&end);
        if rest.array() != Some(*MAGIC) {
            return Err(CheckpointError::Damaged);
        }
        if rest.u32() != Some(VERSION) {
            return Err(CheckpointError::OtherForm);
        }
        let form = rest.u32().ok_or(CheckpointError::Damaged)?;
        let mut position = || Some(Position { revision: Revision(rest.u64()?), chain: Chain(rest.array()?) });
        let (position, latest) = position().zip(position()).ok_or(CheckpointError::Damaged)?;
        let count = rest.u32().ok_or(CheckpointError::Damaged)? as usize;
        rest.take(4); // zeros
        let latest_time = UnixMillis(rest.i64().ok_or(CheckpointError::Damaged)?);
        if count > CHUNKS_MAX {
            return Err(CheckpointError::Damaged);
        }
        let directory_at = end_at.checked_sub((count * ENTRY_BYTES) as u64).ok_or(CheckpointError::Damaged)?;
        let mut directory = vec![0; count * ENTRY_BYTES];
        file.read_exact_at(&mut directory, directory_at)?;
        let (covered, seal) = end.split_at(COVERED_BYTES);
        if key.of_end(&directory, covered) != *<&[u8; 32]>::try_from(seal).map_err(|_| CheckpointError::Damaged)? {
            return Err(CheckpointError::Damaged);
        }
        let (mut chunks, mut at) = (Vec::with_capacity(count), 0);
        for entry in directory.chunks_exact(ENTRY_BYTES) {
            let (length, seal) = entry.split_at(8);
            let length = Cursor(length).u64().ok_or(CheckpointError::Damaged)?;
            if length > CHUNK_BYTES_MAX {
                return Err(CheckpointError::Damaged);
            }
            chunks.push((at, length as usize, seal.try_into().map_err(|_| CheckpointError::Damaged)?));
            at += length;
        }
        if at != directory_at {
            return Err(CheckpointError::Damaged);
        }
        Ok(Self { checkpoint: Checkpoint { position, latest, bytes }, form, latest_time, chunks })
    }

    fn chunk(&self, file: &File, key: &CheckpointKey, number: usize) -> Result<Vec<u8>, CheckpointError> {
        let (at, length, seal) = self.chunks[number];
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at)?;
        if key.of_chunk(number, &bytes) != seal {
            return Err(CheckpointError::Damaged);
        }
        Ok(bytes)
    }
}
