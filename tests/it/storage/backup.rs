//! Backups: exact while everything changes, refused when damaged, and complete when restored.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyward::grpc::pb;
use keyward::store::local::checkpoint::snapshot::{SnapshotError, verify_without_key};
use keyward::store::local::journal::ChainKey;
use keyward::store::local::recovery::inspect::inspect;
use keyward::store::local::recovery::restore::{RestoreError, Restored, Source, restore};
use keyward::store::local::{LocalStore, LockedDir};
use keyward::store::record::{decode_key, encode_key};
use keyward::store::{BackupError, BackupFormat, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::{Hold, KeyRecord, LineRecord, OwnerRecord, State};
use keyward_core::testing::{rotated, stamp, tenant_record};
use tempfile::TempDir;
use tonic::Code;
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use crate::support::harness::{Site, bad_fields, error_reason};
use crate::support::local_store::{commit, create, key, open, options};

const SEGMENT_BYTES: u64 = 64 * 1024;
/// The records of a snapshot begin here: what is before differs in the time, and what is behind, in the hash.
const HEADER_BYTES: usize = 120;
const HASH_BYTES: usize = 32;

async fn backup(store: &LocalStore, to: &Path) -> Revision {
    backup_as(store, BackupFormat::Second, to).await.unwrap()
}

async fn backup_as(store: &LocalStore, format: BackupFormat, to: &Path) -> Result<Revision, BackupError> {
    let mut backup = store.backup(UnixMillis(1_000), format).await?;
    let mut bytes = vec![];
    while let Some(piece) = backup.pieces.recv().await {
        bytes.extend_from_slice(&piece?);
    }
    fs::write(to, bytes).unwrap();
    Ok(backup.revision)
}

/// Where a snapshot has what the table has noted.
fn applied_at(bytes: &[u8]) -> usize {
    let mut at = HEADER_BYTES;
    while bytes[at] != 0 {
        at += 5 + u32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
    }
    at + 3
}

fn restored(dir: &TempDir, source: &Source) -> Result<Restored, RestoreError> {
    restore(&LockedDir::lock_empty(dir.path(), None).unwrap(), &options(SEGMENT_BYTES), &|_| true, source)
}

fn from(backup: PathBuf) -> Source {
    Source { backup, journal: None, to: None, same_line: false }
}

/// Changes keys over and over, until it is told to stop.
async fn write_on(store: Arc<LocalStore>, first: u32, stop: Arc<AtomicBool>) {
    for round in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        create(&*store, first + round).await;
        let old = key(first + round / 2);
        let mut changed = KeyRecord::clone(&*store.key(&old.tenant, &old.key_id).await.unwrap().unwrap());
        changed.spec.policy.state = if round % 2 == 0 { State::Disabled } else { State::Active };
        store.commit(commit(vec![RecordWrite::Key(Box::new(changed))])).await.unwrap();
    }
}

/// A backup is compared with the same state reached in another way: an older backup and the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_every_key_at_one_revision_while_changes_go_on() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(open(&dir, SEGMENT_BYTES));
    for number in 0..2_000 {
        create(&*store, number).await;
    }
    let oldest = files.path().join("oldest");
    backup(&store, &oldest).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (1..=4).map(|writer| tokio::spawn(write_on(store.clone(), writer * 100_000, stop.clone()))).collect();
    let (mut taken, mut last, mut overtaken) = (vec![], store.revision(), 0);
    for nth in 0..5 {
        while store.revision() <= last {
            tokio::task::yield_now().await;
        }
        let path = files.path().join(format!("backup {nth}"));
        last = backup(&store, &path).await;
        overtaken += usize::from(store.revision() > last);
        taken.push((last, path));
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    store.close().await.unwrap();
    assert!(overtaken > 0, "changes went on while a backup was read");

    for (revision, path) in &taken {
        let other_way = tempfile::tempdir().unwrap();
        let source = Source { journal: Some(dir.path().join("journal")), to: Some(*revision), ..from(oldest.clone()) };
        assert_eq!(restored(&other_way, &source).unwrap().revision, *revision);
        let again = files.path().join("again");
        let store = open(&other_way, SEGMENT_BYTES);
        // The restore's own entry comes behind it, in a line of its own, and has no record.
        assert_eq!(backup(&store, &again).await, Revision(LineRecord::REVISIONS).next());
        store.close().await.unwrap();
        let (bytes, again) = (fs::read(path).unwrap(), fs::read(&again).unwrap());
        // With the 0 that ends them, and behind the record of the line.
        let records = &bytes[HEADER_BYTES..applied_at(&bytes) - 2];
        let at = again.windows(64).position(|window| window == &records[..64]);
        let is_same = at.is_some_and(|at| again[at..].starts_with(records));
        assert!(is_same, "the backup of revision {revision} holds something else");
    }
}

