//! Changing a key's fields.

use keyward_core::access::{Grant, Issue};
use keyward_core::id::KeyId;
use keyward_core::key_change::KeyChange;
use keyward_core::record::{Effect, KeyRecord};

use super::{
    Authority, AuthorityError, ChangeOptions, Changed, Operation, check_expiry, check_scopes, check_size, check_times,
};

impl Authority {
    /// Changes a key's fields.
    ///
    /// # Errors
    /// When there is no such key, its etag is another one, a field breaks its rule, a change would touch
    /// what the caller's own key may do or a fixed field of a revoked key, or too many updates of this key
    /// wait.
    pub async fn update_key(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        changes: &[KeyChange],
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        let own = grant.is_own_key(key_id);
        let urgent = changes.iter().any(KeyChange::may_narrow);
        let names = |is: fn(&KeyChange) -> bool| changes.iter().any(is);
        let _lock = self.key_locks.lock(grant.tenant(), key_id, (grant.actor(), urgent)).await?;
        let operation = Operation { method: "UpdateKey", may_narrow: urgent, only_narrows: false };
        self.change(grant, operation, key_id, options, |key, stamp| {
            let before = key.clone();
            for change in changes {
                change.clone().apply(&mut key.spec, &mut key.delete_protected);
            }
            if own && key.spec.policy != before.spec.policy {
                return Err(AuthorityError::OwnKey);
            }
            key.check_edit(&before)?;
            // Scopes that are stored already are not checked again.
            if names(|change| matches!(change, KeyChange::Scopes(_))) {
                check_scopes("key.", grant.tenant(), &key.spec.policy.scopes)?;
            }
            check_times("key.", &key.spec.policy)?;
            if names(|change| matches!(change, KeyChange::ExpireTime(_))) {
                check_expiry("key.", &key.spec.policy, stamp.time)?;
            }
            if *key == before {
                return Ok(Effect::Unchanged);
            }
            key.updated = stamp.clone();
            check_size(key)?;
            Ok(Effect::Changed)
        })
        .await
    }
}
