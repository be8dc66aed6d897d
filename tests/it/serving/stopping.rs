//! Signals, the drain delay, and how long a stop takes.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use keyward::app::Engine;
use keyward::grpc::pb::Reason;
use keyward::server::addr::ListenAddr;
use keyward::server::lifecycle::Stop;
use keyward::server::listener::{Admission, Listener};
use keyward::server::slots::Slots;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::h2peer::{END_HEADERS, GOAWAY, HEADERS, PREFACE, Peer, VERIFY, head_of};
use crate::support::harness::{Handle, Site};
use crate::support::ops_client::get;
use crate::support::program::{Program, admin_of};
use crate::transport::http2_time::here_with;

const HOUR: Duration = Duration::from_secs(3_600);
const NAMES: [&str; 4] = ["", "keyward.v1.KeyVerify", "keyward.v1.KeyAdmin", "keyward.v1.KeyAudit"];

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

#[tokio::test]
async fn while_it_drains_it_says_not_serving_and_answers() {
    let mut site = Site::changed(Engine::Memory, "127.0.0.1:0", |settings| settings.drain_delay = HOUR).await;
    let issued = site.admin().issue("Zapier", &[]).await;
    let mut watch = HealthClient::new(site.channel()).watch(named("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (ops, ListenAddr::Tcp(addr)) = (site.ops_addr(), site.addr()) else { panic!() };
    let (app, stop, secret) = (site.app(), Stop::default(), site.admin_secret().to_owned());
    let draining = tokio::spawn({
        let stop = stop.clone();
        async move {
            app.drain(&stop).await;
            app
        }
    });
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // A connection that comes now is as good as one that was there.
    let later = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    for channel in [site.channel(), later] {
        for name in NAMES {
            let status = HealthClient::new(channel.clone()).check(named(name)).await.unwrap().into_inner().status();
            assert_eq!(status, ServingStatus::NotServing, "{name}");
        }
        let caller = Handle::new(channel, Some(secret.clone()));
        assert_eq!(caller.reason(&issued.secret).await, Reason::Ok);
        caller.issue("Made while it drains", &[]).await;
    }
    assert_eq!(get(&ops, "/readyz").await, (503, "draining".to_owned()));
    assert_eq!(get(&ops, "/livez").await.0, 200);
    assert!(!draining.is_finished());
    while !stop.end_drain() {
        tokio::task::yield_now().await;
    }
    draining.await.unwrap().stop().await.unwrap();
}

/// The clock of the runtime stands still, and goes on by itself when everybody waits.
#[tokio::test(start_paused = true)]
async fn the_shutdown_deadline_begins_when_the_drain_delay_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let app = here_with(&dir, |settings| settings.drain_delay = Duration::from_secs(5)).await;
    let secret = fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    // A call whose request never ends.
    peer.send(HEADERS, END_HEADERS, 1, &head_of(VERIFY, secret.trim())).await;
    peer.until_pong(1).await;
    let began = Instant::now();
    app.drain(&Stop::default()).await;
    assert_eq!(began.elapsed().as_secs(), 5);
    app.stop().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 15, "the deadline is 10 s");
}

