//! Reads and checks the journal, frame by frame.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use keyward_core::event::Revision;
use keyward_core::record::{LineRecord, LogId};
use parking_lot::Mutex;

use super::frame::{ALIGNMENT_BYTES, Entry, EntryRevision, Frame};
use super::segment::{HEADER_BYTES, HeaderError, SealKey, SegmentHeader};
use super::{ChainKey, JournalError, Position};
use crate::bytes_codec::Cursor;
use crate::util::parallel;
use crate::util::progress::Progress;

/// Where the journal ends, after a scan.
#[derive(Debug)]
pub struct End {
    /// The position before the first entry. Past [`Position::START`] if older segments were deleted.
    pub start: Position,
    /// The last entry.
    pub position: Position,
    /// The log of the last segment. `None`: there is no segment of version 2.
    pub log: Option<LogId>,
    /// The revisions between two lines, in order: after the first, up to the second, there is no change.
    pub gaps: Vec<(Revision, Revision)>,
    /// The last segment, if there is one. The writer continues there, or behind it if it is of version 1.
    pub segment: Option<SegmentEnd>,
}

impl End {
    /// Of a journal without a segment, whose first entry is to follow a position.
    #[must_use]
    pub fn at(start: Position) -> Self {
        Self { start, position: start, log: None, gaps: vec![], segment: None }
    }

    /// How many changes come after a revision.
    #[must_use]
    pub fn changes_after(&self, revision: Revision) -> u64 {
        let gaps = self.gaps.iter().map(|&(ended, base)| base.0.saturating_sub(ended.0.max(revision.0)));
        self.position.revision.0.saturating_sub(revision.0).saturating_sub(gaps.sum())
    }

    /// Goes on with a segment that was read.
    fn extend(&mut self, next: Scanned) {
        self.gaps.extend(next.header.ended.map(|ended| (ended, next.header.start.revision)));
        (self.position, self.log, self.segment) = (next.end, next.header.log, Some(next.segment));
    }
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
    /// Where the last frame begins, or the header's end if there is none.
    pub last_frame: u64,
    /// Bytes after `offset` that a crash left, which were never acknowledged and must be zeroed.
    pub torn: u64,
}

/// What a scan passes on, in order.
#[derive(Debug)]
pub enum Piece<E> {
    /// The header of a segment.
    Segment(SegmentHeader),
    /// The entries of a frame, and the position after it.
    Entries(Vec<E>, Position),
}

/// The path of a segment.
#[must_use]
pub fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:012}.kwj"))
}

/// Reads and checks every segment in `dir`, on all cores. Returns the end, and which of the wanted positions
/// the journal contains, also within a frame.
///
/// When the journal is not intact. A torn end is not an error: see [`SegmentEnd::torn`].
pub fn verify(dir: &Path, key: &ChainKey, wanted: &[Position]) -> Result<(End, HashSet<Position>), JournalError> {
    verify_and_visit(dir, key, wanted, Revision(u64::MAX), |_: Vec<EntryRevision>| {})
}

/// As [`verify`], and passes on the entries of each frame that ends after a revision: in no order, from
/// several threads, and possibly more than once. They must not be trusted before this has returned.
///
/// # Errors
/// When the journal is not whole.
pub fn verify_and_visit<E: Entry>(
    dir: &Path,
    key: &ChainKey,
    wanted: &[Position],
    after: Revision,
    visit: impl Fn(Vec<E>) + Sync,
) -> Result<(End, HashSet<Position>), JournalError> {
    let numbers = segment_numbers(dir)?;
    // A segment ends where the next one begins. If that cannot be read, the scan reports it.
    let ends = |at: usize| numbers.get(at + 1).and_then(|&next| segment_start(&segment_path(dir, next)).ok());
    let visit = |read| match read {
        Piece::Entries(entries, at) if at.revision > after => visit(entries),
        Piece::Entries(..) | Piece::Segment(_) => {}
    };
    let reader = SegmentReader::new(dir, key, None);
    let progress = Mutex::new(Progress::begin("reading the journal, in segments", numbers.len() as u64));
    let failed = AtomicBool::new(false);
    let scanned = parallel::map(numbers.len(), |at| {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let mut found_positions = HashSet::new();
        let on_position = |at| found_positions.extend(wanted.contains(&at).then_some(at));
        let (number, last) = (numbers[at], at + 1 == numbers.len());
        // Each segment is read from the position in its header; whether they fit together is checked at the
        // end.
        let scanned = if ends(at).is_some_and(|end| end.revision <= after) {
            reader.segment(number, last, None, on_position, |_: Piece<EntryRevision>| {})
        } else {
            reader.segment(number, last, None, on_position, visit)
        };
        failed.fetch_or(scanned.is_err(), Ordering::Relaxed);
        progress.lock().advance(1);
        scanned.ok().map(|scanned| (scanned, found_positions))
    });
    drop(progress);
    if let Some(whole) = joined(scanned, key) {
        return Ok(whole);
    }
    // Read again in order, to report the first error.
    let mut found_positions = HashSet::new();
    let on_position = |at| found_positions.extend(wanted.contains(&at).then_some(at));
    let end = reader.segments(&numbers, on_position, visit)?;
    Ok((end, found_positions))
}

