//! Secrets: their grammar, generation and parsing. The only module that handles plaintext.
//!
//! ```text
//! kw_live_0aZ…(43)…XYab12(6)
//! │  │    │         └ CRC-32 of everything before it, base62
//! │  │    └ 32 random bytes as one big-endian number, base62
//! │  └ environment
//! └ prefix of the tenant
//! ```
//!
//! base62 digits are `0-9A-Za-z` in that order, most significant first, padded with `0` to the fixed width.
//! Only the canonical form is accepted. docs/FORMAT.md has the grammar and test vectors. Secret scanners look
//! for the prefix: the form of issued secrets must never change.

use crc::{CRC_32_ISO_HDLC, Crc, Table};
use zeroize::{Zeroize, Zeroizing};

use crate::entropy::{Entropy, EntropyError};
use crate::id::{Environment, SecretPrefix, is_word};
use crate::limits::{ENVIRONMENT_BYTES_MAX, SECRET_BYTES_MAX, SECRET_PREFIX_BYTES_MAX};

const RANDOM_BYTES: usize = 32;
const RANDOM_DIGITS: usize = 43;
const CHECKSUM_DIGITS: usize = 6;
/// Everything after the second underscore.
pub(crate) const TAIL_DIGITS: usize = RANDOM_DIGITS + CHECKSUM_DIGITS;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 2^256 - 1. The digits are in ASCII order, so comparing bytes compares numbers.
const RANDOM_DIGITS_MAX: &[u8; RANDOM_DIGITS] = b"yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp1";
const CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISO_HDLC);

/// A new secret, for the one reply that shows it. It cannot be printed, cloned or compared, and is revealed
/// once.
pub struct IssuedSecret(Zeroizing<String>);

impl IssuedSecret {
    /// Makes a secret from 32 random bytes.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn generate(
        prefix: &SecretPrefix,
        environment: &Environment,
        entropy: &dyn Entropy,
    ) -> Result<Self, EntropyError> {
        let mut random = Zeroizing::new([0; RANDOM_BYTES]);
        entropy.fill(&mut *random)?;

        // With its final capacity: a string that grows would leave copies behind.
        let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES_MAX));
        text.push_str(prefix.as_str());
        text.push('_');
        text.push_str(environment.as_str());
        text.push('_');
        push_digits(&mut text, &mut random);
        let checksum = checksum_digits(text.as_bytes());
        text.extend(checksum.map(char::from));
        Ok(Self(text))
    }

    /// The secret as a client would present it.
    #[must_use]
    pub fn as_presented(&self) -> PresentedSecret<'_> {
        PresentedSecret(&self.0)
    }

    /// The text, to be shown.
    #[must_use]
    pub fn reveal(self) -> Zeroizing<String> {
        self.0
    }
}

/// A text from a request that has the form of a secret. It cannot be printed.
pub struct PresentedSecret<'a>(&'a str);

/// The text is not a secret. It does not say why, so that guessing teaches nothing; the documents have the
/// grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a secret")]
pub struct MalformedSecret;

impl<'a> PresentedSecret<'a> {
    /// Parses a secret: its length first, then its grammar, then its checksum.
    ///
    /// # Errors
    /// When the text is not the canonical form of a secret.
    pub fn parse(text: &'a str) -> Result<Self, MalformedSecret> {
        let bytes = text.as_bytes();
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(MalformedSecret);
        }
        let (head, tail) = bytes.split_at_checked(bytes.len().wrapping_sub(TAIL_DIGITS)).ok_or(MalformedSecret)?;
        let (random, checksum) = tail.split_at(RANDOM_DIGITS);

        let words = head.strip_suffix(b"_").ok_or(MalformedSecret)?;
        let split = words.iter().position(|&b| b == b'_').ok_or(MalformedSecret)?;
        let (prefix, environment) = (&words[..split], &words[split + 1..]);
        let named = prefix.len() <= SECRET_PREFIX_BYTES_MAX
            && is_word(prefix, b"")
            && environment.len() <= ENVIRONMENT_BYTES_MAX
            && is_word(environment, b"");
        // Without an early exit, so that the compiler can check sixteen bytes at a time.
        let alphanumeric = tail.iter().fold(true, |all, byte| all & byte.is_ascii_alphanumeric());
        let numbered = alphanumeric && random <= RANDOM_DIGITS_MAX;
        if !named || !numbered || checksum != checksum_digits(&bytes[..bytes.len() - CHECKSUM_DIGITS]) {
            return Err(MalformedSecret);
        }
        Ok(Self(text))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Prefix and environment, each with an underscore behind it.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.0[..self.0.len() - TAIL_DIGITS]
    }

    /// Prefix, environment and the last 4 characters, for people to tell secrets apart.
    #[must_use]
    pub fn hint(&self) -> String {
        format!("{}…{}", self.head(), &self.0[self.0.len() - 4..])
    }
}