/// Also to one in the middle of a group that was written as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_restored_to_any_revision() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(open(&dir, SEGMENT_BYTES));
    create(&*store, 0).await;
    let oldest = files.path().join("oldest");
    assert_eq!(backup(&store, &oldest).await, Revision(1));
    let writers: Vec<_> = (1..=60)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { create(&*store, number).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    store.close().await.unwrap();
    let journal = fs::read(dir.path().join("journal/000000000001.kwj")).unwrap();
    let frames = journal.windows(4).filter(|bytes| bytes == b"KWJG").count();
    assert!(frames < 61, "at least one group has several changes");
    for revision in 1..=61 {
        let to = tempfile::tempdir().unwrap();
        let journal = Some(dir.path().join("journal"));
        let source = Source { journal, to: Some(Revision(revision)), ..from(oldest.clone()) };
        assert_eq!(restored(&to, &source).unwrap().revision, Revision(revision));
        let store = open(&to, SEGMENT_BYTES);
        assert_eq!(store.revision(), Revision(LineRecord::REVISIONS).next());
        let mut found = 0;
        for number in 0..=60 {
            let key = store.key(&key(number).tenant, &key(number).key_id).await.unwrap();
            found += u64::from(key.is_some_and(|key| key.revision.0 <= revision));
        }
        assert_eq!(found, revision, "each change made one key");
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_was_backed_up_is_whole_after_a_restore() {
    let (mut site, to) = (Site::start().await, tempfile::tempdir().unwrap());
    let admin = site.admin();
    let (kept, off) = (admin.issue("Kept", &["a.*"]).await, admin.issue("Disabled", &[]).await);
    admin.disable_key(&off.key).await;
    let file = to.path().join("backup");
    let mut pieces = admin.backup().await.unwrap();
    let mut bytes = vec![];
    while let Some(response) = pieces.message().await.unwrap() {
        assert_eq!(response.revision, 4);
        bytes.extend_from_slice(&response.piece);
    }
    for secret in [&kept.secret, &off.secret] {
        let random = &secret.as_bytes()["kw_live_".len()..secret.len() - 6];
        assert!(!bytes.windows(random.len()).any(|window| window == random), "a secret is in the backup");
    }
    fs::write(&file, &bytes).unwrap();
    let later = admin.issue("Later", &[]).await;
    let before = admin.list(pb::ListKeysRequest::default()).await.unwrap().keys;
    site.stop().await;

    for part in ["journal", "table", "watermark", "format"] {
        let path = site.dir.path().join(part);
        if path.is_dir() { fs::rename(&path, to.path().join(part)) } else { fs::remove_file(&path) }.unwrap();
    }
    fs::remove_file(site.dir.path().join("admin.key")).unwrap();
    site.restore(&from(file)).unwrap();
    site.try_start().await.unwrap();
    let admin = site.admin();
    assert_eq!(admin.reason(&kept.secret).await, pb::Reason::Ok);
    assert_eq!(admin.reason(&off.secret).await, pb::Reason::Disabled);
    assert_eq!(admin.reason(&later.secret).await, pb::Reason::Unknown);
    let expected: Vec<_> = before.into_iter().filter(|key| key.display_name != "Later").collect();
    assert_eq!(admin.list(pb::ListKeysRequest::default()).await.unwrap().keys, expected);
    admin.issue("Goes on", &[]).await;
    site.restart().await;
}

#[tokio::test]
async fn a_damaged_backup_is_refused_wherever_the_damage_is() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir, SEGMENT_BYTES);
    for number in 0..3 {
        create(&store, number).await;
    }
    let path = files.path().join("backup");
    backup(&store, &path).await;
    store.close().await.unwrap();
    verify_without_key(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        assert!(verify_without_key(&path).is_err(), "{what}");
    };
    for bit in (0..whole.len() * 8).step_by(7) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refused(&flipped, &format!("bit {bit}"));
    }
    for length in 0..whole.len() {
        refused(&whole[..length], &format!("{length} bytes"));
    }
    refused(&[&whole[..], b"x"].concat(), "one byte more");
    let mut newer = whole.clone();
    newer[8] = 3;
    fs::write(&path, &newer).unwrap();
    assert!(matches!(verify_without_key(&path), Err(SnapshotError::UnknownVersion(3))));
}

