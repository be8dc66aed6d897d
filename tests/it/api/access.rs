//! Credentials of callers, and what callers may see, and do to themselves. Who may make which call is in
//! `authorization`.

use keyward::grpc::pb::{self, Reason};
use tonic::Code;

use crate::support::harness::{Site, disable, error_reason, new_key, strings, update};

#[tokio::test]
async fn a_call_without_a_working_credential_is_refused() {
    let site = Site::start().await;
    let refused = site.nobody().list(pb::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_MISSING"));

    // A key of another tenant is no credential, whatever its scopes are called.
    let ordinary = site.admin().issue("Ordinary", &["admin"]).await;
    for bad in ["garbage", &ordinary.secret] {
        let refused = site.caller(bad).list(pb::ListKeysRequest::default()).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
        assert!(!refused.message().contains(bad), "a refusal never repeats the credential");
    }
}

#[tokio::test]
async fn a_disabled_caller_is_refused_at_once() {
    let site = Site::start().await;
    let admin = site.admin();
    let caller = admin.issued(system_key(&["keyward.viewer"])).await;
    let handle = site.caller(&caller.secret);
    handle.list(pb::ListKeysRequest::default()).await.unwrap();
    admin.disable_key(&caller.key).await;
    assert_eq!(handle.list(pb::ListKeysRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    admin.enable_key(&caller.key).await;
    handle.list(pb::ListKeysRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_callers_key_is_held_to_its_own_networks_and_audiences() {
    let site = Site::start().await;
    let admin = site.admin();
    let elsewhere =
        pb::CreateKeyRequest { allowed_cidrs: strings(&["192.0.2.0/24"]), ..system_key(&["keyward.viewer"]) };
    let here = pb::CreateKeyRequest { allowed_cidrs: strings(&["127.0.0.0/8"]), ..system_key(&["keyward.viewer"]) };
    let other = pb::CreateKeyRequest { audiences: strings(&["billing"]), ..system_key(&["keyward.viewer"]) };
    let ours = pb::CreateKeyRequest { audiences: strings(&["keyward"]), ..system_key(&["keyward.viewer"]) };
    for (request, works) in [(elsewhere, false), (here, true), (other, false), (ours, true)] {
        let caller = site.caller(&admin.issued(request.clone()).await.secret);
        assert_eq!(caller.list(pb::ListKeysRequest::default()).await.is_ok(), works, "{request:?}");
    }
}

#[tokio::test]
async fn what_may_not_be_seen_answers_like_what_is_not_there() {
    let site = Site::start().await;
    let admin = site.admin();
    for tenant in ["acme", "globex"] {
        admin.create_tenant(pb::CreateTenantRequest { tenant: tenant.into(), ..Default::default() }).await.unwrap();
    }
    let theirs = admin.issued(pb::CreateKeyRequest { tenant: "globex".into(), ..new_key("Theirs", &[]) }).await;
    let ours = site.with_roles(&["keyward.issuer@acme", "keyward.operator@acme", "keyward.verifier@acme"]).await;

    let hidden = ours.get(get(&theirs.key)).await.unwrap_err();
    let nowhere = pb::GetKeyRequest { tenant: "nowhere".into(), ..get(&theirs.key) };
    let missing = ours.get(nowhere).await.unwrap_err();
    let absent = ours.get(pb::GetKeyRequest { key_id: "absent".into(), tenant: "acme".into() }).await.unwrap_err();
    for refused in [&hidden, &missing, &absent] {
        assert_eq!((refused.code(), &*error_reason(refused)), (Code::NotFound, "KEY_NOT_FOUND"));
        assert_eq!(refused.message(), hidden.message());
    }
    assert_eq!(ours.disable(disable(&theirs.key)).await.unwrap_err().code(), Code::NotFound);
    for tenant in ["globex", "nowhere"] {
        let request = pb::CreateKeyRequest { tenant: tenant.into(), ..new_key("New", &[]) };
        assert_eq!(error_reason(&ours.create(request).await.unwrap_err()), "TENANT_NOT_FOUND");
        let request = pb::GetTenantRequest { tenant: tenant.into() };
        assert_eq!(error_reason(&ours.get_tenant(request).await.unwrap_err()), "TENANT_NOT_FOUND");
    }
    assert_eq!(ours.reason(&theirs.secret).await, Reason::Unknown);

    // Their only tenant is the one they mean when they name none.
    let own = ours.issue("Own", &[]).await;
    assert_eq!(own.key.tenant, "acme");
    assert_eq!(ours.reason(&own.secret).await, Reason::Ok);
    let visible = ours.list_tenants(pb::ListTenantsRequest::default()).await.unwrap().tenants;
    assert_eq!(visible.iter().map(|t| &*t.tenant).collect::<Vec<_>>(), ["acme"]);
}

#[tokio::test]
async fn a_key_cannot_take_away_its_own_power() {
    let site = Site::start().await;
    let admin = site.admin();
    let request = pb::ListKeysRequest {
        selector: Some(pb::KeySelector { tenant: "system".into(), ..Default::default() }),
        ..Default::default()
    };
    let own = admin.list(request).await.unwrap().keys.remove(0);
    let refused = admin.disable(disable(&own)).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "OWN_KEY"));
    let powerless = pb::Key { scopes: strings(&["keyward.viewer"]), ..own.clone() };
    assert_eq!(error_reason(&admin.update(update(&powerless, &["scopes"])).await.unwrap_err()), "OWN_KEY");
    let relabelled = pb::Key { display_name: "Mine".into(), ..own.clone() };
    admin.update(update(&relabelled, &["display_name"])).await.unwrap();

    // Another administrator may.
    let second = site.with_roles(&["keyward.admin"]).await;
    second.disable_key(&own).await;
    assert_eq!(admin.list(pb::ListKeysRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_change_notes_who_made_it() {
    let site = Site::start().await;
    let issuer = site.admin().issued(system_key(&["keyward.issuer"])).await;
    let operator = site.admin().issued(system_key(&["keyward.operator"])).await;
    let issued = site.caller(&issuer.secret).issue("Zapier", &[]).await;
    assert_eq!(issued.key.created_by, issuer.key.key_id);
    let request = pb::DisableKeyRequest { reason: "unpaid".into(), ..disable(&issued.key) };
    let disabled = site.caller(&operator.secret).disable(request).await.unwrap().key.unwrap();
    assert_eq!((disabled.created_by, disabled.updated_by), (issuer.key.key_id, operator.key.key_id));
    assert_eq!(disabled.state_reason, "unpaid");
}

#[tokio::test]
async fn several_authorization_headers_are_as_good_as_none() {
    let site = Site::start().await;
    let mut client = pb::key_admin_client::KeyAdminClient::new(site.channel());
    let mut request = tonic::Request::new(pb::ListKeysRequest::default());
    let bearer: tonic::metadata::MetadataValue<_> = format!("Bearer {}", site.admin_secret()).parse().unwrap();
    request.metadata_mut().append("authorization", bearer.clone());
    client.list_keys(copy(&request)).await.unwrap();
    request.metadata_mut().append("authorization", bearer);
    assert_eq!(client.list_keys(request).await.unwrap_err().code(), Code::Unauthenticated);
}

fn copy(request: &tonic::Request<pb::ListKeysRequest>) -> tonic::Request<pb::ListKeysRequest> {
    let mut copy = tonic::Request::new(request.get_ref().clone());
    *copy.metadata_mut() = request.metadata().clone();
    copy
}

fn system_key(roles: &[&str]) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", roles) }
}

fn get(key: &pb::Key) -> pb::GetKeyRequest {
    pb::GetKeyRequest { key_id: key.key_id.clone(), tenant: key.tenant.clone() }
}
