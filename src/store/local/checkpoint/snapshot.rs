//! A snapshot: every record at one position, in one file. A backup has the same bytes.
//!
//! All numbers are little-endian.
//!
//! ```text
//! header: "KEYWARDS" │ version u32 │ 0 u32 │ revision u64 │ chain, 32 bytes │ time in ms i64 │ log id, 16 bytes
//!         │ seal of all before, 32 bytes │ CRC-32C of all before u32 │ 0 u32
//! record: kind u8 │ length u32 │ the stored record
//! end: 0 u8 │ length u16 │ counts and checksums as the table notes them │ blake3 of everything before, 32 bytes
//! ```
//!
//! Version 1 has no log id and no length at the end, and only tenants and keys. Records come by kind and in
//! the order of their names, keys by their digests, so that the bytes depend only on the records and the
//! time. The hash has no key, so that a backup can be checked without the pepper; the header's seal and the
//! checksums are keyed, so that a file made by somebody else is rejected.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::record::LogId;

use crate::bytes_codec::Cursor;
use crate::store::local::journal::{CRC32C, Chain, Position};
use crate::store::local::table::Row;
use crate::store::local::table::checksums::{ChecksumKey, Checksums};
use crate::store::local::table::snapshot_scan::{ScanError, SnapshotScan};
use crate::store::record::{DecodeError, RecordKind, is_first_form};
use crate::util::files::{NewFile, numbered};

/// The latest version of snapshots that this program knows.
pub const VERSION: u32 = 2;
const FIRST: u32 = 1;
const MAGIC: &[u8; 8] = b"KEYWARDS";
/// What the header of both versions begins with.
const COMMON_BYTES: usize = 64;
/// The end of a header: seal, CRC-32C and zeros.
const HEADER_END_BYTES: usize = 32 + 4 + 4;
const END: u8 = 0;
/// A version to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Version 1, for older programs. It has only tenants and keys, without fields of version 2; lines and
    /// purge marks are left out.
    First,
    /// Version 2, with the id of the log.
    Second(LogId),
}

/// A longer record is invalid.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Buffer size for reading and writing.
const BUFFER_BYTES: usize = 256 * 1024;

/// A snapshot's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its position in the log.
    pub position: Position,
    /// When it was made.
    pub time: UnixMillis,
    /// The id of the log. `None` in version 1.
    pub log_id: Option<LogId>,
    seal: [u8; 32],
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Its header.
    pub header: Header,
    /// How many tenants.
    pub tenants: u64,
    /// How many keys.
    pub keys: u64,
    /// How many records of all kinds.
    pub records: u64,
    /// No key of the log has had this ordinal or a higher one, up to here. It is known with the key alone.
    pub(in crate::store::local) next_ordinal: Option<u32>,
}

/// Why a snapshot cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What it has cannot be written in version 1.
    #[error(
        "there are records that version 1 cannot have: a key was rotated, suspended until a time or deleted, was \
         changed by somebody who is no key, or an owner, an issuer or a tenant is or was suspended"
    )]
    NeedsSecondForm,
    /// It was written by a later program.
    #[error("it has snapshot version {0}, and this program knows only {VERSION}; use a newer keyward")]
    UnknownVersion(u32),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// A record in it does not decode.
    #[error("it is damaged: {0}")]
    Record(#[from] DecodeError),
    /// It is intact, but was not made with this pepper file.
    #[error("it was not made with this pepper file, or was altered")]
    Foreign,
    /// Its records cannot be read.
    #[error(transparent)]
    SnapshotScan(#[from] ScanError),
}

/// The snapshots in a directory, newest first: revisions and paths.
///
/// When the directory cannot be read. A missing one has none.
pub(in crate::store::local) fn list(dir: &Path) -> io::Result<Vec<(Revision, PathBuf)>> {
    let found = numbered(dir, "kws")?;
    Ok(found.into_iter().map(|(number, path)| (Revision(number), path)).collect())
}

/// The path of a snapshot.
pub(in crate::store::local) fn path_of(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("{:020}.kws", revision.0))
}

