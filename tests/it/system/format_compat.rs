//! Old bytes can be read for ever: a data directory and a backup of every format version so far.
//!
//! `testdata/data-directories/` has a directory for each version; `keys.txt` beside its data lists what must
//! be read from it. If the directory of the present version is missing, the test makes it and fails: review
//! and keep it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::grpc::pb::{self, Reason};
use keyward::keyring::Keyring;
use keyward::offline::{Source, check, check_backup, restore_backup};
use keyward::store::local::{LocalStore, LockedDir, StoreOptions};
use keyward::store::{RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::ActorId;
use keyward_core::record::{Deletion, Hold, IssuerRecord, KeyRecord, OwnerRecord, State};
use keyward_core::testing::stamp;
use tempfile::TempDir;

use crate::support::harness::{START, Site, ask, small_settings, strings};
use crate::support::local_store::options;
use crate::support::workshop::Workshop;

/// Makes a missing directory: the data of a new server, and of one that was restored from a backup.
const PRESENT: [&str; 2] = ["v2", "v2-restored"];
/// Kept as older programs wrote them.
const PAST: [&str; 2] = ["v1", "v1-restored"];

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-directories")
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() { copy_dir(&path, &to) } else { assert!(fs::copy(&path, &to).is_ok()) }
    }
}

/// One line per secret: verdict on it alone, verdict with scope `orders.read`, and the key's id, owner and
/// label, if callers are told of it.
async fn lines(site: &Site, secrets: &[String]) -> String {
    let mut text = String::new();
    for secret in secrets {
        let admin = site.admin();
        let alone = admin.ask(ask(secret)).await.unwrap();
        let scoped = pb::VerifyRequest { all_scopes: strings(&["orders.read"]), ..ask(secret) };
        let scoped = admin.ask(scoped).await.unwrap().reason();
        let verdicts = (alone.reason().as_str_name(), scoped.as_str_name());
        let Some(key_id) = alone.key.map(|key| key.key_id) else {
            writeln!(text, "{secret} {} {}", verdicts.0, verdicts.1).unwrap();
            continue;
        };
        let request = pb::GetKeyRequest { key_id: key_id.clone(), ..Default::default() };
        let key = admin.get(request).await.unwrap().key.unwrap();
        writeln!(text, "{secret} {} {} {key_id} {} {}", verdicts.0, verdicts.1, key.owner, key.display_name).unwrap();
    }
    text
}

/// Changes of the kinds that no call makes. Returns the secrets that a rotation gave.
async fn live_on(site: &Site) -> [String; 2] {
    let workshop = Workshop::open(site);
    let rotated = [
        workshop.rotate("default", "active-1", None).await,
        workshop.rotate("default", "active-1", Some(START.0 + 1_000)).await,
    ];
    let resume_time = Some(UnixMillis(START.0 + 1_000_000));
    workshop
        .change("default", "suspended-6", |key| {
            (key.spec.policy.state, key.resume_time) = (State::Disabled, resume_time)
        })
        .await;
    let deletion = Some(Deletion { time: START, purge_time: UnixMillis(START.0 + 1_000_000) });
    workshop.change("default", "deleted-7", |key| key.deletion = deletion).await;
    let KeyRecord { tenant, key_id, revision, .. } = workshop.key("default", "purged-8").await;
    workshop.commit(vec![RecordWrite::Purge { tenant: tenant.clone(), key_id, revision }]).await;
    let hold = Hold { suspended: true, reason: "unpaid".into(), ..Hold::default() };
    let (owner, revision) = ("customer-9".to_owned(), Revision(0));
    let owner = OwnerRecord { tenant, owner, hold: hold.clone(), updated: stamp(), revision };
    let issuer = IssuerRecord { actor: ActorId::parse("nobody").unwrap(), hold, updated: stamp(), revision };
    workshop.commit(vec![RecordWrite::Owner(Box::new(owner)), RecordWrite::Issuer(Box::new(issuer))]).await;
    workshop.close().await;
    rotated
}

