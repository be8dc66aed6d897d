//! Deleted keys: unknown to callers at once, shown to those who ask for them, given back, and purged.

use std::collections::BTreeSet;

use keyward::grpc::pb::{self, Decision, Reason, State};
use keyward_core::limits::{DELETED_KEPT_MS_MAX, DELETED_KEPT_MS_MIN};
use prost_types::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::harness::{
    Handle, Issued, Site, after_start, ask, bad_fields, delete, disable, error_reason, new_key, rotate, update,
};
use crate::support::ops_client::wait_for_value;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// On both ways: only the long one explains.
async fn verdict(admin: &Handle, issued: &Issued) -> pb::VerifyResponse {
    let long = admin.ask(pb::VerifyRequest { explain: true, ..ask(&issued.secret) }).await.unwrap();
    let short = admin.verdict(&issued.secret).await;
    if short.reason() == Reason::Unknown {
        let checks: Vec<_> = long.checks.iter().map(|check| (&*check.check, check.passed)).collect();
        assert_eq!(checks, [("form", true), ("known", false)], "nothing is told of it");
    }
    assert_eq!(pb::VerifyResponse { checks: vec![], ..long }, short);
    short
}

fn kept_for(key: &pb::Key, seconds: i64) -> pb::DeleteKeyRequest {
    pb::DeleteKeyRequest { purge_after: Some(Duration { seconds, nanos: 0 }), ..delete(key) }
}

fn get(key: &pb::Key) -> pb::GetKeyRequest {
    pb::GetKeyRequest { key_id: key.key_id.clone(), tenant: key.tenant.clone() }
}

/// Waits until a key is gone.
async fn purged(admin: &Handle, key: &pb::Key) {
    while let Ok(reply) = admin.get(get(key)).await {
        assert_eq!(reply.key.unwrap().state(), State::Deleted);
        tokio::task::yield_now().await;
    }
    let gone = admin.get(get(key)).await.unwrap_err();
    assert_eq!((gone.code(), &*error_reason(&gone)), (Code::NotFound, "KEY_NOT_FOUND"));
}

#[tokio::test]
async fn a_deleted_key_is_unknown_at_once_and_is_shown_to_those_who_ask_for_it() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let (issued, other) = (admin.issue("Zapier", &["a"]).await, admin.issue("Other", &[]).await);
    site.clock.advance_ms(5);
    let request = pb::DeleteKeyRequest { reason: "customer left".into(), ..delete(&issued.key) };
    let reply = admin.delete(request).await.unwrap();
    let told = reply.key.unwrap();
    assert_eq!((told.state(), told.undelete_state()), (State::Deleted, State::Disabled));
    assert_eq!((told.delete_time, told.purge_time), (after_start(5), after_start(5 + 30 * DAY)));
    assert_eq!((&*told.state_reason, told.state_time), ("customer left", after_start(5)));
    assert_eq!(told.state_by, issued.key.created_by);
    for restart in [false, true] {
        if restart {
            site.restart().await;
        }
        let admin = site.admin();
        let verdict = verdict(&admin, &issued).await;
        assert!(verdict.as_of_revision >= reply.revision);
        assert_eq!((verdict.reason(), verdict.http_status, verdict.key), (Reason::Unknown, 401, None));
        assert_eq!(admin.read(&issued.key).await, told);
        let listed = async |states: &[State], show_deleted| {
            let states = states.iter().map(|state| (*state).into()).collect();
            let selector = Some(pb::KeySelector { states, ..Default::default() });
            let request = pb::ListKeysRequest { selector, show_deleted, ..Default::default() };
            let listed = admin.list(request).await.unwrap().keys;
            listed.into_iter().map(|key| key.display_name).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(listed(&[], false).await, ["Other"]);
        assert_eq!(listed(&[], true).await, ["Other", "Zapier"]);
        for show_deleted in [false, true] {
            assert_eq!(listed(&[State::Deleted], show_deleted).await, ["Zapier"]);
            assert_eq!(listed(&[State::Active], show_deleted).await, ["Other"], "the states alone decide");
            assert_eq!(listed(&[State::Active, State::Deleted], show_deleted).await, ["Other", "Zapier"]);
        }
    }
    // Again it is nothing new, whatever the request says.
    let again = pb::DeleteKeyRequest { reason: "again".into(), ..kept_for(&issued.key, 60) };
    let again = site.admin().delete(again).await.unwrap();
    assert_eq!((again.revision, again.key), (reply.revision, Some(told)));
    drop(other);
}

