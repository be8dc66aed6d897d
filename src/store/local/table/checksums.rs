//! The table's contents in a few bytes: the position it covers, and for each kind of record a count and a sum
//! of hashes.
//!
//! The checksums are updated in the same transactions as the records. Recomputed at a start, they detect a
//! missing, stale, foreign or duplicated record, however well-formed it is. They do not depend on the order
//! of records, so a change costs one subtraction and one addition.

use keyward_core::event::{Record, Revision};

use crate::bytes_codec::Cursor;
use crate::store::record::RecordKind;
use zeroize::Zeroizing;

use crate::store::local::journal::{Chain, ChainKey, Position};

/// The position that the table covers, and the checksums of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) struct Checksums {
    pub(in crate::store::local) position: Position,
    /// No key up to here has this ordinal or a higher one.
    pub(in crate::store::local) next_ordinal: u32,
    /// In the order of [`RecordKind::ALL`].
    sums: [Checksum; RecordKind::ALL.len()],
}

/// The key of the checksums. Without it, nobody can make a table that was tampered with look intact.
pub(in crate::store::local) struct ChecksumKey(Zeroizing<[u8; 32]>);

impl ChecksumKey {
    pub(in crate::store::local) fn of(chain: &ChainKey) -> Self {
        Self(Zeroizing::new(blake3::derive_key("keyward 2026-11-23 table sums v1", &*chain.0)))
    }

    /// A seal of these bytes that only the holder of the key can make.
    pub(in crate::store::local) fn seal(&self, bytes: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, bytes).as_bytes()
    }
}

/// A count of records and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store::local) struct Checksum {
    count: u64,
    hashes: u128,
}

impl Checksum {
    pub(in crate::store::local) fn add(&mut self, key: &ChecksumKey, name: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_add(1);
        self.hashes = self.hashes.wrapping_add(Self::hash(key, name, value));
    }

    pub(in crate::store::local) fn remove(&mut self, key: &ChecksumKey, name: &[u8], value: &[u8]) {
        self.count = self.count.wrapping_sub(1);
        self.hashes = self.hashes.wrapping_sub(Self::hash(key, name, value));
    }

    /// Adds another checksum.
    pub(in crate::store::local) fn join(&mut self, other: &Self) {
        self.count = self.count.wrapping_add(other.count);
        self.hashes = self.hashes.wrapping_add(other.hashes);
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.hashes.to_le_bytes());
    }

    fn decode(from: &mut Cursor<'_>) -> Option<Self> {
        Some(Self { count: from.u64()?, hashes: from.u128()? })
    }

    fn hash(key: &ChecksumKey, name: &[u8], value: &[u8]) -> u128 {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(value);
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }
}

impl Checksums {
    /// The checksums of nothing, at a position.
    pub(in crate::store::local) fn at(position: Position) -> Self {
        Self { position, ..Self::EMPTY }
    }

    /// The checksums of an empty table.
    pub(in crate::store::local) const EMPTY: Self = Self {
        position: Position::START,
        next_ordinal: 0,
        sums: [Checksum { count: 0, hashes: 0 }; RecordKind::ALL.len()],
    };

    /// The checksum of a kind of records.
    pub(in crate::store::local) fn of(&self, kind: RecordKind) -> Checksum {
        self.sums[kind as usize]
    }

    /// The same, to be changed.
    pub(in crate::store::local) fn of_mut(&mut self, kind: RecordKind) -> &mut Checksum {
        &mut self.sums[kind as usize]
    }

    /// Whether the position and the sums are the same.
    pub(in crate::store::local) fn has_records_of(&self, other: &Self) -> bool {
        (self.position, self.sums) == (other.position, other.sums)
    }

    /// How many keys there are.
    pub(in crate::store::local) fn keys(&self) -> u64 {
        self.of(RecordKind::Key).count
    }

    /// Notes a record that is written.
    pub(in crate::store::local) fn note_ordinal(&mut self, record: &Record) {
        if let Record::Key(key) = record
            && let Some(ordinal) = key.ordinal
        {
            self.next_ordinal = self.next_ordinal.max(ordinal.saturating_add(1));
        }
    }

    const FIRST: u8 = 1;
    const SECOND: u8 = 2;
    /// What both versions begin with: version and position.
    const HEAD_BYTES: usize = 1 + 8 + 32;
    const SUM_BYTES: usize = 8 + 16;
    const SEAL_BYTES: usize = 32;
    /// The length of version 1.
    pub(in crate::store::local) const FIRST_BYTES: usize = Self::HEAD_BYTES + 2 * Self::SUM_BYTES + Self::SEAL_BYTES;

