//! Compare-and-set, the same for every local engine: may this record be written over what is there?

use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::{KeyRecord, TenantRecord};

use super::record::{encode_key, encode_tenant};
use super::{Commit, CommitError, RecordWrite, StoreError};

/// What is there, including what the same group of commits has already put there.
pub(super) trait RecordReader {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError>;
    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError>;
    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError>;

    /// Holds a key that is to be written, at this revision and over this form of it, against the bounds on names.
    fn admit(&self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError>;

    /// Holds one tenant more against their bound.
    fn admit_tenant(&self) -> Result<(), CommitError>;

    /// Whether a record is of the key's current version, and of the same secret.
    fn is_current(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        let there = self.key(&key.tenant, &key.key_id)?;
        Ok(there.is_some_and(|there| there.revision == key.revision && there.secret.digest == key.secret.digest))
    }

    /// A key of tenant `system`, by which changes are authorized: the same few again and again.
    fn caller(&mut self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.key(&TenantId::system(), key_id)
    }
}

/// Checks that the caller may make the change at this very place in the log: a key that was disabled since the call was
/// admitted makes none.
pub(super) fn authorize(commit: &Commit, current: &mut impl RecordReader) -> Result<(), CommitError> {
    let Some(authorization) = &commit.authorization else { return Ok(()) };
    let key = current.caller(authorization.key_id())?;
    Ok(authorization.check(key.as_deref(), commit.time)?)
}

/// A record that may be written, and its bytes.
#[derive(Debug)]
pub(super) struct EncodedWrite {
    pub(super) record: Record,
    pub(super) bytes: Vec<u8>,
}

/// Checks one put against what is there, and gives its record the revision of the commit, which may take power away.
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
            // What takes power away is never refused for want of a name.
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
