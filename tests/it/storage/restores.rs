//! Restores: up to the wanted revision, with the right pepper file, all or nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use keyward::store::local::{LockedDir, OpenError};
use tempfile::TempDir;

use crate::storage::disk::copy_dir;
use crate::storage::salvage::{damage, frame_at};
use crate::support::harness::{Site, journal_segment};
use crate::support::program::{Killed, Program, keyward, text};

/// The revision of the backup, and the one of the last change.
const BACKUP: u64 = 4;
const LAST: u64 = 8;
/// The parts that a restore moves, in this order.
const PARTS: [&str; 4] = ["journal", "snapshot", "table", "watermark"];

/// A backup, the journal that continues it, and the pepper file of both.
struct Old {
    site: Site,
    files: TempDir,
}

impl Old {
    async fn make() -> Self {
        let mut site = Site::start().await;
        for number in 2..=BACKUP {
            site.admin().issue(&format!("Key {number}"), &[]).await;
        }
        let mut pieces = site.admin().backup().await.unwrap();
        let mut bytes = vec![];
        while let Some(response) = pieces.message().await.unwrap() {
            bytes.extend(response.piece);
        }
        let files = tempfile::tempdir().unwrap();
        fs::write(files.path().join("backup"), bytes).unwrap();
        for number in BACKUP + 1..=LAST {
            site.admin().issue(&format!("Key {number}"), &[]).await;
        }
        site.stop().await;
        Self { site, files }
    }

    /// An empty directory with the pepper file.
    fn target(&self) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        fs::copy(self.site.dir.path().join("pepper"), to.path().join("pepper")).unwrap();
        to
    }

    fn command(&self, to: &Path) -> Command {
        let mut command = keyward(&["restore"]);
        command.arg(self.files.path().join("backup")).arg("--journal").arg(self.site.dir.path().join("journal"));
        command.arg("--data-dir").arg(to);
        command
    }

    fn restore(&self, to: &Path, args: &[&str]) -> (bool, String, String) {
        let output: Output = self.command(to).args(args).output().unwrap();
        let (out, error) = text(&output);
        (output.status.success(), out, error)
    }

    fn damage(&self, revision: u64) {
        let segment = journal_segment(&self.site.dir);
        damage(&segment, frame_at(&fs::read(&segment).unwrap(), revision));
    }
}

/// Checks that everything is there, and nothing else.
fn is_whole(dir: &Path, revision: u64) {
    let (out, error) = text(&keyward(&["check", "--data-dir"]).arg(dir).output().unwrap());
    // The restore's own entry changes no record.
    let whole = format!("table: whole, {revision} keys at revision {revision}, 1 changes before the journal's end\n");
    assert!(out.contains(&whole), "{out}{error}");
    assert!(!out.contains("WRONG"), "{out}");
    let expected = ["format", "journal", "lock", "pepper", "snapshot", "table", "watermark"];
    assert_eq!(names(dir), expected);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn damage_outside_of_what_is_wanted_does_not_matter() {
    let old = Old::make().await;
    // The last change that is wanted is whole; and so is the first one after the backup.
    for (damaged, wanted) in [(LAST - 1, LAST - 2), (LAST - 2, LAST - 3), (BACKUP + 1, BACKUP)] {
        old.damage(damaged);
        let to = old.target();
        let (done, _, error) = old.restore(to.path(), &[]);
        assert!(!done && error.contains(&format!("with --to-revision {}", damaged - 1)), "{error}");
        assert!(!names(to.path()).iter().any(|name| name != "lock" && name != "pepper"), "{:?}", names(to.path()));
        let (done, _, error) = old.restore(to.path(), &["--to-revision", &damaged.to_string()]);
        assert!(!done && error.contains("the frame is damaged"), "{error}");
        let (done, out, error) = old.restore(to.path(), &["--to-revision", &wanted.to_string()]);
        assert!(done && out.contains(&format!("restored to revision {wanted}")), "{out}{error}");
        is_whole(to.path(), wanted);
    }
}

#[tokio::test]
async fn a_wrong_pepper_file_is_noticed_before_anything_is_written() {
    let old = Old::make().await;
    let ours = fs::read_to_string(old.site.dir.path().join("pepper")).unwrap();
    let line = |name: &str| ours.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let other = "cd".repeat(32);
    for (name, reason) in [("root ", "was not made with this pepper file"), ("pepper ", "there are keys under pepper")]
    {
        let to = old.target();
        fs::write(to.path().join("pepper"), ours.replace(&line(name), &format!("{name}{other}"))).unwrap();
        let (done, _, error) = old.restore(to.path(), &[]);
        assert!(!done && error.contains(reason), "{error}");
        assert_eq!(names(to.path()), ["lock", "pepper"]);
        fs::write(to.path().join("pepper"), &ours).unwrap();
        assert!(old.restore(to.path(), &[]).0);
        is_whole(to.path(), LAST);
    }
}

/// A pepper that only a change after the backup needs.
#[tokio::test]
async fn a_pepper_that_only_the_journal_needs_is_missed_too() {
    let mut old = Old::make().await;
    let path = old.site.dir.path().join("pepper");
    let ours = fs::read_to_string(&path).unwrap();
    let pepper = ours.lines().find(|line| line.starts_with("pepper ")).unwrap();
    fs::write(&path, ours.replace(pepper, &format!("pepper {}\n{pepper}", "ab".repeat(32)))).unwrap();
    old.site.try_start().await.unwrap();
    old.site.admin().issue("Under the new pepper", &[]).await;
    old.site.stop().await;
    let to = old.target();
    fs::write(to.path().join("pepper"), &ours).unwrap();
    let (done, _, error) = old.restore(to.path(), &[]);
    assert!(!done && error.contains("there are keys under pepper"), "{error}");
    let (done, _, error) = old.restore(to.path(), &["--to-revision", &LAST.to_string()]);
    assert!(done, "up to the change before, it is not needed: {error}");
}

/// Kills a restore as soon as a file is there, unless it has ended by then.
fn kill_at(old: &Old, to: &Path, file: &Path) {
    let mut restoring = Killed(old.command(to).stderr(Stdio::null()).spawn().unwrap());
    let begun = Instant::now();
    while !file.exists() && restoring.0.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} does not come", file.display());
        std::hint::spin_loop();
    }
    drop(restoring);
}

