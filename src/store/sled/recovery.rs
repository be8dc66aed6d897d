//! Start-up: from whatever a directory holds to a journal and a table that agree, or a refusal that says what is wrong.
//!
//! In this order: a checkpoint of the view, if there is one; journal (damage before its end refuses), watermark
//! (acknowledged and missing refuses), a head that an operator kept, table (opened; one that is ahead of the journal
//! refuses), then the first writes: a torn end is cut, and what is there is made durable. Now a view that was filled
//! from a checkpoint is whole. The table is read all through, before the first writes if the view is to be filled from it;
//! one in doubt is moved aside and built anew; and what it lacks is replayed.

use std::collections::HashSet;
use std::path::Path;

use keyward_core::event::Revision;
use keyward_core::head::Head;
use parking_lot::Mutex;

use super::checkpoint::{self, Checkpoint, CheckpointKey, CheckpointLoad};
use super::checkpoint_schedule::bytes_after;
use super::checksums::ChecksumKey;
use super::defragment;
use super::dir::LockedDir;
use super::journal::scan::{End, verify, verify_and_visit};
use super::journal::writer::Writer;
use super::journal::{ChainKey, Position};
use super::rebuild::{catch_up, rebuild, rows_of};
use super::snapshot;
use super::table::{Table, TableError, guard};
use super::watermark::Watermark;
use super::{HeadFault, OpenError, StoreOptions};
use crate::parallel;
use crate::store::MaterializedView;
use crate::store::record::{DecodeError, pb};

/// An opened directory.
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) watermark: Watermark,
    pub(super) table: Table,
    /// The checkpoint that the view was filled from.
    pub(super) checkpoint: Option<Checkpoint>,
    /// How often the table was built anew.
    pub(super) rebuilds: u64,
}

/// The journal, ready to go on.
pub(super) struct Journal {
    pub(super) writer: Writer,
    pub(super) key: ChainKey,
    pub(super) position: Position,
}

/// What a view was filled with, which is then whole.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// Everything up to here is in it, and nothing after.
    pub(super) position: Position,
    /// The checkpoint that it was begun with.
    pub(super) checkpoint: Option<Checkpoint>,
}

/// What becomes of a table that is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TablePolicy {
    Keep,
    Rebuild,
}

pub(super) fn recover(
    dir: &LockedDir,
    options: &StoreOptions,
    sound: TablePolicy,
    view: &dyn MaterializedView,
    filled: &mut Option<Filled>,
) -> Result<Recovered, OpenError> {
    let before = *filled;
    let key = ChainKey(options.chain_key.clone());
    let (watermark, acknowledged) = Watermark::open(&dir.watermark())?;
    defragment::finish_interrupted(&dir.table())?;
    let (path, read) = (dir.table(), || -> Result<_, OpenError> {
        if let Some(filled) = before {
            return check_filled(dir, &key, (acknowledged, options.expectations.head), &filled);
        }
        let lacks = |revision| bytes_after(&dir.journal(), revision);
        let checkpoint = checkpoint::load(&dir.checkpoints(), &CheckpointKey::of(&key), view, lacks);
        check_journal_and_fill(dir, &key, (acknowledged, options.expectations.head), checkpoint, view)
    });
    // sled reads here and there in its file as it opens, and uses one core; what it changes is its own.
    let (opened, read) = parallel::both(|| open_table(&path, &key), read)?;
    let ((end, checkpoint), mut table) = (read?, opened?);
    let is_loaded = before.is_some() || checkpoint.is_some();
    if !is_loaded {
        table = read_through(table, &dir.table(), view)?;
    }
    let table = check_table_is_not_ahead(table, &end, dir)?;
    check_watermark(dir, acknowledged, options.expectations.accept_watermark_loss, &end)?;

    // Nothing was touched so far; now it is known that nothing is missing. What was read must be on the disk,
    // not only in the kernel's memory, before anything is built on it.
    let writer = Writer::resume(&dir.journal(), options.segment_bytes, &end)?;
    watermark.note(&end.position)?;
    watermark.sync()?;

    let mut whole = || {
        view.on_loaded(end.position.revision);
        *filled = Some(Filled { position: end.position, checkpoint });
    };
    let (table, lacking): (_, &dyn MaterializedView) = if is_loaded {
        whole();
        (read_through(table, &dir.table(), &())?, &())
    } else {
        (table, view)
    };
    if let Some(table) = &table {
        table.migrate_layout().map_err(OpenError::Table)?;
    }
    let (table, rebuilt) = match table {
        Some(table) if sound == TablePolicy::Keep && catch_up(&dir.journal(), &key, &table, &end, lacking)? => {
            (table, false)
        }
        unfit => {
            drop(unfit);
            lacking.reset();
            let built = rebuild(dir, &key, &end)?;
            // It was built from what was checked; but what the index is to hold is what the table holds.
            built.check(lacking).map_err(OpenError::Table)?;
            // At a first start there was nothing to build.
            (built, end.position != Position::START)
        }
    };
    if !is_loaded {
        whole();
    }
    let (table, renewed) = defragment::run(table, &dir.table(), &key).map_err(OpenError::Table)?;
    let position = end.position;
    tracing::info!(path = %dir.path().display(), revision = position.revision.0, "data directory is whole");
    let journal = Journal { writer, key, position };
    Ok(Recovered { journal, watermark, table, checkpoint, rebuilds: u64::from(rebuilt) + u64::from(renewed) })
}

