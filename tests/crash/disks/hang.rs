//! A disk that hangs: a frozen file system. Verdicts go on; a bounded number of changes waits, the next ones
//! are refused at once; when the disk goes on, all that waited are made, and are on the disk.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use keyward::store::local::COMMIT_QUEUE_OF_ONE_MAX;
use rand::RngExt;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::judge;
use crate::Failure;
use crate::caller::Caller;
use crate::health::Probe;
use crate::image::{Disk, freeze};
use crate::oracle::{Change, Oracle};
use crate::run::{Run, Scene};
use crate::server::END_LIMIT;
use crate::watch::Watch;

const DISK_MEBIBYTES: u64 = 256;
/// Changes that are under way when the disk hangs. A connection carries 256 calls.
const CHANGES: usize = 3_600;
const CHANGES_PER_CONNECTION: usize = 200;
/// Commits that the committer has taken off its queue when it hangs, at most: one group.
const GROUP_MAX: usize = 256;
/// Keys that there are before.
const FIRST_KEYS: usize = 50;
/// A change that is refused is refused within this time: nothing else than the processor may hold it up.
const REFUSAL_LIMIT: Duration = Duration::from_secs(10);
/// So does every verdict have its answer. The program itself needs its part of the processor for the changes.
const VERDICT_LIMIT: Duration = Duration::from_secs(2);
const VERDICTS: u32 = 300;
/// All refusals have come by then.
const REFUSALS_LIMIT: Duration = Duration::from_secs(20);
/// All that waited have their answers by then, once the disk goes on.
const ANSWERS_LIMIT: Duration = Duration::from_secs(30);

/// How a change was answered, and after how long.
struct Answered {
    refused: bool,
    after: Duration,
}

/// Freezes a disk under a server, and thaws it.
pub(crate) async fn run(run: &mut Run, scene: &Scene) -> Result<(), Failure> {
    let disk = Disk::make(&scene.root.join("disk.img"), DISK_MEBIBYTES)?;
    let mut launch = scene.launch.clone();
    launch.data_dir = disk.mount.join("data");
    // The bound on calls under way is smaller than that of the queue of changes, which is to be met here.
    launch.env.push(("KEYWARD_SLOW_CALLS_MAX".to_owned(), (4 * CHANGES).to_string()));
    let oracle = scene.oracle(FIRST_KEYS + CHANGES)?;
    let mut server = launch.serve().await?;
    let caller = server.caller().await?;
    for book in 0..FIRST_KEYS {
        create(&caller, &oracle, book).await?;
    }
    let mut callers = vec![];
    for _ in 0..CHANGES.div_ceil(CHANGES_PER_CONNECTION) {
        callers.push(server.caller().await?);
    }

    let frozen = Frozen::freeze(&disk)?;
    let watch = Watch::start(&server, &oracle, run.rng.random()).await?;
    let (sender, mut answers) = mpsc::unbounded_channel();
    let mut changes = JoinSet::new();
    for number in 0..CHANGES {
        let (caller, oracle, sender) = (callers[number % callers.len()].clone(), oracle.clone(), sender.clone());
        changes.spawn(async move {
            let answered = create(&caller, &oracle, FIRST_KEYS + number).await;
            drop(sender.send(answered));
        });
    }
    drop(sender);
    let least = CHANGES - COMMIT_QUEUE_OF_ONE_MAX - GROUP_MAX;
    let (mut refused, mut slowest) = (0, Duration::ZERO);
    while refused < least {
        let answered = timeout(REFUSALS_LIMIT, answers.recv()).await;
        let answered = answered.map_err(|_| format!("{refused} changes were refused of at least {least}"))?;
        let Answered { refused: yes, after } = answered.ok_or("no more answers")??;
        if !yes {
            return Err("a change was made while its disk was frozen".into());
        }
        (refused, slowest) = (refused + 1, slowest.max(after));
    }
    if slowest > REFUSAL_LIMIT {
        return Err(server.complaint(&format!("a change was refused after {slowest:?}")));
    }
    let mut probe = Probe::connect(&server).await?;
    probe.wait_for_admin(false).await?;
    let mut slowest_verdict = Duration::ZERO;
    for _ in 0..VERDICTS {
        let began = Instant::now();
        let seen = watch.verdicts();
        while watch.verdicts() == seen {
            if began.elapsed() > VERDICT_LIMIT {
                return Err(server.complaint(&format!("no verdict for {VERDICT_LIMIT:?} while the disk hangs")));
            }
            sleep(Duration::from_millis(1)).await;
        }
        slowest_verdict = slowest_verdict.max(began.elapsed());
    }
    let verdicts = watch.finish().await?;

    frozen.thaw()?;
    let mut made = 0;
    while let Some(answered) = timeout(ANSWERS_LIMIT, answers.recv()).await.map_err(|_| "a change that waited hangs")? {
        if answered?.refused { refused += 1 } else { made += 1 }
    }
    let waited = CHANGES - refused;
    if made != waited || !(COMMIT_QUEUE_OF_ONE_MAX..=COMMIT_QUEUE_OF_ONE_MAX + GROUP_MAX).contains(&waited) {
        return Err(format!("{refused} changes refused and {made} made, of {CHANGES}").into());
    }
    probe.wait_for_admin(true).await?;
    run.tally.count("hanging disks: changes refused at once, with RetryInfo", refused as u64);
    run.tally.count("hanging disks: slowest refusal, in ms", millis(slowest));
    run.tally.count("hanging disks: changes that waited, and were made", made as u64);
    run.tally.count("hanging disks: slowest verdict, in ms", millis(slowest_verdict));
    run.tally.count("verdicts compared while a disk failed", verdicts);

    // What was acknowledged is on the disk, not only in the kernel's memory: the power fails now.
    freeze(&server).await?;
    let image = scene.root.join("copy.img");
    disk.copy(&image).await?;
    server.signal(Signal::CONT)?;
    server.signal(Signal::KILL)?;
    server.end(END_LIMIT).await?;
    drop(disk);
    let copy = Disk::mount(&image)?;
    launch.data_dir = copy.mount.join("data");
    judge(run, scene, &launch, &oracle).await
}

