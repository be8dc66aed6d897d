//! The journal is bounded, and what is deleted is never needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::store::local::recovery::salvage::salvage;
use keyward::store::local::{LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use keyward::store::{Commit, CommitError, ReadContext, RecordWrite, Retry, Store};
use keyward_core::clock::{ManualClock, UnixMillis};
use keyward_core::id::{ActorId, RequestId};
use keyward_core::record::{KeyRecord, State};
use tempfile::TempDir;

use crate::support::local_store::{commit, create, key, options};

const SEGMENT_BYTES: u64 = 16 * 1024;
pub(crate) const KEYS: u32 = 600;

fn keeping(bytes: u64) -> StoreOptions {
    StoreOptions { retention: Retention { bytes, time: Duration::MAX }, ..options(SEGMENT_BYTES) }
}

fn try_open(dir: &TempDir, options: &StoreOptions) -> Result<LocalStore, OpenError> {
    LocalStore::open(LockedDir::lock(dir.path()).unwrap(), options, Arc::new(()))
}

fn files(dir: &TempDir, below: &str, ending: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.path().join(below)) else { return vec![] };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|found| found == ending));
    found.sort();
    found
}

pub(crate) fn segments(dir: &TempDir) -> Vec<PathBuf> {
    files(dir, "journal", "kwj")
}

pub(crate) fn snapshots(dir: &TempDir) -> Vec<PathBuf> {
    files(dir, "snapshot", "kws")
}

/// The maintenance thread runs on its own: waits until it has done something.
pub(crate) fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::yield_now();
    }
}

async fn is_whole(store: &LocalStore, last: u32) {
    for number in 0..last {
        let found = store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap();
        let expected = if number == 5 { State::Disabled } else { State::Active };
        assert_eq!((found.spec.policy.state, &*found.spec.display_name), (expected, &*format!("Key {number}")));
    }
}

/// A stopped store whose journal no longer goes back to the beginning.
pub(crate) async fn shortened() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = try_open(&dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    for number in 0..10 {
        create(&store, number).await;
    }
    let mut changed = KeyRecord::clone(&*store.key(&key(5).tenant, &key(5).key_id).await.unwrap().unwrap());
    changed.spec.policy.state = State::Disabled;
    store.commit(commit(vec![RecordWrite::Key(Box::new(changed))])).await.unwrap();
    for number in 10..KEYS {
        create(&store, number).await;
        // Two segments later each time, however slow the maintenance thread is.
        match number {
            350 => wait_until("a snapshot", || !snapshots(&dir).is_empty()),
            450 => wait_until("the first segment goes", || !dir.path().join("journal/000000000001.kwj").exists()),
            _ => {}
        }
    }
    wait_until("two snapshots", || snapshots(&dir).len() == 2);
    assert!(store.stats().snapshot.is_some(), "metrics are told of them");
    store.close().await.unwrap();
    dir
}

