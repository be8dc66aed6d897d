//! The data directory: who may use it, and in which layout.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use crate::files::{create_private_dir, lock_soon, named, private, sync_parent, write_durably};

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
        let dir = Self::lock_only(path)?;
        dir.check_format()?;
        create_private_dir(&dir.journal()).map_err(named(&dir.journal()))?;
        Ok(dir)
    }

    /// Locks a directory that has data.
    ///
    /// # Errors
    /// When it has none, another process uses it, or its layout is not known.
    pub fn lock_existing(path: &Path) -> Result<Self, OpenError> {
        let holds = path.join("format").exists() || holds_anything(path).map_err(named(path))?;
        if !holds {
            return Err(OpenError::NoData { dir: path.to_owned() });
        }
        Self::lock(path)
    }

    /// Makes and locks a directory that data is to be restored into. Until [`LockedDir::finish`] it has no layout, so that
    /// nothing takes it for whole.
    ///
    /// # Errors
    /// When there is anything in it but a pepper file.
    pub fn lock_empty(path: &Path, pepper: Option<&Path>) -> Result<Self, OpenError> {
        create_private_dir(path).map_err(named(path))?;
        for entry in fs::read_dir(path).map_err(named(path))? {
            let found = entry.map_err(named(path))?.path();
            let known =
                ["lock", "pepper", "lost+found"].iter().any(|known| found.file_name().is_some_and(|n| n == *known));
            if !known && pepper != Some(&found) {
                return Err(OpenError::NotEmpty { dir: path.to_owned(), found });
            }
        }
        let dir = Self::lock_only(path)?;
        create_private_dir(&dir.journal()).map_err(named(&dir.journal()))?;
        Ok(dir)
    }

    /// Says that the layout is ours and everything is in place.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(&self) -> io::Result<()> {
        write_durably(&self.format(), FORMAT.as_bytes()).map_err(named(&self.format()))
    }

    /// Takes back that everything is in place, until [`LockedDir::finish`].
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn begin(&self) -> io::Result<()> {
        let path = self.format();
        fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(named(&path))
    }

    fn lock_only(path: &Path) -> Result<Self, OpenError> {
        let lock_path = path.join("lock");
        let mut options = private();
        let opened = options.read(true).write(true).create(true).truncate(false).open(&lock_path);
        let mut lock = opened.map_err(named(&lock_path))?;
        match lock_soon(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).map_err(named(&lock_path))?;
                return Err(OpenError::InUse { dir: path.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(named(&lock_path)(error).into()),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(named(&lock_path))?;

        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Whether anything was ever committed here.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn has_data(&self) -> Result<bool, OpenError> {
        let journal = self.journal();
        let first =
            fs::read_dir(&journal).and_then(|mut entries| entries.next().transpose()).map_err(named(&journal))?;
        Ok(first.is_some() || self.table().exists() || self.snapshots().exists() || self.images().exists())
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

    pub(super) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    pub(super) fn images(&self) -> PathBuf {
        self.path.join("index")
    }

    fn format(&self) -> PathBuf {
        self.path.join("format")
    }

    pub(super) fn watermark(&self) -> PathBuf {
        self.path.join("watermark")
    }

    fn check_format(&self) -> Result<(), OpenError> {
        let path = self.format();
        match fs::read(&path) {
            Ok(format) if format == FORMAT.as_bytes() => Ok(()),
            Ok(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(64).collect();
                Err(OpenError::UnknownFormat { path, found })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if holds_anything(&self.path).map_err(named(&self.path))? {
                    return Err(OpenError::NoFormat { path });
                }
                Ok(self.finish()?)
            }
            Err(error) => Err(named(&path)(error).into()),
        }
    }
}

/// Whether there is anything that a data directory has, whole or not. One that is not there has nothing.
fn holds_anything(path: &Path) -> io::Result<bool> {
    let parts = ["journal", "table", "snapshot", "index", "watermark", "lost.", "rescue.new"];
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| parts.iter().any(|part| name.starts_with(part))) {
            return Ok(true);
        }
    }
    Ok(false)
}
