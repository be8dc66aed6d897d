//! The data directory: its lock and its layout.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk_space::FreeBytes;
use super::error::OpenError;
use crate::util::files::{create_private_dir, lock_with_retry, private_options, sync_parent, with_path, write_durably};

/// The layout that this program writes.
const FORMAT: &str = "keyward-data 2\n";
/// The one before, which it reads, and takes over when it opens the directory to write.
const FORMAT_V1: &str = "keyward-data 1\n";
/// Where a restore builds a directory before moving its parts out.
const RESTORING: &str = "restore.new";
/// The parts that are moved.
const RESTORED_PARTS: [&str; 4] = ["journal", "snapshot", "table", "watermark"];

/// A data directory that no other process uses while this value or a clone of it lives.
#[derive(Clone, Debug)]
pub struct LockedDir {
    path: PathBuf,
    is_writable: bool,
    /// The lock file, or the directory itself if it is read-only and has none.
    lock: Arc<File>,
}

impl LockedDir {
    /// Locks a directory and checks its layout. An empty directory gets ours.
    ///
    /// # Errors
    /// When another process uses it, or its layout is not known.
    pub fn lock(path: &Path) -> Result<Self, OpenError> {
        let dir = Self::lock_unchanged(path)?;
        dir.prepare()?;
        Ok(dir)
    }

    /// Locks a directory and checks its layout. Changes nothing, except that it creates the lock file if that
    /// is missing. [`LockedDir::prepare`] must be called before anything is written.
    ///
    /// # Errors
    /// When another process uses it, or its layout is not known.
    pub fn lock_unchanged(path: &Path) -> Result<Self, OpenError> {
        let dir = Self { path: path.to_owned(), is_writable: true, lock: Arc::new(lock_file(path)?) };
        Layout(path).has_format()?;
        Ok(dir)
    }

