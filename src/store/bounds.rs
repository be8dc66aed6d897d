//! Bounds on the number of distinct names that a tenant uses, and on the number of tenants.
//!
//! A commit is checked with its other preconditions, before anything is written, and only for names that it
//! brings into use. What already exceeds a bound, for example because the bound was lowered, stays, and so
//! does everything that needs no new name. A narrowing is not checked.
//!
//! The view knows the names in use, but lags behind the log by the changes in flight. Their names are
//! [`Pending`] and count as in use until the view has them. So a bound is never exceeded, and a name that a
//! change in flight gives up counts until that change is applied.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;

use keyward_core::enumerate;
use keyward_core::event::Revision;
use keyward_core::id::TenantId;
use keyward_core::record::KeyRecord;

use super::{CommitError, MaterializedView};

/// Pending names of one tenant and kind that are compared with those in use. If there are more, each counts
/// as a new one.
const PENDING_EXAMINED_MAX: usize = 1_024;

/// Records of issuers in a log. They are kept in memory, and only administrators of all tenants make them.
const ISSUERS_MAX: usize = 65_536;

/// The bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Tenants.
    pub tenants: usize,
    /// Different owners of one tenant's keys.
    pub owners_per_tenant: usize,
    /// Different scopes of one tenant's keys.
    pub scopes_per_tenant: usize,
}

impl Bounds {
    /// No bounds.
    pub const NONE: Self = Self { tenants: usize::MAX, owners_per_tenant: usize::MAX, scopes_per_tenant: usize::MAX };

    fn of(&self, kind: NameKind) -> usize {
        match kind {
            NameKind::Owner => self.owners_per_tenant,
            NameKind::Scope => self.scopes_per_tenant,
        }
    }
}

/// The bound that a commit would go past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// There may be so many tenants.
    Tenants {
        /// The bound.
        max: usize,
    },
    /// A tenant may have so many owners.
    Owners {
        /// The bound.
        max: usize,
    },
    /// A tenant may have so many scopes.
    Scopes {
        /// The bound.
        max: usize,
        /// The position of the first of the key's scopes that is not in use.
        nth: usize,
    },
    /// So many issuers may have a record.
    Issuers {
        /// The bound.
        max: usize,
    },
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenants { max } => write!(f, "there are {max} tenants, and may be no more"),
            Self::Owners { max } => write!(f, "the tenant's keys have {max} owners, and may have no more"),
            Self::Issuers { max } => write!(f, "{max} issuers have a record, and no more may"),
            Self::Scopes { max, .. } => write!(f, "the tenant's keys have {max} scopes, and may have no more"),
        }
    }
}

/// How many names of a kind a tenant has in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// How many.
    pub count: usize,
    /// The positions, in the question, of the names that are not in use.
    pub missing: Vec<usize>,
}

enumerate! {
    /// The kinds of names that are bounded for each tenant.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(super) enum NameKind {
        Owner,
        Scope,
    }
}

impl NameKind {
    /// Asks a view about names of this kind.
    pub(super) fn in_use(self, view: &dyn MaterializedView, tenant: &TenantId, asked: &[&str]) -> Option<InUse> {
        match self {
            Self::Owner => view.owners_in_use(tenant, asked),
            Self::Scope => view.scopes_in_use(tenant, asked),
        }
    }

    /// The names of this kind that a key uses, each with its position.
    fn names_of(self, key: &KeyRecord) -> Vec<(usize, &str)> {
        match self {
            Self::Owner => Some(&*key.spec.owner).filter(|owner| !owner.is_empty()).into_iter().enumerate().collect(),
            Self::Scope => key.spec.policy.scopes.iter().map(|scope| scope.as_str()).enumerate().collect(),
        }
    }

    /// The names that a key uses and `before` did not, each once.
    pub(super) fn added<'a>(self, before: Option<&KeyRecord>, key: &'a KeyRecord) -> Vec<(usize, &'a str)> {
        let before: HashSet<_> =
            before.map(|key| self.names_of(key)).into_iter().flatten().map(|(_, name)| name).collect();
        let mut seen = HashSet::new();
        self.names_of(key).into_iter().filter(|(_, name)| !before.contains(name) && seen.insert(*name)).collect()
    }
}

/// Checks the bounds of a key's tenant. `in_use` asks the view; `None`: it does not know.
pub(super) fn check(
    bounds: &Bounds,
    pending: &Pending,
    before: Option<&KeyRecord>,
    key: &KeyRecord,
    in_use: impl Fn(NameKind, &[&str]) -> Option<InUse>,
) -> Result<(), CommitError> {
    for kind in NameKind::ALL {
        let (added, max) = (kind.added(before, key), bounds.of(kind));
        if added.is_empty() {
            continue;
        }
        let under_way = pending.of(&key.tenant, kind);
        let Some(InUse { count, .. }) = in_use(kind, &[]) else { continue };
        if count.saturating_add(under_way.len()).saturating_add(added.len()) <= max {
            continue; // whatever of it is the same
        }
        let new: Vec<_> = added.iter().filter(|(_, name)| !under_way.contains(name)).collect();
        let mut asked: Vec<_> = new.iter().map(|(_, name)| *name).collect();
        let told_apart = under_way.len() <= PENDING_EXAMINED_MAX;
        asked.extend(under_way.iter().filter(|_| told_apart));
        // In one call, so that nothing changes between the count and what is missing.
        let Some(InUse { count, missing }) = in_use(kind, &asked) else { continue };
        let first = missing.first().and_then(|first| new.get(*first));
        let further = missing.len() + if told_apart { 0 } else { under_way.len() };
        if let Some((nth, _)) = first
            && count.saturating_add(further) > max
        {
            return Err(CommitError::Bounded(match kind {
                NameKind::Owner => Exceeded::Owners { max },
                NameKind::Scope => Exceeded::Scopes { max, nth: *nth },
            }));
        }
    }
    Ok(())
}

