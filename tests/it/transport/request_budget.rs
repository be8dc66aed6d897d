//! What callers hold of requests that are under way: for a connection, and for all of them together.

use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use keyward::app::Engine;
use keyward::grpc::LIMITS;
use keyward::grpc::pb::{self, Reason};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::h2peer::*;
use crate::support::harness::{Handle, Site, ask, endpoint};
use crate::support::ops_client::{get, value};
use crate::support::program::{Program, admin_of};

const CHECK: &str = "/grpc.health.v1.Health/Check";
const CREATE: &str = "/keyward.v1.KeyAdmin/CreateKey";
const BATCH: &str = "/keyward.v1.KeyVerify/BatchVerify";
const MIB: usize = 1024 * 1024;
/// Far more than it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection of its own.
fn channel(site: &Site) -> Channel {
    endpoint(&site.addr()).connect_lazy()
}

fn whole() -> HealthCheckRequest {
    HealthCheckRequest::default()
}

#[tokio::test]
async fn a_connection_without_a_credential_may_have_64_calls_at_a_time_and_one_with_a_credential_256() {
    let site = Site::in_memory().await;
    let channel = channel(&site);
    let mut health = HealthClient::new(channel.clone());
    let mut watches = vec![];
    for _ in 0..LIMITS.stranger_calls_max {
        let mut watch = health.watch(whole()).await.unwrap().into_inner();
        watch.message().await.unwrap().unwrap();
        watches.push(watch);
    }
    let refused = health.check(whole()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("64 calls at a time"), "{refused:?}");
    // A wrong credential is refused for itself, and makes no room.
    let wrong = Handle::new(channel.clone(), Some("nonsense".to_owned()));
    assert_eq!(wrong.ask(ask("x")).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(health.check(whole()).await.unwrap_err().code(), Code::ResourceExhausted);
    let known = Handle::new(channel, Some(site.admin_secret().to_owned()));
    assert_eq!(known.ask(ask("x")).await.unwrap().reason(), Reason::Malformed);
    for _ in 0..LIMITS.stranger_calls_max {
        watches.push(health.watch(whole()).await.unwrap().into_inner());
    }
    health.check(whole()).await.unwrap();
}

#[tokio::test]
async fn a_message_of_an_open_service_has_at_most_8_kib() {
    let site = Site::in_memory().await;
    let mut health = HealthClient::new(channel(&site));
    let of = |length: usize| HealthCheckRequest { service: "x".repeat(length) };
    assert_eq!(health.check(of(8_000)).await.unwrap_err().code(), Code::NotFound);
    for length in [8_192, 100_000, 3_000_000] {
        let refused = health.check(of(length)).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        assert!(refused.message().contains("8192 bytes"), "{refused:?}");
    }
    // A credential changes nothing.
    let known = Handle::new(channel(&site), Some(site.admin_secret().to_owned()));
    known.ask(ask("x")).await.unwrap();
    assert_eq!(health.check(of(9_000)).await.unwrap_err().code(), Code::ResourceExhausted);
}

/// What a metric says.
async fn metric(site: &Site, series: &str) -> f64 {
    let (_, text) = get(&site.ops_addr(), "/metrics").await;
    value(&text, series).unwrap_or_else(|| panic!("no {series} in {text}"))
}

/// Waits until a metric says no more than this.
async fn at_most(site: &Site, series: &str, bound: f64) {
    let deadline = Instant::now() + PATIENCE;
    while metric(site, series).await > bound {
        assert!(Instant::now() < deadline, "{series} stays at {}", metric(site, series).await);
        tokio::task::yield_now().await;
    }
}

const OF_STRANGERS: &str = "keyward_requests_held_bytes{callers=\"strangers\"}";
const OF_KNOWN: &str = "keyward_requests_held_bytes{callers=\"known\"}";

#[tokio::test]
async fn strangers_fill_their_room_and_nobody_elses() {
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", |settings| settings.stranger_request_bytes_max = MIB).await;
    let mut crowd = vec![];
    for _ in 0..20 {
        let mut peer = Peer::open(&site).await;
        for stream in (1..128).step_by(2) {
            peer.send(HEADERS, END_HEADERS, stream, &head(CHECK)).await;
            peer.send(DATA, 0, stream, &prefixed(&[b'x'; 8_192])[..3_000]).await;
        }
        let frames = peer.until_pong(1).await;
        assert!(frames.iter().all(|frame| frame.kind != GOAWAY), "{frames:?}");
        assert!(frames.iter().any(Frame::ends), "some are refused");
        crowd.push(peer);
    }
    let held = metric(&site, OF_STRANGERS).await;
    assert!(held > 0.9 * MIB as f64 && held <= (MIB + 20 * 8_192) as f64, "{held}");
    assert!(metric(&site, "keyward_requests_without_room_total{callers=\"strangers\"}").await > 500.0);
    // A probe is answered, and a caller with a credential notices nothing.
    HealthClient::new(channel(&site)).check(whole()).await.unwrap();
    let mut watch = HealthClient::new(channel(&site)).watch(whole()).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let known = Handle::new(channel(&site), Some(site.admin_secret().to_owned()));
    assert_eq!(known.ask(ask("x")).await.unwrap().reason(), Reason::Malformed);
    known.issue("Key", &["a"]).await;
    let mut refused = Peer::open(&site).await;
    for stream in (1..128).step_by(2) {
        refused.send(HEADERS, END_HEADERS, stream, &head(CHECK)).await;
        refused.send(DATA, 0, stream, &prefixed(&[b'x'; 8_192])[..3_000]).await;
    }
    refused.find(Frame::ends).await;
    drop((crowd, refused, watch));
    at_most(&site, OF_STRANGERS, 4.0 * 8_192.0).await;
}

#[tokio::test]
async fn of_a_caller_with_a_credential_the_youngest_request_is_refused_when_there_is_no_room() {
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", |settings| settings.request_bytes_max = 4 * MIB).await;
    let batch = body(&pb::BatchVerifyRequest { requests: vec![ask(&"x".repeat(200)); 540] });
    assert!(batch.len() > 110_000);
    let mut peer = Peer::open(&site).await;
    let block = head_of(BATCH, site.admin_secret());
    for stream in (1..20).step_by(2) {
        peer.send(HEADERS, END_HEADERS, stream, &block).await;
        for piece in batch[..100_000].chunks(16_384) {
            peer.send(DATA, 0, stream, piece).await;
        }
    }
    // An eighth of 4 MiB: five of them, and the window of the connection is not more than was sent.
    let refused = async |peer: &mut Peer| {
        let mut refused: Vec<_> =
            peer.until_pong(1).await.iter().filter(|frame| frame.ends()).map(|f| f.stream).collect();
        refused.sort_unstable();
        refused
    };
    let mut gone = refused(&mut peer).await;
    let deadline = Instant::now() + PATIENCE;
    while gone.len() < 5 {
        assert!(Instant::now() < deadline, "{gone:?}");
        gone.extend(refused(&mut peer).await);
    }
    gone.sort_unstable();
    assert!(gone[0] > 7, "the oldest stay: {gone:?}");
    assert!(metric(&site, OF_KNOWN).await <= MIB as f64 / 2.0 + 3.0 * 8_192.0);
    peer.send(DATA, END, 1, &batch[100_000..]).await;
    let reply: pb::BatchVerifyResponse = peer.reply(1).await;
    assert_eq!(reply.results.len(), 540);
    drop(peer);
    at_most(&site, OF_KNOWN, 3.0 * 8_192.0).await;
}

/// Memory that a process has, and the most that it ever had, in bytes.
fn resident_bytes(pid: u32) -> (usize, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// tests/external/crowds.py does it with as many as there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_half_sent_calls_takes_little_memory() {
    const CROWD: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    // None has more than its own part of it, as when there are as many as there may be.
    let environment = [("KEYWARD_STRANGER_REQUEST_BYTES_MAX", "1048576")];
    let program = Program::serve_in(dir.path(), &[], &environment);
    let admin = program.caller(&admin_of(&dir));
    admin.ask(ask("x")).await.unwrap();
    let (before, _) = resident_bytes(program.pid());
    let mut sent = [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat();
    for stream in (1..512).step_by(2) {
        sent.extend(frame(HEADERS, END_HEADERS, stream, &head(CHECK)));
        sent.extend(frame(DATA, 0, stream, &prefixed(&[b'x'; 8_192])[..100]));
    }
    let (addr, sent) = (&program.addr, &sent);
    let crowd = join_all((0..CROWD).map(|_| async move {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream
    }));
    let crowd = crowd.await;
    // What was sent before is gone through before that.
    for _ in 0..100 {
        admin.ask(ask("x")).await.unwrap();
    }
    let more = resident_bytes(program.pid()).1.saturating_sub(before);
    // As many calls that had begun would take 1 GiB.
    assert!(more < 16 * MIB, "{} KiB for each", more / 1024 / CROWD);
    drop(crowd);
}

/// Memory is taken for what has come of a message, not for all that its prefix announces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_takes_room_for_what_has_come_of_it_and_not_for_what_it_says_is_to_come() {
    const PEERS: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let secret = admin_of(&dir);
    let admin = program.caller(&secret);
    admin.ask(ask("x")).await.unwrap();
    let (before, _) = resident_bytes(program.pid());
    let sent = prefixed(&vec![b'x'; 1_000_000]);
    let mut peers = vec![];
    for _ in 0..PEERS {
        let mut peer = Peer::to(&program.addr.parse().unwrap()).await;
        peer.write(PREFACE).await;
        peer.settings(&[]).await;
        for stream in (1..512).step_by(2) {
            peer.send(HEADERS, END_HEADERS, stream, &head_of(CREATE, &secret)).await;
            peer.send(DATA, 0, stream, &sent[..2_000]).await;
        }
        peer.until_pong(1).await;
        peers.push(peer);
    }
    for peer in &mut peers {
        // What is given up is freed, and what is freed is overwritten: then it is there.
        for stream in (1..512).step_by(2) {
            peer.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
        }
        peer.until_pong(2).await;
    }
    for _ in 0..100 {
        admin.ask(ask("x")).await.unwrap();
    }
    let more = resident_bytes(program.pid()).1.saturating_sub(before);
    // They say that 1,024 MB are to come, and 14 MiB have, with what a call takes.
    assert!(more < 64 * MIB, "{} MiB", more / MIB);
}
