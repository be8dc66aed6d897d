//! The changes that a writer makes up: of all kinds, at random, of names that no other writer changes.

use std::collections::BTreeMap;

use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{
    AuditStamp, Deletion, Hold, IssuerRecord, KeyRecord, KeySpec, OverlapStart, OwnerRecord, PreviousSecret, PurgeMark,
    RetiredSecret, State, StoredSecret, TenantRecord,
};
use keyward_core::scope::Scope;
use keyward_core::testing::{key_record, tenant_record};
use rand::RngExt;
use rand::rngs::SmallRng;

use super::history::{Name, Stored, Write};
use crate::Failure;

/// Writers of one process.
pub(super) const WRITERS: usize = 8;
/// Keys of each, half of them in a tenant of its own and half in one that all share.
const KEYS: usize = 40;
/// Owners of each.
const OWNERS: usize = 4;
/// The tenant that all writers have keys in. Its record is of the first writer.
const SHARED: &str = "shared";
/// Bytes of a description at most: so that the journal grows, and segments come and go.
const DESCRIPTION_BYTES_MAX: usize = 1_500;
/// A time that a change names is at most so far before or after it.
const TIME_SPREAD_MILLIS: i64 = 60_000;

/// Makes changes up.
pub(super) struct Inventor {
    pub(super) writer: usize,
    pub(super) rng: SmallRng,
    /// What is there of this writer's names.
    pub(super) book: BTreeMap<Name, Stored>,
}

impl Inventor {
    /// Whether a name is of a writer.
    pub(super) fn owns(writer: usize, name: &Name) -> bool {
        let of = |text: &str, at: usize| text.split('-').nth(at) == Some(&*writer.to_string());
        match name {
            Name::Tenant(tenant) => of(tenant, 1) || (tenant == SHARED && writer == 0),
            Name::Owner(_, text) | Name::Issuer(text) | Name::Key(_, text) => of(text, 1),
        }
    }

    /// The writes of one change.
    pub(super) fn next(&mut self, now: UnixMillis) -> Result<Vec<Write>, Failure> {
        let tenants =
            if self.writer == 0 { vec![self.tenant()?, TenantId::parse(SHARED)?] } else { vec![self.tenant()?] };
        let missing = tenants.iter().find(|tenant| !self.book.contains_key(&Name::Tenant(tenant.to_string())));
        if let Some(tenant) = missing {
            return Ok(vec![Write::NewTenant(tenant_record(tenant.as_str()))]);
        }
        Ok(match self.rng.random_range(0..24) {
            0 => vec![self.tenant_hold(&tenants, now)?],
            1 => vec![self.owner_hold(now)?],
            2 => vec![self.issuer_hold(now)?],
            // All or nothing: two keys, and a hold.
            3 => {
                let first = self.rng.random_range(0..KEYS);
                let second = (first + self.rng.random_range(1..KEYS)) % KEYS;
                vec![self.key(first, now)?, self.owner_hold(now)?, self.key(second, now)?]
            }
            _ => {
                let number = self.rng.random_range(0..KEYS);
                vec![self.key(number, now)?]
            }
        })
    }

    fn tenant(&self) -> Result<TenantId, Failure> {
        Ok(TenantId::parse(&format!("tenant-{}", self.writer))?)
    }

    /// The author of a secret: any writer's.
    fn issuer(&mut self) -> Result<ActorId, Failure> {
        Ok(ActorId::parse(&format!("issuer-{}", self.rng.random_range(0..WRITERS)))?)
    }

    fn near(&mut self, now: UnixMillis) -> UnixMillis {
        UnixMillis(now.0 + self.rng.random_range(-TIME_SPREAD_MILLIS..TIME_SPREAD_MILLIS))
    }

    fn stamp(&mut self, time: UnixMillis) -> Result<AuditStamp, Failure> {
        Ok(AuditStamp { time, actor: self.issuer()? })
    }

    /// Suspended or not, with a time from which secrets are accepted or without.
    fn hold(&mut self, now: UnixMillis) -> Result<Hold, Failure> {
        Ok(Hold {
            suspended: self.rng.random_ratio(1, 3),
            reason: format!("reason {}", self.rng.random::<u32>()),
            reject_issued_before: if self.rng.random_ratio(1, 3) { Some(self.near(now)) } else { None },
            changed: Some(self.stamp(now)?),
        })
    }

    fn tenant_hold(&mut self, tenants: &[TenantId], now: UnixMillis) -> Result<Write, Failure> {
        let tenant = &tenants[self.rng.random_range(0..tenants.len())];
        let (hold, updated) = (self.hold(now)?, Some(self.stamp(now)?));
        match self.book.get(&Name::Tenant(tenant.to_string())) {
            Some(Stored::Tenant(there)) => Ok(Write::Tenant(TenantRecord { hold, updated, ..there.clone() })),
            other => Err(format!("the tenant {tenant} is {other:?}").into()),
        }
    }

    fn owner_hold(&mut self, now: UnixMillis) -> Result<Write, Failure> {
        let tenant = if self.rng.random() { self.tenant()? } else { TenantId::parse(SHARED)? };
        let owner = format!("owner-{}-{}", self.writer, self.rng.random_range(0..OWNERS));
        let there = self.book.get(&Name::Owner(tenant.to_string(), owner.clone()));
        let revision = there.map_or(Revision(0), Stored::revision);
        Ok(Write::Owner(OwnerRecord { tenant, owner, hold: self.hold(now)?, updated: self.stamp(now)?, revision }))
    }

