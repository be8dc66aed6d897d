//! Authorization of callers: roles, the actions that they allow, and grants.
//!
//! Roles are the scopes of keys in the reserved tenant `system`. A role is plain (`keyward.issuer`) or
//! narrowed to one tenant (`keyward.issuer@acme`).
//!
//! Write access to `system` would suffice to make an administrator. So of the plain roles only
//! `keyward.admin` applies there, and roles narrowed to it can only read ([`RoleScope::parse`]).

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;

use crate::clock::{Now, UnixMillis};
use crate::decision::{AccessRequest, DenyReason, Policy, decide};
use crate::digest::Digest;
use crate::enumerate;
use crate::holds::{Holding, Holds};
use crate::id::{ActorId, InvalidName, KeyId, TenantId};
use crate::identity::{Assignment, Identities, IdentityName, PeerIdentity};
use crate::record::{KeyRecord, State};
use crate::scope::Scope;

/// The audience that stands for Keyward itself.
pub const AUDIENCE: &str = "keyward";

const ROLE_RULE: InvalidName = InvalidName(
    "in tenant 'system' a scope must be a role: keyward.admin, .operator, .issuer, .viewer, .auditor, .backup or .verifier, \
     plain or, save .backup, narrowed to a tenant as in keyward.issuer@acme; narrowed to 'system', only .viewer, .auditor or \
     .verifier",
);

const ROLE_ELSEWHERE_RULE: InvalidName = InvalidName(
    "must not begin with 'keyward.' outside tenant 'system': such scopes are roles of Keyward's own callers, and give nothing here; \
     if the key is for a caller of Keyward, create it in tenant 'system'",
);

/// Checks that a key of a tenant may have a scope: in `system` it must be a role, elsewhere it must not be
/// one.
///
/// # Errors
/// With the rule that the scope breaks.
pub fn check_scope(tenant: &TenantId, scope: &Scope) -> Result<(), InvalidName> {
    if tenant.is_system() {
        return RoleScope::parse(scope).map(drop);
    }
    if scope.as_str().starts_with("keyward.") { Err(ROLE_ELSEWHERE_RULE) } else { Ok(()) }
}

enumerate! {
    /// What a caller may do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Role {
        /// Everything.
        Admin,
        /// Changes the state of keys.
        Operator,
        /// Creates and updates keys.
        Issuer,
        /// Reads keys and tenants.
        Viewer,
        /// Reads keys and tenants, and the head of the log if the role is plain.
        Auditor,
        /// Makes backups of all tenants, and nothing else. It is never narrowed.
        Backup,
        /// Verifies secrets, and nothing else.
        Verifier,
    }
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Reads keys and tenants.
    Read,
    /// Creates or updates keys.
    Issue,
    /// Changes the state of keys.
    ChangeState,
    /// Creates and updates tenants.
    ManageTenants,
    /// Reads everything of all tenants, digests included.
    Backup,
    /// Reads the head of the log.
    ReadHead,
    /// Sets the filter of the server's log.
    SetLogFilter,
    /// Verifies a secret.
    Verify,
}

impl Role {
    /// The role as a scope.
    #[must_use]
    pub fn scope(self) -> &'static str {
        match self {
            Self::Admin => "keyward.admin",
            Self::Operator => "keyward.operator",
            Self::Issuer => "keyward.issuer",
            Self::Viewer => "keyward.viewer",
            Self::Auditor => "keyward.auditor",
            Self::Backup => "keyward.backup",
            Self::Verifier => "keyward.verifier",
        }
    }

    /// Whether the role allows the action.
    #[must_use]
    pub fn allows(self, action: Action) -> bool {
        match (self, action) {
            (Self::Admin, _)
            | (Self::Operator | Self::Issuer | Self::Viewer | Self::Auditor, Action::Read)
            | (Self::Operator, Action::ChangeState)
            | (Self::Issuer, Action::Issue)
            | (Self::Auditor, Action::ReadHead)
            | (Self::Backup, Action::Backup)
            | (Self::Verifier, Action::Verify) => true,
            (Self::Backup, _)
            | (_, Action::ManageTenants | Action::Backup | Action::SetLogFilter)
            | (Self::Operator, Action::Issue | Action::ReadHead | Action::Verify)
            | (Self::Issuer, Action::ChangeState | Action::ReadHead | Action::Verify)
            | (Self::Viewer, Action::Issue | Action::ChangeState | Action::ReadHead | Action::Verify)
            | (Self::Auditor, Action::Issue | Action::ChangeState | Action::Verify)
            | (Self::Verifier, Action::Read | Action::Issue | Action::ChangeState | Action::ReadHead) => false,
        }
    }
}

