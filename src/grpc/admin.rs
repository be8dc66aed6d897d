//! KeyAdmin: convert the request, check the role, call the authority, convert the result.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use keyward_core::access::{self, Act, Action, Caller, ChangeState, Grant, Issue, ManageTenants, Read};
use keyward_core::id::TenantId;
use keyward_core::limits::{DELETED_KEPT_MS_DEFAULT, DELETED_KEPT_MS_MAX, DELETED_KEPT_MS_MIN};
use keyward_core::record::{KeyRecord, OwnerRecord, State, TenantRecord};
use tonic::{Request, Response, Status};

use super::convert::{self, StateChange};
use super::fields::Fields;
use super::holders::{self, Epoch, EpochHolder, OwnerHold, TenantHold};
use super::keys;
use super::pb;
use super::retry::take_name;
use super::session::CallerSession;
use super::state::StateHandle;
use super::status::{Refusal, status};
use crate::authority::{Authority, AuthorityError, Backup, BackupFormat, Changed, ChangedHold, Resource};

/// The longest filter of the log.
const LOG_FILTER_BYTES_MAX: usize = 1_024;

/// The service.
pub struct AdminService {
    state: StateHandle,
}

impl AdminService {
    /// The service over the server's state.
    #[must_use]
    pub fn new(state: StateHandle) -> Self {
        Self { state }
    }

    async fn move_key(
        &self,
        caller: &Caller,
        to: State,
        change: Result<StateChange, Refusal>,
    ) -> Result<Changed<KeyRecord>, Refusal> {
        let StateChange { key, reason, options } = change?;
        let grant = grant::<ChangeState>(caller, key.tenant, Resource::Key)?;
        Ok(self.authority()?.change_state(&grant, &key.key_id, to, &reason, &options).await?)
    }

    async fn hold_tenant(
        &self,
        caller: &Caller,
        suspended: bool,
        hold: Result<TenantHold, Refusal>,
    ) -> Result<ChangedHold<TenantRecord>, Refusal> {
        let TenantHold { tenant, reason, options } = hold?;
        let grant = grant::<ChangeState>(caller, tenant, Resource::Tenant)?;
        Ok(self.authority()?.suspend_tenant(&grant, suspended, &reason, &options).await?)
    }

    async fn hold_owner(
        &self,
        caller: &Caller,
        suspended: bool,
        hold: Result<OwnerHold, Refusal>,
    ) -> Result<ChangedHold<OwnerRecord>, Refusal> {
        let OwnerHold { tenant, owner, reason, options } = hold?;
        let grant = grant::<ChangeState>(caller, tenant, Resource::Tenant)?;
        Ok(self.authority()?.suspend_owner(&grant, &owner, suspended, &reason, &options).await?)
    }

    fn authority(&self) -> Result<&Authority, Refusal> {
        self.state.authority()
    }
}

/// Answers a call whose request is whole: judges the caller again, who was admitted when its head came, and
/// turns a refusal into its status.
pub(super) async fn answer<Q, A>(
    state: &StateHandle,
    action: Action,
    request: Request<Q>,
    call: impl AsyncFnOnce(&Caller, Q) -> Result<A, Refusal>,
) -> Result<Response<A>, Status> {
    let (_, mut extensions, message) = request.into_parts();
    let answered = async {
        let ready = state.ready()?;
        let mut session = extensions.remove::<CallerSession>().ok_or(Refusal::NoCredential)?;
        call(session.caller(ready, action, ready.now())?, message).await
    };
    answered.await.map(Response::new).map_err(status)
}

fn grant<A: Act>(caller: &Caller, tenant: TenantId, resource: Resource) -> Result<Grant<A>, Refusal> {
    caller.grant(tenant).map_err(|denied| AuthorityError::from_denial(denied, resource).into())
}

