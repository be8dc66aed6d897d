//! A snapshot scan: every record of the table at one position, read while the table is being written.
//!
//! The scan reads in batches. Before the table writer overwrites a record, it saves the old bytes as a
//! pre-image, unless the scan is past that record; the scan prefers pre-images to what it finds in the table.
//! So the writer waits for one batch at most, and a scan keeps only what changed meanwhile, up to a bound
//! (copy on write).
//!
//! Several scans may run at a time, each at its own position, without waiting for each other. They share the
//! memory of a pre-image that both need.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use sled::IVec;
use tokio_util::sync::CancellationToken;

use super::checksums::Checksums;
use super::{Table, TableError};
use crate::store::record::RecordKind;

/// Records in a batch. The table writer waits for one batch at most.
const BATCH_RECORDS: usize = 512;

/// Why a scan failed.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Too much changed while it ran.
    #[error("more than {bytes_max} bytes of records changed while they were read; try again when less is going on")]
    Overflowed {
        /// The bound on its pre-images.
        bytes_max: u64,
    },
    /// The table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A running scan. It ends when this is dropped.
pub(in crate::store::local) struct SnapshotScan {
    table: Arc<Table>,
    number: u64,
    bytes_max: u64,
    overflowed: CancellationToken,
    checksums: Checksums,
    /// Kinds that are read completely.
    kinds_read: usize,
    /// The last name that was read of the next kind.
    last: Option<IVec>,
}

/// A record of a scan.
pub(super) type ScanRecord = (RecordKind, IVec);

impl SnapshotScan {
    /// Begins a scan at the table's current position. Its pre-images are bounded by `bytes_max`.
    pub(in crate::store::local) fn begin(table: &Arc<Table>, bytes_max: u64) -> Result<Self, ScanError> {
        // Held, so that no change comes between the two reads.
        let mut scans = table.scans().lock();
        let checksums = table.checksums()?;
        let (number, overflowed) = scans.begin(bytes_max);
        drop(scans);
        Ok(Self { table: table.clone(), number, bytes_max, overflowed, checksums, kinds_read: 0, last: None })
    }

    /// The checksums of the records it reads.
    pub(in crate::store::local) fn checksums(&self) -> &Checksums {
        &self.checksums
    }

    /// Cancelled when too much has changed. The scan then fails.
    pub(in crate::store::local) fn overflowed(&self) -> CancellationToken {
        self.overflowed.clone()
    }

    /// The next records, by kind and in the order of their names. `None` at the end.
    pub(in crate::store::local) fn next_batch(&mut self) -> Result<Option<Vec<ScanRecord>>, ScanError> {
        self.next_batch_of(BATCH_RECORDS)
    }

