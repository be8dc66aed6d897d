//! Keys and tenants are issued, listed and changed.

use std::collections::BTreeSet;
use std::process::Stdio;

use keyward::grpc::pb::DESCRIPTORS;
use prost::Message;
use serde_json::Value;

use super::{User, done, ids};

#[test]
fn a_key_is_issued_relabelled_disabled_enabled_and_revoked() {
    let user = User::start();
    let issued = user.json(&[
        "key",
        "create",
        "zapier",
        "--display-name",
        "Zapier",
        "--owner",
        "customer-7",
        "--scope",
        "orders.*",
        "--label",
        "team=a",
        "--annotation",
        "note=x=y",
        "--expires",
        "2030-01-01",
        "--allowed-cidr",
        "10.0.0.0/8",
        "--audience",
        "orders",
        "--description",
        "nightly",
        "--not-before",
        "2026-01-01T00:00:00+01:00",
    ]);
    let key = &issued["key"];
    assert_eq!((key["keyId"].as_str(), key["tenant"].as_str()), (Some("zapier"), Some("default")));
    assert_eq!(key["labels"]["team"], "a");
    assert_eq!(key["annotations"]["note"], "x=y");
    assert_eq!(key["expireTime"], "2030-01-01T00:00:00Z");
    assert_eq!(key["notBefore"], "2025-12-31T23:00:00Z");
    assert_eq!(issued["revision"], key["revision"]);
    let key = user.json(&["key", "label", "zapier", "Internal Dashboard"]);
    assert_eq!(key["displayName"], "Internal Dashboard");
    let key = user.json(&["key", "disable", "zapier", "--reason", "unpaid"]);
    assert_eq!((key["state"].as_str(), key["stateReason"].as_str()), (Some("STATE_DISABLED"), Some("unpaid")));
    assert_eq!(ids(&user.json(&["key", "list", "--state", "disabled"])), ["zapier"]);
    assert_eq!(ids(&user.json(&["key", "list", "--state", "active", "--state", "revoked"])), [""; 0]);
    assert_eq!(user.json(&["key", "enable", "zapier"])["state"], "STATE_ACTIVE");
    let dry = user.tries(&["key", "revoke", "zapier", "--dry-run"]);
    assert!(dry.err.contains("nothing was changed"), "{}", dry.err);
    assert_eq!(user.json(&["key", "get", "zapier"])["state"], "STATE_ACTIVE");
    assert_eq!(user.json(&["key", "revoke", "zapier"])["state"], "STATE_REVOKED");
}

#[test]
fn a_key_is_rotated_and_its_rotation_finished_or_taken_back() {
    let user = User::start();
    user.does(&["key", "create", "zapier", "--display-name", "Zapier"]);
    let file = user.path("new.secret");
    let rotated = user.json(&["key", "rotate", "zapier", "--overlap", "24h", "--secret-file", &file]);
    let secrets = &rotated["key"]["secrets"];
    assert_eq!((&rotated["secret"], &secrets[0]["version"]), (&Value::Null, &serde_json::json!(2)));
    assert_eq!((&secrets[1]["state"], &secrets[1]["overlap"]), (&"SECRET_STATE_PREVIOUS".into(), &"86400s".into()));
    assert!(secrets[1]["validUntil"].is_string());
    let found = user.json(&["key", "find", "--secret-file", &file]);
    assert_eq!(found["matched"], "MATCHED_CURRENT");
    assert_eq!(found["previousValidUntil"], secrets[1]["validUntil"]);
    let table = user.does(&["key", "get", "zapier", "--output", "table"]);
    assert!(table.contains("state previous") && table.contains("overlap 1day"), "{table}");
    let cancelled = user.json(&["key", "cancel-rotation", "zapier"]);
    assert_eq!((&cancelled["secrets"][0]["version"], &cancelled["secrets"][1]["version"]), (&1.into(), &2.into()));
    user.fails(&["key", "cancel-rotation", "zapier"], 6, &["NO_ROTATION_PENDING"]);
    let refused = user.json(&["key", "find", "--secret-file", &file]);
    assert_eq!((&refused["reason"], &refused["matched"]), (&"REASON_ROTATED_OUT".into(), &Value::Null));

    let alone = user.does(&["key", "rotate", "zapier", "--overlap-starts", "first-use", "--output", "secret"]);
    assert!(alone.starts_with("kw_live_") && alone.lines().count() == 1, "{alone}");
    let key = user.json(&["key", "get", "zapier"]);
    assert_eq!(
        (&key["secrets"][1]["overlapStarts"], &key["secrets"][1]["validUntil"]),
        (&"OVERLAP_START_ON_FIRST_USE".into(), &Value::Null)
    );
    let dry = user.tries(&["key", "finish-rotation", "zapier", "--dry-run"]);
    assert!(dry.err.contains("nothing was changed"), "{}", dry.err);
    let finished = user.json(&["key", "finish-rotation", "zapier"]);
    assert_eq!(finished["secrets"][1]["state"], "SECRET_STATE_RETIRED");
    user.fails(&["key", "rotate", "zapier", "--overlap", "366d"], 2, &["overlap (--overlap): must be 0 to 365 days"]);
    user.fails(&["key", "rotate", "nobody"], 4, &["KEY_NOT_FOUND"]);
}

