//! The single writer: takes queued commits, makes them durable as one group, and only then makes them
//! visible.
//!
//! For each group: check every commit, keep its sealed replies, append one frame, sync once, note the
//! watermark, publish to the feed, answer. A thread of its own writes the table behind. A disk failure ends
//! the process: the disk's contents are then unknown, and a second sync may report success for data that the
//! kernel has dropped.

mod busy;
mod encode;
mod group;
mod pending_view;
pub(super) mod queue;
mod table_writer;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use keyward_core::event::{Change, Record, Revision};
use keyward_core::holds::Holds;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::busy::Busy;
use self::encode::encode_commit;
pub(super) use self::encode::entry_bytes_max;
pub(super) use self::group::Request;
use self::group::{Group, Reply};
use self::pending_view::{BoundedNames, Callers, PendingView};
use self::queue::{CommitQueue, GroupShare, TABLE_QUEUE_GROUPS_MAX};
use self::table_writer::TableWriter;
use crate::feed::Feed;
use crate::store::administrators::{Administrators, Undo};
use crate::store::bounds::Bounds;
use crate::store::local::checkpoint::maintenance::Waker;
use crate::store::local::disk_space::{DiskSpace, DiskSpaceMeter, FreeBytes};
use crate::store::local::journal::Position;
use crate::store::local::journal::frame::{FrameBuilder, PAYLOAD_BYTES_MAX};
use crate::store::local::journal::open::Journal;
use crate::store::local::journal::watermark::Watermark;
use crate::store::local::journal::writer::SpaceError;
use crate::store::local::retries::{RetryLog, StagedRequests};
use crate::store::local::table::{Row, Table};
use crate::store::local::write_buffer::{Maps, WriteBuffer};
use crate::store::ordinals::Ordinals;
use crate::store::{Commit, CommitError, MaterializedView, StoreError};
use crate::util::fatal::die;

/// Commits in one group at most. It ends before the commit that might not fit into its frame.
const GROUP_COMMITS_MAX: usize = 256;
/// Groups of narrowings that may be queued for the table writer beyond [`TABLE_QUEUE_GROUPS_MAX`]. At the
/// limit the committer waits. These groups are mostly small, and the writer puts many into one transaction;
/// their bytes are bounded separately.
const TABLE_QUEUE_NARROWING_MAX: usize = 2_048;

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
    pub(super) retries: Arc<RetryLog>,
    /// No key of this log has had it, or a higher one. `u32::MAX`: all were given.
    pub(super) next_ordinal: u32,
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
            retries,
            next_ordinal,
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
        let write_buffer_holds = write_buffer.holds();
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
            retries,
            busy,
            meter,
            last_room,
            callers: HashMap::new(),
            holds: write_buffer_holds,
            ordinals: Ordinals::starting_at(next_ordinal),
            held: VecDeque::new(),
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
    retries: Arc<RetryLog>,
    busy: Arc<Busy>,
    meter: DiskSpaceMeter,
    last_room: DiskSpace,
    /// Current keys of some callers. Only this thread changes keys.
    callers: Callers,
    /// Of tenants, owners and issuers.
    holds: Holds,
    ordinals: Ordinals,
    /// Commits that come before those of the queue: at most those of a group that was given up, and one that
    /// did not fit into it.
    held: VecDeque<Request>,
}

