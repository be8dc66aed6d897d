//! Appends to the journal.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyward_core::record::LogId;

use super::requests::FramePlace;
use super::scan::{End, SegmentEnd, segment_path};
use super::segment::{LineHeader, SealKey, SegmentHeader};
use super::{JournalError, Position};
use crate::store::local::disk_space::{DiskSpace, DiskSpaceMeter, FreeBytes};
use crate::util::files::{NewFile, private_options};

const ZEROS_BYTES: usize = 64 * 1024;
/// The size of a new segment while space is low, unless one group needs more.
const SEGMENT_BYTES_LOW_SPACE: u64 = 256 * 1024;

/// The single writer of the journal.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// Kept open, so that syncing names needs no new file descriptor.
    dir_file: File,
    segment_bytes: u64,
    log: LogId,
    seals: SealKey,
    segment: Segment,
}

/// Why there is no space for a frame.
#[derive(Debug)]
pub enum SpaceError {
    /// The disk is full, or a file cannot be created. The log is unchanged, and the caller may retry.
    DiskFull(JournalError),
    /// The state of the disk is unknown: the process must end.
    Unknown(JournalError),
}

impl SpaceError {
    /// The cause, for a caller who does not go on either way.
    #[must_use]
    pub fn into_inner(self) -> JournalError {
        match self {
            Self::DiskFull(error) | Self::Unknown(error) => error,
        }
    }
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    offset: u64,
    bytes: u64,
}

/// A journal whose end is clean and on the disk, before a writer goes on there.
#[derive(Debug)]
pub struct CleanEnd {
    dir: PathBuf,
    dir_file: File,
    position: Position,
    /// The last segment, if it is of version 2.
    segment: Option<Segment>,
    /// The number of the next segment.
    next: u64,
}

impl CleanEnd {
    /// Cleans the end that a scan found. A torn end is zeroed first, so that it can never be mistaken for a
    /// frame. What the scan read is synced, because the process that wrote it may have ended before its sync.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn make(dir: &Path, end: &End) -> Result<Self, JournalError> {
        let io = |e| JournalError::io(dir, e);
        let dir_file = File::open(dir).map_err(io)?;
        let last = end.segment.as_ref();
        let segment = last.map(|last| Segment::resume(last).map_err(|e| JournalError::io(&last.path, e)));
        let segment = segment.transpose()?.filter(|_| end.log.is_some());
        dir_file.sync_all().map_err(io)?;
        let next = last.map_or(1, |last| last.number + 1);
        Ok(Self { dir: dir.to_owned(), dir_file, position: end.position, segment, next })
    }

    /// Goes on, in the last segment if it is of version 2, or else in a new one of a log.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn into_writer(self, room: (u64, FreeBytes), log: LogId, seals: SealKey) -> Result<Writer, JournalError> {
        let header = SegmentHeader::after(self.position, log);
        self.begin_unless_there(room, &header, log, seals)
    }

    /// As [`CleanEnd::into_writer`], in a journal without segments: the first one has this header.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn begin_line(self, room: (u64, FreeBytes), line: &LineHeader, seals: SealKey) -> Result<Writer, JournalError> {
        self.begin_unless_there(room, line.header(), line.log(), seals)
    }

    fn begin_unless_there(
        self,
        (segment_bytes, free_bytes): (u64, FreeBytes),
        header: &SegmentHeader,
        log: LogId,
        seals: SealKey,
    ) -> Result<Writer, JournalError> {
        let Self { dir, dir_file, position: _, segment, next } = self;
        let io = |e| JournalError::io(&dir, e);
        let segment = match segment {
            Some(segment) => segment,
            None => {
                let (_, room) =
                    DiskSpaceMeter::new(dir_file.try_clone().map_err(io)?, free_bytes).measure().map_err(io)?;
                let header = header.encode(&seals);
                let segment = Segment::create(&dir, next, new_segment_bytes(segment_bytes, room), 0, &header)?;
                dir_file.sync_all().map_err(io)?;
                segment
            }
        };
        Ok(Writer { dir, dir_file, segment_bytes, log, seals, segment })
    }
}

