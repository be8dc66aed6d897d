//! Restores a data directory from a backup, and from the journal that continues it.
//!
//! First everything is read, so that mistakes are found before anything is written. Then the directory, with
//! its table, is built as `restore.new` inside the one that is to hold it; at the end its parts are moved to
//! their places, the layout last. If that is interrupted, no start takes the directory for complete, and the
//! next restore removes the remains.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use keyward_core::clock::UnixMillis;
use keyward_core::digest::PepperId;
use keyward_core::event::{Record, Revision};
use keyward_core::record::LogId;
use prost::Message;

use super::offline_append::{ByState, OfflineLog};
use super::rebuild::rows_of;
use super::recover::new_log_id;
use crate::store::local::checkpoint::snapshot::{self, Contents, SnapshotError};
use crate::store::local::dir::LockedDir;
use crate::store::local::disk_space::DiskSpace;
use crate::store::local::error::OpenError;
use crate::store::local::journal::frame::FrameBuilder;
use crate::store::local::journal::scan::{End, Piece, proven_revision, scan_between};
use crate::store::local::journal::segment::{LineHeader, SealKey, SegmentHeader};
use crate::store::local::journal::watermark::{Acknowledged, Watermark};
use crate::store::local::journal::writer::{CleanEnd, Writer};
use crate::store::local::journal::{ChainKey, JournalError, Position};
use crate::store::local::options::StoreOptions;
use crate::store::local::table::checksums::ChecksumKey;
use crate::store::record::pb;
use crate::util::files::{NewFile, create_private_dir};

/// What to restore.
#[derive(Clone, Debug)]
pub struct Source {
    /// The backup.
    pub backup: PathBuf,
    /// The directory of the journal that continues the backup, to restore later changes too.
    pub journal: Option<PathBuf>,
    /// The last revision to restore. `None`: all.
    pub to: Option<Revision>,
    /// Whether to go on in the line of the journal, with its log id, instead of beginning one: only for the
    /// whole journal of a server that does not run any more.
    pub same_line: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backup cannot be used.
    #[error("the backup {path}: {source}")]
    Backup {
        /// The backup.
        path: PathBuf,
        /// What is wrong.
        source: SnapshotError,
    },
    /// The journal cannot be read.
    #[error("{0}{advice}", advice = advice(.0))]
    Journal(#[from] JournalError),
    /// Restored keys could not be verified.
    #[error(
        "there are keys under pepper {pepper}, which the pepper file does not have: put the pepper file there that belongs to the \
         backup"
    )]
    ForeignPepper {
        /// The missing pepper's id.
        pepper: PepperId,
    },
    /// The journal does not continue the backup.
    #[error(
        "the journal {journal} does not go on from the backup, which ends at revision {revision}: it is another one, or begins later"
    )]
    Parted {
        /// The journal.
        journal: PathBuf,
        /// Where the backup ends.
        revision: Revision,
    },
    /// The end of the journal may be missing, so that the line cannot go on.
    #[error(
        "the log cannot go on in the same line: {watermark} does not show that all of {journal} is there; it is \
         the old server's watermark, which belongs beside the journal directory; without it, restore without \
         --same-line"
    )]
    NotShownWhole {
        /// The journal.
        journal: PathBuf,
        /// Where its watermark should be.
        watermark: PathBuf,
    },
    /// The wanted revision is not available.
    #[error("revision {wanted} is not to be had: the backup has revision {from}, and {with} goes up to {to}")]
    OutOfReach {
        /// What is wanted.
        wanted: Revision,
        /// What the backup has.
        from: Revision,
        /// The source of later changes.
        with: &'static str,
        /// The last revision there.
        to: Revision,
    },
    /// The whole line cannot be had.
    #[error(
        "{path}, byte {byte}: the journal ends with a change that does not read: a crash tore it, or it was \
         acknowledged and is damaged; so the restored log cannot go on in the same line (--same-line)"
    )]
    TornEnd {
        /// The last segment.
        path: PathBuf,
        /// Where in the file.
        byte: u64,
    },
    /// Nothing says where the line ends.
    #[error(
        "only with the whole journal of the old server (--journal, and no --to-revision) can the restored log go \
         on in the same line"
    )]
    PartOfALine,
    /// The backup is newer than the wanted revision.
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
    /// The last restored revision of the old log.
    pub revision: Revision,
    /// The revision of the restore's own entry: the first one of a line, or the next one of the same.
    pub own: Revision,
    /// The time of that revision: when the backup was made, or of its change.
    pub time: UnixMillis,
    /// The number of keys.
    pub keys: ByState,
}

