//! Many verdicts in one call.

use keyward::grpc::pb::batch_verify_result::Result::{Error, Response};
use keyward::grpc::pb::{self, Reason};
use tonic::Code;

use crate::support::harness::{Site, ask, bad_fields, new_key, strings};

fn batch(requests: impl IntoIterator<Item = pb::VerifyRequest>) -> pb::BatchVerifyRequest {
    pb::BatchVerifyRequest { requests: requests.into_iter().collect() }
}

#[tokio::test]
async fn a_batch_is_answered_in_order_as_each_alone_would_be() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let mut requests = vec![];
    for number in 0..7 {
        let issued = admin.issue("Key", &["a"]).await;
        if number % 3 == 0 {
            admin.disable_key(&issued.key).await;
        }
        requests.push(pb::VerifyRequest { all_scopes: strings(&["a"]), ..ask(&issued.secret) });
        requests.push(pb::VerifyRequest { any_scopes: strings(&["b"]), ..ask(&issued.secret) });
        requests.push(ask("garbage"));
        requests.push(ask(site.admin_secret()));
    }
    let mut expected = vec![];
    for request in &requests {
        expected.push(admin.ask(request.clone()).await.unwrap());
    }
    // Whole, and, where one item asks for an explanation, by the other way through the server.
    for explain in [false, true] {
        let mut requests = requests.clone();
        requests[5].explain = explain;
        let results = admin.ask_all(batch(requests)).await.unwrap().results;
        let mut responses = vec![];
        for result in results {
            let Some(Response(response)) = result.result else { panic!("{result:?}") };
            responses.push(pb::VerifyResponse { checks: vec![], ..response });
        }
        assert_eq!(responses, expected, "explain {explain}");
    }
}

#[tokio::test]
async fn an_item_that_makes_no_sense_is_told_so_in_its_place() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &["a"]).await;
    let good = || ask(&issued.secret);
    let bad = [
        pb::VerifyRequest { all_scopes: strings(&["a.*"]), ..good() },
        pb::VerifyRequest { client_ip: "nowhere".into(), ..good() },
        pb::VerifyRequest { min_revision: issued.revision + 1_000, ..good() },
    ];
    let requests = bad.into_iter().flat_map(|bad| [good(), bad, good()]);
    let results = site.admin().ask_all(batch(requests)).await.unwrap().results;
    let told: Vec<_> = results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            Response(response) => format!("{:?}", response.reason()),
            Error(error) => format!("{} {} {}", error.code, error.reason, error.message),
        })
        .collect();
    assert_eq!(told.len(), 9);
    for at in [0, 2, 3, 5, 6, 8] {
        assert_eq!(told[at], "Ok", "{at}");
    }
    assert!(told[1].starts_with("3 BAD_FIELDS all_scopes[0]"), "{}", told[1]);
    assert!(told[4].starts_with("3 BAD_FIELDS client_ip"), "{}", told[4]);
    assert!(told[7].starts_with("9 REVISION_NOT_REACHED"), "{}", told[7]);
}

#[tokio::test]
async fn a_batch_has_1_to_1_000_items() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    for count in [0, 1_001] {
        let refused = site.admin().ask_all(batch(vec![ask(&issued.secret); count])).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["requests"]);
    }
    // Long fields or short, a batch of 1,000 fits.
    for audience in ["", &"a".repeat(128)] {
        let request = pb::VerifyRequest { audience: audience.into(), ..ask(&issued.secret) };
        let results = site.admin().ask_all(batch(vec![request; 1_000])).await.unwrap().results;
        assert_eq!(results.len(), 1_000);
        for result in results {
            let Some(Response(response)) = result.result else { panic!() };
            assert_eq!(response.reason(), Reason::Ok);
        }
    }
}

#[tokio::test]
async fn a_batch_takes_the_role_of_a_verifier_and_stays_within_its_tenants() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let request = || batch([ask(&issued.secret), ask(&issued.secret)]);
    let viewer = site.with_roles(&["keyward.viewer"]).await;
    assert_eq!(viewer.ask_all(request()).await.unwrap_err().code(), Code::PermissionDenied);
    site.admin().create_tenant(pb::CreateTenantRequest { tenant: "acme".into(), ..Default::default() }).await.unwrap();
    let elsewhere = site.with_roles(&["keyward.verifier@acme"]).await;
    for result in elsewhere.ask_all(request()).await.unwrap().results {
        let Some(Response(response)) = result.result else { panic!() };
        assert_eq!((response.reason(), response.key), (Reason::Unknown, None));
    }
    // A batch counts as one call, and each of its items as a verdict.
    let own = new_key("Caller", &["keyward.verifier"]);
    let own = site.admin().issued(pb::CreateKeyRequest { tenant: "system".into(), ..own }).await;
    let caller = site.caller(&own.secret);
    caller.ask_all(request()).await.unwrap();
    site.admin().disable_key(&own.key).await;
    assert_eq!(caller.ask_all(request()).await.unwrap_err().code(), Code::Unauthenticated);
}
