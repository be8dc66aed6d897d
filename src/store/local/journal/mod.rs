//! The journal: the write-ahead log that carries Keyward's durability. An acknowledged change is in it, and
//! everything else on the disk can be built from it, or from a snapshot of it.
//!
//! # Invariants, and what each protects against
//!
//! 1. **One frame at a time.** A group of changes is one frame, and a frame is written only when the frame
//!    before it is durable. So the end of the log can be judged: a damaged frame with an intact one after it
//!    was acknowledged, and refuses the start; one with nothing after it was not, and is cut off, unless the
//!    watermark knows better.
//! 2. **A keyed chain.** The hash after entry n is the keyed blake3 of the hash before it and the entry's
//!    bytes. Each frame ends with it, and each segment begins with it. It protects against an entry that is
//!    changed, removed, inserted or taken from another log by anyone without the pepper file. It does not
//!    protect against the loss of the end: invariant 8 does, and a head that is kept elsewhere.
//! 3. **A CRC-32C** over each segment header, frame and watermark. It protects against bit rot and torn
//!    writes, and needs no key: so a search past damage can tell a frame from other bytes. A segment's header
//!    has a keyed seal too, with the id of its log. It protects against a segment of another log, and against
//!    a beginning that was invented.
//! 4. **Revisions without gaps**, in entries, frames and segment headers; file numbers too. They protect
//!    against a frame or a file that is missing, doubled or out of place. Only a line may begin further on,
//!    in a segment whose header says so and whose chain is derived from the one before.
//! 5. **Zeros after the last frame.** A segment is made of zeros that were written, not only reserved, and
//!    frames begin at multiples of 8. So a byte that is not zero after the last frame is a torn frame or
//!    damage, never an older frame; and fdatasync has no metadata to commit.
//! 6. **A clean resumption.** Before the first append after a start, a torn end is overwritten with zeros,
//!    and the last frame is written again and synced. This protects against remains that look like a frame
//!    later, and against a frame that was read from the kernel's memory and is not on the disk.
//! 7. **A segment is whole before it has its name.** It is written and synced under a temporary name and
//!    renamed; the directory is synced before a frame goes into it. This protects against a file that a power
//!    cut leaves incomplete or without a name.
//! 8. **The watermark** has the last acknowledged position. It is written after the sync of a frame and
//!    before its answer, so it is never ahead of the journal. It protects against an acknowledged last frame
//!    that rots or is truncated, which looks like a torn one. It is synced at a start, before segments are
//!    deleted, and at a stop; after a power cut it may lag behind. It is sealed, with the id of the log:
//!    beside segments of version 2 nobody without the pepper file can make up a lower one, though an older
//!    one can be put back, and the segments be given headers of version 1.
//! 9. **No second try.** If a write or a sync fails, the process ends. The kernel may call pages clean that
//!    never reached the disk, so a second sync proves nothing.
//! 10. **A bound on frames.** None beyond [`frame::FRAME_BYTES_MAX`] is written, and no longer one is read;
//!     in a segment of version 1 no payload beyond [`frame::PAYLOAD_BYTES_READ_MAX`]. It protects against a
//!     frame that cannot be read back, and against a length that is damaged.
//!
//! `tests/crash/run cuts`, `flips` and `faults` try to break them; `controls` takes two protections out, and
//! sees the loss.
//!
//! # Files
//!
//! `journal/000000000001.kwj` and on: segments, numbered in 12 digits without gaps. The oldest are deleted
//! when snapshots cover them, so the first may have a higher number. A name that ends in `.new` is what a
//! crash left of a segment that was being made. `watermark` stands beside the directory.
//!
//! ```text
//! segment: header, 128 bytes: version, first revision, chain before it, log id, seal │ frame │ ... │ zeros
//! frame:   first revision, entries, CRC-32C │ entries │ chain after the last one │ zeros up to 8
//! ```
//!
//! docs/FORMAT.md has the bytes, and [`segment`] and [`frame`] read and write them. A segment of version 1
//! has a shorter header, without log id and seal. Such segments are read for ever, and never written to: the
//! program goes on in a new segment behind them.
//!
//! # Opening it, and appending
//!
//! 1. [`scan::verify`], or [`scan::verify_and_visit`] to get the entries too, reads every segment and checks
//!    invariants 2 to 5. It returns the [`scan::End`], and which of some wanted positions the log contains:
//!    those of the watermark, a checkpoint, an expected head. Nothing has been written yet.
//! 2. The caller compares these (`recovery::recover`): a log that ends before one of them has lost changes.
//! 3. [`writer::CleanEnd::make`] makes the end clean (6); [`writer::CleanEnd::into_writer`] goes on there.
//! 4. For each group: [`frame::FrameBuilder`], [`writer::Writer::ensure_space`], [`writer::Writer::append`],
//!    then the watermark, then the answers (`committer`).
//!
//! [`scan::scan_after`] and [`scan::scan_between`] read a part, and [`requests`] what retries need. Only a
//! salvage reads past damage, and not with [`scan`](mod@scan).
//!
//! # What may go wrong
//!
//! | error | meaning | what follows |
//! |---|---|---|
//! | [`JournalError::Io`] | the disk failed, or a file cannot be opened | a start is refused, a running process ends |
//! | [`JournalError::Damaged`] | an acknowledged change cannot be read, does not follow, or has another chain: rot, tampering, or another pepper file | a start is refused; put the file back, or salvage |
//! | [`JournalError::Gap`] | a segment between others is missing | the same |
//! | [`JournalError::UnknownVersion`] | a later program wrote it | a start is refused; use that program |
//! | [`JournalError::TooLong`] | a group exceeds a frame; nothing is written | the committer refuses such a change before |
//! | [`writer::SpaceError::DiskFull`] | no new segment can be made; the log is unchanged | the group is refused |
//! | [`writer::SpaceError::Unknown`] | the state of the disk is unknown | the process ends |
//!
//! A torn end is no error: see [`scan::SegmentEnd::torn`]. A log that is intact but too short, or not the
//! expected one, is found in step 2, as an [`OpenError`](super::OpenError): `Missing`, `Foreign`,
//! `NoWatermark`, `OtherHead` or `NoBeginning`.
//!
//! # Who may write
//!
//! Only the process that holds the directory's lock ([`LockedDir`](super::LockedDir)). In a server the
//! committer's thread alone has the [`writer::Writer`] and notes the watermark. The maintenance thread
//! deletes old segments, the oldest first and one by one, so that no crash leaves a gap. A start's recovery,
//! a restore, a salvage and `keyward admin-key` write under the same lock. Nothing else does.

