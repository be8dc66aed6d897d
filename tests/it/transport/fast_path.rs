//! Which way calls of Verify take. If none took the fast path any more, nothing else would fail.

use std::collections::BTreeMap;
use std::time::Instant;

use keyward::grpc::pb;
use keyward::layer::log::SAMPLES_MAX;
use keyward::server::addr::ListenAddr;
use tonic::Code;

use crate::support::harness::{Site, ask, strings};
use crate::support::ops_client::metrics;
use crate::support::program::{Program, admin_of};

/// The ways that calls of a kind have taken.
pub(crate) async fn ways(site: &Site, call: &str) -> BTreeMap<String, u64> {
    ways_at(&site.ops_addr(), call).await
}

async fn ways_at(ops: &ListenAddr, call: &str) -> BTreeMap<String, u64> {
    let text = metrics(ops).await;
    let prefix = format!("keyward_calls_by_way_total{{call=\"KeyVerify/{call}\",way=\"");
    let ways = text.lines().filter_map(|line| {
        let (way, count) = line.strip_prefix(&prefix)?.split_once("\"} ")?;
        Some((way.to_owned(), count.parse().unwrap()))
    });
    ways.filter(|(_, count)| *count > 0).collect()
}

fn expected(ways: &[(&str, u64)]) -> BTreeMap<String, u64> {
    ways.iter().map(|(way, count)| ((*way).to_owned(), *count)).collect()
}

#[tokio::test]
async fn ordinary_calls_are_answered_where_they_are_read_and_others_say_why_not() {
    let site = Site::with_ops().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    let asks = || ask(&issued.secret);
    let full = pb::VerifyRequest {
        all_scopes: strings(&["a"]),
        any_scopes: strings(&["a", "b"]),
        audience: "orders".into(),
        client_ip: "192.0.2.1".into(),
        environment: "live".into(),
        tenant: "default".into(),
        min_revision: 1,
        correlation_id: "request-7".into(),
        ..asks()
    };
    for _ in 0..5 {
        admin.ask(asks()).await.unwrap();
        admin.ask(full.clone()).await.unwrap();
    }
    admin.ask(ask("nonsense")).await.unwrap();
    admin.disable_key(&issued.key).await;
    admin.ask(asks()).await.unwrap();
    assert_eq!(ways(&site, "Verify").await, expected(&[("AT_ONCE", 12)]));

    admin.ask(pb::VerifyRequest { explain: true, ..asks() }).await.unwrap();
    admin.ask(pb::VerifyRequest { min_revision: 1_000_000, ..asks() }).await.unwrap_err();
    admin.ask(pb::VerifyRequest { tenant: "?".into(), ..asks() }).await.unwrap_err();
    admin.ask(pb::VerifyRequest { all_scopes: strings(&["x".repeat(900).as_str(); 64]), ..asks() }).await.unwrap_err();
    assert_eq!(site.nobody().ask(asks()).await.unwrap_err().code(), Code::Unauthenticated);
    let expects = [("AT_ONCE", 12), ("CALLER", 1), ("EXPLAIN", 1), ("MESSAGE", 2), ("MIN_REVISION", 1)];
    assert_eq!(ways(&site, "Verify").await, expected(&expects));

    assert_eq!(ways(&site, "BatchVerify").await, expected(&[]));
    let batch = |item: &pb::VerifyRequest| pb::BatchVerifyRequest { requests: vec![item.clone(); 1_000] };
    admin.ask_all(batch(&asks())).await.unwrap();
    // More than is gathered to be answered at once.
    let long = pb::VerifyRequest { any_scopes: vec!["x".repeat(100); 2], ..asks() };
    admin.ask_all(batch(&long)).await.unwrap();
    assert_eq!(ways(&site, "BatchVerify").await, expected(&[("AT_ONCE", 1), ("LONG_REQUEST", 1)]));
}

/// At level debug some calls take the slow path, which logs them, and all others stay as fast as ever.
#[tokio::test]
async fn at_level_debug_a_sample_of_the_verdicts_is_logged() {
    const CALLS: u64 = 2_000;
    let dir = tempfile::tempdir().unwrap();
    let args = ["--ops-listen", "127.0.0.1:0"];
    let program = Program::serve_in(dir.path(), &args, &[("KEYWARD_LOG_FILTER", "debug")]);
    let began = Instant::now();
    let admin = program.caller(&admin_of(&dir));
    let issued = admin.issue("Zapier", &[]).await;
    for _ in 0..CALLS {
        admin.ask(ask(&issued.secret)).await.unwrap();
    }
    let ways = ways_at(&program.said("ops listening listen=").parse().unwrap(), "Verify").await;
    let windows = began.elapsed().as_secs() + 2;
    let sampled = ways["LOG_LEVEL"];
    assert_eq!(ways.values().sum::<u64>(), CALLS);
    assert!((1..=windows * u64::from(SAMPLES_MAX)).contains(&sampled), "{ways:?}");
    assert!(ways["AT_ONCE"] > 0, "{ways:?}");
    program.signal("TERM");
    let (_, log) = program.end();
    let logged = log.lines().filter(|line| line.contains("/keyward.v1.KeyVerify/Verify")).count() as u64;
    assert_eq!(logged, sampled, "each of the sample has a line");
}
