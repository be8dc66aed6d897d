//! The head of the log, kept elsewhere, shows what nothing inside the data directory can.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use keyward::grpc::pb::{self, Reason};
use keyward::store::local::journal::frame::Frame;
use keyward::store::local::journal::segment::HEADER_BYTES;
use keyward::store::local::journal::watermark::WatermarkFault;
use keyward::store::local::journal::{ChainKey, Position};
use keyward::store::local::recovery::inspect::inspect;
use keyward::store::local::recovery::restore::{Source, restore};
use keyward::store::local::{Expectations, HeadFault, LocalStore, LockedDir, OpenError, StoreOptions};
use keyward::store::record::pb::JournalEntry;
use keyward::store::{BackupFormat, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::head::Head;
use tonic::Code;
use zeroize::Zeroizing;

use crate::storage::disk::end_of_frames;
use crate::storage::salvage::frame_at;
use crate::support::harness::{Site, journal_segment, open_error};
use crate::support::local_store::{create, open, options};
use crate::support::program::{Program, admin_of, keyward, text};

const SEGMENT_BYTES: u64 = 64 * 1024;

/// An attacker who can write to the directory, but has no pepper file, removes the last change and everything
/// that knows of it, and makes up a watermark in the form of older programs, which has no seal.
fn cut_the_last_change(dir: &Path, segment: &Path, last: u64) {
    let mut bytes = fs::read(segment).unwrap();
    let (at, end) = (frame_at(&bytes, last), end_of_frames(&bytes));
    let before = Frame::read(&bytes[frame_at(&bytes, last - 1)..]).unwrap().claimed_end();
    bytes[at..end].fill(0);
    fs::write(segment, bytes).unwrap();
    let mut watermark = vec![];
    watermark.extend(b"KWWM\x01\x00\x00\x00");
    watermark.extend(before.revision.0.to_le_bytes());
    watermark.extend(before.chain.0);
    watermark.extend(crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&watermark).to_le_bytes());
    watermark.resize(64, 0);
    fs::write(dir.join("watermark"), watermark).unwrap();
    fs::remove_dir_all(dir.join("table")).unwrap();
    drop(fs::remove_dir_all(dir.join("index")));
}

#[tokio::test]
async fn an_end_of_the_log_that_was_cut_off_with_care_is_noticed_by_the_head_alone() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let revoked = admin.issue("Revoked", &[]).await;
    let earlier: Head = admin.head(pb::GetHeadRequest {}).await.unwrap().head.parse().unwrap();
    let watermark = site.dir.path().join("watermark");
    let older_watermark = fs::read(&watermark).unwrap();
    let last = admin.revoke_key(&revoked.key).await.revision;
    let head: Head = admin.head(pb::GetHeadRequest {}).await.unwrap().head.parse().unwrap();
    drop(admin);
    assert_eq!((head.revision.0, earlier.revision.0), (last, last - 1));
    // The head of now, and every one before it, while the data is whole.
    for head in [head, earlier] {
        site.stop().await;
        site.try_start_with(|settings| settings.expect_head = Some(head)).await.unwrap();
    }
    site.stop().await;

    let dir = site.dir.path().to_owned();
    cut_the_last_change(&dir, &journal_segment(&site.dir), last);
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::NoWatermark { what: WatermarkFault::Unsealed, .. }), "{refused}");
    // Nor does one count that was written with another pepper file.
    let other = tempfile::tempdir().unwrap();
    let store = open(&other, SEGMENT_BYTES);
    create(&store, 1).await;
    store.close().await.unwrap();
    drop(store);
    fs::copy(other.path().join("watermark"), &watermark).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::NoWatermark { what: WatermarkFault::Nothing, .. }), "{refused}");
    // But the one that was there before the change can be put back.
    fs::write(&watermark, older_watermark).unwrap();
    let refused = site.try_start_with(|settings| settings.expect_head = Some(head)).await.unwrap_err();
    let expected = HeadFault::TooShort(Revision(last - 1));
    assert!(matches!(open_error(&refused), OpenError::OtherHead { what, .. } if *what == expected), "{refused}");
    let check = |head: &str| {
        let output = keyward(&["check", "--expect-head", head, "--data-dir"]).arg(&dir).output().unwrap();
        (output.status.success(), text(&output).0)
    };
    let (whole, out) = check(&head.to_string());
    assert!(!whole && out.contains("WRONG  head: the journal does not lead through"), "{out}");
    let (whole, out) = check(&earlier.to_string());
    assert!(whole && out.contains("ok     head: the journal leads through"), "{out}");
    assert!(out.contains(&format!("\nhead   {earlier}\n")), "{out}");

    // From within, nothing is to be seen: SECURITY.md says so, and what it leads to.
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&revoked.secret).await, Reason::Ok);
    // And what goes on from there does not lead through the head either.
    site.admin().issue("Goes on", &[]).await;
    site.stop().await;
    let refused = site.try_start_with(|settings| settings.expect_head = Some(head)).await.unwrap_err();
    let differs = OpenError::OtherHead { head, journal: dir.join("journal"), what: HeadFault::Differs };
    assert_eq!(refused.to_string(), differs.to_string());
}

