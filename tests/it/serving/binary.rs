//! The built program: command line, signals, exit.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use keyward::grpc::pb::{self, Reason};
use keyward_core::clock::UnixMillis;
use tonic::transport::Endpoint;

use crate::api::administrators::write_to;
use crate::support::harness::{Handle, Issued, START, Site, disable, new_key};
use crate::support::program::{Killed, Program, admin_of, keyward, program, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_calls_do_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    // Late answers would take a quarter of an hour.
    let at_once = [("KEYWARD_FAILED_AUTHENTICATION_DELAY", "0s")];
    let mut program = Program::serve_in(dir.path(), &[], &at_once);
    let nobody = program.caller("nonsense");
    for _ in 0..1_000 {
        nobody.list(pb::ListKeysRequest::default()).await.unwrap_err();
    }
    program.signal("TERM");
    program.wait_for("more calls were refused than are logged one by one");
    let (code, log) = program.end();
    assert_eq!(code, Some(0));
    let logged = log.lines().filter(|line| line.contains("call refused")).count();
    let counted = |line: &str| line.split("calls=").nth(1)?.split_whitespace().next()?.parse::<usize>().ok();
    let left_out: usize = log.lines().filter_map(counted).sum();
    assert_eq!(logged + left_out, 1_000, "{log}");
    assert!(left_out > 0);
}

#[tokio::test]
async fn a_start_whose_clock_is_behind_the_log_says_by_how_much() {
    const SAYS: &str = "the clock is behind the last change in the log";
    let mut site = Site::start().await;
    site.stop().await;
    let program = Program::serve(site.dir.path(), &[]);
    assert!(!program.seen.contains(SAYS));
    program.signal("TERM");
    program.end();
    site.try_start().await.unwrap();
    site.clock.advance_ms(100 * 31_557_600_000);
    site.admin().issue("Later", &[]).await;
    site.stop().await;
    let program = Program::serve(site.dir.path(), &[]);
    let line = program.seen.lines().find(|line| line.contains(SAYS)).unwrap();
    assert!(line.contains("WARN") && line.contains("behind=") && line.contains("years"), "{line}");
}

#[tokio::test]
async fn a_start_without_a_lasting_administrator_says_so() {
    const SAYS: &str = "there is no lasting administrator";
    let mut site = Site::start().await;
    site.stop().await;
    let program = Program::serve(site.dir.path(), &[]);
    program.signal("TERM");
    let (_, log) = program.end();
    assert!(!log.contains(SAYS), "{log}");
    // Before it begins to last, nothing keeps it from being dated.
    write_to(site.dir.path(), START, |mut key| {
        key.spec.policy.not_before = Some(START);
        Some(key)
    })
    .await;
    write_to(site.dir.path(), UnixMillis(START.0 - 1), |mut key| {
        key.spec.policy.expire_time = Some(UnixMillis(START.0 + 100 * 31_557_600_000));
        Some(key)
    })
    .await;
    let program = Program::serve(site.dir.path(), &[]);
    let line = program.seen.lines().find(|line| line.contains(SAYS)).expect(&program.seen);
    assert!(line.contains("WARN") && line.contains("keyward admin-key"), "{line}");
    program.signal("TERM");
    program.end();
}

#[test]
fn verdicts_go_before_everything_else_where_processors_are_short() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let mut niceness = std::collections::BTreeMap::<String, i32>::new();
    for task in fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap() {
        // The name may have spaces; the niceness is the 17th field behind it (proc(5)).
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let (head, tail) = stat.rsplit_once(')').unwrap();
        let name = head.split_once('(').unwrap().1.to_owned();
        niceness.insert(name, tail.split_whitespace().nth(16).unwrap().parse().unwrap());
    }
    let ours = niceness["keyward"];
    assert_eq!(niceness["core-0"], ours, "{niceness:?}");
    for behind in ["committer", "table", "maintenance", "tokio-rt-worker"] {
        assert_eq!(niceness[behind], (ours + 10).min(19), "{behind}: {niceness:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept: Vec<Issued> = vec![];
    let mut disabled: Vec<Issued> = vec![];
    for round in 0..3 {
        let program = Program::serve(dir.path(), &[]);
        let admin = program.caller(&admin_of(&dir));
        let (sender, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (admin, sender) = (admin.clone(), sender.clone());
                tokio::spawn(async move {
                    for number in 0.. {
                        let request = new_key(&format!("{round} {writer} {number}"), &[]);
                        let Ok(created) = admin.create(request).await else { return };
                        let (key, revision) = (created.key.unwrap(), created.revision);
                        let issued = Issued { key: key.clone(), secret: created.secret, revision };
                        let off = number % 3 == 0;
                        if off && admin.disable(disable(&key)).await.is_err() {
                            return; // neither is certain of this one
                        }
                        sender.send((issued, off)).unwrap();
                    }
                })
            })
            .collect();
        drop(sender);
        // In the middle of it: after some hundred acknowledgements, with calls under way.
        for _ in 0..300 {
            let (issued, off) = acknowledged.recv().await.unwrap();
            if off { &mut disabled } else { &mut kept }.push(issued);
        }
        program.signal("KILL");
        for writer in writers {
            writer.await.unwrap();
        }
        while let Some((issued, off)) = acknowledged.recv().await {
            if off { &mut disabled } else { &mut kept }.push(issued);
        }
        assert_eq!(program.end().0, None, "it died of the signal");

        let program = Program::serve(dir.path(), &[]);
        let admin = program.caller(&admin_of(&dir));
        for issued in &kept {
            assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
        }
        for issued in &disabled {
            assert_eq!(admin.reason(&issued.secret).await, Reason::Disabled);
        }
        program.signal("TERM");
        assert_eq!(program.end().0, Some(0));
    }
    assert!(kept.len() > 100 && disabled.len() > 100, "{} {}", kept.len(), disabled.len());
}

