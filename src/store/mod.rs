//! Where keys are kept: the contract that every engine honours.
//!
//! An engine is one log and the views that it needs to answer. It is shaped as the intersection of what a journalled
//! embedded engine and an etcd transaction can promise: compare-and-set on record versions, and one revision that only
//! grows. One conformance suite (tests/it/conformance.rs) runs on every engine. Only [`crate::app`] names an engine.

mod administrators;
mod bounds;
mod check;
pub mod memory;
pub mod record;
pub mod sled;

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

/// Keys that one page of a list by conditions looks at, at most, beside [`EXAMINED_PER_FOUND`] for each that
/// it gives. A page that has looked at as many ends short, and one that has found none by then is refused.
pub const EXAMINED_MIN: usize = 200;
/// See [`EXAMINED_MIN`].
pub const EXAMINED_PER_FOUND: usize = 20;

/// A log of keys and tenants, and the reads of the admin path. Verify never comes here.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Every record at one revision, as a stream of batches.
    ///
    /// A record that changes while the stream runs may come in its newer form; [`Store::changes`] from the snapshot's
    /// revision brings everything that the stream may lack.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn load(&self) -> Result<RecordStream, StoreError>;

    /// One key, as of the last commit or later, for the program itself.
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

    /// A page of keys in the order of their ids, as of the last commit or later. Callers take turns.
    ///
    /// # Errors
    /// When the engine cannot read, or too many lists wait.
    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError>;

    /// One tenant, as of the last commit or later.
    ///
    /// # Errors
    /// When the engine cannot read.
    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;

    /// A page of tenants in the order of their ids, as of the last commit or later. Callers take turns.
    ///
    /// # Errors
    /// When the engine cannot read, or too many lists wait.
    async fn tenants(
        &self,
        caller: &ActorId,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Page<TenantRecord, TenantId>, StoreError>;

    /// Writes records, their audit entry and their change: together, or not at all. Returns when the change is durable;
    /// an engine that cannot know whether it is stops the process. The store sets the records' revision.
    ///
    /// # Errors
    /// See [`CommitError`]. Nothing has been written then.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError>;

    /// Whether a key may be written over its form before, as far as bounds on names are concerned: for
    /// whoever only asks. A commit is held against them in any case, and beside others that are under way.
    ///
    /// # Errors
    /// [`CommitError::Bounded`].
    fn check_bounds(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError>;

    /// The same for one tenant more.
    ///
    /// # Errors
    /// [`CommitError::Bounded`].
    fn check_tenant_bound(&self) -> Result<(), CommitError>;

    /// Whether a lasting administrator remains when a key is written, by the clock's reading: for whoever only asks. A
    /// commit is held to it in any case.
    ///
    /// # Errors
    /// [`CommitError::LastAdministrator`].
    fn check_administrators(&self, key: &KeyRecord, clock: UnixMillis) -> Result<(), CommitError>;

    /// How many lasting administrators there are ([`keyward_core::administrators`]), by the clock's reading. Where
    /// there is none, it says so in the log, once.
    fn lasting_administrators(&self, clock: UnixMillis) -> usize;

    /// The changes after a revision: ordered and without gaps.
    ///
    /// # Errors
    /// When the engine no longer has them all; the caller then loads anew.
    fn changes(&self, after: Revision) -> Result<Subscription, Lagged>;

    /// The revision of the last durable change.
    fn revision(&self) -> Revision;

    /// The position of the last durable change, with the hash of the log up to it. `None`: the engine keeps no log that
    /// could be cut or replaced behind its back, so there is nothing to hold one against.
    fn head(&self) -> Option<Head>;

    /// Whether changes can be made now.
    async fn write_health(&self) -> WriteHealth;

    /// What the table of an engine takes, as far as it has one. It is not looked for: it may be some seconds old.
    fn table_stats(&self) -> TableStats {
        TableStats::default()
    }

    /// How far it is, and what it has last made. Nothing is looked for: some of it may be some seconds old.
    fn stats(&self) -> StoreStats {
        StoreStats::at(self.revision())
    }

    /// Every record at one revision, as the bytes of a backup. One is made at a time, and nothing else waits for it.
    ///
    /// # Errors
    /// See [`BackupError`].
    async fn backup(&self, time: UnixMillis) -> Result<Backup, BackupError>;

    /// Takes no more commits, finishes those that are queued, and flushes everything.
    ///
    /// # Errors
    /// When the flush fails. What was acknowledged is durable even then.
    async fn close(&self) -> Result<(), StoreError>;
}

/// A view of the log outside of the engine. It takes in what an engine reads when it opens, so that nothing
/// has to be read twice; and the engine may keep a copy of it in parts, so that the next start need not read
/// every record. Several threads may call it at a time.
pub trait MaterializedView: Send + Sync + 'static {
    /// Records that are there, in any order. Of two forms of one, the newer one counts.
    fn load(&self, records: &[Record]);

    /// What was handed over so far is of no use.
    fn reset(&self);

    /// Every record up to this revision has been handed over, and nothing that was acknowledged is missing.
    /// The engine may still have to read its own table before it takes changes.
    fn on_loaded(&self, revision: Revision);

    /// The revision up to which every change is in the view.
    fn revision(&self) -> Revision;

    /// The latest time of a change that is in the view.
    fn latest_time(&self) -> UnixMillis;

    /// There was a change at this time, though what it changed may have changed again since.
    fn advance_time(&self, time: UnixMillis);

    /// The revision of a key's last change up to [`MaterializedView::revision`], if the view knows it. `None` says nothing.
    fn revision_of(&self, _key: &KeyRecord) -> Option<Revision> {
        None
    }

    /// How many parts it is kept in. Without any, it is not kept.
    fn chunk_count(&self) -> usize;

    /// The form of its parts. Parts of another form are not read.
    fn format_version(&self) -> u32;

    /// Begins to write its parts out. Changes may go on meanwhile.
    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_>;

    /// Takes in what a [`ChunkWriter`] wrote, into a view that is empty but for other parts. `None`: it is not
    /// of that form.
    fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()>;

    /// How many different owners the keys of a tenant have, and which of these they have not; keys without an
    /// owner do not count. `None`: the view does not know, and nothing is bounded.
    fn owners_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }

    /// The same of scopes.
    fn scopes_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }
}

