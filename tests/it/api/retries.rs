//! Changes that are asked for again under their request id: each is made once, and told of as it was.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use keyward::grpc::pb::{self, Reason};
use keyward::grpc::retry::seal_info;
use keyward::util::hpke::KeyPair;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::storage::retention::wait_until;
use crate::support::harness::{Handle, Site, bad_fields, disable, error_reason, new_key, rotate, strings, update};

const TEN_MINUTES_MS: i64 = 600_000;

fn create(id: &str, label: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { request_id: id.into(), ..new_key(label, &["a"]) }
}

fn sealed_to(pair: &KeyPair, request: pb::CreateKeyRequest) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { reply_public_key: pair.public.as_bytes().to_vec(), ..request }
}

fn open(pair: &KeyPair, id: &str, reply: &pb::CreateKeyResponse) -> String {
    let opened = pair.open(&seal_info("CreateKey", id), &reply.sealed_secret).unwrap();
    String::from_utf8(opened.to_vec()).unwrap()
}

fn disabling(id: &str, key: &pb::Key) -> pb::DisableKeyRequest {
    pb::DisableKeyRequest { request_id: id.into(), reason: "unpaid".into(), ..disable(key) }
}

fn enabling(id: &str, key: &pb::Key) -> pb::EnableKeyRequest {
    let pb::DisableKeyRequest { key_id, tenant, .. } = disable(key);
    pb::EnableKeyRequest { key_id, tenant, request_id: id.into(), ..Default::default() }
}

fn revoking(id: &str, key: &pb::Key) -> pb::RevokeKeyRequest {
    let pb::DisableKeyRequest { key_id, tenant, .. } = disable(key);
    pb::RevokeKeyRequest { key_id, tenant, request_id: id.into(), ..Default::default() }
}

fn renaming(id: &str, key: &pb::Key, name: &str) -> pb::UpdateKeyRequest {
    let renamed = pb::Key { display_name: name.into(), ..key.clone() };
    pb::UpdateKeyRequest { request_id: id.into(), ..update(&renamed, &["display_name"]) }
}

fn tenant(id: &str, name: &str) -> pb::CreateTenantRequest {
    pb::CreateTenantRequest { tenant: name.into(), request_id: id.into(), ..Default::default() }
}

async fn revision(site: &Site) -> u64 {
    site.admin().get_tenant(pb::GetTenantRequest { tenant: "system".into() }).await.unwrap().revision
}

async fn keys(admin: &Handle) -> usize {
    admin.list(pb::ListKeysRequest { page_size: 1_000, ..Default::default() }).await.unwrap().keys.len()
}

fn assert_refused<T: std::fmt::Debug>(refused: Result<T, Status>, code: Code, reason: &str) -> Status {
    let refused = refused.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (code, reason), "{refused:?}");
    refused
}

fn replies(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("replies")) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test]
async fn a_retry_makes_nothing_and_has_the_reply_of_the_first_call() {
    let site = Site::start().await;
    let admin = site.admin();
    let pair = KeyPair::generate().unwrap();
    let created = admin.create(sealed_to(&pair, create("create", "One"))).await.unwrap();
    let key = created.key.clone().unwrap();
    let renamed = admin.update(renaming("rename", &key, "Two")).await.unwrap();
    let disabled = admin.disable(disabling("disable", &key)).await.unwrap();
    let enabled = admin.enable(enabling("enable", &key)).await.unwrap();
    let revoked = admin.revoke(revoking("revoke", &key)).await.unwrap();
    let made = admin.create_tenant(tenant("tenant", "acme")).await.unwrap();
    let before = revision(&site).await;
    for _ in 0..2 {
        // In the state that the key has now, most of them could not be made again.
        assert_eq!(admin.create(sealed_to(&pair, create("create", "One"))).await.unwrap(), created);
        assert_eq!(admin.update(renaming("rename", &key, "Two")).await.unwrap(), renamed);
        assert_eq!(admin.disable(disabling("disable", &key)).await.unwrap(), disabled);
        assert_eq!(admin.enable(enabling("enable", &key)).await.unwrap(), enabled);
        assert_eq!(admin.revoke(revoking("revoke", &key)).await.unwrap(), revoked);
        assert_eq!(admin.create_tenant(tenant("tenant", "acme")).await.unwrap(), made);
    }
    assert_eq!(revision(&site).await, before);
    assert_eq!(admin.read(&key).await.state(), pb::State::Revoked);
    assert_refused(admin.enable(enabling("another", &key)).await, Code::FailedPrecondition, "STATE_FORBIDS");
}

