//! What fields may contain, and the form in which they are stored and compared.

use keyward::grpc::pb::{self, Reason};
use keyward_core::record::KeyRecord;
use tonic::Status;

use crate::api::administrators::write_to;
use crate::support::harness::{
    Handle, Issued, START, Site, after_start, ask, bad_fields, disable, error_reason, new_key, strings, update,
};

/// Invisible characters of each kind.
const UNSEEN: [char; 8] =
    ['\u{200b}', '\u{feff}', '\u{2060}', '\u{ad}', '\u{3164}', '\u{202e}', '\u{2028}', '\u{e000}'];

#[tokio::test]
async fn what_nobody_sees_is_refused_in_every_text_that_people_compare() {
    let site = Site::start().await;
    let admin = site.admin();
    let issued = admin.issue("Key", &[]).await;
    let base = || new_key("Key", &[]);
    let labels = |value: String| [("team".to_owned(), value)].into();
    let mut texts: Vec<_> = UNSEEN.iter().map(|c| format!("ow{c}ner")).collect();
    texts.extend([" owner", "owner\u{a0}", "\u{2800}", "\u{301}"].map(str::to_owned));
    for text in texts {
        let created = [
            ("display_name", pb::CreateKeyRequest { display_name: text.clone(), ..base() }),
            ("description", pb::CreateKeyRequest { description: text.clone(), ..base() }),
            ("owner", pb::CreateKeyRequest { owner: text.clone(), ..base() }),
            ("labels", pb::CreateKeyRequest { labels: labels(text.clone()), ..base() }),
            ("audiences[0]", pb::CreateKeyRequest { audiences: vec![text.clone()], ..base() }),
        ];
        for (field, request) in created {
            assert_eq!(bad_fields(&admin.create(request).await.unwrap_err()), [field], "{text:?}");
        }
        let key = pb::Key {
            display_name: text.clone(),
            owner: text.clone(),
            labels: labels(text.clone()),
            audiences: vec![text.clone()],
            ..issued.key.clone()
        };
        let refused = admin.update(update(&key, &["display_name", "owner", "labels", "audiences"])).await.unwrap_err();
        assert_eq!(
            bad_fields(&refused),
            ["key.display_name", "key.owner", "key.labels", "key.audiences[0]"],
            "{text:?}"
        );
        let refused = admin.disable(pb::DisableKeyRequest { reason: text.clone(), ..disable(&issued.key) }).await;
        assert_eq!(bad_fields(&refused.unwrap_err()), ["reason"], "{text:?}");
        let tenant =
            pb::CreateTenantRequest { tenant: "acme".into(), display_name: text.clone(), ..Default::default() };
        assert_eq!(bad_fields(&admin.create_tenant(tenant).await.unwrap_err()), ["display_name"], "{text:?}");
    }
    // What programs keep for themselves is theirs.
    let annotations = [("note".to_owned(), " \u{200b}\n".to_owned())].into();
    admin.create(pb::CreateKeyRequest { annotations, ..base() }).await.unwrap();
}

/// "Müller", in one character fewer and in one more.
const COMPOSED: &str = "M\u{fc}ller";
const DECOMPOSED: &str = "Mu\u{308}ller";

async fn found(admin: &Handle, selector: pb::KeySelector) -> usize {
    let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    admin.list(request).await.unwrap().keys.len()
}

#[tokio::test]
async fn texts_are_kept_and_sought_in_one_form() {
    let site = Site::start().await;
    let admin = site.admin();
    let mut issued = vec![];
    for text in [COMPOSED, DECOMPOSED] {
        let labels: std::collections::BTreeMap<_, _> = [("team".to_owned(), text.to_owned())].into();
        let request = pb::CreateKeyRequest {
            owner: text.into(),
            labels: labels.clone(),
            audiences: vec![text.into()],
            ..new_key(text, &[])
        };
        let made = admin.issued(request).await;
        assert_eq!(
            (&*made.key.display_name, &*made.key.owner, &*made.key.audiences[0]),
            (COMPOSED, COMPOSED, COMPOSED)
        );
        assert_eq!(made.key.labels["team"], COMPOSED);
        issued.push((labels, made));
    }
    for (text, (labels, _)) in [COMPOSED, DECOMPOSED].into_iter().zip(&issued) {
        assert_eq!(found(&admin, pb::KeySelector { owner: text.into(), ..Default::default() }).await, 2, "{text:?}");
        assert_eq!(
            found(&admin, pb::KeySelector { labels: labels.clone(), ..Default::default() }).await,
            2,
            "{text:?}"
        );
        for (explain, (_, made)) in
            [false, true].into_iter().flat_map(|explain| issued.iter().map(move |made| (explain, made)))
        {
            let asked = pb::VerifyRequest { audience: text.into(), explain, ..ask(&made.secret) };
            assert_eq!(admin.ask(asked).await.unwrap().reason(), Reason::Ok, "{text:?} {explain}");
            let other = pb::VerifyRequest { audience: "Mu\u{308}llers".into(), explain, ..ask(&made.secret) };
            assert_eq!(admin.ask(other).await.unwrap().reason(), Reason::AudienceMismatch);
        }
    }
    let disabled = pb::DisableKeyRequest { reason: DECOMPOSED.into(), ..disable(&issued[0].1.key) };
    assert_eq!(admin.disable(disabled).await.unwrap().key.unwrap().state_reason, COMPOSED);
}

