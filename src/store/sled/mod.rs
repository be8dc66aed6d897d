//! The engine of one node: a journal of our own, and sled as the table.
//!
//! The journal is the log and the promise: a commit is acknowledged when its frame is on the disk. sled alone cannot
//! carry that promise (its `flush` on Linux is `sync_file_range`, which commits neither a file's length nor the drive's
//! cache), so it is a view: written behind, checked at every start, and rebuilt from the journal when in doubt.
//!
//! ```text
//! <data>/lock          held while a process serves the directory
//! <data>/format        the version of the directory's layout
//! <data>/watermark     the highest acknowledged revision and its chain hash
//! <data>/journal/      NNNNNNNNNNNN.kwj
//! <data>/snapshot/     NNNNNNNNNNNNNNNNNNNN.kws, once older segments of the journal have gone
//! <data>/table/        sled
//! <data>/index/        NNNNNNNNNNNNNNNNNNNN.kwi: what the index held, for a quick start
//! ```
//!
//! Reading order: [`journal`] (frames and segments), [`table`] (sled), `recovery` (start-up), `committer` (the one
//! writer).

mod backup;
mod committer;
mod cut;
mod dir;
mod error;
mod image;
mod imaging;
pub mod inspect;
pub mod journal;
mod keeper;
mod known;
mod orderings;
mod overlay;
mod rebuild;
mod recovery;
pub mod restore;
pub mod salvage;
mod shrink;
pub mod snapshot;
mod sums;
pub mod table;
mod walk;
mod watermark;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::event::Revision;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use zeroize::Zeroizing;

use self::committer::{Committer, Progress, Request};
use self::journal::writer::{Gauge, Room};
use self::keeper::Keeper;
use self::overlay::Overlay;
use self::recovery::SoundTable;
use self::table::Table;
use super::bounds::{self, Kind, Pending};
use super::{
    Backup, BackupError, Bounds, Commit, CommitError, Condition, KeyQuery, Page, Part, Snapshot, Store, StoreError,
    TableFigures, View,
};
use crate::feed::{Feed, Resync, Subscription};

pub use self::backup::BackupLimits;
pub use self::dir::LockedDir;
pub use self::error::OpenError;
pub use self::keeper::Retention;

/// Commits that wait for the committer at most; one more is refused.
pub const COMMIT_QUEUE_MAX: usize = 1_024;

/// A disk that has not answered for this long is called stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// A change that had no room says so for this long, unless another one has had room since.
const REFUSAL_COUNTS_FOR: Duration = Duration::from_secs(10);

/// Records in one batch of a snapshot.
const SNAPSHOT_BATCH_RECORDS: usize = 1_024;

/// How to open a data directory.
pub struct Options {
    /// Size of new journal segments, in bytes.
    pub segment_bytes: u64,
    /// The key of the journal's chain.
    pub chain_key: Zeroizing<[u8; 32]>,
    /// How long the journal is kept.
    pub retention: Retention,
    /// What one backup may take.
    pub backup: BackupLimits,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How many names may be in use.
    pub bounds: Bounds,
}

/// A journal and a table.
pub struct SledStore {
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    progress: Progress,
    overlay: Arc<Overlay>,
    table: Arc<Table>,
    feed: Feed,
    gauge: Arc<Gauge>,
    table_rebuilds: u64,
    bounds: Bounds,
    view: Arc<dyn View>,
    looking: Arc<tokio::sync::Mutex<()>>,
    backing_up: Arc<tokio::sync::Mutex<()>>,
    backup_limits: BackupLimits,
    threads: Mutex<Option<(Committer, Keeper)>>,
    /// Unlocks the directory when dropped. Close the store first: its threads may outlive it otherwise.
    _dir: LockedDir,
}

