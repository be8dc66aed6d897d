//! A start that fails or is stopped, by an engine that does it at any stage: nobody listens any more, and the
//! data is free. And a start on a full disk, with an engine that measures what the test says.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyward::app::{Adjustable, App, Deps, StartError, engines};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward::server::lifecycle::Stop;
use keyward::server::passed::PassedSockets;
use keyward::store::Store;
use keyward::store::engine::{EngineError, LockedEngine, OpenContext, StorageEngine};
use keyward::store::local::disk_space::{FREE_BYTES_EXHAUSTED, FREE_BYTES_MIN};
use keyward::store::local::{LocalEngine, OpenError};
use keyward::store::memory::MemoryEngine;
use keyward_core::clock::{Clock, ManualClock};
use keyward_core::entropy::Entropy;
use keyward_core::testing::SeededEntropy;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::harness::{Handle, Issued, START, error_reason, new_key, open_error};

/// What a server is started on, and where it listens.
struct Place {
    dir: TempDir,
    admin: String,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), admin: String::new() }
    }

    /// A stopped server, and a key of it.
    async fn with_a_key() -> (Self, Issued) {
        let mut place = Self::new();
        let app = place.start(place.local()).await.unwrap();
        place.admin = fs::read_to_string(place.data().join("admin.key")).unwrap().trim().to_owned();
        let issued = place.admin().issue("Kept", &[]).await;
        app.stop().await.unwrap();
        (place, issued)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn sockets(&self) -> [PathBuf; 2] {
        ["socket", "ops"].map(|name| self.dir.path().join(name))
    }

    fn settings(&self) -> Settings {
        let [socket, ops] = self.sockets();
        let flags = Flags {
            data_dir: Some(self.data()),
            listen: vec![format!("unix:{}", socket.display())],
            ops_listen: Some(format!("unix:{}", ops.display())),
            log_filter: Some("off".into()),
            ..Flags::default()
        };
        Settings::load(&flags, None).unwrap().settings
    }

    fn local(&self) -> LocalEngine {
        engines::local(&self.settings(), &clock(), &entropy())
    }

    /// A start that ends by itself, one way or the other.
    async fn start(&self, engine: impl StorageEngine + 'static) -> Result<App, StartError> {
        let starting = App::start(self.settings(), deps(engine));
        timeout(Duration::from_secs(120), starting).await.unwrap()
    }

    /// A start that goes on beside the test, until it is told to stop.
    fn begin(&self, engine: impl StorageEngine + 'static) -> (JoinHandle<Result<App, StartError>>, Stop) {
        let (settings, deps, stop) = (self.settings(), deps(engine), Stop::default());
        let asked = stop.clone();
        (tokio::spawn(async move { App::start_unless(settings, deps, &asked).await }), stop)
    }

    fn admin(&self) -> Handle {
        Handle::new(channel(&self.sockets()[0]), Some(self.admin.clone()))
    }

    /// Nobody listens, and the next start finds nothing in its way.
    async fn is_free(&self, why: &str) {
        for socket in self.sockets() {
            assert!(!socket.exists(), "{why}: {} is left", socket.display());
        }
        self.start(self.local()).await.unwrap_or_else(|error| panic!("{why}: {error}")).stop().await.unwrap();
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::at(START))
}

fn deps(engine: impl StorageEngine + 'static) -> Deps {
    Deps {
        clock: clock(),
        entropy: entropy(),
        sockets: PassedSockets::default(),
        adjustable: Adjustable::default(),
        engine: Box::new(engine),
    }
}

fn entropy() -> Arc<dyn Entropy> {
    Arc::new(SeededEntropy::new(7))
}

fn channel(socket: &std::path::Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect_lazy()
}

/// Waits until verdicts are answered.
async fn verdicts_are_answered(socket: &std::path::Path) {
    let begun = Instant::now();
    let asked = HealthCheckRequest { service: "keyward.v1.KeyVerify".into() };
    loop {
        let answer = HealthClient::new(channel(socket)).check(asked.clone()).await;
        if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "verdicts are not answered");
        tokio::task::yield_now().await;
    }
}

/// Where an engine fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Lock,
    /// When it is opened, with nothing loaded.
    Open,
    /// After it has loaded the index, and verdicts are answered.
    Loaded,
    /// It is opened, and has loaded nothing.
    Unloaded,
}

#[derive(Debug, thiserror::Error)]
#[error("the engine fails here")]
struct Fails;

