//! The sources of a salvage besides the journal: snapshots and tables, each of which holds every record at
//! one position.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;

use super::runs::Anchor;
use crate::store::local::checkpoint::index_checkpoint::{self, CheckpointKey};
use crate::store::local::checkpoint::snapshot::{self, SnapshotError};
use crate::store::local::dir::LockedDir;
use crate::store::local::error::OpenError;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::recovery::rebuild::aside_of;
use crate::store::local::recovery::recover::read_table;
use crate::store::local::table::Row;
use crate::store::local::table::checksums::ChecksumKey;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Positions that a valid seal proves.
    pub(super) anchors: Vec<Anchor>,
    /// For each anchor, whether its contents are readable and intact.
    pub(super) whole: Vec<bool>,
    /// The highest revision that a valid seal proves.
    pub(super) highest: Revision,
    /// How many files look like snapshots, ours or not.
    pub(super) snapshots: usize,
}

/// Reads all sources.
pub(super) fn find(dir: &LockedDir, key: &ChainKey) -> Result<Sources, OpenError> {
    let checksum_key = ChecksumKey::of(key);
    let mut sources = Sources::default();
    for (_, path) in snapshot::list(&dir.snapshots())? {
        sources.snapshots += usize::from(snapshot::read_header(&path, None).is_ok());
        match snapshot::read_header(&path, Some(&checksum_key)) {
            Ok(header) => {
                let whole = snapshot::verify(&path, Some(&checksum_key), &|| Ok(())).map(drop);
                sources.add(path, header.position, header.time, whole);
            }
            Err(error) => passed_over(&path, &error),
        }
    }
    // A table that was set aside may be intact: its checksums tell.
    for path in [dir.table(), aside_of(&dir.table())].into_iter().filter(|path| path.exists()) {
        match read_table(&path, key) {
            Ok(table) => {
                let position = table.applied().map_err(OpenError::Table)?;
                let mut time = UnixMillis(0);
                for row in table.rows() {
                    let row = row.map_err(|error| OpenError::Table(error.into()))?;
                    time = time.max(row.record.time());
                }
                if position != Position::START {
                    sources.add(path, position, time, Ok::<_, SnapshotError>(()));
                }
            }
            Err(error) => passed_over(&path, &error),
        }
    }
    // Checkpoints have no complete records, but prove which revisions were acknowledged.
    for (_, path) in index_checkpoint::list(&dir.checkpoints())? {
        match index_checkpoint::verify(&path, &CheckpointKey::of(key)) {
            Ok(checkpoint) => sources.highest = sources.highest.max(checkpoint.latest.revision),
            Err(error) => passed_over(&path, &error),
        }
    }
    Ok(sources)
}

impl Sources {
    fn add(&mut self, path: PathBuf, position: Position, time: UnixMillis, whole: Result<(), SnapshotError>) {
        if let Err(error) = &whole {
            passed_over(&path, error);
        }
        self.highest = self.highest.max(position.revision);
        self.anchors.push(Anchor { path, position, time });
        self.whole.push(whole.is_ok());
    }

    /// Reads every record of an intact source.
    pub(super) fn records(&self, nth: usize, key: &ChainKey, mut visit: impl FnMut(Row)) -> Result<(), OpenError> {
        let path = &self.anchors[nth].path;
        if path.is_dir() {
            let table = read_table(path, key).map_err(OpenError::Table)?;
            return table.rows().try_for_each(|row| {
                visit(row.map_err(|error| OpenError::Table(error.into()))?);
                Ok(())
            });
        }
        let read = snapshot::read(fs::File::open(path)?, Some(&ChecksumKey::of(key)), |row| {
            visit(row);
            Ok::<_, SnapshotError>(())
        });
        read.map(drop).map_err(|error| io::Error::other(format!("{}: {error}", path.display())).into())
    }
}

fn passed_over(path: &Path, error: &dyn std::fmt::Display) {
    tracing::warn!(path = %path.display(), %error, "passed over");
}
