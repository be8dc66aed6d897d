//! Why a data directory is not opened.

use std::io;
use std::path::PathBuf;

use keyward_core::entropy::EntropyError;
use keyward_core::event::Revision;
use keyward_core::head::Head;

use super::journal::JournalError;
use super::journal::watermark::WatermarkFault;
use super::table::TableError;
use crate::store::record::DecodeError;
use crate::util::files::resource_limit;

/// How a journal fails to contain a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// It ends before the head.
    #[error("it ends at revision {0}, so acknowledged changes are missing, or the whole directory is an older copy")]
    TooShort(Revision),
    /// It has other changes at that revision.
    #[error("it holds other changes up to that revision, so it was replaced, or goes on from a restore or a salvage")]
    Differs,
    /// It begins after the head.
    #[error(
        "it begins after revision {0} and no longer reaches back to it, so this cannot be told; give a newer head, of which you \
         know that it is of this log"
    )]
    OutOfReach(Revision),
}

/// Why a data directory is not opened. Nothing has been lost by trying.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses it.
    #[error("the data directory {dir} is in use by {holder}; stop that one, or choose another --data-dir")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The process, as `process 7`, if it is known.
        holder: String,
    },
    /// Its layout is not known.
    #[error("{path} says '{found}', and this program knows none past 'keyward-data 2'; use the program that wrote it")]
    UnknownFormat {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// It has data but no layout.
    #[error(
        "{path} is missing, though the directory has data: a restore or a salvage was interrupted there. If there is a directory \
         restore.new, restore again; if there is a directory lost.*, move what is in it back, and only then make {path} with the \
         line 'keyward-data 2'; otherwise empty the directory and restore again"
    )]
    NoFormat {
        /// The missing file.
        path: PathBuf,
    },
    /// The journal is not intact.
    #[error("{heading}: {0}", heading = .0.heading())]
    Journal(#[from] JournalError),
    /// Acknowledged changes are missing.
    #[error(
        "changes up to revision {acknowledged} were acknowledged, but the journal ends at {found}: put the missing part of \
         {journal} back from a backup"
    )]
    Missing {
        /// The highest acknowledged revision.
        acknowledged: Revision,
        /// The last revision in the journal.
        found: Revision,
        /// The journal.
        journal: PathBuf,
    },
    /// The watermark, the only record of how far the journal went, says nothing that counts.
    #[error(
        "the watermark {path} {what}, and the journal has changes up to revision {found}: nothing says whether \
         these are all that were acknowledged. Put it back; or, if you know that they are, from a revision or a \
         head that was kept elsewhere (--expect-head), start once with --accept-watermark-loss"
    )]
    NoWatermark {
        /// The watermark.
        path: PathBuf,
        /// Why it does not count.
        what: WatermarkFault,
        /// The last revision in the journal.
        found: Revision,
    },
    /// The journal does not contain the expected head.
    #[error("the journal {journal} is not the one of the head {head}: {what}")]
    OtherHead {
        /// The expected head.
        head: Head,
        /// The journal.
        journal: PathBuf,
        /// How the journal differs.
        what: HeadFault,
    },
    /// The journal is a different one.
    #[error(
        "the journal at revision {revision} is not the one that was acknowledged: {journal} was replaced or altered"
    )]
    Foreign {
        /// Where they differ.
        revision: Revision,
        /// The journal.
        journal: PathBuf,
    },
    /// The journal's beginning has been deleted, and no snapshot covers it.
    #[error(
        "the journal begins after revision {start}, and {snapshots} has no snapshot of what came before: put the missing \
         segment or snapshot back, or restore a backup into an empty directory"
    )]
    NoBeginning {
        /// After which revision the journal begins.
        start: Revision,
        /// Where snapshots are.
        snapshots: PathBuf,
    },
    /// The table must be rebuilt, and there is nothing to rebuild it from.
    #[error(
        "the table must be built anew, the journal alone does not go back far enough, and the snapshot {path} is of no use: \
         {why}; put it back, or restore a backup into an empty directory"
    )]
    NoSoundSnapshot {
        /// The last snapshot that was tried.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It has no data.
    #[error("{dir} has no data of keyward; name the directory with --data-dir")]
    NoData {
        /// The directory.
        dir: PathBuf,
    },
    /// Its path is not a directory.
    #[error("{dir} is not a directory")]
    NotADirectory {
        /// Where.
        dir: PathBuf,
    },
    /// The disk of a new directory has too little space.
    #[error(
        "{dir} has no data yet, and its disk has {free} bytes free, of at least {needed} that a first start needs: make room, or \
         choose another --data-dir"
    )]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        needed: u64,
    },
    /// The table cannot be brought up to the journal without the space that is kept for stopping keys.
    #[error("the disk of {dir} has {free} bytes free, and the table is not complete: make room")]
    NoRoomForTable {
        /// The directory.
        dir: PathBuf,
        /// Free bytes.
        free: u64,
    },
    /// The start was given up while waiting for disk space.
    #[error("the disk of {dir} is full, and the start was given up before there was room")]
    GaveUp {
        /// The directory.
        dir: PathBuf,
    },
    /// A rebuild was asked for, but there is nothing to rebuild from; the existing table is kept.
    #[error(
        "the snapshot {path} is of no use ({why}), and the journal alone does not go back far enough to build a table from: the \
         one that is there is sound and was kept; start keyward, and it makes a new snapshot"
    )]
    NothingToBuildFrom {
        /// The last snapshot that was tried.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory to restore into is not empty.
    #[error("{dir} is not empty: {found} is there; restore into an empty directory")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// What is there.
        found: PathBuf,
    },
    /// No segment was written with this chain key.
    #[error(
        "nothing in {journal}, and no snapshot beside it, was written with this pepper file; put the right one back first"
    )]
    ForeignJournal {
        /// The journal.
        journal: PathBuf,
    },
    /// A change in the journal cannot be replayed.
    #[error("revision {revision} of the journal holds a record that does not decode: {source}")]
    Redo {
        /// The change.
        revision: Revision,
        /// What is wrong.
        source: DecodeError,
    },
    /// The table cannot be opened or built: the disk failed or is full.
    #[error(
        "the table (the directory 'table' in the data directory) cannot be opened or built: {0}{advice}",
        advice = advice(.0)
    )]
    Table(TableError),
    /// No line can follow one so high.
    #[error("the log has revision {revision}, and no line of revisions can begin past it")]
    NoLineLeft {
        /// The highest revision.
        revision: Revision,
    },
    /// There is no randomness for the id of a new log.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The disk failed, or the system refused a resource.
    #[error("{what}: {0}", what = resource_limit(.0).unwrap_or("the disk failed"))]
    Io(#[from] io::Error),
}

