//! Lists: selectors and pages.

use std::collections::{BTreeMap, BTreeSet};

use keyward::grpc::pb::{self, KeySelector, State};
use keyward::keyring::Keyring;
use keyward_core::testing::SeededEntropy;

use tonic::Code;

use crate::support::harness::{Handle, Site, bad_fields, error_reason, new_key};

#[tokio::test]
async fn disabled_keys_are_listed_apart_from_active_ones() {
    let site = Site::start().await;
    let admin = site.admin();
    let mut keys = vec![];
    for label in ["a", "b", "c", "d"] {
        keys.push(admin.issue(label, &[]).await);
        site.clock.advance_ms(1); // ids are ordered to the millisecond
    }
    admin.disable_key(&keys[1].key).await;
    admin.revoke_key(&keys[2].key).await;
    let labels = async |states: &[State]| {
        let states = states.iter().map(|&state| state.into()).collect();
        labels(&admin, KeySelector { states, ..Default::default() }).await
    };
    assert_eq!(labels(&[State::Active]).await, ["a", "d"]);
    assert_eq!(labels(&[State::Disabled]).await, ["b"]);
    assert_eq!(labels(&[State::Revoked]).await, ["c"]);
    assert_eq!(labels(&[State::Disabled, State::Revoked]).await, ["b", "c"]);
    assert_eq!(labels(&[]).await, ["a", "b", "c", "d"]);

    admin.enable_key(&keys[1].key).await;
    assert_eq!(labels(&[State::Disabled]).await, [""; 0]);
}

#[tokio::test]
async fn an_owner_holds_several_keys_and_labels_select_among_them() {
    let site = Site::start().await;
    let admin = site.admin();
    let make = async |label: &str, owner: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
        let request = pb::CreateKeyRequest { owner: owner.into(), labels, ..new_key(label, &[]) };
        site.clock.advance_ms(1); // ids are ordered to the millisecond
        admin.issued(request).await.key
    };
    let zapier = make("Zapier", "acme", &[("team", "growth"), ("tier", "gold")]).await;
    make("Dashboard", "acme", &[("team", "core")]).await;
    make("Other", "acme-2", &[("team", "growth")]).await;

    let by = |owner: &str, selected: &[(&str, &str)]| KeySelector {
        owner: owner.into(),
        labels: selected.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect(),
        ..Default::default()
    };
    assert_eq!(labels(&admin, by("acme", &[])).await, ["Zapier", "Dashboard"]);
    assert_eq!(labels(&admin, by("", &[("team", "growth")])).await, ["Zapier", "Other"]);
    assert_eq!(labels(&admin, by("acme", &[("team", "growth"), ("tier", "gold")])).await, ["Zapier"]);
    assert_eq!(labels(&admin, by("nobody", &[])).await, [""; 0]);

    // What is no longer so is no longer found.
    let moved = pb::Key { owner: "globex".into(), labels: BTreeMap::new(), ..zapier.clone() };
    admin.update(crate::support::harness::update(&moved, &["owner", "labels"])).await.unwrap();
    assert_eq!(labels(&admin, by("acme", &[])).await, ["Dashboard"]);
    assert_eq!(labels(&admin, by("globex", &[])).await, ["Zapier"]);
    assert_eq!(labels(&admin, by("", &[("team", "growth")])).await, ["Other"]);

    let picked = KeySelector { key_ids: vec![zapier.key_id, "absent".into()], ..Default::default() };
    assert_eq!(labels(&admin, picked).await, ["Zapier"]);
}

#[tokio::test]
async fn pages_give_every_key_once_and_in_order() {
    let site = Site::start().await;
    let admin = site.admin();
    let mut made = BTreeSet::new();
    for number in 0..23 {
        made.insert(admin.issue(&format!("key {number}"), &[]).await.key.key_id);
    }
    for page_size in [1, 5, 22, 23, 24] {
        let mut seen = vec![];
        let mut request = pb::ListKeysRequest { page_size, ..Default::default() };
        loop {
            let page = admin.list(request.clone()).await.unwrap();
            assert!(page.keys.len() <= page_size as usize);
            seen.extend(page.keys.into_iter().map(|key| key.key_id));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert!(seen.iter().eq(&made), "{page_size}: {seen:?}");
    }
}

/// The selector is well formed; what it asks for would take too long.
#[tokio::test]
async fn a_selector_whose_conditions_have_nothing_in_common_is_refused_by_name() {
    let mut site = Site::start().await;
    let admin = site.admin();
    for number in 0..520 {
        site.clock.advance_ms(1); // ids are ordered to the millisecond
        let of = if number % 2 == 0 { ("team", "growth") } else { ("tier", "gold") };
        let labels = [(of.0.to_owned(), of.1.to_owned())].into();
        admin.issued(pb::CreateKeyRequest { labels, ..new_key(&format!("key {number}"), &[]) }).await;
    }
    // By then all of them are in the table.
    site.restart().await;
    let labels = [("team", "growth"), ("tier", "gold")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let selector = KeySelector { labels: labels.into(), ..Default::default() };
    let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    let refused = site.admin().list(request).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::FailedPrecondition, "SELECTOR_TOO_SPARSE"));
    assert!(refused.message().starts_with("selector: "), "{}", refused.message());
}