#[test]
fn a_key_is_disabled_until_a_time_protected_deleted_and_given_back() {
    let user = User::start();
    user.does(&["key", "create", "zapier", "--display-name", "Zapier", "--delete-protected"]);
    let key = user.json(&["key", "disable", "zapier", "--resume-time", "in 2h", "--reason", "unpaid"]);
    assert_eq!((key["state"].as_str(), key["resumeTime"].is_string()), (Some("STATE_DISABLED"), true));
    user.fails(&["key", "disable", "zapier", "--resume-time", "2020-01-01"], 2, &["resume_time (--resume-time)"]);
    let key = user.json(&["key", "disable", "zapier"]);
    assert_eq!((&key["resumeTime"], key["stateReason"].as_str()), (&Value::Null, Some("unpaid")));
    user.json(&["key", "enable", "zapier"]);

    user.fails(&["key", "delete", "zapier"], 6, &["DELETE_PROTECTED"]);
    let key = user.json(&["key", "update", "zapier", "--delete-protected", "false"]);
    assert_eq!(key["deleteProtected"], Value::Null);
    user.fails(&["key", "delete", "zapier", "--purge-after", "1s"], 2, &["purge_after (--purge-after)"]);
    let key = user.json(&["key", "delete", "zapier", "--purge-after", "7d", "--reason", "customer left"]);
    assert_eq!((key["state"].as_str(), key["undeleteState"].as_str()), (Some("STATE_DELETED"), Some("STATE_DISABLED")));
    assert!(key["purgeTime"].is_string() && key["deleteTime"].is_string(), "{key}");
    assert_eq!(ids(&user.json(&["key", "list"])), [""; 0]);
    assert_eq!(ids(&user.json(&["key", "list", "--show-deleted"])), ["zapier"]);
    assert_eq!(ids(&user.json(&["key", "list", "--state", "deleted"])), ["zapier"]);
    assert!(user.does(&["key", "list", "--show-deleted", "--output", "table"]).contains("deleted"));
    assert_eq!(user.json(&["key", "undelete", "zapier"])["state"], "STATE_DISABLED");
    let protected = user.json(&["key", "update", "zapier", "--delete-protected", "true"]);
    assert_eq!(protected["deleteProtected"], true);

    user.does(&["caller", "create", "ada", "--display-name", "Ada", "--role", "viewer"]);
    user.does(&["caller", "disable", "ada", "--resume-time", "in 2h"]);
    assert_eq!(user.json(&["caller", "delete", "ada"])["state"], "STATE_DELETED");
    assert_eq!(user.json(&["caller", "undelete", "ada"])["state"], "STATE_DISABLED");
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let user = User::start();
    user.does(&[
        "key",
        "create",
        "zapier",
        "--display-name",
        "Zapier",
        "--scope",
        "a",
        "--scope",
        "b",
        "-l",
        "x=1",
        "-l",
        "y=2",
    ]);
    let key = user.json(&[
        "key",
        "update",
        "zapier",
        "--add-scope",
        "c",
        "--remove-scope",
        "a",
        "--label",
        "x=3",
        "--remove-label",
        "y",
        "--owner",
        "customer-7",
    ]);
    assert_eq!(key["scopes"], serde_json::json!(["b", "c"]));
    assert_eq!(key["labels"], serde_json::json!({"x": "3"}));
    assert_eq!((key["owner"].as_str(), key["displayName"].as_str()), (Some("customer-7"), Some("Zapier")));
    let key = user.json(&["key", "update", "zapier", "--clear", "owner", "--scope", "d", "--expires", "in 90d"]);
    assert_eq!((&key["owner"], &key["scopes"]), (&Value::Null, &serde_json::json!(["d"])));
    assert!(key["expireTime"].is_string());
    let key = user.json(&["key", "update", "zapier", "--clear", "expires", "--clear", "labels"]);
    assert_eq!((&key["expireTime"], &key["labels"]), (&Value::Null, &Value::Null));
    user.fails(&["key", "update", "zapier"], 2, &["nothing is to be changed"]);
    user.fails(&["key", "label", "zapier", "team=b"], 2, &["keyward key update zapier --label 'team=b'"]);
    assert_eq!(user.json(&["key", "get", "zapier"])["displayName"], "Zapier");
}

