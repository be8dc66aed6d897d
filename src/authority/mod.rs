//! The write side: all changes of keys and tenants, and the reads of the admin services.
//!
//! Each call takes a [`Grant`], so that none can be made without permission. A change is one commit, and
//! returns when it is durable and in the index, so that the next verdict sees it.

mod backup;
mod bootstrap;
mod create;
mod deletion;
mod error;
#[cfg(feature = "_fuzz")]
pub mod fuzz_targets;
mod head;
mod held_record;
mod holds;
mod key_locks;
mod lifecycle;
mod page_token;
mod query;
mod retries;
mod rotate;
mod sweep;
mod tenants;
mod update;

use std::sync::Arc;

use keyward_core::access::{Act, Authorization, Grant, Identity, check_scope};
use keyward_core::clock::{Clock, Now, UnixMillis};
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use keyward_core::holds::Holds;
use keyward_core::id::{InvalidName, KeyId, TenantId};
use keyward_core::limits::RECORD_BYTES_ISSUED_MAX;
use keyward_core::narrowing::narrows;
use keyward_core::record::{AuditStamp, Effect, KeyPolicy, KeyRecord, TenantRecord};
use keyward_core::scope::Scope;
use zeroize::Zeroizing;

use self::key_locks::KeyLocks;
use self::page_token::PageTokens;
use self::retries::Again;
use crate::index::Index;
use crate::store::record::stateless_key_bytes;
use crate::store::{Commit, CommitError, ReadContext, RecordWrite, Retry, RetryEntry, Store};

pub use self::create::{Created, IssueOptions, Issued, KeyMinter, NewKey, seal_info};
pub use self::error::{AuthorityError, Resource, Violation};
pub use self::held_record::OwnerName;
pub use self::holds::ChangedHold;
pub use self::query::{Listed, Selector};
pub use self::retries::RequestName;
pub use self::rotate::Rotated;
pub use self::sweep::{Sweeper, Swept};
pub use self::tenants::{NewTenant, TenantPatch};
pub use crate::store::{Backup, BackupFormat, Exceeded, SoughtText};

/// How often a change is tried when others come in between. Then it fails as outdated.
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

/// What an authority is built from.
pub struct AuthorityDeps {
    /// The store that changes are committed to.
    pub store: Arc<dyn Store>,
    /// The index that verdicts are made from.
    pub index: Arc<Index>,
    /// The peppers; the current one keys new digests.
    pub peppers: Arc<PepperRing>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The key that seals page tokens.
    pub page_token_key: Zeroizing<[u8; 32]>,
}

/// A record after a change.
#[derive(Debug)]
pub struct Changed<R> {
    /// The record.
    pub record: R,
    /// The revision of the change.
    pub revision: Revision,
}

/// A kind of change of a key.
#[derive(Clone, Copy, Debug)]
struct Operation {
    method: &'static str,
    /// Whether it may take power away.
    may_narrow: bool,
    /// Whether it can do nothing else. Then it has priority even if it takes no power away.
    only_narrows: bool,
}

/// Options of a change.
#[derive(Clone, Debug, Default)]
pub struct ChangeOptions {
    /// The etag that the record must have.
    pub etag: Option<String>,
    /// Whether to check everything and change nothing.
    pub validate_only: bool,
    /// How the request is recognised when it is asked for again. `None`: not at all.
    pub request: Option<RequestName>,
}

impl ChangeOptions {
    /// The request as the log has it. `None`: it is not recognised again.
    fn retry<A: Act>(&self, method: &str, grant: &Grant<A>) -> Option<Retry> {
        self.request.as_ref().filter(|_| !self.validate_only).map(|request| request.retry(method, grant))
    }
}

