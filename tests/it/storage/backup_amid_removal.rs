//! A backup that is read while keys are rotated, purged and held is restored to exactly its revision.

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keyward::store::local::recovery::restore::{Source, restore};
use keyward::store::local::{LocalStore, LockedDir};
use keyward::store::{BackupFormat, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};

use crate::support::lives::{Writer, write, writers};
use crate::support::local_store::{commit, key, open, options};
use crate::support::model::{Model, named, records_in};

/// The journal of the store, in one segment.
const SEGMENT_BYTES: u64 = 256 * 1024 * 1024;
/// That of what is restored.
const RESTORED_SEGMENT_BYTES: u64 = 64 * 1024;
/// Runs on one store, which the suite makes. More, on several stores:
/// `BACKUP_RUNS=1000 cargo test --locked --test it backup_amid_removal`.
const RUNS: usize = 12;
/// Keys that do not change, so that a backup is longer than may wait on its way to the reader.
const OTHERS: u32 = 700;
const OTHER_BYTES: usize = 2_800;
const WRITERS: u32 = 16;
/// Steps of each writer while one backup is read.
const STEPS: usize = 12;

async fn create_others(store: &dyn Store) {
    let numbers: Vec<_> = (10_000_000..10_000_000 + OTHERS).collect();
    for some in numbers.chunks(50) {
        let other = |number: &u32| {
            let mut key = key(*number);
            key.spec.description = "x".repeat(OTHER_BYTES);
            RecordWrite::NewKey(Box::new(key))
        };
        store.commit(commit(some.iter().map(other).collect())).await.unwrap();
    }
}

/// Reads a backup to a file. Between its first piece and the others, the writers take steps.
async fn backup_amid(store: &LocalStore, lived: &mut [Writer], to: &Path) -> Revision {
    let (beside, meanwhile) = lived.split_at_mut(lived.len() / 2);
    let reading = async {
        let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
        let mut bytes = backup.pieces.recv().await.unwrap().unwrap();
        write(store, meanwhile, STEPS).await;
        while let Some(piece) = backup.pieces.recv().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        fs::write(to, bytes).unwrap();
        backup.revision
    };
    let ((), revision) = tokio::join!(write(store, beside, STEPS), reading);
    revision
}

/// The records of a directory that was restored from a backup.
async fn restored(backup: &Path, revision: Revision) -> Vec<Record> {
    let (dir, options) = (tempfile::tempdir().unwrap(), options(RESTORED_SEGMENT_BYTES));
    let source = Source { backup: backup.to_owned(), journal: None, to: None, same_line: false };
    let locked = LockedDir::lock_empty(dir.path(), None).unwrap();
    assert_eq!(restore(&locked, &options, &|_| true, &source).unwrap().revision, revision);
    drop(locked);
    records_in(dir.path(), &options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_amid_removal_is_restored_to_exactly_its_revision() {
    let runs = env::var("BACKUP_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    for store in 0..runs.div_ceil(RUNS) {
        back_up_amid_removal(u32::try_from(store).unwrap()).await;
    }
}

/// Some runs on one store. The writers of each store take other steps.
async fn back_up_amid_removal(nth: u32) {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, file) = (Arc::new(open(&dir, SEGMENT_BYTES)), files.path().join("backup"));
    create_others(&*store).await;
    let mut lived = writers(&*store, nth * WRITERS..(nth + 1) * WRITERS).await;
    let mut overtaken = 0;
    for run in 0..RUNS {
        let revision = backup_amid(&store, &mut lived, &file).await;
        overtaken += store.revision().0 - revision.0;
        let mut found = named(&restored(&file, revision).await);
        found.retain(|name, _| !name.starts_with("key default/"));
        let expected = Model::at(revision, &lived).records();
        let differing = |name: &&String| found.get(*name) != expected.get(*name);
        let differing: Vec<_> = found.keys().chain(expected.keys()).filter(differing).collect();
        assert!(differing.is_empty(), "store {nth}, run {run}, revision {revision}: {differing:?}");
    }
    assert!(overtaken > (RUNS * STEPS) as u64, "changes were made while backups were read: {overtaken}");
    store.close().await.unwrap();
}
