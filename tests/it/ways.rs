//! Which way calls of Verify take. Nothing else would tell if none took the short one any more, save that all
//! is slower.

use std::collections::BTreeMap;

use keyward::grpc::pb;
use tonic::Code;

use crate::harness::{Site, ask, strings};
use crate::ops::metrics;

/// The ways that calls of a kind have taken.
pub(crate) async fn ways(site: &Site, call: &str) -> BTreeMap<String, u64> {
    let text = metrics(&site.ops_addr()).await;
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
