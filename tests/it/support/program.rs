//! The built program, as a process of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use tempfile::TempDir;

use super::harness::{Handle, TLS, endpoint};

/// The program that is tested: the one in `KEYWARD_BIN`, such as a release, or else the one that was built
/// with the tests.
pub(crate) fn program() -> String {
    std::env::var("KEYWARD_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_keyward").to_owned())
}

/// The program as a child process. A thread reads its log, so that a full pipe never holds it up.
pub(crate) struct Program {
    child: Killed,
    lines: Receiver<String>,
    /// All that it has logged, as far as it was read.
    pub(crate) seen: String,
    pub(crate) addr: String,
}

/// A process that a failing test does not leave behind.
pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Program {
    /// Starts it on a port of its own, and waits until it serves.
    pub(crate) fn serve(dir: &Path, args: &[&str]) -> Self {
        Self::serve_in(dir, args, &[])
    }

    /// The same, with these variables in its environment.
    pub(crate) fn serve_in(dir: &Path, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = keyward(&[]);
        command.envs(environment.iter().copied());
        Self::begin(command, dir, args)
    }

    /// The same, where it may open no more files than this.
    pub(crate) fn serve_within(files: usize, dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(program()).env_clear().stdin(Stdio::null());
        Self::begin(command, dir, args)
    }

    fn begin(mut command: Command, dir: &Path, args: &[&str]) -> Self {
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir).args(args);
        if let Some((_, files)) = &*TLS {
            let file = |name| files.dir.join(name);
            command
                .env("KEYWARD_TLS_CERTIFICATE_FILE", file("server.pem"))
                .env("KEYWARD_TLS_KEY_FILE", file("server.key"));
        }
        Self::of(command.stderr(Stdio::piped()).spawn().unwrap())
    }

    /// A program that has just been started, once it serves.
    pub(crate) fn of(child: Child) -> Self {
        let mut child = Killed(child);
        let log = BufReader::new(child.0.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || log.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut program = Self { child, lines, seen: String::new(), addr: String::new() };
        let listening = program.wait_for("listen=");
        program.addr = listening.split("listen=").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        program.wait_for("serving keys=");
        program
    }

    /// Reads the log up to a line that has this text.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        while let Ok(line) = self.lines.recv() {
            self.seen.push_str(&line);
            self.seen.push('\n');
            if line.contains(text) {
                return line;
            }
        }
        panic!("the log ended without '{text}':\n{}", self.seen);
    }

    /// What the first line that has this text says behind it.
    pub(crate) fn said(&self, text: &str) -> &str {
        let line = self.seen.lines().find_map(|line| line.split_once(text)).unwrap();
        line.1.split_whitespace().next().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub(crate) fn caller(&self, secret: &str) -> Handle {
        let channel = endpoint(&self.addr).connect_lazy();
        Handle::new(channel, Some(secret.to_owned()))
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for its end; gives its exit code, if it was not a signal, and all that it logged.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let code = self.child.0.wait().unwrap().code();
        for line in self.lines.iter() {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        (code, self.seen)
    }
}

/// The program with an environment of its own, without the ops address, whose default port would be the same
/// for all.
pub(crate) fn keyward(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args).env_clear().env("KEYWARD_OPS_LISTEN", "off").stdin(Stdio::null());
    // tests/hyper sets it.
    if let Some(http2) = std::env::var_os("KEYWARD_HTTP2") {
        command.env("KEYWARD_HTTP2", http2);
    }
    command
}

pub(crate) fn text(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
}

pub(crate) fn admin_of(dir: &TempDir) -> String {
    fs::read_to_string(dir.path().join("admin.key")).unwrap().trim().to_owned()
}
