//! Header compression (RFC 7541): header blocks of requests are read, and those of replies written.

mod encode;
mod huffman;
mod name;
mod table;

#[cfg(test)]
mod tests;

pub(super) use self::encode::Encoder;
pub(super) use self::name::Name;
pub(super) use self::table::{ENTRY_BYTES, Field};

use self::table::Table;
use super::buffer::Buffer;

/// The size of the dynamic table that peers may use: what SETTINGS_HEADER_TABLE_SIZE is unless it is said.
pub(super) const TABLE_BYTES: usize = 4096;

/// Bytes of an integer past its first at most: 28 bits, far beyond the length of anything that is accepted.
const INTEGER_BYTES_MAX: u32 = 4;

/// A header block that cannot be read. What its connection remembers is lost with it (RFC 7541, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompressionError;

/// Reads the header blocks of one connection.
pub(super) struct Decoder {
    table: Table,
    name: Buffer,
    value: Buffer,
    /// Whether a credential was written out that is in the table too.
    repeats: bool,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { table: Table::new(TABLE_BYTES), name: Buffer::new(), value: Buffer::new(), repeats: false }
    }

    /// Another number after each change of what blocks are read by: a block that is read at the same number again has the
    /// same meaning.
    pub(super) fn version(&self) -> u64 {
        self.table.version()
    }

    /// Reads a whole block, and gives each of its fields, in order.
    ///
    /// # Errors
    /// When it breaks a rule of RFC 7541.
    pub(super) fn decode(&mut self, block: &[u8], field: impl FnMut(Field<'_>)) -> Result<(), CompressionError> {
        self.repeats = false;
        let read = self.decode_fields(block, field);
        // The last of them may have been a credential.
        self.name.clear();
        self.value.clear();
        read
    }

    /// Whether the last block had a credential written out that the table has too.
    pub(super) fn repeats_credential(&self) -> bool {
        self.repeats
    }

    fn decode_fields(&mut self, block: &[u8], mut field: impl FnMut(Field<'_>)) -> Result<(), CompressionError> {
        let mut rest = block;
        let mut begun = false;
        while let Some(first) = rest.first() {
            // The five forms of section 6.
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                field(self.table.get(index).ok_or(CompressionError)?);
            } else if first & 0x40 != 0 {
                let read = self.literal(&mut rest, 6)?;
                field(read.field(&self.name, &self.value));
                self.table.insert(read.kind, &self.name, &self.value);
            } else if first & 0x20 != 0 {
                let size = integer(&mut rest, 5)?;
                // Only before all fields (section 4.2), and never above what we allow.
                if begun || size > TABLE_BYTES {
                    return Err(CompressionError);
                }
                self.table.resize(size);
                continue;
            } else {
                // Without indexing, or never: that is for those who send it on.
                let read = self.literal(&mut rest, 4)?;
                field(read.field(&self.name, &self.value));
            }
            begun = true;
        }
        Ok(())
    }

    /// Reads a field that is written out into `name` and `value`.
    fn literal(&mut self, rest: &mut &[u8], prefix: u32) -> Result<Literal, CompressionError> {
        self.name.clear();
        self.value.clear();
        let known = match integer(rest, prefix)? {
            0 => {
                string(rest, &mut self.name)?;
                None
            }
            index => {
                let known = self.table.get(index).ok_or(CompressionError)?;
                self.name.extend_from_slice(known.name);
                // The kind of a name is only known with its value where that may be at fault.
                known.kind.holds_for_any_value().then_some(known.kind)
            }
        };
        string(rest, &mut self.value)?;
        let kind = match known {
            Some(kind) if name::is_value(&self.value) => kind,
            Some(_) => Name::Bad,
            None => Name::of(&self.name, &self.value),
        };
        self.repeats |= self.table.has_credential(kind, &self.name, &self.value);
        Ok(Literal { kind })
    }
}

/// A field that was written out.
struct Literal {
    kind: Name,
}

impl Literal {
    fn field<'a>(&self, name: &'a [u8], value: &'a [u8]) -> Field<'a> {
        Field { kind: self.kind, name, value }
    }
}

/// Reads an integer whose first bits are the last `prefix` bits of a byte (section 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, CompressionError> {
    let ones = (1_usize << prefix) - 1;
    let (first, mut tail) = rest.split_first().ok_or(CompressionError)?;
    let mut value = usize::from(*first) & ones;
    if value == ones {
        let mut shift = 0;
        loop {
            let (byte, further) = tail.split_first().ok_or(CompressionError)?;
            if shift == 7 * INTEGER_BYTES_MAX {
                return Err(CompressionError);
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

/// Reads a string (section 5.2).
fn string(rest: &mut &[u8], to: &mut Vec<u8>) -> Result<(), CompressionError> {
    let is_coded = rest.first().ok_or(CompressionError)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, further) = rest.split_at_checked(length).ok_or(CompressionError)?;
    *rest = further;
    if is_coded {
        return huffman::decode(text, to);
    }
    to.extend_from_slice(text);
    Ok(())
}
