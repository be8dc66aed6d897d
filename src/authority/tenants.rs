//! Tenants.

use std::sync::Arc;

use keyward_core::access::{Action, Caller, Grant, ManageTenants, Read};
use keyward_core::event::Revision;
use keyward_core::id::{SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, Effect, Hold, TenantRecord};

use super::holds::HoldOperation;
use super::retries::Again;
use super::{Authority, AuthorityError, ChangeOptions, Changed, Listed, Resource};
use crate::store::{Commit, Page, ReadContext, RecordWrite, Retry};

/// The call, as the log names it.
const CREATE_TENANT: &str = "CreateTenant";

/// A tenant to be created.
#[derive(Clone, Debug)]
pub struct NewTenant {
    /// Its name.
    pub tenant: TenantId,
    /// A name for people.
    pub display_name: String,
    /// What the secrets of its keys begin with.
    pub secret_prefix: SecretPrefix,
}

/// New values for fields of a tenant. `None`: it stays.
#[derive(Clone, Debug, Default)]
pub struct TenantPatch {
    /// A name for people.
    pub display_name: Option<String>,
    /// What the secrets of its keys begin with: of those that are issued from now on.
    pub secret_prefix: Option<SecretPrefix>,
}

impl Authority {
    /// Creates a tenant.
    ///
    /// # Errors
    /// When the tenant exists, or the change cannot be made.
    pub async fn create_tenant(
        &self,
        grant: &Grant<ManageTenants>,
        new: NewTenant,
        options: &ChangeOptions,
    ) -> Result<Changed<TenantRecord>, AuthorityError> {
        let reader = ReadContext { caller: grant.actor(), urgent: false };
        let retry = options.retry(CREATE_TENANT, grant);
        let created = self.create_tenant_now(grant, new, (options.validate_only, retry.clone()));
        self.once(&reader, retry.as_ref(), created, |Again { outcome, revision }| {
            let record = outcome.tenant().cloned().ok_or(AuthorityError::NotFound(Resource::Tenant))?;
            Ok(Changed { record, revision })
        })
        .await
    }

    /// The same, whether or not it was made before.
    async fn create_tenant_now(
        &self,
        grant: &Grant<ManageTenants>,
        new: NewTenant,
        (validate_only, retry): (bool, Option<Retry>),
    ) -> Result<Changed<TenantRecord>, AuthorityError> {
        let now = self.now();
        let created = AuditStamp { time: now.latest(), actor: grant.actor() };
        let revision = self.store.revision();
        let NewTenant { tenant, display_name, secret_prefix } = new;
        let record = TenantRecord {
            tenant,
            display_name,
            secret_prefix,
            hold: Hold::default(),
            keys_max: None,
            created,
            updated: None,
            revision,
        };
        if validate_only {
            return match self.store.tenant(&record.tenant).await? {
                Some(_) => Err(AuthorityError::AlreadyExists(Resource::Tenant)),
                None => {
                    self.store.check_tenant_bound().map_err(|e| AuthorityError::from_commit(e, Resource::Tenant))?;
                    Ok(Changed { record, revision })
                }
            };
        }
        let commit = Commit {
            actor: record.created.actor.clone(),
            authorization: Some(grant.authorization(now.clock())),
            method: CREATE_TENANT,
            target: record.tenant.to_string(),
            time: record.created.time,
            narrows: false,
            urgent: false,
            writes: vec![RecordWrite::NewTenant(Box::new(record.clone()))],
            retry: retry.map(|retry| (retry, None)),
        };
        let revision = self.commit(commit).await.map_err(|e| AuthorityError::from_commit(e, Resource::Tenant))?;
        Ok(Changed { record: TenantRecord { revision, ..record }, revision })
    }

    /// Changes fields of a tenant.
    ///
    /// # Errors
    /// When there is none, its etag is another one, or the change cannot be made.
    pub async fn update_tenant(
        &self,
        grant: &Grant<ManageTenants>,
        tenant: &TenantId,
        patch: &TenantPatch,
        options: &ChangeOptions,
    ) -> Result<Changed<TenantRecord>, AuthorityError> {
        let operation = HoldOperation::widening("UpdateTenant");
        let changed = self.change_held::<TenantRecord, _>(grant, operation, tenant, options, |record, _| {
            let before = record.clone();
            if let Some(display_name) = &patch.display_name {
                record.display_name.clone_from(display_name);
            }
            if let Some(secret_prefix) = &patch.secret_prefix {
                record.secret_prefix.clone_from(secret_prefix);
            }
            Ok(if *record == before { Effect::Unchanged } else { Effect::Changed })
        });
        Ok(changed.await?.changed)
    }

    /// Reads a tenant.
    ///
    /// # Errors
    /// When there is none.
    pub async fn tenant(&self, grant: &Grant<Read>) -> Result<(Arc<TenantRecord>, Revision), AuthorityError> {
        let revision = self.store.revision();
        Ok((self.require_tenant(grant.tenant()).await?, revision))
    }

    /// A page of the tenants that the caller may see.
    ///
    /// # Errors
    /// When the page token is not one of this call's.
    pub async fn tenants(
        &self,
        caller: &Caller,
        page_size: usize,
        page_token: &str,
    ) -> Result<Listed<TenantRecord>, AuthorityError> {
        const QUERY: &[&[u8]] = &[b"tenants"];
        let revision = self.store.revision();
        let after = self.page_tokens.open(page_token, QUERY, TenantId::parse)?;
        let page = match caller.narrowed_to(Action::Read) {
            None => self.store.tenants(&caller.identity().actor(), after, page_size).await?,
            // One by one: the token of a page over all tenants would show the names of others.
            Some(own) => {
                let mut found = vec![];
                for tenant in own.into_iter().filter(|t| after.as_ref().is_none_or(|after| t > after)) {
                    found.extend(self.store.tenant(&tenant).await?);
                    if found.len() > page_size {
                        break;
                    }
                }
                Page::first(found.into_iter(), page_size, |tenant| tenant.tenant.clone())
            }
        };
        let next_page_token = self.page_tokens.seal(page.next.as_ref().map(TenantId::as_str), QUERY);
        let visible = page.records.into_iter().filter(|t| caller.may(Action::Read, &t.tenant));
        Ok(Listed { records: visible.collect(), next_page_token, revision, held: page.permit })
    }
}
