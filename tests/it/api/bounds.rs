//! The limits of tenants, and of the owners and scopes that a tenant has in use.

use std::collections::BTreeSet;

use keyward::app::Engine;
use keyward::config::Settings;
use keyward::grpc::pb::{self, Reason};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::harness::{Handle, Site, error_reason, new_key, strings, update};

const ENGINES: [Engine; 2] = [Engine::Memory, Engine::Sled];

fn three_owners(settings: &mut Settings) {
    settings.owners_per_tenant_max = 3;
}

fn four_scopes(settings: &mut Settings) {
    settings.scopes_per_tenant_max = 4;
}

fn owned(owner: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { owner: owner.into(), ..new_key("Key", &[]) }
}

/// The reason of a refusal and the field that it names.
fn refusal<T: std::fmt::Debug>(refused: Result<T, Status>) -> (String, String) {
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields.len(), 1);
    assert!(refused.message().starts_with(&fields[0].field), "{refused:?}");
    (error_reason(&refused), fields[0].field.clone())
}

fn is(reason: &str, field: &str) -> (String, String) {
    (reason.to_owned(), field.to_owned())
}

async fn keys(caller: &Handle) -> usize {
    caller.list(pb::ListKeysRequest { page_size: 1_000, ..Default::default() }).await.unwrap().keys.len()
}

#[tokio::test]
async fn an_owner_more_than_a_tenant_may_have_is_refused_by_name() {
    for engine in ENGINES {
        let site = Site::changed(engine, "off", three_owners).await;
        let admin = site.admin();
        for owner in ["a", "b", "c"] {
            admin.create(owned(owner)).await.unwrap();
        }
        let refused = admin.create(owned("d")).await;
        assert_eq!(refusal(refused), is("TOO_MANY_OWNERS", "owner"));
        let asked = pb::CreateKeyRequest { validate_only: true, ..owned("d") };
        assert_eq!(refusal(admin.create(asked).await), is("TOO_MANY_OWNERS", "owner"));
        assert_eq!(keys(&admin).await, 3, "nothing was written");

        // What adds no name goes on: one that is in use, no owner at all, the names of another tenant.
        let key = admin.issued(owned("a")).await.key;
        admin.create(owned("")).await.unwrap();
        admin.create_tenant(pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() }).await.unwrap();
        admin.create(pb::CreateKeyRequest { tenant: "acme".into(), ..owned("d") }).await.unwrap();
        let moved = pb::Key { owner: "d".into(), ..key.clone() };
        assert_eq!(refusal(admin.update(update(&moved, &["owner"])).await), is("TOO_MANY_OWNERS", "key.owner"));
        let asked = pb::UpdateKeyRequest { validate_only: true, ..update(&moved, &["owner"]) };
        assert_eq!(refusal(admin.update(asked).await), is("TOO_MANY_OWNERS", "key.owner"));
        let relabelled = pb::Key { display_name: "Other".into(), ..key.clone() };
        admin.update(update(&relabelled, &["display_name"])).await.unwrap();
        admin.disable_key(&key).await;

        // A name that nothing uses any more makes room for another.
        let c = admin.list(pb::ListKeysRequest {
            selector: Some(pb::KeySelector { owner: "c".into(), ..Default::default() }),
            ..Default::default()
        });
        let c = c.await.unwrap().keys.remove(0);
        admin.update(update(&pb::Key { owner: "a".into(), ..c }, &["owner"])).await.unwrap();
        admin.create(owned("d")).await.unwrap();
        assert_eq!(refusal(admin.create(owned("c")).await), is("TOO_MANY_OWNERS", "owner"));
    }
}

#[tokio::test]
async fn a_scope_more_than_a_tenant_may_have_is_refused_by_its_place() {
    for engine in ENGINES {
        let site = Site::changed(engine, "off", four_scopes).await;
        let admin = site.admin();
        let first = admin.issue("First", &["a", "b"]).await;
        admin.issue("Second", &["c", "d"]).await;
        let refused = admin.create(new_key("Third", &["a", "e", "f"])).await;
        assert_eq!(refusal(refused), is("TOO_MANY_SCOPES", "scopes[1]"));
        admin.issue("Third", &["a", "d"]).await;
        let wider = pb::Key { scopes: strings(&["a", "b", "c", "e"]), ..first.key.clone() };
        assert_eq!(refusal(admin.update(update(&wider, &["scopes"])).await), is("TOO_MANY_SCOPES", "key.scopes[3]"));
        // Fewer of them are no more names.
        let narrower = pb::Key { scopes: strings(&["a"]), ..first.key.clone() };
        admin.update(update(&narrower, &["scopes"])).await.unwrap();
        // Which makes room for one: nothing else has `b`.
        admin.issue("Fourth", &["e"]).await;
        admin.disable_key(&first.key).await;
        admin.revoke_key(&first.key).await;
        assert_eq!(admin.reason(&first.secret).await, Reason::Revoked);
    }
}

