//! Repairs by an operator: check, rebuild, restore, and, as the last resort, salvage.

use std::fs;
use std::path::Path;
use std::process::Output;

use keyward::grpc::pb::Reason;

use crate::support::harness::{Issued, Site, journal_segment, open_table};
use crate::support::program::{keyward, text};

fn run(args: &[&str], dir: &Path) -> (bool, String, String) {
    let output: Output = keyward(args).arg("--data-dir").arg(dir).output().unwrap();
    let (out, error) = text(&output);
    (output.status.success(), out, error)
}

/// A stopped server with keys, of which one is disabled in the middle of the journal.
async fn stopped() -> (Site, Vec<Issued>) {
    let mut site = Site::start().await;
    let mut keys = vec![];
    for number in 0..5 {
        keys.push(site.admin().issue(&format!("Key {number}"), &[]).await);
    }
    site.admin().disable_key(&keys[1].key).await;
    for number in 5..8 {
        keys.push(site.admin().issue(&format!("Key {number}"), &[]).await);
    }
    site.stop().await;
    (site, keys)
}

/// Where the frame of the change at this revision begins. Each change is a frame of its own here.
pub(crate) fn frame_at(segment: &[u8], revision: u64) -> usize {
    let begins = |at: &usize| segment[*at..].starts_with(b"KWJG") && segment[at + 8..at + 16] == revision.to_le_bytes();
    (64..segment.len() - 16).step_by(8).find(begins).unwrap()
}

pub(crate) fn damage(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at + 30] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn check_says_what_is_whole_and_what_is_not() {
    let (site, _) = stopped().await;
    let dir = site.dir.path();
    let (whole, out, error) = run(&["check"], dir);
    assert!(whole, "{out}{error}");
    for part in ["journal: revisions 1 to 10, in segments: 1", "watermark: revision 10 was", "table: whole, 9 keys at"]
    {
        assert!(out.contains(part), "'{part}' in:\n{out}");
    }
    fs::remove_file(dir.join("watermark")).unwrap();
    let (whole, out, error) = run(&["check"], dir);
    assert!(!whole && out.contains("WRONG  ") && error.contains("1 of 3 parts are in doubt"), "{out}{error}");

    let segment = journal_segment(&site.dir);
    let at = frame_at(&fs::read(&segment).unwrap(), 5);
    damage(&segment, at);
    let (whole, out, error) = run(&["check"], dir);
    assert!(!whole && out.contains(&format!("000000000001.kwj, byte {at}: the frame is damaged")), "{out}{error}");

    let empty = tempfile::tempdir().unwrap();
    let (whole, _, error) = run(&["check"], empty.path());
    assert!(!whole && error.contains("has no data of keyward"), "{error}");
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "a check makes nothing");
}

#[tokio::test]
async fn check_notices_a_table_that_holds_something_else() {
    let (site, _) = stopped().await;
    {
        let db = open_table(site.dir.path());
        let keys = db.open_tree("keys").unwrap();
        let digest = keys.iter().next().unwrap().unwrap().0;
        keys.remove(digest).unwrap();
        db.flush().unwrap();
    }
    let (whole, out, _) = run(&["check"], site.dir.path());
    assert!(!whole && out.contains("its keys are not those that were written"), "{out}");
}

#[tokio::test]
async fn rebuild_makes_the_table_anew() {
    let (mut site, keys) = stopped().await;
    fs::write(site.dir.path().join("table/conf"), b"this is no configuration of sled").unwrap();
    let (done, out, error) = run(&["rebuild"], site.dir.path());
    assert!(done && out.contains("up to revision 10; nothing is missing"), "{out}{error}");
    assert!(site.dir.path().join("table.broken").exists());
    assert!(run(&["check"], site.dir.path()).0);
    // What is not lost is not given up.
    let (done, out, error) = run(&["rebuild", "--accept-data-loss"], site.dir.path());
    assert!(done && out.contains("nothing is missing"), "{out}{error}");
    site.try_start().await.unwrap();
    assert_eq!(site.admin().reason(&keys[1].secret).await, Reason::Disabled);
    let (done, _, error) = run(&["rebuild"], site.dir.path());
    assert!(!done && error.contains("in use by process"), "{error}");
}

#[tokio::test]
async fn with_a_sound_table_a_damaged_journal_costs_no_key() {
    let (mut site, keys) = stopped().await;
    let segment = journal_segment(&site.dir);
    damage(&segment, frame_at(&fs::read(&segment).unwrap(), 7));
    let (done, _, error) = run(&["rebuild"], site.dir.path());
    assert!(!done && error.contains("--accept-data-loss"), "{error}");
    let (done, out, error) = run(&["rebuild", "--accept-data-loss"], site.dir.path());
    assert!(done && out.contains("9 keys were saved; the log goes on from revision 1099511627777"), "{out}{error}");
    assert!(!out.contains("gone:"), "{out}");
    site.try_start().await.unwrap();
    for (number, key) in keys.iter().enumerate() {
        let expected = if number == 1 { Reason::Disabled } else { Reason::Ok };
        assert_eq!(site.admin().reason(&key.secret).await, expected);
    }
}

