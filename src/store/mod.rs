//! The storage contract that every engine implements.
//!
//! An engine is one log and the views it needs to answer reads. The contract is what both an embedded engine
//! with a journal and an etcd transaction can provide: compare-and-set on record versions, and one revision
//! that only grows. One conformance suite (tests/it/storage/conformance.rs) runs on every engine. A server is
//! given one through the seam in [`engine`].

mod administrators;
mod bounds;
mod check;
mod commit;
pub mod engine;
pub mod local;
mod log_stream;
pub mod memory;
mod ordinals;
mod query;
pub mod record;
mod retries;
mod view;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::head::Head;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, TenantRecord};
use tokio::sync::mpsc;

pub use self::bounds::{Bounds, Exceeded, InUse};
pub use self::commit::{Commit, CommitError, RecordWrite};
pub use self::log_stream::LogStream;
pub use self::query::{DueKey, KeyQuery, Page, PagePermit, ReadContext, SoughtText};
pub use self::retries::{Outcome, REMEMBERED_FOR, REMEMBERED_IN_ALL, Recalled, Retry, RetryEntry, is_remembered};
pub use self::view::{ChunkWriter, MaterializedView};
use crate::feed::{Lagged, Subscription};

/// The keys a page of a filtered list examines at most, plus [`EXAMINED_PER_FOUND`] for each key it returns.
/// A page that reaches the limit ends early; if it has found none by then, it is refused.
pub const EXAMINED_MIN: usize = 200;
/// See [`EXAMINED_MIN`].
pub const EXAMINED_PER_FOUND: usize = 20;

/// A log of keys and tenants, with the reads of the admin path. Verify does not use it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One key, as of the last commit or later, read on the program's own behalf.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.key_for(&ReadContext { caller: ActorId::keyward(), urgent: false }, tenant, key_id).await
    }

    /// One key, as of the last commit or later.
    ///
    /// # Errors
    /// When the engine cannot read, or too many reads wait.
    async fn key_for(
        &self,
        reader: &ReadContext,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError>;

    /// A page of keys in the order of their ids, as of the last commit or later. Scheduled fairly by caller.
    ///
    /// # Errors
    /// When the engine cannot read, or too many lists wait.
    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError>;

    /// Up to `limit` keys of all tenants that are due by a time, after another one, in the order of their
    /// times ([`KeyRecord::due_time`]). The newest commits may be missing, so the caller reads each key
    /// again.
    ///
    /// # Errors
    /// When the engine cannot read, or too many reads wait.
    async fn due(&self, after: Option<&DueKey>, until: UnixMillis, limit: usize) -> Result<Vec<DueKey>, StoreError>;

    /// One tenant, as of the last commit or later.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;

    /// The record of an owner, as of the last commit or later. `None`: there is none, and it is not known
    /// whether any key has the owner.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError>;

    /// The record of an issuer, likewise.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn issuer(&self, issuer: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError>;

    /// A page of tenants in the order of their ids, as of the last commit or later. Scheduled fairly by
    /// caller.
    ///
    /// # Errors
    /// When the engine cannot read, or too many lists wait.
    async fn tenants(
        &self,
        caller: &ActorId,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Page<TenantRecord, TenantId>, StoreError>;

    /// Writes records, their audit entry and their change, all or nothing. Returns when the change is
    /// durable; an engine that cannot know whether it is stops the process. The store sets the records'
    /// revision.
    ///
    /// # Errors
    /// See [`CommitError`]. Nothing has been written then.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Whether this caller's request was made in the last ten minutes: what is durable of it. A commit looks
    /// again, at its place in the log.
    fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled;

    /// What a change came to that [`Store::recall`] or [`CommitError::Repeated`] has told of. `None`: it is
    /// not remembered any more.
    ///
    /// # Errors
    /// When the engine cannot read, or too many reads wait.
    async fn outcome(&self, reader: &ReadContext, revision: Revision) -> Result<Option<Outcome>, StoreError>;

    /// Checks the bounds on names for a key that would replace `before`, without writing. A commit is checked
    /// again, together with commits in flight.
    ///
    /// # Errors
    /// [`CommitError::Bounded`].
    fn check_bounds(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError>;

    /// Checks the bound on tenants for one more tenant, without writing.
    ///
    /// # Errors
    /// [`CommitError::Bounded`].
    fn check_tenant_bound(&self) -> Result<(), CommitError>;

    /// Checks that a lasting administrator remains at time `clock` if the key is written, without writing. A
    /// commit is checked again.
    ///
    /// # Errors
    /// [`CommitError::LastAdministrator`].
    fn check_administrators(&self, key: &KeyRecord, clock: UnixMillis) -> Result<(), CommitError>;

    /// The same for a tenant, an owner or an issuer, and the bound on records of owners and issuers if it is
    /// a new one.
    ///
    /// # Errors
    /// [`CommitError::LastAdministrator`] and [`CommitError::Bounded`].
    fn check_hold(&self, record: &Record, clock: UnixMillis) -> Result<(), CommitError>;

    /// The number of lasting administrators ([`keyward_core::administrators`]) at time `clock`. Logs a
    /// warning, once, if there is none.
    fn lasting_administrators(&self, clock: UnixMillis) -> usize;

    /// The changes after a revision, as they are made: ordered and without gaps.
    ///
    /// When they are no longer all in the window. The caller must then read the log up to its end with
    /// [`Store::read_log`], and subscribe again from there.
    fn changes(&self, after: Revision) -> Result<Subscription, Lagged>;

    /// The changes after a revision that are durable now, from the log: ordered and without gaps, as they
    /// were published. However many they are, only a few batches are in memory.
    ///
    /// # Errors
    /// When the engine cannot read, or the log no longer goes back that far. It does for a
    /// [`MaterializedView`] that asks from its own revision.
    async fn read_log(&self, after: Revision) -> Result<LogStream, StoreError>;

    /// The revision of the last durable change.
    fn revision(&self) -> Revision;

    /// The position of the last durable change, with the hash of the log up to it. `None` if the engine keeps
    /// no log that could be truncated or replaced, so that there is nothing to compare.
    fn head(&self) -> Option<Head>;

    /// Whether changes can be made now.
    async fn write_health(&self) -> WriteHealth;

    /// The size of the engine's table, if it has one. A cached value, up to some seconds old.
    fn table_stats(&self) -> TableStats {
        TableStats::default()
    }

    /// The engine's progress and its latest snapshot and backup. Cached values, up to some seconds old.
    fn stats(&self) -> StoreStats {
        StoreStats::at(self.revision())
    }

    /// Every record at one revision, as the bytes of a backup. Only one backup runs at a time; it blocks
    /// nothing else.
    ///
    /// # Errors
    /// See [`BackupError`].
    async fn backup(&self, time: UnixMillis, format: BackupFormat) -> Result<Backup, BackupError>;

    /// Refuses new commits, finishes the queued ones, and flushes everything.
    ///
    /// When the flush fails. Acknowledged changes are durable even then.
    async fn close(&self) -> Result<(), StoreError>;
}

/// Whether changes can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteHealth {
    /// They can.
    Writable,
    /// The disk has no room for them.
    DiskFull,
    /// The disk has not answered for some seconds.
    DiskStalled,
}

/// The size of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of its records.
    pub record_bytes: u64,
    /// How often it has been rebuilt while being opened.
    pub rebuilds: u64,
}