#[tokio::test]
async fn a_tenant_more_than_there_may_be_is_refused() {
    for engine in ENGINES {
        let site = Site::changed(engine, "off", |settings| settings.tenants_max = 3).await;
        let admin = site.admin();
        let tenant = |id: &str| pb::CreateTenantRequest { tenant: id.into(), ..Default::default() };
        admin.create_tenant(tenant("acme")).await.unwrap();
        assert_eq!(refusal(admin.create_tenant(tenant("other")).await), is("TOO_MANY_TENANTS", "tenant"));
        let asked = pb::CreateTenantRequest { validate_only: true, ..tenant("other") };
        assert_eq!(refusal(admin.create_tenant(asked).await), is("TOO_MANY_TENANTS", "tenant"));
        let again = admin.create_tenant(tenant("acme")).await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        admin.create(pb::CreateKeyRequest { tenant: "acme".into(), ..owned("a") }).await.unwrap();
    }
}

/// Hundreds at a time, each with a name of its own: as many are made as there is room for, and not one more
/// or fewer.
#[tokio::test(flavor = "multi_thread")]
async fn changes_under_way_together_do_not_exceed_a_bound() {
    for engine in ENGINES {
        let site = Site::changed(engine, "off", |settings| settings.owners_per_tenant_max = 20).await;
        for round in 1..=2 {
            let mut creating = tokio::task::JoinSet::new();
            for number in 0..200 {
                let admin = site.admin();
                // In the second round there are ten that are in use, too.
                let owner = format!("owner-{}", if round == 2 && number % 2 == 0 { number % 10 } else { number });
                creating.spawn(async move { admin.create(owned(&owner)).await.map(|made| made.key.unwrap().owner) });
            }
            let made: Vec<_> = creating.join_all().await.into_iter().flatten().collect();
            let admin = site.admin();
            let all = admin.list(pb::ListKeysRequest { page_size: 1_000, ..Default::default() }).await.unwrap().keys;
            let owners: BTreeSet<_> = all.iter().map(|key| &*key.owner).collect();
            assert_eq!(owners.len(), 20, "round {round}");
            if round == 1 {
                assert_eq!(made.len(), 20);
                // Half of the names go.
                for key in all.iter().skip(10) {
                    let moved = pb::Key { owner: all[0].owner.clone(), ..key.clone() };
                    admin.update(update(&moved, &["owner"])).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn what_is_past_a_bound_already_stays_and_takes_no_further_names() {
    let mut site = Site::changed(Engine::Sled, "off", |_| {}).await;
    let mut issued = vec![];
    for owner in ["a", "b", "c", "d", "e"] {
        let request = pb::CreateKeyRequest { scopes: strings(&[owner, "x", "y"]), ..owned(owner) };
        issued.push(site.admin().issued(request).await);
    }
    site.change = |settings| {
        three_owners(settings);
        four_scopes(settings);
        settings.tenants_max = 1;
    };
    site.restart().await;
    let admin = site.admin();
    for issued in &issued {
        assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    }
    admin.create(pb::CreateKeyRequest { scopes: strings(&["y", "a"]), ..owned("e") }).await.unwrap();
    assert_eq!(refusal(admin.create(owned("f")).await), is("TOO_MANY_OWNERS", "owner"));
    assert_eq!(refusal(admin.create(new_key("Key", &["z"])).await), is("TOO_MANY_SCOPES", "scopes[0]"));
    let acme = pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() };
    assert_eq!(refusal(admin.create_tenant(acme).await), is("TOO_MANY_TENANTS", "tenant"));
    let other = pb::Key { owner: "a".into(), scopes: strings(&["x"]), ..issued[4].key.clone() };
    admin.update(update(&other, &["owner", "scopes"])).await.unwrap();
    admin.disable_key(&issued[3].key).await;
    assert_eq!(admin.reason(&issued[3].secret).await, Reason::Disabled);
}
