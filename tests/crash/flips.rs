//! Bit rot: in the directory of a server that has ended, one bit is flipped, or a file is truncated or
//! removed. Then either everything is right, or the start is refused and says what is wrong. A lost watermark
//! is always refused, and everything is right once its loss is accepted. Each start has little time and
//! memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keyward::grpc::pb;
use rand::RngExt;
use rand::rngs::SmallRng;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::Failure;
use crate::load::{Load, Mix, Shape};
use crate::oracle::Oracle;
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::{END_LIMIT, Server};
use crate::verify::{Findings, compare};

/// The keys that a directory begins with.
const FIRST_KEYS: Shape = Shape { mix: Mix::Bulk, clients: 8, connections: 2, keys_per_client: 20 };
/// How long each load runs before a stop or a kill.
const LOAD: Duration = Duration::from_millis(600);
/// How long it may take to fill enough segments that a checkpoint is made and the oldest are deleted.
const MAINTENANCE_LIMIT: Duration = Duration::from_secs(120);
/// A start on damaged data takes no longer than this. A sound one takes a fraction of a second.
const START_LIMIT: Duration = Duration::from_secs(30);
/// And it takes no more address space than this: damaged lengths must not be believed.
const MEMORY_LIMIT: &str = "--as=4294967296";
/// Directories that are tried at one time.
const AT_ONCE: usize = 2;
/// A watermark, and as much of it as its seal covers, itself included.
const WATERMARK_BYTES: u64 = 96;
const WATERMARK_SEALED_BYTES: u64 = 80;
/// Of the flipped bits, so many of ten are in bytes that are not zero: much of the files is room for more.
const USED_OF_TEN: u32 = 8;

/// Flips so many bits, and cuts and removes every file.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let originals = [Original::make(run, End::Stopped).await?, Original::make(run, End::Killed).await?];
    let mut cases = vec![];
    for (original, all) in originals.iter().enumerate() {
        cases.extend(all.removals_and_cuts().into_iter().map(|damage| (original, damage)));
    }
    for number in 0..count {
        let original = number as usize % originals.len();
        cases.push((original, originals[original].flip(&mut run.rng)));
    }
    for some in cases.chunks(AT_ONCE) {
        let mut scenes = vec![];
        for (original, damage) in some {
            scenes.push((run.scene(SMALL_SEGMENT)?, &originals[*original], damage));
        }
        let tried = join_all(scenes.iter().map(|(scene, original, damage)| original.try_with(scene, damage))).await;
        for ((scene, _, damage), outcome) in scenes.iter().zip(tried) {
            judge(run, scene, damage, outcome);
        }
        if run.gives_up() {
            break;
        }
    }
    Ok(())
}

fn judge(run: &mut Run, scene: &Scene, damage: &Damage, outcome: Result<Outcome, Failure>) {
    run.tally.count(damage.kind(), 1);
    match outcome {
        Ok(Outcome::Right { findings, rebuilt, accepted }) => {
            let what = match (accepted, rebuilt) {
                (true, _) => "start refused, and all right once the loss of the watermark was accepted",
                (false, true) => "all right, with the table built anew",
                (false, false) => "all right",
            };
            run.tally.count(&format!("{}: {what}", damage.kind()), 1);
            run.tally.add(&findings);
            if !findings.is_clean() {
                println!("{}: {damage:?}", scene.root.display());
            }
            run.judge(scene, &findings, 1);
        }
        Ok(Outcome::Refused) => {
            run.tally.count(&format!("{}: start refused, with the reason", damage.kind()), 1);
            run.tally.passed += 1;
        }
        Err(failure) => run.fail(scene, &format!("{damage:?}: {failure}").into()),
    }
    run.discard(scene);
}

/// How the server ended that left a directory behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// In order, with its whole journal.
    Stopped,
    /// By SIGKILL under load, after old segments had been replaced by a snapshot.
    Killed,
}

/// A directory, and what is known of its keys.
struct Original {
    dir: PathBuf,
    admin_key: PathBuf,
    oracle: Arc<Oracle>,
    files: Vec<Contents>,
}

/// What is in a file.
struct Contents {
    /// Relative to the directory.
    path: PathBuf,
    bytes: u64,
    /// Where bytes are that are not zero.
    used: Vec<u64>,
}