/// Checks the bound on tenants for one more than there are.
pub(super) fn check_tenants(bounds: &Bounds, tenants: usize) -> Result<(), CommitError> {
    let max = bounds.tenants;
    if tenants < max { Ok(()) } else { Err(CommitError::Bounded(Exceeded::Tenants { max })) }
}

/// Checks the bound on owners for the record of one, of a tenant with so many records of owners. That of an
/// owner that keys have is always admitted: keys are bounded. The other ones are kept in memory for nothing
/// but their names.
pub(super) fn check_owner(bounds: &Bounds, records: usize, in_use: &InUse) -> Result<(), CommitError> {
    let max = bounds.owners_per_tenant;
    if in_use.missing.is_empty() || records < max {
        Ok(())
    } else {
        Err(CommitError::Bounded(Exceeded::Owners { max }))
    }
}

/// Checks the bound on records of issuers for one more than there are.
pub(super) fn check_issuers(records: usize) -> Result<(), CommitError> {
    let max = ISSUERS_MAX;
    if records < max { Ok(()) } else { Err(CommitError::Bounded(Exceeded::Issuers { max })) }
}

/// The names that changes in flight bring into use, and that the view does not have yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    names: HashMap<TenantId, [HashMap<Box<str>, usize>; NameKind::ALL.len()]>,
    /// In the order of their revisions.
    queue: VecDeque<(Revision, TenantId, NameKind, Box<str>)>,
}

/// Pending names of one kind, and how many changes use each of them.
pub(super) struct UnderWay<'a>(Option<&'a HashMap<Box<str>, usize>>);

impl<'a> UnderWay<'a> {
    fn len(&self) -> usize {
        self.0.map_or(0, HashMap::len)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.is_some_and(|names| names.contains_key(name))
    }

    fn iter(&self) -> impl Iterator<Item = &'a str> {
        self.0.into_iter().flat_map(|names| names.keys().map(|name| &**name))
    }
}

impl Pending {
    fn of(&self, tenant: &TenantId, kind: NameKind) -> UnderWay<'_> {
        UnderWay(self.names.get(tenant).map(|kinds| &kinds[kind as usize]))
    }

    /// Adds the names of a change.
    pub(super) fn note(&mut self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) {
        for kind in NameKind::ALL {
            for (_, name) in kind.added(before, key) {
                let of_tenant = self.names.entry(key.tenant.clone()).or_default();
                *of_tenant[kind as usize].entry(name.into()).or_default() += 1;
                self.queue.push_back((revision, key.tenant.clone(), kind, name.into()));
            }
        }
    }

    /// Removes the names of changes up to this revision, which the view has.
    pub(super) fn applied(&mut self, revision: Revision) {
        while self.queue.front().is_some_and(|(noted, ..)| *noted <= revision)
            && let Some((_, tenant, kind, name)) = self.queue.pop_front()
        {
            let Some(of_tenant) = self.names.get_mut(&tenant) else { continue };
            let names = &mut of_tenant[kind as usize];
            if let Some(changes) = names.get_mut(&name) {
                *changes -= 1;
                if *changes == 0 {
                    names.remove(&name);
                }
            }
            if of_tenant.iter().all(HashMap::is_empty) {
                self.names.remove(&tenant);
            }
        }
    }
}

/// The names that keys use, counted here for an engine without a view.
#[derive(Debug, Default)]
pub(super) struct NameUses(HashMap<TenantId, [HashMap<String, usize>; NameKind::ALL.len()]>);

impl NameUses {
    /// Counts a key in place of `before`.
    pub(super) fn change(&mut self, before: Option<&KeyRecord>, key: Option<&KeyRecord>) {
        let Some(either) = key.or(before) else { return };
        let of_tenant = self.0.entry(either.tenant.clone()).or_default();
        for kind in NameKind::ALL {
            let names = &mut of_tenant[kind as usize];
            for (_, name) in key.map(|key| kind.names_of(key)).unwrap_or_default() {
                *names.entry(name.to_owned()).or_default() += 1;
            }
            for (_, name) in before.map(|key| kind.names_of(key)).unwrap_or_default() {
                if let Some(uses) = names.get_mut(name) {
                    *uses -= 1;
                    if *uses == 0 {
                        names.remove(name);
                    }
                }
            }
        }
    }

    pub(super) fn in_use(&self, tenant: &TenantId, kind: NameKind, asked: &[&str]) -> InUse {
        let names = self.0.get(tenant).map(|kinds| &kinds[kind as usize]);
        let has = |name: &str| names.is_some_and(|names| names.contains_key(name));
        let missing = asked.iter().enumerate().filter(|(_, name)| !has(name)).map(|(at, _)| at).collect();
        InUse { count: names.map_or(0, HashMap::len), missing }
    }
}
