//! Texts that many keys share, each kept once and known to the entries by a number.
//!
//! A number means one name for as long as its *generation* lives: a shard and the names that its entries refer to are
//! reached together ([`super::shard::Shard::names`]), so that who reads an old shard reads the old names too. Nothing is
//! taken out of a generation. A name that no entry uses stays, and is in use again when an entry comes that has it; what
//! gives the room back is another generation, into which only names that are used are taken over ([`super::compaction`]).

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hashbrown::{Equivalent, HashTable};
use keyward_core::id::{Environment, TenantId};
use keyward_core::scope::Scope;
use parking_lot::Mutex;

use super::ledger::Ledger;

/// The kinds of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tenants.
    Tenant,
    /// Whom keys were issued to. They are names of a tenant.
    Owner,
    /// Environments.
    Environment,
    /// What keys may do. They are names of a tenant.
    Scope,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tenant, Self::Owner, Self::Environment, Self::Scope];
}

/// One generation of what the entries share. Tenants and owners are things of their own: what is said of one of them is said
/// in one place.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) tenants: Numbered<TenantId>,
    pub(super) owners: Numbered<Owner>,
    pub(super) environments: Numbered<Environment>,
    pub(super) scopes: Numbered<Granted>,
    /// What is in use, over all generations that live.
    pub(super) ledger: Arc<Ledger>,
}

/// Whom keys were issued to, in one tenant.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) tenant: u32,
    pub(super) name: Box<str>,
}

/// What keys of one tenant may do.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Granted {
    pub(super) tenant: u32,
    pub(super) scope: Scope,
}

/// An [`Owner`] to look for.
#[derive(Debug, Hash)]
pub(super) struct OwnerName<'a> {
    pub(super) tenant: u32,
    pub(super) name: &'a str,
}

/// A [`Granted`] to look for, and to make.
#[derive(Debug, Hash)]
pub(super) struct GrantedScope<'a> {
    pub(super) tenant: u32,
    pub(super) scope: &'a Scope,
}

/// A [`Granted`] to look for, by its text.
#[derive(Debug, Hash)]
pub(super) struct ScopeName<'a> {
    pub(super) tenant: u32,
    pub(super) name: &'a str,
}

impl Equivalent<Owner> for OwnerName<'_> {
    fn equivalent(&self, owner: &Owner) -> bool {
        self.tenant == owner.tenant && *self.name == *owner.name
    }
}

impl Equivalent<Granted> for GrantedScope<'_> {
    fn equivalent(&self, granted: &Granted) -> bool {
        self.tenant == granted.tenant && *self.scope == granted.scope
    }
}

impl Equivalent<Granted> for ScopeName<'_> {
    fn equivalent(&self, granted: &Granted) -> bool {
        self.tenant == granted.tenant && *self.name == *granted.scope.as_str()
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

impl Sought<Granted> for GrantedScope<'_> {
    fn to_thing(&self) -> Granted {
        Granted { tenant: self.tenant, scope: self.scope.clone() }
    }
}

/// What there are names of.
pub(super) trait Thing: Hash + Sized {
    const KIND: Kind;

    /// The things of this kind.
    fn of(names: &Names) -> &Numbered<Self>;

    /// Its number in another generation, if it has one there.
    fn find_in(&self, own: &Names, other: &Names) -> Option<u32>;

    /// Its number in another generation, which gives it one if need be.
    fn carry_to(&self, own: &Names, other: &Names) -> u32;

    /// The tenant that it is counted for.
    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId>;
}

impl Thing for TenantId {
    const KIND: Kind = Kind::Tenant;

    fn of(names: &Names) -> &Numbered<Self> {
        &names.tenants
    }

    fn find_in(&self, _: &Names, other: &Names) -> Option<u32> {
        other.tenants.find(self)
    }

    fn carry_to(&self, _: &Names, other: &Names) -> u32 {
        other.tenants.number(self)
    }

    fn counts_for<'a>(&self, _: &'a Names) -> Option<&'a TenantId> {
        None
    }
}

impl Thing for Environment {
    const KIND: Kind = Kind::Environment;

    fn of(names: &Names) -> &Numbered<Self> {
        &names.environments
    }

    fn find_in(&self, _: &Names, other: &Names) -> Option<u32> {
        other.environments.find(self)
    }

    fn carry_to(&self, _: &Names, other: &Names) -> u32 {
        other.environments.number(self)
    }

    fn counts_for<'a>(&self, _: &'a Names) -> Option<&'a TenantId> {
        None
    }
}

impl Thing for Owner {
    const KIND: Kind = Kind::Owner;

    fn of(names: &Names) -> &Numbered<Self> {
        &names.owners
    }

    fn find_in(&self, own: &Names, other: &Names) -> Option<u32> {
        let tenant = other.tenants.find(own.tenants.get(self.tenant)?)?;
        other.owners.find(&OwnerName { tenant, name: &self.name })
    }

    fn carry_to(&self, own: &Names, other: &Names) -> u32 {
        let tenant = carry::<TenantId>(self.tenant, own, other);
        other.owners.number(&OwnerName { tenant, name: &self.name })
    }

    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId> {
        // Without an owner there is nobody to count.
        if self.name.is_empty() { None } else { own.tenants.get(self.tenant) }
    }
}

impl Thing for Granted {
    const KIND: Kind = Kind::Scope;

    fn of(names: &Names) -> &Numbered<Self> {
        &names.scopes
    }

    fn find_in(&self, own: &Names, other: &Names) -> Option<u32> {
        let tenant = other.tenants.find(own.tenants.get(self.tenant)?)?;
        other.scopes.find(&GrantedScope { tenant, scope: &self.scope })
    }

