//! The watermark: the highest acknowledged revision and its chain hash, in a file of its own.
//!
//! The journal alone cannot tell a last frame that was damaged after its acknowledgement from one that a
//! crash tore. The watermark can. It is written after each group, before the group is acknowledged, and
//! synced only now and then: after a power cut it may lag behind the journal, but is never ahead of it.
//!
//! 96 bytes, little-endian: `KWWM`, version u32, revision u64, chain 32 bytes, log id 16 bytes, the first 16
//! bytes of the keyed blake3 of all before it, zeros. Version 1 has 64 bytes: instead of the log id and the
//! seal a CRC-32C u32, and zeros. It is read, and not written any more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;
use keyward_core::record::LogId;

use super::scan::End;
use super::segment::SealKey;
use super::{CRC32C, Chain, Position};
use crate::bytes_codec::Cursor;
use crate::util::files::{private_options, sync_parent, with_path, write_durably};

const BYTES: usize = 96;
const BYTES_V1: usize = 64;
const MAGIC: &[u8; 4] = b"KWWM";
const VERSION: u32 = 2;
/// What the seal covers.
const SEALED: usize = 64;
const SEAL_BYTES: usize = 16;
/// What the checksum of version 1 covers.
const CHECKED_V1: usize = 48;

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) enum Acknowledged {
    /// Nothing: it is missing or damaged, or was not written with this pepper file.
    Nothing,
    /// A position, in version 1: anyone who can write the file can have written it.
    Unsealed(Position),
    /// A position of a log.
    Sealed(Position, LogId),
}

impl Acknowledged {
    /// Reads the file.
    pub(in crate::store::local) fn read(path: &Path, seals: &SealKey) -> io::Result<Self> {
        match File::open(path) {
            Ok(file) => read_from(&file, seals).map_err(with_path(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Nothing),
            Err(error) => Err(with_path(path)(error)),
        }
    }

    /// The position, whether it counts or not.
    pub(in crate::store::local) fn claimed(&self) -> Option<Position> {
        match *self {
            Self::Nothing => None,
            Self::Unsealed(position) | Self::Sealed(position, _) => Some(position),
        }
    }

    /// The position, if it counts beside a journal. Once that has a segment of version 2, only a sealed one
    /// of its log does: otherwise anyone who can write the file could invent a lower one.
    pub(in crate::store::local) fn beside(&self, end: &End) -> Option<Position> {
        self.claimed().filter(|_| self.fault(end).is_none())
    }

    /// Why it does not count beside a journal.
    pub(in crate::store::local) fn fault(&self, end: &End) -> Option<WatermarkFault> {
        match (self, end.log) {
            (Self::Nothing, _) => Some(WatermarkFault::Nothing),
            (Self::Unsealed(_), Some(_)) => Some(WatermarkFault::Unsealed),
            (Self::Sealed(_, log), Some(of)) if *log != of => Some(WatermarkFault::OtherLog),
            (Self::Unsealed(_) | Self::Sealed(..), _) => None,
        }
    }

    /// The log, if the file names one.
    pub(in crate::store::local) fn log(&self) -> Option<LogId> {
        match *self {
            Self::Sealed(_, log) => Some(log),
            Self::Nothing | Self::Unsealed(_) => None,
        }
    }
}

/// Why a watermark does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatermarkFault {
    /// It says nothing.
    #[error("is missing or damaged, or was not written with this pepper file")]
    Nothing,
    /// It is of version 1, beside a journal of version 2.
    #[error("has no seal, as those of older programs: anyone can have written it")]
    Unsealed,
    /// It is of another log.
    #[error("is of another log")]
    OtherLog,
}

/// The file of the watermark.
#[derive(Debug)]
pub(in crate::store::local) struct Watermark {
    file: File,
    path: PathBuf,
    log: LogId,
    seals: SealKey,
}

impl Watermark {
    /// Writes the position of a log, durably. Whatever interrupts it, the file says this or what it said
    /// before.
    pub(in crate::store::local) fn begin(
        path: &Path,
        position: &Position,
        log: LogId,
        seals: SealKey,
    ) -> io::Result<Self> {
        // In place, a power cut could leave version 2 in a file as short as version 1.
        if matches!(Acknowledged::read(path, &seals)?, Acknowledged::Unsealed(_)) {
            write_durably(path, &encode(position, log, &seals)).map_err(with_path(path))?;
        }
        let mut options = private_options();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(with_path(path))?;
        let watermark = Self { file, path: path.to_owned(), log, seals };
        watermark.note(position)?;
        watermark.sync()?;
        Ok(watermark)
    }

    /// Writes a position. It survives the end of the process, and a power cut once [`Watermark::sync`] has
    /// run.
    pub(in crate::store::local) fn note(&self, position: &Position) -> io::Result<()> {
        self.file.write_all_at(&encode(position, self.log, &self.seals), 0).map_err(with_path(&self.path))
    }

    /// Goes on with the line of another log.
    pub(in crate::store::local) fn set_log(&mut self, log: LogId) {
        self.log = log;
    }

    /// Makes the last position and the file's name durable.
    pub(in crate::store::local) fn sync(&self) -> io::Result<()> {
        self.file.sync_all().and_then(|()| sync_parent(&self.path)).map_err(with_path(&self.path))
    }
}

fn read_from(file: &File, seals: &SealKey) -> io::Result<Acknowledged> {
    let (mut bytes, mut read) = ([0; BYTES], 0);
    while read < BYTES {
        match file.read_at(&mut bytes[read..], read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(decode(&bytes[..read], seals))
}

pub(in crate::store::local) fn encode(position: &Position, log: LogId, seals: &SealKey) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.revision.0.to_le_bytes());
    bytes[16..48].copy_from_slice(&position.chain.0);
    bytes[48..SEALED].copy_from_slice(&log.0);
    let seal = seal_of(&bytes[..SEALED], seals);
    bytes[SEALED..SEALED + SEAL_BYTES].copy_from_slice(&seal);
    bytes
}