#[test]
fn a_list_is_a_page_or_all_of_them() {
    let user = User::start();
    for number in 1..=5 {
        let owner = if number % 2 == 0 { "even" } else { "odd" };
        user.does(&[
            "key",
            "create",
            &format!("key-{number}"),
            "--display-name",
            "顧客",
            "--owner",
            owner,
            "-l",
            "a=b",
        ]);
    }
    let page = user.tries(&["key", "list", "--page-size", "2"]);
    assert_eq!(ids(&serde_json::from_str(&page.out).unwrap()), ["key-1", "key-2"]);
    let token = page.err.split("--page-token ").nth(1).unwrap().trim();
    let next = user.json(&["key", "list", "--page-size", "2", "--page-token", token]);
    assert_eq!(ids(&next), ["key-3", "key-4"]);
    let all = user.tries(&["key", "list", "--all", "--page-size", "2"]);
    assert_eq!(ids(&serde_json::from_str(&all.out).unwrap()).len(), 5);
    assert_eq!(all.err, "");
    assert_eq!(ids(&user.json(&["key", "list", "--owner", "even", "--label", "a=b"])), ["key-2", "key-4"]);
    assert_eq!(user.does(&["key", "list", "--label", "a=c"]), "[]\n");
    let table = user.does(&["key", "list", "--output", "table", "--owner", "even"]);
    let rows: Vec<_> = table.lines().collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[0].starts_with("KEY_ID  NAME  OWNER  STATE   EXPIRES"), "{table}");
    assert!(rows[1].starts_with("key-2   顧客  even   active"), "{table}");
    assert_eq!(ids(&user.json(&["caller", "list"])).len(), 1);
    user.fails(&["key", "list", "--page-size", "0"], 2, &["--page-size"]);
    user.fails(&["key", "list", "--page-token", "forged"], 2, &["page_token (--page-token)"]);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let user = User::start();
    user.does(&["key", "create", "zapier", "--display-name", "Zapier"]);
    for args in [&["key", "list"][..], &["key", "list", "--output", "table"], &["key", "get", "zapier"]] {
        let mut child = user.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = done(&child.wait_with_output().unwrap());
        assert_eq!((ended.code, &*ended.err), (0, ""), "{args:?}");
    }
}

#[test]
fn a_tenant_and_an_owner_are_suspended_and_resumed_and_have_epochs() {
    let user = User::start();
    user.does(&["tenant", "create", "acme"]);
    user.does(&["key", "create", "zapier", "--tenant", "acme", "--display-name", "Zapier", "--owner", "customer-7"]);
    let owner = user.json(&["owner", "suspend", "customer-7", "--tenant", "acme", "--reason", "unpaid"]);
    assert_eq!((owner["state"].as_str(), owner["tenant"].as_str()), (Some("HOLDER_STATE_SUSPENDED"), Some("acme")));
    assert_eq!((owner["stateReason"].as_str(), owner["affectedKeys"].as_str()), (Some("unpaid"), Some("1")));
    assert_eq!(user.json(&["owner", "get", "customer-7", "--tenant", "acme"])["state"], "HOLDER_STATE_SUSPENDED");
    assert_eq!(user.json(&["owner", "get", "customer-7"])["state"], "HOLDER_STATE_ACTIVE", "in tenant default");
    assert_eq!(user.json(&["owner", "resume", "customer-7", "--tenant", "acme"])["state"], "HOLDER_STATE_ACTIVE");

    let dry = user.tries(&["tenant", "suspend", "acme", "--dry-run"]);
    assert!(dry.err.contains("nothing was changed"), "{}", dry.err);
    assert_eq!(user.json(&["tenant", "get", "acme"])["state"], "HOLDER_STATE_ACTIVE");
    assert_eq!(user.json(&["tenant", "suspend", "acme"])["state"], "HOLDER_STATE_SUSPENDED");
    let tenant = user.json(&["tenant", "resume", "acme", "--reason", "paid"]);
    assert_eq!((tenant["state"].as_str(), tenant["stateReason"].as_str()), (Some("HOLDER_STATE_ACTIVE"), Some("paid")));
    let tenant = user.json(&["tenant", "update", "acme", "--display-name", "Acme Inc."]);
    assert_eq!((tenant["displayName"].as_str(), tenant["secretPrefix"].as_str()), (Some("Acme Inc."), Some("kw")));

    let set = user.json(&["epoch", "set", "--owner", "customer-7", "--tenant", "acme", "--before", "2026-01-01"]);
    assert_eq!(set["rejectIssuedBefore"], "2026-01-01T00:00:00Z");
    assert!(user.json(&["epoch", "get", "--tenant", "acme"])["rejectIssuedBefore"].is_null());
    let refused = user.tries(&["epoch", "set", "--owner", "customer-7", "--tenant", "acme", "--before", "2020-01-01"]);
    assert!(refused.code != 0 && refused.err.contains("only grows"), "{}", refused.err);
    for arguments in [&["epoch", "set"][..], &["epoch", "set", "--issuer", "keyward", "--tenant", "acme"]] {
        assert_eq!(user.tries(arguments).code, 2, "{arguments:?}");
    }
}

