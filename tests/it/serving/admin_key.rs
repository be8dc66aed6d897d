//! `keyward admin-key`: an administrator for operators who have lost the last one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use keyward::grpc::pb;
use keyward::keyring::Keyring;
use keyward::store::local::journal::ChainKey;
use keyward::store::local::journal::scan::scan_after;
use keyward::store::record::pb::JournalEntry;
use keyward_core::event::Revision;
use keyward_core::testing::SeededEntropy;
use tempfile::TempDir;

use crate::storage::disk::{copy_dir, end_of_frames};
use crate::support::harness::{Site, disable, error_reason, journal_segment, new_key};
use crate::support::program::{keyward, text};

/// Runs the command; gives its success, what it printed and what it told.
fn admin_key(dir: &Path, args: &[&str]) -> (bool, String, String) {
    let output = keyward(&["admin-key", "--data-dir"]).arg(dir).args(args).output().unwrap();
    let (out, told) = text(&output);
    (output.status.success(), out, told)
}

fn check(dir: &Path, pepper: &Path) -> String {
    let output = keyward(&["check", "--data-dir"]).arg(dir).arg("--pepper-file").arg(pepper).output().unwrap();
    let (out, error) = text(&output);
    assert!(output.status.success() && !out.contains("WRONG"), "{out}{error}");
    out
}

/// The entries of a journal past a revision.
fn entries(dir: &Path, after: u64) -> Vec<JournalEntry> {
    let keyring = Keyring::open(&dir.join("pepper"), false, &SeededEntropy::new(1)).unwrap();
    let mut found = vec![];
    let visit = |entries: Vec<JournalEntry>, _| found.extend(entries.into_iter().filter(|e| e.revision > after));
    scan_after(&dir.join("journal"), &ChainKey(keyring.chain_key()), Revision(0), visit).unwrap();
    found
}

/// A stopped server, of whose administrators one has expired and the other is nowhere to be found; and the
/// keys that it holds, of both tenants.
struct Locked {
    site: Site,
    keys: BTreeMap<String, pb::Key>,
    last: u64,
}

impl Locked {
    async fn out() -> Self {
        let mut site = Site::start().await;
        let request = pb::CreateKeyRequest {
            tenant: "system".into(),
            expire_time: crate::support::harness::after_start(10_000),
            ..new_key("Expiring", &["keyward.admin"])
        };
        let expiring = site.caller(&site.admin().issued(request).await.secret);
        let disabled = expiring.issue("Disabled", &["a"]).await;
        expiring.issue("Kept", &["a"]).await;
        expiring.disable_key(&disabled.key).await;
        let (last, keys) = all_keys(&expiring).await;
        site.clock.advance_ms(10_000);
        site.stop().await;
        Self { site, keys, last }
    }

    fn dir(&self) -> &Path {
        self.site.dir.path()
    }
}

async fn all_keys(caller: &crate::support::harness::Handle) -> (u64, BTreeMap<String, pb::Key>) {
    let (mut keys, mut revision) = (BTreeMap::new(), 0);
    for tenant in ["default", "system"] {
        let selector = pb::KeySelector { tenant: tenant.into(), ..Default::default() };
        let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        let listed = caller.list(request).await.unwrap();
        revision = listed.revision;
        keys.extend(listed.keys.into_iter().map(|key| (format!("{tenant}/{}", key.key_id), key)));
    }
    (revision, keys)
}

#[tokio::test]
async fn without_a_watermark_an_administrator_is_made_only_if_that_is_accepted() {
    let mut locked = Locked::out().await;
    fs::remove_file(locked.dir().join("watermark")).unwrap();
    // Once more: a refusal changes nothing.
    for _ in 0..2 {
        let (done, out, told) = admin_key(locked.dir(), &[]);
        assert!(!done && out.is_empty(), "{out}");
        assert!(told.contains("watermark") && told.contains("--accept-watermark-loss"), "{told}");
        assert_eq!(entries(locked.dir(), locked.last).len(), 0);
    }
    let (done, out, told) = admin_key(locked.dir(), &["--accept-watermark-loss"]);
    assert!(done, "{told}");
    assert_eq!(entries(locked.dir(), locked.last).len(), 1);
    locked.site.try_start().await.unwrap();
    let (revision, _) = all_keys(&locked.site.caller(out.trim_end())).await;
    assert_eq!(revision, locked.last + 1);
}

