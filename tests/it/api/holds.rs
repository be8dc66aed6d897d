//! Tenants, owners and issuers as a whole: suspended, resumed, and accepted only from a time on.

use std::sync::Arc;

use keyward::app::Engine;
use keyward::grpc::pb::set_epoch_request::Holder;
use keyward::grpc::pb::{self, HolderState, Reason};
use keyward::store::memory::MemoryStore;
use keyward::store::{Commit, CommitError, RecordWrite, Store};
use keyward_core::access::{Caller, Identity, Issue, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{AuditStamp, Hold, KeyRecord, OwnerRecord};
use keyward_core::scope::Scope;
use keyward_core::testing::stamp;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;

use crate::support::harness::{
    Handle, Issued, START, Site, after_start, ask, bad_fields, disable, error_reason, journal_segment, new_key,
    strings, update,
};
use crate::support::local_store::{commit, key, open};
use crate::support::workshop::Workshop;

const MINUTE: i64 = 60_000;

/// The reason of a verdict. Both ways of the server give the same.
async fn reason(caller: &Handle, secret: &str) -> Reason {
    let fast = caller.ask(ask(secret)).await.unwrap();
    let explained = caller.ask(pb::VerifyRequest { explain: true, ..ask(secret) }).await.unwrap();
    assert_eq!(pb::VerifyResponse { checks: vec![], ..explained }, fast);
    fast.reason()
}

/// What an explanation says of a check.
async fn detail(caller: &Handle, secret: &str, check: &str) -> String {
    let explained = caller.ask(pb::VerifyRequest { explain: true, ..ask(secret) }).await.unwrap();
    explained.checks.into_iter().find(|line| line.check == check).unwrap().detail
}

fn owned(owner: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { owner: owner.into(), ..new_key("Key", &[]) }
}

fn suspend(owner: &str, reason: &str) -> pb::SuspendOwnerRequest {
    pb::SuspendOwnerRequest { owner: owner.into(), reason: reason.into(), ..Default::default() }
}

fn resume(owner: &str) -> pb::ResumeOwnerRequest {
    pb::ResumeOwnerRequest { owner: owner.into(), ..Default::default() }
}

fn suspend_tenant(tenant: &str) -> pb::SuspendTenantRequest {
    pb::SuspendTenantRequest { tenant: tenant.into(), ..Default::default() }
}

fn of_owner(owner: &str) -> Holder {
    of_owner_in("", owner)
}

fn of_owner_in(tenant: &str, owner: &str) -> Holder {
    Holder::Owner(pb::OwnerName { owner: owner.into(), tenant: tenant.into() })
}

/// An epoch that begins so many milliseconds after the tests' clock; `None`: with the call.
fn epoch(holder: Holder, after: Option<i64>) -> pb::SetEpochRequest {
    let reject_issued_before = after.and_then(after_start);
    pb::SetEpochRequest { holder: Some(holder), reject_issued_before, ..Default::default() }
}

async fn create_tenant(site: &Site, tenant: &str) {
    site.admin().create_tenant(pb::CreateTenantRequest { tenant: tenant.into(), ..Default::default() }).await.unwrap();
}

async fn administrator(site: &Site, owner: &str) -> Issued {
    administrator_by(&site.admin(), owner).await
}

async fn administrator_by(caller: &Handle, owner: &str) -> Issued {
    let roles = &["keyward.admin"];
    let request = pb::CreateKeyRequest { tenant: "system".into(), owner: owner.into(), ..new_key("Admin", roles) };
    caller.issued(request).await
}

/// The key that the first start made.
async fn first_key(site: &Site) -> pb::Key {
    let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
    let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    site.admin().list(list).await.unwrap().keys.remove(0)
}

#[tokio::test]
async fn every_key_of_a_suspended_owner_is_refused_until_it_is_resumed() {
    let mut site = Site::start().await;
    create_tenant(&site, "acme").await;
    let admin = site.admin();
    let (one, two, other) =
        (admin.issued(owned("Zapier")).await, admin.issued(owned("Zapier")).await, admin.issued(owned("Zapie")).await);
    let elsewhere = admin.issued(pb::CreateKeyRequest { tenant: "acme".into(), ..owned("Zapier") }).await;
    let before = admin.read(&one.key).await;
    let suspended = admin.suspend_owner(suspend("Zapier", "unpaid")).await.unwrap();
    let owner = suspended.owner.unwrap();
    assert_eq!((owner.state(), &*owner.state_reason, &*owner.tenant), (HolderState::Suspended, "unpaid", "default"));
    assert_eq!((owner.state_time, owner.revision), (after_start(0), suspended.revision));
    assert_eq!((&*owner.state_by, &*owner.updated_by), (&*before.created_by, &*before.created_by));
    assert_eq!(suspended.affected_keys, 2);
    let later = admin.issued(owned("Zapier")).await;
    let moved = admin.issued(owned("Other")).await;
    admin.update(update(&pb::Key { owner: "Zapier".into(), ..moved.key.clone() }, &["owner"])).await.unwrap();
    for key in [&one, &two, &later, &moved] {
        assert_eq!(reason(&admin, &key.secret).await, Reason::OwnerSuspended);
        assert_eq!(detail(&admin, &key.secret, "owner").await, "owner");
    }
    for key in [&other, &elsewhere] {
        assert_eq!(reason(&admin, &key.secret).await, Reason::Ok);
    }
    assert_eq!(admin.read(&one.key).await, before, "the key itself stays as it is");
    // It stays what it is while its owner is suspended, and is disabled for itself.
    admin.disable_key(&two.key).await;

    site.restart().await;
    let admin = site.admin();
    assert_eq!(reason(&admin, &one.secret).await, Reason::OwnerSuspended);
    let read = admin.get_owner(pb::GetOwnerRequest { owner: "Zapier".into(), ..Default::default() }).await.unwrap();
    assert_eq!(read.owner.unwrap(), owner);
    let resumed = admin.resume_owner(resume("Zapier")).await.unwrap();
    assert_eq!((resumed.owner.unwrap().state(), resumed.affected_keys), (HolderState::Active, 4));
    for (key, expected) in [(&one, Reason::Ok), (&two, Reason::Disabled), (&later, Reason::Ok), (&moved, Reason::Ok)] {
        assert_eq!(reason(&admin, &key.secret).await, expected);
    }
}

#[tokio::test]
async fn every_key_of_a_suspended_tenant_is_refused_until_it_is_resumed() {
    let mut site = Site::start().await;
    create_tenant(&site, "acme").await;
    let in_acme = |owner: &str| pb::CreateKeyRequest { tenant: "acme".into(), ..owned(owner) };
    let (one, other) = (site.admin().issued(in_acme("")).await, site.admin().issue("Other", &[]).await);
    let suspended = site.admin().suspend_tenant(suspend_tenant("acme")).await.unwrap();
    assert_eq!((suspended.tenant.unwrap().state(), suspended.affected_keys), (HolderState::Suspended, 1));
    let later = site.admin().issued(in_acme("Zapier")).await;
    for restarted in [false, true] {
        if restarted {
            site.restart().await;
        }
        for key in [&one, &later] {
            assert_eq!(reason(&site.admin(), &key.secret).await, Reason::OwnerSuspended);
            assert_eq!(detail(&site.admin(), &key.secret, "owner").await, "tenant");
        }
        assert_eq!(reason(&site.admin(), &other.secret).await, Reason::Ok);
    }
    site.admin()
        .suspend_owner(pb::SuspendOwnerRequest { tenant: "acme".into(), ..suspend("Zapier", "") })
        .await
        .unwrap();
    assert_eq!(detail(&site.admin(), &later.secret, "owner").await, "tenant, owner");
    let resumed = pb::ResumeTenantRequest { tenant: "acme".into(), reason: "paid".into(), ..Default::default() };
    let tenant = site.admin().resume_tenant(resumed).await.unwrap().tenant.unwrap();
    assert_eq!((tenant.state(), &*tenant.state_reason), (HolderState::Active, "paid"));
    let read = site.admin().get_tenant(pb::GetTenantRequest { tenant: "acme".into() }).await.unwrap().tenant.unwrap();
    assert_eq!(read, tenant);
    assert_eq!(reason(&site.admin(), &one.secret).await, Reason::Ok);
    assert_eq!(reason(&site.admin(), &later.secret).await, Reason::OwnerSuspended, "for its owner");
}

#[tokio::test]
async fn what_is_so_already_changes_its_reason_or_nothing() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let first = admin.suspend_owner(suspend("Zapier", "unpaid")).await.unwrap();
    site.clock.advance_ms(MINUTE);
    for reason in ["", "unpaid"] {
        let again = admin.suspend_owner(suspend("Zapier", reason)).await.unwrap();
        assert_eq!((&again.owner, again.revision), (&first.owner, first.revision), "{reason:?}");
    }
    let other = admin.suspend_owner(suspend("Zapier", "leaked")).await.unwrap();
    let (owner, before) = (other.owner.unwrap(), first.owner.unwrap());
    assert_eq!(
        (&*owner.state_reason, owner.state_time, owner.update_time),
        ("leaked", before.state_time, after_start(MINUTE))
    );
    assert!(other.revision > first.revision && owner.etag != before.etag);
    // Of one that nothing was ever done to, too.
    let none = admin.resume_owner(resume("Nobody")).await.unwrap();
    let owner = none.owner.unwrap();
    assert_eq!((owner.state(), owner.revision, owner.update_time, none.revision), (HolderState::Active, 0, None, 0));

    // An etag is a condition, that of an owner without a record too, and a dry run changes nothing.
    let stale = pb::SuspendOwnerRequest { etag: before.etag, ..suspend("Zapier", "third") };
    assert_eq!(error_reason(&admin.suspend_owner(stale).await.unwrap_err()), "ETAG_MISMATCH");
    let dry = pb::SuspendOwnerRequest { validate_only: true, ..suspend("Nobody", "") };
    let told = admin.suspend_owner(dry).await.unwrap().owner.unwrap();
    assert_eq!((told.state(), told.revision), (HolderState::Suspended, 0));
    let read = admin.get_owner(pb::GetOwnerRequest { owner: "Nobody".into(), ..Default::default() }).await.unwrap();
    assert_eq!(read.owner.as_ref(), Some(&owner));
    let fresh = pb::SuspendOwnerRequest { etag: owner.etag, ..suspend("Nobody", "") };
    admin.suspend_owner(fresh.clone()).await.unwrap();
    assert_eq!(error_reason(&admin.suspend_owner(fresh).await.unwrap_err()), "ETAG_MISMATCH");
}

