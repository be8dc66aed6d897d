//! Calls to a server, each with a limit: a call that hangs is a failure, not a wait.

use std::time::Duration;

use keyward::grpc::pb;
use keyward::grpc::pb::key_admin_client::KeyAdminClient;
use keyward::grpc::pb::key_verify_client::KeyVerifyClient;
use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::Failure;

/// A call without an answer by then hangs. Longer than any freeze of the server by this program.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Keys of a page of a list: the most that the server gives.
const PAGE_KEYS: i32 = 1_000;

/// One connection, and who calls on it.
#[derive(Clone)]
pub(crate) struct Caller {
    admin: KeyAdminClient<Channel>,
    verify: KeyVerifyClient<Channel>,
    bearer: MetadataValue<Ascii>,
}

/// How a call ended that has no answer.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The server has said no for now, and has changed nothing.
    Busy,
    /// The connection broke, or the server could not tell: the change may have been made, or not.
    Unknown,
    /// The server said what it must never say to this call.
    Wrong(Status),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::ResourceExhausted => Self::Busy,
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => Self::Unknown,
            _ => Self::Wrong(status),
        }
    }
}

macro_rules! calls {
    ($($name:ident: $client:ident.$call:ident($request:ident) -> $response:ident;)*) => {
        $(pub(crate) async fn $name(&self, message: pb::$request) -> Result<pb::$response, Status> {
            let mut client = self.$client.clone();
            let called = timeout(CALL_LIMIT, client.$call(self.request(message))).await;
            let hangs = |_| Status::deadline_exceeded(format!("{} has no answer after {CALL_LIMIT:?}", stringify!($name)));
            called.map_err(hangs)?.map(Response::into_inner)
        })*
    };
}

impl Caller {
    /// Connects to an address as the holder of a secret.
    pub(crate) async fn connect(addr: &str, secret: &str) -> Result<Self, Failure> {
        let channel = Endpoint::from_shared(format!("http://{addr}"))?.connect_timeout(CALL_LIMIT).connect().await?;
        let bearer = format!("Bearer {secret}").parse()?;
        Ok(Self { admin: KeyAdminClient::new(channel.clone()), verify: KeyVerifyClient::new(channel), bearer })
    }

    calls! {
        create: admin.create_key(CreateKeyRequest) -> CreateKeyResponse;
        get: admin.get_key(GetKeyRequest) -> GetKeyResponse;
        list: admin.list_keys(ListKeysRequest) -> ListKeysResponse;
        update: admin.update_key(UpdateKeyRequest) -> UpdateKeyResponse;
        disable: admin.disable_key(DisableKeyRequest) -> DisableKeyResponse;
        enable: admin.enable_key(EnableKeyRequest) -> EnableKeyResponse;
        revoke: admin.revoke_key(RevokeKeyRequest) -> RevokeKeyResponse;
        rotate: admin.rotate_key(RotateKeyRequest) -> RotateKeyResponse;
        finish: admin.finish_rotation(FinishRotationRequest) -> FinishRotationResponse;
        cancel: admin.cancel_rotation(CancelRotationRequest) -> CancelRotationResponse;
        delete: admin.delete_key(DeleteKeyRequest) -> DeleteKeyResponse;
        undelete: admin.undelete_key(UndeleteKeyRequest) -> UndeleteKeyResponse;
        create_tenant: admin.create_tenant(CreateTenantRequest) -> CreateTenantResponse;
        ask: verify.verify(VerifyRequest) -> VerifyResponse;
    }

    /// All keys of a tenant, deleted ones too, and the lowest revision that a page was true at.
    pub(crate) async fn all_keys(&self, tenant: &str) -> Result<(Vec<pb::Key>, u64), Status> {
        let selector = Some(pb::KeySelector { tenant: tenant.to_owned(), ..Default::default() });
        let mut request =
            pb::ListKeysRequest { selector, page_size: PAGE_KEYS, show_deleted: true, ..Default::default() };
        let (mut keys, mut revision) = (vec![], u64::MAX);
        loop {
            let page = self.list(request.clone()).await?;
            keys.extend(page.keys);
            revision = revision.min(page.revision);
            if page.next_page_token.is_empty() {
                return Ok((keys, revision));
            }
            request.page_token = page.next_page_token;
        }
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.bearer.clone());
        request
    }
}
