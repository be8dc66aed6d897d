//! Recovery at a start: brings the journal and the table of a directory into agreement, or refuses and says
//! what is wrong.
//!
//! In this order: load the index checkpoint, if there is one; read the journal (damage before its end refuses
//! the start); compare the watermark (missing acknowledged changes refuse it) and an expected head; open the
//! table (one ahead of the journal refuses it). Then come the first writes: a torn end is cut off, and what
//! was read is made durable. Now a view that was loaded from a checkpoint is complete. The table is read
//! completely, before the first writes if the view is to be loaded from it; a table in doubt is moved aside
//! and rebuilt; and the changes it lacks are replayed.

use std::collections::HashSet;
use std::path::Path;

use keyward_core::entropy::{Entropy, EntropyError};
use keyward_core::event::Revision;
use keyward_core::head::Head;
use keyward_core::record::LogId;
use parking_lot::Mutex;

use super::rebuild::{Room, catch_up, rebuild, rows_of};
use crate::store::MaterializedView;
use crate::store::local::checkpoint::index_checkpoint::{self, Checkpoint, CheckpointKey, CheckpointLoad};
use crate::store::local::checkpoint::schedule::bytes_after;
use crate::store::local::checkpoint::snapshot;
use crate::store::local::dir::LockedDir;
use crate::store::local::error::{HeadFault, OpenError};
use crate::store::local::journal::open::Journal;
use crate::store::local::journal::scan::{End, verify, verify_and_visit};
use crate::store::local::journal::segment::SealKey;
use crate::store::local::journal::watermark::{Acknowledged, Watermark};
use crate::store::local::journal::writer::CleanEnd;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::options::StoreOptions;
use crate::store::local::table::checksums::ChecksumKey;
use crate::store::local::table::defragment;
use crate::store::local::table::{Table, TableError, guard};
use crate::store::record::{DecodeError, pb};
use crate::util::parallel;

/// An opened directory.
pub(in crate::store::local) struct Recovered {
    pub(in crate::store::local) journal: Journal,
    pub(in crate::store::local) watermark: Watermark,
    pub(in crate::store::local) table: Table,
    /// The checkpoint that the view was loaded from.
    pub(in crate::store::local) checkpoint: Option<Checkpoint>,
    /// How often the table was rebuilt.
    pub(in crate::store::local) rebuilds: u64,
}

/// How a view was loaded, which is complete then.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    /// It has every change up to here, and none after.
    pub(in crate::store::local) position: Position,
    /// The checkpoint that it was loaded from.
    pub(in crate::store::local) checkpoint: Option<Checkpoint>,
}

/// What to do with an intact table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) enum TablePolicy {
    Keep,
    Rebuild,
}