fn seal_of(bytes: &[u8], seals: &SealKey) -> [u8; SEAL_BYTES] {
    let seal = *seals.seal(bytes).as_bytes();
    std::array::from_fn(|at| seal[at])
}

pub(in crate::store::local) fn decode(bytes: &[u8], seals: &SealKey) -> Acknowledged {
    try_decode(bytes, seals).unwrap_or(Acknowledged::Nothing)
}

fn try_decode(bytes: &[u8], seals: &SealKey) -> Option<Acknowledged> {
    let mut rest = Cursor(bytes);
    let is_ours = rest.array() == Some(*MAGIC);
    let version = rest.u32()?;
    let position = Position { revision: Revision(rest.u64()?), chain: Chain(rest.array()?) };
    match version {
        1 if is_ours && bytes.len() >= BYTES_V1 => {
            let is_whole = rest.u32() == Some(CRC32C.checksum(&bytes[..CHECKED_V1]));
            is_whole.then_some(Acknowledged::Unsealed(position))
        }
        VERSION if is_ours && bytes.len() == BYTES => {
            let log = LogId(rest.array()?);
            let is_sealed = rest.array() == Some(seal_of(&bytes[..SEALED], seals));
            is_sealed.then_some(Acknowledged::Sealed(position, log))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::super::ChainKey;
    use super::*;

    const LOG: LogId = LogId([5; 16]);

    fn key(byte: u8) -> SealKey {
        SealKey::of(&ChainKey(Zeroizing::new([byte; 32])))
    }

    fn at(revision: u64) -> Position {
        Position { revision: Revision(revision), chain: Chain([9; 32]) }
    }

    /// As programs before wrote it.
    fn first_version(position: &Position) -> [u8; BYTES_V1] {
        let mut bytes = [0; BYTES_V1];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = 1;
        bytes[8..16].copy_from_slice(&position.revision.0.to_le_bytes());
        bytes[16..CHECKED_V1].copy_from_slice(&position.chain.0);
        let crc = CRC32C.checksum(&bytes[..CHECKED_V1]).to_le_bytes();
        bytes[CHECKED_V1..CHECKED_V1 + 4].copy_from_slice(&crc);
        bytes
    }

    #[test]
    fn a_damaged_watermark_says_nothing() {
        let whole = encode(&at(7), LOG, &key(1));
        assert_eq!(decode(&whole, &key(1)), Acknowledged::Sealed(at(7), LOG));
        assert_eq!(decode(&whole, &key(2)), Acknowledged::Nothing, "another pepper file");
        for bit in 0..(SEALED + SEAL_BYTES) * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, &key(1)), Acknowledged::Nothing, "bit {bit}");
        }
        let first = first_version(&at(7));
        assert_eq!(decode(&first, &key(1)), Acknowledged::Unsealed(at(7)));
        for bit in 0..(CHECKED_V1 + 4) * 8 {
            let mut flipped = first;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped, &key(1)), Acknowledged::Nothing, "bit {bit}");
        }
        for bytes in [&whole[..BYTES - 1], &first[..BYTES_V1 - 1], &[]] {
            assert_eq!(decode(bytes, &key(1)), Acknowledged::Nothing, "{} bytes", bytes.len());
        }
    }

    #[test]
    fn beside_a_segment_of_version_2_only_a_sealed_watermark_of_its_log_counts() {
        let (sealed, other) = (Acknowledged::Sealed(at(7), LOG), Acknowledged::Sealed(at(7), LogId([6; 16])));
        let end = |log| End { log, ..End::at(at(9)) };
        for (acknowledged, log, fault) in [
            (Acknowledged::Unsealed(at(7)), None, None),
            (sealed, None, None),
            (sealed, Some(LOG), None),
            (Acknowledged::Unsealed(at(7)), Some(LOG), Some(WatermarkFault::Unsealed)),
            (other, Some(LOG), Some(WatermarkFault::OtherLog)),
            (Acknowledged::Nothing, None, Some(WatermarkFault::Nothing)),
            (Acknowledged::Nothing, Some(LOG), Some(WatermarkFault::Nothing)),
        ] {
            assert_eq!(acknowledged.fault(&end(log)), fault, "{acknowledged:?} beside {log:?}");
            let counts = fault.is_none().then_some(at(7));
            assert_eq!(acknowledged.beside(&end(log)), counts, "{acknowledged:?} beside {log:?}");
        }
    }

    #[test]
    fn a_watermark_of_version_1_becomes_one_of_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        assert_eq!(Acknowledged::read(&path, &key(1)).unwrap(), Acknowledged::Nothing);
        std::fs::write(&path, first_version(&at(7))).unwrap();
        assert_eq!(Acknowledged::read(&path, &key(1)).unwrap(), Acknowledged::Unsealed(at(7)));
        let watermark = Watermark::begin(&path, &at(8), LOG, key(1)).unwrap();
        assert_eq!(Acknowledged::read(&path, &key(1)).unwrap(), Acknowledged::Sealed(at(8), LOG));
        watermark.note(&at(9)).unwrap();
        assert_eq!(Acknowledged::read(&path, &key(1)).unwrap(), Acknowledged::Sealed(at(9), LOG));
        drop(Watermark::begin(&path, &at(10), LOG, key(1)).unwrap());
        assert_eq!(Acknowledged::read(&path, &key(1)).unwrap(), Acknowledged::Sealed(at(10), LOG));
    }
}