/// A role, and the tenant that it is narrowed to, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleScope {
    role: Role,
    tenant: Option<TenantId>,
}

impl RoleScope {
    /// Reads a scope as a role.
    ///
    /// # Errors
    /// When the scope is not a role, would let its holder write in tenant `system` without being a plain
    /// admin, or narrows a role that cannot be narrowed.
    pub fn parse(scope: &Scope) -> Result<Self, InvalidName> {
        let (name, tenant) = match scope.as_str().split_once('@') {
            Some((name, tenant)) => (name, Some(TenantId::parse(tenant).map_err(|_| ROLE_RULE)?)),
            None => (scope.as_str(), None),
        };
        let role = Role::ALL.into_iter().find(|role| role.scope() == name).ok_or(ROLE_RULE)?;
        let reads = matches!(role, Role::Viewer | Role::Auditor | Role::Verifier);
        let is_global = role == Role::Backup;
        if tenant.as_ref().is_some_and(|tenant| is_global || tenant.is_system() && !reads) {
            return Err(ROLE_RULE);
        }
        Ok(Self { role, tenant })
    }

    /// The role as a scope, such as `keyward.issuer@acme`.
    #[must_use]
    pub fn to_scope(&self) -> String {
        let role = self.role.scope();
        self.tenant.as_ref().map_or_else(|| role.to_owned(), |tenant| format!("{role}@{tenant}"))
    }

    fn applies_to(&self, tenant: &TenantId) -> bool {
        match &self.tenant {
            Some(own) => own == tenant,
            None => self.role == Role::Admin || !tenant.is_system(),
        }
    }
}

/// What a caller was authenticated by, so that it can be checked again.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What the roles come from.
    pub credential: Credential,
    /// The caller's address; `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    /// What the connection proves, if anything.
    pub connection: Option<Arc<PeerIdentity>>,
}

/// What the roles of a caller come from.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A key of tenant `system`. If the connection proves something too, the key decides.
    Key {
        /// The key.
        key_id: KeyId,
        /// The digest of the secret that was presented.
        digest: Digest,
    },
    /// The identity that the connection proves.
    Connection {
        /// Its name.
        name: IdentityName,
        /// What the configuration gives to identities.
        identities: Arc<Identities>,
    },
}

impl Identity {
    /// That of a key, on a connection that proves nothing.
    #[must_use]
    pub fn of_key(key_id: KeyId, digest: Digest, peer: Option<IpAddr>) -> Self {
        Self { credential: Credential::Key { key_id, digest }, peer, connection: None }
    }

    /// The caller, as the log names them.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        match &self.credential {
            Credential::Key { key_id, .. } => ActorId::from(key_id),
            Credential::Connection { name, .. } => name.actor().clone(),
        }
    }

    /// The caller's key, in tenant `system`.
    #[must_use]
    pub fn key_id(&self) -> Option<&KeyId> {
        match &self.credential {
            Credential::Key { key_id, .. } => Some(key_id),
            Credential::Connection { .. } => None,
        }
    }

    /// What the connection of a caller with a key proves besides.
    #[must_use]
    pub fn proven_besides(&self) -> Option<&IdentityName> {
        self.connection.as_deref().and_then(PeerIdentity::name).filter(|_| self.key_id().is_some())
    }

    /// A number by which callers are told apart. No caller can choose it.
    #[must_use]
    pub fn number(&self) -> u64 {
        let of = |digest: &[u8; 32]| digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match &self.credential {
            // A part of a keyed digest.
            Credential::Key { digest, .. } => of(digest.as_bytes()),
            Credential::Connection { name, .. } => of(blake3::hash(name.as_str().as_bytes()).as_bytes()),
        }
    }

    /// Whether what the connection proves still holds. A connection that proves nothing has nothing to lose.
    #[must_use]
    pub fn connection_is_good(&self, now: Now) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.is_good(now))
    }
}

