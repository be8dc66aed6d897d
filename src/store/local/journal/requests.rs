//! The requests of the last entries, by which retries are recognised: read when a store is opened. And one
//! entry by its place, for the reply to a retry.

use std::fs::{self, File};
use std::io;
use std::iter::{Flatten, Rev, Skip};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::vec;

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use prost::Message;

use super::JournalError;
use super::frame::{ALIGNMENT_BYTES, Entry, FRAME_HEADER_BYTES, Frame, unpadded_bytes};
use super::scan::{segment_numbers, segment_path};
use super::segment::SegmentHeader;
use crate::store::record::pb;

/// The times of entries may go back by so much from one to the next: by as long as a change may wait.
const DISORDER_MS_MAX: i64 = 60_000;

/// Where a frame begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePlace {
    segment: u32,
    /// In units of [`ALIGNMENT_BYTES`].
    offset: u32,
}

impl FramePlace {
    /// A place in a segment. `None`: no segment goes so far, and no journal has so many.
    #[must_use]
    pub fn new(segment: u64, offset: u64) -> Option<Self> {
        let offset = u32::try_from(offset / ALIGNMENT_BYTES as u64).ok()?;
        Some(Self { segment: u32::try_from(segment).ok()?, offset })
    }

    /// The number of its segment.
    #[must_use]
    pub fn segment(self) -> u64 {
        self.segment.into()
    }
}

/// What an entry says of its request. Its bytes are covered by the chain.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RequestOf {
    /// As in [`pb::JournalEntry`], like all that follows.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// When.
    #[prost(int64, tag = "2")]
    pub time_ms: i64,
    /// Who.
    #[prost(string, tag = "3")]
    pub actor: String,
    /// The caller's name for the request. Empty: none.
    #[prost(string, tag = "9")]
    pub request_id: String,
    /// What was asked.
    #[prost(bytes = "vec", tag = "10")]
    pub payload_hash: Vec<u8>,
    /// The hash of the reply that was sealed.
    #[prost(bytes = "vec", tag = "14")]
    pub sealed_reply_hash: Vec<u8>,
}

impl Entry for RequestOf {
    fn revision(&self) -> Revision {
        Revision(self.revision)
    }
}

/// What is made of each of the newest requests, in the order of the log.
pub type Newest<T> = Skip<Flatten<Rev<vec::IntoIter<Vec<T>>>>>;

/// Reads the requests of a journal that was checked: at least those of entries that are not older than
/// `since`, and of the newest `max`. `read` makes something of each, in no order of the segments; what it
/// makes is returned in the order of the log: at most `max`.
///
/// # Errors
/// When the disk fails.
pub fn read_back<T>(
    dir: &Path,
    until: Revision,
    (since, max): (UnixMillis, usize),
    mut read: impl FnMut(RequestOf, FramePlace) -> Option<T>,
) -> Result<Newest<T>, JournalError> {
    let (mut segments, mut count): (Vec<Vec<T>>, usize) = (vec![], 0);
    for number in segment_numbers(dir)?.into_iter().rev() {
        let path = segment_path(dir, number);
        let bytes = fs::read(&path).map_err(|error| JournalError::io(&path, error))?;
        let Ok(header) = SegmentHeader::read_unsealed(&bytes) else { break };
        // One of version 1 has none.
        if header.log.is_none() {
            break;
        }
        let (mut offset, mut latest, mut found) = (header.bytes(), i64::MIN, vec![]);
        while let Some(frame) = bytes.get(offset..).and_then(Frame::read) {
            let place = FramePlace::new(number, offset as u64);
            let entries = frame.entries::<RequestOf>().map_while(Result::ok).map(|(entry, _)| entry);
            for entry in entries.filter(|entry| entry.revision <= until.0) {
                latest = latest.max(entry.time_ms);
                if !entry.request_id.is_empty() {
                    found.extend(place.and_then(|place| read(entry, place)));
                }
            }
            offset += frame.bytes;
        }
        count += found.len();
        segments.push(found);
        // An empty one says nothing.
        let is_past = latest != i64::MIN && latest.saturating_add(DISORDER_MS_MAX) < since.0;
        if count >= max || is_past {
            break;
        }
    }
    Ok(segments.into_iter().rev().flatten().skip(count.saturating_sub(max)))
}

/// Reads one entry of a frame. `None`: its segment has gone.
///
/// # Errors
/// When the disk fails, or the entry is not there.
pub fn entry_at(dir: &Path, place: FramePlace, revision: Revision) -> Result<Option<pb::JournalEntry>, JournalError> {
    let path = segment_path(dir, u64::from(place.segment));
    let offset = u64::from(place.offset) * ALIGNMENT_BYTES as u64;
    let frame = match frame_bytes(&path, offset) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        frame => frame.map_err(|error| JournalError::io(&path, error))?,
    };
    let mut entries = Frame::read(&frame).into_iter().flat_map(|frame| {
        frame.entries::<pb::JournalEntry>().map_while(Result::ok).map(|(entry, _)| entry).collect::<Vec<_>>()
    });
    let entry = entries.find(|entry| entry.revision == revision.0);
    entry.map(Some).ok_or_else(|| JournalError::io(&path, io::ErrorKind::InvalidData.into()))
}

fn frame_bytes(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut header = [0; FRAME_HEADER_BYTES];
    file.read_exact_at(&mut header, offset)?;
    let mut frame = vec![0; unpadded_bytes(&header)];
    file.read_exact_at(&mut frame, offset)?;
    Ok(frame)
}