async fn make(name: &str) {
    let mut site = Site::start_small().await;
    let (admin, mut secrets) = (site.admin(), vec![]);
    for (id, scopes) in [
        ("active-1", &["orders.*"][..]),
        ("scoped-2", &["orders.read"]),
        ("disabled-3", &["orders.*"]),
        ("revoked-4", &[]),
        ("relabelled-5", &[]),
        ("suspended-6", &["orders.*"]),
        ("deleted-7", &["orders.*"]),
        ("purged-8", &["orders.*"]),
        ("held-9", &["orders.*"]),
    ] {
        let request = pb::CreateKeyRequest {
            key_id: id.into(),
            owner: if id == "held-9" { "customer-9" } else { "customer-7" }.into(),
            labels: [("team".to_owned(), "blue".to_owned())].into(),
            ..crate::support::harness::new_key(&format!("Key {id}"), scopes)
        };
        let issued = admin.issued(request).await;
        secrets.push(issued.secret);
        match id {
            "disabled-3" => drop(admin.disable_key(&issued.key).await),
            "revoked-4" => {
                let request = pb::RevokeKeyRequest { key_id: id.into(), reason: "leaked".into(), ..Default::default() };
                admin.revoke(request).await.unwrap();
            }
            "relabelled-5" => {
                let key = pb::Key { display_name: "Another label".into(), ..issued.key };
                admin.update(crate::support::harness::update(&key, &["display_name"])).await.unwrap();
            }
            _ => {}
        }
    }
    site.stop().await;
    secrets.extend(live_on(&site).await);
    site.try_start().await.unwrap();
    let admin = site.admin();
    let to = testdata().join(name);
    if name.ends_with("-restored") {
        let file = to.join("backup");
        fs::create_dir_all(&to).unwrap();
        let (mut pieces, mut bytes) = (admin.backup().await.unwrap(), vec![]);
        while let Some(response) = pieces.message().await.unwrap() {
            bytes.extend(response.piece);
        }
        fs::write(&file, bytes).unwrap();
        site.stop().await;
        for part in ["journal", "table"] {
            fs::remove_dir_all(site.dir.path().join(part)).unwrap();
        }
        for part in ["watermark", "format"] {
            fs::remove_file(site.dir.path().join(part)).unwrap();
        }
        fs::rename(site.dir.path().join("admin.key"), to.join("admin.key")).unwrap();
        restore_backup(
            &small_settings(site.dir.path()),
            &Source { backup: file, journal: None, to: None, same_line: false },
        )
        .unwrap();
        fs::rename(to.join("admin.key"), site.dir.path().join("admin.key")).unwrap();
        site.try_start().await.unwrap();
        let request =
            pb::CreateKeyRequest { key_id: "later-10".into(), ..crate::support::harness::new_key("Later", &[]) };
        secrets.push(site.admin().issued(request).await.secret);
    }
    fs::create_dir_all(&to).unwrap();
    fs::write(to.join("keys.txt"), lines(&site, &secrets).await).unwrap();
    site.stop().await;
    copy_dir(site.dir.path(), &to.join("data"));
    fs::remove_file(to.join("data/lock")).unwrap();
}

