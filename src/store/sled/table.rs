//! The table: sled, as a view of the journal.
//!
//! ```text
//! keys     digest (32 bytes)                 -> record
//! ids      tenant 0 key_id                   -> digest
//! facets   tenant 0 facet 0 state 0 key_id   -> nothing; a facet is `o` 0 owner, `l` 0 name 0 value, or `s`
//! tenants  tenant                            -> record
//! meta     "applied"                         -> position in the log, counts and checksums
//!          "layout"                          -> the version of the above
//! ```
//!
//! The position is written in the same transaction as what it covers. Beside it stand
//! checksums over all records, so that [`Table::check`] notices when sled holds anything else than what was written.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyward_core::digest::Digest;
use keyward_core::event::Record;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::KeyRecord;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use sled::transaction::{ConflictableTransactionError, TransactionError};
use sled::{Batch, Transactional, Tree};

use super::bloom::{BloomFilter, NameHash};
use super::checksums::{ChecksumKey, Checksums};
use super::journal::{ChainKey, Position};
use super::secondary_index::{id_name, index_keys};
use super::snapshot_scan::SnapshotScans;
use crate::files::{create_private_dir, lock_with_retry, resource_limit, with_path};
use crate::progress::Progress;
use crate::store::record::{DecodeError, RecordKind, decode_key, decode_tenant};
use crate::store::{StoreError, TableStats};

/// sled's cache. The index serves the reads that matter.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How often sled flushes by itself. The journal carries the promise; this only shortens the replay after a crash.
const FLUSH_EVERY_MS: u64 = 1_000;

/// How often it is looked, while the table is written, how much room its files take.
const MEASURED_EVERY: Duration = Duration::from_secs(5);
/// Records that are copied at once.
const COPY_ROWS: usize = 1_024;

/// The open table.
pub struct Table {
    keys: Tree,
    ids: Tree,
    facets: Tree,
    tenants: Tree,
    meta: Tree,
    checksum_key: ChecksumKey,
    scans: Mutex<SnapshotScans>,
    bloom: BloomFilter,
    size: Size,
    /// Held for reading by those that read lists, in turns, and for writing by each transaction. sled has a lock of its
    /// own for each key that is read: where much is written, a list would wait for a transaction at every few keys.
    turns: RwLock<()>,
    /// The last field: with it goes sled.
    _db: Closing,
}

/// What a table takes, as it was last measured.
#[derive(Debug)]
struct Size {
    path: PathBuf,
    files: AtomicU64,
    /// Names and values of its records: noted when the table is read through, and kept from then on.
    records: AtomicU64,
    measured: Mutex<Instant>,
}

/// Reads a table that may be damaged: sled panics where it meets bytes that it does not expect.
pub(super) fn guard<T>(read: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(TableError::Unsound("sled panicked over it")))
}

/// sled syncs its file when the last handle goes, and panics if it cannot.
struct Closing(Option<sled::Db>);

impl Drop for Closing {
    fn drop(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| drop(self.0.take()))).is_err() {
            tracing::error!(
                "sled panicked while it closed the table, which is no loss: the next start checks it against the journal. Look \
                 at the disk before that"
            );
        }
    }
}

/// A record and its stored bytes.
#[derive(Debug)]
pub struct Row {
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Row {
    fn kind(&self) -> RecordKind {
        match self.record {
            Record::Key(_) => RecordKind::Key,
            Record::Tenant(_) => RecordKind::Tenant,
        }
    }

    /// Bytes of its name and of itself.
    fn size(&self) -> u64 {
        (self.name().len() + self.bytes.len()) as u64
    }

    /// Its name in its tree.
    fn name(&self) -> &[u8] {
        match &self.record {
            Record::Key(key) => key.secret.digest.as_bytes(),
            Record::Tenant(tenant) => tenant.tenant.as_str().as_bytes(),
        }
    }
}

/// What is known of the contents of a table that was read through.
pub(super) struct Contents {
    bloom: BloomFilter,
    record_bytes: u64,
}

/// Why the table cannot be used. It is then rebuilt from the journal, unless the disk fails.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk fails, or is full. This says nothing about the table.
    #[error("{what}: {0}", what = resource_limit(.0).unwrap_or("the disk fails"))]
    Disk(io::Error),
    /// It is not what the journal says.
    #[error("{0}")]
    Unsound(&'static str),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sled::Error> for TableError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Disk(error),
            other => Self::Store(other.into()),
        }
    }
}

