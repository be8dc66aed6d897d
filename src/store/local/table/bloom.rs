//! A Bloom filter of the ids and digests in the table.
//!
//! Before a key is issued, neither its id nor its digest may exist, and nearly always they do not. Asking
//! sled would cost two descents and wait for the current transaction. The filter has no false negatives; on a
//! positive answer, sled is asked.
//!
//! The table adds each key before writing it, and existing keys while the whole table is read at a start.
//! Until that is complete, every answer is positive.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Bits per name. With [`BITS_SET`], about one absent name in a hundred is a false positive.
const BITS_A_NAME: usize = 12;
/// Bits set per name, all in one block.
const BITS_SET: u32 = 6;
/// A block is one cache line.
const BLOCK_BITS: usize = 512;
/// Capacity of the first filter, in names, at least.
const NAMES_MIN: usize = 128 * 1024;

/// The filter. Each key adds two names.
#[derive(Debug)]
pub(super) struct BloomFilter {
    hasher: RandomState,
    /// The table has been read: a negative answer is final.
    whole: AtomicBool,
    filters: Mutex<Vec<Filter>>,
}

/// A filter of fixed capacity. When it is full, another of twice its size is added.
#[derive(Debug)]
struct Filter {
    blocks: Box<[Block]>,
    room: usize,
}

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block([u64; BLOCK_BITS / 64]);

/// The hash of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameHash(u64);

impl BloomFilter {
    /// An empty filter, with capacity for this many keys and half as many more.
    pub(super) fn for_keys(keys: u64) -> Self {
        let names = usize::try_from(keys).unwrap_or(usize::MAX).saturating_mul(3);
        let filters = Mutex::new(vec![Filter::for_names(names.max(NAMES_MIN))]);
        Self { hasher: RandomState::new(), whole: AtomicBool::new(false), filters }
    }

    /// Everything in the table has been added.
    pub(in crate::store::local) fn mark_complete(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Whether the table may contain a name. `false` is certain.
    pub(super) fn may_contain(&self, name: &[u8]) -> bool {
        if !self.whole.load(Ordering::Acquire) {
            return true;
        }
        let name = self.hash(name);
        self.filters.lock().iter().any(|filter| filter.may_contain(name))
    }

    /// Adds names, before the table has them.
    pub(in crate::store::local) fn add(&self, names: impl IntoIterator<Item = NameHash>) {
        let mut filters = self.filters.lock();
        for name in names {
            // A change of an existing key takes no capacity.
            if filters.iter().any(|filter| filter.may_contain(name)) {
                continue;
            }
            if filters.last().is_none_or(|filter| filter.room == 0) {
                let names = filters.last().map_or(0, |filter| filter.blocks.len() * (BLOCK_BITS / BITS_A_NAME));
                filters.push(Filter::for_names((2 * names).max(NAMES_MIN)));
            }
            if let Some(filter) = filters.last_mut() {
                filter.add(name);
            }
        }
    }

    /// Hashes a name.
    pub(in crate::store::local) fn hash(&self, bytes: &[u8]) -> NameHash {
        NameHash(self.hasher.hash_one(bytes))
    }
}

impl Filter {
    fn for_names(names: usize) -> Self {
        let blocks = names.div_ceil(BLOCK_BITS / BITS_A_NAME);
        Self { blocks: vec![Block([0; BLOCK_BITS / 64]); blocks].into(), room: names }
    }

    fn may_contain(&self, name: NameHash) -> bool {
        let block = &self.blocks[name.block(self.blocks.len())];
        name.bits().all(|(word, bit)| block.0[word] & bit != 0)
    }

    fn add(&mut self, name: NameHash) {
        let at = name.block(self.blocks.len());
        let block = &mut self.blocks[at];
        name.bits().for_each(|(word, bit)| block.0[word] |= bit);
        self.room = self.room.saturating_sub(1);
    }
}

impl NameHash {
    /// Its block: from the upper half of the hash, so that block and bits are independent.
    fn block(self, blocks: usize) -> usize {
        usize::try_from(((self.0 >> 32) * blocks as u64) >> 32).unwrap_or(0) // below `blocks`
    }

    /// Its bits in the block, as words and masks. Nine bits of the hash choose one of 512.
    fn bits(self) -> impl Iterator<Item = (usize, u64)> {
        let mixed = (self.0 & 0xFFFF_FFFF).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (0..BITS_SET).map(move |nth| {
            let chosen = (mixed >> (9 * nth + 10)) as usize % BLOCK_BITS;
            (chosen / 64, 1 << (chosen % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(keys: u64) -> BloomFilter {
        let bloom = BloomFilter::for_keys(keys);
        bloom.mark_complete();
        bloom
    }

    #[test]
    fn what_was_added_may_be_there_and_nearly_all_else_is_not_however_much_it_grows() {
        let bloom = whole(0);
        let names = 2 * NAMES_MIN as u64; // two filters
        bloom.add((0..names).map(|n| bloom.hash(&n.to_le_bytes())));
        assert_eq!(bloom.filters.lock().len(), 2);
        assert!((0..names).all(|n| bloom.may_contain(&n.to_le_bytes())));
        let mistaken = (names..2 * names).filter(|n| bloom.may_contain(&n.to_le_bytes())).count();
        assert!(mistaken < names as usize / 25, "{mistaken} of {names}");
    }

    #[test]
    fn a_name_that_is_added_again_takes_no_room() {
        let bloom = whole(0);
        for _ in 0..10 {
            bloom.add((0..1_000_u64).map(|n| bloom.hash(&n.to_le_bytes())));
        }
        assert!(bloom.filters.lock()[0].room >= NAMES_MIN - 1_000);
    }

    #[test]
    fn until_the_table_has_been_read_everything_may_be_there() {
        let bloom = BloomFilter::for_keys(0);
        assert!(bloom.may_contain(b"never added"));
        bloom.mark_complete();
        assert!(!bloom.may_contain(b"never added"));
    }
}