async fn starts_whole(dir: &TempDir) {
    let store = try_open(dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    is_whole(&store, KEYS).await;
    wait_until("the snapshots were read", || store.stats().snapshot.is_some());
    store.close().await.unwrap();
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn old_segments_go_and_a_snapshot_stands_in_for_them() {
    let dir = shortened().await;
    starts_whole(&dir).await;
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    starts_whole(&dir).await;
}

#[tokio::test]
async fn one_damaged_snapshot_costs_nothing() {
    for damaged in [0, 1] {
        let dir = shortened().await;
        let (table, paths) = (dir.path().join("table"), snapshots(&dir));
        flip(&paths[damaged]);
        fs::remove_dir_all(&table).unwrap();
        starts_whole(&dir).await;
    }
}

/// Two snapshots within one segment: the third does not release that segment, though the first is of no more
/// use.
#[tokio::test]
async fn a_third_snapshot_takes_the_place_of_the_first_though_nothing_goes() {
    let dir = tempfile::tempdir().unwrap();
    let newest = || snapshots(&dir).pop();
    let mut number = 0;
    let store = try_open(&dir, &keeping(u64::MAX)).unwrap();
    while segments(&dir).len() < 2 {
        number += 1;
        create(&store, number).await;
    }
    store.close().await.unwrap();
    drop(store);
    let open = || try_open(&dir, &keeping(0)).unwrap();
    let store = open();
    wait_until("a snapshot", || newest().is_some());
    // So that the second one differs from the first.
    number += 1;
    create(&store, number).await;
    store.close().await.unwrap();
    drop(store);
    let store = open();
    wait_until("what two snapshots cover goes", || segments(&dir).len() == 1);
    let second = newest();
    while newest() == second {
        number += 1;
        create(&store, number).await;
    }
    wait_until("the first goes", || snapshots(&dir).len() == 2);
    store.close().await.unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let store = open();
    for number in 1..=number {
        assert!(store.key(&key(number).tenant, &key(number).key_id).await.unwrap().is_some(), "{number}");
    }
    store.close().await.unwrap();
}

/// The newest snapshot covers nearly all of the journal, but what the older one lacks is kept, in case it is
/// needed.
#[tokio::test]
async fn what_the_older_snapshot_lacks_stays_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    for keys in [0..600, 600..1_200] {
        let store = try_open(&dir, &keeping(u64::MAX)).unwrap();
        for number in keys {
            create(&store, number).await;
        }
        store.close().await.unwrap();
        drop(store);
        let before = snapshots(&dir).len();
        let store = try_open(&dir, &keeping(2 * SEGMENT_BYTES)).unwrap();
        wait_until("another snapshot", || snapshots(&dir).len() > before);
        wait_until("what two snapshots cover goes", || {
            before == 0 || segments(&dir)[0] != dir.path().join("journal/000000000001.kwj")
        });
        store.close().await.unwrap();
    }
    let paths = snapshots(&dir);
    assert_eq!(paths.len(), 2);
    assert!(segments(&dir).len() > 8, "{:?}", segments(&dir));
    flip(&paths[1]);
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let store = try_open(&dir, &keeping(u64::MAX)).unwrap();
    for number in 0..1_200 {
        assert!(store.key(&key(number).tenant, &key(number).key_id).await.unwrap().is_some(), "{number}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn damaged_snapshots_are_made_anew_while_the_table_is_sound() {
    let dir = shortened().await;
    snapshots(&dir).iter().for_each(|path| flip(path));
    fs::write(dir.path().join("snapshot/00000000000000000007.kws.new"), "what a crash left").unwrap();
    let store = try_open(&dir, &keeping(u64::MAX)).unwrap();
    wait_until("the damaged ones are put aside", || files(&dir, "snapshot", "broken").len() == 2);
    assert_eq!(snapshots(&dir).len(), 1);
    assert_eq!(files(&dir, "snapshot", "new").len(), 0);
    store.close().await.unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    starts_whole(&dir).await;
}

#[tokio::test]
async fn a_start_that_would_lack_the_beginning_is_refused() {
    let dir = shortened().await;
    let kept: Vec<_> = snapshots(&dir).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
    kept.iter().for_each(|(_, path)| fs::remove_file(path).unwrap());
    let refused = try_open(&dir, &keeping(u64::MAX)).err().unwrap();
    assert!(matches!(refused, OpenError::NoBeginning { .. }), "{refused}");

    kept.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    fs::rename(dir.path().join("table"), dir.path().join("kept")).unwrap();
    kept.iter().for_each(|(_, path)| flip(path));
    let refused = try_open(&dir, &keeping(u64::MAX)).err().unwrap();
    assert!(matches!(refused, OpenError::NoSoundSnapshot { .. }), "{refused}");

    // With the journal gone too, a snapshot alone is no excuse to begin anew.
    kept.iter().for_each(|(bytes, path)| fs::write(path, bytes).unwrap());
    fs::rename(dir.path().join("journal"), dir.path().join("journal.kept")).unwrap();
    let watermark = fs::read(dir.path().join("watermark")).unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    let refused = try_open(&dir, &keeping(u64::MAX)).err().unwrap();
    assert!(matches!(refused, OpenError::Missing { .. }), "{refused}");

    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    fs::rename(dir.path().join("journal.kept"), dir.path().join("journal")).unwrap();
    fs::write(dir.path().join("watermark"), watermark).unwrap();
    starts_whole(&dir).await;
}

#[tokio::test]
async fn the_segment_of_a_change_that_may_be_asked_for_again_stays_and_goes_after_ten_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(UnixMillis(1_000)));
    let store = try_open(&dir, &StoreOptions { clock: clock.clone(), ..keeping(4 * SEGMENT_BYTES) }).unwrap();
    let last_segment = || segments(&dir).pop().unwrap();
    for number in 0..200 {
        create(&store, number).await;
    }
    let retry = Retry { request_id: RequestId::parse("id").unwrap(), payload_hash: [1; 32] };
    let named = Commit { retry: Some((retry.clone(), None)), ..commit(vec![RecordWrite::NewKey(Box::new(key(200)))]) };
    let revision = store.commit(named).await.unwrap();
    let needed = last_segment();
    let roll_over = async |numbers: std::ops::Range<u32>, done: &dyn Fn() -> bool| {
        for number in numbers {
            create(&store, number).await;
            // Snapshots are made while there is something new.
            if number % 100 == 0 && done() {
                break;
            }
        }
        wait_until("segments go", done);
    };
    let is_first = || segments(&dir)[0] == needed;
    roll_over(201..2_000, &is_first).await;
    for number in 2_000..2_400 {
        create(&store, number).await;
    }
    assert!(is_first() && segments(&dir).len() > 8, "{:?}", segments(&dir));
    let reader = ReadContext { caller: ActorId::keyward(), urgent: false };
    let told = store.outcome(&reader, revision).await.unwrap().unwrap();
    assert_eq!(told.key().unwrap().key_id, key(200).key_id);
    clock.advance_ms(600_000);
    roll_over(2_400..4_000, &|| !needed.exists()).await;
    store.close().await.unwrap();
}

#[tokio::test]
async fn segments_go_when_they_are_old() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(UnixMillis(1_000)));
    let keep_for = |time| StoreOptions {
        retention: Retention { bytes: u64::MAX, time },
        clock: clock.clone(),
        ..options(SEGMENT_BYTES)
    };
    let store = try_open(&dir, &keep_for(Duration::from_secs(60))).unwrap();
    for number in 0..200 {
        create(&store, number).await;
    }
    let before = segments(&dir).len();
    assert!(before > 3 && snapshots(&dir).is_empty(), "{before}");
    store.close().await.unwrap();
    drop(store);
    clock.advance_ms(59_000);
    let store = try_open(&dir, &keep_for(Duration::from_secs(60))).unwrap();
    store.close().await.unwrap();
    drop(store);
    assert_eq!(segments(&dir).len(), before, "none is too old yet");
    clock.advance_ms(2_000);
    let store = try_open(&dir, &keep_for(Duration::from_secs(60))).unwrap();
    wait_until("a first snapshot", || snapshots(&dir).len() == 1);
    create(&store, 200).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(segments(&dir).len(), before, "one snapshot alone is not relied on");
    let store = try_open(&dir, &keep_for(Duration::from_secs(60))).unwrap();
    wait_until("all but the last go", || segments(&dir).len() == 1);
    store.close().await.unwrap();
    assert_eq!(snapshots(&dir).len(), 2);
}

