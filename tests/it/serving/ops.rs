//! Probes and metrics, over real HTTP.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Pending, pending};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use keyward::app::{Adjustable, App, Deps, Engine, StartError};
use keyward::config::{Flags, Settings};
use keyward::grpc::calls::guarded;
use keyward::grpc::pb::{self, Reason};
use keyward::layer::metrics::MetricsLayer;
use keyward::metrics::{Format, MetricSources, Metrics};
use keyward::server::addr::ListenAddr;
use keyward::server::passed::PassedSockets;
use keyward::store::memory::MemoryEngine;
use keyward_core::clock::{Clock, ManualClock, UnixMillis};
use keyward_core::testing::SeededEntropy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower_layer::Layer;
use tower_service::Service;

use crate::support::harness::{START, Site, new_key, strings, update};
use crate::support::ops_client::{get, http, metrics, value, wait_for_value};

fn is(status: u16, body: &str) -> (u16, String) {
    (status, body.to_owned())
}

fn tcp(addr: &ListenAddr) -> std::net::SocketAddr {
    let ListenAddr::Tcp(addr) = addr else { panic!("a TCP listener") };
    *addr
}

#[tokio::test]
async fn a_server_that_serves_is_alive_and_ready() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    assert_eq!(get(&ops, "/livez").await, is(200, "ok"));
    assert_eq!(get(&ops, "/readyz").await, is(200, "ok"));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    for path in ["/", "/metrics/", "/livez/x", "/keyward.v1.KeyVerify/Verify"] {
        assert_eq!(get(&ops, path).await.0, 404, "{path}");
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let (status, reply) = http(&ops, method, path).await;
            assert_eq!(status, 405, "{method} {path}");
            assert!(reply.contains("allow: GET, HEAD\r\n"), "{reply}");
        }
        let (status, reply) = http(&ops, "HEAD", path).await;
        assert_eq!((status, reply.split_once("\r\n\r\n").unwrap().1), (200, ""), "{path}");
    }
    let huge = "x".repeat(100_000);
    let (status, _) = http(&ops, "GET", &format!("/{huge}")).await;
    assert!((400..500).contains(&status), "{status}");
}

