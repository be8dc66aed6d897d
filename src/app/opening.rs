//! Opening the store, which fills the index, and the tasks that keep the index up to date.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::KeyRecord;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Deps, Engine, StartError};
use crate::config::Settings;
use crate::grpc::state::StateHandle;
use crate::index::{self, CompactionStep, Index, checkpoint};
use crate::keyring::Keyring;
use crate::server::lifecycle::Tasks;
use crate::store::local::disk_space::{FREE_BYTES_EXHAUSTED, FREE_BYTES_MIN, free_bytes};
use crate::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use crate::store::memory::MemoryStore;
use crate::store::{Bounds, ChunkWriter, InUse, MaterializedView, Store, StoreError};
use crate::util::fatal::die;
use crate::util::progress::Progress;

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
        let (sender, whole) = oneshot::channel();
        let view = IndexLoader { index: index.clone(), whole: Mutex::new(Some(sender)) };
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

/// Lets the store fill the index and write checkpoints of it.
struct IndexLoader {
    index: Arc<Index>,
    whole: Mutex<Option<oneshot::Sender<Revision>>>,
}

impl MaterializedView for IndexLoader {
    fn load(&self, records: &[Record]) {
        self.index.apply_records(records);
    }

    fn reset(&self) {
        self.index.clear();
    }

    fn on_loaded(&self, revision: Revision) {
        if let Some(whole) = self.whole.lock().take() {
            // The receiver is gone only if the start was aborted.
            whole.send(revision).unwrap_or_default();
        }
    }

    fn revision(&self) -> Revision {
        self.index.revision()
    }

    fn latest_time(&self) -> UnixMillis {
        self.index.latest_time()
    }

    fn advance_time(&self, time: UnixMillis) {
        self.index.advance_time(time);
    }

    fn revision_of(&self, key: &KeyRecord) -> Option<Revision> {
        let entry = self.index.get(&key.secret.digest)?;
        let same = *entry.tenant() == key.tenant && entry.key_id() == key.key_id.as_str();
        same.then(|| entry.revision())
    }

    fn chunk_count(&self) -> usize {
        checkpoint::CHUNKS
    }

    fn format_version(&self) -> u32 {
        checkpoint::FORMAT_VERSION
    }

    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_> {
        Box::new(CheckpointChunkWriter(self.index.checkpoint_writer()))
    }

    fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()> {
        self.index.read_chunk(number, bytes)
    }

    fn owners_in_use(&self, tenant: &TenantId, asked: &[&str]) -> Option<InUse> {
        Some(in_use(self.index.owners_in_use(tenant, asked)))
    }

    fn scopes_in_use(&self, tenant: &TenantId, asked: &[&str]) -> Option<InUse> {
        Some(in_use(self.index.scopes_in_use(tenant, asked)))
    }
}

fn in_use(found: index::InUse) -> InUse {
    InUse { count: found.count, missing: found.missing }
}

/// Writes the chunks of a checkpoint of the index.
struct CheckpointChunkWriter<'a>(checkpoint::CheckpointWriter<'a>);

impl ChunkWriter for CheckpointChunkWriter<'_> {
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>) {
        self.0.write_chunk(number, out);
    }
}

/// Loads all records of the store into the index.
async fn load(store: &dyn Store, index: &Index) -> Result<(), StoreError> {
    let mut snapshot = store.load().await?;
    let mut progress = Progress::begin("loading the index, in records", snapshot.records);
    while let Some(records) = snapshot.next().await? {
        index.apply_records(&records);
        progress.advance(records.len() as u64);
    }
    index.advance_to(snapshot.revision);
    Ok(())
}

/// The pause before a compaction that has to wait is tried again.
const COMPACTION_PAUSE: Duration = Duration::from_millis(50);

/// Compacts the index's names whenever many are unused, until the server stops.
pub(super) async fn compact_names(index: Arc<Index>, stop: CancellationToken) {
    let compacting = async {
        loop {
            index.compaction_wanted().await;
            let steps = {
                let (index, stop) = (index.clone(), stop.clone());
                // On a thread that may block: at the end, all names of a generation are freed at once.
                spawn_blocking(move || {
                    let mut step = CompactionStep::More;
                    while step == CompactionStep::More && !stop.is_cancelled() {
                        step = index.compaction_step();
                    }
                    step
                })
            };
            match steps.await {
                Ok(CompactionStep::Wait) => tokio::time::sleep(COMPACTION_PAUSE).await,
                Ok(CompactionStep::More | CompactionStep::Done) => {}
                Err(panic) => die("the compaction of names panicked", &panic),
            }
        }
    };
    tokio::select! {
        () = compacting => {}
        () = stop.cancelled() => {}
    }
}

/// Applies every change of the store to the index, until the server stops.
pub(super) async fn follow_log(store: Arc<dyn Store>, index: Arc<Index>, stop: CancellationToken) {
    let folding = async {
        loop {
            let Ok(mut changes) = store.changes(index.revision()) else {
                // The feed does not go back that far any more: load all from the store.
                if let Err(error) = load(&*store, &index).await {
                    die("the index cannot follow the store", &error);
                }
                continue;
            };
            while let Ok(Some(batch)) = changes.next().await {
                index.apply(&batch);
            }
        }
    };
    tokio::select! {
        () = folding => {}
        () = stop.cancelled() => {}
    }
}
