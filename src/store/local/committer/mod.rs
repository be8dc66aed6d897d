//! The single writer: takes queued commits, makes them durable as one group, and only then makes them
//! visible.
//!
//! For each group: check every commit, append one frame, sync once, note the watermark, publish to the feed,
//! answer. A thread of its own writes the table behind. A disk failure ends the process: the disk's contents
//! are then unknown, and a second sync may report success for data that the kernel has dropped.

pub(super) mod queue;
pub(super) mod write_buffer;

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::{KeyRecord, State, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use self::queue::{CommitQueue, GroupShare, TABLE_QUEUE_GROUPS_MAX};
use self::write_buffer::{Maps, WriteBuffer};
use crate::feed::Feed;
use crate::store::administrators::{self, Administrators, Undo};
use crate::store::bounds::{self, Bounds, NameKind, Pending};
use crate::store::check::{EncodedWrite, RecordReader, authorize, check_and_encode};
use crate::store::local::checkpoint::maintenance::Waker;
use crate::store::local::disk_space::{DiskSpace, DiskSpaceMeter, FreeBytes};
use crate::store::local::journal::Position;
use crate::store::local::journal::frame::{FrameBuilder, PAYLOAD_BYTES_MAX};
use crate::store::local::journal::watermark::Watermark;
use crate::store::local::journal::writer::SpaceError;
use crate::store::local::recovery::recover::Journal;
use crate::store::local::table::{Row, Table};
use crate::store::record::{encode_key, encode_tenant, pb};
use crate::store::{Commit, CommitError, MaterializedView, RecordWrite, StoreError};
use crate::util::fatal::die;

/// Commits in one group at most.
const GROUP_COMMITS_MAX: usize = 256;
/// A group takes no further commit once its payload reaches this size, and none that would exceed
/// [`PAYLOAD_BYTES_MAX`].
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// Groups of narrowings that may be queued for the table writer beyond [`TABLE_QUEUE_GROUPS_MAX`]. At the
/// limit the committer waits. These groups are mostly small, and the writer puts many into one transaction;
/// their bytes are bounded separately.
const TABLE_QUEUE_NARROWING_MAX: usize = 2_048;
/// Rows in one transaction of the table writer, while more are queued. A read of a key may wait for one
/// transaction.
const TABLE_ROWS_MAX: usize = 256;
/// Bytes of an entry besides its texts and records; and bytes of each record for its revision and its
/// framing.
const ENTRY_BYTES_EXTRA: usize = 64;
const RECORD_BYTES_EXTRA: usize = 32;
/// Cached keys of callers, so that authorizing a change needs no read of the table.
const CALLERS_MAX: usize = 1_024;
/// How often an idle table writer checks that the table still works.
const TABLE_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A commit and its reply channel.
pub(super) struct Request {
    pub(super) commit: Commit,
    pub(super) reply: Reply,
}

type Reply = oneshot::Sender<Result<Revision, CommitError>>;

/// A durable group on its way to the table.
struct Group {
    rows: Vec<Row>,
    end: Position,
}

/// The writer's threads.
pub(super) struct Committer {
    journal: JoinHandle<()>,
    table: JoinHandle<()>,
}

/// What the committer is started with.
pub(super) struct CommitterConfig {
    pub(super) journal: Journal,
    pub(super) watermark: Watermark,
    pub(super) commit_queue: Arc<CommitQueue>,
    pub(super) free_bytes: FreeBytes,
    pub(super) table: Arc<Table>,
    pub(super) write_buffer: Arc<WriteBuffer>,
    pub(super) feed: Feed,
    /// The end of the log, for other threads.
    pub(super) durable_at: Arc<Mutex<Position>>,
    pub(super) maintenance: Waker,
    pub(super) bounds: Bounds,
    /// Knows the names in use, and the versions of keys without a read of the table.
    pub(super) view: Arc<dyn MaterializedView>,
    pub(super) administrators: Arc<Mutex<Administrators>>,
}

/// The writers' progress.
#[derive(Debug)]
pub(super) struct CommitProgress {
    /// The last revision that is durable.
    pub(super) durable: watch::Receiver<Revision>,
    /// The last revision that is in the table.
    pub(super) applied: watch::Receiver<Revision>,
    pub(super) busy: Arc<Busy>,
}

impl Committer {
    /// Starts the threads. They end when the queue is closed and everything in it is done.
    pub(super) fn start(parts: CommitterConfig) -> std::io::Result<(Self, CommitProgress)> {
        let CommitterConfig {
            journal,
            watermark,
            commit_queue,
            free_bytes,
            table,
            write_buffer,
            feed,
            durable_at,
            maintenance,
            bounds,
            view,
            administrators,
        } = parts;
        let revision = journal.position.revision;
        let meter = journal.writer.meter(free_bytes)?;
        let busy = Arc::new(Busy::default());
        let (durable, durable_seen) = watch::channel(revision);
        let (applied, applied_seen) = watch::channel(revision);
        let (groups, written_behind) = sync_channel(TABLE_QUEUE_GROUPS_MAX + TABLE_QUEUE_NARROWING_MAX);
        let table_writer = TableWriter {
            table: table.clone(),
            write_buffer: write_buffer.clone(),
            commit_queue: commit_queue.clone(),
            applied,
        };
        let table_thread = spawn("table", move || table_writer.run(&written_behind))?;
        let progress = CommitProgress { durable: durable_seen, applied: applied_seen.clone(), busy: busy.clone() };
        let last_room = DiskSpace::Ok;
        let mut log = CommitLoop {
            applied: applied_seen,
            commit_queue,
            journal,
            watermark,
            table,
            write_buffer,
            feed,
            durable_at,
            durable,
            groups,
            maintenance,
            names: BoundedNames { bounds, view, pending: RefCell::default() },
            administrators,
            busy,
            meter,
            last_room,
            callers: HashMap::new(),
            held: None,
        };
        let journal_thread = spawn("committer", move || log.run())?;
        Ok((Self { journal: journal_thread, table: table_thread }, progress))
    }

    /// Waits until everything queued is durable and in the table.
    pub(super) fn join(self) -> Result<(), StoreError> {
        let ended = |thread: JoinHandle<()>| thread.join().map_err(|_| StoreError::Engine("a writer panicked".into()));
        ended(self.journal)?;
        ended(self.table)
    }
}

/// Starts a writer thread. sled may panic in it; a process without its writer would refuse every change for
/// ever, so it ends instead.
fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            die("a writer of the store panicked", &name);
        }
    })
}

