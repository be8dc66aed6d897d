//! RotateKey, FinishRotation and CancelRotation: which secrets of a key work when.

use keyward::grpc::pb::{self, Matched, OverlapStart, Reason, SecretState};
use keyward::store::RecordWrite;
use keyward_core::event::Revision;
use keyward_core::id::TenantId;
use keyward_core::record::{AuditStamp, Hold, OwnerRecord};
use prost_types::{Duration, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::harness::{
    Handle, Issued, START, Site, after_start, ask, bad_fields, error_reason, new_key, rotate, rotate_at_use, update,
};
use crate::support::workshop::Workshop;

const HOUR: i64 = 60 * 60 * 1_000;

/// A verdict; both ways of the server give the same.
async fn verdict(caller: &Handle, secret: &str) -> pb::VerifyResponse {
    let fast = caller.verdict(secret).await;
    let explained = caller.ask(pb::VerifyRequest { explain: true, ..ask(secret) }).await.unwrap();
    assert_eq!(pb::VerifyResponse { checks: vec![], ..explained }, fast);
    let batch = caller.ask_all(pb::BatchVerifyRequest { requests: vec![ask(secret)] }).await.unwrap();
    let Some(pb::batch_verify_result::Result::Response(in_batch)) = batch.results[0].result.clone() else { panic!() };
    assert_eq!(in_batch, fast);
    fast
}

/// The part of a verdict that is about rotations.
async fn told(caller: &Handle, secret: &str) -> (Reason, Matched, Option<Timestamp>) {
    let verdict = verdict(caller, secret).await;
    (verdict.reason(), verdict.matched(), verdict.previous_valid_until)
}

fn current(until: Option<Timestamp>) -> (Reason, Matched, Option<Timestamp>) {
    (Reason::Ok, Matched::Current, until)
}

fn previous(until: Option<Timestamp>) -> (Reason, Matched, Option<Timestamp>) {
    (Reason::Ok, Matched::Previous, until)
}

const ROTATED_OUT: (Reason, Matched, Option<Timestamp>) = (Reason::RotatedOut, Matched::Unspecified, None);

/// The versions of a key's secrets, and what they are.
fn secrets(key: &pb::Key) -> Vec<(u32, SecretState)> {
    key.secrets.iter().map(|secret| (secret.version, secret.state())).collect()
}

fn refused(refused: Result<impl std::fmt::Debug, Status>) -> (Code, String) {
    let refused = refused.unwrap_err();
    (refused.code(), error_reason(&refused))
}

fn forbids(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.to_owned())
}

/// The end of the previous secret of a key.
fn valid_until(key: &pb::Key) -> Option<Timestamp> {
    key.secrets.iter().find(|secret| secret.state() == SecretState::Previous).unwrap().valid_until
}

async fn until_overlap_begins(admin: &Handle, key: &pb::Key) -> pb::Key {
    loop {
        let key = admin.read(key).await;
        // A read may be ahead of verdicts.
        if valid_until(&key).is_some() && admin.verdict("none").await.as_of_revision >= key.revision {
            return key;
        }
        tokio::task::yield_now().await;
    }
}

/// A use of another key is recorded, and another one after that: whatever was noted before is recorded by
/// then.
async fn until_all_is_recorded(admin: &Handle) {
    for _ in 0..2 {
        let other = admin.issue("Other", &[]).await;
        let rotated = admin.rotated(rotate_at_use(&other.key, 1)).await;
        admin.verdict(&rotated.secret).await;
        until_overlap_begins(admin, &other.key).await;
    }
}

