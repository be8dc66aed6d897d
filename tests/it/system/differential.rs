//! The fast path and the slow one answer Verify and BatchVerify alike, byte for byte, over random keys,
//! callers, requests and times.

use std::future::poll_fn;
use std::pin::pin;

use http_body::Body as _;
use keyward::grpc::pb;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request};
use tonic::transport::Channel;
use tower_service::Service;

use crate::support::h2peer::prefixed;
use crate::support::harness::{Site, after_start, rotate, strings};
use crate::support::rpcs::http_body_of;
use crate::transport::fast_path::ways;

const KEYS: usize = 60;
const ROUNDS: usize = 25;
const CALLS_A_ROUND: usize = 24;
/// How far the clock goes between two rounds.
const STEP_MS: i64 = 1_000;

/// One of these texts.
fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

prop_compose! {
    fn keys()(
        tenant in one_of(&["default", "default", "acme"]),
        owner in one_of(&["", "customer-1", "Ægir"]),
        scopes in vec(one_of(&["a", "b.read", "b.*", "orders.*"]), 0..4),
        audiences in vec(one_of(&["orders", "billing"]), 0..2),
        allowed_cidrs in prop_oneof![3 => Just(vec![]), 1 => Just(strings(&["10.0.0.0/8", "2001:db8::/32"]))],
        labels in vec((one_of(&["team", "tier"]), one_of(&["", "x", "long text"])), 0..3),
        (begins, ends) in (prop::option::weighted(0.2, 1..25_i64), prop::option::weighted(0.2, 1..25_i64)),
        environment in one_of(&["live", "live", "test"]),
        disabled in prop::bool::weighted(0.2),
    ) -> pb::CreateKeyRequest {
        let not_before = begins.and_then(|begins| after_start(begins * STEP_MS));
        let expire_time = ends.and_then(|ends| after_start((begins.unwrap_or(0) + ends) * STEP_MS));
        pb::CreateKeyRequest {
            tenant, owner, scopes, audiences, allowed_cidrs, environment, disabled, not_before, expire_time,
            display_name: "Key".into(), labels: labels.into_iter().collect(),
            ..Default::default()
        }
    }
}

/// A request about one of the keys, or about none.
fn requests(secrets: Vec<String>) -> impl Strategy<Value = pb::VerifyRequest> {
    let broken = prop::sample::select(secrets.clone()).prop_map(|secret| secret[..secret.len() - 1].to_owned() + "?");
    let secret = prop_oneof![8 => prop::sample::select(secrets), 1 => broken, 1 => "\\PC{0,80}"];
    let scope = || prop_oneof![9 => one_of(&["a", "b.read", "b.write", "orders.read"]), 1 => one_of(&["c", "a.*", ""])];
    let scopes = || prop_oneof![3 => Just(vec![]), 1 => vec(scope(), 1..3)];
    let rarely = |texts| prop_oneof![4 => Just(String::new()), 1 => one_of(texts)];
    (
        secret,
        rarely(&["default", "default", "acme", "absent", "A"]),
        (scopes(), scopes()),
        rarely(&["orders", "billing", "Ørders"]),
        rarely(&["10.1.2.3", "10.1.2.3:80", "2001:db8::1", "192.0.2.1", "nowhere"]),
        prop_oneof![19 => Just(0), 1 => 0..5_i32],
        prop_oneof![4 => Just(0), 1 => Just(1)],
        rarely(&["live", "live", "test", "?"]),
        rarely(&["request-1", "Ægir", "\n"]),
    )
        .prop_map(
            |(secret, tenant, scopes, audience, client_ip, mode, min_revision, environment, correlation_id)| {
                let (all_scopes, any_scopes) = scopes;
                pb::VerifyRequest {
                    secret,
                    tenant,
                    all_scopes,
                    any_scopes,
                    audience,
                    client_ip,
                    mode,
                    min_revision,
                    environment,
                    correlation_id,
                    explain: false,
                }
            },
        )
}

/// A reply, as it came.
#[derive(Debug, PartialEq)]
struct Reply {
    body: Vec<u8>,
    status: Vec<(String, Vec<u8>)>,
}

