//! A data directory from a backup, and from the journal that went on after it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;

use super::dir::LockedDir;
use super::journal::frame::FrameBuilder;
use super::journal::scan::{End, scan};
use super::journal::writer::{Room, RoomError, Writer};
use super::journal::{ChainKey, JournalError, Position};
use super::snapshot::{self, Contents, SnapshotError};
use super::sums::SumKey;
use super::watermark::Watermark;
use super::{OpenError, Options};
use crate::files::{create_private_dir, private, sync_parent};
use crate::store::record::pb;

/// What to restore.
#[derive(Clone, Debug)]
pub struct Source {
    /// The backup.
    pub backup: PathBuf,
    /// The directory of the journal that went on after it, if changes since the backup are wanted.
    pub journal: Option<PathBuf>,
    /// The last revision that is wanted. `None`: all that are there.
    pub to: Option<Revision>,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backup is of no use.
    #[error("the backup {path}: {source}")]
    Backup {
        /// The backup.
        path: PathBuf,
        /// What is wrong.
        source: SnapshotError,
    },
    /// The journal that went on after the backup cannot be read.
    #[error("{0}")]
    Journal(#[from] JournalError),
    /// The journal is not the one of the backup.
    #[error(
        "the journal {journal} does not go on from the backup, which ends at revision {revision}: it is another one, or begins later"
    )]
    Parted {
        /// The journal.
        journal: PathBuf,
        /// Where the backup ends.
        revision: Revision,
    },
    /// The revision that is wanted is not there.
    #[error("revision {wanted} is not to be had: the backup has revision {from}, and {with} goes up to {to}")]
    OutOfReach {
        /// What is wanted.
        wanted: Revision,
        /// What the backup has.
        from: Revision,
        /// What was to bring the rest.
        with: &'static str,
        /// How far it goes.
        to: Revision,
    },
    /// The backup is past the revision that is wanted.
    #[error("the backup has revision {from} and cannot go back to {wanted}; take an older backup")]
    TooNew {
        /// What is wanted.
        wanted: Revision,
        /// What the backup has.
        from: Revision,
    },
    /// The disk failed, or is full.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
}

/// What was restored.
#[derive(Clone, Copy, Debug)]
pub struct Restored {
    /// What the backup held.
    pub backup: Contents,
    /// The last revision.
    pub revision: Revision,
}

/// Fills an empty directory, or leaves it empty. The table is built when it is opened.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(dir: &LockedDir, options: &Options, source: &Source) -> Result<Restored, RestoreError> {
    fill(dir, options, source).inspect_err(|_| {
        drop(dir.begin()); // the layout first: what is emptied must not pass for a new directory
        for made in [dir.journal(), dir.snapshots()] {
            drop(fs::remove_dir_all(made));
        }
        drop(fs::remove_file(dir.watermark()));
    })
}

fn fill(dir: &LockedDir, options: &Options, source: &Source) -> Result<Restored, RestoreError> {
    let key = ChainKey(options.chain_key.clone());
    let backup = copy_backup(dir, &SumKey::of(&key), &source.backup)?;
    let from = backup.header.position;
    if source.to.is_some_and(|to| to < from.revision) {
        return Err(RestoreError::TooNew { wanted: source.to.unwrap_or_default(), from: from.revision });
    }
    let end = End { start: from, position: from, segment: None };
    let writer = Writer::resume(&dir.journal(), options.segment_bytes, &end)?;
    let journal = source.journal.clone().unwrap_or_default();
    let mut copy = Copy { writer, key: &key, from, at: from, wanted: source.to, journal, failed: None };
    if let Some(journal) = &source.journal {
        scan(journal, &key, |entries: Vec<pb::JournalEntry>, to| copy.take(&entries, to))?;
        copy.failed.take().map_or(Ok(()), Err)?;
    }
    let with = if source.journal.is_some() { "the journal" } else { "nothing after it (--journal)" };
    if source.to.is_some_and(|to| to > copy.at.revision) {
        return Err(out_of_reach(source, from.revision, with, copy.at.revision));
    }
    let (watermark, _) = Watermark::open(&dir.watermark())?;
    watermark.note(&copy.at)?;
    watermark.sync()?;
    dir.finish()?;
    Ok(Restored { backup, revision: copy.at.revision })
}

fn out_of_reach(source: &Source, from: Revision, with: &'static str, to: Revision) -> RestoreError {
    RestoreError::OutOfReach { wanted: source.to.unwrap_or(to), from, with, to }
}

/// Puts a backup where snapshots are, once all of it has been read and believed.
fn copy_backup(dir: &LockedDir, key: &SumKey, backup: &Path) -> Result<Contents, RestoreError> {
    let of_backup = |source| RestoreError::Backup { path: backup.to_owned(), source };
    let header = snapshot::read_header(backup, Some(key)).map_err(of_backup)?;
    create_private_dir(&dir.snapshots())?;
    let path = snapshot::path_of(&dir.snapshots(), header.position.revision);
    let temporary = path.with_added_extension("new");
    let mut copy = private().write(true).create(true).truncate(true).open(&temporary)?;
    io::copy(&mut File::open(backup)?, &mut copy)?;
    copy.sync_all()?;
    let contents = snapshot::verify(&temporary, Some(key), &|| Ok(())).map_err(of_backup)?;
    fs::rename(&temporary, &path)?;
    sync_parent(&path)?;
    Ok(contents)
}

/// Copies changes into a new journal.
struct Copy<'a> {
    writer: Writer,
    key: &'a ChainKey,
    /// Where the backup ends.
    from: Position,
    /// Where the copy ends.
    at: Position,
    wanted: Option<Revision>,
    journal: PathBuf,
    failed: Option<RestoreError>,
}

impl Copy<'_> {
    /// Takes the entries of a frame, and the position after it.
    fn take(&mut self, entries: &[pb::JournalEntry], to: Position) {
        let done = self.wanted.is_some_and(|wanted| self.at.revision >= wanted);
        if self.failed.is_some() || done || to.revision <= self.from.revision {
            return;
        }
        self.failed = self.append(entries, to).err();
    }

    fn append(&mut self, entries: &[pb::JournalEntry], to: Position) -> Result<(), RestoreError> {
        let follows = entries.first().is_some_and(|first| first.revision == self.at.revision.next().0);
        let whole = follows.then(|| self.frame(entries));
        let Some(whole) = whole.filter(|frame| frame.end() == to) else {
            return Err(RestoreError::Parted { journal: self.journal.clone(), revision: self.from.revision });
        };
        let wanted = self.wanted.map_or(entries.len(), |wanted| entries.partition_point(|e| e.revision <= wanted.0));
        let frame = if wanted == entries.len() { whole } else { self.frame(&entries[..wanted]) };
        let end = frame.end();
        let frame = frame.finish();
        self.writer.make_room(frame.len(), &self.at, Room::Ample).map_err(|error| match error {
            RoomError::NoRoom(error) | RoomError::Unknown(error) => error,
        })?;
        self.writer.append(&frame)?;
        self.at = end;
        Ok(())
    }

    /// The frame of these entries, after what has been copied.
    fn frame(&self, entries: &[pb::JournalEntry]) -> FrameBuilder {
        let mut frame = FrameBuilder::after(&self.at);
        entries.iter().for_each(|entry| frame.push(entry, self.key));
        frame
    }
}
