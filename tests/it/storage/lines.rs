//! Lines: what a restore or a salvage begins has revisions that the lost log never had.

use std::fs;
use std::path::{Path, PathBuf};

use keyward::grpc::pb;
use tempfile::TempDir;
use tonic::Code;

use crate::storage::salvage::{damage, frame_at};
use crate::support::harness::{Issued, Site, ask, error_reason, journal_segment, update};
use crate::support::program::{keyward, text};

/// Revisions in a line.
const LINE: u64 = 1 << 40;

/// A server with a key, and its backup.
struct Old {
    site: Site,
    files: TempDir,
    key: Issued,
}

impl Old {
    async fn make() -> Self {
        let site = Site::start().await;
        let key = site.admin().issue("Key", &[]).await;
        let files = tempfile::tempdir().unwrap();
        let old = Self { site, files, key };
        old.back_up().await;
        old
    }

    /// Makes the backup anew.
    async fn back_up(&self) {
        let mut pieces = self.site.admin().backup().await.unwrap();
        let mut bytes = vec![];
        while let Some(response) = pieces.message().await.unwrap() {
            bytes.extend(response.piece);
        }
        fs::write(self.backup(), bytes).unwrap();
    }

    fn backup(&self) -> PathBuf {
        self.files.path().join("backup")
    }

    async fn read(&self) -> pb::Key {
        let request = pb::GetKeyRequest { key_id: self.key.key.key_id.clone(), ..Default::default() };
        self.site.admin().get(request).await.unwrap().key.unwrap()
    }

    async fn rename(&self, name: &str) -> pb::Key {
        let key = pb::Key { display_name: name.into(), ..self.read().await };
        self.site.admin().update(update(&key, &["display_name"])).await.unwrap().key.unwrap()
    }

    /// Stops the server, and restores its directory from the backup, and from its journal if `args` want it
    /// (`JOURNAL`).
    async fn restore(&mut self, args: &[&str]) -> String {
        self.site.stop().await;
        let (dir, moved) = (self.site.dir.path().to_owned(), self.files.path().join("old"));
        if moved.exists() {
            fs::remove_dir_all(&moved).unwrap();
        }
        fs::create_dir(&moved).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let stays = ["pepper", "lock"].iter().any(|name| entry.file_name() == *name);
            if !stays {
                fs::rename(entry.path(), moved.join(entry.file_name())).unwrap();
            }
        }
        let journal = moved.join("journal");
        let args = args.iter().map(|arg| if *arg == "JOURNAL" { journal.to_str().unwrap() } else { arg });
        let restore = keyward(&["restore"]).arg(self.backup()).args(args).arg("--data-dir").arg(&dir).output().unwrap();
        let (out, error) = text(&restore);
        assert!(restore.status.success(), "{out}{error}");
        let (_, log) = is_whole(&dir);
        fs::rename(moved.join("admin.key"), dir.join("admin.key")).unwrap();
        self.site.try_start().await.unwrap();
        assert_eq!(log, is_whole_copy(&dir).1, "a start changes no line");
        out
    }
}

/// The change of a name, if the key has the etag yet that was read.
fn if_unchanged(key: &pb::Key) -> pb::UpdateKeyRequest {
    pb::UpdateKeyRequest { etag: key.etag.clone(), ..update(key, &["display_name"]) }
}

/// The line and the log id of a directory in which `keyward check` finds nothing wrong.
fn is_whole(dir: &Path) -> (u64, String) {
    let (out, error) = text(&keyward(&["check", "--data-dir"]).arg(dir).output().unwrap());
    assert!(!out.contains("WRONG") && out.contains("the chain holds"), "{out}{error}");
    let said = out.split_once("; line ").unwrap().1;
    let (line, log) = said.split_once(", log ").unwrap();
    (line.parse().unwrap(), log[..32].to_owned())
}

/// As [`is_whole`], of a directory that is served.
fn is_whole_copy(dir: &Path) -> (u64, String) {
    let copy = tempfile::tempdir().unwrap();
    for part in ["format", "pepper", "watermark"] {
        fs::copy(dir.join(part), copy.path().join(part)).unwrap();
    }
    for part in ["journal", "snapshot"].iter().filter(|part| dir.join(part).exists()) {
        crate::storage::disk::copy_dir(&dir.join(part), &copy.path().join(part));
    }
    is_whole(copy.path())
}

