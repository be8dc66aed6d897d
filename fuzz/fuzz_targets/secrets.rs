//! Secrets: what is accepted has the form in docs/FORMAT.md, read a second time here, and is found wherever
//! it stands in a text; what is issued is accepted.
#![no_main]

use crc::{CRC_32_ISO_HDLC, Crc};
use keyward_core::id::{Environment, SecretPrefix};
use keyward_core::leak::holds_secret;
use keyward_core::secret::{IssuedSecret, PresentedSecret};
use keyward_core::testing::FixedEntropy;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The number of base62 digits, as big-endian bytes. `None`: a digit is wrong, or it is 2^(8 * N) or more.
fn number<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for digit in digits.bytes() {
        let mut carry = DIGITS.iter().position(|known| *known == digit)?;
        for byte in bytes.iter_mut().rev() {
            carry += usize::from(*byte) * 62;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry > 0 {
            return None;
        }
    }
    Some(bytes)
}

fn is_word(text: &str, bytes_max: usize) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase();
    (1..=bytes_max).contains(&text.len())
        && text.bytes().next().is_some_and(is_letter)
        && text.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

/// The grammar, word by word.
fn is_secret(text: &str) -> Option<()> {
    let (prefix, rest) = text.split_once('_')?;
    let (environment, tail) = rest.split_once('_')?;
    let (random, checksum) = tail.split_at_checked(43)?;
    let sum = Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(text[..text.len() - checksum.len()].as_bytes());
    let is_one = is_word(prefix, 20)
        && is_word(environment, 16)
        && number::<32>(random).is_some()
        && checksum.len() == 6
        && number::<4>(checksum)? == sum.to_be_bytes();
    is_one.then_some(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let is_accepted = PresentedSecret::parse(text).is_ok();
    assert_eq!(is_accepted, is_secret(text).is_some(), "{text:?}");
    let is_found = holds_secret(text);
    assert!(is_found || !is_accepted, "{text:?} is not found");

    // The first words of the text and a hash of it make a secret.
    let mut words = text.splitn(3, '_');
    let (prefix, environment) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (Ok(prefix), Ok(environment)) = (SecretPrefix::parse(prefix), Environment::parse(environment)) else { return };
    let random = FixedEntropy(*blake3::hash(data).as_bytes());
    let Ok(issued) = IssuedSecret::generate(&prefix, &environment, &random) else { panic!("nothing is issued") };
    let issued = issued.reveal();
    assert!(PresentedSecret::parse(&issued).is_ok() && is_secret(&issued).is_some(), "{:?}", &*issued);
    assert_eq!(number(&issued[issued.len() - 49..issued.len() - 6]), Some(random.0));
    let rest = words.next().unwrap_or_default();
    assert!(holds_secret(&format!("{rest}{}{rest}", &*issued)), "it is not found behind {rest:?}");
    for at in [data.len() % issued.len(), issued.len() - 1] {
        let mut changed = issued.to_string();
        let other = if issued.as_bytes()[at] == b'0' { "1" } else { "0" };
        changed.replace_range(at..=at, other);
        assert!(PresentedSecret::parse(&changed).is_err(), "{changed}");
    }
});
