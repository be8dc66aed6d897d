//! Damage that a data directory survives, and damage that refuses the start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keyward::app::StartError;
use keyward::grpc::pb::{self, Reason};
use keyward::store::local::OpenError;
use keyward::store::local::journal::JournalError;
use keyward::store::record::{decode_key, encode_key};
use keyward_core::record::State;

use crate::support::harness::{Issued, Site, journal_segment, open_error, open_table};

/// A stopped server with an active and a disabled key.
async fn stopped() -> (Site, [Issued; 2]) {
    let mut site = Site::start().await;
    let (kept, disabled) = (site.admin().issue("Kept", &["a"]).await, site.admin().issue("Disabled", &[]).await);
    site.admin().disable_key(&disabled.key).await;
    site.stop().await;
    (site, [kept, disabled])
}

/// Starts again and checks that nothing was lost.
async fn is_whole(site: &mut Site, [kept, disabled]: &[Issued; 2]) {
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&kept.secret).await, Reason::Ok);
    assert_eq!(site.admin().reason(&disabled.secret).await, Reason::Disabled);
    assert_eq!(site.admin().list(pb::ListKeysRequest::default()).await.unwrap().keys.len(), 2);
}

/// Where the last frame of a segment ends.
pub(crate) fn end_of_frames(segment: &[u8]) -> usize {
    let last = segment.iter().rposition(|&byte| byte != 0).unwrap();
    (last + 1).next_multiple_of(8)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x40;
    fs::write(path, bytes).unwrap();
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to)
        } else {
            drop(fs::copy(entry.path(), to))
        }
    }
}

#[tokio::test]
async fn a_change_torn_by_a_crash_is_cut_off_and_nothing_else() {
    for torn in [&b"KWJG\x40\x00\x00\x00half a frame"[..], b"x", &[0xff; 5_000]] {
        let (mut site, keys) = stopped().await;
        let path = journal_segment(&site.dir);
        let mut bytes = fs::read(&path).unwrap();
        let whole = bytes.clone();
        let end = end_of_frames(&bytes);
        bytes[end..end + torn.len()].copy_from_slice(torn);
        fs::write(&path, &bytes).unwrap();
        is_whole(&mut site, &keys).await;
        assert_eq!(fs::read(&path).unwrap(), whole, "the torn bytes are zero again");
        let newer = site.admin().issue("Newer", &[]).await;
        site.restart().await;
        assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
    }
}

#[tokio::test]
async fn a_segment_that_lacks_only_the_zeros_after_its_last_frame_is_mended() {
    let mut site = Site::start().await;
    let path = journal_segment(&site.dir);
    let mut label = String::from("x");
    // Frames end at multiples of 8: sooner or later, one has zeros before that.
    let (kept, used) = loop {
        let issued = site.admin().issue(&label, &[]).await;
        site.stop().await;
        let used = fs::read(&path).unwrap().iter().rposition(|&byte| byte != 0).unwrap() as u64 + 1;
        if !used.is_multiple_of(8) {
            break (issued, used);
        }
        site.try_start().await.unwrap();
        label.push('x');
    };
    fs::File::options().write(true).open(&path).unwrap().set_len(used).unwrap();
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&kept.secret).await, Reason::Ok);
    let newer = site.admin().issue("Newer", &[]).await;
    site.restart().await;
    assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
}

#[tokio::test]
async fn a_damaged_change_that_was_acknowledged_stops_the_start() {
    let (mut site, _) = stopped().await;
    let path = journal_segment(&site.dir);
    let end = end_of_frames(&fs::read(&path).unwrap());
    // In the first frame: a sound one follows, so it is no torn end.
    flip(&path, 200);
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::Journal(JournalError::Damaged { offset: 128, .. })), "{refused}");
    assert!(refused.to_string().contains("000000000001.kwj"), "{refused}");
    flip(&path, 200);

    // In the last frame: it could be a torn end, but the watermark knows better.
    flip(&path, end - 40);
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::Missing { .. }), "{refused}");
    flip(&path, end - 40);
    site.try_start().await.unwrap();
}

