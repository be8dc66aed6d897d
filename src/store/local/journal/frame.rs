//! Frames: the bytes of a segment behind its header. All numbers are little-endian.
//!
//! ```text
//! frame: "KWJG" │ payload length u32 │ first revision u64 │ entries u32 │ CRC-32C u32 │ payload │ chain, 32 bytes
//!        │ zeros up to a multiple of 8
//! ```
//!
//! The frame's checksum covers the 20 bytes before it, the payload and the chain. The payload is a sequence
//! of length-delimited `storage.v1.JournalEntry`. The chain is the hash of the log up to the frame's last
//! entry.

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use prost::Message;

use super::{CRC32C, Chain, ChainKey, JournalError, Position};
use crate::bytes_codec::Cursor;
use crate::store::record::pb;

/// Frames begin at multiples of this.
pub const ALIGNMENT_BYTES: usize = 8;
/// The longest frame that is written, with its header, chain and padding: 1 MiB.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The longest payload that is written.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEADER_BYTES - CHAIN_BYTES;
/// The longest payload that is read: older programs wrote such frames into segments of version 1.
pub const PAYLOAD_BYTES_READ_MAX: usize = 8 * 1024 * 1024;
/// The longest frame that is read.
pub const FRAME_BYTES_READ_MAX: usize = FRAME_HEADER_BYTES + PAYLOAD_BYTES_READ_MAX + CHAIN_BYTES + ALIGNMENT_BYTES;

const FRAME_MAGIC: &[u8; 4] = b"KWJG";
/// The header of a frame.
pub const FRAME_HEADER_BYTES: usize = 24;
const CHAIN_BYTES: usize = 32;
/// The longest length prefix of an entry.
const LENGTH_BYTES_MAX: usize = 10;

/// Builds a frame of entries that follow a position.
#[derive(Debug)]
pub struct FrameBuilder {
    first: Revision,
    end: Position,
    entries: u32,
    bytes: Vec<u8>,
}

impl FrameBuilder {
    /// An empty frame after `position`.
    #[must_use]
    pub fn after(position: &Position) -> Self {
        Self { first: position.revision.next(), end: *position, entries: 0, bytes: vec![0; FRAME_HEADER_BYTES] }
    }

    /// Adds the next entry.
    pub fn push(&mut self, entry: &pb::JournalEntry, key: &ChainKey) {
        let encoded = entry.encode_to_vec();
        debug_assert_eq!(entry.revision, self.end.revision.next().0, "revisions have no gaps");
        self.end = Position { revision: self.end.revision.next(), chain: self.end.chain.after(key, &encoded) };
        prost::encoding::encode_varint(encoded.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(&encoded);
        self.entries += 1;
    }

    /// The position after the last entry.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// Entries so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries as usize
    }

    /// Whether there is no entry yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes of payload so far.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() - FRAME_HEADER_BYTES
    }

    /// Whether an entry of at most this many bytes still fits.
    #[must_use]
    pub fn fits(&self, entry_bytes: usize) -> bool {
        self.payload_bytes() + LENGTH_BYTES_MAX + entry_bytes <= PAYLOAD_BYTES_MAX
    }

    /// The finished frame.
    ///
    /// # Errors
    /// When it would exceed [`FRAME_BYTES_MAX`].
    pub fn finish(self) -> Result<Vec<u8>, JournalError> {
        self.finish_within(PAYLOAD_BYTES_MAX)
    }

    fn finish_within(mut self, payload_bytes_max: usize) -> Result<Vec<u8>, JournalError> {
        let bytes = self.payload_bytes();
        let payload = u32::try_from(bytes).ok().filter(|_| bytes <= payload_bytes_max);
        let payload = payload.ok_or(JournalError::TooLong { bytes })?;
        self.bytes[..4].copy_from_slice(FRAME_MAGIC);
        self.bytes[4..8].copy_from_slice(&payload.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&self.first.0.to_le_bytes());
        self.bytes[16..20].copy_from_slice(&self.entries.to_le_bytes());
        self.bytes.extend_from_slice(&self.end.chain.0);
        let crc = checksum(&self.bytes).to_le_bytes();
        self.bytes[20..24].copy_from_slice(&crc);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        Ok(self.bytes)
    }
}

