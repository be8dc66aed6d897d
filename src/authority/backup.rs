//! A backup of everything.

use keyward_core::access::{self, Grant};

use super::{Authority, AuthorityError};
use crate::store::{Backup, BackupError};

impl Authority {
    /// Begins a backup of every key and tenant, as they are now.
    ///
    /// # Errors
    /// When another one is being made, or the store cannot be read.
    pub async fn backup(&self, grant: &Grant<access::Backup>) -> Result<Backup, AuthorityError> {
        let backup = self.store.backup(self.clock.now()).await.map_err(AuthorityError::from_backup)?;
        tracing::info!(actor = %grant.actor(), revision = backup.revision.0, "a backup has begun");
        Ok(backup)
    }
}

impl AuthorityError {
    /// What a failed backup is to its caller.
    #[must_use]
    pub fn from_backup(error: BackupError) -> Self {
        match error {
            BackupError::Busy => Self::BackupUnderWay,
            BackupError::Aborted(limit) => Self::BackupAborted(limit),
            BackupError::Failed(why) => Self::BackupFailed(why),
        }
    }
}
