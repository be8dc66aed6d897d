//! What is known of tenants, owners and issuers that are suspended, or accepted only from a time on.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use crate::clock::UnixMillis;
use crate::event::{Record, Revision};
use crate::id::{ActorId, TenantId};
use crate::record::{AuditStamp, Hold, KeyRecord, StoredSecret};

/// Parts of [`Holds`]. A change of one hold copies one part, if a copy of the whole has it too: with 100,000
/// holds some 200 of them.
const PARTS: usize = 512;

/// The holds of tenants, owners and issuers. Of each, the record of the highest revision counts, in whatever
/// order they come.
///
/// A clone shares its parts with the original, so it costs the same however many holds there are.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    /// Empty, or [`PARTS`] of them. `None`: an empty one.
    parts: Vec<Option<Arc<Part>>>,
    hasher: RandomState,
    /// How many there are, and how many of them hold anything.
    count: usize,
    effective: usize,
}

/// The holds that have one hash, modulo [`PARTS`].
#[derive(Clone, Debug, Default)]
struct Part {
    tenants: HashMap<TenantId, Form>,
    owners: HashMap<TenantId, HashMap<Box<str>, Form>>,
    issuers: HashMap<ActorId, Form>,
}

/// A hold, and the revision of its record.
type Form = (Revision, Kept);

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

/// Who refuses a secret: its key's tenant and owner, and its issuer, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Causes {
    /// By being suspended.
    pub suspended: [bool; 3],
    /// By accepting only what was issued later.
    pub outdated: [bool; 3],
}

impl Causes {
    /// What each of the three is called.
    pub const NAMES: [&'static str; 3] = ["tenant", "owner", "issuer"];
}

impl Kept {
    /// The part of a hold that verdicts depend on.
    #[must_use]
    pub fn of(hold: &Hold) -> Self {
        Self { suspended: hold.suspended, reject_issued_before: hold.reject_issued_before }
    }

    /// Whether it refuses a secret that was issued at a time. One of that very time is accepted.
    fn outdates(&self, issue_time: UnixMillis) -> bool {
        self.reject_issued_before.is_some_and(|from| issue_time < from)
    }
}

impl Holder {
    /// Whose record it is, and its hold. `None`: it is of a key or a line.
    #[must_use]
    pub fn of(record: &Record) -> Option<(Self, &Hold)> {
        match record {
            Record::Tenant(tenant) => Some((Self::Tenant(tenant.tenant.clone()), &tenant.hold)),
            Record::Owner(owner) => Some((Self::Owner(owner.tenant.clone(), owner.owner.as_str().into()), &owner.hold)),
            Record::Issuer(issuer) => Some((Self::Issuer(issuer.actor.clone()), &issuer.hold)),
            Record::Key(_) | Record::Purged(_) | Record::Line(_) => None,
        }
    }
}

impl Holds {
    /// Takes in a record. Returns whether a hold has changed.
    pub fn apply(&mut self, record: &Record) -> bool {
        let Some((holder, hold)) = Holder::of(record) else { return false };
        self.insert(holder, record.revision(), Kept::of(hold))
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Holder, Revision, Kept)> {
        self.parts.iter().flatten().flat_map(|part| {
            let tenants = part.tenants.iter().map(|(tenant, form)| (Holder::Tenant(tenant.clone()), *form));
            let owners = part.owners.iter().flat_map(|(tenant, owners)| {
                owners.iter().map(|(owner, form)| (Holder::Owner(tenant.clone(), owner.clone()), *form))
            });
            let issuers = part.issuers.iter().map(|(actor, form)| (Holder::Issuer(actor.clone()), *form));
            tenants.chain(owners).chain(issuers).map(|(holder, (revision, kept))| (holder, revision, kept))
        })
    }

    /// Puts one in, unless it is there in a newer form. Returns whether what it holds has changed.
    pub fn insert(&mut self, holder: Holder, revision: Revision, kept: Kept) -> bool {
        let before = self.form(&holder);
        if before.is_some_and(|(there, _)| there > revision) {
            return false;
        }
        self.replace(holder, Some((revision, kept)));
        before.map(|(_, kept)| kept).unwrap_or_default() != kept
    }

    /// Puts one in the place of what is there, however old it is. `None`: takes out what is there. Returns
    /// what was there.
    pub fn replace(&mut self, holder: Holder, form: Option<Form>) -> Option<Form> {
        fn put<K: Eq + Hash>(map: &mut HashMap<K, Form>, key: K, form: Option<Form>) -> Option<Form> {
            match form {
                Some(form) => map.insert(key, form),
                None => map.remove(&key),
            }
        }
        let part = self.part_of(&holder);
        if self.parts.is_empty() {
            self.parts.resize(PARTS, None);
        }
        let part = Arc::make_mut(self.parts[part].get_or_insert_default());
        let before = match holder {
            Holder::Tenant(tenant) => put(&mut part.tenants, tenant, form),
            Holder::Owner(tenant, owner) => put(part.owners.entry(tenant).or_default(), owner, form),
            Holder::Issuer(actor) => put(&mut part.issuers, actor, form),
        };
        let is_effective = |form: Option<Form>| usize::from(form.is_some_and(|(_, kept)| kept != Kept::default()));
        self.count = self.count + usize::from(form.is_some()) - usize::from(before.is_some());
        self.effective = self.effective + is_effective(form) - is_effective(before);
        before
    }

