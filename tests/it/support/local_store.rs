//! An engine on disk without a server, and what to commit to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keyward::store::local::disk_space::free_bytes;
use keyward::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::{Bounds, Commit, RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_core::clock::{ManualClock, UnixMillis};
use keyward_core::id::ActorId;
use keyward_core::record::{KeyRecord, KeySpec};
use keyward_core::testing::key_record;
use tempfile::TempDir;
use zeroize::Zeroizing;

/// A store on disk with small segments, so that it rolls over.
pub(crate) fn open(dir: &TempDir, segment_bytes: u64) -> LocalStore {
    LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options(segment_bytes), Arc::new(())).unwrap()
}

/// What that store is opened with: no limits, no expectations, and a clock that stands still.
pub(crate) fn options(segment_bytes: u64) -> StoreOptions {
    StoreOptions {
        segment_bytes,
        chain_key: Zeroizing::new([7; 32]),
        retention: Retention { bytes: u64::MAX, time: Duration::MAX },
        backup: BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX },
        clock: Arc::new(ManualClock::at(UnixMillis(1_000))),
        entropy: Arc::new(SystemEntropy),
        bounds: Bounds::NONE,
        free_bytes,
        expectations: Expectations::default(),
    }
}

/// A key of tenant `default`, with a name, an owner and a label that follow from its number.
pub(crate) fn key(number: u32) -> KeyRecord {
    let spec = KeySpec {
        display_name: format!("Key {number}"),
        owner: format!("owner-{}", number % 3),
        labels: BTreeMap::from([("parity".to_owned(), (number % 2).to_string())]),
        ..KeySpec::default()
    };
    KeyRecord { spec, ..key_record(number) }
}

/// A commit of the program itself, without a caller.
pub(crate) fn commit(writes: Vec<RecordWrite>) -> Commit {
    Commit {
        actor: ActorId::keyward(),
        authorization: None,
        method: "Test",
        target: "default/x".into(),
        time: UnixMillis(1_000),
        narrows: false,
        urgent: false,
        writes,
        retry: None,
    }
}

/// Commits a new key, and returns it as it is stored.
pub(crate) async fn create(store: &dyn Store, number: u32) -> KeyRecord {
    let key = key(number);
    let revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(key.clone()))])).await.unwrap();
    let stored = KeyRecord::clone(&store.key(&key.tenant, &key.key_id).await.unwrap().unwrap());
    // The store adds nothing but these.
    assert_eq!(stored, KeyRecord { revision, ordinal: stored.ordinal, ..key });
    stored
}
