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

mod doors;
pub mod engines;
mod error;
mod first_admin;
mod frontend;
mod listening;
mod loaded;
mod metric_sources;
mod opening;
mod prepared;
mod serving;

pub use self::engines::Engine;
pub use self::error::StartError;
use self::prepared::Prepared;
pub use self::prepared::{Adjustable, Deps};
pub use self::serving::App;
use crate::config::Settings;
pub use crate::grpc::state::LogControl;
use crate::server::lifecycle::Stop;

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
}