/// Repairing the damage must still help after a failed start.
#[tokio::test]
async fn a_refused_start_leaves_the_journal_as_it_was() {
    let (mut site, keys) = stopped().await;
    let path = journal_segment(&site.dir);
    let end = end_of_frames(&fs::read(&path).unwrap());
    // Of the last change only the table knows now.
    let watermark = site.dir.path().join("watermark");
    let kept = fs::read(&watermark).unwrap();
    fs::remove_file(&watermark).unwrap();
    flip(&path, end - 40);
    let damaged = fs::read(&path).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::Missing { .. }), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), damaged);
    flip(&path, end - 40);
    fs::write(&watermark, kept).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn a_journal_that_is_gone_or_cut_short_stops_the_start() {
    let (mut site, keys) = stopped().await;
    let path = journal_segment(&site.dir);
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::Missing { .. }), "{refused}");
    let cut = whole.len().min(end_of_frames(&whole) / 2);
    fs::write(&path, &whole[..cut]).unwrap();
    assert!(site.try_start().await.is_err());
    fs::write(&path, &whole[..30]).unwrap();
    assert!(site.try_start().await.is_err());
    fs::write(&path, &whole).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn a_table_that_is_gone_is_built_from_the_journal() {
    let (mut site, keys) = stopped().await;
    fs::remove_dir_all(site.dir.path().join("table")).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn a_table_that_does_not_open_is_moved_aside_and_built_anew() {
    let (mut site, keys) = stopped().await;
    fs::write(site.dir.path().join("table/conf"), b"this is no configuration of sled").unwrap();
    is_whole(&mut site, &keys).await;
    assert!(site.dir.path().join("table.broken").exists());
}

#[tokio::test]
async fn a_disk_that_fails_is_no_reason_to_rebuild_the_table() {
    let (mut site, keys) = stopped().await;
    let (table, kept) = (site.dir.path().join("table"), site.dir.path().join("kept"));
    fs::rename(&table, &kept).unwrap();
    fs::write(&table, "not a directory").unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains("the disk fails"), "{refused}");
    assert!(!site.dir.path().join("table.broken").exists());
    fs::remove_file(&table).unwrap();
    fs::rename(&kept, &table).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn a_half_snapshot_left_by_a_crash_is_removed() {
    let (mut site, keys) = stopped().await;
    fs::write(site.dir.path().join("table/snap.0000000000000400.generating"), b"half").unwrap();
    is_whole(&mut site, &keys).await;
    assert!(!site.dir.path().join("table.broken").exists(), "the table was sound but for that");
}

/// The worst case of a table: a record that is well-formed, and wrong.
#[tokio::test]
async fn a_table_that_contradicts_the_journal_is_not_believed() {
    let (mut site, keys) = stopped().await;
    let tampers: [fn(&sled::Tree); 4] = [
        // A scope more, which no other tree tells of.
        |keys| {
            let (digest, bytes) = keys.iter().next().unwrap().unwrap();
            let mut record = decode_key(&bytes).unwrap();
            record.spec.policy.scopes.push(keyward_core::scope::Scope::parse("everything.*").unwrap());
            keys.insert(digest, encode_key(&record)).unwrap();
        },
        |keys| {
            let (digest, bytes) = keys
                .iter()
                .map(Result::unwrap)
                .find(|(_, bytes)| decode_key(bytes).unwrap().spec.policy.state == State::Disabled)
                .unwrap();
            let mut record = decode_key(&bytes).unwrap();
            record.spec.policy.state = State::Active;
            keys.insert(digest, encode_key(&record)).unwrap();
        },
        |keys| {
            let digest = keys.iter().next().unwrap().unwrap().0;
            keys.remove(digest).unwrap();
        },
        |keys| {
            let (digest, bytes) = keys.iter().next().unwrap().unwrap();
            let mut record = decode_key(&bytes).unwrap();
            let mut twin = digest.to_vec();
            twin[0] ^= 1;
            record.secret.digest = keyward_core::digest::Digest::from_bytes(twin.clone().try_into().unwrap());
            keys.insert(twin, encode_key(&record)).unwrap();
        },
    ];
    for (round, tamper) in tampers.into_iter().enumerate() {
        {
            let db = open_table(site.dir.path());
            tamper(&db.open_tree("keys").unwrap());
            db.flush().unwrap();
        }
        is_whole(&mut site, &keys).await;
        let aside = site.dir.path().join("table.broken");
        assert!(aside.exists(), "round {round}");
        fs::remove_dir_all(aside).unwrap();
        site.stop().await;
    }
}

#[tokio::test]
async fn a_table_from_another_time_or_another_server_is_mended() {
    let (mut site, keys) = stopped().await;
    let older = tempfile::tempdir().unwrap();
    copy_dir(&site.dir.path().join("table"), older.path());
    site.try_start().await.unwrap();
    let newer = site.admin().issue("Newer", &[]).await;
    site.stop().await;
    let put_back = |from: &Path| {
        let table = site.dir.path().join("table");
        fs::remove_dir_all(&table).unwrap();
        copy_dir(from, &table);
    };
    put_back(older.path());
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
    assert_eq!(site.admin().reason(&keys[1].secret).await, Reason::Disabled);
    site.stop().await;

    let (other, _) = stopped().await;
    // The same seeds make the same server; one change more makes it another.
    let mut other = other;
    other.try_start().await.unwrap();
    other.admin().issue("Foreign", &["x"]).await;
    other.stop().await;
    let table = site.dir.path().join("table");
    fs::remove_dir_all(&table).unwrap();
    copy_dir(&other.dir.path().join("table"), &table);
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
    let labels: Vec<_> = site.admin().list(pb::ListKeysRequest::default()).await.unwrap().keys;
    assert!(labels.iter().all(|key| key.display_name != "Foreign"));
}

#[tokio::test]
async fn a_watermark_that_is_gone_or_damaged_stops_the_start_unless_that_is_accepted() {
    let (mut site, keys) = stopped().await;
    let path = site.dir.path().join("watermark");
    let spoil: [fn(&Path); 3] =
        [|path| fs::remove_file(path).unwrap(), |path| flip(path, 20), |path| fs::write(path, "KWWM").unwrap()];
    for spoil in spoil {
        spoil(&path);
        let refused = site.try_start().await.unwrap_err();
        assert!(matches!(open_error(&refused), OpenError::NoWatermark { found, .. } if found.0 == 4));
        assert!(refused.to_string().contains("--accept-watermark-loss"), "{refused}");
        site.try_start_with(|settings| settings.accept_watermark_loss = true).await.unwrap();
        site.stop().await;
        is_whole(&mut site, &keys).await;
        site.stop().await;
    }
    // What else there is tells of changes that are missing, and that is not what was accepted.
    let segment = journal_segment(&site.dir);
    let end = end_of_frames(&fs::read(&segment).unwrap());
    flip(&segment, end - 40);
    fs::remove_file(&path).unwrap();
    let refused = site.try_start_with(|settings| settings.accept_watermark_loss = true).await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::Missing { .. }), "{refused}");
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_says_by_whom() {
    let mut site = Site::start().await;
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::InUse { .. }));
    let message = refused.to_string();
    assert!(message.contains(&site.dir.path().display().to_string()), "{message}");
    assert!(message.contains(&std::process::id().to_string()), "{message}");
}