    fn next_batch_of(&mut self, records: usize) -> Result<Option<Vec<ScanRecord>>, ScanError> {
        while let Some(&kind) = RecordKind::ALL.get(self.kinds_read) {
            let (batch, is_last) = self.batch(kind, records)?;
            if is_last {
                (self.kinds_read, self.last) = (self.kinds_read + 1, None);
            }
            // All records of the batch may be newer than the scan.
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// Reads from the tree of a kind: the records that belong to the scan, and whether they are the last.
    /// What is not in the tree any more is among the pre-images.
    fn batch(&mut self, kind: RecordKind, records: usize) -> Result<(Vec<ScanRecord>, bool), ScanError> {
        let mut scans = self.table.scans().lock();
        let aside = scans.open.iter_mut().find(|aside| aside.number == self.number);
        let aside = aside.filter(|aside| !aside.overflowed.is_cancelled());
        let aside = aside.ok_or(ScanError::Overflowed { bytes_max: self.bytes_max })?;
        let from = self.last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let there = self.table.tree(kind).range::<&[u8], _>((from, Bound::Unbounded)).take(records);
        let there: BTreeMap<_, _> = there.collect::<Result<_, _>>().map_err(TableError::from)?;
        let to = there.keys().next_back().filter(|_| there.len() == records).cloned();
        let mut then: BTreeMap<IVec, Option<IVec>> = there.into_iter().map(|(name, now)| (name, Some(now))).collect();
        then.extend(aside.take_up_to(kind, to.as_ref()));
        let batch = then.into_values().flatten().map(|bytes| (kind, bytes)).collect();
        let is_last = to.is_none();
        self.last.clone_from(&to);
        aside.scanned_to = Some((kind, to));
        Ok((batch, is_last))
    }
}

impl Drop for SnapshotScan {
    fn drop(&mut self) {
        // There may be many pre-images: they are freed after the writer can go on.
        let aside = self.table.scans().lock().end(self.number);
        drop(aside);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use keyward_core::digest::Digest;
    use keyward_core::event::{Record, Revision};
    use keyward_core::record::{
        KeyRecord, OverlapStart, PreviousSecret, PurgeMark, RetiredSecret, StoredSecret, TenantRecord,
    };
    use keyward_core::testing::{CREATED, key_record, tenant_record};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::super::Row;
    use super::super::pre_images::{SnapshotScans, cost_of};
    use super::*;
    use crate::store::local::journal::{ChainKey, Position};

    /// An operation on a table. Scans are numbered in the order in which they began.
    #[derive(Clone, Debug)]
    enum Step {
        /// Writes records in one transaction, each with a note of some length.
        Write(Vec<(u8, u16, u8)>),
        Begin,
        Read(u8, usize),
        End(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => vec((0..24_u8, 0..400_u16, 0..8_u8), 1..6).prop_map(Step::Write),
            1 => Just(Step::Begin),
            4 => (any::<u8>(), 1..4_usize).prop_map(|(scan, records)| Step::Read(scan, records)),
            1 => any::<u8>().prop_map(Step::End),
        ]
    }

    /// What the table must hold, and which keys were rotated how often. `None`: it was purged.
    #[derive(Default)]
    struct Model {
        now: BTreeMap<(RecordKind, Vec<u8>), Vec<u8>>,
        rotations: BTreeMap<u8, Option<u32>>,
    }

    impl Model {
        /// Changes a record, one in four of which is a tenant. Some keys are rotated or purged.
        fn change(&mut self, (number, note, action): (u8, u16, u8), revision: u64) -> Option<Row> {
            let note = "x".repeat(note.into());
            let revision = Revision(revision);
            if number.is_multiple_of(4) {
                let tenant =
                    TenantRecord { display_name: note, revision, ..tenant_record(&format!("tenant-{number}")) };
                return Some(self.put(Row::of(Record::Tenant(Arc::new(tenant)))));
            }
            let rotations = self.rotations.entry(number).or_insert(Some(0));
            let before = (*rotations)?;
            let secret = |rotations: u32| {
                let digest = *blake3::hash(&[number, rotations as u8]).as_bytes();
                StoredSecret { digest: Digest::from_bytes(digest), ..key_record(1).secret }
            };
            let place = (RecordKind::Key, secret(before).digest.as_bytes().to_vec());
            if action == 7 && self.now.remove(&place).is_some() {
                *rotations = None;
                let KeyRecord { tenant, key_id, .. } = key_record(number.into());
                let digests = vec![secret(before).digest];
                let mark = PurgeMark { tenant, key_id, digests, key_lives: false, time: CREATED, revision };
                return Some(self.put(Row::of(Record::Purged(Arc::new(mark)))));
            }
            let after = before + u32::from(action == 6 && self.now.remove(&place).is_some());
            *rotations = Some(after);
            let previous = after.checked_sub(1).map(|before| PreviousSecret {
                secret: secret(before),
                valid_until: None,
                overlap_ms: 1,
                overlap_starts: OverlapStart::OnFirstUse,
            });
            let retired = after.checked_sub(2).map(|before| RetiredSecret { secret: secret(before), time: CREATED });
            let mut key = KeyRecord { revision, secret: secret(after), previous, retired, ..key_record(number.into()) };
            key.spec.description = note;
            Some(self.put(Row::of(Record::Key(Arc::new(key)))))
        }

        fn put(&mut self, row: Row) -> Row {
            self.now.insert((row.kind(), row.name().to_vec()), row.bytes.clone());
            row
        }
    }

    /// A scan, what it must return, and what it has returned.
    struct Reading {
        scan: SnapshotScan,
        expected: Vec<Vec<u8>>,
        given: Vec<Vec<u8>>,
        ended: bool,
    }

    impl Reading {
        /// Reads a batch. `false`: the scan has overflowed.
        fn read(&mut self, records: usize) -> bool {
            match self.scan.next_batch_of(records) {
                Ok(Some(batch)) => self.given.extend(batch.into_iter().map(|(_, bytes)| bytes.to_vec())),
                Ok(None) => self.ended = true,
                Err(ScanError::Overflowed { .. }) => return false,
                Err(ScanError::Table(error)) => panic!("{error}"),
            }
            assert!(self.expected.starts_with(&self.given), "a scan gave a record that is not of its position");
            true
        }
    }

    fn run(steps: Vec<Step>, bytes_max: u64) -> Result<(), TestCaseError> {
        let dir = tempfile::tempdir().unwrap();
        let table = Arc::new(Table::open(dir.path(), &ChainKey(Zeroizing::new([7; 32]))).unwrap());
        let (mut model, mut revision, mut readings) = (Model::default(), 0, Vec::<Reading>::new());
        for step in steps {
            let count = readings.len().max(1);
            match step {
                Step::Write(records) => {
                    revision += 1;
                    let rows: Vec<_> = records.into_iter().filter_map(|it| model.change(it, revision)).collect();
                    table.apply(&rows, Position { revision: Revision(revision), ..Position::START }).unwrap();
                }
                Step::Begin => {
                    let scan = SnapshotScan::begin(&table, bytes_max).unwrap();
                    prop_assert_eq!(scan.checksums().position.revision, Revision(revision));
                    let expected = model.now.values().cloned().collect();
                    readings.push(Reading { scan, expected, given: vec![], ended: false });
                }
                Step::Read(scan, records) => {
                    if let Some(reading) = readings.get_mut(usize::from(scan) % count) {
                        reading.read(records);
                    }
                }
                Step::End(scan) if !readings.is_empty() => drop(readings.swap_remove(usize::from(scan) % count)),
                Step::End(_) => {}
            }
            for aside in &table.scans().lock().open {
                prop_assert!(aside.bytes <= bytes_max);
                let kept: u64 = aside.before.values().map(|before| cost_of(before.as_ref())).sum();
                prop_assert_eq!(aside.bytes, kept);
            }
        }
        for mut reading in readings {
            while !reading.ended && reading.read(3) {}
            // Each scan is complete or has overflowed. A complete one may overflow later.
            prop_assert!(reading.ended || reading.scan.overflowed.is_cancelled());
            prop_assert!(!reading.ended || reading.given == reading.expected);
            prop_assert!(reading.ended || bytes_max < u64::MAX);
        }
        prop_assert!(table.scans().lock().open.is_empty());
        prop_assert!(table.rows().map(|row| row.unwrap().bytes).eq(model.now.into_values()));
        prop_assert_eq!(table.check(&()).map_err(|error| error.to_string()), Ok(()));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_of_several_cuts_is_the_table_as_it_was_when_it_began(steps in vec(step(), 1..60)) {
            run(steps, u64::MAX)?;
        }

        #[test]
        fn what_is_put_aside_for_a_cut_stays_within_its_bound(steps in vec(step(), 1..60), bytes_max in 0..4_000_u64) {
            run(steps, bytes_max)?;
        }
    }

    #[test]
    fn what_two_cuts_need_is_one_piece_of_memory() {
        let mut scans = SnapshotScans::default();
        let (_, first) = (scans.begin(u64::MAX), scans.begin(u64::MAX));
        scans.keep(RecordKind::Key, b"a name of a record that is not inline", Some(&IVec::from(vec![1_u8; 100])));
        let kept: Vec<_> =
            scans.open.iter().flat_map(|scan| scan.before.values().flatten().map(|it| it.as_ptr())).collect();
        assert!(kept.len() == 2 && kept[0] == kept[1]);
        assert!(!first.1.is_cancelled());
    }
}
