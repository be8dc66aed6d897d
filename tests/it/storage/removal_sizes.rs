//! Purged keys give their room back: in the table's records, in the index, and in the next checkpoint.

use std::sync::Arc;

use keyward::index::follow::IndexLoader;
use keyward::index::{Index, checkpoint};
use keyward::store::local::{LocalStore, LockedDir};
use keyward::store::{RecordWrite, Store};

use crate::support::local_store::{commit, key, options};

/// `KEYWARD_PURGED_KEYS` makes it another number, and prints what is measured.
const KEYS: u32 = 4_000;
const AT_ONCE: usize = 200;

/// Bytes of the table's records and of a checkpoint of the index, and its number of keys.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    records: u64,
    checkpoint: usize,
    keys: usize,
}

async fn sizes(store: &LocalStore, index: &Index) -> Sizes {
    index.wait_for(store.revision()).await;
    while store.stats().applied < store.revision() {
        tokio::task::yield_now().await;
    }
    let (mut chunks, mut writer) = (vec![], index.checkpoint_writer());
    (0..checkpoint::CHUNKS).for_each(|number| writer.write_chunk(number, &mut chunks));
    Sizes { records: store.table_stats().record_bytes, checkpoint: chunks.len(), keys: index.len() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purged_keys_leave_the_table_the_index_and_the_next_checkpoint() {
    let asked = std::env::var("KEYWARD_PURGED_KEYS").ok();
    let keys = asked.as_ref().map_or(KEYS, |keys| keys.parse().unwrap());
    let (dir, index) = (tempfile::tempdir().unwrap(), Arc::new(Index::default()));
    let (loader, _loaded) = IndexLoader::new(index.clone());
    let options = options(1 << 20);
    let store = LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, Arc::new(loader)).unwrap();
    let store = Arc::new(store);
    let stop = tokio_util::sync::CancellationToken::new();
    let following = tokio::spawn(keyward::index::follow::follow_log(store.clone(), index.clone(), stop.clone()));
    let put = async |writes: Vec<RecordWrite>| store.commit(commit(writes)).await.unwrap();

    let numbers: Vec<_> = (0..keys).collect();
    for numbers in numbers.chunks(AT_ONCE) {
        put(numbers.iter().map(|&number| RecordWrite::NewKey(Box::new(key(number)))).collect()).await;
    }
    let before = sizes(&store, &index).await;
    // Nine in ten of them.
    for numbers in numbers.chunks(AT_ONCE) {
        let mut writes = vec![];
        for &number in numbers.iter().filter(|number| *number % 10 != 0) {
            let there = store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap();
            let (tenant, key_id) = (there.tenant.clone(), there.key_id.clone());
            writes.push(RecordWrite::Purge { tenant, key_id, revision: there.revision });
        }
        put(writes).await;
    }
    let after = sizes(&store, &index).await;
    if asked.is_some() {
        println!("{keys} keys: {before:?}; nine in ten purged: {after:?}");
    }
    assert_eq!((before.keys, after.keys), (keys as usize, keys.div_ceil(10) as usize));
    // Beside the keys that are there, the table has the marks until the journal is newer.
    assert!(after.records < before.records * 6 / 10, "{before:?}, {after:?}");
    // A shard without keys takes a byte.
    let of_keys = |sizes: Sizes| sizes.checkpoint - 65_536;
    assert!(of_keys(after) < of_keys(before) / 8, "{before:?}, {after:?}");
    stop.cancel();
    following.await.unwrap();
    store.close().await.unwrap();
}
