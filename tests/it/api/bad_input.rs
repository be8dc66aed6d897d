//! Bad input is refused with the name of the field, never its value, and changes nothing.

use std::collections::BTreeMap;

use keyward::grpc::pb;
use prost_types::Timestamp;
use tonic::Code;

use crate::support::harness::{Site, after_start, ask, bad_fields, disable, error_reason, new_key, strings, update};

const MARK: &str = "s3cr3t-v4lu3";

#[tokio::test]
async fn every_field_of_a_new_key_is_held_to_its_rule() {
    let site = Site::start().await;
    let base = || new_key("Zapier", &[]);
    let map = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
    let many = |count| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
    let marked = |rest: &str| format!("{MARK}{rest}");
    let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
    let cases: Vec<(&str, pb::CreateKeyRequest)> = vec![
        ("display_name", pb::CreateKeyRequest { display_name: String::new(), ..base() }),
        ("display_name", pb::CreateKeyRequest { display_name: " ".into(), ..base() }),
        ("display_name", pb::CreateKeyRequest { display_name: MARK.repeat(20), ..base() }),
        ("display_name", pb::CreateKeyRequest { display_name: marked("\n"), ..base() }),
        ("description", pb::CreateKeyRequest { description: MARK.repeat(60), ..base() }),
        ("owner", pb::CreateKeyRequest { owner: marked("\0"), ..base() }),
        ("key_id", pb::CreateKeyRequest { key_id: marked("!"), ..base() }),
        ("tenant", pb::CreateKeyRequest { tenant: marked("!"), ..base() }),
        ("environment", pb::CreateKeyRequest { environment: marked("!"), ..base() }),
        ("scopes[1]", pb::CreateKeyRequest { scopes: vec!["ok".into(), marked("..x")], ..base() }),
        ("scopes[0]", pb::CreateKeyRequest { scopes: strings(&["*"]), ..base() }),
        ("scopes", pb::CreateKeyRequest { scopes: many(65), ..base() }),
        ("audiences[0]", pb::CreateKeyRequest { audiences: strings(&[""]), ..base() }),
        ("audiences", pb::CreateKeyRequest { audiences: many(33), ..base() }),
        ("allowed_cidrs[0]", pb::CreateKeyRequest { allowed_cidrs: vec![MARK.into()], ..base() }),
        ("allowed_cidrs[0]", pb::CreateKeyRequest { allowed_cidrs: strings(&["10.0.0.1/8"]), ..base() }),
        ("allowed_cidrs[0]", pb::CreateKeyRequest { allowed_cidrs: strings(&["010.0.0.0/8"]), ..base() }),
        ("allowed_cidrs[0]", pb::CreateKeyRequest { allowed_cidrs: strings(&["10.0.0.0/33"]), ..base() }),
        ("allowed_cidrs[0]", pb::CreateKeyRequest { allowed_cidrs: strings(&["::ffff:10.0.0.0/104"]), ..base() }),
        ("labels", pb::CreateKeyRequest { labels: map(&marked(" "), "x"), ..base() }),
        ("labels", pb::CreateKeyRequest { labels: map("", "x"), ..base() }),
        ("labels", pb::CreateKeyRequest { labels: map("x", &MARK.repeat(20)), ..base() }),
        ("labels", pb::CreateKeyRequest { labels: many(33).into_iter().map(|n| (n, MARK.into())).collect(), ..base() }),
        ("annotations", pb::CreateKeyRequest { annotations: map("x", &marked("\0")), ..base() }),
        ("annotations", pb::CreateKeyRequest { annotations: map("x", &MARK.repeat(60)), ..base() }),
        ("not_before", pb::CreateKeyRequest { not_before: time(-1, 0), ..base() }),
        ("not_before", pb::CreateKeyRequest { not_before: time(0, 0), ..base() }),
        ("expire_time", pb::CreateKeyRequest { expire_time: time(i64::MAX, 0), ..base() }),
        ("expire_time", pb::CreateKeyRequest { expire_time: time(2_000_000_000, -1), ..base() }),
        ("expire_time", pb::CreateKeyRequest { expire_time: time(2_000_000_000, 1_000_000_000), ..base() }),
        ("expire_time", pb::CreateKeyRequest { expire_time: after_start(0), ..base() }),
        (
            "expire_time",
            pb::CreateKeyRequest { not_before: after_start(2_000), expire_time: after_start(2_000), ..base() },
        ),
        ("scopes[0]", pb::CreateKeyRequest { tenant: "system".into(), scopes: strings(&["keyward.root"]), ..base() }),
        (
            "scopes[0]",
            pb::CreateKeyRequest { tenant: "system".into(), scopes: strings(&["keyward.admin@system"]), ..base() },
        ),
    ];
    for (field, request) in cases {
        let refused = site.admin().create(request.clone()).await.unwrap_err();
        assert_eq!(bad_fields(&refused), [field], "{request:?}");
        assert!(!refused.message().contains(MARK), "{}", refused.message());
        assert!(refused.message().contains(field), "{}", refused.message());
    }
    assert_eq!(site.admin().list(pb::ListKeysRequest::default()).await.unwrap().keys, []);
}

