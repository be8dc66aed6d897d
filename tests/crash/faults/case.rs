//! The faults: each file of the data directory, in each call that the server makes on it, at each stage of
//! its life.

use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::rngs::SmallRng;

/// Segments that a path filter covers; no case makes as many.
const SEGMENTS: u32 = 60;
/// Faults of the disk that last, among ten.
const LASTING_OF_TEN: u32 = 3;

/// When the call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// While clients work.
    Running,
    /// In a start on data that is there.
    Start,
    /// In the first start of all.
    FirstStart,
}

/// A file of the data directory, or one that becomes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    DataDir,
    Lock,
    Format,
    Pepper,
    AdminKey,
    Journal,
    Segment,
    NewSegment,
    Watermark,
    Table,
    TableConf,
    TableBlobs,
    TableDb,
    /// The snapshot that sled finds.
    TableSnapshot,
    /// The snapshot that sled makes at a start.
    TableNewSnapshot,
    /// What the index held, for a quick start.
    Checkpoints,
    Checkpoint,
    /// Whatever the maintenance thread touches: snapshots, checkpoints, and the journal's oldest segments.
    Maintenance,
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) stage: Stage,
    pub(crate) target: Target,
    pub(crate) call: &'static str,
    pub(crate) error: &'static str,
    /// Which of a thread's calls fails first.
    pub(crate) nth: u32,
    /// Whether all later ones fail too.
    pub(crate) lasting: bool,
}

use Stage::{FirstStart, Running, Start};
use Target::{
    AdminKey, Checkpoint, Checkpoints, DataDir, Format, Journal, Lock, Maintenance, NewSegment, Pepper, Segment, Table,
    TableBlobs, TableConf, TableDb, TableNewSnapshot, TableSnapshot, Watermark,
};

/// Stage, file, calls, and the highest number of the call that fails: what a server really does, as strace
/// shows it.
const CALLS: &[(Stage, Target, &[&str], u32)] = &[
    (Running, Segment, &["pwrite64", "fdatasync"], 60),
    (Running, NewSegment, &["openat", "write", "fsync", "rename"], 2),
    (Running, Journal, &["fsync"], 3),
    (Running, Journal, &["fstatfs"], 60),
    (Running, Watermark, &["pwrite64"], 60),
    (Running, TableDb, &["pwrite64", "sync_file_range"], 40),
    (Running, TableDb, &["fsync"], 2),
    (Running, Maintenance, &["openat", "write", "fsync", "rename", "unlink"], 2),
    (Start, DataDir, &["openat", "fsync"], 1),
    (Start, Lock, &["openat", "flock", "ftruncate", "pwrite64"], 1),
    (Start, Format, &["openat", "read"], 1),
    (Start, Pepper, &["statx", "openat", "read"], 1),
    (Start, Journal, &["openat", "getdents64", "fsync"], 1),
    (Start, Segment, &["openat", "read"], 3),
    (Start, Segment, &["pread64", "pwrite64", "fsync"], 1),
    (Start, Watermark, &["openat", "pread64", "pwrite64", "fsync"], 1),
    (Start, Table, &["openat", "getdents64"], 1),
    (Start, TableConf, &["openat", "read"], 1),
    (Start, TableBlobs, &["openat"], 1),
    (Start, TableDb, &["openat", "flock", "pwrite64", "sync_file_range"], 1),
    (Start, TableDb, &["fsync"], 1),
    (Start, TableDb, &["pread64"], 5),
    (Start, TableSnapshot, &["openat", "read", "unlink"], 1),
    (Start, TableNewSnapshot, &["openat", "write", "fsync", "rename"], 1),
    (Start, Checkpoints, &["openat", "getdents64"], 1),
    (Start, Checkpoint, &["openat", "statx", "pread64"], 1),
    (FirstStart, DataDir, &["mkdir"], 1),
    (FirstStart, DataDir, &["fsync"], 3),
    (FirstStart, Lock, &["openat"], 1),
    (FirstStart, Format, &["openat", "write", "fsync", "rename"], 1),
    (FirstStart, Pepper, &["openat", "write", "fsync", "rename"], 1),
    (FirstStart, AdminKey, &["openat", "write", "fsync", "rename"], 1),
    (FirstStart, Journal, &["mkdir", "openat", "fsync"], 1),
    (FirstStart, NewSegment, &["openat", "write", "fsync", "rename"], 1),
    (FirstStart, Watermark, &["openat", "pwrite64", "fsync"], 1),
    (FirstStart, Table, &["mkdir"], 1),
    (FirstStart, TableBlobs, &["mkdir"], 1),
    (FirstStart, TableConf, &["openat", "write"], 1),
    (FirstStart, TableDb, &["openat", "pwrite64", "fsync"], 1),
];