#[tokio::test]
async fn a_page_token_serves_its_own_query_only() {
    let mut site = Site::start().await;
    for number in 0..3 {
        site.admin().issue(&format!("key {number}"), &[]).await;
    }
    let query = pb::ListKeysRequest { page_size: 1, ..Default::default() };
    let token = site.admin().list(query.clone()).await.unwrap().next_page_token;
    let with = |page_token: &str| pb::ListKeysRequest { page_token: page_token.into(), ..query.clone() };
    let cut = &token[..token.len() - 1];
    let mut altered = token.clone();
    let last = if altered.pop() == Some('A') { 'B' } else { 'A' };
    altered.push(last);
    for bad in ["x", "!!", cut, &altered, &"A".repeat(300), &"A".repeat(684)] {
        let refused = site.admin().list(with(bad)).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["page_token"], "{bad}");
    }
    let other = KeySelector { owner: "x".into(), ..Default::default() };
    let refused = site.admin().list(pb::ListKeysRequest { selector: Some(other), ..with(&token) }).await.unwrap_err();
    assert_eq!(bad_fields(&refused), ["page_token"]);

    // It outlives the server, and takes another page size.
    site.restart().await;
    let rest = site.admin().list(pb::ListKeysRequest { page_size: 10, ..with(&token) }).await.unwrap();
    assert_eq!(rest.keys.len(), 2);
}

/// A caller that was in the middle of a list when the server was replaced by this version.
#[tokio::test]
async fn a_page_token_of_the_first_form_is_refused_and_says_to_begin_anew() {
    let site = Site::start().await;
    for number in 0..2 {
        site.admin().issue(&format!("key {number}"), &[]).await;
    }
    let query = pb::ListKeysRequest { page_size: 1, ..Default::default() };
    let first = site.admin().list(query.clone()).await.unwrap();
    let last = first.keys[0].key_id.as_bytes();
    let key = Keyring::open(&site.dir.path().join("pepper"), false, &SeededEntropy::new(1)).unwrap().page_token_key();
    let mut hasher = blake3::Hasher::new_keyed(&key);
    for part in [&b"keys"[..], b"default", b"", b"", &0_usize.to_le_bytes(), last] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let page_token = data_encoding::BASE64URL_NOPAD.encode(&[hasher.finalize().as_bytes(), last].concat());
    let refused = site.admin().list(pb::ListKeysRequest { page_token, ..query.clone() }).await.unwrap_err();
    assert_eq!((refused.code(), bad_fields(&refused)), (Code::InvalidArgument, vec!["page_token".to_owned()]));
    assert!(refused.message().contains("begin the list anew"), "{}", refused.message());
    let page_token = first.next_page_token;
    assert_eq!(site.admin().list(pb::ListKeysRequest { page_token, ..query }).await.unwrap().keys.len(), 1);
}

#[tokio::test]
async fn a_page_size_out_of_range_and_an_unknown_state_are_refused() {
    let site = Site::start().await;
    for page_size in [-1, 1_001] {
        let refused = site.admin().list(pb::ListKeysRequest { page_size, ..Default::default() }).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["page_size"]);
    }
    let selector = KeySelector { states: vec![State::Active.into(), 99], ..Default::default() };
    let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    assert_eq!(bad_fields(&site.admin().list(request).await.unwrap_err()), ["selector.states[1]"]);
}

async fn labels(admin: &Handle, selector: KeySelector) -> Vec<String> {
    let request = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    admin.list(request).await.unwrap().keys.into_iter().map(|key| key.display_name).collect()
}
