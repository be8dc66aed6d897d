//! Which storage engines there are, and how settings configure them. The only place of a server that names
//! one.

use std::sync::Arc;

use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;

use crate::config::Settings;
use crate::store::Bounds;
use crate::store::engine::StorageEngine;
use crate::store::local::disk_space::free_bytes;
use crate::store::local::{BackupLimits, Expectations, LocalEngine, Retention};
use crate::store::memory::MemoryEngine;

/// A kind of storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// A journal and sled, on disk.
    Sled,
    /// Memory, for tests: nothing outlives the process.
    Memory,
}

impl Engine {
    /// An engine of this kind, as the settings want it.
    #[must_use]
    pub fn configure(
        self,
        settings: &Settings,
        clock: &Arc<dyn Clock>,
        entropy: &Arc<dyn Entropy>,
    ) -> Box<dyn StorageEngine> {
        match self {
            Self::Sled => Box::new(local(settings, clock, entropy)),
            Self::Memory => Box::new(MemoryEngine { bounds: bounds(settings) }),
        }
    }
}

/// The engine of the data directory that the settings name.
#[must_use]
pub fn local(settings: &Settings, clock: &Arc<dyn Clock>, entropy: &Arc<dyn Entropy>) -> LocalEngine {
    LocalEngine {
        dir: settings.data_dir.clone(),
        segment_bytes: settings.journal_segment_bytes,
        retention: Retention { bytes: settings.journal_retention_bytes, time: settings.journal_retention_time },
        backup: BackupLimits { time: settings.backup_time_max, aside_bytes: settings.backup_aside_bytes_max },
        clock: clock.clone(),
        entropy: entropy.clone(),
        bounds: bounds(settings),
        free_bytes,
        expectations: Expectations {
            head: settings.expect_head,
            accept_watermark_loss: settings.accept_watermark_loss,
        },
    }
}

fn bounds(settings: &Settings) -> Bounds {
    Bounds {
        tenants: settings.tenants_max,
        owners_per_tenant: settings.owners_per_tenant_max,
        scopes_per_tenant: settings.scopes_per_tenant_max,
    }
}
