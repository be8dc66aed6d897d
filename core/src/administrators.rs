//! Lasting administrators. As long as there is one, another one can be made.

use crate::access::{AUDIENCE, Role};
use crate::clock::UnixMillis;
use crate::holds::{Holding, Holds};
use crate::id::TenantId;
use crate::record::{AuditStamp, KeyPolicy, KeyRecord, State};

/// A key that is a lasting administrator, unless its tenant, its owner or the issuer of its secret is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastingAdministrator {
    /// The time from which it is one: [`UnixMillis::MIN`] if it has no `not_before`.
    pub from: UnixMillis,
    /// Its owner.
    owner: Box<str>,
    /// When its current secret was issued, and by whom. Older secrets do not last.
    issued: AuditStamp,
}

impl LastingAdministrator {
    /// A key that is active in tenant `system`, with plain `keyward.admin`, no `expire_time`, no networks,
    /// and no audience but Keyward. `None`: it is not one.
    #[must_use]
    pub fn of(key: &KeyRecord) -> Option<Self> {
        // Without `..`, so that a new field does not compile until it is considered here.
        let KeyPolicy { environment: _, state, scopes, audiences, allowed_cidrs, not_before, expire_time } =
            &key.spec.policy;
        let administers = key.tenant.is_system() && scopes.iter().any(|scope| scope.as_str() == Role::Admin.scope());
        let from_everywhere = allowed_cidrs.is_empty() && audiences.iter().all(|audience| audience == AUDIENCE);
        let is_there = *state == State::Active && key.deletion.is_none();
        let lasts = is_there && expire_time.is_none() && administers && from_everywhere;
        lasts.then(|| Self {
            from: not_before.unwrap_or(UnixMillis::MIN),
            owner: key.spec.owner.as_str().into(),
            issued: key.issued(&key.secret).clone(),
        })
    }

    /// Whether it is one at a time, under these holds.
    #[must_use]
    pub fn works(&self, holds: &Holds, at: UnixMillis) -> bool {
        let AuditStamp { time, actor } = &self.issued;
        self.from <= at && holds.of(&TenantId::system(), &self.owner, actor, *time) == Holding::default()
    }
}
