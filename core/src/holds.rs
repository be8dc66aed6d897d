//! What is known of tenants, owners and issuers that are suspended, or accepted only from a time on.

use std::collections::HashMap;

use crate::clock::UnixMillis;
use crate::event::{Record, Revision};
use crate::id::{ActorId, TenantId};
use crate::record::{AuditStamp, Hold, KeyRecord, StoredSecret};

/// The holds of tenants, owners and issuers. Of each, the record of the highest revision counts, in whatever
/// order they come.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    tenants: HashMap<TenantId, (Revision, Kept)>,
    owners: HashMap<TenantId, HashMap<Box<str>, (Revision, Kept)>>,
    issuers: HashMap<ActorId, (Revision, Kept)>,
}

/// The part of a [`Hold`] that verdicts depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// All keys are refused.
    pub suspended: bool,
    /// Those whose secret was issued before are.
    pub reject_issued_before: Option<UnixMillis>,
}

/// Whose keys are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A tenant's.
    Tenant(TenantId),
    /// An owner's, in a tenant.
    Owner(TenantId, Box<str>),
    /// Those whose secrets somebody issued.
    Issuer(ActorId),
}

/// How the holds bear on a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Its key's tenant or owner, or its issuer, is suspended.
    pub is_held: bool,
    /// It was issued before the time from which one of them is accepted.
    pub is_outdated: bool,
}

impl Kept {
    fn of(hold: &Hold) -> Self {
        Self { suspended: hold.suspended, reject_issued_before: hold.reject_issued_before }
    }
}

impl Holds {
    /// Takes in a record. Returns whether a hold has changed.
    pub fn apply(&mut self, record: &Record) -> bool {
        let (holder, hold) = match record {
            Record::Tenant(tenant) => (Holder::Tenant(tenant.tenant.clone()), &tenant.hold),
            Record::Owner(owner) => (Holder::Owner(owner.tenant.clone(), owner.owner.as_str().into()), &owner.hold),
            Record::Issuer(issuer) => (Holder::Issuer(issuer.actor.clone()), &issuer.hold),
            Record::Key(_) | Record::Purged(_) | Record::Line(_) => return false,
        };
        self.insert(holder, record.revision(), Kept::of(hold))
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Holder, Revision, Kept)> {
        let tenants = self.tenants.iter().map(|(tenant, kept)| (Holder::Tenant(tenant.clone()), *kept));
        let owners = self.owners.iter().flat_map(|(tenant, owners)| {
            owners.iter().map(|(owner, kept)| (Holder::Owner(tenant.clone(), owner.clone()), *kept))
        });
        let issuers = self.issuers.iter().map(|(actor, kept)| (Holder::Issuer(actor.clone()), *kept));
        tenants.chain(owners).chain(issuers).map(|(holder, (revision, kept))| (holder, revision, kept))
    }

    /// Puts one in, unless it is there in a newer form.
    pub fn insert(&mut self, holder: Holder, revision: Revision, kept: Kept) -> bool {
        let held = match holder {
            Holder::Tenant(tenant) => self.tenants.entry(tenant).or_default(),
            Holder::Owner(tenant, owner) => self.owners.entry(tenant).or_default().entry(owner).or_default(),
            Holder::Issuer(actor) => self.issuers.entry(actor).or_default(),
        };
        replace(held, revision, kept)
    }

    /// Takes in newer ones.
    pub fn join(&mut self, newer: &Self) {
        self.tenants.extend(newer.tenants.iter().map(|(tenant, kept)| (tenant.clone(), *kept)));
        for (tenant, owners) in &newer.owners {
            let owners = owners.iter().map(|(owner, kept)| (owner.clone(), *kept));
            self.owners.entry(tenant.clone()).or_default().extend(owners);
        }
        self.issuers.extend(newer.issuers.iter().map(|(actor, kept)| (actor.clone(), *kept)));
    }