/// Reads all of the journal once more, for a view that was filled before.
fn check_filled(
    dir: &LockedDir,
    key: &ChainKey,
    kept: (Option<Position>, Option<Head>),
    filled: &Filled,
) -> Result<(End, Option<Checkpoint>), OpenError> {
    let (end, _) = check_journal_and_fill(dir, key, kept, CheckpointLoad::Missing, &())?;
    match filled.position {
        position if position == end.position => Ok((end, filled.checkpoint)),
        position if position.revision > end.position.revision => Err(missing(dir, position.revision, &end)),
        position => Err(OpenError::Foreign { revision: position.revision, journal: dir.journal() }),
    }
}

/// Reads all of the journal, holds it against the watermark, and brings a view up to its end that was filled
/// from a checkpoint. A checkpoint that is of no use is let go of.
pub(super) fn check_journal_and_fill(
    dir: &LockedDir,
    key: &ChainKey,
    (acknowledged, head): (Option<Position>, Option<Head>),
    checkpoint: CheckpointLoad,
    view: &dyn MaterializedView,
) -> Result<(End, Option<Checkpoint>), OpenError> {
    let watermark = acknowledged.unwrap_or(Position::START);
    let wanted = [watermark].into_iter().chain(head.map(Position::from));
    let checkpoint = match checkpoint {
        CheckpointLoad::Loaded(checkpoint) => checkpoint,
        other => {
            let (end, found_positions) = verify(&dir.journal(), key, &wanted.collect::<Vec<_>>())?;
            check_journal(dir, key, watermark, &end, &found_positions)?;
            check_head(dir, head, &end, &found_positions)?;
            return match other {
                // It tells what was acknowledged, also where it is not read.
                CheckpointLoad::Skipped(checkpoint) if checkpoint.latest.revision > end.position.revision => {
                    Err(missing(dir, checkpoint.latest.revision, &end))
                }
                _ => Ok((end, None)),
            };
        }
    };
    let undecoded = Mutex::new(None);
    let fill = load_entries(view, &undecoded);
    let wanted: Vec<_> = wanted.chain([checkpoint.position, checkpoint.latest]).collect();
    let (end, found_positions) = verify_and_visit(&dir.journal(), key, &wanted, checkpoint.position.revision, fill)?;
    check_journal(dir, key, watermark, &end, &found_positions)?;
    if checkpoint.latest.revision > end.position.revision {
        return Err(missing(dir, checkpoint.latest.revision, &end));
    }
    check_head(dir, head, &end, &found_positions)?;
    let is_there = |at: &Position| found_positions.contains(at) || *at == end.start;
    let unfit = match undecoded.into_inner() {
        Some(error) => Some(error.to_string()),
        None if is_there(&checkpoint.position) && is_there(&checkpoint.latest) => None,
        None => Some("it is not of this journal".to_owned()),
    };
    if let Some(why) = unfit {
        return Ok((end, checkpoint::discard(&dir.checkpoints(), &why, view)));
    }
    Ok((end, Some(checkpoint)))
}

/// What hands the records of entries to a view, and notes those that do not decode.
pub(super) fn load_entries(
    view: &dyn MaterializedView,
    undecoded: &Mutex<Option<DecodeError>>,
) -> impl Fn(Vec<pb::JournalEntry>) + Sync {
    |entries| {
        // At once: of a key that changed several times, only the newest form is worked on.
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            match rows_of(&entry) {
                Ok(rows) => records.extend(rows.into_iter().map(|row| row.record)),
                Err(error) => *undecoded.lock() = Some(error),
            }
        }
        view.load(&records);
    }
}

/// Holds a journal that was read against the watermark.
fn check_journal(
    dir: &LockedDir,
    key: &ChainKey,
    watermark: Position,
    end: &End,
    found_positions: &HashSet<Position>,
) -> Result<(), OpenError> {
    let found = end.position.revision;
    check_beginning(dir, key, end)?;
    if watermark.revision > found {
        return Err(missing(dir, watermark.revision, end));
    }
    // It may lag behind the beginning: it is not synced as often as older segments go.
    if !found_positions.contains(&watermark) && watermark != end.start && watermark.revision >= end.start.revision {
        return Err(OpenError::Foreign { revision: watermark.revision, journal: dir.journal() });
    }
    if let Some(torn) = end.segment.as_ref().filter(|s| s.torn > 0) {
        tracing::warn!(path = %torn.path.display(), bytes = torn.torn, "cutting off a change that was never acknowledged");
    }
    Ok(())
}