/// A clock that blocks its first reader until it is released.
struct Halting {
    reached: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Clock for Halting {
    fn now(&self) -> UnixMillis {
        // Who is told of the first time hears of no other.
        self.reached.send(()).ok();
        // When the other end is gone, there is nothing more to wait for.
        self.go_on.lock().unwrap().recv().ok();
        START
    }
}

fn settings(dir: &tempfile::TempDir, ops_listen: &str) -> Settings {
    let flags = Flags {
        data_dir: Some(dir.path().join("data")),
        listen: vec!["127.0.0.1:0".into()],
        ops_listen: Some(ops_listen.into()),
        ..Flags::default()
    };
    Settings::load(&flags, None).unwrap().settings
}

fn deps(clock: Arc<dyn Clock>) -> Deps {
    Deps {
        clock,
        entropy: Arc::new(SeededEntropy::new(5)),
        sockets: PassedSockets::default(),
        adjustable: Adjustable::default(),
        engine: Box::new(MemoryEngine::default()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_loads_is_alive_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let ops = ListenAddr::Unix(dir.path().join("ops.sock"));
    let (reached, halted) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let clock = Halting { reached, go_on: Mutex::new(go_on) };
    let starting = tokio::spawn(App::start(settings(&dir, &ops.to_string()), deps(Arc::new(clock))));
    // The time of the start is asked for first, for metrics.
    let halted = tokio::task::spawn_blocking(move || halted.recv().map(|()| halted)).await.unwrap().unwrap();
    go.send(()).unwrap();
    // The first key is made at the end of a first start, and only its time is missing.
    tokio::task::spawn_blocking(move || halted.recv()).await.unwrap().unwrap();
    assert_eq!(get(&ops, "/livez").await, is(200, "ok"));
    assert_eq!(get(&ops, "/readyz").await, is(503, "loading"));
    let text = metrics(&ops).await;
    assert_eq!(value(&text, "keyward_keys"), Some(0.0));
    assert_eq!(value(&text, "keyward_phase{phase=\"loading\"}"), Some(1.0));

    drop(go);
    let app = starting.await.unwrap().unwrap();
    assert_eq!(get(&ops, "/readyz").await, is(200, "ok"));
    app.stop().await.unwrap();
}

/// A connection that has begun and never says more, which holds a stop up.
async fn mute(addr: &ListenAddr) -> TcpStream {
    let mut stream = TcpStream::connect(tcp(addr)).await.unwrap();
    let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&empty_settings).await.unwrap();
    // The server's own settings: it serves this connection.
    stream.read_exact(&mut [0; 9]).await.unwrap();
    stream
}

#[tokio::test]
async fn a_server_that_lets_calls_finish_is_alive_and_not_ready() {
    let mut site = Site::with_ops().await;
    let (ops, channel) = (site.ops_addr(), site.channel());
    let watched = HealthCheckRequest { service: String::new() };
    let mut watch = HealthClient::new(channel).watch(watched).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let app = site.app();
    let mute = mute(&app.addrs()[0]).await;
    assert_eq!(value(&metrics(&ops).await, "keyward_connections"), Some(2.0));

    let stopping = tokio::spawn(app.stop());
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(get(&ops, "/readyz").await, is(503, "stopping"));
    assert_eq!(get(&ops, "/livez").await, is(200, "ok"));
    assert!(!stopping.is_finished());

    drop(mute);
    stopping.await.unwrap().unwrap();
    TcpStream::connect(tcp(&ops)).await.unwrap_err();
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_a_stop() {
    let mut site = Site::with_ops().await;
    let ops = site.ops_addr();
    let mut slow = TcpStream::connect(tcp(&ops)).await.unwrap();
    slow.write_all(b"GET /read").await.unwrap();
    // Connections are accepted in order: when this one is answered, the slow one is served.
    assert_eq!(get(&ops, "/livez").await, is(200, "ok"));
    // Well within the 5 s that the slow one might take.
    tokio::time::timeout(Duration::from_secs(3), site.stop()).await.unwrap();
    assert!(matches!(slow.read(&mut [0; 1]).await, Ok(0) | Err(_)), "and it gets no answer");
}

#[tokio::test]
async fn half_a_request_is_given_up_after_a_while() {
    let site = Site::with_ops().await;
    let mut slow = TcpStream::connect(tcp(&site.ops_addr())).await.unwrap();
    slow.write_all(b"GET /read").await.unwrap();
    let mut rest = vec![];
    let ended = tokio::time::timeout(Duration::from_secs(20), slow.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(ended.unwrap_or_default(), 0);
}

#[tokio::test]
async fn verdicts_are_counted_by_their_reason() {
    let site = Site::with_ops().await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let count = async |reason: Reason| {
        let name = reason.as_str_name().strip_prefix("REASON_").unwrap();
        value(&metrics(&ops).await, &format!("keyward_verdicts_total{{reason=\"{name}\"}}"))
    };
    // Whatever the wire can say is there from the start.
    let reasons = (1..64).filter_map(|number| Reason::try_from(number).ok());
    for reason in reasons {
        assert_eq!(count(reason).await, Some(0.0), "{reason:?}");
    }

    let issued = admin.issue("Zapier", &["a"]).await;
    for _ in 0..3 {
        admin.reason(&issued.secret).await;
    }
    admin.reason("nonsense").await;
    let lacking = pb::VerifyRequest { all_scopes: strings(&["b"]), ..crate::support::harness::ask(&issued.secret) };
    assert_eq!(admin.ask(lacking).await.unwrap().reason(), Reason::ScopeMissing);
    admin.disable_key(&issued.key).await;
    admin.reason(&issued.secret).await;
    // These are no verdicts: a request that is not understood, and a caller who is refused.
    admin.ask(pb::VerifyRequest { tenant: "?".into(), ..Default::default() }).await.unwrap_err();
    site.caller(&issued.secret).ask(crate::support::harness::ask(&issued.secret)).await.unwrap_err();

    for (reason, expected) in
        [(Reason::Ok, 3.0), (Reason::Malformed, 1.0), (Reason::ScopeMissing, 1.0), (Reason::Disabled, 1.0)]
    {
        assert_eq!(count(reason).await, Some(expected), "{reason:?}");
    }
    assert_eq!(count(Reason::Unknown).await, Some(0.0));
}

#[tokio::test]
async fn calls_are_counted_by_name_and_code_with_how_long_they_took() {
    let site = Site::with_ops().await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let issued = admin.issue("Zapier", &[]).await;
    admin.verdict(&issued.secret).await;
    admin.verdict(&issued.secret).await;
    admin.read(&issued.key).await;
    admin.get(pb::GetKeyRequest { key_id: "missing".into(), ..Default::default() }).await.unwrap_err();
    // Refused before any service sees it.
    site.nobody().list(pb::ListKeysRequest::default()).await.unwrap_err();
    site.with_roles(&["keyward.verifier"]).await.list(pb::ListKeysRequest::default()).await.unwrap_err();
    HealthClient::new(site.channel()).check(HealthCheckRequest::default()).await.unwrap();

    let text = metrics(&ops).await;
    let calls = |call: &str, code: &str| {
        value(&text, &format!("keyward_calls_total{{call=\"{call}\",code=\"{code}\"}}")).unwrap()
    };
    assert_eq!(calls("KeyAdmin/CreateKey", "OK"), 2.0);
    assert_eq!(calls("KeyVerify/Verify", "OK"), 2.0);
    assert_eq!(calls("KeyAdmin/GetKey", "OK"), 1.0);
    assert_eq!(calls("KeyAdmin/GetKey", "NOT_FOUND"), 1.0);
    assert_eq!(calls("KeyAdmin/ListKeys", "UNAUTHENTICATED"), 1.0);
    assert_eq!(calls("KeyAdmin/ListKeys", "PERMISSION_DENIED"), 1.0);
    assert_eq!(calls("unknown", "OK"), 1.0, "health is no call of ours");

    let took = |what: &str| value(&text, &format!("keyward_call_duration_seconds_{what}")).unwrap();
    assert_eq!(took("count{call=\"KeyVerify/Verify\"}"), 2.0);
    assert_eq!(took("count{call=\"KeyAdmin/GetKey\"}"), 2.0);
    assert_eq!(took("bucket{le=\"+Inf\",call=\"KeyVerify/Verify\"}"), 2.0);
    assert_eq!(took("bucket{le=\"10.0\",call=\"KeyVerify/Verify\"}"), 2.0);
    let sum = took("sum{call=\"KeyVerify/Verify\"}");
    assert!(sum > 0.0 && sum < 20.0, "{sum}");
}

fn own_metrics() -> Metrics {
    Metrics::new(guarded().map(|(path, _)| path), keyward::fast_path::PATHS, MetricSources::default())
}

#[test]
fn a_duration_is_in_the_class_that_it_does_not_exceed() {
    let metrics = own_metrics();
    let call = metrics.calls().of("/keyward.v1.KeyVerify/Verify");
    for took in [Duration::from_micros(10), Duration::from_nanos(10_001), Duration::from_secs(11)] {
        call.count(0, took);
    }
    call.count(99, Duration::MAX);
    let text = metrics.text(Format::OpenMetrics).unwrap();
    let up_to = |bound: &str| {
        value(&text, &format!("keyward_call_duration_seconds_bucket{{le=\"{bound}\",call=\"KeyVerify/Verify\"}}"))
    };
    let bounds = ["0.00001", "0.000025", "10.0", "+Inf"];
    assert_eq!(bounds.map(up_to), [Some(1.0), Some(2.0), Some(2.0), Some(4.0)]);
    assert_eq!(value(&text, "keyward_calls_total{call=\"KeyVerify/Verify\",code=\"UNKNOWN\"}"), Some(1.0));
}

/// A service that never answers.
struct Silent;

impl Service<Request<()>> for Silent {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Pending<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        pending()
    }
}

#[test]
fn a_call_whose_caller_goes_away_is_counted_too() {
    let metrics = own_metrics();
    let mut service = MetricsLayer::new(metrics.calls()).layer(Silent);
    for path in ["/keyward.v1.KeyAdmin/GetKey", "/keyward.v1.KeyAdmin/GetKey2"] {
        drop(service.call(Request::builder().uri(path).body(()).unwrap()));
    }
    let text = metrics.text(Format::OpenMetrics).unwrap();
    for call in ["KeyAdmin/GetKey", "unknown"] {
        let series = format!("keyward_calls_total{{call=\"{call}\",code=\"CANCELLED\"}}");
        assert_eq!(value(&text, &series), Some(1.0), "{call}");
    }
}

#[tokio::test]
async fn keys_and_the_revision_are_those_of_the_answers() {
    let site = Site::with_ops().await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let issued = admin.issue("Zapier", &[]).await;
    let verdict = admin.verdict(&issued.secret).await;
    let text = metrics(&ops).await;
    assert_eq!(value(&text, "keyward_keys"), Some(2.0), "the administrator's and the new one");
    assert_eq!(value(&text, "keyward_revision"), Some(verdict.as_of_revision as f64));
    assert_eq!(value(&text, "keyward_connections"), Some(1.0));
    let build = format!("keyward_build_info{{version=\"{}\",commit=\"{}\"}}", env!("CARGO_PKG_VERSION"), commit());
    assert_eq!(value(&text, &build), Some(1.0));
}

#[tokio::test]
async fn lasting_administrators_are_told() {
    let site = Site::with_ops().await;
    let count = async || value(&metrics(&site.ops_addr()).await, "keyward_lasting_administrators");
    assert_eq!(count().await, Some(1.0));
    site.with_roles(&["keyward.admin"]).await;
    site.with_roles(&["keyward.admin@default", "keyward.issuer"]).await;
    assert_eq!(count().await, Some(2.0));
}

/// The commit that this was built from, as far as is known.
fn commit() -> &'static str {
    option_env!("KEYWARD_COMMIT").unwrap_or("unknown")
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_use_are_told_by_kind_and_others_are_given_back() {
    let site = Site::with_ops().await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let key = admin.issued(pb::CreateKeyRequest { owner: "owner".into(), ..new_key("Churn", &["a"]) }).await.key;
    let names = async |kind: &str| value(&metrics(&ops).await, &format!("keyward_names{{kind=\"{kind}\"}}"));
    // The administrator's are among them: the tenant `system`, no owner, and its role.
    for (kind, count) in [("tenant", 2.0), ("owner", 2.0), ("environment", 1.0), ("scope", 2.0)] {
        assert_eq!(names(kind).await, Some(count), "{kind}");
    }
    for round in 0..300 {
        let scopes = (0..60).map(|nth| format!("scope-{round}.{nth}")).collect();
        admin.update(update(&pb::Key { scopes, ..key.clone() }, &["scopes"])).await.unwrap();
    }
    assert_eq!(names("scope").await, Some(61.0));
    wait_for_value(&ops, "keyward_name_compactions_total", |count| count >= 1.0).await;
    wait_for_value(&ops, "keyward_names_unused", |count| count <= 16_384.0).await;
    assert_eq!(names("scope").await, Some(61.0));
    assert_eq!(admin.read(&key).await.scopes[0], "scope-299.0");
}

#[tokio::test]
async fn what_the_table_takes_is_told() {
    let site = Site::changed(Engine::Sled, "127.0.0.1:0", |_| {}).await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let text = metrics(&ops).await;
    assert!(value(&text, "keyward_table_bytes").unwrap() > 0.0, "{text}");
    assert_eq!(value(&text, "keyward_table_rebuilds_total"), Some(0.0), "a first start builds it, and not anew");
    let before = value(&text, "keyward_table_records_bytes").unwrap();
    admin.issue("Zapier", &[]).await;
    wait_for_value(&ops, "keyward_table_records_bytes", |bytes| bytes >= before + 100.0).await;
}

#[tokio::test]
async fn labels_are_of_a_fixed_set_whatever_callers_send() {
    let site = Site::with_ops().await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let series = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let before = series(&metrics(&ops).await);

    let tenant = pb::CreateTenantRequest { tenant: "acme-tenant".into(), ..Default::default() };
    admin.create_tenant(tenant).await.unwrap();
    let request = pb::CreateKeyRequest {
        key_id: "zapier-key".into(),
        tenant: "acme-tenant".into(),
        owner: "acme-owner".into(),
        ..new_key("Zapier", &["read:things"])
    };
    let issued = admin.issued(request).await;
    admin.verdict(&issued.secret).await;
    site.caller(&issued.secret).list(pb::ListKeysRequest::default()).await.unwrap_err();
    site.caller("acme-credential").list(pb::ListKeysRequest::default()).await.unwrap_err();

    let text = metrics(&ops).await;
    assert_eq!(series(&text), before);
    for word in ["acme", "zapier", "read:things", &issued.key.key_id, &issued.secret, site.admin_secret()] {
        assert!(!text.to_lowercase().contains(&word.to_lowercase()), "{word} in:\n{text}");
    }
    let calls: Vec<_> = guarded().map(|(path, _)| path.strip_prefix("/keyward.v1.").unwrap()).collect();
    for line in before.iter().filter(|line| line.contains("call=\"")) {
        let call = line.split("call=\"").nth(1).unwrap().split('"').next().unwrap();
        assert!(call == "unknown" || calls.contains(&call), "{line}");
    }
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let dir = tempfile::tempdir().unwrap();
    let app = App::start(settings(&dir, "off"), deps(Arc::new(ManualClock::at(START)))).await.unwrap();
    assert_eq!(app.ops_addr(), None);
    app.stop().await.unwrap();
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_setting() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let started = App::start(settings(&dir, &addr), deps(Arc::new(ManualClock::at(START)))).await;
    let refused = started.err().unwrap();
    assert!(matches!(refused, StartError::OpsListen { .. }));
    for part in [&*addr, "ops_listen", "--ops-listen"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
}