/// The etag of a record at this revision.
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

    /// Reads a key, changes it as it is now, and commits it if it differs, once for each request. It may be
    /// deleted.
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
        let retry = options.retry(operation.method, grant);
        let changed = self.change_now(grant, operation, key_id, (options, retry.clone().map(|it| (it, None))), change);
        self.once(&reader, retry.as_ref(), changed, |Again { outcome, revision }| {
            let record = outcome.key().cloned().ok_or(AuthorityError::NotFound(Resource::Key))?;
            Ok(Changed { record, revision })
        })
        .await
    }

    /// As [`Authority::change`], whether or not it was made before. If another change comes in between, it is
    /// tried again, unless there is an etag.
    async fn change_now<A>(
        &self,
        grant: &Grant<A>,
        operation: Operation,
        key_id: &KeyId,
        (options, retry): (&ChangeOptions, Option<RetryEntry>),
        change: impl Fn(&mut KeyRecord, &AuditStamp) -> Result<Effect, AuthorityError> + Send + Sync,
    ) -> Result<Changed<KeyRecord>, AuthorityError>
    where
        A: Act + Sync,
    {
        let reader = ReadContext { caller: grant.actor(), urgent: operation.may_narrow };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let before = self.require_key(&reader, grant.tenant(), key_id).await?;
            let now = self.now();
            let mut key = before.as_of(now.clock()).into_owned();
            if options.etag.as_ref().is_some_and(|tag| *tag != etag(key.revision)) {
                return Err(AuthorityError::Outdated);
            }
            let stamp = AuditStamp { time: now.latest(), actor: grant.actor() };
            let effect = change(&mut key, &stamp)?;
            let narrows = narrows(&before, &key);
            if effect == Effect::Unchanged || options.validate_only {
                if !narrows {
                    let admitted = self.store.check_bounds(Some(&before), &key);
                    admitted
                        .map_err(|error| AuthorityError::from_commit(error, Resource::Key).with_field_prefix("key."))?;
                }
                if key.spec.owner != before.spec.owner {
                    let asked = grant.authorization(now.clock()).leaving_owner_of(&before);
                    let allowed = self.check_authorization(&asked, &self.index.holds(), stamp.time).await;
                    allowed.map_err(|error| AuthorityError::from_commit(error, Resource::Key))?;
                }
                let kept = self.store.check_administrators(&key, now.clock());
                kept.map_err(|error| AuthorityError::from_commit(error, Resource::Key))?;
                let revision = key.revision;
                // The change that made it so may be durable and not yet in the index. The caller may rely on
                // the answer, so it must be.
                self.index.wait_for(revision).await;
                return Ok(Changed { record: key, revision });
            }
            let mut authorization = grant.authorization(now.clock());
            if key.spec.owner != before.spec.owner {
                authorization = authorization.leaving_owner_of(&before);
            }
            let keeps_secrets = before.digests().eq(key.digests());
            let write = if keeps_secrets { RecordWrite::Key } else { RecordWrite::RotatedKey };
            let commit = Commit {
                actor: stamp.actor,
                authorization: Some(authorization),
                method: operation.method,
                target: target(grant.tenant(), key_id),
                time: stamp.time,
                narrows,
                urgent: narrows || operation.only_narrows,
                writes: vec![write(Box::new(key.clone()))],
                retry: retry.clone(),
            };
            match self.commit(commit).await {
                Ok(revision) => return Ok(Changed { record: KeyRecord { revision, ..key }, revision }),
                Err(CommitError::Outdated) if options.etag.is_none() => {}
                // Only updates can need further names, and their fields are below `key`.
                Err(error) => return Err(AuthorityError::from_commit(error, Resource::Key).with_field_prefix("key.")),
            }
        }
        Err(AuthorityError::Outdated)
    }

    /// The time of a change. Stamps have the latest time, so that no change is before an earlier one, even if
    /// the clock was set back.
    fn now(&self) -> Now {
        Now::new(self.clock.now(), self.index.latest_time())
    }

    /// Commits, and waits until the index has the change.
    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let (actor, method, target) = (commit.actor.clone(), commit.method, commit.target.clone());
        let caller = commit.authorization.as_ref().map(Authorization::caller).cloned();
        let revision = self.store.commit(commit).await?;
        let peer = caller.as_ref().and_then(|caller| caller.peer).map(tracing::field::display);
        let identity = caller.as_ref().and_then(Identity::proven_besides).map(tracing::field::display);
        // The target of a tenant is the tenant alone, and that of an issuer has none.
        let tenant = target.split('/').next().filter(|_| !target.starts_with(ISSUER)).unwrap_or_default();
        tracing::info!(method, tenant, target, revision = revision.0, caller = %actor, identity, peer, "changed");
        self.index.wait_for(revision).await;
        Ok(revision)
    }

    /// Checks a permission as the committer does, without a commit.
    async fn check_authorization(
        &self,
        authorization: &Authorization,
        holds: &Holds,
        latest: UnixMillis,
    ) -> Result<(), CommitError> {
        let key = match authorization.caller().key_id() {
            Some(key_id) => self.store.key(&TenantId::system(), key_id).await?,
            None => None,
        };
        Ok(authorization.check(key.as_deref(), holds, latest)?)
    }

    /// A key as it is stored. It may be deleted.
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

/// What the target of a change of an issuer begins with.
const ISSUER: &str = "issuer:";

fn target(tenant: &TenantId, key_id: &KeyId) -> String {
    format!("{tenant}/{key_id}")
}

/// Checks the scopes that a key is to have. `at` is the prefix of their field's path.
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

/// Checks a key's times. `at` is the prefix of their fields' paths.
fn check_times(at: &str, policy: &KeyPolicy) -> Result<(), AuthorityError> {
    if let (Some(from), Some(until)) = (policy.not_before, policy.expire_time)
        && until <= from
    {
        return Err(AuthorityError::bad_field(format!("{at}expire_time"), "must be later than not_before"));
    }
    Ok(())
}

/// Checks that an expiry lies in the future. `at` is the prefix of its field's path.
fn check_expiry(at: &str, policy: &KeyPolicy, now: UnixMillis) -> Result<(), AuthorityError> {
    if policy.expire_time.is_some_and(|until| until <= now) {
        return Err(AuthorityError::bad_field(
            format!("{at}expire_time"),
            "must be in the future; to end a key now, disable it",
        ));
    }
    Ok(())
}

/// Checks the size of a record: fields within their limits can be too large together. What changes of state
/// add does not count, because room is reserved for it.
fn check_size(key: &KeyRecord) -> Result<(), AuthorityError> {
    match stateless_key_bytes(key) {
        bytes if bytes > RECORD_BYTES_ISSUED_MAX => {
            Err(AuthorityError::TooLarge { bytes, max: RECORD_BYTES_ISSUED_MAX })
        }
        _ => Ok(()),
    }
}
