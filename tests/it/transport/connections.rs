//! Connections on one thread or several, and what long calls do to others.

use std::sync::Arc;
use std::time::Duration;

use keyward::app::{Adjustable, App, Deps};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward::server::addr::ListenAddr;
use keyward::server::passed::PassedSockets;
use keyward::store::memory::MemoryEngine;
use keyward_core::clock::ManualClock;
use keyward_core::testing::SeededEntropy;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::harness::{Handle, START, after_start, ask, bad_fields, new_key, strings, update};

/// A server with this many core threads.
struct Server {
    app: App,
    admin: String,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
}

impl Server {
    async fn start(serving_threads: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let flags = Flags {
            data_dir: Some(dir.path().join("data")),
            listen: vec!["127.0.0.1:0".into(), format!("unix:{}", socket.display())],
            ops_listen: Some("off".into()),
            ..Flags::default()
        };
        let settings = Settings { serving_threads, ..Settings::load(&flags, None).unwrap().settings };
        let clock = Arc::new(ManualClock::at(START));
        let deps = Deps {
            clock: clock.clone(),
            entropy: Arc::new(SeededEntropy::new(5)),
            sockets: PassedSockets::default(),
            adjustable: Adjustable::default(),
            engine: Box::new(MemoryEngine::default()),
        };
        let app = App::start(settings, deps).await.unwrap();
        let admin = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap().trim().to_owned();
        Self { app, admin, clock, dir }
    }

    fn tcp(&self) -> String {
        let ListenAddr::Tcp(addr) = &self.app.addrs()[0] else { panic!("a TCP listener") };
        format!("http://{addr}")
    }

    fn unix(&self) -> String {
        format!("unix://{}", self.dir.path().join("socket").display())
    }

    /// The administrator, on a connection of its own.
    async fn admin(&self, endpoint: String) -> Handle {
        Handle::new(connect(endpoint).await, Some(self.admin.clone()))
    }
}