#[tokio::test]
async fn a_new_administrator_is_made_and_nothing_else_changes() {
    let mut locked = Locked::out().await;
    let (done, out, told) = admin_key(locked.dir(), &[]);
    assert!(done, "{told}");
    let secret = out.strip_suffix('\n').unwrap().to_owned();
    assert!(secret.starts_with("kw_live_") && !secret.contains(char::is_whitespace), "the key alone");
    assert!(!told.contains(&secret), "and nowhere else");
    let made = entries(locked.dir(), locked.last);
    let [entry] = &made[..] else { panic!("one entry: {made:?}") };
    assert_eq!((&*entry.actor, &*entry.method, entry.redo.len()), ("keyward", "MintAdministrator", 1));
    let out = check(locked.dir(), &locked.dir().join("pepper"));
    assert!(out.contains(&format!("head   {}:", locked.last + 1)), "{out}");

    locked.site.try_start().await.unwrap();
    let admin = locked.site.caller(&secret);
    let (revision, mut keys) = all_keys(&admin).await;
    assert_eq!(revision, locked.last + 1);
    let minted = keys.remove(&entry.target).unwrap();
    assert_eq!((&*minted.created_by, minted.revision), ("keyward", revision));
    assert_eq!(keys, locked.keys);
    // It lasts, and so is not the last one when it goes.
    let bootstrap = keys.values().find(|key| key.display_name == "Bootstrap administrator").unwrap();
    admin.disable_key(bootstrap).await;
    let second = locked.site.caller(&admin.issued(administrator()).await.secret);
    second.disable_key(&minted).await;
    locked.site.stop().await;
}

fn administrator() -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Administrator", &["keyward.admin"]) }
}

#[tokio::test]
async fn journal_and_pepper_file_are_enough() {
    let locked = Locked::out().await;
    for part in ["table", "index", "admin.key"] {
        let path = locked.dir().join(part);
        drop(fs::remove_dir_all(&path));
        drop(fs::remove_file(&path));
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let pepper = elsewhere.path().join("pepper");
    fs::copy(locked.dir().join("pepper"), &pepper).unwrap();
    fs::remove_file(locked.dir().join("pepper")).unwrap();
    let (done, out, told) = admin_key(locked.dir(), &[]);
    assert!(!done && out.is_empty() && told.contains("the pepper file"), "{told}");
    let (done, out, told) = admin_key(locked.dir(), &["--pepper-file", pepper.to_str().unwrap()]);
    assert!(done, "{told}");
    check(locked.dir(), &pepper);
    let mut site = locked.site;
    site.try_start_with(|settings| settings.pepper_file = pepper.clone()).await.unwrap();
    site.caller(out.trim()).list(pb::ListKeysRequest::default()).await.unwrap();
    site.stop().await;
}

#[tokio::test]
async fn it_is_refused_while_a_server_runs_and_where_there_is_no_log_of_this_pepper_file() {
    let mut site = Site::start().await;
    let before = site.admin().head(pb::GetHeadRequest {}).await.unwrap();
    let (done, out, told) = admin_key(site.dir.path(), &[]);
    assert!(!done && out.is_empty() && told.contains("is in use by process"), "{told}");
    assert_eq!(site.admin().head(pb::GetHeadRequest {}).await.unwrap(), before);
    site.stop().await;

    let other = Site::start().await;
    let pepper = other.dir.path().join("pepper");
    let mut text = fs::read_to_string(&pepper).unwrap();
    text = text.replace("root ", "root ff").lines().map(|line| format!("{}\n", &line[..line.len().min(69)])).collect();
    let foreign = tempfile::tempdir().unwrap();
    let path = foreign.path().join("pepper");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::metadata(&pepper).unwrap().permissions()).unwrap();
    let journal = fs::read(journal_segment(&site.dir)).unwrap();
    let (done, out, told) = admin_key(site.dir.path(), &["--pepper-file", path.to_str().unwrap()]);
    assert!(!done && out.is_empty(), "{told}");
    assert!(fs::read(journal_segment(&site.dir)).unwrap() == journal, "{told}");

    let empty = tempfile::tempdir().unwrap();
    let (done, out, told) = admin_key(empty.path(), &[]);
    assert!(!done && out.is_empty() && told.contains("has no data of keyward"), "{told}");
}

