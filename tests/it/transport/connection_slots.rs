//! Places for connections, and who has to go when they are taken.

use std::time::Instant;

use keyward::grpc::pb::Reason;
use tonic::transport::Endpoint;

use crate::support::h2peer::*;
use crate::support::harness::{Handle, ask};
use crate::support::ops_client::{get, value};
use crate::support::program::{Program, admin_of};

const WATCH: &str = "/grpc.health.v1.Health/Watch";
/// 128 are kept for everything else, which leaves 32 places: a sixteenth for each listener, a quarter for
/// callers with a credential.
const FILES: usize = 160;
const STRANGERS_MAX: usize = 24;

/// A stranger with a stream that stays open, who answers whatever is asked.
async fn stranger(program: &Program) -> Peer {
    let mut peer = Peer::to(&program.addr.parse().unwrap()).await;
    peer.write(PREFACE).await;
    peer.settings(&[]).await;
    peer.call(1, &head(WATCH), &prefixed(b"")).await;
    // Once it is heard, it has a place.
    peer.find(|frame| frame.kind == DATA).await;
    peer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_take_all_places_make_room_for_whoever_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listen = format!("unix:{}", socket.display());
    let mut program = Program::serve_within(FILES, dir.path(), &["--listen", &listen, "--ops-listen", "127.0.0.1:0"]);
    let ops = program.said("ops listening listen=").parse().unwrap();
    let admin = admin_of(&dir);
    let early = program.caller(&admin);
    early.ask(ask("x")).await.unwrap();
    assert_eq!(get(&ops, "/readyz").await, (200, "ok".to_owned()));

    let mut crowd = vec![];
    for _ in 0..3 * STRANGERS_MAX {
        crowd.push(stranger(&program).await);
    }
    program.wait_for("the oldest that have had no credential are turned away");
    let (status, body) = get(&ops, "/readyz").await;
    assert!(status == 200 && body.starts_with("ok\nfull: 25 of 32 connections, 24 of callers without"), "{body}");
    let (_, metrics) = get(&ops, "/metrics").await;
    let turned_away = value(&metrics, "keyward_connections_turned_away_total");
    assert_eq!(turned_away, Some(2.0 * STRANGERS_MAX as f64));
    assert_eq!(value(&metrics, "keyward_connections_without_credential"), Some(STRANGERS_MAX as f64));

    // The oldest were told, and are gone; the youngest are there.
    let youngest = crowd.split_off(2 * STRANGERS_MAX);
    for mut peer in crowd {
        let told = peer.find(|frame| frame.kind == GOAWAY).await;
        assert_eq!(told.code(), 0);
        assert!(peer.next().await.is_none());
    }
    let mut youngest: Vec<_> = youngest.into_iter().collect();
    youngest.last_mut().unwrap().until_pong(1).await;

    // Callers with a credential get in, also through the other listener, and stay whatever comes.
    let callers: Vec<_> = (0..4).map(|_| program.caller(&admin)).collect();
    let local = || Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy();
    let local: Vec<_> = (0..2).map(|_| Handle::new(local(), Some(admin.clone()))).collect();
    let began = Instant::now();
    for caller in callers.iter().chain(&local) {
        assert_eq!(caller.ask(ask("x")).await.unwrap().reason(), Reason::Malformed);
    }
    assert!(began.elapsed().as_secs() < 10);
    for _ in 0..2 * STRANGERS_MAX {
        youngest.push(stranger(&program).await);
    }
    let (_, metrics) = get(&ops, "/metrics").await;
    let before = value(&metrics, "keyward_connections");
    for caller in callers.iter().chain(&local).chain([&early]) {
        caller.ask(ask("x")).await.unwrap();
    }
    let (_, metrics) = get(&ops, "/metrics").await;
    assert_eq!(value(&metrics, "keyward_connections"), before, "they are the same connections");
    drop(youngest);
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}