#[tokio::test]
async fn the_old_secret_works_until_the_very_end_of_its_overlap_and_after_a_restart_too() {
    let mut site = Site::start().await;
    let old = site.admin().issue("Zapier", &["orders.read"]).await;
    assert_eq!(told(&site.admin(), &old.secret).await, current(None));
    let new = site.admin().rotated(rotate(&old.key, HOUR)).await;
    assert!(new.secret != old.secret && !new.secret.is_empty());
    let kept = pb::Key {
        hint: old.key.hint.clone(),
        secrets: old.key.secrets.clone(),
        revision: old.key.revision,
        etag: old.key.etag.clone(),
        ..new.key.clone()
    };
    assert_eq!(kept, old.key, "nothing else has changed");
    let end = after_start(HOUR);
    for restarts in [false, true] {
        if restarts {
            site.clock.advance_ms(HOUR - 1);
            site.restart().await;
        }
        let admin = site.admin();
        assert_eq!(told(&admin, &old.secret).await, previous(end));
        assert_eq!(told(&admin, &new.secret).await, current(end));
    }
    site.clock.advance_ms(1);
    for _ in 0..2 {
        let admin = site.admin();
        assert_eq!(told(&admin, &old.secret).await, ROTATED_OUT);
        assert_eq!(told(&admin, &new.secret).await, current(None));
        let denied = verdict(&admin, &old.secret).await;
        assert_eq!((denied.http_status, denied.key.unwrap().key_id), (401, old.key.key_id.clone()));
        // A clock that is set back gives nothing back, once the log is past the end.
        admin.issue("Later", &[]).await;
        site.clock.advance_ms(-HOUR);
        site.restart().await;
    }
}

#[tokio::test]
async fn without_an_overlap_the_old_secret_ends_at_once() {
    let site = Site::start().await;
    let admin = site.admin();
    for overlap in [None, Some(Duration::default())] {
        let old = admin.issue("Zapier", &[]).await;
        let new = admin.rotated(pb::RotateKeyRequest { overlap, ..rotate(&old.key, 0) }).await;
        assert_eq!(told(&admin, &old.secret).await, ROTATED_OUT);
        assert_eq!(told(&admin, &new.secret).await, current(None));
        assert_eq!(secrets(&new.key), [(2, SecretState::Current), (1, SecretState::Retired)]);
        assert_eq!(new.key.secrets[1].retire_time, after_start(0));
    }
}

#[tokio::test]
async fn a_newer_rotation_replaces_the_pending_one() {
    let mut site = Site::start().await;
    let first = site.admin().issue("Zapier", &[]).await;
    let second = site.admin().rotated(rotate(&first.key, HOUR)).await;
    site.clock.advance_ms(1_000);
    let third = site.admin().rotated(rotate(&first.key, HOUR)).await;
    let all = [(3, SecretState::Current), (2, SecretState::Previous), (1, SecretState::Retired)];
    assert_eq!(secrets(&third.key), all);
    let end = after_start(HOUR + 1_000);
    for _ in 0..2 {
        let admin = site.admin();
        assert_eq!(told(&admin, &first.secret).await, ROTATED_OUT);
        assert_eq!(told(&admin, &second.secret).await, previous(end));
        assert_eq!(told(&admin, &third.secret).await, current(end));
        site.restart().await;
    }
    let admin = site.admin();
    let fourth = admin.rotated(rotate(&first.key, 0)).await;
    // Of those that were rotated out, only the last one is known as that.
    assert_eq!(secrets(&fourth.key), [(4, SecretState::Current), (3, SecretState::Retired)]);
    for secret in [&first.secret, &second.secret] {
        let (reason, ..) = told(&admin, secret).await;
        assert_eq!(reason, Reason::Unknown);
    }
    assert_eq!(told(&admin, &third.secret).await, ROTATED_OUT);
}

#[tokio::test]
async fn finishing_ends_the_old_secret_now_and_a_second_time_changes_nothing() {
    let mut site = Site::start().await;
    let old = site.admin().issue("Zapier", &[]).await;
    let new = site.admin().rotated(rotate_at_use(&old.key, HOUR)).await;
    site.clock.advance_ms(5);
    let finished = site.admin().finish_key(&old.key).await.unwrap();
    assert_eq!(secrets(&finished), [(2, SecretState::Current), (1, SecretState::Retired)]);
    assert_eq!(finished.secrets[1].retire_time, after_start(5));
    assert_eq!(site.admin().finish_key(&old.key).await.unwrap(), finished);
    for _ in 0..2 {
        assert_eq!(told(&site.admin(), &old.secret).await, ROTATED_OUT);
        assert_eq!(told(&site.admin(), &new.secret).await, current(None));
        site.restart().await;
    }
    let never = site.admin().issue("Never rotated", &[]).await;
    assert_eq!(site.admin().finish_key(&never.key).await.unwrap(), never.key);
}