impl SledStore {
    /// Opens a data directory, in the order that ARCHITECTURE.md gives, and repairs what may be repaired. It blocks
    /// for as long as that takes. Once it is open, `view` has every record as of [`Store::revision`], and often earlier: see
    /// [`View::whole`].
    ///
    /// # Errors
    /// When the directory is damaged or lacks acknowledged changes. See [`OpenError`].
    pub fn open(dir: LockedDir, options: &Options, view: Arc<dyn View>) -> Result<Self, OpenError> {
        let recovered = recovery::recover(&dir, options, SoundTable::Keep, &*view)?;
        let overlay = Arc::new(Overlay::default());
        overlay.insert(recovered.table.every_tenant().map_err(|error| OpenError::Table(error.into()))?.iter());
        let feed = Feed::starting_after(recovered.journal.position.revision);
        let table = Arc::new(recovered.table);
        let (requests, queue) = mpsc::channel(COMMIT_QUEUE_MAX);
        let gauge = Arc::new(recovered.journal.writer.gauge()?);
        let durable_at = Arc::new(Mutex::new(recovered.journal.position));
        let keeper = Keeper::start(keeper::Parts {
            dir: &dir,
            options,
            table: table.clone(),
            durable: durable_at.clone(),
            view: view.clone(),
            image: recovered.image,
        })?;
        let (committer, progress) = Committer::start(committer::Parts {
            journal: recovered.journal,
            watermark: recovered.watermark,
            queue,
            table: table.clone(),
            overlay: overlay.clone(),
            feed: feed.clone(),
            durable_at,
            keeper: keeper.waker(),
            bounds: options.bounds,
            view: view.clone(),
        })?;
        Ok(Self {
            requests: Mutex::new(Some(requests)),
            progress,
            overlay,
            table,
            feed,
            gauge,
            table_rebuilds: recovered.rebuilds,
            bounds: options.bounds,
            view,
            looking: Arc::default(),
            backing_up: Arc::default(),
            backup_limits: options.backup,
            threads: Mutex::new(Some((committer, keeper))),
            _dir: dir,
        })
    }

    /// Builds the table of a directory anew, from the newest snapshot and the journal, and says up to which revision.
    ///
    /// # Errors
    /// When the directory is damaged or lacks acknowledged changes. See [`OpenError`].
    pub fn rebuild(dir: &LockedDir, options: &Options) -> Result<Revision, OpenError> {
        let recovered = match recovery::recover(dir, options, SoundTable::BuildAnew, &()) {
            Err(OpenError::NoSoundSnapshot { path, why }) => {
                match recovery::recover(dir, options, SoundTable::Keep, &()) {
                    Ok(_) => return Err(OpenError::NothingToBuildFrom { path, why }),
                    Err(error) => return Err(error),
                }
            }
            other => other?,
        };
        recovered.table.flush().map_err(|error| OpenError::Table(error.into()))?;
        Ok(recovered.journal.position.revision)
    }

    /// Bytes of records that are put aside in memory now, for a backup and for the keeper's snapshot.
    #[must_use]
    pub fn aside_bytes(&self) -> u64 {
        self.table.cuts().lock().bytes()
    }

    /// Runs a read of the table on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Table) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let table = self.table.clone();
        spawn_blocking(move || read(&table)).await.map_err(|panic| StoreError::Engine(panic.to_string()))?
    }

    /// Waits until the table covers everything that is durable now, and gives the revision it covers.
    async fn caught_up(&self) -> Result<Revision, StoreError> {
        let durable = *self.progress.durable.borrow();
        let mut applied = self.progress.applied.clone();
        let applied = applied.wait_for(|applied| *applied >= durable).await.map_err(|_| StoreError::Closed)?;
        Ok(*applied)
    }
}

