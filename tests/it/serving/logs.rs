//! What the log says of calls and changes, and to operators.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use keyward::grpc::pb;
use tonic::Code;

use crate::support::harness::{bad_fields, disable, new_key, strings, update};
use crate::support::program::{Program, admin_of, keyward, text};

#[tokio::test]
async fn each_change_is_logged_with_what_it_changed_and_who_asked() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let admin = program.caller(&admin_of(&dir));
    let tenant = pb::CreateTenantRequest { tenant: "acme".into(), display_name: "Acme".into(), ..Default::default() };
    let tenant = admin.create_tenant(tenant).await.unwrap();
    let key = pb::CreateKeyRequest { tenant: "acme".into(), key_id: "zapier".into(), ..new_key("Zapier", &[]) };
    let issued = admin.issued(key).await;
    let dry = pb::CreateKeyRequest { key_id: "dry".into(), validate_only: true, ..new_key("Dry", &[]) };
    admin.create(dry).await.unwrap();
    let renamed = pb::Key { display_name: "Zapier 2".into(), ..issued.key.clone() };
    let updated = admin.update(update(&renamed, &["display_name"])).await.unwrap();
    let disabled = admin.disable_key(&issued.key).await;
    admin.disable_key(&issued.key).await;
    let enabled = admin.enable_key(&issued.key).await;
    let revoked = admin.revoke_key(&issued.key).await;
    program.signal("TERM");
    let (_, log) = program.end();
    let changes: Vec<_> = log.lines().filter(|line| line.contains(" changed method=")).collect();
    let caller = changes[1].split("caller=").nth(1).unwrap().split(' ').next().unwrap();
    assert!(
        log.contains(&format!("call=\"/keyward.v1.KeyAdmin/CreateTenant\" caller={caller} peer=127.0.0.1 ")),
        "{log}"
    );
    let expected = [
        ("CreateTenant", "acme", tenant.revision),
        ("CreateKey", "acme/zapier", issued.revision),
        ("UpdateKey", "acme/zapier", updated.revision),
        ("DisableKey", "acme/zapier", disabled.revision),
        ("EnableKey", "acme/zapier", enabled.revision),
        ("RevokeKey", "acme/zapier", revoked.revision),
    ];
    assert!(changes[0].contains("method=\"Bootstrap\"") && changes[0].contains("caller=keyward"), "{log}");
    assert_eq!(changes.len(), expected.len() + 1, "what changes nothing is no change: {log}");
    for (line, (method, target, revision)) in changes[1..].iter().zip(expected) {
        let said = format!(
            "changed method=\"{method}\" tenant=\"acme\" target=\"{target}\" revision={revision} caller={caller} peer=127.0.0.1"
        );
        assert!(line.contains(&said), "{said}: {line}");
    }
}

#[tokio::test]
async fn a_call_that_is_refused_is_logged_with_its_caller_where_it_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let admin = program.caller(&admin_of(&dir));
    let key = |id: &str| pb::CreateKeyRequest {
        tenant: "system".into(),
        key_id: id.into(),
        scopes: strings(&["keyward.verifier"]),
        ..new_key("Caller", &[])
    };
    let (small, gone) = (admin.issued(key("small")).await, admin.issued(key("gone")).await);
    admin.disable(disable(&gone.key)).await.unwrap();
    for (secret, code) in [
        (&*small.secret, Code::PermissionDenied),
        (&*gone.secret, Code::Unauthenticated),
        ("kw_live_nonsense", Code::Unauthenticated),
    ] {
        let refused = program.caller(secret).list(pb::ListKeysRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    program.signal("TERM");
    let (_, log) = program.end();
    let refusals: Vec<_> = log.lines().filter(|line| line.contains("call refused")).collect();
    assert_eq!(refusals.len(), 3, "{log}");
    assert!(refusals[0].contains(" caller=small peer=127.0.0.1 ") && refusals[1].contains(" caller=gone "), "{log}");
    assert!(!refusals[2].contains("caller="), "nobody is named whose key it is not: {log}");
}

#[test]
fn a_start_reminds_of_the_first_administrators_key_as_long_as_it_is_there() {
    const SAYS: &str = "the first administrator's key still lies beside the data";
    let dir = tempfile::tempdir().unwrap();
    let log_of_a_start = || {
        let program = Program::serve(dir.path(), &[]);
        program.signal("TERM");
        program.end().1
    };
    let first = log_of_a_start();
    assert!(first.contains("wrote the first administrator's key") && !first.contains(SAYS), "{first}");
    for _ in 0..2 {
        let log = log_of_a_start();
        let line = log.lines().find(|line| line.contains(SAYS)).expect(&log);
        assert!(line.contains("WARN") && line.contains("admin.key"), "{line}");
    }
    fs::remove_file(dir.path().join("admin.key")).unwrap();
    assert!(!log_of_a_start().contains(SAYS));
}

#[test]
fn a_start_on_data_that_is_not_whole_says_what_can_be_done() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    program.signal("TERM");
    program.end();
    let journal = dir.path().join("journal/000000000001.kwj");
    let sound = fs::read(&journal).unwrap();
    let serve = || {
        let mut command = keyward(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
        text(&command.arg(dir.path()).stderr(Stdio::piped()).output().unwrap()).1
    };
    let mut flipped = sound.clone();
    flipped[20] ^= 1;
    for damaged in [&sound[..64], &flipped] {
        fs::write(&journal, damaged).unwrap();
        let error = serve();
        assert!(error.contains("put") && error.contains("`keyward rebuild` says what can be had"), "{error}");
    }
    fs::remove_file(dir.path().join("watermark")).unwrap();
    fs::write(&journal, sound).unwrap();
    let error = serve();
    assert!(error.contains("--accept-watermark-loss") && !error.contains("keyward rebuild"), "{error}");
}

/// The fields of a kind of line, as docs/logging.md has them.
fn documented_fields() -> BTreeSet<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/logging.md")).unwrap();
    let calls = page.split("## Calls").nth(1).unwrap().split("\n## ").next().unwrap();
    calls.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect()
}