#[tokio::test]
async fn every_data_directory_there_has_been_is_opened_for_ever() {
    for name in PRESENT {
        if !testdata().join(name).exists() {
            make(name).await;
            panic!("testdata/data-directories/{name} was missing and has been made; look at it, and keep it");
        }
    }
    let mut opened = 0;
    for entry in fs::read_dir(testdata()).unwrap() {
        let golden = entry.unwrap().path();
        let expected = fs::read_to_string(golden.join("keys.txt")).unwrap();
        assert!(expected.lines().count() >= 5, "{}", golden.display());
        let secrets: Vec<_> = expected.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        // As it is, and without the table, which is then rebuilt from the rest.
        for without_table in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            copy_dir(&golden.join("data"), dir.path());
            private(&dir.path().join("pepper"));
            if without_table {
                fs::remove_dir_all(dir.path().join("table")).unwrap();
            }
            let format = fs::read(dir.path().join("format")).unwrap();
            is_whole(dir.path());
            assert_eq!(fs::read(dir.path().join("format")).unwrap(), format, "a check takes nothing over");
            let mut site = Site::on(dir).await;
            assert_eq!(lines(&site, &secrets).await, expected, "{}", golden.display());
            assert_eq!(site.admin().reason(site.admin_secret()).await, Reason::Ok);
            let later = site.admin().issue("Goes on", &[]).await;
            site.stop().await;
            is_whole(site.dir.path());
            assert_eq!(fs::read(site.dir.path().join("format")).unwrap(), b"keyward-data 2\n");
            site.try_start().await.unwrap();
            assert_eq!(lines(&site, &secrets).await, expected, "{}", golden.display());
            assert_eq!(site.admin().reason(&later.secret).await, Reason::Ok);
            site.stop().await;
            assert!(!site.dir.path().join("table.broken").exists(), "{}", golden.display());
        }
        opened += 1;
    }
    assert!(opened >= PRESENT.len() + PAST.len());
}

fn is_whole(dir: &Path) {
    let findings = check(&small_settings(dir)).unwrap().findings;
    assert!(findings.iter().all(|finding| !finding.doubt), "{}: {findings:?}", dir.display());
}

/// A directory of version 1, which can be opened.
fn of_version_1() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&testdata().join("v1/data"), dir.path());
    private(&dir.path().join("pepper"));
    dir
}

/// Every file but those of sled, which writes when it opens, and the lock.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.file_name().and_then(|name| name.to_str()).unwrap() {
            "lock" | "table" => {}
            _ if path.is_dir() => files.extend(contents(&path)),
            _ => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    files
}

/// What a takeover has done by then.
#[derive(Debug, PartialEq, Eq)]
struct TakenOver {
    format: bool,
    watermark: bool,
    segment: bool,
}

fn taken_over(dir: &Path) -> TakenOver {
    TakenOver {
        format: fs::read(dir.join("format")).unwrap() == b"keyward-data 2\n",
        watermark: fs::read(dir.join("watermark")).unwrap()[4] == 2,
        segment: dir.join("journal/000000000002.kwj").exists(),
    }
}

/// The next file of each step is in the way of a directory: so the start ends there, as by a crash.
#[tokio::test]
async fn a_takeover_that_ends_at_any_step_is_completed_by_the_next_start() {
    let expected = fs::read_to_string(testdata().join("v1/keys.txt")).unwrap();
    let secrets: Vec<_> = expected.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    let steps = [
        ("format.new", TakenOver { format: false, watermark: false, segment: false }),
        ("watermark.new", TakenOver { format: true, watermark: false, segment: false }),
        ("journal/000000000002.kwj.new", TakenOver { format: true, watermark: true, segment: false }),
    ];
    for (obstacle, done) in steps {
        let dir = of_version_1();
        let path = dir.path();
        let before = contents(path);
        fs::create_dir(path.join(obstacle)).unwrap();
        let (entropy, options) = (SystemEntropy, options(64 * 1024));
        let keyring = Keyring::open(&path.join("pepper"), false, &entropy).unwrap();
        let options = StoreOptions { chain_key: keyring.chain_key(), ..options };
        let open = || LocalStore::open(LockedDir::lock(path).unwrap(), &options, Arc::new(()));
        assert!(open().is_err(), "{obstacle}");
        assert_eq!(taken_over(path), done);
        fs::remove_dir(path.join(obstacle)).unwrap();
        if done == (TakenOver { format: false, watermark: false, segment: false }) {
            assert_eq!(contents(path), before, "nothing is written before the format");
        }
        // What is taken over by half is whole: for a check, and for the next start.
        is_whole(path);
        let log = |path: &Path| fs::read(path.join("watermark")).unwrap()[48..64].to_vec();
        let begun = done.watermark.then(|| log(path));
        let store = open().unwrap();
        assert_eq!(taken_over(path), TakenOver { format: true, watermark: true, segment: true });
        assert_eq!(store.table_stats().rebuilds, 0);
        store.close().await.unwrap();
        drop(store);
        assert!(begun.is_none_or(|begun| begun == log(path)), "the log keeps the id that it was given");
        let old = path.join("journal/000000000001.kwj");
        assert_eq!(fs::read(&old).unwrap(), before[&old], "a segment of version 1 is never written to");
        let mut site = Site::on(dir).await;
        assert_eq!(lines(&site, &secrets).await, expected, "{obstacle}");
        site.stop().await;
        is_whole(site.dir.path());
    }
}

