//! Appending to the journal.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::fstatvfs;

use super::frame::{SEGMENT_HEADER_BYTES, segment_header};
use super::scan::{End, SegmentEnd, segment_path};
use super::{JournalError, Position};
use crate::files::{NewFile, private_options};

const ZEROS_BYTES: usize = 64 * 1024;
/// Below this much free space, only changes that take power away are made: the table grows behind the journal.
pub const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Below this much, of those only the ones that stop a key. A key can be narrowed without end, and stopped twice.
const FREE_BYTES_CRITICAL: u64 = 32 * 1024 * 1024;
/// Below this much, none is, and a start writes nothing.
pub const FREE_BYTES_EXHAUSTED: u64 = 16 * 1024 * 1024;
/// The size of a segment that is made when little is free, unless one group needs more.
const SEGMENT_BYTES_LOW_SPACE: u64 = 256 * 1024;

/// The one writer of the journal.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// Kept open, so that making a name durable needs no file that might not be had.
    dir_file: File,
    segment_bytes: u64,
    segment: Segment,
}

/// How much room the disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskSpace {
    /// None.
    Exhausted,
    /// Enough for disabling and revoking.
    Critical,
    /// Enough for changes that take power away.
    Low,
    /// Enough.
    Ok,
}

impl DiskSpace {
    fn of(free_bytes: u64) -> Self {
        match free_bytes {
            FREE_BYTES_MIN.. => Self::Ok,
            FREE_BYTES_CRITICAL.. => Self::Low,
            FREE_BYTES_EXHAUSTED.. => Self::Critical,
            _ => Self::Exhausted,
        }
    }
}

/// What is free on the disk of a file, in bytes.
///
/// # Errors
/// When the system does not say.
pub fn free_bytes(file: &File) -> io::Result<u64> {
    let stats = fstatvfs(file)?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// How to ask for what is free on the disk of a file: [`free_bytes`], save in tests.
pub type FreeBytes = fn(&File) -> io::Result<u64>;

/// Looks at the room on the journal's disk.
#[derive(Debug)]
pub struct DiskSpaceMeter {
    disk: File,
    free_bytes: FreeBytes,
}

impl DiskSpaceMeter {
    /// How many bytes are free now, and how much room that is.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn measure(&self) -> io::Result<(u64, DiskSpace)> {
        (self.free_bytes)(&self.disk).map(|free| (free, DiskSpace::of(free)))
    }
}

