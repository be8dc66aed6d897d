//! Time: keepalive, deadlines of requests, and graceful shutdown.

use std::sync::Arc;
use std::time::Duration;

use keyward::app::{Adjustable, App, Deps};
use keyward::config::{Flags, Settings};
use keyward::grpc::LIMITS;
use keyward::grpc::pb::{self, Reason};
use keyward::server::passed::PassedSockets;
use keyward::store::memory::MemoryEngine;
use keyward_core::clock::ManualClock;
use keyward_core::testing::SeededEntropy;
use tokio::time::{Instant, timeout};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::support::h2peer::*;
use crate::support::harness::{START, Site, ask, perhaps_encrypted};

/// A server on this runtime, whose clock is paused.
async fn here(dir: &tempfile::TempDir) -> App {
    here_with(dir, |_| {}).await
}

/// The same, with other settings.
pub(crate) async fn here_with(dir: &tempfile::TempDir, change: fn(&mut Settings)) -> App {
    let flags = Flags {
        data_dir: Some(dir.path().join("data")),
        listen: vec!["127.0.0.1:0".into()],
        ops_listen: Some("off".into()),
        ..Flags::default()
    };
    let settings = perhaps_encrypted(Settings::load(&flags, None).unwrap().settings);
    let mut settings = Settings { serving_threads: 0, ..settings };
    change(&mut settings);
    let deps = Deps {
        clock: Arc::new(ManualClock::at(START)),
        entropy: Arc::new(SeededEntropy::new(3)),
        sockets: PassedSockets::default(),
        adjustable: Adjustable::default(),
        engine: Box::new(MemoryEngine::default()),
    };
    App::start(settings, deps).await.unwrap()
}