#[tokio::test]
async fn cancelling_takes_the_new_secret_back_and_the_old_one_works_without_an_end() {
    let mut site = Site::start().await;
    let old = site.admin().issue("Zapier", &[]).await;
    for (nth, request) in [rotate(&old.key, HOUR), rotate_at_use(&old.key, HOUR)].into_iter().enumerate() {
        let new = site.admin().rotated(request).await;
        let cancelled = site.admin().cancel_key(&old.key).await.unwrap();
        let version = 2 + u32::try_from(nth).unwrap();
        assert_eq!(secrets(&cancelled), [(1, SecretState::Current), (version, SecretState::Retired)]);
        assert_eq!((&cancelled.hint, cancelled.secrets.len()), (&old.key.hint, 2));
        for _ in 0..2 {
            let admin = site.admin();
            assert_eq!(told(&admin, &old.secret).await, current(None));
            assert_eq!(told(&admin, &new.secret).await, ROTATED_OUT);
            assert_eq!(refused(admin.cancel_key(&old.key).await), forbids("NO_ROTATION_PENDING"));
            site.restart().await;
        }
    }
    site.clock.advance_ms(1_000 * HOUR);
    assert_eq!(told(&site.admin(), &old.secret).await, current(None));
}

#[tokio::test]
async fn there_is_nothing_to_cancel_from_the_very_end_of_the_overlap_on() {
    let site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &[]).await;
    assert_eq!(refused(admin.cancel_key(&old.key).await), forbids("NO_ROTATION_PENDING"));
    let new = admin.rotated(rotate(&old.key, HOUR)).await;
    site.clock.advance_ms(HOUR - 1);
    let dry = pb::CancelRotationRequest { key_id: old.key.key_id.clone(), validate_only: true, ..Default::default() };
    let would = admin.cancel(dry).await.unwrap();
    assert_eq!((would.revision, secrets(&would.key.unwrap())[0]), (new.revision, (1, SecretState::Current)));
    site.clock.advance_ms(1);
    assert_eq!(refused(admin.cancel_key(&old.key).await), forbids("NO_ROTATION_PENDING"));
    assert_eq!(told(&admin, &new.secret).await, current(None));
    assert_eq!(told(&admin, &old.secret).await, ROTATED_OUT);
}

/// Each way in which a verdict can be asked for.
#[tokio::test]
async fn the_first_use_of_the_new_secret_begins_the_overlap_on_every_way() {
    let mut site = Site::start().await;
    let mut old = vec![];
    for way in 0..5 {
        let admin = site.admin();
        let first = admin.issue("Zapier", &[]).await;
        let new = admin.rotated(rotate_at_use(&first.key, HOUR)).await;
        assert_eq!(new.key.secrets[1].overlap, Some(Duration { seconds: 3_600, nanos: 0 }));
        assert_eq!(new.key.secrets[1].overlap_starts(), OverlapStart::OnFirstUse);
        site.clock.advance_ms(10 * HOUR);
        let asked = ask(&new.secret);
        let verdict = match way {
            0 => admin.ask(asked).await.unwrap(),
            1 => admin.ask(pb::VerifyRequest { explain: true, ..asked }).await.unwrap(),
            2 | 3 => {
                let second = pb::VerifyRequest { explain: way == 3, ..ask("none") };
                let request = pb::BatchVerifyRequest { requests: vec![asked.clone(), second, asked] };
                let results = admin.ask_all(request).await.unwrap().results;
                let Some(pb::batch_verify_result::Result::Response(verdict)) = results[0].result.clone() else {
                    panic!()
                };
                verdict
            }
            _ => {
                let request = pb::StreamVerifyRequest { request: Some(asked) };
                let mut answers = admin.stream(tokio_stream::iter([request])).await.unwrap();
                let answer = answers.message().await.unwrap().unwrap();
                let Some(pb::stream_verify_response::Result::Response(verdict)) = answer.result else { panic!() };
                verdict
            }
        };
        assert_eq!((verdict.matched(), verdict.previous_valid_until), (Matched::Current, None), "it did not wait");
        let begun = until_overlap_begins(&admin, &first.key).await;
        let end = after_start((way + 1) * 11 * HOUR - way * HOUR);
        assert_eq!((valid_until(&begun), &*begun.updated_by), (end, "keyward"), "way {way}");
        assert_eq!(told(&admin, &first.secret).await, previous(end));
        assert_eq!(told(&admin, &new.secret).await, current(end));
        old.push((first, end));
    }
    // It is begun for good: neither a later use nor a restart begins it again.
    site.restart().await;
    for (first, end) in &old {
        assert_eq!(valid_until(&site.admin().read(&first.key).await), *end);
    }
    site.clock.advance_ms(HOUR);
    for (first, _) in &old {
        assert_eq!(told(&site.admin(), &first.secret).await, ROTATED_OUT);
    }
}