    /// Those that hold anything.
    #[must_use]
    pub fn effective(&self) -> Self {
        let holds = |(_, kept): &(Revision, Kept)| *kept != Kept::default();
        let owners = self.owners.iter().map(|(tenant, owners)| {
            let owners = owners.iter().filter(|(_, kept)| holds(kept)).map(|(owner, kept)| (owner.clone(), *kept));
            (tenant.clone(), owners.collect::<HashMap<_, _>>())
        });
        Self {
            tenants: self
                .tenants
                .iter()
                .filter(|(_, kept)| holds(kept))
                .map(|(id, kept)| (id.clone(), *kept))
                .collect(),
            owners: owners.filter(|(_, owners)| !owners.is_empty()).collect(),
            issuers: self
                .issuers
                .iter()
                .filter(|(_, kept)| holds(kept))
                .map(|(id, kept)| (id.clone(), *kept))
                .collect(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && self.owners.is_empty() && self.issuers.is_empty()
    }

    /// How they bear on a secret of a key.
    #[must_use]
    pub fn of_secret(&self, key: &KeyRecord, secret: &StoredSecret) -> Holding {
        let AuditStamp { time, actor } = key.issued(secret);
        self.of(&key.tenant, &key.spec.owner, actor, *time)
    }

    /// How they bear on a secret that `issuer` issued at a time, of a key of a tenant and an owner.
    #[must_use]
    pub fn of(&self, tenant: &TenantId, owner: &str, issuer: &ActorId, issue_time: UnixMillis) -> Holding {
        let of_owner = self.owners.get(tenant).and_then(|owners| owners.get(owner));
        let all = [self.tenants.get(tenant), of_owner, self.issuers.get(issuer)];
        let each = || all.into_iter().flatten().map(|(_, kept)| kept);
        Holding {
            is_held: each().any(|kept| kept.suspended),
            is_outdated: each().any(|kept| kept.reject_issued_before.is_some_and(|from| issue_time < from)),
        }
    }
}

/// Puts a newer form in place of an older one. Returns whether what it holds has changed.
fn replace(held: &mut (Revision, Kept), revision: Revision, kept: Kept) -> bool {
    if held.0 > revision {
        return false;
    }
    let before = std::mem::replace(held, (revision, kept));
    before.1 != held.1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::record::OwnerRecord;
    use crate::testing::{key_record, stamp, tenant_record};

    fn owner(name: &str, revision: u64, suspended: bool) -> Record {
        let hold = Hold { suspended, ..Hold::default() };
        let tenant = TenantId::default_tenant();
        let owner = OwnerRecord { tenant, owner: name.into(), hold, updated: stamp(), revision: Revision(revision) };
        Record::Owner(Arc::new(owner))
    }

    #[test]
    fn the_newest_form_counts_in_whatever_order_they_come() {
        let forms = [owner("a", 3, true), owner("a", 5, false), owner("b", 4, true), owner("b", 2, false)];
        for order in [[0, 1, 2, 3], [1, 0, 3, 2], [3, 2, 1, 0], [2, 1, 3, 0]] {
            let mut holds = Holds::default();
            for &at in order.iter().chain(&order) {
                holds.apply(&forms[at]);
            }
            let holds = holds.effective();
            let mut key = key_record(1);
            for (name, held) in [("a", false), ("b", true), ("c", false)] {
                key.spec.owner = name.into();
                assert_eq!(holds.of_secret(&key, &key.secret).is_held, held, "{name} in {order:?}");
            }
        }
    }

    #[test]
    fn a_secret_is_outdated_by_the_time_of_its_own_issue() {
        let mut tenant = tenant_record("default");
        tenant.hold.reject_issued_before = Some(UnixMillis(1_001));
        let mut holds = Holds::default();
        assert!(holds.apply(&Record::Tenant(Arc::new(tenant))));
        let key = key_record(1); // issued at 1,000
        assert!(holds.of_secret(&key, &key.secret).is_outdated);
        let mut rotated = key.secret.clone();
        rotated.issued = Some(AuditStamp { time: UnixMillis(1_001), actor: ActorId::keyward() });
        assert!(!holds.of_secret(&key, &rotated).is_outdated);
    }
}