struct CommitLoop {
    applied: watch::Receiver<Revision>,
    commit_queue: Arc<CommitQueue>,
    journal: Journal,
    watermark: Watermark,
    table: Arc<Table>,
    write_buffer: Arc<WriteBuffer>,
    feed: Feed,
    durable_at: Arc<Mutex<Position>>,
    durable: watch::Sender<Revision>,
    groups: SyncSender<Group>,
    maintenance: Waker,
    names: BoundedNames,
    administrators: Arc<Mutex<Administrators>>,
    busy: Arc<Busy>,
    meter: DiskSpaceMeter,
    last_room: DiskSpace,
    /// Current keys of some callers. Only this thread changes keys.
    callers: Callers,
    /// The commit that did not fit into the last group.
    held: Option<Request>,
}

type Callers = HashMap<KeyId, Arc<KeyRecord>>;

/// When the committer began the current group, and when a group last found the disk full.
#[derive(Debug, Default)]
pub(super) struct Busy(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    since: Option<Instant>,
    no_room: Option<Instant>,
}

impl Busy {
    fn begin(&self) {
        self.0.lock().since = Some(Instant::now());
    }

    fn end(&self) {
        self.0.lock().since = None;
    }

    /// Notes whether a group had disk space. Returns whether that has changed.
    fn has_room(&self, room: bool) -> bool {
        let before = std::mem::replace(&mut self.0.lock().no_room, (!room).then(Instant::now));
        before.is_none() != room
    }

    /// Whether a group found the disk full within this time, and none has had space since.
    pub(super) fn was_disk_full(&self, within: Duration) -> bool {
        self.0.lock().no_room.is_some_and(|at| at.elapsed() < within)
    }

