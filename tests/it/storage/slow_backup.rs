//! A backup that is read slowly delays nothing, and is bounded.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyward::config::Settings;
use keyward::grpc::pb;
use keyward::remote::{RemoteError, Server};
use keyward::store::local::checkpoint::snapshot::verify_without_key;
use keyward::store::local::{BackupLimits, LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::record::{decode_key, encode_key};
use keyward::store::{Backup, BackupError, BackupFormat, BackupLimit, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::{KeyRecord, KeySpec};
use tempfile::TempDir;
use tokio::time::advance;
use tonic::Code;

use crate::storage::retention::{segments, snapshots, wait_until};
use crate::support::harness::{Handle, Site, endpoint, error_reason, new_key, small_settings, update};
use crate::support::local_store::{commit, key, options};

const SEGMENT_BYTES: u64 = 64 * 1024;
/// What the journal may have beyond its limit: the segment that is written, the next one, and what the older
/// of two snapshots does not cover yet.
const SEGMENTS_KEPT: u64 = 8;
const MIB: u64 = 1024 * 1024;

/// A key of some 3,000 bytes, whose description says how often it has been written.
fn large(number: u32, version: u32) -> KeyRecord {
    let annotations = (0..6).map(|nth| (format!("note-{nth}"), "x".repeat(480))).collect();
    let mut large = key(number);
    large.spec = KeySpec { description: version.to_string(), annotations, ..large.spec };
    large
}

/// A store with so many large keys.
async fn store_of(dir: &TempDir, keys: u32, retention_bytes: u64, backup: BackupLimits) -> LocalStore {
    let retention = Retention { bytes: retention_bytes, time: Duration::MAX };
    let options = StoreOptions { retention, backup, ..options(SEGMENT_BYTES) };
    let store = LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, Arc::new(())).unwrap();
    for first in (0..keys).step_by(200) {
        let writes =
            (first..keys.min(first + 200)).map(|number| RecordWrite::NewKey(Box::new(large(number, 0)))).collect();
        store.commit(commit(writes)).await.unwrap();
    }
    store
}

/// Writes a key anew.
async fn rewrite(store: &LocalStore, number: u32, version: u32) {
    let old = key(number);
    let old = store.key(&old.tenant, &old.key_id).await.unwrap().unwrap();
    let new = KeyRecord { revision: old.revision, ..large(number, version) };
    store.commit(commit(vec![RecordWrite::Key(Box::new(new))])).await.unwrap();
}

async fn to_its_end(mut backup: Backup) -> Result<Vec<u8>, BackupError> {
    let mut bytes = vec![];
    while let Some(piece) = backup.pieces.recv().await {
        bytes.extend(piece?);
    }
    Ok(bytes)
}

fn journal_bytes(dir: &TempDir) -> u64 {
    // A segment may go between the listing and the look.
    segments(dir).iter().filter_map(|path| path.metadata().ok()).map(|found| found.len()).sum()
}

/// The keys in a snapshot's bytes, and the versions that they say they have.
fn versions(bytes: &[u8]) -> BTreeMap<String, u32> {
    let (mut at, mut found) = (120, BTreeMap::new());
    while bytes[at] != 0 {
        let length = u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
        if bytes[at] == 2 {
            let key = decode_key(&bytes[at + 5..at + 5 + length]).unwrap();
            assert_eq!(encode_key(&key), bytes[at + 5..at + 5 + length]);
            found.insert(key.key_id.to_string(), key.spec.description.parse().unwrap());
        }
        at += 5 + length;
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_does_not_wait_for_a_backup_that_is_read_slowly() {
    const KEYS: u32 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let limits = BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX };
    let limit = 4 * SEGMENT_BYTES;
    let store = store_of(&dir, KEYS, limit, limits).await;
    let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
    let mut bytes = vec![];
    let first = || segments(&dir).first().cloned();
    let begun_at = first();
    // Some 50 segments. The maintenance thread looks when one is full, and makes one snapshot each time: what
    // was there before goes with the second.
    for number in 0..KEYS {
        rewrite(&store, number, number + 1).await;
        if number % 20 == 19 && number > 200 {
            wait_until("the journal is within its limit", || {
                journal_bytes(&dir) <= limit + SEGMENTS_KEPT * SEGMENT_BYTES
            });
        }
        if number % 150 == 0 {
            bytes.extend(backup.pieces.recv().await.unwrap().unwrap());
        }
    }
    assert_ne!(first(), begun_at);
    assert!(
        matches!(store.backup(UnixMillis(1_000), BackupFormat::Second).await, Err(BackupError::Busy)),
        "it is still being made"
    );
    bytes.extend(to_its_end(backup).await.unwrap());
    assert!(versions(&bytes).values().all(|version| *version == 0));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_ends_when_too_much_is_put_aside_for_it() {
    const KEYS: u32 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let limits = BackupLimits { time: Duration::MAX, aside_bytes: MIB };
    let store = store_of(&dir, KEYS, u64::MAX, limits).await;
    let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
    assert!(backup.pieces.recv().await.unwrap().is_ok());
    let mut largest = 0;
    for number in 0..KEYS {
        rewrite(&store, number, 1).await;
        assert!(store.pre_image_bytes() <= MIB, "{}", store.pre_image_bytes());
        largest = largest.max(store.pre_image_bytes());
    }
    assert!(largest > MIB / 2, "{largest}");
    // Before its reader asks for more.
    wait_until("what was put aside is given back", || store.pre_image_bytes() == 0);
    let told = to_its_end(backup).await.unwrap_err();
    assert!(matches!(told, BackupError::Aborted(BackupLimit::Aside(MIB))), "{told}");
    assert!(told.to_string().contains("backup_aside_bytes_max"), "{told}");
    to_its_end(store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap()).await.unwrap();
    store.close().await.unwrap();
}

/// The state at each revision is known here: it is that of the changes in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_and_a_snapshot_at_the_same_time_are_each_of_their_revision() {
    const KEYS: u32 = 800;
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let limits = BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX };
    let store = store_of(&dir, KEYS, 2 * SEGMENT_BYTES, limits).await;
    let name = |number| key(number).key_id.to_string();
    let begin: BTreeMap<_, _> = (0..KEYS).map(|number| (name(number), 0)).collect();
    let first = store.revision();
    let mut changes = vec![];
    let at = |changes: &[u32], revision: Revision| {
        let mut state = begin.clone();
        for (nth, number) in changes.iter().take((revision.0 - first.0) as usize).enumerate() {
            state.insert(name(*number), nth as u32 + 1);
        }
        state
    };
    let mut checked = 0;
    for _ in 0..3 {
        let before = snapshots(&dir);
        let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
        let (revision, mut bytes) = (backup.revision, backup.pieces.recv().await.unwrap().unwrap());
        // The backup stands still, and at least one snapshot is made beside it.
        while snapshots(&dir).iter().all(|path| before.contains(path)) {
            let number = blake3::hash(&changes.len().to_le_bytes()).as_bytes()[..4].try_into().unwrap();
            changes.push(u32::from_le_bytes(number) % KEYS);
            rewrite(&store, changes[changes.len() - 1], changes.len() as u32).await;
        }
        bytes.extend(to_its_end(backup).await.unwrap());
        let file = files.path().join("backup");
        std::fs::write(&file, &bytes).unwrap();
        verify_without_key(&file).unwrap();
        assert_eq!(versions(&bytes), at(&changes, revision));
        for path in snapshots(&dir) {
            // The maintenance thread may have removed it.
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let revision = revision_of(&path);
            if revision >= first {
                assert_eq!(versions(&bytes), at(&changes, revision), "{}", path.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 3, "{checked}");
    store.close().await.unwrap();
}

fn revision_of(snapshot: &Path) -> Revision {
    Revision(snapshot.file_stem().unwrap().to_str().unwrap().parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_backup_ends_when_its_time_is_over_however_steadily_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let limits = BackupLimits { time: Duration::from_secs(600), aside_bytes: u64::MAX };
    let store = store_of(&dir, 4_000, u64::MAX, limits).await;
    let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
    for _ in 0..29 {
        advance(Duration::from_secs(20)).await;
        assert!(backup.pieces.recv().await.unwrap().is_ok());
    }
    assert!(
        matches!(store.backup(UnixMillis(1_000), BackupFormat::Second).await, Err(BackupError::Busy)),
        "it goes on after 580 seconds"
    );
    advance(Duration::from_secs(20)).await;
    let told = to_its_end(backup).await.unwrap_err();
    assert!(matches!(told, BackupError::Aborted(BackupLimit::Time(_))), "{told}");
    assert!(told.to_string().contains("10m (backup_time_max)"), "{told}");
    to_its_end(store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap()).await.unwrap();
    store.close().await.unwrap();
}

/// Also where the reader never learns of it: the next backup need not wait for that.
#[tokio::test(start_paused = true)]
async fn a_backup_ends_when_nothing_of_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let limits = BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX };
    let store = store_of(&dir, 1_000, u64::MAX, limits).await;
    let mut forgotten = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
    assert!(forgotten.pieces.recv().await.unwrap().is_ok());
    let again = loop {
        match store.backup(UnixMillis(1_000), BackupFormat::Second).await {
            Err(BackupError::Busy) => advance(Duration::from_secs(1)).await,
            begun => break begun.unwrap(),
        }
    };
    to_its_end(again).await.unwrap();
    let told = to_its_end(forgotten).await.unwrap_err();
    assert!(matches!(told, BackupError::Aborted(BackupLimit::Idle(_))), "{told}");
    store.close().await.unwrap();
}

/// A server that may keep few pre-images for a backup, and has more keys than wait on their way to a caller.
async fn site_with_large_keys(keys: usize) -> (Site, Vec<pb::Key>) {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { backup_aside_bytes_max: MIB, ..small_settings(dir.path()) };
    let site = Site::on_with(dir, settings).await.unwrap();
    let admin = site.admin();
    let annotations = &large(0, 0).spec.annotations;
    let made = futures_util::future::join_all((0..keys).map(|number| {
        let request =
            pb::CreateKeyRequest { annotations: annotations.clone(), ..new_key(&format!("Key {number}"), &[]) };
        async { admin.issued(request).await.key }
    }));
    let made = made.await;
    (site, made)
}

#[tokio::test]
async fn who_reads_a_backup_slowly_is_told_which_limit_it_met() {
    let (site, keys) = site_with_large_keys(1_800).await;
    let admin = site.admin();
    // A reader with a small window, so that little of it is on its way.
    let slow = endpoint(&site.addr()).initial_stream_window_size(64 * 1024).connect_lazy();
    let mut backup = Handle::new(slow, Some(site.admin_secret().to_owned())).backup().await.unwrap();
    let changes = keys.iter().map(|key| async {
        let changed = pb::Key { display_name: "Changed".into(), ..key.clone() };
        admin.update(update(&changed, &["display_name"])).await.unwrap();
    });
    futures_util::future::join_all(changes).await;
    // A list is answered when all of them are in the table, which is what the backup is read from.
    admin.list(pb::ListKeysRequest::default()).await.unwrap();
    let told = loop {
        match backup.message().await {
            Ok(piece) => drop(piece.unwrap()),
            Err(told) => break told,
        }
    };
    assert_eq!((told.code(), &*error_reason(&told)), (Code::Aborted, "BACKUP_ABORTED"));
    assert!(told.message().contains("1048576 bytes") && told.message().contains("backup_aside_bytes_max"), "{told:?}");
}

/// A backup without a reader, one whose server stops, and a complete one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_leaves_a_whole_backup_or_nothing() {
    let (mut site, keys) = site_with_large_keys(300).await;
    let files = tempfile::tempdir().unwrap();
    let (to, unfinished) = (files.path().join("keys.kwb"), files.path().join("keys.kwb.new"));
    let key_file = site.dir.path().join("admin.key");
    let server = Server { addr: site.addr().to_string().parse().unwrap(), tls: None, key_file, format: 0 };
    {
        let mut fetching = std::pin::pin!(keyward::remote::backup(&server, &to));
        while !unfinished.exists() && !to.exists() {
            tokio::select! {
                biased;
                _ = &mut fetching => {}
                () = tokio::task::yield_now() => {}
            }
        }
    }
    assert!(!unfinished.exists());
    let _one_may_have_come = std::fs::remove_file(&to);
    let fetched = loop {
        // The server has not heard yet that nobody waits for the first one.
        match keyward::remote::backup(&server, &to).await {
            Err(RemoteError::Refused(refused)) if error_reason(&refused) == "BACKUP_UNDER_WAY" => {}
            fetched => break fetched.unwrap(),
        }
    };
    assert_eq!(fetched.keys, keys.len() as u64 + 1);
    assert!(to.exists() && !unfinished.exists());
    site.stop().await;
    let refused = keyward::remote::backup(&server, &files.path().join("other")).await.unwrap_err();
    assert!(refused.to_string().contains("no server answers"), "{refused}");
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 1);
}