#[tokio::test]
async fn a_retried_create_key_has_the_same_secret_for_the_holder_of_the_key_pair_alone() {
    for site in [Site::start().await, Site::in_memory().await] {
        let admin = site.admin();
        let (pair, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let first = admin.create(sealed_to(&pair, create("id", "One"))).await.unwrap();
        let again = admin.create(sealed_to(&pair, create("id", "One"))).await.unwrap();
        assert_eq!(first, again);
        assert_eq!(first.secret, "");
        let secret = open(&pair, "id", &again);
        assert_eq!(admin.reason(&secret).await, Reason::Ok);
        assert_eq!(keys(&admin).await, 1);
        assert!(other.open(&seal_info("CreateKey", "id"), &first.sealed_secret).is_none());
        assert!(pair.open(&seal_info("CreateKey", "other"), &first.sealed_secret).is_none());
        // A public key needs no request id, and is none.
        let unnamed = [0, 1].map(|_| admin.create(sealed_to(&pair, create("", "Two"))));
        let [one, two] = join_all(unnamed).await.try_into().unwrap();
        let (one, two): (pb::CreateKeyResponse, pb::CreateKeyResponse) = (one.unwrap(), two.unwrap());
        assert_ne!(open(&pair, "", &one), open(&pair, "", &two));
        let tried = pb::CreateKeyRequest { validate_only: true, ..sealed_to(&pair, create("id", "One")) };
        let tried = admin.create(tried).await.unwrap();
        assert!(tried.secret.is_empty() && tried.sealed_secret.is_empty());
    }
}

#[tokio::test]
async fn a_retried_rotation_has_the_same_secret_and_makes_no_other() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let pair = KeyPair::generate().unwrap();
    let issued = admin.issue("One", &["a"]).await;
    let rotation = |id: &str| pb::RotateKeyRequest {
        request_id: id.into(),
        reply_public_key: pair.public.as_bytes().to_vec(),
        ..rotate(&issued.key, 60_000)
    };
    let rotated = admin.rotate(rotation("rotate")).await.unwrap();
    let finish = pb::FinishRotationRequest { key_id: issued.key.key_id.clone(), ..Default::default() };
    let finish = pb::FinishRotationRequest { request_id: "finish".into(), ..finish };
    let finished = admin.finish(finish.clone()).await.unwrap();
    admin.rotate(rotation("another")).await.unwrap();
    let cancel = pb::CancelRotationRequest { key_id: issued.key.key_id.clone(), ..Default::default() };
    let cancel = pb::CancelRotationRequest { request_id: "cancel".into(), ..cancel };
    let cancelled = admin.cancel(cancel.clone()).await.unwrap();
    let before = revision(&site).await;
    for _ in 0..2 {
        let admin = site.admin();
        assert_eq!(admin.rotate(rotation("rotate")).await.unwrap(), rotated);
        assert_eq!(admin.finish(finish.clone()).await.unwrap(), finished);
        assert_eq!(admin.cancel(cancel.clone()).await.unwrap(), cancelled);
        site.restart().await;
    }
    assert_eq!(revision(&site).await, before);
    let opened = pair.open(&seal_info("RotateKey", "rotate"), &rotated.sealed_secret).unwrap();
    assert_eq!(site.admin().reason(std::str::from_utf8(&opened).unwrap()).await, Reason::Ok);
    assert!(pair.open(&seal_info("CreateKey", "rotate"), &rotated.sealed_secret).is_none());
    // Without a public key the secret is lost, and the key is named.
    let plain = pb::RotateKeyRequest { request_id: "plain".into(), ..rotate(&issued.key, 60_000) };
    site.admin().rotate(plain.clone()).await.unwrap();
    let refused = site.admin().rotate(plain).await;
    let refused = assert_refused(refused, Code::FailedPrecondition, "SECRET_NOT_KEPT");
    assert_eq!(refused.get_details_error_info().unwrap().metadata["key_id"], issued.key.key_id);
}

