//! Health and reflection, which answer anyone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keyward::grpc::LIMITS;
use keyward::grpc::pb::health::HealthListRequest;
use keyward::grpc::pb::health::health_check_response::ServingStatus as Listed;
use keyward::grpc::pb::health::health_client::HealthClient as ListClient;
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Asked;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Told;
use tonic_reflection::pb::v1::{ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse};

use crate::support::harness::{Site, error_reason};
use crate::support::rpcs::described;

/// Within the deadline of 10 s that a stop gives to what hangs.
const AT_ONCE: Duration = Duration::from_secs(5);

const VERSIONS: [&str; 2] = ["v1", "v1alpha"];

/// An open stream of reflection.
struct Reflection {
    requests: UnboundedSender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Reflection {
    /// The messages of both versions are the same.
    async fn open(channel: Channel, version: &str) -> Self {
        let (requests, asked) = unbounded_channel();
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.unwrap();
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let path: PathAndQuery = path.parse().unwrap();
        let asked = Request::new(UnboundedReceiverStream::new(asked));
        let answers = grpc.streaming(asked, path, ProstCodec::default()).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn try_ask(&mut self, asked: Option<Asked>) -> Result<Told, Status> {
        let request = ServerReflectionRequest { host: "somewhere".into(), message_request: asked };
        self.requests.send(request.clone()).unwrap();
        let answer = self.answers.message().await?.unwrap();
        assert_eq!(answer.original_request, Some(request));
        assert_eq!(answer.valid_host, "somewhere");
        Ok(answer.message_response.unwrap())
    }

    async fn ask(&mut self, asked: Asked) -> Told {
        self.try_ask(Some(asked)).await.unwrap()
    }

    async fn file(&mut self, asked: Asked) -> FileDescriptorProto {
        let Told::FileDescriptorResponse(found) = self.ask(asked.clone()).await else { panic!("{asked:?}") };
        let [file] = &found.file_descriptor_proto[..] else { panic!("one file") };
        FileDescriptorProto::decode(&**file).unwrap()
    }
}

fn code_of(told: &Told) -> Option<Code> {
    match told {
        Told::ErrorResponse(error) => Some(error.error_code.into()),
        _ => None,
    }
}

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn a_list_tells_the_health_of_all_services() {
    let site = Site::in_memory().await;
    let told = ListClient::new(site.channel()).list(HealthListRequest {}).await.unwrap().into_inner();
    let told: BTreeMap<_, _> = told.statuses.iter().map(|(name, told)| (&**name, told.status())).collect();
    // Of every service of ours, also of one that is added.
    let paths = described();
    let services = paths.iter().filter_map(|path| path.trim_start_matches('/').split('/').next());
    let names = services.filter(|name| name.starts_with("keyward.")).chain([""]);
    assert_eq!(told, names.map(|name| (name, Listed::Serving)).collect());
    assert_eq!(told.len(), 4);
}

#[tokio::test]
async fn a_watch_of_an_unknown_name_says_so_and_stays_open_until_the_stop() {
    let mut site = Site::in_memory().await;
    let mut health = HealthClient::new(site.channel());
    let mut watch = health.watch(named("nothing")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    let refused = health.check(named("nothing")).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::NotFound, "SERVICE_UNKNOWN"));
    tokio::select! {
        biased;
        said = watch.message() => panic!("{said:?}"),
        // The connection has gone through whatever it had to say of the watch.
        said = health.check(named("")) => assert_eq!(said.unwrap().into_inner().status(), ServingStatus::Serving),
    }
    tokio::time::timeout(AT_ONCE, site.stop()).await.unwrap();
    assert!(watch.message().await.unwrap().is_none(), "it ends");
}

#[tokio::test]
async fn what_reflection_does_not_know_is_an_answer_and_the_stream_goes_on() {
    let site = Site::in_memory().await;
    for version in VERSIONS {
        let mut reflection = Reflection::open(site.channel(), version).await;
        let extension = |containing_type: &str| ExtensionRequest {
            containing_type: containing_type.into(),
            extension_number: 1_000,
        };
        for unknown in [
            Asked::FileContainingSymbol("keyward.v1.Nothing".into()),
            Asked::FileContainingSymbol(String::new()),
            Asked::FileByFilename("keyward/v1/nothing.proto".into()),
            Asked::FileContainingExtension(extension("google.protobuf.FieldOptions")),
            Asked::FileContainingExtension(extension("nothing")),
            Asked::AllExtensionNumbersOfType("nothing".into()),
        ] {
            let told = reflection.ask(unknown.clone()).await;
            assert_eq!(code_of(&told), Some(Code::NotFound), "{version} {unknown:?} {told:?}");
        }
        assert_eq!(code_of(&reflection.try_ask(None).await.unwrap()), Some(Code::InvalidArgument));
        let told = reflection.ask(Asked::AllExtensionNumbersOfType("google.protobuf.FieldOptions".into())).await;
        let Told::AllExtensionNumbersResponse(found) = told else { panic!("{told:?}") };
        assert_eq!((&*found.base_type_name, found.extension_number.len()), ("google.protobuf.FieldOptions", 0));
        let file = reflection.file(Asked::FileContainingSymbol("keyward.v1.KeyAdmin".into())).await;
        assert_eq!(file.name(), "keyward/v1/admin.proto");
    }
}

#[tokio::test]
async fn reflection_tells_the_same_services_in_both_versions_and_every_file_that_they_import() {
    let site = Site::in_memory().await;
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "keyward.v1.KeyAdmin",
        "keyward.v1.KeyAudit",
        "keyward.v1.KeyVerify",
    ];
    for version in VERSIONS {
        let mut reflection = Reflection::open(site.channel(), version).await;
        let Told::ListServicesResponse(list) = reflection.ask(Asked::ListServices("*".into())).await else { panic!() };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert_eq!(names, expected, "{version}");

        let mut wanted = BTreeSet::from(["google/protobuf/descriptor.proto".to_owned()]);
        for name in names.into_iter().chain(["google.rpc.ErrorInfo".into(), "google.rpc.BadRequest".into()]) {
            wanted.insert(reflection.file(Asked::FileContainingSymbol(name)).await.name().to_owned());
        }
        let mut known = BTreeSet::new();
        while let Some(name) = wanted.pop_first() {
            let file = reflection.file(Asked::FileByFilename(name.clone())).await;
            assert_eq!(file.name(), name);
            known.insert(name);
            wanted.extend(file.dependency.into_iter().filter(|name| !known.contains(name)));
        }
        let imported = ["google/protobuf/duration.proto", "google/protobuf/timestamp.proto"];
        assert!(imported.iter().all(|name| known.contains(*name)), "{known:?}");
    }
}

