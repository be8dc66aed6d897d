//! How long a DisableKey takes while small roles of another tenant ask for as much as they may.
//!
//! A viewer of `acme` keeps 4 connections of 250 ListKeys under way on 100,000 keys, an issuer of `acme` 8
//! connections of 250 CreateKey, and both ask again at once, refused or not. Meanwhile an administrator
//! disables keys of another tenant, one every 25 ms. No DisableKey may be refused, and [`BOUNDS`] holds for
//! their times; the viewer keeps at least half of the rate that it has alone; and nobody hears of the disk,
//! of which nothing is wrong.
//!
//! There are two kinds of lists: pages of 1,000 keys, and a selector that names 400 keys in a state that none
//! of them is in (60 calls on each connection): no list has the server look at more keys for less. Each kind
//! of client is a process of its own, as in [`crate::latency`]. The crowds go behind everything else, because
//! in life they are on other machines; the administrator goes before everything else.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use prost::Message;

use crate::Failure;
use crate::caller::Caller;
use crate::run::{Run, Scene};
use crate::server::Server;
use crate::wire::{Ended, Wire};

const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Keys that the viewer lists.
const KEYS: u64 = 100_000;
const VIEWER_CONNECTIONS: usize = 4;
const ISSUER_CONNECTIONS: usize = 8;
const CALLS_PER_CONNECTION: usize = 250;
/// The same for lists that name 400 keys: each fits into a frame, and all of them fit into the server's
/// window.
const LONG_CALLS_PER_CONNECTION: usize = 60;
/// Keys of the other tenant that are disabled in one round.
const DISABLES: usize = 200;
const DISABLE_EVERY: Duration = Duration::from_millis(25);
/// No further key is disabled in a round that has taken this long.
const ROUND_MAX: Duration = Duration::from_secs(40);
/// How long the viewer asks alone.
const ALONE: Duration = Duration::from_secs(5);
/// What DisableKey may take: at the 99th percentile, and at most.
const BOUNDS: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];
/// The least of its rate that the viewer keeps, in percent.
const KEPT_PERCENT_MIN: u64 = 50;

/// What the viewer asks for.
const LISTS: [(&str, &str); 2] = [("pages of 1,000", "pages"), ("400 keys and none found", "none")];

/// Measures both kinds of lists in so many rounds.
pub(crate) async fn run(run: &mut Run, rounds: u64) -> Result<(), Failure> {
    for (kind, lists) in LISTS {
        let mut scene = run.scene(SEGMENT_BYTES)?;
        // The journal is kept as by default: making snapshots all the time is another matter.
        scene.launch.env.clear();
        let mut server = scene.launch.serve().await?;
        let keys = Keys::make(&server, &scene).await?;
        let admin = server.caller().await?;
        let mut figures = Figures::default();
        for round in 0..rounds {
            let targets = make_targets(&admin, round).await?;
            let before = run.tally.failed;
            for failure in figures.round(&server, &keys, lists, &targets)? {
                run.fail(&scene, &format!("{kind}: {failure}").into());
            }
            run.tally.passed += u64::from(run.tally.failed == before);
        }
        figures.tell(run, kind, rounds);
        // Over all rounds: what the machine gives varies from one to the next.
        let kept = figures.lists[1] * 100 / figures.lists[0].max(1);
        if kept < KEPT_PERCENT_MIN {
            run.fail(&scene, &format!("{kind}: the viewer has {kept} % of the rate that it has alone").into());
        }
        server.read_log();
        for line in server.log().iter().filter(|line| line.contains("does not answer") || line.contains("disk is")) {
            run.fail(&scene, &format!("{kind}: nothing is wrong with the disk, and the log says: {line}").into());
        }
        server.stop().await?;
        run.discard(&scene);
    }
    Ok(())
}

/// The files of the secrets that the crowds call with.
struct Keys {
    viewer: PathBuf,
    issuer: PathBuf,
}