fn checksum_digits(bytes: &[u8]) -> [u8; CHECKSUM_DIGITS] {
    let mut rest = CRC32.checksum(bytes);
    let mut digits = [0; CHECKSUM_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

/// Digits that one division yields, and the divisor.
const STEP_DIGITS: usize = 5;
const STEP: u64 = 62_u64.pow(STEP_DIGITS as u32);

/// Appends a big-endian number in base62. The number is zeroed.
fn push_digits(text: &mut String, number: &mut [u8; RANDOM_BYTES]) {
    let mut words = Zeroizing::new([0_u32; RANDOM_BYTES / 4]);
    for (word, bytes) in words.iter_mut().zip(number.as_chunks().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    number.zeroize();
    let mut digits = Zeroizing::new([0; RANDOM_DIGITS]);
    for digits in digits.rchunks_mut(STEP_DIGITS) {
        let mut remainder = 0;
        for word in words.iter_mut() {
            let value = remainder << 32 | u64::from(*word);
            *word = (value / STEP) as u32; // remainder < STEP, so value < STEP * 2^32
            remainder = value % STEP;
        }
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(remainder % 62) as usize];
            remainder /= 62;
        }
    }
    text.extend(digits.iter().map(|&d| char::from(d)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FixedEntropy, SeededEntropy};
    use proptest::prelude::*;
    use static_assertions::assert_not_impl_any;
    use std::fmt::{Debug, Display};

    assert_not_impl_any!(IssuedSecret: Clone, Copy, Debug, Display, PartialEq);
    assert_not_impl_any!(PresentedSecret<'static>: Clone, Copy, Debug, Display, PartialEq);

    fn issue(entropy: &dyn Entropy) -> String {
        let secret = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), entropy);
        secret.unwrap().reveal().to_string()
    }

    #[test]
    fn the_largest_number_is_the_bound_of_the_grammar() {
        let text = issue(&FixedEntropy([0xff; 32]));
        assert_eq!(text.as_bytes()[8..8 + RANDOM_DIGITS], *RANDOM_DIGITS_MAX);
        assert!(PresentedSecret::parse(&text).is_ok());
    }

    #[test]
    fn a_number_past_32_bytes_is_refused_even_with_a_good_checksum() {
        let mut text = "kw_live_".to_owned() + std::str::from_utf8(RANDOM_DIGITS_MAX).unwrap();
        text.replace_range(text.len() - 1.., "2");
        let checksum = checksum_digits(text.as_bytes());
        text.push_str(std::str::from_utf8(&checksum).unwrap());
        assert_eq!(PresentedSecret::parse(&text).err(), Some(MalformedSecret));
    }

    #[test]
    fn a_source_that_fails_issues_nothing() {
        struct Broken;
        impl Entropy for Broken {
            fn fill(&self, _: &mut [u8]) -> Result<(), EntropyError> {
                Err(EntropyError("gone".into()))
            }
        }
        assert!(IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &Broken).is_err());
    }

    #[test]
    fn a_hint_shows_four_characters_of_the_secret() {
        let secret = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &SeededEntropy::new(7)).unwrap();
        let hint = secret.as_presented().hint();
        let text = secret.reveal();
        assert_eq!(hint, format!("kw_live_…{}", &text[text.len() - 4..]));
    }

    proptest! {
        #[test]
        fn what_is_issued_is_read_back(seed: u64, prefix in "[a-z][a-z0-9]{0,19}", env in "[a-z][a-z0-9]{0,15}") {
            let prefix = SecretPrefix::parse(&prefix).unwrap();
            let env = Environment::parse(&env).unwrap();
            let text = IssuedSecret::generate(&prefix, &env, &SeededEntropy::new(seed)).unwrap().reveal();
            prop_assert!(text.len() <= SECRET_BYTES_MAX);
            prop_assert!(PresentedSecret::parse(&text).is_ok());
        }

        #[test]
        fn any_changed_character_is_noticed(seed: u64, at in 0..57_usize, to in "[ -~]") {
            let text = issue(&SeededEntropy::new(seed));
            let mut changed = text.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != text);
            prop_assert!(PresentedSecret::parse(&changed).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in "\\PC{0,300}") {
            prop_assert!(PresentedSecret::parse(&text).is_err());
        }

        #[test]
        fn a_secret_with_anything_around_it_is_refused(seed: u64, extra in "[ -~]{1,8}") {
            let text = issue(&SeededEntropy::new(seed));
            let (after, before) = (format!("{text}{extra}"), format!("{extra}{text}"));
            prop_assert!(PresentedSecret::parse(&after).is_err());
            prop_assert!(PresentedSecret::parse(&before).is_err());
        }
    }
}
