//! Names with a grammar: of keys, tenants, environments, prefixes and actors.

use std::fmt;
use std::sync::Arc;

use ulid::Ulid;

use crate::clock::UnixMillis;
use crate::entropy::{Entropy, EntropyError};
use crate::limits::{ENVIRONMENT_BYTES_MAX, SECRET_PREFIX_BYTES_MAX};

/// A text that breaks the rule for such names. It has the rule, never the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub &'static str);

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Parses a name.
            ///
            /// # Errors
            /// When the text breaks the rule of this kind of name.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                let valid: fn(&[u8]) -> bool = $valid;
                if valid(text.as_bytes()) { Ok(Self(text.into())) } else { Err(InvalidName($rule)) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($type), self.0)
            }
        }
    };
}

name!(
    /// The name of a key, unique in its tenant.
    KeyId,
    "must be 3 to 63 bytes of a-z, 0-9, '-' and '_', beginning with a letter",
    |b| (3..=63).contains(&b.len()) && is_word(b, b"-_")
);
name!(
    /// The name of a tenant.
    TenantId,
    "must be 1 to 63 bytes of a-z, 0-9 and '-', beginning with a letter",
    |b| (1..=63).contains(&b.len()) && is_word(b, b"-")
);
name!(
    /// The middle part of a secret: `live`, `test` or another short word.
    Environment,
    "must be 1 to 16 bytes of a-z and 0-9, beginning with a letter",
    |b| (1..=ENVIRONMENT_BYTES_MAX).contains(&b.len()) && is_word(b, b"")
);
name!(
    /// The first part of a secret.
    SecretPrefix,
    "must be 1 to 20 bytes of a-z and 0-9, beginning with a letter",
    |b| (1..=SECRET_PREFIX_BYTES_MAX).contains(&b.len()) && is_word(b, b"")
);
name!(
    /// The author of a change: the `key_id` of the caller's key, or `keyward` for the program itself.
    ActorId,
    "must be 1 to 63 bytes of a-z, 0-9, '-' and '_', beginning with a letter",
    |b| (1..=63).contains(&b.len()) && is_word(b, b"-_")
);

impl KeyId {
    /// Whether the name is reserved for the program: `keyward`, and all that begins with `keyward-` or
    /// `keyward_`. Keys of tenant `system` are actors in the log, and such a name could pass for the program.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        let rest = self.0.strip_prefix(ActorId::KEYWARD);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
    }

    /// A new id: `key_` and a ULID in lower case, so that ids sort by the time of their creation.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn generate(now: UnixMillis, entropy: &dyn Entropy) -> Result<Self, EntropyError> {
        let mut random = [0; 16];
        entropy.fill(&mut random)?;
        let millis = u64::try_from(now.0).unwrap_or(0);
        let ulid = Ulid::from_parts(millis, u128::from_le_bytes(random));
        Ok(Self(format!("key_{}", ulid.to_string().to_lowercase()).into()))
    }
}

impl TenantId {
    /// The tenant of requests that name none.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".into())
    }

    /// The reserved tenant whose keys are the credentials of callers.
    #[must_use]
    pub fn system() -> Self {
        Self("system".into())
    }

    /// Whether this is the reserved tenant.
    #[must_use]
    pub fn is_system(&self) -> bool {
        &*self.0 == "system"
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self::live()
    }
}

impl Environment {
    /// The environment of keys that name none.
    #[must_use]
    pub fn live() -> Self {
        Self("live".into())
    }
}

impl SecretPrefix {
    /// The prefix of tenants that choose none.
    #[must_use]
    pub fn kw() -> Self {
        Self("kw".into())
    }
}

impl ActorId {
    const KEYWARD: &str = "keyward";

    /// The program itself, as when it creates the first key.
    #[must_use]
    pub fn keyward() -> Self {
        Self(Self::KEYWARD.into())
    }
}

impl From<&KeyId> for ActorId {
    fn from(id: &KeyId) -> Self {
        Self(id.0.clone())
    }
}

/// A lower-case letter, then lower-case letters, digits and `extra`.
pub(crate) fn is_word(bytes: &[u8], extra: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SeededEntropy;

    #[test]
    fn generated_ids_are_valid_and_sort_by_time() {
        let entropy = SeededEntropy::new(1);
        let ids: Vec<_> = (0..100).map(|ms| KeyId::generate(UnixMillis(1_700_000_000_000 + ms), &entropy)).collect();
        let ids: Vec<_> = ids.into_iter().map(Result::unwrap).collect();
        assert!(ids.is_sorted());
        for id in &ids {
            assert_eq!(KeyId::parse(id.as_str()).as_ref(), Ok(id));
        }
    }

    #[test]
    fn names_that_could_pass_for_the_program_are_reserved() {
        for reserved in ["keyward", "keyward-", "keyward_", "keyward-admin", "keyward_1"] {
            assert!(KeyId::parse(reserved).unwrap().is_reserved(), "{reserved}");
        }
        for free in ["keywar", "keywards", "keyward1", "my-keyward", "key-ward", "key_ward"] {
            assert!(!KeyId::parse(free).unwrap().is_reserved(), "{free}");
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for bad in ["", "ab", "1ab", "Abc", "a b", "a/b", "käy", "abc\n", &"a".repeat(64)] {
            assert!(KeyId::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a_b", "-a", "a\0", &"a".repeat(64)] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(KeyId::parse("zapier-prod_1").is_ok());
        assert!(TenantId::parse("acme-eu").is_ok());
    }
}
