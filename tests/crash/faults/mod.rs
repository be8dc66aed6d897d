//! strace makes calls of the server to its disk fail. Whatever fails, a call is refused, or a start is, or
//! the process ends and says what to do; verdicts are right all the time; and a start without the fault finds
//! everything.

mod case;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use rand::RngExt;
use rand::seq::SliceRandom;
use rustix::process::Signal;
use tokio::time::{sleep, timeout};
use tonic::Code;

use self::case::{Case, Stage, Target, checkpoints, table_snapshots};
use crate::Failure;
use crate::flips::copy;
use crate::load::{Load, Mix, Shape};
use crate::oracle::{Change, Oracle};
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::{END_LIMIT, SERVING, Server};
use crate::verify::compare;
use crate::watch::Watch;

/// The keys that a directory begins with.
const FIRST_KEYS: Shape = Shape { mix: Mix::Bulk, clients: 8, connections: 2, keys_per_client: 120 };
/// Books: those of the load, and one for the change that is tried at the end.
const BOOKS: usize = 9;
const LAST_BOOK: usize = 8;
/// A start under the tracer that neither serves nor ends by then hangs.
const START_LIMIT: Duration = Duration::from_secs(60);
/// A fault that has not come by then does not come.
const FAULT_LIMIT: Duration = Duration::from_secs(30);
/// How long clients work after a start with a fault.
const LOAD_AFTER_START: Duration = Duration::from_millis(200);
/// How long they go on after a fault. The table is written behind, and looked at once a second.
const LOAD_AFTER_FAULT: Duration = Duration::from_millis(1_500);
/// A server that goes on after a fault makes changes again within this time, or has ended.
const RECOVERY_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

/// Tries so many faults: each combination once, in random order, then all anew. 0: each once.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let template = Template::make(run).await?;
    let mut cases = case::all(&mut run.rng);
    cases.shuffle(&mut run.rng);
    let mut left = if count == 0 { cases.len() as u64 } else { count };
    while left > 0 && !run.gives_up() {
        if cases.is_empty() {
            cases = case::all(&mut run.rng);
            cases.shuffle(&mut run.rng);
        }
        let Some(case) = cases.pop() else { break };
        left -= 1;
        let scene = run.scene(SMALL_SEGMENT)?;
        run.tally.count("faults", 1);
        if let Err(failure) = template.one(run, scene.clone(), case).await {
            run.fail(&scene, &format!("{case:?}: {failure}").into());
        }
        run.discard(&scene);
    }
    Ok(())
}

/// A directory to begin with, of a server that was stopped.
struct Template {
    data_dir: PathBuf,
    oracle: Arc<Oracle>,
    /// The snapshot that sled makes in the next start.
    new_snapshot: String,
}

/// What the log says of a start that waits until a full disk has room.
const WAITS_FOR_ROOM: &str = "the start goes on when there is room";

/// What came of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    StartRefused,
    Ended,
    WaitsForRoom,
    WentOn,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::StartRefused => "the start was refused, with file and cause",
            Self::Ended => "the process ended, with file, cause and advice",
            Self::WaitsForRoom => "the start waited for room on the disk, with file and cause",
            Self::WentOn => "calls were refused, or none, and it went on",
        }
    }
}

impl Template {
    async fn make(run: &mut Run) -> Result<Self, Failure> {
        let scene = run.scene(SMALL_SEGMENT)?;
        let oracle = scene.oracle(BOOKS)?;
        let mut server = scene.launch.serve().await?;
        Load::start(&server, &oracle, FIRST_KEYS, run.rng.random()).await?.complete().await?;
        stop(&mut server).await?;
        // So that sled has a snapshot, and makes another one at the next start.
        server = scene.launch.serve().await?;
        let load = Load::start(&server, &oracle, Shape::of(Mix::Ordinary), run.rng.random()).await?;
        sleep(LOAD_AFTER_START).await;
        load.finish().await?;
        stop(&mut server).await?;
        // The same bytes lead to the same name.
        let probe = run.scene(SMALL_SEGMENT)?;
        copy(&scene.launch.data_dir, &probe.launch.data_dir)?;
        let mut server = probe.launch.serve().await?;
        let new_snapshot = table_snapshots(&probe.launch.data_dir).pop().ok_or("sled made no snapshot at its start")?;
        stop(&mut server).await?;
        run.discard(&probe);
        if checkpoints(&scene.launch.data_dir).is_empty() {
            return Err("there is no index checkpoint".into());
        }
        Ok(Self { data_dir: scene.launch.data_dir, oracle, new_snapshot })
    }

