//! The composition root: makes a running server of settings, a clock, randomness and a storage engine.
//!
//! A start has stages, each a type with one method that consumes it and makes the next, so that their order
//! cannot be mistaken. Each holds what those before it promise:
//!
//! | stage | what holds from then on | what is answered | its method |
//! |---|---|---|---|
//! | `Prepared` | the data is ours alone, and the pepper file is read | nothing | `listen` |
//! | `Listening` | all addresses are bound, all threads run | that the server starts | `load` |
//! | `Loaded` | the index has every acknowledged change, and each key its pepper | verdicts | `serve` |
//! | [`App`] | the store is open, and the index follows it | all calls | [`App::stop`] |
//!
//! A stage that fails, or is stopped, ends what those before it have begun. Nobody listens then, and the data
//! is free again, but for a thread that is still reading.

pub mod engines;
mod error;
mod frontend;
mod listening;
mod loaded;
mod metric_sources;
mod opening;
mod prepared;

use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;

pub use self::engines::Engine;
pub use self::error::StartError;
use self::frontend::Frontend;
use self::prepared::Prepared;
use crate::config::Settings;
use crate::server::addr::ListenAddr;
use crate::server::lifecycle::{Stop, Tasks};
use crate::store::engine::StorageEngine;
use crate::store::{Store, StoreError};

/// How long the store may take to flush when the server stops.
const FLUSH_DEADLINE: Duration = Duration::from_secs(10);

/// What a server is built from, besides its settings.
pub struct Deps {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The storage engine. See [`Engine::configure`].
    pub engine: Box<dyn StorageEngine>,
}

/// A running server.
pub struct App {
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
        #[cfg(feature = "_faults")]
        crate::faults::declare();
        let prepared = Prepared::new(settings, deps)?;
        let listening = prepared.listen().await?;
        let loaded = listening.load(stop).await?;
        loaded.serve(stop).await
    }

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
async fn close(store: &dyn Store) -> Result<(), StoreError> {
    let closed = tokio::time::timeout(FLUSH_DEADLINE, store.close()).await;
    closed.unwrap_or_else(|_| Err(StoreError::Engine("flushing took too long".into())))
}
