//! How much space the disk has, and what is still written when it has little.

use std::fs::File;
use std::io;

use rustix::fs::fstatvfs;

/// Below this, only narrowings are made: the table grows after the journal.
pub const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Below this, only narrowings that disable without an end, revoke or delete, each of which can be done once
/// to a key; it can be narrowed in other ways any number of times.
const FREE_BYTES_CRITICAL: u64 = 32 * 1024 * 1024;
/// Below this, nothing is written, not even by a start.
pub const FREE_BYTES_EXHAUSTED: u64 = 16 * 1024 * 1024;
/// A snapshot or checkpoint is made only if this much stays free beyond the size of the last one, because
/// changes need space too.
pub(super) const CHECKPOINT_FREE_BYTES_MIN: u64 = 128 * 1024 * 1024;

/// How much disk space is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskSpace {
    /// None.
    Exhausted,
    /// Enough for disabling and revoking.
    Critical,
    /// Enough for changes that take power away.
    Low,
    /// Enough.
    Ok,
}

impl DiskSpace {
    fn of(free_bytes: u64) -> Self {
        match free_bytes {
            FREE_BYTES_MIN.. => Self::Ok,
            FREE_BYTES_CRITICAL.. => Self::Low,
            FREE_BYTES_EXHAUSTED.. => Self::Critical,
            _ => Self::Exhausted,
        }
    }
}

/// Free bytes on the disk of a file.
///
/// # Errors
/// When the system does not say.
pub fn free_bytes(file: &File) -> io::Result<u64> {
    let stats = fstatvfs(file)?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Measures free disk space: [`free_bytes`], except in tests.
pub type FreeBytes = fn(&File) -> io::Result<u64>;

/// Measures the space on the journal's disk.
#[derive(Debug)]
pub struct DiskSpaceMeter {
    disk: File,
    free_bytes: FreeBytes,
}

impl DiskSpaceMeter {
    /// Measures the disk of a file.
    pub(super) fn new(disk: File, free_bytes: FreeBytes) -> Self {
        Self { disk, free_bytes }
    }

    /// The free bytes now, and the level.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn measure(&self) -> io::Result<(u64, DiskSpace)> {
        (self.free_bytes)(&self.disk).map(|free| (free, DiskSpace::of(free)))
    }
}
