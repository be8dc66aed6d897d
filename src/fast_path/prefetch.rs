//! Secrets that are hashed before their verdicts are asked for, and whose entries are prefetched into the
//! processor's caches.

use std::ops::Range;

use constant_time_eq::constant_time_eq;
use keyward_core::digest::Digest;
use zeroize::Zeroize;

use crate::index::ahead::TOGETHER;
use crate::verify::{Presented, Verifier};

/// Room for the texts of secrets: these have some sixty bytes each, and only prefixes and environments make
/// them longer.
const TEXTS_BYTES: usize = TOGETHER * 96;

/// Some secrets and their digests, so that no digest is computed again for the verdict.
///
/// A digest is found by the whole secret, in whatever order they are asked for: none gets the digest of
/// another.
#[derive(Default)]
pub struct Prefetched {
    texts: Vec<u8>,
    secrets: Vec<(Range<usize>, Option<Digest>)>,
    /// The first that was not asked for. Mostly they are asked for in their order.
    next: usize,
}

impl Prefetched {
    /// Replaces the secrets that it has, and prefetches what their verdicts read. It takes at most
    /// [`TOGETHER`], and leaves out what it has no room for.
    pub fn read<'a>(&mut self, verifier: &Verifier, secrets: impl Iterator<Item = &'a str>) {
        self.clear();
        // Once for all: texts that grow leave their beginnings behind.
        self.texts.reserve_exact(TEXTS_BYTES);
        for secret in secrets.take(TOGETHER) {
            let text = self.texts.len()..self.texts.len() + secret.len();
            if text.end > TEXTS_BYTES {
                continue;
            }
            self.texts.extend_from_slice(secret.as_bytes());
            self.secrets.push((text, verifier.read(secret).digest()));
        }
        verifier.read_ahead_of(self.secrets.iter().filter_map(|(_, digest)| *digest));
    }

    /// A secret as [`Verifier::read`] reads it, if it is one of these and was not asked for yet.
    pub fn find<'a>(&mut self, secret: &'a str) -> Option<Presented<'a>> {
        let rest = self.secrets.get(self.next..)?;
        let is_it = |text: &Range<usize>| constant_time_eq(&self.texts[text.clone()], secret.as_bytes());
        let at = rest.iter().position(|(text, _)| is_it(text))?;
        let digest = rest[at].1;
        self.next += at + 1;
        Some(Presented::of_digest(secret, digest))
    }

    /// Forgets all of them, and leaves no trace of their texts.
    pub fn clear(&mut self) {
        self.texts.fill(0);
        self.texts.clear();
        self.secrets.clear();
        self.next = 0;
    }
}

impl Drop for Prefetched {
    fn drop(&mut self) {
        // A compiler may leave out what is written to memory that is then given back.
        self.texts.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keyward_core::digest::{Pepper, PepperRing};
    use keyward_core::id::{Environment, SecretPrefix};
    use keyward_core::secret::IssuedSecret;
    use keyward_core::testing::FixedEntropy;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::index::Index;

    /// The secret of a number, or a text that is none.
    fn text(number: u8) -> String {
        match number {
            0 => String::new(),
            1 => "x".repeat(200),
            number => IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &FixedEntropy([number; 32]))
                .map(|secret| secret.reveal().to_string())
                .unwrap_or_default(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_secret_has_its_own_digest_in_whatever_order_they_are_asked_for(
            given in vec(0..8_u8, 0..24),
            asked in vec(0..10_u8, 0..24),
        ) {
            let pepper = Pepper::new(Zeroizing::new([7; 32]));
            let peppers = PepperRing::new(vec![pepper]).ok_or(TestCaseError::fail("no ring"))?;
            let verifier = Verifier::new(Arc::new(Index::default()), Arc::new(peppers));
            let texts: Vec<_> = given.iter().map(|number| text(*number)).collect();
            let mut prefetched = Prefetched::default();
            prefetched.read(&verifier, texts.iter().map(|text| &**text));
            for number in asked {
                let text = text(number);
                if let Some(found) = prefetched.find(&text) {
                    prop_assert_eq!(found.text(), &*text);
                    prop_assert!(given.contains(&number) && found.digest() == verifier.read(&text).digest());
                }
            }
            // In their order all are found that there is room for.
            let short: Vec<_> = texts.iter().filter(|text| text.len() <= 96).take(TOGETHER).collect();
            prefetched.read(&verifier, short.iter().map(|text| &***text));
            prop_assert!(short.iter().all(|text| prefetched.find(text).is_some()));
            prefetched.clear();
            prop_assert!(texts.iter().all(|text| prefetched.find(text).is_none()));
        }
    }
}
