//! Scopes: a grant covers what it covers word by word, and no text outside the grammar is granted or asked
//! for.
#![no_main]

use keyward_core::scope::{Scope, check_required};

fn is_word(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-:/@".contains(&byte))
}

/// The grammar of what is asked for.
fn may_be_required(text: &str) -> bool {
    text.len() <= 128 && text.split('.').all(is_word)
}

/// The grammar of what is granted.
fn may_be_granted(text: &str) -> bool {
    let mut words: Vec<_> = text.split('.').collect();
    if words.len() > 1 && words.last() == Some(&"*") {
        words.pop();
    }
    text.len() <= 128 && words.into_iter().all(is_word)
}

fn covers(granted: &str, required: &str) -> bool {
    let (granted, required): (Vec<_>, Vec<_>) = (granted.split('.').collect(), required.split('.').collect());
    match granted.split_last() {
        Some((&"*", above)) => required.len() > above.len() && required[..above.len()] == *above,
        _ => granted == required,
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let granted: Vec<_> = lines.by_ref().take(3).collect();
    let required: Vec<_> = lines.take(3).chain(granted.iter().copied()).collect();
    for granted in granted {
        let parsed = Scope::parse(granted);
        assert_eq!(parsed.is_ok(), may_be_granted(granted), "{granted:?}");
        let Ok(scope) = parsed else { continue };
        assert_eq!(scope.as_str(), granted);
        for required in &required {
            assert_eq!(check_required(required).is_ok(), may_be_required(required), "{required:?}");
            if may_be_required(required) {
                assert_eq!(scope.covers(required), covers(granted, required), "{granted:?} {required:?}");
            }
        }
    }
});