/// Advice for a table that cannot be opened.
fn advice(error: &TableError) -> &'static str {
    match error {
        TableError::Disk(error) if resource_limit(error).is_some() => "",
        _ => "; look after the disk, and make room if it is full",
    }
}

impl OpenError {
    /// Whether the disk was full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let cause = match self {
            Self::NoRoomForTable { .. } => return true,
            Self::Io(error) | Self::Table(TableError::Disk(error)) => error,
            Self::Journal(JournalError::Io { source, .. }) => source,
            _ => return false,
        };
        matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Whether data is missing. Otherwise the cause is outside the data.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::Journal(JournalError::Damaged { .. } | JournalError::Gap { .. })
            | Self::Missing { .. }
            | Self::Foreign { .. }
            | Self::NoBeginning { .. }
            | Self::NoSoundSnapshot { .. }
            | Self::Redo { .. } => true,
            Self::Journal(
                JournalError::Io { .. } | JournalError::TooLong { .. } | JournalError::UnknownVersion { .. },
            )
            | Self::InUse { .. }
            | Self::UnknownFormat { .. }
            | Self::NoFormat { .. }
            | Self::NoData { .. }
            | Self::NotEmpty { .. }
            | Self::NotADirectory { .. }
            | Self::DiskFull { .. }
            | Self::NoRoomForTable { .. }
            | Self::GaveUp { .. }
            | Self::ForeignJournal { .. }
            | Self::NothingToBuildFrom { .. }
            | Self::NoWatermark { .. }
            | Self::OtherHead { .. }
            | Self::Table(_)
            | Self::NoLineLeft { .. }
            | Self::Entropy(_)
            | Self::Io(_) => false,
        }
    }
}
