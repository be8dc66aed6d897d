//! Verdicts on keys that were rotated, suspended until a time, deleted or purged, and on those whose tenant,
//! owner or issuer is held. The changes are made in the store of a server that was stopped, whatever calls
//! bring them about.

use keyward::grpc::pb::{self, Decision, Mode, Reason};
use keyward::store::{RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{AuditStamp, Deletion, Hold, IssuerRecord, KeyRecord, OwnerRecord, State, TenantRecord};
use tonic::Code;

use crate::support::harness::{Handle, START, Site, ask, new_key};
use crate::support::workshop::Workshop;

const MINUTE: i64 = 60_000;

/// The reason of a verdict. Both ways of the server give the same.
async fn reason(caller: &Handle, secret: &str) -> Reason {
    // A use may begin an overlap, and then the second answer is another one.
    let peek = pb::VerifyRequest { mode: Mode::Peek.into(), ..ask(secret) };
    let fast = caller.ask(peek.clone()).await.unwrap();
    let explained = caller.ask(pb::VerifyRequest { explain: true, ..peek }).await.unwrap();
    assert_eq!(pb::VerifyResponse { checks: vec![], ..explained }, fast);
    assert_eq!(fast.decision() == Decision::Allow, fast.reason() == Reason::Ok);
    fast.reason()
}

fn suspended() -> Hold {
    Hold { suspended: true, ..Hold::default() }
}

fn stamp() -> AuditStamp {
    AuditStamp { time: START, actor: ActorId::keyward() }
}

async fn issue(site: &Site, id: &str, owner: &str) -> String {
    let request = pb::CreateKeyRequest { key_id: id.into(), owner: owner.into(), ..new_key(id, &[]) };
    site.admin().issued(request).await.secret
}

#[tokio::test]
async fn a_secret_works_until_its_overlap_ends_and_is_recognised_once_more() {
    let mut site = Site::start().await;
    let first = issue(&site, "rotated", "").await;
    site.stop().await;
    let workshop = Workshop::open(&site);
    let second = workshop.rotate("default", "rotated", Some(START.0 + MINUTE)).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    for secret in [&first, &second] {
        assert_eq!(reason(&admin, secret).await, Reason::Ok);
    }
    site.clock.advance_ms(MINUTE - 1);
    assert_eq!(reason(&admin, &first).await, Reason::Ok);
    site.clock.advance_ms(1);
    assert_eq!(reason(&admin, &first).await, Reason::RotatedOut);
    assert_eq!(reason(&admin, &second).await, Reason::Ok);
    let told = admin.ask(ask(&first)).await.unwrap();
    assert_eq!((told.http_status, told.key.unwrap().key_id.as_str()), (401, "rotated"));

    // A change of the key is one of all its secrets.
    let key =
        admin.get(pb::GetKeyRequest { key_id: "rotated".into(), ..Default::default() }).await.unwrap().key.unwrap();
    admin.disable_key(&key).await;
    assert_eq!(reason(&admin, &second).await, Reason::Disabled);
    assert_eq!(reason(&admin, &first).await, Reason::RotatedOut);

    site.stop().await;
    let workshop = Workshop::open(&site);
    let third = workshop.rotate("default", "rotated", None).await;
    workshop.change("default", "rotated", |key| key.spec.policy.state = State::Active).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    for (secret, expected) in [(&first, Reason::RotatedOut), (&second, Reason::Ok), (&third, Reason::Ok)] {
        assert_eq!(reason(&admin, secret).await, expected);
    }
    site.stop().await;
    let workshop = Workshop::open(&site);
    let fourth = workshop.rotate("default", "rotated", None).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    // The oldest is not remembered any more.
    for (secret, expected) in
        [(&first, Reason::Unknown), (&second, Reason::RotatedOut), (&third, Reason::Ok), (&fourth, Reason::Ok)]
    {
        assert_eq!(reason(&admin, secret).await, expected);
    }
}

#[tokio::test]
async fn a_suspension_ends_by_the_clock_and_a_deleted_key_is_unknown() {
    let mut site = Site::start().await;
    let secrets = ["suspended", "deleted", "revoked", "purged"].map(|id| issue(&site, id, ""));
    let [paused, deleted, revoked, purged] =
        <[String; 4]>::try_from(futures_util::future::join_all(secrets).await).unwrap();
    site.stop().await;
    let workshop = Workshop::open(&site);
    workshop
        .change("default", "suspended", |key| {
            key.spec.policy.state = State::Disabled;
            key.resume_time = Some(UnixMillis(START.0 + MINUTE));
        })
        .await;
    let deletion = Some(Deletion { time: START, purge_time: UnixMillis(START.0 + MINUTE) });
    workshop.change("default", "deleted", |key| key.deletion = deletion).await;
    workshop
        .change("default", "revoked", |key| {
            key.deletion = deletion;
            key.spec.policy.state = State::Revoked;
        })
        .await;
    let KeyRecord { tenant, key_id, revision, .. } = workshop.key("default", "purged").await;
    workshop.commit(vec![RecordWrite::Purge { tenant, key_id, revision }]).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    assert_eq!(reason(&admin, &paused).await, Reason::Suspended);
    for secret in [&deleted, &purged] {
        assert_eq!(reason(&admin, secret).await, Reason::Unknown);
        assert_eq!(admin.ask(ask(secret)).await.unwrap().key, None, "nothing is told of it");
    }
    assert_eq!(reason(&admin, &revoked).await, Reason::Revoked);
    site.clock.advance_ms(MINUTE - 1);
    assert_eq!(reason(&admin, &paused).await, Reason::Suspended);
    site.clock.advance_ms(1);
    assert_eq!(reason(&admin, &paused).await, Reason::Ok);
    // To disable it now is to disable it for good.
    let key =
        admin.get(pb::GetKeyRequest { key_id: "suspended".into(), ..Default::default() }).await.unwrap().key.unwrap();
    admin.disable_key(&key).await;
    assert_eq!(reason(&admin, &paused).await, Reason::Disabled);
    site.clock.advance_ms(100 * MINUTE);
    assert_eq!(reason(&admin, &paused).await, Reason::Disabled);
}

#[tokio::test]
async fn keys_are_refused_while_their_tenant_owner_or_issuer_is_held() {
    let mut site = Site::start().await;
    let (mine, other) = (issue(&site, "mine", "acme").await, issue(&site, "other", "globex").await);
    site.stop().await;
    let workshop = Workshop::open(&site);
    // Its issuer is another one, and so is the time of its issue.
    let rotated = workshop.rotate("default", "other", None).await;
    workshop.close().await;

    let default = TenantId::default_tenant;
    let owner = |hold: &Hold, revision| {
        let (owner, hold) = ("acme".into(), hold.clone());
        RecordWrite::Owner(Box::new(OwnerRecord { tenant: default(), owner, hold, updated: stamp(), revision }))
    };
    let issuer = |hold: &Hold, revision| {
        let (actor, hold) = (ActorId::parse("rotator").unwrap(), hold.clone());
        RecordWrite::Issuer(Box::new(IssuerRecord { actor, hold, updated: stamp(), revision }))
    };
    let epoch = Hold { reject_issued_before: Some(UnixMillis(START.0 + 1)), ..Hold::default() };
    let mut revisions = [Revision(0); 2];
    for (hold, expected) in
        [(suspended(), Reason::OwnerSuspended), (epoch, Reason::EpochRejected), (Hold::default(), Reason::Ok)]
    {
        let workshop = Workshop::open(&site);
        revisions[0] = workshop.commit(vec![owner(&hold, revisions[0])]).await;
        revisions[1] = workshop.commit(vec![issuer(&hold, revisions[1])]).await;
        workshop.close().await;
        site.try_start().await.unwrap();
        let admin = site.admin();
        assert_eq!(reason(&admin, &mine).await, expected);
        assert_eq!(reason(&admin, &rotated).await, expected);
        assert_eq!(reason(&admin, &other).await, Reason::Ok, "an owner and an issuer of their own");
        site.stop().await;
    }
    let workshop = Workshop::open(&site);
    let tenant = workshop.store.tenant(&default()).await.unwrap().unwrap();
    let held = TenantRecord { hold: suspended(), updated: Some(stamp()), ..TenantRecord::clone(&tenant) };
    workshop.commit(vec![RecordWrite::Tenant(Box::new(held))]).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    for secret in [&mine, &other, &rotated] {
        assert_eq!(reason(&site.admin(), secret).await, Reason::OwnerSuspended);
    }
}

/// What is refused in a verdict is refused to a caller of Keyward itself.
#[tokio::test]
async fn a_caller_is_held_to_the_same() {
    let mut site = Site::start().await;
    let caller = |id: &str, owner: &str| pb::CreateKeyRequest {
        tenant: "system".into(),
        key_id: id.into(),
        owner: owner.into(),
        ..new_key(id, &["keyward.verifier"])
    };
    let mut first = vec![];
    for (id, owner) in [("rotated", ""), ("suspended", ""), ("deleted", ""), ("held", "acme")] {
        first.push(site.admin().issued(caller(id, owner)).await.secret);
    }
    let known = issue(&site, "known", "").await;
    site.stop().await;
    let workshop = Workshop::open(&site);
    let second = workshop.rotate("system", "rotated", Some(START.0 + MINUTE)).await;
    workshop
        .change("system", "suspended", |key| {
            key.spec.policy.state = State::Disabled;
            key.resume_time = Some(UnixMillis(START.0 + MINUTE));
        })
        .await;
    let deletion = Some(Deletion { time: START, purge_time: UnixMillis(START.0 + MINUTE) });
    workshop.change("system", "deleted", |key| key.deletion = deletion).await;
    let owner = OwnerRecord {
        tenant: TenantId::system(),
        owner: "acme".into(),
        hold: suspended(),
        updated: stamp(),
        revision: Revision(0),
    };
    workshop.commit(vec![RecordWrite::Owner(Box::new(owner))]).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let works = async |secret: &str| match site.caller(secret).ask(ask(&known)).await {
        Ok(verdict) => verdict.reason() == Reason::Ok,
        Err(refused) => {
            assert_eq!(refused.code(), Code::Unauthenticated);
            false
        }
    };
    let [rotated, paused, deleted, held] = <[String; 4]>::try_from(first).unwrap();
    let expected = |paused, rotated| [rotated, true, paused, false, false];
    let all = [&rotated, &second, &paused, &deleted, &held];
    for (advance, expected) in [(0, expected(false, true)), (MINUTE, expected(true, false))] {
        site.clock.advance_ms(advance);
        for (secret, expected) in all.iter().zip(expected) {
            assert_eq!(works(secret).await, expected);
        }
    }
}
