//! The composition root: settings, a clock, randomness and an engine become a running server. The only place that names
//! an engine.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::Clock;
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::authority::{Authority, AuthorityError, Parts};
use crate::config::Settings;
use crate::fatal::die;
use crate::files;
use crate::grpc;
use crate::grpc::calls::CALLS;
use crate::grpc::ready::{Gate, Ready};
use crate::index::Index;
use crate::keyring::{Keyring, KeyringError};
use crate::layer::authn::AuthnLayer;
use crate::layer::log::LogLayer;
use crate::layer::metrics::MetricsLayer;
use crate::lifecycle::Tasks;
use crate::metrics::{Calls, Metrics, Readings};
use crate::net::{Conn, ListenAddr, Listener, Slots, connections_max};
use crate::ops_http::{self, Ops, Phase};
use crate::store::memory::MemoryStore;
use crate::store::sled::{LockedDir, OpenError, Options, SEGMENT_BYTES_DEFAULT, SledStore};
use crate::store::{Store, StoreError};
use crate::verify::Verifier;

/// The services whose health is told, beside the whole (``).
const HEALTH_NAMES: [&str; 3] = ["", "keyward.v1.KeyVerify", "keyward.v1.KeyAdmin"];

/// Streams that one connection has open at most.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Headers of one call at most.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Resets that a peer may provoke by its own errors before its connection is closed (the guard against MadeYouReset).
const ERROR_RESETS_MAX: usize = 1_024;
/// Connections that have been accepted and wait to be served.
const ACCEPTED_MAX: usize = 64;
/// A silent connection is asked whether it is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the store may take to flush when the server stops.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// What a server is built from, beside its settings.
pub struct Deps {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Where keys are kept.
    pub engine: Engine,
}