#[tokio::test]
async fn a_backup_is_restored_only_with_its_own_pepper_and_journal() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir, SEGMENT_BYTES);
    create(&store, 1).await;
    let path = files.path().join("backup");
    backup(&store, &path).await;
    create(&store, 2).await;
    store.close().await.unwrap();

    let to = tempfile::tempdir().unwrap();
    let mut foreign = options(SEGMENT_BYTES);
    foreign.chain_key = Zeroizing::new([8; 32]);
    let locked = LockedDir::lock_empty(to.path(), None).unwrap();
    let refused = restore(&locked, &foreign, &|_| true, &from(path.clone())).unwrap_err();
    assert!(refused.to_string().contains("was not made with this pepper file"), "{refused}");
    drop(locked);

    // A journal that parted from the backup's: the same revisions, and other changes.
    let other = tempfile::tempdir().unwrap();
    let store = open(&other, SEGMENT_BYTES);
    create(&store, 3).await;
    create(&store, 4).await;
    store.close().await.unwrap();
    let source = Source { journal: Some(other.path().join("journal")), ..from(path.clone()) };
    assert!(matches!(restored(&to, &source), Err(RestoreError::Parted { .. })));
    let source = Source { to: Some(Revision(9)), ..from(path.clone()) };
    assert!(matches!(restored(&to, &source), Err(RestoreError::OutOfReach { .. })));
    let source = Source { journal: Some(dir.path().join("journal")), ..from(path.clone()) };
    assert_eq!(restored(&to, &source).unwrap().revision, Revision(2));
    assert!(LockedDir::lock_empty(to.path(), None).unwrap_err().to_string().contains("is not empty"));
    let locked = LockedDir::lock_existing(to.path()).unwrap();
    let findings = inspect(&locked, &ChainKey(Zeroizing::new([7; 32])), None).unwrap().findings;
    assert!(findings.iter().all(|finding| !finding.doubt), "{findings:?}");
}

/// An attacker who can write files, but has no pepper file, makes a disabled key active and everything
/// consistent that needs no key.
#[tokio::test]
async fn a_backup_that_was_altered_with_care_is_not_believed() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir, SEGMENT_BYTES);
    create(&store, 1).await;
    let mut disabled = KeyRecord::clone(&*store.key(&key(1).tenant, &key(1).key_id).await.unwrap().unwrap());
    disabled.spec.policy.state = State::Disabled;
    store.commit(commit(vec![RecordWrite::Key(Box::new(disabled))])).await.unwrap();
    let path = files.path().join("backup");
    backup(&store, &path).await;
    store.close().await.unwrap();

    let bytes = fs::read(&path).unwrap();
    let record = HEADER_BYTES + 5;
    let length = u32::from_le_bytes(bytes[HEADER_BYTES + 1..record].try_into().unwrap()) as usize;
    let mut key = decode_key(&bytes[record..record + length]).unwrap();
    assert_eq!(key.spec.policy.state, State::Disabled);
    key.spec.policy.state = State::Active;
    let active = encode_key(&key);
    let rest = &bytes[record + length..bytes.len() - HASH_BYTES];
    let mut altered = bytes[..=HEADER_BYTES].to_vec();
    altered.extend(u32::try_from(active.len()).unwrap().to_le_bytes());
    altered.extend_from_slice(&active);
    altered.extend_from_slice(rest);
    let hash = blake3::hash(&altered);
    altered.extend_from_slice(hash.as_bytes());
    fs::write(&path, altered).unwrap();
    verify_without_key(&path).unwrap();
    let refused = restored(&tempfile::tempdir().unwrap(), &from(path)).unwrap_err();
    assert!(matches!(refused, RestoreError::Backup { source: SnapshotError::Foreign, .. }), "{refused}");
}

