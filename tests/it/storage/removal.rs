//! What was removed stays removed, and what was rotated is one key: for an index that stalls, and after each
//! kind of restart.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use keyward::feed::WINDOW_CHANGES_MAX;
use keyward::index::Index;
use keyward::index::follow::follow_log;
use keyward::store::local::{LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::record::{encode_key, stateless_key_bytes};
use keyward::store::{CommitError, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::ActorId;
use keyward_core::limits::{ACTOR_BYTES_MAX, RECORD_BYTES_ISSUED_MAX, RECORD_BYTES_MAX, STATE_REASON_BYTES_MAX};
use keyward_core::record::{AuditStamp, Deletion, KeyRecord, State};
use keyward_core::testing::rotated;
use tokio_util::sync::CancellationToken;

use crate::storage::disk::copy_dir;
use crate::storage::follow::{follow, open};
use crate::storage::index_checkpoint::{Watched, wait_for_a_useful_checkpoint};
use crate::support::lives::{Writer, write, writers};
use crate::support::local_store::{commit, create, key, options};
use crate::support::model::{Model, named, records_in};

const SEGMENT_BYTES: u64 = 16 * 1024;
const NONE: [&str; 0] = [];

/// Lets new writers live on a store, whose index follows.
async fn live(store: &Arc<dyn Store>, index: &Arc<Index>, numbers: Range<u32>, steps: usize) -> Vec<Writer> {
    let mut writing = writers(&**store, numbers).await;
    live_on(store, index, &mut writing, steps).await;
    writing
}

async fn live_on(store: &Arc<dyn Store>, index: &Arc<Index>, writing: &mut [Writer], steps: usize) {
    let following = follow_log(store.clone(), index.clone(), CancellationToken::new());
    tokio::select! {
        () = write(&**store, writing, steps) => {}
        () = following => panic!("it was not stopped"),
    }
    follow(store.clone(), index).await;
}

/// The index of a start, the store and the records in the table are what they must be, but for purge marks
/// that were forgotten. Does not change the directory. Returns how many marks there are.
async fn is_whole(dir: &Path, options: &StoreOptions, model: &Model) -> usize {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    let index = Arc::default();
    let store = open(copy.path(), options, &index);
    assert_eq!(model.differences(&index), NONE);
    for key in model.keys() {
        let found = store.key(&key.tenant, &key.key_id).await.unwrap();
        assert_eq!(found.as_deref(), Some(key));
    }
    store.close().await.unwrap();
    drop(store);
    assert_eq!(model.differences_in_holds(&index), NONE);

    let (records, mut expected) = (named(&records_in(copy.path(), options).await), model.records());
    expected.retain(|name, _| !name.starts_with("purged ") || records.contains_key(name));
    assert!(records == expected);
    let store = open(copy.path(), options, &Arc::default());
    let mut marks = 0;
    for (tenant, key_id) in model.purged() {
        assert_eq!(store.key(tenant, key_id).await.unwrap(), None);
        if !records.contains_key(&format!("purged {tenant}/{key_id}")) {
            continue;
        }
        marks += 1;
        let again = KeyRecord { tenant: tenant.clone(), key_id: key_id.clone(), ..key(7_000_000) };
        let again = store.commit(commit(vec![RecordWrite::NewKey(Box::new(again))])).await;
        assert!(matches!(again, Err(CommitError::Exists)), "{again:?}");
    }
    assert_eq!(create(&*store, 8_000_000).await.ordinal, Some(model.next_ordinal()), "no number is given twice");
    store.close().await.unwrap();
    marks
}

/// Some 20,000 changes: more than the window holds.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_stalls_while_keys_are_rotated_and_purged_equals_a_fresh_one() {
    let (dir, options, index) = (tempfile::tempdir().unwrap(), options(1024 * 1024), Arc::default());
    let store: Arc<dyn Store> = open(dir.path(), &options, &index);
    let mut lived = live(&store, &index, 0..4, 50).await;
    let stalled_at = index.revision();
    write(&*store, &mut lived, 50).await;
    let mut others = writers(&*store, 4..104).await;
    write(&*store, &mut others, 200).await;
    lived.extend(others);
    assert_eq!(index.revision(), stalled_at);
    assert!(store.revision().0 > stalled_at.0 + WINDOW_CHANGES_MAX as u64);
    assert!(store.changes(stalled_at).is_err(), "the window holds all of it");
    follow(store.clone(), &index).await;
    store.close().await.unwrap();
    drop(store);
    let model = Model::of(&lived);
    assert_eq!(model.differences(&index), NONE);
    let fresh = Arc::default();
    drop(open(dir.path(), &options, &fresh));
    assert_eq!(model.differences(&fresh), NONE);
    assert_eq!(index.revision(), fresh.revision());
    assert_eq!(model.differences_in_holds(&index), NONE);
}

/// Why an index that fell behind reads the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_table_over_an_index_that_stalled_leaves_what_was_removed() {
    let (dir, options, stalled) = (tempfile::tempdir().unwrap(), options(1024 * 1024), Arc::default());
    let store: Arc<dyn Store> = open(dir.path(), &options, &stalled);
    let lived = live(&store, &Arc::default(), 0..4, 200).await;
    let mut log = store.read_log(Revision(0)).await.unwrap();
    while stalled.revision() < Revision(200) {
        stalled.apply(&log.next().await.unwrap().unwrap());
    }
    drop(log);
    store.close().await.unwrap();
    drop(store);
    let (model, records, fresh) = (Model::of(&lived), records_in(dir.path(), &options).await, Index::default());
    fresh.apply_records(&records);
    assert_eq!(model.differences(&fresh), NONE, "the table itself is whole");
    stalled.apply_records(&records);
    let differences = model.differences(&stalled);
    assert!(differences.iter().any(|it| it.contains("expected None, found Some")), "{differences:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_what_was_removed() {
    let (dir, options) = (tempfile::tempdir().unwrap(), options(1024 * 1024));
    let (table, aside) = (dir.path().join("table"), tempfile::tempdir().unwrap());
    let old = aside.path().join("table");
    let index = Arc::default();
    let store: Arc<dyn Store> = open(dir.path(), &options, &index);
    let mut lived = live(&store, &index, 0..4, 100).await;
    store.close().await.unwrap();
    drop(store);
    copy_dir(&table, &old);
    is_whole(dir.path(), &options, &Model::of(&lived)).await;

    let index = Arc::default();
    let store: Arc<dyn Store> = open(dir.path(), &options, &index);
    live_on(&store, &index, &mut lived, 100).await;
    store.close().await.unwrap();
    drop(store);
    let model = Model::of(&lived);
    let marks = model.purged().count();
    assert_eq!(model.differences(&index), NONE);
    assert_eq!(is_whole(dir.path(), &options, &model).await, marks);
    // The table is behind the journal.
    fs::remove_dir_all(&table).unwrap();
    fs::rename(&old, &table).unwrap();
    assert_eq!(is_whole(dir.path(), &options, &model).await, marks);
    // There is none.
    fs::remove_dir_all(&table).unwrap();
    assert_eq!(is_whole(dir.path(), &options, &model).await, marks);
    // It is made anew, from nothing and from the one before.
    for _ in 0..2 {
        let locked = LockedDir::lock(dir.path()).unwrap();
        LocalStore::rebuild(&locked, &options).unwrap();
        drop(locked);
        assert_eq!(is_whole(dir.path(), &options, &model).await, marks);
    }
}

/// The journal does not go back to the beginning any more, and old purge marks are forgotten.
#[tokio::test]
async fn a_key_goes_without_a_number_once_all_were_given() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(SEGMENT_BYTES);
    let store = open(dir.path(), &options, &Arc::default());
    let last = KeyRecord { ordinal: Some(u32::MAX - 2), ..create(&*store, 1).await };
    store.commit(commit(vec![RecordWrite::Key(Box::new(last.clone()))])).await.unwrap();
    store.close().await.unwrap();
    drop(store);

    let tries = [([2, 3], [Some(u32::MAX - 1), None]), ([4, 5], [None, None])];
    for (numbers, expected) in tries {
        let store = open(dir.path(), &options, &Arc::default());
        let given = [create(&*store, numbers[0]).await.ordinal, create(&*store, numbers[1]).await.ordinal];
        assert_eq!(given, expected);
        store.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_from_a_snapshot_knows_what_was_removed() {
    let (dir, index) = (tempfile::tempdir().unwrap(), Arc::default());
    let retention = Retention { bytes: 4 * SEGMENT_BYTES, ..options(0).retention };
    let short = StoreOptions { retention, ..options(SEGMENT_BYTES) };
    // What is opened with these forgets nothing more.
    let options = options(SEGMENT_BYTES);
    let store: Arc<dyn Store> = open(dir.path(), &short, &index);
    let mut lived = writers(&*store, 0..8).await;
    while dir.path().join("journal/000000000001.kwj").exists() {
        live_on(&store, &index, &mut lived, 10).await;
    }
    live_on(&store, &index, &mut lived, 10).await;
    store.close().await.unwrap();
    drop(store);
    let model = Model::of(&lived);
    let marks = is_whole(dir.path(), &options, &model).await;
    assert!((1..model.purged().count()).contains(&marks), "some were forgotten: {marks} are left");
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    // A snapshot has all that were there when it was made.
    assert!(is_whole(dir.path(), &options, &model).await >= marks);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_from_a_checkpoint_knows_what_was_removed() {
    let (dir, options, index) = (tempfile::tempdir().unwrap(), options(SEGMENT_BYTES), Arc::default());
    let store: Arc<dyn Store> = open(dir.path(), &options, &index);
    let lived = live(&store, &index, 0..8, 300).await;
    wait_for_a_useful_checkpoint(&dir).await;
    store.close().await.unwrap();
    drop(store);
    let (model, view) = (Model::of(&lived), Watched::new());
    drop(LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, view.clone()).unwrap());
    assert!(view.knew_a_checkpoint());
    assert_eq!(model.differences(&view.index), NONE);
    assert_eq!(model.differences_in_holds(&view.index), NONE);
}

/// The committer asks the index for the revision of a key that the table has, not for all of its record.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_refused_that_makes_the_previous_secret_the_current_one() {
    let (dir, options, index) = (tempfile::tempdir().unwrap(), options(SEGMENT_BYTES), Arc::default());
    let store: Arc<dyn Store> = open(dir.path(), &options, &index);
    let next = rotated(&create(&*store, 1).await, 1);
    let revision = store.commit(commit(vec![RecordWrite::RotatedKey(Box::new(next.clone()))])).await.unwrap();
    follow(store.clone(), &index).await;
    while store.stats().applied < revision {
        tokio::task::yield_now().await;
    }
    let there = KeyRecord { revision, ..next };
    let mut back = there.clone();
    back.secret = there.previous.as_ref().unwrap().secret.clone();
    let refused = store.commit(commit(vec![RecordWrite::Key(Box::new(back))])).await;
    assert!(matches!(refused, Err(CommitError::Outdated)), "{refused:?}");
    assert_eq!(store.key(&there.tenant, &there.key_id).await.unwrap().as_deref(), Some(&there));
    store.commit(commit(vec![RecordWrite::Key(Box::new(there))])).await.unwrap();
    store.close().await.unwrap();
}

/// A key with as much as it may be issued with, and the longest author of each change.
fn longest() -> KeyRecord {
    let author = ActorId::parse(&format!("spiffe://{}", "a".repeat(ACTOR_BYTES_MAX - "spiffe://".len()))).unwrap();
    let created = AuditStamp { time: UnixMillis(i64::MAX), actor: author };
    let mut key = KeyRecord { created: created.clone(), updated: created, ..key(1) };
    while stateless_key_bytes(&key) < RECORD_BYTES_ISSUED_MAX {
        key.spec.description.push('x');
    }
    key
}

/// The same key with another secret that the longest author issued.
fn longest_rotated(key: &KeyRecord, number: u32) -> KeyRecord {
    let mut next = rotated(key, number);
    next.secret.issued = Some(key.updated.clone());
    if let Some(previous) = &mut next.previous {
        previous.valid_until = Some(UnixMillis(i64::MAX));
    }
    next
}

#[tokio::test]
async fn the_longest_key_is_rotated_disabled_deleted_revoked_and_purged() {
    let (dir, options) = (tempfile::tempdir().unwrap(), options(SEGMENT_BYTES));
    let mut store = open(dir.path(), &options, &Arc::default());
    let mut there = longest();
    store.commit(commit(vec![RecordWrite::NewKey(Box::new(there.clone()))])).await.unwrap();
    there = KeyRecord::clone(&*store.key(&there.tenant, &there.key_id).await.unwrap().unwrap());
    for step in 0..7 {
        let mut next = there.clone();
        match step {
            0..4 => next = longest_rotated(&there, step),
            4 => {
                next.spec.policy.state = State::Disabled;
                next.resume_time = Some(UnixMillis(i64::MAX));
            }
            5 => {
                let (time, purge_time) = (UnixMillis(i64::MAX), UnixMillis(i64::MAX));
                (next.deletion, next.delete_protected) = (Some(Deletion { time, purge_time }), true);
            }
            _ => next.spec.policy.state = State::Revoked,
        }
        (next.state_reason, next.state_changed) = ("r".repeat(STATE_REASON_BYTES_MAX), Some(there.updated.clone()));
        let write = if step < 4 { RecordWrite::RotatedKey } else { RecordWrite::Key };
        next.revision = store.commit(commit(vec![write(Box::new(next.clone()))])).await.unwrap();
        store.close().await.unwrap();
        drop(store);
        store = open(dir.path(), &options, &Arc::default());
        assert_eq!(store.key(&next.tenant, &next.key_id).await.unwrap().as_deref(), Some(&next));
        there = next;
    }
    let (bytes, retired) = (encode_key(&there).len(), there.retired.as_ref());
    assert!((RECORD_BYTES_ISSUED_MAX..=RECORD_BYTES_MAX).contains(&bytes) && retired.is_some(), "{bytes}");
    let (tenant, key_id, revision) = (there.tenant.clone(), there.key_id.clone(), there.revision);
    store.commit(commit(vec![RecordWrite::Purge { tenant, key_id, revision }])).await.unwrap();
    assert_eq!(store.key(&there.tenant, &there.key_id).await.unwrap(), None);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_too_long_with_another_secret_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &options(SEGMENT_BYTES), &Arc::default());
    let mut there = longest();
    there.spec.description.push_str(&"x".repeat(RECORD_BYTES_MAX - RECORD_BYTES_ISSUED_MAX - 200));
    store.commit(commit(vec![RecordWrite::NewKey(Box::new(there.clone()))])).await.unwrap();
    there = KeyRecord::clone(&*store.key(&there.tenant, &there.key_id).await.unwrap().unwrap());
    let next = RecordWrite::RotatedKey(Box::new(longest_rotated(&there, 0)));
    let refused = store.commit(commit(vec![next])).await;
    assert!(matches!(refused, Err(CommitError::TooLarge { .. })), "{refused:?}");
    assert_eq!(store.key(&there.tenant, &there.key_id).await.unwrap().as_deref(), Some(&there));
    store.close().await.unwrap();
}
