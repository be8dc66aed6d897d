//! The table: a view of the journal, in sled.
//!
//! ```text
//! keys     digest (32 bytes)                 -> record
//! ids      tenant 0 key_id                   -> digest
//! facets   tenant 0 facet 0 state 0 key_id   -> nothing; a facet is `o` 0 owner, `l` 0 name 0 value, or `s`
//!          0 `d` 0 time, 8 bytes, tenant 0 key_id -> nothing: when a suspension ends, or a purge is due
//! aliases  digest of a secret before the current one -> digest
//! tenants  tenant                            -> record
//! owners   tenant 0 owner                    -> record
//! issuers  actor                             -> record
//! purged   tenant 0 key_id                   -> purge mark
//! lines    revision before the line, 8 bytes -> record
//! meta     "applied"                         -> position in the log, counts and checksums
//!          "layout"                          -> the version of the above
//! ```
//!
//! The position is written in the same transaction as the records it covers, together with checksums over all
//! records, so that [`Table::check`] notices any difference from what was written.

pub(super) mod administrators;
mod bloom;
pub(super) mod checksums;
pub(super) mod defragment;
mod error;
mod index_keys;
mod intersection;
mod list_turns;
mod pre_images;
mod purge_marks;
pub(super) mod readers;
mod row;
mod row_transaction;
pub(super) mod secondary_index;
pub mod snapshot_scan;
mod verify_scan;

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyward_core::digest::Digest;
use keyward_core::event::Record;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::KeyRecord;
use parking_lot::Mutex;
use sled::transaction::TransactionError;
use sled::{Batch, IVec, Transactional, Tree};

use self::bloom::{BloomFilter, NameHash};
use self::checksums::{ChecksumKey, Checksums};
pub use self::error::TableError;
pub(super) use self::error::guard;
use self::index_keys::{aliases_of, id_name, index_keys};
use self::list_turns::ListTurns;
use self::pre_images::SnapshotScans;
pub use self::row::Row;
use self::row::last_of_each;
use self::row_transaction::RowTransaction;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::record::{RecordKind, decode, decode_key};
use crate::store::{StoreError, TableStats};
use crate::util::files::{create_private_dir, lock_with_retry, with_path};
use crate::util::progress::Progress;

/// sled's cache, by its own count: what is resident is two to three times that. The hot reads are served by
/// the index, and what is read of the table comes from the kernel's cache of its files.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// How often sled flushes by itself. Durability comes from the journal; this only shortens the replay after a
/// crash.
const FLUSH_EVERY_MS: u64 = 1_000;

/// How often the size of the files is measured while the table is written.
const MEASURED_EVERY: Duration = Duration::from_secs(5);
/// Records copied in one batch.
const COPY_ROWS: usize = 1_024;

/// The open table.
pub struct Table {
    keys: Tree,
    ids: Tree,
    facets: Tree,
    aliases: Tree,
    tenants: Tree,
    owners: Tree,
    issuers: Tree,
    purged: Tree,
    lines: Tree,
    meta: Tree,
    checksum_key: ChecksumKey,
    scans: Mutex<SnapshotScans>,
    bloom: BloomFilter,
    size: Size,
    list_turns: ListTurns,
    /// Whether the secondary index was found to be that of the current layout, whatever is noted.
    facets_fit: AtomicBool,
    /// The last field, so that sled is dropped last.
    _db: Closing,
}

/// The table's size, as last measured.
#[derive(Debug)]
struct Size {
    path: PathBuf,
    files: AtomicU64,
    /// Bytes of names and values. Set when the table is read completely, and updated from then on.
    records: AtomicU64,
    measured: Mutex<Instant>,
}

/// sled syncs its file when the last handle is dropped, and panics if it cannot.
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

/// What is known about a table that was read completely.
pub(super) struct Contents {
    bloom: BloomFilter,
    record_bytes: u64,
}

impl Table {
    /// Opens the table at `path`, creating it if it is missing.
    ///
    /// # Errors
    /// When sled fails. It may also panic.
    pub fn open(path: &Path, key: &ChainKey) -> Result<Self, TableError> {
        Self::open_with(path, key, None)
    }

    /// Opens a table whose contents are known: it was read completely and closed by [`Table::close`].
    pub(super) fn open_verified(path: &Path, key: &ChainKey, contents: Contents) -> Result<Self, TableError> {
        Self::open_with(path, key, Some(contents))
    }