    fn carry_to(&self, own: &Names, other: &Names) -> u32 {
        let tenant = carry::<TenantId>(self.tenant, own, other);
        other.scopes.number(&GrantedScope { tenant, scope: &self.scope })
    }

    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId> {
        own.tenants.get(self.tenant)
    }
}

/// The number that a name of one generation has in another one.
pub(super) fn carry<T: Thing>(number: u32, from: &Names, to: &Names) -> u32 {
    // No number was given out that is not there.
    T::of(from).get(number).map_or(u32::MAX, |thing| thing.carry_to(from, to))
}

impl Names {
    /// The first generation of an index, or one that begins another count.
    pub(super) fn first() -> Arc<Self> {
        let names = Arc::<Self>::default();
        names.ledger.begin(&names);
        names
    }

    /// A further generation beside the one that is there.
    pub(super) fn next(&self) -> Arc<Self> {
        let names = Arc::new(Self { ledger: self.ledger.clone(), ..Self::default() });
        names.ledger.begin(&names);
        names
    }

    /// The number of a thing that an entry is to use.
    pub(super) fn used<T: Thing>(&self, sought: &impl Sought<T>) -> u32 {
        let number = T::of(self).number(sought);
        self.take::<T>(number);
        number
    }

    /// Counts one use more.
    pub(super) fn take<T: Thing>(&self, number: u32) {
        let Some(named) = T::of(self).things.get(number as usize) else { return };
        let in_use = |uses: u32| if uses == 0 { None } else { uses.checked_add(1) };
        if named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, in_use).is_err() {
            self.ledger.begin_use(self, named);
        }
    }

    /// Counts one use less.
    pub(super) fn release<T: Thing>(&self, number: u32) {
        let Some(named) = T::of(self).things.get(number as usize) else { return };
        let stays_in_use = |uses: u32| if uses > 1 { Some(uses - 1) } else { None };
        if named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, stays_in_use).is_err() {
            self.ledger.end_use(self, named);
        }
    }

    /// [`Names::take`], of a kind that is known by its name.
    pub(super) fn take_of(&self, kind: Kind, number: u32) {
        match kind {
            Kind::Tenant => self.take::<TenantId>(number),
            Kind::Owner => self.take::<Owner>(number),
            Kind::Environment => self.take::<Environment>(number),
            Kind::Scope => self.take::<Granted>(number),
        }
    }

    /// [`Names::release`], of a kind that is known by its name.
    pub(super) fn release_of(&self, kind: Kind, number: u32) {
        match kind {
            Kind::Tenant => self.release::<TenantId>(number),
            Kind::Owner => self.release::<Owner>(number),
            Kind::Environment => self.release::<Environment>(number),
            Kind::Scope => self.release::<Granted>(number),
        }
    }

    /// How many names it holds.
    pub(super) fn len(&self) -> usize {
        self.tenants.len() + self.owners.len() + self.environments.len() + self.scopes.len()
    }

    /// How many of them its entries use.
    pub(super) fn len_used(&self) -> usize {
        let used = [&self.tenants.used, &self.owners.used, &self.environments.used, &self.scopes.used];
        used.into_iter().map(|used| used.load(Ordering::Relaxed)).sum()
    }
}

/// A thing, and how often entries of its generation use it.
#[derive(Debug)]
pub(super) struct Named<T> {
    pub(super) thing: T,
    /// It begins and ceases to be 0 under the lock of the [`Ledger`] alone.
    pub(super) uses: AtomicU32,
}

/// Things by their numbers, which are given out in order. Reading takes no lock.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    pub(super) things: boxcar::Vec<Named<T>>,
    numbers: Mutex<HashTable<u32>>,
    hasher: RandomState,
    /// How many are used.
    pub(super) used: AtomicUsize,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            things: boxcar::Vec::new(),
            numbers: Mutex::default(),
            hasher: RandomState::new(),
            used: AtomicUsize::new(0),
        }
    }
}

impl<T> Numbered<T> {
    /// The thing of a number that was given out.
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.things.get(number as usize).map(|named| &named.thing)
    }

    pub(super) fn len(&self) -> usize {
        self.things.count()
    }

    /// Whether the thing of this number is used.
    pub(super) fn is_used(&self, number: u32) -> bool {
        self.things.get(number as usize).is_some_and(|named| named.uses.load(Ordering::Acquire) > 0)
    }
}

impl<T: Hash> Numbered<T> {
    /// The number of a thing, if it has one.
    pub(super) fn find(&self, sought: &(impl Hash + Equivalent<T>)) -> Option<u32> {
        self.find_among(&self.numbers.lock(), self.hasher.hash_one(sought), sought)
    }

    /// The number of a thing, which is given one if it is new.
    pub(super) fn number(&self, sought: &impl Sought<T>) -> u32 {
        let hash = self.hasher.hash_one(sought);
        let mut numbers = self.numbers.lock();
        if let Some(number) = self.find_among(&numbers, hash, sought) {
            return number;
        }
        let named = Named { thing: sought.to_thing(), uses: AtomicU32::new(0) };
        // Each takes more than a byte of memory: there are never so many.
        let number = u32::try_from(self.things.push(named)).unwrap_or(u32::MAX);
        numbers.insert_unique(hash, number, |number| self.get(*number).map_or(0, |thing| self.hasher.hash_one(thing)));
        number
    }

    fn find_among(&self, numbers: &HashTable<u32>, hash: u64, sought: &impl Equivalent<T>) -> Option<u32> {
        let same = |number: &u32| self.get(*number).is_some_and(|thing| sought.equivalent(thing));
        numbers.find(hash, same).copied()
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
