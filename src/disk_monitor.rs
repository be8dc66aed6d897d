//! Reports to probes, metrics and the log whether changes can be made. Verdicts do not need the disk, so only
//! the admin service stops serving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::store::{Store, WriteHealth};

/// The service whose health depends on the disk.
pub const ADMIN_SERVICE: &str = "keyward.v1.KeyAdmin";
/// How often the store's condition is read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Follows the store's condition, and reports it.
pub struct DiskMonitor {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The health that probes see.
    pub health: Health,
    /// The value that metrics read.
    pub writable: Arc<AtomicBool>,
}

impl DiskMonitor {
    /// Follows the store's condition until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = WriteHealth::Writable;
        self.writable.store(true, Ordering::Relaxed);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let Some(health) = stop.run_until_cancelled(self.store.write_health()).await else { return };
            if health == last {
                continue;
            }
            last = health;
            self.report(health);
        }
    }

    fn report(&self, health: WriteHealth) {
        match health {
            WriteHealth::Writable => tracing::info!("changes can be made again"),
            WriteHealth::DiskFull => tracing::error!(
                "the disk is nearly full; changes are refused, save those that take power away while there is any room; make \
                 room on the disk of the data directory"
            ),
            WriteHealth::DiskStalled => tracing::error!(
                "the disk of the data directory does not answer; changes wait or are refused, and verdicts go on; look after \
                 the disk"
            ),
        }
        let writable = health == WriteHealth::Writable;
        self.writable.store(writable, Ordering::Relaxed);
        self.health.set(&[ADMIN_SERVICE], writable);
    }
}
