//! What names that come and go leave behind: memory, the index checkpoint, the table, and how long a start
//! takes.
//!
//! `churn <keyward> <data directory> [--keys N] [--updates N] [--scopes N]`
//!
//! It starts the program on an empty directory, issues keys (20,000), changes them in turn so that each
//! change brings as many new scopes as said (40,000 changes of 60), and then gives each key one and the same
//! scope. It says what the process takes before, after and a while later, and what files are there; then how
//! a start goes with the checkpoint of the index and without it, five times each, in turns. What is in the
//! environment is in that of the program: `KEYWARD_SCOPES_PER_TENANT_MAX` must be large enough, or the
//! changes are refused, which is counted.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use keyward::grpc::pb::key_admin_client::KeyAdminClient;
use keyward::grpc::pb::{CreateKeyRequest, Key, UpdateKeyRequest};
use keyward_bench::args::Args;
use keyward_bench::fixture::Failure;
use keyward_bench::stats::median;
use prost_types::FieldMask;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Calls under way.
const UNDER_WAY: u64 = 128;
const CONNECTIONS: usize = 4;
/// Long enough for what is freed to go back to the system, and for a compaction.
const LATER: Duration = Duration::from_secs(20);
/// Starts of each kind.
const STARTS: usize = 5;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [program, data, rest @ ..] = &args[..] else {
        return Err("usage: churn <keyward> <data directory> [--keys N] [--updates N] [--scopes N]".into());
    };
    let (program, data, mut options) = (Path::new(program), Path::new(data), Args::parse(rest)?);
    let keys: u64 = options.get("keys")?.unwrap_or(20_000);
    let updates: u64 = options.get("updates")?.unwrap_or(40_000);
    let scopes: u64 = options.get("scopes")?.unwrap_or(60);
    options.end()?;

    let server = Server::start(program, data)?;
    let calls = server.calls().await?;
    let text = |number: u64| format!("key-{number:09}");
    let create = move |number: u64| {
        Change::Create(Box::new(CreateKeyRequest {
            key_id: text(number),
            display_name: format!("Integration {number}"),
            owner: format!("customer-{}", number % 1_000),
            scopes: vec!["orders.read".into()],
            ..Default::default()
        }))
    };
    calls.all(keys, create).await?;
    println!("{keys} keys: {} MiB", server.resident()? >> 20);
    let churn = move |number: u64| {
        let own = (0..scopes).map(|nth| format!("area.update-{number:07}.action-{nth:02}")).collect();
        Change::Scopes(text(number % keys), own)
    };
    let began = Instant::now();
    let refused = calls.all(updates, churn).await?;
    let took = began.elapsed().as_secs_f64();
    println!(
        "{updates} changes with {scopes} new scopes each, {took:.0} s, {refused} refused: {} MiB",
        server.resident()? >> 20
    );
    calls.all(keys, move |number| Change::Scopes(text(number), vec!["orders.read".into()])).await?;
    println!("all back: {} MiB", server.resident()? >> 20);
    tokio::time::sleep(LATER).await;
    println!("{} s later: {} MiB", LATER.as_secs(), server.resident()? >> 20);
    server.stop()?;
    let kib = |name: &str| bytes_below(&data.join(name)) >> 10;
    println!("table {} KiB, checkpoint {} KiB, journal {} KiB", kib("table"), kib("index"), kib("journal"));

    let mut starts = [vec![], vec![]];
    let aside = data.join("index.aside");
    for _ in 0..STARTS {
        for (with_checkpoint, taken) in [true, false].into_iter().zip(&mut starts) {
            let moved = !with_checkpoint && fs::rename(data.join("index"), &aside).is_ok();
            let server = Server::start(program, data)?;
            taken.push((
                server.verdicts_after.as_secs_f64(),
                server.serving_after.as_secs_f64(),
                server.resident()? >> 20,
            ));
            server.stop()?;
            if moved {
                // One that was made meanwhile would be another.
                drop(fs::remove_dir_all(data.join("index")));
                fs::rename(&aside, data.join("index"))?;
            }
        }
    }
    for (name, taken) in ["with", "without"].iter().zip(&mut starts) {
        let of = |pick: fn(&(f64, f64, u64)) -> f64| median(&taken.iter().map(pick).collect::<Vec<_>>());
        println!(
            "start {name} the checkpoint: verdicts after {:.3} s, all after {:.3} s, {:.0} MiB",
            of(|one| one.0),
            of(|one| one.1),
            of(|one| one.2 as f64)
        );
    }
    println!("table {} KiB after the starts", kib("table"));
    Ok(())
}

