//! Maintenance of the data directory: makes snapshots, deletes old journal segments that they cover, and
//! keeps an index checkpoint, so that a start need not read every record.
//!
//! A segment is deleted when the journal exceeds its size limit or the segment's last change exceeds the age
//! limit, and only if two snapshots cover it. The journal since the older snapshot is kept, so that one
//! damaged file costs nothing; so is the journal since the index checkpoint, which is renewed first, the
//! journal that the view has not applied yet, which it may have to read, and the journal from the oldest
//! change on that a retry may ask for. None of this delays a change or a verdict, or waits for a backup. What
//! fails is retried later.

use std::fs::{self, File};
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::event::Revision;
use keyward_core::record::LogId;
use parking_lot::Mutex;

use super::index_checkpoint::{Checkpoint, CheckpointKey};
use super::snapshot::{self, SnapshotError};
use crate::store::local::cached_stats::CachedStats;
use crate::store::local::dir::LockedDir;
use crate::store::local::disk_space::{CHECKPOINT_FREE_BYTES_MIN, free_bytes};
use crate::store::local::journal::frame::{FRAME_BYTES_READ_MAX, Frame};
use crate::store::local::journal::scan::{segment_numbers, segment_path, segment_start};
use crate::store::local::journal::segment::{HEADER_BYTES, HEADER_BYTES_V1, SegmentHeader};
use crate::store::local::journal::{ChainKey, JournalError, Position};
use crate::store::local::options::{Retention, StoreOptions};
use crate::store::local::table::Table;
use crate::store::local::table::snapshot_scan::{ScanError, SnapshotScan};
use crate::store::{MaterializedView, StoreError};
use crate::util::files::{create_private_dir, remove_temporary_files, sync_parent};

/// How often the age of segments is checked, besides each time that a segment is full.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// How often sealed replies are removed that are past their time.
const REPLIES_EVERY: Duration = Duration::from_secs(60);
/// Snapshots that are kept.
const SNAPSHOTS_KEPT: usize = 2;
/// Bytes of pre-images for a snapshot. Only the disk can delay one, so this is far above what changes
/// meanwhile.
const ASIDE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Changes that are remembered because they may be asked for again, as maintenance needs to know of them.
pub(in crate::store::local) trait RememberedChanges: Send + Sync {
    /// The oldest segment that has one at a time.
    fn oldest_segment(&self, now: UnixMillis) -> Option<u64>;
    /// Forgets those that are past their time, and removes their sealed replies.
    fn forget_expired(&self, now: UnixMillis) -> io::Result<()>;
}

/// What the maintenance thread is started with.
pub(in crate::store::local) struct MaintenanceConfig<'a> {
    pub(in crate::store::local) dir: &'a LockedDir,
    pub(in crate::store::local) options: &'a StoreOptions,
    pub(in crate::store::local) table: Arc<Table>,
    pub(in crate::store::local) durable: Arc<Mutex<Position>>,
    pub(in crate::store::local) view: Arc<dyn MaterializedView>,
    /// The checkpoint that the view was filled from.
    pub(in crate::store::local) checkpoint: Option<Checkpoint>,
    /// The id of the log, which its snapshots have.
    pub(in crate::store::local) log_id: LogId,
    /// Cached values for metrics.
    pub(in crate::store::local) stats: Arc<CachedStats>,
    /// Knows the oldest segment that a retry may need, which stays with all after it, and has the sealed
    /// replies, which go when they are past their time.
    pub(in crate::store::local) retries: Arc<dyn RememberedChanges>,
}

/// What the maintenance thread works with.
pub(super) struct MaintenanceContext {
    pub(in crate::store::local) journal: PathBuf,
    pub(in crate::store::local) snapshots: PathBuf,
    pub(in crate::store::local) checkpoints: PathBuf,
    pub(in crate::store::local) watermark: PathBuf,
    pub(in crate::store::local) table: Arc<Table>,
    /// The end of the log.
    pub(in crate::store::local) durable: Arc<Mutex<Position>>,
    pub(in crate::store::local) view: Arc<dyn MaterializedView>,
    pub(super) checkpoint_key: CheckpointKey,
    pub(in crate::store::local) segment_bytes: u64,
    pub(in crate::store::local) retention: Retention,
    pub(in crate::store::local) clock: Arc<dyn Clock>,
    log_id: LogId,
    stats: Arc<CachedStats>,
    retries: Arc<dyn RememberedChanges>,
    pub(super) stopping: Arc<AtomicBool>,
}