/// The frames up to the end of the connection, and the time until then. A timeout would make the paused clock
/// jump to it.
async fn rest(reader: &mut Reader) -> (Vec<Frame>, Duration) {
    let began = Instant::now();
    let mut frames = vec![];
    while let Some(frame) = reader.read().await {
        frames.push(frame);
    }
    (frames, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let half_a_frame = &frame(PING, 0, 0, &[0; 8])[..12];
    let open = frame(HEADERS, END_HEADERS, 1, &head("/grpc.health.v1.Health/Watch"));
    for last in [&b""[..], half_a_frame, &open] {
        let mut peer = Peer::to(&app.addrs()[0]).await;
        peer.write(PREFACE).await;
        peer.settings(&[]).await;
        peer.write(last).await;
        let (mut reader, _writer) = peer.split();
        let (frames, took) = timeout(Duration::from_secs(300), rest(&mut reader)).await.expect("it is closed");
        assert!(frames.iter().any(|frame| frame.kind == PING && frame.flags == 0), "it is asked: {frames:?}");
        let due = LIMITS.keepalive_interval + LIMITS.keepalive_timeout;
        assert!(took >= due && took < due + Duration::from_secs(1), "{took:?}");
    }
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_a_frame_byte_by_byte_is_gone_too() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    let (mut reader, mut writer) = peer.split();
    let dripping = tokio::spawn(async move {
        for byte in frame(DATA, 0, 1, &[0; 1_000]) {
            writer.write(&[byte]).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let (_, took) = timeout(Duration::from_secs(300), rest(&mut reader)).await.expect("it is closed");
    assert!(took < Duration::from_secs(60), "{took:?}");
    dripping.abort();
    app.stop().await.unwrap();
}

/// A unary open call starts when its request is whole. In a stream, each message has a deadline.
#[tokio::test(start_paused = true)]
async fn an_open_call_whose_request_or_message_is_not_whole_in_time_ends() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let ask = body(&ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    });
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    for (path, sent) in [
        ("/grpc.health.v1.Health/Check", &[0][..]),
        (reflection, &ask[..6]),
        (reflection, &[&ask[..], &ask[..6]].concat()),
    ] {
        let mut peer = Peer::to(&app.addrs()[0]).await;
        peer.write(PREFACE).await;
        peer.settings(&[]).await;
        peer.send(HEADERS, END_HEADERS, 1, &head(path)).await;
        peer.send(DATA, 0, 1, sent).await;
        let began = Instant::now();
        let (mut reader, mut writer) = peer.split();
        let ended = async {
            loop {
                let frame = reader.read().await.unwrap();
                match frame.kind {
                    HEADERS if frame.ends() => return,
                    PING if frame.flags == 0 => {
                        writer.write(&crate::support::h2peer::frame(PING, END, 0, &frame.payload)).await
                    }
                    _ => {}
                }
            }
        };
        timeout(Duration::from_secs(300), ended).await.expect("it ends");
        let took = began.elapsed();
        assert!(
            took >= LIMITS.request_time_max && took < LIMITS.request_time_max + Duration::from_secs(1),
            "{path} {took:?}"
        );
    }
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_stays() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    let (mut reader, mut writer) = peer.split();
    let began = Instant::now();
    for _ in 0..10 {
        let asked = loop {
            let frame = reader.read().await.expect("it is still open");
            if frame.kind == PING {
                break frame;
            }
        };
        writer.write(&frame(PING, END, 0, &asked.payload)).await;
    }
    assert!(began.elapsed() >= 10 * LIMITS.keepalive_interval);
    drop((reader, writer));
    app.stop().await.unwrap();
}

/// A peer that does not read is silent, whatever it sends.
#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_its_replies_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[(4, 0x7fff_ffff)]).await;
    peer.window_update(0, 0x7000_0000).await;
    let secret = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    let block = head_of("/keyward.v1.KeyVerify/BatchVerify", secret.trim());
    let batch = body(&pb::BatchVerifyRequest { requests: vec![ask("nonsense"); 1_000] });
    let (reader, mut writer) = peer.split();
    let flooding = async {
        for stream in (1..).step_by(2) {
            let call = [frame(HEADERS, END_HEADERS, stream, &block), frame(DATA, END, stream, &batch)].concat();
            if !writer.try_write(&call).await {
                return;
            }
        }
    };
    timeout(Duration::from_secs(300), flooding).await.expect("the server closes");
    drop(reader);
    app.stop().await.unwrap();
}

/// On the fast path, on the slow path, and without a credential.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_not_whole_in_time_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let secret = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    for (path, credential) in [
        (VERIFY, Some(secret.trim())),
        ("/keyward.v1.KeyAdmin/ListKeys", Some(secret.trim())),
        ("/grpc.health.v1.Health/Check", None),
    ] {
        let block = credential.map_or_else(|| head(path), |secret| head_of(path, secret));
        let mut peer = Peer::to(&app.addrs()[0]).await;
        peer.write(PREFACE).await;
        peer.settings(&[]).await;
        peer.send(HEADERS, END_HEADERS, 1, &block).await;
        let began = Instant::now();
        // Its pieces are signs of life, and still it is late.
        let (mut reader, mut writer) = peer.split();
        let mut pieces = prefixed(&[0; 100]).into_iter();
        let frames = loop {
            writer.write(&frame(DATA, 0, 1, &[pieces.next().unwrap()])).await;
            let first = timeout(Duration::from_secs(1), reader.find(|frame| frame.stream == 1)).await;
            if let Ok(first) = first {
                break [first, reader.find(|frame| frame.kind == RST_STREAM && frame.stream == 1).await];
            }
            assert!(began.elapsed() < 2 * LIMITS.request_time_max, "{path} is never answered");
        };
        let took = began.elapsed();
        assert!(
            took >= LIMITS.request_time_max && took < LIMITS.request_time_max + Duration::from_secs(2),
            "{path}: {took:?}"
        );
        // DEADLINE_EXCEEDED, with the reason.
        let says = frames[0].field("grpc-message").is_some_and(|message| message.contains("not%20whole%2030%20s"));
        assert!(frames[0].field("grpc-status") == Some("4") && says, "{path}: {frames:?}");
        assert_eq!(frames[1].code(), 0, "{path}: and the rest of it is of no use");
    }
    app.stop().await.unwrap();
}

