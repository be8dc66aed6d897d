//! Lasting administrators. As long as there is one, another one can be made.

use crate::access::{AUDIENCE, Role};
use crate::clock::UnixMillis;
use crate::record::{KeyPolicy, KeyRecord, State};

/// The time from which a key is a lasting administrator: active in tenant `system`, with plain
/// `keyward.admin`, no `expire_time`, no networks, and no audience but Keyward. [`UnixMillis::MIN`] if it has
/// no `not_before`. `None`: it is not one.
#[must_use]
pub fn lasting_from(key: &KeyRecord) -> Option<UnixMillis> {
    // Without `..`, so that a new field does not compile until it is considered here.
    let KeyPolicy { environment: _, state, scopes, audiences, allowed_cidrs, not_before, expire_time } =
        &key.spec.policy;
    let administers = key.tenant.is_system() && scopes.iter().any(|scope| scope.as_str() == Role::Admin.scope());
    let from_everywhere = allowed_cidrs.is_empty() && audiences.iter().all(|audience| audience == AUDIENCE);
    let is_there = *state == State::Active && key.deletion.is_none();
    let lasts = is_there && expire_time.is_none() && administers && from_everywhere;
    lasts.then_some(not_before.unwrap_or(UnixMillis::MIN))
}
