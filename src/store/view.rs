//! A view of the log that an engine loads while it opens.

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::KeyRecord;

use super::InUse;

/// A view of the log that lives outside the engine, such as the index. The engine loads it while opening, so
/// that nothing is read twice, and may checkpoint it in chunks, so that the next start need not read every
/// record. Methods may be called from several threads at a time.
pub trait MaterializedView: Send + Sync + 'static {
    /// Loads records, in any order. Of two forms of a record, the newer one wins.
    fn load(&self, records: &[Record]);

    /// Discards everything loaded so far.
    fn reset(&self);

    /// Every record up to this revision is loaded, and no acknowledged change is missing. The engine may
    /// still have to read its own table before it accepts changes.
    fn on_loaded(&self, revision: Revision);

    /// The revision up to which every change is in the view. The engine keeps the log after it.
    fn revision(&self) -> Revision;

    /// The latest time of a change that is in the view.
    fn latest_time(&self) -> UnixMillis;

    /// Notes that a change was made at this time, even if its record has changed again since.
    fn advance_time(&self, time: UnixMillis);

    /// The revision of the key's last change up to [`MaterializedView::revision`]. `None` if the view does
    /// not know, or the key has another current secret.
    fn revision_of(&self, _key: &KeyRecord) -> Option<Revision> {
        None
    }

    /// The number of chunks in a checkpoint of this view. 0, the default, if it is not checkpointed.
    fn chunk_count(&self) -> usize {
        0
    }

    /// The format version of the chunks. Chunks of another version are not read.
    fn format_version(&self) -> u32 {
        0
    }

    /// Begins to write a checkpoint. The view may change meanwhile.
    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_> {
        Box::new(())
    }

    /// Loads a chunk that a [`ChunkWriter`] wrote. The view must hold nothing but other chunks of the same
    /// checkpoint. `None` if the bytes are malformed.
    fn read_chunk(&self, _number: usize, _bytes: &[u8]) -> Option<()> {
        None
    }

    /// The number of distinct owners among a tenant's keys, and which of `asked` are not among them. Keys
    /// without an owner do not count. `None` if the view does not know; then nothing is bounded.
    fn owners_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }

    /// As [`MaterializedView::owners_in_use`], for scopes.
    fn scopes_in_use(&self, _tenant: &TenantId, _asked: &[&str]) -> Option<InUse> {
        None
    }
}

/// Writes the chunks of a view in order.
pub trait ChunkWriter {
    /// Appends the bytes of a chunk: every change up to [`MaterializedView::revision`] at the time of the
    /// call, and possibly later ones.
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>);
}

impl ChunkWriter for () {
    fn write_chunk(&mut self, _: usize, _: &mut Vec<u8>) {}
}

/// No-op view, for tools that open a store without an index.
impl MaterializedView for () {
    fn load(&self, _: &[Record]) {}

    fn reset(&self) {}

    fn on_loaded(&self, _: Revision) {}

    /// It needs nothing of the log.
    fn revision(&self) -> Revision {
        Revision(u64::MAX)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis::MIN
    }

    fn advance_time(&self, _: UnixMillis) {}
}
