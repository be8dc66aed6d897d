//! The one writer: takes the commits that wait, makes them durable as one group, and only then lets anyone see them.
//!
//! For each group: check every commit against what is there, append one frame, sync once, note the watermark, publish to
//! the feed, answer. The table is written behind by a thread of its own. A failure of the disk ends the process: what
//! the disk holds is then unknown, and a second sync may claim success for data that the kernel has dropped.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use keyward_core::digest::Digest;
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};
use tokio::sync::{mpsc, oneshot, watch};

use super::journal::Position;
use super::journal::frame::FrameBuilder;
use super::journal::writer::RoomError;
use super::overlay::{Maps, Overlay};
use super::recovery::Journal;
use super::table::{Row, Table};
use super::watermark::Watermark;
use crate::fatal::die;
use crate::feed::Feed;
use crate::store::check::{Current, Staged, stage};
use crate::store::record::pb;
use crate::store::{Commit, CommitError, StoreError};

/// Commits in one group at most.
const GROUP_COMMITS_MAX: usize = 256;
/// A group takes no further commit once its payload has this size. A commit adds what its records add.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// Groups that wait for the table's writer at most; then the committer waits too, and its queue fills.
const TABLE_QUEUE_GROUPS_MAX: usize = 64;
/// Rows that the table's writer puts into one transaction, while more are waiting.
const TABLE_ROWS_MAX: usize = 1_024;

/// A commit and where its answer goes.
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

impl Committer {
    /// Starts the threads. They end when every sender of `queue` is gone and everything that was queued is done.
    pub(super) fn start(
        journal: Journal,
        watermark: Watermark,
        revision: Revision,
        queue: mpsc::Receiver<Request>,
        table: Arc<Table>,
        overlay: Arc<Overlay>,
        feed: Feed,
    ) -> std::io::Result<(Self, watch::Receiver<Revision>, watch::Receiver<Revision>)> {
        let (durable, durable_seen) = watch::channel(revision);
        let (applied, applied_seen) = watch::channel(revision);
        let (groups, written_behind) = sync_channel(TABLE_QUEUE_GROUPS_MAX);
        let table_writer = TableWriter { table: table.clone(), overlay: overlay.clone(), applied };
        let table_thread = spawn("table", move || table_writer.run(&written_behind))?;
        let mut log = Log { journal, watermark, table, overlay, feed, durable, groups };
        let journal_thread = spawn("committer", move || log.run(queue))?;
        Ok((Self { journal: journal_thread, table: table_thread }, durable_seen, applied_seen))
    }

    /// Waits until everything that was queued is durable and in the table.
    pub(super) fn join(self) -> Result<(), StoreError> {
        let ended = |thread: JoinHandle<()>| thread.join().map_err(|_| StoreError::Engine("a writer panicked".into()));
        ended(self.journal)?;
        ended(self.table)
    }
}

/// Starts a writer. sled may panic under it; a process that has lost a writer would serve on and refuse every change, so
/// it ends instead.
fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    Builder::new().name(name.into()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            die("a writer of the store panicked", &name);
        }
    })
}

struct Log {
    journal: Journal,
    watermark: Watermark,
    table: Arc<Table>,
    overlay: Arc<Overlay>,
    feed: Feed,
    durable: watch::Sender<Revision>,
    groups: SyncSender<Group>,
}

