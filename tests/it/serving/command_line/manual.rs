//! The manual and the completions, and the log's filter.

use std::fs;

use super::User;

#[test]
fn the_manual_and_the_completions_know_every_command() {
    let user = User::start();
    user.does(&["man", "man1"]);
    let page = |name: &str| fs::read_to_string(user.path(&format!("man1/{name}.1"))).unwrap();
    for name in ["keyward", "keyward-key-create", "keyward-key-find", "keyward-caller-create", "keyward-context-set"] {
        assert!(page(name).contains("EXIT STATUS"), "{name}");
    }
    assert!(page("keyward-key-create").contains("secret\\-file"));
    assert!(!page("keyward-serve").contains("EXIT STATUS"));
    assert_eq!(user.does(&["man"]), page("keyward"));
    for shell in ["bash", "zsh", "fish"] {
        let script = user.does(&["completions", shell]);
        for word in ["revoke", "secret-file", "display-name"] {
            assert!(script.contains(word), "{shell} {word}");
        }
    }
    user.fails(&["completions", "tcsh"], 2, &["bash, zsh, fish"]);
}

#[test]
fn the_filter_of_the_log_is_shown_and_set() {
    let mut user = User::start();
    assert_eq!(user.does(&["logs", "level"]), "info\n");
    assert_eq!(user.does(&["logs", "level", "debug"]), "");
    user.server.wait_for("the log filter was set by a call log_filter=\"debug\"");
    assert_eq!(user.does(&["logs", "level"]), "debug\n");
    user.fails(&["logs", "level", "keyward=loud"], 2, &["filter", "is not a filter"]);
}
