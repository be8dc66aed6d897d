//! Small files that must be there, whole, after a power cut.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;

/// How often, and how long apart, [`lock_with_retry`] tries: two seconds in all.
const LOCK_TRIES: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Options for files that only their owner may read.
#[must_use]
pub fn private_options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.mode(0o600);
    options
}

/// The mode of a file that is not private: others may use it, or a group may write it. One group may read a
/// private file, because secret volumes are mounted that way for a process that is not root.
#[must_use]
pub fn exposed_mode(found: &fs::Metadata) -> Option<u32> {
    let mode = found.permissions().mode();
    (mode & 0o027 != 0).then_some(mode & 0o777)
}

/// An I/O error with its file.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
struct WithPath {
    path: PathBuf,
    source: io::Error,
}

/// Adds the file's path to an I/O error, which lacks it.
pub fn with_path(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |source| io::Error::new(source.kind(), WithPath { path: path.to_owned(), source })
}

/// If an error comes from a resource limit, which one, and what to do.
#[must_use]
pub fn resource_limit(error: &io::Error) -> Option<&'static str> {
    let named = error.get_ref().and_then(|inner| inner.downcast_ref::<WithPath>());
    let source = named.map_or(error, |named| &named.source);
    match Errno::from_io_error(source)? {
        Errno::MFILE | Errno::NFILE => Some("no more files may be open; raise the limit (ulimit -n, LimitNOFILE)"),
        Errno::AGAIN => Some(
            "no more threads may be started; raise the limit of processes (ulimit -u, TasksMax, pids.max) or of memory (ulimit -v)",
        ),
        Errno::NOMEM => Some("there is not enough memory; raise its limit (ulimit -v, MemoryMax)"),
        _ => None,
    }
}

/// Creates a directory that only its owner may enter, with its parents, unless it exists.
///
/// # Errors
/// When the file system refuses.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().mode(0o700).recursive(true).create(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(io::ErrorKind::NotADirectory, "is not a directory"),
        _ => error,
    })?;
    sync_parent(path)
}

/// A file that only its owner may read, written atomically: under a temporary name with `.new` appended,
/// which is removed if this is dropped without a commit.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: Option<PathBuf>,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file. Overwrites an unfinished one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn create(path: &Path) -> io::Result<Self> {
        let temporary = path.with_added_extension("new");
        let file = private_options().read(true).write(true).create(true).truncate(true).open(&temporary)?;
        Ok(Self { file, temporary: Some(temporary), path: path.to_owned() })
    }

    /// Syncs what was written, and returns the temporary path, for reading it back.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn sync(&self) -> io::Result<&Path> {
        self.file.sync_all()?;
        Ok(self.temporary.as_ref().unwrap_or(&self.path))
    }

    /// Syncs what was written and renames the file. The caller must sync the directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn rename(mut self) -> io::Result<File> {
        self.sync()?;
        let file = self.file.try_clone()?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.path)?;
        }
        self.temporary = None;
        Ok(file)
    }

    /// Syncs what was written, renames the file and syncs the directory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn commit(self) -> io::Result<()> {
        let path = self.path.clone();
        self.rename()?;
        sync_parent(&path)
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Frees its disk space. If this fails, [`remove_temporary_files`] removes it later.
        if let Some(temporary) = &self.temporary {
            drop(fs::remove_file(temporary));
        }
    }
}

/// Writes a file atomically and durably. Only its owner may read it.
///
/// # Errors
/// When the file system refuses.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// The files with an extension whose names are numbers, highest first. A missing directory has none.
///
/// # Errors
/// When the directory cannot be read.
pub fn numbered(dir: &Path, extension: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for path in entries(dir)? {
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|it| it == extension)) {
            found.push((number, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Removes temporary files that an interrupted process left, see [`NewFile`].
///
/// # Errors
/// When the directory cannot be read, or the file system refuses.
pub fn remove_temporary_files(dir: &Path) -> io::Result<()> {
    entries(dir)?.iter().filter(|path| path.extension().is_some_and(|it| it == "new")).try_for_each(fs::remove_file)
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
    }
}

/// Locks a file exclusively. Retries for two seconds: a lock may outlive the last use of its file for a
/// moment, while a thread ends or a child process starts.
///
/// # Errors
/// When another holds it, or the file system refuses.
pub fn lock_with_retry(file: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE),
            other => return other,
        }
    }
    file.try_lock()
}

/// Syncs a file's directory, so that its name is durable.
///
/// # Errors
/// When the file system refuses.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
