//! The manual and the completions.

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
