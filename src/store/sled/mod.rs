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
//! <data>/table/        sled
//! ```
//!
//! Reading order: [`journal`] (frames and segments), [`table`] (sled), `recovery` (start-up), `committer` (the one
//! writer).

mod committer;
mod dir;
pub mod journal;
mod overlay;
mod recovery;
mod sums;
pub mod table;
mod watermark;

use std::sync::Arc;

use async_trait::async_trait;
use keyward_core::event::Revision;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use self::committer::{Committer, Request};
use self::overlay::Overlay;
use self::table::Table;
use super::{Commit, CommitError, KeyQuery, Page, Part, Snapshot, Store, StoreError};
use crate::feed::{Feed, Resync, Subscription};

pub use self::dir::LockedDir;
pub use self::recovery::OpenError;

/// Commits that wait for the committer at most; one more is refused.
pub const COMMIT_QUEUE_MAX: usize = 1_024;

/// Size of a journal segment, unless the options say otherwise.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Records in one batch of a snapshot.
const SNAPSHOT_BATCH_RECORDS: usize = 1_024;

/// How to open a data directory.
pub struct Options {
    /// Size of new journal segments, in bytes.
    pub segment_bytes: u64,
    /// The key of the journal's chain.
    pub chain_key: Zeroizing<[u8; 32]>,
}

/// A journal and a table.
pub struct SledStore {
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    durable: watch::Receiver<Revision>,
    applied: watch::Receiver<Revision>,
    overlay: Arc<Overlay>,
    table: Arc<Table>,
    feed: Feed,
    committer: Mutex<Option<Committer>>,
    /// Unlocks the directory when dropped. Close the store first: its threads may outlive it otherwise.
    _dir: LockedDir,
}

impl SledStore {
    /// Opens a data directory, in the order that ARCHITECTURE.md gives, and repairs what may be repaired. It blocks
    /// for as long as that takes.
    ///
    /// # Errors
    /// When the directory is damaged or lacks acknowledged changes. See [`OpenError`].
    pub fn open(dir: LockedDir, options: &Options) -> Result<Self, OpenError> {
        let recovered = recovery::recover(&dir, options)?;
        let overlay = Arc::new(Overlay::default());
        let feed = Feed::starting_after(recovered.revision);
        let table = Arc::new(recovered.table);
        let (requests, queue) = mpsc::channel(COMMIT_QUEUE_MAX);
        let (committer, durable, applied) = Committer::start(
            recovered.journal,
            recovered.watermark,
            recovered.revision,
            queue,
            table.clone(),
            overlay.clone(),
            feed.clone(),
        )?;
        Ok(Self {
            requests: Mutex::new(Some(requests)),
            durable,
            applied,
            overlay,
            table,
            feed,
            committer: Mutex::new(Some(committer)),
            _dir: dir,
        })
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
        let durable = *self.durable.borrow();
        let mut applied = self.applied.clone();
        let applied = applied.wait_for(|applied| *applied >= durable).await.map_err(|_| StoreError::Closed)?;
        Ok(*applied)
    }
}

#[async_trait]
impl Store for SledStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        let revision = self.caught_up().await?;
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
        Ok(Snapshot { revision, parts })
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
        if let Some(tenant) = self.overlay.tenant(tenant) {
            return Ok(Some(tenant));
        }
        let tenant = tenant.clone();
        self.read(move |table| table.tenant(&tenant)).await
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

    fn changes(&self, after: Revision) -> Result<Subscription, Resync> {
        self.feed.subscribe(after)
    }

    fn revision(&self) -> Revision {
        *self.durable.borrow()
    }

    async fn close(&self) -> Result<(), StoreError> {
        drop(self.requests.lock().take());
        let Some(committer) = self.committer.lock().take() else { return Ok(()) };
        spawn_blocking(move || committer.join()).await.map_err(|panic| StoreError::Engine(panic.to_string()))??;
        self.read(Table::flush).await
    }
}
