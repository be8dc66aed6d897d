//! A start from a checkpoint answers verdicts before it has read its table.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::app::{Adjustable, App, Deps, Engine, StartError};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward::server::lifecycle::Stop;
use keyward::server::passed::PassedSockets;
use keyward_core::clock::{Clock, ManualClock};
use keyward_core::entropy::Entropy;
use keyward_core::testing::SeededEntropy;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tempfile::TempDir;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::harness::{Handle, Issued, START, new_key};

/// The bytes of a snapshot that give its position.
const HEADER_BYTES: usize = 120;

/// A server that keeps little of its journal, so that there are snapshots and a checkpoint.
struct Small {
    dir: TempDir,
    admin: String,
}

impl Small {
    async fn start(&self) -> App {
        let (settings, deps) = self.parts();
        App::start(settings, deps).await.unwrap()
    }

    fn parts(&self) -> (Settings, Deps) {
        self.parts_with(Duration::ZERO)
    }

    fn parts_with(&self, drain_delay: Duration) -> (Settings, Deps) {
        let flags = Flags {
            data_dir: Some(self.data()),
            listen: vec![format!("unix:{}", self.socket().display())],
            ops_listen: Some("off".into()),
            log_filter: Some("off".into()),
            ..Flags::default()
        };
        let settings = Settings::load(&flags, None).unwrap().settings;
        let settings =
            Settings { journal_segment_bytes: 64 * 1024, journal_retention_bytes: 512 * 1024, drain_delay, ..settings };
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(START));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(11));
        let engine = Engine::Sled.configure(&settings, &clock, &entropy);
        (
            settings,
            Deps { clock, entropy, sockets: PassedSockets::default(), adjustable: Adjustable::default(), engine },
        )
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap().connect_lazy()
    }

    fn admin(&self) -> Handle {
        Handle::new(self.channel(), Some(self.admin.clone()))
    }

    fn files(&self, below: &str, ending: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.data().join(below)) else { return vec![] };
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.extension().is_some_and(|found| found == ending));
        found.sort();
        found
    }

    /// A stopped server with snapshots, a checkpoint, and two keys that were changed after it.
    async fn stopped() -> (Self, [Issued; 2]) {
        let mut small = Self { dir: tempfile::tempdir().unwrap(), admin: String::new() };
        let app = small.start().await;
        small.admin = fs::read_to_string(small.data().join("admin.key")).unwrap().trim().to_owned();
        let admin = small.admin();
        let begun = Instant::now();
        while small.files("index", "kwi").is_empty() || small.files("snapshot", "kws").len() < 2 {
            let description = "d".repeat(512);
            admin.create(pb::CreateKeyRequest { description, ..new_key("One of many", &[]) }).await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(60), "there is no checkpoint, or no snapshots");
        }
        let (kept, disabled) = (admin.issue("Kept", &[]).await, admin.issue("Disabled", &[]).await);
        admin.disable_key(&disabled.key).await;
        app.stop().await.unwrap();
        (small, [kept, disabled])
    }

    async fn health(&self, service: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: service.into() };
        let answer = HealthClient::new(self.channel()).check(request).await.ok()?;
        Some(if answer.into_inner().status == 1 { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

/// Opens a pipe for writing, once it has a reader.
fn open_pipe(path: &Path) -> File {
    let begun = Instant::now();
    loop {
        match File::options().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path) {
            Ok(pipe) => return pipe,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(30), "nobody reads the pipe"),
        }
        std::thread::yield_now();
    }
}

/// Writes all, however small the pipe is.
fn write_all(pipe: &mut File, mut bytes: &[u8]) {
    let begun = Instant::now();
    while !bytes.is_empty() {
        match pipe.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody reads on");
        std::thread::yield_now();
    }
}

/// A start without a table, which is rebuilt from a snapshot; the snapshot is a pipe, which supplies no more
/// than the start needs before it answers verdicts.
struct Held {
    pipe: PathBuf,
    snapshot: PathBuf,
    starting: JoinHandle<Result<App, StartError>>,
    stop: Stop,
}

impl Held {
    async fn start(small: &Small) -> Self {
        Self::start_with(small, Duration::ZERO).await
    }