/// Checks that a caller's key works for Keyward itself, now and from this address.
///
/// # Errors
/// With the reason of the first check that fails.
pub fn check_caller(key: &impl Policy, peer: Option<IpAddr>, now: Now) -> Result<(), DenyReason> {
    decide(key, &AccessRequest { audience: Some(AUDIENCE), client_ip: peer, ..AccessRequest::default() }, now)
}

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Caller {
    identity: Identity,
    roles: Vec<RoleScope>,
    audience: Option<String>,
}

/// Why a caller is denied an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The caller has no role for the action here, but may know that the tenant exists.
    #[error("the caller holds no role for this")]
    Role,
    /// The caller has no role in the tenant at all: it must be answered as if the tenant did not exist.
    #[error("the tenant is not visible to the caller")]
    NotVisible,
}

impl Caller {
    /// The caller that holds a key of tenant `system`. Scopes that are not roles give nothing.
    #[must_use]
    pub fn new<'a>(identity: Identity, scopes: impl IntoIterator<Item = &'a Scope>) -> Self {
        Self { identity, roles: roles(scopes), audience: None }
    }

    /// The caller without a key, who has the roles of their connection's identity.
    #[must_use]
    pub fn assigned(identity: Identity, assignment: &Assignment) -> Self {
        Self { identity, roles: assignment.roles.clone(), audience: None }.with_audience(Some(assignment))
    }

    /// The same with the audience that the identity of their connection has.
    #[must_use]
    pub fn with_audience(self, assignment: Option<&Assignment>) -> Self {
        Self { audience: assignment.and_then(|assignment| assignment.audience.clone()), ..self }
    }

    /// The audience of every verdict that they ask for. `None`: the one in the request.
    #[must_use]
    pub fn audience(&self) -> Option<&str> {
        self.audience.as_deref()
    }

    /// What the caller was authenticated by.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the caller may do this in any tenant.
    #[must_use]
    pub fn may_in_any_tenant(&self, action: Action) -> bool {
        self.roles.iter().any(|r| r.role.allows(action))
    }

    /// Whether the caller may do this in a tenant.
    #[must_use]
    pub fn may(&self, action: Action, tenant: &TenantId) -> bool {
        allows(&self.roles, action, tenant)
    }

    /// A grant to do `A` to what belongs to all tenants, such as the log.
    ///
    /// # Errors
    /// When no plain role of the caller allows it.
    pub fn grant_all_tenants<A: Act>(&self) -> Result<Grant<A>, Denied> {
        if self.roles.iter().any(|r| r.role.allows(A::ACTION) && r.tenant.is_none()) {
            // Any tenant would do: such an action is on none of them.
            Ok(Grant { caller: self.identity.clone(), tenant: TenantId::system(), act: PhantomData })
        } else {
            Err(Denied::Role)
        }
    }

    /// The tenants that the caller's roles for an action are narrowed to, in order. `None`: one of the roles
    /// is plain, and applies to all tenants but `system`.
    #[must_use]
    pub fn narrowed_to(&self, action: Action) -> Option<BTreeSet<TenantId>> {
        self.roles.iter().filter(|r| r.role.allows(action)).map(|r| r.tenant.clone()).collect()
    }

    /// The tenant of a request that names none: the only one that the caller's roles are narrowed to, or
    /// `default`.
    #[must_use]
    pub fn tenant_by_default(&self) -> TenantId {
        let mut tenants = self.roles.iter().map(|r| r.tenant.as_ref());
        match tenants.next().flatten() {
            Some(only) if tenants.all(|t| t == Some(only)) => only.clone(),
            _ => TenantId::default_tenant(),
        }
    }

    /// A grant to do `A` in a tenant.
    ///
    /// # Errors
    /// When no role of the caller allows it there.
    pub fn grant<A: Act>(&self, tenant: TenantId) -> Result<Grant<A>, Denied> {
        let visible = self.roles.iter().any(|r| r.applies_to(&tenant));
        if self.may(A::ACTION, &tenant) {
            Ok(Grant { caller: self.identity.clone(), tenant, act: PhantomData })
        } else if visible || !self.may_in_any_tenant(A::ACTION) {
            Err(Denied::Role)
        } else {
            Err(Denied::NotVisible)
        }
    }
}