/// The thread.
pub(in crate::store::local) struct Maintenance {
    wake: Waker,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Tells the maintenance thread that a segment is full.
#[derive(Clone)]
pub(in crate::store::local) struct Waker(SyncSender<()>);

impl Waker {
    pub(in crate::store::local) fn wake(&self) {
        match self.0.try_send(()) {
            // It is awake already, or the store is closing.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

impl Maintenance {
    pub(in crate::store::local) fn start(parts: MaintenanceConfig<'_>) -> io::Result<Self> {
        let MaintenanceConfig { dir, options, table, durable, view, checkpoint, log_id, stats, retries } = parts;
        let stopping = Arc::new(AtomicBool::new(false));
        let context = MaintenanceContext {
            journal: dir.journal(),
            snapshots: dir.snapshots(),
            checkpoints: dir.checkpoints(),
            watermark: dir.watermark(),
            table,
            durable,
            view,
            checkpoint_key: CheckpointKey::of(&ChainKey(options.chain_key.clone())),
            segment_bytes: options.segment_bytes,
            retention: options.retention,
            clock: options.clock.clone(),
            log_id,
            stats,
            retries,
            stopping: stopping.clone(),
        };
        let (wake, woken) = sync_channel(1);
        let thread = Builder::new().name("maintenance".into()).spawn(move || context.run(&woken, checkpoint))?;
        Ok(Self { wake: Waker(wake), stopping, thread })
    }

    pub(in crate::store::local) fn waker(&self) -> Waker {
        self.wake.clone()
    }

    /// Stops the thread and waits for it.
    pub(in crate::store::local) fn join(self) -> Result<(), StoreError> {
        self.stopping.store(true, Ordering::Relaxed);
        self.wake.wake();
        drop(self.wake);
        self.thread.join().map_err(|_| StoreError::Engine("the maintenance thread panicked".into()))
    }
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MaintenanceError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("no snapshot can be made: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("the table cannot be flushed: {0}")]
    Flush(#[from] StoreError),
    #[error("there are {free} bytes free, and {needed} are needed")]
    DiskFull { free: u64, needed: u64 },
    #[error("the index does not come up to the journal")]
    Behind,
}

impl MaintenanceError {
    pub(in crate::store::local) fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull { .. } => true,
            Self::Io(error) => error.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }
}

/// A full segment.
struct Sealed {
    number: u64,
    path: PathBuf,
    bytes: u64,
    /// The position after its last change.
    end: Position,
    /// A time at or after its last change.
    until: UnixMillis,
}

impl MaintenanceContext {
    fn run(&self, woken: &Receiver<()>, mut checkpoint: Option<Checkpoint>) {
        let mut checked = false;
        while !self.stopping.load(Ordering::Relaxed) {
            self.run_step("older segments of the journal stay for now", || {
                self.enforce_retention(&mut checked, &mut checkpoint)
            });
            self.run_step("the next start may take longer: no index checkpoint was made", || {
                self.checkpoint_if_due(&mut checkpoint)
            });
            if !self.wait(woken) {
                return;
            }
        }
    }

    /// Waits for the next round, and removes sealed replies meanwhile. `false`: the store has gone.
    fn wait(&self, woken: &Receiver<()>) -> bool {
        let mut waited = Duration::ZERO;
        while waited < LOOK_EVERY {
            self.run_step("sealed replies stay for now", || Ok(self.retries.forget_expired(self.now())?));
            match woken.recv_timeout(REPLIES_EVERY) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => waited += REPLIES_EVERY,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    /// The time of a change that is made now.
    fn now(&self) -> UnixMillis {
        self.clock.now().max(self.view.latest_time())
    }

    /// Runs a step and logs a failure. sled may panic in it; without this thread, the journal would grow for
    /// ever without notice.
    fn run_step(&self, otherwise: &str, work: impl FnOnce() -> Result<(), MaintenanceError>) {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => {}
            Ok(Err(_)) if self.stopping.load(Ordering::Relaxed) => {}
            Ok(Err(error)) => tracing::warn!(%error, "{otherwise}"),
            Err(_) => tracing::error!("the maintenance thread panicked; {otherwise}"),
        }
    }

    /// Nothing is deleted before the snapshots have been checked.
    fn enforce_retention(
        &self,
        checked: &mut bool,
        checkpoint: &mut Option<Checkpoint>,
    ) -> Result<(), MaintenanceError> {
        if !*checked {
            self.check_snapshots()?;
            *checked = true;
        }
        self.delete_expired_segments(checkpoint)
    }

    /// Fails once the store is closing, to interrupt reading or writing a snapshot.
    pub(super) fn check_not_stopping(&self) -> io::Result<()> {
        if self.stopping.load(Ordering::Relaxed) { Err(io::Error::other("the store is closing")) } else { Ok(()) }
    }

    /// Checks the snapshots. Damaged ones are replaced by a new one and then renamed; not before, because the
    /// journal relies on there being one.
    fn check_snapshots(&self) -> Result<(), MaintenanceError> {
        remove_temporary_files(&self.snapshots)?;
        let mut damaged = Vec::new();
        for (_, path) in snapshot::list(&self.snapshots)? {
            match snapshot::verify(&path, Some(self.table.checksum_key()), &|| self.check_not_stopping()) {
                Ok(contents) => self.stats.note_snapshot(contents.header.time),
                Err(SnapshotError::Io(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a snapshot is damaged; another one is made");
                    damaged.push(path);
                }
            }
        }
        if damaged.is_empty() {
            return Ok(());
        }
        let made = self.make_snapshot()?;
        for path in damaged.iter().filter(|path| **path != made) {
            fs::rename(path, path.with_added_extension("broken"))?;
        }
        Ok(())
    }

    fn delete_expired_segments(&self, checkpoint: &mut Option<Checkpoint>) -> Result<(), MaintenanceError> {
        let (mut sealed, bytes) = self.sealed()?;
        let expired = self.expired(&sealed, bytes);
        let Some(last) = expired.checked_sub(1) else { return Ok(()) };
        let mut snapshots = snapshot::list(&self.snapshots)?;
        if covered(&snapshots) < sealed[last].end.revision {
            let newest = snapshots.first().map(|(revision, _)| *revision);
            if newest
                == Some(self.table.checksums().map_err(ScanError::from).map_err(SnapshotError::from)?.position.revision)
            {
                return Ok(()); // another one would be the same: until there is a change, this is all there is to have
            }
            self.make_snapshot()?;
            snapshots = snapshot::list(&self.snapshots)?;
        }
        // What is deleted is covered by two newer snapshots.
        for (_, path) in snapshots.iter().skip(SNAPSHOTS_KEPT) {
            fs::remove_file(path)?;
        }
        // A view that fell behind the feed reads the journal from its revision on.
        let covered = covered(&snapshots).min(self.view.revision());
        sealed.truncate(expired);
        sealed.retain(|segment| segment.end.revision <= covered);
        let Some(beginning) = sealed.last().map(|last| last.end.revision) else { return Ok(()) };
        self.checkpoint_past(beginning, checkpoint)?;
        // Neither the watermark nor the table may depend on what is deleted.
        self.table.flush()?;
        File::open(&self.watermark)?.sync_all()?;
        for segment in &sealed {
            fs::remove_file(&segment.path)?;
            // One by one: the oldest must be gone before the next, or a crash would leave a gap.
            sync_parent(&segment.path)?;
        }
        tracing::info!(segments = sealed.len(), revision = covered.0, "older segments of the journal have gone");
        let forgotten =
            self.table.forget_purge_marks(beginning).map_err(ScanError::from).map_err(SnapshotError::from)?;
        if forgotten > 0 {
            tracing::info!(keys = forgotten, "the ids of purged keys may be used again");
        }
        Ok(())
    }

    /// How many of the oldest segments exceed a limit.
    fn expired(&self, sealed: &[Sealed], mut bytes: u64) -> usize {
        let kept_for = i64::try_from(self.retention.time.as_millis()).unwrap_or(i64::MAX);
        let oldest = self.clock.now().0.saturating_sub(kept_for);
        let needed = self.retries.oldest_segment(self.now());
        let gone = |segment: &&Sealed| {
            // A retry may ask for a change that is in it.
            let is_needed = needed.is_some_and(|needed| segment.number >= needed);
            let goes = (bytes > self.retention.bytes || segment.until.0 < oldest) && !is_needed;
            bytes -= segment.bytes;
            goes
        };
        sealed.iter().take_while(gone).count()
    }

    /// The full segments, oldest first, and the bytes of all segments. A segment is not listed before a later
    /// one has a change, which gives its age. The next one may be empty for ever: it was made by an older
    /// program that ended before its first change, or for a line that another one follows.
    fn sealed(&self) -> Result<(Vec<Sealed>, u64), MaintenanceError> {
        let numbers = segment_numbers(&self.journal)?;
        let mut sealed = Vec::with_capacity(numbers.len());
        let mut all = 0;
        for &number in &numbers {
            all += fs::metadata(segment_path(&self.journal, number))?.len();
        }
        for (at, pair) in numbers.windows(2).enumerate() {
            let (path, next) = (segment_path(&self.journal, pair[0]), segment_path(&self.journal, pair[1]));
            let later = numbers[at + 1..].iter().map(|&number| first_time(&segment_path(&self.journal, number)));
            let Some(until) = later.filter_map(Result::transpose).next().transpose()? else { break };
            let bytes = fs::metadata(&path)?.len();
            sealed.push(Sealed { number: pair[0], path, bytes, end: segment_start(&next)?, until });
        }
        Ok((sealed, all))
    }

    fn make_snapshot(&self) -> Result<PathBuf, MaintenanceError> {
        create_private_dir(&self.snapshots)?;
        let last = snapshot::list(&self.snapshots)?.first().map_or(Ok(0), |(_, p)| fs::metadata(p).map(|m| m.len()))?;
        let disk = self.check_free_space(&self.snapshots, last)?;
        let check_continue = || self.check_continue(&disk);
        let mut scan = SnapshotScan::begin(&self.table, ASIDE_BYTES_MAX).map_err(SnapshotError::from)?;
        let key = self.table.checksum_key();
        let (contents, path) = snapshot::create(
            &mut scan,
            snapshot::Form::Second(self.log_id),
            key,
            self.clock.now(),
            &self.snapshots,
            &check_continue,
        )?;
        let revision = contents.header.position.revision.0;
        self.stats.note_snapshot(contents.header.time);
        tracing::info!(path = %path.display(), revision, keys = contents.keys, "made a snapshot");
        Ok(path)
    }

    /// Checks that the disk of a directory has space for a file of about this size besides the reserve.
    /// Returns the directory.
    pub(super) fn check_free_space(&self, dir: &Path, bytes: u64) -> Result<File, MaintenanceError> {
        let disk = File::open(dir)?;
        let (free, needed) = (free_bytes(&disk)?, CHECKPOINT_FREE_BYTES_MIN + bytes);
        if free < needed { Err(MaintenanceError::DiskFull { free, needed }) } else { Ok(disk) }
    }

    /// Fails when a long step must stop: the store is closing, or the disk is filling up.
    pub(super) fn check_continue(&self, disk: &File) -> io::Result<()> {
        self.check_not_stopping()?;
        if free_bytes(disk)? < CHECKPOINT_FREE_BYTES_MIN { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// The revision up to which segments may be deleted.
fn covered(snapshots: &[(Revision, PathBuf)]) -> Revision {
    match snapshots {
        [_, (older, _), ..] => *older,
        // A single snapshot is not relied on.
        [_] | [] => Revision(0),
    }
}

/// The time of a segment's first change, if it has one.
fn first_time(path: &Path) -> Result<Option<UnixMillis>, JournalError> {
    let io = |e| JournalError::io(path, e);
    let mut bytes = Vec::new();
    let limit = (HEADER_BYTES + FRAME_BYTES_READ_MAX) as u64;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(io)?;
    // A header that does not read is reported by who asks for the segment's start.
    let begins = SegmentHeader::read_unsealed(&bytes).map_or(HEADER_BYTES_V1, |header| header.bytes());
    Ok(bytes.get(begins..).and_then(Frame::read).and_then(|frame| frame.first_time()))
}
