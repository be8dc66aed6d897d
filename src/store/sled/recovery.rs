//! Start-up: from whatever a directory holds to a journal and a table that agree, or a refusal that says what is wrong.
//!
//! In this order: journal (damage before its end refuses), watermark (acknowledged and missing refuses), table (opened and
//! read whole; one that is ahead of the journal refuses), then the first writes: a torn end is cut, what is there is made
//! durable, a table in doubt is moved aside, and what it lacks is replayed.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_core::event::{Record, Revision};

use super::Options;
use super::dir::LockedDir;
use super::journal::scan::{End, scan};
use super::journal::writer::Writer;
use super::journal::{ChainKey, JournalError, Position};
use super::table::{Row, Table, TableError};
use super::watermark::Watermark;
use crate::store::record::{DecodeError, decode_key, decode_tenant, pb};

/// Rows that one transaction of a replay writes at least, while there are as many.
const REPLAY_ROWS: usize = 512;
/// A replay says how far it is each time it has passed this many changes.
const PROGRESS_CHANGES: u64 = 100_000;

/// Why a data directory is not opened. Nothing has been lost by trying.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error("the data directory {dir} is in use by process {holder}; stop that one, or choose another --data-dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process.
        holder: String,
    },
    /// Its layout is not known.
    #[error("{path} says '{found}', and this program knows only 'keyward-data 1'; use the program that wrote it")]
    UnknownFormat {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// It has data and no note of its layout.
    #[error("{path} is missing, though the directory has data; put it back from a backup")]
    NoFormat {
        /// The missing file.
        path: PathBuf,
    },
    /// The journal is not whole.
    #[error("the journal is not whole: {0}")]
    Journal(#[from] JournalError),
    /// Acknowledged changes are missing.
    #[error(
        "changes up to revision {acknowledged} were acknowledged, but the journal ends at {found}: put the missing part of \
         {journal} back from a backup"
    )]
    Missing {
        /// The highest acknowledged revision.
        acknowledged: Revision,
        /// The last revision in the journal.
        found: Revision,
        /// The journal.
        journal: PathBuf,
    },
    /// The journal is another one.
    #[error(
        "the journal at revision {revision} is not the one that was acknowledged: {journal} was replaced or altered"
    )]
    Foreign {
        /// Where they part.
        revision: Revision,
        /// The journal.
        journal: PathBuf,
    },
    /// A change in the journal cannot be replayed.
    #[error("revision {revision} of the journal holds a record that does not decode: {source}")]
    Redo {
        /// The change.
        revision: Revision,
        /// What is wrong.
        source: DecodeError,
    },
    /// The table cannot be had, for want of a working disk or of room on it.
    #[error("the table cannot be opened or built: {0}")]
    Table(TableError),
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
}

/// An opened directory.
pub(super) struct Recovered {
    pub(super) journal: Journal,
    pub(super) watermark: Watermark,
    pub(super) table: Table,
    pub(super) revision: Revision,
}

/// The journal, ready to go on.
pub(super) struct Journal {
    pub(super) writer: Writer,
    pub(super) key: ChainKey,
    pub(super) position: Position,
    pub(super) watermark_path: PathBuf,
}

pub(super) fn recover(dir: &LockedDir, options: &Options) -> Result<Recovered, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    let (watermark, acknowledged) = Watermark::open(&dir.watermark())?;
    let end = check_journal(&dir.journal(), &key, acknowledged)?;
    let table = open_table(&dir.table(), &key)?;
    check_table_is_not_ahead(table.as_ref(), &end, &dir.journal())?;

    // Nothing was touched so far; now it is known that nothing is missing. What was read must be on the disk, not only in
    // the kernel's memory, before anything is built on it.
    let writer = Writer::resume(&dir.journal(), options.segment_bytes, &end)?;
    watermark.note(&end.position)?;
    watermark.sync(&dir.watermark())?;

    let table = match table {
        Some(table) if catch_up(&dir.journal(), &key, &table, &end)? => table,
        unfit => {
            drop(unfit);
            set_aside(&dir.table())?;
            let table = Table::open(&dir.table(), &key).map_err(OpenError::Table)?;
            if !catch_up(&dir.journal(), &key, &table, &end)? {
                return Err(OpenError::Table(TableError::Unsound("an empty table does not fit the journal")));
            }
            table
        }
    };
    let position = end.position;
    tracing::info!(path = %dir.path().display(), revision = position.revision.0, "data directory is whole");
    let journal = Journal { writer, key, position, watermark_path: dir.watermark() };
    Ok(Recovered { journal, watermark, table, revision: position.revision })
}