#[tokio::test]
async fn a_secret_is_refused_if_it_was_issued_before_the_epoch_to_the_millisecond() {
    let mut site = Site::start().await;
    let early = site.admin().issued(owned("Zapier")).await;
    site.clock.advance_ms(1);
    let later = site.admin().issued(owned("Zapier")).await;
    let other = site.admin().issued(owned("Other")).await;
    site.clock.advance_ms(MINUTE);
    let set = site.admin().set_epoch(epoch(of_owner("Zapier"), Some(1))).await.unwrap();
    assert_eq!(set.affected_keys, 2);
    let Some(pb::set_epoch_response::Holder::Owner(owner)) = set.holder else { panic!("an owner") };
    assert_eq!(
        (owner.reject_issued_before, owner.state(), owner.revision),
        (after_start(1), HolderState::Active, set.revision)
    );
    for restarted in [false, true] {
        if restarted {
            site.restart().await;
        }
        let admin = site.admin();
        assert_eq!(reason(&admin, &early.secret).await, Reason::EpochRejected);
        assert_eq!(detail(&admin, &early.secret, "epoch").await, "owner");
        assert_eq!(reason(&admin, &later.secret).await, Reason::Ok, "in the very millisecond");
        assert_eq!(reason(&admin, &other.secret).await, Reason::Ok);
    }
    // It only grows, and never past now.
    let admin = site.admin();
    let again = admin.set_epoch(epoch(of_owner("Zapier"), Some(1))).await.unwrap();
    assert_eq!(again.revision, set.revision);
    let lower = admin.set_epoch(epoch(of_owner("Zapier"), Some(0))).await.unwrap_err();
    assert_eq!((lower.code(), &*error_reason(&lower)), (Code::FailedPrecondition, "EPOCH_LOWERED"));
    for validate_only in [true, false] {
        let future = pb::SetEpochRequest { validate_only, ..epoch(of_owner("Zapier"), Some(MINUTE + 2)) };
        assert_eq!(bad_fields(&admin.set_epoch(future).await.unwrap_err()), ["reject_issued_before"]);
    }
    admin.set_epoch(epoch(of_owner("Zapier"), Some(MINUTE + 1))).await.unwrap();
    assert_eq!(reason(&admin, &later.secret).await, Reason::EpochRejected);
}

