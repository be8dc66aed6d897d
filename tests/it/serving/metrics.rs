//! Metrics of the process, its disk and its store, in both formats.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keyward::app::Engine;
use keyward::server::addr::ListenAddr;
use keyward_core::clock::UnixMillis;
use tokio::net::TcpStream;

use crate::storage::disk::copy_dir;
use crate::support::harness::{START, Site};
use crate::support::ops_client::{converse, metrics, value, wait_for_value};
use crate::support::program::Program;

/// The content type and the text that a client with this Accept header gets.
async fn accepting(ops: &ListenAddr, accept: &str) -> (String, String) {
    let ListenAddr::Tcp(addr) = ops else { panic!("a TCP listener") };
    let request = format!("GET /metrics HTTP/1.1\r\nhost: keyward\r\n{accept}\r\n");
    let reply = converse(TcpStream::connect(addr).await.unwrap(), &request).await;
    let (head, text) = reply.split_once("\r\n\r\n").unwrap();
    let content_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (content_type.to_owned(), text.to_owned())
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let (plain, open) =
        ("text/plain; version=0.0.4; charset=utf-8", "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for (accept, expected) in [
        ("", plain),
        ("accept: */*\r\n", plain),
        ("accept: text/plain\r\n", plain),
        ("accept: application/json\r\n", plain),
        ("accept: application/openmetrics-text;q=0\r\n", plain),
        ("accept: application/openmetrics-text;version=2.0.0\r\n", plain),
        ("accept: application/openmetrics-text;q=0.5, text/plain;version=0.0.4\r\n", plain),
        ("accept: application/openmetrics-text\r\n", open),
        ("accept: Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8\r\n", open),
        // Prometheus 2.42.
        (
            "accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n",
            open,
        ),
        // Prometheus 3, in two lines, as a proxy may have it.
        (
            "accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6\r\n\
             accept: text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n",
            open,
        ),
        // One that reads the new text format alone, or protobuf, is given the old one.
        ("accept: application/vnd.google.protobuf;q=0.7,text/plain;version=0.0.4;q=0.6\r\n", plain),
    ] {
        let (content_type, text) = accepting(&ops, accept).await;
        assert_eq!(content_type, expected, "{accept}");
        assert_eq!(text.ends_with("# EOF\n"), expected == open, "{accept}");
        assert_eq!(text.contains("# UNIT "), expected == open, "{accept}");
        let counter =
            if expected == open { "# TYPE keyward_verdicts counter" } else { "# TYPE keyward_verdicts_total counter" };
        assert!(text.lines().any(|line| line == counter), "{accept}");
    }
    let series = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let (_, plain) = accepting(&ops, "").await;
    let (_, open) = accepting(&ops, "accept: application/openmetrics-text\r\n").await;
    assert_eq!(series(&plain), series(&open));
    assert!(series(&plain).len() > 200);
    for line in ["# TYPE keyward_build_info gauge", "# TYPE keyward_call_duration_seconds histogram"] {
        assert!(plain.lines().any(|found| found == line), "{line}");
    }
    // Each family is told of once, before its first sample, and by a help text too.
    let types: Vec<_> = plain.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let helps: Vec<_> = plain.lines().filter_map(|line| line.strip_prefix("# HELP ")).collect();
    let name = |line: &&str| line.split(' ').next().unwrap().to_owned();
    assert_eq!(types.iter().map(name).collect::<Vec<_>>(), helps.iter().map(name).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_process_is_told_of() {
    let site = Site::with_ops().await;
    let ops = site.ops_addr();
    let text = metrics(&ops).await;
    let process = |name: &str| value(&text, &format!("process_{name}")).unwrap();
    assert_eq!(process("start_time_seconds"), START.0 as f64 / 1e3);
    assert!(process("resident_memory_bytes") > 1e6, "{text}");
    assert!(process("virtual_memory_bytes") >= process("resident_memory_bytes"), "{text}");
    assert!(process("open_fds") > 3.0 && process("open_fds") < process("max_fds"), "{text}");
    let cpu = process("cpu_seconds_total");
    assert!(cpu > 0.0, "{text}");
    wait_for_value(&ops, "process_cpu_seconds_total", |later| later > cpu).await;
}

#[tokio::test]
async fn keys_are_counted_by_their_state() {
    let mut site = Site::changed(Engine::Sled, "127.0.0.1:0", |_| {}).await;
    let admin = site.admin();
    let mut issued = vec![];
    for _ in 0..6 {
        issued.push(admin.issue("Zapier", &["a"]).await.key);
    }
    for key in &issued[..3] {
        admin.disable_key(key).await;
    }
    admin.enable_key(&issued[0]).await;
    admin.revoke_key(&issued[1]).await;
    admin.revoke_key(&issued[5]).await;
    for _ in 0..2 {
        let text = metrics(&site.ops_addr()).await;
        let states = ["active", "disabled", "revoked"];
        let counts = states.map(|state| value(&text, &format!("keyward_keys_by_state{{state=\"{state}\"}}")).unwrap());
        assert_eq!(counts, [4.0, 1.0, 2.0], "the administrator is active");
        assert_eq!(value(&text, "keyward_keys"), Some(7.0));
        site.restart().await;
    }
}

#[tokio::test]
async fn journal_table_disk_and_backup_are_told_of() {
    let site = Site::changed(Engine::Sled, "127.0.0.1:0", |_| {}).await;
    let (ops, admin) = (site.ops_addr(), site.admin());
    let revision = admin.issue("Zapier", &[]).await.revision as f64;
    let text = metrics(&ops).await;
    assert_eq!(value(&text, "keyward_journal_revision"), Some(revision));
    assert_eq!(value(&text, "keyward_changes_waiting"), Some(0.0));
    assert_eq!(value(&text, "keyward_phase{phase=\"serving\"}"), Some(1.0));
    assert_eq!(value(&text, "keyward_phase{phase=\"loading\"}"), Some(0.0));
    assert_eq!(value(&text, "keyward_last_snapshot_timestamp_seconds"), None, "there is none");
    assert_eq!(value(&text, "keyward_last_backup_timestamp_seconds"), None, "there is none");
    wait_for_value(&ops, "keyward_table_revision", |applied| applied == revision).await;
    wait_for_value(&ops, "keyward_disk_free_bytes", |free| free > 1e6).await;

    let later = UnixMillis(START.0 + 90_500);
    site.clock.advance_ms(90_500);
    let mut backup = admin.backup().await.unwrap();
    while backup.message().await.unwrap().is_some() {}
    wait_for_value(&ops, "keyward_last_backup_timestamp_seconds", |time| time == later.0 as f64 / 1e3).await;
}

/// What a restore makes begins with a snapshot, of the backup's time.
#[tokio::test]
async fn the_newest_snapshot_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-directories/v2-restored/data"), dir.path());
    fs::set_permissions(dir.path().join("pepper"), fs::Permissions::from_mode(0o600)).unwrap();
    let program = Program::serve(dir.path(), &["--ops-listen", "127.0.0.1:0"]);
    let ops = program.said("ops listening listen=").parse().unwrap();
    wait_for_value(&ops, "keyward_last_snapshot_timestamp_seconds", |time| time == START.0 as f64 / 1e3).await;
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}