/// Where keys are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// On disk: a journal and sled.
    Sled,
    /// In memory, for tests: everything is gone with the process.
    Memory,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory is not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The pepper file is not to be had.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The data directory cannot be made or written.
    #[error("the data directory {path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: ListenAddr,
        /// What happened.
        source: io::Error,
    },
    /// The address for probes and metrics cannot be listened on.
    #[error(
        "cannot listen on {addr} for probes and metrics: {source}; set ops_listen (--ops-listen, KEYWARD_OPS_LISTEN) to \
         another address, or to off"
    )]
    OpsListen {
        /// The address.
        addr: ListenAddr,
        /// What happened.
        source: io::Error,
    },
    /// Keys are under a pepper that the file does not have.
    #[error(
        "the data directory holds keys under pepper {pepper}, which the pepper file {path} does not have: put the file back \
         that belongs to this data"
    )]
    ForeignPepper {
        /// The missing pepper's name.
        pepper: String,
        /// The pepper file.
        path: PathBuf,
    },
    /// The first administrator's key cannot be made.
    #[error("cannot make the first administrator's key: {0}")]
    Bootstrap(#[from] AuthorityError),
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The descriptors do not decode.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A running server.
pub struct App {
    addrs: Vec<ListenAddr>,
    ops_addr: Option<ListenAddr>,
    store: Arc<dyn Store>,
    health: HealthReporter,
    phase: watch::Sender<Phase>,
    /// What talks to callers. It ends first.
    front: Tasks,
    /// What calls rely on until they have finished.
    back: Tasks,
    /// What tells operators how it goes. It ends last, because a stop is something to be told of.
    ops: Tasks,
    shutdown_deadline: Duration,
}

impl App {
    /// Starts a server. It listens at once, says NOT_SERVING while it loads, and SERVING when this returns.
    ///
    /// # Errors
    /// When anything it needs is not to be had. See [`StartError`].
    pub async fn start(settings: Settings, deps: Deps) -> Result<Self, StartError> {
        let in_data_dir = |source| StartError::DataDir { path: settings.data_dir.clone(), source };
        files::create_private_dir(&settings.data_dir).map_err(in_data_dir)?;
        // Before the ports: who starts twice should hear of the data, not of a port.
        let dir = LockedDir::lock(&settings.data_dir)?;
        let keyring = Keyring::open(&settings.pepper_file, !dir.has_data()?, &*deps.entropy)?;

        let (front, back, ops) = (Tasks::default(), Tasks::default(), Tasks::default());
        let gate = Gate::default();
        let health = new_health().await;
        let phase = watch::Sender::new(Phase::Loading);
        let index = Arc::new(Index::default());
        let slots = Slots::new(connections_max());
        let metrics = Arc::new(new_metrics(&index, &slots));
        let verdicts = metrics.verdicts();

        let listeners = bind(&settings.listen).await?;
        let ops_listener = bind_ops(settings.ops_listen.as_ref()).await?;
        let addrs = listeners.iter().map(|listener| listener.addr().clone()).collect();
        let ops_addr = ops_listener.as_ref().map(|listener| listener.addr().clone());
        let service = tonic_health::server::HealthService::from_health_reporter(health.clone());
        let service = tonic_health::pb::health_server::HealthServer::new(service);
        let routes = grpc::routes(&gate, service, settings.reflection)?;
        serve(&front, listeners, slots, routes, &gate, metrics.calls());
        if let Some(listener) = ops_listener {
            serve_ops(&ops, listener, Ops { phase: phase.subscribe(), metrics });
        }

        let store = open_store(&deps, dir, &keyring).await?;
        let loaded = load(&*store, &index).await.map_err(StartError::from);
        let usable = loaded.and_then(|()| check_peppers(&index, &keyring.peppers, &settings.pepper_file));
        if let Err(error) = usable {
            store.close().await?;
            return Err(error);
        }
        back.spawn("fold", fold(store.clone(), index.clone(), back.stop_token()));

        let page_token_key = keyring.page_token_key();
        let peppers = Arc::new(keyring.peppers);
        let authority = Authority::new(Parts {
            store: store.clone(),
            index: index.clone(),
            peppers: peppers.clone(),
            clock: deps.clock.clone(),
            entropy: deps.entropy,
            page_token_key,
        });
        bootstrap(&authority, &settings.data_dir).await?;
        let (keys, revision) = (index.len(), index.revision().0);
        gate.open(Ready { authority, verifier: Verifier::new(index, peppers), verdicts, clock: deps.clock });
        phase.send_replace(Phase::Serving);
        set_health(&health, ServingStatus::Serving).await;
        tracing::info!(keys, revision, "serving");
        let shutdown_deadline = settings.shutdown_deadline;
        Ok(Self { addrs, ops_addr, store, health, phase, front, back, ops, shutdown_deadline })
    }

    /// The addresses it listens on, with the ports that were got.
    #[must_use]
    pub fn addrs(&self) -> &[ListenAddr] {
        &self.addrs
    }

    /// The address of probes and metrics, if they are on.
    #[must_use]
    pub fn ops_addr(&self) -> Option<&ListenAddr> {
        self.ops_addr.as_ref()
    }

    /// Says NOT_SERVING, takes no more connections, lets calls finish, and flushes.
    ///
    /// # Errors
    /// When the flush fails. What was acknowledged is durable even then.
    pub async fn stop(mut self) -> Result<(), StoreError> {
        self.phase.send_replace(Phase::Stopping);
        set_health(&self.health, ServingStatus::NotServing).await;
        // With the names gone, watchers get the news and then the end of their stream, and do not hold up the rest.
        for name in HEALTH_NAMES {
            self.health.clear_service_status(name).await;
        }
        if !self.front.stop(self.shutdown_deadline).await {
            tracing::warn!("some connections did not finish in time and are cut off");
        }
        self.back.stop(Duration::ZERO).await;
        let flushed = tokio::time::timeout(FLUSH_DEADLINE, self.store.close()).await;
        self.ops.stop(Duration::ZERO).await;
        flushed.unwrap_or_else(|_| Err(StoreError::Engine("flushing took too long".into())))?;
        tracing::info!("stopped");
        Ok(())
    }
}

async fn new_health() -> HealthReporter {
    // The reporter begins with SERVING for the whole; nothing listens yet that could see it.
    let health = HealthReporter::new();
    set_health(&health, ServingStatus::NotServing).await;
    health
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}

fn new_metrics(index: &Arc<Index>, slots: &Slots) -> Metrics {
    let (keys, revision, connections) = (index.clone(), index.clone(), slots.clone());
    let readings = Readings {
        keys: Box::new(move || keys.len() as u64),
        revision: Box::new(move || revision.revision().0),
        connections: Box::new(move || connections.taken() as u64),
    };
    Metrics::new(CALLS.iter().map(|(path, _)| *path), readings)
}

async fn bind(addrs: &[ListenAddr]) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::with_capacity(addrs.len());
    for addr in addrs {
        let bound = Listener::bind(addr).await;
        let listener = bound.map_err(|source| StartError::Listen { addr: addr.clone(), source })?;
        tracing::info!(listen = %listener.addr(), "listening");
        listeners.push(listener);
    }
    Ok(listeners)
}