/// The clock stands still: what was issued before the call and what is issued after it have its very time.
#[tokio::test]
async fn an_epoch_of_now_tells_apart_what_was_issued_in_the_same_millisecond() {
    let mut site = Site::start().await;
    for holder in [of_owner("Zapier"), Holder::Tenant("default".into()), of_owner("Zapier")] {
        let before = site.admin().issued(owned("Zapier")).await;
        site.admin().set_epoch(epoch(holder.clone(), None)).await.unwrap();
        let after = site.admin().issued(owned("Zapier")).await;
        for restarted in [false, true] {
            if restarted {
                site.restart().await;
            }
            assert_eq!(reason(&site.admin(), &before.secret).await, Reason::EpochRejected, "{holder:?}");
            assert_eq!(reason(&site.admin(), &after.secret).await, Reason::Ok, "{holder:?}");
        }
    }
}

#[tokio::test]
async fn the_issue_of_the_secret_counts_and_not_that_of_the_key() {
    let mut site = Site::start().await;
    let first = site.admin().issued(pb::CreateKeyRequest { key_id: "rotated".into(), ..owned("Zapier") }).await;
    site.clock.advance_ms(MINUTE);
    site.stop().await;
    let workshop = Workshop::open(&site);
    let second = workshop.rotate("default", "rotated", None).await;
    let issued = AuditStamp { time: UnixMillis(START.0 + 5), actor: ActorId::keyward() };
    workshop.change("default", "rotated", |key| key.secret.issued = Some(issued)).await;
    workshop.close().await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    for (after, of_first, of_second) in [
        (0, Reason::Ok, Reason::Ok),
        (5, Reason::EpochRejected, Reason::Ok),
        (6, Reason::EpochRejected, Reason::EpochRejected),
    ] {
        admin.set_epoch(epoch(of_owner("Zapier"), Some(after))).await.unwrap();
        assert_eq!(reason(&admin, &first.secret).await, of_first, "{after}");
        assert_eq!(reason(&admin, &second).await, of_second, "{after}");
    }
}

