//! Reads the whole table on all cores, checks it against its checksums, and passes its records to a view.

use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyward_core::event::Record;
use parking_lot::Mutex;
use sled::Tree;

use super::checksums::Checksum;
use super::index_keys::{id_name, index_keys};
use super::{Table, TableError, guard};
use crate::store::MaterializedView;
use crate::store::record::{RecordKind, decode_key, decode_tenant};
use crate::util::parallel;
use crate::util::progress::Progress;

/// Parts in which the keys are read, by the first byte of their digests.
const KEY_PARTS: usize = 256;
/// Trees read as one part each. They come first, because the longest work comes first.
const WHOLE_TREES: usize = 3;
/// Records passed on at once.
const BATCH_RECORDS: usize = 1_024;

impl Table {
    /// Reads everything, except secondary indexes of another layout, compares it with the checksums, and
    /// passes every record to `view`, the keys in the order of their digests within each part. After an
    /// error, what was passed on must be discarded.
    ///
    /// When anything differs.
    pub fn check(&self, view: &dyn MaterializedView) -> Result<(), TableError> {
        let noted = self.checksums()?;
        let has_facets = self.has_current_layout()?;
        let scan = VerifyScan {
            table: self,
            view,
            names: RandomState::new(),
            failed: AtomicBool::new(false),
            progress: Mutex::new(Progress::begin("reading the table, in keys", noted.keys.count())),
        };
        let mut found = ScanResult::default();
        for part in parallel::map(WHOLE_TREES + KEY_PARTS, |number| scan.part(number)) {
            found.add(&part?);
        }
        match () {
            () if found.keys != noted.keys => Err(TableError::Unsound("its keys are not those that were written")),
            () if found.tenants != noted.tenants => {
                Err(TableError::Unsound("its tenants are not those that were written"))
            }
            () if found.ids != found.expected_ids => Err(TableError::Unsound("its ids do not lead to its keys")),
            () if has_facets && found.facets != found.expected_facets => {
                Err(TableError::Unsound("its secondary indexes do not lead to its keys"))
            }
            () => {
                self.bloom().mark_complete();
                self.set_record_bytes(found.bytes);
                self.measure();
                Ok(())
            }
        }
    }
}

/// What some parts hold, and what other parts must hold accordingly.
#[derive(Default)]
struct ScanResult {
    keys: Checksum,
    tenants: Checksum,
    /// Of the records of both, including their names.
    bytes: u64,
    ids: Tally,
    facets: Tally,
    expected_ids: Tally,
    expected_facets: Tally,
}

impl ScanResult {
    fn add(&mut self, other: &Self) {
        self.keys.join(&other.keys);
        self.tenants.join(&other.tenants);
        self.bytes += other.bytes;
        self.ids.join(&other.ids);
        self.facets.join(&other.facets);
        self.expected_ids.join(&other.expected_ids);
        self.expected_facets.join(&other.expected_facets);
    }
}

/// A count of names, and the sum of their hashes. The hash key is random: the table was written without
/// knowing it.
#[derive(Default, PartialEq, Eq)]
struct Tally {
    count: u64,
    hashes: u64,
}

impl Tally {
    fn add(&mut self, names: &RandomState, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.hashes = self.hashes.wrapping_add(names.hash_one((name, value)));
    }

    fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.hashes = self.hashes.wrapping_add(other.hashes);
    }
}

struct VerifyScan<'a> {
    table: &'a Table,
    view: &'a dyn MaterializedView,
    names: RandomState,
    /// Stops the other threads after a failure.
    failed: AtomicBool,
    progress: Mutex<Progress>,
}

impl VerifyScan<'_> {
    fn part(&self, number: usize) -> Result<ScanResult, TableError> {
        if self.failed.load(Ordering::Relaxed) {
            return Ok(ScanResult::default());
        }
        let read = || match number {
            0 => self.facets(),
            1 => self.ids(),
            2 => self.tenants(),
            _ => self.keys(number - WHOLE_TREES),
        };
        let read = guard(read);
        self.failed.fetch_or(read.is_err(), Ordering::Relaxed);
        read
    }

    fn facets(&self) -> Result<ScanResult, TableError> {
        Ok(ScanResult { facets: self.tally(self.table.facets(), |_, _| {})?, ..ScanResult::default() })
    }

    fn ids(&self) -> Result<ScanResult, TableError> {
        let (bloom, mut names) = (self.table.bloom(), Vec::with_capacity(BATCH_RECORDS));
        let ids = self.tally(self.table.ids(), |id, digest| {
            names.extend([bloom.hash(id), bloom.hash(digest)]);
            if names.len() >= BATCH_RECORDS {
                bloom.add(names.drain(..));
            }
        })?;
        bloom.add(names);
        Ok(ScanResult { ids, ..ScanResult::default() })
    }

    fn tally(&self, tree: &Tree, mut also: impl FnMut(&[u8], &[u8])) -> Result<Tally, TableError> {
        let mut tally = Tally::default();
        for entry in tree {
            let (name, value) = entry?;
            tally.add(&self.names, &name, &value);
            also(&name, &value);
        }
        Ok(tally)
    }

    fn tenants(&self) -> Result<ScanResult, TableError> {
        let mut found = ScanResult::default();
        for entry in self.table.tree(RecordKind::Tenant) {
            let (name, bytes) = entry?;
            found.tenants.add(self.table.checksum_key(), &name, &bytes);
            found.bytes += (name.len() + bytes.len()) as u64;
            self.view.load(&[Record::Tenant(Arc::new(decode_tenant(&bytes)?))]);
        }
        Ok(found)
    }

    /// The keys whose digests begin with this byte.
    fn keys(&self, first: usize) -> Result<ScanResult, TableError> {
        let mut found = ScanResult::default();
        let mut batch = Vec::with_capacity(BATCH_RECORDS);
        let from = Bound::Included(vec![first as u8]); // below 256
        let to = u8::try_from(first + 1).map_or(Bound::Unbounded, |next| Bound::Excluded(vec![next]));
        for entry in self.table.tree(RecordKind::Key).range((from, to)) {
            let (digest, bytes) = entry?;
            let record = decode_key(&bytes)?;
            if record.secret.digest.as_bytes()[..] != digest[..] {
                return Err(TableError::Unsound("a record lies under the digest of another"));
            }
            found.keys.add(self.table.checksum_key(), &digest, &bytes);
            found.bytes += (digest.len() + bytes.len()) as u64;
            found.expected_ids.add(&self.names, &id_name(&record.tenant, &record.key_id), &digest);
            index_keys(&record).for_each(|facet| found.expected_facets.add(&self.names, &facet, &[]));
            batch.push(Record::Key(Arc::new(record)));
            if batch.len() == BATCH_RECORDS {
                self.hand_on(&mut batch);
            }
        }
        self.hand_on(&mut batch);
        Ok(found)
    }

    fn hand_on(&self, batch: &mut Vec<Record>) {
        self.view.load(batch);
        self.progress.lock().advance(batch.len() as u64);
        batch.clear();
    }
}
