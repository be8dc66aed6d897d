//! What callers and probes see of a server: it listens, it answers as far as the start has come, and it ends
//! in order.

use std::sync::Arc;
use std::time::Duration;

use grpc_h2::{Budget, Runtimes, SharedLimits};
use keyward_core::clock::Clock;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;
use tower_layer::Layer;

use super::doors::{Door, Doors};
use super::error::StartError;
use super::metric_sources::{Observed, Sources};
use crate::authority::Authority;
use crate::config::{ListenerSettings, Settings};
use crate::disk_monitor;
use crate::fast_path::FastVerify;
use crate::grpc;
use crate::grpc::calls::rpc;
use crate::grpc::refusals;
use crate::grpc::state::{StateHandle, VerifyState};
use crate::health::Health;
use crate::index::Index;
use crate::layer::authn::{AuthnLayer, CallerLimits};
use crate::layer::deadline::DeadlineLayer;
use crate::layer::failures::AuthnFailures;
use crate::layer::in_flight::CallsInFlight;
use crate::layer::incoming::{IncomingLayer, IncompleteLayer};
use crate::layer::log::{AccessLog, LogLayer};
use crate::layer::metrics::MetricsLayer;
use crate::layer::protocol::ProtocolLayer;
use crate::metrics::{Metrics, Verdicts};
use crate::server::addr::ListenAddr;
use crate::server::age::ConnectionAge;
use crate::server::connections::{self, Accepted, Http2, MakeConnection, Transport};
use crate::server::cores::Cores;
use crate::server::lifecycle::{Stop, Tasks};
use crate::server::listener::{Admission, Listener, connections_max};
use crate::server::ops_http::{self, Ops, Phase};
use crate::server::passed::PassedSockets;
use crate::server::slots::Slots;
use crate::server::stream::EncryptsWith;
use crate::server::tls::reload::{Reload, look_after};
use crate::services::Terms;
use crate::systemd;
use crate::util::system::lower_priority;

/// Accepted connections that wait to be served, at most.
const ACCEPTED_MAX: usize = 64;
/// How long the acceptors may take to hand over accepted connections.
const ACCEPTORS_DEADLINE: Duration = Duration::from_secs(1);

/// The services whose health is reported; the empty name is the server as a whole.
const HEALTH_NAMES: [&str; 4] = ["", "keyward.v1.KeyVerify", disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];
const AUDIT_SERVICE: &str = "keyward.v1.KeyAudit";
/// The services that are healthy once verdicts are answered.
const VERDICT_NAMES: [&str; 2] = ["", "keyward.v1.KeyVerify"];
/// The services that are healthy once the store is open.
const STORE_NAMES: [&str; 2] = [disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];

/// The parts of a server that callers and probes talk to.
pub(super) struct Frontend {
    pub(super) addrs: Vec<ListenAddr>,
    pub(super) ops_addr: Option<ListenAddr>,
    pub(super) state: StateHandle,
    pub(super) health: Health,
    pub(super) verdicts: Verdicts,
    phase: watch::Sender<Phase>,
    /// They accept the connections of callers. They end first: a caller who is told of the shutdown connects
    /// again, and must then be refused, not reset.
    acceptors: Tasks,
    /// They serve callers. They end next.
    connections: Tasks,
    /// Probes, metrics and notifications. They end last, so that the stop is reported too.
    ops: Tasks,
    /// The runtimes of connections. They end after all tasks that serve callers.
    cores: Cores,
    drain_delay: Duration,
    shutdown_deadline: Duration,
}

