//! Reads the whole table on all cores, checks it against its checksums, and passes its records to a view.

use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyward_core::event::Record;
use parking_lot::Mutex;
use sled::Tree;

use super::checksums::Checksums;
use super::index_keys::{aliases_of, id_name, index_keys};
use super::row::Row;
use super::{Table, TableError, guard};
use crate::store::MaterializedView;
use crate::store::record::{RecordKind, decode_key};
use crate::util::parallel;
use crate::util::progress::Progress;

/// Parts in which the keys are read, by the first byte of their digests.
const KEY_PARTS: usize = 256;
/// Trees read as one part each. They come first, because the longest work comes first.
const WHOLE_TREES: usize = 4;
/// Records passed on at once.
const BATCH_RECORDS: usize = 1_024;

impl Table {
    /// Reads everything, compares it with the checksums, and passes every record to `view`, the keys in the
    /// order of their digests within each part. Of secondary indexes of another layout it is only noted
    /// whether they fit. After an error, what was passed on must be discarded.
    ///
    /// # Errors
    /// When anything differs.
    pub fn check(&self, view: &dyn MaterializedView) -> Result<(), TableError> {
        let noted = self.checksums()?;
        let has_facets = self.has_current_layout()?;
        let scan = VerifyScan {
            table: self,
            view,
            names: RandomState::new(),
            failed: AtomicBool::new(false),
            progress: Mutex::new(Progress::begin("reading the table, in keys", noted.keys())),
        };
        let mut found = ScanResult::default();
        for part in parallel::map(WHOLE_TREES + KEY_PARTS, |number| scan.part(number)) {
            found.add(&part?);
        }
        let differs = |kind: &RecordKind| found.records.of(*kind) != noted.of(*kind);
        match RecordKind::ALL.into_iter().find(differs) {
            Some(RecordKind::Key) => return Err(TableError::Unsound("its keys are not those that were written")),
            Some(RecordKind::Tenant) => return Err(TableError::Unsound("its tenants are not those that were written")),
            Some(_) => return Err(TableError::Unsound("its records are not those that were written")),
            None => {}
        }
        match () {
            () if found.records.next_ordinal > noted.next_ordinal => {
                Err(TableError::Unsound("a key has a number that was not given yet"))
            }
            () if found.aliases != found.expected_aliases => {
                Err(TableError::Unsound("its older digests do not lead to its keys"))
            }
            () if found.ids != found.expected_ids => Err(TableError::Unsound("its ids do not lead to its keys")),
            () if has_facets && found.facets != found.expected_facets => {
                Err(TableError::Unsound("its secondary indexes do not lead to its keys"))
            }
            () => {
                self.facets_fit.store(found.facets == found.expected_facets, Ordering::Relaxed);
                self.bloom().mark_complete();
                self.set_record_bytes(found.bytes);
                self.measure();
                Ok(())
            }
        }
    }
}

/// What some parts hold, and what other parts must hold accordingly.
struct ScanResult {
    /// Their position means nothing.
    records: Checksums,
    /// Of all records, including their names.
    bytes: u64,
    ids: Tally,
    facets: Tally,
    aliases: Tally,
    expected_aliases: Tally,
    expected_ids: Tally,
    expected_facets: Tally,
}

impl Default for ScanResult {
    fn default() -> Self {
        let [ids, facets, aliases, expected_aliases, expected_ids, expected_facets] = Default::default();
        Self {
            records: Checksums::EMPTY,
            bytes: 0,
            ids,
            facets,
            aliases,
            expected_aliases,
            expected_ids,
            expected_facets,
        }
    }
}

impl ScanResult {
    fn add(&mut self, other: &Self) {
        for kind in RecordKind::ALL {
            self.records.of_mut(kind).join(&other.records.of(kind));
        }
        self.records.next_ordinal = self.records.next_ordinal.max(other.records.next_ordinal);
        self.aliases.join(&other.aliases);
        self.expected_aliases.join(&other.expected_aliases);
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
            2 => self.aliases(),
            3 => self.few(),
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

    fn aliases(&self) -> Result<ScanResult, TableError> {
        let (bloom, mut names) = (self.table.bloom(), vec![]);
        let aliases = self.tally(self.table.aliases(), |alias, _| names.push(bloom.hash(alias)))?;
        bloom.add(names);
        Ok(ScanResult { aliases, ..ScanResult::default() })
    }

    /// All records but keys.
    fn few(&self) -> Result<ScanResult, TableError> {
        let (mut found, mut batch) = (ScanResult::default(), Vec::with_capacity(BATCH_RECORDS));
        for kind in RecordKind::ALL.into_iter().filter(|kind| *kind != RecordKind::Key) {
            for entry in self.table.tree(kind) {
                let (name, bytes) = entry?;
                let row = Row::decode(kind, bytes.to_vec())?;
                if row.name() != &name[..] {
                    return Err(TableError::Unsound("a record lies under the name of another"));
                }
                found.records.of_mut(kind).add(self.table.checksum_key(), &name, &bytes);
                found.bytes += (name.len() + bytes.len()) as u64;
                if kind == RecordKind::Purged {
                    // The key's own records are gone, and its id is still taken.
                    self.table.bloom().add([self.table.bloom().hash(&name)]);
                }
                batch.push(row.record);
                if batch.len() == BATCH_RECORDS {
                    self.view.load(&batch);
                    batch.clear();
                }
            }
        }
        self.view.load(&batch);
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
            found.records.of_mut(RecordKind::Key).add(self.table.checksum_key(), &digest, &bytes);
            found.bytes += (digest.len() + bytes.len()) as u64;
            found.expected_ids.add(&self.names, &id_name(&record.tenant, &record.key_id), &digest);
            index_keys(&record).for_each(|facet| found.expected_facets.add(&self.names, &facet, &[]));
            aliases_of(&record).for_each(|alias| found.expected_aliases.add(&self.names, alias.as_bytes(), &digest));
            let record = Record::Key(Arc::new(record));
            found.records.note_ordinal(&record);
            batch.push(record);
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