#[tokio::test]
async fn a_page_token_goes_on_with_the_deleted_keys_that_its_list_began_with() {
    let site = Site::start().await;
    let admin = site.admin();
    let mut keys = BTreeSet::new();
    for number in 0..9 {
        let key = admin.issue(&format!("key {number}"), &[]).await.key;
        if number % 3 == 0 {
            admin.delete_key(&key).await;
        }
        keys.insert(key.key_id);
    }
    let mut request = pb::ListKeysRequest { page_size: 2, show_deleted: true, ..Default::default() };
    let mut seen = vec![];
    loop {
        let page = admin.list(request.clone()).await.unwrap();
        seen.extend(page.keys.into_iter().map(|key| key.key_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        let without = pb::ListKeysRequest { show_deleted: false, ..request.clone() };
        assert_eq!(bad_fields(&admin.list(without).await.unwrap_err()), ["page_token"]);
    }
    assert!(seen.iter().eq(&keys), "{seen:?}");
}

#[tokio::test]
async fn a_deleted_key_comes_back_disabled_and_works_with_the_same_secret_when_enabled() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    // Whatever it was disabled until.
    admin.suspend_key(&issued.key, MINUTE).await;
    admin.delete_key(&issued.key).await;
    site.clock.advance_ms(2 * MINUTE);
    assert_eq!(verdict(&admin, &issued).await.reason(), Reason::Unknown);
    let operator = site.with_roles(&["keyward.operator"]).await;
    let request =
        pb::UndeleteKeyRequest { key_id: issued.key.key_id.clone(), reason: "came back".into(), ..Default::default() };
    let validated = pb::UndeleteKeyRequest { validate_only: true, ..request.clone() };
    assert_eq!(operator.undelete(validated).await.unwrap().key.unwrap().state(), State::Disabled);
    assert_eq!(admin.read(&issued.key).await.state(), State::Deleted);
    let reply = operator.undelete(request.clone()).await.unwrap();
    let told = reply.key.unwrap();
    assert_eq!((told.state(), told.undelete_state()), (State::Disabled, State::Unspecified));
    assert_eq!((told.delete_time, told.purge_time, told.resume_time), (None, None, None));
    assert_eq!((&*told.state_reason, told.state_time), ("came back", after_start(2 * MINUTE)));
    assert_ne!(told.state_by, issued.key.created_by);
    assert_eq!(operator.undelete(request).await.unwrap().revision, reply.revision, "again it is nothing new");
    site.restart().await;
    let admin = site.admin();
    assert_eq!(verdict(&admin, &issued).await.reason(), Reason::Disabled);
    admin.enable_key(&issued.key).await;
    assert_eq!(verdict(&admin, &issued).await.reason(), Reason::Ok);
    // Past the time at which it was to be purged, it is still there.
    site.clock.advance_ms(40 * DAY);
    admin.issue("Later", &[]).await;
    assert_eq!(admin.read(&issued.key).await.state(), State::Active);
}

#[tokio::test]
async fn a_revoked_key_is_revoked_deleted_or_not() {
    let site = Site::start().await;
    let admin = site.admin();
    let [before, after] = [admin.issue("Before", &[]).await, admin.issue("After", &[]).await];
    admin.revoke_key(&before.key).await;
    for issued in [&before, &after] {
        admin.delete_key(&issued.key).await;
    }
    assert_eq!(verdict(&admin, &after).await.reason(), Reason::Unknown);
    let revoked = admin.revoke_key(&after.key).await.key.unwrap();
    assert_eq!((revoked.state(), revoked.undelete_state()), (State::Deleted, State::Revoked));
    for issued in [&before, &after] {
        let told = verdict(&admin, issued).await;
        assert_eq!((told.decision(), told.reason()), (Decision::Deny, Reason::Revoked));
        assert_eq!(told.key.unwrap().key_id, issued.key.key_id);
        assert_eq!(admin.read(&issued.key).await.undelete_state(), State::Revoked);
        assert_eq!(admin.undelete_key(&issued.key).await.key.unwrap().state(), State::Revoked);
        assert_eq!(verdict(&admin, issued).await.reason(), Reason::Revoked);
    }
}

#[tokio::test]
async fn a_deleted_key_keeps_its_id_and_can_only_be_revoked_or_undeleted() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issued(pb::CreateKeyRequest { key_id: "zapier".into(), ..new_key("Zapier", &[]) }).await;
    let deleted = admin.delete_key(&issued.key).await;
    for validate_only in [true, false] {
        let again = pb::CreateKeyRequest { key_id: "zapier".into(), validate_only, ..new_key("Zapier", &[]) };
        let refused = admin.create(again).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::AlreadyExists, "KEY_EXISTS"));
    }
    let renamed = pb::Key { display_name: "Other".into(), ..issued.key.clone() };
    let (key_id, tenant) = (issued.key.key_id.clone(), issued.key.tenant.clone());
    let enable = pb::EnableKeyRequest { key_id, tenant, ..Default::default() };
    let refused = [
        admin.update(update(&renamed, &["display_name"])).await.err(),
        admin.disable(disable(&issued.key)).await.err(),
        admin.disable(crate::support::harness::suspend(&issued.key, MINUTE)).await.err(),
        admin.enable(enable).await.err(),
    ];
    for refused in refused {
        let refused = refused.unwrap();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "STATE_FORBIDS"));
        assert!(refused.message().contains("revoked or undeleted"), "{}", refused.message());
    }
    assert_eq!(admin.read(&issued.key).await.revision, deleted.revision, "nothing has changed");
}