impl CommitLoop {
    fn run(&mut self) {
        loop {
            let mut share = GroupShare::default();
            let Some(first) = self.held.pop_front().or_else(|| self.commit_queue.first(&mut share)) else { break };
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
        // Those that are made even if a sealed reply of another cannot be kept, with their places in
        // `replies`.
        let mut unfailing = vec![];
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
            holds: &self.holds,
            ordinals: &self.ordinals,
            retries: &self.retries,
            requests: StagedRequests::default(),
        };

        let mut next = Some(first);
        while let Some(request) = next {
            let bytes = entry_bytes_max(&request.commit);
            if !frame.fits(bytes) {
                if !frame.is_empty() {
                    self.held.push_front(request);
                    break;
                }
                replies.push((request.reply, Err(CommitError::TooLong { bytes, max: PAYLOAD_BYTES_MAX })));
                next = self.held.pop_front().or_else(|| self.commit_queue.next(&mut share));
                continue;
            }
            unfailing.extend(is_unfailing(&request.commit).then(|| (replies.len(), request.commit.clone())));
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
            next = match frame.len() == GROUP_COMMITS_MAX {
                true => None,
                false => self.held.pop_front().or_else(|| self.commit_queue.next(&mut share)),
            };
        }
        let (taken, mut requests) = (seen.taken, seen.requests);
        if frame.is_empty() {
            return answer(replies);
        }

        staged.end = frame.end();
        let frame = match frame.finish() {
            Ok(frame) => frame,
            // Unreachable: each change was checked against the bound. Nothing was acknowledged.
            Err(error) => die("the journal cannot be written", &error),
        };
        // In this order: a sealed reply is there whenever its entry is.
        let sealed = match self.retries.keep_replies(&mut requests) {
            Ok(sealed) => sealed,
            // The log is unchanged. For a while no commit with a sealed reply joins a group: those that are
            // tried again do not fail so again.
            Err(error) => {
                let replies = self.hold(unfailing, replies);
                return self.refuse_for_room(&error, taken, replies);
            }
        };
        match self.journal.writer.ensure_space(frame.len(), &before, room) {
            Ok(rolled_over) => {
                #[cfg(feature = "fault-end-before-answer")]
                requests.end_if_named("end-before-sync");
                let place = self.journal.writer.place();
                self.make_durable(&frame, staged.end);
                #[cfg(feature = "fault-end-before-answer")]
                requests.end_if_named("end-after-sync");
                self.retries.remember(requests, place, &sealed);
                self.busy.has_room(true);
                if rolled_over {
                    self.maintenance.wake();
                }
            }
            Err(SpaceError::Unknown(error)) => die("the journal cannot be written", &error),
            Err(SpaceError::DiskFull(error)) => return self.refuse_for_room(&error, taken, replies),
        }
        self.write_buffer.insert(staged.rows.iter().map(|row| &row.record));
        self.keep_callers(&staged.rows);
        self.keep_holds(&staged.rows);
        self.feed.publish(changes);
        self.durable.send_replace(staged.end.revision);
        self.commit_queue.group_sent(staged.bytes());
        if self.groups.send(staged).is_err() {
            die("the table's writer has ended", &"no receiver");
        }
        answer(replies);
    }

    /// Puts commits of a group that is given up back before all others. Returns the replies to the rest.
    fn hold(&mut self, commits: Vec<(usize, Commit)>, replies: Replies) -> Replies {
        let mut replies: Vec<_> = replies.into_iter().map(Some).collect();
        for (at, commit) in commits.into_iter().rev() {
            if let Some((reply, _)) = replies.get_mut(at).and_then(Option::take) {
                self.held.push_front(Request { commit, reply });
            }
        }
        replies.into_iter().flatten().collect()
    }

    /// Refuses a group that was checked, for which there is no room.
    fn refuse_for_room(&self, error: &dyn Display, taken: Vec<Undo>, replies: Replies) {
        if self.busy.has_room(false) {
            tracing::error!(
                %error, "the disk takes no more of the log; changes are refused, and verdicts go on; look after the disk"
            );
        }
        self.administrators.lock().undo(taken);
        // Also to the refused ones: the cause may have been a change in this group.
        answer(replies.into_iter().map(|(reply, _)| (reply, Err(CommitError::DiskFull))));
    }

    /// Updates the cached keys of callers.
    fn keep_callers(&mut self, rows: &[Row]) {
        for row in rows {
            match &row.record {
                Record::Key(key) if key.tenant.is_system() => {
                    if let Some(kept) = self.callers.get_mut(&key.key_id) {
                        kept.clone_from(key);
                    }
                }
                Record::Purged(mark) if mark.tenant.is_system() && !mark.key_lives => {
                    self.callers.remove(&mark.key_id);
                }
                _ => {}
            }
        }
    }

    /// Updates what is withheld. Nearly no change does that.
    fn keep_holds(&mut self, rows: &[Row]) {
        for row in rows {
            self.holds.apply(&row.record);
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
                    tracing::error!(
                        "the disk is all but full: changes are refused, save disabling, revoking and deleting"
                    )
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

/// What is answered to the commits of a group, in their order.
type Replies = Vec<(Reply, Result<Revision, CommitError>)>;

/// Whether a commit is made however the sealed replies of others fare.
fn is_unfailing(commit: &Commit) -> bool {
    let is_sealed = commit.retry.as_ref().is_some_and(|(_, sealed)| sealed.is_some());
    commit.takes_power() && !is_sealed
}

/// Answers callers. The change of a caller that has gone away is made all the same.
fn answer(replies: impl IntoIterator<Item = (Reply, Result<Revision, CommitError>)>) {
    for (reply, outcome) in replies {
        drop(reply.send(outcome));
    }
}
