//! Opening the store: it fills the index, which then follows it.

use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::KeyRecord;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::{Deps, Engine, StartError};
use crate::config::Settings;
use crate::fatal::die;
use crate::index::{self, Index, Step, image};
use crate::keyring::Keyring;
use crate::progress::Progress;
use crate::store::memory::MemoryStore;
use crate::store::sled::journal::writer::free_bytes;
use crate::store::sled::{BackupLimits, Demands, LockedDir, OpenError, Options, Retention, SledStore};
use crate::store::{Bounds, InUse, PartWriter, Store, StoreError, View};

/// A store that is being opened, and fills the index.
pub(super) struct Opening {
    whole: oneshot::Receiver<Revision>,
    opened: JoinHandle<Result<Arc<dyn Store>, OpenError>>,
}

impl Opening {
    pub(super) fn start(
        deps: &Deps,
        dir: LockedDir,
        keyring: &Keyring,
        settings: &Settings,
        index: &Arc<Index>,
    ) -> Self {
        let (sender, whole) = oneshot::channel();
        let view = Filling { index: index.clone(), whole: Mutex::new(Some(sender)) };
        let bounds = Bounds {
            tenants: settings.tenants_max,
            owners_per_tenant: settings.owners_per_tenant_max,
            scopes_per_tenant: settings.scopes_per_tenant_max,
        };
        let options = Options {
            segment_bytes: settings.journal_segment_bytes,
            chain_key: keyring.chain_key(),
            retention: Retention { bytes: settings.journal_retention_bytes, time: settings.journal_retention_time },
            backup: BackupLimits { time: settings.backup_time_max, aside_bytes: settings.backup_aside_bytes_max },
            clock: deps.clock.clone(),
            bounds,
            free_bytes,
            demands: Demands { head: settings.expect_head, accept_watermark_loss: settings.accept_watermark_loss },
        };
        let engine = deps.engine;
        let opened = spawn_blocking(move || -> Result<Arc<dyn Store>, OpenError> {
            match engine {
                Engine::Memory => {
                    view.whole(Revision(0));
                    Ok(Arc::new(MemoryStore::within(bounds)))
                }
                Engine::Sled => Ok(Arc::new(SledStore::open(dir, &options, Arc::new(view))?)),
            }
        });
        Self { whole, opened }
    }

    /// The revision at which the index is whole, once it is. `None`: the store is not opened.
    pub(super) async fn index_is_whole(&mut self) -> Option<Revision> {
        (&mut self.whole).await.ok()
    }

    /// The store, once it is open.
    pub(super) async fn store(self) -> Result<Arc<dyn Store>, StartError> {
        Ok(self.opened.await.map_err(|panic| StoreError::Engine(panic.to_string()))??)
    }
}

/// The index, as the store fills it and keeps a copy of it.
struct Filling {
    index: Arc<Index>,
    whole: Mutex<Option<oneshot::Sender<Revision>>>,
}

impl View for Filling {
    fn take(&self, records: &[Record]) {
        self.index.fold(records);
    }

    fn start_over(&self) {
        self.index.clear();
    }

    fn whole(&self, revision: Revision) {
        if let Some(whole) = self.whole.lock().take() {
            // Nobody waits for it any more only if the start was given up.
            whole.send(revision).unwrap_or_default();
        }
    }

    fn revision(&self) -> Revision {
        self.index.revision()
    }

    fn latest_time(&self) -> UnixMillis {
        self.index.latest_time()
    }

    fn reach_time(&self, time: UnixMillis) {
        self.index.reach_time(time);
    }

    fn revision_of(&self, key: &KeyRecord) -> Option<Revision> {
        let entry = self.index.get(&key.secret.digest)?;
        let same = *entry.tenant() == key.tenant && entry.key_id() == key.key_id.as_str();
        same.then(|| entry.revision())
    }

    fn parts(&self) -> usize {
        image::PARTS
    }

    fn form(&self) -> u32 {
        image::FORM
    }

    fn writer(&self) -> Box<dyn PartWriter + '_> {
        Box::new(Parts(self.index.write_image()))
    }

    fn read_part(&self, number: usize, bytes: &[u8]) -> Option<()> {
        self.index.read_part(number, bytes)
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

/// The parts of the index, on their way into an image.
struct Parts<'a>(image::Writer<'a>);

impl PartWriter for Parts<'_> {
    fn write_part(&mut self, number: usize, out: &mut Vec<u8>) {
        self.0.write_part(number, out);
    }
}

/// Folds everything that is there into the index.
async fn load(store: &dyn Store, index: &Index) -> Result<(), StoreError> {
    let mut snapshot = store.load().await?;
    let mut progress = Progress::begin("loading the index, in records", snapshot.records);
    while let Some(records) = snapshot.next().await? {
        index.fold(&records);
        progress.advance(records.len() as u64);
    }
    index.reach(snapshot.revision);
    Ok(())
}

/// Between two looks whether a compaction of names can go on.
const COMPACTION_PAUSE: Duration = Duration::from_millis(50);

/// Gives back the room of names that are no longer used, whenever there is much of it, until the server stops.
pub(super) async fn compact(index: Arc<Index>, stop: CancellationToken) {
    let compacting = async {
        loop {
            index.compaction_wanted().await;
            let steps = {
                let (index, stop) = (index.clone(), stop.clone());
                // In one go on a thread that may block: at the end all names of a generation are freed at once.
                spawn_blocking(move || {
                    let mut step = Step::More;
                    while step == Step::More && !stop.is_cancelled() {
                        step = index.compaction_step();
                    }
                    step
                })
            };
            match steps.await {
                Ok(Step::Wait) => tokio::time::sleep(COMPACTION_PAUSE).await,
                Ok(Step::More | Step::Done) => {}
                Err(panic) => die("the compaction of names panicked", &panic),
            }
        }
    };
    tokio::select! {
        () = compacting => {}
        () = stop.cancelled() => {}
    }
}

/// Folds everything that comes into the index, until the server stops.
pub(super) async fn fold(store: Arc<dyn Store>, index: Arc<Index>, stop: CancellationToken) {
    let folding = async {
        loop {
            let Ok(mut changes) = store.changes(index.revision()) else {
                // So far behind that the feed has moved on: start again from the store.
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
