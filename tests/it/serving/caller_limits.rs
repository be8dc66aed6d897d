//! Limits by caller and by address: how old a connection becomes, how many of strangers one address has, and
//! how many calls are under way. Below them no call is lost, and they are left again as they are met.

use std::time::Duration;

use futures_util::StreamExt;
use keyward::app::Engine;
use keyward::config::Settings;
use keyward::grpc::pb::{self, Reason};
use keyward::layer::failures::PROMPT_MAX;
use keyward::server::connections::Http2;
use keyward::server::slots::FIRST_CALL_TIME;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

use crate::api::stream::asking;
use crate::support::encrypted::PATIENCE;
use crate::support::h2peer::*;
use crate::support::harness::{Handle, Site, ask, disable, error_reason, new_key};
use crate::support::ops_client::{metrics, value, wait_for_value};

const SECOND: Duration = Duration::from_secs(1);

fn too_many<T: std::fmt::Debug>(refused: Result<T, Status>) -> bool {
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    error_reason(&refused) == "TOO_MANY_CALLS_IN_ALL"
}

/// A stream that stays open until its sender is dropped.
async fn open_stream(caller: &Handle) -> mpsc::UnboundedSender<pb::StreamVerifyRequest> {
    let (requests, sent) = mpsc::unbounded_channel();
    requests.send(asking(ask("any"))).unwrap();
    let mut answers = caller.stream(UnboundedReceiverStream::new(sent)).await.unwrap();
    answers.next().await.unwrap().unwrap();
    tokio::spawn(async move { while answers.next().await.is_some() {} });
    requests
}

/// Calls one after the other until GOAWAY comes, and one more, as a client does that has not read it yet. All
/// are answered. Returns how many there were.
async fn call_until_goaway(peer: &mut Peer, credential: &str) -> u32 {
    let (mut stream, mut goaway) = (1, false);
    peer.window_update(0, 1 << 30).await;
    loop {
        peer.call(stream, &head_of(VERIFY, credential), &body(&ask("any"))).await;
        let mut ping = None;
        loop {
            let Some(frame) = peer.next().await else { panic!("call {stream} was not answered") };
            match frame.kind {
                GOAWAY => assert!(frame.code() == 0 && !std::mem::replace(&mut goaway, true), "{frame:?}"),
                PING if frame.flags & 1 == 0 => ping = Some(frame.payload),
                RST_STREAM => panic!("{frame:?}"),
                _ if frame.ends() && frame.stream == stream => {
                    assert_eq!(frame.field("grpc-status"), Some("0"));
                    break;
                }
                _ => {}
            }
        }
        if goaway {
            stream += 2;
            peer.call(stream, &head_of(VERIFY, credential), &body(&ask("any"))).await;
            peer.body(stream).await;
            let ping = match ping {
                Some(payload) => payload,
                None => peer.find(|frame| frame.kind == PING && frame.flags & 1 == 0).await.payload,
            };
            peer.send(PING, 1, 0, &ping).await;
            assert_eq!(peer.goaway().await, 0);
            return stream.div_ceil(2);
        }
        stream += 2;
    }
}

#[tokio::test]
async fn a_connection_ends_at_its_age_and_no_call_is_lost() {
    for own in [true, false] {
        let change: fn(&mut Settings) = match own {
            true => |settings| settings.connection_age_max = SECOND,
            false => |settings| (settings.connection_age_max, settings.http2) = (SECOND, Http2::Hyper),
        };
        let site = Site::changed(Engine::Memory, "127.0.0.1:0", change).await;
        for _ in 0..3 {
            let began = Instant::now();
            let mut peer = Peer::open(&site).await;
            let calls = timeout(PATIENCE, call_until_goaway(&mut peer, site.admin_secret())).await;
            assert!(calls.expect("it ends") > 10);
            assert!(began.elapsed() > SECOND * 8 / 10, "{:?}", began.elapsed());
        }
    }
}

/// The next frame, however long it takes. PINGs are answered.
async fn next_answered(peer: &mut Peer) -> Option<Frame> {
    let frame = peer.next_in(Duration::from_secs(3_600)).await?;
    if frame.kind == PING && frame.flags & 1 == 0 {
        peer.send(PING, 1, 0, &frame.payload).await;
    }
    Some(frame)
}

/// The clock is paused, and jumps when everything waits.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_open_at_the_age_of_its_connection_has_five_minutes_more() {
    let change: fn(&mut Settings) = |settings| {
        settings.serving_threads = 0;
        settings.connection_age_max = Duration::from_secs(600);
    };
    let site = Site::changed(Engine::Memory, "off", change).await;
    let mut peer = Peer::open(&site).await;
    let began = Instant::now();
    peer.call(1, &head("/grpc.health.v1.Health/Watch"), &prefixed(b"")).await;
    let told = loop {
        let frame = next_answered(&mut peer).await.unwrap();
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    let aged = began.elapsed();
    assert_eq!(told.code(), 0);
    assert!((540..=660).contains(&aged.as_secs()), "{aged:?}");
    while let Some(frame) = next_answered(&mut peer).await {
        assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
    }
    let more = began.elapsed() - aged;
    assert!((299..=302).contains(&more.as_secs()), "{more:?}");
}

