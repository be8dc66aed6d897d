//! The composition root: makes a running server of settings, a clock, randomness and a storage engine.

pub mod engines;
mod error;
mod frontend;
mod metric_sources;
mod opening;

use std::fs;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use grpc_h2::{Budget, Runtimes, SharedLimits};
use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower_layer::Layer;

pub use self::engines::Engine;
pub use self::error::StartError;
use self::frontend::{Frontend, HEALTH_NAMES, STORE_NAMES, VERDICT_NAMES};
use self::metric_sources::new_metrics;
use self::opening::Opening;
use crate::authority::{Authority, AuthorityDeps};
use crate::config::Settings;
use crate::disk_monitor::DiskMonitor;
use crate::fast_path::FastVerify;
use crate::grpc;
use crate::grpc::calls::rpc;
use crate::grpc::refusals;
use crate::grpc::state::{StateHandle, VerifyState};
use crate::health::Health;
use crate::index::follow::follow_log;
use crate::index::{Index, compact_when_due};
use crate::keyring::Keyring;
use crate::layer::authn::AuthnLayer;
use crate::layer::deadline::DeadlineLayer;
use crate::layer::incoming::{IncomingLayer, IncompleteLayer};
use crate::layer::log::LogLayer;
use crate::layer::metrics::MetricsLayer;
use crate::layer::protocol::ProtocolLayer;
use crate::metrics::Metrics;
use crate::server::addr::{ListenAddr, SocketAccess};
use crate::server::connections::{self, MakeConnection, Transport};
use crate::server::cores::Cores;
use crate::server::lifecycle::{Stop, Tasks};
use crate::server::listener::{Listener, connections_max};
use crate::server::ops_http::{self, Ops, Phase};
use crate::server::slots::Slots;
use crate::server::stream::Conn;
use crate::store::engine::StorageEngine;
use crate::store::{Store, StoreError};
use crate::systemd;
use crate::util::files;
use crate::util::system::lower_priority;
use crate::verify::Verifier;

/// Accepted connections that wait to be served, at most.
const ACCEPTED_MAX: usize = 64;
/// How long the store may take to flush when the server stops.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// What a server is built from, besides its settings.
pub struct Deps {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The storage engine.
    pub engine: Box<dyn StorageEngine>,
}

impl StartError {
    async fn abort(frontend: Frontend, stop: &Stop) -> Self {
        frontend.drain(stop).await;
        frontend.shut_down().await;
        frontend.close().await;
        Self::Stopped
    }
}

/// A running server.
pub struct App {
    addrs: Vec<ListenAddr>,
    ops_addr: Option<ListenAddr>,
    store: Arc<dyn Store>,
    frontend: Frontend,
    /// Tasks that calls need until they have finished.
    background: Tasks,
    /// The task that reports the disk's state to probes. It ends before probes are told of the stop.
    monitors: Tasks,
}

