//! What metrics and the log tell of callers' connections.

use std::time::Instant;

use keyward::grpc::LIMITS;
use keyward::server::addr::ListenAddr;

use crate::support::h2peer::*;
use crate::support::harness::Site;
use crate::support::ops_client::{metrics, value, wait_for_value};
use crate::support::program::Program;

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const CANCEL: u32 = 8;
const NO_HTTP2: &[u8] = b"GET / HTTP/1.1\r\nhost: keyward\r\n\r\n";

async fn now(ops: &ListenAddr, series: &str) -> f64 {
    value(&metrics(ops).await, &format!("keyward_http2_{series}")).unwrap_or_else(|| panic!("no {series}"))
}

/// Waits until a counter has moved by this much, and no more.
async fn moves(ops: &ListenAddr, series: &str, before: f64, by: f64) {
    wait_for_value(ops, &format!("keyward_http2_{series}"), |value| value >= before + by).await;
    assert_eq!(now(ops, series).await, before + by, "{series}");
}

/// A call that makes the server reset it.
fn in_error(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &head(WATCH)), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
}

#[tokio::test]
async fn connections_and_their_bytes_are_counted() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let (opened, closed) = ("connections_opened_total", "connections_closed_total{reason=\"IN_ORDER\"}");
    let (read, written) = ("bytes_total{direction=\"in\"}", "bytes_total{direction=\"out\"}");
    let before = [now(&ops, opened).await, now(&ops, closed).await, now(&ops, read).await, now(&ops, written).await];
    let mut peer = Peer::open(&site).await;
    peer.until_pong(1).await;
    moves(&ops, opened, before[0], 1.0).await;
    // The preface, SETTINGS and PING; and at least what acknowledges the last two.
    moves(&ops, read, before[2], (24 + 9 + 17) as f64).await;
    assert!(now(&ops, written).await >= before[3] + (9 + 17) as f64);
    drop(peer);
    moves(&ops, closed, before[1], 1.0).await;
}

#[tokio::test]
async fn resets_are_counted_by_who_made_them_and_their_code() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let mut peer = Peer::open(&site).await;
    peer.write(&in_error(1)).await;
    peer.reset(1).await;
    for (stream, code) in [(3, CANCEL), (5, CANCEL), (7, 999)] {
        peer.send(HEADERS, END_HEADERS, stream, &head(WATCH)).await;
        peer.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }
    peer.until_pong(1).await;
    let text = metrics(&ops).await;
    let expected = [("us", "PROTOCOL_ERROR", 1.0), ("peer", "CANCEL", 2.0), ("peer", "UNKNOWN", 1.0)];
    for (by, code, count) in expected {
        let series = format!("keyward_http2_resets_total{{by=\"{by}\",code=\"{code}\"}}");
        assert_eq!(value(&text, &series), Some(count), "{series}");
    }
    let all = text.lines().filter(|line| line.starts_with("keyward_http2_resets_total{"));
    let all: f64 = all.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum();
    assert_eq!(all, 4.0, "and no others");
}

#[tokio::test]
async fn refused_streams_are_counted_by_why() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let mut known = Peer::open(&site).await;
    let further = 2 * LIMITS.streams_max as u32 + 1;
    for stream in (1..=further).step_by(2) {
        known.send(HEADERS, END_HEADERS, stream, &head_of(WATCH, site.admin_secret())).await;
    }
    known.reset(further).await;
    moves(&ops, "streams_refused_total{reason=\"TOO_MANY_STREAMS\"}", 0.0, 1.0).await;
    let mut stranger = Peer::open(&site).await;
    let further = 2 * (LIMITS.stranger_calls_max as u32 + LIMITS.stranger_refusals_max) + 1;
    for stream in (1..=further).step_by(2) {
        stranger.send(HEADERS, END_HEADERS, stream, &head(WATCH)).await;
    }
    while stranger.find(|frame| frame.kind == RST_STREAM).await.stream != further {}
    moves(&ops, "streams_refused_total{reason=\"TOO_MANY_REFUSALS\"}", 0.0, 1.0).await;
    moves(&ops, "resets_total{by=\"us\",code=\"REFUSED_STREAM\"}", 0.0, 2.0).await;
}

#[tokio::test]
async fn floods_and_the_ends_that_they_lead_to_are_counted() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let pings = frame(PING, END, 0, &[7; 8]).repeat(LIMITS.overhead_frames_max as usize + 1);
    let errors: Vec<_> = (0..=LIMITS.errors_max).flat_map(|nth| in_error(2 * nth + 1)).collect();
    for (nth, (kind, flood)) in [("FRAMES", pings), ("ERRORS", errors)].into_iter().enumerate() {
        let (mut reader, mut writer) = Peer::open(&site).await.split();
        let writing = async {
            writer.write(&flood).await;
            // It is kept open until the server closes it.
            writer
        };
        let (code, _writer) = tokio::join!(reader.goaway(), writing);
        assert_eq!(code, 11);
        moves(&ops, &format!("floods_total{{kind=\"{kind}\"}}"), 0.0, 1.0).await;
        let count = nth as f64 + 1.0;
        moves(&ops, "goaways_total{by=\"us\",code=\"ENHANCE_YOUR_CALM\"}", 0.0, count).await;
        moves(&ops, "connections_closed_total{reason=\"ENHANCE_YOUR_CALM\"}", 0.0, count).await;
    }
}

#[tokio::test]
async fn goaways_and_broken_rules_are_counted() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let mut peer = Peer::open(&site).await;
    peer.send(GOAWAY, 0, 0, &[0; 8]).await;
    while peer.next().await.is_some() {}
    moves(&ops, "goaways_total{by=\"peer\",code=\"NO_ERROR\"}", 0.0, 1.0).await;
    let mut peer = Peer::silent(&site).await;
    peer.write(NO_HTTP2).await;
    assert_eq!(peer.goaway().await, 1);
    drop(peer);
    moves(&ops, "goaways_total{by=\"us\",code=\"PROTOCOL_ERROR\"}", 0.0, 1.0).await;
    moves(&ops, "connections_closed_total{reason=\"PROTOCOL_ERROR\"}", 0.0, 1.0).await;
}

#[tokio::test]
async fn peers_that_break_rules_do_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut program = Program::serve(dir.path(), &[]);
    let addr = program.addr.parse().unwrap();
    for _ in 0..200 {
        let mut peer = Peer::to(&addr).await;
        peer.write(NO_HTTP2).await;
        assert_eq!(peer.goaway().await, 1);
    }
    let line = program.wait_for("closing a connection whose peer breaks the rules");
    assert!(line.contains("peer=127.0.0.1 reason=\"this is no HTTP/2\" left_out=0"), "{line}");
    program.signal("TERM");
    let (_, log) = program.end();
    let lines = log.lines().filter(|line| line.contains("whose peer breaks the rules")).count() as u64;
    assert!(lines <= 1 + began.elapsed().as_secs() / 10, "{lines} lines:\n{log}");
}
