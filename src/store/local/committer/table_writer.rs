//! Writes durable groups into the table, behind the journal.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use keyward_core::event::Revision;
use tokio::sync::watch;

use super::group::Group;
use super::queue::CommitQueue;
use crate::store::local::table::Table;
use crate::store::local::write_buffer::WriteBuffer;
use crate::util::fatal::die;

/// Rows in one transaction of the table writer, while more are queued. A read of a key may wait for one
/// transaction.
const TABLE_ROWS_MAX: usize = 256;
/// How often an idle table writer checks that the table still works.
const TABLE_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// The thread that writes the table.
pub(super) struct TableWriter {
    pub(super) table: Arc<Table>,
    pub(super) write_buffer: Arc<WriteBuffer>,
    pub(super) commit_queue: Arc<CommitQueue>,
    pub(super) applied: watch::Sender<Revision>,
}

impl TableWriter {
    pub(super) fn run(&self, groups: &Receiver<Group>) {
        loop {
            let mut group = match groups.recv_timeout(TABLE_PROBE_INTERVAL) {
                Ok(group) => group,
                Err(RecvTimeoutError::Timeout) => {
                    self.probe();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.commit_queue.group_taken(group.bytes());
            while group.rows.len() < TABLE_ROWS_MAX
                && let Ok(next) = groups.try_recv()
            {
                self.commit_queue.group_taken(next.bytes());
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
