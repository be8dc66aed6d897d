//! Reading ahead: what lookups are about to read is brought into the caches of the processor, for many of
//! them together.
//!
//! A lookup among millions of keys waits for memory some seven times, each time for what says where to read
//! next. Lookups that follow each other wait one after the other; here each step is made for all of them
//! before the next one, so that their waits pass at the same time.

use std::hint::black_box;

use keyward_core::digest::Digest;

use super::Index;
use super::packing::owner_of;
use super::shard::{ShardGuard, shard_of};

/// Lookups that are gone through together. A processor waits for about so many reads at a time, and all that
/// they bring fits into its first cache.
pub const TOGETHER: usize = 16;

/// With fewer keys the index is in the caches as it is, and reading ahead costs more than it saves.
pub const KEYS_MIN: usize = 16_384;

impl Index {
    /// Whether there are so many keys that [`Index::read_ahead`] is worth its while.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.len() >= KEYS_MIN
    }

    /// Brings what lookups of these digests will read into the caches of the processor. Nothing else depends
    /// on it.
    pub fn read_ahead(&self, digests: &[Digest]) {
        for digests in digests.chunks(TOGETHER) {
            // What was read must seem to be of use, or it would not be read.
            black_box(self.touch(digests));
        }
    }

    fn touch(&self, digests: &[Digest]) -> u32 {
        let mut touched = 0_u32;
        let mut shards: [Option<ShardGuard>; TOGETHER] = [const { None }; TOGETHER];
        for (digest, shard) in digests.iter().zip(&mut shards) {
            *shard = Some(self.shards[shard_of(digest)].load());
        }
        let each = || digests.iter().zip(shards.iter().flatten());
        for (digest, shard) in each() {
            touched ^= shard.prefetch_slots(digest);
        }
        let mut entries = [None; TOGETHER];
        for ((digest, shard), entry) in each().zip(&mut entries) {
            if let Some((at, read)) = shard.prefetch_entry(digest) {
                (*entry, touched) = (Some(at), touched ^ read);
            }
        }
        let mut owners = [None; TOGETHER];
        for (((_, shard), entry), owner) in each().zip(entries).zip(&mut owners) {
            *owner = entry.and_then(|at| shard.names().owners.get(owner_of(shard.bytes(), at)));
        }
        for name in owners.iter().flatten().map(|owner| owner.name.as_bytes()) {
            touched ^= name.first().map_or(0, |byte| u32::from(*byte));
        }
        touched
    }
}
