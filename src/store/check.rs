//! Preconditions of writes, shared by the local engines: compare-and-set on record versions.

use std::borrow::Cow;
use std::sync::Arc;

use keyward_core::access::{Authorization, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::holds::{Holder, Holds};
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, PurgeMark, TenantRecord};

use super::ordinals::Ordinals;
use super::record::{RecordKind, decode, encode, is_first_form};
use super::{Commit, CommitError, RecordWrite, StoreError};

/// Reads the current records, including the writes of commits earlier in the same group.
pub(super) trait RecordReader {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError>;
    /// Whether the id is of a key that was purged, and may not be used again yet.
    fn is_purged(&self, tenant: &TenantId, key_id: &KeyId) -> Result<bool, StoreError>;
    /// Whether a key has a secret with this digest, or had it and may still be remembered by it.
    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError>;
    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;
    fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError>;
    fn issuer(&self, actor: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError>;

    /// What tenants, owners and issuers are withheld.
    fn holds(&self) -> Cow<'_, Holds>;

    /// Numbers that no key of this log has had.
    fn ordinals(&self) -> &Ordinals;

    /// Checks the bounds on names for a key that is to be written at this revision over `before`.
    fn admit(&self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError>;

    /// Checks the bound on tenants for one more.
    fn admit_tenant(&self) -> Result<(), CommitError>;

    /// Checks the bound on owners for the first record of one.
    fn admit_owner(&self, tenant: &TenantId, owner: &str) -> Result<(), CommitError>;

    /// Checks the bound on records of issuers for one more.
    fn admit_issuer(&self) -> Result<(), CommitError>;

    /// Whether a record is the current version of the key, with the same current secret.
    fn is_current(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        let there = self.key(&key.tenant, &key.key_id)?;
        Ok(there.is_some_and(|there| there.revision == key.revision && there.secret.digest == key.secret.digest))
    }

    /// The key of a caller who was authorized for this change.
    fn authorized_caller(&self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.key(&TenantId::system(), key_id)
    }

    /// The key of a caller, in tenant `system`. The same few are read again and again.
    fn caller(&mut self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.key(&TenantId::system(), key_id)
    }
}

/// Checks that the caller is authorized at this point in the log: a key disabled since the call was admitted
/// makes no change.
pub(super) fn authorize(commit: &Commit, current: &mut impl RecordReader) -> Result<(), CommitError> {
    let Some(authorization) = &commit.authorization else { return Ok(()) };
    let key = match authorization.caller().key_id() {
        Some(key_id) => current.caller(key_id)?,
        None => None,
    };
    Ok(authorization.check(key.as_deref(), &current.holds(), commit.time)?)
}

/// Checks that a change of what tenants, owners and issuers are withheld, or of the caller's own key, leaves
/// that key working: nobody shuts themselves out by a slip. The caller is authorized before it.
pub(super) fn keep_caller<'a>(
    authorization: Option<&Authorization>,
    time: UnixMillis,
    written: impl Iterator<Item = &'a Record>,
    current: &impl RecordReader,
) -> Result<(), CommitError> {
    let Some(authorization) = authorization else { return Ok(()) };
    let Some(key_id) = authorization.caller().key_id() else { return Ok(()) };
    let own = |record: &Record| match record {
        Record::Key(key) => (key.tenant.is_system() && key.key_id == *key_id).then(|| Arc::clone(key)),
        _ => None,
    };
    let mut written = written.filter(|record| Holder::of(record).is_some() || own(record).is_some()).peekable();
    if written.peek().is_none() {
        return Ok(());
    }
    let mut key = current.authorized_caller(key_id)?;
    let mut holds = current.holds().into_owned();
    for record in written {
        holds.apply(record);
        key = own(record).or(key);
    }
    match authorization.check(key.as_deref(), &holds, time) {
        Err(Unauthorized::Key(_)) => Err(CommitError::OwnKey),
        _ => Ok(()),
    }
}

/// A checked record and its bytes.
#[derive(Debug)]
pub(super) struct EncodedWrite {
    pub(super) record: Record,
    pub(super) bytes: Vec<u8>,
}

/// Where and how a write is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteContext {
    /// The revision of its change.
    pub(super) revision: Revision,
    /// The time of its change.
    pub(super) time: UnixMillis,
    /// The commit may only take power away.
    pub(super) narrows: bool,
}

