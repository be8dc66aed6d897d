//! The command line as an operator's tool: health, backup, journal, and check where nothing can be written.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use keyward::grpc::pb;

use crate::support::certificates::{Files, Usage, write};
use crate::support::harness::{Site, delete, disable, new_key};
use crate::support::program::{Program, keyward, text};

/// Nobody, as most systems number them.
const NOBODY: u32 = 65_534;

fn run(args: &[&str]) -> (i32, String, String) {
    told(&keyward(args).output().unwrap())
}

fn told(output: &Output) -> (i32, String, String) {
    let (out, err) = text(output);
    (output.status.code().unwrap(), out, err)
}

#[test]
fn health_tells_by_its_exit_code_how_a_server_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve_in(dir.path(), &[], &[("KEYWARD_DRAIN_DELAY", "60s")]);
    let addr = program.addr.clone();
    let by_name = addr.replace("127.0.0.1", "localhost");
    for (args, expected, says) in [
        (&["--addr", &addr][..], 0, "SERVING\n"),
        (&["--addr", &by_name], 0, "SERVING\n"),
        (&["--addr", &addr, "--service", "keyward.v1.KeyAdmin"], 0, "SERVING\n"),
        (&["--addr", &addr, "--service", "keyward.v1.Nothing"], 4, "has no service 'keyward.v1.Nothing'"),
        (&["--addr", "localhost"], 2, "must be a host or an address with a port"),
        (&["--addr", &addr, "--timeout", "soon"], 2, "--timeout"),
    ] {
        let (code, out, err) = run(&[&["health"], args].concat());
        assert_eq!(code, expected, "{args:?} {err}");
        assert!(format!("{out}{err}").contains(says), "{args:?} {out} {err}");
    }
    program.signal("TERM");
    program.wait_for("draining");
    assert_eq!(run(&["health", "--addr", &addr]), (1, "NOT_SERVING\n".into(), String::new()));
    program.signal("TERM");
    program.end();
    assert_eq!(run(&["health", "--addr", &addr]).0, 3);

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let (code, _, err) = run(&["health", "--addr", &addr, "--timeout", "200ms"]);
    assert_eq!(code, 3);
    assert!(err.contains("has not answered within 200ms"), "{err}");
}

