//! Appends entries of the program's own to a directory that is not served: a new administrator, and the
//! record of a restore.
//!
//! The directory is opened as in a start, with all checks, and one entry is appended to the journal. The next
//! start adds it to the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::ActorId;
use keyward_core::record::{KeyRecord, LineRecord, LogId, State};

use super::recover::{Recovered, TablePolicy, recover};
use crate::store::MaterializedView;
use crate::store::local::dir::LockedDir;
use crate::store::local::disk_space::DiskSpace;
use crate::store::local::error::OpenError;
use crate::store::local::journal::frame::FrameBuilder;
use crate::store::local::journal::scan::scan_after;
use crate::store::local::journal::segment::LineHeader;
use crate::store::local::journal::writer::SpaceError;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::options::StoreOptions;
use crate::store::local::table::Row;
use crate::store::record::{encode_key, pb, redo};

/// The entry that ends a restore.
const RESTORE: &str = "RestoreBackup";

/// A checked directory, ready for one more entry.
pub struct OfflineLog {
    recovered: Recovered,
    room: DiskSpace,
    seen: RecordStats,
}

/// Why no key was added.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The directory is damaged, or the disk failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing was ever committed.
    #[error("there is no log here yet; the first start of `keyward serve` makes an administrator")]
    Empty,
    /// There is no disk space for an ordinary change.
    #[error("the disk is nearly full; make room first")]
    DiskFull,
}

/// The number of keys in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByState {
    /// Active keys, including expired ones.
    pub active: u64,
    /// Disabled keys.
    pub disabled: u64,
    /// Revoked keys.
    pub revoked: u64,
}

impl OfflineLog {
    /// Opens a directory, and repairs what a start repairs.
    ///
    /// # Errors
    /// When it is damaged, lacks acknowledged changes or has no log yet, or there is no room.
    pub fn open(dir: &LockedDir, options: &StoreOptions) -> Result<Self, MintError> {
        let log = Self::recover(dir, options, TablePolicy::Keep)?;
        match log.room {
            _ if log.recovered.journal.position.revision == Revision(0) => Err(MintError::Empty),
            DiskSpace::Ok | DiskSpace::Low => Ok(log),
            DiskSpace::Critical | DiskSpace::Exhausted => Err(MintError::DiskFull),
        }
    }

    /// Opens a directory that a restore has filled, and builds its table. Disk space is not checked in
    /// advance.
    pub(in crate::store::local) fn build(dir: &LockedDir, options: &StoreOptions) -> Result<Self, OpenError> {
        Self::recover(dir, options, TablePolicy::Rebuild)
    }

    fn recover(dir: &LockedDir, options: &StoreOptions, sound: TablePolicy) -> Result<Self, OpenError> {
        let seen = RecordStats::default();
        let recovered = recover(dir, options, sound, &seen, &mut None)?;
        let (_, room) = recovered.journal.writer.meter(options.free_bytes).and_then(|meter| meter.measure())?;
        Ok(Self { recovered, room, seen })
    }

    /// The latest time of a record. No entry may have an earlier one.
    #[must_use]
    pub fn latest_time(&self) -> UnixMillis {
        self.seen.latest_time()
    }

    /// The keys of a table that was just built.
    pub(in crate::store::local) fn keys(&self) -> ByState {
        let [active, disabled, revoked] = self.seen.keys.each_ref().map(|count| count.load(Ordering::Relaxed));
        ByState { active, disabled, revoked }
    }

    /// Appends an entry with a new key. Returns its revision when it is durable.
    ///
    /// When the disk fails. The entry may have been written all the same.
    pub fn append_key(self, method: &str, mut key: KeyRecord) -> Result<Revision, MintError> {
        key.revision = self.recovered.journal.position.revision.next();
        let (time, target) = (key.updated.time, format!("{}/{}", key.tenant, key.key_id));
        let redo = vec![pb::Redo { record: Some(pb::redo::Record::Key(encode_key(&key))) }];
        Ok(self.append(method, target, time, redo)?)
    }