/// Checks one write against the current records, and sets the revision of its record. Passes the record to
/// `out`, and the purge mark that belongs to it, if there is one.
pub(super) fn check_and_encode(
    put: RecordWrite,
    at: WriteContext,
    current: &impl RecordReader,
    out: &mut Vec<EncodedWrite>,
) -> Result<(), CommitError> {
    let WriteContext { revision, time, narrows } = at;
    match put {
        RecordWrite::NewKey(mut key) => {
            let is_taken =
                current.key(&key.tenant, &key.key_id)?.is_some() || current.is_purged(&key.tenant, &key.key_id)?;
            if is_taken || has_any(current, key.digests())? {
                return Err(CommitError::Exists);
            }
            current.admit(revision, None, &key)?;
            key.ordinal = None;
            push_key(key, revision, current, out)?;
        }
        RecordWrite::Key(key) => {
            if !current.is_current(&key)? || !keeps_secrets(&key, current)? {
                return Err(CommitError::Outdated);
            }
            // A narrowing is never refused because of a bound on names.
            if !narrows {
                let there = current.key(&key.tenant, &key.key_id)?;
                current.admit(revision, there.as_deref(), &key)?;
            }
            push_key(key, revision, current, out)?;
        }
        RecordWrite::RotatedKey(key) => {
            let there = current.key(&key.tenant, &key.key_id)?.filter(|there| there.revision == key.revision);
            let there = there.ok_or(CommitError::Outdated)?;
            let added: Vec<_> = key.digests().filter(|digest| there.secret_use(digest).is_none()).collect();
            let is_repeated = |(at, digest): (usize, Digest)| key.digests().take(at).any(|before| before == digest);
            if has_any(current, added.into_iter())? || key.digests().enumerate().any(is_repeated) {
                return Err(CommitError::Exists);
            }
            if !narrows {
                current.admit(revision, Some(&there), &key)?;
            }
            let dropped: Vec<_> = there.digests().filter(|digest| key.secret_use(digest).is_none()).collect();
            push_key(key, revision, current, out)?;
            if !dropped.is_empty() {
                let (tenant, key_id) = (there.tenant.clone(), there.key_id.clone());
                let mark = PurgeMark { tenant, key_id, digests: dropped, key_lives: true, time, revision };
                push(Record::Purged(Arc::new(mark)), out)?;
            }
        }
        RecordWrite::Purge { tenant, key_id, revision: expected } => {
            let there = current.key(&tenant, &key_id)?.filter(|there| there.revision == expected);
            let digests = there.ok_or(CommitError::Outdated)?.digests().collect();
            let mark = PurgeMark { tenant, key_id, digests, key_lives: false, time, revision };
            push(Record::Purged(Arc::new(mark)), out)?;
        }
        RecordWrite::NewTenant(mut tenant) => {
            if current.tenant(&tenant.tenant)?.is_some() {
                return Err(CommitError::Exists);
            }
            current.admit_tenant()?;
            tenant.revision = revision;
            push(Record::Tenant(Arc::from(tenant)), out)?;
        }
        RecordWrite::Tenant(mut tenant) => {
            let there = current.tenant(&tenant.tenant)?;
            expect(there.map(|there| there.revision), tenant.revision)?;
            tenant.revision = revision;
            push(Record::Tenant(Arc::from(tenant)), out)?;
        }
        RecordWrite::Owner(mut owner) => {
            let there = current.owner(&owner.tenant, &owner.owner)?;
            if there.is_none() {
                current.admit_owner(&owner.tenant, &owner.owner)?;
            }
            expect(there.map(|there| there.revision).or(Some(Revision(0))), owner.revision)?;
            owner.revision = revision;
            push(Record::Owner(Arc::from(owner)), out)?;
        }
        RecordWrite::Issuer(mut issuer) => {
            let there = current.issuer(&issuer.actor)?;
            if there.is_none() {
                current.admit_issuer()?;
            }
            expect(there.map(|there| there.revision).or(Some(Revision(0))), issuer.revision)?;
            issuer.revision = revision;
            push(Record::Issuer(Arc::from(issuer)), out)?;
        }
    }
    Ok(())
}

/// Whether all secrets of a key are those that it has. A key that was never rotated has but one.
fn keeps_secrets(key: &KeyRecord, current: &impl RecordReader) -> Result<bool, StoreError> {
    if key.secret.version <= 1 && key.previous.is_none() && key.retired.is_none() {
        return Ok(true);
    }
    let there = current.key(&key.tenant, &key.key_id)?;
    Ok(there.is_some_and(|there| there.digests().eq(key.digests())))
}

fn has_any(current: &impl RecordReader, digests: impl Iterator<Item = Digest>) -> Result<bool, StoreError> {
    for digest in digests {
        if current.has_digest(&digest)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn expect(there: Option<Revision>, expected: Revision) -> Result<(), CommitError> {
    if there == Some(expected) { Ok(()) } else { Err(CommitError::Outdated) }
}

fn push_key(
    mut key: Box<KeyRecord>,
    revision: Revision,
    current: &impl RecordReader,
    out: &mut Vec<EncodedWrite>,
) -> Result<(), CommitError> {
    key.revision = revision;
    key.ordinal = key.ordinal.or_else(|| current.ordinals().take());
    push(Record::Key(Arc::from(key)), out)
}

fn push(record: Record, out: &mut Vec<EncodedWrite>) -> Result<(), CommitError> {
    let bytes = encode(&record);
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CommitError::TooLarge { bytes: bytes.len() });
    }
    // A time of 0 is none where a time is optional, and an empty name is none: what would be read as another
    // record must not be acknowledged. The calls that make records of version 1 check their fields
    // themselves.
    if !is_first_form(&bytes) && !decode(RecordKind::of(&record), &bytes).is_ok_and(|read| read == record) {
        return Err(CommitError::Unstorable);
    }
    out.push(EncodedWrite { record, bytes });
    Ok(())
}