pub(in crate::store::local) fn recover(
    dir: &LockedDir,
    options: &StoreOptions,
    sound: TablePolicy,
    view: &dyn MaterializedView,
    filled: &mut Option<Filled>,
) -> Result<Recovered, OpenError> {
    let before = *filled;
    let key = ChainKey(options.chain_key.clone());
    let seals = SealKey::of(&key);
    let acknowledged = Acknowledged::read(&dir.watermark(), &seals)?;
    defragment::finish_interrupted(&dir.table())?;
    let (path, read) = (dir.table(), || -> Result<_, OpenError> {
        if let Some(filled) = before {
            return check_filled(dir, &key, (acknowledged, options.expectations.head), &filled);
        }
        let lacks = |revision| bytes_after(&dir.journal(), revision);
        let checkpoint = index_checkpoint::load(&dir.checkpoints(), &CheckpointKey::of(&key), view, lacks);
        check_journal_and_fill(dir, &key, (acknowledged, options.expectations.head), checkpoint, view)
    });
    // Beside each other: opening sled reads randomly and on one core, and changes only its own files.
    let (opened, read) = parallel::join(|| open_table(&path, &key), read)?;
    let ((end, checkpoint), mut table) = (read?, opened?);
    let is_loaded = before.is_some() || checkpoint.is_some();
    if !is_loaded {
        table = read_through(table, &dir.table(), view)?;
    }
    let table = check_table_is_not_ahead(table, &end, dir)?;
    check_watermark(dir, acknowledged, options.expectations.accept_watermark_loss, &end)?;

    // Nothing was written so far, and nothing is missing. What was read must be on the disk, not only in the
    // kernel's memory, before anything is built on it.
    let clean_end = CleanEnd::make(&dir.journal(), &end)?;
    // In this order, which takes a directory of older forms over: each step may be the last before a crash.
    dir.take_over()?;
    let log = end.log.or(acknowledged.log()).map_or_else(|| new_log_id(&*options.entropy), Ok)?;
    let watermark = Watermark::begin(&dir.watermark(), &end.position, log, seals.clone())?;
    let writer = clean_end.into_writer((options.segment_bytes, options.free_bytes), log, seals)?;

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
    let room = Room { dir, free_bytes: options.free_bytes };
    let (table, rebuilt) = match table {
        Some(table) if sound == TablePolicy::Keep && catch_up(room, &key, &table, &end, lacking)? => (table, false),
        unfit => {
            drop(unfit);
            lacking.reset();
            let built = rebuild(room, &key, &end)?;
            // It was built from checked records, but the view must hold what the table holds.
            built.check(lacking).map_err(OpenError::Table)?;
            // A first start rebuilds nothing.
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

/// The id of a log that begins now.
pub(super) fn new_log_id(entropy: &dyn Entropy) -> Result<LogId, EntropyError> {
    let mut id = [0; 16];
    entropy.fill(&mut id)?;
    Ok(LogId(id))
}

/// Reads the journal again, for a view that was loaded before.
fn check_filled(
    dir: &LockedDir,
    key: &ChainKey,
    kept: (Acknowledged, Option<Head>),
    filled: &Filled,
) -> Result<(End, Option<Checkpoint>), OpenError> {
    let (end, _) = check_journal_and_fill(dir, key, kept, CheckpointLoad::Missing, &())?;
    match filled.position {
        position if position == end.position => Ok((end, filled.checkpoint)),
        position if position.revision > end.position.revision => Err(missing(dir, position.revision, &end)),
        position => Err(OpenError::Foreign { revision: position.revision, journal: dir.journal() }),
    }
}

/// Reads the journal, checks it against watermark and head, and brings a view that was loaded from a
/// checkpoint up to its end. A checkpoint that does not fit is discarded.
pub(super) fn check_journal_and_fill(
    dir: &LockedDir,
    key: &ChainKey,
    (acknowledged, head): (Acknowledged, Option<Head>),
    checkpoint: CheckpointLoad,
    view: &dyn MaterializedView,
) -> Result<(End, Option<Checkpoint>), OpenError> {
    let wanted = acknowledged.claimed().into_iter().chain(head.map(Position::from));
    let checkpoint = match checkpoint {
        CheckpointLoad::Loaded(checkpoint) => checkpoint,
        other => {
            let (end, found_positions) = verify(&dir.journal(), key, &wanted.collect::<Vec<_>>())?;
            check_journal(dir, key, acknowledged, &end, &found_positions)?;
            check_head(dir, head, &end, &found_positions)?;
            return match other {
                // It proves what was acknowledged, even though it was not read.
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
    check_journal(dir, key, acknowledged, &end, &found_positions)?;
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
        return Ok((end, index_checkpoint::discard(&dir.checkpoints(), &why, view)));
    }
    Ok((end, Some(checkpoint)))
}

/// Loads the records of entries into a view, and keeps the error of one that does not decode.
pub(super) fn load_entries(
    view: &dyn MaterializedView,
    undecoded: &Mutex<Option<DecodeError>>,
) -> impl Fn(Vec<pb::JournalEntry>) + Sync {
    |entries| {
        // All at once: of a key that changed several times, only the newest form is processed.
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

/// Checks a journal that was read against the watermark.
fn check_journal(
    dir: &LockedDir,
    key: &ChainKey,
    acknowledged: Acknowledged,
    end: &End,
    found_positions: &HashSet<Position>,
) -> Result<(), OpenError> {
    let watermark = acknowledged.beside(end).unwrap_or(Position::START);
    let found = end.position.revision;
    check_beginning(dir, key, end)?;
    if watermark.revision > found {
        return Err(missing(dir, watermark.revision, end));
    }
    // It may be older than the journal's beginning: it is synced less often than segments are deleted.
    if !found_positions.contains(&watermark) && watermark != end.start && watermark.revision >= end.start.revision {
        return Err(OpenError::Foreign { revision: watermark.revision, journal: dir.journal() });
    }
    if let Some(torn) = end.segment.as_ref().filter(|s| s.torn > 0) {
        tracing::warn!(path = %torn.path.display(), bytes = torn.torn, "cutting off a change that was never acknowledged");
    }
    Ok(())
}

/// Checks a journal that was read against an expected head.
fn check_head(
    dir: &LockedDir,
    head: Option<Head>,
    end: &End,
    found_positions: &HashSet<Position>,
) -> Result<(), OpenError> {
    let fault = head.and_then(|head| Some((head, head_fault(head, end, found_positions)?)));
    fault.map_or(Ok(()), |(head, what)| Err(OpenError::OtherHead { head, journal: dir.journal(), what }))
}

/// How a journal that was read fails to contain a head.
pub(super) fn head_fault(head: Head, end: &End, found_positions: &HashSet<Position>) -> Option<HeadFault> {
    let position = Position::from(head);
    match () {
        () if found_positions.contains(&position) || position == end.start => None,
        () if head.revision > end.position.revision => Some(HeadFault::TooShort(end.position.revision)),
        () if head.revision < end.start.revision => Some(HeadFault::OutOfReach(end.start.revision)),
        () => Some(HeadFault::Differs),
    }
}

/// Without the watermark, a journal that was truncated looks complete. Checked last: other files may prove
/// that changes are missing.
pub(super) fn check_watermark(
    dir: &LockedDir,
    acknowledged: Acknowledged,
    accept_loss: bool,
    end: &End,
) -> Result<(), OpenError> {
    let (path, found) = (dir.watermark(), end.position.revision);
    let Some(what) = acknowledged.fault(end).filter(|_| found != Revision(0)) else { return Ok(()) };
    if !accept_loss {
        return Err(OpenError::NoWatermark { path, what, found });
    }
    tracing::warn!(path = %path.display(), %what, revision = found.0, "the watermark is made anew from the journal");
    Ok(())
}

fn missing(dir: &LockedDir, acknowledged: Revision, end: &End) -> OpenError {
    OpenError::Missing { acknowledged, found: end.position.revision, journal: dir.journal() }
}

/// A journal whose beginning was deleted needs a snapshot, and no snapshot may be ahead of the journal.
pub(super) fn check_beginning(dir: &LockedDir, key: &ChainKey, end: &End) -> Result<(), OpenError> {
    let mut begins = end.start == Position::START;
    for (revision, path) in snapshot::list(&dir.snapshots())? {
        match snapshot::read_header(&path, Some(&ChecksumKey::of(key))) {
            Ok(header) if header.position.revision > end.position.revision => {
                return Err(missing(dir, header.position.revision, end));
            }
            Ok(header) => begins |= header.position.revision >= end.start.revision,
            // There was one, at least. Whether it can be read is checked when it is needed.
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

/// The table is written after the journal. A table ahead of it proves that acknowledged changes are missing.
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

/// Reads a table completely, into a view. `None`: it must be rebuilt.
fn read_through(table: Option<Table>, path: &Path, view: &dyn MaterializedView) -> Result<Option<Table>, OpenError> {
    let Some(table) = table else { return Ok(None) };
    let read = usable(path, || table.check(view))?;
    Ok(read.map(|()| table))
}

/// Runs `what` on a table. `None`: the table must be rebuilt. A disk failure is an error instead: the table
/// may be intact, and there may be no space for another.
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

/// Opens the table and reads it completely.
pub(super) fn read_table(path: &Path, key: &ChainKey) -> Result<Table, TableError> {
    guard(|| {
        let table = Table::open(path, key)?;
        table.check(&())?;
        Ok(table)
    })
}