/// The text in the journal, and in the warning at each start until something has changed.
impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ByState { active, disabled, revoked } = self.keys;
        let (backup, all) = (self.backup.header.position.revision, active + disabled + revoked);
        write!(f, "revision {} of {}, from a backup of revision {backup}; ", self.revision, rfc3339(self.time))?;
        write!(f, "{all} keys: {active} active, {disabled} disabled, {revoked} revoked")
    }
}

/// A time in RFC 3339, to the second.
#[must_use]
pub fn rfc3339(time: UnixMillis) -> String {
    let since = Duration::from_millis(u64::try_from(time.0).unwrap_or(0));
    UNIX_EPOCH
        .checked_add(since)
        .map_or_else(|| time.to_string(), |time| humantime::format_rfc3339_seconds(time).to_string())
}

/// If a journal is damaged, everything before the damage can be restored.
fn advice(error: &JournalError) -> String {
    match error {
        JournalError::Damaged { after, .. } | JournalError::Gap { after, .. } if after.0 > 0 => {
            format!("; or restore what comes before it, with --to-revision {after}")
        }
        _ => String::new(),
    }
}

/// Restores into a directory that was locked as empty; if it fails, the directory stays empty. `knows` says
/// whether a pepper is available: keys under another one could not be verified.
///
/// See [`RestoreError`]. Errors in backup, journal or pepper file are found before anything is written.
pub fn restore(
    dir: &LockedDir,
    options: &StoreOptions,
    knows: &dyn Fn(PepperId) -> bool,
    source: &Source,
) -> Result<Restored, RestoreError> {
    let key = ChainKey(options.chain_key.clone());
    if source.same_line && (source.journal.is_none() || source.to.is_some()) {
        return Err(RestoreError::PartOfALine);
    }
    let Survey { from, peppers, log } = survey(&key, source)?;
    if let Some(&pepper) = peppers.iter().find(|&&pepper| !knows(pepper)) {
        return Err(RestoreError::ForeignPepper { pepper });
    }
    dir.remove_unfinished_restore()?;
    let made = make(&dir.restoring(), options, &key, source, (from, log));
    let restored = made.inspect_err(|_| drop(dir.remove_unfinished_restore()))?;
    dir.finish_restore()?;
    Ok(restored)
}

/// What is to be restored.
struct Survey {
    /// The position of the backup.
    from: Position,
    /// The peppers that the keys need.
    peppers: HashSet<PepperId>,
    /// The log of the backup, if the journal says it.
    log: Option<LogId>,
}

/// Reads everything to be restored.
fn survey(key: &ChainKey, source: &Source) -> Result<Survey, RestoreError> {
    let of_backup = |error| RestoreError::Backup { path: source.backup.clone(), source: error };
    let mut peppers = HashSet::new();
    let file = File::open(&source.backup).map_err(|error| of_backup(error.into()))?;
    let contents = snapshot::read(file, Some(&ChecksumKey::of(key)), |row| {
        peppers.extend(peppers_of(&row.record));
        Ok::<_, SnapshotError>(())
    });
    let from = contents.map_err(of_backup)?.header.position;
    let mut copy = JournalCopy { peppers, ..JournalCopy::new(None, key, from, source) };
    copy.run()?;
    Ok(Survey { from, peppers: copy.peppers, log: copy.log })
}

fn peppers_of(record: &Record) -> impl Iterator<Item = PepperId> + use<> {
    let peppers: Vec<_> = match record {
        Record::Key(key) => key.secrets().map(|secret| secret.pepper).collect(),
        _ => vec![],
    };
    peppers.into_iter()
}

/// Builds a complete data directory, except for its layout.
fn make(
    fresh: &Path,
    options: &StoreOptions,
    key: &ChainKey,
    source: &Source,
    (from, log): (Position, Option<LogId>),
) -> Result<Restored, RestoreError> {
    create_private_dir(fresh)?;
    let dir = LockedDir::lock_new(fresh)?;
    create_private_dir(&dir.journal())?;
    let backup = copy_backup(&dir, &ChecksumKey::of(key), &source.backup)?;
    let clean_end = CleanEnd::make(&dir.journal(), &End::at(from)).map_err(OpenError::from)?;
    let new_log = || new_log_id(&*options.entropy).map_err(OpenError::from);
    let log = log.or(backup.header.log_id).map_or_else(new_log, Ok)?;
    // Without changes to copy, its segment stays empty: it only says where the history ends.
    let segment_bytes = if source.journal.is_some() { options.segment_bytes } else { 0 };
    let (seals, room) = (SealKey::of(key), (segment_bytes, options.free_bytes));
    let mut writer = clean_end.into_writer(room, log, seals.clone()).map_err(OpenError::from)?;
    let mut copy = JournalCopy::new(Some(&mut writer), key, from, source);
    copy.run()?;
    let (at, time) = (copy.at, copy.time.unwrap_or(backup.header.time));
    drop(Watermark::begin(&dir.watermark(), &at, writer.log_id(), seals)?);
    drop(writer);
    // Past every revision of the old log, also of those lines that are not restored.
    let past = source.journal.as_deref().map_or(Ok(Revision(0)), |journal| proven_revision(journal, key))?;
    let line = if source.same_line { None } else { Some((new_log()?, past)) };
    let log = OfflineLog::build(&dir, options)?;
    let mut restored = Restored { backup, revision: at.revision, own: at.revision, time, keys: log.keys() };
    restored.own = log.append_restore(restored.to_string(), options.clock.now(), line)?;
    Ok(restored)
}