#[tokio::test]
async fn a_secret_in_the_wrong_field_is_refused_and_not_kept() {
    let site = Site::start().await;
    let secret = site.admin().issue("Zapier", &[]).await.secret;
    let map = || BTreeMap::from([("note".to_owned(), format!("it is {secret}."))]);
    let base = || new_key("Other", &[]);
    let cases = [
        ("display_name", pb::CreateKeyRequest { display_name: secret.clone(), ..base() }),
        ("description", pb::CreateKeyRequest { description: format!("the key is '{secret}'"), ..base() }),
        ("owner", pb::CreateKeyRequest { owner: secret.clone(), ..base() }),
        ("scopes[0]", pb::CreateKeyRequest { scopes: vec![secret.clone()], ..base() }),
        ("audiences[0]", pb::CreateKeyRequest { audiences: vec![secret.clone()], ..base() }),
        ("description", pb::CreateKeyRequest { description: format!("my_{secret}_old"), ..base() }),
        ("description", pb::CreateKeyRequest { description: format!("x{secret}x"), ..base() }),
        ("description", pb::CreateKeyRequest { description: secret.replace('_', "%5F"), ..base() }),
        ("description", pb::CreateKeyRequest { description: full_width(&secret), ..base() }),
        ("owner", pb::CreateKeyRequest { owner: format!("{}\u{200b}{}", &secret[..20], &secret[20..]), ..base() }),
        ("audiences[0]", pb::CreateKeyRequest { audiences: vec![secret.replace('_', "\u{ff3f}")], ..base() }),
        ("labels", pb::CreateKeyRequest { labels: map(), ..base() }),
        ("annotations", pb::CreateKeyRequest { annotations: map(), ..base() }),
    ];
    for (field, request) in cases {
        let refused = site.admin().create(request).await.unwrap_err();
        assert_eq!(bad_fields(&refused), [field]);
        assert!(!refused.message().contains(&secret));
    }
}

/// The same letters as they are written beside Chinese or Japanese text.
fn full_width(text: &str) -> String {
    text.chars().filter_map(|c| char::from_u32(u32::from(c) - 0x21 + 0xff01)).collect()
}