/// Why there is no room for a frame.
#[derive(Debug)]
pub enum SpaceError {
    /// The disk is full, or no file is to be had. Nothing of the log is touched, and it may be tried again.
    DiskFull(JournalError),
    /// It is unknown what the disk holds: the process must end.
    Unknown(JournalError),
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
    /// Goes on where a scan ended. What a crash tore is zeroed first, so that it can never be mistaken for a frame; and
    /// what the scan read is made durable, because the process that wrote it may have ended before its sync did.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn resume(dir: &Path, segment_bytes: u64, end: &End) -> Result<Self, JournalError> {
        let io = |e| JournalError::io(dir, e);
        let dir_file = File::open(dir).map_err(io)?;
        let segment = match &end.segment {
            Some(last) => Segment::resume(last).map_err(|e| JournalError::io(&last.path, e))?,
            None => Segment::create(dir, 1, segment_bytes, 0, &end.position)?,
        };
        dir_file.sync_all().map_err(io)?;
        Ok(Self { dir: dir.to_owned(), dir_file, segment_bytes, segment })
    }

    /// What looks at the room on the disk.
    ///
    /// # Errors
    /// When the system refuses another handle.
    pub fn meter(&self, free_bytes: FreeBytes) -> io::Result<DiskSpaceMeter> {
        Ok(DiskSpaceMeter { disk: self.dir_file.try_clone()?, free_bytes })
    }

    /// Makes room for a frame of this length: goes on to a new segment if the current one is too full, and
    /// says whether it did. `before` is the position that the frame follows.
    ///
    /// # Errors
    /// When there is none. See [`SpaceError`].
    pub fn ensure_space(&mut self, frame_bytes: usize, before: &Position, room: DiskSpace) -> Result<bool, SpaceError> {
        if self.segment.offset + frame_bytes as u64 <= self.segment.bytes {
            return Ok(false);
        }
        let bytes =
            if room == DiskSpace::Ok { self.segment_bytes } else { self.segment_bytes.min(SEGMENT_BYTES_LOW_SPACE) };
        let number = self.segment.number + 1;
        let segment = Segment::create(&self.dir, number, bytes, frame_bytes as u64, before);
        let segment = segment.map_err(SpaceError::DiskFull)?;
        if cfg!(not(feature = "fault-skip-dir-sync")) {
            self.dir_file.sync_all().map_err(|e| SpaceError::Unknown(JournalError::io(&self.dir, e)))?;
        }
        #[cfg(feature = "fault-ack-before-sync")]
        self.segment.file.sync_data().map_err(|e| SpaceError::Unknown(JournalError::io(&self.segment.path, e)))?;
        self.segment = segment;
        Ok(true)
    }

    /// Appends a frame, for which there is room, and makes it durable.
    ///
    /// # Errors
    /// When the disk fails. It is then unknown what the disk holds: the process must end, and never try again.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), JournalError> {
        let segment = &mut self.segment;
        #[cfg(not(feature = "fault-ack-before-sync"))]
        let written = segment.file.write_all_at(frame, segment.offset).and_then(|()| segment.file.sync_data());
        // The frame before is made durable, and this one only when the next comes.
        #[cfg(feature = "fault-ack-before-sync")]
        let written = segment.file.sync_data().and_then(|()| segment.file.write_all_at(frame, segment.offset));
        written.map_err(|e| JournalError::io(&segment.path, e))?;
        segment.offset += frame.len() as u64;
        Ok(())
    }
}

impl Segment {
    fn resume(end: &SegmentEnd) -> io::Result<Self> {
        let file = private_options().read(true).write(true).open(&end.path)?;
        if file.metadata()?.len() < end.offset {
            file.set_len(end.offset)?; // all of the last frame is there but for the zeros after it
        }
        // After a failed sync the kernel may hold the last frame as clean, and the disk not at all: write it once more.
        let mut last = vec![0; usize::try_from(end.offset - end.last_frame).unwrap_or(0)];
        file.read_exact_at(&mut last, end.last_frame)?;
        file.write_all_at(&last, end.last_frame)?;
        let zeros = [0; ZEROS_BYTES];
        let mut at = end.offset;
        while at < end.offset + end.torn {
            let some = (end.offset + end.torn - at).min(ZEROS_BYTES as u64);
            file.write_all_at(&zeros[..some as usize], at)?; // at most ZEROS_BYTES
            at += some;
        }
        file.sync_all()?;
        let bytes = file.metadata()?.len();
        Ok(Self { number: end.number, path: end.path.clone(), file, offset: end.offset, bytes })
    }

    /// Makes a segment of zeros under another name, and gives it its own, which the caller must make durable, when its
    /// bytes are. Written zeros, not merely
    /// reserved ones: with those, each sync would have to commit the file system's note that they are now written.
    fn create(dir: &Path, number: u64, bytes: u64, room: u64, after: &Position) -> Result<Self, JournalError> {
        let path = segment_path(dir, number);
        let bytes = bytes.max(SEGMENT_HEADER_BYTES as u64 + room);
        let create = || -> io::Result<File> {
            let mut file = NewFile::create(&path)?;
            file.write_all(&segment_header(after))?;
            let mut left = bytes - SEGMENT_HEADER_BYTES as u64;
            while left > 0 {
                let some = left.min(ZEROS_BYTES as u64);
                file.write_all(&[0; ZEROS_BYTES][..some as usize])?; // at most ZEROS_BYTES
                left -= some;
            }
            file.rename()
        };
        let file = create().map_err(|e| JournalError::io(&path, e))?;
        Ok(Self { number, path, file, offset: SEGMENT_HEADER_BYTES as u64, bytes })
    }
}
