//! The header of a segment. All numbers are little-endian.
//!
//! ```text
//! version 2, 128 bytes: "KEYWARDJ" │ version u32 │ 0 u32 │ first revision u64 │ chain before it, 32 bytes
//!                       │ CRC-32C of the 56 bytes before u32 │ 0 u32 │ log id, 16 bytes
//!                       │ last revision before the line u64 │ flags u32: 1 begins a line │ 0 u32
//!                       │ seal, 32 bytes
//! version 1, 64 bytes:  the first two lines, without the log id
//! ```
//!
//! The seal is a keyed hash of all before it: so a header is one that was written with the pepper file,
//! whatever is in the segment. Version 1 is read for ever and written no more.

use std::fmt;

use keyward_core::event::Revision;
use keyward_core::record::{LineRecord, LogId};
use zeroize::Zeroizing;

use super::frame::{PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_READ_MAX};
use super::{CRC32C, Chain, ChainKey, Position};
use crate::bytes_codec::Cursor;

/// The version of segments that this program writes. It reads version 1 too.
pub const VERSION: u32 = 2;
/// Size of a header of version 1.
pub const HEADER_BYTES_V1: usize = 64;
/// Size of a header of version 2, the longest.
pub const HEADER_BYTES: usize = 128;
/// Offset of the chain before the first entry, in both versions.
pub const CHAIN_AT: usize = 24;

const MAGIC: &[u8; 8] = b"KEYWARDJ";
/// What the checksum covers.
const CHECKED_BYTES: usize = 56;
/// What the seal covers.
const SEALED_BYTES: usize = 96;

/// Offset of the last revision before the line.
const ENDED_AT: usize = 80;
/// A flag.
const BEGINS_A_LINE: u32 = 1;

/// The key of the seals of segment headers and watermarks.
#[derive(Clone)]
pub struct SealKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

impl SealKey {
    /// The key that belongs to a chain key.
    #[must_use]
    pub fn of(key: &ChainKey) -> Self {
        Self(Zeroizing::new(blake3::derive_key("keyward 2026-11-27 journal seals v1", &*key.0)))
    }

    /// The seal of some bytes.
    #[must_use]
    pub fn seal(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }
}

/// What a segment begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The position before its first entry.
    pub start: Position,
    /// The log that it is of. `None`: it is of version 1, which has none.
    pub log: Option<LogId>,
    /// If it begins a line: the last revision of the lines before that the log has, with all before it. The
    /// revision of `start` is the base of the line.
    pub ended: Option<Revision>,
}

/// The header of a segment that begins a line.
#[derive(Clone, Copy, Debug)]
pub struct LineHeader {
    header: SegmentHeader,
    log: LogId,
}

impl LineHeader {
    /// That of a line behind a log of this chain.
    #[must_use]
    pub fn new(line: &LineRecord, before: &Chain, key: &ChainKey) -> Self {
        let start = Position { revision: line.base, chain: before.of_line(key, line.log_id, line.base) };
        let header = SegmentHeader { start, log: Some(line.log_id), ended: Some(line.ended) };
        Self { header, log: line.log_id }
    }

    /// A header, if it begins a line.
    #[must_use]
    pub fn of(header: SegmentHeader) -> Option<Self> {
        header.ended.and(header.log).map(|log| Self { header, log })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The log of the line.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }
}

/// Why a segment's header is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It has an unknown version.
    UnknownVersion(u32),
    /// It is not a header.
    Damaged,
    /// Its seal was made with another key, or of other bytes.
    Unsealed,
}

impl SegmentHeader {
    /// The header of a segment of a log that begins after a position.
    #[must_use]
    pub fn after(start: Position, log: LogId) -> Self {
        Self { start, log: Some(log), ended: None }
    }