#[tokio::test]
async fn a_protected_key_is_not_deleted_until_that_is_taken_back() {
    let site = Site::start().await;
    let admin = site.admin();
    let protected = pb::CreateKeyRequest { delete_protected: true, ..new_key("Zapier", &[]) };
    let issued = admin.issued(protected).await;
    assert!(issued.key.delete_protected);
    for validate_only in [true, false] {
        let refused = admin.delete(pb::DeleteKeyRequest { validate_only, ..delete(&issued.key) }).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "DELETE_PROTECTED"));
    }
    assert_eq!(verdict(&admin, &issued).await.reason(), Reason::Ok);
    // Also of a revoked one, which stays as it was otherwise.
    admin.revoke_key(&issued.key).await;
    let bare = pb::Key { delete_protected: false, ..issued.key.clone() };
    let told = admin.update(update(&bare, &["delete_protected"])).await.unwrap().key.unwrap();
    assert!(!told.delete_protected && told.state() == State::Revoked);
    admin.delete_key(&issued.key).await;
    let other = admin.issue("Other", &[]).await.key;
    let protected = pb::Key { delete_protected: true, ..other.clone() };
    admin.update(update(&protected, &["delete_protected"])).await.unwrap();
    assert_eq!(error_reason(&admin.delete(delete(&other)).await.unwrap_err()), "DELETE_PROTECTED");
}