/// Reads all of the journal and holds it against the watermark.
fn check_journal(dir: &Path, key: &ChainKey, acknowledged: Option<Position>) -> Result<End, OpenError> {
    let watermark = acknowledged.unwrap_or(Position::START);
    let mut met = watermark == Position::START;
    let end = scan(dir, key, |_, at| met |= at == watermark)?;
    let (found, journal) = (end.position.revision, dir.to_owned());
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
fn open_table(path: &Path, key: &ChainKey) -> Result<Option<Table>, OpenError> {
    let open = || {
        let table = Table::open(path, key)?;
        table.check()?;
        Ok(table)
    };
    // sled panics where it meets bytes that it does not expect.
    let opened = catch_unwind(AssertUnwindSafe(open)).unwrap_or(Err(TableError::Unsound("sled panicked over it")));
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::Disk(error)) => Err(OpenError::Table(TableError::Disk(error))),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the table is unsound; it will be rebuilt from the journal");
            Ok(None)
        }
    }
}

/// Gives a table that is no longer used another name: it may help to find out what happened. Only the newest is kept.
fn set_aside(path: &Path) -> io::Result<()> {
    let aside = path.with_added_extension("broken");
    let absent = |error: io::Error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    if path.exists() {
        fs::remove_dir_all(&aside).or_else(absent)?;
        fs::rename(path, &aside)?;
        tracing::warn!(path = %aside.display(), "the unsound table was moved aside");
    }
    Ok(())
}

/// Writes to the table what it lacks. `false`: it covers a place that is not in this journal, and nothing was written.
fn catch_up(journal: &Path, key: &ChainKey, table: &Table, end: &End) -> Result<bool, OpenError> {
    let applied = table.applied().map_err(OpenError::Table)?;
    if applied == end.position {
        return Ok(true);
    }
    let lacking = end.position.revision.0 - applied.revision.0;
    tracing::info!(
        from = applied.revision.0,
        to = end.position.revision.0,
        "replaying {lacking} changes into the table"
    );
    let mut replay = Replay { table, end: end.position, written: applied.revision, rows: vec![], failed: None };
    let mut met = applied == Position::START;
    scan(journal, key, |entries, to| {
        if met {
            replay.add(&entries, to);
        }
        met |= to == applied;
    })?;
    replay.failed.map_or(Ok(met), Err)
}

/// Rows on their way from the journal to the table.
struct Replay<'a> {
    table: &'a Table,
    end: Position,
    written: Revision,
    rows: Vec<Row>,
    failed: Option<OpenError>,
}

impl Replay<'_> {
    /// Takes the entries of a frame, and the position after it.
    fn add(&mut self, entries: &[pb::JournalEntry], to: Position) {
        for entry in entries {
            if self.failed.is_some() {
                return;
            }
            match rows_of(entry) {
                Ok(rows) => self.rows.extend(rows),
                Err(source) => self.failed = Some(OpenError::Redo { revision: Revision(entry.revision), source }),
            }
        }
        if self.failed.is_none() && (self.rows.len() >= REPLAY_ROWS || to == self.end) {
            self.failed = self.table.apply(&self.rows, to).err().map(OpenError::Table);
            self.rows.clear();
            if to.revision.0 / PROGRESS_CHANGES > self.written.0 / PROGRESS_CHANGES {
                tracing::info!(revision = to.revision.0, of = self.end.revision.0, "replaying");
            }
            self.written = to.revision;
        }
    }
}

/// The records of an entry.
fn rows_of(entry: &pb::JournalEntry) -> Result<Vec<Row>, DecodeError> {
    let row = |redo: &pb::Redo| match &redo.record {
        Some(pb::redo::Record::Key(bytes)) => {
            Ok(Row { record: Record::Key(Arc::new(decode_key(bytes)?)), bytes: bytes.clone() })
        }
        Some(pb::redo::Record::Tenant(bytes)) => {
            Ok(Row { record: Record::Tenant(Arc::new(decode_tenant(bytes)?)), bytes: bytes.clone() })
        }
        None => Err(DecodeError::Body("redo")),
    };
    entry.redo.iter().map(row).collect()
}
