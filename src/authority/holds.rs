//! Tenants, owners and issuers as a whole: suspended, resumed, and accepted only from a time on.
//!
//! Each such change writes one record, however many keys it is about. A verdict looks at the records of a
//! key's tenant, its owner and its secret's issuer; the keys stay as they are.

use std::sync::Arc;

use keyward_core::access::{Act, ChangeState, Grant, Read, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::DenyReason;
use keyward_core::event::Revision;
use keyward_core::holds::{Holder, Holds, Kept};
use keyward_core::id::ActorId;
use keyward_core::record::{AuditStamp, Effect, IssuerRecord, OwnerRecord, TenantRecord};

use super::held_record::{HeldRecord, OwnerName};
use super::retries::Again;
use super::{Authority, AuthorityError, COMMIT_ATTEMPTS_MAX, ChangeOptions, Changed, Resource, etag};
use crate::store::{Commit, CommitError, ReadContext, Retry, SoughtText};

/// A tenant, an owner or an issuer after a change.
#[derive(Debug)]
pub struct ChangedHold<R> {
    /// The change.
    pub changed: Changed<R>,
    /// At most so many keys are touched: a secret that is kept counts as one, and so does that of a deleted
    /// key.
    pub affected_keys: u64,
}

impl Authority {
    /// Suspends a tenant or resumes it. In the state that it has already, only the reason changes, if another
    /// one is given.
    ///
    /// # Errors
    /// When there is no such tenant, it is `system` and would be suspended, its etag is another one, the
    /// caller's own key would be refused, or the change cannot be made.
    pub async fn suspend_tenant(
        &self,
        grant: &Grant<ChangeState>,
        suspended: bool,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<TenantRecord>, AuthorityError> {
        if suspended && grant.tenant().is_system() {
            return Err(AuthorityError::SystemTenant);
        }
        let operation = HoldOperation::suspending(suspended, ["SuspendTenant", "ResumeTenant"]);
        let change = |tenant: &mut TenantRecord, by: &AuditStamp| Ok(tenant.hold.suspend(suspended, reason, by));
        self.change_held(grant, operation, grant.tenant(), options, change).await
    }

    /// Suspends an owner of keys or resumes it, likewise. Whether any key has the owner makes no difference:
    /// one that is issued later is refused too.
    ///
    /// # Errors
    /// As [`Authority::suspend_tenant`]; of tenant `system` also when no lasting administrator would be left.
    pub async fn suspend_owner(
        &self,
        grant: &Grant<ChangeState>,
        owner: &SoughtText,
        suspended: bool,
        reason: &str,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<OwnerRecord>, AuthorityError> {
        let name = self.owner_name(grant, owner).await?;
        let operation = HoldOperation::suspending(suspended, ["SuspendOwner", "ResumeOwner"]);
        let change = |owner: &mut OwnerRecord, by: &AuditStamp| Ok(owner.hold.suspend(suspended, reason, by));
        self.change_held(grant, operation, &name, options, change).await
    }

    /// Refuses every secret of a tenant's keys that was issued before a time. `None`: before this change.
    ///
    /// # Errors
    /// When the time lies in the future, or a later one is set; and as [`Authority::suspend_owner`].
    pub async fn set_epoch_of_tenant(
        &self,
        grant: &Grant<ChangeState>,
        time: Option<UnixMillis>,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<TenantRecord>, AuthorityError> {
        self.set_epoch(grant, grant.tenant(), time, options).await
    }

    /// The same of an owner's keys.
    ///
    /// # Errors
    /// As [`Authority::set_epoch_of_tenant`].
    pub async fn set_epoch_of_owner(
        &self,
        grant: &Grant<ChangeState>,
        owner: &SoughtText,
        time: Option<UnixMillis>,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<OwnerRecord>, AuthorityError> {
        let name = self.owner_name(grant, owner).await?;
        self.set_epoch(grant, &name, time, options).await
    }

    /// The same of what somebody issued, in all tenants. The grant must be one in tenant `system`.
    ///
    /// # Errors
    /// As [`Authority::set_epoch_of_tenant`].
    pub async fn set_epoch_of_issuer(
        &self,
        grant: &Grant<ChangeState>,
        issuer: &ActorId,
        time: Option<UnixMillis>,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<IssuerRecord>, AuthorityError> {
        self.set_epoch(grant, issuer, time, options).await
    }

    /// The record of an owner. `None`: nothing of it was ever changed.
    ///
    /// # Errors
    /// When there is no such tenant, or the store cannot be read.
    pub async fn owner(
        &self,
        grant: &Grant<Read>,
        owner: &SoughtText,
    ) -> Result<(OwnerName, Option<Arc<OwnerRecord>>, Revision), AuthorityError> {
        let revision = self.store.revision();
        let name = self.owner_name(grant, owner).await?;
        let found = self.store.owner(&name.tenant, &name.owner).await?;
        Ok((name, found, revision))
    }

    /// The record of an issuer. `None`: nothing of it was ever changed.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn issuer(
        &self,
        _grant: &Grant<Read>,
        issuer: &ActorId,
    ) -> Result<(Option<Arc<IssuerRecord>>, Revision), AuthorityError> {
        let revision = self.store.revision();
        Ok((self.store.issuer(issuer).await?, revision))
    }

    async fn set_epoch<R: HeldRecord>(
        &self,
        grant: &Grant<ChangeState>,
        name: &R::Name,
        time: Option<UnixMillis>,
        options: &ChangeOptions,
    ) -> Result<ChangedHold<R>, AuthorityError> {
        let operation = HoldOperation { is_last: time.is_none(), ..HoldOperation::narrowing("SetEpoch") };
        let change = |record: &mut R, by: &AuditStamp| {
            let time = time.unwrap_or(by.time);
            if time > by.time {
                return Err(AuthorityError::bad_field("reject_issued_before", "must not lie in the future"));
            }
            record.hold_mut().reject_before(time).map_err(|later| AuthorityError::EpochLowered { later })
        };
        self.change_held(grant, operation, name, options, change).await
    }

    /// Reads a record, changes it, and commits it if it differs, once for each request.
    pub(super) async fn change_held<R: HeldRecord, A: Act + Sync>(
        &self,
        grant: &Grant<A>,
        operation: HoldOperation,
        name: &R::Name,
        options: &ChangeOptions,
        change: impl Fn(&mut R, &AuditStamp) -> Result<Effect, AuthorityError> + Send + Sync,
    ) -> Result<ChangedHold<R>, AuthorityError> {
        let reader = ReadContext { caller: grant.actor(), urgent: operation.narrows };
        let retry = options.retry(operation.method, grant);
        let changed = self.change_held_now(grant, operation, name, (options, retry.clone()), change);
        self.once(&reader, retry.as_ref(), changed, |Again { outcome, revision }| {
            let record = outcome.records.iter().find_map(R::of).ok_or(AuthorityError::NotFound(Resource::Tenant))?;
            Ok(self.changed_hold(record, revision))
        })
        .await
    }

    /// As [`Authority::change_held`], whether or not it was made before. If another change comes in between,
    /// it is tried again, unless there is an etag.
    async fn change_held_now<R: HeldRecord, A: Act + Sync>(
        &self,
        grant: &Grant<A>,
        operation: HoldOperation,
        name: &R::Name,
        (options, retry): (&ChangeOptions, Option<Retry>),
        change: impl Fn(&mut R, &AuditStamp) -> Result<Effect, AuthorityError> + Send + Sync,
    ) -> Result<ChangedHold<R>, AuthorityError> {
        let failed = |error| AuthorityError::from_commit(error, Resource::Tenant);
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let (now, latest) = (self.now(), self.index.latest_time());
            let time = if operation.is_last { now.clock().max(UnixMillis(latest.0 + 1)) } else { now.latest() };
            let stamp = AuditStamp { time, actor: grant.actor() };
            let before = R::read(&*self.store, name, &stamp).await?;
            if options.etag.as_ref().is_some_and(|tag| *tag != etag(before.revision())) {
                return Err(AuthorityError::Outdated);
            }
            let mut record = before.clone();
            let effect = change(&mut record, &stamp)?;
            let narrows = operation.narrows && Kept::of(record.hold()) != Kept::of(before.hold());
            if effect == Effect::Unchanged || options.validate_only {
                if effect == Effect::Changed {
                    self.check_held(grant, &record, now.clock(), time).await.map_err(failed)?;
                }
                let revision = before.revision();
                // As for a key: the caller may rely on the answer.
                self.index.wait_for(revision).await;
                return Ok(self.changed_hold(record, revision));
            }
            record.set_updated(stamp.clone());
            let commit = Commit {
                actor: stamp.actor,
                authorization: Some(grant.authorization(now.clock())),
                method: operation.method,
                target: R::target(name),
                time,
                narrows,
                urgent: operation.narrows,
                writes: vec![record.clone().write()],
                retry: retry.clone().map(|retry| (retry, None)),
            };
            match self.commit(commit).await {
                Ok(revision) => {
                    record.set_revision(revision);
                    return Ok(self.changed_hold(record, revision));
                }
                Err(CommitError::Outdated) if options.etag.is_none() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(AuthorityError::Outdated)
    }

    fn changed_hold<R: HeldRecord>(&self, record: R, revision: Revision) -> ChangedHold<R> {
        let affected_keys = record.secrets(&self.index) as u64;
        ChangedHold { changed: Changed { record, revision }, affected_keys }
    }

    /// Checks what the committer checks of a record, without a commit.
    async fn check_held<R: HeldRecord, A: Act>(
        &self,
        grant: &Grant<A>,
        record: &R,
        clock: UnixMillis,
        time: UnixMillis,
    ) -> Result<(), CommitError> {
        let record = record.clone().record();
        let mut holds = Holds::clone(&self.index.holds());
        if let Some((holder, hold)) = Holder::of(&record) {
            holds.replace(holder, Some((record.revision(), Kept::of(hold))));
        }
        match self.check_authorization(&grant.authorization(clock), &holds, time).await {
            Err(CommitError::Unauthorized(Unauthorized::Key(
                DenyReason::OwnerSuspended | DenyReason::EpochRejected,
            ))) => Err(CommitError::OwnKey),
            other => other,
        }?;
        self.store.check_hold(&record, clock)
    }

    /// The owner that a request means: of a text that is not in normalization form C, itself if there are
    /// keys that have it, as some of older programs do, or else its normal form.
    async fn owner_name<A>(&self, grant: &Grant<A>, owner: &SoughtText) -> Result<OwnerName, AuthorityError> {
        let tenant = self.require_tenant(grant.tenant()).await?.tenant.clone();
        let is_had = |form: &str| self.index.owners_in_use(&tenant, &[form]).missing.is_empty();
        let form = if is_had(owner.given()) { owner.given() } else { owner.stored() };
        Ok(OwnerName { owner: form.to_owned(), tenant })
    }
}

/// How a record is changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct HoldOperation {
    pub(super) method: &'static str,
    /// It does nothing but take power away.
    pub(super) narrows: bool,
    /// Its time is later than that of every change that the index has, if need be by a millisecond past the
    /// clock: so it tells apart what was issued before it and what is issued after it.
    is_last: bool,
}

impl HoldOperation {
    pub(super) fn widening(method: &'static str) -> Self {
        Self { method, narrows: false, is_last: false }
    }

    /// To suspend, and to resume.
    fn suspending(suspended: bool, [suspend, resume]: [&'static str; 2]) -> Self {
        if suspended { Self::narrowing(suspend) } else { Self::widening(resume) }
    }

    fn narrowing(method: &'static str) -> Self {
        Self { narrows: true, ..Self::widening(method) }
    }
}
