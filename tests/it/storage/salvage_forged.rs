//! A salvage of a data directory to which an attacker without the pepper file has written, or that has parts
//! of an older copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use keyward::grpc::pb::{self, Reason};
use keyward::store::local::journal::frame::{Frame, FrameBuilder};
use keyward::store::local::journal::{Chain, ChainKey, Position};
use keyward::store::record::pb::{JournalEntry, Redo, redo};
use keyward::store::record::{decode_key, encode_key};
use keyward_core::event::Revision;
use keyward_core::record::{KeyRecord, State};
use keyward_core::scope::Scope;
use tempfile::TempDir;
use tonic::Code;
use zeroize::Zeroizing;

use crate::storage::disk::{copy_dir, end_of_frames};
use crate::storage::salvage::{damage, frame_at};
use crate::support::harness::{Issued, Site, journal_segment, new_key, open_table};
use crate::support::program::{keyward, text};

/// The revision of the last change of [`stopped`].
const LAST: u64 = 6;

fn rebuild(dir: &Path, args: &[&str]) -> (bool, String, String) {
    let output: Output = keyward(&["rebuild"]).args(args).arg("--data-dir").arg(dir).output().unwrap();
    let (out, error) = text(&output);
    (output.status.success(), out, error)
}

/// A stopped server: an ordinary key that is disabled, a caller who may only read, and changes after that.
struct Stopped {
    site: Site,
    disabled: Issued,
    reader: Issued,
}

async fn stopped() -> Stopped {
    let mut site = Site::start().await;
    let admin = site.admin();
    let disabled = admin.issue("Disabled", &[]).await;
    let request =
        pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Reader", &["keyward.viewer", "keyward.verifier"]) };
    let reader = admin.issued(request).await;
    admin.disable_key(&disabled.key).await;
    for number in 0..2 {
        admin.issue(&format!("Key {number}"), &[]).await;
    }
    drop(admin);
    site.stop().await;
    Stopped { site, disabled, reader }
}

impl Stopped {
    fn dir(&self) -> PathBuf {
        self.site.dir.path().to_owned()
    }

    /// The record of a key, changed.
    fn record(&self, of: &Issued, revision: u64, change: impl FnOnce(&mut KeyRecord)) -> Vec<u8> {
        let table = open_table(self.site.dir.path());
        let records = table.open_tree("keys").unwrap().iter().map(|row| decode_key(&row.unwrap().1).unwrap());
        let mut record = records.into_iter().find(|record| record.key_id.as_str() == of.key.key_id).unwrap();
        change(&mut record);
        record.revision = Revision(revision);
        encode_key(&record)
    }