#[tokio::test]
async fn an_epoch_of_an_issuer_is_about_what_it_issued_in_every_tenant() {
    let site = Site::start().await;
    create_tenant(&site, "acme").await;
    let leaked = administrator(&site, "").await;
    let issuer = site.caller(&leaked.secret);
    let theirs = [
        issuer.issued(owned("Zapier")).await,
        issuer.issued(pb::CreateKeyRequest { tenant: "acme".into(), ..owned("") }).await,
        issuer.issued(pb::CreateKeyRequest { tenant: "system".into(), ..new_key("V", &["keyward.verifier"]) }).await,
    ];
    let ours = site.admin().issued(owned("Zapier")).await;
    let admin = site.admin();
    admin.revoke_key(&leaked.key).await;
    let set = admin.set_epoch(epoch(Holder::Issuer(leaked.key.key_id.clone()), None)).await.unwrap();
    assert_eq!(set.affected_keys, 3);
    for key in &theirs {
        assert_eq!(reason(&admin, &key.secret).await, Reason::EpochRejected);
        assert_eq!(detail(&admin, &key.secret, "epoch").await, "issuer");
    }
    let refused = site.caller(&theirs[2].secret).ask(ask(&ours.secret)).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
    assert_eq!(reason(&admin, &ours.secret).await, Reason::Ok);
    assert_eq!(reason(&admin, &leaked.secret).await, Reason::Revoked);
    let read = admin.get_issuer(pb::GetIssuerRequest { issuer: leaked.key.key_id.clone() }).await.unwrap();
    let Some(pb::set_epoch_response::Holder::Issuer(told)) = set.holder else { panic!("an issuer") };
    assert_eq!(read.issuer, Some(told));
    let unknown = admin.get_issuer(pb::GetIssuerRequest { issuer: "spiffe://test/nobody".into() }).await.unwrap();
    let unknown = unknown.issuer.unwrap();
    assert_eq!((unknown.revision, unknown.reject_issued_before, unknown.update_time), (0, None, None));
}

#[tokio::test]
async fn a_key_leaves_a_held_owner_only_by_one_who_may_resume_it() {
    for engine in [Engine::Memory, Engine::Sled] {
        let site = Site::changed(engine, "off", |_| {}).await;
        let (issuer, both) = (
            site.with_roles(&["keyward.issuer"]).await,
            site.with_roles(&["keyward.issuer", "keyward.operator"]).await,
        );
        let key = site.admin().issued(owned("Zapier")).await;
        let moved = |to: &str, validate_only: bool| {
            let key = pb::Key { owner: to.into(), ..key.key.clone() };
            pb::UpdateKeyRequest { validate_only, ..update(&key, &["owner"]) }
        };
        // Whoever else is held.
        site.admin().suspend_owner(suspend("Other", "")).await.unwrap();
        issuer.update(moved("Make", false)).await.unwrap();
        issuer.update(moved("Zapier", false)).await.unwrap();
        site.admin().suspend_owner(suspend("Zapier", "")).await.unwrap();
        for validate_only in [true, false] {
            let refused = issuer.update(moved("Make", validate_only)).await.unwrap_err();
            assert_eq!((refused.code(), &*error_reason(&refused)), (Code::PermissionDenied, "OWNER_HELD"));
        }
        assert_eq!(reason(&site.admin(), &key.secret).await, Reason::OwnerSuspended);
        let renamed = pb::Key { display_name: "Renamed".into(), owner: "Zapier".into(), ..key.key.clone() };
        issuer.update(update(&renamed, &["display_name", "owner"])).await.unwrap();
        both.update(moved("Make", true)).await.unwrap();
        both.update(moved("Make", false)).await.unwrap();
        assert_eq!(reason(&site.admin(), &key.secret).await, Reason::Ok);

        // So with an epoch, if it refuses a secret of the key.
        site.admin().set_epoch(epoch(of_owner("Make"), Some(0))).await.unwrap();
        issuer.update(moved("Zoho", false)).await.unwrap();
        site.admin().set_epoch(epoch(of_owner("Zoho"), None)).await.unwrap();
        let refused = issuer.update(moved("Make", false)).await.unwrap_err();
        assert_eq!(error_reason(&refused), "OWNER_HELD");
        both.update(moved("Make", false)).await.unwrap();
    }
}