/// Also a head in the middle of a group: the chain is that of the changes, not of the groups.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_position_of_the_log_is_one_that_it_leads_through() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir, SEGMENT_BYTES));
    let writers: Vec<_> = (0..40)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { create(&*store, number).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let head = store.head().unwrap();
    store.close().await.unwrap();
    drop(store);

    let key = ChainKey(Zeroizing::new([7; 32]));
    let bytes = fs::read(dir.path().join("journal/000000000001.kwj")).unwrap();
    let (mut at, mut frames, mut end) = (HEADER_BYTES, 0, Position::START);
    let mut positions = vec![end];
    while let Some(frame) = Frame::read(&bytes[at..]) {
        for entry in frame.entries::<JournalEntry>() {
            let (entry, encoded) = entry.unwrap();
            end = Position { revision: Revision(entry.revision), chain: end.chain.after(&key, encoded) };
            positions.push(end);
        }
        (at, frames) = (at + frame.bytes, frames + 1);
    }
    assert_eq!((positions.len(), Head::from(end)), (41, head));
    assert!(frames < 40, "at least one group has several changes");
    let locked = LockedDir::lock(dir.path()).unwrap();
    for position in positions {
        let head = Head::from(position);
        let doubts = |head| inspect(&locked, &key, Some(head)).unwrap().findings.iter().filter(|it| it.doubt).count();
        assert_eq!(doubts(head), 0, "{head}");
        let other = Head { chain: head.chain.map(|byte| byte ^ 1), ..head };
        assert_eq!(doubts(other), 1, "{other}");
    }
}

#[tokio::test]
async fn a_log_that_no_longer_reaches_back_to_the_head_says_so() {
    let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&dir, SEGMENT_BYTES);
    create(&store, 1).await;
    let early = store.head().unwrap();
    create(&store, 2).await;
    let at_backup = store.head().unwrap();
    let file = to.path().join("backup");
    let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await.unwrap();
    let mut bytes = vec![];
    while let Some(piece) = backup.pieces.recv().await {
        bytes.extend(piece.unwrap());
    }
    fs::write(&file, bytes).unwrap();
    create(&store, 3).await;
    let late = store.head().unwrap();
    store.close().await.unwrap();

    // Its journal begins where the backup ends.
    let data = to.path().join("data");
    let source = Source { backup: file, journal: Some(dir.path().join("journal")), to: None, same_line: false };
    restore(&LockedDir::lock_empty(&data, None).unwrap(), &options(SEGMENT_BYTES), &|_| true, &source).unwrap();
    let try_open = |head| {
        let expectations = Expectations { head: Some(head), ..Expectations::default() };
        let options = StoreOptions { expectations, ..options(SEGMENT_BYTES) };
        LocalStore::open(LockedDir::lock(&data).unwrap(), &options, Arc::new(()))
    };
    let refused = try_open(early).err().unwrap();
    assert!(
        matches!(refused, OpenError::OtherHead { what: HeadFault::OutOfReach(Revision(2)), .. }) && !refused.is_loss(),
        "{refused}"
    );
    for head in [at_backup, late] {
        let store = try_open(head).unwrap();
        store.close().await.unwrap();
    }
    let other = Head { revision: Revision(2), ..late };
    assert!(matches!(try_open(other).err(), Some(OpenError::OtherHead { what: HeadFault::Differs, .. })));
}

#[tokio::test]
async fn the_head_is_told_by_a_call_at_the_stop_and_by_a_check() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let admin = program.caller(&admin_of(&dir));
    let issued = admin.issue("Zapier", &[]).await;
    let told = admin.head(pb::GetHeadRequest {}).await.unwrap();
    assert_eq!(told.revision, issued.revision);
    assert!(told.head.starts_with(&format!("{}:", issued.revision)), "{told:?}");
    drop(admin);
    program.signal("TERM");
    let (code, log) = program.end();
    assert!(code == Some(0) && log.contains(&format!("head={}", told.head)), "{log}");
    let output = keyward(&["check", "--data-dir"]).arg(dir.path()).output().unwrap();
    assert!(text(&output).0.contains(&format!("\nhead   {}\n", told.head)), "{}", text(&output).0);

    // From the environment and the file too; and a server that is not to start says why.
    let serve = |head: &str| {
        let mut command = keyward(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        let output = command.arg(dir.path()).env("KEYWARD_EXPECT_HEAD", head).output().unwrap();
        (output.status.code(), text(&output).1)
    };
    let (code, error) = serve(&format!("{}:{}", told.revision, "ab".repeat(32)));
    assert!(code == Some(1) && error.contains("is not the one of the head"), "{error}");
    let (code, error) = serve("17:ab");
    assert!(
        code == Some(1) && error.contains("KEYWARD_EXPECT_HEAD (in the environment): must be a revision"),
        "{error}"
    );
    let file = dir.path().join("keyward.toml");
    fs::write(&file, format!("expect_head = \"{}\"\n", told.head)).unwrap();
    let listing = text(&keyward(&["config", "--config"]).arg(&file).output().unwrap()).0;
    assert!(listing.contains(&format!("expect_head = \"{}\" # in ", told.head)), "{listing}");
    let program = Program::serve(dir.path(), &["--expect-head", &told.head]);
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

#[tokio::test]
async fn an_engine_without_a_log_has_no_head() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Zapier", &[]).await;
    let told = site.admin().head(pb::GetHeadRequest {}).await.unwrap();
    assert_eq!((told.revision, &*told.head), (issued.revision, ""));
    let refused = site.with_roles(&["keyward.auditor@acme"]).await.head(pb::GetHeadRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