/// Writes the parts of a view, one after the other in the order of their numbers.
pub trait ChunkWriter {
    /// Appends the bytes of a part: every change up to [`MaterializedView::revision`] at the time of the call, and
    /// perhaps later ones.
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>);
}

impl ChunkWriter for () {
    fn write_chunk(&mut self, _: usize, _: &mut Vec<u8>) {}
}

/// For whom opens an engine without a use for its records.
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

/// What a table takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of its records.
    pub record_bytes: u64,
    /// How often it was built anew when it was opened.
    pub rebuilds: u64,
}

/// How far an engine is, and what it has last made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// The last durable change.
    pub durable: Revision,
    /// The last change that is in the table.
    pub applied: Revision,
    /// Changes that wait to be made.
    pub waiting: usize,
    /// Free bytes of its disk, when it was last looked at.
    pub free_bytes: Option<u64>,
    /// The time of the newest snapshot that is known to be sound.
    pub snapshot: Option<UnixMillis>,
    /// The time of the last backup that was read to its end, since the engine was opened.
    pub backup: Option<UnixMillis>,
}

impl StoreStats {
    /// Those of an engine that does everything at once, and keeps nothing.
    #[must_use]
    pub fn at(revision: Revision) -> Self {
        Self { durable: revision, applied: revision, waiting: 0, free_bytes: None, snapshot: None, backup: None }
    }
}

/// A backup on its way.
#[derive(Debug)]
pub struct Backup {
    /// The revision that it is of.
    pub revision: Revision,
    /// Its bytes in pieces, and an error if it breaks off. It is whole when the channel ends without one;
    /// what is whole says so itself, in its last bytes.
    pub pieces: mpsc::Receiver<Result<Vec<u8>, BackupError>>,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// One is being made already.
    #[error("another backup is being made")]
    Busy,
    /// It took more than it may.
    #[error(transparent)]
    Aborted(BackupLimit),
    /// It cannot be made: for the reason given.
    #[error("{0}")]
    Failed(String),
}

/// What a backup had too much of. The texts are for whoever reads the backup: they say what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupLimit {
    /// It was read for longer than this.
    #[error(
        "the backup was not read to its end within {} (backup_time_max); read it faster, or raise that setting",
        humantime::format_duration(*.0)
    )]
    Time(Duration),
    /// More than so many bytes of records would have had to be put aside for it.
    #[error(
        "more than {0} bytes of keys changed before the backup had come to them (backup_aside_bytes_max); read it faster or \
         when fewer keys change, or raise that setting"
    )]
    Aside(u64),
    /// Nothing of it was read for this long.
    #[error("nothing of the backup was read for {}; read it without pauses", humantime::format_duration(*.0))]
    Idle(Duration),
}

