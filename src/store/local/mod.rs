//! The engine for one node: a journal of our own, with sled as the table.
//!
//! The journal is the log, and carries durability: a commit is acknowledged when its frame is on the disk.
//! sled alone cannot guarantee that (its `flush` on Linux is `sync_file_range`, which commits neither a
//! file's length nor the drive's cache), so it is a view: written behind, checked at every start, and rebuilt
//! from the journal when in doubt.
//!
//! ```text
//! <data>/lock          held while a process serves the directory
//! <data>/format        the version of the directory's layout
//! <data>/watermark     the highest acknowledged revision and its chain hash
//! <data>/journal/      NNNNNNNNNNNN.kwj
//! <data>/snapshot/     NNNNNNNNNNNNNNNNNNNN.kws, once older segments of the journal have gone
//! <data>/table/        sled
//! <data>/index/        NNNNNNNNNNNNNNNNNNNN.kwi: what the index held, for a quick start
//! <data>/replies/      NNNNNNNNNNNN.kwr: sealed replies, for retries
//! ```
//!
//! Reading order: [`journal`] (frames and segments), [`table`] (sled), `recovery` (start-up), `commit_queue`
//! and `committer` (the single writer), `reads` (the readers), `log_reader` (the log, for a view that fell
//! behind), `retries` and `replies` (what was asked for lately), `maintenance` (snapshots and retention).

mod cached_stats;
pub mod checkpoint;
mod committer;
mod dir;
mod disk_probe;
pub mod disk_space;
mod engine;
mod error;
#[cfg(feature = "_fuzz")]
pub mod fuzz_targets;
pub mod journal;
mod log_reader;
mod options;
pub mod recovery;
mod replies;
mod retries;
pub mod table;
#[cfg(test)]
mod tests;
mod write_buffer;

use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use async_trait::async_trait;
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::head::Head;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, LogId, OwnerRecord, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::cached_stats::CachedStats;
use self::checkpoint::maintenance::{Maintenance, MaintenanceConfig};
use self::checkpoint::snapshot::Form;
use self::committer::queue::{CommitQueue, PushError};
use self::committer::{CommitProgress, Committer, CommitterConfig, Request};
use self::disk_probe::DiskProbe;
use self::disk_space::DiskSpace;
use self::journal::{ChainKey, Position};
use self::recovery::recover::{TablePolicy, recover};
use self::retries::RetryLog;
use self::table::Table;
use self::table::readers::Readers;
use self::table::secondary_index::ListScan;
use self::write_buffer::WriteBuffer;
use crate::fair::{self, FairSemaphore};
use crate::feed::{Feed, Lagged, Subscription};
use crate::store::administrators::Administrators;
use crate::store::bounds::{self, NameKind, Pending};
use crate::store::{
    Backup, BackupError, BackupFormat, Bounds, Commit, CommitError, DueKey, KeyQuery, LogStream, MaterializedView,
    Outcome, Page, PagePermit, ReadContext, Recalled, Retry, Store, StoreError, StoreStats, TableStats, WriteHealth,
};

pub use self::committer::queue::{COMMIT_QUEUE_MAX, COMMIT_QUEUE_OF_ONE_MAX};
pub use self::dir::LockedDir;
pub use self::engine::LocalEngine;
pub use self::error::{HeadFault, OpenError};
pub use self::options::{BackupLimits, Expectations, Retention, StoreOptions};
pub use self::recovery::recover::Filled;

/// Threads that read lists.
const LIST_THREADS: usize = 3;
/// Threads that read one key.
const KEY_THREADS: usize = 2;
/// Threads that read a key before a narrowing.
const URGENT_THREADS: usize = 1;
/// Lists being read or encoded.
const LISTS: fair::Bounds = fair::Bounds { total: 64, per_party: 32 };
/// Lists queued for that.
const LISTS_WAITING: fair::Bounds = fair::Bounds { total: 4_096, per_party: 1_024 };

/// A disk that has not answered for this long counts as stalled.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// How long a change that found the disk full counts, unless another one has had space since.
const REFUSAL_COUNTS_FOR: Duration = Duration::from_secs(10);

/// A journal and a table.
pub struct LocalStore {
    commit_queue: Arc<CommitQueue>,
    progress: CommitProgress,
    write_buffer: Arc<WriteBuffer>,
    table: Arc<Table>,
    feed: Feed,
    table_rebuilds: u64,
    bounds: Bounds,
    view: Arc<dyn MaterializedView>,
    administrators: Arc<Mutex<Administrators>>,
    retries: Arc<RetryLog>,
    backing_up: Arc<tokio::sync::Mutex<()>>,
    backup_limits: BackupLimits,
    log_id: LogId,
    disk_probe: DiskProbe,
    stats: Arc<CachedStats>,
    lists: Arc<FairSemaphore<ActorId>>,
    list_readers: Readers,
    key_readers: Readers,
    urgent_readers: Readers,
    /// The end of the log.
    durable_at: Arc<Mutex<Position>>,
    /// For reads of the log.
    chain_key: Arc<ChainKey>,
    threads: Mutex<Option<(Committer, Maintenance)>>,
    /// Unlocks the directory when dropped. Close the store first: its threads may outlive it otherwise.
    dir: LockedDir,
}