impl From<DecodeError> for TableError {
    fn from(error: DecodeError) -> Self {
        Self::Store(error.into())
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

impl Table {
    /// Opens the table at `path`, or makes an empty one.
    ///
    /// # Errors
    /// When sled fails. It may also panic.
    pub fn open(path: &Path, key: &ChainKey) -> Result<Self, TableError> {
        Self::open_with(path, key, None)
    }

    /// Opens a table of which it is known what it holds: it was closed by [`Table::close`], and read through before.
    pub(super) fn open_verified(path: &Path, key: &ChainKey, contents: Contents) -> Result<Self, TableError> {
        Self::open_with(path, key, Some(contents))
    }

    /// Closes the table, and gives what is known of it.
    pub(super) fn close(self) -> Contents {
        let Self { bloom, size, .. } = self;
        Contents { bloom, record_bytes: size.records.into_inner() }
    }

    fn open_with(path: &Path, key: &ChainKey, contents: Option<Contents>) -> Result<Self, TableError> {
        create_private_dir(path).map_err(TableError::Disk)?;
        remove_half_snapshots(path);
        wait_for_its_threads(path).map_err(TableError::Disk)?;
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES);
        let db = config.flush_every_ms(Some(FLUSH_EVERY_MS)).open()?;
        let tree = |name| db.open_tree(name);
        let (keys, ids, facets) = (tree("keys")?, tree("ids")?, tree("facets")?);
        let (tenants, meta) = (tree("tenants")?, tree("meta")?);
        let (checksum_key, scans, _db) = (ChecksumKey::of(key), Mutex::default(), Closing(Some(db)));
        // A note that is damaged is noticed when the table is read.
        let applied = meta.get(APPLIED)?;
        if applied.is_none() {
            meta.insert(LAYOUT, &[LAYOUT_VERSION])?;
        }
        let checksums = applied.and_then(|bytes| Checksums::decode(&checksum_key, &bytes)).unwrap_or(Checksums::EMPTY);
        let contents = contents
            .unwrap_or_else(|| Contents { bloom: BloomFilter::for_keys(checksums.keys.count()), record_bytes: 0 });
        let size = Size {
            path: path.to_owned(),
            files: AtomicU64::new(0),
            records: AtomicU64::new(contents.record_bytes),
            measured: Mutex::new(Instant::now()),
        };
        Ok(Self {
            keys,
            ids,
            facets,
            tenants,
            meta,
            checksum_key,
            scans,
            bloom: contents.bloom,
            size,
            turns: RwLock::default(),
            _db,
        })
    }

    /// What it takes, as it was last measured. Its records are known once it has been read through.
    pub(super) fn stats(&self) -> TableStats {
        let (bytes, record_bytes) =
            (self.size.files.load(Ordering::Relaxed), self.size.records.load(Ordering::Relaxed));
        TableStats { bytes, record_bytes, rebuilds: 0 }
    }

    /// Looks what its files take.
    pub(super) fn measure(&self) -> TableStats {
        *self.size.measured.lock() = Instant::now();
        self.size.files.store(bytes_below(&self.size.path), Ordering::Relaxed);
        self.stats()
    }

    /// Notes what its records take.
    pub(super) fn set_record_bytes(&self, bytes: u64) {
        self.size.records.store(bytes, Ordering::Relaxed);
    }

    /// Copies all of another table into this one, which is empty. Not in transactions: whoever does this
    /// discards a table that was not filled, and only at the end does it say what it covers.
    pub(super) fn fill_from(&self, other: &Self) -> Result<(), TableError> {
        let checksums = other.checksums()?;
        let mut progress = Progress::begin("copying the table, in keys", checksums.keys.count());
        let mut rows = other.rows();
        loop {
            let some = rows.by_ref().take(COPY_ROWS).collect::<Result<Vec<_>, _>>()?;
            if some.is_empty() {
                break;
            }
            let [mut keys, mut ids, mut facets, mut tenants] = std::array::from_fn(|_| Batch::default());
            for row in &some {
                self.size.records.fetch_add(row.size(), Ordering::Relaxed);
                let Record::Key(key) = &row.record else {
                    tenants.insert(row.name(), &*row.bytes);
                    continue;
                };
                keys.insert(row.name(), &*row.bytes);
                ids.insert(id_name(&key.tenant, &key.key_id), row.name());
                index_keys(key).for_each(|facet| facets.insert(facet, &[]));
            }
            self.bloom.add(some.iter().flat_map(|row| self.name_hashes(row)));
            for (tree, batch) in
                [(&self.tenants, tenants), (&self.keys, keys), (&self.ids, ids), (&self.facets, facets)]
            {
                tree.apply_batch(batch)?;
            }
            progress.advance(some.len() as u64);
        }
        self.meta.insert(APPLIED, checksums.encode(&self.checksum_key))?;
        Ok(())
    }

    /// The position in the log that the table covers.
    ///
    /// # Errors
    /// When the note of it is damaged.
    pub fn applied(&self) -> Result<Position, TableError> {
        Ok(self.checksums()?.position)
    }

    /// Writes records and the position they lead to, together. Later rows win over earlier ones.
    ///
    /// What was there before is asked of the transaction: sled looks it up for each row in any case, and a
    /// read beside the transaction would cost as much again.
    ///
    /// # Errors
    /// When sled fails.
    pub fn apply(&self, rows: &[Row], to: Position) -> Result<(), TableError> {
        // A scan reads between two transactions, never within one.
        let scans = RefCell::new(self.scans.lock());
        let rows: Vec<_> = last_of_each(rows).collect();
        self.bloom.add(rows.iter().flat_map(|row| self.name_hashes(row)));
        let mut with_rows = self.checksums()?;
        with_rows.position = to;
        for row in &rows {
            with_rows.of_mut(row.kind()).add(&self.checksum_key, row.name(), &row.bytes);
        }
        let trees = (&self.keys, &self.ids, &self.facets, &self.tenants, &self.meta);
        let turn = self.turns.write();
        let written = trees.transaction(|(keys, ids, facets, tenants, meta)| {
            let mut checksums = with_rows;
            let mut replaced = 0;
            for row in &rows {
                let (kind, name) = (row.kind(), row.name());
                let old = match kind {
                    RecordKind::Key => keys.insert(name, &*row.bytes)?,
                    RecordKind::Tenant => tenants.insert(name, &*row.bytes)?,
                };
                scans.borrow_mut().keep(kind, name, old.as_ref());
                if let Some(old) = &old {
                    replaced += (name.len() + old.len()) as u64;
                    checksums.of_mut(kind).remove(&self.checksum_key, name, old);
                }
                let Record::Key(key) = &row.record else { continue };
                ids.insert(id_name(&key.tenant, &key.key_id), name)?;
                if let Some(old) = &old {
                    let old = decode_key(old).map_err(|damage| ConflictableTransactionError::Abort(damage.into()))?;
                    for facet in index_keys(&old) {
                        facets.remove(facet)?;
                    }
                }
                for facet in index_keys(key) {
                    facets.insert(facet, &[])?;
                }
            }
            meta.insert(APPLIED, checksums.encode(&self.checksum_key))?;
            Ok(replaced)
        });
        // To the lists that wait: the next transaction comes at once.
        RwLockWriteGuard::unlock_fair(turn);
        let replaced = written.map_err(|error| match error {
            TransactionError::Storage(error) => TableError::from(error),
            TransactionError::Abort(error) => error,
        })?;
        let added = rows.iter().map(|row| row.size()).sum::<u64>();
        // Modulo 2^64: in a table that was not read through it is not known what it held.
        self.size.records.fetch_add(added.wrapping_sub(replaced), Ordering::Relaxed);
        if self.size.measured.lock().elapsed() >= MEASURED_EVERY {
            self.measure();
        }
        Ok(())
    }

    /// Every record: tenants, then keys in the order of their digests.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, StoreError>> + '_ {
        self.rows().map(|row| row.map(|row| row.record))
    }

