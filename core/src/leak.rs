//! Finds secrets in texts where none belong. People paste them into labels, notes and reasons, which are
//! stored and shown.
//!
//! Disguises that a reader would undo are undone: percent-encoding is decoded, full-width and other styled
//! letters become plain ones, and white space, invisible characters and backslashes (of Markdown) are
//! skipped. Any text may stand before and after the secret.

use zeroize::Zeroizing;

use crate::limits::{ENVIRONMENT_BYTES_MAX, SECRET_BYTES_MIN, SECRET_PREFIX_BYTES_MAX};
use crate::secret::{PresentedSecret, TAIL_DIGITS};

/// How often percent-encoding is decoded, because a text may be encoded more than once.
const DECODINGS_MAX: usize = 3;

/// Whether a text contains the secret of a key.
///
/// The time is linear in the length of the text, which the caller must bound.
#[must_use]
#[inline]
pub fn holds_secret(text: &str) -> bool {
    // No disguise makes a text shorter.
    text.len() >= SECRET_BYTES_MIN && long_text_holds_secret(text)
}

fn long_text_holds_secret(text: &str) -> bool {
    let is_secret = |candidate: &str| PresentedSecret::parse(candidate).is_ok();
    let mut plain = normalized(text);
    for _ in 0..DECODINGS_MAX {
        if any_candidate(&plain, is_secret) {
            return true;
        }
        match percent_decoded(&plain) {
            Some(decoded) => plain = normalized(&decoded),
            None => return false,
        }
    }
    any_candidate(&plain, is_secret)
}

/// Whether `is_secret` holds for any part of an ASCII text that has the outer form of a secret: a prefix, an
/// environment between two underscores, and a tail of alphanumeric characters of the right length. The prefix
/// may begin at any letter of the word before the environment.
fn any_candidate(text: &str, mut is_secret: impl FnMut(&str) -> bool) -> bool {
    let bytes = text.as_bytes();
    let word = |from: usize, to: usize| {
        let behind = bytes[from..to].iter().rev();
        to - behind.take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).count()
    };
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'_').any(|(second, _)| {
        let end = second + 1 + TAIL_DIGITS;
        let tail = bytes.get(second + 1..end);
        if !tail.is_some_and(|tail| tail.iter().all(u8::is_ascii_alphanumeric)) {
            return false;
        }
        let environment = word(second.saturating_sub(ENVIRONMENT_BYTES_MAX), second);
        let Some(first) = environment.checked_sub(1).filter(|&at| bytes[at] == b'_') else { return false };
        let earliest = word(first.saturating_sub(SECRET_PREFIX_BYTES_MAX), first);
        (earliest..first).any(|begin| is_secret(&text[begin..end]))
    })
}

/// The text in ASCII: letters as plain ones, ignorable characters left out, and a blank for everything else.
fn normalized(text: &str) -> Zeroizing<String> {
    // With its final capacity: a string that grows would leave copies behind.
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    plain.extend(text.chars().filter(|&c| !is_ignorable(c)).map(normalized_char));
    plain
}

/// The text with percent-encoding decoded once. `None`: it has none.
fn percent_decoded(text: &str) -> Option<Zeroizing<String>> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text.as_bytes();
    let mut decoded = Zeroizing::new(Vec::with_capacity(rest.len()));
    let mut any = false;
    while let Some((&byte, after)) = rest.split_first() {
        let pair = after.split_first_chunk().filter(|_| byte == b'%');
        match pair.and_then(|(&[high, low], after)| Some((hex(high)? << 4 | hex(low)?, after))) {
            Some((byte, after)) => {
                decoded.push(byte);
                (rest, any) = (after, true);
            }
            None => {
                decoded.push(byte);
                rest = after;
            }
        }
    }
    any.then(|| {
        let mut text = Zeroizing::new(String::with_capacity(decoded.len()));
        // Bytes that are not UTF-8 are left out: a secret has none.
        decoded.utf8_chunks().for_each(|chunk| text.push_str(chunk.valid()));
        text
    })
}