impl LocalStore {
    /// Opens a data directory, in the order that docs/internals/recovery.md gives, and repairs what can be
    /// repaired. Blocks for as long as that takes. Once it is open, `view` has every record as of
    /// [`Store::revision`], and often earlier: see [`MaterializedView::on_loaded`].
    ///
    /// # Errors
    /// When the directory is damaged or lacks acknowledged changes. See [`OpenError`].
    pub fn open(dir: LockedDir, options: &StoreOptions, view: Arc<dyn MaterializedView>) -> Result<Self, OpenError> {
        Self::open_filled(dir, options, view, &mut None)
    }

    /// Loads `view` from the checkpoint or a snapshot and the journal, without writing anything: for a full
    /// disk. Calls [`MaterializedView::on_loaded`] if everything could be loaded. The result must be passed
    /// to [`LocalStore::open_filled`] later.
    ///
    /// When the directory is damaged or lacks acknowledged changes, as far as that shows without the table.
    pub fn fill(
        dir: &LockedDir,
        options: &StoreOptions,
        view: &dyn MaterializedView,
    ) -> Result<Option<Filled>, OpenError> {
        recovery::read_only_fill::fill(dir, options, view)
    }

    /// As [`LocalStore::open`], with a view that was loaded before if `filled` is set. Sets `filled` once the
    /// view is loaded, even if opening fails later.
    ///
    /// # Errors
    /// As [`LocalStore::open`].
    pub fn open_filled(
        dir: LockedDir,
        options: &StoreOptions,
        view: Arc<dyn MaterializedView>,
        filled: &mut Option<Filled>,
    ) -> Result<Self, OpenError> {
        let recovered = recover(&dir, options, TablePolicy::Keep, &*view, filled)?;
        recovery::offline_append::warn_of_restore(&dir, &recovered.journal.key, &recovered.journal.position)?;
        let write_buffer = Arc::new(WriteBuffer::default());
        let kept_in_memory = recovered.table.kept_in_memory().map_err(|error| OpenError::Table(error.into()))?;
        write_buffer.insert(kept_in_memory.iter());
        let administrators = table::administrators::read(&recovered.table);
        let mut administrators = administrators.map_err(|error| OpenError::Table(error.into()))?;
        kept_in_memory.iter().for_each(|record| drop(administrators.apply(record)));
        let administrators = Arc::new(Mutex::new(administrators));
        let log_id = recovered.journal.writer.log_id();
        let next_ordinal = recovered.table.checksums().map_err(OpenError::Table)?.next_ordinal;
        let feed = Feed::starting_after(recovered.journal.position.revision);
        let table = Arc::new(recovered.table);
        let commit_queue = Arc::new(CommitQueue::new());
        let stats = Arc::new(CachedStats::default());
        let disk_probe = DiskProbe::start(recovered.journal.writer.meter(options.free_bytes)?, stats.clone())?;
        let durable_at = Arc::new(Mutex::new(recovered.journal.position));
        let now = options.clock.now().max(view.latest_time());
        let retries = RetryLog::open(dir.journal(), &dir.replies(), (recovered.journal.position.revision, now))?;
        let retries = Arc::new(retries);
        let maintenance = Maintenance::start(MaintenanceConfig {
            dir: &dir,
            options,
            table: table.clone(),
            durable: durable_at.clone(),
            view: view.clone(),
            checkpoint: recovered.checkpoint,
            log_id,
            stats: stats.clone(),
            retries: retries.clone(),
        })?;
        let (committer, progress) = Committer::start(CommitterConfig {
            journal: recovered.journal,
            watermark: recovered.watermark,
            commit_queue: commit_queue.clone(),
            free_bytes: options.free_bytes,
            table: table.clone(),
            write_buffer: write_buffer.clone(),
            feed: feed.clone(),
            durable_at: durable_at.clone(),
            maintenance: maintenance.waker(),
            bounds: options.bounds,
            view: view.clone(),
            administrators: administrators.clone(),
            retries: retries.clone(),
            next_ordinal,
        })?;
        Ok(Self {
            commit_queue,
            progress,
            write_buffer,
            feed,
            durable_at,
            table_rebuilds: recovered.rebuilds,
            bounds: options.bounds,
            view,
            administrators,
            retries,
            backing_up: Arc::default(),
            backup_limits: options.backup,
            log_id,
            disk_probe,
            stats,
            lists: Arc::new(FairSemaphore::new(LISTS, LISTS_WAITING)),
            list_readers: Readers::start("lists", LIST_THREADS, Some(table.clone()))?,
            key_readers: Readers::start("reads", KEY_THREADS, None)?,
            urgent_readers: Readers::start("urgent reads", URGENT_THREADS, None)?,
            table,
            chain_key: Arc::new(ChainKey(options.chain_key.clone())),
            threads: Mutex::new(Some((committer, maintenance))),
            dir,
        })
    }