    /// Every record with its bytes, in the same order.
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<Row, StoreError>> + '_ {
        let tenants = self.tenants.iter().values().map(|bytes| {
            let bytes = bytes?.to_vec();
            Ok(Row { record: Record::Tenant(Arc::new(decode_tenant(&bytes)?)), bytes })
        });
        let keys = self.keys.iter().values().map(|bytes| {
            let bytes = bytes?.to_vec();
            Ok(Row { record: Record::Key(Arc::new(decode_key(&bytes)?)), bytes })
        });
        tenants.chain(keys)
    }

    /// One key.
    ///
    /// # Errors
    /// When sled fails or the record is damaged.
    pub fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let id = id_name(tenant, key_id);
        if !self.bloom.may_contain(&id) {
            return Ok(None);
        }
        let Some(digest) = self.ids.get(id)? else { return Ok(None) };
        self.key_of(&digest).map(Some)
    }

    /// The key that an id leads to.
    pub(super) fn key_of(&self, digest: &[u8]) -> Result<Arc<KeyRecord>, StoreError> {
        let bytes = self.keys.get(digest)?.ok_or_else(|| StoreError::Engine("an id leads to no key".into()))?;
        Ok(Arc::new(decode_key(&bytes)?))
    }

    /// Whether a key of this digest is there.
    ///
    /// # Errors
    /// When sled fails.
    pub fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.bloom.may_contain(digest.as_bytes()) && self.keys.contains_key(digest.as_bytes())?)
    }

    /// Every tenant.
    pub(super) fn every_tenant(&self) -> Result<Vec<Record>, StoreError> {
        self.tenants.iter().values().map(|bytes| Ok(Record::Tenant(Arc::new(decode_tenant(&bytes?)?)))).collect()
    }

    /// A turn to read lists, in which nothing is written.
    pub(super) fn lock_for_list(&self) -> RwLockReadGuard<'_, ()> {
        self.turns.read()
    }

    /// Holds all lists, as a transaction does.
    #[cfg(test)]
    pub(super) fn hold_lists(&self) -> RwLockWriteGuard<'_, ()> {
        self.turns.write()
    }

    /// Which names it may hold.
    pub(super) fn bloom(&self) -> &BloomFilter {
        &self.bloom
    }

    /// The names of a row's key.
    fn name_hashes(&self, row: &Row) -> impl Iterator<Item = NameHash> + use<> {
        let names = match &row.record {
            Record::Key(key) => {
                let id = id_name(&key.tenant, &key.key_id);
                Some([self.bloom.hash(&id), self.bloom.hash(key.secret.digest.as_bytes())])
            }
            Record::Tenant(_) => None,
        };
        names.into_iter().flatten()
    }

    /// The key of its checksums.
    pub(super) fn checksum_key(&self) -> &ChecksumKey {
        &self.checksum_key
    }

    /// The scans that are being read.
    pub(super) fn scans(&self) -> &Mutex<SnapshotScans> {
        &self.scans
    }

    /// The records of a kind, by their names.
    pub(super) fn tree(&self, kind: RecordKind) -> &Tree {
        match kind {
            RecordKind::Tenant => &self.tenants,
            RecordKind::Key => &self.keys,
        }
    }

    /// Keys by their ids.
    pub(super) fn ids(&self) -> &Tree {
        &self.ids
    }

    /// Keys by what they may be listed by.
    pub(super) fn facets(&self) -> &Tree {
        &self.facets
    }

    /// Makes what was applied durable, as far as sled can.
    ///
    /// # Errors
    /// When sled fails.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.meta.flush()?;
        Ok(())
    }

    /// Whether its secondary indexes are those of this version of the program, and not of one before.
    ///
    /// # Errors
    /// When they are of a version that is not known.
    pub(super) fn has_current_layout(&self) -> Result<bool, TableError> {
        match self.meta.get(LAYOUT)?.as_deref() {
            Some([LAYOUT_VERSION]) => Ok(true),
            // Version 1 had no note of it, and no states in its facets.
            None => Ok(false),
            Some(_) => Err(TableError::Unsound("its layout is that of another version of keyward")),
        }
    }

    /// Makes its secondary indexes those of this version. It must have been checked: they are made from its records.
    /// What a crash leaves is made again, because the note of it comes last.
    pub(super) fn migrate_layout(&self) -> Result<(), TableError> {
        if self.has_current_layout()? {
            return Ok(());
        }
        let mut progress =
            Progress::begin("making the secondary indexes of the table anew, in keys", self.checksums()?.keys.count());
        self.facets.clear()?;
        let mut keys = self.keys.iter().values();
        loop {
            let (mut batch, mut count) = (Batch::default(), 0);
            for bytes in keys.by_ref().take(COPY_ROWS) {
                index_keys(&decode_key(&bytes?)?).for_each(|facet| batch.insert(facet, &[]));
                count += 1;
            }
            if count == 0 {
                break;
            }
            self.facets.apply_batch(batch)?;
            progress.advance(count);
        }
        self.meta.insert(LAYOUT, &[LAYOUT_VERSION])?;
        Ok(())
    }

    /// The position it covers, and what it holds.
    pub(super) fn checksums(&self) -> Result<Checksums, TableError> {
        let Some(bytes) = self.meta.get(APPLIED)? else { return Ok(Checksums::EMPTY) };
        Checksums::decode(&self.checksum_key, &bytes)
            .ok_or(TableError::Unsound("its note of the position in the log is damaged"))
    }
}

