//! A limit of the system is reported as such, not as a failed disk or a panic.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::program::{Program, keyward, text};

/// A user that has no processes.
const NOBODY: u32 = 54_321;

/// The program under limits of the shell, which `limits` sets. A limit of processes binds anybody but root,
/// so it runs as another user there.
fn limited(limits: &str, dir: &Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = Command::new("setpriv");
        let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
        command.args(ids).arg("--clear-groups").arg("bash");
        command
    } else {
        Command::new("bash")
    };
    let program = dir.join("keyward");
    if !program.exists() {
        // Where another user finds it.
        fs::copy(crate::support::program::program(), &program).unwrap();
    }
    let serve = format!("{limits} && exec \"$0\" serve --listen 127.0.0.1:0 --ops-listen off --data-dir \"$1\"");
    command.args(["-c", &serve]).arg(program).arg(dir.join("data"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).stdin(Stdio::null());
    command
}

/// What a start says that is refused.
fn refusal(limits: &str, dir: &Path) -> String {
    let output = limited(limits, dir).output().unwrap();
    let (_, error) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{limits}: {error}");
    assert!(!error.contains("panicked") && !error.contains("the disk"), "{limits}: {error}");
    error.lines().find(|line| line.starts_with("keyward: ")).unwrap_or_else(|| panic!("{limits}: {error}")).to_owned()
}

#[test]
fn threads_that_are_not_granted_are_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    for processes in [1, 4, 8, 12, 16, 20, 24] {
        let error = refusal(&format!("ulimit -u {processes}"), dir.path());
        assert!(error.contains(" threads, and the system grants ") && error.contains("ulimit -u"), "{error}");
    }
    // So few addresses leave no room for their stacks either.
    let error = refusal("ulimit -v 60000", dir.path());
    assert!(error.contains(" threads, and the system grants ") && error.contains("ulimit -v"), "{error}");
}

#[test]
fn files_that_are_not_granted_are_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    for files in [8, 12, 16, 20, 24, 28, 32, 34] {
        let error = refusal(&format!("ulimit -n {files}"), dir.path());
        assert!(error.contains("open files, and the limit is ") && error.contains("ulimit -n"), "{error}");
    }
    // What it says that it needs is enough.
    let needed = refusal("ulimit -n 30", dir.path());
    let needed: u32 = needed.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let serving = limited(&format!("ulimit -n {needed}"), dir.path()).stderr(Stdio::piped()).spawn().unwrap();
    let program = Program::of(serving);
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0));
}

/// A clock that shows a time before 1970, for programs that ask the C library.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec = -86400;
    return result;
}
"#;

#[test]
fn a_clock_before_1970_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let (source, clock) = (dir.path().join("clock.c"), dir.path().join("clock.so"));
    fs::write(&source, CLOCK).unwrap();
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&clock, &source]).status().unwrap();
    assert!(compiler.success());
    let data = dir.path().join("data");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data-dir"];
    let program = Program::serve(&data, &[]);
    program.signal("TERM");
    assert_eq!(program.end().0, Some(0), "with the clock as it is, it serves");
    for args in [&serve[..], &["check", "--data-dir"], &["rebuild", "--data-dir"], &["admin-key", "--data-dir"]] {
        let output = keyward(args).arg(&data).env("LD_PRELOAD", &clock).output().unwrap();
        let (_, error) = text(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert_eq!(error, "keyward: the system's clock shows a time before 1970: set it\n", "{args:?}");
    }
}

/// At a limit of 0 the kernel still gives dumps to a program that gathers them; at 1 it makes none.
#[test]
fn there_are_no_core_dumps_of_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let dumps = |process: &str| {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let dumps = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        dumps.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    // What the tests were started with cannot be raised.
    let most = if dumps("self")[1] == "0" { "0" } else { "1" };
    assert_eq!(dumps(&program.pid().to_string()), [most, most, "bytes"]);
}