#[tokio::test]
async fn a_restore_that_is_killed_is_not_served_and_the_next_one_goes_through() {
    let old = Old::make().await;
    let fresh = |part: &str| Path::new("restore.new").join(part);
    let mut events = vec![PathBuf::from("restore.new"), fresh("snapshot"), fresh("journal/000000000001.kwj")];
    events.extend([fresh("watermark"), fresh("table"), fresh("table/db"), fresh("format")]);
    events.extend(PARTS.map(PathBuf::from));
    let mut broken_off = 0;
    for event in events {
        let to = old.target();
        kill_at(&old, to.path(), &to.path().join(&event));
        match LockedDir::lock(to.path()).map(drop) {
            Ok(()) => is_whole(to.path(), LAST),
            Err(OpenError::NoFormat { .. }) => {
                broken_off += 1;
                let (done, out, error) = old.restore(to.path(), &[]);
                assert!(done, "{}: {out}{error}", event.display());
                is_whole(to.path(), LAST);
            }
            Err(other) => panic!("{}: {other}", event.display()),
        }
    }
    assert!(broken_off >= 4, "{broken_off} were broken off");
}

/// The states between any two steps of the move.
#[tokio::test]
async fn a_restore_whose_parts_are_half_moved_is_not_served_and_the_next_one_goes_through() {
    let old = Old::make().await;
    let whole = old.target();
    assert!(old.restore(whole.path(), &["--to-revision", &BACKUP.to_string()]).0);
    for moved in 0..=PARTS.len() {
        for foreign in [false, true] {
            let to = old.target();
            let fresh = to.path().join("restore.new");
            fs::create_dir(&fresh).unwrap();
            fs::copy(whole.path().join("format"), fresh.join("format")).unwrap();
            for (nth, part) in PARTS.into_iter().enumerate() {
                let place = if nth < moved { to.path() } else { &fresh }.join(part);
                let from = whole.path().join(part);
                match from.is_dir() {
                    true => copy_dir(&from, &place),
                    false => fs::copy(&from, &place).map(|_| ()).unwrap(),
                }
            }
            if foreign {
                // It is not the restore's, whatever else is.
                fs::write(to.path().join("notes"), "mine").unwrap();
                let before = names(to.path());
                let (done, _, error) = old.restore(to.path(), &[]);
                assert!(!done && error.contains("notes is there"), "{error}");
                assert_eq!(names(to.path()), before);
                fs::remove_file(to.path().join("notes")).unwrap();
            }
            let refused = LockedDir::lock(to.path()).unwrap_err();
            assert!(matches!(refused, OpenError::NoFormat { .. }), "{moved} moved: {refused}");
            let (done, out, error) = old.restore(to.path(), &[]);
            assert!(done && out.contains(&format!("restored to revision {LAST}")), "{out}{error}");
            is_whole(to.path(), LAST);
        }
    }

    // Behind the last step, it is whole, and what is left goes.
    fs::create_dir(whole.path().join("restore.new")).unwrap();
    fs::write(whole.path().join("restore.new/lock"), "").unwrap();
    drop(LockedDir::lock(whole.path()).unwrap());
    is_whole(whole.path(), BACKUP);
}