async fn connect(endpoint: String) -> Channel {
    Endpoint::from_shared(endpoint).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn connections_are_served_on_any_number_of_threads() {
    for threads in [0, 1, 3] {
        let server = Server::start(threads).await;
        for endpoint in [server.tcp(), server.unix(), server.tcp(), server.unix(), server.tcp()] {
            let admin = server.admin(endpoint.clone()).await;
            let issued = admin.issue("Key", &["orders.read"]).await;
            assert_eq!(admin.reason(&issued.secret).await, Reason::Ok, "{threads} {endpoint}");
            admin.disable_key(&issued.key).await;
            assert_eq!(admin.reason(&issued.secret).await, Reason::Disabled, "{threads} {endpoint}");
        }
        server.app.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_key_disabled_on_one_thread_is_refused_on_all_others() {
    let server = Server::start(4).await;
    let mut callers = vec![];
    for _ in 0..8 {
        callers.push(server.admin(server.tcp()).await);
    }
    for round in 0..50 {
        let admin = &callers[round % callers.len()];
        let issued = admin.issue("Key", &[]).await;
        for caller in &callers {
            assert_eq!(caller.reason(&issued.secret).await, Reason::Ok);
        }
        admin.disable_key(&issued.key).await;
        for caller in &callers {
            assert_eq!(caller.reason(&issued.secret).await, Reason::Disabled, "round {round}");
        }
    }
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_watch_of_health_hears_of_the_stop_on_its_thread() {
    let server = Server::start(2).await;
    let mut watches = vec![];
    for endpoint in [server.tcp(), server.unix(), server.tcp()] {
        let request = HealthCheckRequest { service: "keyward.v1.KeyVerify".into() };
        let mut watch = HealthClient::new(connect(endpoint).await).watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    let stopped = tokio::spawn(server.app.stop());
    for watch in &mut watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.message().await.unwrap().is_none());
    }
    tokio::time::timeout(Duration::from_secs(5), stopped).await.unwrap().unwrap().unwrap();
}

/// Changes run elsewhere, and a stream on the same connection goes on.
#[tokio::test]
async fn a_stream_goes_on_beside_changes_on_its_connection() {
    let server = Server::start(2).await;
    for endpoint in [server.tcp(), server.unix()] {
        let caller = server.admin(endpoint).await;
        let (requests, sent) = tokio::sync::mpsc::channel(1);
        let mut verdicts = caller.stream(tokio_stream::wrappers::ReceiverStream::new(sent)).await.unwrap();
        for _ in 0..10 {
            let issued = caller.issue("Key", &[]).await;
            requests.send(crate::api::stream::asking(ask(&issued.secret))).await.unwrap();
            let said = verdicts.message().await.unwrap().unwrap().result;
            let Some(pb::stream_verify_response::Result::Response(said)) = said else { panic!("{said:?}") };
            assert_eq!(said.reason(), Reason::Ok);
        }
    }
    tokio::time::timeout(Duration::from_secs(20), server.app.stop()).await.unwrap().unwrap();
}

/// One connection always has calls under way; another one on the same thread is answered all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_connection_does_not_starve_others_on_its_thread() {
    let server = Server::start(1).await;
    let admin = server.admin(server.tcp()).await;
    let issued = admin.issue("Key", &[]).await;
    let busy = server.admin(server.tcp()).await;
    let (sender, mut answers) = tokio::sync::mpsc::channel::<()>(1);
    let flood: Vec<_> = (0..200)
        .map(|_| {
            let (busy, secret, sender) = (busy.clone(), issued.secret.clone(), sender.clone());
            tokio::spawn(async move {
                loop {
                    assert_eq!(busy.reason(&secret).await, Reason::Ok);
                    let _full = sender.try_send(());
                }
            })
        })
        .collect();
    answers.recv().await.unwrap();
    for _ in 0..200 {
        assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
        admin.create(new_key("Beside", &[])).await.unwrap();
    }
    answers.recv().await.expect("the flood goes on");
    for caller in flood {
        caller.abort();
    }
    server.app.stop().await.unwrap();
}

/// Unusual requests take the slow path. Both paths must give the same verdict.
#[tokio::test]
async fn both_paths_give_the_same_verdict() {
    let server = Server::start(1).await;
    let admin = server.admin(server.tcp()).await;
    let keys = [
        admin.issue("Plain", &["orders.*"]).await,
        admin.issued(pb::CreateKeyRequest { audiences: vec!["billing".into()], ..new_key("Audience", &["a"]) }).await,
        admin.issued(pb::CreateKeyRequest { allowed_cidrs: vec!["10.0.0.0/8".into()], ..new_key("Net", &["a"]) }).await,
        admin.issued(pb::CreateKeyRequest { disabled: true, ..new_key("Disabled", &["a"]) }).await,
    ];
    let mut secrets: Vec<_> = keys.iter().map(|issued| issued.secret.clone()).collect();
    secrets.extend(["".into(), "garbage".into(), "x".repeat(10_000), "x".repeat(40_000)]);
    let lists: [&[&str]; 5] = [&[], &["orders.read"], &["a"], &["a", "orders.read"], &["a"; 9]];
    let mut reasons = std::collections::BTreeSet::new();
    for secret in &secrets {
        for (all, any) in lists.iter().flat_map(|all| lists.iter().map(move |any| (all, any))) {
            for (audience, client_ip, tenant) in
                [("", "", ""), ("billing", "::ffff:10.1.2.3", "default"), ("other", "11.0.0.1", "acme")]
            {
                let request = pb::VerifyRequest {
                    all_scopes: strings(all),
                    any_scopes: strings(any),
                    audience: audience.into(),
                    client_ip: client_ip.into(),
                    tenant: tenant.into(),
                    ..ask(secret)
                };
                let usual = admin.ask(request.clone()).await.unwrap();
                let explained = admin.ask(pb::VerifyRequest { explain: true, ..request }).await.unwrap();
                assert!(usual.checks.is_empty() && !explained.checks.is_empty());
                reasons.insert(usual.reason);
                assert_eq!(usual, pb::VerifyResponse { checks: vec![], ..explained });
            }
        }
    }
    assert_eq!(reasons.len(), 7, "all of OK, MALFORMED, UNKNOWN, DISABLED, SCOPE, AUDIENCE and IP: {reasons:?}");
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn both_paths_refuse_bad_fields() {
    let server = Server::start(1).await;
    let admin = server.admin(server.tcp()).await;
    let issued = admin.issue("Plain", &["a"]).await;
    let secret = || issued.secret.clone();
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    for (field, request) in [
        ("tenant", pb::VerifyRequest { tenant: "A".into(), ..ask(&issued.secret) }),
        ("all_scopes[0]", pb::VerifyRequest { all_scopes: strings(&["a.*"]), ..ask(&issued.secret) }),
        ("all_scopes[0]", pb::VerifyRequest { all_scopes: vec![secret()], ..ask("") }),
        ("any_scopes[0]", pb::VerifyRequest { any_scopes: strings(&[""]), ..ask(&issued.secret) }),
        ("audience", pb::VerifyRequest { audience: "a\0".into(), ..ask(&issued.secret) }),
        ("audience", pb::VerifyRequest { audience: secret(), ..ask("") }),
        ("audience", pb::VerifyRequest { audience: "a".repeat(129), ..ask("") }),
        ("client_ip", pb::VerifyRequest { client_ip: "10.0.0".into(), ..ask("") }),
        ("mode", pb::VerifyRequest { mode: 3, ..ask("") }),
        ("mode", pb::VerifyRequest { mode: -1, ..ask("") }),
    ] {
        let refused = admin.ask(request).await.unwrap_err();
        assert_eq!(bad_fields(&refused), [field]);
    }
    server.app.stop().await.unwrap();
}

/// A connection remembers its caller. A change of the caller's key must apply all the same.
#[tokio::test]
async fn a_change_of_the_callers_key_applies_to_the_next_call() {
    let server = Server::start(2).await;
    let admin = server.admin(server.tcp()).await;
    let issued = admin.issue("Key", &[]).await;
    let caller = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Service", &["keyward.verifier"]) };
    let caller = admin.issued(caller).await;
    let channel = connect(server.tcp()).await;
    let service = Handle::new(channel.clone(), Some(caller.secret.clone()));
    let code = async |handle: &Handle| handle.ask(ask(&issued.secret)).await.map_err(|refused| refused.code());
    for _ in 0..20 {
        assert_eq!(code(&service).await.unwrap().reason(), Reason::Ok);
        admin.disable_key(&caller.key).await;
        assert_eq!(code(&service).await.unwrap_err(), Code::Unauthenticated);
        admin.enable_key(&caller.key).await;
    }
    // Other callers on the same connection.
    for credential in [Some("nonsense".to_owned()), None, Some(issued.secret.clone())] {
        assert_eq!(code(&service).await.unwrap().reason(), Reason::Ok);
        assert_eq!(code(&Handle::new(channel.clone(), credential)).await.unwrap_err(), Code::Unauthenticated);
    }
    // With another role, and with an expiry that no change announces.
    let viewer = pb::Key { scopes: strings(&["keyward.viewer"]), ..caller.key.clone() };
    let viewer = admin.update(update(&viewer, &["scopes"])).await.unwrap();
    assert_eq!(code(&service).await.unwrap_err(), Code::PermissionDenied);
    let ends =
        pb::Key { scopes: strings(&["keyward.verifier"]), expire_time: after_start(1_000), ..viewer.key.unwrap() };
    admin.update(update(&ends, &["scopes", "expire_time"])).await.unwrap();
    assert_eq!(code(&service).await.unwrap().reason(), Reason::Ok);
    server.clock.advance_ms(1_000);
    assert_eq!(code(&service).await.unwrap_err(), Code::Unauthenticated);
    server.app.stop().await.unwrap();
}