/// The owner is suspended between the reading of the key and the commit of its move.
#[tokio::test]
async fn a_move_that_comes_after_the_suspension_is_refused_at_its_place_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let stores: [Arc<dyn Store>; 2] = [Arc::new(MemoryStore::default()), Arc::new(open(&dir, 1 << 20))];
    for store in stores {
        let roles = |texts: &[&str]| texts.iter().map(|text| Scope::parse(text).unwrap()).collect::<Vec<_>>();
        let issuers = [&["keyward.issuer"][..], &["keyward.issuer", "keyward.operator"]];
        for (number, scopes) in issuers.iter().enumerate() {
            let mut caller = KeyRecord { tenant: TenantId::system(), ..key(10 + number as u32) };
            caller.spec.policy.scopes = roles(scopes);
            let granted = Caller::new(
                Identity::of_key(caller.key_id.clone(), caller.secret.digest, None),
                &caller.spec.policy.scopes,
            );
            let grant = granted.grant::<Issue>(TenantId::default_tenant()).unwrap();
            store.commit(commit(vec![RecordWrite::NewKey(Box::new(caller))])).await.unwrap();
            let mut target = key(20 + number as u32);
            target.spec.owner = format!("owner of {number}");
            let revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(target.clone()))])).await.unwrap();
            let read = KeyRecord { revision, ..target };
            let owner = OwnerRecord {
                tenant: TenantId::default_tenant(),
                owner: read.spec.owner.clone(),
                hold: Hold { suspended: true, ..Hold::default() },
                updated: stamp(),
                revision: Revision(0),
            };
            let mut moved = read.clone();
            moved.spec.owner = "elsewhere".into();
            let authorization = Some(grant.authorization(UnixMillis(1_000)).leaving_owner_of(&read));
            let write = || vec![RecordWrite::Key(Box::new(moved.clone()))];
            let suspends = store.commit(commit(vec![RecordWrite::Owner(Box::new(owner))]));
            let moves = store.commit(Commit { authorization, ..commit(write()) });
            let (suspended, outcome) = tokio::join!(suspends, moves);
            suspended.unwrap();
            match number {
                0 => assert!(matches!(outcome, Err(CommitError::Unauthorized(Unauthorized::HeldOwner))), "{outcome:?}"),
                _ => drop(outcome.unwrap()),
            }
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn no_hold_takes_the_last_lasting_administrator() {
    for engine in [Engine::Memory, Engine::Sled] {
        let mut site = Site::changed(engine, "off", |_| {}).await;
        let (first, shared) = (first_key(&site).await, administrator(&site, "Ops").await);
        site.clock.advance_ms(1);
        let expiring = pb::CreateKeyRequest {
            tenant: "system".into(),
            expire_time: after_start(100 * MINUTE),
            ..new_key("Expiring", &["keyward.admin"])
        };
        let expiring = site.caller(&shared.secret).issued(expiring).await;
        let caller = site.caller(&expiring.secret);
        caller.disable_key(&first).await;
        let suspended = pb::SuspendOwnerRequest { tenant: "system".into(), ..suspend("Ops", "") };
        let epochs = [
            epoch(of_owner_in("system", "Ops"), None),
            epoch(Holder::Issuer(first.key_id.clone()), None),
            epoch(Holder::Tenant("system".into()), Some(1)),
        ];
        let left = pb::SuspendOwnerRequest { tenant: "system".into(), ..suspend("Left", "") };
        caller.suspend_owner(left).await.unwrap();
        for validate_only in [true, false] {
            let mut refused = vec![
                caller.suspend_owner(pb::SuspendOwnerRequest { validate_only, ..suspended.clone() }).await.err(),
                caller
                    .suspend_tenant(pb::SuspendTenantRequest { validate_only, ..suspend_tenant("system") })
                    .await
                    .err(),
            ];
            for request in &epochs {
                refused.push(caller.set_epoch(pb::SetEpochRequest { validate_only, ..request.clone() }).await.err());
            }
            // To an owner that is suspended already.
            let into = pb::Key { owner: "Left".into(), ..shared.key.clone() };
            let request = pb::UpdateKeyRequest { validate_only, ..update(&into, &["owner"]) };
            refused.push(caller.update(request).await.err());
            for (number, refused) in refused.into_iter().enumerate() {
                let refused = refused.unwrap_or_else(|| panic!("number {number} was made"));
                let told = (refused.code(), error_reason(&refused));
                assert_eq!(told, (Code::FailedPrecondition, "LAST_ADMINISTRATOR".to_owned()), "{refused:?}");
            }
        }
        assert_eq!(caller.reason(&shared.secret).await, Reason::Ok);

        // With another one that lasts they are made, and one that is suspended does not count.
        let second = administrator_by(&caller, "").await;
        caller.suspend_owner(suspended).await.unwrap();
        if engine == Engine::Sled {
            site.restart().await;
        }
        let caller = site.caller(&expiring.secret);
        let refused = caller.disable(disable(&second.key)).await.unwrap_err();
        assert_eq!(error_reason(&refused), "LAST_ADMINISTRATOR");
        caller.resume_owner(pb::ResumeOwnerRequest { tenant: "system".into(), ..resume("Ops") }).await.unwrap();
        caller.disable_key(&second.key).await;
    }
}