/// Calls that no full disk fails.
const ONLY_EIO: [&str; 7] = ["read", "pread64", "statx", "getdents64", "flock", "fstatfs", "unlink"];

/// Every combination once, with chance in the numbers.
pub(crate) fn all(rng: &mut SmallRng) -> Vec<Case> {
    let mut cases = vec![];
    for (stage, target, calls, nth_max) in CALLS {
        for call in *calls {
            for error in ["EIO", "ENOSPC"] {
                if error == "ENOSPC" && ONLY_EIO.contains(call) {
                    continue;
                }
                let (nth, lasting) = (rng.random_range(1..=*nth_max), rng.random_ratio(LASTING_OF_TEN, 10));
                cases.push(Case { stage: *stage, target: *target, call, error, nth, lasting });
            }
        }
    }
    cases
}

impl Case {
    /// What the tracer is told to do to the call.
    pub(crate) fn injection(&self) -> String {
        let from = if self.lasting { "+" } else { "" };
        format!("inject={}:error={}:when={}{from}", self.call, self.error, self.nth)
    }

    /// Whether a message names what failed, and how.
    pub(crate) fn is_told_by(&self, message: &str, data_dir: &Path) -> bool {
        let number = if self.error == "EIO" { 5 } else { 28 };
        // sled tells of errors by their debug form.
        let how = message.contains(&format!("os error {number})")) || message.contains(&format!("code: {number},"));
        how && message.contains(&self.target.named(data_dir))
    }
}

impl Target {
    /// The paths that it may be touched by. None: what one thread touches.
    pub(crate) fn paths(self, data_dir: &Path, new_snapshot: &str) -> Vec<PathBuf> {
        let at = |name: &str| vec![data_dir.join(name)];
        let both = |name: &str| vec![data_dir.join(name), data_dir.join(format!("{name}.new"))];
        let segments = |end: &str| (1..=SEGMENTS).map(|n| data_dir.join(format!("journal/{n:012}.kwj{end}"))).collect();
        match self {
            DataDir => vec![data_dir.to_owned()],
            Lock => at("lock"),
            Format => both("format"),
            Pepper => both("pepper"),
            AdminKey => both("admin.key"),
            Journal => at("journal"),
            Segment => segments(""),
            NewSegment => segments(".new"),
            Watermark => at("watermark"),
            Table => at("table"),
            TableConf => at("table/conf"),
            TableBlobs => at("table/blobs"),
            TableDb => at("table/db"),
            TableSnapshot => table_snapshots(data_dir).iter().map(|name| data_dir.join("table").join(name)).collect(),
            TableNewSnapshot => at(&format!("table/{new_snapshot}.generating")),
            Checkpoints => at("index"),
            Checkpoint => checkpoints(data_dir),
            Maintenance => vec![],
        }
    }

    /// What a message must contain to name it. sled's files need no more than that it is the table.
    fn named(self, data_dir: &Path) -> String {
        match self {
            DataDir => data_dir.display().to_string(),
            Lock => "/lock".to_owned(),
            Format => "/format".to_owned(),
            Pepper => "/pepper".to_owned(),
            AdminKey => "/admin.key".to_owned(),
            Journal | Segment | NewSegment => "/journal".to_owned(),
            Watermark => "/watermark".to_owned(),
            Table | TableConf | TableBlobs | TableDb | TableSnapshot | TableNewSnapshot => "table".to_owned(),
            Checkpoints | Checkpoint => "/index".to_owned(),
            Maintenance => "segment".to_owned(),
        }
    }
}

/// The index checkpoints.
pub(crate) fn checkpoints(data_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data_dir.join("index")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The names of sled's snapshots.
pub(crate) fn table_snapshots(data_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data_dir.join("table")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("snap.")).collect()
}
