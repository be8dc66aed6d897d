//! A part of the index: the entries of some hundred digests, in one piece that never changes.
//!
//! A change makes a new piece and puts it in the place of the old one, so that whoever reads the old one reads on
//! undisturbed. Small as it is, that costs a change some microseconds at ten million keys.

use std::ops::Range;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use constant_time_eq::constant_time_eq;
use keyward_core::digest::Digest;

use super::entry::revision_of;

/// Bytes of a digest that name its shard.
const SHARD_BYTES: usize = 2;
/// Bytes after them by which it is found there.
const PREFIX_BYTES: usize = 4;
/// All others, which stand before the entry.
const REST_BYTES: usize = 32 - SHARD_BYTES - PREFIX_BYTES;

/// Bytes that a processor reads from memory at once.
const LINE_BYTES: usize = 64;

/// How many shards there are: ten million keys are 153 in each, and a thousand keys cost no more than half a megabyte.
pub(super) const SHARDS: usize = 1 << (8 * SHARD_BYTES);

/// The shard of a digest.
pub(super) fn shard_of(digest: &Digest) -> usize {
    let [a, b, ..] = *digest.as_bytes();
    usize::from(u16::from_be_bytes([a, b]))
}

/// A place for a shard.
pub(super) type Place = ArcSwap<Shard>;
/// A shard that is being read.
pub(super) type Reading = Guard<Arc<Shard>>;

/// Entries in the order of their digests.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// The prefix of each, and where it begins in `bytes`. Together, because who reads one reads the other.
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

/// An entry to be put into a shard.
pub(super) struct New<'a> {
    pub(super) digest: Digest,
    pub(super) packed: &'a [u8],
}

impl New<'_> {
    fn split(&self) -> (u32, &[u8]) {
        split(&self.digest)
    }
}

/// The parts of a digest within its shard.
fn split(digest: &Digest) -> (u32, &[u8]) {
    let (prefix, rest) = digest.as_bytes()[SHARD_BYTES..].split_at(PREFIX_BYTES);
    (prefix.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)), rest)
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where the packed entry of a digest lies.
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

    /// The first place whose prefix is not smaller. Prefixes are uniform, so it is near its share of the way.
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

    /// Reads what a search for a digest begins with. What it gives is of no use.
    pub(super) fn touch_slots(&self, digest: &Digest) -> u32 {
        self.slots.get(self.share_of(split(digest).0)).map_or(0, |slot| slot.prefix)
    }

    /// Reads the entry that a search for a digest comes to first: where the packed entry begins, and what is of no use.
    pub(super) fn touch_entry(&self, digest: &Digest) -> Option<(usize, u32)> {
        let range = self.range(self.first_at_least(split(digest).0))?;
        let lines = self.bytes.get(range.clone())?.iter().step_by(LINE_BYTES).chain(self.bytes.get(range.end - 1));
        Some((range.start + REST_BYTES, lines.map(|byte| u32::from(*byte)).sum()))
    }

    /// The share of the way at which a prefix is, if all are spread evenly.
    fn share_of(&self, prefix: u32) -> usize {
        ((u64::from(prefix) * self.slots.len() as u64) >> 32) as usize
    }

    fn range(&self, at: usize) -> Option<Range<usize>> {
        let start = self.slots.get(at)?.start as usize;
        let end = self.slots.get(at + 1).map_or(self.bytes.len(), |next| next.start as usize);
        Some(start..end)
    }

    /// The rest of the digest and the packed entry at a place.
    fn entry(&self, at: usize) -> Option<(&[u8], &[u8])> {
        self.bytes.get(self.range(at)?)?.split_at_checked(REST_BYTES)
    }

    /// This shard with other entries, which are in the order of their digests, none twice. One that is there in a form as
    /// new or newer is left as it is. `None`: all of them are.
    pub(super) fn with(&self, new: &[New<'_>]) -> Option<Self> {
        let mut merged = Vec::with_capacity(self.len() + new.len());
        let mut bytes = 0;
        let mut changed = false;
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
                (Some((prefix, rest, held)), Some((name, packed))) if (prefix, rest) == name => {
                    at += 1;
                    new.next();
                    let newer = revision_of(packed) > revision_of(held);
                    changed |= newer;
                    (prefix, rest, if newer { packed } else { held })
                }
                (_, Some(((prefix, rest), packed))) => {
                    new.next();
                    changed = true;
                    (prefix, rest, packed)
                }
            };
            bytes += rest.len() + packed.len();
            merged.push((prefix, rest, packed));
        }
        changed.then(|| Self::of(&merged, bytes))
    }

    /// Appends the shard: how many entries, how many bytes, all prefixes, where each entry begins and the last one ends, and all bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&word(self.len()));
        out.extend_from_slice(&word(self.bytes.len()));
        let prefixes = self.slots.iter().map(|slot| slot.prefix);
        let end = (!self.slots.is_empty()).then_some(self.bytes.len() as u32);
        let starts = self.slots.iter().map(|slot| slot.start).chain(end);
        prefixes.chain(starts).for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out.extend_from_slice(&self.bytes);
    }

    /// Takes what [`Shard::write`] wrote off the beginning of some bytes. `None`: it is not of that form.
    pub(super) fn read(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk::<8>()?;
        let word = |at: usize| head[at..].first_chunk().map(|b| u32::from_le_bytes(*b) as usize);
        let (count, size) = (word(0)?, word(4)?);
        // An empty shard has no starts.
        let starts = if count == 0 { 0 } else { count + 1 };
        let (words, rest) = rest.split_at_checked(4 * (count + starts))?;
        let (bytes, rest) = rest.split_at_checked(size)?;
        let word = |bytes: &[u8]| bytes.first_chunk().map(|b| u32::from_le_bytes(*b));
        let (prefixes, starts) = words.split_at(4 * count);
        let slots: Box<[Slot]> = (prefixes.chunks_exact(4).zip(starts.chunks_exact(4)))
            .filter_map(|(prefix, start)| Some(Slot { prefix: word(prefix)?, start: word(start)? }))
            .collect();
        let ends = starts.chunks_exact(4).skip(1).filter_map(word);
        let each_has_a_name =
            slots.iter().zip(ends).all(|(slot, end)| slot.start as usize + REST_BYTES <= end as usize);
        let within = starts.chunks_exact(4).next_back().and_then(word).map_or(size == 0, |end| end as usize == size);
        *from = rest;
        let sorted = slots.is_sorted_by_key(|slot| slot.prefix);
        (sorted && each_has_a_name && within).then(|| Self { slots, bytes: bytes.into() })
    }

    fn of(entries: &[(u32, &[u8], &[u8])], size: usize) -> Self {
        let mut slots = Vec::with_capacity(entries.len());
        let mut bytes = Vec::with_capacity(size);
        for (prefix, rest, packed) in entries {
            // A shard of 4 GiB would be one of 65,536.
            let start = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            slots.push(Slot { prefix: *prefix, start });
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(packed);
        }
        Self { slots: slots.into(), bytes: bytes.into() }
    }
}