/// An entry, decoded completely or in part.
pub trait Entry: Message + Default {
    /// Its revision.
    fn revision(&self) -> Revision;
}

impl Entry for pb::JournalEntry {
    fn revision(&self) -> Revision {
        Revision(self.revision)
    }
}

/// Only the revision of an entry. Its bytes are covered by the chain.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct EntryRevision {
    /// As in [`pb::JournalEntry`].
    #[prost(uint64, tag = "1")]
    revision: u64,
}

impl Entry for EntryRevision {
    fn revision(&self) -> Revision {
        Revision(self.revision)
    }
}

/// A frame whose checksum is valid, and whose contents are not checked yet.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The revision of its first entry.
    pub first: Revision,
    /// How many entries the header claims.
    pub count: u32,
    payload: &'a [u8],
    chain: Chain,
    /// Its length, with padding.
    pub bytes: usize,
}

impl<'a> Frame<'a> {
    /// Reads the frame at the beginning of `bytes`. `None`: there is no valid frame.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        Self::read_within(bytes, PAYLOAD_BYTES_READ_MAX)
    }

    /// As [`Frame::read`], in a segment that has no frame with a longer payload than this.
    #[must_use]
    pub fn read_within(bytes: &'a [u8], payload_bytes_max: usize) -> Option<Self> {
        let mut header = Cursor(bytes.first_chunk::<FRAME_HEADER_BYTES>()?);
        let is_ours = header.array() == Some(*FRAME_MAGIC);
        let payload = header.u32()? as usize;
        let (first, count, sum) = (Revision(header.u64()?), header.u32()?, header.u32()?);
        if !is_ours || payload > payload_bytes_max {
            return None;
        }
        let unpadded = FRAME_HEADER_BYTES + payload + CHAIN_BYTES;
        let frame = bytes.get(..unpadded)?;
        if sum != checksum(frame) {
            return None;
        }
        let (payload, chain) = frame[FRAME_HEADER_BYTES..].split_at(payload);
        Some(Self {
            first,
            count,
            payload,
            chain: Chain(chain.try_into().ok()?),
            bytes: unpadded.next_multiple_of(ALIGNMENT_BYTES),
        })
    }

    /// The position after the frame, as it claims.
    #[must_use]
    pub fn claimed_end(&self) -> Position {
        let last = self.first.0.saturating_add(u64::from(self.count)).saturating_sub(1);
        Position { revision: Revision(last), chain: self.chain }
    }

    /// The time of the first entry, if it decodes.
    #[must_use]
    pub fn first_time(&self) -> Option<UnixMillis> {
        self.entries::<pb::JournalEntry>().next()?.ok().map(|(entry, _)| UnixMillis(entry.time_ms))
    }

    /// The entries with their bytes. Ends with the first error.
    pub fn entries<E: Entry>(&self) -> impl Iterator<Item = Result<(E, &'a [u8]), &'static str>> + use<'a, E> {
        let mut rest = self.payload;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let next = next_entry(&mut rest);
            if next.is_err() {
                rest = &[];
            }
            Some(next)
        })
    }

    /// Returns the entries and the position after them, if the frame follows `position` in revision and
    /// chain.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verify_after<E: Entry>(
        &self,
        position: &Position,
        key: &ChainKey,
    ) -> Result<(Vec<E>, Position), &'static str> {
        self.verify_each(position, key, |_| {})
    }

    /// As [`Frame::verify_after`], and calls `on_position` with the position after each entry. They must not
    /// be trusted before this has returned.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn verify_each<E: Entry>(
        &self,
        position: &Position,
        key: &ChainKey,
        mut on_position: impl FnMut(Position),
    ) -> Result<(Vec<E>, Position), &'static str> {
        let mut entries = Vec::new();
        let mut end = *position;
        for next in self.entries::<E>() {
            let (entry, encoded) = next?;
            if entry.revision() != end.revision.next() {
                return Err("the revisions do not follow each other");
            }
            end = Position { revision: entry.revision(), chain: end.chain.after(key, encoded) };
            on_position(end);
            entries.push(entry);
        }
        if self.first != position.revision.next() || self.count as usize != entries.len() {
            return Err("the frame's header does not fit its entries");
        }
        if end.chain != self.chain {
            return Err(
                "the chain does not verify: the log was altered, or the pepper file is not the one it was written with",
            );
        }
        Ok((entries, end))
    }
}