/// Records of before are not judged again; an update judges what it names.
#[tokio::test]
async fn what_was_stored_before_there_were_rules_still_works() {
    let mut site = Site::start().await;
    let made = site.admin().issue("Key", &[]).await;
    let owner = format!(" \u{202e}{DECOMPOSED}");
    site.stop().await;
    write_to(site.dir.path(), START, |mut key: KeyRecord| {
        (key.tenant.as_str() == "default").then(|| {
            key.spec.display_name = "\u{200b}".into();
            key.spec.owner = owner.clone();
            key.spec.labels = [("team".to_owned(), DECOMPOSED.to_owned())].into();
            key.spec.policy.audiences = vec![DECOMPOSED.into()];
            key.state_changed = None;
            key
        })
    })
    .await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    for explain in [false, true] {
        let asked = pb::VerifyRequest { audience: DECOMPOSED.into(), explain, ..ask(&made.secret) };
        assert_eq!(admin.ask(asked).await.unwrap().reason(), Reason::Ok);
    }
    // As they are shown, they find their key: alone and together, of any state and of one.
    let of_owner = pb::KeySelector { owner, ..Default::default() };
    let labels = [("team".to_owned(), DECOMPOSED.to_owned())].into();
    let of_both = pb::KeySelector { labels, ..of_owner.clone() };
    let of_label = pb::KeySelector { owner: String::new(), ..of_both.clone() };
    let active = pb::KeySelector { states: vec![pb::State::Active.into()], ..of_owner.clone() };
    for selector in [of_owner, of_both, of_label, active] {
        assert_eq!(found(&admin, selector.clone()).await, 1, "{selector:?}");
        let other = pb::KeySelector { states: vec![pb::State::Revoked.into()], ..selector };
        assert_eq!(found(&admin, other.clone()).await, 0, "{other:?}");
    }
    let key = admin.read(&made.key).await;
    assert_eq!((&*key.state_by, key.state_time), ("", None), "unknown is not the same as when it was made");
    let noted = pb::Key { description: "A note".into(), ..key.clone() };
    let noted = admin.update(update(&noted, &["description"])).await.unwrap().key.unwrap();
    assert_eq!((noted.owner, noted.display_name, &*noted.state_by), (key.owner.clone(), key.display_name.clone(), ""));
    assert_eq!(bad_fields(&admin.update(update(&key, &["owner"])).await.unwrap_err()), ["key.owner"]);
    let disabled = admin.disable_key(&made.key).await.key.unwrap();
    assert_eq!((disabled.state_by, disabled.state_time), (disabled.updated_by, disabled.update_time));
    site.stop().await;
}

