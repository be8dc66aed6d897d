//! A clock that is set back revives nothing, and starts nothing early.

use keyward::grpc::pb::{self, Reason};
use tonic::Code;

use crate::support::harness::{Handle, Issued, Site, after_start, ask, bad_fields, error_reason, new_key, update};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
const HOUR_MS: i64 = 60 * 60 * 1_000;

/// On both ways: only the long one explains.
async fn reasons(admin: &Handle, issued: &Issued) -> [Reason; 2] {
    let long = pb::VerifyRequest { explain: true, ..ask(&issued.secret) };
    let long = admin.ask(long).await.unwrap();
    let failed = long.checks.iter().find(|check| !check.passed).map(pb::Check::reason);
    assert_eq!(failed.unwrap_or(Reason::Ok), long.reason());
    [admin.reason(&issued.secret).await, long.reason()]
}

async fn timed(admin: &Handle, tenant: &str, from_ms: Option<i64>, until_ms: Option<i64>) -> Issued {
    let scopes: &[&str] = if tenant == "system" { &["keyward.verifier"] } else { &[] };
    let (not_before, expire_time) = (from_ms.and_then(after_start), until_ms.and_then(after_start));
    admin
        .issued(pb::CreateKeyRequest { tenant: tenant.into(), not_before, expire_time, ..new_key("Timed", scopes) })
        .await
}

/// A change of some other key, so that the log knows how late it is.
async fn change(admin: &Handle) {
    admin.issue("Later", &[]).await;
}

#[tokio::test]
async fn a_clock_that_is_set_back_a_day_revives_no_expired_key() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let expired = timed(&admin, "default", None, Some(HOUR_MS)).await;
    let caller = timed(&admin, "system", None, Some(HOUR_MS)).await;
    let begun = timed(&admin, "default", Some(HOUR_MS), None).await;
    let lasting = timed(&admin, "default", None, Some(10 * DAY_MS)).await;
    site.clock.advance_ms(2 * HOUR_MS);
    change(&admin).await;
    for restart in [false, false, true, true] {
        assert_eq!(reasons(&site.admin(), &begun).await, [Reason::Ok; 2]);
        site.clock.advance_ms(-DAY_MS);
        if restart {
            site.restart().await;
        }
        let admin = site.admin();
        for _ in 0..2 {
            assert_eq!(reasons(&admin, &expired).await, [Reason::Expired; 2]);
            assert_eq!(reasons(&admin, &lasting).await, [Reason::Ok; 2]);
            // What begins power goes by the clock alone.
            assert_eq!(reasons(&admin, &begun).await, [Reason::NotYetValid; 2]);
            let refused = site.caller(&caller.secret).ask(ask(&lasting.secret)).await.unwrap_err();
            assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
            // Nor does a change bring the log's time back.
            change(&admin).await;
        }
        site.clock.advance_ms(DAY_MS);
    }
}

/// Also where a caller was admitted while the clock was right: on its connection, and on its stream.
#[tokio::test]
async fn a_caller_that_was_known_does_not_come_back_with_the_clock() {
    let site = Site::start().await;
    let admin = site.admin();
    let lasting = admin.issue("Lasting", &[]).await;
    let caller = site.caller(&timed(&admin, "system", None, Some(HOUR_MS)).await.secret);
    assert_eq!(caller.reason(&lasting.secret).await, Reason::Ok);
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    let mut answers = caller.stream(tokio_stream::wrappers::ReceiverStream::new(requests)).await.unwrap();
    let question = || pb::StreamVerifyRequest { request: Some(ask(&lasting.secret)) };
    sender.send(question()).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    site.clock.advance_ms(2 * HOUR_MS);
    change(&admin).await;
    site.clock.advance_ms(-DAY_MS);
    assert_eq!(caller.ask(ask(&lasting.secret)).await.unwrap_err().code(), Code::Unauthenticated);
    sender.send(question()).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn the_log_does_not_run_back_with_the_clock() {
    let site = Site::start().await;
    let admin = site.admin();
    let first = admin.issue("First", &[]).await;
    site.clock.advance_ms(-DAY_MS);
    let second = admin.issue("Second", &[]).await;
    assert_eq!(second.key.create_time, first.key.create_time);
    // An expiry that the log is past already is over at once.
    let past = pb::CreateKeyRequest { expire_time: after_start(-HOUR_MS), ..new_key("Past", &[]) };
    assert_eq!(bad_fields(&admin.create(past).await.unwrap_err()), ["expire_time"]);
    let key = pb::Key { expire_time: after_start(-HOUR_MS), ..first.key.clone() };
    assert_eq!(bad_fields(&admin.update(update(&key, &["expire_time"])).await.unwrap_err()), ["key.expire_time"]);
    site.clock.advance_ms(DAY_MS + 5);
    let third = admin.issue("Third", &[]).await;
    assert_eq!(third.key.create_time, after_start(5));
}
