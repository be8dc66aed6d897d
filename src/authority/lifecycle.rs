//! Disabling, enabling and revoking keys.

use keyward_core::access::{ChangeState, Grant};
use keyward_core::clock::UnixMillis;
use keyward_core::id::KeyId;
use keyward_core::limits::SUSPENSION_SECONDS_MAX;
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

    /// Disables a key until a time by the clock, from which on it works again by itself. A time that it was
    /// disabled until before is replaced, and so is a state without an end.
    ///
    /// # Errors
    /// When there is no such key, it is the caller's own, its etag is another one, it is revoked or deleted,
    /// or the time does not lie ahead, or too far.
    pub async fn suspend(
        &self,
        grant: &Grant<ChangeState>,
        key_id: &KeyId,
        until: UnixMillis,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        if grant.is_own_key(key_id) {
            return Err(AuthorityError::OwnKey);
        }
        // It may also be an earlier end than before, which gives power.
        let operation = Operation { method: "DisableKey", may_narrow: true, only_narrows: false };
        self.change(grant, operation, key_id, options, |key, stamp| {
            // By the clock alone, as what it gives back.
            check_resume_time(until, self.now().clock())?;
            Ok(key.suspend(until, reason, stamp)?)
        })
        .await
    }
}

fn check_resume_time(until: UnixMillis, clock: UnixMillis) -> Result<(), AuthorityError> {
    let rule = match until.0.saturating_sub(clock.0) {
        ..=0 => "must be in the future, by the server's clock",
        ahead if ahead > SUSPENSION_SECONDS_MAX * 1_000 => {
            "must be within 3,653 days (ten years); without it, the key stays disabled until it is enabled"
        }
        _ => return Ok(()),
    };
    Err(AuthorityError::bad_field("resume_time", rule))
}