    /// One fault: from the start that it may spoil to the sound start after it.
    async fn one(&self, run: &mut Run, mut scene: Scene, case: Case) -> Result<(), Failure> {
        let sound = scene.launch.clone();
        let oracle = if case.stage == Stage::FirstStart {
            scene.oracle(BOOKS)?
        } else {
            copy(&self.data_dir, &scene.launch.data_dir)?;
            self.oracle.snapshot()?
        };
        let before = oracle.acknowledged();
        let trace = scene.root.join("strace.txt");
        if case.target != Target::Maintenance {
            scene.launch.wrapper = strace(&case, &trace);
            for path in case.target.paths(&scene.launch.data_dir, &self.new_snapshot) {
                scene.launch.wrapper.extend(["-P".to_owned(), path.display().to_string()]);
            }
        }
        let mut server = scene.launch.spawn()?;
        let came = timeout(START_LIMIT, server.any_line(&[SERVING, WAITS_FOR_ROOM])).await;
        let outcome = match came {
            Err(_) => return Err(server.complaint(&format!("it does not serve {START_LIMIT:?} after its start"))),
            Ok(Err(failure)) if !server.has_ended()? => return Err(failure),
            Ok(Err(_)) => told(&case, &scene, &mut server).await?,
            Ok(Ok(line)) if line.contains(WAITS_FOR_ROOM) => {
                if !server.log().iter().any(|line| case.is_told_by(line, &scene.launch.data_dir)) {
                    return Err(server.complaint("it waits for room, and does not say which file failed and how"));
                }
                Outcome::WaitsForRoom
            }
            Ok(Ok(_)) => under_load(run, &scene, &mut server, &oracle, &case, &trace).await?,
        };
        if !injected(&trace) {
            return Err(server.complaint("the fault never came"));
        }
        drop(server);

        let server = sound.serve().await?;
        let findings = compare(&server, &oracle).await?;
        run.tally.add(&findings);
        run.tally.add_changes(oracle.acknowledged() - before, findings.changes.saturating_sub(before));
        run.judge(&scene, &findings, 1);
        run.tally.count(outcome.label(), 1);
        run.tally.count(&format!("faults, {:?}", case.stage), 1);
        Ok(())
    }
}

/// Lets clients work until the fault has come and had its effect, and sees what the server makes of it.
async fn under_load(
    run: &mut Run,
    scene: &Scene,
    server: &mut Server,
    oracle: &Arc<Oracle>,
    case: &Case,
    trace: &Path,
) -> Result<Outcome, Failure> {
    let tracer = match case.target {
        Target::Maintenance => Some(Tracer::attach(server, case, trace).await?),
        _ => None,
    };
    let mix = if case.target == Target::Maintenance { Mix::Churn } else { Mix::Ordinary };
    let watch = Watch::start(server, oracle, run.rng.random()).await?;
    let load = Load::start(server, oracle, Shape::of(mix), run.rng.random()).await?;
    if case.stage == Stage::Running {
        let began = Instant::now();
        while !injected(trace) && !server.has_ended()? && began.elapsed() < FAULT_LIMIT {
            sleep(POLL).await;
        }
        let came = Instant::now();
        while !server.has_ended()? && came.elapsed() < LOAD_AFTER_FAULT {
            sleep(POLL).await;
        }
    } else {
        sleep(LOAD_AFTER_START).await;
    }
    load.finish().await?;
    let seen = watch.verdicts();
    let mut recovers = true;
    if !case.lasting && !server.has_ended()? {
        recovers = one_more_change(server, oracle).await?;
    }
    run.tally.count("verdicts compared while a disk failed", seen.max(watch.finish().await?));
    drop(tracer);
    let began = Instant::now();
    while !recovers && !server.has_ended()? {
        if began.elapsed() > RECOVERY_LIMIT {
            return Err(server.complaint("the fault is over, the process lives, and changes are refused"));
        }
        sleep(POLL).await;
    }
    if server.has_ended()? {
        return told(case, scene, server).await;
    }
    server.signal(Signal::TERM)?;
    let status = server.end(END_LIMIT).await?;
    if server.has_panicked() || !(status.success() || told_at_end(case, scene, server, status)) {
        return Err(server.complaint(&format!("the fault was over, and it ended with {status}")));
    }
    Ok(Outcome::WentOn)
}