/// Every field of a message is in the JSON, by the name that protobuf gives it.
#[test]
fn no_field_of_what_is_printed_is_left_out() {
    let user = User::start();
    user.does(&[
        "key",
        "create",
        "zapier",
        "--display-name",
        "a",
        "--description",
        "a",
        "--owner",
        "a",
        "--scope",
        "a",
        "--audience",
        "a",
        "--allowed-cidr",
        "10.0.0.0/8",
        "-l",
        "a=a",
        "--annotation",
        "a=a",
        "--not-before",
        "2026-01-01",
        "--expires",
        "2090-01-01",
        "--delete-protected",
    ]);
    // No key has all of them at a time.
    let suspended = user.json(&["key", "disable", "zapier", "--reason", "a", "--resume-time", "in 2h"]);
    user.does(&["key", "update", "zapier", "--delete-protected", "false"]);
    let deleted = user.json(&["key", "delete", "zapier", "--reason", "a"]);
    let descriptors = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let fields = |message: &str| -> BTreeSet<String> {
        let messages = descriptors.file.iter().flat_map(|file| &file.message_type);
        let found = messages.filter(|one| one.name() == message).flat_map(|one| &one.field);
        found.map(|field| field.json_name().to_owned()).collect()
    };
    let names = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&suspended).union(&names(&deleted)).cloned().collect::<BTreeSet<_>>(), fields("Key"));
    user.does(&["tenant", "update", "default", "--display-name", "a", "--secret-prefix", "a"]);
    user.does(&["tenant", "suspend", "default", "--reason", "a"]);
    user.does(&["epoch", "set", "--tenant", "default"]);
    assert_eq!(names(&user.json(&["tenant", "get", "default"])), fields("Tenant"));
    user.does(&["owner", "suspend", "a", "--reason", "a"]);
    user.does(&["epoch", "set", "--owner", "a"]);
    assert_eq!(names(&user.json(&["owner", "get", "a"])), fields("Owner"));
    user.does(&["epoch", "set", "--issuer", "spiffe://test/a"]);
    assert_eq!(names(&user.json(&["epoch", "get", "--issuer", "spiffe://test/a"])), fields("Issuer"));
}

/// What is added to is read before: a change in between must not be undone.
#[test]
fn labels_that_are_set_at_the_same_time_are_there_or_refused() {
    let user = User::start();
    user.does(&["key", "create", "zapier", "--display-name", "Zapier"]);
    let names: Vec<_> = (0..8).map(|number| format!("label-{number}")).collect();
    let spawn = |name: &String| {
        let mut command = user.command(&["key", "update", "zapier", "--label", &format!("{name}=set")]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = names.iter().map(spawn).collect();
    let mut set = BTreeSet::new();
    for (name, child) in names.iter().zip(children) {
        let updated = done(&child.wait_with_output().unwrap());
        match updated.code {
            0 => _ = set.insert(name.clone()),
            code => assert_eq!((code, updated.err.contains("ETAG_MISMATCH")), (6, true), "{}", updated.err),
        }
    }
    let labels = &user.json(&["key", "get", "zapier"])["labels"];
    assert_eq!(labels.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), set);
}
