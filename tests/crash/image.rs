//! A disk that can lose power: ext4 on a loop device over a file. A copy of the file at one instant is what a
//! power cut at that instant would have left: whatever the kernel had not written to the device by then is
//! not in it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::sleep;

use crate::Failure;
use crate::server::Server;

/// Copies that are begun at most: each time the kernel wrote meanwhile, the copy is of no single instant.
const COPIES_MAX: u32 = 50;
/// How long the threads of a process may take to stop. A thread inside a sync stops when the sync has ended.
const FREEZE_LIMIT: Duration = Duration::from_secs(30);
const FREEZE_POLL: Duration = Duration::from_millis(1);
/// Tells the program that it has mounts of its own already.
const PRIVATE: &str = "CRASH_PRIVATE_MOUNTS";

/// Starts this program anew with mounts of its own, unless it has them: whatever happens to it, none stay
/// behind.
pub(crate) fn with_private_mounts() -> Result<(), Failure> {
    if std::env::var_os(PRIVATE).is_some() {
        return Ok(());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
    let error = command.args(std::env::args_os().skip(1)).env(PRIVATE, "1").exec();
    Err(format!("cannot run unshare: {error}").into())
}

/// A mounted image. Dropping it unmounts it; processes that write to it must have ended.
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) mount: PathBuf,
    pub(crate) device: String,
}

impl Disk {
    /// Makes an empty disk.
    pub(crate) fn make(image: &Path, mebibytes: u64) -> Result<Self, Failure> {
        File::create(image)?.set_len(mebibytes * 1024 * 1024)?;
        // Whatever mkfs leaves for later would be written while copies are made.
        command("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], &[image])?;
        Self::mount(image)
    }

    /// Mounts an image, beside its file.
    pub(crate) fn mount(image: &Path) -> Result<Self, Failure> {
        let mount = image.with_extension("mount");
        fs::create_dir_all(&mount)?;
        command("mount", &["-t", "ext4", "-o", "loop"], &[image, &mount])?;
        let device = command("findmnt", &["-n", "-o", "SOURCE", "--target"], &[&mount])?.trim().to_owned();
        Ok(Self { image: image.to_owned(), mount, device })
    }

    /// Copies the image as it is at one instant. Only while nobody but the kernel writes.
    pub(crate) async fn copy(&self, to: &Path) -> Result<(), Failure> {
        for _ in 0..COPIES_MAX {
            let before = self.writes()?;
            command("cp", &["--sparse=always"], &[&self.image, to])?;
            let after = self.writes()?;
            if before == after && before.under_way == 0 {
                return Ok(());
            }
            sleep(FREEZE_POLL).await;
        }
        Err(format!("the kernel wrote to the disk during each of {COPIES_MAX} copies").into())
    }

    /// What the kernel has written to the device so far.
    fn writes(&self) -> Result<Writes, Failure> {
        let name = self.device.trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/stat");
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let field = |at: usize| fields.get(at).copied().ok_or_else(|| format!("{path} has no field {at}"));
        // Documentation/block/stat.rst: write I/Os, write sectors, in flight.
        Ok(Writes { ended: field(4)?, sectors: field(6)?, under_way: field(8)? })
    }

    /// Removes the file of a disk that is no longer mounted.
    pub(crate) fn remove(self) {
        let image = self.image.clone();
        drop(self);
        drop(fs::remove_file(image));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Writes {
    ended: u64,
    sectors: u64,
    under_way: u64,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(failure) = command("umount", &[], &[&self.mount]) {
            println!("{failure}");
        }
    }
}

/// Stops every thread of a server where it is, and waits until they stand.
pub(crate) async fn freeze(server: &Server) -> Result<(), Failure> {
    server.signal(Signal::STOP)?;
    let pid = server.pid().ok_or("the server has no process id")?.as_raw_nonzero();
    let tasks = format!("/proc/{pid}/task");
    let began = Instant::now();
    loop {
        let mut moving = 0;
        for task in fs::read_dir(&tasks)? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            // After the name, which is in parentheses and may hold anything: the state.
            moving += u32::from(!stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')));
        }
        if moving == 0 {
            return Ok(());
        }
        if began.elapsed() > FREEZE_LIMIT {
            return Err(server.complaint(&format!("{moving} threads have not stopped after {FREEZE_LIMIT:?}")));
        }
        sleep(FREEZE_POLL).await;
    }
}

/// Runs a command to its end, and gives what it printed.
pub(crate) fn command(name: &str, args: &[&str], paths: &[&Path]) -> Result<String, Failure> {
    let ran = Command::new(name).args(args).args(paths).output().map_err(|e| format!("cannot run {name}: {e}"))?;
    if !ran.status.success() {
        let error = String::from_utf8_lossy(&ran.stderr);
        return Err(format!("{name} {args:?} {paths:?}: {}", error.trim()).into());
    }
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}
