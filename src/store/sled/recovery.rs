//! Start-up: from whatever a directory holds to a journal and a table that agree, or a refusal that says what is wrong.
//!
//! In this order: journal (damage before its end refuses), watermark (acknowledged and missing refuses), table (opened and
//! read whole; one that is ahead of the journal refuses), then the first writes: a torn end is cut, what is there is made
//! durable, a table in doubt is moved aside, and what it lacks is replayed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use keyward_core::event::Revision;

use super::dir::LockedDir;
use super::journal::scan::{End, verify};
use super::journal::writer::Writer;
use super::journal::{ChainKey, Position};
use super::rebuild::{catch_up, rebuild};
use super::snapshot;
use super::sums::SumKey;
use super::table::{Table, TableError};
use super::watermark::Watermark;
use super::{OpenError, Options};
use crate::store::Intake;

/// An opened directory.
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) watermark: Watermark,
    pub(super) table: Table,
}

/// The journal, ready to go on.
pub(super) struct Journal {
    pub(super) writer: Writer,
    pub(super) key: ChainKey,
    pub(super) position: Position,
}

/// What becomes of a table that is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SoundTable {
    Keep,
    BuildAnew,
}

pub(super) fn recover(
    dir: &LockedDir,
    options: &Options,
    sound: SoundTable,
    intake: &dyn Intake,
) -> Result<Recovered, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    let (watermark, acknowledged) = Watermark::open(&dir.watermark())?;
    let end = check_journal(dir, &key, acknowledged)?;
    let table = open_table(&dir.table(), &key, intake)?;
    check_table_is_not_ahead(table.as_ref(), &end, &dir.journal())?;

    // Nothing was touched so far; now it is known that nothing is missing. What was read must be on the disk, not only in
    // the kernel's memory, before anything is built on it.
    let writer = Writer::resume(&dir.journal(), options.segment_bytes, &end)?;
    watermark.note(&end.position)?;
    watermark.sync()?;

    let table = match table {
        Some(table) if sound == SoundTable::Keep && catch_up(&dir.journal(), &key, &table, &end, intake)? => table,
        unfit => {
            drop(unfit);
            intake.start_over();
            let built = rebuild(dir, &key, &end)?;
            // It was built from what was checked; but what the index is to hold is what the table holds.
            built.check(intake).map_err(OpenError::Table)?;
            built
        }
    };
    let position = end.position;
    tracing::info!(path = %dir.path().display(), revision = position.revision.0, "data directory is whole");
    let journal = Journal { writer, key, position };
    Ok(Recovered { journal, watermark, table })
}

/// Reads all of the journal and holds it against the watermark.
pub(super) fn check_journal(dir: &LockedDir, key: &ChainKey, acknowledged: Option<Position>) -> Result<End, OpenError> {
    let watermark = acknowledged.unwrap_or(Position::START);
    let (end, met) = verify(&dir.journal(), key, &[watermark])?;
    let (found, journal) = (end.position.revision, dir.journal());
    check_beginning(dir, key, &end)?;
    // It may lag behind the beginning: it is not synced as often as older segments go.
    let mut met = met.contains(&watermark);
    met |= watermark == end.start || watermark.revision < end.start.revision;
    if watermark.revision > found {
        return Err(OpenError::Missing { acknowledged: watermark.revision, found, journal });
    }
    if !met {
        return Err(OpenError::Foreign { revision: watermark.revision, journal });
    }
    if let Some(torn) = end.segment.as_ref().filter(|s| s.torn > 0) {
        tracing::warn!(path = %torn.path.display(), bytes = torn.torn, "cutting off a change that was never acknowledged");
    }
    if acknowledged.is_none() && found > Revision(0) {
        tracing::warn!("the watermark is missing or damaged; making it anew from the journal");
    }
    Ok(end)
}

/// A journal that does not begin at the beginning goes on from a snapshot; and none may be ahead of it.
pub(super) fn check_beginning(dir: &LockedDir, key: &ChainKey, end: &End) -> Result<(), OpenError> {
    let mut begins = end.start == Position::START;
    for (revision, path) in snapshot::list(&dir.snapshots())? {
        match snapshot::read_header(&path, Some(&SumKey::of(key))) {
            Ok(header) if header.position.revision > end.position.revision => {
                let (acknowledged, found) = (header.position.revision, end.position.revision);
                return Err(OpenError::Missing { acknowledged, found, journal: dir.journal() });
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
fn check_table_is_not_ahead(table: Option<&Table>, end: &End, journal: &Path) -> Result<(), OpenError> {
    let Some(table) = table else { return Ok(()) };
    let acknowledged = table.applied().map_err(OpenError::Table)?.revision;
    let found = end.position.revision;
    if acknowledged > found {
        return Err(OpenError::Missing { acknowledged, found, journal: journal.to_owned() });
    }
    Ok(())
}

/// Opens the table and reads all of it. `None`: it must be rebuilt. A disk that fails is no reason to rebuild: what is
/// there may be sound, and there may be no room for another.
pub(super) fn open_table(path: &Path, key: &ChainKey, intake: &dyn Intake) -> Result<Option<Table>, OpenError> {
    if !path.exists() {
        return Ok(None);
    }
    match read_table(path, key, intake) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::Disk(error)) => Err(OpenError::Table(TableError::Disk(error))),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the table is unsound; it will be built anew");
            Ok(None)
        }
    }
}

/// Opens the table and reads all of it. sled panics where it meets bytes that it does not expect.
pub(super) fn read_table(path: &Path, key: &ChainKey, intake: &dyn Intake) -> Result<Table, TableError> {
    let open = || {
        let table = Table::open(path, key)?;
        table.check(intake)?;
        Ok(table)
    };
    catch_unwind(AssertUnwindSafe(open)).unwrap_or(Err(TableError::Unsound("sled panicked over it")))
}