/// An administrator whose key was lost would count as a lasting one.
#[tokio::test]
async fn a_key_that_cannot_be_handed_over_is_not_made() {
    let locked = Locked::out().await;
    let mut command = keyward(&["admin-key", "--data-dir"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.arg(locked.dir()).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let (_, told) = text(&output);
    assert!(!output.status.success() && told.contains("nothing was changed"), "{told}");
    assert!(entries(locked.dir(), locked.last).is_empty());
}

/// The states that a crash leaves between any two steps: the frame half written, and the watermark not yet.
#[tokio::test]
async fn a_crash_anywhere_leaves_it_made_or_not_made() {
    let locked = Locked::out().await;
    let before = tempfile::tempdir().unwrap();
    copy_dir(locked.dir(), before.path());
    let old = fs::read(journal_segment(&locked.site.dir)).unwrap();
    let (done, _, told) = admin_key(locked.dir(), &[]);
    assert!(done, "{told}");
    let new = fs::read(journal_segment(&locked.site.dir)).unwrap();
    let (begin, end) = (end_of_frames(&old), end_of_frames(&new));
    assert!(begin < end && old[..begin] == new[..begin]);
    for cut in [begin + 1, begin + 4, begin + 24, (begin + end) / 2, end - 8, end] {
        let crashed: TempDir = tempfile::tempdir().unwrap();
        copy_dir(before.path(), crashed.path());
        fs::set_permissions(
            crashed.path().join("pepper"),
            fs::metadata(locked.dir().join("pepper")).unwrap().permissions(),
        )
        .unwrap();
        let mut torn = new[..cut].to_vec();
        torn.resize(old.len(), 0);
        fs::write(journal_segment(&crashed), torn).unwrap();
        let (done, out, told) = admin_key(crashed.path(), &[]);
        assert!(done, "{cut}: {told}");
        check(crashed.path(), &crashed.path().join("pepper"));
        // The padding behind a frame is zero, so the last of these is whole.
        let made = entries(crashed.path(), locked.last).len();
        assert_eq!(made, if cut == end { 2 } else { 1 }, "cut at {cut} of {begin} to {end}");
        let site = Site::on(crashed).await;
        site.caller(out.trim()).list(pb::ListKeysRequest::default()).await.unwrap();
    }
}

/// Records of a clock that was ahead: the log's times never run back.
#[tokio::test]
async fn it_is_stamped_with_the_latest_time_of_the_log() {
    let mut site = Site::start().await;
    site.clock.advance_ms(100 * 31_557_600_000);
    site.admin().issue("Later", &[]).await;
    site.stop().await;
    let (_, out, told) = admin_key(site.dir.path(), &[]);
    site.try_start().await.unwrap();
    let admin = site.caller(out.trim());
    let (_, keys) = all_keys(&admin).await;
    let later = keys.values().find(|key| key.display_name == "Later").unwrap();
    let minted = keys.values().find(|key| key.display_name == "Administrator made offline").expect(&told);
    assert_eq!(minted.create_time, later.create_time);
    let refused = admin.disable(disable(minted)).await.unwrap_err();
    assert_eq!(error_reason(&refused), "OWN_KEY");
    site.stop().await;
}
