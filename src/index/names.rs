//! Texts that many keys share, each kept once and known to the entries by a number.
//!
//! Nothing here is ever removed: an owner whose last key has moved to another one stays until the process ends. Every new
//! name costs a commit, so they are no more than there were changes.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::{Equivalent, HashTable};
use keyward_core::id::{Environment, TenantId};
use keyward_core::scope::Scope;
use parking_lot::Mutex;

/// What the entries share. Tenants and owners are things of their own: what is said of one of them is said in one place.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) tenants: Numbered<TenantId>,
    pub(super) owners: Numbered<Owner>,
    pub(super) environments: Numbered<Environment>,
    pub(super) scopes: Numbered<Scope>,
}

/// Whom keys were issued to, in one tenant.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) tenant: u32,
    pub(super) name: Box<str>,
}

/// An [`Owner`] to look for.
#[derive(Debug, Hash)]
pub(super) struct OwnerName<'a> {
    pub(super) tenant: u32,
    pub(super) name: &'a str,
}

impl Equivalent<Owner> for OwnerName<'_> {
    fn equivalent(&self, owner: &Owner) -> bool {
        self.tenant == owner.tenant && *self.name == *owner.name
    }
}

/// What a thing can be found by, and made of.
pub(super) trait Sought<T>: Hash + Equivalent<T> {
    fn to_thing(&self) -> T;
}

impl<T: Clone + Eq + Hash> Sought<T> for T {
    fn to_thing(&self) -> T {
        self.clone()
    }
}

impl Sought<Owner> for OwnerName<'_> {
    fn to_thing(&self) -> Owner {
        Owner { tenant: self.tenant, name: self.name.into() }
    }
}

/// Things by their numbers, which are given out in order. Reading takes no lock.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    things: boxcar::Vec<T>,
    numbers: Mutex<HashTable<u32>>,
    hasher: RandomState,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { things: boxcar::Vec::new(), numbers: Mutex::default(), hasher: RandomState::new() }
    }
}

impl<T> Numbered<T> {
    /// All things, in the order of their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.things.iter().map(|(_, thing)| thing)
    }
}

impl<T: Hash> Numbered<T> {
    /// The thing of a number that was given out.
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.things.get(number as usize)
    }

    /// The number of a thing, which is given one if it is new.
    pub(super) fn number(&self, sought: &impl Sought<T>) -> u32 {
        let hash = self.hasher.hash_one(sought);
        let mut numbers = self.numbers.lock();
        let same = |number: &u32| self.get(*number).is_some_and(|thing| sought.equivalent(thing));
        if let Some(number) = numbers.find(hash, same) {
            return *number;
        }
        // Each takes more than a byte of memory: there are never so many.
        let number = u32::try_from(self.things.push(sought.to_thing())).unwrap_or(u32::MAX);
        numbers.insert_unique(hash, number, |number| self.get(*number).map_or(0, |thing| self.hasher.hash_one(thing)));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_owner_in_two_tenants_is_two_owners() {
        let owners = Numbered::<Owner>::default();
        let number = |tenant, name: &str| owners.number(&OwnerName { tenant, name });
        let (first, other) = (number(0, "acme"), number(1, "acme"));
        assert_ne!(first, other);
        for at in 0..10_000 {
            number(at % 3, &format!("owner-{at}"));
        }
        assert_eq!((number(0, "acme"), number(1, "acme")), (first, other), "a number is kept while the table grows");
        assert_eq!(&*owners.get(other).unwrap().name, "acme");
    }
}