#[tokio::test]
async fn a_look_a_refusal_and_a_use_of_the_old_secret_begin_no_overlap() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &["orders.read"]).await;
    let new = admin.rotated(rotate_at_use(&old.key, HOUR)).await;
    let revision = new.revision;
    for explain in [false, true] {
        let asked = |secret: &str| pb::VerifyRequest { explain, ..ask(secret) };
        let peek = pb::VerifyRequest { mode: pb::Mode::Peek.into(), ..asked(&new.secret) };
        let looked = admin.ask(peek.clone()).await.unwrap();
        assert_eq!((looked.reason(), looked.matched()), (Reason::Ok, Matched::Current));
        let denied = pb::VerifyRequest { all_scopes: vec!["orders.write".into()], ..asked(&new.secret) };
        assert_eq!(admin.ask(denied.clone()).await.unwrap().reason(), Reason::ScopeMissing);
        assert_eq!(admin.ask(asked(&old.secret)).await.unwrap().matched(), Matched::Previous);
        let batch = pb::BatchVerifyRequest { requests: vec![peek, denied, asked(&old.secret)] };
        admin.ask_all(batch).await.unwrap();
    }
    admin.disable_key(&old.key).await;
    assert_eq!(admin.reason(&new.secret).await, Reason::Disabled);
    admin.enable_key(&old.key).await;
    until_all_is_recorded(&admin).await;
    let key = admin.read(&old.key).await;
    assert_eq!(valid_until(&key), None);
    assert_eq!(key.revision, revision + 2, "it was disabled and enabled, and nothing else");
    // However long that takes, and over a restart.
    site.clock.advance_ms(100 * HOUR);
    site.restart().await;
    let admin = site.admin();
    assert_eq!(admin.verdict(&old.secret).await.matched(), Matched::Previous);
    admin.verdict(&new.secret).await;
    assert_eq!(valid_until(&until_overlap_begins(&admin, &old.key).await), after_start(101 * HOUR));
}

#[tokio::test]
async fn no_overlap_from_the_first_use_on_ends_the_old_secret_with_it() {
    let site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &[]).await;
    let new = admin.rotated(rotate_at_use(&old.key, 0)).await;
    assert_eq!(admin.verdict(&old.secret).await.matched(), Matched::Previous);
    admin.verdict(&new.secret).await;
    until_overlap_begins(&admin, &old.key).await;
    assert_eq!(told(&admin, &old.secret).await, ROTATED_OUT);
    assert_eq!(told(&admin, &new.secret).await, current(None));
}

