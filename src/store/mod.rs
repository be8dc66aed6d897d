//! The storage contract that every engine implements.
//!
//! An engine is one log and the views it needs to answer reads. The contract is what both an embedded engine
//! with a journal and an etcd transaction can provide: compare-and-set on record versions, and one revision
//! that only grows. One conformance suite (tests/it/storage/conformance.rs) runs on every engine. A server is given one
//! through the seam in [`engine`].

mod administrators;
mod bounds;
mod check;
pub mod engine;
pub mod local;
pub mod memory;
pub mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyward_core::access::{Authorization, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::head::Head;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{KeyRecord, State, TenantRecord};
use tokio::sync::mpsc;

pub use self::bounds::{Bounds, Exceeded, InUse};
use crate::feed::{Lagged, Subscription};

/// The keys a page of a filtered list examines at most, plus [`EXAMINED_PER_FOUND`] for each key it returns.
/// A page that reaches the limit ends early; if it has found none by then, it is refused.
pub const EXAMINED_MIN: usize = 200;
/// See [`EXAMINED_MIN`].
pub const EXAMINED_PER_FOUND: usize = 20;

/// A log of keys and tenants, with the reads of the admin path. Verify does not use it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Every record at one revision, as a stream of batches.
    ///
    /// A record that changes while the stream runs may appear in its newer form. [`Store::changes`] from the
    /// stream's revision supplies whatever the stream lacks.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn load(&self) -> Result<RecordStream, StoreError>;

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

    /// One tenant, as of the last commit or later.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;

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

    /// The number of lasting administrators ([`keyward_core::administrators`]) at time `clock`. Logs a
    /// warning, once, if there is none.
    fn lasting_administrators(&self, clock: UnixMillis) -> usize;

    /// The changes after a revision: ordered and without gaps.
    ///
    /// When the engine no longer has them all. The caller must then load everything again.
    fn changes(&self, after: Revision) -> Result<Subscription, Lagged>;

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
    async fn backup(&self, time: UnixMillis) -> Result<Backup, BackupError>;

    /// Refuses new commits, finishes the queued ones, and flushes everything.
    ///
    /// When the flush fails. Acknowledged changes are durable even then.
    async fn close(&self) -> Result<(), StoreError>;
}

/// A view of the log that lives outside the engine, such as the index. The engine loads it while opening, so
/// that nothing is read twice, and may checkpoint it in chunks, so that the next start need not read every
/// record. Methods may be called from several threads at a time.
pub trait MaterializedView: Send + Sync + 'static {
    /// Loads records, in any order. Of two forms of a record, the newer one wins.
    fn load(&self, records: &[Record]);

    /// Discards everything loaded so far.
    fn reset(&self);

    /// Every record up to this revision is loaded, and no acknowledged change is missing. The engine may
    /// still have to read its own table before it accepts changes.
    fn on_loaded(&self, revision: Revision);

    /// The revision up to which every change is in the view.
    fn revision(&self) -> Revision;

    /// The latest time of a change that is in the view.
    fn latest_time(&self) -> UnixMillis;

    /// Notes that a change was made at this time, even if its record has changed again since.
    fn advance_time(&self, time: UnixMillis);

    /// The revision of the key's last change up to [`MaterializedView::revision`]. `None` if the view does
    /// not know.
    fn revision_of(&self, _key: &KeyRecord) -> Option<Revision> {
        None
    }

    /// The number of chunks in a checkpoint of this view. 0 if it is not checkpointed.
    fn chunk_count(&self) -> usize;

    /// The format version of the chunks. Chunks of another version are not read.
    fn format_version(&self) -> u32;

    /// Begins to write a checkpoint. The view may change meanwhile.
    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_>;

    /// Loads a chunk that a [`ChunkWriter`] wrote. The view must hold nothing but other chunks of the same
    /// checkpoint. `None` if the bytes are malformed.
    fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()>;

    /// The number of distinct owners among a tenant's keys, and which of `asked` are not among them. Keys
    /// without an owner do not count. `None` if the view does not know; then nothing is bounded.
    fn owners_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }

    /// As [`MaterializedView::owners_in_use`], for scopes.
    fn scopes_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }
}

