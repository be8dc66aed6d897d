//! The program as a process: started, watched through its log, stopped, frozen, killed. Every wait has an
//! end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::Failure;
use crate::caller::Caller;

/// A server that does not serve by then hangs. Generous: a debug build on a busy machine replays slowly.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(180);
/// A server that was killed, or told to stop, and is still there by then hangs.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(60);
/// What the log says when it serves.
pub(crate) const SERVING: &str = "serving keys=";
/// Lines of the log that a failure quotes.
const QUOTED_LINES: usize = 15;

/// How to start a server.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    /// A command that runs the program, such as a tracer; empty for none.
    pub(crate) wrapper: Vec<String>,
    pub(crate) data_dir: PathBuf,
    /// Where the server's log is kept; each start appends to it.
    pub(crate) log: PathBuf,
    pub(crate) segment_bytes: u64,
    /// The file with the first administrator's key; by default the one in the data directory.
    pub(crate) admin_key: Option<PathBuf>,
    /// More words of its command line.
    pub(crate) args: Vec<String>,
    /// Variables of its environment, which is otherwise empty.
    pub(crate) env: Vec<(String, String)>,
}

impl Launch {
    /// Starts the process, and waits for nothing.
    pub(crate) fn spawn(&self) -> Result<Server, Failure> {
        let mut words = self.wrapper.iter().map(String::as_str).chain([path(&self.program)?]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(["serve", "--listen", "127.0.0.1:0"]);
        // One line for each call would drown what is of interest.
        command.args(["--log-filter", "info,keyward::layer=warn", "--data-dir"]).arg(&self.data_dir).args(&self.args);
        command.env_clear().env("KEYWARD_JOURNAL_SEGMENT_BYTES", self.segment_bytes.to_string());
        command.env("KEYWARD_OPS_LISTEN", "off");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        let mut log = File::options().create(true).append(true).open(&self.log)?;
        let stderr = child.stderr.take().ok_or("the server has no stderr")?;
        let (sender, lines) = unbounded_channel();
        // Ends with the process: then its end of the pipe closes.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                drop(writeln!(log, "{line}"));
                drop(sender.send(line));
            }
        });
        Ok(Server { launch: self.clone(), child, lines, seen: vec![], addr: None, ops_addr: None })
    }

    /// Starts the process, and waits until it serves.
    pub(crate) async fn serve(&self) -> Result<Server, Failure> {
        let mut server = self.spawn()?;
        server.serving(START_LIMIT).await?;
        Ok(server)
    }
}

fn path(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()).into())
}

/// A running server. Dropping it kills it.
pub(crate) struct Server {
    launch: Launch,
    child: Child,
    lines: UnboundedReceiver<String>,
    seen: Vec<String>,
    addr: Option<String>,
    ops_addr: Option<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.signal(Signal::CONT));
        drop(self.signal(Signal::KILL));
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Waits until it serves.
    pub(crate) async fn serving(&mut self, limit: Duration) -> Result<(), Failure> {
        match timeout(limit, self.line(SERVING)).await {
            Ok(served) => served.map(drop),
            Err(_) => Err(self.complaint(&format!("the server does not serve {limit:?} after its start"))),
        }
    }

    /// Reads the log up to a line that has this text. Give it a limit with [`timeout`].
    pub(crate) async fn line(&mut self, text: &str) -> Result<String, Failure> {
        self.any_line(&[text]).await
    }

    /// Reads the log up to a line that has one of these texts.
    pub(crate) async fn any_line(&mut self, texts: &[&str]) -> Result<String, Failure> {
        while let Some(line) = self.lines.recv().await {
            self.seen.push(line.clone());
            if let Some((before, addr)) = line.split_once("listening listen=") {
                let is_ops = before.ends_with("ops ");
                let of = if is_ops { &mut self.ops_addr } else { &mut self.addr };
                *of = Some(addr.trim().to_owned());
            }
            if texts.iter().any(|text| line.contains(text)) {
                return Ok(line);
            }
        }
        let status = self.child.wait()?;
        Err(self.complaint(&format!("the server ended ({status}) before its log said {texts:?}")))
    }

    /// Calls of the first administrator. Only once it serves.
    pub(crate) async fn caller(&self) -> Result<Caller, Failure> {
        let (addr, secret) = self.reach()?;
        let secret = fs::read_to_string(&secret).map_err(|e| format!("{}: {e}", secret.display()))?;
        Caller::connect(addr, secret.trim()).await
    }

    /// Its address, and the file of the first administrator's key. Only once it serves.
    pub(crate) fn reach(&self) -> Result<(&str, PathBuf), Failure> {
        let addr = self.addr.as_deref().ok_or("the server does not listen yet")?;
        let secret = self.launch.admin_key.clone().unwrap_or_else(|| self.launch.data_dir.join("admin.key"));
        Ok((addr, secret))
    }

    /// What a path of the address for probes answers: the first line. Only once it listens there.
    pub(crate) fn probe(&self, path: &str) -> Result<String, Failure> {
        let mut probe = TcpStream::connect(self.ops_addr.as_deref().ok_or("there are no probes")?)?;
        probe.set_read_timeout(Some(END_LIMIT))?;
        write!(probe, "GET {path} HTTP/1.1\r\nhost: keyward\r\n\r\n")?;
        let mut line = String::new();
        BufReader::new(probe).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The process that serves: with a wrapper that starts another, that one.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let own = self.child.id();
        // Not what the file `lock` says: with a fault in it, that may be the process of an earlier start.
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let first = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        first.or(i32::try_from(own).ok()).and_then(Pid::from_raw)
    }

    /// Sends a signal, if the process is still there.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = self.pid().ok_or("the server has no process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> Result<bool, Failure> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it at once, and waits for its end.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        if self.has_ended()? {
            let status = self.child.wait()?;
            return Err(self.complaint(&format!("the server ended ({status}) before it was killed")));
        }
        self.signal(Signal::KILL)?;
        self.end(END_LIMIT).await.map(drop)
    }

    /// Tells it to stop, and waits until it has stopped as it should.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        self.signal(Signal::TERM)?;
        let status = self.end(END_LIMIT).await?;
        if !status.success() {
            return Err(self.complaint(&format!("told to stop, the server ended with {status}")));
        }
        Ok(())
    }

    /// Waits for its end, and gives its exit status. Its log is complete then.
    pub(crate) async fn end(&mut self, limit: Duration) -> Result<ExitStatus, Failure> {
        let rest = async {
            while let Some(line) = self.lines.recv().await {
                self.seen.push(line);
            }
        };
        if timeout(limit, rest).await.is_err() {
            return Err(self.complaint(&format!("the server has not ended after {limit:?}")));
        }
        Ok(self.child.wait()?)
    }

    /// Takes what it has logged by now.
    pub(crate) fn read_log(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
    }

    /// What it has logged so far, as far as it was waited for.
    pub(crate) fn log(&self) -> &[String] {
        &self.seen
    }

    /// Whether a thread of it has panicked, and nothing more is said of it. sled may; the server then says
    /// so, and what becomes of it.
    pub(crate) fn has_panicked(&self) -> bool {
        let says = |what: &str| self.seen.iter().any(|line| line.contains(what));
        says("panicked at") && !says("sled panicked")
    }

    /// An error with the end of the log.
    pub(crate) fn complaint(&self, what: &str) -> Failure {
        let quoted = self.seen.len().saturating_sub(QUOTED_LINES);
        let log: String = self.seen[quoted..].iter().map(|line| format!("\n    {line}")).collect();
        format!("{what}. The log ends so:{log}").into()
    }
}