impl Log {
    fn run(&mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            self.commit_group(first, &mut queue);
        }
        if let Err(error) = self.watermark.sync(&self.journal.watermark_path) {
            tracing::warn!(%error, "cannot sync the watermark; the next start goes by the journal alone");
        }
    }

    fn commit_group(&mut self, first: Request, queue: &mut mpsc::Receiver<Request>) {
        let before = self.journal.position;
        let mut frame = FrameBuilder::after(&before);
        let mut staged = Group { rows: vec![], end: before };
        let mut changes = vec![];
        let mut replies = vec![];
        let mut seen = Seen { group: Maps::default(), overlay: &self.overlay, table: &self.table };

        let mut next = Some(first);
        while let Some(request) = next {
            let revision = frame.end().revision.next();
            match stage_all(request.commit, revision, &mut seen) {
                Ok((entry, rows)) => {
                    frame.push(&entry, &self.journal.key);
                    let records = rows.iter().map(|row| row.record.clone()).collect();
                    changes.push(Arc::new(Change { revision, records }));
                    staged.rows.extend(rows);
                    replies.push((request.reply, Ok(revision)));
                }
                Err(error) => replies.push((request.reply, Err(error))),
            }
            let full = frame.len() == GROUP_COMMITS_MAX || frame.payload_bytes() >= GROUP_BYTES_MAX;
            next = if full { None } else { queue.try_recv().ok() };
        }
        if frame.is_empty() {
            answer(replies);
            return;
        }

        staged.end = frame.end();
        let frame = frame.finish();
        match self.journal.writer.make_room(frame.len(), &before) {
            Ok(()) => self.make_durable(&frame, staged.end),
            Err(RoomError::Unknown(error)) => die("the journal cannot be written", &error),
            Err(RoomError::NoRoom(error)) => {
                tracing::error!(%error, "the disk has no room for changes; they are refused, and verdicts go on");
                // Also to those that were refused: what they were refused for may be one of these.
                answer(replies.into_iter().map(|(reply, _)| (reply, Err(CommitError::NoRoom))));
                return;
            }
        }
        self.overlay.insert(staged.rows.iter().map(|row| &row.record));
        self.feed.publish(changes);
        self.durable.send_replace(staged.end.revision);
        if self.groups.send(staged).is_err() {
            die("the table's writer has ended", &"no receiver");
        }
        answer(replies);
    }

    fn make_durable(&mut self, frame: &[u8], end: Position) {
        if let Err(error) = self.journal.writer.append(frame) {
            die("the journal cannot be written", &error);
        }
        if let Err(error) = self.watermark.note(&end) {
            die("the watermark cannot be written", &error);
        }
        self.journal.position = end;
    }
}

/// Answers callers. One that has gone away has still made its change.
fn answer(replies: impl IntoIterator<Item = (Reply, Result<Revision, CommitError>)>) {
    for (reply, outcome) in replies {
        drop(reply.send(outcome));
    }
}

/// Checks a commit, and turns it into its entry and rows. What it puts is then seen by the next commit of the group.
fn stage_all(
    commit: Commit,
    revision: Revision,
    seen: &mut Seen<'_>,
) -> Result<(pb::JournalEntry, Vec<Row>), CommitError> {
    let staged = commit.puts.into_iter().map(|put| stage(put, revision, seen)).collect::<Result<Vec<_>, _>>()?;
    let rows: Vec<Row> = staged.into_iter().map(|Staged { record, bytes }| Row { record, bytes }).collect();
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

/// What is there: in this group, else in the overlay, else in the table.
struct Seen<'a> {
    group: Maps,
    overlay: &'a Overlay,
    table: &'a Table,
}

impl Current for Seen<'_> {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let newer = self.group.key(tenant, key_id).or_else(|| self.overlay.key(tenant, key_id));
        newer.map_or_else(|| self.table.key(tenant, key_id), |key| Ok(Some(key)))
    }

    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.group.has_digest(digest) || self.overlay.has_digest(digest) || self.table.has_digest(digest)?)
    }

    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        let newer = self.group.tenant(tenant).or_else(|| self.overlay.tenant(tenant));
        newer.map_or_else(|| self.table.tenant(tenant), |tenant| Ok(Some(tenant)))
    }
}

struct TableWriter {
    table: Arc<Table>,
    overlay: Arc<Overlay>,
    applied: watch::Sender<Revision>,
}

impl TableWriter {
    fn run(&self, groups: &Receiver<Group>) {
        while let Ok(mut group) = groups.recv() {
            while group.rows.len() < TABLE_ROWS_MAX
                && let Ok(next) = groups.try_recv()
            {
                group.rows.extend(next.rows);
                group.end = next.end;
            }
            if let Err(error) = self.table.apply(&group.rows, group.end) {
                die("the table cannot be written; the next start replays what it lacks", &error);
            }
            self.overlay.release(group.rows.iter().map(|row| &row.record));
            self.applied.send_replace(group.end.revision);
        }
    }
}