#[tokio::test]
async fn what_is_given_up_is_named_and_noted() {
    let (mut site, keys) = stopped().await;
    let dir = site.dir.path().to_owned();
    let segment = journal_segment(&site.dir);
    // The disabling of key 1, and the end of the journal; and no table that remembers.
    let bytes = fs::read(&segment).unwrap();
    damage(&segment, frame_at(&bytes, 7));
    damage(&segment, frame_at(&bytes, 10));
    fs::remove_dir_all(dir.join("table")).unwrap();
    let before = fs::read(&segment).unwrap();
    assert!(site.try_start().await.is_err());
    assert!(!run(&["rebuild"], &dir).0);
    assert_eq!(fs::read(&segment).unwrap(), before, "nothing is touched before it is accepted");

    let pepper = dir.join("pepper");
    let ours = fs::read_to_string(&pepper).unwrap();
    let root = ours.lines().find(|line| line.starts_with("root")).unwrap();
    fs::write(&pepper, ours.replace(root, &format!("root {}", "cd".repeat(32)))).unwrap();
    let (done, _, error) = run(&["rebuild", "--accept-data-loss"], &dir);
    assert!(!done && error.contains("was written with this pepper file"), "{error}");
    assert_eq!(fs::read(&segment).unwrap(), before);
    fs::write(&pepper, ours).unwrap();

    let (done, out, error) = run(&["rebuild", "--accept-data-loss"], &dir);
    assert!(done, "{error}");
    for line in ["8 keys were saved", "gone: the changes 7 to 7", "gone: the changes 10 to 10"] {
        assert!(out.contains(line), "'{line}' in:\n{out}");
    }
    let note = b"revisions 7-7,10-10";
    let journal = fs::read(&segment).unwrap();
    assert!(journal.windows(note.len()).any(|window| window == note), "the journal says what was given up");
    assert_eq!(fs::read(dir.join("lost.00000000000000000010/journal/000000000001.kwj")).unwrap(), before);
    assert!(run(&["check"], &dir).0);

    site.try_start().await.unwrap();
    let admin = site.admin();
    assert_eq!(admin.reason(&keys[1].secret).await, Reason::Ok, "its disabling is among what is gone");
    assert_eq!(admin.reason(&keys[7].secret).await, Reason::Unknown);
    assert!(admin.issue("Goes on", &[]).await.revision > 11, "past everything that anyone was told");
    site.restart().await;
}

#[tokio::test]
async fn a_salvage_that_was_interrupted_is_not_taken_for_an_empty_directory() {
    let (mut site, _) = stopped().await;
    let dir = site.dir.path().to_owned();
    // Where it moves files aside.
    fs::create_dir(dir.join("lost.00000000000000000010")).unwrap();
    for part in ["format", "journal", "table"] {
        fs::rename(dir.join(part), dir.join("lost.00000000000000000010").join(part)).unwrap();
    }
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains("format is missing"), "{refused}");
    fs::remove_file(dir.join("watermark")).unwrap();
    let refused = site.try_start().await.unwrap_err();
    assert!(refused.to_string().contains("format is missing"), "{refused}");
}

#[tokio::test]
async fn a_restore_can_be_tried_again_when_what_it_lacked_is_there() {
    let (site, keys) = stopped().await;
    let (dir, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = backup.path().join("backup");
    // The snapshot of a salvage is a backup like any other.
    let segment = journal_segment(&site.dir);
    damage(&segment, frame_at(&fs::read(&segment).unwrap(), 7));
    assert!(run(&["rebuild", "--accept-data-loss"], site.dir.path()).0);
    let snapshots: Vec<_> = fs::read_dir(site.dir.path().join("snapshot")).unwrap().map(Result::unwrap).collect();
    fs::copy(snapshots[0].path(), &file).unwrap();
    let restore = ["restore", file.to_str().unwrap()];
    let (done, _, error) = run(&restore, dir.path());
    assert!(!done && error.contains("pepper file") && error.contains("is missing"), "{error}");
    fs::copy(site.dir.path().join("pepper"), dir.path().join("pepper")).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    let (done, out, error) = run(&restore, dir.path());
    assert!(done && out.contains("restored to revision 10"), "{out}{error}");
    drop(keys);

    // With another pepper, nothing is given up: not even where the journal has no change yet.
    let pepper = dir.path().join("pepper");
    let ours = fs::read_to_string(&pepper).unwrap();
    let root = ours.lines().find(|line| line.starts_with("root")).unwrap();
    fs::write(&pepper, ours.replace(root, &format!("root {}", "cd".repeat(32)))).unwrap();
    let (done, out, error) = run(&["rebuild", "--accept-data-loss"], dir.path());
    assert!(!done && error.contains("was written with this pepper file"), "{out}{error}");
    fs::write(&pepper, ours).unwrap();
    let (whole, out, error) = run(&["check"], dir.path());
    assert!(whole, "{out}{error}");
}

#[tokio::test]
async fn an_interrupted_salvage_says_what_to_do() {
    let (site, _) = stopped().await;
    fs::remove_file(site.dir.path().join("format")).unwrap();
    for command in [&["check"][..], &["rebuild", "--accept-data-loss"]] {
        let (done, _, error) = run(command, site.dir.path());
        assert!(!done && error.contains("a restore or a salvage was interrupted there"), "{error}");
    }
}
