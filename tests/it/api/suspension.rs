//! Keys that are disabled until a time: they work again by the clock, at that very millisecond, and their
//! record follows.

use keyward::grpc::pb::{self, Reason, State};
use keyward_core::limits::SUSPENSION_SECONDS_MAX;
use tonic::Code;

use crate::support::harness::{
    Handle, Issued, Site, after_start, ask, bad_fields, disable, error_reason, new_key, suspend, update,
};
use crate::support::ops_client::wait_for_value;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// On both ways: only the long one explains.
async fn reason(admin: &Handle, issued: &Issued) -> Reason {
    let long = admin.ask(pb::VerifyRequest { explain: true, ..ask(&issued.secret) }).await.unwrap();
    let short = admin.verdict(&issued.secret).await;
    assert_eq!(pb::VerifyResponse { checks: vec![], ..long }, short);
    short.reason()
}

/// The key once Keyward has written that it works again.
async fn followed(admin: &Handle, key: &pb::Key) -> pb::Key {
    loop {
        let told = admin.read(key).await;
        if told.updated_by == "keyward" {
            return told;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_key_is_refused_until_its_resume_time_and_works_from_that_very_millisecond_on() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let request = pb::DisableKeyRequest { reason: "unpaid".into(), ..suspend(&issued.key, MINUTE) };
    let reply = admin.disable(request).await.unwrap();
    let told = reply.key.unwrap();
    assert_eq!((told.state(), told.resume_time), (State::Disabled, after_start(MINUTE)));
    assert_eq!((&*told.state_reason, told.state_time), ("unpaid", after_start(0)));
    for restart in [false, true] {
        if restart {
            site.restart().await;
        }
        let admin = site.admin();
        assert_eq!(reason(&admin, &issued).await, Reason::Suspended);
        site.clock.advance_ms(MINUTE - 1);
        assert_eq!(reason(&admin, &issued).await, Reason::Suspended);
        assert_eq!(admin.read(&issued.key).await, told);
        site.clock.advance_ms(1 - MINUTE);
    }
    site.stop().await;
    site.clock.advance_ms(MINUTE);
    site.try_start().await.unwrap();
    let admin = site.admin();
    assert_eq!(reason(&admin, &issued).await, Reason::Ok);
    // What is shown is the same before and after its record is written anew.
    for told in [admin.read(&issued.key).await, followed(&admin, &issued.key).await] {
        assert_eq!((told.state(), told.resume_time), (State::Active, None));
        assert_eq!((&*told.state_by, told.state_time, &*told.state_reason), ("keyward", after_start(MINUTE), ""));
    }
    site.restart().await;
    let told = site.admin().read(&issued.key).await;
    assert!(told.revision > reply.revision && told.update_time == after_start(MINUTE), "{told:?}");
    assert_eq!((told.state(), &*told.updated_by), (State::Active, "keyward"));
    assert_eq!(reason(&site.admin(), &issued).await, Reason::Ok);
}

#[tokio::test]
async fn lists_have_a_key_in_the_state_of_now() {
    for site in [Site::start().await, Site::in_memory().await] {
        let admin = site.admin();
        let labels: std::collections::BTreeMap<_, _> = [("team".to_owned(), "core".to_owned())].into();
        let mut keys = vec![];
        for label in ["a", "b", "c"] {
            let owned = pb::CreateKeyRequest { owner: "acme".into(), labels: labels.clone(), ..new_key(label, &[]) };
            keys.push(admin.issued(owned).await.key);
            site.clock.advance_ms(1); // ids are ordered to the millisecond
        }
        admin.suspend_key(&keys[0], MINUTE).await;
        admin.disable_key(&keys[1]).await;
        let listed = async |state: State| {
            let selectors = [
                pb::KeySelector::default(),
                pb::KeySelector { owner: "acme".into(), ..Default::default() },
                pb::KeySelector { labels: labels.clone(), ..Default::default() },
                pb::KeySelector { owner: "acme".into(), labels: labels.clone(), ..Default::default() },
                pb::KeySelector { key_ids: keys.iter().map(|key| key.key_id.clone()).collect(), ..Default::default() },
            ];
            let mut all = vec![];
            for selector in selectors {
                let selector = Some(pb::KeySelector { states: vec![state.into()], ..selector });
                let keys = admin.list(pb::ListKeysRequest { selector, ..Default::default() }).await.unwrap().keys;
                assert!(keys.iter().all(|key| key.state() == state), "{keys:?}");
                all.push(keys.iter().map(|key| key.display_name.clone()).collect::<String>());
            }
            all.dedup();
            all.concat()
        };
        site.clock.advance_ms(MINUTE - 4);
        assert_eq!((listed(State::Active).await, listed(State::Disabled).await), ("c".into(), "ab".into()));
        site.clock.advance_ms(1);
        for _ in 0..2 {
            assert_eq!((listed(State::Active).await, listed(State::Disabled).await), ("ac".into(), "b".into()));
            followed(&admin, &keys[0]).await;
        }
    }
}

#[tokio::test]
async fn another_call_replaces_the_time_or_takes_it_away() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    admin.suspend_key(&issued.key, MINUTE).await;
    let first = admin.read(&issued.key).await;
    assert_eq!(admin.suspend_key(&issued.key, MINUTE).await.revision, first.revision, "the same again is nothing new");
    site.clock.advance_ms(5);
    let reworded = pb::DisableKeyRequest { reason: "unpaid".into(), ..suspend(&issued.key, MINUTE) };
    let told = admin.disable(reworded).await.unwrap().key.unwrap();
    assert!(told.revision > first.revision);
    assert_eq!((told.state_time, &*told.state_reason), (after_start(0), "unpaid"), "a reason is no other state");
    site.clock.advance_ms(-5);
    for at in [2 * MINUTE, 30_000] {
        let told = admin.suspend_key(&issued.key, at).await.key.unwrap();
        assert_eq!((told.resume_time, &*told.state_reason), (after_start(at), "unpaid"));
        site.clock.advance_ms(at - 1);
        assert_eq!(reason(&admin, &issued).await, Reason::Suspended);
        site.clock.advance_ms(1 - at);
    }
    // Without a time it is for good.
    let told = admin.disable_key(&issued.key).await.key.unwrap();
    assert_eq!((told.state(), told.resume_time), (State::Disabled, None));
    site.clock.advance_ms(3 * MINUTE);
    assert_eq!(reason(&admin, &issued).await, Reason::Disabled);
    // One that is for good gets an end, and to enable it ends it at once.
    admin.suspend_key(&issued.key, 4 * MINUTE).await;
    assert_eq!(reason(&admin, &issued).await, Reason::Suspended);
    let told = admin.enable_key(&issued.key).await.key.unwrap();
    assert_eq!((told.state(), told.resume_time), (State::Active, None));
    assert_eq!(reason(&admin, &issued).await, Reason::Ok);
    // And to revoke it ends all.
    admin.suspend_key(&issued.key, 4 * MINUTE).await;
    assert_eq!(admin.revoke_key(&issued.key).await.key.unwrap().resume_time, None);
    site.clock.advance_ms(DAY);
    assert_eq!(reason(&admin, &issued).await, Reason::Revoked);
    let refused = admin.disable(suspend(&issued.key, 2 * DAY)).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "STATE_FORBIDS"));
}

