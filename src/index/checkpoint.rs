//! The index as bytes, in chunks: the entries as they are packed, and the names that they refer to.
//!
//! ```text
//! chunk 0 to 255      256 shards each: see Shard::write
//! chunk 256           how many names of each kind, and then each of them with how often entries in the chunks
//!                    before use it:
//!                    tenants and environments: length and text; owners and scopes: the number of the tenant, length and text;
//!                    and how many peppers, and their ids
//! ```
//!
//! The names are numbered anew, in the order in which the entries come to them, so that those that no entry
//! uses are not in the checkpoint: their number is what the entries have, and nothing else of them is kept.
//!
//! What is packed here is kept by this program for itself: whoever changes `entry`, `shard` or this changes
//! [`FORMAT_VERSION`] too, and checkpoints of another form are then not read. tests/it/index_checkpoint.rs holds it to that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::bytes_codec::{Cursor, put_varint};
use keyward_core::digest::PepperId;
use keyward_core::id::{Environment, TenantId};
use keyward_core::scope::Scope;
use parking_lot::MutexGuard;

use super::codec::put_bytes;
use super::compaction::{Compaction, Renumbering};
use super::entry::state_of;
use super::interner::{Interned, Lookup, NameKind, Names, Owner, OwnerLookup, ScopeLookup, TenantScope};
use super::shard::{SHARDS, Shard};
use super::{Index, WRITE_LOCKS};

/// The form of the chunks.
pub const FORMAT_VERSION: u32 = 2;
/// Shards in one chunk.
const CHUNK_SHARDS: usize = 256;
/// The chunk of the names, which is written after all others and read before them.
const NAMES: usize = SHARDS / CHUNK_SHARDS;
/// How many chunks there are.
pub const CHUNKS: usize = NAMES + 1;

/// Writes a checkpoint, chunk by chunk. As long as there is one, no compaction goes on: all entries are of one generation.
pub struct CheckpointWriter<'a> {
    index: &'a Index,
    names: Arc<Names>,
    numbers: Renumbering,
    /// For each kind, the names in the order of their new numbers: their old ones, and how often they are used.
    written: [Vec<(u32, u32)>; NameKind::ALL.len()],
    _no_compaction: MutexGuard<'a, Option<Compaction>>,
}

impl Index {
    /// Begins a checkpoint. It waits for a compaction that is under way, by finishing it.
    #[must_use]
    pub fn checkpoint_writer(&self) -> CheckpointWriter<'_> {
        let mut no_compaction = self.compaction.lock();
        self.finish_compaction(&mut no_compaction);
        CheckpointWriter {
            index: self,
            names: self.current.lock().clone(),
            numbers: Renumbering::default(),
            written: Default::default(),
            _no_compaction: no_compaction,
        }
    }

    /// Takes in a chunk, into an index that has nothing but other chunks. `None`: the bytes are not of this form.
    pub fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()> {
        let mut bytes = Cursor(bytes);
        let names = self.current.lock().clone();
        if number == NAMES {
            return self.read_names(&names, &mut bytes).filter(|()| bytes.0.is_empty());
        }
        for number in (number * CHUNK_SHARDS..SHARDS).take(CHUNK_SHARDS) {
            let count = usize::try_from(bytes.varint()?).ok()?;
            if count == 0 {
                continue;
            }
            let shard = Shard::read(&mut bytes, count, names.clone())?;
            let _lock = self.write_locks[number % WRITE_LOCKS].lock();
            self.len.fetch_add(count, Ordering::Relaxed);
            shard.all_packed().for_each(|packed| self.states.add(state_of(packed)));
            self.shards[number].store(Arc::new(shard));
        }
        bytes.0.is_empty().then_some(())
    }

    fn read_names(&self, names: &Names, from: &mut Cursor<'_>) -> Option<()> {
        read_all::<TenantId, _>(from, names, |from| TenantId::parse(text(from)?).ok())?;
        read_all::<Owner, _>(from, names, |from| Some(OwnerLookup { tenant: small(from)?, name: text(from)? }))?;
        read_all::<Environment, _>(from, names, |from| Environment::parse(text(from)?).ok())?;
        let mut scope = None;
        for number in 0..from.varint()? {
            let tenant = small(from)?;
            let scope = scope.insert(Scope::parse(text(from)?).ok()?);
            note::<TenantScope>(from, names, &ScopeLookup { tenant, scope }, number)?;
        }
        for _ in 0..from.varint()? {
            self.peppers.lock().insert(PepperId(small(from)?));
        }
        Some(())
    }
}

