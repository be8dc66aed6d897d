//! Issue, verify, relabel, disable, enable and revoke a key.

use keyward::grpc::pb::{self, Decision, Reason, State};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::support::harness::{Site, after_start, ask, bad_fields, disable, error_reason, new_key, update};

#[tokio::test]
async fn an_issued_key_is_allowed_and_says_whose_it_is() {
    let site = Site::start().await;
    let request = pb::CreateKeyRequest { owner: "customer-7".into(), ..new_key("Zapier", &["orders.read"]) };
    let issued = site.admin().issued(request).await;

    let verdict = site.admin().verdict(&issued.secret).await;
    assert_eq!(verdict.decision(), Decision::Allow);
    assert_eq!((verdict.reason(), verdict.http_status), (Reason::Ok, 200));
    assert!(verdict.as_of_revision >= issued.revision);
    let key = verdict.key.unwrap();
    assert_eq!((&*key.display_name, &*key.owner, &*key.tenant), ("Zapier", "customer-7", "default"));
    assert_eq!(key.key_id, issued.key.key_id);
    assert_eq!(key.scopes, ["orders.read"]);
    assert_eq!(key.environment, "live");
    assert_eq!(key.expire_time, None);
}

#[tokio::test]
async fn a_secret_has_its_form_and_its_hint() {
    let site = Site::start().await;
    let request = pb::CreateKeyRequest { environment: "test".into(), ..new_key("Zapier", &[]) };
    let issued = site.admin().issued(request).await;
    assert!(issued.secret.starts_with("kw_test_"), "the prefix and the environment come first");
    assert_eq!(issued.secret.len(), "kw_test_".len() + 43 + 6);
    let end = &issued.secret[issued.secret.len() - 4..];
    assert_eq!(issued.key.hint, format!("kw_test_…{end}"));
}

#[tokio::test]
async fn a_secret_is_shown_in_one_reply_and_in_no_other() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let body = &issued.secret["kw_live_".len()..issued.secret.len() - 4];
    let later = [
        format!("{:?}", admin.read(&issued.key).await),
        format!("{:?}", admin.list(pb::ListKeysRequest::default()).await.unwrap()),
        format!("{:?}", admin.verdict(&issued.secret).await),
        format!("{:?}", admin.disable_key(&issued.key).await),
        format!("{:?}", admin.create(new_key("Other", &[])).await.unwrap()),
        format!("{:?}", ask(&issued.secret)),
    ];
    for reply in later {
        assert!(!reply.contains(body), "{reply}");
    }
}

#[tokio::test]
async fn a_disabled_key_is_refused_at_once_and_works_again_when_enabled() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    for _ in 0..3 {
        let disabled = admin.disable_key(&issued.key).await;
        assert_eq!(disabled.key.unwrap().state(), State::Disabled);
        let verdict = admin.verdict(&issued.secret).await;
        assert_eq!((verdict.decision(), verdict.reason()), (Decision::Deny, Reason::Disabled));
        assert_eq!(verdict.http_status, 401);
        assert!(verdict.as_of_revision >= disabled.revision);

        let enabled = admin.enable_key(&issued.key).await;
        assert_eq!(enabled.key.unwrap().state(), State::Active);
        assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    }
}

#[tokio::test]
async fn a_refusal_tells_the_key_id_and_nothing_else() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    admin.disable_key(&issued.key).await;
    let key = admin.verdict(&issued.secret).await.key.unwrap();
    assert_eq!(key, pb::VerifiedKey { key_id: issued.key.key_id, ..Default::default() });
}

#[tokio::test]
async fn a_disabled_key_stays_disabled_over_a_restart() {
    let mut site = Site::start().await;
    let (kept, disabled) = (site.admin().issue("Kept", &[]).await, site.admin().issue("Disabled", &[]).await);
    site.admin().disable_key(&disabled.key).await;
    site.restart().await;
    assert_eq!(site.admin().reason(&kept.secret).await, Reason::Ok);
    assert_eq!(site.admin().reason(&disabled.secret).await, Reason::Disabled);
    site.admin().enable_key(&disabled.key).await;
    assert_eq!(site.admin().reason(&disabled.secret).await, Reason::Ok);
}

