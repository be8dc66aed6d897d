//! Checks a commit against the current records, and encodes it for the journal and the table.

use keyward_core::access::{Authorization, Identity};
use keyward_core::event::Revision;
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::State;

use super::pending_view::PendingView;
use crate::store::check::{EncodedWrite, WriteContext, authorize, check_and_encode, keep_caller};
use crate::store::local::disk_space::DiskSpace;
use crate::store::local::retries::{NotRemembered, sealed_reply_hash};
use crate::store::local::table::Row;
use crate::store::record::{encode_issuer, encode_key, encode_owner, encode_tenant, pb, redo};
use crate::store::{Commit, CommitError, Recalled, RecordWrite};

/// Bytes of an entry besides its texts and records, the longest address included; and bytes of each record
/// for its revision and its framing.
const ENTRY_BYTES_EXTRA: usize = 64 + 48;
/// Bytes of what recognises a retry, besides the request id: two hashes, with their framing.
const RETRY_BYTES: usize = 2 * (2 + 32) + 2;
const RECORD_BYTES_EXTRA: usize = 32;
/// The number that the store gives a key.
const ORDINAL_BYTES: usize = 8;
/// A purge mark: tenant, id, three digests, time and revision, with its envelope.
const MARK_BYTES_MAX: usize = 512;

/// An upper bound for the bytes of a commit's entry, whose revision is not known yet.
pub(in crate::store::local) fn entry_bytes_max(commit: &Commit) -> usize {
    let about = |record_bytes: usize| ENTRY_BYTES_EXTRA + commit.target.len() + commit.method.len() + record_bytes;
    let record_bytes = |put: &RecordWrite| match put {
        RecordWrite::NewKey(key) | RecordWrite::Key(key) => encode_key(key).len() + ORDINAL_BYTES,
        RecordWrite::RotatedKey(key) => encode_key(key).len() + ORDINAL_BYTES + MARK_BYTES_MAX,
        RecordWrite::Purge { .. } => MARK_BYTES_MAX,
        RecordWrite::NewTenant(tenant) | RecordWrite::Tenant(tenant) => encode_tenant(tenant).len(),
        RecordWrite::Owner(owner) => encode_owner(owner).len(),
        RecordWrite::Issuer(issuer) => encode_issuer(issuer).len(),
    };
    let bytes = match &commit.writes[..] {
        // No record is longer. Nearly all commits have one record and are not encoded here.
        [] | [_] => RECORD_BYTES_MAX + MARK_BYTES_MAX + 2 * RECORD_BYTES_EXTRA,
        writes => writes.iter().map(|put| record_bytes(put) + RECORD_BYTES_EXTRA).sum(),
    };
    let identity = commit.authorization.as_ref().and_then(|asked| asked.caller().proven_besides());
    let retry = commit.retry.as_ref().map_or(0, |(retry, _)| retry.request_id.as_str().len() + RETRY_BYTES);
    about(retry + bytes + commit.actor.as_str().len() + identity.map_or(0, |identity| identity.as_str().len()))
}

/// Checks a commit and encodes it as an entry and rows. Later commits of the group see its writes.
pub(super) fn encode_commit(
    commit: Commit,
    revision: Revision,
    seen: &mut PendingView<'_>,
    room: DiskSpace,
) -> Result<(pb::JournalEntry, Vec<Row>), CommitError> {
    authorize(&commit, seen)?;
    // A change that was made is told of, whatever has become of the disk.
    check_retry(&commit, seen)?;
    if !has_room(&commit, room) {
        return Err(CommitError::DiskFull);
    }
    let clock = commit.clock();
    let at = WriteContext { revision, time: commit.time, narrows: commit.narrows };
    let rows = seen.ordinals.unless_refused(|| {
        let mut staged = Vec::with_capacity(commit.writes.len());
        for put in commit.writes {
            check_and_encode(put, at, seen, &mut staged)?;
        }
        let rows: Vec<Row> = staged.into_iter().map(|EncodedWrite { record, bytes }| Row::new(record, bytes)).collect();
        keep_caller(commit.authorization.as_ref(), commit.time, rows.iter().map(|row| &row.record), seen)?;
        seen.keep_administrator(&rows, clock)?;
        Ok::<_, CommitError>(rows)
    })?;
    rows.iter().for_each(|row| seen.group.insert(&row.record));
    let caller = commit.authorization.as_ref().map(Authorization::caller);
    let (retry, sealed) = commit.retry.unzip();
    let sealed = sealed.flatten();
    let sealed_reply_hash = sealed_reply_hash(sealed.as_ref());
    if let Some(retry) = &retry {
        seen.requests.push(&commit.actor, (retry, sealed), (revision, commit.time));
    }
    let entry = pb::JournalEntry {
        revision: revision.0,
        time_ms: commit.time.0,
        actor: commit.actor.to_string(),
        method: commit.method.to_owned(),
        target: commit.target,
        peer: caller.and_then(|caller| caller.peer).map(|peer| peer.to_string()).unwrap_or_default(),
        identity: caller.and_then(Identity::proven_besides).map(ToString::to_string).unwrap_or_default(),
        request_id: retry.as_ref().map(|retry| retry.request_id.to_string()).unwrap_or_default(),
        payload_hash: retry.map(|retry| retry.payload_hash.to_vec()).unwrap_or_default(),
        sealed_reply_hash,
        redo: rows.iter().map(|row| redo(&row.record, row.bytes.clone())).collect(),
        ..pb::JournalEntry::default()
    };
    Ok((entry, rows))
}

/// Refuses a change that was made already, or that could not be recognised when it is asked for again.
fn check_retry(commit: &Commit, seen: &PendingView<'_>) -> Result<(), CommitError> {
    match seen.retries.recall_staged(&seen.requests, commit) {
        Ok(Recalled::New) => Ok(()),
        Ok(Recalled::Made(revision)) => Err(CommitError::Repeated(revision)),
        Ok(Recalled::Reused) => Err(CommitError::RequestIdReused),
        Err(NotRemembered::TooMany) => Err(CommitError::TooManyRequests),
        Err(NotRemembered::NotKept) => Err(CommitError::DiskFull),
    }
}

/// Whether the disk space allows a change.
fn has_room(commit: &Commit, room: DiskSpace) -> bool {
    // Only what can be done once to each key, so that nobody can use the last room up: not suspensions until
    // a time, rotations and holds, which can be repeated without end.
    let stops = |put: &RecordWrite| match put {
        RecordWrite::Key(key) => match key.spec.policy.state {
            _ if key.deletion.is_some() => true,
            State::Disabled => key.resume_time.is_none(),
            State::Revoked => true,
            State::Active => false,
        },
        RecordWrite::Purge { .. } => true,
        RecordWrite::NewKey(_)
        | RecordWrite::RotatedKey(_)
        | RecordWrite::NewTenant(_)
        | RecordWrite::Tenant(_)
        | RecordWrite::Owner(_)
        | RecordWrite::Issuer(_) => false,
    };
    match room {
        DiskSpace::Ok => true,
        DiskSpace::Low => commit.narrows || commit.urgent,
        DiskSpace::Critical => commit.narrows && commit.writes.iter().all(stops),
        DiskSpace::Exhausted => false,
    }
}