#[tokio::test]
async fn networks_and_addresses_are_read_alike() {
    let site = Site::start().await;
    let admin = site.admin();
    let cidrs = strings(&["203.0.113.7", "2001:db8::1", "10.0.0.0/8"]);
    let bound = admin.issued(pb::CreateKeyRequest { allowed_cidrs: cidrs, ..new_key("Bound", &[]) }).await;
    assert_eq!(bound.key.allowed_cidrs, ["203.0.113.7/32", "2001:db8::1/128", "10.0.0.0/8"]);
    let free = admin.issue("Free", &[]).await;
    let cases = [
        ("203.0.113.7", true),
        ("203.0.113.7:4711", true),
        ("[2001:db8::1]:443", true),
        ("2001:db8::1%eth0", true),
        ("::ffff:10.1.2.3", true),
        ("203.0.113.8:4711", false),
        ("fe80::1%eth0", false),
        ("[2001:db8::2]:443", false),
    ];
    for (client_ip, inside) in cases {
        for explain in [false, true] {
            let asked = |secret: &str| pb::VerifyRequest { client_ip: client_ip.into(), explain, ..ask(secret) };
            let expected = if inside { Reason::Ok } else { Reason::IpNotAllowed };
            assert_eq!(admin.ask(asked(&bound.secret)).await.unwrap().reason(), expected, "{client_ip}");
            assert_eq!(admin.ask(asked(&free.secret)).await.unwrap().reason(), Reason::Ok, "{client_ip}");
        }
    }
    for client_ip in ["010.1.2.3", "10.1.2.3:", "10.1.2.3:99999", "10.0.0.0/8", "example.com:80", "[::1"] {
        for explain in [false, true] {
            let asked = pb::VerifyRequest { client_ip: client_ip.into(), explain, ..ask(&free.secret) };
            assert_eq!(bad_fields(&admin.ask(asked).await.unwrap_err()), ["client_ip"], "{client_ip}");
        }
    }
    for (cidr, named) in
        [("10.1.2.3/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32"), ("010.0.0.0/8", "leading zeros")]
    {
        let request = pb::CreateKeyRequest { allowed_cidrs: strings(&[cidr]), ..new_key("Key", &[]) };
        let refused = admin.create(request).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["allowed_cidrs[0]"]);
        assert!(refused.message().contains(named), "{}", refused.message());
    }
}