/// Late requests run the timer often. That must not forgive a flood.
#[tokio::test(start_paused = true)]
async fn requests_that_are_late_forgive_no_flood() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    let late = head("/grpc.health.v1.Health/Check");
    let flood = frame(PING, END, 0, &[7; 8]).repeat(400);
    let (began, step) = (Instant::now(), Duration::from_millis(200));
    let mut cut = false;
    for stream in (1..).step_by(2) {
        peer.send(HEADERS, END_HEADERS, stream, &late).await;
        // From now on one of them is late at each step.
        if began.elapsed() > LIMITS.request_time_max + step {
            peer.write(&flood).await;
        }
        let next = Instant::now() + step;
        while let Some(frame) = peer.next_in(next.saturating_duration_since(Instant::now())).await {
            cut |= frame.kind == GOAWAY;
        }
        if cut {
            break;
        }
        assert!(began.elapsed() < 2 * LIMITS.request_time_max, "it is never cut");
    }
    drop(peer);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_requests_may_take_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let secret = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    let block = head_of("/keyward.v1.KeyVerify/StreamVerify", secret.trim());
    peer.send(HEADERS, END_HEADERS, 1, &block).await;
    let mut quiet = 0;
    while quiet < 5 {
        let frame = peer.next_in(2 * LIMITS.keepalive_interval).await;
        let asked = frame.filter(|frame| frame.kind == PING && frame.flags == 0);
        if let Some(asked) = asked {
            peer.send(PING, END, 0, &asked.payload).await;
            quiet += 1;
        }
    }
    let asked = pb::StreamVerifyRequest { request: Some(ask("nonsense")) };
    peer.send(DATA, 0, 1, &body(&asked)).await;
    peer.find(|frame| frame.kind == DATA && frame.stream == 1).await;
    drop(peer);
    app.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_is_announced_and_then_final() {
    let mut site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    // A call that is under way.
    peer.send(HEADERS, END_HEADERS, 1, &head_of(VERIFY, site.admin_secret())).await;
    peer.until_pong(1).await;
    let block = head_of(VERIFY, site.admin_secret());
    let question = body(&ask("nonsense"));
    let stopping = tokio::spawn(site.app().stop());
    let told = peer.find(|frame| frame.kind == GOAWAY).await;
    assert_eq!((&told.payload[..4], told.code()), (&[0x7f, 0xff, 0xff, 0xff][..], 0));
    let asked = peer.find(|frame| frame.kind == PING).await;
    // A call that began before the peer acknowledged the stop is answered.
    peer.call(3, &block, &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(3).await.reason(), Reason::Malformed);
    peer.send(PING, END, 0, &asked.payload).await;
    let meant = peer.find(|frame| frame.kind == GOAWAY).await;
    assert_eq!((&meant.payload[..4], meant.code()), (&[0, 0, 0, 3][..], 0));
    // A later one is not; those that began end.
    peer.call(5, &block, &question).await;
    assert!(!stopping.is_finished());
    peer.send(DATA, END, 1, &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed);
    let mut after = vec![];
    while let Some(frame) = peer.next().await {
        after.push(frame);
    }
    assert_eq!(after, [], "and then the connection");
    drop(peer);
    stopping.await.unwrap().unwrap();
}
/// How long a stop takes beside a peer that has sent these bytes, stays, and reads nothing.
async fn stop_beside(said: &[u8]) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let app = here_with(&dir, |_| {}).await;
    let keyward::server::addr::ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!() };
    let mut idle = tokio::net::TcpStream::connect(addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut idle, said).await.unwrap();
    // Another one, whose answer shows that the server has read both.
    let mut other = Peer::to(&app.addrs()[0]).await;
    other.write(PREFACE).await;
    other.settings(&[]).await;
    other.until_pong(1).await;
    drop(other);
    let began = Instant::now();
    app.stop().await.unwrap();
    drop(idle);
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn no_idle_connection_holds_up_a_stop() {
    let no_settings = frame(SETTINGS, 0, 0, &[]);
    let open = [PREFACE, &no_settings].concat();
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n", PREFACE, &open, &[&open[..], b"\0\0\x08"].concat()] {
        let took = stop_beside(said).await;
        assert!(took < Duration::from_secs(1), "{took:?} beside a peer that has said {}", said.escape_ascii());
    }
}

/// A call of a peer that does not read delays a stop until it is answered, and no longer.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_with_the_last_call() {
    let dir = tempfile::tempdir().unwrap();
    let app = here(&dir).await;
    let secret = std::fs::read_to_string(dir.path().join("data/admin.key")).unwrap();
    let mut peer = Peer::to(&app.addrs()[0]).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    peer.send(HEADERS, END_HEADERS, 1, &head_of(VERIFY, secret.trim())).await;
    peer.until_pong(1).await;
    let began = Instant::now();
    let stopping = tokio::spawn(app.stop());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!stopping.is_finished());
    peer.send(DATA, END, 1, &body(&ask("nonsense"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed);
    stopping.await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(3_100), "{took:?}: two for the call, and one for the peer to read");
}
