//! SIGKILL of a store under every kind of change, also those that have no call yet: rotations, suspensions
//! until a time, deletions, purges, and holds of tenants, owners and issuers.
//!
//! A process of this program (`child`) opens the store and its index, compares them with the history
//! (`history`, `seen`, `compare`), and then makes changes (`changes`), each noted in the history before it is
//! asked for and when it is acknowledged. This one kills it, damages the table once in a while, lets the
//! program check the directory, and starts the next.

mod changes;
pub(crate) mod child;
mod compare;
pub(crate) mod history;
pub(crate) mod seen;

use std::fs;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::{sleep, timeout};

use self::child::Report;
use crate::Failure;
use crate::kills::damage;
use crate::offline::Offline;
use crate::process::Process;
use crate::run::{Run, Scene};
use crate::server::START_LIMIT;

/// A data directory is left for a new one after so many kills: each start reads its whole history.
const KILLS_PER_DIRECTORY: u64 = 10;
/// How long changes are made before a kill.
const LOAD_MILLIS: std::ops::Range<u64> = 20..800;
/// Bytes of the journal that are kept, in one directory after the other: few, so that snapshots come and go
/// and purge marks are forgotten; or all.
const RETENTION_BYTES: [u64; 3] = [512 * 1024, u64::MAX, 1024 * 1024];

/// Kills the process so many times.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let offline = Offline::of(&run.program);
    let mut lifecycle = Lifecycle { left: count, directories: 0, start_takes: Duration::from_millis(500), offline };
    while lifecycle.left > 0 && !run.gives_up() {
        // Not served by the program: the segments are those of the child.
        let scene = run.scene(0)?;
        if let Err(failure) = lifecycle.directory(run, &scene).await {
            run.fail(&scene, &failure);
        }
        run.discard(&scene);
    }
    let found_out = |what: &str| run.tally.counts.contains_key(&counted(what));
    match compare::tampers().find(|what| !found_out(what)) {
        Some(what) if run.tally.failed == 0 => Err(format!("never was there anything to try this with: {what}").into()),
        _ => Ok(()),
    }
}

/// What a tampering that was found out is counted as.
fn counted(what: &str) -> String {
    format!("tampered with, found out: {what}")
}

struct Lifecycle {
    left: u64,
    directories: usize,
    /// How long the last start took until everything was compared; kills of starts aim at it.
    start_takes: Duration,
    offline: Offline,
}

impl Lifecycle {
    /// One data directory: from its first start to its last kill.
    async fn directory(&mut self, run: &mut Run, scene: &Scene) -> Result<(), Failure> {
        let mut kills_before = self.left;
        let end = self.left.saturating_sub(KILLS_PER_DIRECTORY);
        let retention_bytes = RETENTION_BYTES[self.directories % RETENTION_BYTES.len()];
        self.directories += 1;
        let mut last: Option<Report> = None;
        loop {
            let is_last = self.left <= end;
            let mut process = spawn(run, scene, retention_bytes)?;
            let began = Instant::now();
            let patience = match last {
                // Not before there is anything to lose.
                Some(_) if !is_last && run.rng.random_ratio(1, 4) => {
                    self.start_takes.mul_f64(run.rng.random_range(0.0..1.0))
                }
                _ => START_LIMIT,
            };
            match timeout(patience, process.report::<Report>()).await {
                Ok(report) => {
                    let report = report?;
                    self.start_takes = began.elapsed();
                    self.judge(run, scene, &report, kills_before - self.left)?;
                    kills_before = self.left;
                    let is_clean = report.findings.is_clean();
                    last = Some(report);
                    if !is_clean {
                        return Ok(());
                    }
                }
                Err(_) if patience < START_LIMIT => {
                    let opened = process.has_opened();
                    self.kill(run, process, if opened { "kills while all was read" } else { "kills in a start" })
                        .await?;
                    continue;
                }
                Err(_) => return Err(process.complaint("the store is not compared by now")),
            }
            if is_last {
                process.stop().await?;
                self.offline.check_directory(&scene.launch, &mut run.tally)?;
                break;
            }
            sleep(Duration::from_millis(run.rng.random_range(LOAD_MILLIS))).await;
            if run.rng.random_ratio(1, 10) {
                process.stop().await?;
                run.tally.count("stops in order", 1);
            } else {
                self.kill(run, process, "kills under changes").await?;
            }
            self.offline.check_directory(&scene.launch, &mut run.tally)?;
            count_files(run, scene)?;
            if run.rng.random_ratio(1, 4) {
                damage(run, &scene.launch.data_dir.join("table"))?;
                run.tally.count("starts with a damaged table", 1);
            }
        }
        let last = last.ok_or("nothing was compared")?;
        run.tally.add_changes(last.made, last.findings.changes);
        last.kinds.iter().for_each(|(kind, count)| run.tally.count(&format!("made: {kind}"), *count));
        run.tally.count("data directories", 1);
        Ok(())
    }

    /// Takes a report into the tally.
    fn judge(&self, run: &mut Run, scene: &Scene, report: &Report, kills: u64) -> Result<(), Failure> {
        run.tally.add(&report.findings);
        run.judge(scene, &report.findings, kills);
        run.tally.count("comparisons", 1);
        report.counts.iter().for_each(|(what, count)| run.tally.count(what, *count));
        report.found_out.iter().for_each(|what| run.tally.count(&counted(what), 1));
        report.missed.clone().map_or(Ok(()), |missed| Err(missed.into()))
    }

    async fn kill(&mut self, run: &mut Run, process: Process, kind: &str) -> Result<(), Failure> {
        process.kill().await?;
        self.left = self.left.saturating_sub(1);
        run.tally.count("kills", 1);
        run.tally.count(kind, 1);
        Ok(())
    }
}

fn spawn(run: &mut Run, scene: &Scene, retention_bytes: u64) -> Result<Process, Failure> {
    let numbers = [run.rng.random::<u64>(), retention_bytes].map(|number| number.to_string().into());
    let paths = [scene.launch.data_dir.clone(), scene.root.join("history.tsv")].map(Into::into);
    Process::spawn("lifecycle-child", paths.into_iter().chain(numbers), &scene.launch.log)
}

/// Counts what the next start finds.
fn count_files(run: &mut Run, scene: &Scene) -> Result<(), Failure> {
    for (dir, what) in [("snapshot", "starts with snapshots"), ("index", "starts with an index checkpoint")] {
        let path = scene.launch.data_dir.join(dir);
        let files = if path.exists() { fs::read_dir(path)?.count() } else { 0 };
        run.tally.count(what, u64::from(files > 0));
    }
    Ok(())
}