#[tokio::test]
async fn without_a_public_key_a_retry_names_the_key_whose_secret_is_lost() {
    let site = Site::start().await;
    let admin = site.admin();
    let first = admin.create(create("id", "One")).await.unwrap();
    let key = first.key.unwrap();
    let refused = assert_refused(admin.create(create("id", "One")).await, Code::FailedPrecondition, "SECRET_NOT_KEPT");
    let told = refused.get_details_error_info().unwrap().metadata;
    assert_eq!((&*told["tenant"], &*told["key_id"]), ("default", &*key.key_id));
    assert!(refused.message().contains("rotate"), "{}", refused.message());
    assert_eq!(admin.reason(&first.secret).await, Reason::Ok);
    assert_eq!(keys(&admin).await, 1);
}

#[tokio::test]
async fn an_id_is_good_for_one_request_of_its_caller() {
    let site = Site::start().await;
    let admin = site.admin();
    let pair = KeyPair::generate().unwrap();
    let key = admin.create(sealed_to(&pair, create("id", "One"))).await.unwrap().key.unwrap();
    let before = revision(&site).await;
    let other_pair = KeyPair::generate().unwrap();
    for other in [
        create("id", "One"),
        sealed_to(&pair, create("id", "Two")),
        sealed_to(&other_pair, create("id", "One")),
        sealed_to(&pair, pb::CreateKeyRequest { key_id: "chosen".into(), ..create("id", "One") }),
    ] {
        assert_refused(admin.create(other).await, Code::Aborted, "REQUEST_ID_REUSED");
    }
    assert_refused(admin.disable(disabling("id", &key)).await, Code::Aborted, "REQUEST_ID_REUSED");
    assert_refused(admin.create_tenant(tenant("id", "acme")).await, Code::Aborted, "REQUEST_ID_REUSED");
    assert_eq!(revision(&site).await, before);
    // Calls with the same message are two calls.
    admin.disable(disabling("state", &key)).await.unwrap();
    let pb::DisableKeyRequest { key_id, tenant, reason, .. } = disabling("state", &key);
    let revoking = pb::RevokeKeyRequest { key_id, tenant, reason, request_id: "state".into(), ..Default::default() };
    assert_refused(admin.revoke(revoking).await, Code::Aborted, "REQUEST_ID_REUSED");
    // To another caller it is another id.
    let issuer = site.with_roles(&["keyward.issuer"]).await;
    let other = issuer.create(create("id", "Two")).await.unwrap().key.unwrap();
    assert_ne!(other.key_id, key.key_id);
}

#[tokio::test]
async fn a_request_is_known_for_ten_minutes_to_the_millisecond_also_over_a_restart() {
    let mut site = Site::start().await;
    let pair = KeyPair::generate().unwrap();
    let request = |id: &str| sealed_to(&pair, create(id, "One"));
    let first = site.admin().create(request("id")).await.unwrap();
    site.clock.advance_ms(TEN_MINUTES_MS - 2);
    // A later change: a start goes back from there.
    let later = site.admin().create(request("later")).await.unwrap();
    site.restart().await;
    assert_eq!(site.admin().create(request("id")).await.unwrap(), first);
    site.clock.advance_ms(1);
    assert_eq!(site.admin().create(request("id")).await.unwrap(), first);
    site.restart().await;
    assert_eq!(site.admin().create(request("id")).await.unwrap(), first);
    site.clock.advance_ms(1);
    let anew = site.admin().create(request("id")).await.unwrap();
    assert_ne!(anew.key.as_ref().unwrap().key_id, first.key.as_ref().unwrap().key_id);
    assert_eq!(site.admin().create(request("later")).await.unwrap(), later);
    // And with the log's last change on its far side.
    site.restart().await;
    assert_eq!(site.admin().create(request("id")).await.unwrap(), anew);
    assert_eq!(keys(&site.admin()).await, 3);
}

