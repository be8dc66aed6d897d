//! What every mode has: a seed, a place for its files, a tally of what it saw, and evidence of what went
//! wrong.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::Failure;
use crate::oracle::Oracle;
use crate::server::Launch;
use crate::verify::Findings;

/// A mode stops after this many failures: what fails every time needs no further evidence.
const FAILURES_MAX: u64 = 5;
/// How far a run is, is said this often at most.
const PROGRESS_EVERY: Duration = Duration::from_secs(20);
/// Findings that are printed of one comparison.
const DETAILS_SHOWN: usize = 10;
/// The smallest segments that the program allows, so that the journal goes on to a new one often.
pub(crate) const SMALL_SEGMENT: u64 = 64 * 1024;

/// What a mode saw. Written as JSON, and read again for the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) mode: String,
    pub(crate) seed: u64,
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Changes that the server acknowledged, each once.
    pub(crate) acknowledged: u64,
    /// Of those, the ones that were found after the last restart that could have lost them.
    pub(crate) verified: u64,
    pub(crate) lost: u64,
    pub(crate) wrong_verdicts: u64,
    pub(crate) inventions: u64,
    /// Over all comparisons, so most keys many times.
    pub(crate) keys_compared: u64,
    pub(crate) verdicts_compared: u64,
    /// What is counted in this mode alone.
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) seconds: u64,
    /// The day on which it ended, in UTC.
    pub(crate) date: String,
    /// Cores, kernel and file system; never a name.
    pub(crate) machine: String,
}

impl Tally {
    /// Adds to a count of this mode's own.
    pub(crate) fn count(&mut self, what: &str, more: u64) {
        *self.counts.entry(what.to_owned()).or_default() += more;
    }

    /// Adds what one comparison saw, but for the changes: they are counted once, by [`Tally::add_changes`].
    pub(crate) fn add(&mut self, findings: &Findings) {
        self.keys_compared += findings.keys;
        self.verdicts_compared += findings.verdicts;
        self.lost += findings.lost;
        self.wrong_verdicts += findings.wrong_verdicts;
        self.inventions += findings.inventions;
        self.count("open changes found made", findings.open_made);
        self.count("open changes found not made", findings.open_not_made);
    }

    /// Adds the changes of one data directory, at its last comparison.
    pub(crate) fn add_changes(&mut self, acknowledged: u64, verified: u64) {
        self.acknowledged += acknowledged;
        self.verified += verified;
    }
}

/// One run of one mode.
pub(crate) struct Run {
    pub(crate) rng: SmallRng,
    pub(crate) program: PathBuf,
    pub(crate) tally: Tally,
    /// Where results and evidence go.
    out: PathBuf,
    scratch: TempDir,
    scenes: u64,
    began: Instant,
    /// When it was last said how far the run is.
    told: Instant,
}

/// A data directory of its own, and what belongs to it.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) root: PathBuf,
    pub(crate) launch: Launch,
    name: String,
}

impl Scene {
    /// An oracle whose log of acknowledgements is outside the data directory.
    pub(crate) fn oracle(&self, clients: usize) -> Result<Arc<Oracle>, Failure> {
        Oracle::new(clients, &self.root.join("acknowledgements.tsv"))
    }
}

impl Run {
    pub(crate) fn new(mode: &str, seed: u64, program: &Path, out: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(out)?;
        println!("{mode}: seed {seed}");
        let program = &fs::canonicalize(program).map_err(|e| format!("{}: {e}", program.display()))?;
        let tally = Tally { mode: mode.to_owned(), seed, ..Tally::default() };
        Ok(Self {
            rng: SmallRng::seed_from_u64(seed),
            program: program.to_owned(),
            tally,
            out: fs::canonicalize(out)?,
            scratch: tempfile::tempdir()?,
            scenes: 0,
            began: Instant::now(),
            told: Instant::now(),
        })
    }

    /// Where results go, and programs that are built on the way.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// A new scene with an empty data directory. It is removed with the run; evidence is copied first.
    pub(crate) fn scene(&mut self, segment_bytes: u64) -> Result<Scene, Failure> {
        self.scenes += 1;
        let name = format!("{}-{}-{}", self.tally.mode, self.tally.seed, self.scenes);
        let root = self.scratch.path().join(self.scenes.to_string());
        fs::create_dir(&root)?;
        let launch = Launch {
            program: self.program.clone(),
            wrapper: vec![],
            data_dir: root.join("data"),
            log: root.join("server.log"),
            segment_bytes,
            admin_key: None,
            args: vec![],
            // The least that may be set, so that snapshots are made and old segments go.
            env: vec![("KEYWARD_JOURNAL_RETENTION_BYTES".to_owned(), (1024 * 1024).to_string())],
        };
        Ok(Scene { root, launch, name })
    }

