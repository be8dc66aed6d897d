//! Lasting administrators. As long as there is one, another one can be made.

use crate::access::{AUDIENCE, Role};
use crate::clock::UnixMillis;
use crate::holds::{Holding, Holds};
use crate::id::TenantId;
use crate::record::{AuditStamp, KeyPolicy, KeyRecord, State};

/// A key that is a lasting administrator, unless its tenant, its owner or the issuer of its secret is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingAdministrator {
    /// The time from which it is one: [`UnixMillis::MIN`] if it is active and has no `not_before`.
    pub from: UnixMillis,
    /// Its owner.
    owner: Box<str>,
    /// When its current secret was issued, and by whom.
    issued: AuditStamp,
    /// Of a rotation, when the secret before was issued and by whom, and its end if that is settled.
    previous: Option<(AuditStamp, Option<UnixMillis>)>,
}

impl LastingAdministrator {
    /// A key in tenant `system` that is active, or disabled until a time, with plain `keyward.admin`, no
    /// `expire_time`, no networks, and no audience but Keyward. `None`: it is not one.
    #[must_use]
    pub fn of(key: &KeyRecord) -> Option<Self> {
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
        works_from.filter(|_| lasts).map(|from| Self {
            from: from.max(not_before.unwrap_or(UnixMillis::MIN)),
            owner: key.spec.owner.as_str().into(),
            issued: key.issued(&key.secret).clone(),
            previous: key.previous.as_ref().map(|it| (key.issued(&it.secret).clone(), it.valid_until)),
        })
    }

    /// Whether a rotation is pending at a time: the secret before works too.
    #[must_use]
    pub fn is_rotating(&self, at: UnixMillis) -> bool {
        self.previous.as_ref().is_some_and(|(_, end)| end.is_none_or(|end| at < end))
    }

    /// Whether it is one at a time, under these holds. While a rotation is pending, neither secret may be
    /// held: nobody may have got the newer one.
    #[must_use]
    pub fn works(&self, holds: &Holds, at: UnixMillis) -> bool {
        let previous = self.previous.as_ref().filter(|_| self.is_rotating(at)).map(|(issued, _)| issued);
        let mut secrets = [Some(&self.issued), previous].into_iter().flatten();
        let is_free = |AuditStamp { time, actor }: &AuditStamp| {
            holds.of(&TenantId::system(), &self.owner, actor, *time) == Holding::default()
        };
        self.from <= at && secrets.all(is_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Deletion;
    use crate::scope::Scope;
    use crate::testing::key_record;

    #[test]
    fn a_suspended_administrator_lasts_from_its_resume_time_on_and_a_deleted_one_never() {
        let mut key = KeyRecord { tenant: TenantId::system(), ..key_record(1) };
        key.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
        let from = |key: &KeyRecord| LastingAdministrator::of(key).map(|it| it.from);
        assert_eq!(from(&key), Some(UnixMillis::MIN));
        key.spec.policy.state = State::Disabled;
        assert_eq!(from(&key), None);
        key.resume_time = Some(UnixMillis(50));
        assert_eq!(from(&key), Some(UnixMillis(50)));
        for (not_before, expected) in [(49, 50), (51, 51)] {
            key.spec.policy.not_before = Some(UnixMillis(not_before));
            assert_eq!(from(&key), Some(UnixMillis(expected)));
        }
        key.deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(90) });
        assert_eq!(from(&key), None);
    }
}
