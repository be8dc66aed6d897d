//! The number of names in use, over all generations: for each kind, and for each tenant.
//!
//! While entries move from one generation to the next, a name may be used in both, and counts once. So the
//! first and the last use of a name are counted under one lock for all generations; other uses take no lock.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use keyward_core::id::TenantId;
use parking_lot::Mutex;

use super::interner::{Counted, Interned, NameKind, Names, OwnerLookup, ScopeTextLookup};

/// Counts the names in use.
#[derive(Debug, Default)]
pub(super) struct UsageCounts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// The living generations: one, or two during a compaction.
    generations: Vec<Weak<Names>>,
    kinds: [usize; NameKind::ALL.len()],
    tenants: HashMap<TenantId, TenantCounts>,
}

/// The names of one tenant in use.
#[derive(Debug, Default)]
struct TenantCounts {
    owners: usize,
    scopes: usize,
}

/// The number of names of a kind that a tenant uses, and which of those asked about it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// The number of names.
    pub count: usize,
    /// The positions, in the question, of names not in use.
    pub missing: Vec<usize>,
}

impl UsageCounts {
    /// Adds a generation.
    pub(super) fn add_generation(&self, names: &Arc<Names>) {
        self.0.lock().generations.push(Arc::downgrade(names));
    }

    /// Removes a generation that no entry is of any more.
    pub(super) fn remove_generation(&self, names: &Arc<Names>) {
        self.0.lock().generations.retain(|generation| !std::ptr::eq(generation.as_ptr(), Arc::as_ptr(names)));
    }

    /// Counts what may be the first use of a name.
    pub(super) fn begin_use<T: Interned>(&self, names: &Names, named: &Counted<T>) {
        let mut counts = self.0.lock();
        if named.uses.fetch_add(1, Ordering::AcqRel) == 0 {
            T::of(names).used.fetch_add(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_add(1));
        }
    }

    /// Removes what may be the last use of a name.
    pub(super) fn end_use<T: Interned>(&self, names: &Names, named: &Counted<T>) {
        let mut counts = self.0.lock();
        let taken_back = named.uses.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |uses| uses.checked_sub(1));
        if taken_back == Ok(1) {
            T::of(names).used.fetch_sub(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_sub(1));
        }
    }

    /// Sets the uses of a name that has none, as counted by a checkpoint.
    pub(super) fn note<T: Interned>(&self, names: &Names, number: u32, uses: u32) {
        let Some(named) = T::of(names).values.get(number as usize) else { return };
        let mut counts = self.0.lock();
        if uses > 0 && named.uses.swap(uses, Ordering::AcqRel) == 0 {
            T::of(names).used.fetch_add(1, Ordering::Relaxed);
            counts.change(names, &named.value, |count| count.saturating_add(1));
        }
    }

    /// The number of names of a kind in use.
    pub(super) fn of_kind(&self, kind: NameKind) -> usize {
        self.0.lock().kinds[kind as usize]
    }

    /// How often entries use a name, over all generations. `uses` finds it in one.
    pub(super) fn uses(&self, uses: impl Fn(&Names) -> Option<u32>) -> usize {
        let counts = self.0.lock();
        let generations = counts.generations.iter().filter_map(Weak::upgrade);
        generations.filter_map(|names| uses(&names)).map(|uses| uses as usize).sum()
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
    /// Counts a name whose use has begun or ended, unless another generation uses it.
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
