//! The table's contents in a few bytes: the position it covers, and for each kind of record a count and a sum
//! of hashes.
//!
//! The checksums are updated in the same transactions as the records. Recomputed at a start, they detect a
//! missing, stale, foreign or duplicated record, however well-formed it is. They do not depend on the order
//! of records, so a change costs one subtraction and one addition.

use keyward_core::event::Revision;

use crate::bytes_codec::Cursor;
use crate::store::record::RecordKind;
use zeroize::Zeroizing;

use crate::store::local::journal::{Chain, ChainKey, Position};

/// The position that the table covers, and the checksums of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) struct Checksums {
    pub(in crate::store::local) position: Position,
    pub(in crate::store::local) keys: Checksum,
    pub(in crate::store::local) tenants: Checksum,
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
    pub(in crate::store::local) fn count(&self) -> u64 {
        self.count
    }

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

    fn hash(key: &ChecksumKey, name: &[u8], value: &[u8]) -> u128 {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(value);
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }
}

impl Checksums {
    /// The checksums of an empty table.
    pub(in crate::store::local) const EMPTY: Self = Self {
        position: Position::START,
        keys: Checksum { count: 0, hashes: 0 },
        tenants: Checksum { count: 0, hashes: 0 },
    };

    /// The checksum of a kind of records.
    pub(in crate::store::local) fn of_mut(&mut self, kind: RecordKind) -> &mut Checksum {
        match kind {
            RecordKind::Tenant => &mut self.tenants,
            RecordKind::Key => &mut self.keys,
        }
    }

    const VERSION: u8 = 1;
    const COVERED_BYTES: usize = 1 + 8 + 32 + 2 * (8 + 16);
    /// The length of what [`Checksums::encode`] returns.
    pub(in crate::store::local) const BYTES: usize = Self::COVERED_BYTES + 32;

    pub(in crate::store::local) fn encode(&self, key: &ChecksumKey) -> Vec<u8> {
        let mut bytes = vec![Self::VERSION];
        bytes.extend_from_slice(&self.position.revision.0.to_le_bytes());
        bytes.extend_from_slice(&self.position.chain.0);
        for sum in [&self.keys, &self.tenants] {
            bytes.extend_from_slice(&sum.count.to_le_bytes());
            bytes.extend_from_slice(&sum.hashes.to_le_bytes());
        }
        let seal = blake3::keyed_hash(&key.0, &bytes);
        bytes.extend_from_slice(seal.as_bytes());
        bytes
    }

    /// `None`: the bytes are damaged, or of a version that is not known.
    pub(in crate::store::local) fn decode(key: &ChecksumKey, bytes: &[u8]) -> Option<Self> {
        let (covered, seal) = bytes.split_at_checked(Self::COVERED_BYTES)?;
        if blake3::keyed_hash(&key.0, covered) != *<&[u8; 32]>::try_from(seal).ok()? || covered[0] != Self::VERSION {
            return None;
        }
        let mut rest = Cursor(&covered[1..]);
        let position = Position { revision: Revision(rest.u64()?), chain: Chain(rest.array()?) };
        let mut sum = || Some(Checksum { count: rest.u64()?, hashes: rest.u128()? });
        Some(Self { position, keys: sum()?, tenants: sum()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_believed_only_under_their_key_and_whole() {
        let key = |byte| ChecksumKey::of(&ChainKey(Zeroizing::new([byte; 32])));
        let mut checksums = Checksums::EMPTY;
        checksums.keys.add(&key(1), b"name", b"value");
        let bytes = checksums.encode(&key(1));
        assert_eq!(Checksums::decode(&key(1), &bytes).unwrap().keys, checksums.keys);
        assert!(Checksums::decode(&key(2), &bytes).is_none());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Checksums::decode(&key(1), &flipped).is_none(), "bit {bit}");
        }
    }
}