#[test]
fn the_tools_encrypt_where_the_server_does() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::write(dir.path());
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [certificate, server_key, ca] = ["server.pem", "server.key", "ca.pem"].map(path);
    let shown = files.authority.issue(7, Usage::Client("spiffe://test/tools"));
    write(&dir.path().join("client.pem"), &shown.certificate);
    write(&dir.path().join("client.key"), &shown.key);
    let (cert, key) = (path("client.pem"), path("client.key"));
    let data = dir.path().join("data");
    let serve = ["--tls-certificate", &certificate, "--tls-key", &server_key, "--tls-client-ca", &ca];
    let program = Program::serve(&data, &serve);
    let by_name = program.addr.replace("127.0.0.1", "localhost");
    let identity = ["--ca", &ca, "--cert", &cert, "--key", &key];
    for (addr, args, expected, says) in [
        (&program.addr, &identity[..], 0, "SERVING\n"),
        (&by_name, &[&identity[..], &["--server-name", "keyward.test"]].concat(), 0, "SERVING\n"),
        (&by_name, &identity, 3, "certificate not valid for name"),
        (&program.addr, &["--ca", &ca], 3, "the connection broke"),
        (&program.addr, &["--tls"], 3, "invalid peer certificate"),
        (&program.addr, &["--ca", "/nowhere"], 3, "/nowhere: No such file"),
        (&program.addr, &["--ca", &key], 3, "has no certificate in PEM"),
        (&program.addr, &[], 3, "see whether the server encrypts (--tls, --ca)"),
        (&"unix:/x".to_owned(), &["--tls"], 3, "a Unix socket does not leave this machine"),
        (&program.addr, &["--ca", &ca, "--cert", &cert], 2, "--key <FILE>"),
    ] {
        let (code, out, err) = run(&[&["health", "--addr", addr], args].concat());
        assert_eq!(code, expected, "{args:?} {out} {err}");
        assert!(format!("{out}{err}").contains(says), "{args:?} {out} {err}");
    }
    let admin = data.join("admin.key");
    let backup = ["backup", "--server", &program.addr, "--key-file", admin.to_str().unwrap(), "-"];
    let (code, _, err) = run(&[&backup[..], &identity].concat());
    assert_eq!(code, 0, "{err}");
    assert!(err.trim().ends_with("checked on the way"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_fetched_by_its_own_role_and_goes_to_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let program = Program::serve(&data, &[]);
    let admin = program.caller(fs::read_to_string(data.join("admin.key")).unwrap().trim());
    let key_file = |role: &str, secret: &str| {
        let path = dir.path().join(role);
        fs::write(&path, secret).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let of_role = async |role: &str| {
        let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key(role, &[role]) };
        key_file(role, &admin.issued(request).await.secret)
    };
    let (may, may_not) = (of_role("keyward.backup").await, of_role("keyward.viewer").await);
    let server = program.addr.replace("127.0.0.1", "localhost");
    let backup = |key_file: &str, to: &str| keyward(&["backup", "--server", &server, "--key-file", key_file, to]);

    let fetched = backup(&may, "-").output().unwrap();
    let (code, _, err) = told(&fetched);
    assert_eq!((code, err.trim().ends_with("checked on the way")), (0, true), "{err}");
    assert!(err.starts_with("3 keys at revision 3, "), "{err}");
    let path = dir.path().join("piped.kwb");
    fs::write(&path, &fetched.stdout).unwrap();
    let (code, out, err) = run(&["check", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("whole, 3 keys at revision 3"), "{out}");
    assert!(!Path::new("-").exists());

    let (code, _, err) = told(&backup(&may_not, "-").output().unwrap());
    assert_eq!(code, 1);
    assert!(err.contains("PermissionDenied"), "{err}");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, _, err) = told(&backup(&may, "-").stdout(full).stderr(Stdio::piped()).output().unwrap());
    assert_eq!(code, 1);
    assert!(err.contains("cannot be written to where it should go"), "{err}");
    let (code, _, err) = run(&["backup", "--server", "127.0.0.1", "-"]);
    assert_eq!(code, 2);
    assert!(err.contains("must be a host or an address with a port"), "{err}");
}

/// A stopped server's directory in which something was done by two callers.
async fn done_by_two() -> (tempfile::TempDir, String) {
    let mut site = Site::start().await;
    let operator = pb::CreateKeyRequest {
        tenant: "system".into(),
        key_id: "operator".into(),
        ..new_key("Operator", &["keyward.operator"])
    };
    let operator = site.caller(&site.admin().issued(operator).await.secret);
    let key = site.admin().issued(pb::CreateKeyRequest { key_id: "zapier".into(), ..new_key("Zapier", &[]) }).await.key;
    site.clock.advance_ms(61_000);
    let disable = |key| pb::DisableKeyRequest { request_id: "third/7".into(), ..disable(key) };
    operator.disable(disable(&key)).await.unwrap();
    let admin = site.admin().read(&key).await.created_by;
    operator.disable(pb::DisableKeyRequest { request_id: String::new(), ..disable(&key) }).await.unwrap();
    site.stop().await;
    (site.dir, admin)
}

#[tokio::test]
async fn the_journal_tells_who_did_what_to_which_key_and_when() {
    let (dir, admin) = done_by_two().await;
    let path = dir.path().to_str().unwrap();
    let journal = |args: &[&str]| {
        let (code, out, err) = run(&[&["journal", "--data-dir", path], args].concat());
        assert_eq!(code, 0, "{err}");
        out
    };
    let lines = [
        format!("1\t2026-01-01T00:00:00Z\tkeyward\tBootstrap\tsystem/{admin}\t-\t-\t-\n"),
        format!("2\t2026-01-01T00:00:00Z\t{admin}\tCreateKey\tsystem/operator\t127.0.0.1\t-\t-\n"),
        format!("3\t2026-01-01T00:00:00Z\t{admin}\tCreateKey\tdefault/zapier\t127.0.0.1\t-\t-\n"),
        "4\t2026-01-01T00:01:01Z\toperator\tDisableKey\tdefault/zapier\t127.0.0.1\t-\tthird/7\n".to_owned(),
    ];
    assert_eq!(journal(&[]), lines.concat());
    assert_eq!(journal(&["--from", "2", "--to", "3"]), lines[1..3].concat());
    assert_eq!(journal(&["--target", "default/zapier"]), lines[2..].concat());
    assert_eq!(journal(&["--actor", "operator"]), lines[3]);
    assert_eq!(journal(&["--from", "9"]), "");

    let nothing = tempfile::tempdir().unwrap();
    let (code, _, err) = run(&["journal", "--data-dir", nothing.path().to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains("has no data of keyward"), "{err}");
}

/// What is done by the clock has an author too.
#[tokio::test]
async fn the_journal_names_keyward_for_what_it_does_itself() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let named = |id: &str| pb::CreateKeyRequest { key_id: id.into(), ..new_key(id, &[]) };
    let (paused, left) = (admin.issued(named("paused")).await.key, admin.issued(named("left")).await.key);
    admin.suspend_key(&paused, 60_000).await;
    let purge_after = Some(prost_types::Duration { seconds: 90, nanos: 0 });
    admin.delete(pb::DeleteKeyRequest { purge_after, ..delete(&left) }).await.unwrap();
    site.clock.advance_ms(61_000);
    while admin.read(&paused).await.updated_by != "keyward" {
        tokio::task::yield_now().await;
    }
    site.clock.advance_ms(30_000);
    let get = pb::GetKeyRequest { key_id: left.key_id.clone(), ..Default::default() };
    while admin.get(get.clone()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    site.stop().await;
    let (code, out, err) = run(&["journal", "--data-dir", site.dir.path().to_str().unwrap(), "--actor", "keyward"]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<_> = out.lines().skip(1).collect(); // the first one is the bootstrap
    assert_eq!(
        lines,
        [
            "6\t2026-01-01T00:01:01Z\tkeyward\tResumeKey\tdefault/paused\t-\t-\t-",
            "7\t2026-01-01T00:01:31Z\tkeyward\tPurgeKey\tdefault/left\t-\t-\t-",
        ]
    );
}

#[tokio::test]
async fn what_cannot_be_written_is_checked_and_read() {
    let (dir, _) = done_by_two().await;
    let data = dir.path();
    // As root nothing is read-only, so this is done by nobody.
    let is_root = fs::metadata("/proc/self").is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0);
    protect(data, is_root, 0o500, 0o400);
    let before = names(data);
    // Where nobody reaches it.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = elsewhere.path().join("keyward");
    fs::copy(keyward(&[]).get_program(), &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env_clear();
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        told(&command.output().unwrap())
    };
    let path = data.to_str().unwrap();
    for lock in [true, false] {
        let (code, out, err) = as_nobody(&["check", "--data-dir", path]);
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("table: whole, 3 keys at revision 4"), "{out}");
        assert!(out.contains("revision 4 was acknowledged"), "{out}");
        let (code, out, err) = as_nobody(&["journal", "--data-dir", path]);
        assert_eq!((code, out.lines().count()), (0, 4), "{err}");
        assert_eq!(names(data).len(), before.len() - usize::from(!lock), "nothing was made there");
        if lock {
            fs::remove_file(data.join("lock")).unwrap_or_else(|error| assert!(!is_root, "{error}"));
        }
        if !is_root {
            break;
        }
    }
    // And a server that can write keeps them off.
    protect(data, false, 0o700, 0o600);
    let _program = Program::serve(data, &[]);
    for command in ["check", "journal"] {
        let (code, _, err) = run(&[command, "--data-dir", path]);
        assert_eq!(code, 1);
        assert!(err.contains("is in use by process"), "{err}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names = vec![];
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        names.push(entry.path().to_str().unwrap().to_owned());
        if entry.path().is_dir() {
            names.extend(self::names(&entry.path()));
        }
    }
    names.sort();
    names
}

/// Gives a directory and all in it these modes, and to nobody, if it is to be nobody's.
fn protect(dir: &Path, to_nobody: bool, dirs: u32, files: u32) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            protect(&entry, to_nobody, dirs, files);
        } else {
            fs::set_permissions(&entry, fs::Permissions::from_mode(files)).unwrap();
            if to_nobody {
                chown(&entry, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
    }
    if to_nobody {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(dirs)).unwrap();
}
