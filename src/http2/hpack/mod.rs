//! Header compression (RFC 7541): header blocks of requests are read, and those of replies written.

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
use super::HEADER_BYTES_MAX;
use super::buffer::Buffer;

/// The size of the dynamic table that peers may use: what SETTINGS_HEADER_TABLE_SIZE is unless it is said.
pub(super) const TABLE_BYTES: usize = 4096;

/// Bytes of an integer past its first at most: 28 bits, far beyond the length of anything that is accepted.
const INTEGER_BYTES_MAX: u32 = 4;

/// Bytes of a string at most, as it comes. In a block of several frames a longer one is passed over, because its field
/// is too long for every head and for the table: by the longest Huffman codes, of 30 bits, these would still be 4,369
/// bytes.
const STRING_BYTES_MAX: usize = HEADER_BYTES_MAX;
const _: () = assert!(STRING_BYTES_MAX * 8 / 30 >= TABLE_BYTES);

/// A header block that cannot be read. What its connection remembers is lost with it (RFC 7541, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompressionError;

/// Why reading stops.
enum DecodeError {
    /// A rule of RFC 7541 is broken.
    Invalid,
    /// A field goes on behind what is there.
    Incomplete,
    /// A string of the field is too long. The rest begins with the first byte of it.
    TooLong(Skip),
}

impl From<CompressionError> for DecodeError {
    fn from(_: CompressionError) -> Self {
        Self::Invalid
    }
}

/// What is still to come of a field that is passed over.
#[derive(Clone, Copy)]
struct Skip {
    /// Bytes of the string that is come to.
    bytes: usize,
    /// Whether that is the name, behind which comes the value.
    is_name: bool,
    /// Whether the field is to be remembered.
    indexed: bool,
}

impl Skip {
    /// Passes over what is there, and says whether that is all of the field.
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

/// Reads the header blocks of one connection.
pub(super) struct Decoder {
    table: Table,
    name: Buffer,
    value: Buffer,
    /// Whether a credential was written out that is in the table too.
    repeats_credential: bool,
    /// Of a block in pieces: the part of a field that goes on in the next one.
    rest: Buffer,
    /// Of a block in pieces: whether a field has come.
    has_fields: bool,
    /// Of a block in pieces: the field that is passed over.
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

    /// Another number after each change of what blocks are read by: a block that is read at the same number
    /// again has the same meaning.
    pub(super) fn version(&self) -> u64 {
        self.table.version()
    }

    /// Bytes that are kept, as the size of the table is counted.
    pub(super) fn bytes(&self) -> usize {
        self.table.bytes() + self.name.capacity() + self.value.capacity() + self.rest.capacity()
    }

    /// Reads a whole block, and gives each of its fields, in order.
    ///
    /// # Errors
    /// When it breaks a rule of RFC 7541.
    pub(super) fn decode(&mut self, block: &[u8], field: impl FnMut(Field<'_>)) -> Result<(), CompressionError> {
        (self.repeats_credential, self.has_fields) = (false, false);
        let read = self.decode_fields(&mut &*block, field);
        // The last of them may have been a credential.
        self.name.clear();
        self.value.clear();
        read.map_err(|_| CompressionError)
    }

    /// Reads the next piece of a block, and gives each field that ends in it, in order; `None` is one that is passed
    /// over because it is too long. Between two pieces at most one field is kept, which is not longer than two strings
    /// may be.
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

    /// Whether the last block had a credential written out that the table has too.
    pub(super) fn repeats_credential(&self) -> bool {
        self.repeats_credential
    }

    /// Reads fields up to one that does not end, which is left in `rest`.
    fn decode_fields(&mut self, rest: &mut &[u8], mut field: impl FnMut(Field<'_>)) -> Result<(), DecodeError> {
        let mut at = *rest;
        while let Some(first) = at.first() {
            // The five forms of section 6.
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
                // Without indexing, or never: that is for those who send it on.
                let kind = self.literal(&mut at, 4, rest)?;
                field(Field { kind, name: &self.name, value: &self.value });
            }
            self.has_fields = true;
            *rest = at;
        }
        Ok(())
    }

    /// Reads a field that is written out into `name` and `value`, and says what it is. If a string is too long, the
    /// `left` begins with its first byte.
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
                // The kind of a name is only known with its value where that may be at fault.
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

/// Reads an integer whose first bits are the last `prefix` bits of a byte (section 5.1).
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

/// Reads a string (section 5.2). Of one that is too long, the length alone is read.
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
