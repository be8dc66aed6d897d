//! Opening the store, which fills the index.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::event::Revision;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Deps, Engine, StartError};
use crate::config::Settings;
use crate::grpc::state::StateHandle;
use crate::index::Index;
use crate::index::follow::IndexLoader;
use crate::keyring::Keyring;
use crate::server::lifecycle::Tasks;
use crate::store::local::disk_space::{FREE_BYTES_EXHAUSTED, FREE_BYTES_MIN, free_bytes};
use crate::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use crate::store::memory::MemoryStore;
use crate::store::{Bounds, MaterializedView, Store, StoreError};

/// A store that is being opened.
pub(super) struct Opening {
    whole: oneshot::Receiver<Revision>,
    opened: oneshot::Receiver<Result<Arc<dyn Store>, StartError>>,
    /// Cancels a wait for room on the disk.
    waits: CancellationToken,
    _end: DropGuard,
}

impl Opening {
    pub(super) fn start(
        deps: &Deps,
        dir: LockedDir,
        keyring: &Keyring,
        settings: &Settings,
        index: &Arc<Index>,
        state: &StateHandle,
    ) -> Self {
        let (view, whole) = IndexLoader::new(index.clone());
        let bounds = Bounds {
            tenants: settings.tenants_max,
            owners_per_tenant: settings.owners_per_tenant_max,
            scopes_per_tenant: settings.scopes_per_tenant_max,
        };
        let options = StoreOptions {
            segment_bytes: settings.journal_segment_bytes,
            chain_key: keyring.chain_key(),
            retention: Retention { bytes: settings.journal_retention_bytes, time: settings.journal_retention_time },
            backup: BackupLimits { time: settings.backup_time_max, aside_bytes: settings.backup_aside_bytes_max },
            clock: deps.clock.clone(),
            bounds,
            free_bytes,
            expectations: Expectations {
                head: settings.expect_head,
                accept_watermark_loss: settings.accept_watermark_loss,
            },
        };
        let (tasks, engine, state) = (Tasks::default(), deps.engine, state.clone());
        let (done, opened) = oneshot::channel();
        let waits = tasks.stop_token();
        let stop = waits.clone();
        tasks.spawn("open", async move {
            let store: Result<Arc<dyn Store>, _> = match engine {
                Engine::Memory => {
                    view.on_loaded(Revision(0));
                    Ok(Arc::new(MemoryStore::within(bounds)))
                }
                Engine::Sled => open(dir, options, Arc::new(view), &state, &stop).await,
            };
            // The receiver is gone only if the start was aborted.
            drop(done.send(store));
        });
        Self { whole, opened, _end: waits.clone().drop_guard(), waits }
    }

    /// Waits until the index is loaded, and returns its revision. `None`: the store cannot be opened.
    pub(super) async fn index_loaded(&mut self) -> Option<Revision> {
        (&mut self.whole).await.ok()
    }

    /// Makes the opening fail instead of waiting for room on the disk.
    pub(super) fn cancel_wait(&self) {
        self.waits.cancel();
    }

    /// The store, once it is open.
    pub(super) async fn store(self) -> Result<Arc<dyn Store>, StartError> {
        self.opened.await.map_err(|_| StoreError::Closed)?
    }
}

/// Checks that a new directory has room for its first change.
///
/// # Errors
/// [`OpenError::DiskFull`] if it has not.
pub(super) fn check_room_for_first_start(dir: &LockedDir) -> Result<(), OpenError> {
    match dir.free_bytes(free_bytes)? {
        FREE_BYTES_MIN.. => Ok(()),
        free => Err(OpenError::DiskFull { dir: dir.path().to_owned(), free, needed: FREE_BYTES_MIN }),
    }
}

/// How often the free space of a full disk is checked.
const FREE_SPACE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often a start that found no room is tried again although no more is free: a quota or a lack of inodes
/// does not show in the free bytes.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Opens the store. If the disk is full, the index is filled first, without writing anything, so that
/// verdicts are answered; the store is opened when there is room.
async fn open(
    dir: LockedDir,
    options: StoreOptions,
    view: Arc<dyn MaterializedView>,
    state: &StateHandle,
    stop: &CancellationToken,
) -> Result<Arc<dyn Store>, StartError> {
    let options = Arc::new(options);
    let (mut filled, mut needed) = (None, FREE_BYTES_EXHAUSTED);
    loop {
        let free = free_on(&dir).await?;
        if free < needed {
            tracing::error!(
                free,
                needed,
                "the disk of the data directory is full: nothing is written, changes are refused and verdicts answered from what \
                 is there; the start goes on when there is room"
            );
            state.wait_for_room(true);
            if filled.is_none() {
                let (dir, options, view) = (dir.clone(), options.clone(), view.clone());
                filled = blocking(move || LocalStore::fill(&dir, &options, &*view)).await??;
            }
            let began = Instant::now();
            // Below this bound it would fail again.
            let may_try =
                |free| free >= needed || (free >= FREE_BYTES_EXHAUSTED && began.elapsed() >= OPEN_RETRY_INTERVAL);
            while !may_try(free_on(&dir).await?) {
                if stop.run_until_cancelled(sleep(FREE_SPACE_POLL_INTERVAL)).await.is_none() {
                    return Err(OpenError::GaveUp { dir: dir.path().to_owned() }.into());
                }
            }
            tracing::info!("the start is tried again");
        }
        let attempt = (dir.clone(), options.clone(), view.clone());
        let (opened, now_filled) = blocking(move || {
            let (dir, options, view) = attempt;
            let opened = dir.prepare().and_then(|()| LocalStore::open_filled(dir, &options, view, &mut filled));
            (opened, filled)
        })
        .await?;
        filled = now_filled;
        match opened {
            Ok(store) => {
                state.wait_for_room(false);
                return Ok(Arc::new(store));
            }
            Err(error) if error.is_disk_full() => {
                tracing::error!(%error, "there is not enough room on the disk for the start");
                if filled.is_none() {
                    view.reset();
                }
                needed = free_on(&dir).await?.saturating_add(FREE_BYTES_EXHAUSTED);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn free_on(dir: &LockedDir) -> Result<u64, StartError> {
    let dir = dir.clone();
    Ok(blocking(move || dir.free_bytes(free_bytes)).await?.map_err(OpenError::from)?)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StartError> {
    Ok(spawn_blocking(work).await.map_err(|panic| StoreError::Engine(panic.to_string()))?)
}
