//! What the engine is opened with.

use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;
use keyward_core::head::Head;
use zeroize::Zeroizing;

use super::disk_space::FreeBytes;
use crate::store::Bounds;

/// How to open a data directory.
pub struct StoreOptions {
    /// Size of new journal segments, in bytes.
    pub segment_bytes: u64,
    /// The key of the journal's chain.
    pub chain_key: Zeroizing<[u8; 32]>,
    /// When segments of the journal are deleted.
    pub retention: Retention,
    /// Limits of one backup.
    pub backup: BackupLimits,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Gives the ids of new logs.
    pub entropy: Arc<dyn Entropy>,
    /// Bounds on names.
    pub bounds: Bounds,
    /// How to measure free disk space: [`free_bytes`](super::disk_space::free_bytes), except in tests.
    pub free_bytes: FreeBytes,
    /// What the directory must match besides itself.
    pub expectations: Expectations,
}

/// What an operator expects of a data directory before it is served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expectations {
    /// The journal must contain this head, which was kept elsewhere.
    pub head: Option<Head>,
    /// Whether to start without a watermark though the journal has changes.
    pub accept_watermark_loss: bool,
}

/// Limits of the journal. What exceeds either is deleted.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Total size in bytes.
    pub bytes: u64,
    /// Time since the last change of a segment.
    pub time: Duration,
}

/// Limits of one backup. One that exceeds them ends with
/// [`BackupError::Aborted`](crate::store::BackupError::Aborted).
#[derive(Clone, Copy, Debug)]
pub struct BackupLimits {
    /// How long it may take.
    pub time: Duration,
    /// How many bytes of pre-images may be kept in memory for it.
    pub aside_bytes: u64,
}
