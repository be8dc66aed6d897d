//! Checks a commit against the current records, and encodes it for the journal and the table.

use keyward_core::event::{Record, Revision};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::State;

use super::pending_view::PendingView;
use crate::store::check::{EncodedWrite, authorize, check_and_encode};
use crate::store::local::disk_space::DiskSpace;
use crate::store::local::table::Row;
use crate::store::record::{encode_key, encode_tenant, pb};
use crate::store::{Commit, CommitError, RecordWrite};

/// Bytes of an entry besides its texts and records; and bytes of each record for its revision and its
/// framing.
const ENTRY_BYTES_EXTRA: usize = 64;
const RECORD_BYTES_EXTRA: usize = 32;

/// An upper bound for the bytes of a commit's entry, whose revision is not known yet.
pub(in crate::store::local) fn entry_bytes_max(commit: &Commit) -> usize {
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
pub(super) fn encode_commit(
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
    let stops = |put: &RecordWrite| matches!(put, RecordWrite::Key(key) if key.spec.policy.state != State::Active);
    match room {
        DiskSpace::Ok => true,
        DiskSpace::Low => commit.narrows || commit.urgent,
        DiskSpace::Critical => commit.narrows && commit.writes.iter().all(stops),
        DiskSpace::Exhausted => false,
    }
}