/// Writes the chunks of a view in order.
pub trait ChunkWriter {
    /// Appends the bytes of a chunk: every change up to [`MaterializedView::revision`] at the time of the
    /// call, and possibly later ones.
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>);
}

impl ChunkWriter for () {
    fn write_chunk(&mut self, _: usize, _: &mut Vec<u8>) {}
}

/// No-op view, for tools that open a store without an index.
impl MaterializedView for () {
    fn load(&self, _: &[Record]) {}

    fn reset(&self) {}

    fn on_loaded(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        Revision(0)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis::MIN
    }

    fn advance_time(&self, _: UnixMillis) {}

    fn chunk_count(&self) -> usize {
        0
    }

    fn format_version(&self) -> u32 {
        0
    }

    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_> {
        Box::new(())
    }

    fn read_chunk(&self, _: usize, _: &[u8]) -> Option<()> {
        None
    }
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

/// Every record at one revision.
#[derive(Debug)]
pub struct RecordStream {
    /// The revision.
    pub revision: Revision,
    /// About how many records there are, for progress reports.
    pub records: u64,
    items: mpsc::Receiver<Result<StreamItem, StoreError>>,
}

/// An item of a record stream.
#[derive(Debug)]
enum StreamItem {
    Records(Vec<Record>),
    /// Without this, a stream that broke off would look complete.
    End,
}

impl RecordStream {
    /// The next records. `None` at the end.
    ///
    /// When the engine fails, or stops before the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, StoreError> {
        match self.items.recv().await {
            Some(Ok(StreamItem::Records(records))) => Ok(Some(records)),
            Some(Ok(StreamItem::End)) => Ok(None),
            Some(Err(error)) => Err(error),
            None => Err(StoreError::Engine("a snapshot broke off before its end".into())),
        }
    }
}

/// On whose behalf a key is read, and how urgently.
#[derive(Clone, Debug)]
pub struct ReadContext {
    /// Who asks.
    pub caller: ActorId,
    /// The read precedes a narrowing. It waits for no other kind of read.
    pub urgent: bool,
}

/// Which keys to list.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    /// Who asks.
    pub caller: ActorId,
    /// Of this tenant.
    pub tenant: TenantId,
    /// In one of these states. Empty: in any.
    pub states: Vec<State>,
    /// Of exactly this owner.
    pub owner: Option<String>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
    /// One of these keys. Empty: any.
    pub key_ids: Vec<KeyId>,
    /// Only keys past this one.
    pub after: Option<KeyId>,
    /// At most this many.
    pub limit: usize,
}

impl KeyQuery {
    /// Whether a key meets every condition.
    #[must_use]
    pub fn selects(&self, key: &KeyRecord) -> bool {
        key.tenant == self.tenant
            && (self.states.is_empty() || self.states.contains(&key.spec.policy.state))
            && self.owner.as_ref().is_none_or(|owner| *owner == key.spec.owner)
            && self.labels.iter().all(|(name, value)| key.spec.labels.get(name) == Some(value))
            && (self.key_ids.is_empty() || self.key_ids.contains(&key.key_id))
            && self.after.as_ref().is_none_or(|after| key.key_id > *after)
    }
}

/// A page of records.
#[derive(Debug)]
pub struct Page<R, I> {
    /// The records.
    pub records: Vec<Arc<R>>,
    /// Where the next page begins. `None`: this is the last page.
    pub next: Option<I>,
    /// To be dropped when the page has been used: the number of pages in flight is bounded.
    pub permit: PagePermit,
}

/// A permit that is released by dropping it.
#[derive(Default)]
pub struct PagePermit(Option<Box<dyn Send + Sync>>);