/// A change must succeed sooner or later. `false`: the server cannot tell, and so must be about to end.
async fn one_more_change(server: &Server, oracle: &Arc<Oracle>) -> Result<bool, Failure> {
    let Ok(caller) = server.caller().await else { return Ok(false) };
    let began = Instant::now();
    loop {
        let id = format!("last-{}", oracle.books()[LAST_BOOK].lock().keys.len());
        let label = "the disk works again".to_owned();
        oracle.ask(LAST_BOOK, &id, Change::Create(label.clone()));
        let request = pb::CreateKeyRequest { key_id: id, display_name: label, ..Default::default() };
        match caller.create(request).await {
            Ok(made) => {
                oracle.acknowledged_as(LAST_BOOK, made.key.as_ref(), Some(made.secret))?;
                return Ok(true);
            }
            Err(status) if status.code() == Code::ResourceExhausted && began.elapsed() < RECOVERY_LIMIT => {
                oracle.refused(LAST_BOOK);
                sleep(POLL).await;
            }
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                return Ok(false);
            }
            Err(status) => return Err(server.complaint(&format!("the fault is over, and a change gets {status:?}"))),
        }
    }
}

/// Sees that a process that has ended has said why, and how.
async fn told(case: &Case, scene: &Scene, server: &mut Server) -> Result<Outcome, Failure> {
    let status = server.end(END_LIMIT).await?;
    if told_at_end(case, scene, server, status) {
        return Ok(if status.code() == Some(1) { Outcome::StartRefused } else { Outcome::Ended });
    }
    Err(server.complaint(&format!("it ended with {status}, and does not say which file failed and how")))
}

/// Whether it ended on purpose, with a message that names the file and the cause; and, if it was serving,
/// what to do.
fn told_at_end(case: &Case, scene: &Scene, server: &Server, status: ExitStatus) -> bool {
    let dir = &scene.launch.data_dir;
    let said = |what: &str| server.log().iter().any(|line| line.contains(what) && case.is_told_by(line, dir));
    // strace ends as its child does.
    match (status.code(), status.signal()) {
        (Some(1), None) => !server.has_panicked() && said("keyward: "),
        (None, Some(signal)) => signal == Signal::ABORT.as_raw() && said("start keyward again"),
        _ => false,
    }
}

/// The tracer's command, up to what it must filter by.
fn strace(case: &Case, trace: &Path) -> Vec<String> {
    let call = format!("trace={}", case.call);
    let words = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", &call, "-e", &case.injection(), "-o"];
    words.into_iter().map(str::to_owned).chain([trace.display().to_string()]).collect()
}

/// Whether the tracer says that it has made a call fail.
fn injected(trace: &Path) -> bool {
    fs::read_to_string(trace).is_ok_and(|text| text.contains("(INJECTED)"))
}

/// A tracer of one thread.
struct Tracer(Child);

impl Tracer {
    async fn attach(server: &Server, case: &Case, trace: &Path) -> Result<Self, Failure> {
        let pid = server.pid().ok_or("the server has no process id")?.as_raw_nonzero();
        let began = Instant::now();
        // A thread takes its name only once it runs.
        while began.elapsed() < START_LIMIT {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let task = task?;
                if fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "maintenance") {
                    let mut command = Command::new("strace");
                    command
                        .args(["-qq", "-e", &format!("trace={}", case.call), "-e", &case.injection(), "-o"])
                        .arg(trace);
                    command.arg("-p").arg(task.file_name()).stdin(Stdio::null()).stderr(Stdio::null());
                    return Ok(Self(command.spawn().map_err(|e| format!("cannot start strace: {e}"))?));
                }
            }
            sleep(POLL).await;
        }
        Err("the server has no thread that lets old segments go".into())
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It lets go of the thread on SIGTERM.
        let pid = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, Signal::TERM).ok();
        }
        drop(self.0.wait());
    }
}

async fn stop(server: &mut Server) -> Result<(), Failure> {
    server.signal(Signal::TERM)?;
    let status = timeout(END_LIMIT, server.end(END_LIMIT)).await??;
    if status.success() {
        Ok(())
    } else {
        Err(server.complaint(&format!("it was told to stop, and ended with {status}")))
    }
}