#[tokio::test]
async fn a_clock_that_was_set_back_makes_nothing_known_again() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let first = admin.create(create("id", "One")).await.unwrap();
    site.clock.advance_ms(TEN_MINUTES_MS);
    admin.issue("Another", &["a"]).await;
    site.clock.advance_ms(-TEN_MINUTES_MS);
    let second = admin.create(create("id", "One")).await.unwrap();
    assert_ne!(second.key.unwrap().key_id, first.key.unwrap().key_id);
    site.restart().await;
    assert_refused(site.admin().create(create("id", "One")).await, Code::FailedPrecondition, "SECRET_NOT_KEPT");
}

#[tokio::test]
async fn of_many_at_the_same_moment_one_is_made_and_all_are_answered_alike() {
    for site in [Site::start().await, Site::in_memory().await] {
        let admin = site.admin();
        let pair = KeyPair::generate().unwrap();
        for round in 0..20 {
            let id = format!("id-{round}");
            let before = revision(&site).await;
            let calls = (0..16).map(|_| admin.create(sealed_to(&pair, create(&id, "One"))));
            let made: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
            assert!(made.iter().all(|reply| *reply == made[0]), "{made:?}");
            assert_eq!(revision(&site).await, before + 1);
            let key = made[0].key.as_ref().unwrap();
            // With a condition that holds for the first of them alone.
            let rename = pb::UpdateKeyRequest { etag: key.etag.clone(), ..renaming(&format!("r{id}"), key, "Two") };
            let renamed = join_all((0..16).map(|_| admin.update(rename.clone()))).await;
            let renamed: Vec<_> = renamed.into_iter().map(Result::unwrap).collect();
            assert!(renamed.iter().all(|reply| *reply == renamed[0]), "{renamed:?}");
            assert_eq!(revision(&site).await, before + 2);
            let etag = renamed[0].key.as_ref().unwrap().etag.clone();
            let disable = pb::DisableKeyRequest { etag, ..disabling(&format!("d{id}"), key) };
            let disabled = join_all((0..16).map(|_| admin.disable(disable.clone()))).await;
            let disabled: Vec<_> = disabled.into_iter().map(Result::unwrap).collect();
            assert!(disabled.iter().all(|reply| *reply == disabled[0]), "{disabled:?}");
            assert_eq!(revision(&site).await, before + 3);
            // Two requests of one id: one of them is made.
            let named = ["Three", "Four"].map(|name| admin.update(renaming(&format!("n{id}"), key, name)));
            let named = join_all(named).await;
            let refused: Vec<_> = named.iter().filter_map(|reply| reply.as_ref().err()).map(error_reason).collect();
            assert_eq!(refused, ["REQUEST_ID_REUSED"]);
        }
    }
}

#[tokio::test]
async fn what_was_refused_or_changed_nothing_is_decided_anew() {
    let site = Site::start().await;
    let admin = site.admin();
    let missing = pb::Key { key_id: "later".into(), tenant: "default".into(), ..Default::default() };
    assert_refused(admin.disable(disabling("id", &missing)).await, Code::NotFound, "KEY_NOT_FOUND");
    let named = pb::CreateKeyRequest { key_id: "later".into(), ..new_key("Later", &["a"]) };
    let key = admin.issued(named.clone()).await.key;
    let disabled = admin.disable(disabling("id", &key)).await.unwrap();
    assert_eq!(admin.disable(disabling("id", &key)).await.unwrap(), disabled);
    // To disable what is disabled is no change, and its id is free.
    let before = revision(&site).await;
    assert_eq!(admin.disable(disabling("unchanged", &key)).await.unwrap(), disabled);
    assert_eq!(revision(&site).await, before);
    admin.enable(enabling("unchanged", &key)).await.unwrap();
    // So is that of what was only tried, which asks for nothing that was made either.
    let tried = pb::DisableKeyRequest { validate_only: true, ..disabling("tried", &key) };
    admin.disable(tried).await.unwrap();
    assert_eq!(admin.read(&key).await.state(), pb::State::Active);
    assert_ne!(admin.disable(disabling("tried", &key)).await.unwrap().revision, disabled.revision);
    let taken = pb::CreateKeyRequest { request_id: "taken".into(), ..named };
    for _ in 0..2 {
        assert_refused(admin.create(taken.clone()).await, Code::AlreadyExists, "KEY_EXISTS");
    }
}