/// The roles among the scopes of a key of tenant `system`.
fn roles<'a>(scopes: impl IntoIterator<Item = &'a Scope>) -> Vec<RoleScope> {
    scopes.into_iter().filter_map(|s| RoleScope::parse(s).ok()).collect()
}

fn allows(roles: &[RoleScope], action: Action, tenant: &TenantId) -> bool {
    roles.iter().any(|r| r.role.allows(action) && r.applies_to(tenant))
}

/// Permission to do `A` in one tenant, as a value. Only a [`Caller`] makes one, and what needs permission
/// takes it as an argument, so a forgotten check does not compile.
#[derive(Debug)]
pub struct Grant<A> {
    caller: Identity,
    tenant: TenantId,
    act: PhantomData<A>,
}

impl<A> Grant<A> {
    /// The tenant that it is for.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The caller, as the log names it.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        self.caller.actor()
    }

    /// Whether this is the key that the caller calls with.
    #[must_use]
    pub fn is_own_key(&self, key_id: &KeyId) -> bool {
        self.own_secret(key_id).is_some()
    }

    /// The digest of the secret that the caller calls with, if this is their own key.
    #[must_use]
    pub fn own_secret(&self, key_id: &KeyId) -> Option<&Digest> {
        match &self.caller.credential {
            Credential::Key { key_id: own, digest } if self.tenant.is_system() && own == key_id => Some(digest),
            _ => None,
        }
    }
}

impl<A: Act> Grant<A> {
    /// The permission as a condition of a change, to be checked again when the change is made. `clock` is the
    /// time by the clock.
    #[must_use]
    pub fn authorization(&self, clock: UnixMillis) -> Authorization {
        let (caller, tenant) = (self.caller.clone(), self.tenant.clone());
        Authorization { caller, action: A::ACTION, tenant, clock, leaves: None }
    }
}

/// Who asks for a change, and the permission that it needs. It is checked again when the change is made,
/// because a grant may be outdated once the change has waited in the queue.
#[derive(Clone, Debug)]
pub struct Authorization {
    caller: Identity,
    action: Action,
    tenant: TenantId,
    clock: UnixMillis,
    leaves: Option<Leaving>,
}

/// A key goes from an owner to another one.
#[derive(Clone, Debug)]
struct Leaving {
    owner: Box<str>,
    /// When the oldest of its secrets that works was issued.
    issue_time: UnixMillis,
}

/// Why a caller may not make a change any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthorized {
    /// The caller's key does not work.
    #[error("the caller's key is refused: {0:?}")]
    Key(DenyReason),
    /// What the caller's connection proves does not hold any more, or the configuration does not name it.
    #[error("the identity of the caller's connection is refused")]
    Identity,
    /// The caller has no role for the change.
    #[error("the caller holds no role for this")]
    Role,
    /// The change takes a key from an owner that is suspended or refuses its secret, and the caller has no
    /// role to change states.
    #[error("the caller holds no role to take a key from an owner that is held")]
    HeldOwner,
}

impl Authorization {
    /// The same for a change that gives `key` another owner. If the owner that it has now is suspended, or
    /// refuses a secret of the key by its epoch, such a change lets the key work again: it takes
    /// [`Action::ChangeState`] besides.
    #[must_use]
    pub fn leaving_owner_of(self, key: &KeyRecord) -> Self {
        let previous = key.previous.as_ref().map(|previous| key.issued(&previous.secret).time);
        let current = key.issued(&key.secret).time;
        let issue_time = previous.map_or(current, |previous| previous.min(current));
        Self { leaves: Some(Leaving { owner: key.spec.owner.as_str().into(), issue_time }), ..self }
    }

