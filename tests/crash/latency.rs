//! How long a verdict takes while writes are saturated, beside how long it takes while there are none.
//!
//! Three kinds of saturation. Where a sync takes 4 s, the committer is always at one and hundreds of changes
//! wait, while the processor has nothing to do: what slows a verdict then would be a lock or a wait. Where it
//! takes 100 ms, a group is answered all at once ten times a second, and its callers come again at once. On
//! the disk as it is, writers take all of the processor that they get. In both, verdicts share the processor
//! with them.
//!
//! What is measured is the server and not its clients, which are elsewhere in life and here on the same
//! cores. So each kind of client is a process of its own: the one that asks goes before everything else on
//! the machine, so that it never waits for a processor; those that write go behind everything else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyward::grpc::pb;

use crate::Failure;
use crate::run::Run;
use crate::server::Server;
use crate::wire::{End, Wire};

/// How long each of a round's two halves lasts. Short, and so many: what else the machine does spoils the
/// round it falls into.
const HALF: Duration = Duration::from_secs(2);
/// A verdict is due once in this time, whether or not the one before has come.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// Writers, of which each has one change waiting: together more than a group takes.
const CONNECTIONS: usize = 3;
const WRITERS_PER_CONNECTION: usize = 200;
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// More than this of what a verdict takes without writes, in the median, is too much.
const MEDIAN_PERCENT_MAX: u64 = 150;
/// What is told of the times, in thousandths.
const PARTS: [(&str, usize); 3] = [("p50", 500), ("p99", 990), ("p99.9", 999)];

/// Measures all kinds in so many rounds.
pub(crate) async fn run(run: &mut Run, rounds: u64) -> Result<(), Failure> {
    let kinds = [
        ("a sync takes 4 s", Some(Duration::from_secs(4))),
        ("a sync takes 100 ms", Some(Duration::from_millis(100))),
        ("the disk as it is", None),
    ];
    for (kind, sync) in kinds {
        let scene = run.scene(SEGMENT_BYTES)?;
        let server = scene.launch.serve().await?;
        let label = pb::CreateKeyRequest { display_name: "asked about".to_owned(), ..Default::default() };
        let secret = server.caller().await?.create(label).await?.secret;
        let slow_disk = sync.map(|time| SlowDisk::under(&server, time)).transpose()?;
        let mut ratios = PARTS.map(|_| vec![]);
        let (mut quiet, mut busy) = (vec![], vec![]);
        let mut written = 0;
        for _ in 0..rounds {
            let alone = half(&server, &secret, &mut quiet)?;
            let writers = Writers::start(&server)?;
            let among = half(&server, &secret, &mut busy)?;
            written += writers.finish()?;
            for (ratios, (alone, among)) in ratios.iter_mut().zip(alone.into_iter().zip(among)) {
                ratios.push(among.as_secs_f64() / alone.as_secs_f64());
            }
            run.tally.passed += 1;
        }
        for ((name, part), ratios) in PARTS.into_iter().zip(&mut ratios) {
            let [alone, among] = [&mut quiet, &mut busy].map(|times| percentile(times, part).as_micros() as u64);
            run.tally.count(&format!("{kind}: verdict {name} without writes, us"), alone);
            run.tally.count(&format!("{kind}: verdict {name} among writes, us"), among);
            ratios.sort_unstable_by(f64::total_cmp);
            let median = (ratios[ratios.len() / 2] * 100.0).round() as u64;
            run.tally.count(&format!("{kind}: {name}, median of ratios, percent"), median);
            // Of the others, a machine with other work says little.
            if part == PARTS[0].1 && median > MEDIAN_PERCENT_MAX {
                run.fail(
                    &scene,
                    &format!("{kind}: the median of verdicts is {median} % of that without writes").into(),
                );
            }
        }
        run.tally.count(&format!("{kind}: changes a second"), written / (HALF.as_secs() * rounds));
        drop(slow_disk);
        server.stop().await?;
        run.discard(&scene);
    }
    Ok(())
}

/// A tracer that makes each sync of the journal take longer. It looks at the thread that makes them and at no
/// other: a thread that is traced stops at each of its calls to the system.
struct SlowDisk(Child);