#[tokio::test]
async fn the_access_log_has_one_verdict_in_so_many_and_each_of_its_fields_is_documented() {
    let dir = tempfile::tempdir().unwrap();
    for (every, calls, lines) in [(1, 6, 6), (3, 30, 10), (0, 6, 0)] {
        let data = dir.path().join(every.to_string());
        let every_text = every.to_string();
        let environment = [("KEYWARD_ACCESS_LOG_SAMPLE", every_text.as_str())];
        let program = Program::serve_in(&data, &[], &environment);
        let admin = program.caller(fs::read_to_string(data.join("admin.key")).unwrap().trim());
        let key = admin.issue("Key", &[]).await;
        for nth in 0..calls {
            let secret = if nth % 2 == 0 { &*key.secret } else { "garbage" };
            admin.verdict(secret).await;
        }
        program.signal("TERM");
        let (_, log) = program.end();
        assert!(!log.contains(&key.secret) && !log.contains("garbage"), "{log}");
        let logged: Vec<_> = log.lines().filter(|line| line.contains("KeyVerify/Verify")).collect();
        assert_eq!(logged.len(), lines, "one in {every} of {calls}: {log}");
        if every == 1 {
            let seen: BTreeSet<_> = logged.iter().flat_map(|line| fields_of(line)).collect();
            // This caller shows no certificate.
            let documented = documented_fields().into_iter().filter(|field| field != "identity").collect();
            assert_eq!(seen, documented);
            let allowed = format!("verdict=\"REASON_OK\" tenant=\"default\" key_id=\"{}\"", key.key.key_id);
            assert!(logged[0].contains(" INFO ") && logged[0].contains(&allowed), "{log}");
            assert!(logged[1].contains("code=Ok verdict=\"REASON_MALFORMED\" duration_us="), "{log}");
        }
    }
}

/// The names of the fields of a line.
fn fields_of(line: &str) -> impl Iterator<Item = String> {
    let (_, fields) = line.split_once(": call ").unwrap();
    fields.split(' ').map(|field| field.split('=').next().unwrap().to_owned())
}

#[tokio::test]
async fn an_administrator_sets_the_filter_of_the_log_by_a_call() {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Program::serve(dir.path(), &["--log-filter", "warn,keyward=info"]);
    let admin = program.caller(&admin_of(&dir));
    let set = async |filter: &str| {
        let request = pb::SetLogFilterRequest { filter: filter.into() };
        admin.set_log_filter(request).await.map(|reply| reply.previous)
    };
    assert_eq!(set("").await.unwrap(), "warn,keyward=info", "nothing is set");
    assert_eq!(set("debug").await.unwrap(), "warn,keyward=info");
    let line = program.wait_for("the log filter was set by a call");
    assert!(line.contains("log_filter=\"debug\" caller=key_"), "{line}");
    admin.verdict("any").await;
    program.wait_for("DEBUG keyward::layer::log: call call=\"/keyward.v1.KeyVerify/Verify\"");
    for (wrong, rule) in [
        ("keywards=debug", "would silence"),
        ("keyward=loud", "is not a filter"),
        (&*"x".repeat(1_025), "at most 1024"),
    ] {
        let refused = set(wrong).await.unwrap_err();
        assert_eq!(bad_fields(&refused), ["filter"]);
        assert!(refused.message().contains(rule), "{refused}");
    }
    assert_eq!(set("error").await.unwrap(), "debug");
    let viewer = pb::CreateKeyRequest {
        tenant: "system".into(),
        ..new_key("Narrow", &["keyward.admin@default", "keyward.auditor"])
    };
    let viewer = program.caller(&admin.issued(viewer).await.secret);
    let refused = viewer.set_log_filter(pb::SetLogFilterRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    program.signal("TERM");
    let (_, log) = program.end();
    assert!(!log.contains("stopping"), "at level error: {log}");
}