/// Nothing has changed since the newest snapshot: another one would be the same, and would be made at each
/// check.
#[tokio::test]
async fn a_snapshot_is_not_made_again_while_nothing_changes() {
    let dir = shortened().await;
    let made = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let before: Vec<_> = snapshots(&dir).iter().map(made).collect();
    let newest = || snapshots(&dir).last().and_then(|path| path.file_stem()?.to_str()?.parse().ok());
    for limit in [SEGMENT_BYTES, 0] {
        let store = try_open(&dir, &keeping(limit)).unwrap();
        if limit == 0 {
            // Closed before that, it would make one at the next start, unless there is nothing for it to let
            // go.
            wait_until("a snapshot of all that there is", || {
                newest() == Some(store.revision().0) || segments(&dir).len() == 1
            });
        }
        store.close().await.unwrap();
        drop(store);
    }
    // At most one more, for what has come since the newest.
    let kept = snapshots(&dir).iter().map(made).filter(|time| before.contains(time)).count();
    assert!(kept >= 1, "{kept} of {}", before.len());
    let once: Vec<_> = snapshots(&dir).iter().map(made).collect();
    let store = try_open(&dir, &keeping(0)).unwrap();
    store.close().await.unwrap();
    assert_eq!(snapshots(&dir).iter().map(made).collect::<Vec<_>>(), once);
}