/// Whether or not its record says so yet.
#[tokio::test]
async fn what_is_done_to_a_key_that_works_again_is_done_to_an_active_one() {
    let site = Site::start().await;
    let admin = site.admin();
    let (mut keys, mut until) = (vec![], 0);
    for has_followed in [false, true] {
        let key = admin.issue("Zapier", &[]).await.key;
        until += MINUTE;
        admin.suspend_key(&key, until).await;
        site.clock.advance_ms(MINUTE);
        if has_followed {
            followed(&admin, &key).await;
        }
        let renamed = pb::Key { display_name: "Other".into(), ..key.clone() };
        let told = admin.update(update(&renamed, &["display_name"])).await.unwrap().key.unwrap();
        assert_eq!((told.state(), &*told.state_by, told.state_time), (State::Active, "keyward", after_start(until)));
        let enabled = admin.enable_key(&key).await;
        assert_eq!(enabled.revision, told.revision, "it is active already");
        let told = admin.disable_key(&key).await.key.unwrap();
        assert_eq!((told.state(), &told.state_by), (State::Disabled, &key.created_by));
        keys.push(key);
    }
    site.clock.advance_ms(DAY);
    for key in keys {
        assert_eq!(admin.read(&key).await.state(), State::Disabled, "it is disabled for good");
    }
}

#[tokio::test]
async fn a_time_that_has_come_or_is_too_far_is_refused() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    let most = SUSPENSION_SECONDS_MAX * 1_000;
    for at in [-1, 0, most + 1] {
        let refused = admin.disable(suspend(&issued.key, at)).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["resume_time"], "{at}");
    }
    for at in [1, most] {
        let request = pb::DisableKeyRequest { validate_only: true, ..suspend(&issued.key, at) };
        assert_eq!(admin.disable(request).await.unwrap().key.unwrap().resume_time, after_start(at));
    }
    let stale = pb::DisableKeyRequest { etag: "x".into(), ..suspend(&issued.key, MINUTE) };
    assert_eq!(error_reason(&admin.disable(stale).await.unwrap_err()), "ETAG_MISMATCH");
    assert_eq!(admin.read(&issued.key).await, issued.key, "nothing has changed");
}

