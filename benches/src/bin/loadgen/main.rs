//! Asks a server for verdicts about many different keys, as fast as it answers, and says what that cost both
//! sides.
//!
//! ```text
//! loadgen --what verify|stream --port P --pid PID --secrets FILE --calls N [--keys N] [--unknown %] [--garbage %]
//! loadgen --what echo|echo-stream --port P --pid PID --bytes N --calls N
//!     [--connections C] [--streams S] [--window W]
//! ```
//!
//! Every frame is made before the first is sent, and a reply is compared, not decoded: a client that decodes
//! would cost more than the server. Each key is asked about once before the clock starts, and what that reply
//! says of decision, reason and key is what every later one must say. On a stream, replies must come in the
//! order of their requests, with `--window` of them under way. `--keys 1` asks about one and the same key.

mod conn;
mod frames;
mod plan;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll};
use std::time::Instant;

use keyward_bench::args::Args;
use keyward_bench::fixture::Failure;
use keyward_bench::stats::{Spread, rounded};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::conn::{Asks, Conn, Sent};
use self::plan::{Plan, What};

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes that are read at a time.
const READ_BYTES: usize = 128 * 1024;
/// Calls under way while it is learned what the replies are.
const LEARNING_STREAMS: usize = 64;
/// Seconds are this many ticks in /proc/<pid>/stat, on every Linux that there is.
const TICKS: f64 = 100.0;

/// What all connections share.
struct Run {
    plan: Plan,
    head: Vec<u8>,
    requests: Vec<Vec<u8>>,
    port: u16,
    streams: usize,
    window: Option<usize>,
}

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let mut options = Args::parse(&args)?;
    let what = What::parse(&options.need::<String>("what")?)?;
    let (port, pid, calls): (u16, u32, u64) = (options.need("port")?, options.need("pid")?, options.need("calls")?);
    let connections: u64 = options.get("connections")?.unwrap_or(8);
    let streams = options.get("streams")?.unwrap_or(32);
    let window = if what.streams() { Some(options.get("window")?.unwrap_or(32)) } else { None };
    let plan = match what {
        What::Verify | What::Stream => {
            let secrets: PathBuf = options.need("secrets")?;
            let keys = options.get("keys")?.unwrap_or(usize::MAX);
            let percents = [options.get("unknown")?.unwrap_or(0), options.get("garbage")?.unwrap_or(0)];
            Plan::of_file(what, &secrets, keys, percents)?
        }
        What::Echo | What::EchoStream => Plan::of_echo(what, options.need("bytes")?)?,
    };
    options.end()?;
    let mut run = Run { head: plan.head(), requests: plan.requests(), plan, port, streams, window };
    learn(&mut run)?;

    let request_bytes = run.plan.request_bytes(0);
    let threads = connections.min(std::thread::available_parallelism()?.get() as u64);
    let run = Arc::new(run);
    // All connect, then all begin.
    let (ready, begin) = (Arc::new(Barrier::new(threads as usize + 1)), Arc::new(Barrier::new(threads as usize + 1)));
    let workers = (0..threads).map(|nth| {
        let (run, ready, begin) = (run.clone(), ready.clone(), begin.clone());
        // Connections, and calls, as evenly as they can be split.
        let mine: Vec<_> = (nth..connections)
            .step_by(threads as usize)
            .map(|connection| (connection, calls / connections + u64::from(connection < calls % connections)))
            .collect();
        std::thread::spawn(move || work(&run, mine, &ready, &begin))
    });
    let workers: Vec<_> = workers.collect();
    ready.wait();
    let (began, cpu) = (Instant::now(), cpu_of(pid)?);
    begin.wait();
    let mut own = 0.0;
    for worker in workers {
        own += worker.join().map_err(|_| "a thread panicked")??;
    }
    let (seconds, server) = (began.elapsed().as_secs_f64(), cpu_of(pid)? - cpu);
    let each = |seconds: f64| rounded(seconds / calls as f64 * 1e6);
    let found = json!({
        "calls": calls,
        "seconds": rounded(seconds),
        "rate": (calls as f64 / seconds).round(),
        "cpu_us": each(server),
        "generator_cpu_us": each(own),
        "server_cores": rounded(server / seconds),
        "generator_cores": rounded(own / seconds),
        "request_bytes": request_bytes,
    });
    println!("{found:#}");
    Ok(())
}