/// A rebuild that fails must not lose the present table.
#[tokio::test]
async fn a_rebuild_that_has_nothing_to_build_from_keeps_the_table() {
    let dir = shortened().await;
    snapshots(&dir).iter().for_each(|path| flip(path));
    let refused = LocalStore::rebuild(&LockedDir::lock(dir.path()).unwrap(), &keeping(u64::MAX)).unwrap_err();
    assert!(matches!(refused, OpenError::NothingToBuildFrom { .. }) && !refused.is_loss(), "{refused}");
    assert!(!dir.path().join("table.broken").exists());
    starts_whole(&dir).await;

    // Not even where the table is in doubt: it may be all that a salvage has.
    let dir = shortened().await;
    snapshots(&dir).iter().for_each(|path| flip(path));
    fs::write(dir.path().join("table/conf"), b"this is no configuration of sled").unwrap();
    assert!(matches!(try_open(&dir, &keeping(u64::MAX)).err(), Some(OpenError::NoSoundSnapshot { .. })));
    assert!(dir.path().join("table").exists() && !dir.path().join("table.broken").exists());
}

/// A table that was set aside is a source too.
#[tokio::test]
async fn a_salvage_takes_what_a_table_that_was_set_aside_has() {
    let dir = shortened().await;
    snapshots(&dir).iter().for_each(|path| flip(path));
    fs::rename(dir.path().join("table"), dir.path().join("table.broken")).unwrap();
    let (locked, options) = (LockedDir::lock(dir.path()).unwrap(), keeping(u64::MAX));
    assert!(LocalStore::rebuild(&locked, &options).unwrap_err().is_loss());
    let salvaged = salvage(&locked, &options, false).unwrap();
    assert_eq!((salvaged.keys, salvaged.missing.len()), (u64::from(KEYS), 0));
    drop(locked);
    starts_whole(&dir).await;
}

#[tokio::test]
async fn the_id_of_a_purged_key_is_free_again_once_nothing_that_is_kept_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = try_open(&dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    let gone = create(&store, 0).await;
    let (tenant, key_id) = (gone.tenant.clone(), gone.key_id.clone());
    let purge = RecordWrite::Purge { tenant, key_id, revision: gone.revision };
    store.commit(commit(vec![purge])).await.unwrap();
    let again = || RecordWrite::NewKey(Box::new(KeyRecord { key_id: gone.key_id.clone(), ..key(KEYS) }));
    let is_taken = async |store: &LocalStore| match store.commit(commit(vec![again()])).await {
        Err(CommitError::Exists) => true,
        Ok(_) => false,
        Err(error) => panic!("{error}"),
    };
    // As long as the journal has the key, whatever becomes of the table.
    for without_table in [false, true] {
        assert!(is_taken(&store).await);
        store.close().await.unwrap();
        drop(store);
        if without_table {
            fs::remove_dir_all(dir.path().join("table")).unwrap();
        }
        store = try_open(&dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    }
    for number in 1..KEYS {
        create(&store, number).await;
        match number {
            350 => wait_until("a snapshot", || !snapshots(&dir).is_empty()),
            450 => wait_until("the first segment goes", || !dir.path().join("journal/000000000001.kwj").exists()),
            _ => {}
        }
    }
    let begun = Instant::now();
    while is_taken(&store).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "the mark stays");
    }
    store.close().await.unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let store = try_open(&dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    let found = store.key(&gone.tenant, &gone.key_id).await.unwrap().unwrap();
    assert_eq!(found.secret, key(KEYS).secret);
    // The number of the last key is not given again when it is purged and only snapshots tell of it.
    let last = create(&store, KEYS + 1).await;
    let (tenant, key_id, revision) = (last.tenant.clone(), last.key_id.clone(), last.revision);
    store.commit(commit(vec![RecordWrite::Purge { tenant, key_id, revision }])).await.unwrap();
    let before: BTreeSet<_> = snapshots(&dir).into_iter().collect();
    let mut number = KEYS + 2;
    while snapshots(&dir).iter().any(|path| before.contains(path)) {
        let there = store.key(&gone.tenant, &key(5).key_id).await.unwrap().unwrap();
        store.commit(commit(vec![RecordWrite::Key(Box::new(KeyRecord::clone(&there)))])).await.unwrap();
        number += 1;
        assert!(number < 100_000, "the snapshots stay");
    }
    store.close().await.unwrap();
    drop(store);
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let store = try_open(&dir, &keeping(4 * SEGMENT_BYTES)).unwrap();
    assert!(create(&store, number).await.ordinal > last.ordinal);
    store.close().await.unwrap();
}