    fn issuer_hold(&mut self, now: UnixMillis) -> Result<Write, Failure> {
        let actor = ActorId::parse(&format!("issuer-{}", self.writer))?;
        let revision = self.book.get(&Name::Issuer(actor.to_string())).map_or(Revision(0), Stored::revision);
        Ok(Write::Issuer(IssuerRecord { actor, hold: self.hold(now)?, updated: self.stamp(now)?, revision }))
    }

    fn key(&mut self, number: usize, now: UnixMillis) -> Result<Write, Failure> {
        let tenant = if number.is_multiple_of(2) { self.tenant()? } else { TenantId::parse(SHARED)? };
        let key_id = KeyId::parse(&format!("key-{}-{number}", self.writer))?;
        match self.book.get(&Name::key(&tenant, &key_id)).cloned() {
            Some(Stored::Key(there)) => self.change(*there, now),
            // Of a purged key too: that must be refused while its mark is there.
            _ => self.new_key(tenant, key_id, now),
        }
    }

    fn new_key(&mut self, tenant: TenantId, key_id: KeyId, now: UnixMillis) -> Result<Write, Failure> {
        let stamp = self.stamp(now)?;
        let secret = StoredSecret { digest: self.digest(), ..key_record(0).secret };
        let mut spec = KeySpec { display_name: format!("Key {key_id}"), owner: self.owner(), ..KeySpec::default() };
        spec.policy.scopes = vec![Scope::parse(&format!("orders.{}", self.rng.random_range(0..5)))?];
        spec.description = self.description();
        let (created, updated) = (stamp.clone(), stamp);
        Ok(Write::NewKey(Box::new(KeyRecord { key_id, tenant, secret, spec, created, updated, ..key_record(0) })))
    }

    fn digest(&mut self) -> Digest {
        Digest::from_bytes(self.rng.random())
    }

    /// Any writer's, or none.
    fn owner(&mut self) -> String {
        match self.rng.random_range(0..=WRITERS) {
            WRITERS => String::new(),
            writer => format!("owner-{writer}-{}", self.rng.random_range(0..OWNERS)),
        }
    }

    fn description(&mut self) -> String {
        "d".repeat(self.rng.random_range(0..DESCRIPTION_BYTES_MAX))
    }

    /// A change of a key that is there.
    fn change(&mut self, mut key: KeyRecord, now: UnixMillis) -> Result<Write, Failure> {
        let stamp = self.stamp(now)?;
        key.updated = stamp.clone();
        let reason = format!("reason {}", self.rng.random::<u32>());
        let kind = self.rng.random_range(0..20);
        match kind {
            0..6 => Ok(Write::RotatedKey(Box::new(self.rotated(key, &stamp)))),
            6..8 if key.previous.is_some() => {
                let secret = key.previous.take().map(|previous| previous.secret);
                key.retired = secret.map(|secret| RetiredSecret { secret, time: now });
                Ok(Write::RotatedKey(Box::new(key)))
            }
            8 | 9 => {
                key.deletion = match key.deletion {
                    Some(_) => None,
                    None => Some(Deletion { time: now, purge_time: UnixMillis(now.0 + TIME_SPREAD_MILLIS) }),
                };
                Ok(Write::Key(Box::new(key)))
            }
            10 => {
                let (tenant, key_id, revision) = (key.tenant, key.key_id, key.revision);
                Ok(Write::Purge(PurgeMark { tenant, key_id, digests: vec![], key_lives: false, time: now, revision }))
            }
            // What the domain forbids of a revoked or deleted key becomes another change.
            11 | 12 if key.transition(State::Disabled, &reason, &stamp).is_ok() => {
                key.resume_time = Some(self.near(now));
                Ok(Write::Key(Box::new(key)))
            }
            13 | 14 if key.transition(State::Disabled, &reason, &stamp).is_ok() => Ok(Write::Key(Box::new(key))),
            15 | 16 if key.transition(State::Active, &reason, &stamp).is_ok() => Ok(Write::Key(Box::new(key))),
            17 if self.rng.random_ratio(1, 4) && key.transition(State::Revoked, &reason, &stamp).is_ok() => {
                Ok(Write::Key(Box::new(key)))
            }
            _ => {
                key.spec.description = self.description();
                key.spec.owner = self.owner();
                Ok(Write::Key(Box::new(key)))
            }
        }
    }

    /// With another secret: at once, or with an overlap that ends, or that begins with the first use. What
    /// was the previous secret is retired, and what was retired is dropped.
    fn rotated(&mut self, key: KeyRecord, by: &AuditStamp) -> KeyRecord {
        let digest = self.digest();
        let secret =
            StoredSecret { version: key.secret.version + 1, digest, issued: Some(by.clone()), ..key.secret.clone() };
        let retire = |secret: StoredSecret| RetiredSecret { secret, time: by.time };
        if self.rng.random_ratio(1, 5) {
            return KeyRecord { previous: None, retired: Some(retire(key.secret)), secret, ..key };
        }
        let valid_until = if self.rng.random() { Some(self.near(by.time)) } else { None };
        let overlap_starts = if valid_until.is_some() { OverlapStart::AtIssue } else { OverlapStart::OnFirstUse };
        let retired = key.previous.map(|previous| retire(previous.secret)).or(key.retired);
        let previous = PreviousSecret { secret: key.secret, valid_until, overlap_ms: 60_000, overlap_starts };
        KeyRecord { secret, previous: Some(previous), retired, ..key }
    }
}
