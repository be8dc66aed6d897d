//! Encodes and decodes frames (RFC 9113, sections 4.1 and 6).

use super::error::{ConnError, ErrorCode};

/// The client connection preface (section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The head of each frame, in bytes.
pub(super) const FRAME_HEAD_BYTES: usize = 9;

/// The default SETTINGS_MAX_FRAME_SIZE, in bytes. We never allow or send more.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;

/// The highest stream identifier, and the largest window.
pub(super) const BITS_31: u32 = 0x7fff_ffff;

/// Frame types.
pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

/// Frame flags.
pub(super) mod flag {
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
    pub(crate) const PADDED: u8 = 8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

/// Identifiers of settings (section 6.5.2).
pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHead {
    /// The length of the payload, in bytes.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 is the connection.
    pub(super) stream: u32,
}

impl FrameHead {
    /// Decodes a head, if all of it is there.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *bytes.first_chunk::<FRAME_HEAD_BYTES>()?;
        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        // The reserved bit is ignored.
        Some(Self { length, kind, flags, stream: u32::from_be_bytes([s1, s2, s3, s4]) & BITS_31 })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Splits bytes that begin with this head into payload and rest. `None`: the payload is not all there.
    pub(super) fn split_payload<'a>(&self, bytes: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        bytes.get(FRAME_HEAD_BYTES..)?.split_at_checked(self.length)
    }

    /// The payload without padding (section 6.1).
    pub(super) fn unpad<'a>(&self, payload: &'a [u8]) -> Result<&'a [u8], ConnError> {
        if !self.has(flag::PADDED) {
            return Ok(payload);
        }
        let (padding, rest) = payload.split_first().ok_or(ConnError::size("a padded frame without a length"))?;
        let length = rest.len().checked_sub(usize::from(*padding));
        length.and_then(|length| rest.get(..length)).ok_or(ConnError::protocol("more padding than frame"))
    }
}

/// A 31-bit integer behind a reserved bit.
pub(super) fn read_31(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) & BITS_31)
}

pub(super) fn put_head(to: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, l1, l2, l3] = (length as u32).to_be_bytes();
    let [s1, s2, s3, s4] = stream.to_be_bytes();
    to.extend_from_slice(&[l1, l2, l3, kind, flags, s1, s2, s3, s4]);
}

/// Writes a header block as HEADERS and as many CONTINUATION frames as it takes. `block` writes the block.
pub(super) fn put_headers(to: &mut Vec<u8>, stream: u32, ends: bool, block: impl FnOnce(&mut Vec<u8>)) {
    let head = to.len();
    let ends = if ends { flag::END_STREAM } else { 0 };
    put_head(to, 0, kind::HEADERS, ends | flag::END_HEADERS, stream);
    let begin = to.len();
    block(to);
    let length = to.len() - begin;
    if length <= PAYLOAD_BYTES_MAX {
        let [_, length @ ..] = (length as u32).to_be_bytes();
        to[head..head + 3].copy_from_slice(&length);
        return;
    }
    let block = to.split_off(begin);
    to.truncate(head);
    let mut chunks = block.chunks(PAYLOAD_BYTES_MAX).peekable();
    let (mut kind, mut flags) = (kind::HEADERS, ends);
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() { flag::END_HEADERS } else { 0 };
        put_head(to, chunk.len(), kind, flags | last, stream);
        to.extend_from_slice(chunk);
        (kind, flags) = (kind::CONTINUATION, 0);
    }
}

pub(super) fn put_data(to: &mut Vec<u8>, stream: u32, ends: bool, data: &[u8]) {
    put_head(to, data.len(), kind::DATA, if ends { flag::END_STREAM } else { 0 }, stream);
    to.extend_from_slice(data);
}

pub(super) fn put_settings(to: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(to, settings.len() * 6, kind::SETTINGS, 0, 0);
    for (name, value) in settings {
        to.extend_from_slice(&name.to_be_bytes());
        to.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn put_settings_ack(to: &mut Vec<u8>) {
    put_head(to, 0, kind::SETTINGS, flag::ACK, 0);
}

pub(super) fn put_ping(to: &mut Vec<u8>, ack: bool, payload: &[u8]) {
    put_head(to, payload.len(), kind::PING, if ack { flag::ACK } else { 0 }, 0);
    to.extend_from_slice(payload);
}

pub(super) fn put_window_update(to: &mut Vec<u8>, stream: u32, bytes: u32) {
    put_head(to, 4, kind::WINDOW_UPDATE, 0, stream);
    to.extend_from_slice(&bytes.to_be_bytes());
}

pub(super) fn put_reset(to: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    put_head(to, 4, kind::RST_STREAM, 0, stream);
    to.extend_from_slice(&(code as u32).to_be_bytes());
}

pub(super) fn put_goaway(to: &mut Vec<u8>, last_stream: u32, code: ErrorCode, what: &str) {
    put_head(to, 8 + what.len(), kind::GOAWAY, 0, 0);
    to.extend_from_slice(&last_stream.to_be_bytes());
    to.extend_from_slice(&(code as u32).to_be_bytes());
    to.extend_from_slice(what.as_bytes());
}
