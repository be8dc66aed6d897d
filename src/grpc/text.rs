//! The rules of texts that people read and compare.
//!
//! Two texts that look alike must be equal. So invisible characters are refused, except where a script or an
//! emoji needs one, and texts are stored in Unicode's normalization form C.

use icu_properties::props::{
    BinaryProperty, CanonicalCombiningClass, DefaultIgnorableCodePoint, Emoji, EmojiModifier, EnumeratedProperty,
    ExtendedPictographic, GeneralCategory, JoiningType,
};
use unicode_normalization::{UnicodeNormalization, is_nfc};

const NON_JOINER: char = '\u{200c}';
const JOINER: char = '\u{200d}';
const TEXT_STYLE: char = '\u{fe0e}';
const EMOJI_STYLE: char = '\u{fe0f}';
/// A blank among the patterns of Braille: a symbol by its category.
const BRAILLE_BLANK: char = '\u{2800}';
/// Makes a key of the digit before it.
const KEYCAP: char = '\u{20e3}';

/// The text in normalization form C.
pub(super) fn normalized(text: String) -> String {
    if text.is_ascii() || is_nfc(&text) { text } else { text.nfc().collect() }
}

/// Which rule a text breaks in the form that is kept, if any. An empty one breaks none.
pub(super) fn broken_rule(text: &str) -> Option<String> {
    // Normalizing may put another mark between a joiner and what it needs.
    let text = &*normalized(text.to_owned());
    if text.is_empty() {
        return None;
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Some("must not begin or end with white space".to_owned());
    }
    let mut visible = false;
    for (at, c) in text.char_indices() {
        let (before, after) = (&text[..at], &text[at + c.len_utf8()..]);
        match () {
            () if c.is_ascii_graphic() => visible = true,
            () if c.is_control() => return Some("must have no control characters".to_owned()),
            () if !may_stand(c, before, after) => {
                let number = u32::from(c);
                return Some(format!(
                    "must not contain U+{number:04X}, which nobody sees, or which Unicode does not define"
                ));
            }
            () => visible |= is_seen(c),
        }
    }
    (!visible).then(|| "must have a character that can be seen".to_owned())
}

fn may_stand(c: char, before: &str, after: &str) -> bool {
    match c {
        NON_JOINER => is_virama(before) || joins(before, after),
        JOINER => is_virama(before) || is_between_pictures(before, after),
        TEXT_STYLE | EMOJI_STYLE => is_emoji(before, after),
        c => !DefaultIgnorableCodePoint::for_char(c) && !is_unseen(GeneralCategory::for_char(c)),
    }
}

fn is_unseen(category: GeneralCategory) -> bool {
    matches!(
        category,
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::Surrogate
            | GeneralCategory::PrivateUse
            | GeneralCategory::Unassigned
    )
}

/// Whether a character that may stand leaves something to see by itself.
fn is_seen(c: char) -> bool {
    let category = GeneralCategory::for_char(c);
    let is_mark = matches!(
        category,
        GeneralCategory::NonspacingMark | GeneralCategory::SpacingMark | GeneralCategory::EnclosingMark
    );
    !c.is_whitespace() && !is_mark && !is_unseen(category) && c != BRAILLE_BLANK
}

/// RFC 5892, appendix A.1 and A.2: behind a virama.
fn is_virama(before: &str) -> bool {
    before.chars().next_back().is_some_and(|c| CanonicalCombiningClass::for_char(c) == CanonicalCombiningClass::Virama)
}

/// RFC 5892, appendix A.1: between letters that would join, across marks.
fn joins(before: &str, after: &str) -> bool {
    let kind = JoiningType::for_char;
    let past_marks = |c: &char| kind(*c) != JoiningType::Transparent;
    let left = before.chars().rev().find(past_marks).map(kind);
    let right = after.chars().find(past_marks).map(kind);
    matches!(left, Some(JoiningType::LeftJoining | JoiningType::DualJoining))
        && matches!(right, Some(JoiningType::RightJoining | JoiningType::DualJoining))
}

/// Between two pictures, of which the first may have a colour of skin and a style.
fn is_between_pictures(before: &str, after: &str) -> bool {
    let decorates = |c: &char| *c == EMOJI_STYLE || EmojiModifier::for_char(*c);
    let left = before.chars().rev().find(|c| !decorates(c));
    left.is_some_and(ExtendedPictographic::for_char) && after.chars().next().is_some_and(ExtendedPictographic::for_char)
}