impl PagePermit {
    /// Wraps a permit.
    pub(crate) fn of(held: impl Send + Sync + 'static) -> Self {
        Self(Some(Box::new(held)))
    }
}

impl fmt::Debug for PagePermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "PagePermit" } else { "PagePermit(none)" })
    }
}

impl<R, I> Page<R, I> {
    /// The first `limit` of the records. One more is read, to know whether there is a next page.
    pub(crate) fn first(records: impl Iterator<Item = Arc<R>>, limit: usize, id: impl Fn(&R) -> I) -> Self {
        let mut records: Vec<_> = records.take(limit.saturating_add(1)).collect();
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|last| id(last));
        Self { records, next, permit: PagePermit::default() }
    }
}

/// A change, and who makes it.
#[derive(Debug)]
pub struct Commit {
    /// Who.
    pub actor: ActorId,
    /// What the caller must still be authorized for when the change is made. `None`: Keyward makes it itself.
    pub authorization: Option<Authorization>,
    /// The call, such as `DisableKey`.
    pub method: &'static str,
    /// What it is done to: `<tenant>/<key_id>` or `<tenant>`.
    pub target: String,
    /// When.
    pub time: UnixMillis,
    /// The change may turn a verdict from allow to deny ([`keyward_core::narrowing::narrows`]). It overtakes
    /// all other changes, and is made even when the disk is nearly full.
    pub narrows: bool,
    /// The change overtakes all others, whether or not it narrows: it gives no power, and its caller means to
    /// take some. It is made with little disk space, but not with the last, which is reserved for narrowings.
    pub urgent: bool,
    /// The records to write.
    pub writes: Vec<RecordWrite>,
}

impl Commit {
    /// The clock's reading at the request; without a caller, the time of the change.
    pub(crate) fn clock(&self) -> UnixMillis {
        self.authorization.as_ref().map_or(self.time, Authorization::clock)
    }
}

/// A record to write, with its precondition.
#[derive(Debug)]
pub enum RecordWrite {
    /// A key that must not exist yet: neither its id nor its digest.
    NewKey(Box<KeyRecord>),
    /// A key whose current revision must be that of the record. Its id, tenant and secret stay as they are.
    Key(Box<KeyRecord>),
    /// A tenant that must not exist yet.
    NewTenant(Box<TenantRecord>),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The caller is no longer authorized for the change.
    #[error(transparent)]
    Unauthorized(#[from] Unauthorized),
    /// The key or tenant exists already.
    #[error("it exists already")]
    Exists,
    /// The key has another revision than the commit expects.
    #[error("it has changed meanwhile")]
    Outdated,
    /// The record is too large to store.
    #[error("the record has {bytes} bytes, of at most {}", keyward_core::limits::RECORD_BYTES_MAX)]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// All records of the commit together are too large for one frame of the journal.
    #[error("the change has {bytes} bytes, of at most {max}")]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The commit brings a new name into use, and the tenant has as many as it may have; or there may be no
    /// more tenants.
    #[error("{0}")]
    Bounded(Exceeded),
    /// The commit would remove the last lasting administrator.
    #[error("no lasting administrator would be left")]
    LastAdministrator,
    /// The queue of commits is full.
    #[error("too many changes are waiting")]
    Overloaded,
    /// The disk has no room.
    #[error("the disk has no room for the change")]
    DiskFull,
    /// The engine failed or is closing.
    #[error(transparent)]
    Store(#[from] StoreError),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_snapshot_that_breaks_off_is_not_taken_for_a_whole_one() {
        let (sender, items) = mpsc::channel(2);
        let mut snapshot = RecordStream { revision: Revision(1), records: 0, items };
        sender.send(Ok(StreamItem::Records(vec![]))).await.unwrap();
        drop(sender);
        assert!(snapshot.next().await.unwrap().is_some());
        assert!(snapshot.next().await.is_err());
    }
}
