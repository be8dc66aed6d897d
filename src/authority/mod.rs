//! The write side: every change of a key or tenant goes through here, and so does every read of the admin path.
//!
//! Each call takes a [`Grant`], so that none can be made without permission, and ends in one commit. It
//! returns when the change is durable and in force: the index has folded it, so the next verdict sees it.

mod backup;
mod bootstrap;
mod create;
mod error;
mod head;
mod key_locks;
mod lifecycle;
mod page_token;
mod query;
mod tenants;
mod update;

use std::sync::Arc;

use keyward_core::access::{Act, Authorization, Grant, check_scope};
use keyward_core::clock::{Clock, Now, UnixMillis};
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use keyward_core::id::{InvalidName, KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_ISSUED_MAX;
use keyward_core::narrowing::narrows;
use keyward_core::record::{AuditStamp, Effect, KeyPolicy, KeyRecord, TenantRecord};
use keyward_core::scope::Scope;
use zeroize::Zeroizing;

use self::key_locks::KeyLocks;
use self::page_token::PageTokens;
use crate::index::Index;
use crate::store::record::stateless_key_bytes;
use crate::store::{Commit, CommitError, ReadContext, RecordWrite, Store};

pub use self::create::{Created, KeyMinter, NewKey};
pub use self::error::{AuthorityError, Resource, Violation};
pub use self::query::{Listed, Selector};
pub use self::tenants::NewTenant;
pub use self::update::KeyPatch;
pub use crate::store::{Backup, Exceeded};

/// How often a change is tried when another one comes between, before the caller is told.
const COMMIT_ATTEMPTS_MAX: usize = 64;

/// Issues keys and changes them.
pub struct Authority {
    store: Arc<dyn Store>,
    index: Arc<Index>,
    peppers: Arc<PepperRing>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    page_tokens: PageTokens,
    key_locks: KeyLocks,
}

/// What the authority works with.
pub struct AuthorityDeps {
    /// Where changes are committed.
    pub store: Arc<dyn Store>,
    /// What verdicts are made from.
    pub index: Arc<Index>,
    /// What digests are made with.
    pub peppers: Arc<PepperRing>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The randomness.
    pub entropy: Arc<dyn Entropy>,
    /// What page tokens are sealed with.
    pub page_token_key: Zeroizing<[u8; 32]>,
}

/// A key after a change, and the revision of that change.
#[derive(Debug)]
pub struct Changed<R> {
    /// The record.
    pub record: R,
    /// The revision at which it is so.
    pub revision: Revision,
}

/// What a change of a key is made by.
#[derive(Clone, Copy, Debug)]
struct Operation {
    method: &'static str,
    /// It may take power away.
    may_narrow: bool,
    /// It does nothing else, and goes first also where there is none left to take.
    only_narrows: bool,
}

/// How a change is to be made.
#[derive(Clone, Debug, Default)]
pub struct ChangeOptions {
    /// Only if this is the record's current tag.
    pub etag: Option<String>,
    /// Check everything, change nothing.
    pub validate_only: bool,
}

/// The tag of a record's version, as callers give it back.
#[must_use]
pub fn etag(revision: Revision) -> String {
    format!("{:016x}", revision.0)
}

impl Authority {
    /// An authority over a store.
    #[must_use]
    pub fn new(deps: AuthorityDeps) -> Self {
        let AuthorityDeps { store, index, peppers, clock, entropy, page_token_key } = deps;
        Self {
            store,
            index,
            peppers,
            clock,
            entropy,
            page_tokens: PageTokens::new(page_token_key),
            key_locks: KeyLocks::default(),
        }
    }

    /// Reads a key, changes it, and commits it unless it came out as it was. Another change in between is no obstacle,
    /// unless the caller named a version.
    async fn change<A>(
        &self,
        grant: &Grant<A>,
        operation: Operation,
        key_id: &KeyId,
        options: &ChangeOptions,
        change: impl Fn(&mut KeyRecord, &AuditStamp) -> Result<Effect, AuthorityError> + Send + Sync,
    ) -> Result<Changed<KeyRecord>, AuthorityError>
    where
        A: Act + Sync,
    {
        let reader = ReadContext { caller: grant.actor(), urgent: operation.may_narrow };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let before = self.require_key(&reader, grant.tenant(), key_id).await?;
            let mut key = before.clone();
            if options.etag.as_ref().is_some_and(|tag| *tag != etag(key.revision)) {
                return Err(AuthorityError::Outdated);
            }
            let now = self.now();
            let stamp = AuditStamp { time: now.latest(), actor: grant.actor() };
            let effect = change(&mut key, &stamp)?;
            let narrows = narrows(&before, &key);
            if effect == Effect::Unchanged || options.validate_only {
                if !narrows {
                    let admitted = self.store.check_bounds(Some(&before), &key);
                    admitted
                        .map_err(|error| AuthorityError::from_commit(error, Resource::Key).with_field_prefix("key."))?;
                }
                let kept = self.store.check_administrators(&key, now.clock());
                kept.map_err(|error| AuthorityError::from_commit(error, Resource::Key))?;
                let revision = key.revision;
                // Whoever is told that a key is disabled may rely on it: the change may be durable and not
                // yet in force.
                self.index.wait_for(revision).await;
                return Ok(Changed { record: key, revision });
            }
            let commit = Commit {
                actor: stamp.actor,
                authorization: Some(grant.authorization(now.clock())),
                method: operation.method,
                target: target(grant.tenant(), key_id),
                time: stamp.time,
                narrows,
                urgent: narrows || operation.only_narrows,
                writes: vec![RecordWrite::Key(Box::new(key.clone()))],
            };
            match self.commit(commit).await {
                Ok(revision) => return Ok(Changed { record: KeyRecord { revision, ..key }, revision }),
                Err(CommitError::Outdated) if options.etag.is_none() => {}
                // Only an update needs further names.
                Err(error) => return Err(AuthorityError::from_commit(error, Resource::Key).with_field_prefix("key.")),
            }
        }
        Err(AuthorityError::Outdated)
    }

    /// The time of a change. Its stamp has the latest, so that it is not before any change so far, also where
    /// the clock was set back.
    fn now(&self) -> Now {
        Now::new(self.clock.now(), self.index.latest_time())
    }

    /// Commits, and waits until verdicts see the change.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let (actor, method, target) = (commit.actor.clone(), commit.method, commit.target.clone());
        let peer = commit.authorization.as_ref().and_then(Authorization::peer);
        let revision = self.store.commit(commit).await?;
        let peer = peer.map(tracing::field::display);
        // A tenant is its own target.
        let tenant = target.split('/').next().unwrap_or_default();
        tracing::info!(method, tenant, target, revision = revision.0, caller = %actor, peer, "changed");
        self.index.wait_for(revision).await;
        Ok(revision)
    }

    async fn require_key(
        &self,
        reader: &ReadContext,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<KeyRecord, AuthorityError> {
        let key = self.store.key_for(reader, tenant, key_id).await?;
        Ok(KeyRecord::clone(&*key.ok_or(AuthorityError::NotFound(Resource::Key))?))
    }

    async fn require_tenant(&self, tenant: &TenantId) -> Result<Arc<TenantRecord>, AuthorityError> {
        self.store.tenant(tenant).await?.ok_or(AuthorityError::NotFound(Resource::Tenant))
    }
}

