//! What callers and probes see of a server, and its shutdown.

use std::time::Duration;

use tokio::sync::watch;

use crate::disk_monitor;
use crate::health::Health;
use crate::server::cores::Cores;
use crate::server::lifecycle::{Stop, Tasks};
use crate::server::ops_http::Phase;

/// How long the acceptors may take to hand over accepted connections.
const ACCEPTORS_DEADLINE: Duration = Duration::from_secs(1);

/// The services whose health is reported; the empty name is the server as a whole.
pub(super) const HEALTH_NAMES: [&str; 4] = ["", "keyward.v1.KeyVerify", disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];
const AUDIT_SERVICE: &str = "keyward.v1.KeyAudit";
/// The services that are healthy once verdicts are answered.
pub(super) const VERDICT_NAMES: [&str; 2] = ["", "keyward.v1.KeyVerify"];

/// The services that are healthy once the store is open.
pub(super) const STORE_NAMES: [&str; 2] = [disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];

/// The parts of a server that callers and probes talk to.
pub(super) struct Frontend {
    pub(super) health: Health,
    pub(super) phase: watch::Sender<Phase>,
    /// They accept the connections of callers. They end first: a caller who is told of the shutdown connects
    /// again, and must then be refused, not reset.
    pub(super) acceptors: Tasks,
    /// They serve callers. They end next.
    pub(super) connections: Tasks,
    /// Probes, metrics and notifications. They end last, so that the stop is reported too.
    pub(super) ops: Tasks,
    /// The runtimes of connections. They end after all tasks that serve callers.
    pub(super) cores: Cores,
    pub(super) drain_delay: Duration,
    pub(super) shutdown_deadline: Duration,
}

impl Frontend {
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

    pub(super) async fn close(self) {
        self.ops.stop(Duration::ZERO).await;
        self.cores.stop();
    }
}