/// Joins segments, if each follows the one before it.
fn joined(scanned: Vec<Option<(Scanned, HashSet<Position>)>>, key: &ChainKey) -> Option<(End, HashSet<Position>)> {
    let mut whole = (End::at(Position::START), HashSet::new());
    let (end, found) = &mut whole;
    for next in scanned {
        let (next, found_positions) = next?;
        match &end.segment {
            None => end.start = next.header.start,
            Some(before)
                if before.number + 1 == next.segment.number && next.header.follows(&end.position, end.log, key) => {}
            Some(_) => return None,
        }
        end.extend(next);
        found.extend(found_positions);
    }
    Some(whole)
}

/// Reads what comes after a revision, and some of what precedes it: begins with the segment that contains it,
/// and includes the frame that ends there.
///
/// # Errors
/// When what is read is not whole.
pub fn scan_after<E: Entry>(
    dir: &Path,
    key: &ChainKey,
    revision: Revision,
    mut visit: impl FnMut(Vec<E>, Position),
) -> Result<End, JournalError> {
    let mut numbers = segment_numbers(dir)?;
    while let Some(&next) = numbers.get(1)
        && segment_start(&segment_path(dir, next))?.revision < revision
    {
        numbers.remove(0);
    }
    let visit = |read| match read {
        Piece::Entries(entries, at) => visit(entries, at),
        Piece::Segment(_) => {}
    };
    SegmentReader::new(dir, key, None).segments(&numbers, |_| {}, visit)
}

/// Reads what comes after a revision, and some of what precedes it, up to the frame that reaches `until`, if
/// given. What lies outside is not read, and may be damaged.
///
/// # Errors
/// When what is read is not whole.
pub fn scan_between<E: Entry>(
    dir: &Path,
    key: &ChainKey,
    after: Revision,
    until: Option<Revision>,
    visit: impl FnMut(Piece<E>),
) -> Result<End, JournalError> {
    let numbers = segment_numbers(dir)?;
    let begins = |number: &u64| segment_start(&segment_path(dir, *number)).is_ok_and(|at| at.revision <= after);
    let first = numbers.iter().rposition(begins).unwrap_or(0);
    SegmentReader::new(dir, key, until).segments(&numbers[first..], |_| {}, visit)
}

/// The position after which a segment begins, as its header says: the seal is not checked.
///
/// # Errors
/// When its header cannot be read, or is damaged.
pub fn segment_start(path: &Path) -> Result<Position, JournalError> {
    let header = header_bytes(path)?;
    let header = SegmentHeader::read_unsealed(&header).map_err(|wrong| wrong.in_file(path, Revision(0)))?;
    Ok(header.start)
}

fn header_bytes(path: &Path) -> Result<Vec<u8>, JournalError> {
    let io = |e| JournalError::io(path, e);
    let mut header = Vec::with_capacity(HEADER_BYTES);
    File::open(path).map_err(io)?.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(io)?;
    Ok(header)
}

