//! What the threads of an engine have last seen or made, for metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use keyward_core::clock::UnixMillis;

/// Nothing yet.
const NONE: UnixMillis = UnixMillis::MIN;

/// See the module.
#[derive(Debug)]
pub(super) struct CachedStats {
    free_bytes: AtomicU64,
    snapshot: AtomicI64,
    backup: AtomicI64,
}

impl Default for CachedStats {
    fn default() -> Self {
        Self { free_bytes: AtomicU64::new(u64::MAX), snapshot: AtomicI64::new(NONE.0), backup: AtomicI64::new(NONE.0) }
    }
}

impl CachedStats {
    pub(super) fn note_free_bytes(&self, free: u64) {
        self.free_bytes.store(free, Ordering::Relaxed);
    }

    /// There is a sound snapshot of this time.
    pub(super) fn note_snapshot(&self, time: UnixMillis) {
        self.snapshot.fetch_max(time.0, Ordering::Relaxed);
    }

    /// A backup of this time was read to its end.
    pub(super) fn note_backup(&self, time: UnixMillis) {
        self.backup.fetch_max(time.0, Ordering::Relaxed);
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        Some(self.free_bytes.load(Ordering::Relaxed)).filter(|free| *free != u64::MAX)
    }

    pub(super) fn snapshot(&self) -> Option<UnixMillis> {
        Some(UnixMillis(self.snapshot.load(Ordering::Relaxed))).filter(|time| *time != NONE)
    }

    pub(super) fn backup(&self) -> Option<UnixMillis> {
        Some(UnixMillis(self.backup.load(Ordering::Relaxed))).filter(|time| *time != NONE)
    }
}
