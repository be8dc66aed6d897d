//! Numbers in stored and received bytes: little-endian words, and the variable-length integers of Protocol
//! Buffers.

use bytes::BufMut;

/// Reads bytes from the beginning. Each read advances; `None`: too few bytes are left.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    /// The next `bytes` bytes.
    #[inline]
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// An array.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// A byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes, with a sign.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Sixteen bytes.
    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// One to ten bytes, seven bits in each, the lowest first
    /// (<https://protobuf.dev/programming-guides/encoding/#varints>). `None` also: it has more than 64 bits.
    #[inline]
    pub fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for (at, &byte) in self.0.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                self.0 = &self.0[at + 1..];
                return (at < 9 || byte < 2).then_some(number);
            }
        }
        None
    }

    /// A varint length, and that many bytes.
    #[inline]
    pub fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.take(length)
    }
}

/// Writes a varint.
pub fn put_varint(out: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8); // below 0x80
}

/// The encoded size of a varint.
#[must_use]
pub fn varint_bytes(number: u64) -> usize {
    let bits = u64::BITS - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_are_those_of_prost(number in prop_oneof![any::<u64>(), 0..1_000_u64], more in any::<u8>()) {
            let mut bytes = vec![];
            put_varint(&mut bytes, number);
            let mut of_prost = vec![];
            prost::encoding::encode_varint(number, &mut of_prost);
            prop_assert_eq!((&bytes, bytes.len()), (&of_prost, varint_bytes(number)));
            bytes.push(more);
            let mut cursor = Cursor(&bytes);
            prop_assert_eq!(cursor.varint(), Some(number));
            prop_assert_eq!(cursor.0, &[more]);
        }

        #[test]
        fn what_prost_takes_for_a_varint_is_one_and_nothing_else(bytes in proptest::collection::vec(prop_oneof![Just(0x80_u8), any::<u8>()], 0..12)) {
            let mut cursor = Cursor(&bytes);
            let read = cursor.varint();
            let mut of_prost = &*bytes;
            prop_assert_eq!(read, prost::encoding::decode_varint(&mut of_prost).ok());
            if read.is_some() {
                prop_assert_eq!(cursor.0, of_prost);
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let mut cursor = Cursor(&[1, 0, 0]);
        assert_eq!((cursor.u32(), cursor.u64(), cursor.u128()), (None, None, None));
        assert_eq!((cursor.u8(), cursor.take(3), cursor.take(2)), (Some(1), None, Some(&[0, 0][..])));
        assert_eq!(cursor.u8(), None);
        assert_eq!(Cursor(&[3, b'a', b'b']).prefixed(), None);
        assert_eq!(Cursor(&[2, b'a', b'b']).prefixed(), Some(&b"ab"[..]));
    }
}
