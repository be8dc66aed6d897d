//! What callers and probes see of a server, and how it turns them away.

use std::time::Duration;

use tokio::sync::watch;

use crate::cores::Cores;
use crate::disk_monitor;
use crate::health::Health;
use crate::lifecycle::{Stop, Tasks};
use crate::ops_http::Phase;

/// How long it may take to hand on the connections that have been accepted.
const ACCEPTORS_DEADLINE: Duration = Duration::from_secs(1);

/// The services whose health is told, beside the whole (``).
pub(super) const HEALTH_NAMES: [&str; 4] = ["", "keyward.v1.KeyVerify", disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];
const AUDIT_SERVICE: &str = "keyward.v1.KeyAudit";
/// Those that serve as soon as verdicts are answered.
pub(super) const VERDICT_NAMES: [&str; 2] = ["", "keyward.v1.KeyVerify"];

/// Those that serve once the store is open.
pub(super) const STORE_NAMES: [&str; 2] = [disk_monitor::ADMIN_SERVICE, AUDIT_SERVICE];

/// What callers and probes see of a server.
pub(super) struct Frontend {
    pub(super) health: Health,
    pub(super) phase: watch::Sender<Phase>,
    /// What accepts the connections of callers. It ends first: whoever is told of the end connects anew, and must then
    /// find that nobody listens, instead of being reset.
    pub(super) acceptors: Tasks,
    /// What talks to callers. It ends next.
    pub(super) connections: Tasks,
    /// What tells operators how it goes. It ends last, because a stop is something to be told of.
    pub(super) ops: Tasks,
    /// Where connections live. They outlive everything that talks to callers.
    pub(super) cores: Cores,
    pub(super) drain_delay: Duration,
    pub(super) shutdown_deadline: Duration,
}

impl Frontend {
    /// Says NOT_SERVING, and goes on answering for the drain delay, so that whoever sends calls here hears of it and
    /// sends them elsewhere. There is no delay if no call was answered yet.
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

    /// Says NOT_SERVING, takes no more connections, and lets calls finish.
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