    /// Closes the table, and returns what is known about it.
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
        let (aliases, tenants, meta) = (tree("aliases")?, tree("tenants")?, tree("meta")?);
        let (owners, issuers, purged, lines) = (tree("owners")?, tree("issuers")?, tree("purged")?, tree("lines")?);
        let (checksum_key, scans, _db) = (ChecksumKey::of(key), Mutex::default(), Closing(Some(db)));
        // Damage here is noticed when the table is read.
        let applied = meta.get(APPLIED)?;
        if applied.is_none() {
            meta.insert(LAYOUT, &[LAYOUT_VERSION])?;
        }
        let checksums = applied.and_then(|bytes| Checksums::decode(&checksum_key, &bytes)).unwrap_or(Checksums::EMPTY);
        let contents =
            contents.unwrap_or_else(|| Contents { bloom: BloomFilter::for_keys(checksums.keys()), record_bytes: 0 });
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
            aliases,
            tenants,
            owners,
            issuers,
            purged,
            lines,
            meta,
            checksum_key,
            scans,
            bloom: contents.bloom,
            size,
            list_turns: ListTurns::new(),
            facets_fit: AtomicBool::new(false),
            _db,
        })
    }

    /// The table's size, as last measured. The bytes of its records are known once it has been read.
    pub(super) fn stats(&self) -> TableStats {
        let (bytes, record_bytes) =
            (self.size.files.load(Ordering::Relaxed), self.size.records.load(Ordering::Relaxed));
        TableStats { bytes, record_bytes, rebuilds: 0 }
    }

    /// Measures its files.
    pub(super) fn measure(&self) -> TableStats {
        *self.size.measured.lock() = Instant::now();
        self.size.files.store(bytes_below(&self.size.path), Ordering::Relaxed);
        self.stats()
    }

    /// Sets the bytes of its records.
    pub(super) fn set_record_bytes(&self, bytes: u64) {
        self.size.records.store(bytes, Ordering::Relaxed);
    }

    /// Copies another table into this one, which must be empty. Not in one transaction: a caller must discard
    /// a partly filled table. The position is written last.
    pub(super) fn fill_from(&self, other: &Self) -> Result<(), TableError> {
        let checksums = other.checksums()?;
        let mut progress = Progress::begin("copying the table, in keys", checksums.keys());
        let mut rows = other.rows();
        loop {
            let some = rows.by_ref().take(COPY_ROWS).collect::<Result<Vec<_>, _>>()?;
            if some.is_empty() {
                break;
            }
            let mut records: [Batch; RecordKind::ALL.len()] = Default::default();
            let [mut ids, mut facets, mut aliases] = std::array::from_fn(|_| Batch::default());
            for row in &some {
                self.size.records.fetch_add(row.size(), Ordering::Relaxed);
                records[row.kind() as usize].insert(row.name(), &*row.bytes);
                let Record::Key(key) = &row.record else { continue };
                ids.insert(id_name(&key.tenant, &key.key_id), row.name());
                index_keys(key).for_each(|facet| facets.insert(facet, &[]));
                aliases_of(key).for_each(|alias| aliases.insert(alias.as_bytes(), row.name()));
            }
            self.bloom.add(some.iter().flat_map(|row| self.name_hashes(row)));
            let records = RecordKind::ALL.into_iter().map(|kind| self.tree(kind)).zip(records);
            let views = [(&self.ids, ids), (&self.facets, facets), (&self.aliases, aliases)];
            for (tree, batch) in records.chain(views) {
                tree.apply_batch(batch)?;
            }
            progress.advance(some.len() as u64);
        }
        self.meta.insert(APPLIED, checksums.encode(&self.checksum_key))?;
        Ok(())
    }

    /// The position in the log that the table covers.
    ///
    /// When it is damaged.
    pub fn applied(&self) -> Result<Position, TableError> {
        Ok(self.checksums()?.position)
    }

    /// Writes records and the position after them, atomically. Later rows win over earlier ones.
    ///
    /// The old records come from the transaction itself: sled looks them up in any case, and a separate read
    /// would double the cost.
    ///
    /// # Errors
    /// When sled fails.
    pub fn apply(&self, rows: &[Row], to: Position) -> Result<(), TableError> {
        self.apply_numbered(rows, to, 0)
    }

    /// The same, where ordinals below a number were given, whatever keys there are.
    pub(in crate::store::local) fn apply_numbered(
        &self,
        rows: &[Row],
        to: Position,
        next_ordinal: u32,
    ) -> Result<(), TableError> {
        // A snapshot scan reads between two transactions, never within one.
        let scans = RefCell::new(self.scans.lock());
        let rows: Vec<_> = last_of_each(rows).collect();
        self.bloom.add(rows.iter().flat_map(|row| self.name_hashes(row)));
        let mut with_rows = self.checksums()?;
        with_rows.position = to;
        with_rows.next_ordinal = with_rows.next_ordinal.max(next_ordinal);
        for row in rows.iter().filter(|row| row.is_kept()) {
            with_rows.of_mut(row.kind()).add(&self.checksum_key, row.name(), &row.bytes);
            with_rows.note_ordinal(&row.record);
        }
        let records = (&self.keys, &self.tenants, &self.owners, &self.issuers, &self.purged, &self.lines);
        let (keys, tenants, owners, issuers, purged, lines) = records;
        let trees = (keys, tenants, owners, issuers, purged, lines, &self.ids, &self.facets, &self.aliases, &self.meta);
        let turn = self.list_turns.begin_transaction();
        // A table that was built from a snapshot may have the mark of an id that is used again.
        let forgets_marks = !self.purged.is_empty();
        let written =
            trees.transaction(|(keys, tenants, owners, issuers, purged, lines, ids, facets, aliases, meta)| {
                let mut transaction = RowTransaction {
                    keys,
                    ids,
                    facets,
                    aliases,
                    key: &self.checksum_key,
                    scans: &mut scans.borrow_mut(),
                    checksums: with_rows,
                    replaced: 0,
                };
                for row in &rows {
                    let tree = match (row.kind(), &row.record) {
                        (_, Record::Key(key)) => {
                            transaction.put_key(row, key)?;
                            continue;
                        }
                        (_, Record::Purged(mark)) => {
                            if mark.key_lives {
                                continue;
                            }
                            transaction.purge(mark)?;
                            purged
                        }
                        (RecordKind::Tenant, _) => tenants,
                        (RecordKind::Owner, _) => owners,
                        (RecordKind::Issuer, _) => issuers,
                        (RecordKind::Line, _) => lines,
                        (RecordKind::Key | RecordKind::Purged, _) => continue,
                    };
                    let old = tree.insert(row.name(), &*row.bytes)?;
                    transaction.note(row.kind(), row.name(), old.as_ref());
                }
                if forgets_marks {
                    transaction.forget_marks_of(&rows, purged)?;
                }
                let RowTransaction { checksums, replaced, .. } = transaction;
                meta.insert(APPLIED, checksums.encode(&self.checksum_key))?;
                Ok(replaced)
            });
        drop(turn);
        let replaced = written.map_err(|error| match error {
            TransactionError::Storage(error) => TableError::from(error),
            TransactionError::Abort(error) => error,
        })?;
        let added = rows.iter().filter(|row| row.is_kept()).map(|row| row.size()).sum::<u64>();
        // Modulo 2^64: the start value is unknown until the table has been read completely.
        self.size.records.fetch_add(added.wrapping_sub(replaced), Ordering::Relaxed);
        if self.size.measured.lock().elapsed() >= MEASURED_EVERY {
            self.measure();
        }
        Ok(())
    }

    /// Every record with its bytes, in the order of a snapshot: by kind and name.
    pub(super) fn rows(&self) -> impl Iterator<Item = Result<Row, StoreError>> + '_ {
        RecordKind::ALL.into_iter().flat_map(|kind| {
            let decode = move |bytes: sled::Result<IVec>| Ok(Row::decode(kind, bytes?.to_vec())?);
            self.tree(kind).iter().values().map(decode)
        })
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
        let mut digest = self.ids.get(&id)?;
        // Between the two reads the key may be rotated or purged: then its id leads elsewhere, or nowhere.
        while let Some(read) = digest {
            if let Some(bytes) = self.keys.get(&read)? {
                return Ok(Some(Arc::new(decode_key(&bytes)?)));
            }
            digest = self.ids.get(&id)?;
            if digest.as_ref() == Some(&read) {
                return Err(no_key());
            }
        }
        Ok(None)
    }

    /// The key with a digest that an id refers to, while nothing is written.
    pub(super) fn key_of(&self, digest: &[u8]) -> Result<Arc<KeyRecord>, StoreError> {
        let bytes = self.keys.get(digest)?.ok_or_else(no_key)?;
        Ok(Arc::new(decode_key(&bytes)?))
    }

    /// Whether there is a key with this digest.
    ///
    /// # Errors
    /// When sled fails.
    pub fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        let name = digest.as_bytes();
        Ok(self.bloom.may_contain(name) && (self.keys.contains_key(name)? || self.aliases.contains_key(name)?))
    }

    /// Whether an id is of a key that was purged, and still taken.
    pub(super) fn is_purged(&self, tenant: &TenantId, key_id: &KeyId) -> Result<bool, StoreError> {
        let id = id_name(tenant, key_id);
        Ok(self.bloom.may_contain(&id) && self.purged.contains_key(id)?)
    }

    /// Every tenant, owner and issuer: there are few of them, and they are kept in memory.
    pub(super) fn kept_in_memory(&self) -> Result<Vec<Record>, StoreError> {
        let kinds = [RecordKind::Tenant, RecordKind::Owner, RecordKind::Issuer].into_iter();
        let values = kinds.flat_map(|kind| self.tree(kind).iter().values().map(move |bytes| (kind, bytes)));
        values.map(|(kind, bytes)| Ok(decode(kind, &bytes?)?)).collect()
    }

    /// The turns of lists. Nothing is written during one.
    pub(super) fn list_turns(&self) -> &ListTurns {
        &self.list_turns
    }

    /// The filter of ids and digests.
    fn bloom(&self) -> &BloomFilter {
        &self.bloom
    }

    /// The hashes of a key's id and digests.
    fn name_hashes(&self, row: &Row) -> impl Iterator<Item = NameHash> {
        let of_key = match &row.record {
            Record::Key(key) => Some(key),
            // The id of a purged key was added with the key.
            _ => None,
        };
        of_key.into_iter().flat_map(|key| {
            let id = self.bloom.hash(&id_name(&key.tenant, &key.key_id));
            [id].into_iter().chain(key.digests().map(|digest| self.bloom.hash(digest.as_bytes())))
        })
    }

    /// The key of the checksums.
    pub(super) fn checksum_key(&self) -> &ChecksumKey {
        &self.checksum_key
    }

    /// The snapshot scans in progress.
    pub(super) fn scans(&self) -> &Mutex<SnapshotScans> {
        &self.scans
    }

    /// The tree of a kind of records.
    pub(super) fn tree(&self, kind: RecordKind) -> &Tree {
        match kind {
            RecordKind::Line => &self.lines,
            RecordKind::Tenant => &self.tenants,
            RecordKind::Owner => &self.owners,
            RecordKind::Issuer => &self.issuers,
            RecordKind::Purged => &self.purged,
            RecordKind::Key => &self.keys,
        }
    }

    /// Current digests by the digests of older secrets.
    pub(super) fn aliases(&self) -> &Tree {
        &self.aliases
    }

    /// Digests by id.
    pub(super) fn ids(&self) -> &Tree {
        &self.ids
    }

    /// The secondary index.
    pub(super) fn facets(&self) -> &Tree {
        &self.facets
    }

    /// Makes applied records durable, as far as sled can.
    ///
    /// # Errors
    /// When sled fails.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.meta.flush()?;
        Ok(())
    }

    /// Whether the secondary index has the current layout.
    ///
    /// When the layout is of an unknown version.
    pub(super) fn has_current_layout(&self) -> Result<bool, TableError> {
        match self.meta.get(LAYOUT)?.as_deref() {
            Some([LAYOUT_VERSION]) => Ok(true),
            // Version 1 was not recorded, and had no states in its facets. Version 2 had neither those of
            // deleted and suspended keys, nor when keys are due.
            None | Some([2]) => Ok(false),
            Some(_) => Err(TableError::Unsound("its layout is that of another version of keyward")),
        }
    }

    /// Rebuilds the secondary index in the current layout from the records, which must have been checked.
    /// After a crash it starts over, because the version is written last.
    pub(super) fn migrate_layout(&self) -> Result<(), TableError> {
        if self.has_current_layout()? {
            return Ok(());
        }
        // As that of version 2 is, unless a key is deleted or suspended.
        if self.facets_fit.load(Ordering::Relaxed) {
            self.meta.insert(LAYOUT, &[LAYOUT_VERSION])?;
            return Ok(());
        }
        let mut progress =
            Progress::begin("making the secondary indexes of the table anew, in keys", self.checksums()?.keys());
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

    /// The position and the checksums.
    pub(super) fn checksums(&self) -> Result<Checksums, TableError> {
        let Some(bytes) = self.meta.get(APPLIED)? else { return Ok(Checksums::EMPTY) };
        Checksums::decode(&self.checksum_key, &bytes)
            .ok_or(TableError::Unsound("its note of the position in the log is damaged"))
    }
}

fn no_key() -> StoreError {
    StoreError::Engine("an id leads to no key".into())
}

const APPLIED: &str = "applied";
const LAYOUT: &str = "layout";
const LAYOUT_VERSION: u8 = 3;

/// The bytes of all files below a directory, as far as they can be read.
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

/// sled locks its file, and fails at once if it cannot. The directory is locked, so the only other holder may
/// be a thread of a table that this process has just closed.
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

/// Removes what a crash during an earlier open left behind; it would make every later open fail (sled #1533).
fn remove_half_snapshots(path: &Path) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        let half = entry.file_name().to_str().is_some_and(|n| n.starts_with("snap.") && n.ends_with(".generating"));
        if half && let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove a half snapshot of the table");
        }
    }
}
