//! Fuzz targets for what is private to the engine. Only with the feature `_fuzz`.
//!
//! Each function takes the input of one run, and panics when a property does not hold. `fuzz/` runs them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::record::LogId;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};
use zeroize::Zeroizing;

use super::checkpoint::index_checkpoint::{self, CheckpointKey};
use super::checkpoint::snapshot::{self, Contents, Form, Header, SnapshotError};
use super::journal::segment::SealKey;
use super::journal::watermark::{self, Acknowledged};
use super::journal::{Chain, ChainKey, Position};
use super::replies::{Replies, ReplyHash, ReplyPlace, hash_of};
use super::table::Row;
use super::table::checksums::{ChecksumKey, Checksums};
use crate::bytes_codec::Cursor;
use crate::store::record::RecordKind;
use crate::store::retries::Moment;
use crate::store::{ChunkWriter, MaterializedView};

const POSITION: Position = Position { revision: Revision(7), chain: Chain([3; 32]) };
const TIME: UnixMillis = UnixMillis(1_790_000_000_000);

fn chain_key() -> ChainKey {
    ChainKey(Zeroizing::new([0x11; 32]))
}

/// Snapshots: what is written is read again, with and without the key; a flipped bit is noticed; what was not
/// made with the key is refused with it. The first byte says what the others are: a file, what lies between
/// an intact header and an intact hash, or bodies of records; and in which version.
pub fn snapshots(data: &[u8]) {
    let key = ChecksumKey::of(&chain_key());
    let Some((what, rest)) = data.split_first() else { return };
    let form = if what & 0x80 == 0 { Form::First } else { Form::Second(LogId([5; 16])) };
    match what % 3 {
        0 => check_snapshot(rest, &key),
        1 => {
            let mut file = vec![];
            let empty = Checksums::at(POSITION);
            let written = snapshot::write_records(&empty, form, &key, TIME, std::iter::empty(), &mut file);
            assert!(written.is_ok(), "a vector takes everything");
            file.truncate(header_bytes(form));
            file.extend_from_slice(rest);
            let hash = blake3::hash(&file);
            file.extend_from_slice(hash.as_bytes());
            check_snapshot(&file, &key);
        }
        _ => round_trip_snapshot(rest, form, &key),
    }
}

/// The size of a snapshot's header.
fn header_bytes(form: Form) -> usize {
    match form {
        Form::First => 104,
        Form::Second(_) => 120,
    }
}

fn form_of(header: &Header) -> Form {
    header.log_id.map_or(Form::First, Form::Second)
}

/// Sealed replies: whatever is in a file, a place leads to the reply of its hash or to none; what is not of
/// an entry stays away; and replies that come later are read again, also by the next start. The first byte
/// says what the others are: a file, what follows an intact header, or replies.
pub fn replies(dir: &Path, data: &[u8]) {
    let done = check_replies(dir, data);
    assert!(done.is_ok(), "memory takes everything: {done:?}");
}

