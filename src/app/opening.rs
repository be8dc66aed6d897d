//! The opening of an engine, as a task beside the start, which loads the index.

use std::sync::Arc;

use keyward_core::event::Revision;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

use super::error::StartError;
use crate::grpc::state::StateHandle;
use crate::index::Index;
use crate::index::follow::IndexLoader;
use crate::server::lifecycle::{Stop, Tasks};
use crate::store::engine::{LockedEngine, OpenContext};
use crate::store::{Store, StoreError};

/// An engine that is being opened. When this is dropped, it waits for no room on the disk any longer.
pub(super) struct Opening {
    loaded: oneshot::Receiver<Revision>,
    opened: oneshot::Receiver<Result<Arc<dyn Store>, StartError>>,
    give_up: CancellationToken,
    _end: DropGuard,
}

impl Opening {
    pub(super) fn start(
        engine: Box<dyn LockedEngine>,
        chain_key: Zeroizing<[u8; 32]>,
        index: &Arc<Index>,
        state: &StateHandle,
    ) -> Self {
        let (view, loaded) = IndexLoader::new(index.clone());
        let (done, opened) = oneshot::channel();
        let (tasks, state) = (Tasks::default(), state.clone());
        let give_up = tasks.stop_token();
        let context = OpenContext {
            chain_key,
            view: Arc::new(view),
            on_wait_for_room: Box::new(move |waits| state.wait_for_room(waits)),
            give_up: give_up.clone(),
        };
        tasks.spawn("open", async move {
            let store = engine.open(context).await;
            // The receiver is gone only if the start was aborted.
            drop(done.send(store.map_err(StartError::Engine)));
        });
        Self { loaded, opened, _end: give_up.clone().drop_guard(), give_up }
    }

    /// Waits until the index is loaded, and returns its revision. `None`: the engine cannot be opened.
    ///
    /// # Errors
    /// [`StartError::Stopped`].
    pub(super) async fn index_loaded(&mut self, stop: &Stop) -> Result<Option<Revision>, StartError> {
        tokio::select! {
            loaded = &mut self.loaded => Ok(loaded.ok()),
            () = stop.asked() => Err(StartError::Stopped),
        }
    }

    /// Makes the opening fail instead of waiting for room on the disk.
    pub(super) fn give_up(&self) {
        self.give_up.cancel();
    }

    /// The store, once it is open.
    ///
    /// # Errors
    /// When the engine cannot be opened; [`StartError::Stopped`].
    pub(super) async fn store(self, stop: &Stop) -> Result<Arc<dyn Store>, StartError> {
        tokio::select! {
            opened = self.opened => opened.map_err(|_| StoreError::Closed)?,
            () = stop.asked() => Err(StartError::Stopped),
        }
    }
}
