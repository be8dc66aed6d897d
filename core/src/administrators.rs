//! Lasting administrators. As long as there is one, another one can be made.

use crate::access::{AUDIENCE, Role};
use crate::clock::UnixMillis;
use crate::record::{KeyPolicy, KeyRecord, State};

/// The time from which a key is a lasting administrator: active in tenant `system`, with plain
/// `keyward.admin`, no `expire_time`, no networks, and no audience but Keyward. [`UnixMillis::MIN`] if it has
/// no `not_before`. One that is disabled until a time is one from then on. `None`: it is not one.
#[must_use]
pub fn lasting_from(key: &KeyRecord) -> Option<UnixMillis> {
    // Without `..`, so that a new field does not compile until it is considered here.
    let KeyPolicy { environment: _, state, scopes, audiences, allowed_cidrs, not_before, expire_time } =
        &key.spec.policy;
    let administers = key.tenant.is_system() && scopes.iter().any(|scope| scope.as_str() == Role::Admin.scope());
    let from_everywhere = allowed_cidrs.is_empty() && audiences.iter().all(|audience| audience == AUDIENCE);
    let works_from = match state {
        _ if key.deletion.is_some() => None,
        State::Active => Some(UnixMillis::MIN),
        State::Disabled => key.resume_time,
        State::Revoked => None,
    };
    let lasts = expire_time.is_none() && administers && from_everywhere;
    works_from.filter(|_| lasts).map(|from| from.max(not_before.unwrap_or(UnixMillis::MIN)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::TenantId;
    use crate::record::Deletion;
    use crate::scope::Scope;
    use crate::testing::key_record;

    #[test]
    fn a_suspended_administrator_lasts_from_its_resume_time_on_and_a_deleted_one_never() {
        let mut key = KeyRecord { tenant: TenantId::system(), ..key_record(1) };
        key.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
        assert_eq!(lasting_from(&key), Some(UnixMillis::MIN));
        key.spec.policy.state = State::Disabled;
        assert_eq!(lasting_from(&key), None);
        key.resume_time = Some(UnixMillis(50));
        assert_eq!(lasting_from(&key), Some(UnixMillis(50)));
        for (not_before, expected) in [(49, 50), (51, 51)] {
            key.spec.policy.not_before = Some(UnixMillis(not_before));
            assert_eq!(lasting_from(&key), Some(UnixMillis(expected)));
        }
        key.deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(90) });
        assert_eq!(lasting_from(&key), None);
    }
}