#[tokio::test]
async fn a_restore_removes_nothing_that_it_has_not_made() {
    let old = Old::make().await;
    for (name, made) in [("journal", true), ("table", true), ("snapshot", false), ("notes", false)] {
        let to = old.target();
        fs::create_dir(to.path().join(name)).unwrap();
        fs::write(to.path().join(name).join("file"), "mine").unwrap();
        if made {
            // What a killed restore left, that had not come to the move; so the other is none of its parts.
            fs::create_dir_all(to.path().join("restore.new/snapshot")).unwrap();
        }
        let (done, _, error) = old.restore(to.path(), &[]);
        assert!(!done && error.contains(&format!("{name} is there")), "{error}");
        assert_eq!(fs::read_to_string(to.path().join(name).join("file")).unwrap(), "mine");
    }
}

/// A backup, a key that was disabled since, and a restore without the journal: the key works again, and
/// everybody is told.
#[tokio::test]
async fn a_restore_says_what_is_missing_until_something_has_changed() {
    const SAYS: &str =
        "everything after that revision is missing, and keys that were disabled or revoked since then work again";
    let mut old = Old::make().await;
    old.site.try_start().await.unwrap();
    let keys = old.site.admin().list(Default::default()).await.unwrap().keys;
    let leaked = keys.into_iter().find(|key| key.display_name == "Key 3").unwrap();
    old.site.admin().disable_key(&leaked).await;
    old.site.stop().await;

    let bare = |to: &Path| {
        let mut command = keyward(&["restore"]);
        command.arg(old.files.path().join("backup")).arg("--data-dir").arg(to);
        text(&command.output().unwrap())
    };
    let to = old.target();
    let (out, error) = bare(to.path());
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 5, "{out}{error}");
    assert!(lines[0].ends_with("restored to revision 4, from a backup of 4 keys at revision 4"), "{out}");
    assert_eq!(lines[1], "the log goes on in a new line, from revision 1099511627777");
    assert_eq!(
        lines[2],
        "everything after revision 4 of 2026-01-01T00:00:00Z is missing; there are 4 keys: 4 active, 0 disabled, 0 revoked"
    );
    assert!(lines[3].contains("disabled or revoked since then work again"), "{out}");
    assert!(lines[4].contains("--journal DIR"), "{out}");
    fs::copy(old.site.dir.path().join("admin.key"), to.path().join("admin.key")).unwrap();
    let admin = fs::read_to_string(to.path().join("admin.key")).unwrap().trim().to_owned();
    for change in [false, true] {
        let program = Program::serve(to.path(), &[]);
        if change {
            program.caller(&admin).disable_key(&leaked).await;
        }
        program.signal("TERM");
        let (_, log) = program.end();
        let line = log.lines().find(|line| line.contains(SAYS)).expect(&log);
        let what =
            "revision 4 of 2026-01-01T00:00:00Z, from a backup of revision 4; 4 keys: 4 active, 0 disabled, 0 revoked";
        assert!(line.contains("WARN") && line.contains(what), "{line}");
    }
    let program = Program::serve(to.path(), &[]);
    program.signal("TERM");
    assert!(!program.end().1.contains(SAYS), "something has changed since");
    is_sound(to.path());

    // With the journal, the key stays disabled; and that is said.
    let to = old.target();
    let (done, out, error) = old.restore(to.path(), &[]);
    let told = "everything after revision 9 of 2026-01-01T00:00:00Z is missing; there are 8 keys: 7 active, 1 disabled, 0 revoked";
    assert!(done && out.contains(told) && !out.contains("--journal DIR"), "{out}{error}");
}

fn is_sound(dir: &Path) {
    let (out, error) = text(&keyward(&["check", "--data-dir"]).arg(dir).output().unwrap());
    assert!(out.contains("head") && !out.contains("WRONG"), "{out}{error}");
}