/// Holds a journal that was read against a head that an operator kept.
fn check_head(
    dir: &LockedDir,
    head: Option<Head>,
    end: &End,
    found_positions: &HashSet<Position>,
) -> Result<(), OpenError> {
    let fault = head.and_then(|head| Some((head, head_fault(head, end, found_positions)?)));
    fault.map_or(Ok(()), |(head, what)| Err(OpenError::OtherHead { head, journal: dir.journal(), what }))
}

/// How a journal that was read fails to lead through a head.
pub(super) fn head_fault(head: Head, end: &End, found_positions: &HashSet<Position>) -> Option<HeadFault> {
    let position = Position::from(head);
    match () {
        () if found_positions.contains(&position) || position == end.start => None,
        () if head.revision > end.position.revision => Some(HeadFault::TooShort(end.position.revision)),
        () if head.revision < end.start.revision => Some(HeadFault::OutOfReach(end.start.revision)),
        () => Some(HeadFault::Differs),
    }
}

/// Nobody can tell an end of the journal that was cut off with the watermark from one that is whole. Asked last: what
/// else there is may tell of changes that are missing.
pub(super) fn check_watermark(
    dir: &LockedDir,
    acknowledged: Option<Position>,
    accept_loss: bool,
    end: &End,
) -> Result<(), OpenError> {
    let (path, found) = (dir.watermark(), end.position.revision);
    if acknowledged.is_some() || found == Revision(0) {
        return Ok(());
    }
    if !accept_loss {
        return Err(OpenError::NoWatermark { path, found });
    }
    tracing::warn!(path = %path.display(), revision = found.0, "the watermark is lost; it is made anew from the journal");
    Ok(())
}

fn missing(dir: &LockedDir, acknowledged: Revision, end: &End) -> OpenError {
    OpenError::Missing { acknowledged, found: end.position.revision, journal: dir.journal() }
}

/// A journal that does not begin at the beginning goes on from a snapshot; and none may be ahead of it.
pub(super) fn check_beginning(dir: &LockedDir, key: &ChainKey, end: &End) -> Result<(), OpenError> {
    let mut begins = end.start == Position::START;
    for (revision, path) in snapshot::list(&dir.snapshots())? {
        match snapshot::read_header(&path, Some(&ChecksumKey::of(key))) {
            Ok(header) if header.position.revision > end.position.revision => {
                return Err(missing(dir, header.position.revision, end));
            }
            Ok(header) => begins |= header.position.revision >= end.start.revision,
            // Not in doubt is that there was one; whether it is of use is asked when it is needed.
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a snapshot is damaged");
                begins |= revision >= end.start.revision;
            }
        }
    }
    if begins {
        return Ok(());
    }
    Err(OpenError::NoBeginning { start: end.start.revision, snapshots: dir.snapshots() })
}

/// The table is written after the journal; one that is ahead of it tells of changes that were acknowledged.
fn check_table_is_not_ahead(table: Option<Table>, end: &End, dir: &LockedDir) -> Result<Option<Table>, OpenError> {
    let Some(table) = table else { return Ok(None) };
    match usable(&dir.table(), || table.applied())? {
        Some(applied) if applied.revision > end.position.revision => Err(missing(dir, applied.revision, end)),
        applied => Ok(applied.map(|_| table)),
    }
}

/// Opens the table. `None`: it must be rebuilt.
fn open_table(path: &Path, key: &ChainKey) -> Result<Option<Table>, OpenError> {
    if !path.exists() {
        return Ok(None);
    }
    usable(path, || Table::open(path, key))
}

/// Reads all of a table into a view. `None`: it must be rebuilt.
fn read_through(table: Option<Table>, path: &Path, view: &dyn MaterializedView) -> Result<Option<Table>, OpenError> {
    let Some(table) = table else { return Ok(None) };
    let read = usable(path, || table.check(view))?;
    Ok(read.map(|()| table))
}

/// What is done with a table, if it can be. A disk that fails is no reason to rebuild it: what is there may
/// be sound, and there may be no room for another.
fn usable<T>(path: &Path, what: impl FnOnce() -> Result<T, TableError>) -> Result<Option<T>, OpenError> {
    match guard(what) {
        Ok(done) => Ok(Some(done)),
        Err(TableError::Disk(error)) => Err(OpenError::Table(TableError::Disk(error))),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the table is unsound; it will be built anew");
            Ok(None)
        }
    }
}

/// Opens the table and reads all of it.
pub(super) fn read_table(path: &Path, key: &ChainKey) -> Result<Table, TableError> {
    guard(|| {
        let table = Table::open(path, key)?;
        table.check(&())?;
        Ok(table)
    })
}
