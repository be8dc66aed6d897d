//! An index that falls behind the feed reads the log, and equals one that never did.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use keyward::feed::WINDOW_CHANGES_MAX;
use keyward::index::Index;
use keyward::index::follow::{IndexLoader, follow_log};
use keyward::store::local::{LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::memory::MemoryStore;
use keyward::store::{MaterializedView, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::record::{KeyRecord, State};
use keyward_core::scope::Scope;
use tokio_util::sync::CancellationToken;

use crate::storage::retention::snapshots;
use crate::support::local_store::{commit, create, key, options};

/// Every key as it was last committed.
type Keys = HashMap<Digest, KeyRecord>;

pub(crate) fn open(dir: &Path, options: &StoreOptions, index: &Arc<Index>) -> Arc<LocalStore> {
    let (loader, mut loaded) = IndexLoader::new(index.clone());
    let store = LocalStore::open(LockedDir::lock(dir).unwrap(), options, Arc::new(loader)).unwrap();
    assert_eq!(loaded.try_recv().unwrap(), index.revision());
    Arc::new(store)
}

/// Lets the index follow the store until it has every change.
pub(crate) async fn follow(store: Arc<dyn Store>, index: &Arc<Index>) {
    let newest = store.revision();
    tokio::select! {
        () = follow_log(store, index.clone(), CancellationToken::new()) => panic!("it was not stopped"),
        () = index.wait_for(newest) => {}
    }
}

/// Commits keys in one change: new ones, and next forms of those that are there.
async fn put(store: &dyn Store, keys: &mut Keys, forms: Vec<KeyRecord>) {
    let write = |key: &KeyRecord| match keys.contains_key(&key.secret.digest) {
        true => RecordWrite::Key(Box::new(key.clone())),
        false => RecordWrite::NewKey(Box::new(key.clone())),
    };
    let revision = store.commit(commit(forms.iter().map(write).collect())).await.unwrap();
    keys.extend(forms.into_iter().map(|key| (key.secret.digest, KeyRecord { revision, ..key })));
}

/// The next form of a key: with another name, and in another state.
fn changed(mut key: KeyRecord, round: u32) -> KeyRecord {
    key.spec.display_name = format!("{} in round {round}", key.key_id);
    key.spec.policy.state = if round.is_multiple_of(2) { State::Active } else { State::Disabled };
    key
}

/// More changes than the window holds, each of one key.
async fn change_often(store: &dyn Store, keys: &mut Keys) {
    const KEYS: u32 = 2_000;
    let mut made = join_all((1_000..1_000 + KEYS).map(|number| create(store, number))).await;
    let rounds = u32::try_from(WINDOW_CHANGES_MAX).unwrap() / KEYS + 1;
    for round in 0..rounds {
        let change = async |key: KeyRecord| {
            // The last rounds leave out some keys, so that keys differ in their last change.
            if (key.revision.0 + u64::from(round)).is_multiple_of(5) {
                return key;
            }
            let key = changed(key, round);
            let revision = store.commit(commit(vec![RecordWrite::Key(Box::new(key.clone()))])).await.unwrap();
            KeyRecord { revision, ..key }
        };
        made = join_all(made.into_iter().map(change)).await;
    }
    while store.revision().0 <= WINDOW_CHANGES_MAX as u64 + 200 {
        made.push(create(store, 10_000 + u32::try_from(store.revision().0).unwrap()).await);
    }
    keys.extend(made.into_iter().map(|key| (key.secret.digest, key)));
}

/// Few changes, of many keys with many short texts: more than the window has memory for.
async fn change_much(store: &dyn Store, keys: &mut Keys) {
    const KEYS: u32 = 200;
    const CHANGES: u32 = 40;
    for number in 0..CHANGES {
        // Not labels: the table indexes these, and that takes long.
        let with_texts = |number: u32| {
            let mut key = key(1_000 + number);
            key.spec.annotations = (0..32).map(|nth| (format!("a{nth}"), number.to_string())).collect();
            key.spec.policy.scopes = (0..64).map(|nth| Scope::parse(&format!("s{nth}")).unwrap()).collect();
            key
        };
        put(store, keys, (number * KEYS..(number + 1) * KEYS).map(with_texts).collect()).await;
    }
    let again = keys.values().take(500).map(|key| changed(key.clone(), 1)).collect();
    put(store, keys, again).await;
    assert!(store.revision().0 < WINDOW_CHANGES_MAX as u64, "so it is the memory that is at its bound");
}

/// Lets the index stall while changes are made that the window cannot hold, and go on.
async fn stall_and_go_on(
    store: Arc<dyn Store>,
    index: &Arc<Index>,
    changes: impl AsyncFn(&dyn Store, &mut Keys),
) -> Keys {
    let mut keys = Keys::new();
    for number in 0..20 {
        put(&*store, &mut keys, vec![key(number)]).await;
    }
    // It is subscribed, and has read some.
    let mut following = Box::pin(follow_log(store.clone(), index.clone(), CancellationToken::new()));
    tokio::select! {
        () = &mut following => panic!("it was not stopped"),
        () = index.wait_for(Revision(20)) => {}
    }
    changes(&*store, &mut keys).await;
    assert_eq!(index.revision(), Revision(20));
    assert!(store.changes(index.revision()).is_err(), "the window holds all of it");
    let newest = store.revision();
    tokio::select! {
        () = &mut following => panic!("it was not stopped"),
        () = index.wait_for(newest) => {}
    }
    holds(index, &keys);
    // It follows the feed again.
    put(&*store, &mut keys, vec![key(900)]).await;
    tokio::select! {
        () = &mut following => panic!("it was not stopped"),
        () = index.wait_for(newest.next()) => {}
    }
    keys
}

/// The index has these keys as they are, and no others.
fn holds(index: &Index, keys: &Keys) {
    assert_eq!(index.len(), keys.len());
    for state in [State::Active, State::Disabled, State::Revoked] {
        let expected = keys.values().filter(|key| key.spec.policy.state == state).count();
        assert_eq!(index.len_in(state), expected, "{state:?}");
    }
    for (digest, key) in keys {
        let entry = index.get(digest).unwrap();
        assert_eq!((entry.revision(), entry.to_key_id()), (key.revision, Some(key.key_id.clone())));
        assert_eq!((entry.display_name(), entry.owner()), (&*key.spec.display_name, &*key.spec.owner));
        assert_eq!(entry.to_policy().policy, key.spec.policy);
        assert!(entry.labels().eq(key.spec.labels.iter().map(|(name, value)| (&**name, &**value))));
    }
}

/// The index that a start loads from the directory.
fn fresh(dir: &Path, options: &StoreOptions) -> Arc<Index> {
    let index = Arc::new(Index::default());
    drop(open(dir, options, &index));
    index
}

async fn on_disk(changes: impl AsyncFn(&dyn Store, &mut Keys)) {
    let (dir, options, index) = (tempfile::tempdir().unwrap(), options(1024 * 1024), Arc::default());
    let store = open(dir.path(), &options, &index);
    let keys = stall_and_go_on(store.clone(), &index, changes).await;
    store.close().await.unwrap();
    drop(store);
    let fresh = fresh(dir.path(), &options);
    assert_eq!(index.revision(), fresh.revision());
    holds(&index, &keys);
    holds(&fresh, &keys);
}

#[tokio::test]
async fn an_index_that_stalls_for_more_changes_than_the_window_equals_a_fresh_one() {
    on_disk(change_often).await;
}

#[tokio::test]
async fn an_index_that_stalls_for_more_bytes_than_the_window_equals_a_fresh_one() {
    on_disk(change_much).await;
}

#[tokio::test]
async fn an_index_on_an_engine_in_memory_may_stall_too() {
    for changes in [0, 1] {
        let (store, index) = (Arc::new(MemoryStore::default()), Arc::default());
        let keys = match changes {
            0 => stall_and_go_on(store, &index, change_often).await,
            _ => stall_and_go_on(store, &index, change_much).await,
        };
        holds(&index, &keys);
    }
}

/// Two snapshots cover the first segments, and they are past the limit: without the index they would go.
#[tokio::test]
async fn segments_that_the_index_has_not_read_yet_are_kept() {
    let (dir, index) = (tempfile::tempdir().unwrap(), Arc::<Index>::default());
    let retention = Retention { bytes: 32 * 1024, ..options(0).retention };
    let options = StoreOptions { retention, ..options(16 * 1024) };
    let view = Arc::new(WithoutCheckpoints(index.clone()));
    let store = Arc::new(LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, view).unwrap());
    let first = dir.path().join("journal/000000000001.kwj");
    let (mut keys, mut number) = (Keys::new(), 0);
    // The third snapshot is begun when everything was done that two allow for.
    let mut seen = vec![];
    while seen.len() < 3 {
        number += 1;
        put(&*store, &mut keys, vec![key(number)]).await;
        seen.extend(snapshots(&dir).pop().filter(|newest| !seen.contains(newest)));
    }
    assert!(first.exists(), "it was deleted although the index is at revision {}", index.revision());
    follow(store.clone(), &index).await;
    holds(&index, &keys);
    while first.exists() {
        number += 1;
        put(&*store, &mut keys, vec![key(number)]).await;
        follow(store.clone(), &index).await;
    }
    store.close().await.unwrap();
    drop(store);
    holds(&fresh(dir.path(), &options), &keys);
}

/// An index of which no checkpoint is made: that waits for an index that stalls.
struct WithoutCheckpoints(Arc<Index>);

impl MaterializedView for WithoutCheckpoints {
    fn load(&self, records: &[Record]) {
        self.0.apply_records(records);
    }

    fn reset(&self) {
        self.0.clear();
    }

    fn on_loaded(&self, revision: Revision) {
        self.0.advance_to(revision);
    }

    fn revision(&self) -> Revision {
        self.0.revision()
    }

    fn latest_time(&self) -> UnixMillis {
        self.0.latest_time()
    }

    fn advance_time(&self, time: UnixMillis) {
        self.0.advance_time(time);
    }
}