    /// Writes the process id to the lock file, and gives an empty directory our layout.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn prepare(&self) -> Result<(), OpenError> {
        self.note_holder()?;
        if !Layout(&self.path).has_format()? {
            self.mark_complete()?;
        }
        // What a restore leaves if it was interrupted after its last step. Anything else stays.
        drop(fs::remove_file(self.restoring().join("lock")));
        drop(fs::remove_dir(self.restoring()));
        create_private_dir(&self.journal()).map_err(with_path(&self.journal()))?;
        Ok(())
    }

    /// Free bytes on its disk.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn free_bytes(&self, free_bytes: FreeBytes) -> io::Result<u64> {
        free_bytes(&self.lock)
    }

    /// Locks a directory that has data.
    ///
    /// # Errors
    /// When it has none, another process uses it, or its layout is not known.
    pub fn lock_existing(path: &Path) -> Result<Self, OpenError> {
        let holds = path.join("format").exists() || has_any_part(path).map_err(with_path(path))?;
        if !holds {
            return Err(OpenError::NoData { dir: path.to_owned() });
        }
        Self::lock(path)
    }

    /// Locks a directory that has data, for reading only. It may be read-only: a copy, or a read-only mount.
    /// Nothing is created or repaired, except that the lock file is created if possible.
    ///
    /// # Errors
    /// When it has none, another process uses it, or its layout is not known.
    pub fn lock_to_read(path: &Path) -> Result<Self, OpenError> {
        let holds = path.join("format").exists() || has_any_part(path).map_err(with_path(path))?;
        if !holds {
            return Err(OpenError::NoData { dir: path.to_owned() });
        }
        let (lock, is_writable) = match lock_file(path) {
            Err(OpenError::Io(error)) if is_read_only(&error) => (lock_unwritable(path)?, false),
            lock => (lock?, true),
        };
        Layout(path).has_format()?;
        Ok(Self { path: path.to_owned(), is_writable, lock: Arc::new(lock) })
    }

    /// Creates and locks a directory to restore into. Until [`LockedDir::finish_restore`] it has no layout,
    /// so that it is not taken for complete.
    ///
    /// When it contains anything but a pepper file and the remains of an interrupted restore.
    pub fn lock_empty(path: &Path, pepper: Option<&Path>) -> Result<Self, OpenError> {
        create_private_dir(path).map_err(with_path(path))?;
        // Checked before the lock, so that no lock file is left in a foreign directory; and again under the
        // lock.
        check_empty(path, pepper)?;
        let dir = Self::lock_only(path)?;
        check_empty(path, pepper)?;
        Ok(dir)
    }

    /// Locks a directory that is being built and has no layout yet.
    pub(super) fn lock_new(path: &Path) -> Result<Self, OpenError> {
        Self::lock_only(path)
    }

    /// Where a restore builds a directory.
    pub(super) fn restoring(&self) -> PathBuf {
        self.path.join(RESTORING)
    }

    /// Moves the restored parts to their places. Interrupted anywhere, it leaves a directory that is
    /// complete, or one without a layout that [`LockedDir::remove_unfinished_restore`] empties.
    pub(super) fn finish_restore(&self) -> io::Result<()> {
        let fresh = self.restoring();
        // From here on, a part missing there has been moved here.
        write_durably(&fresh.join("format"), FORMAT.as_bytes()).map_err(with_path(&fresh))?;
        for part in RESTORED_PARTS {
            fs::rename(fresh.join(part), self.path.join(part)).map_err(with_path(&fresh.join(part)))?;
        }
        sync_parent(&fresh).map_err(with_path(&self.path))?;
        fs::rename(fresh.join("format"), self.format()).map_err(with_path(&self.format()))?;
        sync_parent(&fresh).map_err(with_path(&self.path))?;
        fs::remove_dir_all(&fresh).map_err(with_path(&fresh))
    }

    /// Removes the remains of an interrupted restore, and nothing else.
    pub(super) fn remove_unfinished_restore(&self) -> io::Result<()> {
        let fresh = self.restoring();
        if !fresh.exists() {
            return Ok(());
        }
        for part in moved_parts(&self.path) {
            let part = self.path.join(part);
            let removed = if part.is_dir() { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
            removed.map_err(with_path(&part))?;
        }
        sync_parent(&fresh).map_err(with_path(&self.path))?;
        // Without this file, no part here counts as moved.
        match fs::remove_file(fresh.join("format")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(with_path(&fresh)(error)),
            _ => {}
        }
        sync_parent(&fresh.join("format")).map_err(with_path(&fresh))?;
        fs::remove_dir_all(&fresh).map_err(with_path(&fresh))
    }

    /// Marks the directory as complete by writing its layout.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn mark_complete(&self) -> io::Result<()> {
        write_durably(&self.format(), FORMAT.as_bytes()).map_err(with_path(&self.format()))
    }

    /// Notes that the directory may have what the program of the layout before cannot read, so that it
    /// refuses the directory. Durable, and to be called before the first of it is written.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub(super) fn take_over(&self) -> io::Result<()> {
        let path = self.format();
        match fs::read(&path) {
            Ok(format) if format == FORMAT_V1.as_bytes() => {
                self.mark_complete()?;
                tracing::info!(path = %path.display(), "the data directory is of this program now; older ones refuse it");
                Ok(())
            }
            Ok(_) => Ok(()),
            // A directory that is being built.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(with_path(&path)(error)),
        }
    }

    /// Marks the directory as incomplete, until [`LockedDir::mark_complete`].
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn mark_incomplete(&self) -> io::Result<()> {
        let path = self.format();
        fs::remove_file(&path).and_then(|()| sync_parent(&path)).map_err(with_path(&path))
    }

    fn lock_only(path: &Path) -> Result<Self, OpenError> {
        let dir = Self { path: path.to_owned(), is_writable: true, lock: Arc::new(lock_file(path)?) };
        dir.note_holder()?;
        Ok(dir)
    }

    fn note_holder(&self) -> io::Result<()> {
        let holder = format!("{}\n", std::process::id());
        let noted = self.lock.write_all_at(holder.as_bytes(), 0).and_then(|()| self.lock.set_len(holder.len() as u64));
        noted.map_err(with_path(&self.path.join("lock")))
    }

    /// Whether anything was ever committed here.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn has_data(&self) -> Result<bool, OpenError> {
        Layout(&self.path).has_data()
    }

    /// As [`LockedDir::has_data`], for a directory that may be in use.
    ///
    /// When its layout is not known, or the directory cannot be read.
    pub fn holds_data(path: &Path) -> Result<bool, OpenError> {
        let parts = Layout(path);
        Ok(parts.has_format()? && parts.has_data()?)
    }

    /// Whether it is writable.
    pub(super) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    pub(super) fn table(&self) -> PathBuf {
        self.path.join("table")
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshot")
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.path.join("index")
    }

    pub(super) fn replies(&self) -> PathBuf {
        self.path.join("replies")
    }

    fn format(&self) -> PathBuf {
        self.path.join("format")
    }

    pub(super) fn watermark(&self) -> PathBuf {
        self.path.join("watermark")
    }
}