/// The highest revision that a header proves by its seal, in any segment, whatever else is damaged. A header
/// that is damaged itself counts if it claims no later line than the next one.
///
/// # Errors
/// When the directory cannot be read.
pub fn proven_revision(dir: &Path, key: &ChainKey) -> Result<Revision, JournalError> {
    let seals = SealKey::of(key);
    let headers = segment_numbers(dir)?.into_iter().filter_map(|number| header_bytes(&segment_path(dir, number)).ok());
    let (mut proven, mut claimed) = (Revision(0), Revision(0));
    for bytes in headers {
        match SegmentHeader::read(&bytes, &seals) {
            Ok(header) if header.log.is_some() => proven = proven.max(header.start.revision),
            Ok(_) => {}
            Err(_) => {
                let first = bytes.get(16..24).and_then(|bytes| Cursor(bytes).u64());
                claimed = claimed.max(Revision(first.unwrap_or(0)));
            }
        }
    }
    let is_near = LineRecord::number_of(claimed) <= LineRecord::number_of(proven) + 1;
    Ok(if is_near { proven.max(claimed) } else { proven })
}

/// The segments' numbers, in order.
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

/// A segment that was read.
struct Scanned {
    header: SegmentHeader,
    end: Position,
    segment: SegmentEnd,
}

/// Reads segments of a directory, up to a revision.
struct SegmentReader<'a> {
    dir: &'a Path,
    key: &'a ChainKey,
    seals: SealKey,
    /// Stops after the frame that reaches this revision. `None`: reads all.
    until: Option<Revision>,
}

impl<'a> SegmentReader<'a> {
    fn new(dir: &'a Path, key: &'a ChainKey, until: Option<Revision>) -> Self {
        Self { dir, key, seals: SealKey::of(key), until }
    }

    /// Reads segments in order. Calls `on_position` with the position after each entry and at the beginning
    /// of each line, and `visit` with what is read.
    fn segments<E: Entry>(
        &self,
        numbers: &[u64],
        mut on_position: impl FnMut(Position),
        mut visit: impl FnMut(Piece<E>),
    ) -> Result<End, JournalError> {
        let start = match numbers.first() {
            Some(&first) => segment_start(&segment_path(self.dir, first))?,
            None => Position::START,
        };
        let mut progress = Progress::begin("reading the journal, in segments", numbers.len() as u64);
        let mut end = End::at(start);
        for (&number, expected) in numbers.iter().zip(numbers.first().copied().unwrap_or(1)..) {
            if self.is_done(end.position) {
                break;
            }
            if number != expected {
                return Err(JournalError::Gap { path: segment_path(self.dir, expected), after: end.position.revision });
            }
            let last = numbers.last() == Some(&number);
            let before = end.segment.is_some().then_some(&end);
            end.extend(self.segment(number, last, before, &mut on_position, &mut visit)?);
            progress.advance(1);
        }
        Ok(end)
    }

    /// Reads a segment, which must follow `before`, if given.
    fn segment<E: Entry>(
        &self,
        number: u64,
        last: bool,
        before: Option<&End>,
        mut on_position: impl FnMut(Position),
        mut visit: impl FnMut(Piece<E>),
    ) -> Result<Scanned, JournalError> {
        let path = segment_path(self.dir, number);
        let mut bytes = Vec::new();
        // Bytes read before an error are kept.
        let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
        let unread = read.err().map(|error| JournalError::io(&path, error));
        let unread = match unread {
            Some(error) if self.until.is_none() || bytes.len() < HEADER_BYTES => return Err(error),
            unread => unread,
        };
        let revision = before.map_or(Revision(0), |before| before.position.revision);
        let header = SegmentHeader::read(&bytes, &self.seals).map_err(|wrong| wrong.in_file(&path, revision))?;
        if before.is_some_and(|before| !header.follows(&before.position, before.log, self.key)) {
            return Err(does_not_follow(&path, revision));
        }
        if header.ended.is_some() {
            on_position(header.start);
        }
        visit(Piece::Segment(header));
        let mut end = header.start;
        let damaged = |offset: usize, what, end: &Position| JournalError::Damaged {
            path: path.clone(),
            offset: offset as u64,
            what,
            after: end.revision,
        };

        let payload_max = header.payload_bytes_max();
        let mut offset = header.bytes();
        let mut last_frame = 0;
        while !self.is_done(end)
            && let Some(frame) = bytes.get(offset..).and_then(|bytes| Frame::read_within(bytes, payload_max))
        {
            let followed = frame.verify_each(&end, self.key, &mut on_position);
            let (entries, next) = followed.map_err(|what| damaged(offset, what, &end))?;
            visit(Piece::Entries(entries, next));
            end = next;
            last_frame = offset;
            offset += frame.bytes;
        }

        let tail = bytes.get(offset..).unwrap_or_default();
        let torn = tail.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1);
        if !self.is_done(end) {
            if let Some(error) = unread {
                return Err(error);
            }
            if torn > 0 && (!last || sound_frame_follows(tail, torn)) {
                // A change that was acknowledged.
                return Err(damaged(offset, "the frame is damaged", &end));
            }
        }
        let (offset, last_frame, torn) = (offset as u64, last_frame as u64, torn as u64);
        Ok(Scanned { header, end, segment: SegmentEnd { number, path, offset, last_frame, torn } })
    }

    fn is_done(&self, at: Position) -> bool {
        self.until.is_some_and(|until| at.revision >= until)
    }
}

