//! Disabling, enabling and revoking.

use keyward_core::access::{ChangeState, Grant};
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, State};

use super::{Authority, AuthorityError, Call, Changed, Terms};

impl Authority {
    /// Moves a key to another state. A key that is there already is left as it is.
    ///
    /// # Errors
    /// When the key is missing, is the caller's own, has another version than the terms name, or is revoked
    /// and asked to be anything else.
    pub async fn change_state(
        &self,
        grant: &Grant<ChangeState>,
        key_id: &KeyId,
        to: State,
        reason: &str,
        terms: &Terms,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        if grant.is_own_key(key_id) {
            return Err(AuthorityError::OwnKey);
        }
        let (method, stops) = match to {
            State::Active => ("EnableKey", false),
            State::Disabled => ("DisableKey", true),
            State::Revoked => ("RevokeKey", true),
        };
        let call = Call { method, is_urgent: stops, stops };
        self.change(grant, call, key_id, terms, |key, stamp| Ok(key.transition(to, reason, stamp)?)).await
    }
}
