//! Returns disk space that the table takes beyond its records. sled rewrites a page with each change and does
//! not shrink its file, so a table can grow to many times its contents.
//!
//! At a start, once the table has been checked, its records are copied into another table beside it, which
//! replaces the old one when it is complete, checked and durable. A crash leaves a table in place, or the old
//! one beside it under a name that the next start knows ([`finish_interrupted`]). If anything fails before
//! the swap, the old table is kept.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{Table, TableError};
use crate::store::local::disk_space::{CHECKPOINT_FREE_BYTES_MIN, free_bytes};
use crate::store::local::journal::ChainKey;
use crate::util::files::{sync_parent, with_path};

/// A table is copied when its files are more than this many times its records,
const TIMES_RECORDS: u64 = 4;
/// and more than this.
const BYTES_MIN: u64 = 256 * 1024 * 1024;
/// unless its records are more than this: no change is accepted meanwhile, and a minute of that is enough.
const COPIED_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// The disk space that must be free for a copy, as a multiple of its records.
const COPY_TIMES_RECORDS: u64 = 4;

/// Why a table was not copied.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("there are {free} bytes free, and {needed} are needed")]
    DiskFull { free: u64, needed: u64 },
    #[error("sled panicked")]
    Panicked,
}

/// What to do about the size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    None,
    Copy,
    /// A copy would take too long.
    Rebuild,
}

impl Remedy {
    /// For a table with this many bytes of files and records.
    fn of(files: u64, records: u64) -> Self {
        match files > BYTES_MIN && files / TIMES_RECORDS > records {
            false => Self::None,
            true if records > COPIED_BYTES_MAX => Self::Rebuild,
            true => Self::Copy,
        }
    }
}

/// Copies a checked table if it takes much more space than it holds. Returns the table in place, and whether
/// it is a new one.
///
/// When the copy is in place and does not open. The next start rebuilds it.
pub(in crate::store::local) fn run(table: Table, path: &Path, key: &ChainKey) -> Result<(Table, bool), TableError> {
    let stats = table.measure();
    let (bytes, records) = (stats.bytes, stats.record_bytes);
    match Remedy::of(bytes, records) {
        Remedy::None => return Ok((table, false)),
        Remedy::Rebuild => {
            tracing::warn!(
                bytes,
                records,
                "the table takes far more than its records, and copying them would hold up this start; `keyward rebuild` makes it \
                 small, at a time of your choice"
            );
            return Ok((table, false));
        }
        Remedy::Copy => {
            tracing::info!(bytes, records, "the table takes far more than its records; copying them into another one");
        }
    }
    let renewed = renew(table, path, key)?;
    if renewed.1 {
        tracing::info!(
            bytes = renewed.0.measure().bytes,
            before = stats.bytes,
            "the table was built anew from its records"
        );
    }
    Ok(renewed)
}

/// Replaces a table by a copy, if one can be made.
fn renew(table: Table, path: &Path, key: &ChainKey) -> Result<(Table, bool), TableError> {
    let copied =
        catch_unwind(AssertUnwindSafe(|| copy(&table, &fresh_of(path), key))).unwrap_or(Err(CopyError::Panicked));
    let swapped = copied.and_then(|copy| {
        let known = copy.close();
        make_durable(&fresh_of(path))?;
        Ok(known)
    });
    match swapped {
        Ok(known) => {
            drop(table);
            swap_in(path).map_err(TableError::Disk)?;
            Ok((Table::open_verified(path, key, known)?, true))
        }
        Err(error) => {
            tracing::warn!(%error, "the table stays as large as it is for now");
            // If this fails, the next start removes it.
            drop(fs::remove_dir_all(fresh_of(path)));
            Ok((table, false))
        }
    }
}

/// Copies a table and checks the copy.
fn copy(table: &Table, to: &Path, key: &ChainKey) -> Result<Table, CopyError> {
    remove(to)?;
    let needed = CHECKPOINT_FREE_BYTES_MIN + COPY_TIMES_RECORDS * table.stats().record_bytes;
    let free = free_bytes(&File::open(to.parent().unwrap_or(Path::new(".")))?)?;
    if free < needed {
        return Err(CopyError::DiskFull { free, needed });
    }
    let copy = Table::open(to, key)?;
    copy.fill_from(table)?;
    copy.flush().map_err(TableError::from)?;
    copy.check(&())?;
    Ok(copy)
}

