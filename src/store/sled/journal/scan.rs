//! Reading the journal: every frame, in order, checked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;

use super::frame::{ALIGNMENT_BYTES, Frame, HeaderError, SEGMENT_HEADER_BYTES, read_segment_header};
use super::{ChainKey, JournalError, Position};
use crate::progress::Progress;
use crate::store::record::pb;

/// Where the journal ends, after a scan.
#[derive(Debug)]
pub struct End {
    /// Before the first entry that is there. Past [`Position::START`] where older segments have gone.
    pub start: Position,
    /// The last entry.
    pub position: Position,
    /// The last segment, if there is one: the writer goes on there.
    pub segment: Option<SegmentEnd>,
}

/// Where a segment ends.
#[derive(Debug)]
pub struct SegmentEnd {
    /// Its number.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// Where the next frame goes.
    pub offset: u64,
    /// Where the last frame begins, or the header if there is none.
    pub last_frame: u64,
    /// Bytes after `offset` that a crash left behind, and that were never acknowledged. They must be zeroed.
    pub torn: u64,
}

/// The path of a segment.
#[must_use]
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.kwj"))
}

/// Reads every segment in `dir`, checks all of it, and hands the entries of each frame to `visit`, with the position after
/// it.
///
/// # Errors
/// When the journal is not whole. A torn end is not an error: see [`SegmentEnd::torn`].
pub fn scan(
    dir: &Path,
    key: &ChainKey,
    mut visit: impl FnMut(Vec<pb::JournalEntry>, Position),
) -> Result<End, JournalError> {
    let numbers = segment_numbers(dir)?;
    let start = match numbers.first() {
        Some(&first) => segment_start(&segment_path(dir, first))?,
        None => Position::START,
    };
    let mut progress = Progress::begin("reading the journal, in segments", numbers.len() as u64);
    let mut position = start;
    let mut segment = None;
    for (&number, expected) in numbers.iter().zip(numbers.first().copied().unwrap_or(1)..) {
        if number != expected {
            return Err(JournalError::Gap { path: segment_path(dir, expected), after: position.revision });
        }
        let last = numbers.last() == Some(&number);
        let path = segment_path(dir, number);
        let bytes = fs::read(&path).map_err(|e| JournalError::io(&path, e))?;
        let (last_frame, offset, torn) = scan_segment(&path, &bytes, last, key, &mut position, &mut visit)?;
        segment = Some(SegmentEnd { number, path, offset, last_frame, torn });
        progress.advance(1);
    }
    Ok(End { start, position, segment })
}

/// The position after which a segment begins.
///
/// # Errors
/// When its header cannot be read, or is damaged.
pub fn segment_start(path: &Path) -> Result<Position, JournalError> {
    let io = |e| JournalError::io(path, e);
    let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
    File::open(path).map_err(io)?.take(SEGMENT_HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
    read_segment_header(&header).map_err(|wrong| wrong.in_file(path, Revision(0)))
}

/// The numbers of the segments, in order.
///
/// # Errors
/// When the directory cannot be read.
pub fn segment_numbers(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let io = |e: io::Error| JournalError::io(dir, e);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number: Option<u64> = name.to_str().and_then(|n| n.strip_suffix(".kwj")).and_then(|n| n.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads one segment; says where its last frame begins, where it ends, and how many torn bytes follow.
fn scan_segment(
    path: &Path,
    bytes: &[u8],
    last: bool,
    key: &ChainKey,
    position: &mut Position,
    visit: &mut impl FnMut(Vec<pb::JournalEntry>, Position),
) -> Result<(u64, u64, u64), JournalError> {
    let damaged = |offset: usize, what, position: &Position| JournalError::Damaged {
        path: path.to_owned(),
        offset: offset as u64,
        what,
        after: position.revision,
    };
    match read_segment_header(bytes) {
        Ok(start) if start == *position => {}
        Ok(_) => return Err(damaged(0, "the segment does not follow the one before it", position)),
        Err(wrong) => return Err(wrong.in_file(path, position.revision)),
    }

    let mut offset = SEGMENT_HEADER_BYTES;
    let mut last_frame = 0;
    while let Some(frame) = bytes.get(offset..).and_then(Frame::read) {
        let (entries, end) = frame.follow(position, key).map_err(|what| damaged(offset, what, position))?;
        visit(entries, end);
        *position = end;
        last_frame = offset;
        offset += frame.bytes;
    }

    let tail = bytes.get(offset..).unwrap_or_default();
    let torn = tail.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
    if torn == 0 {
        return Ok((last_frame as u64, offset as u64, 0));
    }
    let acknowledged = !last || sound_frame_follows(&tail[..torn]);
    if acknowledged {
        return Err(damaged(offset, "the frame is damaged", position));
    }
    Ok((last_frame as u64, offset as u64, torn as u64))
}

/// Whether a sound frame begins anywhere after the first place. If so, the damaged one before it had been acknowledged.
fn sound_frame_follows(tail: &[u8]) -> bool {
    (ALIGNMENT_BYTES..tail.len()).step_by(ALIGNMENT_BYTES).any(|at| Frame::read(&tail[at..]).is_some())
}

impl HeaderError {
    fn in_file(self, path: &Path, after: Revision) -> JournalError {
        let path = path.to_owned();
        match self {
            Self::UnknownVersion(version) => JournalError::UnknownVersion { path, version },
            Self::Damaged => JournalError::Damaged { path, offset: 0, what: "the segment's header is damaged", after },
        }
    }
}