#[tokio::test]
async fn a_caller_whose_owner_is_suspended_is_refused_at_once_on_every_way() {
    let site = Site::start().await;
    let target = site.admin().issue("Target", &[]).await;
    let request = pb::CreateKeyRequest {
        tenant: "system".into(),
        owner: "Contractor".into(),
        ..new_key("Caller", &["keyward.verifier", "keyward.viewer", "keyward.issuer"])
    };
    let caller = site.caller(&site.admin().issued(request).await.secret);
    let (questions, asked) = mpsc::unbounded_channel();
    let question = || pb::StreamVerifyRequest { request: Some(ask(&target.secret)) };
    questions.send(question()).unwrap();
    let mut answers = caller.stream(UnboundedReceiverStream::new(asked)).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let suspended = pb::SuspendOwnerRequest { tenant: "system".into(), ..suspend("Contractor", "") };
    site.admin().suspend_owner(suspended).await.unwrap();
    questions.send(question()).unwrap();
    let ended = answers.message().await.unwrap_err();
    let refused = [
        ended,
        caller.ask(ask(&target.secret)).await.unwrap_err(),
        caller.list(pb::ListKeysRequest::default()).await.unwrap_err(),
        caller.create(new_key("New", &[])).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
        assert!(refused.message().contains("is suspended"), "{}", refused.message());
    }
    site.admin()
        .resume_owner(pb::ResumeOwnerRequest { tenant: "system".into(), ..resume("Contractor") })
        .await
        .unwrap();
    caller.ask(ask(&target.secret)).await.unwrap();
}