/// A caller's key is used by calling.
#[tokio::test]
async fn a_call_with_the_new_secret_of_a_caller_begins_the_overlap() {
    let site = Site::start().await;
    let admin = site.admin();
    let known = admin.issue("Known", &[]).await;
    for (nth, roles) in (1..).zip([&["keyward.verifier"][..], &["keyward.viewer"]]) {
        let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Service", roles) };
        let old = admin.issued(request).await;
        let new = admin.rotated(rotate_at_use(&old.key, HOUR)).await;
        let (before, after) = (site.caller(&old.secret), site.caller(&new.secret));
        let calls = async |caller: &Handle| match roles {
            ["keyward.verifier"] => caller.ask(ask(&known.secret)).await.map(drop),
            _ => caller.list(pb::ListKeysRequest::default()).await.map(drop),
        };
        calls(&before).await.unwrap();
        until_all_is_recorded(&admin).await;
        assert_eq!(valid_until(&admin.read(&old.key).await), None);
        calls(&after).await.unwrap();
        let begun = until_overlap_begins(&admin, &old.key).await;
        calls(&before).await.unwrap();
        assert_eq!(valid_until(&begun), after_start(nth * HOUR));
        site.clock.advance_ms(HOUR);
        assert_eq!(refused(calls(&before).await).0, Code::Unauthenticated);
        calls(&after).await.unwrap();
    }
}

#[tokio::test]
async fn an_overlap_is_never_past_the_end_of_the_key() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::CreateKeyRequest { expire_time: after_start(10 * HOUR), ..new_key("Dated", &[]) };
    let old = admin.issued(request).await;
    let new = admin.rotated(rotate(&old.key, 20 * HOUR)).await;
    let ends = async |hours: i64| {
        let end = after_start(hours * HOUR);
        assert_eq!(valid_until(&admin.read(&old.key).await), end);
        assert_eq!(told(&admin, &old.secret).await, previous(end));
        assert_eq!(told(&admin, &new.secret).await, current(end));
    };
    ends(10).await;
    let dated = async |hours: Option<i64>| {
        let key = pb::Key { expire_time: hours.and_then(|hours| after_start(hours * HOUR)), ..old.key.clone() };
        admin.update(update(&key, &["expire_time"])).await.unwrap();
    };
    dated(Some(5)).await;
    ends(5).await;
    dated(None).await;
    ends(10).await;
    dated(Some(30)).await;
    ends(10).await;
    site.clock.advance_ms(10 * HOUR - 1);
    ends(10).await;
    site.clock.advance_ms(1);
    assert_eq!(told(&admin, &old.secret).await, ROTATED_OUT);
    assert_eq!(told(&admin, &new.secret).await, current(None));
    // Begun by a use, it is held to the same.
    let third = admin.rotated(rotate_at_use(&old.key, 100 * HOUR)).await;
    admin.verdict(&third.secret).await;
    until_overlap_begins(&admin, &old.key).await;
    assert_eq!(told(&admin, &new.secret).await, previous(after_start(30 * HOUR)));
    site.clock.advance_ms(20 * HOUR);
    // That of the secret comes first.
    let reasons = (admin.reason(&new.secret).await, admin.reason(&third.secret).await);
    assert_eq!(reasons, (Reason::RotatedOut, Reason::Expired));
}

#[tokio::test]
async fn a_dead_key_is_not_rotated() {
    let site = Site::start().await;
    let admin = site.admin();
    let revoked = admin.issue("Revoked", &[]).await;
    let pending = admin.rotated(rotate(&revoked.key, HOUR)).await;
    admin.revoke_key(&revoked.key).await;
    assert_eq!(refused(admin.rotate(rotate(&revoked.key, HOUR)).await), forbids("STATE_FORBIDS"));
    assert_eq!(refused(admin.finish_key(&revoked.key).await), forbids("STATE_FORBIDS"));
    assert_eq!(refused(admin.cancel_key(&revoked.key).await), forbids("STATE_FORBIDS"));
    for secret in [&revoked.secret, &pending.secret] {
        assert_eq!(admin.reason(secret).await, Reason::Revoked);
    }
    let dated = pb::CreateKeyRequest { expire_time: after_start(HOUR), ..new_key("Dated", &[]) };
    let dated = admin.issued(dated).await;
    site.clock.advance_ms(HOUR - 1);
    admin.rotated(rotate(&dated.key, HOUR)).await;
    site.clock.advance_ms(1);
    assert_eq!(refused(admin.rotate(rotate(&dated.key, HOUR)).await), forbids("STATE_FORBIDS"));
    assert_eq!(refused(admin.cancel_key(&dated.key).await), forbids("NO_ROTATION_PENDING"));
    let nobody = pb::Key { key_id: "nobody".into(), ..dated.key };
    assert_eq!(refused(admin.rotate(rotate(&nobody, 0)).await), (Code::NotFound, "KEY_NOT_FOUND".into()));
    let elsewhere = pb::Key { tenant: "elsewhere".into(), ..nobody };
    assert_eq!(refused(admin.rotate(rotate(&elsewhere, 0)).await), (Code::NotFound, "KEY_NOT_FOUND".into()));
}

