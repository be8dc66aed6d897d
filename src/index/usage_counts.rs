//! What is in use, whatever its generation: for each kind of names, and for each tenant.
//!
//! While entries are taken over from one generation into the next, a name may be used in both, and counts once. So a name
//! begins to be used, and ceases to be, under one lock for all generations; further uses of it take none.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use keyward_core::id::TenantId;
use parking_lot::Mutex;

use super::interner::{Counted, Interned, NameKind, Names, OwnerLookup, ScopeTextLookup};

/// See above.
#[derive(Debug, Default)]
pub(super) struct UsageCounts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The generations that entries may be of: one, or two while entries are taken over.
    generations: Vec<Weak<Names>>,
    kinds: [usize; NameKind::ALL.len()],
    tenants: HashMap<TenantId, TenantCounts>,
}

/// Names in use of one tenant.
#[derive(Debug, Default)]
struct TenantCounts {
    owners: usize,
    scopes: usize,
}

/// How many names of a kind a tenant has in use, and which of those that were asked about it has not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// How many it has.
    pub count: usize,
    /// The places of those that it has not.
    pub missing: Vec<usize>,
}

impl UsageCounts {
    /// A generation that entries will be of.
    pub(super) fn add_generation(&self, names: &Arc<Names>) {
        self.0.lock().generations.push(Arc::downgrade(names));
    }

    /// No entry is of this generation any more.
    pub(super) fn remove_generation(&self, names: &Arc<Names>) {
        self.0.lock().generations.retain(|generation| !std::ptr::eq(generation.as_ptr(), Arc::as_ptr(names)));
    }

    /// Counts a use of a name that had none.
    pub(super) fn begin_use<T: Interned>(&self, names: &Names, named: &Counted<T>) {
        let mut counts = self.0.lock();
        if named.uses.fetch_add(1, Ordering::AcqRel) == 0 {
            T::of(names).used.fetch_add(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_add(1));
        }
    }

    /// Takes back what may be the last use of a name.
    pub(super) fn end_use<T: Interned>(&self, names: &Names, named: &Counted<T>) {
        let mut counts = self.0.lock();
        let taken_back = named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |uses| uses.checked_sub(1));
        if taken_back == Ok(1) {
            T::of(names).used.fetch_sub(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_sub(1));
        }
    }

    /// Notes uses that were counted elsewhere, of a name that has none here.
    pub(super) fn note<T: Interned>(&self, names: &Names, number: u32, uses: u32) {
        let Some(named) = T::of(names).values.get(number as usize) else { return };
        let mut counts = self.0.lock();
        if uses > 0 && named.uses.swap(uses, Ordering::AcqRel) == 0 {
            T::of(names).used.fetch_add(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_add(1));
        }
    }

    /// How many names of a kind are in use.
    pub(super) fn of_kind(&self, kind: NameKind) -> usize {
        self.0.lock().kinds[kind as usize]
    }

    /// The owners of a tenant.
    pub(super) fn owners(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        let counts = self.0.lock();
        let has = |names: &Names, tenant: u32, name: &str| {
            names.owners.find(&OwnerLookup { tenant, name }).is_some_and(|number| names.owners.is_used(number))
        };
        let count = counts.tenants.get(tenant).map_or(0, |of_tenant| of_tenant.owners);
        InUse { count, missing: counts.missing(tenant, asked, has) }
    }

    /// The scopes of a tenant.
    pub(super) fn scopes(&self, tenant: &TenantId, asked: &[&str]) -> InUse {
        let counts = self.0.lock();
        let has = |names: &Names, tenant: u32, name: &str| {
            names.scopes.find(&ScopeTextLookup { tenant, name }).is_some_and(|number| names.scopes.is_used(number))
        };
        let count = counts.tenants.get(tenant).map_or(0, |of_tenant| of_tenant.scopes);
        InUse { count, missing: counts.missing(tenant, asked, has) }
    }
}

impl Counts {
    /// Counts a name that has begun to be used, or has ceased to be, unless another generation uses it.
    fn change<T: Interned>(&mut self, names: &Names, value: &T, change: impl Fn(usize) -> usize) {
        let elsewhere = |other: &Names| value.find_in(names, other).is_some_and(|number| T::of(other).is_used(number));
        let others = self.generations.iter().filter(|generation| !std::ptr::eq(generation.as_ptr(), names));
        if others.filter_map(Weak::upgrade).any(|other| elsewhere(&other)) {
            return;
        }
        let kind = &mut self.kinds[T::KIND as usize];
        *kind = change(*kind);
        let Some(tenant) = value.counts_for(names) else { return };
        let of_tenant = match self.tenants.get_mut(tenant) {
            Some(of_tenant) => of_tenant,
            None => self.tenants.entry(tenant.clone()).or_default(),
        };
        let count = if T::KIND == NameKind::Owner { &mut of_tenant.owners } else { &mut of_tenant.scopes };
        *count = change(*count);
        if (of_tenant.owners, of_tenant.scopes) == (0, 0) {
            self.tenants.remove(tenant);
        }
    }

    fn missing(&self, tenant: &TenantId, asked: &[&str], has: impl Fn(&Names, u32, &str) -> bool) -> Vec<usize> {
        if asked.is_empty() {
            return vec![];
        }
        let generations: Vec<_> = self.generations.iter().filter_map(Weak::upgrade).collect();
        let known: Vec<_> = generations.iter().filter_map(|names| Some((names, names.tenants.find(tenant)?))).collect();
        let is_missing = |name: &str| !known.iter().any(|(names, tenant)| has(names, *tenant, name));
        asked.iter().enumerate().filter(|(_, name)| is_missing(name)).map(|(at, _)| at).collect()
    }
}