/// Behind an emoji. A digit is one only where it becomes a key.
fn is_emoji(before: &str, after: &str) -> bool {
    match before.chars().next_back() {
        Some(c) if c.is_ascii() => Emoji::for_char(c) && after.starts_with(KEYCAP),
        Some(c) => Emoji::for_char(c),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nobody_sees_is_refused_wherever_it_stands() {
        let unseen = [
            '\u{200b}',
            '\u{feff}',
            '\u{2060}',
            '\u{ad}',
            '\u{3164}',
            '\u{202e}',
            '\u{200e}',
            '\u{200f}',
            '\u{61c}',
            '\u{34f}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{180e}',
            '\u{2028}',
            '\u{2029}',
            '\u{2066}',
            '\u{206f}',
            '\u{fe00}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{e000}',
            '\u{f0000}',
            '\u{10fffd}',
            '\u{fdd0}',
            '\u{378}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0061}',
            '\u{e0100}',
            '\u{85}',
            '\u{7f}',
            '\0',
            '\n',
            '\t',
            '\u{600}',
            '\u{200c}',
            '\u{200d}',
            '\u{fe0e}',
            '\u{fe0f}',
        ];
        for c in unseen {
            for text in [format!("{c}owner"), format!("ow{c}ner"), format!("owner{c}"), c.to_string()] {
                assert!(broken_rule(&text).is_some(), "{text:?}");
            }
        }
        for space in [' ', '\u{a0}', '\u{2003}', '\u{3000}', '\u{1680}'] {
            assert!(broken_rule(&format!("{space}owner")).is_some() && broken_rule(&format!("owner{space}")).is_some());
            assert_eq!(broken_rule(&format!("an{space}owner")), None);
        }
        for blank in ["\u{2800}", "\u{2800}\u{2800}", "\u{301}", "\u{20dd}", "\u{903}"] {
            assert_eq!(broken_rule(blank).as_deref(), Some("must have a character that can be seen"), "{blank:?}");
        }
        assert!(broken_rule("a\u{200b}b").unwrap().contains("U+200B"));
    }

    #[test]
    fn names_of_people_in_their_own_scripts_are_taken() {
        let names = [
            "",
            "Zapier",
            "Internal Dashboard",
            "Müller & Söhne",
            "M\u{fc}ller",
            "Mu\u{308}ller",
            "株式会社",
            "Ελλάδα",
            "Олег",
            "עברית",
            "العربية",
            "हिन्दी",
            "ไทย",
            "தமிழ்",
            "한국어",
            "Łódź",
            "Nguyễn",
            "²³½",
            "€",
            "a\u{2800}b",
            "🙂",
            "👍🏽",
            // With a joiner or a non-joiner that their spelling needs.
            "می\u{200c}خواهم",
            "نامه\u{200c}ای",
            "क्\u{200d}ष",
            "क्\u{200c}ष",
            "ශ්\u{200d}රී",
            // Emoji that are several characters.
            "❤\u{fe0f}",
            "☎\u{fe0e}",
            "1\u{fe0f}\u{20e3}",
            "👩\u{200d}💻",
            "👩🏽\u{200d}💻",
            "❤\u{fe0f}\u{200d}🔥",
            "👨\u{200d}👩\u{200d}👧\u{200d}👦",
            "🏴\u{200d}☠\u{fe0f}",
            "🇩🇪",
        ];
        for name in names {
            assert_eq!(broken_rule(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_joiner_where_it_does_nothing_is_refused() {
        for text in [
            "a\u{200d}b",
            "a\u{200c}b",
            "👩\u{200d}",
            "\u{200d}💻",
            "👩\u{200d}\u{200d}💻",
            "👩\u{200d}b",
            "ا\u{200c}ب",
            "ب\u{200c}",
            "ب\u{200c}a",
            "❤\u{fe0f}\u{fe0f}",
            "a\u{fe0f}",
            "1\u{fe0f}",
            "1\u{fe0e}2",
            "क\u{200d}ष",
            "ب\u{200d}ب",
            // The marks change places.
            "\u{308}\u{94d}\u{200c}ष",
        ] {
            assert!(broken_rule(text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn one_form_is_kept() {
        assert_eq!(normalized("Mu\u{308}ller".into()), "M\u{fc}ller");
        assert_eq!(normalized("M\u{fc}ller".into()), "M\u{fc}ller");
        assert_eq!(normalized("\u{212b}ngstr\u{f6}m".into()), "\u{c5}ngstr\u{f6}m");
        // What only looks similar stays: these are other letters.
        assert_eq!(normalized("\u{ff21}".into()), "\u{ff21}");
    }

    proptest! {
        /// What is taken is still taken once it is normalized, and does not change again.
        #[test]
        fn normalizing_breaks_no_rule(text in "[a-z\u{301}\u{308}\u{fc}क्ष\u{200d}\u{200c}بام❤\u{fe0f}👩💻1\u{20e3} ]{0,12}") {
            let kept = normalized(text.clone());
            prop_assert_eq!(normalized(kept.clone()), kept.clone());
            if broken_rule(&text).is_none() {
                prop_assert_eq!(broken_rule(&kept), None);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in any::<String>()) {
            let _ = (broken_rule(&text), normalized(text));
        }
    }
}