#[tokio::test]
async fn a_second_backup_at_the_same_time_is_told_to_wait() {
    let site = Site::start().await;
    let admin = site.admin();
    let padding = "x".repeat(500);
    let annotations: BTreeMap<_, _> = (0..6).map(|number| (format!("note-{number}"), padding.clone())).collect();
    for number in 0..1_500 {
        let mut request = crate::support::harness::new_key(&format!("Key {number}"), &[]);
        request.annotations.clone_from(&annotations);
        admin.create(request).await.unwrap();
    }
    let mut first = admin.backup().await.unwrap();
    let refused = admin.backup().await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::ResourceExhausted, "BACKUP_UNDER_WAY"));
    assert!(refused.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    // Changes go on meanwhile.
    admin.issue("Meanwhile", &[]).await;
    let mut bytes = 0;
    while let Some(response) = first.message().await.unwrap() {
        bytes += response.piece.len();
    }
    // More than may wait on its way to the reader, with the window of its stream, so the first one was still
    // being made.
    assert!(bytes > 2 * 8 * 256 * 1024, "{bytes}");
    admin.backup().await.unwrap();
}

#[tokio::test]
async fn what_is_kept_in_memory_has_no_backup() {
    let store = keyward::store::memory::MemoryStore::default();
    assert!(matches!(store.backup(UnixMillis(0), BackupFormat::Second).await, Err(BackupError::Failed(_))));
}

#[tokio::test]
async fn a_backup_of_format_1_has_all_that_older_programs_know_or_is_refused() {
    let (dir, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir, SEGMENT_BYTES);
    store.commit(commit(vec![RecordWrite::NewTenant(Box::new(tenant_record("acme")))])).await.unwrap();
    let made = create(&store, 1).await;
    let path = files.path().join("backup");
    let revision = backup_as(&store, BackupFormat::First, &path).await.unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes[8..12], 1_u32.to_le_bytes());
    let to = tempfile::tempdir().unwrap();
    assert_eq!(restored(&to, &from(path.clone())).unwrap().revision, revision);
    let copy = open(&to, SEGMENT_BYTES);
    let read = copy.key(&made.tenant, &made.key_id).await.unwrap().unwrap();
    assert_eq!(*read, made);
    copy.close().await.unwrap();

    // What it cannot have: a record of another kind, and one of version 2.
    let suspended = Hold { suspended: true, ..Hold::default() };
    let owner = OwnerRecord {
        tenant: made.tenant.clone(),
        owner: "a".into(),
        hold: suspended,
        updated: stamp(),
        revision: Revision(0),
    };
    for write in [RecordWrite::RotatedKey(Box::new(rotated(&made, 1))), RecordWrite::Owner(Box::new(owner))] {
        store.commit(commit(vec![write])).await.unwrap();
        let refused = backup_as(&store, BackupFormat::First, &files.path().join("none")).await;
        assert!(matches!(refused, Err(BackupError::NeedsSecondFormat)));
        assert!(!files.path().join("none").exists());
    }
    backup(&store, &path).await;
    assert_eq!(fs::read(&path).unwrap()[8..12], 2_u32.to_le_bytes());
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_format_that_there_is_not_is_refused() {
    let site = Site::start().await;
    let refused = site.admin().backup_as(3).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["format"]);
    for format in 0..=2 {
        let mut pieces = site.admin().backup_as(format).await.unwrap();
        let first = pieces.message().await.unwrap().unwrap().piece;
        assert_eq!(u32::from(first[8]), if format == 0 { 2 } else { format });
        while pieces.message().await.unwrap().is_some() {}
    }
}
