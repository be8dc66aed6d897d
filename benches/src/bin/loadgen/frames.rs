//! What goes over the wire: frames of HTTP/2 (RFC 9113), header blocks (RFC 7541) and the few protobuf
//! fields.

use keyward_bench::fixture::Failure;

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header.
pub(crate) const HEADER_BYTES: usize = 9;
/// Bytes before a gRPC message: whether it is compressed, and its length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// Types of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

/// Flags of frames. The first is the answer to SETTINGS and PING, too.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// Settings that matter here.
pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// The largest window.
pub(crate) const WINDOW_MAX: u32 = (1 << 31) - 1;
/// The window of the connection, and of a stream, before anything is said.
pub(crate) const WINDOW_AT_FIRST: u32 = 65_535;

/// `grpc-status` as a name in a header block, with its length: as it is, and in the code of Huffman.
const STATUS_PLAIN: &[u8] = b"\x0bgrpc-status";
const STATUS_CODED: &[u8] = b"\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f";
/// `0` as a value, in both ways. The server writes neither with another one's name, but nothing forbids it.
const ZERO: [&[u8]; 2] = [b"\x010", b"\x81\x07"];

/// A frame's header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) length: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Header {
    /// The header that these bytes begin with, if they are enough.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<HEADER_BYTES>()?;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & WINDOW_MAX;
        Some(Self { length: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags, stream })
    }
}

/// Appends a frame.
pub(crate) fn push_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]); // ours are short
    out.extend([kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Appends a setting to the payload of SETTINGS.
pub(crate) fn push_setting(payload: &mut Vec<u8>, name: u16, value: u32) {
    payload.extend_from_slice(&name.to_be_bytes());
    payload.extend_from_slice(&value.to_be_bytes());
}

/// The header block of a call. Every field that is not in the static table comes as it is and leaves nothing
/// behind, so that the block is the same each time.
pub(crate) fn call_block(path: &str, caller: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
    for (index, value) in [(4, path), (1, "127.0.0.1"), (31, "application/grpc")] {
        push_integer(&mut block, index, 4);
        push_text(&mut block, value);
    }
    block.push(0);
    push_text(&mut block, "te");
    push_text(&mut block, "trailers");
    push_integer(&mut block, 23, 4);
    push_text(&mut block, &format!("Bearer {caller}"));
    block
}

/// An integer with a prefix of so many bits, all others of its first byte being zero.
fn push_integer(out: &mut Vec<u8>, value: usize, bits: u32) {
    let most = (1 << bits) - 1;
    if value < most {
        out.push(value as u8);
        return;
    }
    out.push(most as u8);
    push_varint(out, value - most);
}

fn push_text(block: &mut Vec<u8>, text: &str) {
    push_integer(block, text.len(), 7);
    block.extend_from_slice(text.as_bytes());
}

/// Whether trailers say that all is well. They are not decoded: the peer was told to have no table, so the
/// field must be there as a literal.
pub(crate) fn says_ok(block: &[u8]) -> bool {
    [STATUS_PLAIN, STATUS_CODED].iter().any(|name| {
        let at = block.windows(name.len()).position(|window| window == *name);
        at.is_some_and(|at| ZERO.iter().any(|zero| block[at + name.len()..].starts_with(zero)))
    })
}

/// A number as protobuf writes it.
pub(crate) fn push_varint(out: &mut Vec<u8>, mut value: usize) {
    while value > 127 {
        out.push(value as u8 & 127 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A protobuf field of bytes.
pub(crate) fn push_field(out: &mut Vec<u8>, number: u8, value: &[u8]) {
    out.push(number << 3 | 2);
    push_varint(out, value.len());
    out.extend_from_slice(value);
}

/// A gRPC message with its prefix.
pub(crate) fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes()); // ours are short
    out.extend_from_slice(message);
    out
}

/// The length of the message that this prefix belongs to, if it is whole.
pub(crate) fn message_bytes(bytes: &[u8]) -> Result<Option<usize>, Failure> {
    match bytes {
        [0, a, b, c, d, ..] => Ok(Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize)),
        [0, ..] | [] => Ok(None),
        _ => Err("a reply is compressed".into()),
    }
}

/// A number at the beginning of some bytes, and what follows it.
pub(crate) fn varint(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (nth, byte) in bytes.iter().take(5).enumerate() {
        value |= usize::from(byte & 127) << (7 * nth);
        if byte & 128 == 0 {
            return Some((value, &bytes[nth + 1..]));
        }
    }
    None
}

/// The part of a VerifyResponse before `as_of_revision`, which other changes move.
pub(crate) fn before_revision(message: &[u8]) -> Option<&[u8]> {
    const AS_OF_REVISION: usize = 8 << 3;
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, value) = varint(rest)?;
        if tag == AS_OF_REVISION {
            break;
        }
        let (number, after) = varint(value)?;
        rest = match tag & 7 {
            0 => after,
            2 => after.get(number..)?,
            _ => return None,
        };
    }
    Some(&message[..message.len() - rest.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_a_block_of_literals() {
        let block = call_block("/s/M", "kw");
        assert!(
            block.starts_with(b"\x83\x86\x04\x04/s/M\x01\x09127.0.0.1\x0f\x10\x10application/grpc\0\x02te\x08trailers")
        );
        assert!(block.ends_with(b"\x0f\x08\x09Bearer kw"));
    }

    #[test]
    fn only_status_0_is_well() {
        assert!(says_ok(b"\0\x0bgrpc-status\x010") && says_ok(b"\x40\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f\x010"));
        assert!(!says_ok(b"\0\x0bgrpc-status\x0213") && !says_ok(b"\0\x0bgrpc-status\x017") && !says_ok(b""));
    }

    #[test]
    fn what_comes_before_the_revision_is_told_apart() {
        assert_eq!(before_revision(b"\x08\x01\x22\x02\x40\x40\x40\x05"), Some(&b"\x08\x01\x22\x02\x40\x40"[..]));
        assert_eq!(before_revision(b"\x08\x01"), Some(&b"\x08\x01"[..]));
        assert_eq!(before_revision(b"\x22\x7f"), None);
    }
}
