//! The index as bytes, in parts: the entries as they are packed, and the names that they refer to.
//!
//! ```text
//! part 0 to 255      256 shards each: see Shard::write
//! part 256           for each kind of name, in the order of their numbers: how many, and each with its length
//!                    owners, each behind the number of its tenant; tenants; environments; scopes; and the peppers' ids
//! ```
//!
//! What is packed here is kept by this program for itself: whoever changes `entry`, `shard` or this changes [`FORM`] too, and
//! images of another form are then not read. tests/it/image.rs holds it to that.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use keyward_core::digest::PepperId;
use keyward_core::id::{Environment, TenantId};
use keyward_core::scope::Scope;

use super::codec::{put_bytes, put_varint};
use super::names::{Numbered, OwnerName, Sought};
use super::shard::{SHARDS, Shard};
use super::{Index, TURNS};

/// The form of the parts.
pub const FORM: u32 = 1;
/// Shards in one part.
const PART_SHARDS: usize = 256;
/// The part of the names, which comes after all others: names only come to be, so all that entries refer to are in it.
const NAMES: usize = SHARDS / PART_SHARDS;
/// How many parts there are.
pub const PARTS: usize = NAMES + 1;

impl Index {
    /// Appends the bytes of a part. Other threads may go on to fold changes in: each entry is in one of its forms.
    pub fn write_part(&self, number: usize, out: &mut Vec<u8>) {
        if number < NAMES {
            let shards = &self.shards[number * PART_SHARDS..][..PART_SHARDS];
            return shards.iter().for_each(|place| place.load().write(out));
        }
        let names = &self.names;
        // Owners before the tenants that they refer to, for the same reason.
        write_all(out, names.owners.all(), |out, owner| {
            put_varint(out, owner.tenant.into());
            put_bytes(out, owner.name.as_bytes());
        });
        write_all(out, names.tenants.all(), |out, tenant| put_bytes(out, tenant.as_str().as_bytes()));
        write_all(out, names.environments.all(), |out, it| put_bytes(out, it.as_str().as_bytes()));
        write_all(out, names.scopes.all(), |out, scope| put_bytes(out, scope.as_str().as_bytes()));
        write_all(out, self.peppers().into_iter(), |out, pepper| put_varint(out, pepper.0.into()));
    }

    /// Takes in a part, into an index that has nothing but other parts. `None`: the bytes are not of this form.
    pub fn read_part(&self, number: usize, mut bytes: &[u8]) -> Option<()> {
        if number == NAMES {
            return self.read_names(&mut bytes).filter(|()| bytes.is_empty());
        }
        for number in (number * PART_SHARDS..SHARDS).take(PART_SHARDS) {
            let shard = Shard::read(&mut bytes)?;
            let _turn = self.turns[number % TURNS].lock();
            if shard.len() > 0 {
                self.len.fetch_add(shard.len(), Ordering::Relaxed);
                self.shards[number].store(Arc::new(shard));
            }
        }
        bytes.is_empty().then_some(())
    }

    fn read_names(&self, from: &mut &[u8]) -> Option<()> {
        let names = &self.names;
        read_all(from, &names.owners, |from| {
            Some(OwnerName { tenant: u32::try_from(varint(from)?).ok()?, name: text(from)? })
        })?;
        read_all(from, &names.tenants, |from| TenantId::parse(text(from)?).ok())?;
        read_all(from, &names.environments, |from| Environment::parse(text(from)?).ok())?;
        read_all(from, &names.scopes, |from| Scope::parse(text(from)?).ok())?;
        for _ in 0..varint(from)? {
            self.peppers.lock().insert(PepperId(u32::try_from(varint(from)?).ok()?));
        }
        Some(())
    }
}

fn write_all<T>(out: &mut Vec<u8>, things: impl Iterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    // More may come while they are written.
    let things: Vec<T> = things.collect();
    put_varint(out, things.len() as u64);
    things.into_iter().for_each(|thing| write(out, thing));
}

/// Gives things the numbers that they had.
fn read_all<'a, T: std::hash::Hash, S: Sought<T>>(
    from: &mut &'a [u8],
    numbered: &Numbered<T>,
    read: impl Fn(&mut &'a [u8]) -> Option<S>,
) -> Option<()> {
    for number in 0..varint(from)? {
        let thing = read(from)?;
        if u64::from(numbered.number(&thing)) != number {
            return None; // it has another number already, or stands here twice
        }
    }
    Some(())
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn text<'a>(from: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(varint(from)?).ok()?;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    std::str::from_utf8(text).ok()
}
