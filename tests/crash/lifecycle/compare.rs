//! Compares what a store has with what follows from the history, and settles what was open.

use std::collections::{BTreeMap, HashMap};

use keyward_core::decision::StandingPolicy;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::holds::Holds;
use keyward_core::record::KeyRecord;

use super::history::{Attempt, Known, Name, Oracle, Stored, Write};
use super::seen::{Lookup, Seen};
use crate::verify::Findings;

/// How an open change turned out: with the revision at which it was made, if it was.
pub(super) type Settled = Vec<(u64, Option<Revision>)>;

/// Compares everything. What was open is settled in the oracle, and numbers of keys that were not known are
/// taken in; both are returned, to be written into the history.
pub(super) fn compare(oracle: &mut Oracle, seen: &Seen) -> (Findings, Settled, Vec<(Name, Revision, u32)>) {
    let mut findings = Findings::default();
    let settled = settle(oracle, seen, &mut findings);
    compare_records(oracle, seen, &mut findings);
    compare_names(oracle, seen, &mut findings);
    compare_log(oracle, seen, &mut findings);
    compare_digests(oracle, seen, &mut findings);
    let ordinals = compare_ordinals(oracle, seen, &mut findings);
    (findings, settled, ordinals)
}

/// An open change was made wholly, at one revision, or not at all.
fn settle(oracle: &mut Oracle, seen: &Seen, findings: &mut Findings) -> Settled {
    let mut settled = vec![];
    for (number, attempt) in oracle.open.clone() {
        let made: Vec<_> = attempt.writes.iter().map(|write| made_at(oracle, seen, &attempt, write)).collect();
        let at = made.first().copied().flatten();
        if made.iter().any(|other| *other != at) {
            findings.invent(format!("of one change, a part was made: {made:?} of {:?}", attempt.writes));
        }
        // Both fail only if the change is not open, and it is.
        match at {
            Some(revision) => {
                drop(oracle.made(number, revision));
                findings.open_made += 1;
            }
            None => {
                drop(oracle.refused(number));
                findings.open_not_made += 1;
            }
        }
        settled.push((number, at));
    }
    settled
}

/// The revision at which a write of an open change was made.
fn made_at(oracle: &Oracle, seen: &Seen, attempt: &Attempt, write: &Write) -> Option<Revision> {
    let name = write.name();
    let before = oracle.known.get(&name).map(|known| &known.stored);
    let found = seen.records.get(&name).or_else(|| seen.marks.get(&name))?;
    let is_newer = before.is_none_or(|before| found.revision() > before.revision());
    let (expected, _) = write.outcome(before, found.revision(), attempt.time);
    (is_newer && expected.is_same(found)).then(|| found.revision())
}

/// Every record is there in its last form, and no other.
fn compare_records(oracle: &Oracle, seen: &Seen, findings: &mut Findings) {
    if let Some((last, _)) = oracle.log.last_key_value()
        && *last > seen.revision
    {
        findings.lose(1, format!("revision {last} was acknowledged, and the log ends at {}", seen.revision));
    }
    for (name, Known { stored, made, mark_before, .. }) in &oracle.known {
        findings.keys += 1;
        let is_purged = matches!(stored, Stored::Purged(_));
        let (among, others) = if is_purged { (&seen.marks, &seen.records) } else { (&seen.records, &seen.marks) };
        if let Some(other) = others.get(name).filter(|other| mark_before.as_ref() != Some(*other)) {
            match other.revision() > stored.revision() {
                true => findings.invent(format!("{stored:?} is {other:?}")),
                false => findings.lose(*made, format!("{stored:?} is as before: {other:?}")),
            }
        }
        match among.get(name) {
            Some(found) if stored.is_same(found) => findings.changes += made,
            // The mark of a purged key goes once the journal begins after it.
            None if is_purged && seen.begins > stored.revision() => findings.changes += made,
            Some(found) if found.revision() > stored.revision() => findings.invent(format!("{stored:?} is {found:?}")),
            found => findings.lose(*made, format!("{stored:?} is {found:?}")),
        }
    }
    for found in seen.records.values().chain(seen.marks.values()) {
        if !oracle.known.contains_key(&found.name()) {
            findings.invent(format!("nobody asked for {found:?}"));
        }
    }
    for (name, purged_at) in &oracle.used_again {
        if seen.begins <= *purged_at {
            let begins = seen.begins;
            findings.invent(format!(
                "{name:?} was purged at revision {purged_at} and created again, and the journal begins at {begins}"
            ));
        }
    }
}