const APPLIED: &str = "applied";
const LAYOUT: &str = "layout";
const LAYOUT_VERSION: u8 = 2;

/// The last row of each record: within one transaction, only that one is written.
fn last_of_each(rows: &[Row]) -> impl Iterator<Item = &Row> {
    let last: HashMap<_, _> = rows.iter().enumerate().map(|(at, row)| ((row.kind(), row.name()), at)).collect();
    rows.iter().enumerate().filter(move |(at, row)| last.get(&(row.kind(), row.name())) == Some(at)).map(|(_, row)| row)
}

/// What the files in a directory and below it take, as far as that is to be had.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        // sled has just removed it.
        Err(_) => 0,
    });
    sizes.sum()
}

/// sled locks its file and gives up at once if that fails. Nobody else has it, because the directory is
/// locked; but threads of a table that this process has just closed may still hold it.
fn wait_for_its_threads(path: &Path) -> io::Result<()> {
    let path = path.join("db");
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(with_path(&path))?,
    };
    match lock_with_retry(&file) {
        Ok(()) => file.unlock().map_err(with_path(&path)),
        // sled will say so.
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(with_path(&path)(error)),
    }
}

/// Removes what a crash during an earlier open left behind, and what would make every later open fail (sled #1533).
fn remove_half_snapshots(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let half = entry.file_name().to_str().is_some_and(|n| n.starts_with("snap.") && n.ends_with(".generating"));
        if half && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove a half snapshot of the table");
        }
    }
}
