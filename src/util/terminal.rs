//! The terminal: its width, how wide a text is on it, and a line that is typed unseen.

use std::io::{self, Read};

use icu_properties::props::{
    BinaryProperty, DefaultIgnorableCodePoint, EastAsianWidth, EnumeratedProperty, GeneralCategory,
};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use zeroize::Zeroizing;

/// The columns of the terminal on standard output. `None`: there is none, or it does not tell.
#[must_use]
pub fn columns() -> Option<usize> {
    tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The columns that a text takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    if c.is_ascii() {
        return 1;
    }
    match GeneralCategory::for_char(c) {
        GeneralCategory::NonspacingMark | GeneralCategory::EnclosingMark => 0,
        _ if DefaultIgnorableCodePoint::for_char(c) => 0,
        _ => match EastAsianWidth::for_char(c) {
            EastAsianWidth::Wide | EastAsianWidth::Fullwidth => 2,
            _ => 1,
        },
    }
}

/// A text without anything that would steer a terminal: control characters, and those that change the
/// direction of what follows, are written as numbers.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let steers = c.is_control() || GeneralCategory::for_char(c) == GeneralCategory::Format && !is_joiner(c);
        match steers {
            true => shown.extend(c.escape_unicode()),
            false => shown.push(c),
        }
    }
    shown
}

/// Emoji and some scripts need them within a word.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Reads a line from standard input, at most so many bytes of it. The end of the line is not part of it.
///
/// # Errors
/// When it cannot be read, or is no text.
pub fn read_line(bytes_max: usize) -> io::Result<Zeroizing<String>> {
    // With its final capacity: what grows would leave copies behind.
    let mut line = Zeroizing::new(Vec::with_capacity(bytes_max));
    let mut byte = Zeroizing::new([0]);
    let mut input = io::stdin().lock();
    while line.len() < bytes_max && input.read(&mut *byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    let text = std::str::from_utf8(&line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The terminal on standard input, if it is one, does not show what is typed until this is dropped.
#[derive(Debug)]
pub struct Unseen(Option<Termios>);

impl Unseen {
    /// Stops the echo.
    #[must_use]
    pub fn begin() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        // The end of the line is shown, so that what comes next begins a line of its own.
        silent.local_modes.insert(LocalModes::ECHONL);
        Self(tcsetattr(io::stdin(), OptionalActions::Flush, &silent).is_ok().then_some(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // If the terminal has gone, nobody sees it.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_wide_as_a_terminal_shows_it() {
        for (text, columns) in
            [("Zapier", 6), ("顧客", 4), ("ｱ", 1), ("e\u{301}", 1), ("Müller", 6), ("🔑", 2), ("", 0)]
        {
            assert_eq!(width(text), columns, "{text}");
        }
    }

    #[test]
    fn nothing_in_a_text_steers_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{202e}c"), "a\\u{1b}[2Jb\\u{d}\\u{202e}c");
        assert_eq!(harmless("顧客 \u{1f468}\u{200d}\u{1f469}"), "顧客 \u{1f468}\u{200d}\u{1f469}");
    }
}