/// Asks by one of the ways: a call that names its encoding, though it is that of all others, is not answered
/// where it is read.
async fn reply(channel: &mut Channel, path: &str, credential: &str, message: &[u8], quick: bool) -> Reply {
    let mut request = Request::post(format!("http://keyward{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {credential}"));
    if !quick {
        request = request.header("grpc-encoding", "identity");
    }
    let request = request.body(Body::new(http_body_of(prefixed(message)))).unwrap();
    poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
    let response = channel.call(request).await.unwrap();
    // With a refusal, the status stands in the headers.
    let mut status = of_status(response.headers());
    let (mut body, mut bytes) = (pin!(response.into_body()), vec![]);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.unwrap().into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => status.extend(of_status(&frame.into_trailers().unwrap())),
        }
    }
    Reply { body: bytes, status }
}

fn of_status(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let grpc = headers.iter().filter(|(name, _)| name.as_str().starts_with("grpc-status") || *name == "grpc-message");
    grpc.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect()
}

#[tokio::test]
async fn verdicts_are_byte_for_byte_the_same_on_both_ways() {
    let site = Site::with_ops().await;
    let admin = site.admin();
    let acme = pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() };
    admin.create_tenant(acme).await.unwrap();
    let mut runner = TestRunner::deterministic();
    let mut secrets = vec![];
    while secrets.len() < KEYS {
        let key = keys().new_tree(&mut runner).unwrap().current();
        let issued = admin.issued(key).await;
        secrets.push(issued.secret);
        // With an overlap that ends meanwhile, one that does not, and none. (One that waits for a use would
        // begin between the two ways.)
        let rotation = match secrets.len() % 5 {
            0 => rotate(&issued.key, i64::try_from(secrets.len()).unwrap() * STEP_MS / 4),
            1 => rotate(&issued.key, 100 * STEP_MS),
            2 => rotate(&issued.key, 0),
            _ => continue,
        };
        secrets.push(admin.rotated(rotation).await.secret);
    }
    let mut callers = vec![site.admin_secret().to_owned(), "garbage".to_owned()];
    for roles in [&["keyward.verifier"][..], &["keyward.admin"], &["keyward.verifier@acme"], &["keyward.viewer"]] {
        let key = pb::CreateKeyRequest { tenant: "system".into(), ..crate::support::harness::new_key("Caller", roles) };
        callers.push(admin.issued(key).await.secret);
    }
    let (mut channel, mut allowed) = (site.channel(), 0);
    for _ in 0..ROUNDS {
        for _ in 0..CALLS_A_ROUND {
            let caller = prop::sample::select(callers.clone()).new_tree(&mut runner).unwrap().current();
            let asked = vec(requests(secrets.clone()), 1..6).new_tree(&mut runner).unwrap().current();
            let one = asked[0].encode_to_vec();
            let all = pb::BatchVerifyRequest { requests: asked.clone() }.encode_to_vec();
            for (path, message) in [("/keyward.v1.KeyVerify/Verify", one), ("/keyward.v1.KeyVerify/BatchVerify", all)] {
                let quick = reply(&mut channel, path, &caller, &message, true).await;
                let slow = reply(&mut channel, path, &caller, &message, false).await;
                assert_eq!(quick, slow, "{path}: {asked:?}");
                allowed += usize::from(path.ends_with("/Verify") && is_allowed(&quick));
            }
        }
        site.clock.advance_ms(STEP_MS);
    }
    assert!(allowed > ROUNDS, "{allowed} keys were allowed");
    for call in ["Verify", "BatchVerify"] {
        let taken = ways(&site, call).await;
        let calls = (ROUNDS * CALLS_A_ROUND) as u64;
        // Some are refused on either way, and some have fields that only the slow one refuses.
        assert!(taken["AT_ONCE"] > calls / 10, "{call}: {taken:?}");
        assert!(taken["HEAD"] >= calls, "{call}: {taken:?}");
    }
}

fn is_allowed(reply: &Reply) -> bool {
    let verdict = reply.body.get(5..).and_then(|message| pb::VerifyResponse::decode(message).ok());
    verdict.is_some_and(|verdict| verdict.decision() == pb::Decision::Allow)
}
