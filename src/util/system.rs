//! The system's clock and randomness, which nothing else reads, and the limits and priorities of the process.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, available_parallelism};
use std::time::{SystemTime, UNIX_EPOCH};

use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::entropy::{Entropy, EntropyError};
use parking_lot::RwLock;
use rand::TryRng;
#[expect(clippy::disallowed_types, reason = "this is the randomness that everything else takes as a parameter")]
use rand::rngs::SysRng;
use rustix::process::{Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit};
use rustix::thread::disable_transparent_huge_pages;

/// How much is added to the nice value (setpriority(2)) of threads that do not answer verdicts: under
/// contention they get a tenth of the CPU time.
const NICE_INCREMENT: i32 = 10;

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else takes as a parameter")]
    fn now(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The operating system's randomness.
#[derive(Clone, Copy, Debug)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        SysRng.try_fill_bytes(bytes).map_err(|e| EntropyError(e.to_string()))
    }
}

/// Returns a function that lowers the priority of the thread that calls it, and of the threads that this one
/// starts, relative to the present thread.
pub fn lower_priority() -> impl Fn() + Send + Sync + 'static {
    // On Linux, priorities are of threads. This one's is read now, because the later thread may have
    // inherited a lowered one.
    let nice = getpriority_process(None).map(|now| now + NICE_INCREMENT);
    move || {
        if let Err(error) = nice.and_then(|nice| setpriority_process(None, nice)) {
            tracing::warn!(%error, "cannot let verdicts go first");
        }
    }
}

/// Threads of a server besides those that serve connections and those of its runtime: the store's, sled's,
/// the log's, and some that come and go.
const OTHER_THREADS: usize = 24;

/// Open files of a server besides connections and [`FILES_PER_THREAD`].
const OTHER_FILES: u64 = 32;
/// Open files of each thread that serves connections.
const FILES_PER_THREAD: u64 = 3;

/// Threads of an offline command: sled's, the log's, and one more reader.
pub const TOOL_THREADS: usize = 12;

/// What the system does not provide.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// Threads.
    #[error(
        "this needs {needed} threads, and the system grants {granted}: {source}; raise the limit of processes (ulimit -u, \
         TasksMax, pids.max) or of memory (ulimit -v), or, of a server, set serving_threads (KEYWARD_SERVING_THREADS) to fewer"
    )]
    Threads {
        /// How many are needed.
        needed: usize,
        /// How many could be started.
        granted: usize,
        /// The system's error.
        source: io::Error,
    },
    /// Open files.
    #[error("a server needs {needed} open files, and the limit is {granted}; raise it (ulimit -n, LimitNOFILE)")]
    Files {
        /// How many are needed without any connection.
        needed: u64,
        /// The limit.
        granted: u64,
    },
    /// A clock that shows a time after 1970.
    #[error("the system's clock shows a time before 1970: set it")]
    Clock,
}

/// The number of threads of a server at its start, if so many serve connections.
#[must_use]
pub fn server_threads(serving: usize) -> usize {
    serving + available_parallelism().map_or(1, NonZero::get) + OTHER_THREADS
}

/// Checks that so many threads can be started, by starting them all for a moment. Later a failure could not
/// be reported everywhere.
///
/// # Errors
/// [`SystemError::Threads`].
pub fn check_threads(needed: usize) -> Result<(), SystemError> {
    let end = RwLock::new(());
    thread::scope(|scope| {
        let _held = end.write();
        (0..needed).try_for_each(|granted| {
            let started = thread::Builder::new().spawn_scoped(scope, || drop(end.read()));
            started.map(drop).map_err(|source| SystemError::Threads { needed, granted, source })
        })
    })
}

/// Checks that the limit of open files suffices for a server. Later a failure could not be reported
/// everywhere.
///
/// # Errors
/// [`SystemError::Files`].
pub fn check_files(serving: usize) -> Result<(), SystemError> {
    let needed = OTHER_FILES + FILES_PER_THREAD * (serving as u64 + 1);
    match getrlimit(Resource::Nofile).current {
        Some(granted) if granted < needed => Err(SystemError::Files { needed, granted }),
        _ => Ok(()),
    }
}

/// Checks that the clock shows a time that sled accepts.
///
/// # Errors
/// [`SystemError::Clock`].
#[expect(clippy::disallowed_methods, reason = "sled asks this clock, whatever all else takes as a parameter")]
pub fn check_clock() -> Result<(), SystemError> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(drop).map_err(|_| SystemError::Clock)
}

/// Raises the limit of open files to the maximum, and forbids core dumps, which would hold secrets. A failure
/// is logged.
pub fn set_limits() {
    let files = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    // A limit of 0 is for files: a dump to a program is made all the same (core(5)). At 1 the kernel makes
    // none at all (do_coredump in fs/coredump.c). A lower limit cannot be raised.
    let most = getrlimit(Resource::Core).maximum.unwrap_or(1).min(1);
    let dumps = setrlimit(Resource::Core, Rlimit { current: Some(most), maximum: Some(most) });
    for (limit, refused) in [("open files", raised.err()), ("core dumps", dumps.err())] {
        if let Some(error) = refused {
            tracing::warn!(limit, %error, "cannot set a limit of the process");
        }
    }
}

/// Keys from which huge pages are allowed. The processor remembers where some thousand small pages are, and
/// the index of fewer keys has hardly more; with 100,000 keys huge pages were measured to gain nothing.
const HUGE_PAGES_FROM_KEYS: usize = 250_000;

/// Whether the kernel may back memory by huge pages (2 MiB) where the allocator asks for them, which is
/// everywhere. Whatever is used of such a page, all of it is resident: of a small server that is as much
/// again as it needs.
#[derive(Debug, Default)]
pub struct HugePages {
    allowed: AtomicBool,
}

impl HugePages {
    /// Forbids them to this process. A failure costs memory, and is logged.
    pub fn forbid() {
        set_huge_pages(false);
    }

    /// Allows them once there are so many keys that verdicts may be quicker with them.
    pub fn allow_for(&self, keys: usize) {
        if keys >= HUGE_PAGES_FROM_KEYS && !self.allowed.swap(true, Ordering::Relaxed) {
            set_huge_pages(true);
        }
    }
}

fn set_huge_pages(allowed: bool) {
    if let Err(error) = disable_transparent_huge_pages(!allowed) {
        tracing::warn!(allowed, %error, "cannot say whether memory may be in huge pages");
    }
}
