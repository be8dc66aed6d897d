//! The journal (write-ahead log): append-only segments of frames. A frame is a group of changes, written and
//! synced at once.
//!
//! A frame is written only when the frame before it is durable, so the end of the log can be judged: a
//! damaged frame followed by nothing intact was never acknowledged, and is cut off; a damaged frame before an
//! intact one was, and the start is refused until an operator has looked. The [`super::watermark`] covers the
//! last frame.
//!
//! [`frame`] has the bytes, [`scan`](mod@scan) reads, [`writer`] appends. docs/FORMAT.md describes all of it.

pub mod frame;
pub mod open;
pub mod scan;
pub mod watermark;
pub mod writer;

use std::path::PathBuf;

use crc::{CRC_32_ISCSI, Crc, Table};
use keyward_core::event::Revision;
use keyward_core::head::Head;
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
    #[error("{path} has journal version {version}, and this program knows only {}", frame::VERSION)]
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
