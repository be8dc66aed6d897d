//! Disabling, enabling and revoking keys.

use keyward_core::access::{ChangeState, Grant};
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, State};

use super::{Authority, AuthorityError, ChangeOptions, Changed, Operation};

impl Authority {
    /// Changes the state of a key. A key that has the state already is left as it is.
    ///
    /// # Errors
    /// When there is no such key, it is the caller's own, its etag is another one, or it is revoked and
    /// another state is asked for.
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