/// Whether a character is skipped: Unicode's default ignorable code points, combining marks, white space,
/// control characters, and the backslash.
fn is_ignorable(c: char) -> bool {
    match c {
        '!'..='[' | ']'..='~' => false,
        '\\' => true,
        '\u{ad}' | '\u{300}'..='\u{36f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => true,
        '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{fe20}'..='\u{fe2f}' | '\u{feff}' => true,
        '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' => true,
        '\u{e0000}'..='\u{e0fff}' => true,
        c => c.is_whitespace() || c.is_control(),
    }
}

/// The plain form of a letter, digit, underscore or percent sign, as of Unicode's compatibility decomposition
/// (NFKC); else a blank.
fn normalized_char(c: char) -> char {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letter = |first: char, c: char| char::from(LETTERS[(c as usize - first as usize) % 52]);
    let digit = |first: char, c: char| char::from(b'0' + (c as u32 - first as u32).rem_euclid(10) as u8); // below 10
    match c {
        '!'..='~' => c,
        // Full-width.
        '\u{ff01}'..='\u{ff5e}' => char::from((c as u32 - 0xff01 + 0x21) as u8), // 0x21 to 0x7e
        // Mathematical: bold, italic, script and so on, 52 letters each, and five kinds of digits.
        '\u{1d400}'..='\u{1d6a3}' => letter('\u{1d400}', c),
        '\u{1d7ce}'..='\u{1d7ff}' => digit('\u{1d7ce}', c),
        // Some of those letters have older code points.
        '\u{212c}' => 'B',
        '\u{2102}' | '\u{212d}' => 'C',
        '\u{2130}' => 'E',
        '\u{2131}' => 'F',
        '\u{210b}'..='\u{210d}' => 'H',
        '\u{2110}' | '\u{2111}' => 'I',
        '\u{2112}' => 'L',
        '\u{2133}' => 'M',
        '\u{2115}' => 'N',
        '\u{2119}' => 'P',
        '\u{211a}' => 'Q',
        '\u{211b}'..='\u{211d}' => 'R',
        '\u{2124}' | '\u{2128}' => 'Z',
        '\u{212f}' => 'e',
        '\u{210a}' => 'g',
        '\u{210e}' => 'h',
        '\u{2134}' => 'o',
        '\u{2113}' => 'l',
        // Circled letters, and segmented digits.
        '\u{24b6}'..='\u{24e9}' => letter('\u{24b6}', c),
        '\u{1fbf0}'..='\u{1fbf9}' => digit('\u{1fbf0}', c),
        '\u{fe33}' | '\u{fe34}' | '\u{fe4d}'..='\u{fe4f}' => '_',
        '\u{fe6a}' => '%',
        _ => ' ',
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Environment, SecretPrefix};
    use crate::secret::IssuedSecret;
    use crate::testing::SeededEntropy;

    fn secret(seed: u64, prefix: &str, environment: &str) -> String {
        let (prefix, environment) = (SecretPrefix::parse(prefix).unwrap(), Environment::parse(environment).unwrap());
        IssuedSecret::generate(&prefix, &environment, &SeededEntropy::new(seed)).unwrap().reveal().to_string()
    }

    /// Ways to write a character so that it is still read as the same.
    fn disguised(c: char, way: u8) -> String {
        let percent = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let full_width = char::from_u32(c as u32 - 0x21 + 0xff01).unwrap();
        let bold = match c {
            'A'..='Z' => char::from_u32(0x1d400 + c as u32 - 'A' as u32).unwrap(),
            'a'..='z' => char::from_u32(0x1d41a + c as u32 - 'a' as u32).unwrap(),
            '0'..='9' => char::from_u32(0x1d7ce + c as u32 - '0' as u32).unwrap(),
            _ => '\u{fe4d}',
        };
        match way {
            0 => percent(&c.to_string()).to_uppercase(),
            1 => full_width.to_string(),
            2 => bold.to_string(),
            3 => format!("{c}\u{200b}"),
            4 => format!("\u{ad}\u{feff}{c}"),
            5 => format!("{c}\n  "),
            6 => format!("\\{c}"),
            7 => percent(&percent(&c.to_string())),
            8 => percent(&full_width.to_string()),
            9 => format!("{c}\u{e0041}\u{2060}"),
            10 => format!("\u{ff05}{:02X}", c as u32),
            _ => c.to_string(),
        }
    }

    #[test]
    fn each_way_to_write_a_secret_is_seen_through() {
        let plain = secret(1, "kw", "live");
        for way in 0..12 {
            let all: String = plain.chars().map(|c| disguised(c, way)).collect();
            assert!(holds_secret(&all), "way {way} for all characters");
            let underscores = plain.replace('_', &disguised('_', way));
            assert!(holds_secret(&underscores), "way {way} for underscores");
            assert!(holds_secret(&format!("Xa9{underscores}Zz")), "way {way}, glued to letters");
        }
    }

    proptest! {
        #[test]
        fn a_secret_is_found_wherever_and_however_it_stands(
            seed: u64,
            prefix in "[a-z][a-z0-9]{0,19}",
            environment in "[a-z][a-z0-9]{0,15}",
            ways in vec(0..24_u8, 64..65),
            before in "[ -~]{0,30}|\\PC{0,30}",
            after in "[ -~]{0,30}|\\PC{0,30}",
        ) {
            // A percent sign before it could eat its first letters.
            prop_assume!(!before.contains(['%', '\u{ff05}', '\u{fe6a}']));
            let plain = secret(seed, &prefix, &environment);
            let hidden: String = plain.chars().zip(ways.iter().cycle()).map(|(c, way)| disguised(c, *way)).collect();
            let in_plain = format!("{before}{plain}{after}");
            let in_disguise = format!("{before}{hidden}{after}");
            prop_assert!(holds_secret(&in_plain));
            prop_assert!(holds_secret(&in_disguise));
        }

        #[test]
        fn a_secret_is_found_behind_anything(seed: u64, before in "\\PC{0,40}") {
            let text = format!("{before}{}", secret(seed, "kw", "live"));
            prop_assert!(holds_secret(&text));
        }

        #[test]
        fn ordinary_texts_hold_none(text in "\\PC{0,400}|([A-Za-z0-9%_]{0,60}[ _%.,:-]){0,12}") {
            prop_assert!(!holds_secret(&text));
        }

        #[test]
        fn what_only_looks_like_a_secret_is_none(seed: u64, at in 8..57_usize, to in "[0-9A-Za-z]") {
            let plain = secret(seed, "kw", "live");
            let mut changed = plain.clone();
            changed.replace_range(at..=at, &to);
            prop_assume!(changed != plain);
            prop_assert!(!holds_secret(&changed));
        }
    }

    #[test]
    fn a_hint_and_other_harmless_texts_may_be_written_anywhere() {
        for text in [
            "kw_live_…Ab12 belongs to the billing service, see https://example.com/a%5Fb?c=%E2%82%AC for what it is for",
            "rotated on 2026-01-01; the old one was revoked_by_the_operator_because_it_was_found_in_a_public_repository_on_a_host",
            "0123456789_abcdef_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
        ] {
            assert!(!holds_secret(text), "{text}");
        }
    }

    /// The dearest part is the checksum: it is asked for once for each place where a prefix may begin, and no
    /// tail belongs to two environments.
    #[test]
    fn the_work_on_a_text_is_bounded_by_its_length() {
        let tail = "A".repeat(TAIL_DIGITS);
        let texts = [
            format!("aaaaaaaaaaaaaaaaaaaaaaaa_a_{tail}"),
            format!("a_{tail}"),
            format!("a_a_{tail}"),
            "a_".to_owned(),
            "_".to_owned(),
        ];
        for text in texts {
            let text = text.repeat(100_000 / text.len());
            let mut asked = 0;
            assert!(!any_candidate(&text, |candidate| {
                asked += candidate.len();
                false
            }));
            assert!(asked <= 24 * text.len(), "{asked} bytes of {}", text.len());
        }
    }
}