impl Frontend {
    /// Listens, and serves whoever comes: calls are refused until [`Frontend::answer_verdicts`] and
    /// [`Frontend::answer_changes`], and probes say NOT_SERVING.
    ///
    /// # Errors
    /// When an address cannot be listened on, or a thread cannot be started. Nothing is left behind then.
    pub(super) async fn start(
        settings: &Settings,
        (sockets, reload): (&PassedSockets, &Reload),
        index: &Arc<Index>,
        observed: &Observed,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let [acceptors, connections, ops] = std::array::from_fn(|_| Tasks::default());
        let (state, health) = (StateHandle::default(), Health::new(&HEALTH_NAMES));
        let phase = watch::Sender::new(Phase::Loading);
        let Doors { of_callers, ops: ops_door, tls } = Doors::open(settings, sockets, clock).await?;
        let slots = Slots::kept(connections_max(), of_callers.len(), settings.stranger_connections_per_address_max);
        let budget = Budget::new(settings.stranger_request_bytes_max, settings.request_bytes_max);
        let limits = SharedLimits::new(grpc::LIMITS)?;
        let limits_of_callers = CallerLimits {
            in_flight: CallsInFlight::new(settings.slow_calls_max),
            failures: AuthnFailures::new(settings.failed_authentication_delay),
        };
        let sources = Sources {
            index,
            slots: &slots,
            limits: &limits_of_callers,
            budget: &budget,
            clock,
            phase: &phase,
            observed,
            tls: &tls,
        };
        let metrics = Arc::new(sources.metrics());
        let verdicts = metrics.verdicts();

        let addrs = of_callers.iter().map(|door| door.listener.addr().clone()).collect();
        let ops_addr = ops_door.as_ref().map(|(listener, _)| listener.addr().clone());
        let stop = connections.stop_token();
        let mut doors = Vec::with_capacity(of_callers.len());
        for door in of_callers {
            let routes = grpc::routes(&state, &stop, health.clone(), door.settings.services)?;
            doors.push((door, routes));
        }
        let cores = start_cores(settings.serving_threads)?;

        // Nothing fails from here on.
        ops.spawn("refusals", refusals::tell_left_out(ops.stop_token()));
        ops.spawn("failed authentications", limits_of_callers.failures.clone().tell(ops.stop_token()));
        let (counts, tls_counts) = (metrics.http2(), metrics.tls());
        let access_log = AccessLog::one_in(settings.access_log_sample, settings.http2 == Http2::Own);
        let age = ConnectionAge::about(settings.connection_age_max);
        let transport = Transport { http2: settings.http2, budget, limits, counts, tls_counts, age };
        for (door, routes) in doors {
            let Door { listener, settings: described, encryption } = door;
            let ListenerSettings { services, demand, trusted_proxies, connections_max, allowed_uids, .. } = described;
            let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
            let proxies = trusted_proxies.map(Arc::new);
            let admission = Admission { slots: slots.clone(), connections_max, allowed_uids, proxies: proxies.clone() };
            let accepting = listener.accept(admission, accepted, acceptors.stop_token(), stop.clone());
            acceptors.spawn("accept", accepting);
            let terms = Terms { services, demand, proxies };
            let served =
                Served { terms, limits: limits_of_callers.clone(), access_log: access_log.clone(), routes, encryption };
            serve(&connections, incoming, transport.clone(), &cores, served, &state, &metrics);
        }
        if let Some((listener, encryption)) = ops_door {
            serve_ops(&ops, listener, Ops { phase: phase.subscribe(), slots, metrics, encryption });
        }
        if !tls.is_empty() {
            ops.spawn("look after certificates", look_after(tls, reload.clone(), ops.stop_token()));
        }
        ops.spawn("systemd", systemd::notify_phases(phase.subscribe()));
        let (drain_delay, shutdown_deadline) = (settings.drain_delay, settings.shutdown_deadline);
        Ok(Self {
            addrs,
            ops_addr,
            state,
            health,
            verdicts,
            phase,
            acceptors,
            connections,
            ops,
            cores,
            drain_delay,
            shutdown_deadline,
        })
    }

    /// The runtime for urgent work.
    pub(super) fn urgent(&self) -> Handle {
        self.cores.urgent()
    }

    /// Answers verdicts from now on, and says SERVING.
    pub(super) fn answer_verdicts(&self, state: VerifyState) {
        let index = state.verifier.index();
        let (keys, revision) = (index.len(), index.revision().0);
        self.state.open(state);
        self.phase.send_replace(Phase::Serving);
        self.health.set(&VERDICT_NAMES, true);
        tracing::info!(keys, revision, "answering verdicts");
    }

