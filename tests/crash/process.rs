//! A process of this program that opens a store and says what it finds, to be killed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::Failure;
use crate::server::END_LIMIT;

/// What it says once the store is open, before a report, and when it has stopped as it was told to.
pub(crate) const OPENED: &str = "opened";
pub(crate) const COMPARED: &str = "compared ";
pub(crate) const CLOSED: &str = "closed";

/// Says a line, in such a process.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// A running process. Dropping it kills it.
pub(crate) struct Process {
    child: Child,
    /// It stops when this ends.
    told: Option<ChildStdin>,
    lines: UnboundedReceiver<String>,
    seen: Vec<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Process {
    /// Starts a mode of this program.
    pub(crate) fn spawn(mode: &str, args: impl IntoIterator<Item = OsString>, log: &Path) -> Result<Self, Failure> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(mode).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("the process has no stdout")?;
        let (sender, lines) = unbounded_channel();
        // Ends with the process: then its end of the pipe closes.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        Ok(Self { told: child.stdin.take(), child, lines, seen: vec![] })
    }

    /// Waits until it has compared everything.
    pub(crate) async fn report<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let line = self.line(COMPARED).await?;
        Ok(serde_json::from_str(line.strip_prefix(COMPARED).unwrap_or_default())?)
    }

    async fn line(&mut self, beginning: &str) -> Result<String, Failure> {
        while let Some(line) = self.lines.recv().await {
            self.seen.push(line.clone());
            if line.starts_with(beginning) {
                return Ok(line);
            }
        }
        let status = self.child.wait()?;
        Err(self.complaint(&format!("the process ended ({status}) before it said '{}'", beginning.trim_end())))
    }

    pub(crate) fn has_opened(&self) -> bool {
        self.seen.iter().any(|line| line == OPENED)
    }

    pub(crate) async fn kill(mut self) -> Result<(), Failure> {
        if let Some(status) = self.child.try_wait()? {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line);
            }
            return Err(self.complaint(&format!("the process ended ({status}) before it was killed")));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        self.told = None;
        match timeout(END_LIMIT, self.line(CLOSED)).await {
            Ok(line) => line.map(drop)?,
            Err(_) => return Err(self.complaint(&format!("told to stop, the process has not after {END_LIMIT:?}"))),
        }
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(self.complaint(&format!("told to stop, the process ended with {status}")))
        }
    }

    pub(crate) fn complaint(&self, what: &str) -> Failure {
        let said: String = self.seen.iter().rev().take(3).map(|line| format!("\n    {line:.400}")).collect();
        format!("{what}. It has said at last:{said}").into()
    }
}