/// sled's own sync leaves a file's length and name in the kernel's memory.
fn make_durable(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            make_durable(&path)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(with_path(&path))?;
        }
    }
    File::open(dir)?.sync_all()?;
    sync_parent(dir)
}

/// Replaces a table by its copy.
fn swap_in(path: &Path) -> io::Result<()> {
    let old = old_of(path);
    remove(&old)?;
    fs::rename(path, &old)?;
    fs::rename(fresh_of(path), path)?;
    sync_parent(path)?;
    remove(&old)
}

/// Completes or undoes what a crash interrupted. Must run before anything creates a table.
pub(in crate::store::local) fn finish_interrupted(path: &Path) -> io::Result<()> {
    let old = old_of(path);
    if !path.exists() && old.exists() {
        fs::rename(&old, path)?;
        sync_parent(path)?;
    }
    remove(&old)?;
    remove(&fresh_of(path))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(with_path(dir)(error)),
        _ => Ok(()),
    }
}

/// Where a copy is built.
fn fresh_of(table: &Path) -> PathBuf {
    table.with_added_extension("new")
}

/// Where the old table is during the swap.
fn old_of(table: &Path) -> PathBuf {
    table.with_added_extension("old")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use keyward_core::digest::Digest;
    use keyward_core::event::{Record, Revision};
    use keyward_core::record::{Hold, KeyRecord, KeySpec, OwnerRecord, PurgeMark, TenantRecord};
    use keyward_core::testing::{CREATED, key_record, rotated, stamp, tenant_record};
    use zeroize::Zeroizing;

    use super::super::Row;
    use super::*;
    use crate::store::local::journal::{Chain, Position};

    fn key() -> ChainKey {
        ChainKey(Zeroizing::new([7; 32]))
    }

    fn position(revision: u64) -> Position {
        Position { revision: Revision(revision), chain: Chain([revision as u8; 32]) }
    }

    fn row(number: u32, revision: u64) -> Row {
        let spec = KeySpec {
            display_name: format!("form {revision}"),
            owner: format!("owner-{}", u64::from(number) + revision),
            labels: BTreeMap::from([("n".to_owned(), number.to_string())]),
            ..KeySpec::default()
        };
        let record = KeyRecord { spec, revision: Revision(revision), ..key_record(number) };
        Row::of(Record::Key(Arc::new(record)))
    }

    fn tenant() -> Row {
        let record = TenantRecord { revision: Revision(1), ..tenant_record("default") };
        Row::of(Record::Tenant(Arc::new(record)))
    }

    /// A table that has been changed often.
    fn planted(path: &Path) -> Table {
        let table = Table::open(path, &key()).unwrap();
        table.apply(&[tenant()], position(1)).unwrap();
        table.apply(&removals(), position(1)).unwrap();
        for revision in 2..12 {
            let rows: Vec<_> = (0..300).map(|number| row(number, revision)).collect();
            table.apply(&rows, position(revision)).unwrap();
        }
        table
    }

    /// Ten keys that were rotated twice, one that was purged after that, and an owner.
    fn removals() -> Vec<Row> {
        let mut rows = vec![];
        for number in 400..=410 {
            let mut key = KeyRecord { revision: Revision(1), ..key_record(number) };
            for rotation in 0..3 {
                rows.push(Row::of(Record::Key(Arc::new(key.clone()))));
                key = rotated(&key, 1_000 * rotation + number);
            }
        }
        let Some(Record::Key(last)) = rows.last().map(|row| row.record.clone()) else { panic!("a key") };
        let (tenant, key_id, digests) = (last.tenant.clone(), last.key_id.clone(), last.digests().collect());
        let mark = PurgeMark {
            tenant: tenant.clone(),
            key_id,
            digests,
            key_lives: false,
            time: CREATED,
            revision: Revision(1),
        };
        rows.push(Row::of(Record::Purged(Arc::new(mark))));
        let (hold, updated, revision) = (Hold { suspended: true, ..Hold::default() }, stamp(), Revision(1));
        rows.push(Row::of(Record::Owner(Arc::new(OwnerRecord { tenant, owner: "a".into(), hold, updated, revision }))));
        rows
    }

    fn records(table: &Table) -> Vec<Vec<u8>> {
        table.rows().map(|row| row.unwrap().bytes).collect()
    }

    #[test]
    fn only_a_table_that_takes_far_more_than_it_holds_is_copied() {
        let mib = 1024 * 1024;
        assert_eq!(Remedy::of(1_400 * mib, 60 * mib), Remedy::Copy);
        assert_eq!(Remedy::of(256 * mib, 1), Remedy::None, "a small one is not worth it");
        assert_eq!(Remedy::of(1_400 * mib, 350 * mib), Remedy::None);
        assert_eq!(Remedy::of(1_404 * mib, 350 * mib), Remedy::Copy);
        assert_eq!(Remedy::of(2_052 * mib, 512 * mib), Remedy::Copy);
        assert_eq!(Remedy::of(2_056 * mib, 513 * mib), Remedy::Rebuild, "it would take more than a minute");
    }

    #[test]
    fn a_copy_holds_what_the_table_held_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let table = planted(&path);
        let (held, checksums, stats) = (records(&table), table.checksums().unwrap(), table.stats());
        let (table, renewed) = renew(table, &path, &key()).unwrap();
        assert!(renewed);
        assert_eq!((records(&table), table.checksums().unwrap()), (held, checksums));
        assert_eq!(table.stats().record_bytes, stats.record_bytes);
        let absent = Digest::from_bytes([0; 32]);
        assert!(!table.has_digest(&absent).unwrap());
        for number in 0..300 {
            let Record::Key(key) = row(number, 11).record else { panic!("a key") };
            assert_eq!(table.key(&key.tenant, &key.key_id).unwrap(), Some(key.clone()), "its id leads to it");
            assert!(table.has_digest(&key.secret.digest).unwrap());
        }
        for record in removals().into_iter().map(|row| row.record) {
            let Record::Key(key) = record else { continue };
            let is_purged = key.key_id == key_record(410).key_id;
            assert_eq!(table.is_purged(&key.tenant, &key.key_id).unwrap(), is_purged);
            assert!(key.digests().all(|digest| table.has_digest(&digest).unwrap() != is_purged), "{}", key.key_id);
        }
        table.apply(&[row(300, 12)], position(12)).unwrap();
        table.check(&()).unwrap();
        drop(table);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["table"], "nothing is left beside it");
        let table = Table::open(&path, &key()).unwrap();
        table.check(&()).unwrap();
        assert_eq!((records(&table).len(), table.applied().unwrap()), (302 + 10 + 2, position(12)));
    }

    /// What a crash leaves at each step.
    #[test]
    fn a_crash_at_any_step_leaves_a_whole_table() {
        for step in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("table");
            let table = planted(&path);
            let held = records(&table);
            match step {
                // While the copy was being filled.
                0 => drop(Table::open(&fresh_of(&path), &key()).unwrap()),
                // When it was whole.
                1 => drop(copy(&table, &fresh_of(&path), &key()).unwrap()),
                _ => drop(copy(&table, &fresh_of(&path), &key()).unwrap().close()),
            }
            drop(table);
            if step >= 2 {
                fs::rename(&path, old_of(&path)).unwrap();
            }
            if step >= 3 {
                fs::rename(fresh_of(&path), &path).unwrap();
            }
            if step == 4 {
                // Half of the old one is gone.
                fs::remove_file(old_of(&path).join("conf")).unwrap();
            }
            finish_interrupted(&path).unwrap();
            assert!(!old_of(&path).exists() && !fresh_of(&path).exists(), "step {step}");
            let table = Table::open(&path, &key()).unwrap();
            table.check(&()).unwrap();
            assert_eq!(records(&table), held, "step {step}");
        }
    }

    #[test]
    fn a_table_whose_copy_fails_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let table = planted(&path);
        let held = records(&table);
        // A file where the copy is to be.
        fs::write(fresh_of(&path), "in the way").unwrap();
        let (table, renewed) = renew(table, &path, &key()).unwrap();
        assert!(!renewed);
        assert_eq!(records(&table), held);
        table.apply(&[row(300, 12)], position(12)).unwrap();
        table.check(&()).unwrap();
    }
}