/// Reads by name, and lists, say the same as a backup.
fn compare_names(oracle: &Oracle, seen: &Seen, findings: &mut Findings) {
    for (name, found) in &seen.by_name {
        if found.as_ref() != seen.records.get(name) {
            findings
                .details
                .push(format!("{name:?} is read as {found:?}, and a backup has {:?}", seen.records.get(name)));
        }
    }
    let listable = |key: &KeyRecord| key.deletion.is_none();
    let expected = oracle.known.iter().filter(|(_, known)| matches!(&known.stored, Stored::Key(key) if listable(key)));
    let expected: std::collections::BTreeSet<_> = expected.map(|(name, _)| name).collect();
    let listed: std::collections::BTreeSet<_> = seen.listed.iter().collect();
    for name in expected.symmetric_difference(&listed) {
        findings.details.push(format!("{name:?} is in a list, or in none, and should not be so"));
    }
    if seen.indexed != expected.len() {
        findings.details.push(format!("the index counts {} keys, and there are {}", seen.indexed, expected.len()));
    }
}

/// What the journal still has of the log is what was asked for, change by change.
fn compare_log(oracle: &Oracle, seen: &Seen, findings: &mut Findings) {
    for (revision, found) in &seen.log {
        let Some(expected) = oracle.log.get(revision) else {
            findings.invent(format!("the log has, at revision {revision}, {found:?}"));
            continue;
        };
        let is_same =
            found.len() == expected.len() && expected.iter().zip(found).all(|(one, other)| one.is_same(other));
        if !is_same {
            findings.invent(format!("the log has, at revision {revision}, not {expected:?}, but {found:?}"));
        }
    }
    for (revision, expected) in oracle.log.range(seen.begins..) {
        if !seen.log.contains_key(revision) {
            findings.lose(expected.len() as u64, format!("the log lacks revision {revision}: {expected:?}"));
        }
    }
}

/// Every digest that a key has leads to it, as its record and all holds say; every other one leads nowhere.
fn compare_digests(oracle: &Oracle, seen: &Seen, findings: &mut Findings) {
    let mut holds = Holds::default();
    let mut expected: HashMap<Digest, Lookup> = HashMap::new();
    for known in oracle.known.values() {
        match &known.stored {
            Stored::Tenant(tenant) => drop(holds.apply(&Record::Tenant(tenant.clone().into()))),
            Stored::Owner(owner) => drop(holds.apply(&Record::Owner(owner.clone().into()))),
            Stored::Issuer(issuer) => drop(holds.apply(&Record::Issuer(issuer.clone().into()))),
            Stored::Key(_) | Stored::Purged(_) => {}
        }
    }
    for (name, known) in &oracle.known {
        let Stored::Key(key) = &known.stored else { continue };
        let ordinal = match seen.records.get(name) {
            Some(Stored::Key(found)) => found.ordinal,
            _ => None,
        };
        for digest in key.digests() {
            let Some(policy) = key.policy_of(&digest, &holds) else { continue };
            let policy = StandingPolicy { policy: policy.policy.clone(), standing: policy.standing };
            expected.insert(digest, Lookup { name: name.clone(), revision: key.revision, ordinal, policy });
        }
    }
    for digest in &oracle.digests {
        findings.verdicts += 1;
        let (expected, found) = (expected.get(digest), seen.lookups.get(digest));
        if expected != found {
            let was = if oracle.dropped.contains(digest) { ", which has left its key," } else { "" };
            findings.doubt(format!("a digest{was} leads to {found:?}, and not to {expected:?}"));
        }
    }
}

/// No number is given twice, and none changes. Returns those that were not known.
fn compare_ordinals(oracle: &mut Oracle, seen: &Seen, findings: &mut Findings) -> Vec<(Name, Revision, u32)> {
    let mut held: BTreeMap<(Name, Revision), u32> =
        oracle.ordinals.iter().map(|(ordinal, held)| (held.clone(), *ordinal)).collect();
    let mut new = vec![];
    for found in seen.records.values() {
        let Stored::Key(key) = found else { continue };
        let name = found.name();
        let Some(known) = oracle.known.get(&name) else { continue };
        let created_at = known.created_at;
        let Some(ordinal) = key.ordinal else {
            findings.details.push(format!("{name:?} has no number"));
            continue;
        };
        let this = (name.clone(), created_at);
        match (oracle.ordinals.get(&ordinal), held.get(&this)) {
            (Some(of), _) if *of == this => {}
            (Some(of), _) => findings.invent(format!("the number {ordinal} of {this:?} was given to {of:?}")),
            (None, Some(before)) => findings.invent(format!("{this:?} had the number {before}, and has {ordinal}")),
            (None, None) => {
                oracle.ordinals.insert(ordinal, this.clone());
                held.insert(this, ordinal);
                new.push((name, created_at, ordinal));
            }
        }
    }
    new
}

