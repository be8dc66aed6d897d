//! Interned names: texts that many keys share, each kept once and referred to by a number.
//!
//! A number means one name for as long as its *generation* lives. A shard and the names of its entries are
//! reached together ([`super::shard::Shard::names`]), so that a reader of an old shard reads the old names
//! too. Nothing is removed from a generation: an unused name stays, and may be used again. Memory is freed by
//! moving the used names to another generation ([`super::compaction`]).

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use hashbrown::{Equivalent, HashTable};
use keyward_core::enumerate;
use keyward_core::id::{ActorId, Environment, TenantId};
use keyward_core::scope::Scope;
use parking_lot::Mutex;

use super::usage_counts::UsageCounts;

enumerate! {
    /// The kinds of names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum NameKind {
        /// Tenants.
        Tenant,
        /// Owners of keys, per tenant.
        Owner,
        /// Environments.
        Environment,
        /// Scopes of keys, per tenant.
        Scope,
        /// Authors of secrets.
        Issuer,
    }
}

/// One generation of interned names. Tenants and owners are values of their own, so that a property of one is
/// kept in one place.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) tenants: Interner<TenantId>,
    pub(super) owners: Interner<Owner>,
    pub(super) environments: Interner<Environment>,
    pub(super) scopes: Interner<TenantScope>,
    pub(super) issuers: Interner<ActorId>,
    /// What is in use, over all living generations.
    pub(super) usage: Arc<UsageCounts>,
}

/// An owner of keys, in one tenant.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner {
    pub(super) tenant: u32,
    pub(super) name: Box<str>,
}

/// A scope of keys, in one tenant.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TenantScope {
    pub(super) tenant: u32,
    pub(super) scope: Scope,
}

/// Looks up an [`Owner`].
#[derive(Debug, Hash)]
pub(super) struct OwnerLookup<'a> {
    pub(super) tenant: u32,
    pub(super) name: &'a str,
}

/// Looks up or makes a [`TenantScope`].
#[derive(Debug, Hash)]
pub(super) struct ScopeLookup<'a> {
    pub(super) tenant: u32,
    pub(super) scope: &'a Scope,
}

/// Looks up a [`TenantScope`] by its text.
#[derive(Debug, Hash)]
pub(super) struct ScopeTextLookup<'a> {
    pub(super) tenant: u32,
    pub(super) name: &'a str,
}

impl Equivalent<Owner> for OwnerLookup<'_> {
    fn equivalent(&self, owner: &Owner) -> bool {
        self.tenant == owner.tenant && *self.name == *owner.name
    }
}

impl Equivalent<TenantScope> for ScopeLookup<'_> {
    fn equivalent(&self, granted: &TenantScope) -> bool {
        self.tenant == granted.tenant && *self.scope == granted.scope
    }
}

impl Equivalent<TenantScope> for ScopeTextLookup<'_> {
    fn equivalent(&self, granted: &TenantScope) -> bool {
        self.tenant == granted.tenant && *self.name == *granted.scope.as_str()
    }
}

/// Looks up a value, and makes it if it is new.
pub(super) trait Lookup<T>: Hash + Equivalent<T> {
    fn to_value(&self) -> T;
}

impl<T: Clone + Eq + Hash> Lookup<T> for T {
    fn to_value(&self) -> T {
        self.clone()
    }
}

impl Lookup<Owner> for OwnerLookup<'_> {
    fn to_value(&self) -> Owner {
        Owner { tenant: self.tenant, name: self.name.into() }
    }
}

impl Lookup<TenantScope> for ScopeLookup<'_> {
    fn to_value(&self) -> TenantScope {
        TenantScope { tenant: self.tenant, scope: self.scope.clone() }
    }
}

/// A value that is interned.
pub(super) trait Interned: Hash + Sized {
    const KIND: NameKind;

    /// The interner of this kind.
    fn of(names: &Names) -> &Interner<Self>;

    /// Its number in another generation, if it has one.
    fn find_in(&self, own: &Names, other: &Names) -> Option<u32>;

    /// Interns it in another generation.
    fn intern_in(&self, own: &Names, other: &Names) -> u32;

    /// The tenant that its use counts for.
    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId>;
}

impl Interned for TenantId {
    const KIND: NameKind = NameKind::Tenant;

    fn of(names: &Names) -> &Interner<Self> {
        &names.tenants
    }

    fn find_in(&self, _: &Names, other: &Names) -> Option<u32> {
        other.tenants.find(self)
    }

    fn intern_in(&self, _: &Names, other: &Names) -> u32 {
        other.tenants.intern(self)
    }

