//! Contexts, flags and variables.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::{User, done, ids};
use crate::support::certificates::{Files, Usage, write};
use crate::support::program::{Program, keyward};

#[test]
fn a_context_says_where_the_server_is_and_flags_go_before_it() {
    let user = User::start();
    user.does(&["tenant", "create", "acme"]);
    assert_eq!(fs::metadata(user.contexts()).unwrap().permissions().mode() & 0o777, 0o600);
    user.does(&[
        "context",
        "set",
        "acme",
        "--server",
        &user.server.addr,
        "--key-file",
        "data/admin.key",
        "--tenant",
        "acme",
    ]);
    user.does(&["key", "create", "zapier", "--display-name", "Zapier", "--context", "acme"]);
    assert_eq!(user.does(&["key", "list"]), "[]\n", "the first context is still the current one");
    assert_eq!(ids(&user.json(&["key", "list", "--tenant", "acme"])), ["zapier"]);
    user.does(&["context", "use", "acme"]);
    assert_eq!(ids(&user.json(&["key", "list"])), ["zapier"]);
    assert_eq!(user.does(&["key", "list", "--tenant", "default"]), "[]\n");
    let by_variable = user.command(&["key", "list"]).env("KW_CONTEXT", "test").output().unwrap();
    assert_eq!(done(&by_variable).out, "[]\n");
    // The key file's path holds in any folder.
    let elsewhere = user.command(&["key", "list"]).current_dir("/").output().unwrap();
    assert_eq!(done(&elsewhere).code, 0);
    let listed = user.json(&["context", "list"]);
    let names =
        |listed: &Value| listed.as_array().unwrap().iter().map(|one| one["name"].to_string()).collect::<Vec<_>>();
    assert_eq!(names(&listed), ["\"acme\"", "\"test\""]);
    assert_eq!((&listed[0]["current"], &listed[1]["current"]), (&Value::Bool(true), &Value::Null));
    user.does(&["context", "set", "acme", "--ca", "ca.pem"]);
    user.does(&["context", "set", "acme", "--tls=false"]);
    assert_eq!(ids(&user.json(&["key", "list"])), ["zapier"], "encryption is switched off again");
    user.does(&["context", "delete", "acme"]);
    assert_eq!(names(&user.json(&["context", "list"])), ["\"test\""]);
    user.fails(&["context", "use", "acme"], 4, &["no context 'acme'"]);
    user.fails(&["context", "set", "x", "--server", "nonsense"], 2, &["a host or an address with a port"]);

    fs::set_permissions(user.contexts(), fs::Permissions::from_mode(0o664)).unwrap();
    user.fails(&["key", "list", "--context", "test"], 1, &["has mode 0664", "chmod 600"]);
    fs::set_permissions(user.contexts(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(user.contexts(), "[contexts.test]\nserfer = 'x'\n").unwrap();
    user.fails(&["key", "list", "--context", "test"], 1, &["contexts.toml", "unknown field `serfer`"]);
}

/// Another machine is not shown a key that nobody has named.
#[test]
fn the_key_in_the_folder_goes_to_no_other_machine() {
    let user = User::start();
    fs::remove_file(user.contexts()).unwrap();
    assert_eq!(user.tries(&["key", "list", "--server", &user.server.addr]).code, 0, "it is used on this machine");
    user.fails(
        &["key", "list", "--server", "keyward.example:50051"],
        2,
        &["nothing says to keyward.example:50051 who calls"],
    );
}

/// The server refuses a variable that begins with KEYWARD_ and is no setting.
#[test]
fn variables_of_the_client_and_of_the_server_do_not_meet() {
    let user = User::start();
    let other = tempfile::tempdir().unwrap();
    let manual = user.does(&["man"]);
    let variables = manual.split(".SH ENVIRONMENT").nth(1).unwrap();
    let names = variables.lines().filter_map(|line| line.strip_prefix("\\fB")?.strip_suffix("\\fR"));
    let client: Vec<_> = names.map(|name| (name, "x")).collect();
    assert_eq!(client.len(), 2, "{manual}");
    let served = Program::serve_in(other.path(), &[], &client);
    served.signal("TERM");
    assert_eq!(served.end().0, Some(0));
    let server = [
        ("KEYWARD_LISTEN", "nonsense"),
        ("KEYWARD_TLS_KEY_FILE", "/nowhere"),
        ("KEYWARD_NONE", "x"),
        ("KEYWARD_CONFIG", "/nowhere"),
    ];
    let listed = user.command(&["key", "list"]).envs(server).output().unwrap();
    assert_eq!(done(&listed).out, "[]\n");
}

/// A server that demands certificates, and a caller who has no key: the identity of the certificate has a
/// role.
#[test]
fn a_context_has_what_encrypts_and_the_certificate_to_show() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::write(dir.path());
    let shown = files.authority.issue(7, Usage::Client("spiffe://test/ada"));
    write(&dir.path().join("client.pem"), &shown.certificate);
    write(&dir.path().join("client.key"), &shown.key);
    let settings = dir.path().join("keyward.toml");
    fs::write(&settings, "[[identity]]\nname = \"spiffe://test/ada\"\nroles = [\"keyward.viewer\"]\n").unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let serve = [
        ["--tls-certificate", &path("server.pem")],
        ["--tls-key", &path("server.key")],
        ["--tls-client-ca", &path("ca.pem")],
        ["--config", settings.to_str().unwrap()],
    ];
    let server = Program::serve(&dir.path().join("data"), serve.as_flattened());
    let ada = |args: &[&str]| done(&keyward(args).env("HOME", dir.path()).current_dir(dir.path()).output().unwrap());
    let set = [
        "context",
        "set",
        "tls",
        "--server",
        &server.addr,
        "--ca",
        "ca.pem",
        "--cert",
        "client.pem",
        "--key",
        "client.key",
    ];
    let made = ada(&set);
    assert_eq!(made.code, 0, "{}", made.err);
    // Without ./data/admin.key, which would be used.
    fs::rename(dir.path().join("data/admin.key"), dir.path().join("admin.key")).unwrap();
    let listed = ada(&["key", "list"]);
    assert_eq!((listed.code, &*listed.out), (0, "[]\n"), "{}", listed.err);
    let denied = ada(&["key", "create", "--display-name", "x"]);
    assert_eq!(denied.code, 5, "{}", denied.err);
    let with_key = ada(&["key", "create", "--display-name", "x", "--key-file", "admin.key"]);
    assert_eq!(with_key.code, 0, "{}", with_key.err);
    let other = ada(&["key", "list", "--ca", "client.pem"]);
    assert_eq!(other.code, 3, "{}", other.err);
    assert!(other.err.contains("invalid peer certificate"), "{}", other.err);
}