    async fn start_with(small: &Small, drain_delay: Duration) -> Self {
        fs::remove_dir_all(small.data().join("table")).unwrap();
        let pipe = small.files("snapshot", "kws").pop().unwrap();
        let snapshot = small.dir.path().join("moved");
        fs::rename(&pipe, &snapshot).unwrap();
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let stop = Stop::default();
        let (settings, deps) = small.parts_with(drain_delay);
        let asked = stop.clone();
        let starting = tokio::spawn(async move { App::start_unless(settings, deps, &asked).await });
        let (path, header) = (pipe.clone(), fs::read(&snapshot).unwrap()[..HEADER_BYTES].to_vec());
        spawn_blocking(move || write_all(&mut open_pipe(&path), &header)).await.unwrap();
        // It waits for the rest now, and goes no further.
        let begun = Instant::now();
        while small.health("keyward.v1.KeyVerify").await != Some(ServingStatus::Serving) {
            assert!(begun.elapsed() < Duration::from_secs(30), "verdicts are not answered");
            tokio::task::yield_now().await;
        }
        Self { pipe, snapshot, starting, stop }
    }

    /// Lets the start read on. Whatever opens the pipe from now on gets the real snapshot.
    fn release(pipe: &Path, snapshot: &Path) {
        let bytes = fs::read(snapshot).unwrap();
        let mut open = open_pipe(pipe);
        fs::rename(snapshot, pipe).unwrap();
        write_all(&mut open, &bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn verdicts_are_answered_while_the_table_is_built_and_changes_are_not() {
    let (small, [kept, disabled]) = Small::stopped().await;
    let held = Held::start(&small).await;
    assert_eq!(small.health("").await, Some(ServingStatus::Serving));
    assert_eq!(small.health("keyward.v1.KeyAdmin").await, Some(ServingStatus::NotServing));
    let admin = small.admin();
    assert_eq!(admin.reason(&kept.secret).await, Reason::Ok);
    assert_eq!(admin.reason(&disabled.secret).await, Reason::Disabled);
    let refused = admin.create(new_key("Too early", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let refused = admin.list(pb::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(!held.starting.is_finished());

    let Held { pipe, snapshot, starting, stop } = held;
    spawn_blocking(move || Held::release(&pipe, &snapshot)).await.unwrap();
    let app = starting.await.unwrap().unwrap();
    stop.ask(); // too late for the start
    assert_eq!(small.health("keyward.v1.KeyAdmin").await, Some(ServingStatus::Serving));
    admin.enable_key(&disabled.key).await;
    assert_eq!(admin.reason(&disabled.secret).await, Reason::Ok);
    admin.create(new_key("In time", &[])).await.unwrap();
    drop(admin);
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_is_answered_early_is_let_go_of_in_order_by_a_stop() {
    let (small, [kept, _]) = Small::stopped().await;
    let held = Held::start(&small).await;
    let admin = small.admin();
    let (ask, asked) = unbounded_channel();
    let mut answers = admin.stream(UnboundedReceiverStream::new(asked)).await.unwrap();
    let request = || pb::StreamVerifyRequest { request: Some(crate::support::harness::ask(&kept.secret)) };
    ask.send(request()).unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let watched = HealthCheckRequest { service: "keyward.v1.KeyVerify".into() };
    let mut watch = HealthClient::new(small.channel()).watch(watched).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1);

    held.stop.ask();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2, "probes are told");
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Unavailable, "it is told to go elsewhere");
    assert!(matches!(held.starting.await.unwrap(), Err(StartError::Stopped)));
    assert_eq!(small.health("").await, None, "nobody listens any more");
    // The thread that reads is no task: it ends with the process, or as here, when there is no more to read.
    spawn_blocking(move || Held::release(&held.pipe, &held.snapshot)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_start_that_answers_verdicts_drains_too() {
    let (small, [kept, _]) = Small::stopped().await;
    let held = Held::start_with(&small, Duration::from_secs(3_600)).await;
    held.stop.ask();
    let begun = Instant::now();
    while small.health("keyward.v1.KeyVerify").await != Some(ServingStatus::NotServing) {
        assert!(begun.elapsed() < Duration::from_secs(30), "probes are not told");
        tokio::task::yield_now().await;
    }
    assert_eq!(small.admin().reason(&kept.secret).await, Reason::Ok, "on a new connection");
    while !held.stop.end_drain() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not drain");
        tokio::task::yield_now().await;
    }
    assert!(matches!(held.starting.await.unwrap(), Err(StartError::Stopped)));
    spawn_blocking(move || Held::release(&held.pipe, &held.snapshot)).await.unwrap();
}