    /// Notes that so many steps went as they must, or why not. Findings must be added to the tally before.
    pub(crate) fn judge(&mut self, scene: &Scene, findings: &Findings, steps: u64) {
        if findings.is_clean() {
            self.tally.passed += steps;
            return;
        }
        let shown = findings.details.iter().take(DETAILS_SHOWN).map(|detail| format!("\n    {detail}"));
        let (shown, all) = (shown.collect::<String>(), findings.details.len());
        self.fail(scene, &format!("{all} findings:{shown}").into());
    }

    /// Notes a failure, and keeps the scene's files.
    pub(crate) fn fail(&mut self, scene: &Scene, failure: &Failure) {
        self.tally.failed += 1;
        let kept = self.out.join("evidence").join(format!("{}-failure-{}", scene.name, self.tally.failed));
        let copied = fs::create_dir_all(&kept).and_then(|()| {
            drop(fs::write(kept.join("failure.txt"), failure.to_string()));
            Command::new("cp").arg("-a").arg(scene.root.join(".")).arg(&kept).status()
        });
        println!("{}: FAILED: {failure}", scene.name);
        match copied {
            Ok(status) if status.success() => println!("    data, log and acknowledgements: {}", kept.display()),
            problem => println!("    the evidence could not be copied to {}: {problem:?}", kept.display()),
        }
    }

    /// Whether so much failed that there is no point in going on.
    pub(crate) fn gives_up(&self) -> bool {
        self.tally.failed >= FAILURES_MAX
    }

    /// Removes a scene's files, so that a long run needs no long disk, and says how far the run is.
    pub(crate) fn discard(&mut self, scene: &Scene) {
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            let Tally { mode, passed, failed, .. } = &self.tally;
            println!("{mode}: {passed} passed, {failed} failed so far, after {} s", self.began.elapsed().as_secs());
        }
        drop(fs::remove_dir_all(&scene.root));
    }

    /// As [`Run::finish`], for a mode that must have verified something.
    pub(crate) fn finish_verified(mut self) -> Result<bool, Failure> {
        let Tally { mode, acknowledged, verified, verdicts_compared, failed, .. } = &self.tally;
        if *failed == 0 && (*acknowledged == 0 || *verified < *acknowledged || *verdicts_compared == 0) {
            println!(
                "{mode}: FAILED: {verified} of {acknowledged} acknowledged changes and {verdicts_compared} verdicts verified"
            );
            self.tally.failed += 1;
        }
        self.finish()
    }

    /// Writes the tally, and says whether all is well.
    pub(crate) fn finish(mut self) -> Result<bool, Failure> {
        self.tally.date = today();
        self.tally.machine = machine();
        self.tally.seconds = self.began.elapsed().as_secs();
        let tally = &self.tally;
        fs::write(self.out.join(format!("{}.json", tally.mode)), serde_json::to_string_pretty(tally)?)?;
        println!(
            "{}: {} changes acknowledged, {} verified, {} lost, {} wrong verdicts, {} inventions; {} keys and {} verdicts \
             compared in {} s",
            tally.mode,
            tally.acknowledged,
            tally.verified,
            tally.lost,
            tally.wrong_verdicts,
            tally.inventions,
            tally.keys_compared,
            tally.verdicts_compared,
            tally.seconds,
        );
        for (what, count) in &tally.counts {
            println!("{}:   {what}: {count}", tally.mode);
        }
        println!("{}: {} passed, {} failed", tally.mode, tally.passed, tally.failed);
        Ok(tally.failed == 0)
    }
}

#[expect(clippy::disallowed_methods, reason = "a report is dated")]
fn today() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now())
        .to_string()
        .chars()
        .take_while(|c| *c != 'T')
        .collect()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel: Vec<&str> = kernel.split(['.', '-']).take(2).collect();
    let mut findmnt = Command::new("findmnt");
    let found = findmnt.args(["-n", "-o", "FSTYPE", "--target"]).arg(std::env::temp_dir()).output();
    let filesystem = found.map(|found| String::from_utf8_lossy(&found.stdout).trim().to_owned()).unwrap_or_default();
    format!("{cores} cores, Linux {}, {filesystem}", kernel.join("."))
}