/// Copies a backup to the snapshots, and checks it before it gets its name.
fn copy_backup(dir: &LockedDir, key: &ChecksumKey, backup: &Path) -> Result<Contents, RestoreError> {
    let of_backup = |source| RestoreError::Backup { path: backup.to_owned(), source };
    let header = snapshot::read_header(backup, Some(key)).map_err(of_backup)?;
    create_private_dir(&dir.snapshots())?;
    let path = snapshot::path_of(&dir.snapshots(), header.position.revision);
    let mut copy = NewFile::create(&path)?;
    io::copy(&mut File::open(backup)?, &mut copy)?;
    let contents = snapshot::verify(copy.sync()?, Some(key), &|| Ok(())).map_err(of_backup)?;
    copy.commit()?;
    Ok(contents)
}

/// Copies changes into a new journal, or only reads them if there is no writer.
struct JournalCopy<'a> {
    writer: Option<&'a mut Writer>,
    key: &'a ChainKey,
    /// Where the backup ends.
    from: Position,
    /// Where the copy ends.
    at: Position,
    source: &'a Source,
    /// The peppers that keys in the changes need.
    peppers: HashSet<PepperId>,
    /// The log of the backup, if the journal says it.
    log: Option<LogId>,
    /// The time of the last copied change.
    time: Option<UnixMillis>,
    /// Whether the journal has the position where the backup ends.
    met: bool,
    failed: Option<RestoreError>,
}

impl<'a> JournalCopy<'a> {
    fn new(writer: Option<&'a mut Writer>, key: &'a ChainKey, from: Position, source: &'a Source) -> Self {
        let peppers = HashSet::new();
        Self { writer, key, from, at: from, source, peppers, log: None, time: None, met: false, failed: None }
    }

    fn run(&mut self) -> Result<(), RestoreError> {
        let (from, wanted) = (self.from.revision, self.source.to);
        if let Some(wanted) = wanted.filter(|wanted| *wanted < from) {
            return Err(RestoreError::TooNew { wanted, from });
        }
        let journal = self.source.journal.as_deref();
        if let Some(journal) = journal {
            let end = scan_between(journal, self.key, from, wanted, |read: Piece<pb::JournalEntry>| self.take(read))?;
            self.failed.take().map_or(Ok(()), Err)?;
            if !self.met {
                return Err(RestoreError::Parted { journal: journal.to_owned(), revision: from });
            }
            if self.source.same_line {
                self.check_whole(journal, &end)?;
            }
            let torn =
                end.segment.filter(|last| last.torn > 0 && wanted.is_none_or(|wanted| end.position.revision < wanted));
            if let Some(torn) = torn {
                if self.source.same_line {
                    return Err(RestoreError::TornEnd { path: torn.path, byte: torn.offset });
                }
                tracing::warn!(
                    path = %torn.path.display(), byte = torn.offset, after = self.at.revision.0,
                    "what comes next in the journal does not read: a crash tore it, or it was acknowledged and is damaged"
                );
            }
        }
        let to = self.at.revision;
        match wanted.filter(|wanted| *wanted > to) {
            Some(wanted) => {
                let with = if journal.is_some() { "the journal" } else { "nothing after it (--journal)" };
                Err(RestoreError::OutOfReach { wanted, from, with, to })
            }
            None => Ok(()),
        }
    }

    fn take(&mut self, read: Piece<pb::JournalEntry>) {
        if self.failed.is_some() {
            return;
        }
        let at = match &read {
            Piece::Segment(header) => header.start,
            Piece::Entries(_, to) => *to,
        };
        self.met |= at == self.from;
        match read {
            Piece::Segment(header) => self.failed = self.take_header(header).err(),
            Piece::Entries(entries, to) if to.revision > self.from.revision => {
                self.failed = self.append(&entries, to).err();
            }
            Piece::Entries(..) => {}
        }
    }

    /// Checks by the watermark beside a journal that its end was not lost.
    fn check_whole(&self, journal: &Path, end: &End) -> Result<(), RestoreError> {
        let watermark = journal.parent().unwrap_or(journal).join("watermark");
        let acknowledged = Acknowledged::read(&watermark, &SealKey::of(self.key))?.beside(end);
        match acknowledged.filter(|at| at.revision <= end.position.revision) {
            Some(_) => Ok(()),
            None => Err(RestoreError::NotShownWhole { journal: journal.to_owned(), watermark }),
        }
    }