    /// Who asks.
    #[must_use]
    pub fn caller(&self) -> &Identity {
        &self.caller
    }

    /// The time by the clock when the change was asked for.
    #[must_use]
    pub fn clock(&self) -> UnixMillis {
        self.clock
    }

    /// Checks that the caller's key as it is now, or the identity of their connection, still allows this.
    /// `latest` is the time of the change, which is not before that of any change so far.
    ///
    /// # Errors
    /// When there is no such key, it does not work, the identity does not hold any more, or the role is gone.
    pub fn check(&self, key: Option<&KeyRecord>, holds: &Holds, latest: UnixMillis) -> Result<(), Unauthorized> {
        let now = Now::new(self.clock, latest);
        if !self.caller.connection_is_good(now) {
            return Err(Unauthorized::Identity);
        }
        let roles = match &self.caller.credential {
            Credential::Key { digest, .. } => {
                // A deleted key is as one that never was, whichever of its secrets it is.
                let is_hidden = |key: &KeyRecord| key.deletion.is_some() && key.spec.policy.state != State::Revoked;
                let key = key.filter(|key| key.tenant.is_system() && !is_hidden(key));
                let found = key.and_then(|key| Some((key, key.policy_of(digest, holds)?)));
                let (key, policy) = found.ok_or(Unauthorized::Key(DenyReason::Unknown))?;
                check_caller(&policy, self.caller.peer, now).map_err(Unauthorized::Key)?;
                roles(&key.spec.policy.scopes)
            }
            Credential::Connection { name, identities } => {
                identities.of(name).ok_or(Unauthorized::Identity)?.roles.clone()
            }
        };
        if !allows(&roles, self.action, &self.tenant) {
            return Err(Unauthorized::Role);
        }
        let leaves_held = self.leaves.as_ref().is_some_and(|Leaving { owner, issue_time }| {
            holds.of_owner(&self.tenant, owner, *issue_time) != Holding::default()
        });
        if leaves_held && !allows(&roles, Action::ChangeState, &self.tenant) {
            return Err(Unauthorized::HeldOwner);
        }
        Ok(())
    }
}

/// An action as a type.
pub trait Act {
    /// The action.
    const ACTION: Action;
}

/// [`Action::Read`] as a type.
#[derive(Debug)]
pub struct Read;
impl Act for Read {
    const ACTION: Action = Action::Read;
}

/// [`Action::Issue`] as a type.
#[derive(Debug)]
pub struct Issue;
impl Act for Issue {
    const ACTION: Action = Action::Issue;
}

/// [`Action::ChangeState`] as a type.
#[derive(Debug)]
pub struct ChangeState;
impl Act for ChangeState {
    const ACTION: Action = Action::ChangeState;
}

/// [`Action::ManageTenants`] as a type.
#[derive(Debug)]
pub struct ManageTenants;
impl Act for ManageTenants {
    const ACTION: Action = Action::ManageTenants;
}

/// [`Action::ReadHead`] as a type.
#[derive(Debug)]
pub struct ReadHead;
impl Act for ReadHead {
    const ACTION: Action = Action::ReadHead;
}

/// [`Action::SetLogFilter`] as a type.
#[derive(Debug)]
pub struct SetLogFilter;
impl Act for SetLogFilter {
    const ACTION: Action = Action::SetLogFilter;
}

/// [`Action::Backup`] as a type.
#[derive(Debug)]
pub struct Backup;
impl Act for Backup {
    const ACTION: Action = Action::Backup;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(scopes: &[&str]) -> Caller {
        let scopes: Vec<_> = scopes.iter().map(|s| Scope::parse(s).unwrap()).collect();
        let identity = Identity::of_key(KeyId::parse("caller").unwrap(), Digest::from_bytes([1; 32]), None);
        Caller::new(identity, &scopes)
    }