/// A start on a full disk answers verdicts, and leaves everything as it is.
#[test]
fn a_start_without_room_takes_nothing_over() {
    let dir = of_version_1();
    let before = contents(dir.path());
    let keyring = Keyring::open(&dir.path().join("pepper"), false, &SystemEntropy).unwrap();
    let options = StoreOptions { chain_key: keyring.chain_key(), ..options(64 * 1024) };
    let locked = LockedDir::lock_unchanged(dir.path()).unwrap();
    assert!(LocalStore::fill(&locked, &options, &()).unwrap().is_some());
    assert_eq!(contents(dir.path()), before);
}

#[tokio::test]
async fn every_backup_there_has_been_is_restored_for_ever() {
    for (name, keys) in [("v1-restored", 6), ("v2-restored", 9)] {
        let golden = testdata().join(name);
        assert_eq!(check_backup(&golden.join("backup")).unwrap().keys, keys);
        let dir = tempfile::tempdir().unwrap();
        fs::copy(golden.join("data/pepper"), dir.path().join("pepper")).unwrap();
        private(&dir.path().join("pepper"));
        let source = Source { backup: golden.join("backup"), journal: None, to: None, same_line: false };
        restore_backup(&small_settings(dir.path()), &source).unwrap();
        is_whole(dir.path());
        fs::copy(golden.join("data/admin.key"), dir.path().join("admin.key")).unwrap();
        let mut site = Site::on(dir).await;
        let expected = fs::read_to_string(golden.join("keys.txt")).unwrap();
        let expected: String =
            expected.lines().filter(|line| !line.contains(" later-")).flat_map(|line| [line, "\n"]).collect();
        let secrets: Vec<_> = expected.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        assert_eq!(lines(&site, &secrets).await, expected);
        site.stop().await;
    }
}

/// What a later program wrote is refused, with a clear message.
#[tokio::test]
async fn what_a_later_program_wrote_is_refused_and_named() {
    let golden = testdata().join("v1-restored/data");
    let crc = |bytes: &[u8]| crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(bytes).to_le_bytes();
    let (segment, snapshot) = ("journal/000000000001.kwj", fs::read_dir(golden.join("snapshot")).unwrap().next());
    let snapshot = format!("snapshot/{}", snapshot.unwrap().unwrap().file_name().to_str().unwrap());
    for (file, crc_at, without_table) in [(segment, 56, false), (&*snapshot, 96, true)] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&golden, dir.path());
        private(&dir.path().join("pepper"));
        let path = dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 9;
        let sum = crc(&bytes[..crc_at]);
        bytes[crc_at..crc_at + 4].copy_from_slice(&sum);
        fs::write(&path, bytes).unwrap();
        if without_table {
            fs::remove_dir_all(dir.path().join("table")).unwrap();
        }
        let refused = Site::try_on(dir).await.err().unwrap().to_string();
        assert!(refused.contains("version 9, and this program knows"), "{file}: {refused}");
    }
}

fn private(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}