#[tokio::test]
async fn a_disabled_key_is_rotated_and_stays_disabled_until_it_is_enabled() {
    let site = Site::start().await;
    let admin = site.admin();
    let leaked = admin.issue("Leaked", &[]).await;
    admin.disable_key(&leaked.key).await;
    let new = admin.rotated(rotate(&leaked.key, 0)).await;
    assert_eq!(new.key.state(), pb::State::Disabled);
    assert_eq!(admin.reason(&new.secret).await, Reason::Disabled);
    assert_eq!(admin.reason(&leaked.secret).await, Reason::RotatedOut);
    admin.enable_key(&leaked.key).await;
    assert_eq!(told(&admin, &new.secret).await, current(None));
    assert_eq!(told(&admin, &leaked.secret).await, ROTATED_OUT);
}

#[tokio::test]
async fn other_changes_of_a_key_keep_its_rotation() {
    let site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &[]).await;
    let new = admin.rotated(rotate(&old.key, HOUR)).await;
    let relabelled = pb::Key { display_name: "Other".into(), ..old.key.clone() };
    admin.update(update(&relabelled, &["display_name"])).await.unwrap();
    admin.disable_key(&old.key).await;
    admin.enable_key(&old.key).await;
    let key = admin.read(&old.key).await;
    assert_eq!(key.secrets, new.key.secrets);
    assert_eq!(told(&admin, &old.secret).await, previous(after_start(HOUR)));
    let list = admin.list(pb::ListKeysRequest::default()).await.unwrap().keys;
    assert_eq!(list[0].secrets, key.secrets);
}

#[tokio::test]
async fn a_key_whose_owner_is_suspended_is_rotated_and_stays_suspended() {
    let mut site = Site::start().await;
    let request = pb::CreateKeyRequest { owner: "acme".into(), ..new_key("Held", &[]) };
    let held = site.admin().issued(request).await;
    site.stop().await;
    let workshop = Workshop::open(&site);
    let (tenant, hold) = (TenantId::default_tenant(), Hold { suspended: true, ..Hold::default() });
    let updated = AuditStamp { time: START, actor: keyward_core::id::ActorId::keyward() };
    let owner = OwnerRecord { tenant, owner: "acme".into(), hold, updated, revision: Revision(0) };
    workshop.commit(vec![RecordWrite::Owner(Box::new(owner))]).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let new = site.admin().rotated(rotate(&held.key, HOUR)).await;
    for secret in [&held.secret, &new.secret] {
        assert_eq!(site.admin().reason(secret).await, Reason::OwnerSuspended);
    }
}