#[tokio::test]
async fn a_revoked_key_stays_revoked() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    admin.revoke_key(&issued.key).await;
    assert_eq!(admin.reason(&issued.secret).await, Reason::Revoked);

    let enable = pb::EnableKeyRequest { key_id: issued.key.key_id.clone(), ..Default::default() };
    let refused = admin.enable(enable).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "STATE_FORBIDS"));
    let refused = admin.disable(disable(&issued.key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(admin.reason(&issued.secret).await, Reason::Revoked);
}

#[tokio::test]
async fn of_a_revoked_key_only_how_it_is_called_and_found_changes() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    let revoked = admin.revoke_key(&issued.key).await.key.unwrap();
    let other = pb::Key {
        display_name: "Zapier, gone".into(),
        description: "other".into(),
        owner: "other".into(),
        scopes: vec![],
        audiences: vec!["other".into()],
        allowed_cidrs: vec!["10.0.0.0/8".into()],
        labels: [("old".to_owned(), "yes".to_owned())].into(),
        annotations: [("old".to_owned(), "yes".to_owned())].into(),
        not_before: after_start(1),
        expire_time: after_start(2),
        ..issued.key.clone()
    };
    for path in ["description", "owner", "scopes", "audiences", "allowed_cidrs", "not_before", "expire_time"] {
        for paths in [&[path][..], &["labels", path]] {
            let refused = admin.update(update(&other, paths)).await.unwrap_err();
            assert_eq!(
                (refused.code(), &*error_reason(&refused)),
                (Code::FailedPrecondition, "STATE_FORBIDS"),
                "{path}"
            );
            let only_asked = pb::UpdateKeyRequest { validate_only: true, ..update(&other, paths) };
            assert_eq!(admin.update(only_asked).await.unwrap_err().code(), Code::FailedPrecondition);
        }
        // To what it is already is no change.
        admin.update(update(&revoked, &[path])).await.unwrap();
    }
    assert_eq!(admin.read(&issued.key).await, revoked);
    admin.update(update(&other, &["display_name", "labels", "annotations"])).await.unwrap();
    let read = admin.read(&issued.key).await;
    assert_eq!(
        (read.display_name, read.labels, read.annotations),
        (other.display_name, other.labels, other.annotations)
    );
    assert_eq!((read.scopes, read.owner, read.state), (revoked.scopes, revoked.owner, pb::State::Revoked.into()));
}

#[tokio::test]
async fn a_caller_cannot_be_called_like_the_program() {
    let site = Site::start().await;
    let admin = site.admin();
    let named = |tenant: &str, id: &str| {
        let scopes: &[&str] = if tenant == "system" { &["keyward.viewer"] } else { &[] };
        pb::CreateKeyRequest { tenant: tenant.into(), key_id: id.into(), ..new_key("Named", scopes) }
    };
    for id in ["keyward", "keyward-", "keyward-restore", "keyward_backup"] {
        for validate_only in [true, false] {
            let request = pb::CreateKeyRequest { validate_only, ..named("system", id) };
            assert_eq!(bad_fields(&admin.create(request).await.unwrap_err()), ["key_id"], "{id}");
        }
        admin.create(named("default", id)).await.unwrap();
    }
    admin.create(named("system", "keywards")).await.unwrap();
}

#[tokio::test]
async fn a_move_to_the_state_that_a_key_is_in_changes_nothing() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let first = admin.disable_key(&issued.key).await;
    let second = admin.disable_key(&issued.key).await;
    assert_eq!(first.revision, second.revision);
    assert_eq!(first.key, second.key);
}

#[tokio::test]
async fn a_key_is_relabelled_and_keeps_its_secret() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    site.clock.advance_ms(5_000);
    let relabelled =
        pb::Key { display_name: "Internal Dashboard".into(), owner: "ignored".into(), ..issued.key.clone() };
    let updated = admin.update(update(&relabelled, &["display_name"])).await.unwrap().key.unwrap();
    assert_eq!(updated.display_name, "Internal Dashboard");
    assert_eq!(updated.owner, "", "what the mask does not name stays");
    assert_eq!(updated.create_time, issued.key.create_time);
    assert_eq!(updated.update_time.unwrap().seconds, issued.key.update_time.unwrap().seconds + 5);
    assert_ne!(updated.etag, issued.key.etag);
    assert_eq!(admin.verdict(&issued.secret).await.key.unwrap().display_name, "Internal Dashboard");
}

#[tokio::test]
async fn a_narrowed_key_loses_its_scope_at_once() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a", "b"]).await;
    let wants_b = pb::VerifyRequest { all_scopes: vec!["b".into()], ..ask(&issued.secret) };
    assert_eq!(admin.ask(wants_b.clone()).await.unwrap().reason(), Reason::Ok);
    let narrowed = pb::Key { scopes: vec!["a".into()], ..issued.key };
    admin.update(update(&narrowed, &["scopes"])).await.unwrap();
    assert_eq!(admin.ask(wants_b).await.unwrap().reason(), Reason::ScopeMissing);
}

