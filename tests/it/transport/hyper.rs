//! hyper as the implementation of HTTP/2. `tests/hyper` runs most other tests on it too.

use std::time::Duration;

use keyward::app::Engine;
use keyward::config::Settings;
use keyward::grpc::LIMITS;
use keyward::grpc::pb::{self, Reason};
use keyward::server::addr::ListenAddr;
use keyward::server::connections::Http2;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::Code;

use crate::api::stream::Talk;
use crate::support::h2peer::{DATA, PATIENCE, Peer, VERIFY, body, frame, head_of};
use crate::support::harness::{Site, ask, new_key};
use crate::support::ops_client::metrics;
use crate::transport::fast_path::ways;
use crate::transport::http2_time::here_with;

fn by_hyper(settings: &mut Settings) {
    settings.http2 = Http2::Hyper;
}

/// On the core of the connection, on the shared runtime, on the one for urgent calls, and on the one for
/// bulk calls; a stream in both directions, and a long reply.
#[tokio::test]
async fn every_kind_of_call_is_answered_over_hyper() {
    let site = Site::changed(Engine::Sled, "off", by_hyper).await;
    let admin = site.admin();
    let key = admin.issue("ours", &["orders.read"]).await;
    let verifier = site.with_roles(&["keyward.verifier"]).await;
    assert_eq!(verifier.reason(&key.secret).await, Reason::Ok);
    let batch = pb::BatchVerifyRequest { requests: vec![ask(&key.secret); 1_000] };
    assert_eq!(verifier.ask_all(batch).await.unwrap().results.len(), 1_000);
    let mut talk = Talk::open(&verifier).await;
    talk.ask(ask(&key.secret)).await.unwrap();
    let listed = admin.list(pb::ListKeysRequest::default()).await.unwrap();
    assert!(listed.keys.iter().any(|listed| listed.key_id == key.key.key_id));
    let mut backup = admin.backup().await.unwrap();
    assert!(backup.message().await.unwrap().is_some());
    admin.disable_key(&key.key).await;
    assert_eq!(verifier.reason(&key.secret).await, Reason::Disabled);
    let refused = site.nobody().create(new_key("theirs", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn the_fast_path_is_not_that_of_hyper() {
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", by_hyper).await;
    let key = site.admin().issue("ours", &[]).await;
    assert_eq!(site.admin().reason(&key.secret).await, Reason::Ok);
    assert!(ways(&site, "Verify").await.is_empty());
}

/// The clock is paused, and jumps when everything waits.
#[tokio::test(start_paused = true)]
async fn hyper_waits_for_a_preface_no_longer_than_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let app = here_with(&dir, by_hyper).await;
    let ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!() };
    for half in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut silent = TcpStream::connect(addr).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut silent, half).await.unwrap();
        let (began, mut heard) = (Instant::now(), vec![]);
        drop(timeout(Duration::from_secs(60), silent.read_to_end(&mut heard)).await.expect("it is closed"));
        let took = began.elapsed();
        assert!(took >= LIMITS.preface_timeout && took < LIMITS.preface_timeout + Duration::from_secs(1), "{took:?}");
    }
    app.stop().await.unwrap();
}

#[tokio::test]
async fn connections_and_their_bytes_are_counted() {
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", by_hyper).await;
    let mut peer = Peer::open(&site).await;
    peer.until_pong(1).await;
    peer.write(&frame(DATA, 0, 0, &[])).await;
    assert_eq!(peer.goaway().await, 1);
    let counted = async {
        loop {
            let text = metrics(&site.ops_addr()).await;
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or_default()
            };
            let ends = value("keyward_http2_connections_closed_total{reason=\"UNKNOWN\"}");
            let bytes = ["in", "out"].map(|way| value(&format!("keyward_http2_bytes_total{{direction=\"{way}\"}}")));
            if value("keyward_http2_connections_opened_total") >= 1
                && ends == 1
                && bytes.iter().all(|bytes| *bytes > 40)
            {
                return;
            }
        }
    };
    timeout(PATIENCE, counted).await.expect("they are counted");
}

/// What keeps its slot when connections are many.
#[tokio::test]
async fn a_connection_counts_as_known_once_it_has_had_a_credential_that_works() {
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", by_hyper).await;
    let unknown = async || {
        let text = metrics(&site.ops_addr()).await;
        let value = text.lines().find_map(|line| line.strip_prefix("keyward_connections_without_credential "));
        value.unwrap().parse::<u64>().unwrap()
    };
    let mut peer = Peer::open(&site).await;
    peer.until_pong(1).await;
    let before = unknown().await;
    peer.call(1, &head_of(VERIFY, "nonsense"), &body(&ask("nonsense"))).await;
    peer.find(|frame| frame.stream == 1 && frame.ends()).await;
    assert_eq!(unknown().await, before);
    peer.call(3, &head_of(VERIFY, site.admin_secret()), &body(&ask("nonsense"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(3).await.reason(), Reason::Malformed);
    assert_eq!(unknown().await, before - 1);
}