fn check_replies(dir: &Path, data: &[u8]) -> io::Result<()> {
    let Some((what, rest)) = data.split_first() else { return Ok(()) };
    let mut file = match what % 3 {
        0 => vec![],
        _ => [&b"KEYWARDR"[..], &1u32.to_le_bytes(), &[0; 4]].concat(),
    };
    match what % 3 {
        2 => rest.chunks(usize::from(*what) + 1).for_each(|reply| {
            file.extend_from_slice(blake3::hash(reply).as_bytes());
            file.extend_from_slice(&u32::try_from(reply.len()).unwrap_or_default().to_le_bytes());
            file.extend_from_slice(reply);
        }),
        _ => file.extend_from_slice(rest),
    }
    let path = dir.join("000000000001.kwr");
    fs::remove_dir_all(dir)?;
    fs::create_dir(dir)?;
    fs::write(&path, &file)?;
    // As docs/FORMAT.md has it. Every other one is of an entry.
    let mut told: Vec<(ReplyHash, &[u8])> = vec![];
    let mut left = file.strip_prefix(b"KEYWARDR\x01\0\0\0").and_then(|left| left.get(4..)).unwrap_or_default();
    while let Some((hash, behind)) = left.split_first_chunk::<32>() {
        let Some((length, behind)) = behind.split_first_chunk::<4>() else { break };
        let length = length.iter().rev().fold(0, |sum: usize, byte| (sum << 8) | usize::from(*byte));
        let Some(reply) = behind.get(..length).filter(|_| length <= 512) else { break };
        told.push((*hash, reply));
        left = &behind[length..];
    }
    let known: HashSet<ReplyHash> = told.iter().map(|(hash, _)| *hash).step_by(2).collect();
    let time_of = |hash: &ReplyHash| known.contains(hash).then_some(TIME);
    let (replies, places) = Replies::open(dir, time_of);
    assert!(places.keys().all(|hash| known.contains(hash)), "a reply of no entry");
    assert_eq!(places.len(), known.len(), "a reply of an entry is not found");
    for (hash, place) in &places {
        let is_it = |(told, reply): &&(ReplyHash, &[u8])| told == hash && blake3::hash(reply).as_bytes() == hash;
        if let Some(reply) = replies.read(*place, hash) {
            assert!(told.iter().any(|(told, it)| told == hash && *it == reply), "it is not in the file");
            assert_eq!(blake3::hash(&reply).as_bytes(), hash, "it is another one");
        } else {
            // The last of several with one hash has the place.
            assert!(told.iter().rfind(is_it).is_none() || told.iter().filter(|(told, _)| told == hash).count() > 1);
        }
    }
    let now = Moment { log: TIME, uptime_s: 0 };
    let later = vec![b"later".to_vec(), vec![]];
    let places = replies.append(&later, now)?;
    let check = |replies: &Replies, places: &[ReplyPlace]| {
        for (reply, place) in later.iter().zip(places) {
            assert_eq!(replies.read(*place, &hash_of(reply)).as_ref(), Some(reply), "what was kept is not read");
        }
    };
    check(&replies, &places);
    let (again, found) = Replies::open(dir, |hash| later.iter().any(|it| hash_of(it) == *hash).then_some(TIME));
    check(&again, &later.iter().map(|reply| found[&hash_of(reply)]).collect::<Vec<_>>());
    Ok(())
}

fn read_snapshot(file: &[u8], key: Option<&ChecksumKey>) -> Result<(Contents, Vec<Row>), SnapshotError> {
    let mut rows = vec![];
    let contents = snapshot::read(file, key, |row| {
        rows.push(row);
        Ok::<_, SnapshotError>(())
    })?;
    Ok((contents, rows))
}

fn check_snapshot(file: &[u8], key: &ChecksumKey) {
    let open = read_snapshot(file, None);
    if let Ok((contents, rows)) = &open {
        assert_eq!(rows.len() as u64, contents.records, "records that are not counted");
        let bytes: usize = rows.iter().map(|row| 5 + row.bytes.len()).sum();
        let end = header_bytes(form_of(&contents.header)) + bytes + 1;
        let noted = match contents.header.log_id {
            None => Checksums::FIRST_BYTES,
            Some(_) => 2 + usize::from(u16::from_le_bytes([file[end], file[end + 1]])),
        };
        assert_eq!(file.len(), end + noted + 32, "bytes that belong to no record");
        assert_eq!(file[file.len() - 32..], *blake3::hash(&file[..file.len() - 32]).as_bytes());
    }
    if let Ok((contents, rows)) = read_snapshot(file, Some(key)) {
        assert!(open.is_ok(), "accepted with the key alone");
        // Nobody else can seal it: it is what the writer would write. Only the ordinals that were given to
        // keys that are gone cannot be told from the records.
        let header = contents.header;
        let mut again = vec![];
        let mut checksums = checksums_of(&rows, key, header.position);
        checksums.next_ordinal = contents.next_ordinal.unwrap_or(0);
        let records = rows.iter().map(|row| (row.kind(), &row.bytes[..]));
        let written = snapshot::write_records(&checksums, form_of(&header), key, header.time, records, &mut again);
        assert!(written.is_ok(), "what was read cannot be written");
        assert!(again == file, "a snapshot that was not written is accepted with the key");
    }
}

fn checksums_of(rows: &[Row], key: &ChecksumKey, position: Position) -> Checksums {
    let mut checksums = Checksums::at(position);
    for row in rows {
        checksums.of_mut(row.kind()).add(key, row.name(), &row.bytes);
        checksums.note_ordinal(&row.record);
    }
    checksums
}