/// The length of a frame without its padding, as its header says: at most [`FRAME_BYTES_READ_MAX`].
#[must_use]
pub fn unpadded_bytes(header: &[u8; FRAME_HEADER_BYTES]) -> usize {
    let payload = Cursor(&header[4..]).u32().unwrap_or(0) as usize;
    FRAME_HEADER_BYTES + payload.min(PAYLOAD_BYTES_READ_MAX) + CHAIN_BYTES
}

/// Takes the next entry and its bytes from a payload.
fn next_entry<'a, E: Entry>(rest: &mut &'a [u8]) -> Result<(E, &'a [u8]), &'static str> {
    let length = prost::encoding::decode_varint(rest).map_err(|_| "an entry's length does not decode")?;
    let length = usize::try_from(length).map_err(|_| "an entry's length does not decode")?;
    let (encoded, after) = rest.split_at_checked(length).ok_or("an entry runs past its frame")?;
    let entry = E::decode(encoded).map_err(|_| "an entry does not decode")?;
    *rest = after;
    Ok((entry, encoded))
}

fn checksum(frame: &[u8]) -> u32 {
    let mut digest = CRC32C.digest();
    digest.update(&frame[..20]);
    digest.update(&frame[FRAME_HEADER_BYTES..]);
    digest.finalize()
}

#[cfg(test)]
pub(super) mod tests {
    use zeroize::Zeroizing;

    use super::*;

    pub(in crate::store::local::journal) fn entry(revision: u64, bytes: usize) -> pb::JournalEntry {
        pb::JournalEntry { revision, target: "x".repeat(bytes), ..Default::default() }
    }

    /// A frame as older programs wrote it, with a payload of up to 8 MiB.
    pub(in crate::store::local::journal) fn long_frame(after: &Position, bytes: usize, key: &ChainKey) -> Vec<u8> {
        let mut frame = FrameBuilder::after(after);
        // Besides its text: 2 bytes of revision, 5 of the text's tag and length, 4 of the entry's length.
        frame.push(&entry(after.revision.0 + 1, bytes - 11), key);
        assert_eq!(frame.payload_bytes(), bytes);
        frame.finish_within(PAYLOAD_BYTES_READ_MAX).unwrap()
    }

    #[test]
    fn no_frame_of_more_than_1_mib_is_made() {
        let key = ChainKey(Zeroizing::new([7; 32]));
        let of = |bytes: usize| {
            let mut frame = FrameBuilder::after(&Position::START);
            frame.push(&entry(1, bytes - 9), &key);
            assert_eq!(frame.payload_bytes(), bytes);
            frame.finish()
        };
        assert_eq!(of(PAYLOAD_BYTES_MAX).unwrap().len(), FRAME_BYTES_MAX);
        let refused = of(PAYLOAD_BYTES_MAX + 1);
        assert!(
            matches!(refused, Err(JournalError::TooLong { bytes }) if bytes == PAYLOAD_BYTES_MAX + 1),
            "{refused:?}"
        );
        // What is said to fit does.
        let mut frame = FrameBuilder::after(&Position::START);
        let mut revision = 0;
        while frame.fits(entry(revision + 1, 5_000).encoded_len()) {
            revision += 1;
            frame.push(&entry(revision, 5_000), &key);
        }
        assert!(revision > 200 && frame.finish().is_ok(), "{revision}");
    }
}
