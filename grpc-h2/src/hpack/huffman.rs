//! The Huffman code of header strings (RFC 7541, section 5.2 and appendix B).
//!
//! The code is canonical: codes are assigned by length, then by symbol. So the lengths are enough, and the
//! tables are computed from them at compile time.

use super::CompressionError;

/// All bytes, and the end-of-string symbol, which no string may hold.
const SYMBOLS: usize = 257;
/// The end-of-string symbol.
const END: u16 = 256;
/// The longest code, in bits.
const BITS_MAX: usize = 30;
/// Codes of up to this many bits take one look-up.
const BITS_SHORT: usize = 8;

/// The length of the code of each symbol, in bits.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23,
    23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22,
    22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26,
    27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// Decoding tables.
struct Code {
    /// By first byte: the symbol whose code starts it, and the length of that code; or the length 0.
    short: [(u8, u8); 1 << BITS_SHORT],
    /// By length: the first code after those of this length, in the highest bits.
    limits: [u32; BITS_MAX + 1],
    /// By length: what to add to a code for its index in `symbols`.
    offsets: [i32; BITS_MAX + 1],
    /// The symbols, ordered by code.
    symbols: [u16; SYMBOLS],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Self {
        let mut code = Self {
            short: [(0, 0); 1 << BITS_SHORT],
            limits: [0; BITS_MAX + 1],
            offsets: [0; BITS_MAX + 1],
            symbols: [0; SYMBOLS],
        };
        let (mut next, mut placed, mut length) = (0_u32, 0, 1);
        while length <= BITS_MAX {
            next <<= 1;
            code.offsets[length] = placed as i32 - next as i32;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == length {
                    code.symbols[placed] = symbol as u16;
                    if length <= BITS_SHORT {
                        let first = (next as usize) << (BITS_SHORT - length);
                        let mut at = first;
                        while at < first + (1 << (BITS_SHORT - length)) {
                            code.short[at] = (symbol as u8, length as u8);
                            at += 1;
                        }
                    }
                    placed += 1;
                    next += 1;
                }
                symbol += 1;
            }
            // The last code is all ones, and the one after it does not fit.
            code.limits[length] = if length == BITS_MAX { u32::MAX } else { next << (32 - length) };
            length += 1;
        }
        code
    }

    /// The symbol whose code is in the highest bits, and the length of the code.
    fn find(&self, bits: u32) -> (u16, usize) {
        let (symbol, length) = self.short[(bits >> (32 - BITS_SHORT)) as usize];
        if length > 0 {
            return (u16::from(symbol), usize::from(length));
        }
        let mut length = BITS_SHORT + 1;
        while length < BITS_MAX && bits >= self.limits[length] {
            length += 1;
        }
        let place = (bits >> (32 - length)) as i32 + self.offsets[length];
        (self.symbols[place as usize], length)
    }
}

/// Appends the decoded string.
///
/// # Errors
/// When it holds the end-of-string symbol, or its padding is not fewer than eight ones.
pub(super) fn decode(coded: &[u8], to: &mut Vec<u8>) -> Result<(), CompressionError> {
    let mut coded = coded.iter();
    // The highest `held` bits of `bits` are not decoded yet; the others are zero.
    let (mut bits, mut held) = (0_u64, 0_usize);
    loop {
        while held <= 56
            && let Some(byte) = coded.next()
        {
            bits |= u64::from(*byte) << (56 - held);
            held += 8;
        }
        if held == 0 {
            return Ok(());
        }
        // Fills up with ones at the end, like the padding: they complete no other code.
        let window = (bits >> 32) as u32 | u32::MAX.checked_shr(held as u32).unwrap_or_default();
        let (symbol, length) = CODE.find(window);
        if length > held {
            let padding = (bits >> 56) as u8;
            let ones = !(0xff_u8.checked_shr(held as u32).unwrap_or_default());
            return if held < 8 && padding == ones { Ok(()) } else { Err(CompressionError) };
        }
        if symbol == END {
            return Err(CompressionError);
        }
        to.push(symbol as u8);
        bits <<= length;
        held -= length;
    }
}