#[tokio::test]
async fn nobody_shuts_themselves_out() {
    let site = Site::start().await;
    let (ours, theirs) = (administrator(&site, "Ops").await, administrator(&site, "Others").await);
    let caller = site.caller(&ours.secret);
    let own = pb::SuspendOwnerRequest { tenant: "system".into(), ..suspend("Ops", "") };
    for validate_only in [true, false] {
        let refused = caller.suspend_owner(pb::SuspendOwnerRequest { validate_only, ..own.clone() }).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "OWN_KEY"));
        let request = pb::SetEpochRequest { validate_only, ..epoch(of_owner_in("system", "Ops"), None) };
        assert_eq!(error_reason(&caller.set_epoch(request).await.unwrap_err()), "OWN_KEY");
    }
    let others = pb::SuspendOwnerRequest { tenant: "system".into(), ..suspend("Others", "") };
    caller.suspend_owner(others).await.unwrap();
    let to_them = pb::Key { owner: "Others".into(), ..ours.key.clone() };
    let refused = caller.update(update(&to_them, &["owner"])).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "OWN_KEY"));
    let refused = site.caller(&theirs.secret).suspend_owner(own).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_narrowed_role_holds_its_tenant_and_no_issuer() {
    let site = Site::start().await;
    for tenant in ["acme", "globex"] {
        create_tenant(&site, tenant).await;
    }
    let operator = site.with_roles(&["keyward.operator@acme"]).await;
    operator.suspend_tenant(suspend_tenant("acme")).await.unwrap();
    operator.set_epoch(epoch(Holder::Tenant("acme".into()), None)).await.unwrap();
    // Where none is named, the only tenant of the caller's roles is meant.
    let owner = operator.suspend_owner(suspend("Zapier", "")).await.unwrap().owner.unwrap();
    assert_eq!(owner.tenant, "acme");
    let elsewhere = [
        operator.suspend_tenant(suspend_tenant("globex")).await.unwrap_err(),
        operator.set_epoch(epoch(Holder::Tenant("globex".into()), None)).await.unwrap_err(),
        operator.set_epoch(epoch(of_owner_in("globex", "Zapier"), None)).await.unwrap_err(),
    ];
    for refused in elsewhere {
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::NotFound, "TENANT_NOT_FOUND"));
    }
    let plain = site.with_roles(&["keyward.operator"]).await;
    plain.set_epoch(epoch(of_owner_in("globex", "Zapier"), None)).await.unwrap();
    for caller in [&operator, &plain] {
        let refused = caller.set_epoch(epoch(Holder::Issuer("keyward".into()), None)).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::PermissionDenied, "ROLE_MISSING"));
    }
    let refused = operator.get_issuer(pb::GetIssuerRequest { issuer: "keyward".into() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    plain.get_issuer(pb::GetIssuerRequest { issuer: "keyward".into() }).await.unwrap();
}

#[tokio::test]
async fn what_names_nobody_is_refused_by_field() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    assert_eq!(bad_fields(&admin.suspend_owner(suspend("", "")).await.unwrap_err()), ["owner"]);
    assert_eq!(bad_fields(&admin.resume_owner(resume("")).await.unwrap_err()), ["owner"]);
    assert_eq!(bad_fields(&admin.suspend_owner(suspend(&"x".repeat(129), "")).await.unwrap_err()), ["owner"]);
    let long = "x".repeat(257);
    assert_eq!(bad_fields(&admin.suspend_owner(suspend("Zapier", &long)).await.unwrap_err()), ["reason"]);
    assert_eq!(bad_fields(&admin.get_owner(pb::GetOwnerRequest::default()).await.unwrap_err()), ["owner"]);
    assert_eq!(bad_fields(&admin.get_issuer(pb::GetIssuerRequest::default()).await.unwrap_err()), ["issuer"]);
    assert_eq!(bad_fields(&admin.suspend_tenant(suspend_tenant("")).await.unwrap_err()), ["tenant"]);
    for (holder, field) in [
        (None, "holder"),
        (Some(Holder::Tenant(String::new())), "tenant"),
        (Some(of_owner("")), "owner.owner"),
        (Some(of_owner_in("Bad!", "x")), "owner.tenant"),
        (Some(Holder::Issuer("Not an issuer".into())), "issuer"),
    ] {
        let request = pb::SetEpochRequest { holder, ..Default::default() };
        assert_eq!(bad_fields(&admin.set_epoch(request).await.unwrap_err()), [field]);
    }
    let nowhere = pb::SuspendOwnerRequest { tenant: "nowhere".into(), ..suspend("Zapier", "") };
    assert_eq!(error_reason(&admin.suspend_owner(nowhere).await.unwrap_err()), "TENANT_NOT_FOUND");
}

#[tokio::test]
async fn an_owner_is_meant_in_the_form_in_which_keys_have_it() {
    let site = Site::start().await;
    // The same text, composed and not.
    let (composed, decomposed) = ("M\u{fc}ller", "Mu\u{308}ller");
    let key = site.admin().issued(owned(decomposed)).await;
    assert_eq!(key.key.owner, composed);
    let suspended = site.admin().suspend_owner(suspend(decomposed, "")).await.unwrap();
    assert_eq!((suspended.owner.unwrap().owner.as_str(), suspended.affected_keys), (composed, 1));
    assert_eq!(reason(&site.admin(), &key.secret).await, Reason::OwnerSuspended);
}

#[tokio::test]
async fn owners_without_keys_are_bounded_and_those_with_keys_are_not() {
    for engine in [Engine::Memory, Engine::Sled] {
        let site = Site::changed(engine, "off", |settings| settings.owners_per_tenant_max = 2).await;
        let admin = site.admin();
        admin.issued(owned("Zapier")).await;
        for owner in ["one", "two"] {
            admin.suspend_owner(suspend(owner, "")).await.unwrap();
        }
        for validate_only in [true, false] {
            let third = pb::SuspendOwnerRequest { validate_only, ..suspend("three", "") };
            let refused = admin.suspend_owner(third).await.unwrap_err();
            assert_eq!((refused.code(), &*error_reason(&refused)), (Code::ResourceExhausted, "TOO_MANY_OWNERS"));
        }
        admin.suspend_owner(suspend("Zapier", "")).await.unwrap();
        admin.suspend_owner(suspend("one", "again")).await.unwrap();
    }
}