    /// Its bytes: [`HEADER_BYTES`], or [`HEADER_BYTES_V1`] if it has no log id.
    #[must_use]
    pub fn encode(&self, key: &SealKey) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes()];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.log.map_or(1, |_| VERSION).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.start.revision.next().0.to_le_bytes());
        bytes[CHAIN_AT..CHECKED_BYTES].copy_from_slice(&self.start.chain.0);
        let crc = CRC32C.checksum(&bytes[..CHECKED_BYTES]).to_le_bytes();
        bytes[CHECKED_BYTES..CHECKED_BYTES + 4].copy_from_slice(&crc);
        if let Some(log) = self.log {
            bytes[HEADER_BYTES_V1..ENDED_AT].copy_from_slice(&log.0);
            if let Some(ended) = self.ended {
                bytes[ENDED_AT..ENDED_AT + 8].copy_from_slice(&ended.0.to_le_bytes());
                bytes[ENDED_AT + 8..ENDED_AT + 12].copy_from_slice(&BEGINS_A_LINE.to_le_bytes());
            }
            let seal = key.seal(&bytes[..SEALED_BYTES]);
            bytes[SEALED_BYTES..].copy_from_slice(seal.as_bytes());
        }
        bytes
    }

    /// Reads the header of a segment, and checks its seal, if it is of version 2.
    ///
    /// # Errors
    /// When it is not a header that this program knows, or was not sealed with this key.
    pub fn read(bytes: &[u8], key: &SealKey) -> Result<Self, HeaderError> {
        let header = Self::read_unsealed(bytes)?;
        match bytes.first_chunk::<HEADER_BYTES>().filter(|_| header.log.is_some()) {
            Some(bytes) if key.seal(&bytes[..SEALED_BYTES]) != bytes[SEALED_BYTES..] => Err(HeaderError::Unsealed),
            _ => Ok(header),
        }
    }

    /// As [`SegmentHeader::read`], without the seal: anyone can have written what it says.
    ///
    /// # Errors
    /// When it is not a header that this program knows.
    pub fn read_unsealed(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = bytes.first_chunk::<HEADER_BYTES_V1>().ok_or(HeaderError::Damaged)?;
        let crc = Cursor(&header[CHECKED_BYTES..]).u32();
        if !header.starts_with(MAGIC) || crc != Some(CRC32C.checksum(&header[..CHECKED_BYTES])) {
            return Err(HeaderError::Damaged);
        }
        let mut rest = Cursor(&header[MAGIC.len()..]);
        let version = rest.u32().ok_or(HeaderError::Damaged)?;
        rest.take(4); // zeros
        let revision = rest.u64().and_then(|first| first.checked_sub(1)).ok_or(HeaderError::Damaged)?;
        let start = Position { revision: Revision(revision), chain: Chain(rest.array().ok_or(HeaderError::Damaged)?) };
        match version {
            1 => Ok(Self { start, log: None, ended: None }),
            VERSION => {
                let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(HeaderError::Damaged)?;
                let mut rest = Cursor(&header[HEADER_BYTES_V1..]);
                let log = Some(LogId(rest.array().ok_or(HeaderError::Damaged)?));
                let ended = Revision(rest.u64().ok_or(HeaderError::Damaged)?);
                match (rest.u32(), rest.u32()) {
                    (Some(0), Some(0)) if ended == Revision(0) => Ok(Self { start, log, ended: None }),
                    (Some(BEGINS_A_LINE), Some(0)) if is_base(start.revision) && ended < start.revision => {
                        Ok(Self { start, log, ended: Some(ended) })
                    }
                    _ => Err(HeaderError::Damaged),
                }
            }
            version => Err(HeaderError::UnknownVersion(version)),
        }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self.log.is_some() { HEADER_BYTES } else { HEADER_BYTES_V1 }
    }

    /// The longest payload of a frame in its segment.
    #[must_use]
    pub fn payload_bytes_max(&self) -> usize {
        if self.log.is_some() { PAYLOAD_BYTES_MAX } else { PAYLOAD_BYTES_READ_MAX }
    }

    /// Whether its segment goes on from a position of a log, in its line or in a later one. `None` for the
    /// log: the position is in a segment of version 1.
    #[must_use]
    pub fn follows(&self, position: &Position, log: Option<LogId>, key: &ChainKey) -> bool {
        match (self.ended, self.log) {
            (Some(ended), Some(line)) => {
                let chain = position.chain.of_line(key, line, self.start.revision);
                ended == position.revision && chain == self.start.chain
            }
            // From the first segment of version 2 on there is no other, and none of another log.
            _ => self.start == *position && (log.is_none() || self.log == log),
        }
    }
}