impl Writer {
    /// The id of the log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.log
    }

    /// A meter for the disk's free space.
    ///
    /// When the system refuses another file descriptor.
    pub fn meter(&self, free_bytes: FreeBytes) -> io::Result<DiskSpaceMeter> {
        Ok(DiskSpaceMeter::new(self.dir_file.try_clone()?, free_bytes))
    }

    /// Begins a line, with a segment of its own.
    ///
    /// # Errors
    /// When there is no space. See [`SpaceError`].
    pub fn begin_line(&mut self, line: &LineHeader, room: DiskSpace) -> Result<(), SpaceError> {
        self.begin_segment(line.header(), 0, room)?;
        self.log = line.log();
        Ok(())
    }

    /// Ensures that the current segment has space for a frame of this length, by beginning a new one if need
    /// be. Returns whether it did. `before` is the position that the frame follows.
    ///
    /// # Errors
    /// When there is none. See [`SpaceError`].
    pub fn ensure_space(&mut self, frame_bytes: usize, before: &Position, room: DiskSpace) -> Result<bool, SpaceError> {
        if self.segment.offset + frame_bytes as u64 <= self.segment.bytes {
            return Ok(false);
        }
        self.begin_segment(&SegmentHeader::after(*before, self.log), frame_bytes as u64, room)?;
        Ok(true)
    }

    fn begin_segment(&mut self, header: &SegmentHeader, frame_bytes: u64, room: DiskSpace) -> Result<(), SpaceError> {
        let bytes = new_segment_bytes(self.segment_bytes, room);
        let number = self.segment.number + 1;
        let segment = Segment::create(&self.dir, number, bytes, frame_bytes, &header.encode(&self.seals));
        let segment = segment.map_err(SpaceError::DiskFull)?;
        if cfg!(not(feature = "fault-skip-dir-sync")) {
            self.dir_file.sync_all().map_err(|e| SpaceError::Unknown(JournalError::io(&self.dir, e)))?;
        }
        #[cfg(feature = "fault-ack-before-sync")]
        self.segment.file.sync_data().map_err(|e| SpaceError::Unknown(JournalError::io(&self.segment.path, e)))?;
        self.segment = segment;
        Ok(())
    }

    /// Where the next frame goes, if it fits.
    #[must_use]
    pub fn place(&self) -> Option<FramePlace> {
        FramePlace::new(self.segment.number, self.segment.offset)
    }

    /// Appends a frame that fits, and makes it durable.
    ///
    /// When the disk fails. Its state is then unknown: the process must end, and never retry.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), JournalError> {
        let segment = &mut self.segment;
        #[cfg(not(feature = "fault-ack-before-sync"))]
        let written = segment.file.write_all_at(frame, segment.offset).and_then(|()| segment.file.sync_data());
        // Syncs the previous frame, and this one only with the next.
        #[cfg(feature = "fault-ack-before-sync")]
        let written = segment.file.sync_data().and_then(|()| segment.file.write_all_at(frame, segment.offset));
        written.map_err(|e| JournalError::io(&segment.path, e))?;
        segment.offset += frame.len() as u64;
        Ok(())
    }
}

fn new_segment_bytes(segment_bytes: u64, room: DiskSpace) -> u64 {
    if room == DiskSpace::Ok { segment_bytes } else { segment_bytes.min(SEGMENT_BYTES_LOW_SPACE) }
}

impl Segment {
    fn resume(end: &SegmentEnd) -> io::Result<Self> {
        let file = private_options().read(true).write(true).open(&end.path)?;
        if file.metadata()?.len() < end.offset {
            file.set_len(end.offset)?; // all of the last frame is there but for the zeros after it
        }
        // After a failed sync, the kernel may consider the last frame clean though the disk lacks it, so it
        // is written again.
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

    /// Writes a segment of zeros under a temporary name, syncs it, and renames it; the caller must sync the
    /// directory. The zeros are written, not reserved: otherwise each later sync would also have to commit
    /// the file system's note that the blocks are in use.
    fn create(dir: &Path, number: u64, bytes: u64, room: u64, header: &[u8]) -> Result<Self, JournalError> {
        let path = segment_path(dir, number);
        let bytes = bytes.max(header.len() as u64 + room);
        let create = || -> io::Result<File> {
            let mut file = NewFile::create(&path)?;
            file.write_all(header)?;
            let mut left = bytes - header.len() as u64;
            while left > 0 {
                let some = left.min(ZEROS_BYTES as u64);
                file.write_all(&[0; ZEROS_BYTES][..some as usize])?; // at most ZEROS_BYTES
                left -= some;
            }
            file.rename()
        };
        let file = create().map_err(|e| JournalError::io(&path, e))?;
        Ok(Self { number, path, file, offset: header.len() as u64, bytes })
    }
}
