//! A shard of the index: the entries of some hundred digests, in one immutable piece.
//!
//! A change replaces the shard by a new one, so readers of the old one are not disturbed. Shards are small:
//! at ten million keys this costs a change some microseconds.

use std::ops::Range;
use std::sync::Arc;

use crate::bytes_codec::{Cursor, put_varint};
use arc_swap::{ArcSwap, Guard};
use constant_time_eq::constant_time_eq;
use keyward_core::digest::Digest;

use super::interner::{NameKind, Names};
use super::packing::renumber;

/// Bytes of a digest that select its shard.
const SHARD_BYTES: usize = 2;
/// The next bytes, by which it is found in the shard.
const PREFIX_BYTES: usize = 4;
/// The rest of a digest, stored before its entry.
const REST_BYTES: usize = 32 - SHARD_BYTES - PREFIX_BYTES;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// The number of shards: at ten million keys, each has 153. A thousand keys take at most half a megabyte.
pub(super) const SHARDS: usize = 1 << (8 * SHARD_BYTES);

/// The shard of a digest.
pub(super) fn shard_of(digest: &Digest) -> usize {
    let [a, b, ..] = *digest.as_bytes();
    usize::from(u16::from_be_bytes([a, b]))
}

/// Holds the current version of a shard.
pub(super) type ShardCell = ArcSwap<Shard>;
/// A shard being read.
pub(super) type ShardGuard = Guard<Arc<Shard>>;

/// Entries in the order of their digests.
#[derive(Debug)]
pub(super) struct Shard {
    /// The names that the numbers in its entries refer to. Reached through the shard alone: a replaced shard
    /// can still be read, and its numbers mean other names in another generation.
    names: Arc<Names>,
    /// The prefix of each digest, and the offset of its entry in `bytes`. Together, because they are read
    /// together.
    slots: Box<[Slot]>,
    /// The rest of each digest, and its packed entry.
    bytes: Box<[u8]>,
}

/// See [`Shard::slots`].
#[derive(Clone, Copy, Debug)]
struct Slot {
    prefix: u32,
    start: u32,
}

/// An entry to put into a shard, or to remove from it.
pub(super) struct NewEntry<'a> {
    pub(super) digest: Digest,
    /// `None`: there is to be none.
    pub(super) packed: Option<&'a [u8]>,
}

impl NewEntry<'_> {
    fn split(&self) -> (u32, &[u8]) {
        split(&self.digest)
    }
}

/// The prefix and the rest of a digest.
fn split(digest: &Digest) -> (u32, &[u8]) {
    let (prefix, rest) = digest.as_bytes()[SHARD_BYTES..].split_at(PREFIX_BYTES);
    (prefix.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)), rest)
}

impl Shard {
    pub(super) fn empty(names: Arc<Names>) -> Self {
        Self { names, slots: Box::default(), bytes: Box::default() }
    }

    pub(super) fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// All packed entries.
    pub(super) fn all_packed(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|at| self.entry(at)).map(|(_, packed)| packed)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Finds the packed entry of a digest.
    pub(super) fn find(&self, digest: &Digest) -> Option<Range<usize>> {
        let (prefix, rest) = split(digest);
        let mut at = self.first_at_least(prefix);
        while self.slots.get(at).is_some_and(|slot| slot.prefix == prefix) {
            let Range { start, end } = self.range(at)?;
            let (held, packed) = (start..start + REST_BYTES, start + REST_BYTES..end);
            if constant_time_eq(self.bytes.get(held)?, rest) {
                return Some(packed);
            }
            at += 1;
        }
        None
    }

    /// The first slot whose prefix is not smaller. Prefixes are uniform, so interpolation comes close.
    fn first_at_least(&self, prefix: u32) -> usize {
        let count = self.slots.len();
        let mut at = self.share_of(prefix);
        while at > 0 && self.slots[at - 1].prefix >= prefix {
            at -= 1;
        }
        while at < count && self.slots[at].prefix < prefix {
            at += 1;
        }
        at
    }

    /// Reads the slot at which a search for a digest begins. The result is meaningless.
    pub(super) fn prefetch_slots(&self, digest: &Digest) -> u32 {
        self.slots.get(self.share_of(split(digest).0)).map_or(0, |slot| slot.prefix)
    }

    /// Reads the first entry that a search for a digest examines. Returns the offset of the packed entry, and
    /// a meaningless value.
    pub(super) fn prefetch_entry(&self, digest: &Digest) -> Option<(usize, u32)> {
        let range = self.range(self.first_at_least(split(digest).0))?;
        let lines = self.bytes.get(range.clone())?.iter().step_by(LINE_BYTES).chain(self.bytes.get(range.end - 1));
        Some((range.start + REST_BYTES, lines.map(|byte| u32::from(*byte)).sum()))
    }

    /// The expected slot of a prefix, if prefixes are uniform.
    fn share_of(&self, prefix: u32) -> usize {
        ((u64::from(prefix) * self.slots.len() as u64) >> 32) as usize
    }