/// What is done to a copy of it.
#[derive(Clone, Debug)]
enum Damage {
    Flip { file: PathBuf, at: u64, bit: u8 },
    Cut { file: PathBuf, bytes: u64 },
    Remove { file: PathBuf },
}

/// What came of it.
enum Outcome {
    Right {
        findings: Findings,
        rebuilt: bool,
        /// The loss of the watermark had to be accepted.
        accepted: bool,
    },
    Refused,
}

impl Original {
    /// Serves until there are several segments, restarts in between, and ends the server in one of the ways.
    async fn make(run: &mut Run, end: End) -> Result<Self, Failure> {
        let mut scene = run.scene(SMALL_SEGMENT)?;
        let oracle = scene.oracle(FIRST_KEYS.clients)?;
        if end == End::Stopped {
            scene.launch.env.clear(); // no limit that makes segments go
        }
        let mut server = scene.launch.serve().await?;
        Load::start(&server, &oracle, FIRST_KEYS, run.rng.random()).await?.complete().await?;
        let churn = Load::start(&server, &oracle, Shape::of(Mix::Churn), run.rng.random()).await?;
        timeout(MAINTENANCE_LIMIT, server.line("made an index checkpoint")).await??;
        if end == End::Killed {
            timeout(MAINTENANCE_LIMIT, server.line("older segments of the journal have gone")).await??;
        }
        churn.finish().await?;
        for last in [false, true] {
            let load = Load::start(&server, &oracle, Shape::of(Mix::Ordinary), run.rng.random()).await?;
            sleep(LOAD).await;
            if last && end == End::Killed {
                server.kill().await?;
                load.finish().await?;
                break;
            }
            load.finish().await?;
            server.signal(Signal::TERM)?;
            server.end(END_LIMIT).await?;
            if !last {
                server = scene.launch.serve().await?;
            }
        }
        oracle.sync()?;
        let admin_key = scene.root.join("kept-admin.key");
        fs::copy(scene.launch.data_dir.join("admin.key"), &admin_key)?;
        let mut files = vec![];
        read_below(&scene.launch.data_dir, Path::new(""), &mut files)?;
        let original = Self { dir: scene.launch.data_dir.clone(), admin_key, oracle, files };
        original.is_sound(run).await?;
        Ok(original)
    }

    /// Serves a copy without damage. What was open at the end stays open in the oracle: a change that was
    /// found made here, but never acknowledged, may rightly be gone from a damaged copy.
    async fn is_sound(&self, run: &mut Run) -> Result<(), Failure> {
        let mut scene = run.scene(SMALL_SEGMENT)?;
        copy(&self.dir, &scene.launch.data_dir)?;
        scene.launch.admin_key = Some(self.admin_key.clone());
        let server = scene.launch.serve().await?;
        let findings = compare(&server, &self.oracle.snapshot()?).await?;
        run.tally.add(&findings);
        run.tally.add_changes(self.oracle.acknowledged(), findings.changes);
        run.judge(&scene, &findings, 1);
        drop(server);
        run.discard(&scene);
        Ok(())
    }

    /// A bit of any file; of a large one rather than of a small one in half of all cases.
    fn flip(&self, rng: &mut SmallRng) -> Damage {
        let files: Vec<_> = self.files.iter().filter(|file| file.bytes > 0).collect();
        let mut file = files[rng.random_range(0..files.len())];
        if rng.random() {
            let mut place = rng.random_range(0..files.iter().map(|file| file.used.len()).sum());
            for candidate in files {
                if place < candidate.used.len() {
                    file = candidate;
                    break;
                }
                place -= candidate.used.len();
            }
        }
        let at = if rng.random_ratio(USED_OF_TEN, 10) && !file.used.is_empty() {
            file.used[rng.random_range(0..file.used.len())]
        } else {
            rng.random_range(0..file.bytes)
        };
        Damage::Flip { file: file.path.clone(), at, bit: rng.random_range(0..8) }
    }

    fn removals_and_cuts(&self) -> Vec<Damage> {
        let mut all = vec![];
        for Contents { path: file, bytes: len, used } in &self.files {
            let (len, used) = (*len, used.last().map_or(0, |last| last + 1));
            all.push(Damage::Remove { file: file.clone() });
            let mut lengths = vec![0, len / 2, len.saturating_sub(1), used, used.saturating_sub(1), used / 2];
            lengths.sort_unstable();
            lengths.dedup();
            let shorter = lengths.into_iter().filter(|bytes| *bytes < len);
            all.extend(shorter.map(|bytes| Damage::Cut { file: file.clone(), bytes }));
        }
        all
    }