/// The connections of a thread, and their calls. Seconds of CPU that it used.
fn work(run: &Arc<Run>, mine: Vec<(u64, u64)>, ready: &Barrier, begin: &Barrier) -> Result<f64, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let connected = runtime.block_on(async {
        let mut connected = vec![];
        for (seed, calls) in mine {
            connected.push((connect(run.port).await?, Asker { run: run.clone(), random: Spread(seed), left: calls }));
        }
        Ok::<_, Failure>(connected)
    });
    ready.wait();
    begin.wait();
    let before = own_cpu()?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (stream, mut asker) in connected? {
            let run = run.clone();
            tasks.spawn(async move { drive(&run, stream, run.streams, &mut asker).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok::<_, Failure>(())
    })?;
    Ok(own_cpu()? - before)
}

/// Asks about each key once, and keeps what is said.
fn learn(run: &mut Run) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut learner = Learner { next: 0, items: run.plan.items(), learned: vec![] };
    let streams = if run.window.is_some() { 1 } else { LEARNING_STREAMS };
    runtime.block_on(async {
        let stream = connect(run.port).await?;
        drive(run, stream, streams, &mut learner).await
    })?;
    learner.learned.into_iter().try_for_each(|(item, message)| run.plan.learn(item, &message))
}

async fn connect(port: u16) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads and writes until everything is asked and answered.
async fn drive(run: &Run, mut stream: TcpStream, streams: usize, asks: &mut impl Asks) -> Result<(), Failure> {
    let sent = Sent { head: &run.head, requests: &run.requests, window: run.window };
    let mut conn = Conn::new(sent, streams);
    conn.ask(asks);
    let (mut buffer, mut filled) = (vec![0; READ_BYTES], 0);
    while !conn.done() {
        let read = std::future::poll_fn(|cx| turn(&mut stream, cx, &mut conn.out, &mut buffer[filled..])).await?;
        if read == 0 {
            return Err("the server has closed the connection".into());
        }
        filled += read;
        let taken = conn.receive(&buffer[..filled], asks)?;
        buffer.copy_within(taken..filled, 0);
        filled -= taken;
    }
    Ok(())
}

/// Writes what there is to write, and reads what there is to read.
fn turn(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    out: &mut Vec<u8>,
    buffer: &mut [u8],
) -> Poll<std::io::Result<usize>> {
    let mut written = 0;
    while written < out.len() {
        match Pin::new(&mut *stream).poll_write(cx, &out[written..]) {
            Poll::Ready(wrote) => written += wrote?,
            Poll::Pending => break,
        }
    }
    out.drain(..written);
    let mut buffer = ReadBuf::new(buffer);
    match Pin::new(stream).poll_read(cx, &mut buffer) {
        Poll::Ready(read) => Poll::Ready(read.map(|()| buffer.filled().len())),
        Poll::Pending => Poll::Pending,
    }
}

/// Asks about keys by chance, a number of times.
struct Asker {
    run: Arc<Run>,
    random: Spread,
    left: u64,
}

impl Asks for Asker {
    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        Some(self.run.plan.choose(&mut self.random))
    }

    fn reply(&mut self, item: usize, message: &[u8]) -> Result<(), Failure> {
        if self.run.plan.answers(item, message) { Ok(()) } else { Err("a reply is not the one to its request".into()) }
    }
}

/// Asks about every key once.
struct Learner {
    next: usize,
    items: usize,
    learned: Vec<(usize, Vec<u8>)>,
}

impl Asks for Learner {
    fn next(&mut self) -> Option<usize> {
        let item = self.next;
        self.next += 1;
        (item < self.items).then_some(item)
    }

    fn reply(&mut self, item: usize, message: &[u8]) -> Result<(), Failure> {
        self.learned.push((item, message.to_vec()));
        Ok(())
    }
}

/// Seconds of CPU that a process has used.
fn cpu_of(pid: u32) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').ok_or("the system says nothing of the server")?.1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(ticks.sum::<Result<u64, _>>()? as f64 / TICKS)
}

/// Seconds of CPU that this thread has used.
fn own_cpu() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: u64 = stat.split_whitespace().next().ok_or("the system says nothing of this thread")?.parse()?;
    Ok(nanos as f64 / 1e9)
}