#[tokio::test]
async fn a_rotation_can_be_tried_and_be_bound_to_a_version() {
    let site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &[]).await;
    let dry = pb::RotateKeyRequest { validate_only: true, ..rotate(&old.key, HOUR) };
    let would = admin.rotate(dry).await.unwrap();
    assert_eq!((&*would.secret, would.revision), ("", old.revision));
    assert_eq!(secrets(&would.key.unwrap()), [(2, SecretState::Current), (1, SecretState::Previous)]);
    assert_eq!(admin.read(&old.key).await, old.key);
    let bound = pb::RotateKeyRequest { etag: old.key.etag.clone(), ..rotate(&old.key, HOUR) };
    let new = admin.rotated(bound.clone()).await;
    assert_eq!(refused(admin.rotate(bound).await), (Code::Aborted, "ETAG_MISMATCH".into()));
    let (key_id, etag) = (old.key.key_id.clone(), old.key.etag.clone());
    let finish = pb::FinishRotationRequest { key_id, etag, ..Default::default() };
    assert_eq!(refused(admin.finish(finish.clone()).await), (Code::Aborted, "ETAG_MISMATCH".into()));
    let dry = pb::FinishRotationRequest { etag: new.key.etag.clone(), validate_only: true, ..finish };
    assert_eq!(secrets(&admin.finish(dry).await.unwrap().key.unwrap())[1], (1, SecretState::Retired));
    assert_eq!(told(&admin, &old.secret).await, previous(after_start(HOUR)));
}

#[tokio::test]
async fn an_overlap_has_bounds() {
    const DAYS: i64 = 365;
    let site = Site::start().await;
    let admin = site.admin();
    let old = admin.issue("Zapier", &[]).await;
    let with = |seconds, nanos| pb::RotateKeyRequest {
        overlap: Some(Duration { seconds, nanos }),
        validate_only: true,
        ..rotate(&old.key, 0)
    };
    for (seconds, nanos) in
        [(-1, 0), (0, -1), (0, 1_000_000_000), (DAYS * 86_400, 1), (i64::MAX, 0), (i64::MIN, i32::MIN)]
    {
        assert_eq!(
            bad_fields(&admin.rotate(with(seconds, nanos)).await.unwrap_err()),
            ["overlap"],
            "{seconds} {nanos}"
        );
    }
    let longest = admin.rotate(with(DAYS * 86_400, 0)).await.unwrap().key.unwrap();
    assert_eq!(valid_until(&longest), after_start(DAYS * 24 * HOUR));
    // A shorter time than was asked for could be too short.
    let shortest = admin.rotate(with(0, 1)).await.unwrap().key.unwrap();
    assert_eq!(valid_until(&shortest), after_start(1));
    let start = pb::RotateKeyRequest { overlap_starts: 3, ..with(1, 0) };
    assert_eq!(bad_fields(&admin.rotate(start).await.unwrap_err()), ["overlap_starts"]);
    assert_eq!(admin.read(&old.key).await, old.key);
}