    /// How long the current group has taken so far.
    pub(super) fn lasted(&self) -> Duration {
        self.0.lock().since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl CommitLoop {
    fn run(&mut self) {
        loop {
            let mut share = GroupShare::default();
            let Some(first) = self.held.take().or_else(|| self.commit_queue.first(&mut share)) else { break };
            self.busy.begin();
            self.commit_group(first, share);
            self.busy.end();
        }
        if let Err(error) = self.watermark.sync() {
            tracing::warn!(%error, "cannot sync the watermark; the next start goes by the journal alone");
        }
    }

    fn commit_group(&mut self, first: Request, mut share: GroupShare) {
        let room = self.room();
        let before = self.journal.position;
        let mut frame = FrameBuilder::after(&before);
        let mut staged = Group { rows: vec![], end: before };
        let mut changes = vec![];
        let mut replies = vec![];
        self.names.pending.get_mut().applied(self.names.view.revision());
        let (write_buffer, table, names, callers) = (&*self.write_buffer, &*self.table, &self.names, &mut self.callers);
        let (administrators, taken) = (&*self.administrators, vec![]);
        let mut seen = PendingView {
            group: Maps::default(),
            write_buffer,
            table,
            names,
            administrators,
            taken,
            callers,
            applied: &self.applied,
        };

        let mut next = Some(first);
        while let Some(request) = next {
            let bytes = entry_bytes_max(&request.commit);
            if !frame.fits(bytes) {
                if !frame.is_empty() {
                    self.held = Some(request);
                    break;
                }
                replies.push((request.reply, Err(CommitError::TooLong { bytes, max: PAYLOAD_BYTES_MAX })));
                next = self.commit_queue.next(&mut share);
                continue;
            }
            let revision = frame.end().revision.next();
            match encode_commit(request.commit, revision, &mut seen, room) {
                Ok((entry, rows)) => {
                    frame.push(&entry, &self.journal.key);
                    let records = rows.iter().map(|row| row.record.clone()).collect();
                    changes.push(Arc::new(Change { revision, records }));
                    staged.rows.extend(rows);
                    replies.push((request.reply, Ok(revision)));
                }
                // Once sled has failed, it refuses everything: each change would be refused while health said
                // SERVING.
                Err(CommitError::Store(error)) => {
                    die("the table cannot be read; the next start replays what it lacks", &error)
                }
                Err(error) => replies.push((request.reply, Err(error))),
            }
            let full = frame.len() == GROUP_COMMITS_MAX || frame.payload_bytes() >= GROUP_BYTES_MAX;
            next = if full { None } else { self.commit_queue.next(&mut share) };
        }
        let taken = seen.taken;
        if frame.is_empty() {
            answer(replies);
            return;
        }

        staged.end = frame.end();
        let frame = match frame.finish() {
            Ok(frame) => frame,
            // Unreachable: each change was checked against the bound. Nothing was acknowledged.
            Err(error) => die("the journal cannot be written", &error),
        };
        match self.journal.writer.ensure_space(frame.len(), &before, room) {
            Ok(rolled_over) => {
                self.make_durable(&frame, staged.end);
                self.busy.has_room(true);
                if rolled_over {
                    self.maintenance.wake();
                }
            }
            Err(SpaceError::Unknown(error)) => die("the journal cannot be written", &error),
            Err(SpaceError::DiskFull(error)) => {
                if self.busy.has_room(false) {
                    tracing::error!(
                        %error, "no segment of the journal can be made; changes are refused, and verdicts go on; look after the disk"
                    );
                }
                self.administrators.lock().undo(taken);
                // Also to the refused ones: the cause may have been a change in this group.
                answer(replies.into_iter().map(|(reply, _)| (reply, Err(CommitError::DiskFull))));
                return;
            }
        }
        self.write_buffer.insert(staged.rows.iter().map(|row| &row.record));
        self.keep_callers(&staged.rows);
        self.feed.publish(changes);
        self.durable.send_replace(staged.end.revision);
        self.commit_queue.group_sent(bytes_of(&staged));
        if self.groups.send(staged).is_err() {
            die("the table's writer has ended", &"no receiver");
        }
        answer(replies);
    }

    /// Updates the cached keys of callers.
    fn keep_callers(&mut self, rows: &[Row]) {
        for row in rows {
            if let Record::Key(key) = &row.record
                && key.tenant.is_system()
                && let Some(kept) = self.callers.get_mut(&key.key_id)
            {
                kept.clone_from(key);
            }
        }
    }

    /// The disk space for this group. Unknown counts as exhausted.
    fn room(&mut self) -> DiskSpace {
        let room = self.meter.measure().map(|(_, room)| room).unwrap_or_else(|error| {
            tracing::error!(%error, "the journal's disk does not say what is free");
            DiskSpace::Exhausted
        });
        if room != self.last_room {
            match room {
                DiskSpace::Ok => tracing::info!("the disk has room again; changes are made"),
                DiskSpace::Low => {
                    tracing::error!("the disk is nearly full: changes are refused, save those that take power away")
                }
                DiskSpace::Critical => {
                    tracing::error!("the disk is all but full: changes are refused, save disabling and revoking")
                }
                DiskSpace::Exhausted => {
                    tracing::error!("the disk is full: changes are refused, and verdicts go on; make room")
                }
            }
            self.last_room = room;
        }
        room
    }

    fn make_durable(&mut self, frame: &[u8], end: Position) {
        if let Err(error) = self.journal.writer.append(frame) {
            die("the journal cannot be written", &error);
        }
        if let Err(error) = self.watermark.note(&end) {
            die("the watermark cannot be written", &error);
        }
        self.journal.position = end;
        *self.durable_at.lock() = end;
    }
}

/// Answers callers. The change of a caller that has gone away is made all the same.
fn answer(replies: impl IntoIterator<Item = (Reply, Result<Revision, CommitError>)>) {
    for (reply, outcome) in replies {
        drop(reply.send(outcome));
    }
}

/// An upper bound for the bytes of a commit's entry, whose revision is not known yet.
pub(super) fn entry_bytes_max(commit: &Commit) -> usize {
    let about = |record_bytes: usize| ENTRY_BYTES_EXTRA + commit.target.len() + commit.method.len() + record_bytes;
    let record_bytes = |put: &RecordWrite| match put {
        RecordWrite::NewKey(key) | RecordWrite::Key(key) => encode_key(key).len(),
        RecordWrite::NewTenant(tenant) => encode_tenant(tenant).len(),
    };
    let bytes = match &commit.writes[..] {
        // No record is longer. Nearly all commits have one record and are not encoded here.
        [] | [_] => RECORD_BYTES_MAX + RECORD_BYTES_EXTRA,
        writes => writes.iter().map(|put| record_bytes(put) + RECORD_BYTES_EXTRA).sum(),
    };
    about(bytes + commit.actor.to_string().len())
}

/// Checks a commit and encodes it as an entry and rows. Later commits of the group see its writes.
fn encode_commit(
    commit: Commit,
    revision: Revision,
    seen: &mut PendingView<'_>,
    room: DiskSpace,
) -> Result<(pb::JournalEntry, Vec<Row>), CommitError> {
    if !has_room(&commit, room) {
        return Err(CommitError::DiskFull);
    }
    authorize(&commit, seen)?;
    let (narrows, clock) = (commit.narrows, commit.clock());
    let staged = commit
        .writes
        .into_iter()
        .map(|put| check_and_encode(put, revision, narrows, seen))
        .collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Row> = staged.into_iter().map(|EncodedWrite { record, bytes }| Row { record, bytes }).collect();
    seen.keep_administrator(&rows, clock)?;
    rows.iter().for_each(|row| seen.group.insert(&row.record));
    let redo = rows.iter().map(|row| {
        let bytes = row.bytes.clone();
        let record = match row.record {
            Record::Key(_) => pb::redo::Record::Key(bytes),
            Record::Tenant(_) => pb::redo::Record::Tenant(bytes),
        };
        pb::Redo { record: Some(record) }
    });
    let entry = pb::JournalEntry {
        revision: revision.0,
        time_ms: commit.time.0,
        actor: commit.actor.to_string(),
        method: commit.method.to_owned(),
        target: commit.target,
        redo: redo.collect(),
    };
    Ok((entry, rows))
}

/// Whether the disk space allows a change.
fn has_room(commit: &Commit, room: DiskSpace) -> bool {
    let stops = |put: &RecordWrite| matches!(put, RecordWrite::Key(key) if key.policy.state != State::Active);
    match room {
        DiskSpace::Ok => true,
        DiskSpace::Low => commit.narrows || commit.urgent,
        DiskSpace::Critical => commit.narrows && commit.writes.iter().all(stops),
        DiskSpace::Exhausted => false,
    }
}

/// The current records: those of this group, else of the write buffer, else of the table.
struct PendingView<'a> {
    group: Maps,
    write_buffer: &'a WriteBuffer,
    table: &'a Table,
    callers: &'a mut Callers,
    names: &'a BoundedNames,
    administrators: &'a Mutex<Administrators>,
    /// The changes of this group to the administrators.
    taken: Vec<Undo>,
    applied: &'a watch::Receiver<Revision>,
}

/// The bounds on names, and what they are checked against.
struct BoundedNames {
    bounds: Bounds,
    view: Arc<dyn MaterializedView>,
    pending: RefCell<Pending>,
}

impl PendingView<'_> {
    /// Checks that a lasting administrator remains, and applies the rows.
    fn keep_administrator(&mut self, rows: &[Row], clock: UnixMillis) -> Result<(), CommitError> {
        if !rows.iter().any(|row| administrators::is_relevant(&row.record)) {
            return Ok(());
        }
        let mut administrators = self.administrators.lock();
        administrators.check(rows.iter().map(|row| &row.record), clock)?;
        self.taken.extend(rows.iter().filter_map(|row| administrators.apply(&row.record)));
        administrators.warn_if_none(clock);
        Ok(())
    }
}

