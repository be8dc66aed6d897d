//! Header compression (RFC 7541): decodes the header blocks of requests, and encodes those of replies.

mod encode;
mod field_kind;
mod huffman;
mod table;

#[cfg(test)]
mod tests;

pub(super) use self::encode::Encoder;
pub(super) use self::field_kind::FieldKind;
pub(super) use self::table::{ENTRY_BYTES, Field};

use self::table::Table;
use super::buffer::Buffer;

/// The size of the dynamic table that peers may use, in bytes: the default of SETTINGS_HEADER_TABLE_SIZE.
pub(super) const TABLE_BYTES: usize = 4096;

/// Bytes of an integer after its first at most: 28 bits, far beyond any accepted length.
const INTEGER_BYTES_MAX: u32 = 4;

/// Bytes of an encoded string at most. In a block of several frames a longer one is skipped, because its
/// field is too long for every head and for the table: even with the longest Huffman codes, of 30 bits, this
/// much would decode to 4,369 bytes. No head may have more (`Limits::header_bytes_max`).
pub(super) const STRING_BYTES_MAX: usize = 16 * 1024;
const _: () = assert!(STRING_BYTES_MAX * 8 / 30 >= TABLE_BYTES);

/// A header block that cannot be decoded. The state of the decoder is lost with it (RFC 7541, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompressionError;

/// Why decoding stops.
enum DecodeError {
    /// A rule of RFC 7541 is broken.
    Invalid,
    /// The input ends within a field.
    Incomplete,
    /// A string of the field is too long. The rest begins with its first byte.
    TooLong(Skip),
}

impl From<CompressionError> for DecodeError {
    fn from(_: CompressionError) -> Self {
        Self::Invalid
    }
}

/// The rest of a field that is skipped.
#[derive(Clone, Copy)]
struct Skip {
    /// Bytes left of the current string.
    bytes: usize,
    /// Whether that is the name. The value comes next.
    is_name: bool,
    /// Whether the field would go into the dynamic table.
    indexed: bool,
}

impl Skip {
    /// Skips input, and returns whether that was the rest of the field.
    fn pass(&mut self, rest: &mut &[u8]) -> Result<bool, DecodeError> {
        loop {
            let (passed, further) = rest.split_at(self.bytes.min(rest.len()));
            *rest = further;
            self.bytes -= passed.len();
            if self.bytes > 0 {
                return Ok(false);
            }
            if !self.is_name {
                return Ok(true);
            }
            let mut at = *rest;
            match integer(&mut at, 7) {
                Ok(bytes) => (self.bytes, self.is_name) = (bytes, false),
                Err(DecodeError::Incomplete) => return Ok(false),
                Err(error) => return Err(error),
            }
            *rest = at;
        }
    }
}

