//! A first administrator whose key was made before the first start, so that nobody needs to fetch it.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use keyward::grpc::pb;
use keyward::keyring::Keyring;
use keyward_core::testing::SeededEntropy;
use tempfile::TempDir;
use tonic::Code;

use crate::support::harness::new_key;
use crate::support::program::{Killed, Program, keyward, text};

const FILE: &str = "KEYWARD_BOOTSTRAP_ADMIN_FILE";
const DIGEST: &str = "KEYWARD_BOOTSTRAP_ADMIN_DIGEST";

/// An empty data directory, and beside it a file with a secret.
struct Place {
    dir: TempDir,
    secret: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = keyward(&["make-secret"]).output().unwrap();
        assert!(made.status.success());
        let (line, told) = text(&made);
        assert_eq!((told.as_str(), line.lines().count()), ("", 1));
        let place = Self { dir, secret: line.trim_end().to_owned() };
        place.write(&line, 0o600);
        place
    }

    fn write(&self, contents: &str, mode: u32) {
        fs::write(self.file(), contents).unwrap();
        fs::set_permissions(self.file(), Permissions::from_mode(mode)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("secret")
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn pepper(&self) -> PathBuf {
        self.path("pepper")
    }

    fn given(&self) -> String {
        self.file().display().to_string()
    }

    /// What `keyward digest` prints of the secret.
    fn digest(&self) -> String {
        let mut command = keyward(&["digest", "--pepper-file"]);
        let command = command.arg(self.pepper()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", self.secret).unwrap();
        let (digest, _) = text(&child.wait_with_output().unwrap());
        digest.trim_end().to_owned()
    }

    fn serve(&self, environment: &[(&str, &str)]) -> Program {
        let pepper = self.pepper();
        Program::serve_in(&self.data(), &["--pepper-file", pepper.to_str().unwrap()], environment)
    }

    /// A start that must fail; what it says.
    fn refused(&self, environment: &[(&str, &str)]) -> String {
        let mut command = keyward(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(self.data()).arg("--pepper-file").arg(self.pepper()).envs(environment.iter().copied());
        let mut child = Killed(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut told = String::new();
        for line in BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok) {
            assert!(!line.contains("listening"), "it starts: {line}");
            told += &(line + "\n");
        }
        assert!(!child.0.wait().unwrap().success());
        told
    }
}

/// The secret is an administrator's, and nobody else's key was made.
async fn is_the_administrator(place: &Place, program: &Program) {
    let caller = program.caller(&place.secret);
    caller.issued(new_key("billing", &["keys.read"])).await;
    let selector = Some(pb::KeySelector { tenant: "system".into(), ..Default::default() });
    let keys = caller.list(pb::ListKeysRequest { selector, ..Default::default() }).await.unwrap().keys;
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(!place.data().join("admin.key").exists());
}

async fn stopped(program: Program) -> String {
    program.signal("TERM");
    let (code, log) = program.end();
    assert_eq!(code, Some(0), "{log}");
    log
}

#[tokio::test]
async fn the_secret_in_a_file_is_the_first_administrators_and_later_starts_pass_it_over() {
    let place = Place::new();
    let program = place.serve(&[(FILE, &place.given())]);
    is_the_administrator(&place, &program).await;
    let log = stopped(program).await;
    assert!(log.contains("the secret in bootstrap_admin_file is the first administrator's"), "{log}");
    assert!(!log.contains(&place.secret));

    // Neither its contents nor that it is there matters any more.
    let other = Place::new();
    for change in [|_: &Path| (), |file: &Path| fs::remove_file(file).unwrap()] {
        change(&other.file());
        let program = place.serve(&[(FILE, &other.given())]);
        is_the_administrator(&place, &program).await;
        let refused = program.caller(&other.secret).create(new_key("mail", &[])).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let log = stopped(program).await;
        let lines = log.lines().filter(|line| line.contains("bootstrap_admin_file")).collect::<Vec<_>>();
        assert!(matches!(lines[..], [line] if line.contains("is passed over")), "{log}");
    }
}

#[tokio::test]
async fn the_secret_behind_a_digest_is_the_first_administrators() {
    let place = Place::new();
    Keyring::open(&place.pepper(), true, &SeededEntropy::new(7)).unwrap();
    let digest = place.digest();
    let program = place.serve(&[(DIGEST, &digest)]);
    is_the_administrator(&place, &program).await;
    stopped(program).await;
    let program = place.serve(&[(DIGEST, &digest)]);
    let log = stopped(program).await;
    assert!(log.contains("bootstrap_admin_digest is passed over"), "{log}");
}

/// A digest by a pepper that is yet to be made fits no secret, and nobody could ever be let in.
#[tokio::test]
async fn a_digest_without_its_pepper_file_is_refused_and_nothing_is_made() {
    let place = Place::new();
    let told = place.refused(&[(DIGEST, &"ab".repeat(32))]);
    assert!(told.contains("bootstrap_admin_digest") && told.contains(&*place.pepper().to_string_lossy()), "{told}");
    assert!(!place.pepper().exists());
}

#[tokio::test]
async fn what_cannot_be_the_first_administrators_is_refused_and_the_next_start_can_be_right() {
    let place = Place::new();
    let given = place.given();
    let secret = &place.secret;
    let foreign = secret.replacen("kw_", "ab_", 1);
    let (no_secret, exposed) = ("must have one secret that begins with kw_live_", "chmod 600 it");
    let wrong: [(&str, u32, &str); 7] = [
        ("", 0o600, no_secret),
        (&secret[1..], 0o600, no_secret),
        (&format!("{secret}\n{secret}\n"), 0o600, no_secret),
        (&foreign, 0o600, no_secret),
        (&" ".repeat(5_000), 0o600, no_secret),
        (secret, 0o644, exposed),
        (secret, 0o660, exposed),
    ];
    for (contents, mode, why) in wrong {
        place.write(contents, mode);
        let told = place.refused(&[(FILE, &given)]);
        assert!(told.contains("bootstrap_admin_file") && told.contains(why), "{told}");
        assert!(told.contains(&given) && !told.contains(&secret[8..]), "{told}");
        assert!(!place.pepper().exists() && !place.data().join("admin.key").exists());
        let checked = keyward(&["config", "--data-dir"]).arg(place.data()).env(FILE, &given).output().unwrap();
        assert!(!checked.status.success() && text(&checked).1.contains(why), "`keyward config` says so before");
    }
    fs::remove_file(place.file()).unwrap();
    let told = place.refused(&[(FILE, &given)]);
    assert!(told.contains(&given) && told.contains("No such file"), "{told}");
    let told = place.refused(&[(FILE, "/dev/zero")]);
    assert!(told.contains("/dev/zero: it is not a regular file"), "{told}");

    place.write(secret, 0o640);
    let program = place.serve(&[(FILE, &given)]);
    is_the_administrator(&place, &program).await;
}

#[test]
fn settings_of_the_first_administrator_that_contradict_each_other_are_mistakes() {
    let place = Place::new();
    let told = place.refused(&[(FILE, "/x"), (DIGEST, &"ab".repeat(32))]);
    assert!(told.contains(DIGEST) && told.contains("must not both be set"), "{told}");
    let told = place.refused(&[(DIGEST, "abc")]);
    assert!(told.contains(DIGEST) && told.contains("must be 64 hex digits"), "{told}");
}