/// The clock is paused, and jumps when everything waits.
#[tokio::test(start_paused = true)]
async fn the_strangers_of_one_address_have_their_time_and_then_make_room_for_each_other() {
    let change: fn(&mut Settings) = |settings| {
        (settings.stranger_connections_per_address_max, settings.serving_threads) = (3, 0);
    };
    let site = Site::changed(Engine::Memory, "off", change).await;
    let known = site.admin();
    assert_eq!(known.reason("any").await, Reason::Malformed);
    let mut strangers = vec![];
    // A service that has just started has as many connections as it likes.
    for _ in 0..10 {
        strangers.push(Peer::open(&site).await);
    }
    for peer in &mut strangers {
        peer.until_pong(1).await;
    }
    tokio::time::advance(FIRST_CALL_TIME).await;
    let mut last = Peer::open(&site).await;
    last.until_pong(1).await;
    for (nth, peer) in strangers.iter_mut().enumerate() {
        if nth < 8 {
            while peer.next().await.is_some() {}
        } else {
            peer.until_pong(2).await;
        }
    }
    // A caller with a key is none of them.
    assert_eq!(known.reason("any").await, Reason::Malformed);
}

#[tokio::test]
async fn more_slow_calls_than_may_be_are_refused_at_once_and_what_takes_power_away_is_not() {
    let change: fn(&mut Settings) = |settings| settings.slow_calls_max = 4;
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", change).await;
    let (admin, key) = (site.admin(), site.admin().issue("Key", &[]).await);
    let others = [site.with_roles(&["keyward.verifier"]).await, site.with_roles(&["keyward.verifier"]).await];
    let mut streams = vec![];
    for _ in 0..2 {
        streams.push(open_stream(&admin).await);
    }
    // Half of all are this caller's.
    assert!(too_many(admin.get(pb::GetKeyRequest::default()).await));
    assert!(too_many(admin.stream(tokio_stream::pending()).await));
    for _ in 0..3 {
        assert_eq!(admin.reason(&key.secret).await, Reason::Ok, "verdicts that are answered at once go on");
    }
    // Another caller has the rest.
    for other in &others {
        streams.push(open_stream(other).await);
    }
    assert!(too_many(others[1].stream(tokio_stream::pending()).await));
    wait_for_value(&site.ops_addr(), "keyward_slow_calls", |calls| calls == 4.0).await;
    admin.disable(disable(&key.key)).await.unwrap();
    assert_eq!(admin.reason(&key.secret).await, Reason::Disabled);
    drop(streams);
    wait_for_value(&site.ops_addr(), "keyward_slow_calls", |calls| calls == 0.0).await;
    admin.create(new_key("Again", &[])).await.unwrap();
    let whole = timeout(PATIENCE, async { admin.read(&key.key).await }).await.unwrap();
    assert_eq!(whole.key_id, key.key.key_id);
}

#[tokio::test]
async fn failures_of_an_origin_are_answered_late_and_a_good_credential_never() {
    let change: fn(&mut Settings) = |settings| settings.failed_authentication_delay = SECOND;
    let site = Site::changed(Engine::Memory, "127.0.0.1:0", change).await;
    let key = site.admin().issue("Key", &[]).await;
    for _ in 0..PROMPT_MAX {
        assert_eq!(site.caller("garbage").ask(ask("any")).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let (bad, began) = (site.caller("garbage"), Instant::now());
    let mut late = std::pin::pin!(bad.ask(ask("any")));
    assert!(futures_util::poll!(&mut late).is_pending());
    wait_for_value(&site.ops_addr(), "keyward_refusals_waiting", |waiting| waiting == 1.0).await;
    // Of the same address, on the same connection.
    for _ in 0..3 {
        assert_eq!(site.admin().reason(&key.secret).await, Reason::Ok);
    }
    assert!(futures_util::poll!(&mut late).is_pending(), "good ones are faster");
    assert_eq!(late.await.unwrap_err().code(), Code::Unauthenticated);
    assert!(began.elapsed() >= SECOND, "{:?}", began.elapsed());
    let text = metrics(&site.ops_addr()).await;
    let refused = "keyward_failed_authentications_total{reason=\"REFUSED\"}";
    assert_eq!(value(&text, refused), Some(f64::from(PROMPT_MAX) + 1.0));
    assert_eq!(value(&text, "keyward_refusals_waiting"), Some(0.0));
}

/// A stranger's garbage takes no verdict away, but it is seen whose service it comes through.
#[tokio::test]
async fn secrets_that_are_none_are_counted_by_the_caller_who_asks() {
    let site = Site::with_ops().await;
    let request = |id: &str| pb::CreateKeyRequest {
        tenant: "system".into(),
        key_id: id.into(),
        ..new_key("Service", &["keyward.verifier"])
    };
    let key = site.admin().issue("Key", &[]).await;
    for (id, times) in [("shop", 3), ("mail", 1)] {
        let service = site.caller(&site.admin().issued(request(id)).await.secret);
        for _ in 0..times {
            assert_eq!(service.reason("garbage").await, Reason::Malformed);
            let batch = pb::BatchVerifyRequest { requests: vec![ask("garbage"), ask(&key.secret)] };
            service.ask_all(batch).await.unwrap();
            let explained = pb::VerifyRequest { explain: true, ..ask("garbage") };
            assert_eq!(service.ask(explained).await.unwrap().reason(), Reason::Malformed);
        }
        assert_eq!(service.reason(&key.secret).await, Reason::Ok);
    }
    let text = metrics(&site.ops_addr()).await;
    let of = |caller: &str, reason: &str| {
        value(&text, &format!("keyward_unknown_secrets_total{{caller=\"{caller}\",reason=\"{reason}\"}}"))
    };
    assert_eq!((of("shop", "MALFORMED"), of("mail", "MALFORMED")), (Some(9.0), Some(3.0)));
    assert_eq!((of("shop", "UNKNOWN"), of("keyward", "UNKNOWN")), (Some(0.0), None));
}