/// Whatever the number of its keys: a change of one record, as it is in the journal.
#[tokio::test]
async fn a_hold_is_one_entry_of_at_most_512_bytes() {
    let site = Site::start_small().await;
    for _ in 0..20 {
        site.admin().issued(owned("Zapier")).await;
    }
    let path = journal_segment(&site.dir);
    // Its end is zeros.
    let bytes = || std::fs::read(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    let mut before = bytes();
    let mut has_grown_by = |most: usize, what: &str| {
        let (after, since) = (bytes(), before);
        before = after;
        assert!((1..=most).contains(&(after - since)), "{what}: {} bytes", after - since);
    };
    site.admin().suspend_owner(suspend("Zapier", "no payment in ninety days, see ticket 4711")).await.unwrap();
    has_grown_by(512, "an owner is suspended");
    site.admin().set_epoch(epoch(of_owner("Zapier"), None)).await.unwrap();
    has_grown_by(512, "its epoch is set");
    site.admin().suspend_tenant(suspend_tenant("default")).await.unwrap();
    has_grown_by(512, "a tenant is suspended");
    site.admin().set_epoch(epoch(Holder::Issuer("spiffe://example.org/billing".into()), None)).await.unwrap();
    has_grown_by(512, "an issuer has an epoch");
    // Each text as long as it may be.
    site.admin().suspend_owner(suspend(&"x".repeat(128), &"y".repeat(256))).await.unwrap();
    has_grown_by(1_024, "the longest one");
}

#[tokio::test]
async fn a_tenant_can_be_renamed_and_secrets_keep_their_prefix() {
    let site = Site::start().await;
    create_tenant(&site, "acme").await;
    let admin = site.admin();
    let in_acme = || pb::CreateKeyRequest { tenant: "acme".into(), ..new_key("Key", &[]) };
    let first = admin.issued(in_acme()).await;
    let before = admin.get_tenant(pb::GetTenantRequest { tenant: "acme".into() }).await.unwrap().tenant.unwrap();
    assert_eq!((before.update_time, before.state()), (None, HolderState::Active));
    let changed = |paths: &[&str], tenant: pb::Tenant| pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "acme".into(), ..tenant }),
        update_mask: Some(FieldMask { paths: strings(paths) }),
        ..Default::default()
    };
    let named = pb::Tenant { display_name: "Acme Inc.".into(), secret_prefix: "acme".into(), ..Default::default() };
    let dry = pb::UpdateTenantRequest { validate_only: true, ..changed(&["display_name"], named.clone()) };
    assert_eq!(admin.update_tenant(dry).await.unwrap().revision, before.revision);
    site.clock.advance_ms(MINUTE);
    let done = admin.update_tenant(changed(&["secret_prefix"], named.clone())).await.unwrap();
    let tenant = done.tenant.unwrap();
    assert_eq!((&*tenant.secret_prefix, &*tenant.display_name), ("acme", ""), "what the mask does not name stays");
    assert_eq!((tenant.update_time, &*tenant.updated_by), (after_start(MINUTE), &*before.created_by));
    assert_eq!((tenant.create_time, tenant.revision), (before.create_time, done.revision));
    let second = admin.issued(in_acme()).await;
    assert!(first.secret.starts_with("kw_live_") && second.secret.starts_with("acme_live_"));
    for key in [&first, &second] {
        assert_eq!(reason(&admin, &key.secret).await, Reason::Ok);
    }
    let stale = pb::UpdateTenantRequest { etag: before.etag, ..changed(&["display_name"], named.clone()) };
    assert_eq!(error_reason(&admin.update_tenant(stale).await.unwrap_err()), "ETAG_MISMATCH");
    let again = admin.update_tenant(changed(&["secret_prefix"], named.clone())).await.unwrap();
    assert_eq!(again.revision, done.revision, "it is so already");
    let cleared = admin.update_tenant(changed(&["secret_prefix"], pb::Tenant::default())).await.unwrap();
    assert_eq!(cleared.tenant.unwrap().secret_prefix, "kw");

    for (paths, field) in [
        (&[][..], "update_mask"),
        (&["state"], "update_mask.paths[0]"),
        (&["display_name", "display_name"], "update_mask.paths[1]"),
    ] {
        assert_eq!(bad_fields(&admin.update_tenant(changed(paths, named.clone())).await.unwrap_err()), [field]);
    }
    let bad = pb::Tenant { secret_prefix: "Bad_".into(), ..Default::default() };
    let refused = admin.update_tenant(changed(&["secret_prefix"], bad)).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["tenant.secret_prefix"]);
    let missing = pb::UpdateTenantRequest {
        tenant: Some(pb::Tenant { tenant: "nowhere".into(), ..named.clone() }),
        ..changed(&["display_name"], named.clone())
    };
    assert_eq!(error_reason(&admin.update_tenant(missing).await.unwrap_err()), "TENANT_NOT_FOUND");
    let narrowed = site.with_roles(&["keyward.admin@acme"]).await;
    let refused = narrowed.update_tenant(changed(&["display_name"], named)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}
