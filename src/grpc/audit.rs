//! KeyAudit: what holds the log to account.

use keyward_core::access::{Action, ReadHead};
use tonic::{Request, Response, Status};

use super::admin::answer;
use super::pb;
use super::ready::Gate;
use crate::authority::AuthorityError;

/// The service.
pub struct AuditService {
    gate: Gate,
}

impl AuditService {
    /// The service behind a gate.
    #[must_use]
    pub fn new(gate: Gate) -> Self {
        Self { gate }
    }
}

#[tonic::async_trait]
impl pb::key_audit_server::KeyAudit for AuditService {
    async fn get_head(&self, request: Request<pb::GetHeadRequest>) -> Result<Response<pb::GetHeadResponse>, Status> {
        answer(&self.gate, Action::ReadHead, request, async |caller, _| {
            let grant = caller.grant_of_all::<ReadHead>().map_err(|_| AuthorityError::Denied)?;
            let (revision, head) = self.gate.authority()?.head(&grant);
            Ok(pb::GetHeadResponse {
                revision: revision.0,
                head: head.map(|head| head.to_string()).unwrap_or_default(),
            })
        })
        .await
    }
}
