//! Every RPC that the server describes, a request for each, and calls of one by its path and its bytes.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::Frame;
use keyward::grpc::pb;
use keyward::grpc::pb::health::HealthCheckRequest;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tower_service::Service;

use super::h2peer::prefixed;
use super::harness::{Issued, ask, new_key, rotate_at_use, update};

/// An owner whose keys are no targets.
const OWNER: &str = "Somebody else";

/// A field that no message has. It is passed over.
const UNKNOWN_FIELD: [u8; 3] = [0xf8, 0x7f, 0x01];

/// The paths of all RPCs that the served descriptors describe, in their order.
pub(crate) fn described() -> Vec<String> {
    let sets = [
        pb::DESCRIPTORS,
        pb::health::DESCRIPTORS,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|bytes| FileDescriptorSet::decode(bytes).unwrap().file);
    let services = files.flat_map(|file| {
        let package = file.package().to_owned();
        file.service.into_iter().map(move |service| (package.clone(), service))
    });
    let paths = services.flat_map(|(package, service)| {
        let path = format!("/{package}.{}", service.name());
        service.method.into_iter().map(move |method| format!("{path}/{}", method.name()))
    });
    paths.collect()
}

/// A request that would be answered, never empty. It is about the target, its secret or its tenant. A change
/// takes `mark`, so that one with another mark changes something again.
///
/// # Panics
/// When there is none for this path: a new RPC needs one.
pub(crate) fn request(path: &str, target: &Issued, mark: &str) -> Vec<u8> {
    let (key_id, tenant) = (target.key.key_id.clone(), target.key.tenant.clone());
    let reason = mark.to_owned();
    match path {
        "/keyward.v1.KeyAdmin/CreateKey" => {
            // In tenant `system` a key must have a role.
            pb::CreateKeyRequest { tenant, scopes: target.key.scopes.clone(), ..new_key(mark, &[]) }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/GetKey" => pb::GetKeyRequest { key_id, tenant }.encode_to_vec(),
        "/keyward.v1.KeyAdmin/ListKeys" => {
            let selector = Some(pb::KeySelector { tenant, ..Default::default() });
            pb::ListKeysRequest { selector, page_size: 7, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/UpdateKey" => {
            update(&pb::Key { display_name: mark.into(), ..target.key.clone() }, &["display_name"]).encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/DisableKey" => {
            pb::DisableKeyRequest { key_id, tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/EnableKey" => {
            pb::EnableKeyRequest { key_id, tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/RevokeKey" => {
            pb::RevokeKeyRequest { key_id, tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/RotateKey" => rotate_at_use(&target.key, 1_000).encode_to_vec(),
        "/keyward.v1.KeyAdmin/FinishRotation" => {
            pb::FinishRotationRequest { key_id, tenant, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/CancelRotation" => {
            pb::CancelRotationRequest { key_id, tenant, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/DeleteKey" => {
            pb::DeleteKeyRequest { key_id, tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/UndeleteKey" => {
            pb::UndeleteKeyRequest { key_id, tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/CreateTenant" => {
            pb::CreateTenantRequest { tenant: mark.into(), ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/GetTenant" => pb::GetTenantRequest { tenant }.encode_to_vec(),
        "/keyward.v1.KeyAdmin/ListTenants" => {
            pb::ListTenantsRequest { page_size: 7, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/UpdateTenant" => {
            let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".into()] });
            let tenant = Some(pb::Tenant { tenant, display_name: mark.into(), ..Default::default() });
            pb::UpdateTenantRequest { tenant, update_mask, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/SuspendTenant" => {
            pb::SuspendTenantRequest { tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/ResumeTenant" => {
            pb::ResumeTenantRequest { tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/SuspendOwner" => {
            pb::SuspendOwnerRequest { owner: OWNER.into(), tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/ResumeOwner" => {
            pb::ResumeOwnerRequest { owner: OWNER.into(), tenant, reason, ..Default::default() }.encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/SetEpoch" => {
            let owner = pb::OwnerName { owner: OWNER.into(), tenant };
            pb::SetEpochRequest { holder: Some(pb::set_epoch_request::Holder::Owner(owner)), ..Default::default() }
                .encode_to_vec()
        }
        "/keyward.v1.KeyAdmin/GetOwner" => pb::GetOwnerRequest { owner: OWNER.into(), tenant }.encode_to_vec(),
        "/keyward.v1.KeyAdmin/GetIssuer" => pb::GetIssuerRequest { issuer: "keyward".into() }.encode_to_vec(),
        "/keyward.v1.KeyAdmin/SetLogFilter" => pb::SetLogFilterRequest { filter: "info".into() }.encode_to_vec(),
        "/keyward.v1.KeyAdmin/Backup" | "/keyward.v1.KeyAudit/GetHead" | "/grpc.health.v1.Health/List" => {
            UNKNOWN_FIELD.to_vec()
        }
        "/keyward.v1.KeyVerify/Verify" => ask(&target.secret).encode_to_vec(),
        "/keyward.v1.KeyVerify/BatchVerify" => {
            pb::BatchVerifyRequest { requests: vec![ask(&target.secret)] }.encode_to_vec()
        }
        "/keyward.v1.KeyVerify/StreamVerify" => {
            pb::StreamVerifyRequest { request: Some(ask(&target.secret)) }.encode_to_vec()
        }
        "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch" => {
            HealthCheckRequest { service: "keyward.v1.KeyVerify".into() }.encode_to_vec()
        }
        // The messages of both versions are the same.
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        | "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo" => {
            let message_request = Some(MessageRequest::ListServices(String::new()));
            ServerReflectionRequest { message_request, ..Default::default() }.encode_to_vec()
        }
        path => panic!("{path} has no request in tests/it/support/rpcs.rs"),
    }
}

/// Makes a call with one message, and returns all bytes of its reply; of Health.Watch, which does not end,
/// the first ones.
pub(crate) async fn call(
    channel: &Channel,
    path: &str,
    credential: Option<&str>,
    message: &[u8],
) -> Result<Vec<u8>, Status> {
    let mut request = Request::post(format!("http://keyward{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(credential) = credential {
        request = request.header("authorization", format!("Bearer {credential}"));
    }
    let request = request.body(Body::new(http_body_of(prefixed(message)))).unwrap();
    let mut channel = channel.clone();
    poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    // A reply without a body has its status in its head.
    if let Some(status) = Status::from_header_map(response.headers()) {
        return if status.code() == Code::Ok { Ok(vec![]) } else { Err(status) };
    }
    if path == "/grpc.health.v1.Health/Watch" {
        let mut body = pin!(response.into_body());
        let first = poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await.unwrap()?;
        return Ok(first.into_data().unwrap().to_vec());
    }
    rest_of(response.into_body()).await.1
}

/// All that comes of a reply: its bytes, and how it ends.
pub(crate) async fn rest_of(body: Body) -> (usize, Result<Vec<u8>, Status>) {
    let (mut body, mut bytes) = (pin!(body), vec![]);
    loop {
        let frame = poll_fn(|cx| http_body::Body::poll_frame(body.as_mut(), cx)).await;
        let ended = match frame {
            None => Status::unknown("it has no trailers"),
            Some(Err(status)) => status,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    bytes.extend_from_slice(&data);
                    continue;
                }
                Err(frame) => Status::from_header_map(&frame.into_trailers().unwrap_or_default()).unwrap(),
            },
        };
        return (bytes.len(), if ended.code() == Code::Ok { Ok(bytes) } else { Err(ended) });
    }
}

/// A body of the pieces of a stream.
pub(crate) struct Pieces<S>(pub(crate) S);

impl<S> http_body::Body for Pieces<S>
where
    S: Stream<Item = Result<Frame<Bytes>, Status>> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_next(cx)
    }
}

/// A body of one piece.
pub(crate) fn http_body_of(bytes: Vec<u8>) -> Pieces<impl Stream<Item = Result<Frame<Bytes>, Status>> + Unpin> {
    Pieces(futures_util::stream::iter([Ok(Frame::data(Bytes::from(bytes)))]))
}