/// A real engine that fails somewhere.
struct Failing {
    engine: LocalEngine,
    at: At,
    socket: PathBuf,
}

impl StorageEngine for Failing {
    fn lock(self: Box<Self>) -> Result<Box<dyn LockedEngine>, EngineError> {
        let Self { engine, at, socket } = *self;
        assert!(!socket.exists(), "nobody listens before the data is reserved");
        let engine = Box::new(engine).lock()?;
        if at == At::Lock { Err(EngineError::new(Fails)) } else { Ok(Box::new(FailingOpen { engine, at, socket })) }
    }
}

struct FailingOpen {
    engine: Box<dyn LockedEngine>,
    at: At,
    socket: PathBuf,
}

#[async_trait]
impl LockedEngine for FailingOpen {
    fn has_data(&self) -> bool {
        self.engine.has_data()
    }

    async fn open(self: Box<Self>, context: OpenContext) -> Result<Arc<dyn Store>, EngineError> {
        UnixStream::connect(&self.socket).unwrap();
        match self.at {
            At::Lock | At::Open => {}
            At::Loaded => {
                let store = self.engine.open(context).await?;
                verdicts_are_answered(&self.socket).await;
                store.close().await.unwrap();
            }
            At::Unloaded => return Box::new(MemoryEngine::default()).lock()?.open(without_view(context)).await,
        }
        Err(EngineError::new(Fails))
    }
}

/// The same, for another view.
fn without_view(context: OpenContext) -> OpenContext {
    OpenContext { view: Arc::new(()), ..context }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_fails_at_any_stage_leaves_nobody_listening_and_its_data_free() {
    let (place, issued) = Place::with_a_key().await;
    for at in [At::Lock, At::Open, At::Loaded, At::Unloaded] {
        let socket = place.sockets()[0].clone();
        let refused = place.start(Failing { engine: place.local(), at, socket }).await.err().unwrap();
        match &refused {
            StartError::Engine(error) => assert!(error.downcast_ref::<Fails>().is_some(), "{at:?}: {refused}"),
            error => assert!(at == At::Unloaded && error.to_string().contains("without its records"), "{refused}"),
        }
        place.is_free(&format!("{at:?}")).await;
    }
    let app = place.start(place.local()).await.unwrap();
    assert_eq!(place.admin().reason(&issued.secret).await, Reason::Ok);
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_closes_the_connections_of_callers() {
    let (place, _) = Place::with_a_key().await;
    let socket = place.sockets()[0].clone();
    let (starting, _) = place.begin(Failing { engine: place.local(), at: At::Loaded, socket: socket.clone() });
    let begun = Instant::now();
    let mut silent = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(60), "nobody listens"),
        }
        tokio::task::yield_now().await;
    };
    silent.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(starting.await.unwrap(), Err(StartError::Engine(_))));
    let read = tokio::task::spawn_blocking(move || io::copy(&mut silent, &mut io::sink())).await.unwrap();
    assert!(!read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "the connection is still open");
    place.is_free("a silent caller").await;
}

#[tokio::test]
async fn a_start_that_fails_at_its_very_end_leaves_nobody_listening_and_its_data_free() {
    let place = Place::new();
    let admin = place.data().join("admin.key");
    fs::create_dir_all(&admin).unwrap();
    let refused = place.start(place.local()).await.err().unwrap();
    assert!(matches!(&refused, StartError::DataDir { path, .. } if *path == admin), "{refused}");
    fs::remove_dir(&admin).unwrap();
    place.is_free("no room for the administrator's key").await;
}

#[tokio::test]
async fn an_address_that_is_taken_leaves_no_socket_of_another() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut settings = place.settings();
    settings.listen.push(taken.local_addr().unwrap().to_string().parse().unwrap());
    let refused = App::start(settings, deps(place.local())).await.err().unwrap();
    assert!(matches!(refused, StartError::Listen { .. }), "{refused}");
    place.is_free("an address is taken").await;
}

#[tokio::test]
async fn a_server_in_memory_keeps_nothing_but_its_secrets_on_the_disk() {
    let place = Place::new();
    let app = place.start(MemoryEngine::default()).await.unwrap();
    let entries = fs::read_dir(place.data()).unwrap();
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, ["admin.key", "pepper"]);
    app.stop().await.unwrap();
}

