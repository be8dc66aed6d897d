//! Start-up: from whatever a directory holds to a journal and a table that agree, or a refusal that says what is wrong.
//!
//! In this order: journal (a torn end is cut, any other damage refuses), watermark (acknowledged and missing refuses),
//! table (opened and read whole; if in doubt, moved aside), replay of what the table lacks.

use std::fs;
use std::io;
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
    /// A freshly made table does not work.
    #[error("the table cannot be built: {0}")]
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
    let (table, applied) = open_table(&dir.table());

    // One pass checks all of the journal and notes where the watermark and the table stand in it.
    let mut waypoints = Waypoints::new(acknowledged, applied);
    let end = scan(&dir.journal(), &key, |_, end| waypoints.pass(&end))?;
    waypoints.judge(&end, &dir.journal())?;
    if let Some(torn) = end.segment.as_ref().filter(|s| s.torn > 0) {
        tracing::warn!(path = %torn.path.display(), bytes = torn.torn, "cutting off a change that was never acknowledged");
    }
    if acknowledged.is_none() && end.position.revision > Revision(0) {
        tracing::warn!("the watermark is missing or damaged; making it anew from the journal");
    }

    let table = match (table, waypoints.table_fits()) {
        (Some(table), true) => table,
        (table, _) => {
            drop(table);
            set_aside(&dir.table())?;
            Table::open(&dir.table()).map_err(OpenError::Table)?
        }
    };
    replay(&dir.journal(), &key, &table, &end)?;

    let writer = Writer::resume(&dir.journal(), options.segment_bytes, &end)?;
    watermark.note(&end.position)?;
    watermark.sync(&dir.watermark())?;
    let position = end.position;
    tracing::info!(path = %dir.path().display(), revision = position.revision.0, "data directory is whole");
    let journal = Journal { writer, key, position, watermark_path: dir.watermark() };
    Ok(Recovered { journal, watermark, table, revision: position.revision })
}

/// Opens the table and reads all of it. `None`: it must be rebuilt.
fn open_table(path: &Path) -> (Option<Table>, Position) {
    let opened = Table::open(path).and_then(|table| {
        table.check()?;
        let applied = table.applied()?;
        Ok((table, applied))
    });
    match opened {
        Ok((table, applied)) => (Some(table), applied),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the table is unsound; it will be rebuilt from the journal");
            (None, Position::START)
        }
    }
}

/// Where the watermark and the table stand in the journal.
struct Waypoints {
    acknowledged: Position,
    acknowledged_met: bool,
    applied: Position,
    applied_met: bool,
}

impl Waypoints {
    fn new(acknowledged: Option<Position>, applied: Position) -> Self {
        let acknowledged = acknowledged.unwrap_or(Position::START);
        let met = |position| position == Position::START;
        Self { acknowledged, acknowledged_met: met(acknowledged), applied, applied_met: met(applied) }
    }

    fn pass(&mut self, at: &Position) {
        self.acknowledged_met |= *at == self.acknowledged;
        self.applied_met |= *at == self.applied;
    }

    fn judge(&self, end: &End, journal: &Path) -> Result<(), OpenError> {
        let journal = journal.to_owned();
        let found = end.position.revision;
        // The table too knows what was acknowledged: it is written after the journal.
        let newest = self.acknowledged.revision.max(self.applied.revision);
        if newest > found {
            return Err(OpenError::Missing { acknowledged: newest, found, journal });
        }
        if !self.acknowledged_met {
            return Err(OpenError::Foreign { revision: self.acknowledged.revision, journal });
        }
        Ok(())
    }

    fn table_fits(&self) -> bool {
        self.applied_met
    }
}

/// Gives a table that is no longer used another name. It may help to find out what happened.
fn set_aside(path: &Path) -> io::Result<()> {
    for number in 1_u32.. {
        let aside = path.with_added_extension(format!("broken-{number}"));
        if !aside.exists() {
            match fs::rename(path, &aside) {
                Ok(()) => tracing::warn!(path = %aside.display(), "the unsound table was moved aside"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            break;
        }
    }
    Ok(())
}

/// Writes to the table what it lacks.
fn replay(journal: &Path, key: &ChainKey, table: &Table, end: &End) -> Result<(), OpenError> {
    let applied = table.applied().map_err(OpenError::Table)?.revision;
    if applied == end.position.revision {
        return Ok(());
    }
    let lacking = end.position.revision.0 - applied.0;
    tracing::info!(from = applied.0, to = end.position.revision.0, "replaying {lacking} changes into the table");
    let mut rows = Vec::new();
    let mut failed = None;
    let flush = |rows: &mut Vec<Row>, to: Position| {
        let done = table.apply(rows, to).map_err(OpenError::Table);
        rows.clear();
        done
    };
    let mut written = applied;
    scan(journal, key, |entries, to| {
        if failed.is_some() || to.revision <= applied {
            return;
        }
        for entry in entries {
            match rows_of(&entry) {
                Ok(more) => rows.extend(more),
                Err(source) => failed = Some(OpenError::Redo { revision: Revision(entry.revision), source }),
            }
        }
        if failed.is_none() && (rows.len() >= REPLAY_ROWS || to == end.position) {
            failed = flush(&mut rows, to).err();
            if to.revision.0 / 100_000 > written.0 / 100_000 {
                tracing::info!(revision = to.revision.0, of = end.position.revision.0, "replaying");
            }
            written = to.revision;
        }
    })?;
    failed.map_or(Ok(()), Err)
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