/// Every record at one revision.
#[derive(Debug)]
pub struct RecordStream {
    /// The revision.
    pub revision: Revision,
    /// How many records there are, about: to tell how far the reading is.
    pub records: u64,
    items: mpsc::Receiver<Result<StreamItem, StoreError>>,
}

/// A piece of a snapshot.
#[derive(Debug)]
enum StreamItem {
    Records(Vec<Record>),
    /// Without it, a snapshot whose reader died would pass for a whole one.
    End,
}

impl RecordStream {
    /// The next records. `None`: those were all.
    ///
    /// # Errors
    /// When the engine cannot read on, or has stopped reading before the end.
    pub async fn next(&mut self) -> Result<Option<Vec<Record>>, StoreError> {
        match self.items.recv().await {
            Some(Ok(StreamItem::Records(records))) => Ok(Some(records)),
            Some(Ok(StreamItem::End)) => Ok(None),
            Some(Err(error)) => Err(error),
            None => Err(StoreError::Engine("a snapshot broke off before its end".into())),
        }
    }
}

/// For whom a key is read.
#[derive(Clone, Debug)]
pub struct ReadContext {
    /// Who asks.
    pub caller: ActorId,
    /// For a change that may take power away: such a read waits for no other kind.
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
            && (self.states.is_empty() || self.states.contains(&key.policy.state))
            && self.owner.as_ref().is_none_or(|owner| *owner == key.owner)
            && self.labels.iter().all(|(name, value)| key.labels.get(name) == Some(value))
            && (self.key_ids.is_empty() || self.key_ids.contains(&key.key_id))
            && self.after.as_ref().is_none_or(|after| key.key_id > *after)
    }
}

/// A page of records.
#[derive(Debug)]
pub struct Page<R, I> {
    /// The records.
    pub records: Vec<Arc<R>>,
    /// Where the next page goes on. `None`: this is the last.
    pub next: Option<I>,
    /// Dropped when the page has been made use of: so many are under way at a time.
    pub permit: PagePermit,
}

/// Something to drop at the right time.
#[derive(Default)]
pub struct PagePermit(Option<Box<dyn Send + Sync>>);

impl PagePermit {
    /// Holds something.
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
    /// The first `limit` of the records. One more is looked at, to know whether there is a next page.
    pub(crate) fn first(records: impl Iterator<Item = Arc<R>>, limit: usize, id: impl Fn(&R) -> I) -> Self {
        let mut records: Vec<_> = records.take(limit.saturating_add(1)).collect();
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|last| id(last));
        Self { records, next, permit: PagePermit::default() }
    }
}

/// One change to be made, and who makes it.
#[derive(Debug)]
pub struct Commit {
    /// Who.
    pub actor: ActorId,
    /// What the caller must still be allowed when the change is made. `None`: Keyward makes it by itself.
    pub authorization: Option<Authorization>,
    /// The call, such as `DisableKey`.
    pub method: &'static str,
    /// What it is done to: `<tenant>/<key_id>` or `<tenant>`.
    pub target: String,
    /// When.
    pub time: UnixMillis,
    /// It may turn a verdict from allow to deny ([`keyward_core::narrowing::narrows`]): it goes before all
    /// other changes, and is made even when the disk is nearly full.
    pub narrows: bool,
    /// It goes before all other changes, whether or not it narrows: it gives no power, and its caller means
    /// to take some. It is made with little room on the disk, but not with the last, which is for what
    /// narrows.
    pub urgent: bool,
    /// The records to write.
    pub writes: Vec<RecordWrite>,
}

impl Commit {
    /// What the clock showed when it was asked for; without a caller, the time of the change.
    pub(crate) fn clock(&self) -> UnixMillis {
        self.authorization.as_ref().map_or(self.time, Authorization::clock)
    }
}

/// One record to write, and what must hold for it.
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
    /// The caller may not make the change any more.
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
    /// The commit brings a name into use, and a tenant has as many as it may have; or there may be no more tenants.
    #[error("{0}")]
    Bounded(Exceeded),
    /// The commit would take the number of lasting administrators from one or more to none.
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
    /// Too many reads of the same kind wait, in all or of one caller.
    #[error("too many reads are waiting")]
    Overloaded,
    /// The conditions of a list have next to nothing in common, and each has much: to find what meets all of them takes
    /// more than one call may take.
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
