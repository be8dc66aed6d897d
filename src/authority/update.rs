//! Changing a key's fields.

use std::collections::BTreeMap;

use ipnet::IpNet;
use keyward_core::access::{Grant, Issue};
use keyward_core::clock::UnixMillis;
use keyward_core::id::KeyId;
use keyward_core::record::{Effect, KeyRecord};
use keyward_core::scope::Scope;

use super::{
    Authority, AuthorityError, ChangeOptions, Changed, Operation, check_expiry, check_scopes, check_size, check_times,
};

/// New values for some fields of a key; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyPatch {
    /// A name for people.
    pub display_name: Option<String>,
    /// A longer note.
    pub description: Option<String>,
    /// The holder of the key.
    pub owner: Option<String>,
    /// The scopes that it grants.
    pub scopes: Option<Vec<Scope>>,
    /// The services that accept it.
    pub audiences: Option<Vec<String>>,
    /// The networks that end clients must be in.
    pub allowed_cidrs: Option<Vec<IpNet>>,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations.
    pub annotations: Option<BTreeMap<String, String>>,
    /// It does not work before this time; `Some(None)` clears it.
    pub not_before: Option<Option<UnixMillis>>,
    /// It does not work from this time on; `Some(None)` clears it.
    pub expire_time: Option<Option<UnixMillis>>,
}

impl Authority {
    /// Changes a key's fields.
    ///
    /// # Errors
    /// When there is no such key, its etag is another one, a field breaks its rule, the patch would change
    /// what the caller's own key may do or a fixed field of a revoked key, or too many updates of this key
    /// wait.
    pub async fn update_key(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        patch: &KeyPatch,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        let own = grant.is_own_key(key_id);
        let urgent = patch.may_narrow();
        let _lock = self.key_locks.lock(grant.tenant(), key_id, (grant.actor(), urgent)).await?;
        let operation = Operation { method: "UpdateKey", may_narrow: urgent, only_narrows: false };
        self.change(grant, operation, key_id, options, |key, stamp| {
            let before = key.clone();
            patch.apply(key);
            if own && key.policy != before.policy {
                return Err(AuthorityError::OwnKey);
            }
            key.check_edit(&before)?;
            // Scopes that are stored already are not checked again.
            if let Some(scopes) = &patch.scopes {
                check_scopes("key.", grant.tenant(), scopes)?;
            }
            check_times("key.", &key.policy)?;
            if patch.expire_time.is_some() {
                check_expiry("key.", &key.policy, stamp.time)?;
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

impl KeyPatch {
    /// Whether it changes what verdicts depend on. Only the record shows whether that takes power away.
    fn may_narrow(&self) -> bool {
        // Without `..`, so that a new field does not compile until it is decided.
        let Self {
            scopes,
            audiences,
            allowed_cidrs,
            not_before,
            expire_time,
            display_name: _,
            description: _,
            owner: _,
            labels: _,
            annotations: _,
        } = self;
        let lists = audiences.is_some() || allowed_cidrs.is_some();
        scopes.is_some() || lists || not_before.is_some() || expire_time.is_some()
    }

    fn apply(&self, key: &mut KeyRecord) {
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(value) = value {
                field.clone_from(value);
            }
        }
        // Without `..`, so that a new field does not compile until it is applied.
        let Self {
            display_name,
            description,
            owner,
            scopes,
            audiences,
            allowed_cidrs,
            labels,
            annotations,
            not_before,
            expire_time,
        } = self;
        set(&mut key.display_name, display_name);
        set(&mut key.description, description);
        set(&mut key.owner, owner);
        set(&mut key.policy.scopes, scopes);
        set(&mut key.policy.audiences, audiences);
        set(&mut key.policy.allowed_cidrs, allowed_cidrs);
        set(&mut key.labels, labels);
        set(&mut key.annotations, annotations);
        set(&mut key.policy.not_before, not_before);
        set(&mut key.policy.expire_time, expire_time);
    }
}