impl SlowDisk {
    fn under(server: &Server, sync: Duration) -> Result<Self, Failure> {
        let pid = server.pid().ok_or("the server has no process id")?;
        let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
        let is_committer =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "committer\n");
        let tasks = fs::read_dir(tasks)?.map(|task| task.map(|task| task.path())).collect::<Result<Vec<_>, _>>()?;
        let task = tasks.into_iter().find(is_committer).ok_or("the server has no thread that syncs the journal")?;
        let delay = format!("inject=fdatasync:delay_exit={}", sync.as_micros());
        let mut command = Command::new("strace");
        command.args(["-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &delay, "-p"]);
        let mut tracer = Self(command.arg(task.file_name().unwrap_or_default()).spawn()?);
        while fs::read_to_string(task.join("status"))?.contains("TracerPid:\t0\n") {
            if let Some(status) = tracer.0.try_wait()? {
                return Err(format!("strace has ended: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(tracer)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A process of this program that is a client of the server, and how the scheduler is told of it.
fn client(server: &Server, mode: &str, scheduled: [&str; 3]) -> Result<(Child, ChildStdin), Failure> {
    let (addr, key_file) = server.reach()?;
    let [program, arguments @ ..] = scheduled;
    let mut command = Command::new(program);
    command.args(arguments).arg(std::env::current_exe()?).args([mode, addr]).arg(key_file);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().ok_or("a client has no input")?;
    Ok((child, stdin))
}

/// The process that writes.
struct Writers(Child, ChildStdin);

impl Writers {
    fn start(server: &Server) -> Result<Self, Failure> {
        let (child, stdin) = client(server, "writers", ["nice", "-n", "19"])?;
        Ok(Self(child, stdin))
    }

    /// Ends it, and gives the changes that were acknowledged to it meanwhile.
    fn finish(self) -> Result<u64, Failure> {
        // It works until its input ends.
        drop(self.1);
        let output = self.0.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }
}

/// What the process does that writes: creates keys until its input ends, and prints how many were
/// acknowledged by then.
pub(crate) fn write(addr: &str, key_file: &Path) -> Result<(), Failure> {
    let admin = fs::read_to_string(key_file)?;
    let stop = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| write_on(addr, admin.trim(), &stop))).collect();
        let waited = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.store(true, Ordering::Relaxed);
        waited?;
        let counts =
            writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| Err("a writer panicked".into())));
        counts.sum::<Result<u64, Failure>>()
    })?;
    println!("{acknowledged}");
    Ok(())
}

fn write_on(addr: &str, admin: &str, stop: &AtomicBool) -> Result<u64, Failure> {
    let request = pb::CreateKeyRequest { display_name: "one of many".to_owned(), ..Default::default() };
    let mut wire = Wire::connect(addr, admin, "/keyward.v1.KeyAdmin/CreateKey", &request)?;
    wire.send(WRITERS_PER_CONNECTION)?;
    let (mut waiting, mut acknowledged) = (WRITERS_PER_CONNECTION, 0);
    while waiting > 0 {
        let ends = wire.receive::<pb::CreateKeyResponse>()?;
        waiting -= ends.len();
        if !stop.load(Ordering::Relaxed) {
            acknowledged += ends.iter().filter(|end| matches!(end, End::Reply(_))).count() as u64;
            wire.send(ends.len())?;
            waiting += ends.len();
        }
    }
    Ok(acknowledged)
}

/// Has verdicts asked for a while, and gives percentiles of the times that they took.
fn half(server: &Server, secret: &str, all: &mut Vec<Duration>) -> Result<[Duration; PARTS.len()], Failure> {
    let (child, mut stdin) = client(server, "asker", ["chrt", "--fifo", "1"])?;
    writeln!(stdin, "{secret}")?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("who asks for verdicts has failed: {}", String::from_utf8_lossy(&output.stdout)).into());
    }
    let nanos = String::from_utf8_lossy(&output.stdout);
    let times = nanos.lines().map(|nanos| nanos.parse().map(Duration::from_nanos));
    let mut times = times.collect::<Result<Vec<_>, _>>()?;
    let percentiles = PARTS.map(|(_, part)| percentile(&mut times, part));
    all.append(&mut times);
    Ok(percentiles)
}

/// What the process does that asks: asks about the secret that it reads, and prints what each verdict took,
/// in nanoseconds.
///
/// The time of a verdict begins when it is due, even if the one before has yet to come: a stall is counted in
/// full.
pub(crate) fn ask(addr: &str, key_file: &Path) -> Result<(), Failure> {
    let admin = fs::read_to_string(key_file)?;
    let mut secret = String::new();
    std::io::stdin().read_line(&mut secret)?;
    let request = pb::VerifyRequest { secret: secret.trim().to_owned(), ..Default::default() };
    let mut wire = Wire::connect(addr, admin.trim(), "/keyward.v1.KeyVerify/Verify", &request)?;
    let mut times = vec![];
    let mut due = Instant::now() + ASK_EVERY;
    for _ in 0..HALF.as_millis() / ASK_EVERY.as_millis() {
        // The system's sleep is exact to some microseconds.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        wire.send(1)?;
        let verdict: pb::VerifyResponse = loop {
            match wire.receive()?.pop() {
                Some(End::Reply(verdict)) => break verdict,
                Some(End::Refused) => return Err("a call for a verdict was refused".into()),
                None => {}
            }
        };
        times.push(due.elapsed());
        if verdict.decision() != pb::Decision::Allow {
            return Err(format!("a key that works was refused: {verdict:?}").into());
        }
        due += ASK_EVERY;
    }
    let lines: String = times.iter().map(|time| format!("{}\n", time.as_nanos())).collect();
    Ok(std::io::stdout().write_all(lines.as_bytes())?)
}

/// The time below which so many thousandths of the others are.
fn percentile(times: &mut [Duration], part: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * part / 1_000).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