/// Writes a snapshot of records, whose bodies each have two bytes of length and one that says of which
/// version and kind.
fn round_trip_snapshot(data: &[u8], form: Form, key: &ChecksumKey) {
    let Some((flip, data)) = data.split_first_chunk() else { return };
    let mut rest = Cursor(data);
    let mut rows = vec![];
    while let Some([l1, l2, what]) = rest.array() {
        let Some(body) = rest.take(usize::from(u16::from_le_bytes([l1, l2]))) else { break };
        // As docs/FORMAT.md has it.
        let version = if form == Form::First { 1 } else { 1 + (what >> 7) };
        let mut row = [&[version], body].concat();
        let hash = blake3::hash(&row);
        row.extend_from_slice(&hash.as_bytes()[..16]);
        let kind = match form {
            Form::First => {
                if what & 1 == 1 {
                    RecordKind::Tenant
                } else {
                    RecordKind::Key
                }
            }
            Form::Second(_) => RecordKind::ALL[usize::from(what & 0x7F) % RecordKind::ALL.len()],
        };
        rows.extend(Row::decode(kind, row));
    }
    rows.sort_by(|a, b| (a.kind(), a.name()).cmp(&(b.kind(), b.name())));
    rows.dedup_by(|a, b| (a.kind(), a.name()) == (b.kind(), b.name()));
    let checksums = checksums_of(&rows, key, POSITION);
    let mut file = vec![];
    let records = rows.iter().map(|row| (row.kind(), &row.bytes[..]));
    let written = snapshot::write_records(&checksums, form, key, TIME, records, &mut file);
    assert!(written.is_ok(), "a vector takes everything");
    for key in [None, Some(key)] {
        let Ok((contents, read)) = read_snapshot(&file, key) else { panic!("what was written is refused") };
        assert_eq!((contents.header.position, contents.header.time), (POSITION, TIME));
        assert_eq!(form_of(&contents.header), form);
        assert!(
            read.iter().map(|row| &row.bytes).eq(rows.iter().map(|row| &row.bytes)),
            "other records than were written"
        );
    }
    let bit = u32::from_le_bytes(*flip) as usize % (8 * file.len());
    file[bit / 8] ^= 1 << (bit % 8);
    assert!(read_snapshot(&file, None).is_err(), "bit {bit} was flipped");
}

/// Watermarks: what is written is read again, a flipped bit is noticed, and what was not sealed with the key
/// says nothing of a log.
pub fn watermarks(data: &[u8]) {
    let seals = SealKey::of(&chain_key());
    if let Acknowledged::Sealed(position, log) = watermark::decode(data, &seals) {
        assert_eq!(watermark::encode(&position, log, &seals)[..80], data[..80], "nobody else can seal it");
    }
    let mut rest = Cursor(data);
    let (Some(revision), Some(chain), Some(log), Some(flip)) = (rest.u64(), rest.array(), rest.array(), rest.u32())
    else {
        return;
    };
    let (position, log) = (Position { revision: Revision(revision), chain: Chain(chain) }, LogId(log));
    let mut bytes = watermark::encode(&position, log, &seals);
    assert_eq!(watermark::decode(&bytes, &seals), Acknowledged::Sealed(position, log), "what was written is refused");
    let bit = flip as usize % (80 * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert_eq!(watermark::decode(&bytes, &seals), Acknowledged::Nothing, "bit {bit} was flipped");
}

/// A view of some chunks.
struct Chunks {
    to_write: Vec<Vec<u8>>,
    read: Mutex<Vec<Option<Vec<u8>>>>,
}

impl Chunks {
    fn new(to_write: Vec<Vec<u8>>) -> Self {
        let read = Mutex::new(vec![None; to_write.len()]);
        Self { to_write, read }
    }

    fn was_read(&self) -> bool {
        self.read.lock().iter().zip(&self.to_write).all(|(read, written)| read.as_ref() == Some(written))
    }
}

impl MaterializedView for Chunks {
    fn load(&self, _: &[Record]) {}

    fn reset(&self) {}

    fn on_loaded(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        POSITION.revision
    }

    fn latest_time(&self) -> UnixMillis {
        TIME
    }

    fn advance_time(&self, _: UnixMillis) {}

    fn chunk_count(&self) -> usize {
        self.to_write.len()
    }

    fn format_version(&self) -> u32 {
        2
    }

    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_> {
        Box::new(ChunksWriter(&self.to_write))
    }

    fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()> {
        *self.read.lock().get_mut(number)? = Some(bytes.to_vec());
        Some(())
    }
}

struct ChunksWriter<'a>(&'a [Vec<u8>]);