/// Each text field of each call.
#[tokio::test]
async fn no_call_takes_a_secret_in_a_text_of_its_own() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    for text in [issued.secret.clone(), format!("x{}", issued.secret), issued.secret.replace('_', "_\u{2060}")] {
        let (key_id, reason) = (issued.key.key_id.clone(), text.clone());
        let labels = || [("note".to_owned(), text.clone())].into();
        let selector = |selector| pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
        let with_name =
            pb::CreateTenantRequest { tenant: "acme".into(), display_name: text.clone(), ..Default::default() };
        let enable = pb::EnableKeyRequest { key_id: key_id.clone(), reason: text.clone(), ..Default::default() };
        let revoke = pb::RevokeKeyRequest { key_id: key_id.clone(), reason: text.clone(), ..Default::default() };
        let delete = pb::DeleteKeyRequest { key_id: key_id.clone(), reason: text.clone(), ..Default::default() };
        let undelete = pb::UndeleteKeyRequest { key_id: key_id.clone(), reason: text.clone(), ..Default::default() };
        let of_owner = selector(pb::KeySelector { owner: text.clone(), ..Default::default() });
        let of_labels = selector(pb::KeySelector { labels: labels(), ..Default::default() });
        let changed = pb::Key { labels: labels(), annotations: labels(), owner: text.clone(), ..issued.key.clone() };
        let paths = ["owner", "labels", "annotations"];
        let audience = pb::VerifyRequest { audience: text.clone(), ..ask(&issued.secret) };
        let correlation_id = pb::VerifyRequest { correlation_id: text.clone(), ..ask(&issued.secret) };
        let scopes = pb::VerifyRequest { all_scopes: vec![text.clone()], ..ask(&issued.secret) };
        let refused = [
            (admin.disable(pb::DisableKeyRequest { reason, ..disable(&issued.key) }).await.err(), vec!["reason"]),
            (admin.enable(enable).await.err(), vec!["reason"]),
            (admin.revoke(revoke).await.err(), vec!["reason"]),
            (admin.delete(delete).await.err(), vec!["reason"]),
            (admin.undelete(undelete).await.err(), vec!["reason"]),
            (admin.create_tenant(with_name).await.err(), vec!["display_name"]),
            (admin.list(of_owner).await.err(), vec!["selector.owner"]),
            (admin.list(of_labels).await.err(), vec!["selector.labels"]),
            (admin.update(update(&changed, &paths)).await.err(), vec!["key.owner", "key.labels", "key.annotations"]),
            (admin.ask(audience).await.err(), vec!["audience"]),
            (admin.ask(correlation_id).await.err(), vec!["correlation_id"]),
            (admin.ask(scopes).await.err(), vec!["all_scopes[0]"]),
        ];
        for (refused, fields) in refused {
            let refused = refused.unwrap();
            assert!(fields.iter().all(|field| bad_fields(&refused).iter().any(|bad| bad == field)), "{refused:?}");
            assert!(!refused.message().contains(&text));
        }
    }
    assert_eq!(admin.read(&issued.key).await, issued.key);
}

#[tokio::test]
async fn everything_that_is_wrong_is_said_at_once() {
    let site = Site::start().await;
    let request = pb::CreateKeyRequest {
        key_id: "!".into(),
        owner: "\0".into(),
        allowed_cidrs: strings(&["10.0.0.0/8", "x", "y"]),
        ..new_key("", &["a", ".."])
    };
    let refused = site.admin().create(request).await.unwrap_err();
    let fields = ["key_id", "display_name", "owner", "scopes[1]", "allowed_cidrs[1]", "allowed_cidrs[2]"];
    assert_eq!(bad_fields(&refused), fields);
    assert_eq!(error_reason(&refused), "BAD_FIELDS");
}

#[tokio::test]
async fn fields_within_their_limits_can_be_too_large_together() {
    let site = Site::start().await;
    let many = (0..32).map(|n| (format!("name-{n}"), "v".repeat(512))).collect();
    let request = pb::CreateKeyRequest { annotations: many, ..new_key("Zapier", &[]) };
    for validate_only in [true, false] {
        let refused = site.admin().create(pb::CreateKeyRequest { validate_only, ..request.clone() }).await.unwrap_err();
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::InvalidArgument, "KEY_TOO_LARGE"));
    }
    let issued = site.admin().issue("Small", &[]).await;
    let grown = pb::Key { annotations: request.annotations, ..issued.key.clone() };
    let refused = site.admin().update(update(&grown, &["annotations"])).await.unwrap_err();
    assert_eq!(error_reason(&refused), "KEY_TOO_LARGE");
    assert_eq!(site.admin().read(&issued.key).await, issued.key);
}

