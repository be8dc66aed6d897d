//! Disabling, enabling and revoking.

use keyward_core::access::{ChangeState, Grant};
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, State};

use super::{Authority, AuthorityError, ChangeOptions, Changed, Operation};

impl Authority {
    /// Moves a key to another state. A key that is there already is left as it is.
    ///
    /// # Errors
    /// When the key is missing, is the caller's own, has another version than the options name, or is revoked
    /// and asked to be anything else.
    pub async fn change_state(
        &self,
        grant: &Grant<ChangeState>,
        key_id: &KeyId,
        to: State,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        if grant.is_own_key(key_id) {
            return Err(AuthorityError::OwnKey);
        }
        let (method, only_narrows) = match to {
            State::Active => ("EnableKey", false),
            State::Disabled => ("DisableKey", true),
            State::Revoked => ("RevokeKey", true),
        };
        let operation = Operation { method, may_narrow: only_narrows, only_narrows };
        self.change(grant, operation, key_id, options, |key, stamp| Ok(key.transition(to, reason, stamp)?)).await
    }
}
