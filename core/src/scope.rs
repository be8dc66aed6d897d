//! Scopes: what a key may do, in dot-separated words.
//!
//! A granted `a.*` covers everything below `a`, at any depth, but not `a` itself. Without a `*`, a scope
//! covers only itself. An empty list grants nothing.

use std::fmt;

use crate::id::InvalidName;
use crate::limits::SCOPE_BYTES_MAX;

const RULE: InvalidName = InvalidName(
    "must be 1 to 128 bytes: dot-separated words of letters, digits, '_', '-', ':', '/' and '@'; \
     only the last of several words may be '*'",
);
const REQUIRED_RULE: InvalidName = InvalidName(
    "must be 1 to 128 bytes: dot-separated words of letters, digits, '_', '-', ':', '/' and '@'; \
     a '*' can be granted, not asked for",
);

/// A scope as granted to a key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(Box<str>);

impl Scope {
    /// Parses a scope to grant.
    ///
    /// # Errors
    /// When the text breaks the grammar. A `*` alone is refused: it would grant scopes that are invented
    /// later.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let fits = text.len() <= SCOPE_BYTES_MAX && is_scope(text.strip_suffix(".*").unwrap_or(text));
        fits.then(|| Self(text.into())).ok_or(RULE)
    }

    /// The scope as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this grant covers `required`, which must have passed [`check_required`].
    #[must_use]
    pub fn covers(&self, required: &str) -> bool {
        match self.0.strip_suffix('*') {
            // `above` ends in a dot, so `a.*` does not cover `ab`; `required` is longer, so `a.` is not
            // covered.
            Some(above) => required.len() > above.len() && required.starts_with(above),
            None => *self.0 == *required,
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.0)
    }
}

/// Checks that a text may be asked for as a scope: it is one without a `*`.
///
/// # Errors
/// When the text breaks the grammar.
#[inline]
pub fn check_required(text: &str) -> Result<(), InvalidName> {
    is_scope(text).then_some(()).ok_or(REQUIRED_RULE)
}

fn is_scope(text: &str) -> bool {
    let is_word = |w: &[u8]| !w.is_empty() && w.iter().all(|b| b.is_ascii_alphanumeric() || b"_-:/@".contains(b));
    text.len() <= SCOPE_BYTES_MAX && text.as_bytes().split(|&b| b == b'.').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule said another way: word by word.
    fn covers_by_words(granted: &str, required: &str) -> bool {
        let (g, r): (Vec<_>, Vec<_>) = (granted.split('.').collect(), required.split('.').collect());
        match g.split_last() {
            Some((&"*", above)) => r.len() > above.len() && r[..above.len()] == *above,
            _ => g == r,
        }
    }

    #[test]
    fn a_star_covers_what_is_below_and_not_the_word_itself() {
        let granted = Scope::parse("orders.*").unwrap();
        assert!(granted.covers("orders.read"));
        assert!(granted.covers("orders.read.all"));
        assert!(!granted.covers("orders"));
        assert!(!granted.covers("ordersx.read"));
        assert!(!granted.covers("order.read"));
    }

    #[test]
    fn texts_outside_the_grammar_are_refused() {
        for bad in [
            "",
            ".",
            "*",
            "a.",
            ".a",
            "a..b",
            "a.*.b",
            "*.a",
            "a*",
            "a.b*",
            "a b",
            "ä",
            "a.**",
            &"a".repeat(129),
            &format!("{}.*", "a".repeat(127)),
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "*", "a.*", "a."] {
            assert!(check_required(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a.b", "orders:read", "https://api/v1", "keyward.issuer@acme", "a.*", "a.b.*"] {
            assert!(Scope::parse(good).is_ok(), "{good:?}");
        }
    }

    proptest! {
        // Few letters, so that related scopes are common.
        #[test]
        fn matching_follows_the_words(granted in "[ab](\\.[ab]{1,2}){0,3}(\\.\\*)?", required in "[ab](\\.[ab]{1,2}){0,4}") {
            let scope = Scope::parse(&granted).unwrap();
            prop_assert_eq!(scope.covers(&required), covers_by_words(&granted, &required));
        }

        #[test]
        fn a_grant_never_widens_when_a_word_is_added_to_it(granted in "[ab](\\.[ab]){0,2}", required in "[ab](\\.[ab]){0,4}") {
            let narrow = Scope::parse(&format!("{granted}.a.*")).unwrap();
            let wide = Scope::parse(&format!("{granted}.*")).unwrap();
            prop_assert!(!narrow.covers(&required) || wide.covers(&required));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,140}") {
            let _ = (Scope::parse(&text), check_required(&text));
        }
    }
}
