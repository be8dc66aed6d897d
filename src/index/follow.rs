//! How the index gets what the log has: it is loaded while an engine opens, and then follows the feed. The
//! only part of the index that names a store.
//!
//! What holds: the index is changed by records and changes of the log alone, each change is applied once all
//! before it are, and [`Index::revision`] never says more than was applied.

use std::sync::Arc;

use keyward_core::clock::UnixMillis;
use keyward_core::decision::{Policy, SecretUse};
use keyward_core::event::{Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::KeyRecord;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{Index, checkpoint};
use crate::store::{ChunkWriter, InUse, MaterializedView, Store, StoreError};
use crate::util::fatal::die;
use crate::util::progress::Progress;
use crate::util::system::HugePages;

/// Applies every change of the store to the index, until `stop`. An index that cannot follow would answer
/// from old data for ever, so then the process ends.
pub async fn follow_log(store: Arc<dyn Store>, index: Arc<Index>, stop: CancellationToken) {
    let huge_pages = HugePages::default();
    let following = async {
        loop {
            match store.changes(index.revision()) {
                Ok(mut changes) => {
                    while let Ok(Some(batch)) = changes.next().await {
                        huge_pages.allow_for(index.len());
                        index.apply(&batch);
                    }
                }
                // The window no longer goes back that far.
                Err(_) => {
                    if let Err(error) = catch_up(&*store, &index).await {
                        die("the index cannot follow the log", &error);
                    }
                }
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = stop.cancelled() => {}
    }
}

/// Applies what the log has and the index lacks, without the feed. Changes one by one, not records: what a
/// change took away must go from the index too.
async fn catch_up(store: &dyn Store, index: &Index) -> Result<(), StoreError> {
    let after = index.revision();
    let mut log = store.read_log(after).await?;
    let lacking = log.until().0.saturating_sub(after.0);
    tracing::warn!(revision = after.0, lacking, "the index fell behind the feed; it reads the log");
    let mut progress = Progress::begin("bringing the index up to the log, in changes", lacking);
    while let Some(batch) = log.next().await? {
        index.apply(&batch);
        progress.advance(batch.len() as u64);
    }
    // If there was nothing to read, the window is just being moved.
    tokio::task::yield_now().await;
    Ok(())
}

/// The index as an engine sees it: it loads the index while it opens, and writes checkpoints of it.
pub struct IndexLoader {
    index: Arc<Index>,
    loaded: Mutex<Option<oneshot::Sender<Revision>>>,
    huge_pages: HugePages,
}

impl IndexLoader {
    /// A loader, and what tells when the index is loaded, with its revision. If the engine gives up before
    /// that, the receiver gets an error.
    #[must_use]
    pub fn new(index: Arc<Index>) -> (Self, oneshot::Receiver<Revision>) {
        let (sender, loaded) = oneshot::channel();
        (Self { index, loaded: Mutex::new(Some(sender)), huge_pages: HugePages::default() }, loaded)
    }
}

impl MaterializedView for IndexLoader {
    fn load(&self, records: &[Record]) {
        self.huge_pages.allow_for(self.index.len());
        self.index.apply_records(records);
    }

    fn reset(&self) {
        self.index.clear();
    }

    fn on_loaded(&self, revision: Revision) {
        self.index.finish_loading();
        // Before the engine asks how far the view is.
        self.index.advance_to(revision);
        if let Some(loaded) = self.loaded.lock().take() {
            // The receiver is gone only if the start was aborted.
            loaded.send(revision).unwrap_or_default();
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
        // By an older secret the key is found too, in a form that is not the one in question.
        let is_current = entry.standing().secret == SecretUse::Current;
        (same && is_current).then(|| entry.revision())
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
        self.huge_pages.allow_for(self.index.len());
        self.index.read_chunk(number, bytes)
    }

    fn owners_in_use(&self, tenant: &TenantId, asked: &[&str]) -> Option<InUse> {
        Some(in_use(self.index.owners_in_use(tenant, asked)))
    }

    fn scopes_in_use(&self, tenant: &TenantId, asked: &[&str]) -> Option<InUse> {
        Some(in_use(self.index.scopes_in_use(tenant, asked)))
    }
}

fn in_use(found: super::InUse) -> InUse {
    InUse { count: found.count, missing: found.missing }
}

/// Writes the chunks of a checkpoint of the index.
struct CheckpointChunkWriter<'a>(checkpoint::CheckpointWriter<'a>);

impl ChunkWriter for CheckpointChunkWriter<'_> {
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>) {
        self.0.write_chunk(number, out);
    }
}
