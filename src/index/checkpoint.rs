//! The index as bytes, in chunks: the packed entries, and the names that they refer to.
//!
//! ```text
//! chunk 0 to 255      256 shards each: see Shard::write
//! chunk 256           how many names of each kind, and then each of them with how often entries in the chunks
//!                    before use it:
//!                    tenants, environments and issuers: length and text; owners and scopes: the number of
//!                    the tenant, length and text; how many peppers, and their ids; how many lines, and each;
//!                    how many holds, and each
//! ```
//!
//! Names get new numbers in the order in which entries refer to them, so unused names are not in the
//! checkpoint. Entries refer to names by these numbers only.
//!
//! The format is private to this program. A change of `packing`, `shard` or this module must change
//! [`FORMAT_VERSION`]; checkpoints of another version are not read. tests/it/storage/index_checkpoint.rs
//! checks that.

use std::sync::Arc;

use crate::bytes_codec::{Cursor, put_varint};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::PepperId;
use keyward_core::event::Revision;
use keyward_core::holds::{Holder, Kept};
use keyward_core::id::{ActorId, Environment, TenantId};
use keyward_core::record::{LineRecord, LogId};
use keyward_core::scope::Scope;
use parking_lot::MutexGuard;

use super::codec::put_bytes;
use super::compaction::{Compaction, Renumbering};
use super::interner::{Interned, Lookup, NameKind, Names, Owner, OwnerLookup, ScopeLookup, TenantScope};
use super::packing::counted_state_of;
use super::shard::{SHARDS, Shard};
use super::{Index, WRITE_LOCKS};

/// The version of the chunks' format.
pub const FORMAT_VERSION: u32 = 4;
/// Shards in one chunk.
const CHUNK_SHARDS: usize = 256;
/// The chunk of the names, written after all others and read before them.
const NAMES: usize = SHARDS / CHUNK_SHARDS;
/// How many chunks there are.
pub const CHUNKS: usize = NAMES + 1;

/// Writes a checkpoint, chunk by chunk. Meanwhile there is no compaction, so all entries are of one
/// generation.
pub struct CheckpointWriter<'a> {
    index: &'a Index,
    names: Arc<Names>,
    numbers: Renumbering,
    /// For each kind, the names in the order of their new numbers: old number and uses.
    written: [Vec<(u32, u32)>; NameKind::ALL.len()],
    _no_compaction: MutexGuard<'a, Option<Compaction>>,
}

impl Index {
    /// Begins a checkpoint. First finishes a compaction that is in progress.
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

    /// Loads a chunk into an index that has nothing but other chunks of the same checkpoint. `None`: the
    /// bytes are malformed.
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
            shard.all_packed().filter_map(counted_state_of).for_each(|state| self.states.add(state));
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
        read_all::<ActorId, _>(from, names, |from| ActorId::parse(text(from)?).ok())?;
        for _ in 0..from.varint()? {
            self.peppers.lock().insert(PepperId(small(from)?));
        }
        for _ in 0..from.varint()? {
            self.apply_line(&read_line(from)?);
        }
        let mut holds = self.all_holds.lock();
        for _ in 0..from.varint()? {
            let (holder, revision, kept) = read_hold(from)?;
            holds.insert(holder, revision, kept);
        }
        self.publish_holds(&holds);
        Some(())
    }
}

impl CheckpointWriter<'_> {
    /// Appends the bytes of the next chunk. Changes may be applied meanwhile: each entry is in one of its
    /// forms. The chunks must be written in order, because the last one has the names of all entries.
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
        self.write_all::<ActorId>(out, |_, issuer, out| put_bytes(out, issuer.as_str().as_bytes()));
        let peppers = self.index.peppers();
        put_varint(out, peppers.len() as u64);
        peppers.into_iter().for_each(|pepper| put_varint(out, pepper.0.into()));
        let lines = self.index.lines.load();
        put_varint(out, lines.len() as u64);
        lines.iter().for_each(|line| write_line(line, out));
        let holds = self.index.all_holds.lock().clone();
        put_varint(out, holds.len() as u64);
        holds.iter().for_each(|(holder, revision, kept)| write_hold(&holder, revision, kept, out));
    }

    fn write_all<T: Interned>(&mut self, out: &mut Vec<u8>, write: impl Fn(&mut Self, &T, &mut Vec<u8>)) {
        let (names, written) = (self.names.clone(), std::mem::take(&mut self.written[T::KIND as usize]));
        put_varint(out, written.len() as u64);
        for (number, uses) in written {
            // Each of them was found in an entry.
            if let Some(value) = T::of(&names).get(number) {
                write(self, value, out);
                put_varint(out, uses.into());
            }
        }
    }

    /// The new number of a tenant. Entries with its owners or scopes refer to the tenant too.
    fn tenant(&mut self, number: u32) -> u32 {
        self.numbers.of(NameKind::Tenant, number, || u32::MAX)
    }
}

fn write_line(line: &LineRecord, out: &mut Vec<u8>) {
    let LineRecord { log_id, ended, base, time } = line;
    out.extend_from_slice(&log_id.0);
    [ended.0, base.0].into_iter().for_each(|revision| put_varint(out, revision));
    out.extend_from_slice(&time.0.to_le_bytes());
}

fn read_line(from: &mut Cursor<'_>) -> Option<LineRecord> {
    let log_id = LogId(from.array()?);
    let (ended, base) = (Revision(from.varint()?), Revision(from.varint()?));
    Some(LineRecord { log_id, ended, base, time: UnixMillis(from.i64()?) })
}

/// A number for the kind of holder, its names, the revision, and what is held: flags, and a time if they say
/// so.
fn write_hold(holder: &Holder, revision: Revision, kept: Kept, out: &mut Vec<u8>) {
    let (kind, names): (_, &[&str]) = match holder {
        Holder::Tenant(tenant) => (0, &[tenant.as_str()]),
        Holder::Owner(tenant, owner) => (1, &[tenant.as_str(), owner]),
        Holder::Issuer(actor) => (2, &[actor.as_str()]),
    };
    out.push(kind);
    names.iter().for_each(|name| put_bytes(out, name.as_bytes()));
    put_varint(out, revision.0);
    let Kept { suspended, reject_issued_before } = kept;
    out.push(u8::from(suspended) | u8::from(reject_issued_before.is_some()) << 1);
    out.extend(reject_issued_before.into_iter().flat_map(|time| time.0.to_le_bytes()));
}

fn read_hold(from: &mut Cursor<'_>) -> Option<(Holder, Revision, Kept)> {
    let holder = match from.u8()? {
        0 => Holder::Tenant(TenantId::parse(text(from)?).ok()?),
        1 => Holder::Owner(TenantId::parse(text(from)?).ok()?, text(from)?.into()),
        2 => Holder::Issuer(ActorId::parse(text(from)?).ok()?),
        _ => return None,
    };
    let revision = Revision(from.varint()?);
    let flags = from.u8()?;
    let reject_issued_before = if flags & 2 != 0 { Some(UnixMillis(from.i64()?)) } else { None };
    Some((holder, revision, Kept { suspended: flags & 1 != 0, reject_issued_before }))
}

/// Interns values under the numbers that they had, with their uses.
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

/// Interns a value, and reads its uses. `None`: its number differs, or it is a duplicate.
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