impl ChunkWriter for ChunksWriter<'_> {
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0[number]);
    }
}

/// A file in memory, and its path.
fn file_of(bytes: &[u8]) -> Option<(File, PathBuf)> {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Some((file, path))
}

/// Index checkpoints: what is written is read again, and a flipped bit is noticed. The first byte says what
/// the others are: a file; or chunks, of which a directory with intact seals tells the truth or not.
pub fn checkpoints(data: &[u8]) {
    let key = CheckpointKey::of(&chain_key());
    let Some((what, rest)) = data.split_first() else { return };
    if what % 3 == 0 {
        let Some((_file, path)) = file_of(rest) else { return };
        let view = Chunks::new(vec![vec![]; usize::from(what / 3)]);
        let read = index_checkpoint::read(&path, &key, &view);
        let verified = index_checkpoint::verify(&path, &key);
        assert!(read.is_err() || verified.is_ok(), "read, and not sound");
        return;
    }
    let Some((flip, rest)) = rest.split_first_chunk() else { return };
    let flip = u32::from_le_bytes(*flip) as usize;
    let (lengths, mut bytes) = rest.split_at(rest.len().min(usize::from(what >> 4)));
    let mut chunks = vec![];
    for length in lengths {
        let (chunk, further) = bytes.split_at(bytes.len().min((*length).into()));
        chunks.push(chunk.to_vec());
        bytes = further;
    }
    let view = Chunks::new(chunks);
    let mut file = vec![];
    let written = index_checkpoint::write(&view, POSITION, || POSITION, &key, &mut file);
    assert!(written.is_ok(), "a vector takes everything");
    if what % 3 == 1 {
        check_checkpoint(&mut file, flip, &view, &key);
    } else if !view.to_write.is_empty() {
        check_lying_directory(&mut file, flip, bytes, &view, &key);
    }
}

fn check_checkpoint(file: &mut [u8], flip: usize, view: &Chunks, key: &CheckpointKey) {
    let Some((_file, path)) = file_of(file) else { return };
    let Ok(read) = index_checkpoint::read(&path, key, view) else { panic!("what was written is refused") };
    assert!(view.was_read(), "other chunks than were written");
    assert_eq!((read.position, read.bytes), (POSITION, file.len() as u64));
    let bit = flip % (8 * file.len());
    file[bit / 8] ^= 1 << (bit % 8);
    let Some((_file, path)) = file_of(file) else { return };
    assert!(index_checkpoint::verify(&path, key).is_err(), "bit {bit} was flipped");
    assert!(index_checkpoint::read(&path, key, view).is_err(), "bit {bit} was flipped");
}

/// Changes the length of a chunk in the directory, and seals it again.
fn check_lying_directory(file: &mut [u8], which: usize, lie: &[u8], view: &Chunks, key: &CheckpointKey) {
    const ENTRY_BYTES: usize = 40;
    const END_BYTES: usize = 144;
    let end_at = file.len() - END_BYTES;
    let directory_at = end_at - ENTRY_BYTES * view.to_write.len();
    let entry = directory_at + which % view.to_write.len() * ENTRY_BYTES;
    let Some(length) = lie.first_chunk::<8>() else { return };
    let is_lie = file[entry..entry + 8] != *length;
    file[entry..entry + 8].copy_from_slice(length);
    let seal = key.of_end(&file[directory_at..end_at], &file[end_at..file.len() - 32]);
    let seal_at = file.len() - 32;
    file[seal_at..].copy_from_slice(seal.as_bytes());
    let Some((_file, path)) = file_of(file) else { return };
    assert_eq!(index_checkpoint::verify(&path, key).is_err(), is_lie, "a chunk of another length");
    assert_eq!(index_checkpoint::read(&path, key, view).is_err(), is_lie, "a chunk of another length");
}
