//! The journal: whatever happens to a segment, a scan passes on only entries that were written, in their
//! order, or refuses it; what was cut off is only what follows them. A frame with a good checksum is bounded,
//! and not believed without its chain.
#![no_main]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use crc::{CRC_32_ISCSI, Crc};
use keyward::store::local::fuzz_targets::watermarks;
use keyward::store::local::journal::frame::{FRAME_BYTES_READ_MAX, Frame, FrameBuilder};
use keyward::store::local::journal::scan::{scan_after, segment_path, verify};
use keyward::store::local::journal::segment::{HeaderError, LineHeader, SealKey, SegmentHeader};
use keyward::store::local::journal::{Chain, ChainKey, Position};
use keyward::store::record::pb::{JournalEntry, Redo, redo};
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::{LineRecord, LogId};
use zeroize::Zeroizing;

/// Bytes of a frame before and after its payload.
const FRAME_HEADER_BYTES: usize = 24;
const CHAIN_BYTES: usize = 32;

/// A directory of this process, in memory where there is one.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = if fs::exists("/dev/shm").unwrap_or_default() { "/dev/shm".into() } else { std::env::temp_dir() };
    let dir = base.join(format!("keyward-fuzz-journal-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for segments");
    dir
});

fn key() -> ChainKey {
    ChainKey(Zeroizing::new([0x11; 32]))
}

/// Sets the checksum of a frame, as docs/FORMAT.md has it.
fn put_checksum(frame: &mut [u8]) {
    let crc = Crc::<u32>::new(&CRC_32_ISCSI);
    let mut digest = crc.digest();
    digest.update(&frame[..20]);
    digest.update(&frame[FRAME_HEADER_BYTES..]);
    frame[20..24].copy_from_slice(&digest.finalize().to_le_bytes());
}

/// Headers: what is written is read again, a flipped bit is noticed, and what is sealed is what would be
/// written.
fn check_header(data: &[u8]) {
    let seals = SealKey::of(&key());
    let _header = SegmentHeader::read_unsealed(data);
    if let Ok(header) = SegmentHeader::read(data, &seals)
        && header.log.is_some()
    {
        assert_eq!(header.encode(&seals), data[..header.bytes()], "nobody else can seal it");
    }
    let Some((fields, rest)) = data.split_first_chunk::<58>() else { return };
    let (flip, fields) = fields.split_at(2);
    let revision = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| fields[at])) >> 1;
    let chain = Chain(std::array::from_fn(|at| fields[8 + at]));
    let log = LogId(std::array::from_fn(|at| fields[40 + at]));
    let position = Position { revision: Revision(revision), chain };
    let header = if rest.len() % 2 == 0 {
        SegmentHeader::after(position, log)
    } else {
        let base = LineRecord::base_after(position.revision).expect("half of all revisions");
        let line = LineRecord { log_id: log, ended: position.revision, base, time: UnixMillis(0) };
        let line = *LineHeader::new(&line, &position.chain, &key()).header();
        assert!(line.follows(&position, None, &key()) && !line.follows(&line.start, None, &key()));
        line
    };
    let mut bytes = [&header.encode(&seals)[..], rest].concat();
    assert_eq!(SegmentHeader::read(&bytes, &seals), Ok(header), "what was written is refused");
    let other = SealKey::of(&ChainKey(Zeroizing::new([0x12; 32])));
    assert_eq!(SegmentHeader::read(&bytes, &other), Err(HeaderError::Unsealed), "another pepper file");
    let bit = usize::from(u16::from_le_bytes([flip[0], flip[1]])) % (8 * header.bytes());
    bytes[bit / 8] ^= 1 << (bit % 8);
    assert!(SegmentHeader::read(&bytes, &seals).is_err(), "bit {bit} was flipped");
}