#[tokio::test]
async fn an_etag_of_a_change_that_a_restore_lost_matches_nothing() {
    let mut old = Old::make().await;
    assert_eq!(is_whole_copy(old.site.dir.path()).0, 0);
    old.rename("Once").await;
    let lost = old.rename("Twice").await;
    assert!(lost.revision < LINE);
    let out = old.restore(&[]).await;
    // Older programs know no lines; what they know is all there.
    let mut first_form = old.site.admin().backup_as(1).await.unwrap();
    while first_form.message().await.unwrap().is_some() {}
    assert!(out.contains(&format!("the log goes on in a new line, from revision {}", LINE + 1)), "{out}");
    assert!(old.read().await.revision < LINE, "what the backup has keeps its revision");
    // In the same line this change would have the revision, and so the etag, of the one that was lost.
    let changed = old.rename("After the restore").await;
    assert_eq!(changed.revision, LINE + 2);
    let key = pb::Key { display_name: "By who knows the lost one".into(), ..lost };
    let refused = old.site.admin().update(if_unchanged(&key)).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Aborted, "ETAG_MISMATCH"));
    old.site.restart().await;
    assert_eq!(old.read().await, changed);
    old.site.stop().await;
    assert_eq!(is_whole(old.site.dir.path()).0, 1);
}

#[tokio::test]
async fn each_restore_begins_a_line_with_a_log_id_of_its_own() {
    let mut old = Old::make().await;
    let mut logs = vec![is_whole_copy(old.site.dir.path())];
    for number in 1..=3 {
        old.rename(&format!("Before restore {number}")).await;
        old.restore(&[]).await;
        logs.push(is_whole_copy(old.site.dir.path()));
        assert_eq!(old.rename(&format!("After restore {number}")).await.revision, number * LINE + 2);
        old.back_up().await;
    }
    assert!(logs.iter().map(|(line, _)| *line).eq(0..=3), "{logs:?}");
    logs.dedup_by(|a, b| a.1 == b.1);
    assert_eq!(logs.len(), 4, "{logs:?}");
}

#[tokio::test]
async fn a_journal_of_several_lines_is_restored_and_the_next_line_is_past_all_of_them() {
    let mut old = Old::make().await;
    old.rename("In line 0").await;
    old.restore(&["--journal", "JOURNAL"]).await;
    assert_eq!(old.read().await.display_name, "In line 0");
    let last = old.rename("In line 1").await;
    assert_eq!(last.revision, LINE + 2);
    // The backup is of line 0 yet: the journal leads through the end of that line.
    old.restore(&["--journal", "JOURNAL"]).await;
    assert_eq!(old.read().await, last);
    assert_eq!(old.rename("In line 2").await.revision, 2 * LINE + 2);
    // Up to a revision of line 0: lines 1 and 2 are lost, and their revisions are not used again.
    old.restore(&["--journal", "JOURNAL", "--to-revision", "3"]).await;
    assert_eq!((old.read().await.display_name, old.read().await.revision), ("In line 0".to_owned(), 3));
    assert_eq!(old.rename("In line 3").await.revision, 3 * LINE + 2);
    old.site.stop().await;
    assert_eq!(is_whole(old.site.dir.path()).0, 3);
    // No change has a revision between two lines.
    let dir = tempfile::tempdir().unwrap();
    fs::copy(old.site.dir.path().join("pepper"), dir.path().join("pepper")).unwrap();
    let journal = old.site.dir.path().join("journal");
    let between = (LINE - 1).to_string();
    let mut restore = keyward(&["restore"]);
    restore.arg(old.backup()).arg("--journal").arg(journal).args(["--to-revision", &between]);
    let (out, error) = text(&restore.arg("--data-dir").arg(dir.path()).output().unwrap());
    assert!(error.contains(&format!("revision {between} is not to be had")), "{out}{error}");
}

