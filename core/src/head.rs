//! The head of the log: its last revision, and a hash of all of it.
//!
//! A head that is kept apart from the data shows later whether the log was cut off, replaced or rolled back:
//! a log that continues from it has the same hash at that revision, and no other log has.

use std::fmt;
use std::str::FromStr;

use crate::event::Revision;

/// A position in a log with a hash chain. As text it is the revision, a colon, and the chain as 64
/// hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The revision of the last change.
    pub revision: Revision,
    /// The hash of the log up to that change.
    pub chain: [u8; 32],
}

/// A text that is not a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a revision, a colon and 64 hexadecimal digits, as `keyward check` prints it")]
pub struct InvalidHead;

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.revision)?;
        self.chain.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let (revision, hex) = text.split_once(':').ok_or(InvalidHead)?;
        let digits = |text: &str, radix| text.bytes().all(|byte| char::from(byte).is_digit(radix));
        if hex.len() != 64 || !digits(hex, 16) || !digits(revision, 10) {
            return Err(InvalidHead);
        }
        let mut chain = [0; 32];
        for (nth, byte) in chain.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * nth..2 * nth + 2], 16).map_err(|_| InvalidHead)?;
        }
        Ok(Self { revision: Revision(revision.parse().map_err(|_| InvalidHead)?), chain })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = Head { revision: Revision(u64::MAX), chain: std::array::from_fn(|nth| nth as u8 * 7) };
        assert_eq!(head.to_string().parse(), Ok(head));
        assert_eq!(head.to_string().to_uppercase().parse(), Ok(head));
    }

    #[test]
    fn what_is_not_a_head_is_refused() {
        let hex = "ab".repeat(32);
        let odd = format!("1:{}é", &hex[2..]);
        for text in ["", ":", "1", "1:", &hex, &format!(":{hex}"), &format!("+1:{hex}"), &format!("1:{hex}a"), &odd] {
            assert_eq!(text.parse::<Head>(), Err(InvalidHead), "{text}");
        }
        for text in [format!("1:+{}", &hex[1..]), format!("18446744073709551616:{hex}"), format!("1 :{hex}")] {
            assert_eq!(text.parse::<Head>(), Err(InvalidHead), "{text}");
        }
        assert!(format!("1:{hex}").parse::<Head>().is_ok());
    }
}