    fn counts_for<'a>(&self, _: &'a Names) -> Option<&'a TenantId> {
        None
    }
}

impl Interned for Environment {
    const KIND: NameKind = NameKind::Environment;

    fn of(names: &Names) -> &Interner<Self> {
        &names.environments
    }

    fn find_in(&self, _: &Names, other: &Names) -> Option<u32> {
        other.environments.find(self)
    }

    fn intern_in(&self, _: &Names, other: &Names) -> u32 {
        other.environments.intern(self)
    }

    fn counts_for<'a>(&self, _: &'a Names) -> Option<&'a TenantId> {
        None
    }
}

impl Interned for ActorId {
    const KIND: NameKind = NameKind::Issuer;

    fn of(names: &Names) -> &Interner<Self> {
        &names.issuers
    }

    fn find_in(&self, _: &Names, other: &Names) -> Option<u32> {
        other.issuers.find(self)
    }

    fn intern_in(&self, _: &Names, other: &Names) -> u32 {
        other.issuers.intern(self)
    }

    fn counts_for<'a>(&self, _: &'a Names) -> Option<&'a TenantId> {
        None
    }
}

impl Interned for Owner {
    const KIND: NameKind = NameKind::Owner;

    fn of(names: &Names) -> &Interner<Self> {
        &names.owners
    }

    fn find_in(&self, own: &Names, other: &Names) -> Option<u32> {
        let tenant = other.tenants.find(own.tenants.get(self.tenant)?)?;
        other.owners.find(&OwnerLookup { tenant, name: &self.name })
    }

    fn intern_in(&self, own: &Names, other: &Names) -> u32 {
        let tenant = translate::<TenantId>(self.tenant, own, other);
        other.owners.intern(&OwnerLookup { tenant, name: &self.name })
    }

    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId> {
        // An empty owner does not count.
        if self.name.is_empty() { None } else { own.tenants.get(self.tenant) }
    }
}

impl Interned for TenantScope {
    const KIND: NameKind = NameKind::Scope;

    fn of(names: &Names) -> &Interner<Self> {
        &names.scopes
    }

    fn find_in(&self, own: &Names, other: &Names) -> Option<u32> {
        let tenant = other.tenants.find(own.tenants.get(self.tenant)?)?;
        other.scopes.find(&ScopeLookup { tenant, scope: &self.scope })
    }

    fn intern_in(&self, own: &Names, other: &Names) -> u32 {
        let tenant = translate::<TenantId>(self.tenant, own, other);
        other.scopes.intern(&ScopeLookup { tenant, scope: &self.scope })
    }

    fn counts_for<'a>(&self, own: &'a Names) -> Option<&'a TenantId> {
        own.tenants.get(self.tenant)
    }
}

/// The number, in another generation, of a name of one generation, interning it if need be.
pub(super) fn translate<T: Interned>(number: u32, from: &Names, to: &Names) -> u32 {
    // Every number given out has a value.
    T::of(from).get(number).map_or(u32::MAX, |value| value.intern_in(from, to))
}

impl Names {
    /// The first generation of an index.
    pub(super) fn first() -> Arc<Self> {
        let names = Arc::<Self>::default();
        names.usage.add_generation(&names);
        names
    }

    /// The next generation, sharing the usage counts.
    pub(super) fn next(&self) -> Arc<Self> {
        let names = Arc::new(Self { usage: self.usage.clone(), ..Self::default() });
        names.usage.add_generation(&names);
        names
    }

    /// Interns a value and counts a use. Returns its number.
    pub(super) fn acquire<T: Interned>(&self, lookup: &impl Lookup<T>) -> u32 {
        let number = T::of(self).intern(lookup);
        self.retain::<T>(number);
        number
    }