#[tokio::test]
async fn a_key_is_purged_at_its_time_and_not_a_millisecond_before() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let named = |id: &str| pb::CreateKeyRequest { key_id: id.into(), ..new_key(id, &["a"]) };
    let (first, second) = (admin.issued(named("first")).await, admin.issued(named("second")).await);
    let told = admin.delete(kept_for(&first.key, 60)).await.unwrap().key.unwrap();
    assert_eq!(told.purge_time, after_start(MINUTE));
    admin.delete(kept_for(&second.key, 120)).await.unwrap();
    site.clock.advance_ms(MINUTE - 1);
    let passing = admin.issued(named("passing")).await;
    admin.suspend_key(&passing.key, MINUTE).await;
    assert_eq!(admin.read(&first.key).await, told);
    site.clock.advance_ms(1);
    purged(&admin, &first.key).await;
    assert_eq!(admin.read(&second.key).await.state(), State::Deleted);
    assert_eq!(verdict(&admin, &first).await.reason(), Reason::Unknown);
    let (key_id, tenant) = (first.key.key_id.clone(), first.key.tenant.clone());
    let undelete = pb::UndeleteKeyRequest { key_id, tenant, ..Default::default() };
    assert_eq!(admin.undelete(undelete).await.unwrap_err().code(), Code::NotFound);
    let all = pb::ListKeysRequest { show_deleted: true, ..Default::default() };
    let ids: Vec<_> = admin.list(all.clone()).await.unwrap().keys.into_iter().map(|key| key.key_id).collect();
    assert_eq!(ids, ["passing", "second"]);
    // The journal still knows of it.
    assert_eq!(error_reason(&admin.create(named("first")).await.unwrap_err()), "KEY_EXISTS");
    // What became due while it was stopped is purged by the next start.
    site.stop().await;
    site.clock.advance_ms(MINUTE);
    site.try_start().await.unwrap();
    let admin = site.admin();
    purged(&admin, &second.key).await;
    site.restart().await;
    let admin = site.admin();
    for issued in [&first, &second] {
        assert_eq!(verdict(&admin, issued).await.reason(), Reason::Unknown);
        assert_eq!(admin.get(get(&issued.key)).await.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test]
async fn more_keys_than_are_purged_at_a_time_are_all_purged() {
    const KEYS: usize = 250;
    let site = Site::with_ops().await;
    let admin = site.admin();
    for number in 0..KEYS {
        let key = admin.issue(&format!("key {number}"), &[]).await.key;
        admin.delete(kept_for(&key, 60)).await.unwrap();
    }
    let kept = admin.issue("Kept", &[]).await.key;
    site.clock.advance_ms(2 * MINUTE);
    wait_for_value(&site.ops_addr(), "keyward_keys_purged_total", |keys| keys == KEYS as f64).await;
    wait_for_value(&site.ops_addr(), "keyward_due_changes_late_seconds", |late| late == 0.0).await;
    let all = pb::ListKeysRequest { show_deleted: true, page_size: 1_000, ..Default::default() };
    let ids: Vec<_> = admin.list(all).await.unwrap().keys.into_iter().map(|key| key.key_id).collect();
    assert_eq!(ids, [kept.key_id]);
}

#[tokio::test]
async fn a_time_to_keep_it_that_is_too_short_or_too_long_is_refused() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let key = admin.issue("Zapier", &[]).await.key;
    let [min, max] = [DELETED_KEPT_MS_MIN, DELETED_KEPT_MS_MAX].map(|ms| i64::try_from(ms / 1_000).unwrap());
    for seconds in [-1, 0, min - 1, max + 1, i64::MAX] {
        let refused = admin.delete(kept_for(&key, seconds)).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["purge_after"], "{seconds}");
        assert!(refused.message().ends_with("must be 1 minute to 3653 days"), "{refused}");
    }
    for nanos in [-1, 1_000_000_000] {
        let odd = Some(Duration { seconds: 60, nanos });
        let refused = admin.delete(pb::DeleteKeyRequest { purge_after: odd, ..delete(&key) }).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["purge_after"]);
    }
    for seconds in [min, max] {
        let request = pb::DeleteKeyRequest { validate_only: true, ..kept_for(&key, seconds) };
        let told = admin.delete(request).await.unwrap().key.unwrap();
        assert_eq!(told.purge_time, after_start(seconds * 1_000));
    }
    assert_eq!(admin.read(&key).await, key, "nothing has changed");
    let stale = pb::DeleteKeyRequest { etag: "x".into(), ..delete(&key) };
    assert_eq!(error_reason(&admin.delete(stale).await.unwrap_err()), "ETAG_MISMATCH");
    let nobody = pb::DeleteKeyRequest { key_id: "nobody".into(), ..Default::default() };
    assert_eq!(admin.delete(nobody).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_caller_whose_key_is_deleted_calls_no_more_and_no_last_administrator_is_deleted() {
    for site in [Site::in_memory().await, Site::start().await] {
        let admin = site.admin();
        let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", &["keyward.admin"]) };
        let issued = admin.issued(pb::CreateKeyRequest { expire_time: after_start(DAY), ..request }).await;
        let caller = site.caller(&issued.secret);
        assert_eq!(error_reason(&caller.delete(delete(&issued.key)).await.unwrap_err()), "OWN_KEY");
        let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
        let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        let keys = caller.list(list).await.unwrap().keys;
        let last = keys.iter().find(|key| key.expire_time.is_none()).unwrap();
        for validate_only in [true, false] {
            let refused = caller.delete(pb::DeleteKeyRequest { validate_only, ..delete(last) }).await.unwrap_err();
            assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "LAST_ADMINISTRATOR"));
        }
        let known = admin.issue("Zapier", &[]).await;
        let (sender, requests) = mpsc::channel(1);
        let mut answers = caller.stream(ReceiverStream::new(requests)).await.unwrap();
        let question = || pb::StreamVerifyRequest { request: Some(ask(&known.secret)) };
        sender.send(question()).await.unwrap();
        assert!(answers.message().await.unwrap().is_some());

        let revision = admin.delete_key(&issued.key).await.revision;
        let refused = caller.create(new_key("Late", &[])).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
        assert_eq!(caller.ask(ask(&known.secret)).await.unwrap_err().code(), Code::Unauthenticated);
        sender.send(question()).await.unwrap();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
        // Given back, it stays out until it is enabled.
        admin.undelete_key(&issued.key).await;
        assert_eq!(caller.ask(ask(&known.secret)).await.unwrap_err().code(), Code::Unauthenticated);
        admin.enable_key(&issued.key).await;
        assert!(caller.ask(ask(&known.secret)).await.unwrap().as_of_revision > revision);
    }
}

#[tokio::test]
async fn an_older_secret_of_a_deleted_caller_is_as_one_that_never_was() {
    let (site, elsewhere) = (Site::start().await, Site::in_memory().await);
    let gone = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Gone", &["keyward.viewer"]) };
    let gone = site.admin().issued(gone).await;
    let newer = site.admin().rotated(rotate(&gone.key, 0)).await;
    site.admin().delete(delete(&gone.key)).await.unwrap();
    let told = async |secret: &str| {
        let refused = site.caller(secret).list(pb::ListKeysRequest::default()).await.unwrap_err();
        (refused.code(), refused.message().to_owned())
    };
    let unknown = told(elsewhere.admin_secret()).await;
    assert_eq!(unknown.0, Code::Unauthenticated);
    assert_eq!((told(&gone.secret).await, told(&newer.secret).await), (unknown.clone(), unknown));
}
