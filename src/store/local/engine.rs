//! The engine for one node, as a start sees it: its lock, its checks before anything is opened, and the wait
//! for room on a full disk.
//!
//! What holds: nothing is written before the directory is locked and its layout is known, and nothing while
//! the disk has no room. Then the view is loaded all the same, so that verdicts can be answered.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::disk_space::{FREE_BYTES_EXHAUSTED, FREE_BYTES_MIN, FreeBytes};
use super::{BackupLimits, Expectations, Filled, LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use crate::store::engine::{EngineError, LockedEngine, OpenContext, StorageEngine};
use crate::store::{Bounds, MaterializedView, Store, StoreError};

/// How often the free space of a full disk is checked.
const FREE_SPACE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How often a start that found no room is tried again although no more is free: a quota or a lack of inodes
/// does not show in the free bytes.
const OPEN_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// A data directory, and how it is to be opened. [`StoreOptions`] has the same, with the key of the chain.
pub struct LocalEngine {
    /// The directory, which must exist.
    pub dir: PathBuf,
    /// See [`StoreOptions::segment_bytes`].
    pub segment_bytes: u64,
    /// See [`StoreOptions::retention`].
    pub retention: Retention,
    /// See [`StoreOptions::backup`].
    pub backup: BackupLimits,
    /// See [`StoreOptions::clock`].
    pub clock: Arc<dyn Clock>,
    /// See [`StoreOptions::entropy`].
    pub entropy: Arc<dyn Entropy>,
    /// See [`StoreOptions::bounds`].
    pub bounds: Bounds,
    /// See [`StoreOptions::free_bytes`].
    pub free_bytes: FreeBytes,
    /// See [`StoreOptions::expectations`].
    pub expectations: Expectations,
}

impl StorageEngine for LocalEngine {
    fn lock(self: Box<Self>) -> Result<Box<dyn LockedEngine>, EngineError> {
        let dir = LockedDir::lock_unchanged(&self.dir)?;
        let has_data = dir.has_data()?;
        if !has_data {
            check_room_for_first_start(&dir, self.free_bytes)?;
            dir.prepare()?;
        }
        Ok(Box::new(LockedLocalEngine { dir, has_data, engine: *self }))
    }
}

/// Checks that a new directory has room for its first change.
fn check_room_for_first_start(dir: &LockedDir, free_bytes: FreeBytes) -> Result<(), OpenError> {
    match dir.free_bytes(free_bytes)? {
        FREE_BYTES_MIN.. => Ok(()),
        free => Err(OpenError::DiskFull { dir: dir.path().to_owned(), free, needed: FREE_BYTES_MIN }),
    }
}

struct LockedLocalEngine {
    dir: LockedDir,
    has_data: bool,
    engine: LocalEngine,
}

#[async_trait]
impl LockedEngine for LockedLocalEngine {
    fn has_data(&self) -> bool {
        self.has_data
    }

    async fn open(self: Box<Self>, context: OpenContext) -> Result<Arc<dyn Store>, EngineError> {
        let LocalEngine { dir: _, segment_bytes, retention, backup, clock, entropy, bounds, free_bytes, expectations } =
            self.engine;
        let OpenContext { chain_key, view, on_wait_for_room, give_up } = context;
        let options = StoreOptions {
            segment_bytes,
            chain_key,
            retention,
            backup,
            clock,
            entropy,
            bounds,
            free_bytes,
            expectations,
        };
        let opening = Opening { dir: self.dir, options: Arc::new(options), view, give_up };
        Ok(Arc::new(opening.run(&*on_wait_for_room).await?))
    }
}

/// A directory that is being opened.
struct Opening {
    dir: LockedDir,
    options: Arc<StoreOptions>,
    view: Arc<dyn MaterializedView>,
    give_up: CancellationToken,
}

impl Opening {
    /// Opens the directory. If the disk is full, the view is loaded first, without writing anything, so that
    /// verdicts are answered; the store is opened when there is room.
    async fn run(self, on_wait_for_room: &(dyn Fn(bool) + Send + Sync)) -> Result<LocalStore, EngineError> {
        let (mut filled, mut needed, mut shows) = (None, FREE_BYTES_EXHAUSTED, true);
        loop {
            let free = self.free().await?;
            if free < needed {
                tracing::error!(
                    free,
                    needed,
                    "the disk of the data directory is full: nothing is written, changes are refused and verdicts answered from what \
                     is there; the start goes on when there is room"
                );
                on_wait_for_room(true);
                if filled.is_none() {
                    filled = self.fill().await?;
                }
                self.wait_for_room(needed, shows).await?;
                tracing::info!("the start is tried again");
            }
            let (opened, now_filled) = self.try_open(filled).await?;
            filled = now_filled;
            match opened {
                Ok(store) => {
                    on_wait_for_room(false);
                    return Ok(store);
                }
                Err(error) if error.is_disk_full() => {
                    tracing::error!(%error, "there is not enough room on the disk for the start");
                    if filled.is_none() {
                        self.view.reset();
                    }
                    shows = matches!(error, OpenError::NoRoomForTable { .. });
                    needed = self.free().await?.saturating_add(FREE_BYTES_EXHAUSTED);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until an attempt may succeed: below [`FREE_BYTES_EXHAUSTED`] it would fail again, and without
    /// more free bytes too if the lack `shows` in them.
    async fn wait_for_room(&self, needed: u64, shows: bool) -> Result<(), EngineError> {
        let began = Instant::now();
        let may_try =
            |free| free >= needed || (!shows && free >= FREE_BYTES_EXHAUSTED && began.elapsed() >= OPEN_RETRY_INTERVAL);
        while !may_try(self.free().await?) {
            if self.give_up.run_until_cancelled(sleep(FREE_SPACE_POLL_INTERVAL)).await.is_none() {
                return Err(OpenError::GaveUp { dir: self.dir.path().to_owned() }.into());
            }
        }
        Ok(())
    }

    async fn free(&self) -> Result<u64, EngineError> {
        let (dir, free_bytes) = (self.dir.clone(), self.options.free_bytes);
        let free: io::Result<u64> = blocking(move || dir.free_bytes(free_bytes)).await?;
        Ok(free.map_err(OpenError::from)?)
    }

    async fn fill(&self) -> Result<Option<Filled>, EngineError> {
        let (dir, options, view) = (self.dir.clone(), self.options.clone(), self.view.clone());
        Ok(blocking(move || LocalStore::fill(&dir, &options, &*view)).await??)
    }

    /// Tries once, and returns what is filled by then as well.
    async fn try_open(
        &self,
        mut filled: Option<Filled>,
    ) -> Result<(Result<LocalStore, OpenError>, Option<Filled>), EngineError> {
        let (dir, options, view) = (self.dir.clone(), self.options.clone(), self.view.clone());
        blocking(move || {
            let opened = dir.prepare().and_then(|()| LocalStore::open_filled(dir, &options, view, &mut filled));
            (opened, filled)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, EngineError> {
    spawn_blocking(work).await.map_err(|panic| EngineError::new(StoreError::Engine(panic.to_string())))
}

impl From<OpenError> for EngineError {
    fn from(error: OpenError) -> Self {
        if error.is_loss() { Self::loss(error) } else { Self::new(error) }
    }
}
