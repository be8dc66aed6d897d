//! Backups.

use keyward_core::access::{self, Grant};

use super::{Authority, AuthorityError};
use crate::store::{Backup, BackupError, BackupFormat};

impl Authority {
    /// Begins a backup of all keys and tenants, as they are now.
    ///
    /// # Errors
    /// When another backup is being made, or the store cannot be read.
    pub async fn backup(&self, grant: &Grant<access::Backup>, format: BackupFormat) -> Result<Backup, AuthorityError> {
        let backup = self.store.backup(self.clock.now(), format).await.map_err(AuthorityError::from_backup)?;
        tracing::info!(actor = %grant.actor(), revision = backup.revision.0, "a backup has begun");
        Ok(backup)
    }
}

impl AuthorityError {
    /// The error that the caller of a failed backup gets.
    #[must_use]
    pub fn from_backup(error: BackupError) -> Self {
        match error {
            BackupError::Busy => Self::BackupUnderWay,
            BackupError::NeedsSecondFormat => Self::BackupNeedsSecondFormat,
            BackupError::Aborted(limit) => Self::BackupAborted(limit),
            BackupError::Failed(why) => Self::BackupFailed(why),
        }
    }
}