impl Keys {
    /// Makes the tenants, the callers, and what the viewer lists.
    async fn make(server: &Server, scene: &Scene) -> Result<Self, Failure> {
        let admin = server.caller().await?;
        for tenant in ["acme", "globex"] {
            let request = pb::CreateTenantRequest { tenant: tenant.to_owned(), ..Default::default() };
            admin.create_tenant(request).await?;
        }
        let mut files = vec![];
        for role in ["keyward.viewer@acme", "keyward.issuer@acme"] {
            let request = pb::CreateKeyRequest {
                tenant: "system".to_owned(),
                display_name: role.to_owned(),
                scopes: vec![role.to_owned()],
                ..Default::default()
            };
            let file = scene.root.join(role);
            fs::write(&file, admin.create(request).await?.secret)?;
            files.push(file);
        }
        let [viewer, issuer] = &files[..] else { return Err("two callers were made".into()) };
        let keys = Self { viewer: viewer.clone(), issuer: issuer.clone() };
        let (addr, _) = server.reach()?;
        let secret = fs::read_to_string(&keys.issuer)?;
        let mut wire = Wire::connect(addr, &secret, CREATE, &new_key())?;
        let (mut made, mut sent) = (0, CALLS_PER_CONNECTION as u64);
        wire.send(CALLS_PER_CONNECTION)?;
        while made < KEYS {
            let ended = wire.ended()?;
            made += ended.iter().filter(|ended| **ended == Ended::Replied).count() as u64;
            let more = (KEYS - sent).min(ended.len() as u64);
            wire.send(more as usize)?;
            sent += more;
        }
        let page = pb::ListKeysRequest { page_size: 400, ..Default::default() };
        let selector = Some(pb::KeySelector { tenant: "acme".to_owned(), ..Default::default() });
        let named = admin.list(pb::ListKeysRequest { selector, ..page }).await?.keys;
        let ids: Vec<_> = named.into_iter().map(|key| key.key_id).collect();
        fs::write(ids_beside(&keys.viewer), ids.join("\n"))?;
        Ok(keys)
    }
}

/// The file of the ids that a viewer names.
fn ids_beside(key_file: &Path) -> PathBuf {
    key_file.with_added_extension("ids")
}

async fn make_targets(admin: &Caller, round: u64) -> Result<Vec<String>, Failure> {
    let mut targets = vec![];
    for number in 0..DISABLES {
        let key_id = format!("target-{round}-{number}");
        let request = pb::CreateKeyRequest {
            tenant: "globex".to_owned(),
            key_id: key_id.clone(),
            display_name: key_id.clone(),
            ..Default::default()
        };
        admin.create(request).await?;
        targets.push(key_id);
    }
    Ok(targets)
}

/// What all rounds of one kind came to.
#[derive(Default)]
struct Figures {
    times: Vec<Duration>,
    refused_disables: u64,
    /// Lists a second, alone and in the crowd.
    lists: [u64; 2],
    refused_lists: u64,
    created: u64,
    refused_creates: u64,
}

impl Figures {
    /// One round, and what was wrong in it.
    fn round(&mut self, server: &Server, keys: &Keys, lists: &str, targets: &[String]) -> Result<Vec<String>, Failure> {
        let viewer = Crowd::start(server, &keys.viewer, &["viewer", lists])?;
        std::thread::sleep(ALONE);
        let alone = viewer.finish()?;

        let issuer = Crowd::start(server, &keys.issuer, &["issuer"])?;
        let viewer = Crowd::start(server, &keys.viewer, &["viewer", lists])?;
        // Until all that they may have under way is.
        std::thread::sleep(Duration::from_secs(1));
        let (mut times, refused) = disable(server, targets)?;
        let (among, issued) = (viewer.finish()?, issuer.finish()?);
        times.sort_unstable();

        let mut wrong = vec![];
        if refused > 0 || times.len() < targets.len() {
            wrong.push(format!("{refused} DisableKey of {} were refused, of {}", times.len(), targets.len()));
        }
        let part = |part: usize| times.get(times.len() * part / 100).or(times.last()).copied().unwrap_or_default();
        for (name, took, most) in [("p99", part(99), BOUNDS[0]), ("slowest", part(100), BOUNDS[1])] {
            if took > most {
                wrong.push(format!(
                    "the {name} of {} DisableKey took {took:?}, which is more than {most:?}",
                    times.len()
                ));
            }
        }
        if issued.disk + among.disk > 0 {
            wrong.push(format!("{} calls were refused for the disk", issued.disk + among.disk));
        }
        self.times.extend(times);
        self.refused_disables += refused;
        self.lists[0] += alone.rate();
        self.lists[1] += among.rate();
        self.refused_lists += among.refused;
        self.created += issued.rate();
        self.refused_creates += issued.refused;
        Ok(wrong)
    }