    /// Counts one more use.
    pub(super) fn retain<T: Interned>(&self, number: u32) {
        let Some(named) = T::of(self).values.get(number as usize) else { return };
        let in_use = |uses: u32| if uses == 0 { None } else { uses.checked_add(1) };
        if named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, in_use).is_err() {
            self.usage.begin_use(self, named);
        }
    }

    /// Counts one use less.
    pub(super) fn release<T: Interned>(&self, number: u32) {
        let Some(named) = T::of(self).values.get(number as usize) else { return };
        let stays_in_use = |uses: u32| if uses > 1 { Some(uses - 1) } else { None };
        if named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, stays_in_use).is_err() {
            self.usage.end_use(self, named);
        }
    }

    /// [`Names::retain`], by kind.
    pub(super) fn retain_kind(&self, kind: NameKind, number: u32) {
        match kind {
            NameKind::Tenant => self.retain::<TenantId>(number),
            NameKind::Owner => self.retain::<Owner>(number),
            NameKind::Environment => self.retain::<Environment>(number),
            NameKind::Scope => self.retain::<TenantScope>(number),
            NameKind::Issuer => self.retain::<ActorId>(number),
        }
    }

    /// [`Names::release`], by kind.
    pub(super) fn release_kind(&self, kind: NameKind, number: u32) {
        match kind {
            NameKind::Tenant => self.release::<TenantId>(number),
            NameKind::Owner => self.release::<Owner>(number),
            NameKind::Environment => self.release::<Environment>(number),
            NameKind::Scope => self.release::<TenantScope>(number),
            NameKind::Issuer => self.release::<ActorId>(number),
        }
    }

    /// The number of names in it.
    pub(super) fn len(&self) -> usize {
        self.tenants.len() + self.owners.len() + self.environments.len() + self.scopes.len() + self.issuers.len()
    }

    /// The number of names in use.
    pub(super) fn len_used(&self) -> usize {
        let used =
            [&self.tenants.used, &self.owners.used, &self.environments.used, &self.scopes.used, &self.issuers.used];
        used.into_iter().map(|used| used.load(Ordering::Relaxed)).sum()
    }
}

/// A value, and its number of uses by entries of its generation.
#[derive(Debug)]
pub(super) struct Counted<T> {
    pub(super) value: T,
    /// Changes from and to 0 only under the lock of [`UsageCounts`].
    pub(super) uses: AtomicU32,
}

/// Interns values: gives each a number, in order. Reading takes no lock.
#[derive(Debug)]
pub(super) struct Interner<T> {
    pub(super) values: boxcar::Vec<Counted<T>>,
    numbers: Mutex<HashTable<u32>>,
    hasher: RandomState,
    /// The number of values in use.
    pub(super) used: AtomicUsize,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: boxcar::Vec::new(),
            numbers: Mutex::default(),
            hasher: RandomState::new(),
            used: AtomicUsize::new(0),
        }
    }
}

impl<T> Interner<T> {
    /// The value of a number.
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.values.get(number as usize).map(|named| &named.value)
    }

    pub(super) fn len(&self) -> usize {
        self.values.count()
    }

    /// Whether the value of this number is in use.
    pub(super) fn is_used(&self, number: u32) -> bool {
        self.values.get(number as usize).is_some_and(|named| named.uses.load(Ordering::Acquire) > 0)
    }
}

impl<T: Hash> Interner<T> {
    /// The number of a value, if it has one.
    pub(super) fn find(&self, lookup: &(impl Hash + Equivalent<T>)) -> Option<u32> {
        self.find_among(&self.numbers.lock(), self.hasher.hash_one(lookup), lookup)
    }

    /// How often entries of this generation use a value.
    pub(super) fn uses(&self, lookup: &(impl Hash + Equivalent<T>)) -> Option<u32> {
        let named = self.values.get(self.find(lookup)? as usize)?;
        Some(named.uses.load(Ordering::Acquire))
    }

    /// The number of a value, which is given one if it is new.
    pub(super) fn intern(&self, lookup: &impl Lookup<T>) -> u32 {
        let hash = self.hasher.hash_one(lookup);
        let mut numbers = self.numbers.lock();
        if let Some(number) = self.find_among(&numbers, hash, lookup) {
            return number;
        }
        let named = Counted { value: lookup.to_value(), uses: AtomicU32::new(0) };
        // Each takes more than a byte, so memory ends before numbers do.
        let number = u32::try_from(self.values.push(named)).unwrap_or(u32::MAX);
        numbers.insert_unique(hash, number, |number| self.get(*number).map_or(0, |value| self.hasher.hash_one(value)));
        number
    }

    fn find_among(&self, numbers: &HashTable<u32>, hash: u64, lookup: &impl Equivalent<T>) -> Option<u32> {
        let same = |number: &u32| self.get(*number).is_some_and(|value| lookup.equivalent(value));
        numbers.find(hash, same).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_owner_in_two_tenants_is_two_owners() {
        let owners = Interner::<Owner>::default();
        let number = |tenant, name: &str| owners.intern(&OwnerLookup { tenant, name });
        let (first, other) = (number(0, "acme"), number(1, "acme"));
        assert_ne!(first, other);
        for at in 0..10_000 {
            number(at % 3, &format!("owner-{at}"));
        }
        assert_eq!((number(0, "acme"), number(1, "acme")), (first, other), "a number is kept while the table grows");
        assert_eq!(&*owners.get(other).unwrap().name, "acme");
    }
}
