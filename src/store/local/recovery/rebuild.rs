//! Rebuilds the table from a snapshot, if there is one, and the journal.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;

use crate::store::MaterializedView;
use crate::store::local::checkpoint::snapshot::{self, SnapshotError};
use crate::store::local::dir::LockedDir;
use crate::store::local::disk_space::{FREE_BYTES_EXHAUSTED, FreeBytes};
use crate::store::local::error::OpenError;
use crate::store::local::journal::scan::{End, scan_after};
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::table::checksums::ChecksumKey;
use crate::store::local::table::{Row, Table, TableError};
use crate::store::record::{DecodeError, pb};
use crate::util::progress::Progress;

/// Rows in one transaction, unless there are fewer.
const ROWS: usize = 512;

/// The disk that a table is written to before the store is open. What is kept free for changes that stop keys
/// is not for the table.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    pub(super) dir: &'a LockedDir,
    pub(super) free_bytes: FreeBytes,
}

impl Room<'_> {
    /// Whether more may be written. How much a table will take is not known: that depends on sled.
    fn check(&self) -> Result<(), OpenError> {
        match self.dir.free_bytes(self.free_bytes)? {
            FREE_BYTES_EXHAUSTED.. => Ok(()),
            free => Err(OpenError::NoRoomForTable { dir: self.dir.path().to_owned(), free }),
        }
    }
}

/// Moves the old table aside and builds a new one. The old one is only touched if there is something to build
/// from, and is put back if the build fails. If there is no room for the new one, it is removed again.
pub(super) fn rebuild(room: Room<'_>, key: &ChainKey, end: &End) -> Result<Table, OpenError> {
    let built = build(room, key, end);
    if built.as_ref().is_err_and(OpenError::is_disk_full) {
        let table = room.dir.table();
        if let Err(error) = fs::remove_dir_all(&table).and_then(|()| put_back(&table)) {
            tracing::error!(path = %table.display(), %error, "a table that was begun without room cannot be removed");
        }
    }
    built
}

fn build(room: Room<'_>, key: &ChainKey, end: &End) -> Result<Table, OpenError> {
    let dir = room.dir;
    let checksum_key = ChecksumKey::of(key);
    let (bases, mut unsound) = bases(dir, &checksum_key, end)?;
    if bases.is_empty() && end.start != Position::START {
        return Err(nothing_to_build_from(dir, end, unsound));
    }
    set_aside(&dir.table())?;
    for path in bases {
        let table = Table::open(&dir.table(), key).map_err(OpenError::Table)?;
        match load(room, &table, &path, &checksum_key) {
            Ok(()) if catch_up(room, key, &table, end, &())? => return Ok(table),
            Ok(()) => unsound = Some((path, "it is not of this journal".to_owned())),
            Err(LoadError::Snapshot(error)) => unsound = Some((path, error.to_string())),
            Err(LoadError::Table(error)) => return Err(OpenError::Table(error)),
            Err(LoadError::Room(error)) => return Err(error),
        }
        if let Some((path, why)) = &unsound {
            tracing::error!(path = %path.display(), %why, "a snapshot is of no use");
        }
        drop(table);
        fs::remove_dir_all(dir.table())?;
    }
    // Without a snapshot, the journal must be complete.
    if end.start == Position::START {
        let table = Table::open(&dir.table(), key).map_err(OpenError::Table)?;
        if catch_up(room, key, &table, end, &())? {
            return Ok(table);
        }
        return Err(OpenError::Table(TableError::Unsound("an empty table does not fit the journal")));
    }
    put_back(&dir.table())?;
    Err(nothing_to_build_from(dir, end, unsound))
}

/// A file that cannot be used, and why.
pub(in crate::store::local) type Unsound = Option<(PathBuf, String)>;

/// The intact snapshots from which the journal continues, newest first.
fn bases(dir: &LockedDir, key: &ChecksumKey, end: &End) -> Result<(Vec<PathBuf>, Unsound), OpenError> {
    let (mut bases, mut unsound) = (vec![], None);
    for (revision, path) in snapshot::list(&dir.snapshots())? {
        if revision < end.start.revision || revision > end.position.revision {
            continue;
        }
        match snapshot::verify(&path, Some(key), &|| Ok(())) {
            Ok(_) => bases.push(path),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a snapshot is of no use");
                unsound = Some((path, error.to_string()));
            }
        }
    }
    Ok((bases, unsound))
}

pub(super) fn nothing_to_build_from(dir: &LockedDir, end: &End, unsound: Unsound) -> OpenError {
    match unsound {
        Some((path, why)) => OpenError::NoSoundSnapshot { path, why },
        None => OpenError::NoBeginning { start: end.start.revision, snapshots: dir.snapshots() },
    }
}