    /// Takes in newer ones.
    pub fn join(&mut self, newer: &Self) {
        for (holder, revision, kept) in newer.iter() {
            self.replace(holder, Some((revision, kept)));
        }
    }

    /// How many there are, those that hold nothing included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether any of them holds anything.
    #[must_use]
    pub fn hold_any(&self) -> bool {
        self.effective > 0
    }

    fn form(&self, holder: &Holder) -> Option<Form> {
        let part = self.parts.get(self.part_of(holder))?.as_ref()?;
        match holder {
            Holder::Tenant(tenant) => part.tenants.get(tenant).copied(),
            Holder::Owner(tenant, owner) => part.owners.get(tenant)?.get(owner).copied(),
            Holder::Issuer(actor) => part.issuers.get(actor).copied(),
        }
    }

    fn part_of(&self, holder: &Holder) -> usize {
        match holder {
            Holder::Tenant(tenant) => self.place(tenant.as_str(), ""),
            Holder::Owner(tenant, owner) => self.place(tenant.as_str(), owner),
            Holder::Issuer(actor) => self.place(actor.as_str(), ""),
        }
    }

    fn place(&self, name: &str, of_it: &str) -> usize {
        self.hasher.hash_one((name, of_it)) as usize % PARTS
    }

    fn part(&self, name: &str, of_it: &str) -> Option<&Part> {
        self.parts.get(self.place(name, of_it))?.as_deref()
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
        let all = self.each_of(tenant, owner, issuer);
        let each = || all.into_iter().flatten();
        Holding {
            is_held: each().any(|kept| kept.suspended),
            is_outdated: each().any(|kept| kept.outdates(issue_time)),
        }
    }

    /// How that of an owner alone bears on a secret that was issued at a time.
    #[must_use]
    pub fn of_owner(&self, tenant: &TenantId, owner: &str, issue_time: UnixMillis) -> Holding {
        let kept = self.owner(tenant, owner).copied().unwrap_or_default();
        Holding { is_held: kept.suspended, is_outdated: kept.outdates(issue_time) }
    }

    /// Which of them refuse a secret that `issuer` issued at a time, of a key of a tenant and an owner:
    /// `tenant`, `owner` and `issuer`, those that are suspended and those whose epoch it is before.
    #[must_use]
    pub fn causes(&self, tenant: &TenantId, owner: &str, issuer: &ActorId, issue_time: UnixMillis) -> Causes {
        let each = self.each_of(tenant, owner, issuer);
        let which = |is: fn(&Kept, UnixMillis) -> bool| each.map(|kept| kept.is_some_and(|kept| is(kept, issue_time)));
        Causes { suspended: which(|kept, _| kept.suspended), outdated: which(Kept::outdates) }
    }

    fn owner(&self, tenant: &TenantId, owner: &str) -> Option<&Kept> {
        let form = self.part(tenant.as_str(), owner)?.owners.get(tenant)?.get(owner)?;
        Some(&form.1)
    }

    /// Those of a tenant, an owner and an issuer.
    fn each_of(&self, tenant: &TenantId, owner: &str, issuer: &ActorId) -> [Option<&Kept>; 3] {
        let of_tenant = self.part(tenant.as_str(), "").and_then(|part| part.tenants.get(tenant));
        let of_issuer = self.part(issuer.as_str(), "").and_then(|part| part.issuers.get(issuer));
        [of_tenant.map(|(_, kept)| kept), self.owner(tenant, owner), of_issuer.map(|(_, kept)| kept)]
    }
}

#[cfg(test)]
mod tests {
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
            assert_eq!((holds.len(), holds.hold_any()), (2, true));
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

    #[test]
    fn a_change_copies_one_part_of_a_clone_and_what_is_taken_back_leaves_no_trace() {
        let mut holds = Holds::default();
        for number in 0..2_000 {
            holds.apply(&owner(&format!("owner-{number}"), 1, number % 2 == 0));
        }
        let shared = holds.clone();
        let (holder, kept) =
            (Holder::of(&owner("owner-7", 2, true)).unwrap().0, Kept { suspended: true, ..Kept::default() });
        let before = holds.replace(holder.clone(), Some((Revision(2), kept)));
        let copied = holds.parts.iter().zip(&shared.parts).filter(|(one, other)| match (one, other) {
            (Some(one), Some(other)) => !Arc::ptr_eq(one, other),
            (one, other) => one.is_some() != other.is_some(),
        });
        assert_eq!(copied.count(), 1);
        let default = TenantId::default_tenant();
        let is_held = |holds: &Holds| holds.of_owner(&default, "owner-7", UnixMillis(1)).is_held;
        assert_eq!((is_held(&holds), is_held(&shared)), (true, false));
        assert_eq!(holds.replace(holder.clone(), before), Some((Revision(2), kept)));
        assert_eq!((holds.len(), holds.effective, is_held(&holds)), (2_000, 1_000, false));
        holds.replace(holder, None);
        assert_eq!((holds.len(), holds.effective, shared.len()), (1_999, 1_000, 2_000));
    }
}
