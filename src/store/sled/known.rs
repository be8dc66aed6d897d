//! Which ids and digests the table may hold, in memory: what is not here is not there.
//!
//! Before a key is issued, neither its id nor its digest may exist. Asking sled costs two descents, and waits for the
//! transaction that is being written; nearly always, the answer is no. So that no is kept as a Bloom filter: it never
//! denies a name that is there, and where it says "perhaps", the table is asked.
//!
//! The committer adds each key before the table has it. Those that were there before are read by a thread after the start;
//! until it is through, everything is "perhaps".

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use keyward_core::digest::Digest;
use keyward_core::event::Record;
use keyward_core::id::{KeyId, TenantId};
use parking_lot::Mutex;

use super::orderings::id_name;
use super::table::{Table, TableError};

/// Bits for each name. With [`BITS_SET`], one name in some hundred that is not there passes for one that may be.
const BITS_A_NAME: usize = 12;
/// Bits that a name sets, all in one block.
const BITS_SET: u32 = 6;
/// A block is what a processor fetches at once.
const BLOCK_BITS: usize = 512;
/// Names that the first part has room for at least.
const NAMES_MIN: usize = 128 * 1024;
/// Names that are added at a time when the table is read.
const BATCH_NAMES: usize = 1_024;

/// The names. Each key has two.
#[derive(Debug)]
pub(super) struct Known {
    hasher: RandomState,
    /// The table has been read: a name that is not here is not there.
    whole: AtomicBool,
    parts: Mutex<Vec<Part>>,
}

/// The thread that reads what the table holds.
#[derive(Debug)]
pub(super) struct Reader {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// A filter with room for so many names. When it is full, another of twice its size goes on.
#[derive(Debug)]
struct Part {
    blocks: Box<[Block]>,
    room: usize,
}

#[derive(Clone, Debug)]
#[repr(align(64))]
struct Block([u64; BLOCK_BITS / 64]);

/// The hash of a name.
#[derive(Clone, Copy, Debug)]
struct Name(u64);

impl Known {
    /// No name yet, and room for those of this many keys and half as many more.
    pub(super) fn for_keys(keys: u64) -> Self {
        let names = usize::try_from(keys).unwrap_or(usize::MAX).saturating_mul(3);
        let parts = Mutex::new(vec![Part::for_names(names.max(NAMES_MIN))]);
        Self { hasher: RandomState::new(), whole: AtomicBool::new(false), parts }
    }

    pub(super) fn may_hold_id(&self, tenant: &TenantId, key_id: &KeyId) -> bool {
        self.may_hold(&id_name(tenant, key_id))
    }

    pub(super) fn may_hold_digest(&self, digest: &Digest) -> bool {
        self.may_hold(digest.as_bytes())
    }

    /// Adds the names of keys that the table is about to hold.
    pub(super) fn insert<'a>(&self, records: impl Iterator<Item = &'a Record>) {
        let keys = records.filter_map(|record| if let Record::Key(key) = record { Some(key) } else { None });
        self.add(
            keys.flat_map(|key| {
                [self.name(&id_name(&key.tenant, &key.key_id)), self.name(key.secret.digest.as_bytes())]
            }),
        );
    }