/// Writes the changes that the table lacks. `false`: its position is not in this journal, and nothing was
/// written.
pub(super) fn catch_up(
    room: Room<'_>,
    key: &ChainKey,
    table: &Table,
    end: &End,
    view: &dyn MaterializedView,
) -> Result<bool, OpenError> {
    let applied = table.applied().map_err(OpenError::Table)?;
    if applied == end.position {
        return Ok(true);
    }
    let lacking = end.changes_after(applied.revision);
    tracing::info!(from = applied.revision.0, to = end.position.revision.0, "bringing the table up to the journal");
    let progress = Progress::begin("replaying the journal, in changes", lacking);
    let mut replay = Replay { room, table, view, end: end.position, progress, rows: vec![], failed: None };
    let mut met = applied == end.start;
    scan_after(&room.dir.journal(), key, applied.revision, |entries: Vec<pb::JournalEntry>, to| {
        if met {
            replay.add(&entries, to);
        }
        met |= to == applied;
    })?;
    replay.failed.map_or(Ok(met), Err)
}

/// The records of an entry.
pub(in crate::store::local) fn rows_of(entry: &pb::JournalEntry) -> Result<Vec<Row>, DecodeError> {
    entry.redo.iter().map(Row::of_redo).collect()
}

/// Renames a table that is no longer used: it may help to find out what happened. Only the newest is kept.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = aside_of(path);
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    if path.exists() {
        fs::remove_dir_all(&aside).or_else(absent)?;
        fs::rename(path, &aside)?;
        tracing::warn!(path = %aside.display(), "the table that was there was moved aside");
    }
    Ok(())
}

/// Puts back a table that was set aside.
fn put_back(path: &Path) -> io::Result<()> {
    let aside = aside_of(path);
    if aside.exists() && !path.exists() {
        fs::rename(aside, path)?;
    }
    Ok(())
}

/// Where a table is set aside.
pub(super) fn aside_of(table: &Path) -> PathBuf {
    table.with_added_extension("broken")
}

enum LoadError {
    Snapshot(SnapshotError),
    Table(TableError),
    Room(OpenError),
}

impl From<SnapshotError> for LoadError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

/// Fills an empty table from a snapshot. The position is written with the last rows.
fn load(room: Room<'_>, table: &Table, path: &PathBuf, key: &ChecksumKey) -> Result<(), LoadError> {
    let file = File::open(path).map_err(SnapshotError::from)?;
    let bytes = file.metadata().map_err(SnapshotError::from)?.len();
    tracing::info!(path = %path.display(), "building the table from a snapshot");
    let mut progress = Progress::begin("building the table, in bytes", bytes);
    let mut rows = Vec::with_capacity(ROWS);
    let contents = snapshot::read(file, Some(key), |row| {
        progress.advance(row.bytes.len() as u64);
        rows.push(row);
        if rows.len() == ROWS {
            room.check().map_err(LoadError::Room)?;
            table.apply(&rows, Position::START).map_err(LoadError::Table)?;
            rows.clear();
        }
        Ok::<_, LoadError>(())
    })?;
    let next_ordinal = contents.next_ordinal.unwrap_or(0);
    table.apply_numbered(&rows, contents.header.position, next_ordinal).map_err(LoadError::Table)
}

/// A replay of the journal into the table.
struct Replay<'a> {
    room: Room<'a>,
    table: &'a Table,
    view: &'a dyn MaterializedView,
    end: Position,
    progress: Progress,
    rows: Vec<Row>,
    failed: Option<OpenError>,
}

impl Replay<'_> {
    /// Adds the entries of a frame, and the position after it.
    fn add(&mut self, entries: &[pb::JournalEntry], to: Position) {
        for entry in entries {
            if self.failed.is_some() {
                return;
            }
            match rows_of(entry) {
                Ok(rows) => {
                    self.view.load(&rows.iter().map(|row| row.record.clone()).collect::<Vec<_>>());
                    self.rows.extend(rows);
                }
                Err(source) => self.failed = Some(OpenError::Redo { revision: Revision(entry.revision), source }),
            }
        }
        if self.failed.is_none() && (self.rows.len() >= ROWS || to == self.end) {
            let apply = || self.table.apply(&self.rows, to).map_err(OpenError::Table);
            self.failed = self.room.check().and_then(|()| apply()).err();
            self.rows.clear();
        }
        self.progress.advance(entries.len() as u64);
    }
}
