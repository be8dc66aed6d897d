//! What a verdict depends on, seen over the wire.

use keyward::grpc::pb::{self, Decision, Reason};
use tonic::Code;

use crate::support::harness::{Site, after_start, ask, error_reason, new_key, strings};

#[tokio::test]
async fn garbage_is_malformed_and_a_stranger_is_unknown() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let long = "x".repeat(60_000);
    let mistyped = issued.secret.replace("kw_live", "kw_test");
    for garbage in ["", "x", "kw_live_", "Bearer kw_live_x", &long, &mistyped, "kw_live_ä", "\0"] {
        let verdict = admin.verdict(garbage).await;
        assert_eq!((verdict.decision(), verdict.reason()), (Decision::Deny, Reason::Malformed));
        assert_eq!((verdict.http_status, verdict.key), (401, None));
    }
    // A well-formed secret of another server.
    let other = Site::in_memory().await;
    let foreign = other.admin().issued(pb::CreateKeyRequest { environment: "x".into(), ..new_key("Other", &[]) }).await;
    let verdict = admin.verdict(&foreign.secret).await;
    assert_eq!((verdict.decision(), verdict.reason(), verdict.key), (Decision::Deny, Reason::Unknown, None));
    assert_eq!(verdict.http_status, 401);
}

#[tokio::test]
async fn times_are_judged_by_the_clock_when_the_key_is_used() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::CreateKeyRequest {
        not_before: after_start(10_000),
        expire_time: after_start(20_000),
        ..new_key("Timed", &[])
    };
    let issued = admin.issued(request).await;
    assert_eq!(admin.reason(&issued.secret).await, Reason::NotYetValid);
    site.clock.advance_ms(10_000);
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    site.clock.advance_ms(9_999);
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    site.clock.advance_ms(1);
    assert_eq!(admin.reason(&issued.secret).await, Reason::Expired);
    assert_eq!(admin.verdict(&issued.secret).await.http_status, 401);
}

#[tokio::test]
async fn a_key_without_expiry_works_in_a_hundred_years() {
    let site = Site::start().await;
    let issued = site.admin().issue("For ever", &[]).await;
    site.clock.advance_ms(100 * 365 * 86_400_000);
    assert_eq!(site.admin().reason(&issued.secret).await, Reason::Ok);
}

#[tokio::test]
async fn a_key_is_held_to_its_scopes_networks_and_audiences() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::CreateKeyRequest {
        allowed_cidrs: strings(&["10.0.0.0/8", "2001:db8::/32"]),
        audiences: strings(&["billing"]),
        ..new_key("Bound", &["orders.*", "users.read"])
    };
    let issued = admin.issued(request).await;
    let good = pb::VerifyRequest {
        client_ip: "10.1.2.3".into(),
        audience: "billing".into(),
        all_scopes: strings(&["orders.read.own"]),
        any_scopes: strings(&["users.write", "users.read"]),
        ..ask(&issued.secret)
    };
    let cases = [
        (Reason::Ok, 200, good.clone()),
        (Reason::Ok, 200, pb::VerifyRequest { client_ip: "::ffff:10.9.9.9".into(), ..good.clone() }),
        (Reason::Ok, 200, pb::VerifyRequest { client_ip: "2001:db8::7".into(), ..good.clone() }),
        (Reason::IpNotAllowed, 403, pb::VerifyRequest { client_ip: "192.0.2.1".into(), ..good.clone() }),
        (Reason::IpNotAllowed, 403, pb::VerifyRequest { client_ip: String::new(), ..good.clone() }),
        (Reason::AudienceMismatch, 403, pb::VerifyRequest { audience: "mail".into(), ..good.clone() }),
        (Reason::AudienceMismatch, 403, pb::VerifyRequest { audience: String::new(), ..good.clone() }),
        (Reason::ScopeMissing, 403, pb::VerifyRequest { all_scopes: strings(&["orders"]), ..good.clone() }),
        (Reason::ScopeMissing, 403, pb::VerifyRequest { any_scopes: strings(&["users.write"]), ..good.clone() }),
    ];
    for (reason, http_status, request) in cases {
        let verdict = admin.ask(request.clone()).await.unwrap();
        assert_eq!((verdict.reason(), verdict.http_status), (reason, http_status), "{request:?}");
    }
}