    /// Rebuilds a directory's table from the newest snapshot and the journal. Returns its revision.
    ///
    /// # Errors
    /// When the directory is damaged or lacks acknowledged changes. See [`OpenError`].
    pub fn rebuild(dir: &LockedDir, options: &StoreOptions) -> Result<Revision, OpenError> {
        let recovered = match recover(dir, options, TablePolicy::Rebuild, &(), &mut None) {
            Err(OpenError::NoSoundSnapshot { path, why }) => {
                match recover(dir, options, TablePolicy::Keep, &(), &mut None) {
                    Ok(_) => return Err(OpenError::NothingToBuildFrom { path, why }),
                    Err(error) => return Err(error),
                }
            }
            other => other?,
        };
        recovered.table.flush().map_err(|error| OpenError::Table(error.into()))?;
        Ok(recovered.journal.position.revision)
    }

    /// Bytes of pre-images in memory now, for a backup and for a snapshot.
    #[must_use]
    pub fn pre_image_bytes(&self) -> u64 {
        self.table.scans().lock().bytes()
    }

    /// How many commits are queued: urgent ones, and ordinary ones.
    #[must_use]
    pub fn waiting(&self) -> [usize; 2] {
        self.commit_queue.waiting()
    }

    /// Waits until the table covers everything that is durable now. Returns the table's revision.
    async fn caught_up(&self) -> Result<Revision, StoreError> {
        let durable = *self.progress.durable.borrow();
        let mut applied = self.progress.applied.clone();
        let applied = applied.wait_for(|applied| *applied >= durable).await.map_err(|_| StoreError::Closed)?;
        Ok(*applied)
    }
}

impl Drop for LocalStore {
    /// The committer ends when it has done what is queued.
    fn drop(&mut self) {
        self.commit_queue.close();
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn key_for(
        &self,
        reader: &ReadContext,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        // Records leave the write buffer for the table, so the write buffer is read first.
        if let Some(newer) = self.write_buffer.key(tenant, key_id) {
            return Ok(newer.key());
        }
        let (table, tenant, key_id) = (self.table.clone(), tenant.clone(), key_id.clone());
        let readers = if reader.urgent { &self.urgent_readers } else { &self.key_readers };
        readers.read(reader.caller.clone(), move || table.key(&tenant, &key_id).map(Some)).await
    }

    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        let (table, write_buffer, caller) = (self.table.clone(), self.write_buffer.clone(), query.caller.clone());
        let place = self.lists.acquire(caller.clone()).await.map_err(|_| StoreError::Overloaded)?;
        let mut scan = ListScan::new(query);
        let mut page = self.list_readers.read(caller, move || table.resume_list(&write_buffer, &mut scan)).await?;
        page.permit = PagePermit::of(place);
        Ok(page)
    }

    async fn due(&self, after: Option<&DueKey>, until: UnixMillis, limit: usize) -> Result<Vec<DueKey>, StoreError> {
        let (table, after) = (self.table.clone(), after.cloned());
        let read = move || table.due(after.as_ref(), until, limit).map(Some);
        self.key_readers.read(ActorId::keyward(), read).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        Ok(self.write_buffer.tenant(tenant))
    }

    async fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError> {
        Ok(self.write_buffer.owner(tenant, owner))
    }