/// The engine's progress, and its latest snapshot and backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// The revision of the last durable change.
    pub durable: Revision,
    /// The revision of the last change in the table.
    pub applied: Revision,
    /// Changes that are queued.
    pub waiting: usize,
    /// Free bytes on its disk, as last measured.
    pub free_bytes: Option<u64>,
    /// The time of the newest snapshot known to be intact.
    pub snapshot: Option<UnixMillis>,
    /// The time of the last backup that was read completely, since the engine was opened.
    pub backup: Option<UnixMillis>,
}

impl StoreStats {
    /// The stats of an engine that applies changes at once and keeps no files.
    #[must_use]
    pub fn at(revision: Revision) -> Self {
        Self { durable: revision, applied: revision, waiting: 0, free_bytes: None, snapshot: None, backup: None }
    }
}

/// The format of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackupFormat {
    /// For older programs. It has no record of version 2.
    First,
    /// The newest.
    #[default]
    Second,
}

/// A backup in progress.
#[derive(Debug)]
pub struct Backup {
    /// Its revision.
    pub revision: Revision,
    /// Its bytes in pieces, ending with an error if it is aborted. If the channel ends without one, the
    /// backup is complete, and its last bytes say so too.
    pub pieces: mpsc::Receiver<Result<Vec<u8>, BackupError>>,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Another backup is in progress.
    #[error("another backup is being made")]
    Busy,
    /// It exceeded a limit.
    #[error(transparent)]
    Aborted(BackupLimit),
    /// There are records that the format cannot have.
    #[error("there are records that a backup of format 1 cannot have")]
    NeedsSecondFormat,
    /// It failed for the reason given.
    #[error("{0}")]
    Failed(String),
}

/// The limit that a backup exceeded. The texts are for the reader of the backup and say what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupLimit {
    /// It took longer than this.
    #[error(
        "the backup was not read to its end within {} (backup_time_max); read it faster, or raise that setting",
        humantime::format_duration(*.0)
    )]
    Time(Duration),
    /// It needed more pre-images than this many bytes.
    #[error(
        "more than {0} bytes of keys changed before the backup had come to them (backup_aside_bytes_max); read it faster or \
         when fewer keys change, or raise that setting"
    )]
    Aside(u64),
    /// Its reader was idle for this long.
    #[error("nothing of the backup was read for {}; read it without pauses", humantime::format_duration(*.0))]
    Idle(Duration),
}

/// An engine that cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is closing, or closed.
    #[error("the store is closed")]
    Closed,
    /// Too many reads of this kind are queued, in total or for one caller.
    #[error("too many reads are waiting")]
    Overloaded,
    /// The conditions of a list match many keys each, but next to none together, so that finding the matches
    /// would exceed the limit of one call.
    #[error("of the keys that meet each condition of the list, next to none meet all")]
    TooSparse,
    /// The engine below failed.
    #[error("the storage engine failed: {0}")]
    Engine(String),
    /// Stored bytes do not decode.
    #[error("a stored record is damaged")]
    Decode(#[from] record::DecodeError),
}