    /// Starts a server on a damaged copy.
    async fn try_with(&self, scene: &Scene, damage: &Damage) -> Result<Outcome, Failure> {
        copy(&self.dir, &scene.launch.data_dir)?;
        damage.apply(&scene.launch.data_dir)?;
        let mut launch = scene.launch.clone();
        launch.admin_key = Some(self.admin_key.clone());
        launch.wrapper = vec!["prlimit".to_owned(), MEMORY_LIMIT.to_owned(), "--core=0".to_owned()];
        let mut server = launch.spawn()?;
        let started = server.serving(START_LIMIT).await;
        let accepted = damage.takes_the_watermark();
        match started {
            Ok(()) if accepted => return Err(server.complaint("it started without a watermark")),
            Ok(()) => {}
            Err(failure) => {
                if !server.has_ended()? {
                    return Err(failure);
                }
                damage.refused(&mut server).await?;
                if !accepted {
                    return Ok(Outcome::Refused);
                }
                launch.args.push("--accept-watermark-loss".to_owned());
                server = launch.spawn()?;
                server.serving(START_LIMIT).await?;
            }
        }
        let rebuilt = server.log().iter().any(|line| line.contains("built anew") || line.contains("building"));
        let findings = compare(&server, &self.oracle.snapshot()?).await?;
        let request = pb::CreateKeyRequest { display_name: "after the damage".to_owned(), ..Default::default() };
        server
            .caller()
            .await?
            .create(request)
            .await
            .map_err(|e| server.complaint(&format!("no change is made: {e}")))?;
        server.signal(Signal::TERM)?;
        let status = server.end(END_LIMIT).await?;
        if !status.success() || server.has_panicked() {
            return Err(server.complaint(&format!("it served, and ended with {status}")));
        }
        Ok(Outcome::Right { findings, rebuilt, accepted })
    }
}

impl Damage {
    fn file(&self) -> &Path {
        match self {
            Self::Flip { file, .. } | Self::Cut { file, .. } | Self::Remove { file } => file,
        }
    }

    /// Whether the watermark says nothing any more: what is covered by its seal is no longer what was
    /// written.
    fn takes_the_watermark(&self) -> bool {
        self.file() == Path::new("watermark")
            && match self {
                Self::Remove { .. } => true,
                Self::Cut { bytes, .. } => *bytes < WATERMARK_BYTES,
                Self::Flip { at, .. } => *at < WATERMARK_SEALED_BYTES,
            }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Flip { .. } => "flipped bits",
            Self::Cut { .. } => "files cut short",
            Self::Remove { .. } => "files removed",
        }
    }

    fn apply(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(self.file());
        match self {
            Self::Remove { .. } => fs::remove_file(path)?,
            Self::Cut { bytes, .. } => File::options().write(true).open(path)?.set_len(*bytes)?,
            Self::Flip { at, bit, .. } => {
                let file = File::options().read(true).write(true).open(path)?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, *at)?;
                file.write_all_at(&[byte[0] ^ (1 << bit)], *at)?;
            }
        }
        Ok(())
    }

    /// Sees that a start that was refused ended in order, and that its last word names the file, or the
    /// directory of its kind.
    async fn refused(&self, server: &mut Server) -> Result<(), Failure> {
        let status = server.end(END_LIMIT).await?;
        let said = server.log().iter().rev().find(|line| line.starts_with("keyward: ")).cloned();
        let kind = self.file().components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let named = said.zip(kind).is_some_and(|(said, kind)| said.contains(&kind));
        if status.code() == Some(1) && status.signal().is_none() && named && !server.has_panicked() {
            return Ok(());
        }
        Err(server.complaint(&format!("it ended with {status}, and does not say what is wrong")))
    }
}

fn read_below(dir: &Path, below: &Path, files: &mut Vec<Contents>) -> Result<(), Failure> {
    let mut entries = fs::read_dir(dir.join(below))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            read_below(dir, &path, files)?;
        } else {
            let bytes = fs::read(dir.join(&path))?;
            let used = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0).map(|(at, _)| at as u64).collect();
            files.push(Contents { path, bytes: bytes.len() as u64, used });
        }
    }
    Ok(())
}

/// Copies a directory with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let status = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp {} {}: {status}", from.display(), to.display()).into()) }
}