    /// Appends the entry that ends a restore: the first one of a line of this log past a revision, or the
    /// next one of the line that is there.
    pub(super) fn append_restore(
        mut self,
        what: String,
        time: UnixMillis,
        line: Option<(LogId, Revision)>,
    ) -> Result<Revision, OpenError> {
        let time = time.max(self.latest_time());
        let mut redo = vec![];
        if let Some((log_id, past)) = line {
            let journal = &mut self.recovered.journal;
            let ended = journal.position.revision;
            let past = past.max(ended);
            let base = LineRecord::base_after(past).ok_or(OpenError::NoLineLeft { revision: past })?;
            let line = LineRecord { log_id, ended, base, time };
            let header = LineHeader::new(&line, &journal.position.chain, &journal.key);
            journal.writer.begin_line(&header, self.room).map_err(SpaceError::into_inner)?;
            journal.position = header.header().start;
            self.recovered.watermark.set_log(log_id);
            redo.push(line_redo(&line));
        }
        self.append(RESTORE, what, time, redo)
    }

    fn append(
        mut self,
        method: &str,
        target: String,
        time: UnixMillis,
        redo: Vec<pb::Redo>,
    ) -> Result<Revision, OpenError> {
        self.recovered.table.flush().map_err(|error| OpenError::Table(error.into()))?;
        let journal = &mut self.recovered.journal;
        let before = journal.position;
        let entry = pb::JournalEntry {
            revision: before.revision.next().0,
            time_ms: time.0,
            actor: ActorId::keyward().to_string(),
            method: method.to_owned(),
            target,
            redo,
            ..pb::JournalEntry::default()
        };
        let mut frame = FrameBuilder::after(&before);
        frame.push(&entry, &journal.key);
        let end = frame.end();
        let frame = frame.finish()?;
        journal.writer.ensure_space(frame.len(), &before, self.room).map_err(SpaceError::into_inner)?;
        journal.writer.append(&frame)?;
        // In the order of every commit: first the journal, then the watermark.
        self.recovered.watermark.note(&end)?;
        self.recovered.watermark.sync()?;
        Ok(end.revision)
    }
}

/// The record of a line, as its first entry has it.
pub(super) fn line_redo(line: &LineRecord) -> pb::Redo {
    let Row { record, bytes, .. } = Row::of(Record::Line(Arc::new(*line)));
    redo(&record, bytes)
}

/// Logs a warning after a restore, until something has been changed.
pub(in crate::store::local) fn warn_of_restore(
    dir: &LockedDir,
    key: &ChainKey,
    end: &Position,
) -> Result<(), OpenError> {
    let Some(before) = end.revision.0.checked_sub(1) else { return Ok(()) };
    let mut last = None;
    scan_after(&dir.journal(), key, Revision(before), |entries: Vec<pb::JournalEntry>, _| {
        last = entries.into_iter().next_back().filter(|entry| entry.revision == end.revision.0).or(last.take());
    })?;
    if let Some(restore) = last.filter(|entry| entry.method == RESTORE) {
        tracing::warn!(
            restored = restore.target,
            "this data was restored, and nothing has been changed since: everything after that revision is missing, and keys that were \
             disabled or revoked since then work again; disable them once more, or restore again with --journal, the journal directory \
             of the old server; the next change ends this warning"
        );
    }
    Ok(())
}

/// Collects the latest time of all records, and counts keys by state.
#[derive(Debug)]
struct RecordStats {
    latest: AtomicI64,
    /// In the order of [`State::ALL`].
    keys: [AtomicU64; State::ALL.len()],
}

impl Default for RecordStats {
    fn default() -> Self {
        Self { latest: AtomicI64::new(i64::MIN), keys: Default::default() }
    }
}

impl MaterializedView for RecordStats {
    fn load(&self, records: &[Record]) {
        for record in records {
            self.advance_time(record.time());
            if let Record::Key(key) = record {
                self.keys[key.spec.policy.state as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// A time that is too late is harmless.
    fn reset(&self) {
        self.keys.iter().for_each(|count| count.store(0, Ordering::Relaxed));
    }

    fn on_loaded(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        Revision(0)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis(self.latest.load(Ordering::Relaxed))
    }

    fn advance_time(&self, time: UnixMillis) {
        self.latest.fetch_max(time.0, Ordering::Relaxed);
    }
}