impl RecordReader for PendingView<'_> {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let newer = self.group.key(tenant, key_id).or_else(|| self.write_buffer.key(tenant, key_id));
        newer.map_or_else(|| self.table.key(tenant, key_id), |key| Ok(Some(key)))
    }

    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.group.has_digest(digest) || self.write_buffer.has_digest(digest) || self.table.has_digest(digest)?)
    }

    /// A read of the table would wait for the current transaction, and delay the whole group.
    fn is_current(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        let newer =
            self.group.key(&key.tenant, &key.key_id).or_else(|| self.write_buffer.key(&key.tenant, &key.key_id));
        let same = |there: &KeyRecord| there.revision == key.revision && there.secret.digest == key.secret.digest;
        if let Some(newer) = newer {
            return Ok(same(&newer));
        }
        // The write buffer was read first: what it has released counts as applied, so a view that is at least
        // at `applied` knows it.
        let applied = *self.applied.borrow();
        if self.names.view.revision() >= applied
            && let Some(revision) = self.names.view.revision_of(key)
        {
            return Ok(revision == key.revision);
        }
        Ok(self.table.key(&key.tenant, &key.key_id)?.is_some_and(|there| same(&there)))
    }

    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        Ok(self.group.tenant(tenant).or_else(|| self.write_buffer.tenant(tenant)))
    }

    fn caller(&mut self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let system = TenantId::system();
        let newer = self.group.key(&system, key_id).or_else(|| self.callers.get(key_id).cloned());
        if newer.is_some() {
            return Ok(newer);
        }
        let found = self.key(&system, key_id)?;
        if let Some(key) = &found {
            if self.callers.len() == CALLERS_MAX {
                self.callers.clear();
            }
            self.callers.insert(key_id.clone(), key.clone());
        }
        Ok(found)
    }

    fn admit(&self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        let BoundedNames { bounds, view, pending } = self.names;
        let in_use = |kind: NameKind, asked: &[&str]| kind.in_use(&**view, &key.tenant, asked);
        bounds::check(bounds, &pending.borrow(), before, key, in_use)?;
        if in_use(NameKind::Owner, &[]).is_some() {
            pending.borrow_mut().note(revision, before, key);
        }
        Ok(())
    }

    fn admit_tenant(&self) -> Result<(), CommitError> {
        // The group's own tenants are not in the write buffer yet.
        bounds::check_tenants(&self.names.bounds, self.write_buffer.tenant_count() + self.group.tenants())
    }
}

