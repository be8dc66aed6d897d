//! A start on a full disk: verdicts are answered, and nothing is written. tests/crash does it to a real
//! server, on a real disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::store::Store;
use keyward::store::local::journal::JournalError;
use keyward::store::local::{LocalStore, LockedDir, OpenError};
use keyward_core::decision::Policy;
use keyward_core::record::State;
use tempfile::TempDir;

use crate::storage::disk::copy_dir;
use crate::storage::index_checkpoint::{self, Watched, with_checkpoint};
use crate::storage::retention::{self, segments, shortened, snapshots};
use crate::support::local_store::{create, key, open, options};

const SEGMENT_BYTES: u64 = 16 * 1024;
const DISABLED: u32 = 5;

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| match path.is_dir() {
        true => files_below(&path),
        false => BTreeMap::from([(path.clone(), fs::read(&path).unwrap())]),
    });
    found.collect()
}

/// Loads a view without writing anything, and opens the store behind it.
async fn is_filled_and_goes_on(dir: &TempDir, keys: u32, begins_with_checkpoint: bool) {
    let before = files_below(dir.path());
    let view = Watched::new();
    let locked = LockedDir::lock_unchanged(dir.path()).unwrap();
    let mut filled = LocalStore::fill(&locked, &options(SEGMENT_BYTES), &*view).unwrap();
    assert!(filled.is_some());
    assert!(files_below(dir.path()) == before, "nothing is written");
    assert_eq!(view.knew_a_checkpoint(), begins_with_checkpoint);
    let knows_all = || {
        assert_eq!(view.index.len(), keys as usize);
        for number in 0..keys {
            let entry = view.index.get(&key(number).secret.digest).unwrap();
            let expected = if number == DISABLED { State::Disabled } else { State::Active };
            assert_eq!(entry.state(), expected, "key {number}");
        }
    };
    knows_all();

    let (revision, taken) = (view.index.revision(), view.records_taken());
    locked.prepare().unwrap();
    let store = LocalStore::open_filled(locked, &options(SEGMENT_BYTES), view.clone(), &mut filled).unwrap();
    assert_eq!(store.revision(), revision);
    // Verdicts are answered from it meanwhile.
    assert!(!view.let_go_of_a_checkpoint() && view.records_taken() == taken, "what was filled is left alone");
    assert_eq!(*view.whole.lock().first().unwrap(), revision);
    knows_all();
    create(&store, keys).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_and_the_journal_are_enough() {
    is_filled_and_goes_on(&with_checkpoint().await, index_checkpoint::KEYS, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_alone_is_enough_where_it_has_everything() {
    let dir = with_checkpoint().await;
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    is_filled_and_goes_on(&dir, index_checkpoint::KEYS, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_and_the_journal_are_enough() {
    let dir = shortened().await;
    is_filled_and_goes_on(&dir, retention::KEYS, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_snapshot_is_enough_where_the_newest_is_damaged() {
    let dir = shortened().await;
    let newest = snapshots(&dir).pop().unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let view = Watched::new();
    let locked = LockedDir::lock_unchanged(dir.path()).unwrap();
    assert!(LocalStore::fill(&locked, &options(SEGMENT_BYTES), &*view).unwrap().is_some());
    assert_eq!(view.index.len(), retention::KEYS as usize);
    // Without any, only the table may have everything.
    snapshots(&dir).iter().for_each(|path| fs::write(path, b"no snapshot").unwrap());
    let view = Watched::new();
    assert!(LocalStore::fill(&locked, &options(SEGMENT_BYTES), &*view).unwrap().is_none());
    assert!(view.whole.lock().is_empty() && view.index.is_empty(), "nobody is answered from a part");
    drop(locked);
    // The table has, and a start with room serves from it.
    let locked = LockedDir::lock(dir.path()).unwrap();
    let store = LocalStore::open_filled(locked, &options(SEGMENT_BYTES), view.clone(), &mut None).unwrap();
    assert_eq!((view.index.len(), store.revision()), (retention::KEYS as usize, view.index.revision()));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_missing_is_not_answered_from() {
    let dir = with_checkpoint().await;
    let refused = |dir: &TempDir| {
        let view = Watched::new();
        let locked = LockedDir::lock_unchanged(dir.path()).unwrap();
        let refused = LocalStore::fill(&locked, &options(SEGMENT_BYTES), &*view).unwrap_err();
        assert!(view.whole.lock().is_empty(), "{refused}");
        refused
    };
    let last = segments(&dir).pop().unwrap();
    let sound = fs::read(&last).unwrap();
    fs::write(&last, &sound[..128]).unwrap();
    assert!(matches!(refused(&dir), OpenError::Missing { .. }));
    let mut flipped = sound.clone();
    flipped[100] ^= 1;
    fs::write(&last, &flipped).unwrap();
    let found = refused(&dir);
    assert!(matches!(&found, OpenError::Journal(JournalError::Damaged { .. }) | OpenError::Missing { .. }), "{found}");
    fs::write(&last, &sound).unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    assert!(matches!(refused(&dir), OpenError::NoWatermark { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_not_opened_behind_a_view_of_another_log() {
    let (dir, other) = (with_checkpoint().await, tempfile::tempdir().unwrap());
    copy_dir(dir.path(), other.path());
    let store = open(&other, SEGMENT_BYTES);
    create(&store, index_checkpoint::KEYS).await;
    store.close().await.unwrap();
    drop(store);
    for (filled_from, opened, earlier) in [(&dir, &other, true), (&other, &dir, false)] {
        let view = Watched::new();
        let locked = LockedDir::lock_unchanged(filled_from.path()).unwrap();
        let mut filled = LocalStore::fill(&locked, &options(SEGMENT_BYTES), &*view).unwrap();
        drop(locked);
        let locked = LockedDir::lock(opened.path()).unwrap();
        let refused = LocalStore::open_filled(locked, &options(SEGMENT_BYTES), Arc::new(()), &mut filled);
        let refused = refused.map(drop).unwrap_err();
        match earlier {
            true => assert!(matches!(refused, OpenError::Foreign { .. }), "{refused}"),
            false => assert!(matches!(refused, OpenError::Missing { .. }), "{refused}"),
        }
    }
}
