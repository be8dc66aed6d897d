//! Loads a view without writing anything, for a start on a full disk. The table is left alone, because
//! opening sled writes; what it holds is in the checkpoint or a snapshot, and in the journal.

use std::fs::File;
use std::io;
use std::path::Path;

use parking_lot::Mutex;

use super::rebuild::{Unsound, nothing_to_build_from};
use super::recover::{Filled, check_journal_and_fill, check_watermark, load_entries};
use crate::store::MaterializedView;
use crate::store::local::checkpoint::index_checkpoint::{self, CheckpointKey};
use crate::store::local::checkpoint::snapshot::{self, SnapshotError};
use crate::store::local::dir::LockedDir;
use crate::store::local::error::OpenError;
use crate::store::local::journal::scan::{End, verify_and_visit};
use crate::store::local::journal::segment::SealKey;
use crate::store::local::journal::watermark::Acknowledged;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::options::StoreOptions;
use crate::store::local::table::checksums::ChecksumKey;
use crate::util::files::with_path;

/// Records loaded at once.
const RECORDS: usize = 1_024;

/// Loads everything in the log into a view. `None`: only the table may have it all, and cannot be read yet.
///
/// When the directory is damaged or lacks acknowledged changes, as far as that shows without the table.
pub(in crate::store::local) fn fill(
    dir: &LockedDir,
    options: &StoreOptions,
    view: &dyn MaterializedView,
) -> Result<Option<Filled>, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    let acknowledged = Acknowledged::read(&dir.watermark(), &SealKey::of(&key))?;
    // However long the journal after it is, nothing faster can be read.
    let checkpoint = index_checkpoint::load(&dir.checkpoints(), &CheckpointKey::of(&key), view, |_| 0);
    let (end, checkpoint) =
        check_journal_and_fill(dir, &key, (acknowledged, options.expectations.head), checkpoint, view)?;
    check_watermark(dir, acknowledged, options.expectations.accept_watermark_loss, &end)?;
    if checkpoint.is_none() {
        match fill_from_records(dir, &key, &end, view) {
            Ok(()) => {}
            Err(error @ (OpenError::NoSoundSnapshot { .. } | OpenError::NoBeginning { .. })) => {
                tracing::error!(%error, "verdicts wait until the table can be opened, which takes room on the disk");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    make_durable(dir, &end)?;
    view.on_loaded(end.position.revision);
    Ok(Some(Filled { position: end.position, checkpoint }))
}

/// Loads a view from the newest intact snapshot, if there is one, and the journal.
fn fill_from_records(dir: &LockedDir, key: &ChainKey, end: &End, view: &dyn MaterializedView) -> Result<(), OpenError> {
    let (checksum_key, mut unsound): (_, Unsound) = (ChecksumKey::of(key), None);
    for (revision, path) in snapshot::list(&dir.snapshots())? {
        if revision < end.start.revision || revision > end.position.revision {
            continue;
        }
        let why = match take_snapshot(&path, &checksum_key, view) {
            Ok(base) if follow(dir, key, base, end, view)? => return Ok(()),
            Ok(_) => "it is not of this journal".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(path = %path.display(), %why, "a snapshot is of no use");
        unsound = Some((path, why));
        view.reset();
    }
    if end.start == Position::START && follow(dir, key, Position::START, end, view)? {
        return Ok(());
    }
    view.reset();
    Err(nothing_to_build_from(dir, end, unsound))
}

fn take_snapshot(path: &Path, key: &ChecksumKey, view: &dyn MaterializedView) -> Result<Position, SnapshotError> {
    let mut records = Vec::with_capacity(RECORDS);
    let contents = snapshot::read(File::open(path)?, Some(key), |row| {
        records.push(row.record);
        if records.len() == RECORDS {
            view.load(&records);
            records.clear();
        }
        Ok::<_, SnapshotError>(())
    })?;
    view.load(&records);
    Ok(contents.header.position)
}

/// Loads the changes after a position into a view. `false`: the position is not in the journal.
fn follow(
    dir: &LockedDir,
    key: &ChainKey,
    base: Position,
    end: &End,
    view: &dyn MaterializedView,
) -> Result<bool, OpenError> {
    let undecoded = Mutex::new(None);
    let visit = load_entries(view, &undecoded);
    let (_, found_positions) = verify_and_visit(&dir.journal(), key, &[base], base.revision, visit)?;
    match undecoded.into_inner() {
        Some(source) => Err(OpenError::Redo { revision: end.position.revision, source }),
        None => Ok(base == end.start || found_positions.contains(&base)),
    }
}

/// What was read may only be in the kernel's memory, if the process that wrote it ended before its sync.
fn make_durable(dir: &LockedDir, end: &End) -> io::Result<()> {
    let segment = end.segment.as_ref().map(|segment| segment.path.clone());
    let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(with_path(path));
    segment.into_iter().chain([dir.journal()]).try_for_each(|path| sync(&path))
}