    fn tell(&mut self, run: &mut Run, kind: &str, rounds: u64) {
        self.times.sort_unstable();
        for (name, part) in [("p50", 50), ("p99", 99), ("slowest", 100)] {
            let time = self.times.get(self.times.len() * part / 100).or(self.times.last());
            let micros = time.map_or(0, |time| time.as_micros() as u64);
            run.tally.count(&format!("{kind}: DisableKey {name}, us"), micros);
        }
        let rounds = rounds.max(1);
        run.tally.count(&format!("{kind}: DisableKey"), self.times.len() as u64);
        run.tally.count(&format!("{kind}: DisableKey refused"), self.refused_disables);
        run.tally.count(&format!("{kind}: lists a second, alone"), self.lists[0] / rounds);
        run.tally.count(&format!("{kind}: lists a second, in the crowd"), self.lists[1] / rounds);
        run.tally.count(&format!("{kind}: lists refused in the crowd"), self.refused_lists);
        run.tally.count(&format!("{kind}: creates a second"), self.created / rounds);
        run.tally.count(&format!("{kind}: creates refused"), self.refused_creates);
    }
}

/// A process of this program that calls as fast as it is answered.
struct Crowd(Child, ChildStdin);

/// What a crowd got.
struct Got {
    replied: u64,
    refused: u64,
    /// Of those, refusals that speak of the disk.
    disk: u64,
    millis: u64,
}

impl Got {
    fn rate(&self) -> u64 {
        self.replied * 1_000 / self.millis.max(1)
    }
}

