//! How long a verdict takes while writes are saturated, beside how long it takes while there are none.
//!
//! Three kinds of saturation. Where a sync takes 4 s, the committer is always at one and hundreds of changes wait, while the
//! processor has nothing to do: what slows a verdict then would be a lock or a wait. Where it takes 100 ms, a group is
//! answered all at once ten times a second, and its callers come again at once. On the disk as it is, writers take all of the
//! processor that they get. In both, verdicts share the processor with them.
//!
//! The writers are a process of their own, and a patient one, so that what is measured is the server and not its clients.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::caller::Caller;
use crate::run::Run;
use crate::server::Server;

/// How long each of a round's two halves lasts.
const HALF: Duration = Duration::from_secs(3);
/// A verdict is asked for once in this time, whether or not the one before has come.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// Writers, of which each has one change waiting: together more than a group takes.
const CONNECTIONS: usize = 3;
const WRITERS_PER_CONNECTION: usize = 200;
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// A tracer that makes each sync of the journal take longer, by so many milliseconds.
fn slow_disk(millis: u32) -> Vec<String> {
    let delay = format!("-einject=fdatasync:delay_exit={millis}000");
    let words = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", &delay];
    words.map(str::to_owned).to_vec()
}

/// Measures both kinds in so many rounds.
pub(crate) async fn run(run: &mut Run, rounds: u64) -> Result<(), Failure> {
    let kinds = [
        ("a sync takes 4 s", slow_disk(4_000)),
        ("a sync takes 100 ms", slow_disk(100)),
        ("the disk as it is", vec![]),
    ];
    for (kind, wrapper) in kinds {
        let mut scene = run.scene(SEGMENT_BYTES)?;
        scene.launch.wrapper = wrapper;
        let server = scene.launch.serve().await?;
        let label = pb::CreateKeyRequest { display_name: "asked about".to_owned(), ..Default::default() };
        let secret = server.caller().await?.create(label).await?.secret;
        let mut ratios = [vec![], vec![]];
        let (mut quiet, mut busy) = (vec![], vec![]);
        let mut written = 0;
        for _ in 0..rounds {
            let alone = half(&server, &secret, &mut quiet).await?;
            let writers = Writers::start(&server)?;
            let among = half(&server, &secret, &mut busy).await?;
            written += writers.finish()?;
            for (ratios, (alone, among)) in ratios.iter_mut().zip(alone.into_iter().zip(among)) {
                ratios.push(among.as_secs_f64() / alone.as_secs_f64());
            }
            run.tally.passed += 1;
        }
        for ((name, part), ratios) in [("p50", 50), ("p99", 99)].into_iter().zip(&mut ratios) {
            let [alone, among] = [&mut quiet, &mut busy].map(|times| percentile(times, part).as_micros() as u64);
            run.tally.count(&format!("{kind}: verdict {name} without writes, us"), alone);
            run.tally.count(&format!("{kind}: verdict {name} among writes, us"), among);
            ratios.sort_unstable_by(f64::total_cmp);
            let median = (ratios[ratios.len() / 2] * 100.0).round() as u64;
            run.tally.count(&format!("{kind}: {name}, median of ratios, percent"), median);
        }
        run.tally.count(&format!("{kind}: changes a second"), written / (HALF.as_secs() * rounds));
        server.stop().await?;
        run.discard(&scene);
    }
    Ok(())
}

/// The process that writes.
struct Writers(Child);

impl Writers {
    fn start(server: &Server) -> Result<Self, Failure> {
        let (addr, key_file) = server.reach()?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(std::env::current_exe()?).args(["writers", addr]).arg(key_file);
        Ok(Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?))
    }

    /// Ends it, and gives the changes that were acknowledged to it.
    fn finish(mut self) -> Result<u64, Failure> {
        // It works until its input ends.
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }
}

/// What the process does that writes: creates keys until its input ends, and prints how many.
pub(crate) async fn write(addr: &str, key_file: &Path) -> Result<(), Failure> {
    let secret = std::fs::read_to_string(key_file)?;
    let (mut writers, stop) = (JoinSet::new(), CancellationToken::new());
    for _ in 0..CONNECTIONS {
        let caller = Caller::connect(addr, secret.trim()).await?;
        for _ in 0..WRITERS_PER_CONNECTION {
            writers.spawn(write_on(caller.clone(), stop.clone()));
        }
    }
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    stop.cancel();
    let acknowledged: u64 = writers.join_all().await.into_iter().sum::<Result<u64, Failure>>()?;
    println!("{acknowledged}");
    Ok(())
}

async fn write_on(caller: Caller, stop: CancellationToken) -> Result<u64, Failure> {
    let mut acknowledged = 0;
    while !stop.is_cancelled() {
        let request = pb::CreateKeyRequest { display_name: "one of many".to_owned(), ..Default::default() };
        caller.create(request).await?;
        acknowledged += 1;
    }
    Ok(acknowledged)
}

/// Asks for verdicts for a while, and gives the 50th and 99th percentiles of the times that they took.
async fn half(server: &Server, secret: &str, all: &mut Vec<Duration>) -> Result<[Duration; 2], Failure> {
    let caller = server.caller().await?;
    let (sender, mut taken) = unbounded_channel();
    let mut ticks = interval(ASK_EVERY);
    // The clock of the questions does not wait for the answers: a stall is counted in full.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let begun = Instant::now();
    let mut asked = JoinSet::new();
    while begun.elapsed() < HALF {
        let due = ticks.tick().await.into_std();
        asked.spawn(ask(caller.clone(), secret.to_owned(), due, sender.clone()));
        while let Some(done) = asked.try_join_next() {
            done??;
        }
    }
    while let Some(done) = asked.join_next().await {
        done??;
    }
    drop(sender);
    let mut times = vec![];
    while let Some(time) = taken.recv().await {
        times.push(time);
    }
    let percentiles = [percentile(&mut times, 50), percentile(&mut times, 99)];
    all.append(&mut times);
    Ok(percentiles)
}

async fn ask(caller: Caller, secret: String, due: Instant, sender: UnboundedSender<Duration>) -> Result<(), Failure> {
    let verdict = caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await?;
    if verdict.decision() != pb::Decision::Allow {
        return Err(format!("a key that works was refused: {verdict:?}").into());
    }
    sender.send(due.elapsed())?;
    Ok(())
}

fn percentile(times: &mut [Duration], part: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * part / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