#[tokio::test]
async fn reflection_finds_every_kind_of_symbol_and_describes_all_of_health() {
    let site = Site::in_memory().await;
    let mut reflection = Reflection::open(site.channel(), "v1").await;
    for (symbol, file) in [
        ("google.protobuf.Timestamp", "google/protobuf/timestamp.proto"),
        ("google.protobuf.FieldDescriptorProto.Type", "google/protobuf/descriptor.proto"),
        ("keyward.v1.KeyVerify.Verify", "keyward/v1/verify.proto"),
        ("keyward.v1.VerifyRequest.secret", "keyward/v1/verify.proto"),
        // The values of an enum are beside it.
        ("keyward.v1.STATE_DISABLED", "keyward/v1/key.proto"),
        ("grpc.health.v1.HealthCheckResponse.SERVICE_UNKNOWN", "grpc/health/v1/health.proto"),
    ] {
        let found = reflection.file(Asked::FileContainingSymbol(symbol.into())).await;
        assert_eq!(found.name(), file, "{symbol}");
    }
    let health = reflection.file(Asked::FileContainingSymbol("grpc.health.v1.Health".into())).await;
    let methods: Vec<_> = health.service[0].method.iter().map(|method| method.name().to_owned()).collect();
    assert_eq!(methods, ["Check", "List", "Watch"]);
}

#[tokio::test]
async fn an_idle_stream_of_reflection_does_not_hold_up_a_stop() {
    for version in VERSIONS {
        let mut site = Site::in_memory().await;
        let mut reflection = Reflection::open(site.channel(), version).await;
        reflection.ask(Asked::ListServices(String::new())).await;
        tokio::time::timeout(AT_ONCE, site.stop()).await.unwrap();
        let ended = reflection.answers.message().await.unwrap_err();
        assert_eq!((ended.code(), &*error_reason(&ended)), (Code::Unavailable, "STOPPING"));
    }
}

#[tokio::test]
async fn what_anyone_may_ask_is_short() {
    let site = Site::in_memory().await;
    // The number of its field and its length take three bytes.
    let longest = "x".repeat(LIMITS.open_message_bytes_max - 3);
    let mut health = HealthClient::new(site.channel());
    for (name, code) in [(longest.clone(), Code::NotFound), (format!("{longest}x"), Code::ResourceExhausted)] {
        assert_eq!(health.check(named(&name)).await.unwrap_err().code(), code);
    }
    let mut reflection = Reflection::open(site.channel(), "v1").await;
    let refused = reflection.try_ask(Some(Asked::FileContainingSymbol(longest))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}