#[tokio::test]
async fn no_secret_is_in_any_file_or_log_line() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &["--log-filter", "trace"]);
    let admin_secret = admin_of(&dir);
    let admin = program.caller(&admin_secret);
    let mut issued = vec![];
    for number in 0..5 {
        let key = admin.issue(&format!("Key {number}"), &["a"]).await;
        admin.reason(&key.secret).await;
        admin.disable_key(&key.key).await;
        admin.reason(&key.secret).await;
        issued.push(key);
    }
    // Not only what works: a secret that is mistyped, misplaced or refused is a secret all the same.
    let mistyped = format!("{}x", issued[0].secret);
    admin.reason(&mistyped).await;
    admin.ask(pb::VerifyRequest { tenant: issued[1].secret.clone(), ..Default::default() }).await.unwrap_err();
    admin.create(pb::CreateKeyRequest { key_id: issued[2].secret.clone(), ..new_key("x", &[]) }).await.unwrap_err();
    let stranger = program.caller(&issued[3].secret);
    stranger.list(pb::ListKeysRequest::default()).await.unwrap_err();
    drop((admin, stranger));
    program.signal("TERM");
    let (code, log) = program.end();
    assert_eq!(code, Some(0));

    let mut files = vec![];
    bytes_below(dir.path(), &mut files);
    let holds = |needle: &str| {
        let found = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        let in_files = files.iter().filter(|(name, bytes)| !name.ends_with("admin.key") && found(bytes)).count();
        (in_files, found(log.as_bytes()))
    };
    // The search finds what is there.
    assert!(holds(&issued[0].key.key_id).0 >= 2, "the id is in the journal and in the table");
    assert!(log.contains("TRACE") && log.contains("/keyward.v1.KeyVerify/Verify"), "the log is complete");
    for secret in issued.iter().map(|key| &key.secret).chain([&admin_secret]) {
        let random = &secret["kw_live_".len()..secret.len() - 4];
        assert_eq!(holds(random), (0, false), "a secret has leaked");
    }
}

fn bytes_below(dir: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bytes_below(&path, found);
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let second = keyward(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir.path()).output().unwrap();
    let (_, error) = text(&second);
    assert_eq!(second.status.code(), Some(1));
    assert!(error.contains(&format!("in use by process {}", program.pid())), "{error}");
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

#[test]
fn probes_are_answered_where_the_configuration_says() {
    let listing = |command: &mut Command| text(&command.output().unwrap()).0;
    let default = listing(keyward(&["config"]).env_remove("KEYWARD_OPS_LISTEN"));
    assert!(default.contains("ops_listen = \"127.0.0.1:9464\" # default\n"), "{default}");
    let off = listing(keyward(&["config"]).env("KEYWARD_OPS_LISTEN", "off"));
    assert!(off.contains("ops_listen = \"off\" # in the environment\n"), "{off}");
    let flag = listing(&mut keyward(&["config", "--ops-listen", "0.0.0.0:1"]));
    assert!(flag.contains("ops_listen = \"0.0.0.0:1\" # on the command line\n"), "{flag}");
    let refused = text(&keyward(&["config", "--ops-listen", "on"]).output().unwrap()).1;
    assert!(refused.contains("ops_listen (on the command line): must be an address"), "{refused}");
    assert!(refused.trim_end().ends_with(", or off"), "{refused}");
}

#[test]
fn the_log_says_where_probes_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &["--ops-listen", "127.0.0.1:0"]);
    let addr = program.seen.split("ops listening listen=").nth(1).unwrap().lines().next().unwrap();
    let mut probe = TcpStream::connect(addr).unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\nhost: keyward\r\n\r\n").unwrap();
    let mut reply = String::new();
    probe.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

/// A log collector that hangs must not hang the door to all other systems.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_does_not_hold_up_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let first = Program::serve(dir.path(), &[]);
    let addr = first.addr.clone();
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));

    let mut command = keyward(&["serve", "--log-filter", "trace", "--listen", &addr, "--data-dir"]);
    // A pipe whose reader stays open and never reads: 64 KiB, and then writing to it blocks.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = Killed(command.arg(dir.path()).stderr(writer).spawn().unwrap());
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let channel = loop {
        match endpoint.connect().await {
            Ok(channel) => break channel,
            Err(_) => assert!(child.0.try_wait().unwrap().is_none(), "it ended"),
        }
    };
    let admin = Handle::new(channel, Some(admin_of(&dir)));
    let issued = loop {
        match admin.create(new_key("Zapier", &[])).await {
            Ok(created) => break created,
            Err(refused) => assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}"),
        }
    };
    for _ in 0..500 {
        let verdict = tokio::time::timeout(std::time::Duration::from_secs(10), admin.reason(&issued.secret)).await;
        assert_eq!(verdict.expect("a verdict is held up by the log"), Reason::Ok);
    }
    drop((child, reader));
}

#[test]
fn a_low_limit_of_open_files_is_told_with_what_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    let script =
        format!("ulimit -n 200 && exec {} serve --listen 127.0.0.1:0 --ops-listen off --data-dir \"$0\"", program());
    let shell = shell.args(["-c", &script]).arg(dir.path()).env_clear().stdin(Stdio::null()).stderr(Stdio::piped());
    let program = Program::of(shell.spawn().unwrap());
    assert!(program.seen.contains("leaves room for fewer connections than 8192"), "{}", program.seen);
    assert!(program.seen.contains("files=200 connections=72"), "{}", program.seen);
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}