impl Crowd {
    fn start(server: &Server, key_file: &Path, mode: &[&str]) -> Result<Self, Failure> {
        let (addr, _) = server.reach()?;
        // How nice it is, which is to be 19 by default.
        let nice = std::env::var("CROWD_NICE").unwrap_or_else(|_| "19".to_owned());
        let mut command = Command::new("nice");
        command.args(["-n", &nice]).arg(std::env::current_exe()?).args(&mode[..1]).arg(addr).arg(key_file);
        command.args(&mode[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().ok_or("a client has no input")?;
        Ok(Self(child, stdin))
    }

    fn finish(self) -> Result<Got, Failure> {
        // It works until its input ends.
        drop(self.1);
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            return Err(format!("a crowd has failed: {}", String::from_utf8_lossy(&output.stdout)).into());
        }
        let words = String::from_utf8_lossy(&output.stdout);
        let figures = words.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let [replied, refused, disk, millis] = figures[..] else { return Err("a crowd has said too little".into()) };
        Ok(Got { replied, refused, disk, millis })
    }
}

const CREATE: &str = "/keyward.v1.KeyAdmin/CreateKey";
const LIST: &str = "/keyward.v1.KeyAdmin/ListKeys";
const DISABLE: &str = "/keyward.v1.KeyAdmin/DisableKey";

fn new_key() -> pb::CreateKeyRequest {
    pb::CreateKeyRequest {
        display_name: "one of many".to_owned(),
        owner: "customer-7".to_owned(),
        scopes: vec!["orders.read".to_owned(), "orders.write".to_owned()],
        ..Default::default()
    }
}

/// What the issuer's process does.
pub(crate) fn issue(addr: &str, key_file: &Path) -> Result<(), Failure> {
    crowd(addr, key_file, CREATE, &new_key(), [ISSUER_CONNECTIONS, CALLS_PER_CONNECTION])
}

/// What the viewer's process does: it asks for pages, or for what is not there.
pub(crate) fn list(addr: &str, key_file: &Path, lists: &str) -> Result<(), Failure> {
    let selector = if lists == "none" {
        let key_ids = fs::read_to_string(ids_beside(key_file))?.lines().map(str::to_owned).collect();
        Some(pb::KeySelector { key_ids, states: vec![pb::State::Revoked.into()], ..Default::default() })
    } else {
        None
    };
    let request = pb::ListKeysRequest { selector, page_size: 1_000, ..Default::default() };
    let calls = if lists == "none" { LONG_CALLS_PER_CONNECTION } else { CALLS_PER_CONNECTION };
    crowd(addr, key_file, LIST, &request, [VIEWER_CONNECTIONS, calls])
}

/// Keeps all the calls under way that there may be until its input ends, and prints what came of them.
fn crowd(
    addr: &str,
    key_file: &Path,
    path: &str,
    request: &impl Message,
    [connections, calls]: [usize; 2],
) -> Result<(), Failure> {
    let secret = fs::read_to_string(key_file)?;
    let stop = AtomicBool::new(false);
    let began = Instant::now();
    let mut got = std::thread::scope(|scope| {
        let crowds: Vec<_> =
            (0..connections).map(|_| scope.spawn(|| crowd_on(addr, &secret, path, request, calls, &stop))).collect();
        let waited = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.store(true, Ordering::Relaxed);
        waited?;
        let mut sum = Got { replied: 0, refused: 0, disk: 0, millis: 0 };
        for crowd in crowds {
            let got = crowd.join().unwrap_or_else(|_| Err("a crowd panicked".into()))?;
            sum = Got {
                replied: sum.replied + got.replied,
                refused: sum.refused + got.refused,
                disk: sum.disk + got.disk,
                millis: 0,
            };
        }
        Ok::<_, Failure>(sum)
    })?;
    got.millis = u64::try_from(began.elapsed().as_millis())?;
    println!("{} {} {} {}", got.replied, got.refused, got.disk, got.millis);
    Ok(())
}

/// It hangs up with calls under way: what they come to does not count.
fn crowd_on(
    addr: &str,
    secret: &str,
    path: &str,
    request: &impl Message,
    calls: usize,
    stop: &AtomicBool,
) -> Result<Got, Failure> {
    let mut wire = Wire::connect(addr, secret, path, request)?;
    wire.wait_for_window(calls)?;
    wire.send(calls)?;
    let mut got = Got { replied: 0, refused: 0, disk: 0, millis: 0 };
    while !stop.load(Ordering::Relaxed) {
        let ended = wire.ended()?;
        for ended in &ended {
            match ended {
                Ended::Replied => got.replied += 1,
                Ended::Refused { disk } => {
                    got.refused += 1;
                    got.disk += u64::from(*disk);
                }
            }
        }
        wire.send(ended.len())?;
    }
    Ok(got)
}

/// Has keys disabled, and gives the times that it took, and how often it was refused.
fn disable(server: &Server, targets: &[String]) -> Result<(Vec<Duration>, u64), Failure> {
    let (addr, key_file) = server.reach()?;
    let mut command = Command::new("chrt");
    command.args(["--fifo", "1"]).arg(std::env::current_exe()?).args(["disabler", addr]).arg(key_file);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("a client has no input")?;
    stdin.write_all(targets.join("\n").as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("the administrator has failed: {said}").into());
    }
    let (mut times, mut refused) = (vec![], 0);
    for line in said.lines() {
        let (nanos, answer) = line.split_once(' ').ok_or("the administrator says too little")?;
        times.push(Duration::from_nanos(nanos.parse()?));
        refused += u64::from(answer != "disabled");
    }
    Ok((times, refused))
}

/// What the administrator's process does: it disables the keys whose ids it reads, one after the other, and
/// prints what each took, in nanoseconds, and what came of it.
pub(crate) fn disable_all(addr: &str, key_file: &Path) -> Result<(), Failure> {
    let secret = fs::read_to_string(key_file)?;
    let ids = std::io::read_to_string(std::io::stdin())?;
    let mut wire = Wire::connect(addr, secret.trim(), DISABLE, &pb::DisableKeyRequest::default())?;
    let mut lines = String::new();
    let all_began = Instant::now();
    for key_id in ids.lines().take_while(|_| all_began.elapsed() < ROUND_MAX) {
        let request = pb::DisableKeyRequest {
            tenant: "globex".to_owned(),
            key_id: key_id.to_owned(),
            reason: "leaked".to_owned(),
            ..Default::default()
        };
        wire.ask_for(&request);
        let began = Instant::now();
        wire.send(1)?;
        let ended = loop {
            if let Some(ended) = wire.ended()?.pop() {
                break ended;
            }
        };
        let took = began.elapsed();
        let answer = if ended == Ended::Replied { "disabled" } else { "refused" };
        lines.push_str(&format!("{} {answer}\n", took.as_nanos()));
        std::thread::sleep(DISABLE_EVERY.saturating_sub(took));
    }
    Ok(std::io::stdout().write_all(lines.as_bytes())?)
}
