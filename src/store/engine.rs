//! The seam between a server and its storage engine. A start locks an engine, opens it, and has a [`Store`];
//! it knows neither what the engine keeps nor where.
//!
//! The order is a type: only a locked engine can be opened, and each step consumes the one before.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{MaterializedView, Store};

/// A storage engine that is configured, and has touched nothing yet.
pub trait StorageEngine: Send {
    /// Reserves the engine's data for this process, if it has any that others could use, and checks whatever
    /// can be checked at once. Prepares a first start.
    ///
    /// # Errors
    /// When the data is in use, cannot be used, or there is no room for a first start.
    fn lock(self: Box<Self>) -> Result<Box<dyn LockedEngine>, EngineError>;
}

/// A storage engine whose data is reserved for this process, until this value and the store opened from it
/// are dropped.
#[async_trait]
pub trait LockedEngine: Send {
    /// Whether anything was ever committed here. If so, the pepper file must not be a new one.
    fn has_data(&self) -> bool;

    /// Opens the engine. [`OpenContext::view`] has every record as of [`Store::revision`] by then, and often
    /// earlier, which [`MaterializedView::on_loaded`] tells. Dropping the future ends the wait, though a
    /// thread that reads may go on until it has read.
    ///
    /// # Errors
    /// When the engine cannot be opened. Nothing has been lost by trying.
    async fn open(self: Box<Self>, context: OpenContext) -> Result<Arc<dyn Store>, EngineError>;
}

/// What an engine is opened with.
pub struct OpenContext {
    /// The key of the hash chain over the log.
    pub chain_key: Zeroizing<[u8; 32]>,
    /// The view to load.
    pub view: Arc<dyn MaterializedView>,
    /// Called with `true` when the opening begins to wait for room, and with `false` when it has found some.
    pub on_wait_for_room: Box<dyn Fn(bool) + Send + Sync>,
    /// Cancelled when the opening must fail instead of waiting for room any longer.
    pub give_up: CancellationToken,
}

/// Why an engine cannot be locked or opened: the engine's own error, and what its caller must know of it.
#[derive(Debug)]
pub struct EngineError {
    cause: Box<dyn Error + Send + Sync>,
    is_loss: bool,
}

impl EngineError {
    /// An error whose cause is outside the data.
    pub fn new(cause: impl Error + Send + Sync + 'static) -> Self {
        Self { cause: Box::new(cause), is_loss: false }
    }

    /// An error because data is missing or damaged.
    pub fn loss(cause: impl Error + Send + Sync + 'static) -> Self {
        Self { cause: Box::new(cause), is_loss: true }
    }

    /// Whether data is missing or damaged. Otherwise the cause is outside the data.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        self.is_loss
    }

    /// The engine's own error, if it is of this type.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        self.cause.downcast_ref()
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}