    /// Answers changes and lists from now on.
    pub(super) fn answer_changes(&self, authority: Authority) {
        self.state.open_for_changes(authority);
        self.health.set(&STORE_NAMES, true);
    }

    /// Says NOT_SERVING, and still answers for the drain delay, so that load balancers send calls elsewhere.
    /// There is no delay if no call was answered yet.
    pub(super) async fn drain(&self, stop: &Stop) {
        let before = self.phase.send_replace(Phase::Draining);
        self.health.set(&HEALTH_NAMES, false);
        let delay = if before == Phase::Serving { self.drain_delay } else { Duration::ZERO };
        if !delay.is_zero() {
            let delay = humantime::format_duration(delay);
            tracing::info!(drain_delay = %delay, "draining; a second signal ends the drain delay");
        }
        stop.drain(delay).await;
    }

    /// Says NOT_SERVING, accepts no more connections, and lets calls finish until the shutdown deadline.
    pub(super) async fn shut_down(&self) {
        self.phase.send_replace(Phase::Stopping);
        self.health.set(&HEALTH_NAMES, false);
        self.acceptors.stop(ACCEPTORS_DEADLINE).await;
        tracing::info!("letting calls finish; a second signal ends the process at once");
        if !self.connections.stop(self.shutdown_deadline).await {
            tracing::warn!("some connections did not finish in time and are cut off");
        }
    }

    /// Ends probes and threads.
    pub(super) async fn close(self) {
        self.ops.stop(Duration::ZERO).await;
        self.cores.stop();
    }

    /// Ends a start that does not go on, and returns why. After a stop, callers are drained. After a failure
    /// they are cut off: a supervisor must not have to wait for them.
    pub(super) async fn abort(self, error: StartError, stop: &Stop) -> StartError {
        if matches!(error, StartError::Stopped) {
            self.drain(stop).await;
            self.shut_down().await;
        } else {
            self.acceptors.stop(ACCEPTORS_DEADLINE).await;
            self.connections.stop(Duration::ZERO).await;
        }
        self.close().await;
        error
    }
}

fn start_cores(count: usize) -> Result<Cores, StartError> {
    Cores::start(count, lower_priority()).map_err(|source| StartError::Threads { count, source })
}

/// What a listener serves on which terms, and how it encrypts.
struct Served {
    terms: Terms,
    limits: CallerLimits,
    access_log: AccessLog,
    routes: Routes,
    encryption: Option<EncryptsWith>,
}

/// Serves what comes in on a listener.
fn serve(
    tasks: &Tasks,
    incoming: Accepted,
    transport: Transport,
    cores: &Cores,
    Served { terms, limits, access_log, routes, encryption }: Served,
    state: &StateHandle,
    metrics: &Metrics,
) {
    let (calls, fast_path) = (metrics.calls(), metrics.fast_path());
    let service = LogLayer::new(access_log.clone()).layer(IncompleteLayer.layer(routes.prepare()));
    let service = DeadlineLayer.layer(AuthnLayer::new(state.clone(), terms.clone(), limits).layer(service));
    let service = ProtocolLayer.layer(service);
    let service = IncomingLayer.layer(MetricsLayer::new(calls.clone()).layer(service));
    let state = state.clone();
    let make_fast_path = move |peer, connection| {
        FastVerify::new(state.clone(), (terms.clone(), access_log.clone()), &calls, fast_path.clone(), peer, connection)
    };
    let runtimes = Runtimes { shared: Handle::current(), urgent: cores.urgent(), bulk: cores.bulk() };
    let make_connection =
        MakeConnection { transport, service, make_fast_path, call_kind: |path| rpc(path).kind, runtimes, encryption };
    tasks.spawn("serve", connections::serve(tasks.clone(), cores.runtimes().to_vec(), incoming, make_connection));
}

fn serve_ops(tasks: &Tasks, listener: Listener, ops: Ops) {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    let slots = Slots::new(ops_http::CONNECTIONS_MAX);
    let stop = tasks.stop_token();
    tasks.spawn("accept ops", listener.accept(Admission::of_all(slots), accepted, stop.clone(), stop));
    tasks.spawn("serve ops", ops.serve(incoming));
}