    async fn issuer(&self, issuer: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError> {
        Ok(self.write_buffer.issuer(issuer))
    }

    async fn tenants(
        &self,
        caller: &ActorId,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Page<TenantRecord, TenantId>, StoreError> {
        let place = self.lists.acquire(caller.clone()).await.map_err(|_| StoreError::Overloaded)?;
        let found = self.write_buffer.tenants(after.as_ref(), limit.saturating_add(1));
        let page = Page::first(found.into_iter(), limit, |tenant| tenant.tenant.clone());
        Ok(Page { permit: PagePermit::of(place), ..page })
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let (reply, answer) = oneshot::channel();
        self.commit_queue.push(Request { commit, reply }).map_err(|refused| match refused {
            PushError::Full => CommitError::Overloaded,
            PushError::Closed => StoreError::Closed.into(),
        })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled {
        self.retries.recall(actor, retry, now)
    }

    async fn outcome(&self, reader: &ReadContext, revision: Revision) -> Result<Option<Outcome>, StoreError> {
        let readers = if reader.urgent { &self.urgent_readers } else { &self.key_readers };
        let retries = self.retries.clone();
        readers.read(reader.caller.clone(), move || retries.outcome(revision).map(Some)).await
    }

    fn check_bounds(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        let in_use = |kind: NameKind, asked: &[&str]| kind.in_use(&*self.view, &key.tenant, asked);
        bounds::check(&self.bounds, &Pending::default(), before, key, in_use)
    }

    fn check_tenant_bound(&self) -> Result<(), CommitError> {
        bounds::check_tenants(&self.bounds, self.write_buffer.tenant_count())
    }

    fn check_administrators(&self, key: &KeyRecord, clock: UnixMillis) -> Result<(), CommitError> {
        let record = Record::Key(Arc::new(key.clone()));
        self.administrators.lock().check([&record].into_iter(), clock)
    }

    fn check_hold(&self, record: &Record, clock: UnixMillis) -> Result<(), CommitError> {
        match record {
            Record::Owner(owner) if owner.revision == Revision(0) => {
                let OwnerRecord { tenant, owner, .. } = &**owner;
                let in_use = NameKind::Owner.in_use(&*self.view, tenant, &[owner]).unwrap_or_default();
                bounds::check_owner(&self.bounds, self.write_buffer.owner_count(tenant), &in_use)?;
            }
            Record::Issuer(issuer) if issuer.revision == Revision(0) => {
                bounds::check_issuers(self.write_buffer.issuer_count())?;
            }
            _ => {}
        }
        self.administrators.lock().check([record].into_iter(), clock)
    }

    fn lasting_administrators(&self, clock: UnixMillis) -> usize {
        let mut administrators = self.administrators.lock();
        administrators.warn_if_none(clock);
        administrators.count(clock)
    }

    fn changes(&self, after: Revision) -> Result<Subscription, Lagged> {
        self.feed.subscribe(after)
    }

    async fn read_log(&self, after: Revision) -> Result<LogStream, StoreError> {
        // All of it has been published, so a subscription can go on from here.
        log_reader::read(self.dir.journal(), self.chain_key.clone(), after, self.revision())
    }

    fn revision(&self) -> Revision {
        *self.progress.durable.borrow()
    }

    fn head(&self) -> Option<Head> {
        Some((*self.durable_at.lock()).into())
    }

    async fn write_health(&self) -> WriteHealth {
        let room = self.disk_probe.probe(STALLED_AFTER).await;
        let waited = self.progress.busy.lasted().max(self.commit_queue.stalled_for());
        match room {
            _ if waited > STALLED_AFTER => WriteHealth::DiskStalled,
            None => WriteHealth::DiskStalled,
            _ if self.progress.busy.was_disk_full(REFUSAL_COUNTS_FOR) => WriteHealth::DiskFull,
            Some(Ok(DiskSpace::Ok)) => WriteHealth::Writable,
            Some(_) => WriteHealth::DiskFull,
        }
    }

    fn table_stats(&self) -> TableStats {
        TableStats { rebuilds: self.table_rebuilds, ..self.table.stats() }
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            durable: self.revision(),
            applied: *self.progress.applied.borrow(),
            waiting: self.waiting().iter().sum(),
            free_bytes: self.stats.free_bytes(),
            snapshot: self.stats.snapshot(),
            backup: self.stats.backup(),
        }
    }

    async fn backup(&self, time: UnixMillis, format: BackupFormat) -> Result<Backup, BackupError> {
        let turn = self.backing_up.clone().try_lock_owned().map_err(|_| BackupError::Busy)?;
        self.caught_up().await.map_err(|error| BackupError::Failed(error.to_string()))?;
        let form = match format {
            BackupFormat::First => Form::First,
            BackupFormat::Second => Form::Second(self.log_id),
        };
        checkpoint::backup::start(self.table.clone(), form, time, self.backup_limits, turn, self.stats.clone()).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.commit_queue.close();
        let Some((committer, maintenance)) = self.threads.lock().take() else { return Ok(()) };
        let table = self.table.clone();
        on_a_thread(move || maintenance.join().and(committer.join()).and_then(|()| table.flush())).await
    }
}

/// Runs rare blocking work on a thread of its own.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (done, result) = oneshot::channel();
    let thread = Builder::new().name("store".into()).spawn(move || drop(done.send(work())));
    thread.map_err(|error| StoreError::Engine(error.to_string()))?;
    result.await.map_err(|_| StoreError::Engine("a thread of the store panicked".into()))?
}
