//! The crash harness: a real server, clients that remember every answer, and a disk that fails or loses
//! power.
//!
//! `tests/crash/run` builds what is needed and runs all modes. Reading order: [`server`] (the process),
//! [`caller`] and [`load`] (clients), [`oracle`] (what they know), [`verify`] (the comparison after a
//! restart), [`run`] (seed, tally, evidence), then one file per mode. [`lifecycle`] and
//! [`takeover`] open stores in processes of this program ([`process`]), and have oracles of their own.

mod caller;
mod controls;
mod crowd;
mod cuts;
mod disks;
mod faults;
mod flips;
mod health;
mod image;
mod kills;
mod latency;
mod lifecycle;
mod load;
mod offline;
mod oracle;
mod process;
mod report;
mod retries;
mod run;
mod server;
mod takeover;
mod verify;
mod watch;
mod wire;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::run::Run;

/// What stops a step, for the reader of the run.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Takes a server's disk away in every way at hand, and compares what is left with what was acknowledged.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Passed by `cargo bench`, which then does nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Mode {
    /// SIGKILL at random instants: under load, in a start, while the table is rebuilt
    Kills(Common),
    /// SIGKILL at random instants of a store under every kind of change, also those that have no call yet
    Lifecycle(Common),
    /// The process that is killed in `lifecycle`
    #[command(hide = true)]
    LifecycleChild(lifecycle::child::ChildArgs),
    /// SIGKILL within the takeover of a directory of version 1: a small one at every call to the disk, and
    /// with a count one of 100,000 keys at so many; needs strace, and for that the repository's history
    Takeover(Common),
    /// The process that reads a directory in `takeover`
    #[command(hide = true)]
    TakeoverChild(takeover::child::ChildArgs),
    /// Power cuts at random instants: the image of a mounted disk is copied under load; needs root
    Cuts(Common),
    /// Power cuts of programs that break a promise on purpose: each must be found out; needs root and cargo
    Controls(Common),
    /// A process that ends between the sync of a change and its answer, so many times, and is asked again
    /// twice  after the restart; needs cargo
    Retries(Common),
    /// How long verdicts take while writes are saturated, in so many rounds; needs strace, and root
    Latency(Common),
    /// The writers of `latency`, in a process of their own
    #[command(hide = true)]
    Writers {
        /// The server
        addr: String,
        /// The file of an administrator's key
        key_file: PathBuf,
    },
    /// Who asks for verdicts in `latency`, in a process of its own
    #[command(hide = true)]
    Asker {
        /// The server
        addr: String,
        /// The file of an administrator's key
        key_file: PathBuf,
    },
    /// How long DisableKey takes while callers of another tenant ask for all that they may, in so many
    /// rounds; needs root
    Crowd(Common),
    /// The viewer of `crowd`, in a process of its own
    #[command(hide = true)]
    Viewer {
        /// The server
        addr: String,
        /// The file of its key
        key_file: PathBuf,
        /// What it lists
        lists: String,
    },
    /// The issuer of `crowd`, in a process of its own
    #[command(hide = true)]
    Issuer {
        /// The server
        addr: String,
        /// The file of its key
        key_file: PathBuf,
    },
    /// The administrator of `crowd`, in a process of its own
    #[command(hide = true)]
    Disabler {
        /// The server
        addr: String,
        /// The file of its key
        key_file: PathBuf,
    },
    /// Calls to the disk that fail: each file, each call, EIO and ENOSPC; needs strace
    Faults(Common),
    /// A full disk, one that hangs, and one that turns read-only; needs root
    Disks(Common),
    /// Flipped bits, and every file cut short and removed in turn
    Flips(Common),
    /// Write the tables of the documents from the results of the modes
    Report {
        /// Where the results are
        #[arg(long, default_value = "target/reliability")]
        out: PathBuf,
        /// The document
        #[arg(long, default_value = "docs/reliability.md")]
        document: PathBuf,
        /// The page of all counts
        #[arg(long, default_value = "docs/reliability-runs.md")]
        details: PathBuf,
    },
}

