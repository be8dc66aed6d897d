//! The last stage of a start: a running server. The store is open, the index follows it, and all calls are
//! answered.

use std::sync::Arc;
use std::time::Duration;

use super::frontend::Frontend;
use crate::server::addr::ListenAddr;
use crate::server::lifecycle::{Stop, Tasks};
use crate::store::{Store, StoreError};

/// How long the store may take to flush when the server stops.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// A running server.
pub struct App {
    pub(super) store: Arc<dyn Store>,
    pub(super) frontend: Frontend,
    /// Tasks that calls need until they have finished.
    pub(super) background: Tasks,
    /// The tasks that report the disk's state to probes, and make changes that are due by the clock. They end
    /// before probes are told of the stop.
    pub(super) monitors: Tasks,
}

impl App {
    /// The addresses that it listens on, with the assigned ports.
    #[must_use]
    pub fn addrs(&self) -> &[ListenAddr] {
        &self.frontend.addrs
    }

    /// The address of probes and metrics, with the assigned port; `None` if they are off.
    #[must_use]
    pub fn ops_addr(&self) -> Option<&ListenAddr> {
        self.frontend.ops_addr.as_ref()
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
        let flushed = close(&*self.store).await;
        self.frontend.close().await;
        flushed?;
        if let Some(head) = self.store.head() {
            tracing::info!(%head, "the log ends here; kept elsewhere, its head shows later whether it is whole (--expect-head)");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Flushes and closes a store, in bounded time.
pub(super) async fn close(store: &dyn Store) -> Result<(), StoreError> {
    let closed = tokio::time::timeout(FLUSH_DEADLINE, store.close()).await;
    closed.unwrap_or_else(|_| Err(StoreError::Engine("flushing took too long".into())))
}
