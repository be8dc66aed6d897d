//! Names with a grammar: of keys, tenants, environments, prefixes and actors.

use std::fmt;
use std::sync::Arc;

use ulid::Ulid;

use crate::clock::UnixMillis;
use crate::entropy::{Entropy, EntropyError};
use crate::limits::{ACTOR_BYTES_MAX, ENVIRONMENT_BYTES_MAX, REQUEST_ID_BYTES_MAX, SECRET_PREFIX_BYTES_MAX};

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
    /// A caller's own name for a change, by which a retry is recognised.
    RequestId,
    "must be 1 to 64 visible ASCII characters",
    |b| (1..=REQUEST_ID_BYTES_MAX).contains(&b.len()) && b.iter().all(u8::is_ascii_graphic)
);
name!(
    /// The author of a change: the `key_id` of the caller's key, `keyward` for the program itself,
    /// `holder:<tenant>/<key_id>` for the holder of a key, a SPIFFE id (`spiffe://...`) or `dns:<name>` for a
    /// certificate, or `unix:<uid>` for a user of this machine.
    ActorId,
    "must be a key_id, 'keyward', 'holder:<tenant>/<key_id>', 'spiffe://...', 'dns:<name>' or 'unix:<uid>', of at most 256 bytes",
    is_actor
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

    /// Whether the name has the form of a `key_id`, as `keyward` has too. Older programs know no other.
    #[must_use]
    pub fn is_word(&self) -> bool {
        !self.0.contains(':')
    }

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

fn is_actor(bytes: &[u8]) -> bool {
    let of_key = |b: &[u8]| (1..=63).contains(&b.len()) && is_word(b, b"-_");
    let key_id = |id| KeyId::parse(id).is_ok();
    let text = |b| std::str::from_utf8(b).unwrap_or_default();
    if bytes.len() > ACTOR_BYTES_MAX {
        false
    } else if let Some(holder) = bytes.strip_prefix(b"holder:") {
        text(holder).split_once('/').is_some_and(|(tenant, id)| TenantId::parse(tenant).is_ok() && key_id(id))
    } else if let Some(spiffe) = bytes.strip_prefix(b"spiffe://") {
        // A trust domain, in lower case, and a path without dot segments, as the SPIFFE specification has it.
        let of_domain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(b);
        let of_path = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
        let is_segment = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.iter().all(of_path);
        let mut parts = spiffe.split(|b| *b == b'/');
        let domain = parts.next().is_some_and(|domain| !domain.is_empty() && domain.iter().all(of_domain));
        domain && parts.all(is_segment)
    } else if let Some(name) = bytes.strip_prefix(b"dns:") {
        name.len() <= 253 && name.split(|b| *b == b'.').all(is_dns_label)
    } else if let Some(uid) = bytes.strip_prefix(b"unix:") {
        text(uid).parse::<u32>().is_ok_and(|number| number.to_string().as_bytes() == uid)
    } else {
        of_key(bytes)
    }
}

/// A label of a host name in lower case (RFC 1123, section 2.1).
fn is_dns_label(label: &[u8]) -> bool {
    let is_inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&label.len()) && label.iter().all(is_inner) && !label.starts_with(b"-") && !label.ends_with(b"-")
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
    fn authors_are_keys_holders_certificates_and_users() {
        let long = format!("spiffe://example.org/{}", "a".repeat(235));
        for good in [
            "keyward",
            "key_01",
            "holder:acme/key_01",
            "spiffe://example.org/ns/a/sa/b",
            "dns:billing-1.internal",
            "unix:0",
            &long,
        ] {
            assert_eq!(ActorId::parse(good).unwrap().as_str(), good);
        }
        let bad = [
            "",
            "holder:acme",
            "holder:/key_01",
            "holder:acme/",
            "holder:Acme/key",
            "holder:acme/a/b",
            "unix:",
            "unix:-1",
        ];
        let worse = [
            "spiffe://A/b",
            "spiffe://a/../b",
            "holder:acme/ab",
            "unix:01",
            "unix:4294967296",
            "spiffe://",
            "spiffe://a//b",
            "spiffe://a/",
            "spiffe://a b",
            "dns:a..b",
            "mail:a",
            "a b",
        ];
        for bad in bad.into_iter().chain(worse).chain([&*format!("{long}a")]) {
            assert!(ActorId::parse(bad).is_err(), "{bad}");
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
