//! A salvage knows a key by its id, however often its secret was rotated: each is there once, with the
//! digests that it had last.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use keyward::index::Index;
use keyward::store::Store;
use keyward::store::local::LockedDir;
use keyward::store::local::recovery::salvage::{Salvaged, salvage};
use keyward_core::event::{Record, Revision};
use tempfile::TempDir;

use crate::storage::disk::copy_dir;
use crate::storage::follow::open;
use crate::storage::salvage::damage;
use crate::support::harness::journal_segment;
use crate::support::lives::{Writer, write, writers};
use crate::support::local_store::options;
use crate::support::model::{Model, named, records_in};

const SEGMENT_BYTES: u64 = 1024 * 1024;
const WRITERS: u32 = 4;
const STEPS: usize = 60;

/// A stopped store, and its table as it was in the middle.
async fn stopped() -> (TempDir, TempDir, Vec<Writer>) {
    let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut lived = vec![];
    for half in 0..2 {
        let store = open(dir.path(), &options(SEGMENT_BYTES), &Arc::default());
        if half == 0 {
            lived = writers(&*store, 0..WRITERS).await;
        }
        write(&*store, &mut lived, STEPS).await;
        store.close().await.unwrap();
        if half == 0 {
            copy_dir(&dir.path().join("table"), aside.path());
        }
    }
    (dir, aside, lived)
}

/// Where the frames of a segment begin.
fn frames(segment: &Path) -> Vec<usize> {
    let bytes = fs::read(segment).unwrap();
    (64..bytes.len() - 16).step_by(8).filter(|at| bytes[*at..].starts_with(b"KWJG")).collect()
}

fn salvaged(dir: &Path) -> Salvaged {
    let locked = LockedDir::lock(dir).unwrap();
    salvage(&locked, &options(SEGMENT_BYTES), false).unwrap()
}

/// What the directory has is what the changes left that are not missing.
async fn is_what_is_left(dir: &Path, salvaged: &Salvaged, lived: &[Writer]) {
    let (model, index, options) =
        (Model::without(&salvaged.missing, lived), Arc::<Index>::default(), options(SEGMENT_BYTES));
    open(dir, &options, &index).close().await.unwrap();
    assert_eq!(model.differences(&index), [""; 0]);
    assert_eq!(model.differences_in_holds(&index), [""; 0]);
    let records = records_in(dir, &options).await;
    let keys = records.iter().filter_map(|record| match record {
        Record::Key(key) => Some(key),
        _ => None,
    });
    let mut digests = BTreeSet::new();
    for key in keys {
        assert!(key.digests().all(|digest| digests.insert(*digest.as_bytes())), "a digest is of two keys");
    }
    // Ids of purged keys are free: the new log has nothing that is older.
    let mut expected = model.records();
    expected.retain(|name, _| !name.starts_with("purged "));
    assert!(named(&records) == expected);
    assert_eq!(salvaged.keys, model.keys().count() as u64);
}

#[tokio::test]
async fn a_salvage_from_the_table_finds_each_key_as_it_was_last() {
    let (dir, _aside, lived) = stopped().await;
    let segment = journal_segment(&dir);
    let frames = frames(&segment);
    damage(&segment, frames[frames.len() / 2]);
    let salvaged = salvaged(dir.path());
    assert_eq!(salvaged.missing, []);
    is_what_is_left(dir.path(), &salvaged, &lived).await;
}

/// Each time another part of the journal is lost, and the table is, or only an older one is there.
#[tokio::test]
async fn a_salvage_from_the_journal_finds_each_key_as_it_was_last_but_for_what_is_lost() {
    let (stopped, old_table, lived) = stopped().await;
    for part in 1..8 {
        for with_table in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(stopped.path(), dir.path());
            fs::remove_dir_all(dir.path().join("table")).unwrap();
            if with_table {
                copy_dir(old_table.path(), &dir.path().join("table"));
            }
            let segment = journal_segment(&dir);
            let frames = frames(&segment);
            let at = frames.len() * part / 8;
            frames[at..at + 3].iter().for_each(|frame| damage(&segment, *frame));
            let salvaged = salvaged(dir.path());
            let is_lost = |(first, last): &(Revision, Revision)| first <= last;
            // What the table has is not lost. In the middle it depends on how changes were grouped.
            if part != 4 || !with_table {
                assert_eq!(salvaged.missing.iter().any(is_lost), !with_table || part > 4, "{part}, {with_table}");
            }
            is_what_is_left(dir.path(), &salvaged, &lived).await;
        }
    }
}
