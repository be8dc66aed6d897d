//! Secrets are shown once, found, and never repeated.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{User, done};

#[test]
fn a_secret_is_shown_once_or_goes_to_a_new_private_file() {
    let user = User::start();
    let alone = user.does(&["key", "create", "one", "--display-name", "One", "--output", "secret"]);
    assert!(alone.starts_with("kw_live_") && alone.lines().count() == 1, "{alone}");
    let file = user.path("two.secret");
    let create = ["key", "create", "two", "--display-name", "Two", "--environment", "test", "--secret-file", &file];
    let printed = user.does(&create);
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.starts_with("kw_test_") && written.ends_with('\n'), "a whole line");
    assert!(!printed.contains(written.trim()) && !printed.contains("\"secret\""), "{printed}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // A file that is there is left alone, and nothing is issued.
    let again = ["key", "create", "three", "--display-name", "Three", "--secret-file", &file];
    user.fails(&again, 2, &["two.secret exists already", "nothing was issued"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), written);
    user.fails(&["key", "get", "three"], 4, &[]);
    // What is refused leaves no file.
    let refused = user.path("refused.secret");
    user.fails(&["key", "create", "one", "--display-name", "x", "--secret-file", &refused], 6, &["KEY_EXISTS"]);
    let nowhere = user.path("none/secret");
    user.fails(
        &["key", "create", "three", "--display-name", "x", "--secret-file", &nowhere],
        1,
        &["nothing was issued"],
    );
    let dry = ["key", "create", "three", "--display-name", "x", "--dry-run", "--secret-file", &refused];
    assert_eq!(user.json(&dry)["secret"], Value::Null);
    assert!(!PathBuf::from(&refused).exists());

    // A secret that nobody gets is said to be lost.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut create = user.command(&["key", "create", "lost", "--display-name", "Lost"]);
    let lost = done(&create.stdout(full).stderr(Stdio::piped()).output().unwrap());
    assert_eq!(lost.code, 1);
    assert!(lost.err.contains("a secret of key lost was issued, and could not be written"), "{}", lost.err);
}

#[test]
fn a_user_who_gives_up_leaves_no_empty_file_behind() {
    let user = User::start();
    user.server.signal("STOP");
    let file = PathBuf::from(user.path("late.secret"));
    let create = ["key", "create", "late", "--display-name", "Late", "--timeout", "1h", "--secret-file", "late.secret"];
    let mut child = user.command(&create).stderr(Stdio::piped()).spawn().unwrap();
    while !file.exists() {
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let given_up = done(&child.wait_with_output().unwrap());
    user.server.signal("CONT");
    assert_eq!(given_up.code, 1);
    assert!(
        given_up.err.contains("ended by SIGINT") && given_up.err.contains("may have been made"),
        "{}",
        given_up.err
    );
    assert!(!file.exists());
}

#[test]
fn a_secret_is_found_from_a_file_or_standard_input_and_never_repeated() {
    let user = User::start();
    user.does(&["tenant", "create", "acme", "--display-name", "Acme"]);
    let file = user.path("acme.secret");
    // The same id in another tenant is another key.
    user.does(&["key", "create", "zapier", "--display-name", "Ours"]);
    user.does(&["key", "create", "zapier", "--tenant", "acme", "--display-name", "Theirs", "--secret-file", &file]);
    let found = user.json(&["key", "find", "--secret-file", &file]);
    assert_eq!(
        (found["decision"].as_str(), found["key"]["displayName"].as_str()),
        (Some("DECISION_ALLOW"), Some("Theirs"))
    );
    user.does(&["key", "disable", "zapier", "--tenant", "acme"]);
    let secret = fs::read_to_string(&file).unwrap();
    let found = user.with_input(&["key", "find", "--secret-file", "-"], &secret);
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["reason"], "REASON_DISABLED");
    assert_eq!((found["key"]["tenant"].as_str(), found["key"]["displayName"].as_str()), (Some("acme"), Some("Theirs")));
    user.fails(
        &["key", "find", "--secret-file", &file, "--tenant", "default"],
        4,
        &["no key that this caller may see"],
    );

    let verifier = user.caller("verifier", "verifier");
    let told = user.tries(&["key", "find", "--secret-file", &file, "--key-file", &verifier]);
    assert_eq!(told.code, 0, "{}", told.err);
    assert!(told.err.contains("may not read the key itself"), "{}", told.err);
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["key"], serde_json::json!({"keyId": "zapier"}));
    let viewer = user.caller("viewer", "viewer");
    user.fails(
        &["key", "find", "--secret-file", &file, "--key-file", &viewer],
        5,
        &["needs the role keyward.verifier"],
    );

    let wrong = format!("Bearer {}", secret.trim());
    let refused = user.with_input(&["key", "find", "--secret-file", "-"], &wrong);
    assert_eq!(refused.code, 4);
    assert!(refused.err.contains("without white space, 'Bearer'"), "{}", refused.err);
    user.fails(&["key", "find"], 2, &["there is no terminal", "--secret-file -"]);
    let argument = user.tries(&["key", "find", secret.trim()]);
    assert_eq!(argument.code, 2);
    // Nor where nobody looks for one.
    let misplaced = user.tries(&["key", "get", "zapier", &format!("--etag={}", secret.trim())]);
    assert_eq!(misplaced.code, 2);
    let mistyped = user.tries(&["key", "find", &secret.trim()[1..]]);
    assert_eq!(mistyped.code, 2);
    for done in [refused, argument, misplaced, mistyped] {
        assert!(!done.err.contains(&secret[10..40]) && !done.out.contains(&secret[10..40]), "the secret is repeated");
    }
}
