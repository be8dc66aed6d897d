//! A journal of several segments: rolling over to the next one, and a missing one.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use keyward::store::local::journal::JournalError;
use keyward::store::local::{LocalStore, LockedDir, OpenError};
use keyward::store::{CommitError, RecordWrite, Store};
use keyward_core::record::{KeyRecord, State};

use crate::support::local_store::{commit, create, key, open, options};

#[tokio::test]
async fn a_journal_of_many_segments_is_read_back_and_a_missing_one_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 16 * 1024);
    for number in 0..200 {
        create(&store, number).await;
    }
    let mut changed = KeyRecord::clone(&*store.key(&key(5).tenant, &key(5).key_id).await.unwrap().unwrap());
    changed.spec.policy.state = State::Disabled;
    store.commit(commit(vec![RecordWrite::Key(Box::new(changed))])).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let segments = fs::read_dir(dir.path().join("journal")).unwrap().count();
    assert!(segments > 3, "{segments} segments");

    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let store = open(&dir, 16 * 1024);
    for number in 0..200 {
        let found = store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap();
        let expected = if number == 5 { State::Disabled } else { State::Active };
        assert_eq!((found.spec.policy.state, &*found.spec.display_name), (expected, &*format!("Key {number}")));
    }
    create(&store, 200).await;
    store.close().await.unwrap();
    drop(store);

    let second = dir.path().join("journal/000000000002.kwj");
    let kept = fs::read(&second).unwrap();
    fs::remove_file(&second).unwrap();
    let reopen = || {
        let options = options(16 * 1024);
        LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, Arc::new(()))
    };
    assert!(matches!(reopen(), Err(OpenError::Journal(JournalError::Gap { .. }))));
    // A whole segment put in the place of another is noticed too.
    fs::copy(dir.path().join("journal/000000000003.kwj"), &second).unwrap();
    assert!(matches!(reopen(), Err(OpenError::Journal(JournalError::Damaged { offset: 0, .. }))));
    fs::write(&second, kept).unwrap();
    assert!(reopen().is_ok());
}

#[tokio::test]
async fn changes_are_refused_while_the_journal_has_no_room_and_made_again_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 8 * 1024);
    // In the place of the next segment's file: it cannot be made, as on a full disk.
    let obstacle = dir.path().join("journal/000000000002.kwj.new");
    fs::create_dir(&obstacle).unwrap();
    let mut number = 0;
    let refused = loop {
        let put = RecordWrite::NewKey(Box::new(key(number)));
        match store.commit(commit(vec![put])).await {
            Ok(_) => number += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, CommitError::DiskFull), "{refused}");
    assert!(number > 5, "the first segment held {number}");
    assert!(store.key(&key(0).tenant, &key(0).key_id).await.unwrap().is_some());
    assert!(store.key(&key(number).tenant, &key(number).key_id).await.unwrap().is_none());

    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(create(&store, number).await.revision.0, u64::from(number) + 1, "no revision was used up");
    store.close().await.unwrap();
    drop(store);
    let store = open(&dir, 8 * 1024);
    assert_eq!(store.revision().0, u64::from(number) + 1);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_is_about_to_go_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 16 * 1024);
    store.close().await.unwrap();
    drop(store);
    for name in ["table/db", "lock"] {
        // As sled's own threads hold it for a moment after the table was closed.
        let held = fs::File::open(dir.path().join(name)).unwrap();
        held.lock().unwrap();
        let (opened, done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            // It is let go only while the store is being opened: who does not wait has failed by then.
            scope.spawn(move || {
                assert!(done.recv_timeout(Duration::from_millis(300)).is_err(), "opened while {name} was locked");
                drop(held);
            });
            drop(open(&dir, 16 * 1024));
            drop(opened);
        });
    }
}