#[async_trait]
impl Store for SledStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        let revision = self.caught_up().await?;
        let sums = self.read(|table| table.sums().map_err(|error| StoreError::Engine(error.to_string()))).await?;
        let records = sums.tenants.count() + sums.keys.count();
        let (sender, parts) = mpsc::channel(4);
        let table = self.table.clone();
        // Ends with its channel, which the receiver of the snapshot holds.
        drop(spawn_blocking(move || {
            let mut batch = Vec::with_capacity(SNAPSHOT_BATCH_RECORDS);
            for record in table.records() {
                match record {
                    Ok(record) => batch.push(record),
                    Err(error) => return sender.blocking_send(Err(error)).is_ok(),
                }
                if batch.len() == SNAPSHOT_BATCH_RECORDS
                    && sender.blocking_send(Ok(Part::Records(std::mem::take(&mut batch)))).is_err()
                {
                    return false;
                }
            }
            [Part::Records(batch), Part::End].into_iter().all(|part| sender.blocking_send(Ok(part)).is_ok())
        }));
        Ok(Snapshot { revision, records, parts })
    }

    async fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        // What the overlay has let go is in the table; so ask the overlay first.
        if let Some(key) = self.overlay.key(tenant, key_id) {
            return Ok(Some(key));
        }
        let (tenant, key_id) = (tenant.clone(), key_id.clone());
        self.read(move |table| table.key(&tenant, &key_id)).await
    }

    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        self.caught_up().await?;
        self.read(move |table| table.keys(&query)).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        Ok(self.overlay.tenant(tenant))
    }

    async fn tenants(&self, after: Option<TenantId>, limit: usize) -> Result<Page<TenantRecord, TenantId>, StoreError> {
        self.caught_up().await?;
        self.read(move |table| table.tenants(after.as_ref(), limit)).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.lock().clone().ok_or(StoreError::Closed)?;
        requests.try_send(Request { commit, reply }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => CommitError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed.into(),
        })?;
        drop(requests);
        answer.await.map_err(|_| StoreError::Closed)?
    }

    fn admits(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        let in_use = |kind: Kind, asked: &[&str]| kind.in_use(&*self.view, &key.tenant, asked);
        bounds::check(&self.bounds, &Pending::default(), before, key, in_use)
    }

    fn admits_tenant(&self) -> Result<(), CommitError> {
        bounds::check_tenants(&self.bounds, self.overlay.tenants())
    }

    fn changes(&self, after: Revision) -> Result<Subscription, Resync> {
        self.feed.subscribe(after)
    }

    fn revision(&self) -> Revision {
        *self.progress.durable.borrow()
    }

    async fn condition(&self) -> Condition {
        // A look that hangs keeps its thread: one at a time.
        let Ok(looking) = self.looking.clone().try_lock_owned() else { return Condition::Stuck };
        let gauge = self.gauge.clone();
        let look = spawn_blocking(move || {
            let _looking = looking;
            gauge.room()
        });
        match timeout(STUCK_AFTER, look).await {
            _ if self.progress.busy.lasted() > STUCK_AFTER => Condition::Stuck,
            Err(_) => Condition::Stuck,
            _ if self.progress.busy.had_no_room(REFUSAL_COUNTS_FOR) => Condition::NoRoom,
            Ok(Ok(Ok(Room::Ample))) => Condition::Writable,
            Ok(_) => Condition::NoRoom,
        }
    }

    fn table(&self) -> TableFigures {
        TableFigures { rebuilds: self.table_rebuilds, ..self.table.figures() }
    }

    async fn backup(&self, time: UnixMillis) -> Result<Backup, BackupError> {
        let turn = self.backing_up.clone().try_lock_owned().map_err(|_| BackupError::Busy)?;
        self.caught_up().await.map_err(|error| BackupError::Failed(error.to_string()))?;
        backup::start(self.table.clone(), time, self.backup_limits, turn).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        drop(self.requests.lock().take());
        let Some((committer, keeper)) = self.threads.lock().take() else { return Ok(()) };
        let joined = spawn_blocking(move || keeper.join().and(committer.join()));
        joined.await.map_err(|panic| StoreError::Engine(panic.to_string()))??;
        self.read(Table::flush).await
    }
}