#[tokio::test]
async fn an_update_names_known_fields_and_nothing_else() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &[]).await;
    for path in ["key_id", "tenant", "environment", "state", "secret", "*", "", "display_name.x", "Display_Name", MARK]
    {
        let refused = admin.update(update(&issued.key, &["display_name", path])).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["update_mask.paths[1]"]);
        assert!(!refused.message().contains(MARK));
    }
    let refused = admin.update(update(&issued.key, &[])).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["update_mask"]);
    let refused =
        admin.update(pb::UpdateKeyRequest { key: None, ..update(&issued.key, &["owner"]) }).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["key"]);

    let cases = [
        ("display_name", pb::Key { display_name: String::new(), ..issued.key.clone() }),
        ("scopes", pb::Key { scopes: strings(&["*"]), ..issued.key.clone() }),
        ("allowed_cidrs", pb::Key { allowed_cidrs: strings(&["x"]), ..issued.key.clone() }),
        ("expire_time", pb::Key { expire_time: after_start(-1), ..issued.key.clone() }),
    ];
    for (path, key) in cases {
        let refused = admin.update(update(&key, &[path])).await.unwrap_err();
        assert!(bad_fields(&refused)[0].starts_with(&format!("key.{path}")), "{refused:?}");
    }
    assert_eq!(admin.read(&issued.key).await, issued.key, "nothing is changed by a refused call");
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let site = Site::start().await;
    let admin = site.admin();
    let nobody = pb::Key { key_id: "nobody".into(), ..Default::default() };
    let refusals = [
        admin.get(pb::GetKeyRequest { key_id: "nobody".into(), ..Default::default() }).await.unwrap_err(),
        admin.disable(disable(&nobody)).await.unwrap_err(),
        admin.update(update(&nobody, &["owner"])).await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::NotFound, "KEY_NOT_FOUND"));
    }
    let selector = pb::KeySelector { tenant: "nowhere".into(), ..Default::default() };
    let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    let refusals = [
        admin.create(pb::CreateKeyRequest { tenant: "nowhere".into(), ..new_key("x", &[]) }).await.unwrap_err(),
        admin.list(list).await.unwrap_err(),
        admin.get_tenant(pb::GetTenantRequest { tenant: "nowhere".into() }).await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::NotFound, "TENANT_NOT_FOUND"));
        assert!(refused.message().starts_with("tenant"), "it names the field: {}", refused.message());
    }
}

#[tokio::test]
async fn a_question_that_makes_no_sense_is_an_error_and_not_a_verdict() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Zapier", &["a"]).await;
    let base = || ask(&issued.secret);
    let cases = [
        ("client_ip", pb::VerifyRequest { client_ip: MARK.into(), ..base() }),
        ("client_ip", pb::VerifyRequest { client_ip: "10.0.0.0/8".into(), ..base() }),
        ("tenant", pb::VerifyRequest { tenant: "!".into(), ..base() }),
        ("audience", pb::VerifyRequest { audience: "x".repeat(129), ..base() }),
        ("all_scopes[0]", pb::VerifyRequest { all_scopes: strings(&["a.*"]), ..base() }),
        ("any_scopes[1]", pb::VerifyRequest { any_scopes: strings(&["a", ""]), ..base() }),
        ("all_scopes", pb::VerifyRequest { all_scopes: vec!["a".into(); 65], ..base() }),
        ("mode", pb::VerifyRequest { mode: 99, ..base() }),
    ];
    for (field, request) in cases {
        let refused = admin.ask(request).await.unwrap_err();
        assert_eq!(bad_fields(&refused), [field]);
        assert!(!refused.message().contains(MARK));
    }
}