#[tokio::test]
async fn a_layout_that_is_not_known_is_refused() {
    let (mut site, keys) = stopped().await;
    let path = site.dir.path().join("format");
    let ours = fs::read(&path).unwrap();
    fs::write(&path, "keyward-data 3\n").unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::UnknownFormat { found, .. } if found == "keyward-data 3"));
    fs::write(&path, b"keyward-data \xb1\n").unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(matches!(open_error(&refused), OpenError::UnknownFormat { .. }), "{refused}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(open_error(&site.try_start().await.unwrap_err()), OpenError::NoFormat { .. }));
    // A file that cannot be read is named: here there is something else in its place.
    fs::create_dir(&path).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, ours).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn no_key_is_served_without_the_pepper_it_was_made_with() {
    let (mut site, keys) = stopped().await;
    let path = site.dir.path().join("pepper");
    let ours = fs::read_to_string(&path).unwrap();
    let write = |text: &str| fs::write(&path, text).unwrap();

    fs::remove_file(&path).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains("pepper file"), "{refused}");
    assert!(!path.exists(), "no new pepper is made where keys depend on the old one");

    // Another pepper, then another root as well.
    let root = ours.lines().find(|line| line.starts_with("root")).unwrap();
    write(&format!("{root}\npepper {}\n", "ab".repeat(32)));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(site.try_start().await, Err(StartError::ForeignPepper { .. })));
    write(&ours.replace(root, &format!("root {}", "cd".repeat(32))));
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains("the pepper file is not the one"), "{refused}");

    for (bad, line) in [("root 12\n", "line 1"), ("# x\nsalt 00\n", "line 2"), ("pepper zz\n", "line 1")] {
        write(bad);
        let refused = site.try_start().await.unwrap_err();
        assert!(refused.to_string().contains(line), "{refused}");
    }
    write(root);
    assert!(site.try_start().await.unwrap_err().to_string().contains("one 'root' line"));

    write(&ours);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(site.try_start().await.unwrap_err().to_string().contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    is_whole(&mut site, &keys).await;
}

#[tokio::test]
async fn a_pepper_is_rotated_by_putting_a_new_one_before_it() {
    let (mut site, keys) = stopped().await;
    let path = site.dir.path().join("pepper");
    let ours = fs::read_to_string(&path).unwrap();
    let fresh = format!("pepper {}\n", "ab".repeat(32));
    let rotated = ours.replacen("pepper ", &format!("{fresh}pepper "), 1);
    let rotated = rotated.replace(&format!("# The first {fresh}pepper"), "# The first pepper");
    fs::write(&path, rotated).unwrap();
    is_whole(&mut site, &keys).await;
    let newer = site.admin().issue("Newer", &[]).await;
    assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
    site.restart().await;
    assert_eq!(site.admin().reason(&newer.secret).await, Reason::Ok);
    assert_eq!(site.admin().reason(&keys[0].secret).await, Reason::Ok);
}

#[tokio::test]
async fn secrets_of_the_authority_are_readable_by_their_owner_alone() {
    let site = Site::start().await;
    for file in ["admin.key", "pepper", "watermark", "format", "lock", "journal/000000000001.kwj"] {
        let mode = fs::metadata(site.dir.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    assert_eq!(fs::read_to_string(site.dir.path().join("admin.key")).unwrap().lines().count(), 1);
}