#[tokio::test]
async fn a_key_without_scopes_is_refused_whatever_scope_is_asked() {
    let site = Site::start().await;
    let issued = site.admin().issue("Bare", &[]).await;
    let request = pb::VerifyRequest { any_scopes: strings(&["anything"]), ..ask(&issued.secret) };
    assert_eq!(site.admin().ask(request).await.unwrap().reason(), Reason::ScopeMissing);
}

#[tokio::test]
async fn an_explanation_lists_every_check_in_order() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::CreateKeyRequest { allowed_cidrs: strings(&["10.0.0.0/8"]), ..new_key("Bound", &["a"]) };
    let issued = admin.issued(request).await;
    admin.disable_key(&issued.key).await;

    let request = pb::VerifyRequest { explain: true, all_scopes: strings(&["b"]), ..ask(&issued.secret) };
    let verdict = admin.ask(request).await.unwrap();
    assert_eq!(verdict.reason(), Reason::Disabled);
    let failed: Vec<_> = verdict.checks.iter().filter(|c| !c.passed).map(|c| (&*c.check, c.reason())).collect();
    let expected =
        [("state", Reason::Disabled), ("client_ip", Reason::IpNotAllowed), ("all_scopes", Reason::ScopeMissing)];
    assert_eq!(failed, expected);
    let names: Vec<_> = verdict.checks.iter().map(|check| &*check.check).collect();
    let order = [
        "form",
        "known",
        "secret",
        "owner",
        "epoch",
        "state",
        "not_before",
        "expire_time",
        "environment",
        "audience",
        "client_ip",
        "all_scopes",
        "any_scopes",
    ];
    assert_eq!(names, order);

    let garbage = pb::VerifyRequest { explain: true, ..ask("garbage") };
    let checks = admin.ask(garbage).await.unwrap().checks;
    assert_eq!(checks.len(), 1);
    assert_eq!((&*checks[0].check, checks[0].passed, checks[0].reason()), ("form", false, Reason::Malformed));
}

#[tokio::test]
async fn a_tenant_pin_makes_other_tenants_keys_unknown() {
    let site = Site::start().await;
    let admin = site.admin();
    admin.create_tenant(pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() }).await.unwrap();
    let issued = admin.issued(pb::CreateKeyRequest { tenant: "acme".into(), ..new_key("Zapier", &[]) }).await;
    for (pin, reason) in
        [("", Reason::Ok), ("acme", Reason::Ok), ("default", Reason::Unknown), ("none", Reason::Unknown)]
    {
        let verdict = admin.ask(pb::VerifyRequest { tenant: pin.into(), ..ask(&issued.secret) }).await.unwrap();
        assert_eq!(verdict.reason(), reason, "{pin}");
    }
}

#[tokio::test]
async fn a_look_gives_the_same_verdict_as_a_use() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    let verdict = admin.verdict(&issued.secret).await;
    for mode in [pb::Mode::Peek, pb::Mode::Enforce] {
        let same = admin.ask(pb::VerifyRequest { mode: mode.into(), ..ask(&issued.secret) }).await.unwrap();
        assert_eq!(same, verdict);
    }
}

#[tokio::test]
async fn a_verdict_includes_the_revision_that_is_asked_for_or_fails() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let disabled = admin.disable_key(&issued.key).await;
    let at = |min_revision| pb::VerifyRequest { min_revision, ..ask(&issued.secret) };

    let verdict = admin.ask(at(disabled.revision)).await.unwrap();
    assert_eq!(verdict.reason(), Reason::Disabled);
    assert!(verdict.as_of_revision >= disabled.revision);
    let refused = admin.ask(at(disabled.revision + 1)).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "REVISION_NOT_REACHED"));
}