#[tokio::test]
async fn a_restore_of_the_whole_journal_may_go_on_in_the_same_line() {
    let mut old = Old::make().await;
    let before = is_whole_copy(old.site.dir.path());
    let last = old.rename("The last one").await;
    let out = old.restore(&["--journal", "JOURNAL", "--same-line"]).await;
    assert!(out.contains(&format!("the log goes on in its line, from revision {}", last.revision + 1)), "{out}");
    assert_eq!((old.read().await, is_whole_copy(old.site.dir.path())), (last.clone(), before));
    assert_eq!(old.rename("After it").await.revision, last.revision + 2);
    old.site.stop().await;
    // Not with a part of it, and not if nothing says where it ends.
    for args in [&["--same-line"][..], &["--journal", "JOURNAL", "--same-line", "--to-revision", "4"]] {
        let restore = keyward(&["restore"]).arg(old.backup()).args(args).output().unwrap();
        assert!(!restore.status.success());
    }
    // Nor with a journal whose end may have been lost, or that does not reach the backup.
    let watermark = old.site.dir.path().join("watermark");
    fs::rename(&watermark, old.files.path().join("watermark")).unwrap();
    let empty = tempfile::tempdir().unwrap();
    for (journal, told) in [
        (old.site.dir.path().join("journal"), "does not show that all of"),
        (empty.path().to_owned(), "does not go on from the backup"),
    ] {
        let to = tempfile::tempdir().unwrap();
        fs::copy(old.site.dir.path().join("pepper"), to.path().join("pepper")).unwrap();
        let mut restore = keyward(&["restore"]);
        restore.arg(old.backup()).arg("--journal").arg(journal).arg("--same-line");
        let (out, error) = text(&restore.arg("--data-dir").arg(to.path()).output().unwrap());
        assert!(error.contains(told), "{out}{error}");
    }
    fs::rename(old.files.path().join("watermark"), &watermark).unwrap();
    let segment = journal_segment(&old.site.dir);
    let bytes = fs::read(&segment).unwrap();
    damage(&segment, frame_at(&bytes, last.revision + 2));
    let to = tempfile::tempdir().unwrap();
    fs::copy(old.site.dir.path().join("pepper"), to.path().join("pepper")).unwrap();
    let mut restore = keyward(&["restore"]);
    restore.arg(old.backup()).arg("--journal").arg(old.site.dir.path().join("journal")).arg("--same-line");
    let (out, error) = text(&restore.arg("--data-dir").arg(to.path()).output().unwrap());
    assert!(error.contains("cannot go on in the same line"), "{out}{error}");
}

#[tokio::test]
async fn a_salvage_begins_a_line_and_another_one_the_next() {
    let mut old = Old::make().await;
    let mut lost = old.rename("Lost").await;
    for number in 1..=2 {
        old.site.stop().await;
        let dir = old.site.dir.path();
        let segment = journal_segment(&old.site.dir);
        damage(&segment, frame_at(&fs::read(&segment).unwrap(), lost.revision));
        fs::remove_dir_all(dir.join("table")).unwrap();
        let salvage = keyward(&["rebuild", "--accept-data-loss", "--data-dir"]).arg(dir).output().unwrap();
        let (out, error) = text(&salvage);
        let gone = format!("gone: the changes {0} to {0}", lost.revision);
        assert!(salvage.status.success() && out.contains(&gone), "{out}{error}");
        assert_eq!(is_whole(dir).0, number);
        old.site.try_start().await.unwrap();
        let key = pb::Key { display_name: "By who knows the lost one".into(), ..lost };
        let refused = old.site.admin().update(if_unchanged(&key)).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Aborted, "ETAG_MISMATCH"));
        lost = old.rename("Lost too").await;
        assert_eq!(lost.revision, number * LINE + 2);
    }
}

#[tokio::test]
async fn a_min_revision_of_a_change_that_was_lost_is_refused_for_ever() {
    let mut old = Old::make().await;
    let kept = old.read().await.revision;
    let lost = old.rename("Lost").await.revision;
    let refused = async |old: &Old, revision: u64| {
        let request = pb::VerifyRequest { min_revision: revision, ..ask(&old.key.secret) };
        let admin = old.site.admin();
        let one = admin.ask(request.clone()).await;
        // In a batch the item alone is refused.
        let batch = admin.ask_all(pb::BatchVerifyRequest { requests: vec![request] }).await.unwrap();
        let Some(item) = batch.results.into_iter().next().unwrap().result else { panic!("no result") };
        match (one, item) {
            (Ok(_), pb::batch_verify_result::Result::Response(_)) => None,
            (Err(one), pb::batch_verify_result::Result::Error(item)) => {
                assert_eq!((one.code(), item.code), (Code::FailedPrecondition, Code::FailedPrecondition as i32));
                Some(error_reason(&one))
            }
            (one, item) => panic!("{one:?}, but in a batch {item:?}"),
        }
    };
    let another_line = Some("REVISION_OF_ANOTHER_LINE".to_owned());
    old.restore(&[]).await;
    let mut gaps = vec![(kept, lost)];
    for number in 1..=2_u64 {
        for restart in [false, true] {
            if restart {
                old.site.restart().await;
            }
            for (kept, lost) in &gaps {
                assert_eq!(refused(&old, *kept).await, None);
                let base = (lost / LINE + 1) * LINE;
                for revision in [kept + 1, *lost, base] {
                    assert_eq!(refused(&old, revision).await, another_line, "{revision} in line {number}");
                }
                assert_eq!(refused(&old, base + 1).await, None, "the entry of the restore");
            }
            assert_eq!(refused(&old, number * LINE + 1_000).await, Some("REVISION_NOT_REACHED".to_owned()));
        }
        if number == 1 {
            old.back_up().await;
            let kept = old.read().await.revision.max(LINE + 1);
            let lost = old.rename("Lost too").await.revision;
            old.restore(&[]).await;
            gaps.push((kept, lost));
        }
    }
}
