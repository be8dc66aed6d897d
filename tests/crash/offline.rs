//! Other commands of the program: `check` after a crash, and `backup`, to be killed in. A program that lacks
//! one of them is not tested by it, and the tally says so.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Failure;
use crate::run::Tally;
use crate::server::{Launch, Server};

/// A command that takes longer hangs. Handed to `timeout`.
const LIMIT_SECONDS: &str = "300";

/// What the program can do beside serving.
#[derive(Clone, Debug)]
pub(crate) struct Offline {
    program: PathBuf,
    has_check: bool,
    pub(crate) has_backup: bool,
    pub(crate) has_admin_key: bool,
}

impl Offline {
    /// Asks the program.
    pub(crate) fn of(program: &Path) -> Self {
        let has = |name: &str| {
            let mut command = Command::new(program);
            command.args([name, "--help"]).env_clear().stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        Self {
            program: program.to_owned(),
            has_check: has("check"),
            has_backup: has("backup"),
            has_admin_key: has("admin-key"),
        }
    }

    /// Lets the program check a data directory that nobody serves.
    ///
    /// # Errors
    /// When the program doubts it.
    pub(crate) fn check_directory(&self, launch: &Launch, tally: &mut Tally) -> Result<(), Failure> {
        self.check(&["--data-dir".as_ref(), launch.data_dir.as_os_str()], "data directories checked offline", tally)
    }

    /// Lets the program check a backup.
    ///
    /// # Errors
    /// When the program doubts it.
    pub(crate) fn check_backup(&self, backup: &Path, tally: &mut Tally) -> Result<(), Failure> {
        self.check(&[backup.as_os_str()], "backups checked", tally)
    }

    fn check(&self, args: &[&std::ffi::OsStr], counted: &str, tally: &mut Tally) -> Result<(), Failure> {
        if !self.has_check {
            tally.count("NOT DONE, the program has no `check`", 1);
            return Ok(());
        }
        let mut command = Command::new("timeout");
        command.arg(LIMIT_SECONDS).arg(&self.program).arg("check").args(args).env_clear();
        let checked = command.output().map_err(|e| format!("cannot run timeout: {e}"))?;
        if checked.status.success() {
            tally.count(counted, 1);
            return Ok(());
        }
        let (out, error) = (String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
        Err(format!("keyward check {args:?}: {}\n{out}{error}", checked.status).into())
    }

    /// Starts a backup of a running server. It ends by itself, also when the server is gone.
    pub(crate) fn backup(&self, server: &Server, to: &Path) -> Result<Child, Failure> {
        let (addr, key_file) = server.reach()?;
        let mut command = Command::new("timeout");
        command.arg(LIMIT_SECONDS).arg(&self.program).arg("backup").arg(to).env_clear();
        command.args(["--server", addr, "--key-file"]).arg(key_file).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|e| format!("cannot run timeout: {e}").into())
    }

    /// Starts to make one administrator more, in a directory that nobody serves. Its key is all that the
    /// process says.
    pub(crate) fn mint(&self, launch: &Launch) -> Result<Child, Failure> {
        // Not by way of `timeout`: what is killed must be the program itself.
        let mut command = Command::new(&self.program);
        command.args(["admin-key", "--data-dir"]).arg(&launch.data_dir).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().map_err(|e| format!("cannot start {}: {e}", self.program.display()).into())
    }
}
