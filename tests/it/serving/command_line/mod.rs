//! The client: `keyward key`, `tenant`, `caller` and `context`, against a server of its own.

mod contexts;
mod failures;
mod keys;
mod manual;
mod retries;
mod secrets;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::program::{Program, keyward, text};

/// A server, and a user of it who has a home of their own.
struct User {
    server: Program,
    dir: TempDir,
}

/// What a command has done.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl User {
    /// With a context for the server and its first administrator.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Program::serve(&dir.path().join("data"), &[]);
        let user = Self { server, dir };
        let admin = user.path("data/admin.key");
        user.does(&["context", "set", "test", "--server", &user.server.addr, "--key-file", &admin]);
        user
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = keyward(args);
        command.env("HOME", self.dir.path()).current_dir(self.dir.path());
        command
    }

    fn tries(&self, args: &[&str]) -> Done {
        done(&self.command(args).output().unwrap())
    }

    /// What it prints.
    fn does(&self, args: &[&str]) -> String {
        let Done { code, out, err } = self.tries(args);
        assert_eq!(code, 0, "{args:?} {err}");
        out
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.does(args)).unwrap()
    }

    /// Fails with this code, and says each of these.
    fn fails(&self, args: &[&str], code: i32, says: &[&str]) {
        let done = self.tries(args);
        assert_eq!(done.code, code, "{args:?} {}", done.err);
        says.iter().for_each(|text| assert!(done.err.contains(text), "{args:?} {}", done.err));
    }

    fn with_input(&self, args: &[&str], input: &str) -> Done {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        done(&child.wait_with_output().unwrap())
    }

    /// A key file of a caller with a role.
    fn caller(&self, id: &str, role: &str) -> String {
        let file = self.path(id);
        self.does(&["caller", "create", id, "--display-name", id, "--role", role, "--secret-file", &file]);
        file
    }

    fn contexts(&self) -> PathBuf {
        self.dir.path().join(".config/keyward/contexts.toml")
    }
}

fn done(output: &Output) -> Done {
    let (out, err) = text(output);
    Done { code: output.status.code().unwrap(), out, err }
}

fn ids(keys: &Value) -> Vec<&str> {
    keys.as_array().unwrap().iter().map(|key| key["keyId"].as_str().unwrap()).collect()
}