/// What was tampered with, how, and what the comparison must then find: changes lost, wrong verdicts and
/// inventions, at least so many of each.
type Tamper = (&'static str, fn(&Oracle, &mut Seen) -> Option<()>, [u64; 3]);

const TAMPERS: [Tamper; 10] = [
    ("a digest that left its key still leads to it", revive_dropped, [0, 1, 0]),
    ("a digest of a purged key still leads to it", revive_purged, [0, 1, 0]),
    ("a purge is lost", lose_purge, [1, 0, 0]),
    ("a purge mark is lost", lose_mark, [1, 0, 0]),
    ("a key is lost", lose_key, [1, 0, 0]),
    ("a key is as it was before", age_key, [1, 0, 0]),
    ("the hold of an owner is lost", lose_owner, [1, 0, 0]),
    ("a verdict does not know of a hold", forget_hold, [0, 1, 0]),
    ("a key is there that nobody asked for", invent_key, [0, 0, 1]),
    ("two keys have the same number", repeat_ordinal, [0, 0, 1]),
];

/// Everything that is tampered with.
pub(super) fn tampers() -> impl Iterator<Item = &'static str> {
    TAMPERS.into_iter().map(|(what, ..)| what)
}

/// Tampers with what was seen, and checks that the comparison finds that, or it proves nothing. Returns what
/// was found out: what there was nothing of is left out.
///
/// # Errors
/// With what was not found.
pub(super) fn compare_tampered(oracle: &Oracle, seen: &Seen) -> Result<Vec<&'static str>, String> {
    let mut found_out = vec![];
    for (what, tamper, expected) in TAMPERS {
        let mut tampered = seen.clone();
        if tamper(oracle, &mut tampered).is_none() {
            continue;
        }
        let (found, ..) = compare(&mut oracle.clone(), &tampered);
        let counts = [found.lost, found.wrong_verdicts, found.inventions];
        if counts.iter().zip(expected).any(|(found, expected)| *found < expected) {
            return Err(format!("{what}, and the comparison finds {found:?}"));
        }
        found_out.push(what);
    }
    Ok(found_out)
}

fn a_lookup(seen: &Seen) -> Option<Lookup> {
    seen.lookups.values().next().cloned()
}

fn revive_dropped(oracle: &Oracle, seen: &mut Seen) -> Option<()> {
    let digest = oracle.dropped.iter().find(|digest| !seen.lookups.contains_key(*digest))?;
    seen.lookups.insert(*digest, a_lookup(seen)?);
    Some(())
}

fn a_mark(seen: &Seen) -> Option<(Name, Stored)> {
    let stands = |name: &Name, mark: &Stored| mark.revision() >= seen.begins && !seen.records.contains_key(name);
    let mark = seen.marks.iter().find(|(name, mark)| stands(name, mark));
    mark.map(|(name, mark)| (name.clone(), mark.clone()))
}

fn revive_purged(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let (_, Stored::Purged(mark)) = a_mark(seen)? else { return None };
    seen.lookups.insert(*mark.digests.first()?, a_lookup(seen)?);
    Some(())
}

fn lose_purge(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let (name, mark) = a_mark(seen)?;
    let mut key = a_key(seen)?;
    let Name::Key(tenant, key_id) = &name else { return None };
    key.tenant = keyward_core::id::TenantId::parse(tenant).ok()?;
    key.key_id = keyward_core::id::KeyId::parse(key_id).ok()?;
    key.revision = Revision(mark.revision().0.saturating_sub(1));
    seen.marks.remove(&name);
    seen.records.insert(name, Stored::Key(key));
    Some(())
}

fn lose_mark(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let (name, _) = a_mark(seen)?;
    seen.marks.remove(&name).map(drop)
}

fn a_key(seen: &Seen) -> Option<Box<KeyRecord>> {
    seen.records.values().find_map(|record| match record {
        Stored::Key(key) => Some(key.clone()),
        _ => None,
    })
}

fn lose_key(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let key = Stored::Key(a_key(seen)?);
    seen.records.remove(&key.name()).map(drop)
}

fn age_key(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let mut key = a_key(seen)?;
    key.revision.0 -= 1;
    key.spec.description.push('!');
    let key = Stored::Key(key);
    seen.records.insert(key.name(), key).map(drop)
}

fn lose_owner(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let owner = seen.records.keys().find(|name| matches!(name, Name::Owner(..)))?.clone();
    seen.records.remove(&owner).map(drop)
}

fn forget_hold(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let held = seen.lookups.values_mut().find(|lookup| lookup.policy.standing.is_held)?;
    held.policy.standing.is_held = false;
    Some(())
}

fn invent_key(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let mut key = a_key(seen)?;
    key.key_id = keyward_core::id::KeyId::parse("nobody").ok()?;
    let key = Stored::Key(key);
    seen.records.insert(key.name(), key);
    Some(())
}

fn repeat_ordinal(_: &Oracle, seen: &mut Seen) -> Option<()> {
    let ordinal = a_key(seen)?.ordinal;
    let other = seen.records.values_mut().filter_map(|record| match record {
        Stored::Key(key) if key.ordinal != ordinal => Some(key),
        _ => None,
    });
    other.take(1).for_each(|key| key.ordinal = ordinal);
    Some(())
}