struct TableWriter {
    table: Arc<Table>,
    write_buffer: Arc<WriteBuffer>,
    commit_queue: Arc<CommitQueue>,
    applied: watch::Sender<Revision>,
}

impl TableWriter {
    fn run(&self, groups: &Receiver<Group>) {
        loop {
            let mut group = match groups.recv_timeout(TABLE_PROBE_INTERVAL) {
                Ok(group) => group,
                Err(RecvTimeoutError::Timeout) => {
                    self.probe();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.commit_queue.group_taken(bytes_of(&group));
            while group.rows.len() < TABLE_ROWS_MAX
                && let Ok(next) = groups.try_recv()
            {
                self.commit_queue.group_taken(bytes_of(&next));
                group.rows.extend(next.rows);
                group.end = next.end;
            }
            if let Err(error) = self.table.apply(&group.rows, group.end) {
                die("the table cannot be written; the next start replays what it lacks", &error);
            }
            // In this order: what the write buffer has released counts as applied.
            self.applied.send_replace(group.end.revision);
            self.write_buffer.release(group.rows.iter().map(|row| &row.record));
        }
    }

    /// sled flushes by itself, and refuses everything once that has failed. Without a change that reaches
    /// this thread, nothing else would notice.
    fn probe(&self) {
        if let Err(error) = self.table.applied() {
            die("the table has failed; the next start replays what it lacks", &error);
        }
    }
}

/// Bytes of a group's records.
fn bytes_of(group: &Group) -> usize {
    group.rows.iter().map(|row| row.bytes.len()).sum()
}