/// A running server.
struct Server {
    child: Killed,
    addr: String,
    data: PathBuf,
    verdicts_after: Duration,
    serving_after: Duration,
    /// Its log is read to the end.
    _lines: Receiver<String>,
}

/// A process that is not left behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Server {
    fn start(program: &Path, data: &Path) -> Result<Self, Failure> {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--ops-listen", "off", "--data-dir"]).arg(data);
        let mut child = Killed(command.stderr(Stdio::piped()).spawn()?);
        let log = BufReader::new(child.0.stderr.take().ok_or("no log")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                // Nobody listens once it serves; it must not wait for us all the same.
                let _unheard = sender.send(line);
            }
        });
        let (mut addr, mut verdicts_after) = (String::new(), Duration::ZERO);
        loop {
            let line = lines.recv().map_err(|_| "the server ended")?;
            if let Some((_, found)) = line.split_once("listen=") {
                addr = found.trim().to_owned();
            } else if line.contains("answering verdicts") {
                verdicts_after = began.elapsed();
            } else if line.contains("serving keys=") {
                break;
            } else if ["WARN", "ERROR", "the table ", "longer than the checkpoint"]
                .iter()
                .any(|said| line.contains(said))
            {
                println!("    {line}");
            }
        }
        let serving_after = began.elapsed();
        Ok(Self { child, addr, data: data.to_owned(), verdicts_after, serving_after, _lines: lines })
    }

    async fn calls(&self) -> Result<Calls, Failure> {
        let secret = fs::read_to_string(self.data.join("admin.key"))?;
        let mut channels = vec![];
        for _ in 0..CONNECTIONS {
            channels.push(Endpoint::from_shared(format!("http://{}", self.addr))?.connect().await?);
        }
        Ok(Calls { channels, credential: format!("Bearer {}", secret.trim()).into() })
    }

    /// Bytes of memory that it holds.
    fn resident(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.0.id()))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kib.ok_or("the system does not say how much memory there is")?.parse::<u64>()? * 1_024)
    }

    fn stop(mut self) -> Result<(), Failure> {
        let id = self.child.0.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        self.child.0.wait()?;
        Ok(())
    }
}

enum Change {
    Create(Box<CreateKeyRequest>),
    Scopes(String, Vec<String>),
}

struct Calls {
    channels: Vec<Channel>,
    credential: Arc<str>,
}

impl Calls {
    /// Makes so many changes, many at a time, and says how many were refused by a bound.
    async fn all(&self, count: u64, change: impl Fn(u64) -> Change + Clone + Send + 'static) -> Result<u64, Failure> {
        let (next, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut workers = tokio::task::JoinSet::new();
        for channel in self.channels.iter().cycle().take(usize::try_from(UNDER_WAY)?) {
            let mut client = KeyAdminClient::new(channel.clone());
            let (next, refused, change, credential) =
                (next.clone(), refused.clone(), change.clone(), self.credential.clone());
            workers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok::<_, Failure>(());
                    }
                    match made(&mut client, &credential, change(number)).await {
                        Err(status) if status.code() == Code::ResourceExhausted => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        other => other?,
                    }
                }
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(refused.load(Ordering::Relaxed))
    }
}

async fn made(client: &mut KeyAdminClient<Channel>, credential: &str, change: Change) -> Result<(), Status> {
    fn with<M>(message: M, credential: &str) -> Result<Request<M>, Status> {
        let mut request = Request::new(message);
        let value = credential.parse().map_err(|_| Status::internal("the credential is no metadata"))?;
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
    match change {
        Change::Create(key) => client.create_key(with(*key, credential)?).await.map(drop),
        Change::Scopes(key_id, scopes) => {
            let update = UpdateKeyRequest {
                key: Some(Key { key_id, scopes, ..Default::default() }),
                update_mask: Some(FieldMask { paths: vec!["scopes".into()] }),
                ..Default::default()
            };
            client.update_key(with(update, credential)?).await.map(drop)
        }
    }
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        found => found.map_or(0, |found| found.len()),
    });
    sizes.sum()
}
