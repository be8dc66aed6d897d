//! KeyAudit: the head of the log.

use keyward_core::access::{Action, ReadHead};
use tonic::{Request, Response, Status};

use super::admin::answer;
use super::pb;
use super::state::StateHandle;
use crate::authority::AuthorityError;

/// The service.
pub struct AuditService {
    state: StateHandle,
}

impl AuditService {
    /// The service over the server's state.
    #[must_use]
    pub fn new(state: StateHandle) -> Self {
        Self { state }
    }
}

#[tonic::async_trait]
impl pb::key_audit_server::KeyAudit for AuditService {
    async fn get_head(&self, request: Request<pb::GetHeadRequest>) -> Result<Response<pb::GetHeadResponse>, Status> {
        answer(&self.state, Action::ReadHead, request, async |caller, _| {
            let grant = caller.grant_all_tenants::<ReadHead>().map_err(|_| AuthorityError::Denied)?;
            let (revision, head) = self.state.authority()?.head(&grant);
            Ok(pb::GetHeadResponse {
                revision: revision.0,
                head: head.map(|head| head.to_string()).unwrap_or_default(),
            })
        })
        .await
    }
}