#[test]
fn a_stop_is_clean_and_says_which_signal_asked_for_it() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let program = Program::serve(dir.path(), &[]);
        program.signal(signal);
        let (code, log) = program.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("stopping signal=\"SIG{signal}\"")), "{log}");
        assert!(log.trim_end().ends_with("stopped"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve(dir.path(), &[]);
    let peer = call_that_never_ends(&program, &dir).await;
    program.signal("TERM");
    program.wait_for("a second signal");
    program.signal("INT");
    let (code, log) = program.end();
    assert_eq!(code, Some(130), "{log}");
    assert!(log.contains("stopped at once by another signal signal=\"SIGINT\""), "{log}");
    drop(peer);
}

/// A graceful stop waits for it until the deadline.
async fn call_that_never_ends(program: &Program, dir: &tempfile::TempDir) -> Peer {
    let mut peer = Peer::to(&program.addr.parse().unwrap()).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    peer.send(HEADERS, END_HEADERS, 1, &head_of(VERIFY, &admin_of(dir))).await;
    peer.until_pong(1).await;
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_the_drain_delay_and_a_third_one_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve_in(dir.path(), &[], &[("KEYWARD_DRAIN_DELAY", "1h")]);
    let admin = program.caller(&admin_of(&dir));
    let issued = admin.issue("Zapier", &[]).await;
    let peer = call_that_never_ends(&program, &dir).await;
    program.signal("TERM");
    program.wait_for("draining");
    assert_eq!(program.caller(&admin_of(&dir)).reason(&issued.secret).await, Reason::Ok, "on a new connection");
    program.signal("TERM");
    program.wait_for("letting calls finish; a second signal");
    program.signal("TERM");
    let (code, log) = program.end();
    assert_eq!(code, Some(143), "{log}");
    assert!(log.contains("the drain delay is cut short signal=\"SIGTERM\""), "{log}");
    drop(peer);
}

#[test]
fn a_hangup_reads_the_log_filter_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    fs::write(&file, "log_filter = \"info\"\n").unwrap();
    let mut program = Program::serve(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    for filter in ["trace", "error"] {
        fs::write(&file, format!("log_filter = \"{filter}\"\n")).unwrap();
        program.signal("HUP");
        let line = program.wait_for("SIGHUP");
        assert!(line.contains(&format!("the log filter was read again log_filter=\"{filter}\"")), "{line}");
        drop(std::net::TcpStream::connect(&program.addr).unwrap());
        if filter == "trace" {
            program.wait_for("TRACE");
        }
    }
    // A mistake is told, and nothing changes: it is still "error".
    fs::write(&file, "log_filter = \"info\"\nlog_format = \"yaml\"\n").unwrap();
    program.signal("HUP");
    let line = program.wait_for("SIGHUP");
    assert!(line.contains("ERROR") && line.contains("the log filter and identities stay as they are"), "{line}");
    program.signal("TERM");
    let (code, log) = program.end();
    assert_eq!(code, Some(0), "{log}");
    let after = log.split("identities stay as they are").nth(1).unwrap();
    assert!(!after.contains("stopping"), "{after}");
}

#[test]
fn a_hangup_reads_the_identities_again() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    let door = format!("[[listener]]\naddress = \"unix:{}/s\"\nservices = [\"verify\"]\n", dir.path().display());
    let identity = "[[identity]]\nname = \"unix:0\"\nroles = [\"keyward.verifier\"]\n";
    let listen = "listen = \"127.0.0.1:0\"\n";
    fs::write(&file, format!("{listen}{door}")).unwrap();
    let mut program = Program::serve(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    for (identities, expected) in [(identity, "in use now identities=1"), ("", "in use now identities=0")] {
        fs::write(&file, format!("{listen}{door}{identities}")).unwrap();
        program.signal("HUP");
        program.wait_for(expected);
    }
    // A role that there is not: nothing changes.
    fs::write(&file, format!("{listen}{door}{}", identity.replace("verifier", "verify"))).unwrap();
    program.signal("HUP");
    program.wait_for("identities stay as they are");
    program.wait_for("number 1: roles has 'keyward.verify'");
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn signals_that_mean_nothing_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve(dir.path(), &[]);
    for signal in ["USR1", "USR2"] {
        program.signal(signal);
        program.wait_for(&format!("ignored signal=\"SIG{signal}\""));
    }
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn a_service_manager_is_told_of_readiness_and_of_the_stop() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let listen = UnixDatagram::bind(&path).unwrap();
    listen.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let told = || {
        let mut message = [0; 256];
        let bytes = listen.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..bytes]).into_owned()
    };
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("KEYWARD_DRAIN_DELAY", "1h")];
    let mut program = Program::serve_in(&dir.path().join("data"), &[], &environment);
    assert_eq!(told(), "READY=1\n");
    program.signal("TERM");
    program.wait_for("draining");
    assert_eq!(told(), "STOPPING=1\n", "before the drain delay");
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
    listen.set_nonblocking(true).unwrap();
    assert!(listen.recv(&mut [0; 256]).is_err(), "each once");
}

#[test]
fn a_service_manager_that_does_not_listen_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = dir.path().join("nobody");
    let environment = [("NOTIFY_SOCKET", nobody.to_str().unwrap())];
    let mut program = Program::serve_in(&dir.path().join("data"), &[], &environment);
    program.signal("TERM");
    program.wait_for("stopping");
    let (code, log) = program.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("cannot notify the service manager"), "{log}");
}

/// A client that has connected is served, even if its connection was not accepted yet when the stop comes.
#[tokio::test]
async fn a_connection_that_waits_to_be_accepted_is_not_reset_by_a_stop() {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let ListenAddr::Tcp(addr) = listener.addr().clone() else { panic!() };
    let waiting: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
    let (accepted, mut incoming) = tokio::sync::mpsc::channel(8);
    let stop = CancellationToken::new();
    stop.cancel();
    listener.accept(Admission::of_all(Slots::new(8)), accepted, stop.clone(), stop).await;
    let mut handed_on = vec![];
    while let Some(conn) = incoming.recv().await {
        handed_on.push(conn.unwrap());
    }
    assert_eq!(handed_on.len(), waiting.len());
    assert!(std::net::TcpStream::connect(addr).is_err(), "and then nobody listens");
}

/// A client that is told of the end and connects anew must find that nobody listens.
#[tokio::test]
async fn nobody_listens_any_more_when_a_connection_is_told_of_the_end() {
    let mut site = Site::in_memory().await;
    let ListenAddr::Tcp(addr) = site.addr() else { panic!() };
    let mut peer = Peer::open(&site).await;
    peer.until_pong(1).await;
    let stopping = tokio::spawn(site.app().stop());
    peer.find(|frame| frame.kind == GOAWAY).await;
    assert!(std::net::TcpStream::connect(addr).is_err());
    drop(peer);
    stopping.await.unwrap().unwrap();
}