/// The layout of a directory, by its path alone.
struct Layout<'a>(&'a Path);

impl Layout<'_> {
    fn has_data(&self) -> Result<bool, OpenError> {
        let journal = self.0.join("journal");
        let first = match fs::read_dir(&journal).and_then(|mut entries| entries.next().transpose()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            first => first.map_err(with_path(&journal))?,
        };
        Ok(first.is_some() || ["table", "snapshot", "index"].iter().any(|part| self.0.join(part).exists()))
    }

    /// Whether the layout is ours. `false`: the directory is empty and has none yet.
    fn has_format(&self) -> Result<bool, OpenError> {
        let path = self.0.join("format");
        match fs::read(&path) {
            Ok(format) if [FORMAT, FORMAT_V1].map(str::as_bytes).contains(&&*format) => Ok(true),
            Ok(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(64).collect();
                Err(OpenError::UnknownFormat { path, found })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if has_any_part(self.0).map_err(with_path(self.0))? {
                    return Err(OpenError::NoFormat { path });
                }
                Ok(false)
            }
            Err(error) => Err(with_path(&path)(error).into()),
        }
    }
}

/// Opens and locks a directory's lock file.
fn lock_file(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let mut options = private_options();
    let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut lock = opened.map_err(with_path(&path))?;
    match lock_with_retry(&lock) {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder).map_err(with_path(&path))?;
            Err(OpenError::InUse { dir: dir.to_owned(), holder: holder_of(holder.trim()) })
        }
        Err(TryLockError::Error(error)) => Err(with_path(&path)(error).into()),
    }
}

/// Locks a read-only directory.
fn lock_unwritable(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        // A server would not be noticed then; what is read is checked anyway.
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_read_only(&error) => {
            return Ok(File::open(dir).map_err(with_path(dir))?);
        }
        Err(error) => return Err(with_path(&path)(error).into()),
    };
    match lock_with_retry(&lock) {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).map_err(with_path(&path))?;
            Err(OpenError::InUse { dir: dir.to_owned(), holder: holder_of(holder.trim()) })
        }
        Err(TryLockError::Error(error)) => Err(with_path(&path)(error).into()),
    }
}

/// Whether an error says that the directory is read-only.
fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// The holder of a lock, according to the file. A start on a full disk does not write there, so the process
/// may be another one.
fn holder_of(noted: &str) -> String {
    match noted.parse::<u32>() {
        Ok(process) if Path::new("/proc").join(process.to_string()).exists() => format!("process {process}"),
        _ => "another process".to_owned(),
    }
}

/// Checks that a directory has nothing that a restore would mix with its own files.
fn check_empty(path: &Path, pepper: Option<&Path>) -> Result<(), OpenError> {
    let moved = moved_parts(path);
    for entry in fs::read_dir(path).map_err(with_path(path))? {
        let found = entry.map_err(with_path(path))?.path();
        let name = found.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let known = ["lock", "pepper", "lost+found", RESTORING].contains(&name) || moved.contains(&name);
        if !known && pepper != Some(&found) {
            return Err(OpenError::NotEmpty { dir: path.to_owned(), found });
        }
    }
    Ok(())
}

/// The parts that an interrupted restore had moved into a directory.
fn moved_parts(path: &Path) -> Vec<&'static str> {
    let fresh = path.join(RESTORING);
    if !fresh.join("format").exists() || path.join("format").exists() {
        return vec![];
    }
    RESTORED_PARTS.into_iter().filter(|part| path.join(part).exists() && !fresh.join(part).exists()).collect()
}

/// Whether any part of a data directory is there. A missing directory has none.
fn has_any_part(path: &Path) -> io::Result<bool> {
    let parts = ["journal", "table", "snapshot", "index", "watermark", "lost.", "rescue.new", RESTORING];
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
