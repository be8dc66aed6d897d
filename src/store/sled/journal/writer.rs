//! Appending to the journal.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::frame::{SEGMENT_HEADER_BYTES, segment_header};
use super::scan::{End, segment_path};
use super::{JournalError, Position};
use crate::files::{private, sync_parent};

const ZEROS_BYTES: usize = 64 * 1024;

/// The one writer of the journal.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    segment: Segment,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    offset: u64,
    bytes: u64,
}

impl Writer {
    /// Goes on where a scan ended. What a crash tore is zeroed first, so that it can never be mistaken for a frame.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn resume(dir: &Path, segment_bytes: u64, end: &End) -> Result<Self, JournalError> {
        let segment = match &end.segment {
            Some(last) => Segment::resume(last.number, &last.path, last.offset, last.torn)
                .map_err(|e| JournalError::io(&last.path, e))?,
            None => Segment::create(dir, 1, segment_bytes, 0, &end.position)?,
        };
        Ok(Self { dir: dir.to_owned(), segment_bytes, segment })
    }

    /// Appends a frame and makes it durable. `before` is the position that the frame follows.
    ///
    /// # Errors
    /// When the disk fails. It is then unknown what the disk holds: the process must end, and never try again.
    pub fn append(&mut self, frame: &[u8], before: &Position) -> Result<(), JournalError> {
        if self.segment.offset + frame.len() as u64 > self.segment.bytes {
            self.segment =
                Segment::create(&self.dir, self.segment.number + 1, self.segment_bytes, frame.len() as u64, before)?;
        }
        let segment = &mut self.segment;
        let written = segment.file.write_all_at(frame, segment.offset).and_then(|()| segment.file.sync_data());
        written.map_err(|e| JournalError::io(&segment.path, e))?;
        segment.offset += frame.len() as u64;
        Ok(())
    }
}

impl Segment {
    fn resume(number: u64, path: &Path, offset: u64, torn: u64) -> io::Result<Self> {
        let file = private().read(true).write(true).open(path)?;
        if torn > 0 {
            let zeros = [0; ZEROS_BYTES];
            let mut at = offset;
            while at < offset + torn {
                let some = (offset + torn - at).min(ZEROS_BYTES as u64);
                file.write_all_at(&zeros[..some as usize], at)?; // at most ZEROS_BYTES
                at += some;
            }
            file.sync_data()?;
        }
        let bytes = file.metadata()?.len();
        Ok(Self { number, path: path.to_owned(), file, offset, bytes })
    }

    /// Makes a segment of zeros under another name, and gives it its own when it is durable. Written zeros, not merely
    /// reserved ones: with those, each sync would have to commit the file system's note that they are now written.
    fn create(dir: &Path, number: u64, bytes: u64, room: u64, after: &Position) -> Result<Self, JournalError> {
        let path = segment_path(dir, number);
        let bytes = bytes.max(SEGMENT_HEADER_BYTES as u64 + room);
        let create = || -> io::Result<File> {
            let temporary = path.with_added_extension("new");
            let mut file = private().read(true).write(true).create(true).truncate(true).open(&temporary)?;
            file.write_all(&segment_header(after))?;
            let mut left = bytes - SEGMENT_HEADER_BYTES as u64;
            while left > 0 {
                let some = left.min(ZEROS_BYTES as u64);
                file.write_all(&[0; ZEROS_BYTES][..some as usize])?; // at most ZEROS_BYTES
                left -= some;
            }
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            sync_parent(&path)?;
            Ok(file)
        };
        let file = create().map_err(|e| JournalError::io(&path, e))?;
        Ok(Self { number, path, file, offset: SEGMENT_HEADER_BYTES as u64, bytes })
    }
}
