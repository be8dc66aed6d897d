//! Lasting administrators. While there is one, somebody can make another one.

use crate::access::{AUDIENCE, Role};
use crate::clock::UnixMillis;
use crate::record::{KeyPolicy, KeyRecord, State};

/// From when on a key is a lasting administrator: active in tenant `system`, without an end, with `keyward.admin` that
/// is not narrowed to a tenant, bound to no network and to no audience but Keyward. [`UnixMillis::MIN`]: it has no
/// `not_before`. `None`: it is none, or not for ever.
#[must_use]
pub fn lasting_from(key: &KeyRecord) -> Option<UnixMillis> {
    // Without `..`, so that a new field does not compile until it is judged.
    let KeyPolicy { environment: _, state, scopes, audiences, allowed_cidrs, not_before, expire_time } = &key.policy;
    let administers = key.tenant.is_system() && scopes.iter().any(|scope| scope.as_str() == Role::Admin.scope());
    let from_everywhere = allowed_cidrs.is_empty() && audiences.iter().all(|audience| audience == AUDIENCE);
    let lasts = *state == State::Active && expire_time.is_none() && administers && from_everywhere;
    lasts.then_some(not_before.unwrap_or(UnixMillis::MIN))
}