/// Any bytes, and the same as the payload of a frame with a good checksum.
fn check_frame(data: &[u8]) {
    check_header(data);
    let mut framed = [&b"KWJG"[..], &[0; 20], data].concat();
    framed.resize(framed.len().max(FRAME_HEADER_BYTES + CHAIN_BYTES), 0);
    let payload = framed.len() - FRAME_HEADER_BYTES - CHAIN_BYTES;
    framed[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
    framed[8] = 1;
    framed[16] = data.first().copied().unwrap_or_default() % 4;
    put_checksum(&mut framed);
    assert!(Frame::read(&framed).is_some(), "a good checksum is refused");
    for bytes in [data, &framed] {
        let Some(frame) = Frame::read(bytes) else { continue };
        assert!(frame.bytes.is_multiple_of(8) && frame.bytes < bytes.len() + 8, "a frame of {}", frame.bytes);
        assert!(frame.bytes <= FRAME_BYTES_READ_MAX, "a frame of {}", frame.bytes);
        let _time = frame.first_time();
        let claimed = frame.claimed_end();
        if let Ok((entries, end)) = frame.verify_after::<JournalEntry>(&Position::START, &key()) {
            // The chain proves that a builder made it of these entries.
            let mut builder = FrameBuilder::after(&Position::START);
            entries.iter().for_each(|entry| builder.push(entry, &key()));
            assert_eq!((builder.end(), end), (claimed, claimed), "an entry has another form than its writer's");
        }
    }
}

/// Entries of some frames, by the lengths in the input.
fn frames_of(lengths: &[u8]) -> (Vec<Vec<JournalEntry>>, Vec<Vec<u8>>) {
    let (mut all, mut frames, mut position) = (vec![], vec![], Position::START);
    for (nth, length) in lengths.iter().enumerate() {
        let mut builder = FrameBuilder::after(&position);
        let entries: Vec<_> = (0..1 + u64::from(length % 3))
            .map(|at| JournalEntry {
                revision: position.revision.0 + 1 + at,
                time_ms: 1_790_000_000_000 + nth as i64,
                actor: "keyward".into(),
                method: "DisableKey".into(),
                target: "t".repeat((*length).into()),
                redo: vec![Redo { record: Some(redo::Record::Key(vec![*length; (length / 4).into()])) }],
                ..JournalEntry::default()
            })
            .collect();
        entries.iter().for_each(|entry| builder.push(entry, &key()));
        position = builder.end();
        frames.push(builder.finish().expect("a short frame"));
        all.push(entries);
    }
    (all, frames)
}

/// Damages a segment, and scans it.
fn check_scan(data: &[u8]) {
    let Some((&[count, how, a1, a2], rest)) = data.split_first_chunk() else { return };
    let (lengths, damage) = rest.split_at(rest.len().min(usize::from(count % 6)));
    let (written, frames) = frames_of(lengths);
    let log = (how / 5 % 2 == 1).then_some(LogId([0x33; 16]));
    let header = SegmentHeader { start: Position::START, log, ended: None };
    let sound = [header.encode(&SealKey::of(&key())), frames.concat()].concat();
    let mut segment = sound.clone();
    let at = usize::from(u16::from_le_bytes([a1, a2])) % segment.len();
    match how % 5 {
        // Bytes are overwritten, inserted or appended, or the end is lost, as by a crash.
        0 => segment.iter_mut().skip(at).zip(damage).for_each(|(byte, other)| *byte = *other),
        1 => drop(segment.splice(at..at, damage.iter().copied())),
        2 => segment.extend_from_slice(damage),
        3 => segment[at..].fill(0),
        // A frame's checksum is made good again after it was changed.
        _ if !frames.is_empty() => {
            let which = at % frames.len();
            let begin = header.bytes() + frames[..which].iter().map(Vec::len).sum::<usize>();
            let length = u32::from_le_bytes([4, 5, 6, 7].map(|at| frames[which][at])) as usize;
            let frame = &mut segment[begin..begin + FRAME_HEADER_BYTES + length + CHAIN_BYTES];
            frame.iter_mut().skip(8 + at % 64).zip(damage).for_each(|(byte, other)| *byte ^= *other);
            put_checksum(frame);
        }
        _ => {}
    }
    segment.resize(segment.len().next_multiple_of(8) + 256, 0);
    let path = segment_path(&DIR, 1);
    let file = fs::File::create(&path).expect("a segment");
    file.write_all_at(&segment, 0).expect("a segment");

    let mut read = vec![];
    let scanned = scan_after::<JournalEntry>(&DIR, &key(), Revision(0), |entries, _| read.push(entries));
    assert!(read.len() <= written.len() && read[..] == written[..read.len()], "other entries than were written");
    let verified = verify(&DIR, &key(), &[]);
    assert_eq!(verified.is_ok(), scanned.is_ok(), "the one scan accepts what the other refuses");
    let Ok(end) = scanned else {
        assert!(!segment.starts_with(&sound) || how % 5 == 2, "an intact segment is refused");
        return;
    };
    let last = written[..read.len()].iter().flatten().last().map_or(0, |entry| entry.revision);
    assert_eq!(end.position.revision, Revision(last));
    let segment_end = end.segment.expect("a segment was read");
    let kept = header.bytes() + frames[..read.len()].iter().map(Vec::len).sum::<usize>();
    assert_eq!(segment_end.offset, kept as u64, "the next frame goes behind the last one");
    // What follows and is intact was acknowledged: then the scan refuses.
    let lost = &segment[kept..];
    let follows = (8..lost.len()).step_by(8).any(|at| Frame::read(&lost[at..]).is_some());
    assert!(!follows, "an acknowledged frame is cut off");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((127, rest)) => watermarks(rest),
    Some((0..127, rest)) => check_frame(rest),
    Some((_, rest)) => check_scan(rest),
    None => {}
});