#[tokio::test]
async fn a_caller_who_may_no_longer_make_the_change_is_not_told_of_it() {
    let site = Site::start().await;
    let admin = site.admin();
    let of_system = |roles: &[&str]| pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", roles) };
    let issued = admin.issued(of_system(&["keyward.issuer", "keyward.operator"])).await;
    let caller = site.caller(&issued.secret);
    let pair = KeyPair::generate().unwrap();
    let first = caller.create(sealed_to(&pair, create("id", "One"))).await.unwrap();
    let rescope = |roles: &[&str]| update(&pb::Key { scopes: strings(roles), ..issued.key.clone() }, &["scopes"]);
    admin.update(rescope(&["keyward.operator"])).await.unwrap();
    let again = || caller.create(sealed_to(&pair, create("id", "One")));
    assert_refused(again().await, Code::PermissionDenied, "ROLE_MISSING");
    // The tenant that a request does not name is another one for another role.
    admin.create_tenant(tenant("", "acme")).await.unwrap();
    admin.update(rescope(&["keyward.issuer@acme"])).await.unwrap();
    assert_refused(again().await, Code::Aborted, "REQUEST_ID_REUSED");
    admin.update(rescope(&["keyward.issuer"])).await.unwrap();
    assert_eq!(again().await.unwrap(), first);
    admin.disable_key(&issued.key).await;
    assert_refused(again().await, Code::Unauthenticated, "CREDENTIAL_REFUSED");
    admin.enable_key(&issued.key).await;
    assert_eq!(again().await.unwrap(), first);
}

#[tokio::test]
async fn ids_and_public_keys_outside_their_rules_are_refused_before_anything_is_made() {
    let site = Site::start().await;
    let admin = site.admin();
    let secret = admin.issue("Key", &["a"]).await.secret;
    let before = revision(&site).await;
    for id in [&*"x".repeat(65), "a b", "a\u{7f}", "ü", "a\n", &secret] {
        let refused = admin.create(create(id, "One")).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["request_id"], "{id}");
        assert!(!refused.message().contains(&secret));
    }
    let low_order = [&[1][..], &[0; 31]].concat();
    for key in [vec![0; 32], low_order, vec![9; 31], vec![9; 33]] {
        let request = pb::CreateKeyRequest { reply_public_key: key, ..create("id", "One") };
        let tried = pb::CreateKeyRequest { validate_only: true, ..request.clone() };
        for request in [request, tried] {
            assert_eq!(bad_fields(&admin.create(request).await.unwrap_err()), ["reply_public_key"]);
        }
    }
    assert_eq!(revision(&site).await, before);
    for id in ["!", &"~".repeat(64), "7f0c2a55-5a0e-4c7e-9f0e-6b1c3f8d2a10"] {
        admin.create(create(id, "One")).await.unwrap();
    }
}