#[derive(Args)]
struct Common {
    /// How many
    #[arg(long, overrides_with = "count", default_value_t = 50)]
    count: u64,
    /// Repeats the choices of an earlier run; by default the time
    #[arg(long, overrides_with = "seed")]
    seed: Option<u64>,
    /// The program under test
    #[arg(long, default_value = env!("CARGO_BIN_EXE_keyward"))]
    program: PathBuf,
    /// Where results and evidence go
    #[arg(long, default_value = "target/reliability")]
    out: PathBuf,
}

impl Common {
    fn run(&self, mode: &str) -> Result<Run, Failure> {
        Run::new(mode, self.seed.unwrap_or_else(seed_of_now), &self.program, &self.out)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(mode) = cli.mode else {
        println!("the crash harness runs by tests/crash/run");
        return if cli.bench { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    // Told to end, it leaves no server, mount or file behind: they end where they are dropped.
    let done = tokio::select! {
        done = run(mode) => done,
        signal = told_to_end() => signal.and_then(|()| Err("ended by a signal".into())),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            println!("crash: FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn told_to_end() -> Result<(), Failure> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
    }
}

async fn run(mode: Mode) -> Result<bool, Failure> {
    match mode {
        Mode::Kills(common) => kills(&common).await,
        Mode::Lifecycle(common) => lifecycle(&common).await,
        Mode::LifecycleChild(args) => lifecycle::child::run(&args).await.map(|()| true),
        Mode::Takeover(common) => takeover(&common).await,
        Mode::TakeoverChild(args) => takeover::child::run(&args).await.map(|()| true),
        Mode::Cuts(common) => cuts(&common).await,
        Mode::Controls(common) => controls(&common).await,
        Mode::Retries(common) => retries(&common).await,
        Mode::Latency(common) => latency(&common).await,
        Mode::Writers { addr, key_file } => latency::write(&addr, &key_file).map(|()| true),
        Mode::Asker { addr, key_file } => latency::ask(&addr, &key_file).map(|()| true),
        Mode::Crowd(common) => crowd(&common).await,
        Mode::Viewer { addr, key_file, lists } => crowd::list(&addr, &key_file, &lists).map(|()| true),
        Mode::Issuer { addr, key_file } => crowd::issue(&addr, &key_file).map(|()| true),
        Mode::Disabler { addr, key_file } => crowd::disable_all(&addr, &key_file).map(|()| true),
        Mode::Faults(common) => faults(&common).await,
        Mode::Disks(common) => disks(&common).await,
        Mode::Flips(common) => flips(&common).await,
        Mode::Report { out, document, details } => report::write(&out, &document, &details).map(|()| true),
    }
}

async fn kills(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("kills")?;
    kills::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn lifecycle(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("lifecycle")?;
    lifecycle::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn takeover(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("takeover")?;
    takeover::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn cuts(common: &Common) -> Result<bool, Failure> {
    image::with_private_mounts()?;
    let mut run = common.run("cuts")?;
    cuts::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn controls(common: &Common) -> Result<bool, Failure> {
    image::with_private_mounts()?;
    let mut run = common.run("controls")?;
    controls::run(&mut run).await?;
    run.finish()
}

async fn retries(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("retries")?;
    retries::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn latency(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("latency")?;
    latency::run(&mut run, common.count).await?;
    run.finish()
}

async fn crowd(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("crowd")?;
    crowd::run(&mut run, common.count).await?;
    run.finish()
}

async fn faults(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("faults")?;
    faults::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn disks(common: &Common) -> Result<bool, Failure> {
    image::with_private_mounts()?;
    let mut run = common.run("disks")?;
    disks::run(&mut run, common.count).await?;
    run.finish_verified()
}

async fn flips(common: &Common) -> Result<bool, Failure> {
    let mut run = common.run("flips")?;
    flips::run(&mut run, common.count).await?;
    run.finish_verified()
}

/// A seed that differs from run to run, short enough to type.
#[expect(clippy::disallowed_methods, reason = "a seed is chosen once, and printed")]
fn seed_of_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
