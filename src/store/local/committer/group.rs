//! A commit that is queued, and a group of them on its way to the table.

use keyward_core::event::Revision;
use tokio::sync::oneshot;

use crate::store::local::journal::Position;
use crate::store::local::table::Row;
use crate::store::{Commit, CommitError};

/// A commit and its reply channel.
pub(in crate::store::local) struct Request {
    pub(in crate::store::local) commit: Commit,
    pub(in crate::store::local) reply: Reply,
}

pub(super) type Reply = oneshot::Sender<Result<Revision, CommitError>>;

/// A durable group on its way to the table.
pub(super) struct Group {
    pub(super) rows: Vec<Row>,
    pub(super) end: Position,
}

impl Group {
    /// Bytes of its records.
    pub(super) fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row.bytes.len()).sum()
    }
}