/// Creates a key in a book of its own.
async fn create(caller: &Caller, oracle: &Arc<Oracle>, book: usize) -> Result<Answered, Failure> {
    let name = format!("key-{book}");
    oracle.ask(book, &name, Change::Create(name.clone()));
    let request = pb::CreateKeyRequest { key_id: name.clone(), display_name: name, ..Default::default() };
    let began = Instant::now();
    let answer = caller.create(request).await;
    let after = began.elapsed();
    match answer {
        Ok(made) => {
            oracle.acknowledged_as(book, made.key.as_ref(), Some(made.secret))?;
            Ok(Answered { refused: false, after })
        }
        Err(status) if is_overload(&status) => {
            oracle.refused(book);
            Ok(Answered { refused: true, after })
        }
        Err(status) => Err(format!("while the disk hangs, a change gets {status:?}").into()),
    }
}

/// Whether it says that too much is waiting, and when to come back.
fn is_overload(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    status.code() == Code::ResourceExhausted && reason.as_deref() == Some("OVERLOADED") && retry.is_some()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A frozen file system. A process of its own thaws it, when it is told to or when this program is gone:
/// nobody else could, and it could not be unmounted.
struct Frozen(Child);

impl Frozen {
    fn freeze(disk: &Disk) -> Result<Self, Failure> {
        let script = "fsfreeze -f \"$0\" && echo frozen && cat && fsfreeze -u \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&disk.mount).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot run sh: {e}"))?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut said)?;
        }
        let frozen = Self(child);
        if said.trim() == "frozen" { Ok(frozen) } else { Err("the file system cannot be frozen".into()) }
    }

    fn thaw(mut self) -> Result<(), Failure> {
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the file system cannot be thawed: {status}").into()) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}