impl App {
    /// Starts a server. It listens at once, says NOT_SERVING while it loads, and SERVING when this returns.
    /// Verdicts are often answered long before that.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(settings: Settings, deps: Deps) -> Result<Self, StartError> {
        Self::start_unless(settings, deps, &Stop::default()).await
    }

    /// Starts a server, or aborts the start at a stop; callers who are served by then are drained. A thread
    /// that reads data may go on until the process ends.
    ///
    /// # Errors
    /// As [`App::start`], and [`StartError::Stopped`].
    pub async fn start_unless(settings: Settings, deps: Deps, stop: &Stop) -> Result<Self, StartError> {
        let mut asked = pin!(stop.asked());
        #[cfg(feature = "_faults")]
        crate::faults::declare();
        // Before the ports, so that a second start fails because of the data, not because of a port.
        let failed = |source| StartError::DataDir { path: settings.data_dir.clone(), source };
        files::create_private_dir(&settings.data_dir).map_err(failed)?;
        let engine = deps.engine.lock()?;
        let keyring = Keyring::open(&settings.pepper_file, !engine.has_data(), &*deps.entropy)?;

        let [acceptors, connections, background, monitors, ops] = std::array::from_fn(|_| Tasks::default());
        let state = StateHandle::default();
        let health = Health::new(&HEALTH_NAMES);
        let phase = watch::Sender::new(Phase::Loading);
        let index = Arc::new(Index::default());
        let slots = Slots::kept(connections_max(), settings.listen.len());
        let writable = Arc::new(AtomicBool::new(false));
        let opened = Arc::new(OnceLock::new());
        let budget = Budget::new(settings.stranger_request_bytes_max, settings.request_bytes_max);
        let limits = SharedLimits::new(grpc::LIMITS)?;
        let metrics = Arc::new(new_metrics(&index, &slots, &budget, &writable, &opened, &deps.clock, &phase));
        let verdicts = metrics.verdicts();

        ops.spawn("refusals", refusals::tell_left_out(ops.stop_token()));
        let listeners = bind(&settings.listen, &settings.sockets).await?;
        let ops_listener = bind_ops(settings.ops_listen.as_ref(), &settings.sockets).await?;
        let addrs = listeners.iter().map(|listener| listener.addr().clone()).collect();
        let ops_addr = ops_listener.as_ref().map(|listener| listener.addr().clone());
        let routes = grpc::routes(&state, &connections.stop_token(), health.clone(), settings.reflection)?;
        let cores = start_cores(settings.serving_threads)?;
        let incoming = accept(&acceptors, listeners, &slots, &connections.stop_token());
        let transport = Transport { http2: settings.http2, budget, limits, counts: metrics.http2() };
        serve(&connections, incoming, transport, &cores, routes, &state, &metrics);
        if let Some(listener) = ops_listener {
            serve_ops(&ops, listener, Ops { phase: phase.subscribe(), slots: slots.clone(), metrics });
        }
        ops.spawn("systemd", systemd::notify_phases(phase.subscribe()));
        let urgent = cores.urgent();
        let (drain_delay, shutdown_deadline) = (settings.drain_delay, settings.shutdown_deadline);
        let frontend = Frontend { health, phase, acceptors, connections, ops, cores, drain_delay, shutdown_deadline };

        let mut opening = Opening::start(engine, keyring.chain_key(), &index, &state);
        let (page_token_key, peppers) = (keyring.page_token_key(), Arc::new(keyring.peppers));
        let verifier = Verifier::new(index.clone(), peppers.clone());
        let ready = VerifyState { verifier, peppers: peppers.clone(), verdicts, clock: deps.clock.clone() };
        let answer_verdicts = async || {
            state.open(ready);
            frontend.phase.send_replace(Phase::Serving);
            frontend.health.set(&VERDICT_NAMES, true);
            tracing::info!(keys = index.len(), revision = index.revision().0, "answering verdicts");
        };
        // Verdicts come first. With an index checkpoint, they come long before the table has been read.
        let revision = tokio::select! {
            revision = opening.index_loaded() => revision.unwrap_or_default(),
            () = &mut asked => return Err(StartError::abort(frontend, stop).await),
        };
        index.advance_to(revision);
        warn_of_clock(deps.clock.now(), index.latest_time());
        let sound = check_peppers(&index, &peppers, &settings.pepper_file);
        let mut answer_verdicts = Some(answer_verdicts);
        // At a first start there are no keys, and no callers.
        if sound.is_ok()
            && revision > Revision(0)
            && let Some(answer_verdicts) = answer_verdicts.take()
        {
            answer_verdicts().await;
        }
        if let Err(error) = &sound {
            tracing::error!(%error, "it will not start");
            opening.cancel_wait();
        }
        let store = tokio::select! {
            store = opening.store() => store,
            () = &mut asked => return Err(StartError::abort(frontend, stop).await),
        };
        if let Err(error) = sound {
            if let Ok(store) = store {
                store.close().await?;
            }
            return Err(error);
        }
        let store = store?;
        // It cannot be set already.
        opened.set(store.clone()).unwrap_or_default();
        // Every change waits for this task.
        background.spawn_on(&urgent, "follow log", follow_log(store.clone(), index.clone(), background.stop_token()));
        background.spawn("compact names", compact_when_due(index.clone(), background.stop_token()));

        let authority = Authority::new(AuthorityDeps {
            store: store.clone(),
            index: index.clone(),
            peppers,
            clock: deps.clock.clone(),
            entropy: deps.entropy,
            page_token_key,
        });
        bootstrap(&authority, &settings.data_dir).await?;
        // It logs a warning if there is none.
        store.lasting_administrators(deps.clock.now());
        if let Some(answer_verdicts) = answer_verdicts {
            answer_verdicts().await;
        }
        state.open_for_changes(authority);
        frontend.health.set(&STORE_NAMES, true);
        let disk_monitor = DiskMonitor { store: store.clone(), health: frontend.health.clone(), writable };
        monitors.spawn("disk monitor", disk_monitor.run(monitors.stop_token()));
        tracing::info!(keys = index.len(), revision = index.revision().0, "serving");
        Ok(Self { addrs, ops_addr, store, frontend, background, monitors })
    }

    /// The addresses that it listens on, with the assigned ports.
    #[must_use]
    pub fn addrs(&self) -> &[ListenAddr] {
        &self.addrs
    }

    /// The address of probes and metrics, with the assigned port; `None` if they are off.
    #[must_use]
    pub fn ops_addr(&self) -> Option<&ListenAddr> {
        self.ops_addr.as_ref()
    }

    /// Says NOT_SERVING, and still answers for the setting `drain_delay`, or until `stop` cuts it short. To
    /// be followed by [`App::stop`].
    pub async fn drain(&self, stop: &Stop) {
        // From now on, probes see the stop, whatever the disk does.
        self.monitors.stop(Duration::ZERO).await;
        self.frontend.drain(stop).await;
    }

    /// Says NOT_SERVING, accepts no more connections, lets calls finish, and flushes the store. It does not
    /// wait for the drain delay: see [`App::drain`].
    ///
    /// # Errors
    /// When the flush fails. What was acknowledged is durable even then.
    pub async fn stop(self) -> Result<(), StoreError> {
        // From now on, probes see the stop, whatever the disk does.
        self.monitors.stop(Duration::ZERO).await;
        self.frontend.shut_down().await;
        self.background.stop(Duration::ZERO).await;
        let flushed = tokio::time::timeout(FLUSH_DEADLINE, self.store.close()).await;
        self.frontend.close().await;
        flushed.unwrap_or_else(|_| Err(StoreError::Engine("flushing took too long".into())))?;
        if let Some(head) = self.store.head() {
            tracing::info!(%head, "the log ends here; kept elsewhere, its head shows later whether it is whole (--expect-head)");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn bind(addrs: &[ListenAddr], access: &SocketAccess) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::with_capacity(addrs.len());
    for addr in addrs {
        let bound = Listener::bind_for(addr, access).await;
        let listener = bound.map_err(|source| StartError::Listen { addr: addr.clone(), source })?;
        tracing::info!(listen = %listener.addr(), "listening");
        listeners.push(listener);
    }
    Ok(listeners)
}

async fn bind_ops(addr: Option<&ListenAddr>, access: &SocketAccess) -> Result<Option<Listener>, StartError> {
    let Some(addr) = addr else { return Ok(None) };
    let bound = Listener::bind_for(addr, access).await;
    let listener = bound.map_err(|source| StartError::OpsListen { addr: addr.clone(), source })?;
    tracing::info!(listen = %listener.addr(), "ops listening");
    Ok(Some(listener))
}

fn start_cores(count: usize) -> Result<Cores, StartError> {
    Cores::start(count, lower_priority()).map_err(|source| StartError::Threads { count, source })
}

/// Accepts connections on all listeners.
fn accept(
    acceptors: &Tasks,
    listeners: Vec<Listener>,
    slots: &Slots,
    end: &CancellationToken,
) -> mpsc::Receiver<io::Result<Conn>> {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    for listener in listeners {
        acceptors
            .spawn("accept", listener.accept(slots.clone(), accepted.clone(), acceptors.stop_token(), end.clone()));
    }
    incoming
}

fn serve(
    tasks: &Tasks,
    incoming: mpsc::Receiver<io::Result<Conn>>,
    transport: Transport,
    cores: &Cores,
    routes: Routes,
    state: &StateHandle,
    metrics: &Metrics,
) {
    let (calls, fast_path) = (metrics.calls(), metrics.fast_path());
    let service = LogLayer.layer(IncompleteLayer.layer(routes.prepare()));
    let service = DeadlineLayer.layer(AuthnLayer::new(state.clone()).layer(service));
    let service = ProtocolLayer.layer(service);
    let service = IncomingLayer.layer(MetricsLayer::new(calls.clone()).layer(service));
    let state = state.clone();
    let make_fast_path =
        move |peer, connection| FastVerify::new(state.clone(), &calls, fast_path.clone(), peer, connection);
    let runtimes = Runtimes { shared: Handle::current(), urgent: cores.urgent(), bulk: cores.bulk() };
    let make_connection =
        MakeConnection { transport, service, make_fast_path, call_kind: |path| rpc(path).kind, runtimes };
    tasks.spawn("serve", connections::serve(tasks.clone(), cores.runtimes().to_vec(), incoming, make_connection));
}

fn serve_ops(tasks: &Tasks, listener: Listener, ops: Ops) {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let slots = Slots::new(ops_http::CONNECTIONS_MAX);
    let stop = tasks.stop_token();
    tasks.spawn("accept ops", listener.accept(slots, accepted, stop.clone(), stop));
    tasks.spawn("serve ops", ops.serve(incoming));
}

/// Warns of a clock that is behind the log: it was set back, or was ahead when the log was written.
fn warn_of_clock(clock: UnixMillis, logged: UnixMillis) {
    let Ok(behind_ms @ 1..) = u64::try_from(logged.0.saturating_sub(clock.0)) else { return };
    let behind = humantime::format_duration(Duration::from_millis(behind_ms));
    tracing::warn!(
        %behind, "the clock is behind the last change in the log; until it has caught up, keys expire by the log's time; set the \
                  clock"
    );
}

/// Checks that there is a pepper for every key: without it, a key could never be verified.
fn check_peppers(index: &Index, peppers: &PepperRing, path: &std::path::Path) -> Result<(), StartError> {
    match index.peppers().into_iter().find(|id| !peppers.holds(*id)) {
        None => Ok(()),
        Some(id) => Err(StartError::ForeignPepper { pepper: id.to_string(), path: path.to_owned() }),
    }
}

/// If the log is empty, makes the first administrator's key and writes it to a file.
async fn bootstrap(authority: &Authority, data_dir: &Path) -> Result<(), StartError> {
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
    } else if path.exists() {
        tracing::warn!(
            path = %path.display(), "the first administrator's key still lies beside the data; move it to a safe place, or replace it by \
                                     a key of your own, disable it and remove the file"
        );
    }
    let exposed = fs::metadata(&path)
        .is_ok_and(|found| std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o077 != 0);
    if exposed {
        tracing::warn!(path = %path.display(), "the administrator's key can be read by others: chmod 600 it");
    }
    Ok(())
}
