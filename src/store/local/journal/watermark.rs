//! The watermark: the highest acknowledged revision and its chain hash, in a file of its own.
//!
//! The journal alone cannot tell a last frame that was damaged after its acknowledgement from one that a
//! crash tore. The watermark can. It is written after each group, before the group is acknowledged, and
//! synced only now and then: after a power cut it may lag behind the journal, but is never ahead of it.
//!
//! 64 bytes, little-endian: `KWWM`, version u32, revision u64, chain 32 bytes, CRC-32C of all before it u32,
//! zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;

use super::{CRC32C, Chain, Position};
use crate::bytes_codec::Cursor;
use crate::util::files::{private_options, sync_parent, with_path};

const BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"KWWM";
const VERSION: u32 = 1;
const CHECKED: usize = 48;

/// The file of the watermark.
#[derive(Debug)]
pub(in crate::store::local) struct Watermark {
    file: File,
    path: PathBuf,
}

impl Watermark {
    /// Opens the file and reads it. `None`: it is new or damaged.
    pub(in crate::store::local) fn open(path: &Path) -> io::Result<(Self, Option<Position>)> {
        let mut options = private_options();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.map_err(with_path(path))?;
        let position = position_in(&file).map_err(with_path(path))?;
        Ok((Self { file, path: path.to_owned() }, position))
    }

    /// Reads the file without creating it. `None`: it is missing or damaged.
    pub(in crate::store::local) fn read(path: &Path) -> io::Result<Option<Position>> {
        match File::open(path) {
            Ok(file) => position_in(&file).map_err(with_path(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(with_path(path)(error)),
        }
    }

    /// Writes a position. It survives the end of the process, and a power cut once [`Watermark::sync`] has
    /// run.
    pub(in crate::store::local) fn note(&self, position: &Position) -> io::Result<()> {
        self.file.write_all_at(&encode(position), 0).map_err(with_path(&self.path))
    }

    /// Makes the last position and the file's name durable.
    pub(in crate::store::local) fn sync(&self) -> io::Result<()> {
        self.file.sync_all().and_then(|()| sync_parent(&self.path)).map_err(with_path(&self.path))
    }
}

fn position_in(file: &File) -> io::Result<Option<Position>> {
    let mut bytes = [0; BYTES];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(position: &Position) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
    bytes[8..16].copy_from_slice(&position.revision.0.to_le_bytes());
    bytes[16..CHECKED].copy_from_slice(&position.chain.0);
    let crc = CRC32C.checksum(&bytes[..CHECKED]).to_le_bytes();
    bytes[CHECKED..CHECKED + 4].copy_from_slice(&crc);
    bytes
}

fn decode(bytes: &[u8; BYTES]) -> Option<Position> {
    let mut rest = Cursor(bytes);
    let is_ours = rest.array() == Some(*MAGIC) && rest.u32() == Some(VERSION);
    let position = Position { revision: Revision(rest.u64()?), chain: Chain(rest.array()?) };
    let is_whole = rest.u32() == Some(CRC32C.checksum(&bytes[..CHECKED]));
    (is_ours && is_whole).then_some(position)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_watermark_says_nothing() {
        let position = Position { revision: Revision(7), chain: Chain([9; 32]) };
        let whole = encode(&position);
        assert_eq!(decode(&whole), Some(position));
        for bit in 0..(CHECKED + 4) * 8 {
            let mut flipped = whole;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
    }
}