#[tokio::test]
async fn a_first_start_without_room_writes_nothing() {
    fn no_room(_: &File) -> io::Result<u64> {
        Ok(1024)
    }
    let place = Place::new();
    let refused = place.start(LocalEngine { free_bytes: no_room, ..place.local() }).await.err().unwrap();
    assert!(matches!(open_error(&refused), OpenError::DiskFull { free: 1024, .. }), "{refused}");
    let found: Vec<_> = fs::read_dir(place.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(found, ["lock"]);
    place.is_free("no room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_answers_verdicts_and_goes_on_when_there_is_room() {
    static FREE: AtomicU64 = AtomicU64::new(0);
    fn free_bytes(_: &File) -> io::Result<u64> {
        Ok(FREE.load(Ordering::SeqCst))
    }
    let (place, issued) = Place::with_a_key().await;
    let (starting, _) = place.begin(LocalEngine { free_bytes, ..place.local() });
    verdicts_are_answered(&place.sockets()[0]).await;
    let admin = place.admin();
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    let refused = admin.create(new_key("Too early", &[])).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unavailable, "DISK_FULL"));
    assert!(!starting.is_finished());

    FREE.store(u64::MAX, Ordering::SeqCst);
    let app = starting.await.unwrap().unwrap();
    admin.create(new_key("In time", &[])).await.unwrap();
    admin.disable(pb::DisableKeyRequest { key_id: issued.key.key_id, ..Default::default() }).await.unwrap();
    assert_eq!(admin.reason(&issued.secret).await, Reason::Disabled);
    app.stop().await.unwrap();
}

/// The table must be built, and the disk has room for a part of it: that part goes again, and leaves the room
/// that is kept for stopping keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_room_is_not_left_half_built_and_verdicts_go_on() {
    static TABLE: OnceLock<PathBuf> = OnceLock::new();
    static IS_SMALL: AtomicBool = AtomicBool::new(true);
    /// What is free on a small disk, and what is left of it once the table is begun.
    fn free_bytes(_: &File) -> io::Result<u64> {
        Ok(match IS_SMALL.load(Ordering::SeqCst) {
            true if TABLE.get().unwrap().join("db").exists() => FREE_BYTES_EXHAUSTED - 1,
            true => FREE_BYTES_MIN,
            false => 2 * FREE_BYTES_MIN,
        })
    }
    let (place, issued) = Place::with_a_key().await;
    let table = TABLE.get_or_init(|| place.data().join("table"));
    fs::remove_dir_all(table).unwrap();
    let (starting, _) = place.begin(LocalEngine { free_bytes, ..place.local() });
    verdicts_are_answered(&place.sockets()[0]).await;
    let admin = place.admin();
    assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
    // Verdicts may have come before the table was begun.
    let begun = Instant::now();
    let refused = async || admin.create(new_key("Too early", &[])).await.unwrap_err();
    while error_reason(&refused().await) != "DISK_FULL" {
        assert!(begun.elapsed() < Duration::from_secs(60), "the start does not wait for room");
    }
    assert_eq!(refused().await.code(), Code::Unavailable, "the start has gone on without room");
    assert!(!starting.is_finished() && !table.exists(), "a part of a table is left");

    IS_SMALL.store(false, Ordering::SeqCst);
    let app = starting.await.unwrap().unwrap();
    admin.create(new_key("In time", &[])).await.unwrap();
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_waits_for_room_ends_by_a_stop_and_by_a_pepper_that_is_missing() {
    fn no_room(_: &File) -> io::Result<u64> {
        Ok(0)
    }
    let (place, _) = Place::with_a_key().await;
    let (starting, stop) = place.begin(LocalEngine { free_bytes: no_room, ..place.local() });
    verdicts_are_answered(&place.sockets()[0]).await;
    stop.ask();
    assert!(matches!(starting.await.unwrap(), Err(StartError::Stopped)));
    place.is_free("a stop").await;

    let pepper = place.data().join("pepper");
    let ours = fs::read_to_string(&pepper).unwrap();
    let root = ours.lines().find(|line| line.starts_with("root")).unwrap();
    fs::write(&pepper, format!("{root}\npepper {}\n", "ab".repeat(32))).unwrap();
    let starting = place.start(LocalEngine { free_bytes: no_room, ..place.local() });
    let refused = timeout(Duration::from_secs(60), starting).await.expect("it waits for room").err().unwrap();
    assert!(matches!(refused, StartError::ForeignPepper { .. }), "{refused}");
    fs::write(&pepper, ours).unwrap();
    place.is_free("a pepper is missing").await;
}