#[tokio::test]
async fn another_reason_is_a_change_and_none_leaves_the_old_one() {
    let mut site = Site::start().await;
    let second = site
        .admin()
        .issued(pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Second", &["keyward.operator"]) })
        .await;
    let (first, second) = (site.admin(), (site.caller(&second.secret), second.key.key_id));
    let made = first.issue("Key", &[]).await.key;
    assert_eq!((&made.state_by, made.state_time), (&made.created_by, made.create_time));
    site.clock.advance_ms(1_000);
    let because = |reason: &str| pb::DisableKeyRequest { reason: reason.into(), ..disable(&made) };
    let disabled = first.disable(because("unpaid")).await.unwrap().key.unwrap();
    assert_eq!((&*disabled.state_by, disabled.state_time), (&*made.created_by, after_start(1_000)));
    site.clock.advance_ms(1_000);
    for same in ["unpaid", ""] {
        let again = second.0.disable(because(same)).await.unwrap();
        assert_eq!((again.revision, again.key.unwrap()), (disabled.revision, disabled.clone()), "{same:?}");
    }
    let leaked = second.0.disable(because("leaked")).await.unwrap();
    let key = leaked.key.unwrap();
    assert_eq!(
        (leaked.revision, key.revision, &*key.state_reason),
        (disabled.revision + 1, disabled.revision + 1, "leaked")
    );
    // Who disabled it, and when, stays; who gave the reason is who changed it last.
    assert_eq!((&key.state_by, key.state_time), (&disabled.state_by, disabled.state_time));
    assert_eq!((&key.updated_by, key.update_time), (&second.1, after_start(2_000)));
    // With a tag of before, it is refused like any change.
    let stale = pb::DisableKeyRequest { etag: disabled.etag.clone(), ..because("other") };
    assert_eq!(error_reason(&second.0.disable(stale).await.unwrap_err()), "ETAG_MISMATCH");
    let asked = pb::DisableKeyRequest { validate_only: true, ..because("other") };
    second.0.disable(asked).await.unwrap();
    assert_eq!(first.read(&made).await, key);

    site.clock.advance_ms(1_000);
    let relabelled = pb::Key { display_name: "Other".into(), ..key.clone() };
    let relabelled = first.update(update(&relabelled, &["display_name"])).await.unwrap().key.unwrap();
    assert_eq!((&relabelled.state_by, relabelled.state_time), (&disabled.state_by, disabled.state_time));
    site.restart().await;
    assert_eq!(site.admin().read(&made).await, relabelled);
    let enabled = site.admin().enable_key(&made).await.key.unwrap();
    assert_eq!((&*enabled.state_reason, enabled.state_time), ("", after_start(3_000)));
    let revoked = site.admin().revoke_key(&made).await.key.unwrap();
    let again = pb::RevokeKeyRequest { key_id: made.key_id.clone(), reason: "leaked".into(), ..Default::default() };
    let again = site.admin().revoke(again).await.unwrap().key.unwrap();
    assert_eq!(
        (&*again.state_reason, again.state_time, again.revision),
        ("leaked", revoked.state_time, revoked.revision + 1)
    );
    site.stop().await;
}

#[tokio::test]
async fn a_service_can_refuse_keys_of_another_environment() {
    let site = Site::start().await;
    let admin = site.admin();
    let of = |environment: &str| pb::CreateKeyRequest {
        environment: environment.into(),
        audiences: strings(&["billing"]),
        expire_time: after_start(10_000),
        ..new_key("Key", &[])
    };
    let [live, test] = [admin.issued(of("live")).await, admin.issued(of("test")).await];
    let asked = |issued: &Issued, environment: &str, explain| pb::VerifyRequest {
        environment: environment.into(),
        audience: "billing".into(),
        explain,
        ..ask(&issued.secret)
    };
    let cases = [
        (&live, "live", Reason::Ok, 200),
        (&test, "test", Reason::Ok, 200),
        (&test, "", Reason::Ok, 200),
        (&test, "live", Reason::EnvironmentMismatch, 403),
        (&live, "test", Reason::EnvironmentMismatch, 403),
        (&live, "liv", Reason::EnvironmentMismatch, 403),
    ];
    for (issued, environment, reason, status) in cases {
        for explain in [false, true] {
            let verdict = admin.ask(asked(issued, environment, explain)).await.unwrap();
            assert_eq!((verdict.reason(), verdict.http_status), (reason, status), "{environment} {explain}");
            let key = verdict.key.unwrap();
            assert_eq!(key.environment.is_empty(), reason != Reason::Ok, "of a refused key, only the id is told");
        }
        let batch = pb::BatchVerifyRequest { requests: vec![asked(issued, environment, false)] };
        let result = admin.ask_all(batch).await.unwrap().results.remove(0).result.unwrap();
        let pb::batch_verify_result::Result::Response(verdict) = result else { panic!("{result:?}") };
        assert_eq!(verdict.reason(), reason);
    }
    // Before the audience, and after everything that makes a key none.
    let elsewhere = pb::VerifyRequest { audience: "mail".into(), ..asked(&test, "live", false) };
    assert_eq!(admin.ask(elsewhere).await.unwrap().reason(), Reason::EnvironmentMismatch);
    let explained = admin.ask(asked(&test, "live", true)).await.unwrap().checks;
    let failed: Vec<_> = explained.iter().filter(|check| !check.passed).map(|check| &*check.check).collect();
    assert_eq!(failed, ["environment"]);
    site.clock.advance_ms(10_000);
    assert_eq!(admin.ask(asked(&test, "live", false)).await.unwrap().reason(), Reason::Expired);
    admin.disable_key(&test.key).await;
    for explain in [false, true] {
        let verdict = admin.ask(asked(&test, "live", explain)).await.unwrap();
        assert_eq!((verdict.reason(), verdict.http_status), (Reason::Disabled, 401));
        for bad in ["Live", "live ", "a-b", "abcdefghijklmnopq"] {
            let refused: Status = admin.ask(asked(&live, bad, explain)).await.unwrap_err();
            assert_eq!(bad_fields(&refused), ["environment"], "{bad}");
        }
    }
}

#[tokio::test]
async fn an_explanation_names_what_stands_around_a_secret() {
    let site = Site::start().await;
    let admin = site.admin();
    let secret = admin.issue("Key", &[]).await.secret;
    let form = async |text: String| {
        let verdict = admin.ask(pb::VerifyRequest { explain: true, ..ask(&text) }).await.unwrap();
        assert_eq!((verdict.reason(), verdict.key), (Reason::Malformed, None));
        let [check] = &verdict.checks[..] else { panic!("only the form is looked at") };
        check.detail.clone()
    };
    let mut nearly = secret.clone();
    nearly.replace_range(nearly.len() - 1.., if nearly.ends_with('a') { "b" } else { "a" });
    // A guesser learns nothing of what stands in there.
    for inner in [&*secret, &*nearly, "x"] {
        assert_eq!(form(format!("{inner}\n")).await, "the secret must be given without white space");
        assert_eq!(form(format!("\"{inner}\"")).await, "the secret must be given without quotes");
        assert_eq!(form(format!("Bearer {inner}")).await, "the secret must be given without white space, 'Bearer'");
    }
    assert_eq!(form(nearly).await, "");
    let good = admin.ask(pb::VerifyRequest { explain: true, ..ask(&secret) }).await.unwrap();
    assert!(good.checks.iter().all(|check| check.passed && check.detail.is_empty()));
}