#[tokio::test]
async fn a_chosen_id_is_kept_and_cannot_be_taken_twice() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::CreateKeyRequest { key_id: "zapier-prod".into(), ..new_key("Zapier", &[]) };
    let first = admin.issued(request.clone()).await;
    assert_eq!(first.key.key_id, "zapier-prod");
    let refused = admin.create(request).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::AlreadyExists, "KEY_EXISTS"));
    assert_eq!(admin.reason(&first.secret).await, Reason::Ok);
}

#[tokio::test]
async fn a_key_can_be_made_disabled_and_enabled_later() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issued(pb::CreateKeyRequest { disabled: true, ..new_key("Later", &[]) }).await;
    assert_eq!(admin.reason(&issued.secret).await, Reason::Disabled);
    admin.enable_key(&issued.key).await;
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
}

#[tokio::test]
async fn an_etag_that_is_no_longer_current_is_refused_and_changes_nothing() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let stale = issued.key.etag.clone();
    let relabelled = pb::Key { display_name: "Two".into(), ..issued.key.clone() };
    let request = pb::UpdateKeyRequest { etag: stale.clone(), ..update(&relabelled, &["display_name"]) };
    let current = admin.update(request.clone()).await.unwrap().key.unwrap();

    let refused = admin.update(request).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Aborted, "ETAG_MISMATCH"));
    let refused = admin.disable(pb::DisableKeyRequest { etag: stale, ..disable(&issued.key) }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(admin.read(&issued.key).await, current);

    let fresh = pb::DisableKeyRequest { etag: current.etag, ..disable(&issued.key) };
    admin.disable(fresh).await.unwrap();
}

#[tokio::test]
async fn validate_only_checks_everything_and_changes_nothing() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issued(pb::CreateKeyRequest { key_id: "taken".into(), ..new_key("Zapier", &[]) }).await;
    let before = admin.read(&issued.key).await;

    let tried = admin.create(pb::CreateKeyRequest { validate_only: true, ..new_key("Dry", &["a"]) }).await.unwrap();
    assert_eq!(tried.secret, "", "there is no key, so there is no secret");
    assert_eq!(tried.key.unwrap().display_name, "Dry");
    let taken = pb::CreateKeyRequest { key_id: "taken".into(), validate_only: true, ..new_key("Dry", &[]) };
    assert_eq!(admin.create(taken).await.unwrap_err().code(), Code::AlreadyExists);

    let tried = admin.disable(pb::DisableKeyRequest { validate_only: true, ..disable(&issued.key) }).await.unwrap();
    assert_eq!(tried.key.unwrap().state(), State::Disabled, "the reply shows the key as it would be");
    let relabelled = pb::Key { display_name: "Dry".into(), ..issued.key.clone() };
    let request = pb::UpdateKeyRequest { validate_only: true, ..update(&relabelled, &["display_name"]) };
    assert_eq!(admin.update(request).await.unwrap().key.unwrap().display_name, "Dry");

    assert_eq!(admin.read(&issued.key).await, before);
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    assert_eq!(admin.list(pb::ListKeysRequest::default()).await.unwrap().keys.len(), 1);
}

/// Updates of one key wait for each other, and too many are refused; a change of state does neither.
#[tokio::test]
async fn a_key_is_disabled_amid_a_flood_of_updates() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let (over, crowded) = (CancellationToken::new(), CancellationToken::new());
    let floods: Vec<_> = (0..150)
        .map(|number| {
            let (admin, key, over, crowded) = (admin.clone(), issued.key.clone(), over.clone(), crowded.clone());
            tokio::spawn(async move {
                for round in 0.. {
                    if over.is_cancelled() {
                        return;
                    }
                    let key = pb::Key { description: format!("{number} {round}"), ..key.clone() };
                    if let Err(refused) = admin.update(update(&key, &["description"])).await {
                        assert_eq!(refused.code(), Code::ResourceExhausted);
                        crowded.cancel();
                    }
                }
            })
        })
        .collect();
    crowded.cancelled().await;
    for _ in 0..5 {
        admin.disable_key(&issued.key).await;
        assert_eq!(admin.reason(&issued.secret).await, Reason::Disabled);
        admin.enable_key(&issued.key).await;
        assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    }
    over.cancel();
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test]
async fn a_change_between_reading_and_writing_is_no_obstacle_without_an_etag() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let changes = (0..40).map(|number| {
        let (admin, key) = (admin.clone(), issued.key.clone());
        async move {
            let key = pb::Key { description: format!("change {number}"), ..key };
            admin.update(update(&key, &["description"])).await
        }
    });
    for changed in futures_util::future::join_all(changes).await {
        changed.unwrap();
    }
    assert!(admin.read(&issued.key).await.description.starts_with("change "));
}