fn is_base(revision: Revision) -> bool {
    revision != Revision(0) && revision.0.is_multiple_of(LineRecord::REVISIONS)
}

#[cfg(test)]
mod tests {
    use keyward_core::clock::UnixMillis;

    use super::*;

    const LOG: LogId = LogId([5; 16]);

    fn key(byte: u8) -> SealKey {
        SealKey::of(&chain_key(byte))
    }

    fn chain_key(byte: u8) -> ChainKey {
        ChainKey(Zeroizing::new([byte; 32]))
    }

    fn line(log: LogId, ended: u64, number: u64) -> LineRecord {
        let base = Revision(number * LineRecord::REVISIONS);
        LineRecord { log_id: log, ended: Revision(ended), base, time: UnixMillis(0) }
    }

    fn at(revision: u64) -> Position {
        Position { revision: Revision(revision), chain: Chain([9; 32]) }
    }

    #[test]
    fn every_bit_of_a_header_is_covered_by_its_seal() {
        let of_line = *LineHeader::new(&line(LOG, 7, 3), &at(7).chain, &chain_key(1)).header();
        for header in [SegmentHeader::after(at(7), LOG), of_line] {
            let bytes = header.encode(&key(1));
            assert_eq!((bytes.len(), SegmentHeader::read(&bytes, &key(1))), (HEADER_BYTES, Ok(header)));
            assert_eq!(SegmentHeader::read(&bytes, &key(2)), Err(HeaderError::Unsealed), "another pepper file");
            for bit in 0..HEADER_BYTES * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(SegmentHeader::read(&flipped, &key(1)).is_err(), "bit {bit}");
            }
            for length in 0..HEADER_BYTES {
                assert!(SegmentHeader::read(&bytes[..length], &key(1)).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_segment_of_another_log_or_of_version_1_does_not_follow_one_of_version_2() {
        let first = SegmentHeader { start: at(7), log: None, ended: None };
        let (second, other) = (SegmentHeader::after(at(7), LOG), SegmentHeader::after(at(7), LogId([6; 16])));
        for (header, log, follows) in [
            (first, None, true),
            (second, None, true),
            (second, Some(LOG), true),
            (other, Some(LOG), false),
            (first, Some(LOG), false),
        ] {
            assert_eq!(header.follows(&at(7), log, &chain_key(1)), follows, "{header:?} after {log:?}");
            assert!(!header.follows(&at(8), log, &chain_key(1)));
        }
    }

    #[test]
    fn a_line_follows_the_end_of_the_lines_before_alone() {
        let (other, key) = (LogId([6; 16]), chain_key(1));
        let header = *LineHeader::new(&line(other, 7, 3), &at(7).chain, &key).header();
        assert_eq!(header.start.revision, Revision(3 << 40));
        for log in [None, Some(LOG)] {
            assert!(header.follows(&at(7), log, &key));
            assert!(!header.follows(&at(8), log, &key), "of another revision");
            let fork = Position { chain: Chain([8; 32]), ..at(7) };
            assert!(!header.follows(&fork, log, &key), "of another log");
        }
        for wrong in [
            SegmentHeader { log: Some(LOG), ..header },
            SegmentHeader { start: Position { revision: Revision(4 << 40), ..header.start }, ..header },
        ] {
            assert!(!wrong.follows(&at(7), Some(LOG), &key), "{wrong:?}");
        }
        // A base is a multiple of the revisions in a line.
        let odd = SegmentHeader { start: Position { revision: Revision(7 << 39), ..header.start }, ..header };
        assert_eq!(
            SegmentHeader::read(&odd.encode(&super::SealKey::of(&key)), &SealKey::of(&key)),
            Err(HeaderError::Damaged)
        );
    }
}