    /// Begins a line that the journal has behind what was copied, if any of it is wanted.
    fn take_header(&mut self, header: SegmentHeader) -> Result<(), RestoreError> {
        let base = header.start.revision;
        let line = LineHeader::of(header).filter(|_| base > self.from.revision);
        let Some(line) = line else {
            self.log = self.log.or(header.log);
            return Ok(());
        };
        if self.source.to.is_none_or(|to| to > base) && header.follows(&self.at, None, self.key) {
            if let Some(writer) = &mut self.writer {
                writer.begin_line(&line, DiskSpace::Ok).map_err(|error| OpenError::from(error.into_inner()))?;
            }
            self.at = header.start;
        }
        Ok(())
    }

    /// Copies the entries of a frame, which leads to `to`.
    fn append(&mut self, entries: &[pb::JournalEntry], to: Position) -> Result<(), RestoreError> {
        let follows = entries.first().is_some_and(|first| first.revision == self.at.revision.next().0);
        let whole = follows.then(|| self.frames(entries)).transpose()?;
        let Some(whole) = whole.filter(|frames| frames.end == to) else {
            let journal = self.source.journal.clone().unwrap_or_default();
            return Err(RestoreError::Parted { journal, revision: self.from.revision });
        };
        let wanted = self.source.to.map_or(entries.len(), |to| entries.partition_point(|e| e.revision <= to.0));
        let frames = if wanted == entries.len() { whole } else { self.frames(&entries[..wanted])? };
        for entry in &entries[..wanted] {
            let rows =
                rows_of(entry).map_err(|source| OpenError::Redo { revision: Revision(entry.revision), source })?;
            self.time = Some(UnixMillis(entry.time_ms));
            self.peppers.extend(rows.iter().flat_map(|row| peppers_of(&row.record)));
        }
        if let Some(writer) = &mut self.writer {
            for (before, frame) in &frames.bytes {
                let space = writer.ensure_space(frame.len(), before, DiskSpace::Ok);
                space.map_err(|error| OpenError::from(error.into_inner()))?;
                writer.append(frame).map_err(OpenError::from)?;
            }
        }
        self.at = frames.end;
        Ok(())
    }

    /// Builds the frames of these entries, after what has been copied. A frame of an older program may be
    /// longer than one that is written now, and becomes several.
    fn frames(&self, entries: &[pb::JournalEntry]) -> Result<Frames, RestoreError> {
        let mut before = self.at;
        let mut frame = FrameBuilder::after(&before);
        let mut bytes = vec![];
        for entry in entries {
            if !frame.is_empty() && !frame.fits(entry.encoded_len()) {
                let end = frame.end();
                bytes.push((before, frame.finish().map_err(OpenError::from)?));
                (before, frame) = (end, FrameBuilder::after(&end));
            }
            frame.push(entry, self.key);
        }
        let end = frame.end();
        if !frame.is_empty() {
            bytes.push((before, frame.finish().map_err(OpenError::from)?));
        }
        Ok(Frames { bytes, end })
    }
}

/// Frames, each with the position before it, and the position after the last one.
struct Frames {
    bytes: Vec<(Position, Vec<u8>)>,
    end: Position,
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::store::local::journal::frame::{FRAME_BYTES_MAX, Frame};

    #[test]
    fn a_long_frame_of_an_older_program_becomes_several() {
        let key = ChainKey(Zeroizing::new([7; 32]));
        let entry = |revision| pb::JournalEntry { revision, target: "x".repeat(3_000), ..Default::default() };
        let entries: Vec<_> = (1..=1_000).map(entry).collect();
        let source = Source { backup: PathBuf::new(), journal: None, to: None, same_line: false };
        let from = Position::START;
        let copy = JournalCopy::new(None, &key, from, &source);
        let frames = copy.frames(&entries).unwrap();
        let (mut end, mut copied) = (from, vec![]);
        for (before, bytes) in &frames.bytes {
            assert!(bytes.len() <= FRAME_BYTES_MAX && *before == end, "{} bytes", bytes.len());
            let (read, next) = Frame::read(bytes).unwrap().verify_after(&end, &key).unwrap();
            copied.extend::<Vec<pb::JournalEntry>>(read);
            end = next;
        }
        assert_eq!((copied, frames.bytes.len()), (entries, 3));
        assert_eq!(end, frames.end);
        let too_long = pb::JournalEntry { revision: 1, target: "x".repeat(FRAME_BYTES_MAX), ..Default::default() };
        assert!(copy.frames(&[too_long]).is_err());
    }
}