#[tokio::test]
async fn a_sealed_secret_is_in_a_file_of_ten_minutes_and_in_no_other() {
    let mut site = Site::start().await;
    let pair = KeyPair::generate().unwrap();
    let first = site.admin().create(sealed_to(&pair, create("id", "One"))).await.unwrap();
    let secret = open(&pair, "id", &first);
    let holds = |path: &Path, text: &[u8]| fs::read(path).unwrap().windows(text.len()).any(|part| part == text);
    let found = replies(site.dir.path());
    assert_eq!(found.len(), 1);
    assert!(holds(&found[0], &first.sealed_secret) && !holds(&found[0], secret.as_bytes()));
    let segment = site.dir.path().join("journal/000000000001.kwj");
    assert!(!holds(&segment, &first.sealed_secret) && !holds(&segment, secret.as_bytes()));
    assert!(holds(&segment, blake3::hash(&first.sealed_secret).as_bytes()));
    // Of a change without an id nothing is kept.
    site.admin().create(sealed_to(&pair, create("", "Two"))).await.unwrap();
    assert_eq!(fs::metadata(&found[0]).unwrap().len(), 16 + 36 + first.sealed_secret.len() as u64);

    site.clock.advance_ms(TEN_MINUTES_MS - 1);
    site.restart().await;
    assert_eq!(site.admin().create(sealed_to(&pair, create("id", "One"))).await.unwrap(), first);
    site.clock.advance_ms(1);
    site.restart().await;
    let dir = site.dir.path().to_owned();
    let gone = tokio::task::spawn_blocking(move || wait_until("the file has gone", || replies(&dir).is_empty()));
    gone.await.unwrap();
}

#[tokio::test]
async fn a_sealed_reply_that_was_altered_or_removed_is_not_told() {
    let mut site = Site::start().await;
    let pair = KeyPair::generate().unwrap();
    let request = || sealed_to(&pair, create("id", "One"));
    let first = site.admin().create(request()).await.unwrap();
    let path = replies(site.dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let mut altered = whole.clone();
    *altered.last_mut().unwrap() ^= 1;
    for (bytes, restart) in [(Some(&altered), false), (Some(&altered), true), (None, false), (None, true)] {
        fs::write(&path, &whole).unwrap();
        site.restart().await;
        assert_eq!(site.admin().create(request()).await.unwrap(), first);
        match bytes {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        if restart {
            site.restart().await;
        }
        assert_refused(site.admin().create(request()).await, Code::FailedPrecondition, "SECRET_NOT_KEPT");
    }
    assert_eq!(keys(&site.admin()).await, 1);
}

#[tokio::test]
async fn where_a_sealed_reply_cannot_be_kept_nothing_is_made() {
    let site = Site::start().await;
    let admin = site.admin();
    let pair = KeyPair::generate().unwrap();
    let request = || sealed_to(&pair, create("id", "One"));
    let there = site.dir.path().join("replies");
    fs::write(&there, "no directory").unwrap();
    let before = revision(&site).await;
    for _ in 0..2 {
        assert_refused(admin.create(request()).await, Code::ResourceExhausted, "DISK_FULL");
    }
    assert_eq!((revision(&site).await, keys(&admin).await), (before, 0));
    admin.issue("Another", &["a"]).await;
    fs::remove_file(&there).unwrap();
    // It is not tried again at once.
    let first = loop {
        match admin.create(request()).await {
            Ok(first) => break first,
            refused => drop(assert_refused(refused, Code::ResourceExhausted, "DISK_FULL")),
        }
    };
    assert_eq!(admin.create(request()).await.unwrap(), first);
    assert_eq!(admin.reason(&open(&pair, "id", &first)).await, Reason::Ok);
}

#[tokio::test]
async fn requests_are_known_from_every_segment_of_the_last_ten_minutes() {
    let mut site = Site::start_small().await;
    let pair = KeyPair::generate().unwrap();
    let request = |number: u32| sealed_to(&pair, create(&format!("id-{number}"), "One"));
    let mut made = vec![];
    for number in 0..300 {
        made.push(site.admin().create(request(number)).await.unwrap());
        site.clock.advance_ms(1_900);
    }
    let segments = fs::read_dir(site.dir.path().join("journal")).unwrap().count();
    assert!(segments > 2, "{segments}");
    site.restart().await;
    // The last change is 1.9 s ago.
    for (number, first) in made.iter().enumerate() {
        assert_eq!(site.admin().create(request(u32::try_from(number).unwrap())).await.unwrap(), *first);
    }
    assert_eq!(keys(&site.admin()).await, 300);
}
