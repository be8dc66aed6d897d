//! Encodes the header blocks of replies.
//!
//! Two fields are in almost every reply. Only they go into the peer's dynamic table, once, and take one byte
//! afterwards. All other fields are literals, so that nothing moves or evicts these two.

use http::{HeaderMap, StatusCode};

use super::TABLE_BYTES;

/// The index of the newest entry of the dynamic table.
const NEWEST: u8 = 62;

const CONTENT_TYPE: (&[u8], &[u8]) = (b"content-type", b"application/grpc");
const GRPC_STATUS: (&[u8], &[u8]) = (b"grpc-status", b"0");

/// `:status` 200 in the static table.
const STATUS_200: u8 = 0x80 | 8;
/// The name `:status` in the static table, for a literal.
const STATUS_NAME: u8 = 8;
/// A literal with incremental indexing, and a literal name.
const LITERAL_INDEXED: u8 = 0x40;
/// A literal without indexing, and a literal name.
const LITERAL: u8 = 0;
/// A dynamic table size update to 0.
const TABLE_SIZE_ZERO: u8 = 0x20;

/// Encodes the header blocks of one connection.
pub(crate) struct Encoder {
    /// Whether the peer's table has room for both fields.
    uses_table: bool,
    /// Whether the next block must tell the peer that the table is no longer used.
    must_disable_table: bool,
    inserted: u8,
    content_type: Option<u8>,
    grpc_status: Option<u8>,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { uses_table: true, must_disable_table: false, inserted: 0, content_type: None, grpc_status: None }
    }

    /// Applies SETTINGS_HEADER_TABLE_SIZE. Below the default, the table is no longer used.
    pub(crate) fn limit_table(&mut self, bytes: u32) {
        if self.uses_table && usize::try_from(bytes).is_ok_and(|bytes| bytes < TABLE_BYTES) {
            (self.uses_table, self.must_disable_table) = (false, true);
        }
    }

    /// The headers of a gRPC reply.
    pub(crate) fn grpc_headers(&mut self, to: &mut Vec<u8>) {
        self.begin(to);
        to.push(STATUS_200);
        self.content_type = self.fixed(CONTENT_TYPE, self.content_type, to);
    }

    /// The trailers of a successful gRPC reply.
    pub(crate) fn grpc_ok(&mut self, to: &mut Vec<u8>) {
        self.begin(to);
        self.grpc_status = self.fixed(GRPC_STATUS, self.grpc_status, to);
    }

    /// The headers of any reply.
    pub(crate) fn headers(&mut self, status: StatusCode, headers: &HeaderMap, to: &mut Vec<u8>) {
        self.begin(to);
        if status == StatusCode::OK {
            to.push(STATUS_200);
        } else {
            to.push(LITERAL | STATUS_NAME);
            string(status.as_str().as_bytes(), to);
        }
        self.fields(headers, to);
    }

    /// The trailers of any reply.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap, to: &mut Vec<u8>) {
        self.begin(to);
        self.fields(trailers, to);
    }

    fn begin(&mut self, to: &mut Vec<u8>) {
        if std::mem::take(&mut self.must_disable_table) {
            to.push(TABLE_SIZE_ZERO);
        }
    }

    fn fields(&mut self, fields: &HeaderMap, to: &mut Vec<u8>) {
        for (name, value) in fields {
            match (name.as_str().as_bytes(), value.as_bytes()) {
                CONTENT_TYPE => self.content_type = self.fixed(CONTENT_TYPE, self.content_type, to),
                GRPC_STATUS => self.grpc_status = self.fixed(GRPC_STATUS, self.grpc_status, to),
                (name, value) => literal(LITERAL, name, value, to),
            }
        }
    }

    /// Encodes one of the two fields, and returns its place in the order of insertions, if it was inserted.
    fn fixed(&mut self, (name, value): (&[u8], &[u8]), place: Option<u8>, to: &mut Vec<u8>) -> Option<u8> {
        if !self.uses_table {
            literal(LITERAL, name, value, to);
            return None;
        }
        if let Some(place) = place {
            to.push(0x80 | (NEWEST + (self.inserted - 1 - place)));
            return Some(place);
        }
        literal(LITERAL_INDEXED, name, value, to);
        self.inserted += 1;
        Some(self.inserted - 1)
    }
}

fn literal(form: u8, name: &[u8], value: &[u8], to: &mut Vec<u8>) {
    to.push(form);
    string(name, to);
    string(value, to);
}

/// A plain string: Huffman coding costs more than it saves.
fn string(text: &[u8], to: &mut Vec<u8>) {
    let mut length = text.len();
    if length < 0x7f {
        to.push(length as u8);
    } else {
        to.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            to.push(0x80 | (length & 0x7f) as u8);
            length >>= 7;
        }
        to.push(length as u8);
    }
    to.extend_from_slice(text);
}