/// An issuer must not be able to make a key that no operator can disable.
#[tokio::test]
async fn the_largest_key_can_still_be_disabled_and_revoked() {
    let site = Site::start().await;
    let operator = pb::CreateKeyRequest {
        tenant: "system".into(),
        key_id: "o".repeat(63),
        ..new_key("Operator", &["keyward.operator"])
    };
    let operator = site.caller(&site.admin().issued(operator).await.secret);
    let padded = |bytes: usize| {
        let values = (0..bytes).map(|n| (format!("a{:02}", n / 500), n)).fold(BTreeMap::new(), |mut map, (name, _)| {
            map.entry(name).or_insert_with(String::new).push('x');
            map
        });
        pb::CreateKeyRequest { annotations: values, validate_only: true, ..new_key("Large", &[]) }
    };
    let mut bytes = 5_000;
    while site.admin().create(padded(bytes)).await.is_err() {
        bytes -= 1;
    }
    let issued = site.admin().issued(pb::CreateKeyRequest { validate_only: false, ..padded(bytes) }).await;
    let reason = "r".repeat(256);
    operator.disable(pb::DisableKeyRequest { reason: reason.clone(), ..disable(&issued.key) }).await.unwrap();
    let relabelled = pb::Key { display_name: "Later".into(), ..issued.key.clone() };
    site.admin().update(update(&relabelled, &["display_name"])).await.unwrap();
    let key_id = issued.key.key_id.clone();
    let enable = pb::EnableKeyRequest { key_id: key_id.clone(), reason: reason.clone(), ..Default::default() };
    operator.enable(enable).await.unwrap();
    operator.revoke(pb::RevokeKeyRequest { key_id, reason, ..Default::default() }).await.unwrap();
}

/// A refusal travels in headers; one that lists too much would reach no client.
#[tokio::test]
async fn a_refusal_of_very_much_stays_short() {
    let site = Site::start().await;
    let request =
        pb::CreateKeyRequest { scopes: vec!["!".into(); 64], audiences: vec![String::new(); 32], ..new_key("", &[]) };
    let refused = site.admin().create(request).await.unwrap_err();
    assert_eq!(bad_fields(&refused).len(), 8);
    assert!(refused.message().ends_with("(and 89 more)"), "{}", refused.message());

    let selector = pb::KeySelector { states: vec![99; 200_000], ..Default::default() };
    let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    assert_eq!(bad_fields(&site.admin().list(request).await.unwrap_err()), ["selector.states"]);
}

/// Each path of a mask costs the reading of its field; so there are no more paths than fields.
#[tokio::test]
async fn a_mask_names_each_field_once() {
    let site = Site::start().await;
    let issued = site.admin().issue("Zapier", &[]).await;
    for paths in [12, 64, 50_000] {
        let request = update(&issued.key, &["labels"].repeat(paths));
        let fields = bad_fields(&site.admin().update(request).await.unwrap_err());
        let of_the_mask = if paths <= 64 { "update_mask" } else { "update_mask.paths" };
        assert!(fields.iter().any(|field| field == of_the_mask), "{paths}: {fields:?}");
    }
    let twice = update(&issued.key, &["owner", "owner"]);
    assert_eq!(bad_fields(&site.admin().update(twice).await.unwrap_err()), ["update_mask.paths[1]"]);
}

#[tokio::test]
async fn a_message_past_the_limit_is_refused() {
    let site = Site::start().await;
    let huge = "x".repeat(2_000_000);
    let of_a_batch = vec![ask(&"x".repeat(60_000)); 20];
    let refused = [
        site.admin().ask(ask(&"x".repeat(70_000))).await.unwrap_err(),
        site.admin().ask(ask(&huge)).await.unwrap_err(),
        site.admin().ask_all(pb::BatchVerifyRequest { requests: of_a_batch }).await.unwrap_err(),
        site.admin().create(pb::CreateKeyRequest { description: huge, ..new_key("Zapier", &[]) }).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(
            (refused.code(), &*error_reason(&refused)),
            (Code::ResourceExhausted, "REQUEST_TOO_LONG"),
            "{refused}"
        );
    }
}