    fn range(&self, at: usize) -> Option<Range<usize>> {
        let start = self.slots.get(at)?.start as usize;
        let end = self.slots.get(at + 1).map_or(self.bytes.len(), |next| next.start as usize);
        Some(start..end)
    }

    /// The rest of the digest and the packed entry of a slot.
    fn entry(&self, at: usize) -> Option<(&[u8], &[u8])> {
        self.bytes.get(self.range(at)?)?.split_at_checked(REST_BYTES)
    }

    /// This shard with new entries of its generation, sorted by digest without duplicates. They replace
    /// existing ones, or remove them.
    pub(super) fn with(&self, new: &[NewEntry<'_>]) -> Self {
        let mut merged = Vec::with_capacity(self.len() + new.len());
        let mut bytes = 0;
        let (mut at, mut new) = (0, new.iter().peekable());
        loop {
            let old = self.entry(at).map(|(rest, packed)| (self.slots[at].prefix, rest, packed));
            let next = new.peek().map(|next| (next.split(), next.packed));
            let (prefix, rest, packed) = match (old, next) {
                (None, None) => break,
                (Some(old), None) => {
                    at += 1;
                    old
                }
                (Some((prefix, rest, packed)), Some((name, _))) if (prefix, rest) < name => {
                    at += 1;
                    (prefix, rest, packed)
                }
                (old, Some(((prefix, rest), packed))) => {
                    let replaced =
                        old.is_some_and(|(old_prefix, old_rest, _)| (old_prefix, old_rest) == (prefix, rest));
                    at += usize::from(replaced);
                    new.next();
                    let Some(packed) = packed else { continue };
                    (prefix, rest, packed)
                }
            };
            bytes += rest.len() + packed.len();
            merged.push((prefix, rest, packed));
        }
        Self::of(self.names.clone(), &merged, bytes)
    }

    /// The same entries with the numbers of another generation.
    pub(super) fn renumbered(&self, names: Arc<Names>, mut number_of: impl FnMut(NameKind, u32) -> u32) -> Self {
        let mut slots = Vec::with_capacity(self.slots.len());
        let mut bytes = Vec::with_capacity(self.bytes.len() + self.bytes.len() / 16);
        for at in 0..self.len() {
            let Some((rest, packed)) = self.entry(at) else { continue };
            slots.push(Slot { prefix: self.slots[at].prefix, start: start(&bytes) });
            bytes.extend_from_slice(rest);
            renumber(packed, &mut number_of, &mut bytes);
        }
        Self { names, slots: slots.into(), bytes: bytes.into() }
    }

    /// Appends the shard: the number of entries as a varint, and if there are any, the number of bytes, all
    /// prefixes, the offset of each entry and of the end, and all bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        put_varint(out, self.len() as u64);
        if self.slots.is_empty() {
            return;
        }
        let (starts, end) = (self.slots.iter().map(|slot| slot.start), start(&self.bytes));
        let prefixes = self.slots.iter().map(|slot| slot.prefix);
        let words = [end].into_iter().chain(prefixes).chain(starts).chain([end]);
        words.for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&self.bytes);
    }

    /// Reads what [`Shard::write`] wrote, from the beginning of `from`. `None`: malformed or empty.
    pub(super) fn read(from: &mut Cursor<'_>, count: usize, names: Arc<Names>) -> Option<Self> {
        let size = from.u32()? as usize;
        let words = from.take(count.checked_mul(2)?.checked_add(1)?.checked_mul(4)?)?;
        let bytes = from.take(size)?;
        let word = |bytes| Cursor(bytes).u32();
        let (prefixes, starts) = words.split_at(4 * count);
        let slots: Box<[Slot]> = (prefixes.chunks_exact(4).zip(starts.chunks_exact(4)))
            .filter_map(|(prefix, start)| Some(Slot { prefix: word(prefix)?, start: word(start)? }))
            .collect();
        let ends = starts.chunks_exact(4).skip(1).filter_map(word);
        let each_has_a_name =
            slots.iter().zip(ends).all(|(slot, end)| slot.start as usize + REST_BYTES <= end as usize);
        let within = starts.chunks_exact(4).next_back().and_then(word).is_some_and(|end| end as usize == size);
        let sorted = slots.is_sorted_by_key(|slot| slot.prefix);
        (sorted && each_has_a_name && within).then(|| Self { names, slots, bytes: bytes.into() })
    }

    fn of(names: Arc<Names>, entries: &[(u32, &[u8], &[u8])], size: usize) -> Self {
        let mut slots = Vec::with_capacity(entries.len());
        let mut bytes = Vec::with_capacity(size);
        for (prefix, rest, packed) in entries {
            slots.push(Slot { prefix: *prefix, start: start(&bytes) });
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(packed);
        }
        Self { names, slots: slots.into(), bytes: bytes.into() }
    }
}

/// The offset of the next entry. It fits: a shard of 4 GiB would be one of 65,536.
fn start(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