    /// Adds what the table holds.
    fn read(&self, table: &Table, stop: &AtomicBool) -> Result<(), TableError> {
        let mut names = Vec::with_capacity(BATCH_NAMES);
        // What comes while this reads is the committer's to add.
        for entry in table.ids().iter() {
            let (id, digest) = entry?;
            names.extend([self.name(&id), self.name(&digest)]);
            if names.len() >= BATCH_NAMES {
                self.add(names.drain(..));
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
        }
        self.add(names.into_iter());
        self.whole.store(true, Ordering::Release);
        Ok(())
    }

    fn may_hold(&self, name: &[u8]) -> bool {
        if !self.whole.load(Ordering::Acquire) {
            return true;
        }
        let name = self.name(name);
        self.parts.lock().iter().any(|part| part.may_hold(name))
    }

    fn add(&self, names: impl Iterator<Item = Name>) {
        let mut parts = self.parts.lock();
        for name in names {
            // A change of a key that is known takes no room.
            if parts.iter().any(|part| part.may_hold(name)) {
                continue;
            }
            if parts.last().is_none_or(|part| part.room == 0) {
                let names = parts.last().map_or(0, |part| part.blocks.len() * (BLOCK_BITS / BITS_A_NAME));
                parts.push(Part::for_names((2 * names).max(NAMES_MIN)));
            }
            if let Some(part) = parts.last_mut() {
                part.add(name);
            }
        }
    }

    fn name(&self, bytes: &[u8]) -> Name {
        Name(self.hasher.hash_one(bytes))
    }
}

impl Reader {
    /// Starts it. If the table cannot be read, it is asked for each name, as long as it answers.
    pub(super) fn start(known: Arc<Known>, table: Arc<Table>) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = Builder::new().name("known".into()).spawn(move || {
            if let Err(error) = known.read(&table, &stop) {
                tracing::warn!(%error, "cannot read which keys there are; each new one is looked up");
            }
        })?;
        Ok(Self { stopping, thread })
    }

    /// Tells the thread to end, and waits for it. If sled panicked under it, others have met or will meet the same.
    pub(super) fn join(self) {
        self.stopping.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::warn!("reading which keys there are panicked");
        }
    }
}

impl Part {
    fn for_names(names: usize) -> Self {
        let blocks = names.div_ceil(BLOCK_BITS / BITS_A_NAME);
        Self { blocks: vec![Block([0; BLOCK_BITS / 64]); blocks].into(), room: names }
    }

    fn may_hold(&self, name: Name) -> bool {
        let block = &self.blocks[name.block(self.blocks.len())];
        name.bits().all(|(word, bit)| block.0[word] & bit != 0)
    }

    fn add(&mut self, name: Name) {
        let at = name.block(self.blocks.len());
        let block = &mut self.blocks[at];
        name.bits().for_each(|(word, bit)| block.0[word] |= bit);
        self.room = self.room.saturating_sub(1);
    }
}

impl Name {
    /// Its block among so many: by the upper half of the hash, so that what chooses the bits does not choose the block.
    fn block(self, blocks: usize) -> usize {
        usize::try_from(((self.0 >> 32) * blocks as u64) >> 32).unwrap_or(0) // below `blocks`
    }

    /// Its bits in the block: words and masks. Nine bits of a hash choose one of 512.
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

    fn whole(keys: u64) -> Known {
        let known = Known::for_keys(keys);
        known.whole.store(true, Ordering::Release);
        known
    }

    #[test]
    fn what_was_added_may_be_there_and_nearly_all_else_is_not_however_much_it_grows() {
        let known = whole(0);
        let names = 2 * NAMES_MIN as u64; // two parts
        known.add((0..names).map(|n| known.name(&n.to_le_bytes())));
        assert_eq!(known.parts.lock().len(), 2);
        assert!((0..names).all(|n| known.may_hold(&n.to_le_bytes())));
        let mistaken = (names..2 * names).filter(|n| known.may_hold(&n.to_le_bytes())).count();
        assert!(mistaken < names as usize / 25, "{mistaken} of {names}");
    }

    #[test]
    fn a_name_that_is_added_again_takes_no_room() {
        let known = whole(0);
        for _ in 0..10 {
            known.add((0..1_000_u64).map(|n| known.name(&n.to_le_bytes())));
        }
        assert!(known.parts.lock()[0].room >= NAMES_MIN - 1_000);
    }

    #[test]
    fn until_the_table_has_been_read_everything_may_be_there() {
        let known = Known::for_keys(0);
        assert!(known.may_hold(b"never added"));
        known.whole.store(true, Ordering::Release);
        assert!(!known.may_hold(b"never added"));
    }
}