    /// Starts the salvaged directory, and checks that the attacker has gained nothing.
    async fn gives_nobody_power(mut self) {
        self.site.try_start().await.unwrap();
        let reader = self.site.caller(&self.reader.secret);
        assert_eq!(reader.reason(&self.disabled.secret).await, Reason::Disabled);
        let refused = reader.create(new_key("By a forger", &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    }
}

/// A frame made without the key of the chain: everything is consistent except the chain.
fn forged(revision: u64, method: &str, target: &str, record: Vec<u8>) -> Vec<u8> {
    let no_key = ChainKey(Zeroizing::new([0; 32]));
    let mut frame = FrameBuilder::after(&Position { revision: Revision(revision - 1), chain: Chain::EMPTY });
    let entry = JournalEntry {
        revision,
        time_ms: 1_767_225_600_000,
        actor: "keyward".into(),
        method: method.into(),
        target: target.into(),
        redo: vec![Redo { record: Some(redo::Record::Key(record)) }],
        ..JournalEntry::default()
    };
    frame.push(&entry, &no_key);
    frame.finish().unwrap()
}

/// Gives a frame another chain field, and the checksum that goes with it.
fn with_chain(mut frame: Vec<u8>, chain: &[u8]) -> Vec<u8> {
    let payload = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
    frame[24 + payload..24 + payload + 32].copy_from_slice(chain);
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
    let mut digest = crc.digest();
    digest.update(&frame[..20]);
    digest.update(&frame[24..24 + payload + 32]);
    frame[20..24].copy_from_slice(&digest.finalize().to_le_bytes());
    assert!(Frame::read(&frame).is_some());
    frame
}

/// The chain field of the frame at a place.
fn chain_of(segment: &[u8], at: usize) -> [u8; 32] {
    let payload = u32::from_le_bytes(segment[at + 4..at + 8].try_into().unwrap()) as usize;
    segment[at + 24 + payload..at + 24 + payload + 32].try_into().unwrap()
}

fn append(segment: &Path, bytes: &[u8]) {
    let mut all = fs::read(segment).unwrap();
    let end = end_of_frames(&all);
    all[end..end + bytes.len()].copy_from_slice(bytes);
    fs::write(segment, all).unwrap();
}

#[tokio::test]
async fn a_forged_change_at_the_end_is_listed_and_not_taken() {
    let mut stopped = stopped().await;
    let (dir, segment) = (stopped.dir(), journal_segment(&stopped.site.dir));
    let record = stopped.record(&stopped.reader, LAST + 1, |key| {
        key.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
    });
    let target = format!("system/{}", stopped.reader.key.key_id);
    append(&segment, &forged(LAST + 1, "UpdateKey", &target, record));
    assert!(stopped.site.try_start().await.is_err());

    let listed = format!("revision {}: UpdateKey of {target}", LAST + 1);
    let (done, _, error) = rebuild(&dir, &[]);
    assert!(!done && error.contains(&listed) && error.contains("--accept-unproven"), "{error}");
    let taken = tempfile::tempdir().unwrap();
    copy_dir(&dir, taken.path());
    let (done, out, error) = rebuild(&dir, &["--accept-data-loss"]);
    assert!(done && out.contains(&listed), "{out}{error}");
    // A control: what was left out is what would have made a reader an administrator.
    let (done, out, error) = rebuild(taken.path(), &["--accept-data-loss", "--accept-unproven"]);
    assert!(done && out.contains(&listed), "{out}{error}");
    let table = open_table(taken.path()).open_tree("keys").unwrap();
    let admins = table.iter().map(|row| decode_key(&row.unwrap().1).unwrap());
    assert!(admins.into_iter().any(|key| key.key_id.as_str() == stopped.reader.key.key_id
        && key.spec.policy.scopes.iter().any(|scope| scope.as_str() == "keyward.admin")));
    stopped.gives_nobody_power().await;
}

/// The frame after it follows, because an attacker can keep what it follows. That proves nothing about the
/// payload.
#[tokio::test]
async fn a_forged_change_behind_a_damaged_one_is_not_taken_though_the_next_one_follows_it() {
    let stopped = stopped().await;
    let (dir, segment) = (stopped.dir(), journal_segment(&stopped.site.dir));
    let bytes = fs::read(&segment).unwrap();
    let (at, next) = (frame_at(&bytes, LAST - 1), frame_at(&bytes, LAST));
    let record = stopped.record(&stopped.disabled, LAST - 1, |key| key.spec.policy.state = State::Active);
    let target = format!("default/{}", stopped.disabled.key.key_id);
    let forged = with_chain(forged(LAST - 1, "EnableKey", &target, record), &chain_of(&bytes, at));
    let mut doctored = [&bytes[..at], &forged, &bytes[next..end_of_frames(&bytes)]].concat();
    doctored.resize(bytes.len(), 0);
    fs::write(&segment, doctored).unwrap();
    damage(&segment, frame_at(&bytes, LAST - 2));
    fs::remove_dir_all(dir.join("table")).unwrap();

    let (done, out, error) = rebuild(&dir, &["--accept-data-loss"]);
    assert!(done && out.contains(&format!("revision {}: EnableKey of {target}", LAST - 1)), "{out}{error}");
    // The disabling is what was damaged: a salvage without the table lacks it, and says so. What follows is
    // genuine.
    assert!(out.contains(&format!("gone: the changes {} to {}", LAST - 2, LAST - 1)), "{out}");
    let mut stopped = stopped;
    stopped.site.try_start().await.unwrap();
    let keys = stopped.site.admin().list(pb::ListKeysRequest::default()).await.unwrap().keys;
    assert!(keys.iter().all(|key| key.revision != LAST - 1), "{keys:?}");
    assert!(keys.iter().any(|key| key.revision == LAST), "{keys:?}");
}

/// The log before a restore and the log after it have one pepper file, and the same revisions.
#[tokio::test]
async fn a_genuine_change_of_an_older_line_is_not_taken() {
    for behind_a_gap in [false, true] {
        let mut stopped = stopped().await;
        let (dir, segment) = (stopped.dir(), journal_segment(&stopped.site.dir));
        let kept = tempfile::tempdir().unwrap();
        copy_dir(&dir, kept.path());

        // One line goes on, and enables the key.
        stopped.site.try_start().await.unwrap();
        if behind_a_gap {
            stopped.site.admin().issue("Of the older line", &[]).await;
            stopped.site.admin().issue("Of the older line too", &[]).await;
        }
        let enabled = stopped.site.admin().enable_key(&stopped.disabled.key).await.revision;
        stopped.site.stop().await;
        let older = fs::read(&segment).unwrap();
        let at = frame_at(&older, enabled);
        let mut frame = older[at..at + Frame::read(&older[at..]).unwrap().bytes].to_vec();
        if behind_a_gap {
            let before = chain_of(&older, frame_at(&older, enabled - 1));
            frame = [&before[..], &frame].concat();
        }

        // The other one begins where that one did, later, and does not.
        put_back(&kept, &dir);
        stopped.site.clock.advance_ms(3_600_000);
        stopped.site.try_start().await.unwrap();
        stopped.site.admin().issue("Of this line", &[]).await;
        stopped.site.stop().await;
        append(&segment, &frame);
        assert!(stopped.site.try_start().await.is_err());
        let (done, out, error) = rebuild(&dir, &["--accept-data-loss"]);
        assert!(done && out.contains(&format!("revision {enabled}: EnableKey of default/")), "{out}{error}");
        stopped.gives_nobody_power().await;
    }
}

/// A snapshot is sealed, and a backup of the older line is one.
#[tokio::test]
async fn a_snapshot_of_an_older_line_is_not_taken() {
    for without_table in [false, true] {
        let mut stopped = stopped().await;
        let (dir, segment) = (stopped.dir(), journal_segment(&stopped.site.dir));
        let kept = tempfile::tempdir().unwrap();
        copy_dir(&dir, kept.path());
        stopped.site.try_start().await.unwrap();
        let enabled = stopped.site.admin().enable_key(&stopped.disabled.key).await.revision;
        let mut pieces = stopped.site.admin().backup().await.unwrap();
        let mut backup = vec![];
        while let Some(response) = pieces.message().await.unwrap() {
            backup.extend(response.piece);
        }
        stopped.site.stop().await;

        put_back(&kept, &dir);
        stopped.site.clock.advance_ms(3_600_000);
        stopped.site.try_start().await.unwrap();
        stopped.site.admin().issue("Of this line", &[]).await;
        let last = stopped.site.admin().issue("Of this line too", &[]).await;
        stopped.site.stop().await;
        fs::create_dir(dir.join("snapshot")).unwrap();
        let file = dir.join(format!("snapshot/{enabled:020}.kws"));
        fs::write(&file, &backup).unwrap();
        damage(&segment, frame_at(&fs::read(&segment).unwrap(), LAST));
        if without_table {
            fs::remove_dir_all(dir.join("table")).unwrap();
        }
        let (done, out, error) = rebuild(&dir, &["--accept-data-loss"]);
        assert!(done && out.contains(&file.display().to_string()), "{out}{error}");
        assert_eq!(out.contains("from behind damage: the changes 7 to 8"), without_table, "{out}");
        stopped.site.try_start().await.unwrap();
        assert_eq!(stopped.site.admin().reason(&last.secret).await, Reason::Ok);
        stopped.site.stop().await;
        stopped.gives_nobody_power().await;
    }
}

fn put_back(kept: &TempDir, dir: &Path) {
    for part in ["journal", "table"] {
        fs::remove_dir_all(dir.join(part)).unwrap();
        copy_dir(&kept.path().join(part), &dir.join(part));
    }
    fs::copy(kept.path().join("watermark"), dir.join("watermark")).unwrap();
}
