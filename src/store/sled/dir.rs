//! The data directory: who may use it, and in which layout.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use crate::files::{create_private_dir, private, write_durably};

/// The layout that this program writes, and the only one it knows.
const FORMAT: &str = "keyward-data 1\n";

/// A data directory that no other process uses while this value lives.
#[derive(Debug)]
pub struct LockedDir {
    path: PathBuf,
    _lock: File,
}

impl LockedDir {
    /// Locks a directory and checks its layout; an empty one is given ours.
    ///
    /// # Errors
    /// When another process uses it, or its layout is not known.
    pub fn lock(path: &Path) -> Result<Self, OpenError> {
        let lock_path = path.join("lock");
        let mut lock = private().read(true).write(true).create(true).truncate(false).open(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder)?;
                return Err(OpenError::InUse { dir: path.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;

        let dir = Self { path: path.to_owned(), _lock: lock };
        dir.check_format()?;
        create_private_dir(&dir.journal())?;
        Ok(dir)
    }

    /// Whether anything was ever committed here.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn has_data(&self) -> Result<bool, OpenError> {
        let mut entries = fs::read_dir(self.journal())?;
        Ok(entries.next().transpose()?.is_some() || self.table().exists())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub(super) fn table(&self) -> PathBuf {
        self.path.join("table")
    }

    pub(super) fn watermark(&self) -> PathBuf {
        self.path.join("watermark")
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let path = self.path.join("format");
        match fs::read_to_string(&path) {
            Ok(format) if format == FORMAT => Ok(()),
            Ok(found) => Err(OpenError::UnknownFormat { path, found: found.trim().chars().take(64).collect() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.journal().exists() || self.table().exists() {
                    return Err(OpenError::NoFormat { path });
                }
                write_durably(&path, FORMAT.as_bytes())?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