#[tonic::async_trait]
impl pb::key_admin_server::KeyAdmin for AdminService {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        answer(&self.state, Action::Issue, request, async |caller, message| {
            let (tenant, new, options) = keys::new_key(message, caller.tenant_by_default())?;
            let grant = grant::<Issue>(caller, tenant, Resource::Tenant)?;
            let created = self.authority()?.create_key(&grant, new, &options).await?;
            let (secret, sealed_secret) = keys::secret(created.secret);
            Ok(pb::CreateKeyResponse {
                key: Some(keys::key(&created.key)),
                secret,
                revision: created.revision.0,
                sealed_secret,
            })
        })
        .await
    }

    async fn get_key(&self, request: Request<pb::GetKeyRequest>) -> Result<Response<pb::GetKeyResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let name = convert::key_name(&message.key_id, &message.tenant, caller.tenant_by_default())?;
            let grant = grant::<Read>(caller, name.tenant, Resource::Key)?;
            let (key, revision) = self.authority()?.key(&grant, &name.key_id).await?;
            Ok(pb::GetKeyResponse { key: Some(keys::key(&key)), revision: revision.0 })
        })
        .await
    }

    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Result<Response<pb::ListKeysResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let (tenant, selector, page_size) = convert::list(&message, caller.tenant_by_default())?;
            let grant = grant::<Read>(caller, tenant, Resource::Tenant)?;
            let listed = self.authority()?.keys(&grant, selector, page_size, &message.page_token).await?;
            let keys = listed.records.iter().map(|key| keys::key(key)).collect();
            drop(listed.held);
            Ok(pb::ListKeysResponse { keys, next_page_token: listed.next_page_token, revision: listed.revision.0 })
        })
        .await
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::UpdateKeyResponse>, Status> {
        answer(&self.state, Action::Issue, request, async |caller, message| {
            let (name, changes, options) = keys::update(message, caller.tenant_by_default())?;
            let grant = grant::<Issue>(caller, name.tenant, Resource::Key)?;
            let changed = self.authority()?.update_key(&grant, &name.key_id, &changes, &options).await?;
            Ok(pb::UpdateKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::DisableKeyResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let options = (m.validate_only, take_name(&mut m)?);
            let (name, default) = ((&*m.key_id, &*m.tenant, m.etag), caller.tenant_by_default());
            let own = |f: &mut Fields| f.time("resume_time", m.resume_time);
            let (change, resume_time) = convert::state_change_with(name, m.reason, options, default, own)?;
            let changed = match resume_time {
                None => self.move_key(caller, State::Disabled, Ok(change)).await?,
                Some(until) => {
                    let StateChange { key, reason, options } = change;
                    let grant = grant::<ChangeState>(caller, key.tenant, Resource::Key)?;
                    self.authority()?.suspend(&grant, &key.key_id, until, &reason, &options).await?
                }
            };
            Ok(pb::DisableKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::EnableKeyResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = (&*m.key_id, &*m.tenant, m.etag);
            let options = (m.validate_only, request);
            let change = convert::state_change(name, m.reason, options, caller.tenant_by_default());
            let changed = self.move_key(caller, State::Active, change).await?;
            Ok(pb::EnableKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Result<Response<pb::RevokeKeyResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = (&*m.key_id, &*m.tenant, m.etag);
            let options = (m.validate_only, request);
            let change = convert::state_change(name, m.reason, options, caller.tenant_by_default());
            let changed = self.move_key(caller, State::Revoked, change).await?;
            Ok(pb::RevokeKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::RotateKeyResponse>, Status> {
        answer(&self.state, Action::Issue, request, async |caller, message| {
            let (name, overlap, options, reply_key) = keys::rotation(message, caller.tenant_by_default())?;
            let grant = grant::<Issue>(caller, name.tenant, Resource::Key)?;
            let options = (&options, reply_key.as_ref());
            let rotated = self.authority()?.rotate_key(&grant, &name.key_id, overlap, options).await?;
            let (secret, sealed_secret) = keys::secret(rotated.secret);
            Ok(pb::RotateKeyResponse {
                key: Some(keys::key(&rotated.key)),
                secret,
                revision: rotated.revision.0,
                sealed_secret,
            })
        })
        .await
    }

    async fn finish_rotation(
        &self,
        request: Request<pb::FinishRotationRequest>,
    ) -> Result<Response<pb::FinishRotationResponse>, Status> {
        answer(&self.state, Action::Issue, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = convert::key_name(&m.key_id, &m.tenant, caller.tenant_by_default())?;
            let grant = grant::<Issue>(caller, name.tenant, Resource::Key)?;
            let options = convert::options(m.etag, m.validate_only, request);
            let changed = self.authority()?.finish_rotation(&grant, &name.key_id, &options).await?;
            Ok(pb::FinishRotationResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn cancel_rotation(
        &self,
        request: Request<pb::CancelRotationRequest>,
    ) -> Result<Response<pb::CancelRotationResponse>, Status> {
        answer(&self.state, Action::Issue, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = convert::key_name(&m.key_id, &m.tenant, caller.tenant_by_default())?;
            let grant = grant::<Issue>(caller, name.tenant, Resource::Key)?;
            let options = convert::options(m.etag, m.validate_only, request);
            let changed = self.authority()?.cancel_rotation(&grant, &name.key_id, &options).await?;
            Ok(pb::CancelRotationResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Result<Response<pb::DeleteKeyResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let options = (m.validate_only, take_name(&mut m)?);
            let (name, default) = ((&*m.key_id, &*m.tenant, m.etag), caller.tenant_by_default());
            let bounds = DELETED_KEPT_MS_MIN..=DELETED_KEPT_MS_MAX;
            let own = |f: &mut Fields| f.duration_ms("purge_after", m.purge_after, bounds, DELETED_KEPT_MS_DEFAULT);
            let (change, kept_ms) = convert::state_change_with(name, m.reason, options, default, own)?;
            let StateChange { key, reason, options } = change;
            let grant = grant::<ChangeState>(caller, key.tenant, Resource::Key)?;
            let changed = self.authority()?.delete_key(&grant, &key.key_id, kept_ms, &reason, &options).await?;
            Ok(pb::DeleteKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn undelete_key(
        &self,
        request: Request<pb::UndeleteKeyRequest>,
    ) -> Result<Response<pb::UndeleteKeyResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let options = (m.validate_only, take_name(&mut m)?);
            let name = (&*m.key_id, &*m.tenant, m.etag);
            let change = convert::state_change(name, m.reason, options, caller.tenant_by_default())?;
            let StateChange { key, reason, options } = change;
            let grant = grant::<ChangeState>(caller, key.tenant, Resource::Key)?;
            let changed = self.authority()?.undelete_key(&grant, &key.key_id, &reason, &options).await?;
            Ok(pb::UndeleteKeyResponse { key: Some(keys::key(&changed.record)), revision: changed.revision.0 })
        })
        .await
    }

    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Result<Response<pb::CreateTenantResponse>, Status> {
        answer(&self.state, Action::ManageTenants, request, async |caller, mut message| {
            let options = convert::options(String::new(), message.validate_only, take_name(&mut message)?);
            let new = convert::new_tenant(message)?;
            // A new tenant has no roles yet: creating it takes the right to write in `system`.
            let grant = caller.grant::<ManageTenants>(TenantId::system()).map_err(|_| AuthorityError::Denied)?;
            let created = self.authority()?.create_tenant(&grant, new, &options).await?;
            let tenant = Some(holders::tenant(&created.record));
            Ok(pb::CreateTenantResponse { tenant, revision: created.revision.0 })
        })
        .await
    }

    async fn get_tenant(
        &self,
        request: Request<pb::GetTenantRequest>,
    ) -> Result<Response<pb::GetTenantResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let grant = grant::<Read>(caller, convert::tenant_name(&message.tenant)?, Resource::Tenant)?;
            let (tenant, revision) = self.authority()?.tenant(&grant).await?;
            Ok(pb::GetTenantResponse { tenant: Some(holders::tenant(&tenant)), revision: revision.0 })
        })
        .await
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<Response<pb::ListTenantsResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let mut fields = Fields::default();
            let page_size = fields.page_size("page_size", message.page_size);
            let page_size = fields.finish(Some(page_size))?;
            if !caller.may_in_any_tenant(Action::Read) {
                return Err(AuthorityError::Denied.into());
            }
            let listed = self.authority()?.tenants(caller, page_size, &message.page_token).await?;
            let tenants = listed.records.iter().map(|tenant| holders::tenant(tenant)).collect();
            drop(listed.held);
            Ok(pb::ListTenantsResponse {
                tenants,
                next_page_token: listed.next_page_token,
                revision: listed.revision.0,
            })
        })
        .await
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Result<Response<pb::UpdateTenantResponse>, Status> {
        answer(&self.state, Action::ManageTenants, request, async |caller, message| {
            let (tenant, patch, options) = holders::tenant_update(message)?;
            let grant = caller.grant::<ManageTenants>(TenantId::system()).map_err(|_| AuthorityError::Denied)?;
            let changed = self.authority()?.update_tenant(&grant, &tenant, &patch, &options).await?;
            let tenant = Some(holders::tenant(&changed.record));
            Ok(pb::UpdateTenantResponse { tenant, revision: changed.revision.0 })
        })
        .await
    }

    async fn suspend_tenant(
        &self,
        request: Request<pb::SuspendTenantRequest>,
    ) -> Result<Response<pb::SuspendTenantResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let hold = holders::tenant_hold(&m.tenant, m.etag, m.reason, (m.validate_only, request));
            let ChangedHold { changed, affected_keys } = self.hold_tenant(caller, true, hold).await?;
            let (tenant, revision) = (Some(holders::tenant(&changed.record)), changed.revision.0);
            Ok(pb::SuspendTenantResponse { tenant, revision, affected_keys })
        })
        .await
    }

    async fn resume_tenant(
        &self,
        request: Request<pb::ResumeTenantRequest>,
    ) -> Result<Response<pb::ResumeTenantResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let hold = holders::tenant_hold(&m.tenant, m.etag, m.reason, (m.validate_only, request));
            let ChangedHold { changed, affected_keys } = self.hold_tenant(caller, false, hold).await?;
            let (tenant, revision) = (Some(holders::tenant(&changed.record)), changed.revision.0);
            Ok(pb::ResumeTenantResponse { tenant, revision, affected_keys })
        })
        .await
    }

    async fn suspend_owner(
        &self,
        request: Request<pb::SuspendOwnerRequest>,
    ) -> Result<Response<pb::SuspendOwnerResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = (m.owner, &*m.tenant, m.etag);
            let hold = holders::owner_hold(name, m.reason, (m.validate_only, request), caller.tenant_by_default());
            let ChangedHold { changed, affected_keys } = self.hold_owner(caller, true, hold).await?;
            let (owner, revision) = (Some(holders::changed_owner(&changed.record)), changed.revision.0);
            Ok(pb::SuspendOwnerResponse { owner, revision, affected_keys })
        })
        .await
    }

    async fn resume_owner(
        &self,
        request: Request<pb::ResumeOwnerRequest>,
    ) -> Result<Response<pb::ResumeOwnerResponse>, Status> {
        answer(&self.state, Action::ChangeState, request, async |caller, mut m| {
            let request = take_name(&mut m)?;
            let name = (m.owner, &*m.tenant, m.etag);
            let hold = holders::owner_hold(name, m.reason, (m.validate_only, request), caller.tenant_by_default());
            let ChangedHold { changed, affected_keys } = self.hold_owner(caller, false, hold).await?;
            let (owner, revision) = (Some(holders::changed_owner(&changed.record)), changed.revision.0);
            Ok(pb::ResumeOwnerResponse { owner, revision, affected_keys })
        })
        .await
    }

    async fn set_epoch(&self, request: Request<pb::SetEpochRequest>) -> Result<Response<pb::SetEpochResponse>, Status> {
        use pb::set_epoch_response::Holder;
        answer(&self.state, Action::ChangeState, request, async |caller, message| {
            let Epoch { holder, time, options } = holders::epoch(message, caller.tenant_by_default())?;
            let (holder, revision, affected_keys) = match holder {
                EpochHolder::Tenant(tenant) => {
                    let grant = grant::<ChangeState>(caller, tenant, Resource::Tenant)?;
                    let set = self.authority()?.set_epoch_of_tenant(&grant, time, &options).await?;
                    (Holder::Tenant(holders::tenant(&set.changed.record)), set.changed.revision, set.affected_keys)
                }
                EpochHolder::Owner(tenant, owner) => {
                    let grant = grant::<ChangeState>(caller, tenant, Resource::Tenant)?;
                    let set = self.authority()?.set_epoch_of_owner(&grant, &owner, time, &options).await?;
                    (
                        Holder::Owner(holders::changed_owner(&set.changed.record)),
                        set.changed.revision,
                        set.affected_keys,
                    )
                }
                EpochHolder::Issuer(issuer) => {
                    let grant = holders::issuer_grant(caller)?;
                    let set = self.authority()?.set_epoch_of_issuer(&grant, &issuer, time, &options).await?;
                    let issuer = holders::changed_issuer(&set.changed.record);
                    (Holder::Issuer(issuer), set.changed.revision, set.affected_keys)
                }
            };
            Ok(pb::SetEpochResponse { holder: Some(holder), revision: revision.0, affected_keys })
        })
        .await
    }

    async fn get_owner(&self, request: Request<pb::GetOwnerRequest>) -> Result<Response<pb::GetOwnerResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let (tenant, owner) = holders::owner_name(message.owner, &message.tenant, caller.tenant_by_default())?;
            let grant = grant::<Read>(caller, tenant, Resource::Tenant)?;
            let (name, record, revision) = self.authority()?.owner(&grant, &owner).await?;
            Ok(pb::GetOwnerResponse { owner: Some(holders::owner(&name, record.as_deref())), revision: revision.0 })
        })
        .await
    }

    async fn get_issuer(
        &self,
        request: Request<pb::GetIssuerRequest>,
    ) -> Result<Response<pb::GetIssuerResponse>, Status> {
        answer(&self.state, Action::Read, request, async |caller, message| {
            let issuer = holders::issuer_name(&message.issuer)?;
            let grant = caller.grant_all_tenants::<Read>().map_err(|_| AuthorityError::Denied)?;
            let (record, revision) = self.authority()?.issuer(&grant, &issuer).await?;
            Ok(pb::GetIssuerResponse {
                issuer: Some(holders::issuer(&issuer, record.as_deref())),
                revision: revision.0,
            })
        })
        .await
    }

    async fn set_log_filter(
        &self,
        request: Request<pb::SetLogFilterRequest>,
    ) -> Result<Response<pb::SetLogFilterResponse>, Status> {
        answer(&self.state, Action::SetLogFilter, request, async |caller, message| {
            caller.grant_all_tenants::<access::SetLogFilter>().map_err(|_| AuthorityError::Denied)?;
            let log = self.state.log()?;
            let (previous, mut fields) = (log.filter(), Fields::default());
            if message.filter.len() > LOG_FILTER_BYTES_MAX {
                fields.wrong("filter", format!("must be at most {LOG_FILTER_BYTES_MAX} bytes"));
            } else if !message.filter.is_empty()
                && let Err(rule) = log.set_filter(&message.filter, &caller.identity().actor())
            {
                fields.wrong("filter", rule);
            }
            fields.finish(Some(()))?;
            Ok(pb::SetLogFilterResponse { previous })
        })
        .await
    }

    type BackupStream = BackupStream;

    async fn backup(&self, request: Request<pb::BackupRequest>) -> Result<Response<BackupStream>, Status> {
        answer(&self.state, Action::Backup, request, async |caller, message| {
            let grant = caller.grant_all_tenants::<access::Backup>().map_err(|_| AuthorityError::Denied)?;
            let mut fields = Fields::default();
            let format = match message.format {
                0 | 2 => Some(BackupFormat::Second),
                1 => Some(BackupFormat::First),
                _ => {
                    fields.wrong("format", "must be 0 for the newest, 1 or 2");
                    None
                }
            };
            Ok(BackupStream(self.authority()?.backup(&grant, fields.finish(format)?).await?))
        })
        .await
    }
}

/// The pieces of a backup on their way to the caller.
pub struct BackupStream(Backup);

impl Stream for BackupStream {
    type Item = Result<pb::BackupResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let revision = self.0.revision.0;
        self.0.pieces.poll_recv(cx).map(|next| {
            next.map(|piece| match piece {
                Ok(piece) => Ok(pb::BackupResponse { piece, revision }),
                Err(error) => Err(status(AuthorityError::from_backup(error))),
            })
        })
    }
}