pub mod frame;
pub mod open;
pub mod requests;
pub mod scan;
pub mod segment;
pub mod watermark;
pub mod writer;

use std::path::PathBuf;

use crc::{CRC_32_ISCSI, Crc, Table};
use keyward_core::event::Revision;
use keyward_core::head::Head;
use keyward_core::record::LogId;
use zeroize::Zeroizing;

/// The checksum of everything in the journal: CRC-32C (Castagnoli).
pub(super) const CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The hash of the log up to a revision. Each entry's hash is the keyed blake3 of the previous hash and the
/// entry's bytes, so that no entry can be changed, dropped or inserted unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain(pub [u8; 32]);

impl Chain {
    /// The hash of an empty log.
    pub const EMPTY: Self = Self([0; 32]);

    /// The hash after one more entry.
    #[must_use]
    pub fn after(&self, key: &ChainKey, entry: &[u8]) -> Self {
        Self(*blake3::Hasher::new_keyed(&key.0).update(&self.0).update(entry).finalize().as_bytes())
    }

    /// The hash before the first entry of a line, which has this base and goes on behind a log of this hash.
    #[must_use]
    pub fn of_line(&self, key: &ChainKey, log: LogId, base: Revision) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        // No entry begins like that: in its message it would be a group that ends before it has begun.
        hasher.update(&self.0).update(b"line").update(&log.0).update(&base.0.to_le_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

/// The key of the chain. Without it, nobody can make a log that was tampered with look intact.
pub struct ChainKey(pub Zeroizing<[u8; 32]>);

/// A position in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The revision of the last entry.
    pub revision: Revision,
    /// The hash of the log up to it.
    pub chain: Chain,
}

impl Position {
    /// The position before the first entry.
    pub const START: Self = Self { revision: Revision(0), chain: Chain::EMPTY };
}

impl From<Head> for Position {
    fn from(head: Head) -> Self {
        Self { revision: head.revision, chain: Chain(head.chain) }
    }
}

impl From<Position> for Head {
    fn from(position: Position) -> Self {
        Self { revision: position.revision, chain: position.chain.0 }
    }
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// Acknowledged changes are damaged.
    #[error("{path}, byte {offset}: {what}. Changes after revision {} were acknowledged and cannot be read: put the file back from a backup", after.0)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        what: &'static str,
        /// The last revision before the damage.
        after: Revision,
    },
    /// A segment is missing from the sequence.
    #[error("{path} is missing: the changes after revision {} are in it: put it back from a backup", after.0)]
    Gap {
        /// The file that should be there.
        path: PathBuf,
        /// The last revision before the gap.
        after: Revision,
    },
    /// A frame is too long to be read back, and is not written.
    #[error("changes of {bytes} bytes do not fit into one frame of the journal")]
    TooLong {
        /// Their size.
        bytes: usize,
    },
    /// A segment was written by a later program.
    #[error("{path} has journal version {version}, and this program knows none past {}", segment::VERSION)]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl JournalError {
    /// A summary, for the operator who starts a server.
    #[must_use]
    pub fn heading(&self) -> &'static str {
        match self {
            Self::Io { .. } => "the journal cannot be read or written",
            Self::Damaged { .. } | Self::Gap { .. } => "the journal is not whole",
            Self::TooLong { .. } => "a change is too long for the journal",
            Self::UnknownVersion { .. } => "the journal is of a later program",
        }
    }

    pub(super) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}
