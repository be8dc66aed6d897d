//! A snapshot: every record at one position, in one file. A backup has the same bytes.
//!
//! All numbers are little-endian.
//!
//! ```text
//! header, 104 bytes: "KEYWARDS" │ version u32 │ 0 u32 │ revision u64 │ chain, 32 bytes │ time in ms i64
//!                    │ seal of the 64 bytes before, 32 bytes │ CRC-32C of the 96 bytes before u32 │ 0 u32
//! record: kind u8 (1 tenant, 2 key) │ length u32 │ the stored record
//! end: 0 u8 │ counts and checksums as the table notes them, 121 bytes │ blake3 of everything before, 32 bytes
//! ```
//!
//! Tenants come first, in the order of their names, then keys, in the order of their digests, so that the
//! bytes depend only on the records and the time. The hash has no key, so that a backup can be checked
//! without the pepper; the header's seal and the checksums are keyed, so that a file made by somebody else is
//! rejected.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};

use crate::bytes_codec::Cursor;
use crate::store::local::journal::{CRC32C, Chain, Position};
use crate::store::local::table::Row;
use crate::store::local::table::checksums::{ChecksumKey, Checksums};
use crate::store::local::table::snapshot_scan::{ScanError, SnapshotScan};
use crate::store::record::{DecodeError, RecordKind, decode_key, decode_tenant};
use crate::util::files::{NewFile, numbered};

/// The version of snapshots that this program writes, and the only one it knows.
pub const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"KEYWARDS";
const SEALED_BYTES: usize = 64;
const HEADER_BYTES: usize = 104;
const END: u8 = 0;
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
}

/// Why a snapshot cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
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
    key: &ChecksumKey,
    time: UnixMillis,
    out: &mut impl Write,
) -> Result<(), SnapshotError> {
    let checksums = *scan.checksums();
    let mut writer = Writer::begin(&checksums, key, time, out)?;
    while let Some(batch) = scan.next_batch()? {
        for (kind, bytes) in batch {
            writer.record(kind, &bytes)?;
        }
    }
    Ok(writer.finish(&checksums, key)?)
}

/// Writes records, which must be in a snapshot's order and match the checksums.
pub(in crate::store::local) fn write_records<'a>(
    checksums: &Checksums,
    key: &ChecksumKey,
    time: UnixMillis,
    mut records: impl Iterator<Item = (RecordKind, &'a [u8])>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut writer = Writer::begin(checksums, key, time, out)?;
    records.try_for_each(|(kind, bytes)| writer.record(kind, bytes))?;
    writer.finish(checksums, key)
}

/// A snapshot that is being written.
struct Writer<'a, W> {
    out: Hashing<&'a mut W>,
    piece: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn begin(checksums: &Checksums, key: &ChecksumKey, time: UnixMillis, out: &'a mut W) -> io::Result<Self> {
        let mut out = Hashing { inner: out, hasher: blake3::Hasher::new() };
        out.write_all(&header(checksums.position, time, key))?;
        Ok(Self { out, piece: Vec::with_capacity(BUFFER_BYTES) })
    }

    fn record(&mut self, kind: RecordKind, bytes: &[u8]) -> io::Result<()> {
        self.piece.push(kind as u8);
        self.piece.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= BUFFER_BYTES / 2 {
            self.out.write_all(&self.piece)?;
            self.piece.clear();
        }
        Ok(())
    }

    fn finish(mut self, checksums: &Checksums, key: &ChecksumKey) -> io::Result<()> {
        self.piece.push(END);
        self.piece.extend_from_slice(&checksums.encode(key));
        self.out.write_all(&self.piece)?;
        let hash = self.out.hasher.finalize();
        self.out.inner.write_all(hash.as_bytes())?;
        self.out.inner.flush()
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
    let mut contents = Contents { header, tenants: 0, keys: 0 };
    let mut found = Checksums { position: header.position, ..Checksums::EMPTY };
    let mut last = None;
    while let Some((kind, bytes)) = next_record(&mut input)? {
        let (record, name) = decode(kind, &bytes)?;
        let place = Some((kind, name));
        if place <= last {
            return Err(SnapshotError::Damaged("its records are out of order").into());
        }
        let (count, sum) = match kind {
            RecordKind::Tenant => (&mut contents.tenants, &mut found.tenants),
            RecordKind::Key => (&mut contents.keys, &mut found.keys),
        };
        *count += 1;
        if let (Some(key), Some((_, name))) = (key, &place) {
            sum.add(key, name, &bytes);
        }
        last = place;
        visit(Row { record, bytes })?;
    }
    finish(&mut input, key, &found)?;
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
    key: &ChecksumKey,
    time: UnixMillis,
    dir: &Path,
    check_continue: ContinueCheck<'_>,
) -> Result<(Contents, PathBuf), SnapshotError> {
    let path = path_of(dir, scan.checksums().position.revision);
    let mut file = NewFile::create(&path)?;
    write(scan, key, time, &mut Interruptible { inner: &mut file, check_continue })?;
    let contents = verify(file.sync()?, Some(key), check_continue)?;
    file.commit()?;
    Ok((contents, path))
}

