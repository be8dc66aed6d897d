//! Preconditions of writes, shared by the local engines: compare-and-set on record versions.

use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::{KeyRecord, TenantRecord};

use super::record::{encode_key, encode_tenant};
use super::{Commit, CommitError, RecordWrite, StoreError};

/// Reads the current records, including the writes of commits earlier in the same group.
pub(super) trait RecordReader {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError>;
    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError>;
    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;

    /// Checks the bounds on names for a key that is to be written at this revision over `before`.
    fn admit(&self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError>;

    /// Checks the bound on tenants for one more.
    fn admit_tenant(&self) -> Result<(), CommitError>;

    /// Whether a record is the current version of the key, with the same secret.
    fn is_current(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        let there = self.key(&key.tenant, &key.key_id)?;
        Ok(there.is_some_and(|there| there.revision == key.revision && there.secret.digest == key.secret.digest))
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
    let key = current.caller(authorization.key_id())?;
    Ok(authorization.check(key.as_deref(), commit.time)?)
}

/// A checked record and its bytes.
#[derive(Debug)]
pub(super) struct EncodedWrite {
    pub(super) record: Record,
    pub(super) bytes: Vec<u8>,
}

/// Checks one write against the current records, and sets the revision of its record. `narrows`: the commit
/// may only take power away.
pub(super) fn check_and_encode(
    put: RecordWrite,
    revision: Revision,
    narrows: bool,
    current: &impl RecordReader,
) -> Result<EncodedWrite, CommitError> {
    match put {
        RecordWrite::NewKey(mut key) => {
            if current.key(&key.tenant, &key.key_id)?.is_some() || current.has_digest(&key.secret.digest)? {
                return Err(CommitError::Exists);
            }
            current.admit(revision, None, &key)?;
            key.revision = revision;
            encoded_key(key)
        }
        RecordWrite::Key(mut key) => {
            if !current.is_current(&key)? {
                return Err(CommitError::Outdated);
            }
            // A narrowing is never refused because of a bound on names.
            if !narrows {
                let there = current.key(&key.tenant, &key.key_id)?;
                current.admit(revision, there.as_deref(), &key)?;
            }
            key.revision = revision;
            encoded_key(key)
        }
        RecordWrite::NewTenant(mut tenant) => {
            if current.tenant(&tenant.tenant)?.is_some() {
                return Err(CommitError::Exists);
            }
            current.admit_tenant()?;
            tenant.revision = revision;
            let bytes = encode_tenant(&tenant);
            Ok(EncodedWrite { record: Record::Tenant(Arc::from(tenant)), bytes })
        }
    }
}

fn encoded_key(key: Box<KeyRecord>) -> Result<EncodedWrite, CommitError> {
    let bytes = encode_key(&key);
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CommitError::TooLarge { bytes: bytes.len() });
    }
    Ok(EncodedWrite { record: Record::Key(Arc::from(key)), bytes })
}