/// Decodes the header blocks of one connection.
pub(super) struct Decoder {
    table: Table,
    name: Buffer,
    value: Buffer,
    /// Whether a literal repeated a credential that is in the table.
    repeats_credential: bool,
    /// For a block in pieces: the part of a field that goes on in the next piece.
    rest: Buffer,
    /// Whether a field of the block has come. False between two blocks.
    has_fields: bool,
    /// For a block in pieces: the field that is skipped.
    skip: Option<Skip>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: Table::new(TABLE_BYTES),
            name: Buffer::new(),
            value: Buffer::new(),
            repeats_credential: false,
            rest: Buffer::new(),
            has_fields: false,
            skip: None,
        }
    }

    /// Changes with every change of the table. A block that is decoded at the same version has the same
    /// meaning.
    pub(super) fn version(&self) -> u64 {
        self.table.version()
    }

    /// Its size in memory, in bytes, with the table as RFC 7541 counts it.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.name.capacity() + self.value.capacity() + self.rest.capacity()
    }

    /// The size of its table (RFC 7541, section 4.1).
    #[cfg(feature = "_fuzz")]
    pub(super) fn table_bytes(&self) -> usize {
        self.table.bytes()
    }

    /// Decodes a whole block, field by field.
    ///
    /// # Errors
    /// When it breaks a rule of RFC 7541.
    pub(super) fn decode(&mut self, block: &[u8], field: impl FnMut(Field<'_>)) -> Result<(), CompressionError> {
        self.repeats_credential = false;
        let read = self.decode_fields(&mut &*block, field);
        self.has_fields = false;
        // The last field may have been a credential.
        self.name.clear();
        self.value.clear();
        read.map_err(|_| CompressionError)
    }

    /// Decodes the next piece of a block, and passes each field that ends in it; `None` for one that is
    /// skipped because it is too long. Between two pieces at most one field is kept, no longer than two
    /// strings may be.
    ///
    /// # Errors
    /// When it breaks a rule of RFC 7541, or the last piece ends within a field.
    pub(super) fn decode_piece(
        &mut self,
        piece: &[u8],
        is_last: bool,
        field: impl FnMut(Option<Field<'_>>),
    ) -> Result<(), CompressionError> {
        let mut block = std::mem::take(&mut self.rest);
        block.extend_from_slice(piece);
        let mut rest = block.as_slice();
        let read = self.decode_rest(&mut rest, field);
        self.name.clear();
        self.value.clear();
        let is_whole = rest.is_empty() && self.skip.is_none();
        let read_bytes = block.len() - rest.len();
        read?;
        if is_last {
            self.has_fields = false;
            return is_whole.then_some(()).ok_or(CompressionError);
        }
        block.consume(read_bytes);
        self.rest = block;
        Ok(())
    }

    fn decode_rest(
        &mut self,
        rest: &mut &[u8],
        mut field: impl FnMut(Option<Field<'_>>),
    ) -> Result<(), CompressionError> {
        loop {
            if let Some(mut skip) = self.skip {
                let is_over = skip.pass(rest).map_err(|_| CompressionError)?;
                self.skip = (!is_over).then_some(skip);
                if !is_over {
                    return Ok(());
                }
                field(None);
                if skip.indexed {
                    self.table.clear();
                }
            }
            match self.decode_fields(rest, |read| field(Some(read))) {
                Ok(()) | Err(DecodeError::Incomplete) => return Ok(()),
                Err(DecodeError::TooLong(skip)) => (self.skip, self.has_fields) = (Some(skip), true),
                Err(DecodeError::Invalid) => return Err(CompressionError),
            }
        }
    }

    /// Whether the last block repeated a credential, as a literal, that is in the table.
    pub(super) fn repeats_credential(&self) -> bool {
        self.repeats_credential
    }

    /// Decodes whole fields. An incomplete one is left in `rest`.
    fn decode_fields(&mut self, rest: &mut &[u8], mut field: impl FnMut(Field<'_>)) -> Result<(), DecodeError> {
        let mut at = *rest;
        while let Some(first) = at.first() {
            // The five representations of section 6.
            if first & 0x80 != 0 {
                let index = integer(&mut at, 7)?;
                field(self.table.get(index).ok_or(CompressionError)?);
            } else if first & 0x40 != 0 {
                let kind = self.literal(&mut at, 6, rest)?;
                field(Field { kind, name: &self.name, value: &self.value });
                self.table.insert(kind, &self.name, &self.value);
            } else if first & 0x20 != 0 {
                let size = integer(&mut at, 5)?;
                // Only before all fields (section 4.2), and never above what we allow.
                if self.has_fields || size > TABLE_BYTES {
                    return Err(DecodeError::Invalid);
                }
                self.table.resize(size);
                *rest = at;
                continue;
            } else {
                // Without indexing, or never indexed: the difference matters to proxies alone.
                let kind = self.literal(&mut at, 4, rest)?;
                field(Field { kind, name: &self.name, value: &self.value });
            }
            self.has_fields = true;
            *rest = at;
        }
        Ok(())
    }

    /// Decodes a literal into `name` and `value`. If a string is too long, `left` begins with its first byte.
    fn literal<'a>(&mut self, rest: &mut &'a [u8], prefix: u32, left: &mut &'a [u8]) -> Result<FieldKind, DecodeError> {
        self.name.clear();
        self.value.clear();
        let mut too_long = |rest: &mut &'a [u8], error: DecodeError, is_name| match error {
            DecodeError::TooLong(skip) => {
                *left = *rest;
                DecodeError::TooLong(Skip { is_name, indexed: prefix == 6, ..skip })
            }
            error => error,
        };
        let known = match integer(rest, prefix)? {
            0 => {
                string(rest, &mut self.name).map_err(|error| too_long(rest, error, true))?;
                None
            }
            index => {
                let known = self.table.get(index).ok_or(CompressionError)?;
                self.name.extend_from_slice(known.name);
                // Some names are forbidden or not depending on their value.
                known.kind.allows_any_value().then_some(known.kind)
            }
        };
        string(rest, &mut self.value).map_err(|error| too_long(rest, error, false))?;
        let kind = match known {
            Some(kind) if field_kind::is_value(&self.value) => kind,
            Some(_) => FieldKind::Forbidden,
            None => FieldKind::of(&self.name, &self.value),
        };
        self.repeats_credential |= self.table.has_credential(kind, &self.name, &self.value);
        Ok(kind)
    }
}

/// Decodes an integer with a prefix of `prefix` bits (section 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, DecodeError> {
    let ones = (1_usize << prefix) - 1;
    let (first, mut tail) = rest.split_first().ok_or(DecodeError::Incomplete)?;
    let mut value = usize::from(*first) & ones;
    if value == ones {
        let mut shift = 0;
        loop {
            let (byte, further) = tail.split_first().ok_or(DecodeError::Incomplete)?;
            if shift == 7 * INTEGER_BYTES_MAX {
                return Err(DecodeError::Invalid);
            }
            value += usize::from(byte & 0x7f) << shift;
            (shift, tail) = (shift + 7, further);
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// Decodes a string (section 5.2). Of one that is too long, only the length is consumed.
fn string(rest: &mut &[u8], to: &mut Vec<u8>) -> Result<(), DecodeError> {
    let is_coded = rest.first().ok_or(DecodeError::Incomplete)? & 0x80 != 0;
    let bytes = integer(rest, 7)?;
    if bytes > STRING_BYTES_MAX {
        return Err(DecodeError::TooLong(Skip { bytes, is_name: false, indexed: false }));
    }
    let (text, further) = rest.split_at_checked(bytes).ok_or(DecodeError::Incomplete)?;
    *rest = further;
    if is_coded {
        return Ok(huffman::decode(text, to)?);
    }
    to.extend_from_slice(text);
    Ok(())
}