/// A lost reply must not lock a caller out.
#[tokio::test]
async fn a_caller_cannot_end_the_secret_that_it_calls_with() {
    let site = Site::start().await;
    let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Admin", &["keyward.admin"]) };
    let old = site.admin().issued(request).await;
    let by_old = site.caller(&old.secret);
    assert_eq!(refused(by_old.rotate(rotate(&old.key, 0)).await), forbids("OWN_KEY"));
    let new = by_old.rotated(rotate(&old.key, HOUR)).await;
    let by_new = site.caller(&new.secret);
    // By the previous one, the rotation can be taken back, and neither finished nor replaced.
    assert_eq!(refused(by_old.finish_key(&old.key).await), forbids("OWN_KEY"));
    assert_eq!(refused(by_old.rotate(rotate(&old.key, HOUR)).await), forbids("OWN_KEY"));
    assert_eq!(refused(by_new.cancel_key(&old.key).await), forbids("OWN_KEY"));
    by_old.cancel_key(&old.key).await.unwrap();
    assert_eq!(refused(by_new.list(pb::ListKeysRequest::default()).await).0, Code::Unauthenticated);
    let newer = by_old.rotated(rotate_at_use(&old.key, HOUR)).await;
    let by_newer = site.caller(&newer.secret);
    by_newer.finish_key(&old.key).await.unwrap();
    assert_eq!(refused(by_old.list(pb::ListKeysRequest::default()).await).0, Code::Unauthenticated);
    // Another caller may.
    let last = site.admin().rotated(rotate(&old.key, 0)).await;
    assert_eq!(refused(by_newer.list(pb::ListKeysRequest::default()).await).0, Code::Unauthenticated);
    site.caller(&last.secret).list(pb::ListKeysRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_session_ends_with_the_secret_that_it_was_begun_with() {
    let site = Site::start().await;
    let admin = site.admin();
    let known = admin.issue("Known", &[]).await;
    let question = || pb::StreamVerifyRequest { request: Some(ask(&known.secret)) };
    let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Service", &["keyward.verifier"]) };
    let mut service = admin.issued(request).await;
    for by_clock in [false, true] {
        let open = async |secret: &str| {
            let (sender, requests) = mpsc::channel(1);
            let mut answers = site.caller(secret).stream(ReceiverStream::new(requests)).await.unwrap();
            sender.send(question()).await.unwrap();
            assert!(answers.message().await.unwrap().is_some());
            (sender, answers)
        };
        let (sender, mut answers) = open(&service.secret).await;
        let new = admin.rotated(rotate(&service.key, HOUR)).await;
        let (of_new, mut answers_of_new) = open(&new.secret).await;
        sender.send(question()).await.unwrap();
        assert!(answers.message().await.unwrap().is_some(), "its secret still works");
        let by_old = site.caller(&service.secret);
        by_old.ask(ask(&known.secret)).await.unwrap();
        if by_clock {
            site.clock.advance_ms(HOUR);
        } else {
            admin.finish_key(&service.key).await.unwrap();
        }
        sender.send(question()).await.unwrap();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Unauthenticated);
        // On a connection too, whose last caller this was.
        assert_eq!(refused(by_old.ask(ask(&known.secret)).await).0, Code::Unauthenticated);
        of_new.send(question()).await.unwrap();
        assert!(answers_of_new.message().await.unwrap().is_some());
        service = Issued { key: new.key, ..new };
    }
}

/// The reply that shows its secret can be lost.
#[tokio::test]
async fn the_last_lasting_administrator_gets_a_new_secret_only_beside_the_old_one() {
    let site = Site::start().await;
    let dated = pb::CreateKeyRequest {
        tenant: "system".into(),
        expire_time: after_start(100 * HOUR),
        ..new_key("Dated", &["keyward.admin"])
    };
    let dated = site.caller(&site.admin().issued(dated).await.secret);
    let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
    let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    let last = dated.list(list).await.unwrap().keys.into_iter().find(|key| key.expire_time.is_none()).unwrap();
    for validate_only in [true, false] {
        let request = pb::RotateKeyRequest { validate_only, ..rotate(&last, 0) };
        assert_eq!(refused(dated.rotate(request).await), forbids("LAST_ADMINISTRATOR"));
        // There must be time to notice that there was no reply.
        let request = pb::RotateKeyRequest { validate_only, ..rotate(&last, 59_999) };
        assert_eq!(refused(dated.rotate(request).await), forbids("LAST_ADMINISTRATOR"));
        let request = pb::RotateKeyRequest { validate_only, ..rotate(&last, 59_999) };
        assert_eq!(refused(site.admin().rotate(request).await), forbids("OWN_KEY"));
    }
    assert_eq!(dated.read(&last).await, last);
    // It stays a lasting one: nobody can take it away.
    let new = dated.rotated(rotate(&last, HOUR)).await;
    let disable = crate::support::harness::disable(&last);
    assert_eq!(refused(dated.disable(disable.clone()).await), forbids("LAST_ADMINISTRATOR"));
    for by in [site.admin(), site.caller(&new.secret)] {
        by.list(pb::ListKeysRequest::default()).await.unwrap();
    }
    // Nobody may have got that one, and with another one the old secret would end.
    assert_eq!(refused(dated.rotate(rotate(&last, HOUR)).await), forbids("LAST_ADMINISTRATOR"));
    dated.finish_key(&last).await.unwrap();
    assert_eq!(refused(dated.disable(disable).await), forbids("LAST_ADMINISTRATOR"));
    let by_new = site.caller(&new.secret);
    let second = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Second", &["keyward.admin"]) };
    by_new.issued(second).await;
    dated.rotated(rotate(&last, 0)).await;
    assert_eq!(refused(by_new.list(pb::ListKeysRequest::default()).await).0, Code::Unauthenticated);
}