async fn bind_ops(addr: Option<&ListenAddr>) -> Result<Option<Listener>, StartError> {
    let Some(addr) = addr else { return Ok(None) };
    let bound = Listener::bind(addr).await;
    let listener = bound.map_err(|source| StartError::OpsListen { addr: addr.clone(), source })?;
    tracing::info!(listen = %listener.addr(), "ops listening");
    Ok(Some(listener))
}

fn serve(tasks: &Tasks, listeners: Vec<Listener>, slots: Slots, routes: Routes, gate: &Gate, calls: Arc<Calls>) {
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(MetricsLayer::new(calls))
        .layer(AuthnLayer::new(gate.clone()))
        .layer(LogLayer)
        .add_routes(routes);

    let (accepted, incoming) = mpsc::channel::<io::Result<Conn>>(ACCEPTED_MAX);
    for listener in listeners {
        tasks.spawn("accept", listener.accept(slots.clone(), accepted.clone(), tasks.stop_token()));
    }
    let stop = tasks.stop_token();
    tasks.spawn("serve", async move {
        let incoming = ReceiverStream::new(incoming);
        if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            tracing::error!(%error, "serving ended");
        }
    });
}

fn serve_ops(tasks: &Tasks, listener: Listener, ops: Ops) {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let slots = Slots::new(ops_http::CONNECTIONS_MAX);
    tasks.spawn("accept ops", listener.accept(slots, accepted, tasks.stop_token()));
    tasks.spawn("serve ops", ops.serve(incoming));
}

async fn open_store(deps: &Deps, dir: LockedDir, keyring: &Keyring) -> Result<Arc<dyn Store>, StartError> {
    match deps.engine {
        Engine::Memory => Ok(Arc::new(MemoryStore::default())),
        Engine::Sled => {
            let options = Options { segment_bytes: SEGMENT_BYTES_DEFAULT, chain_key: keyring.chain_key() };
            let opened = spawn_blocking(move || SledStore::open(dir, &options)).await;
            Ok(Arc::new(opened.map_err(|panic| StoreError::Engine(panic.to_string()))??))
        }
    }
}

/// Folds everything that is there into the index.
async fn load(store: &dyn Store, index: &Index) -> Result<(), StoreError> {
    let mut snapshot = store.load().await?;
    while let Some(records) = snapshot.next().await? {
        index.fold(&records);
    }
    index.reach(snapshot.revision);
    Ok(())
}

/// Folds everything that comes into the index, until the server stops.
async fn fold(store: Arc<dyn Store>, index: Arc<Index>, stop: CancellationToken) {
    let folding = async {
        loop {
            let Ok(mut changes) = store.changes(index.revision()) else {
                // So far behind that the feed has moved on: start again from the store.
                if let Err(error) = load(&*store, &index).await {
                    die("the index cannot follow the store", &error);
                }
                continue;
            };
            while let Ok(Some(batch)) = changes.next().await {
                index.apply(&batch);
            }
        }
    };
    tokio::select! {
        () = folding => {}
        () = stop.cancelled() => {}
    }
}

/// A key under a pepper that is not at hand could never verify.
fn check_peppers(index: &Index, peppers: &PepperRing, path: &std::path::Path) -> Result<(), StartError> {
    match index.peppers().into_iter().find(|id| !peppers.holds(*id)) {
        None => Ok(()),
        Some(id) => Err(StartError::ForeignPepper { pepper: id.to_string(), path: path.to_owned() }),
    }
}

/// On an empty log: makes the first administrator's key and keeps it in a file.
async fn bootstrap(authority: &Authority, data_dir: &std::path::Path) -> Result<(), StartError> {
    let path = data_dir.join("admin.key");
    let kept = authority
        .bootstrap(|secret| {
            let line = zeroize::Zeroizing::new(format!("{secret}\n"));
            let written = files::write_durably(&path, line.as_bytes());
            written.map_err(|source| StartError::DataDir { path: path.clone(), source })
        })
        .await?;
    if kept.is_some() {
        tracing::info!(path = %path.display(), "wrote the first administrator's key; move it to a safe place");
    }
    let exposed = fs::metadata(&path)
        .is_ok_and(|found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 != 0);
    if exposed {
        tracing::warn!(path = %path.display(), "the administrator's key can be read by others: chmod 600 it");
    }
    Ok(())
}
