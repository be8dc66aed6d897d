//! Deleting keys, and giving deleted ones back.

use keyward_core::access::{ChangeState, Grant};
use keyward_core::clock::UnixMillis;
use keyward_core::id::KeyId;
use keyward_core::record::KeyRecord;

use super::{Authority, AuthorityError, ChangeOptions, Changed, Operation};

impl Authority {
    /// Deletes a key, to be purged `kept_ms` milliseconds later ([`super::Sweeper`]). One that is deleted
    /// already is left as it is.
    ///
    /// # Errors
    /// When there is no such key, it is the caller's own or protected, its etag is another one, or no lasting
    /// administrator would be left.
    pub async fn delete_key(
        &self,
        grant: &Grant<ChangeState>,
        key_id: &KeyId,
        kept_ms: u64,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        if grant.is_own_key(key_id) {
            return Err(AuthorityError::OwnKey);
        }
        let operation = Operation { method: "DeleteKey", may_narrow: true, only_narrows: true };
        self.change(grant, operation, key_id, options, |key, stamp| {
            if key.delete_protected && key.deletion.is_none() {
                return Err(AuthorityError::DeleteProtected);
            }
            let purge_time = UnixMillis(stamp.time.0.saturating_add_unsigned(kept_ms));
            Ok(key.delete(purge_time, reason, stamp))
        })
        .await
    }

    /// Gives a deleted key back: disabled, or revoked if it was. One that is not deleted is left as it is.
    ///
    /// # Errors
    /// When there is no such key (any more), or its etag is another one.
    pub async fn undelete_key(
        &self,
        grant: &Grant<ChangeState>,
        key_id: &KeyId,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        let operation = Operation { method: "UndeleteKey", may_narrow: false, only_narrows: false };
        self.change(grant, operation, key_id, options, |key, stamp| Ok(key.undelete(reason, stamp))).await
    }
}