    fn tenant(id: &str) -> TenantId {
        TenantId::parse(id).unwrap()
    }

    #[test]
    fn only_a_plain_admin_writes_in_system() {
        let scopes = [
            "keyward.operator",
            "keyward.issuer",
            "keyward.viewer",
            "keyward.admin@acme",
            "keyward.backup",
            "keyward.verifier",
        ];
        for scope in scopes {
            let caller = caller(&[scope]);
            for action in [
                Action::Read,
                Action::Issue,
                Action::ChangeState,
                Action::ManageTenants,
                Action::Backup,
                Action::ReadHead,
                Action::Verify,
            ] {
                assert!(!caller.may(action, &TenantId::system()), "{scope} {action:?}");
            }
        }
        assert!(caller(&["keyward.admin"]).may(Action::Issue, &TenantId::system()));
        for scope in [
            "keyward.admin@system",
            "keyward.issuer@system",
            "keyward.operator@system",
            "keyward.backup@system",
            "keyward.backup@acme",
        ] {
            assert!(RoleScope::parse(&Scope::parse(scope).unwrap()).is_err(), "{scope}");
        }
        assert!(caller(&["keyward.viewer@system"]).may(Action::Read, &TenantId::system()));
    }

    #[test]
    fn what_is_of_all_tenants_takes_a_plain_role() {
        for scopes in [&["keyward.admin"][..], &["keyward.auditor"], &["keyward.auditor@acme", "keyward.auditor"]] {
            assert!(caller(scopes).grant_all_tenants::<ReadHead>().is_ok(), "{scopes:?}");
        }
        let narrow = ["keyward.admin@acme", "keyward.auditor@acme", "keyward.auditor@system"];
        let other =
            ["keyward.viewer", "keyward.operator", "keyward.issuer", "keyward.backup", "keyward.verifier", "keyward.*"];
        for scope in narrow.iter().chain(&other) {
            assert_eq!(caller(&[scope]).grant_all_tenants::<ReadHead>().err(), Some(Denied::Role), "{scope}");
        }
        assert!(caller(&["keyward.backup"]).grant_all_tenants::<Backup>().is_ok());
        assert_eq!(caller(&["keyward.admin@acme"]).grant_all_tenants::<Backup>().err(), Some(Denied::Role));
        let both = caller(&["keyward.auditor@acme", "keyward.viewer"]);
        assert!(both.grant_all_tenants::<ReadHead>().is_err(), "a plain role for something else does not widen it");
    }

    #[test]
    fn a_wildcard_is_not_a_role() {
        let caller = caller(&["keyward.*", "keyward", "keyward.root", "keyward.admin.x"]);
        assert!(!caller.may_in_any_tenant(Action::Read));
        assert!(!caller.may_in_any_tenant(Action::Verify));
    }

    #[test]
    fn a_narrowed_role_ends_at_its_tenant() {
        let caller = caller(&["keyward.issuer@acme", "keyward.viewer@globex"]);
        assert!(caller.grant::<Issue>(tenant("acme")).is_ok());
        assert_eq!(caller.grant::<Issue>(tenant("globex")).err(), Some(Denied::Role));
        assert_eq!(caller.grant::<Issue>(tenant("initech")).err(), Some(Denied::NotVisible));
        assert_eq!(caller.grant::<ChangeState>(tenant("initech")).err(), Some(Denied::Role));
    }

    #[test]
    fn the_tenant_by_default_is_the_only_one_or_default() {
        assert_eq!(caller(&["keyward.issuer@acme", "keyward.operator@acme"]).tenant_by_default(), tenant("acme"));
        assert_eq!(caller(&["keyward.issuer@acme", "keyward.viewer@globex"]).tenant_by_default(), tenant("default"));
        assert_eq!(caller(&["keyward.issuer@acme", "keyward.viewer"]).tenant_by_default(), tenant("default"));
        assert_eq!(caller(&[]).tenant_by_default(), tenant("default"));
    }
}