fn header(position: Position, time: UnixMillis, key: &ChecksumKey) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..24].copy_from_slice(&position.revision.0.to_le_bytes());
    bytes[24..56].copy_from_slice(&position.chain.0);
    bytes[56..64].copy_from_slice(&time.0.to_le_bytes());
    let seal = key.seal(&bytes[..SEALED_BYTES]);
    bytes[SEALED_BYTES..96].copy_from_slice(&seal);
    let crc = CRC32C.checksum(&bytes[..96]).to_le_bytes();
    bytes[96..100].copy_from_slice(&crc);
    bytes
}

fn parse_header(input: &mut impl Read, key: Option<&ChecksumKey>) -> Result<Header, SnapshotError> {
    const DAMAGED: SnapshotError = SnapshotError::Damaged("its header is not that of a snapshot");
    let mut bytes = [0; HEADER_BYTES];
    read_exactly(input, &mut bytes)?;
    if !bytes.starts_with(MAGIC) || Cursor(&bytes[96..]).u32() != Some(CRC32C.checksum(&bytes[..96])) {
        return Err(DAMAGED);
    }
    let mut rest = Cursor(&bytes[MAGIC.len()..]);
    match rest.u32() {
        Some(VERSION) => {}
        other => return Err(SnapshotError::UnknownVersion(other.unwrap_or_default())),
    }
    rest.take(4); // zeros
    let revision = rest.u64().ok_or(DAMAGED)?;
    let chain = rest.array().ok_or(DAMAGED)?;
    let time = rest.i64().ok_or(DAMAGED)?;
    let seal: [u8; 32] = rest.array().ok_or(DAMAGED)?;
    if key.is_some_and(|key| blake3::Hash::from(key.seal(&bytes[..SEALED_BYTES])) != seal) {
        return Err(SnapshotError::Foreign);
    }
    Ok(Header {
        position: Position { revision: Revision(revision), chain: Chain(chain) },
        time: UnixMillis(time),
        seal,
    })
}

fn next_record(input: &mut impl Read) -> Result<Option<(RecordKind, Vec<u8>)>, SnapshotError> {
    let mut kind = [0];
    read_exactly(input, &mut kind)?;
    let kind = match kind[0] {
        END => return Ok(None),
        1 => RecordKind::Tenant,
        2 => RecordKind::Key,
        _ => return Err(SnapshotError::Damaged("what follows a record is neither a record nor the end")),
    };
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

/// The record, and its key in the table.
fn decode(kind: RecordKind, bytes: &[u8]) -> Result<(Record, Vec<u8>), SnapshotError> {
    Ok(match kind {
        RecordKind::Tenant => {
            let tenant = decode_tenant(bytes)?;
            let name = tenant.tenant.as_str().as_bytes().to_vec();
            (Record::Tenant(Arc::new(tenant)), name)
        }
        RecordKind::Key => {
            let key = decode_key(bytes)?;
            let name = key.secret.digest.as_bytes().to_vec();
            (Record::Key(Arc::new(key)), name)
        }
    })
}

fn finish(input: &mut Hashing<impl Read>, key: Option<&ChecksumKey>, found: &Checksums) -> Result<(), SnapshotError> {
    let mut noted = [0; Checksums::BYTES];
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
    match key {
        Some(key) if Checksums::decode(key, &noted).as_ref() != Some(found) => Err(SnapshotError::Foreign),
        _ => Ok(()),
    }
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