    /// Version 2: the next ordinal, and a list of the kinds that there are records of.
    pub(in crate::store::local) fn encode(&self, key: &ChecksumKey) -> Vec<u8> {
        let mut bytes = self.head(Self::SECOND);
        bytes.extend_from_slice(&self.next_ordinal.to_le_bytes());
        let kinds = || RecordKind::ALL.into_iter().filter(|kind| self.of(*kind) != Checksum::default());
        bytes.push(u8::try_from(kinds().count()).unwrap_or(u8::MAX));
        for kind in kinds() {
            bytes.push(kind.number());
            self.of(kind).encode(&mut bytes);
        }
        sealed(bytes, key)
    }

    /// Version 1: for tenants and keys alone, without lines and purge marks. `None`: there are others.
    pub(in crate::store::local) fn encode_first(&self, key: &ChecksumKey) -> Option<Vec<u8>> {
        let mut rest = *self;
        for left_out in [RecordKind::Key, RecordKind::Tenant, RecordKind::Line, RecordKind::Purged] {
            *rest.of_mut(left_out) = Checksum::default();
        }
        if rest.sums != Self::EMPTY.sums {
            return None;
        }
        let mut bytes = self.head(Self::FIRST);
        [RecordKind::Key, RecordKind::Tenant].into_iter().for_each(|kind| self.of(kind).encode(&mut bytes));
        Some(sealed(bytes, key))
    }

    fn head(&self, version: u8) -> Vec<u8> {
        let mut bytes = vec![version];
        bytes.extend_from_slice(&self.position.revision.0.to_le_bytes());
        bytes.extend_from_slice(&self.position.chain.0);
        bytes
    }

    /// `None`: the bytes are damaged, or of a version that is not known.
    pub(in crate::store::local) fn decode(key: &ChecksumKey, bytes: &[u8]) -> Option<Self> {
        let (covered, seal) = bytes.split_at_checked(bytes.len().checked_sub(Self::SEAL_BYTES)?)?;
        if blake3::keyed_hash(&key.0, covered) != *<&[u8; 32]>::try_from(seal).ok()? {
            return None;
        }
        let (&version, rest) = covered.split_first()?;
        let mut rest = Cursor(rest);
        let position = Position { revision: Revision(rest.u64()?), chain: Chain(rest.array()?) };
        let mut checksums = Self { position, ..Self::EMPTY };
        match version {
            Self::FIRST => {
                for kind in [RecordKind::Key, RecordKind::Tenant] {
                    *checksums.of_mut(kind) = Checksum::decode(&mut rest)?;
                }
            }
            Self::SECOND => {
                checksums.next_ordinal = rest.u32()?;
                let [count] = rest.array()?;
                for _ in 0..count {
                    let [number] = rest.array()?;
                    *checksums.of_mut(RecordKind::of_number(number)?) = Checksum::decode(&mut rest)?;
                }
            }
            _ => return None,
        }
        rest.0.is_empty().then_some(checksums)
    }
}

fn sealed(mut bytes: Vec<u8>, key: &ChecksumKey) -> Vec<u8> {
    let seal = blake3::keyed_hash(&key.0, &bytes);
    bytes.extend_from_slice(seal.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_believed_only_under_their_key_and_whole() {
        let key = |byte| ChecksumKey::of(&ChainKey(Zeroizing::new([byte; 32])));
        let mut checksums = Checksums::EMPTY;
        checksums.of_mut(RecordKind::Key).add(&key(1), b"name", b"value");
        let first = checksums.encode_first(&key(1)).unwrap();
        assert_eq!(first.len(), Checksums::FIRST_BYTES);
        assert_eq!(Checksums::decode(&key(1), &first), Some(checksums));
        checksums.of_mut(RecordKind::Owner).add(&key(1), b"owner", b"value");
        checksums.next_ordinal = 7;
        assert_eq!(checksums.encode_first(&key(1)), None);
        let second = checksums.encode(&key(1));
        assert_eq!(Checksums::decode(&key(1), &second), Some(checksums));
        for bytes in [first, second] {
            assert!(Checksums::decode(&key(2), &bytes).is_none());
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Checksums::decode(&key(1), &flipped).is_none(), "bit {bit}");
            }
        }
    }
}