fn does_not_follow(path: &Path, after: Revision) -> JournalError {
    let what = "the segment does not follow the one before it";
    JournalError::Damaged { path: path.to_owned(), offset: 0, what, after }
}

/// Whether an intact frame begins after the first place and before `end`. If so, the damaged frame before it
/// was acknowledged. The frame may itself end in zeros, past `end`.
fn sound_frame_follows(tail: &[u8], end: usize) -> bool {
    (ALIGNMENT_BYTES..end).step_by(ALIGNMENT_BYTES).any(|at| Frame::read(&tail[at..]).is_some())
}

impl HeaderError {
    fn in_file(self, path: &Path, after: Revision) -> JournalError {
        let path = path.to_owned();
        match self {
            Self::UnknownVersion(version) => JournalError::UnknownVersion { path, version },
            Self::Damaged => JournalError::Damaged { path, offset: 0, what: "the segment's header is damaged", after },
            Self::Unsealed => {
                let what = "the seal of the segment's header does not verify: it was altered, or the pepper file \
                    is not the one it was written with";
                JournalError::Damaged { path, offset: 0, what, after }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::long_frame;
    use super::super::frame::{FrameBuilder, PAYLOAD_BYTES_READ_MAX};
    use super::*;
    use crate::store::record::pb;
    use zeroize::Zeroizing;

    #[test]
    fn a_frame_of_8_mib_of_an_older_program_is_read() {
        let key = ChainKey(Zeroizing::new([7; 32]));
        let dir = tempfile::tempdir().unwrap();
        let frame = long_frame(&Position::START, PAYLOAD_BYTES_READ_MAX, &key);
        let write = |log| {
            let header = SegmentHeader { start: Position::START, log, ended: None }.encode(&SealKey::of(&key));
            fs::write(segment_path(dir.path(), 1), [&header[..], &frame, &[0; 64]].concat()).unwrap();
        };
        write(None);
        let read = Mutex::new(vec![]);
        let visit = |entries: Vec<pb::JournalEntry>| read.lock().extend(entries.iter().map(|entry| entry.target.len()));
        let (end, _) = verify_and_visit(dir.path(), &key, &[], Revision(0), visit).unwrap();
        assert_eq!(end.position.revision, Revision(1));
        assert_eq!(*read.lock(), [PAYLOAD_BYTES_READ_MAX - 11]);
        // No program has written it into a segment of version 2: there it is like any other remains.
        write(Some(LogId([5; 16])));
        let (end, _) = verify(dir.path(), &key, &[]).unwrap();
        assert_eq!(end.position, Position::START);
        assert!(end.segment.unwrap().torn > 0);
    }

    #[test]
    fn the_last_frame_is_sound_however_many_zeros_it_ends_in() {
        let key = ChainKey(Zeroizing::new([7; 32]));
        for length in 0..2_000 {
            let entry = pb::JournalEntry { revision: 1, target: "x".repeat(length), ..Default::default() };
            let mut frame = FrameBuilder::after(&Position::START);
            frame.push(&entry, &key);
            let mut tail = vec![1; ALIGNMENT_BYTES];
            tail.extend(frame.finish().unwrap());
            let end = tail.iter().rposition(|&byte| byte != 0).unwrap() + 1;
            tail.resize(tail.len() + 100, 0);
            assert!(sound_frame_follows(&tail, end), "{length}");
        }
    }
}