/// It gives power back, so the clock alone counts, and not the log.
#[tokio::test]
async fn a_clock_that_is_set_back_suspends_a_key_again_until_its_record_has_followed() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let (issued, other) = (admin.issue("Zapier", &[]).await, admin.issue("Other", &[]).await);
    admin.suspend_key(&issued.key, DAY).await;
    // The log is late: that ends no suspension.
    site.clock.advance_ms(DAY - 1);
    admin.issue("Later", &[]).await;
    site.clock.advance_ms(-MINUTE);
    assert_eq!(reason(&admin, &issued).await, Reason::Suspended);
    // One that lies before the log's time, and ahead of the clock.
    admin.suspend_key(&other.key, DAY - MINUTE / 2).await;
    assert_eq!(reason(&admin, &other).await, Reason::Suspended);
    site.clock.advance_ms(MINUTE / 2);
    assert_eq!(reason(&admin, &other).await, Reason::Suspended);
    site.clock.advance_ms(1);
    assert_eq!(reason(&admin, &other).await, Reason::Ok);

    site.clock.advance_ms(MINUTE);
    assert_eq!(reason(&admin, &issued).await, Reason::Ok);
    followed(&admin, &issued.key).await;
    for restart in [false, true] {
        site.clock.advance_ms(-DAY);
        if restart {
            site.restart().await;
        }
        assert_eq!(reason(&site.admin(), &issued).await, Reason::Ok);
        site.clock.advance_ms(DAY);
    }
}

#[tokio::test]
async fn a_suspended_caller_calls_again_from_its_resume_time_on() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let key = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", &["keyward.admin"]) };
    let issued = admin.issued(key).await;
    let caller = site.caller(&issued.secret);
    // No key takes power from itself.
    let refused = caller.disable(suspend(&issued.key, MINUTE)).await.unwrap_err();
    assert_eq!(error_reason(&refused), "OWN_KEY");
    admin.suspend_key(&issued.key, MINUTE).await;
    site.clock.advance_ms(MINUTE - 1);
    let refused = caller.list(pb::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
    site.clock.advance_ms(1);
    caller.issue("Works", &[]).await;
}

#[tokio::test]
async fn an_administrator_is_a_lasting_one_again_from_its_resume_time_on() {
    for mut site in [Site::in_memory().await, Site::start().await] {
        let admin = site.admin();
        let admin_key =
            |label: &str| pb::CreateKeyRequest { tenant: "system".into(), ..new_key(label, &["keyward.admin"]) };
        let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
        let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        let first = admin.list(list).await.unwrap().keys.remove(0);
        let dated = pb::CreateKeyRequest { expire_time: after_start(10 * DAY), ..admin_key("Dated") };
        let dated = admin.issued(dated).await.secret;
        let second = admin.issued(admin_key("Second")).await;
        site.caller(&dated).suspend_key(&second.key, DAY).await;
        for at in [MINUTE, 9 * DAY] {
            for validate_only in [true, false] {
                let request = pb::DisableKeyRequest { validate_only, ..suspend(&first, at) };
                let refused = site.caller(&dated).disable(request).await.unwrap_err();
                assert_eq!(error_reason(&refused), "LAST_ADMINISTRATOR", "{at}");
            }
        }
        site.clock.advance_ms(DAY - 1);
        let refused = site.caller(&dated).disable(disable(&first)).await.unwrap_err();
        assert_eq!(error_reason(&refused), "LAST_ADMINISTRATOR");
        // A start reads it from the table.
        if site.dir.path().join("table").exists() {
            site.restart().await;
        }
        site.clock.advance_ms(1);
        site.caller(&dated).disable_key(&first).await;
        let refused = site.caller(&dated).disable(disable(&second.key)).await.unwrap_err();
        assert_eq!(error_reason(&refused), "LAST_ADMINISTRATOR");
    }
}

#[tokio::test]
async fn metrics_tell_of_keys_that_were_made_active() {
    let site = Site::with_ops().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    admin.suspend_key(&issued.key, MINUTE).await;
    wait_for_value(&site.ops_addr(), "keyward_keys_by_state{state=\"disabled\"}", |keys| keys == 1.0).await;
    site.clock.advance_ms(2 * MINUTE);
    wait_for_value(&site.ops_addr(), "keyward_keys_resumed_total", |keys| keys == 1.0).await;
    wait_for_value(&site.ops_addr(), "keyward_keys_by_state{state=\"disabled\"}", |keys| keys == 0.0).await;
    // By then nothing is due.
    wait_for_value(&site.ops_addr(), "keyward_due_changes_late_seconds", |late| late == 0.0).await;
}