/// Writes the records of a snapshot scan.
pub(in crate::store::local) fn write(
    scan: &mut SnapshotScan,
    form: Form,
    key: &ChecksumKey,
    time: UnixMillis,
    out: &mut impl Write,
) -> Result<(), SnapshotError> {
    let checksums = *scan.checksums();
    let mut writer = Writer::begin(&checksums, form, key, time, out)?;
    while let Some(batch) = scan.next_batch()? {
        for (kind, bytes) in batch {
            writer.record(kind, &bytes)?;
        }
    }
    writer.finish()
}

/// Writes records, which must be in a snapshot's order and match the checksums.
pub(in crate::store::local) fn write_records<'a>(
    checksums: &Checksums,
    form: Form,
    key: &ChecksumKey,
    time: UnixMillis,
    mut records: impl Iterator<Item = (RecordKind, &'a [u8])>,
    out: &mut impl Write,
) -> Result<(), SnapshotError> {
    let mut writer = Writer::begin(checksums, form, key, time, out)?;
    records.try_for_each(|(kind, bytes)| writer.record(kind, bytes))?;
    writer.finish()
}

/// A snapshot that is being written.
struct Writer<'a, W> {
    out: Hashing<&'a mut W>,
    piece: Vec<u8>,
    form: Form,
    /// What the table notes, sealed.
    noted: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn begin(
        checksums: &Checksums,
        form: Form,
        key: &ChecksumKey,
        time: UnixMillis,
        out: &'a mut W,
    ) -> Result<Self, SnapshotError> {
        let noted = match form {
            Form::First => checksums.encode_first(key).ok_or(SnapshotError::NeedsSecondForm)?,
            Form::Second(_) => checksums.encode(key),
        };
        let mut out = Hashing { inner: out, hasher: blake3::Hasher::new() };
        out.write_all(&header(checksums.position, form, time, key))?;
        Ok(Self { out, piece: Vec::with_capacity(BUFFER_BYTES), form, noted })
    }

    fn record(&mut self, kind: RecordKind, bytes: &[u8]) -> Result<(), SnapshotError> {
        if self.form == Form::First {
            // No verdict depends on these, and the log that is restored from it is another one.
            if matches!(kind, RecordKind::Line | RecordKind::Purged) {
                return Ok(());
            }
            if !is_first_form(bytes) {
                return Err(SnapshotError::NeedsSecondForm);
            }
        }
        self.piece.push(kind.number());
        self.piece.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= BUFFER_BYTES / 2 {
            self.out.write_all(&self.piece)?;
            self.piece.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        self.piece.push(END);
        if self.form != Form::First {
            self.piece.extend_from_slice(&u16::try_from(self.noted.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        self.piece.extend_from_slice(&self.noted);
        self.out.write_all(&self.piece)?;
        let hash = self.out.hasher.finalize();
        self.out.inner.write_all(hash.as_bytes())?;
        Ok(self.out.inner.flush()?)
    }
}

/// Reads a snapshot's header. With a key, its seal must match; without one, it must be undamaged.
pub(in crate::store::local) fn read_header(path: &Path, key: Option<&ChecksumKey>) -> Result<Header, SnapshotError> {
    parse_header(&mut File::open(path)?, key)
}

/// Reads a snapshot and passes its records on in order. They must not be trusted before this has returned.
/// With a key, the snapshot must have been made with it; without one, it must be undamaged.
pub(in crate::store::local) fn read<E: From<SnapshotError>>(
    input: impl Read,
    key: Option<&ChecksumKey>,
    mut visit: impl FnMut(Row) -> Result<(), E>,
) -> Result<Contents, E> {
    let mut input = Hashing { inner: BufReader::with_capacity(BUFFER_BYTES, input), hasher: blake3::Hasher::new() };
    let header = parse_header(&mut input, key)?;
    let mut contents = Contents { header, tenants: 0, keys: 0, records: 0, next_ordinal: None };
    let mut found = Checksums::at(header.position);
    let mut last = None;
    while let Some((kind, bytes)) = next_record(&mut input)? {
        let row = Row::decode(kind, bytes).map_err(SnapshotError::from)?;
        let place = Some((kind, row.name().to_vec()));
        if place <= last {
            return Err(SnapshotError::Damaged("its records are out of order").into());
        }
        contents.records += 1;
        match kind {
            RecordKind::Tenant => contents.tenants += 1,
            RecordKind::Key => contents.keys += 1,
            _ => {}
        }
        if let Some(key) = key {
            found.of_mut(kind).add(key, row.name(), &row.bytes);
            found.note_ordinal(&row.record);
        }
        last = place;
        visit(row)?;
    }
    contents.next_ordinal = finish(&mut input, &header, key, &found)?;
    Ok(contents)
}

/// Called before each piece of long work. An error interrupts it.
pub(super) type ContinueCheck<'a> = &'a dyn Fn() -> io::Result<()>;

/// Reads and checks a snapshot file.
pub(in crate::store::local) fn verify(
    path: &Path,
    key: Option<&ChecksumKey>,
    check_continue: ContinueCheck<'_>,
) -> Result<Contents, SnapshotError> {
    read(Interruptible { inner: File::open(path)?, check_continue }, key, |_| Ok(()))
}

/// Reads and checks a backup without its pepper file.
///
/// # Errors
/// When it is damaged, or cannot be read.
pub fn verify_without_key(path: &Path) -> Result<Contents, SnapshotError> {
    verify(path, None, &|| Ok(()))
}

/// As [`verify_without_key`], for bytes from any source.
///
/// # Errors
/// When they are damaged, or cannot be read.
pub fn verify_bytes_without_key(input: impl Read) -> Result<Contents, SnapshotError> {
    read(input, None, |_| Ok(()))
}

/// Makes a snapshot file atomically, and reads it back before it gets its name. Interrupted by the error of
/// `check_continue`.
pub(in crate::store::local) fn create(
    scan: &mut SnapshotScan,
    form: Form,
    key: &ChecksumKey,
    time: UnixMillis,
    dir: &Path,
    check_continue: ContinueCheck<'_>,
) -> Result<(Contents, PathBuf), SnapshotError> {
    let path = path_of(dir, scan.checksums().position.revision);
    let mut file = NewFile::create(&path)?;
    write(scan, form, key, time, &mut Interruptible { inner: &mut file, check_continue })?;
    let contents = verify(file.sync()?, Some(key), check_continue)?;
    file.commit()?;
    Ok((contents, path))
}

fn header(position: Position, form: Form, time: UnixMillis, key: &ChecksumKey) -> Vec<u8> {
    let (version, log_id) = match form {
        Form::First => (FIRST, None),
        Form::Second(log_id) => (VERSION, Some(log_id)),
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&position.revision.0.to_le_bytes());
    bytes.extend_from_slice(&position.chain.0);
    bytes.extend_from_slice(&time.0.to_le_bytes());
    bytes.extend(log_id.into_iter().flat_map(|log_id| log_id.0));
    let seal = key.seal(&bytes);
    bytes.extend_from_slice(&seal);
    let crc = CRC32C.checksum(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

fn parse_header(input: &mut impl Read, key: Option<&ChecksumKey>) -> Result<Header, SnapshotError> {
    const DAMAGED: SnapshotError = SnapshotError::Damaged("its header is not that of a snapshot");
    let mut bytes = vec![0; COMMON_BYTES];
    read_exactly(input, &mut bytes)?;
    if !bytes.starts_with(MAGIC) {
        return Err(DAMAGED);
    }
    let mut rest = Cursor(&bytes[MAGIC.len()..]);
    let version = rest.u32().ok_or(DAMAGED)?;
    rest.take(4); // zeros
    let revision = rest.u64().ok_or(DAMAGED)?;
    let chain = rest.array().ok_or(DAMAGED)?;
    let time = rest.i64().ok_or(DAMAGED)?;
    let log_id_bytes = match version {
        FIRST => 0,
        VERSION => 16,
        // A version that was damaged would say the same.
        other => return Err(SnapshotError::UnknownVersion(other)),
    };
    let sealed = COMMON_BYTES + log_id_bytes;
    bytes.resize(sealed + HEADER_END_BYTES, 0);
    read_exactly(input, &mut bytes[COMMON_BYTES..])?;
    let mut end = Cursor(&bytes[COMMON_BYTES..]);
    let log_id = if version == FIRST { None } else { Some(LogId(end.array().ok_or(DAMAGED)?)) };
    let seal: [u8; 32] = end.array().ok_or(DAMAGED)?;
    if end.u32() != Some(CRC32C.checksum(&bytes[..sealed + seal.len()])) {
        return Err(DAMAGED);
    }
    if key.is_some_and(|key| blake3::Hash::from(key.seal(&bytes[..sealed])) != seal) {
        return Err(SnapshotError::Foreign);
    }
    Ok(Header {
        position: Position { revision: Revision(revision), chain: Chain(chain) },
        time: UnixMillis(time),
        log_id,
        seal,
    })
}

fn next_record(input: &mut impl Read) -> Result<Option<(RecordKind, Vec<u8>)>, SnapshotError> {
    let mut kind = [0];
    read_exactly(input, &mut kind)?;
    let [kind] = kind;
    if kind == END {
        return Ok(None);
    }
    let unknown = SnapshotError::Damaged("what follows a record is neither a record nor the end");
    let kind = RecordKind::of_number(kind).ok_or(unknown)?;
    let mut length = [0; 4];
    read_exactly(input, &mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > RECORD_BYTES_MAX {
        return Err(SnapshotError::Damaged("a record is longer than records are"));
    }
    let mut bytes = vec![0; length];
    read_exactly(input, &mut bytes)?;
    Ok(Some((kind, bytes)))
}

fn finish(
    input: &mut Hashing<impl Read>,
    header: &Header,
    key: Option<&ChecksumKey>,
    found: &Checksums,
) -> Result<Option<u32>, SnapshotError> {
    let length = match header.log_id {
        None => Checksums::FIRST_BYTES,
        Some(_) => {
            let mut length = [0; 2];
            read_exactly(input, &mut length)?;
            usize::from(u16::from_le_bytes(length))
        }
    };
    let mut noted = vec![0; length];
    read_exactly(input, &mut noted)?;
    let hash = input.hasher.finalize();
    let mut written = [0; 32];
    read_exactly(&mut input.inner, &mut written)?;
    if hash != written {
        return Err(SnapshotError::Damaged("its bytes are not those that were written"));
    }
    if input.inner.read(&mut [0])? != 0 {
        return Err(SnapshotError::Damaged("something follows its end"));
    }
    let Some(key) = key else { return Ok(None) };
    let noted = Checksums::decode(key, &noted).ok_or(SnapshotError::Foreign)?;
    if !noted.has_records_of(found) {
        return Err(SnapshotError::Foreign);
    }
    // Version 1 does not tell it, and has it from the keys alone.
    Ok(Some(noted.next_ordinal.max(found.next_ordinal)))
}

fn read_exactly(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), SnapshotError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Damaged("it ends too early"),
        _ => error.into(),
    })
}

/// Calls `check_continue` before each piece.
pub(super) struct Interruptible<'a, T> {
    pub(super) inner: T,
    pub(super) check_continue: ContinueCheck<'a>,
}

impl<R: Read> Read for Interruptible<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (self.check_continue)()?;
        self.inner.read(bytes)
    }
}

impl<W: Write> Write for Interruptible<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.check_continue)()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what is read or written.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
