//! Start, stop, health, sockets.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;
use std::time::Duration;

use keyward::app::{Adjustable, App, Deps, Engine, StartError};
use keyward::authority::{Authority, AuthorityDeps, ChangeOptions};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward::grpc::state::StateHandle;
use keyward::health::Health;
use keyward::index::Index;
use keyward::layer::authn::{AuthnLayer, CallerLimits};
use keyward::layer::failures::AuthnFailures;
use keyward::layer::in_flight::CallsInFlight;
use keyward::server::passed::PassedSockets;
use keyward::services::{Demand, ServiceGroup, Services, Terms};
use keyward::store::memory::{MemoryEngine, MemoryStore};
use keyward::store::{RecordWrite, Store};
use keyward_core::access::{Caller, ChangeState, Identity};
use keyward_core::clock::ManualClock;
use keyward_core::digest::{Pepper, PepperRing};
use keyward_core::record::State;
use keyward_core::scope::Scope;
use keyward_core::testing::SeededEntropy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use zeroize::Zeroizing;

use crate::support::harness::{Handle, START, Site, error_reason};
use crate::support::local_store::{commit, key};

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn health_is_told_by_name_and_without_a_credential() {
    let site = Site::start().await;
    let mut health = HealthClient::new(site.channel());
    for service in ["", "keyward.v1.KeyVerify", "keyward.v1.KeyAdmin", "keyward.v1.KeyAudit"] {
        let status = health.check(named(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(named("nothing")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stop_tells_watchers_and_does_not_wait_for_them() {
    let mut site = Site::start().await;
    let mut watch = HealthClient::new(site.channel()).watch(named("keyward.v1.KeyVerify")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let app = site.app();
    let stopped = tokio::spawn(app.stop());
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(watch.message().await.unwrap().is_none(), "and then the stream ends");
    // Well within the deadline of 10 s, which a hanging connection would use up.
    tokio::time::timeout(Duration::from_secs(5), stopped).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_lets_calls_finish() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let (sender, mut created) = tokio::sync::mpsc::unbounded_channel();
    // Each always has a call under way, until the server stops.
    let callers: Vec<_> = (0..64)
        .map(|number| {
            let (admin, sender) = (admin.clone(), sender.clone());
            tokio::spawn(async move {
                while let Ok(key) = admin.create(crate::support::harness::new_key(&format!("key {number}"), &[])).await
                {
                    sender.send(key).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let mut acknowledged = vec![created.recv().await.unwrap()];
    site.stop().await;
    for caller in callers {
        caller.await.unwrap();
    }
    while let Some(key) = created.recv().await {
        acknowledged.push(key);
    }
    site.try_start().await.unwrap();
    for created in acknowledged {
        assert_eq!(site.admin().reason(&created.secret).await, Reason::Ok);
    }
}

#[tokio::test]
async fn until_the_data_is_loaded_calls_are_told_to_come_back() {
    let state = StateHandle::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let services = Services::ALL.without(ServiceGroup::Reflection);
    let routes = keyward::grpc::routes(&state, &CancellationToken::new(), Health::new(&[]), services).unwrap();
    let limits =
        CallerLimits { in_flight: CallsInFlight::new(8), failures: AuthnFailures::new(std::time::Duration::ZERO) };
    let server = Server::builder()
        .layer(AuthnLayer::new(state, Terms { services, demand: Demand::Either, proxies: None }, limits))
        .add_routes(routes);
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy();

    let refused = Handle::new(channel, Some("anything".into())).ask(pb::VerifyRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unavailable, "STARTING"));
    serving.abort();
}

fn settings(dir: &tempfile::TempDir, listen: &[String]) -> Settings {
    let flags = Flags {
        data_dir: Some(dir.path().join("data")),
        listen: listen.to_vec(),
        ops_listen: Some("off".into()),
        ..Flags::default()
    };
    Settings::load(&flags, None).unwrap().settings
}

fn deps() -> Deps {
    Deps {
        clock: Arc::new(ManualClock::at(START)),
        entropy: Arc::new(SeededEntropy::new(3)),
        sockets: PassedSockets::default(),
        adjustable: Adjustable::default(),
        engine: Box::new(MemoryEngine::default()),
    }
}

#[tokio::test]
async fn it_listens_on_several_addresses_and_on_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("keyward.sock");
    let listen = ["127.0.0.1:0".to_owned(), "[::1]:0".to_owned(), format!("unix:{}", socket.display())];
    // The socket that a killed process left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let app = App::start(settings(&dir, &listen), deps()).await.unwrap();
    let found = std::fs::metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);

    let admin = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    for addr in app.addrs() {
        let endpoint = match addr {
            keyward::server::addr::ListenAddr::Tcp(addr) => format!("http://{addr}"),
            keyward::server::addr::ListenAddr::Unix(path) => format!("unix://{}", path.display()),
            keyward::server::addr::ListenAddr::Passed(name) => panic!("{name} is no address"),
        };
        let channel: Channel = Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap();
        let caller = Handle::new(channel, Some(admin.trim().to_owned()));
        caller.list(pb::ListKeysRequest::default()).await.unwrap();
    }
    app.stop().await.unwrap();
    assert!(!socket.exists(), "the socket goes with the server");
}

/// The clock is paused, and jumps when everything waits.
#[tokio::test(start_paused = true)]
async fn a_connection_that_says_nothing_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    // On this runtime, whose clock is paused.
    let settings = Settings { serving_threads: 0, ..settings(&dir, &["127.0.0.1:0".to_owned()]) };
    let app = App::start(settings, deps()).await.unwrap();
    let keyward::server::addr::ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!() };
    for half in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut silent = tokio::net::TcpStream::connect(addr).await.unwrap();
        silent.write_all(half).await.unwrap();
        let mut heard = vec![];
        // It may send its settings first.
        let ended = tokio::time::timeout(Duration::from_secs(60), silent.read_to_end(&mut heard)).await;
        drop(ended.expect("the connection is closed"));
    }
    app.stop().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_a_key_is_disabled_waits_until_it_is_so() {
    let (store, index) = (Arc::new(MemoryStore::default()), Arc::new(Index::default()));
    let mut record = key(1);
    record.spec.policy.state = State::Disabled;
    let revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(record))])).await.unwrap();
    let authority = Authority::new(AuthorityDeps {
        store,
        index: index.clone(),
        peppers: Arc::new(PepperRing::new(vec![Pepper::new(Zeroizing::new([1; 32]))]).unwrap()),
        clock: Arc::new(ManualClock::at(START)),
        entropy: Arc::new(SeededEntropy::new(1)),
        page_token_key: Zeroizing::new([1; 32]),
    });
    let caller = Caller::new(
        Identity::of_key(key(2).key_id, key(2).secret.digest, None),
        &[Scope::parse("keyward.operator").unwrap()],
    );
    let grant = caller.grant::<ChangeState>(key(1).tenant).unwrap();
    let (key_id, options) = (key(1).key_id, ChangeOptions::default());
    let mut disabled = std::pin::pin!(authority.change_state(&grant, &key_id, State::Disabled, "", &options));
    assert!(futures_util::poll!(&mut disabled).is_pending(), "no verdict knows of it yet");
    index.advance_to(revision);
    assert_eq!(disabled.await.unwrap().revision, revision);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let refused = App::start(settings(&dir, std::slice::from_ref(&addr)), deps()).await.err().unwrap();
    assert!(matches!(refused, StartError::Listen { .. }));
    assert!(refused.to_string().contains(&addr), "{refused}");
}

#[tokio::test]
async fn a_first_start_that_was_cut_short_begins_again() {
    // As after a crash between writing the key file and committing: a key file, and an empty log.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/admin.key"), "stale\n").unwrap();
    let listen = ["127.0.0.1:0".to_owned()];
    let (settings, deps) = (settings(&dir, &listen), deps());
    let engine = Engine::Sled.configure(&settings, &deps.clock, &deps.entropy);
    let app = App::start(settings, Deps { engine, ..deps }).await.unwrap();
    let keyward::server::addr::ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!() };
    let admin = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect_lazy();
    let caller = Handle::new(channel, Some(admin.trim().to_owned()));
    caller.list(pb::ListKeysRequest::default()).await.unwrap();
    app.stop().await.unwrap();
}