fn target(tenant: &TenantId, key_id: &KeyId) -> String {
    format!("{tenant}/{key_id}")
}

/// What must hold of scopes that a key is to have. `at` is where the request has them.
fn check_scopes(at: &str, tenant: &TenantId, scopes: &[Scope]) -> Result<(), AuthorityError> {
    for (nth, scope) in scopes.iter().enumerate() {
        let of_scope = |rule: InvalidName| AuthorityError::bad_field(format!("{at}scopes[{nth}]"), rule.0);
        check_scope(tenant, scope).map_err(of_scope)?;
    }
    if tenant.is_system() && scopes.is_empty() {
        return Err(AuthorityError::bad_field(
            format!("{at}scopes"),
            "must have a role, such as keyward.verifier: without one, a key of tenant 'system' may do nothing; if it is not for a \
             caller of Keyward, it belongs in another tenant",
        ));
    }
    Ok(())
}

/// What must hold of a key's times, wherever they come from. `at` is where the request has them.
fn check_times(at: &str, policy: &KeyPolicy) -> Result<(), AuthorityError> {
    if let (Some(from), Some(until)) = (policy.not_before, policy.expire_time)
        && until <= from
    {
        return Err(AuthorityError::bad_field(format!("{at}expire_time"), "must be later than not_before"));
    }
    Ok(())
}

/// An expiry that is set must lie ahead; to end a key now, disable or revoke it.
fn check_expiry(at: &str, policy: &KeyPolicy, now: UnixMillis) -> Result<(), AuthorityError> {
    if policy.expire_time.is_some_and(|until| until <= now) {
        return Err(AuthorityError::bad_field(
            format!("{at}expire_time"),
            "must be in the future; to end a key now, disable it",
        ));
    }
    Ok(())
}

/// All fields within their limits can still be too large together. What a change of state has added does not
/// count: there is room kept for it.
fn check_size(key: &KeyRecord) -> Result<(), AuthorityError> {
    match stateless_key_bytes(key) {
        bytes if bytes > RECORD_BYTES_ISSUED_MAX => {
            Err(AuthorityError::TooLarge { bytes, max: RECORD_BYTES_ISSUED_MAX })
        }
        _ => Ok(()),
    }
}
