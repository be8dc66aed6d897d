//! Tenants.

use keyward::grpc::pb;
use tonic::Code;

use crate::support::harness::{Site, bad_fields, error_reason, new_key};

#[tokio::test]
async fn two_tenants_exist_from_the_first_start() {
    let site = Site::start().await;
    let tenants = site.admin().list_tenants(pb::ListTenantsRequest::default()).await.unwrap().tenants;
    assert_eq!(tenants.iter().map(|t| &*t.tenant).collect::<Vec<_>>(), ["default", "system"]);
}

#[tokio::test]
async fn a_tenants_secrets_begin_with_its_prefix() {
    let mut site = Site::start().await;
    let request = pb::CreateTenantRequest {
        tenant: "acme".into(),
        display_name: "Acme Inc.".into(),
        secret_prefix: "acme".into(),
        ..Default::default()
    };
    let created = site.admin().create_tenant(request.clone()).await.unwrap().tenant.unwrap();
    let issued = site.admin().issued(pb::CreateKeyRequest { tenant: "acme".into(), ..new_key("Zapier", &[]) }).await;
    assert!(issued.secret.starts_with("acme_live_"));

    let refused = site.admin().create_tenant(request).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::AlreadyExists, "TENANT_EXISTS"));
    site.restart().await;
    let read = site.admin().get_tenant(pb::GetTenantRequest { tenant: "acme".into() }).await.unwrap().tenant.unwrap();
    assert_eq!(read, created);
    assert_eq!(read.display_name, "Acme Inc.");
}

#[tokio::test]
async fn the_same_key_id_may_stand_in_two_tenants() {
    let site = Site::start().await;
    let admin = site.admin();
    admin.create_tenant(pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() }).await.unwrap();
    let in_tenant = |tenant: &str| pb::CreateKeyRequest {
        tenant: tenant.into(),
        key_id: "zapier".into(),
        ..new_key("Zapier", &[])
    };
    let (one, two) = (admin.issued(in_tenant("default")).await, admin.issued(in_tenant("acme")).await);
    admin.disable_key(&one.key).await;
    assert_eq!(admin.reason(&one.secret).await, pb::Reason::Disabled);
    assert_eq!(admin.reason(&two.secret).await, pb::Reason::Ok);
}

#[tokio::test]
async fn tenants_come_in_pages() {
    let site = Site::start().await;
    for number in 0..5 {
        let request = pb::CreateTenantRequest { tenant: format!("t{number}"), ..Default::default() };
        site.admin().create_tenant(request).await.unwrap();
    }
    let mut seen = vec![];
    let mut request = pb::ListTenantsRequest { page_size: 2, ..Default::default() };
    loop {
        let page = site.admin().list_tenants(request.clone()).await.unwrap();
        seen.extend(page.tenants.into_iter().map(|t| t.tenant));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["default", "system", "t0", "t1", "t2", "t3", "t4"]);
}

/// A page token can be read; it must not tell of tenants that its holder may not see.
#[tokio::test]
async fn pages_tell_nothing_of_hidden_tenants() {
    let site = Site::start().await;
    for tenant in ["acme", "globex", "initech", "zeta"] {
        let request = pb::CreateTenantRequest { tenant: tenant.into(), ..Default::default() };
        site.admin().create_tenant(request).await.unwrap();
    }
    let caller = site.with_roles(&["keyward.viewer@acme", "keyward.issuer@zeta", "keyward.verifier"]).await;
    let mut seen = vec![];
    let mut request = pb::ListTenantsRequest { page_size: 1, ..Default::default() };
    loop {
        let page = caller.list_tenants(request.clone()).await.unwrap();
        seen.extend(page.tenants.into_iter().map(|t| t.tenant));
        if page.next_page_token.is_empty() {
            break;
        }
        let token = data_encoding::BASE64URL_NOPAD.decode(page.next_page_token.as_bytes()).unwrap();
        let sealed = &token[..token.len() - 32];
        assert_eq!(sealed, b"\x02\x01\0\0acme", "the token has what was seen last, and no other name");
        request.page_token = page.next_page_token;
    }
    assert_eq!(seen, ["acme", "zeta"]);
}

#[tokio::test]
async fn a_bad_tenant_is_refused_by_field_and_nothing_is_made() {
    let site = Site::start().await;
    let cases = [
        ("tenant", pb::CreateTenantRequest { tenant: "Bad!".into(), ..Default::default() }),
        ("tenant", pb::CreateTenantRequest::default()),
        (
            "secret_prefix",
            pb::CreateTenantRequest { tenant: "ok".into(), secret_prefix: "a_b".into(), ..Default::default() },
        ),
        (
            "display_name",
            pb::CreateTenantRequest { tenant: "ok".into(), display_name: "x".repeat(129), ..Default::default() },
        ),
    ];
    for (field, request) in cases {
        assert_eq!(bad_fields(&site.admin().create_tenant(request).await.unwrap_err()), [field]);
    }
    let dry = pb::CreateTenantRequest { tenant: "dry".into(), validate_only: true, ..Default::default() };
    site.admin().create_tenant(dry).await.unwrap();
    let tenants = site.admin().list_tenants(pb::ListTenantsRequest::default()).await.unwrap().tenants;
    assert_eq!(tenants.len(), 2);
}
