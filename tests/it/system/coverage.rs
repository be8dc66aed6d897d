//! Every call that the server offers refuses a caller without a credential, save those on a list that may
//! only shrink.

use std::collections::BTreeSet;

use keyward::grpc::calls::{RPCS, guarded, rpc};
use keyward::grpc::pb;
use keyward_core::access::Action;
use keyward_core::entropy::Entropy;
use keyward_core::testing::SeededEntropy;
use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::method_options::IdempotencyLevel;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::api::administrators::write_to;
use crate::support::harness::{START, Site, new_key};
use crate::support::rpcs::described;

fn service(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

async fn call(site: &Site, path: &str, credential: Option<&str>) -> Result<(), Status> {
    let mut grpc = Grpc::new(site.channel());
    grpc.ready().await.unwrap();
    let mut request = Request::new(());
    if let Some(credential) = credential {
        request.metadata_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
    }
    let path: PathAndQuery = path.parse().unwrap();
    grpc.unary(request, path, ProstCodec::<(), ()>::default()).await.map(drop)
}

#[test]
fn every_call_is_listed_with_its_action_or_open() {
    let listed: BTreeSet<_> = RPCS.iter().map(|rpc| rpc.path.to_owned()).collect();
    assert_eq!(described().into_iter().collect::<BTreeSet<_>>(), listed);
    assert!(RPCS.iter().all(|rpc| rpc.kind.is_open == rpc.action.is_none()));
    let open: BTreeSet<_> = RPCS.iter().filter(|rpc| rpc.kind.is_open).map(|rpc| service(rpc.path)).collect();
    assert_eq!(open.len(), 3, "this list may only shrink: {open:?}");
}

#[tokio::test]
async fn every_call_refuses_an_anonymous_caller() {
    let site = Site::start().await;
    let mut refused = 0;
    let mut garbage = [0; 32];
    SeededEntropy::new(9).fill(&mut garbage).unwrap();
    let garbage = data_encoding::HEXLOWER.encode(&garbage);
    for path in described() {
        if rpc(&path).kind.is_open {
            continue;
        }
        for credential in [None, Some(""), Some(&*garbage), Some("kw_live_")] {
            let status = call(&site, &path, credential).await.expect_err(&path);
            assert_eq!(status.code(), Code::Unauthenticated, "{path} {credential:?}");
        }
        refused += 1;
    }
    assert_eq!(refused, guarded().count());
    // What is not described is refused too.
    for path in ["/keyward.v1.KeyAdmin/Nothing", "/keyward.v1.KeyAdmin/createkey", "/x/y", "/keyward.v1.KeyAdmin"] {
        assert_eq!(call(&site, path, None).await.unwrap_err().code(), Code::Unauthenticated, "{path}");
        assert_eq!(
            call(&site, path, Some(site.admin_secret())).await.unwrap_err().code(),
            Code::Unimplemented,
            "{path}"
        );
    }
}

#[tokio::test]
async fn every_call_refuses_a_caller_without_a_role_for_it() {
    let mut site = Site::start().await;
    let credential = async |label: &str, roles: &[&str]| {
        let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key(label, roles) };
        site.admin().issued(request).await.secret
    };
    let (bare, verifier) =
        (credential("No role", &["keyward.viewer"]).await, credential("Verifier", &["keyward.verifier"]).await);
    // No call makes one any more.
    site.stop().await;
    write_to(site.dir.path(), START, |mut key| {
        key.spec.policy.scopes.clear();
        (key.spec.display_name == "No role").then_some(key)
    })
    .await;
    site.try_start().await.unwrap();
    for (path, action) in guarded() {
        assert_eq!(call(&site, path, Some(&bare)).await.unwrap_err().code(), Code::PermissionDenied, "{path}");
        if action != Action::Verify {
            assert_eq!(call(&site, path, Some(&verifier)).await.unwrap_err().code(), Code::PermissionDenied, "{path}");
        }
    }
}

/// The messages that have a field for a secret, by their names.
#[test]
fn a_message_that_carries_a_secret_does_not_show_it() {
    const SECRET: &str = "kw_live_an-unguessable-text";
    let request = pb::VerifyRequest { secret: SECRET.into(), ..Default::default() };
    let shown = [
        ("CreateKeyResponse", format!("{:#?}", pb::CreateKeyResponse { secret: SECRET.into(), ..Default::default() })),
        ("RotateKeyResponse", format!("{:#?}", pb::RotateKeyResponse { secret: SECRET.into(), ..Default::default() })),
        ("VerifyRequest", format!("{request:#?}")),
    ];
    for (message, text) in &shown {
        assert!(text.starts_with(message) && !text.contains("unguessable"), "{text}");
    }
    let batch = pb::BatchVerifyRequest { requests: vec![request.clone()] };
    let stream = pb::StreamVerifyRequest { request: Some(request) };
    assert!(!format!("{batch:?} {stream:?}").contains("unguessable"));

    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    let messages = files.iter().filter(|file| file.package() == "keyward.v1").flat_map(|file| &file.message_type);
    let with_secret = messages.filter(|message| message.field.iter().any(|field| field.name() == "secret"));
    let with_secret: BTreeSet<_> = with_secret.map(|message| message.name()).collect();
    assert_eq!(with_secret, shown.iter().map(|(message, _)| *message).collect());
}

/// What the descriptors of a message of `keyward.v1` have: each field's number and type by its name.
fn fields_of(message: &str) -> std::collections::BTreeMap<String, (i32, prost_types::field_descriptor_proto::Type)> {
    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    let name = message.trim_start_matches(".keyward.v1.");
    let found = files.iter().filter(|file| file.package() == "keyward.v1").flat_map(|file| &file.message_type);
    let found = found.into_iter().find(|it| it.name() == name).unwrap_or_else(|| panic!("{message}"));
    found.field.iter().map(|field| (field.name().to_owned(), (field.number(), field.r#type()))).collect()
}

/// A filter of the log is no change of it, and setting it twice comes to the same.
#[test]
fn every_change_can_be_asked_for_again_and_what_issues_a_secret_can_seal_it() {
    use prost_types::field_descriptor_proto::Type;
    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    let admin = files.iter().flat_map(|file| &file.service).find(|service| service.name() == "KeyAdmin").unwrap();
    let (mut changes, mut issuing) = (0, 0);
    for method in &admin.method {
        let options = method.options.as_ref();
        let is_read = options.is_some_and(|it| it.idempotency_level() == IdempotencyLevel::NoSideEffects);
        if is_read || method.name() == "SetLogFilter" {
            continue;
        }
        let (request, reply) = (fields_of(method.input_type()), fields_of(method.output_type()));
        let name = method.name();
        assert_eq!(request.get("request_id"), Some(&(21, Type::String)), "{name}");
        assert_eq!(request.get("validate_only"), Some(&(20, Type::Bool)), "{name}");
        assert_eq!(reply.get("revision").map(|field| field.1), Some(Type::Uint64), "{name}");
        let issues = reply.contains_key("secret");
        let key = request.get("reply_public_key");
        assert_eq!(key, issues.then_some(&(22, Type::Bytes)), "{name}");
        assert_eq!(reply.get("sealed_secret").map(|field| field.1), issues.then_some(Type::Bytes), "{name}");
        changes += 1;
        issuing += usize::from(issues);
    }
    assert!(changes >= 6 && issuing >= 1, "{changes} {issuing}");
}