impl CheckpointWriter<'_> {
    /// Appends the bytes of the next chunk. Other threads may go on to fold changes in: each entry is in one
    /// of its forms. The chunks are to be written in order, because the last one has the names of all entries
    /// before it.
    pub fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>) {
        if number == NAMES {
            return self.write_names(out);
        }
        let (numbers, written) = (&mut self.numbers, &mut self.written);
        for cell in &self.index.shards[number * CHUNK_SHARDS..][..CHUNK_SHARDS] {
            let shard = cell.load_full();
            let renumbered = shard.renumbered(self.names.clone(), |kind, number| {
                let written = &mut written[kind as usize];
                let new = numbers.of(kind, number, || {
                    written.push((number, 0));
                    u32::try_from(written.len() - 1).unwrap_or(u32::MAX)
                });
                if let Some((_, uses)) = written.get_mut(new as usize) {
                    *uses = uses.saturating_add(1);
                }
                new
            });
            renumbered.write(out);
        }
    }

    fn write_names(&mut self, out: &mut Vec<u8>) {
        self.write_all::<TenantId>(out, |_, tenant, out| put_bytes(out, tenant.as_str().as_bytes()));
        self.write_all::<Owner>(out, |writer, owner, out| {
            put_varint(out, writer.tenant(owner.tenant).into());
            put_bytes(out, owner.name.as_bytes());
        });
        self.write_all::<Environment>(out, |_, it, out| put_bytes(out, it.as_str().as_bytes()));
        self.write_all::<TenantScope>(out, |writer, granted, out| {
            put_varint(out, writer.tenant(granted.tenant).into());
            put_bytes(out, granted.scope.as_str().as_bytes());
        });
        let peppers = self.index.peppers();
        put_varint(out, peppers.len() as u64);
        peppers.into_iter().for_each(|pepper| put_varint(out, pepper.0.into()));
    }

    fn write_all<T: Interned>(&mut self, out: &mut Vec<u8>, write: impl Fn(&mut Self, &T, &mut Vec<u8>)) {
        let (names, written) = (self.names.clone(), std::mem::take(&mut self.written[T::KIND as usize]));
        put_varint(out, written.len() as u64);
        for (number, uses) in written {
            // All of them were found in entries.
            if let Some(value) = T::of(&names).get(number) {
                write(self, value, out);
                put_varint(out, uses.into());
            }
        }
    }

    /// The new number of a tenant: its owners and scopes are in entries that have it, too.
    fn tenant(&mut self, number: u32) -> u32 {
        self.numbers.of(NameKind::Tenant, number, || u32::MAX)
    }
}

/// Gives values the numbers that they had, with their uses.
fn read_all<'a, T: Interned, S: Lookup<T>>(
    from: &mut Cursor<'a>,
    names: &Names,
    read: impl Fn(&mut Cursor<'a>) -> Option<S>,
) -> Option<()> {
    for number in 0..from.varint()? {
        let value = read(from)?;
        note::<T>(from, names, &value, number)?;
    }
    Some(())
}

/// Gives a value its number, and reads its uses. `None`: it has another number already, or stands there twice.
fn note<T: Interned>(from: &mut Cursor<'_>, names: &Names, value: &impl Lookup<T>, number: u64) -> Option<()> {
    let uses = small(from)?;
    let given = T::of(names).intern(value);
    if u64::from(given) != number {
        return None;
    }
    names.usage.note::<T>(names, given, uses);
    Some(())
}

fn small(from: &mut Cursor<'_>) -> Option<u32> {
    u32::try_from(from.varint()?).ok()
}

fn text<'a>(from: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(from.prefixed()?).ok()
}
