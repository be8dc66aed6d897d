//! The table: sled, as a view of the journal.
//!
//! ```text
//! keys     digest (32 bytes)                 -> record
//! ids      tenant 0 key_id                   -> digest
//! facets   tenant 0 facet 0 key_id           -> nothing; a facet is `o` owner, `l` name 0 value, or `s` state
//! tenants  tenant                            -> record
//! meta     "applied"                         -> position in the log, counts and sums
//! ```
//!
//! The position is written in the same transaction as what it covers. Beside it stand
//! sums over all records, so that [`Table::check`] notices when sled holds anything else than what was written.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use keyward_core::digest::Digest;
use keyward_core::event::Record;
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{KeyRecord, State, TenantRecord};
use sled::transaction::TransactionError;
use sled::{Batch, Transactional, Tree};

use super::journal::{ChainKey, Position};
use super::sums::{Sum, SumKey, Sums};
use crate::files::create_private_dir;
use crate::store::record::{DecodeError, decode_key, decode_tenant};
use crate::store::{KeyQuery, PAGE_SCAN_MAX, Page, StoreError};

/// sled's cache. The index serves the reads that matter.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// How often sled flushes by itself. The journal carries the promise; this only shortens the replay after a crash.
const FLUSH_EVERY_MS: u64 = 1_000;

/// The open table.
pub struct Table {
    db: sled::Db,
    keys: Tree,
    ids: Tree,
    facets: Tree,
    tenants: Tree,
    meta: Tree,
    sum_key: SumKey,
}

/// A record and its stored bytes.
#[derive(Debug)]
pub struct Row {
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why the table cannot be used. It is then rebuilt from the journal, unless the disk fails.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk fails, or is full. This says nothing about the table.
    #[error("the disk fails: {0}")]
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
        create_private_dir(path).map_err(TableError::Disk)?;
        remove_half_snapshots(path);
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES);
        let db = config.flush_every_ms(Some(FLUSH_EVERY_MS)).open()?;
        let tree = |name| db.open_tree(name);
        let (keys, ids, facets) = (tree("keys")?, tree("ids")?, tree("facets")?);
        let (tenants, meta) = (tree("tenants")?, tree("meta")?);
        Ok(Self { db, keys, ids, facets, tenants, meta, sum_key: SumKey::of(key) })
    }

    /// The position in the log that the table covers.
    ///
    /// # Errors
    /// When the note of it is damaged.
    pub fn applied(&self) -> Result<Position, TableError> {
        Ok(self.sums()?.position)
    }

    /// Reads everything and holds it against the sums.
    ///
    /// # Errors
    /// When anything does not fit.
    pub fn check(&self) -> Result<(), TableError> {
        let noted = self.sums()?;
        let (mut keys, mut expected_ids, mut expected_facets) = (Sum::default(), Sum::default(), Sum::default());
        let key = &self.sum_key;
        for entry in &self.keys {
            let (digest, bytes) = entry?;
            let record = decode_key(&bytes)?;
            if record.secret.digest.as_bytes()[..] != digest[..] {
                return Err(TableError::Unsound("a record lies under the digest of another"));
            }
            keys.add(key, &digest, &bytes);
            expected_ids.add(key, &id_entry(&record), &digest);
            facets_of(&record).for_each(|facet| expected_facets.add(key, &facet, &[]));
        }
        match () {
            () if keys != noted.keys => Err(TableError::Unsound("its keys are not those that were written")),
            () if sum_of(key, &self.tenants)? != noted.tenants => {
                Err(TableError::Unsound("its tenants are not those that were written"))
            }
            () if sum_of(key, &self.ids)? != expected_ids => {
                Err(TableError::Unsound("its ids do not lead to its keys"))
            }
            () if sum_of(key, &self.facets)? != expected_facets => {
                Err(TableError::Unsound("its orderings do not lead to its keys"))
            }
            () => Ok(()),
        }
    }

    /// Writes records and the position they lead to, together. Later rows win over earlier ones.
    ///
    /// # Errors
    /// When sled fails.
    pub fn apply(&self, rows: &[Row], to: Position) -> Result<(), TableError> {
        let mut sums = self.sums()?;
        sums.position = to;
        let (mut keys, mut ids, mut facets) = (Batch::default(), Batch::default(), Batch::default());
        let (mut tenants, mut meta) = (Batch::default(), Batch::default());
        for row in last_of_each(rows) {
            match &row.record {
                Record::Key(key) => {
                    let digest = key.secret.digest.as_bytes();
                    if let Some(old) = self.keys.get(digest)? {
                        sums.keys.remove(&self.sum_key, digest, &old);
                        let old = decode_key(&old)?;
                        facets_of(&old).for_each(|facet| facets.remove(facet));
                    }
                    sums.keys.add(&self.sum_key, digest, &row.bytes);
                    keys.insert(digest, row.bytes.as_slice());
                    ids.insert(id_entry(key), digest);
                    facets_of(key).for_each(|facet| facets.insert(facet, &[]));
                }
                Record::Tenant(tenant) => {
                    let name = tenant.tenant.as_str().as_bytes();
                    if let Some(old) = self.tenants.get(name)? {
                        sums.tenants.remove(&self.sum_key, name, &old);
                    }
                    sums.tenants.add(&self.sum_key, name, &row.bytes);
                    tenants.insert(name, row.bytes.as_slice());
                }
            }
        }
        meta.insert(APPLIED, sums.encode(&self.sum_key));
        let trees = (&self.keys, &self.ids, &self.facets, &self.tenants, &self.meta);
        let written = trees.transaction(|(k, i, f, t, m)| {
            k.apply_batch(&keys)?;
            i.apply_batch(&ids)?;
            f.apply_batch(&facets)?;
            t.apply_batch(&tenants)?;
            m.apply_batch(&meta)?;
            Ok(())
        });
        written.map_err(|error: TransactionError| match error {
            TransactionError::Storage(error) | TransactionError::Abort(error) => error.into(),
        })
    }

    /// Every record: tenants, then keys in the order of their digests.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, StoreError>> + '_ {
        let tenants = self.tenants.iter().values().map(|bytes| Ok(Record::Tenant(Arc::new(decode_tenant(&bytes?)?))));
        let keys = self.keys.iter().values().map(|bytes| Ok(Record::Key(Arc::new(decode_key(&bytes?)?))));
        tenants.chain(keys)
    }

    /// One key.
    ///
    /// # Errors
    /// When sled fails or the record is damaged.
    pub fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let Some(digest) = self.ids.get(joined(&[tenant.as_str(), key_id.as_str()]))? else { return Ok(None) };
        let bytes = self.keys.get(&digest)?.ok_or_else(|| StoreError::Engine("an id leads to no key".into()))?;
        Ok(Some(Arc::new(decode_key(&bytes)?)))
    }

    /// Whether a key of this digest is there.
    ///
    /// # Errors
    /// When sled fails.
    pub fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.keys.contains_key(digest.as_bytes())?)
    }

    /// One tenant.
    ///
    /// # Errors
    /// When sled fails or the record is damaged.
    pub fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        let bytes = self.tenants.get(tenant.as_str())?;
        Ok(bytes.map(|b| decode_tenant(&b)).transpose()?.map(Arc::new))
    }

    /// A page of keys in the order of their ids.
    ///
    /// # Errors
    /// When sled fails or a record is damaged.
    pub fn keys(&self, query: &KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        let mut found = Vec::new();
        let mut examined = None;
        for (count, key_id) in self.candidates(query).enumerate() {
            let key_id = key_id?;
            if count == PAGE_SCAN_MAX {
                return Ok(Page { records: found, next: examined });
            }
            if let Some(key) = self.key(&query.tenant, &key_id)?.filter(|key| query.selects(key)) {
                found.push(key);
                if found.len() > query.limit {
                    break;
                }
            }
            examined = Some(key_id);
        }
        Ok(Page::first(found.into_iter(), query.limit, |key| key.key_id.clone()))
    }

    /// A page of tenants in the order of their ids.
    ///
    /// # Errors
    /// When sled fails or a record is damaged.
    pub fn tenants(&self, after: Option<&TenantId>, limit: usize) -> Result<Page<TenantRecord, TenantId>, StoreError> {
        let start = after.map_or_else(Vec::new, |after| joined(&[after.as_str(), ""]));
        let found = self.tenants.range(start..).values().take(limit.saturating_add(1));
        let found = found.map(|bytes| Ok(Arc::new(decode_tenant(&bytes?)?))).collect::<Result<Vec<_>, StoreError>>()?;
        Ok(Page::first(found.into_iter(), limit, |tenant| tenant.tenant.clone()))
    }

    /// Makes what was applied durable, as far as sled can.
    ///
    /// # Errors
    /// When sled fails.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// The ids of the keys that may meet a query, in order, from the narrowest tree that has them all.
    fn candidates(&self, query: &KeyQuery) -> Box<dyn Iterator<Item = Result<KeyId, StoreError>> + '_> {
        if !query.key_ids.is_empty() {
            let mut ids = query.key_ids.clone();
            ids.sort_unstable();
            ids.dedup();
            return Box::new(ids.into_iter().map(Ok));
        }
        let tenant = query.tenant.as_str();
        let (tree, above) = if let Some(owner) = &query.owner {
            (&self.facets, joined(&[tenant, "o", owner, ""]))
        } else if let Some((name, value)) = query.labels.first_key_value() {
            (&self.facets, joined(&[tenant, "l", name, value, ""]))
        } else if let [state @ (State::Disabled | State::Revoked)] = query.states[..] {
            (&self.facets, joined(&[tenant, "s", state_name(state), ""]))
        } else {
            (&self.ids, joined(&[tenant, ""]))
        };
        let mut from = above.clone();
        if let Some(after) = &query.after {
            from.extend_from_slice(after.as_str().as_bytes());
            from.push(0); // the least name past `after`
        }
        let inside = tree.range(from..).take_while({
            let above = above.clone();
            move |entry| entry.as_ref().is_ok_and(|(name, _)| name.starts_with(&above)) || entry.is_err()
        });
        Box::new(inside.map(move |entry| {
            let (name, _) = entry?;
            let id = std::str::from_utf8(&name[above.len()..]).ok().and_then(|id| KeyId::parse(id).ok());
            id.ok_or_else(|| StoreError::Engine("an ordering holds what is not an id".into()))
        }))
    }

    fn sums(&self) -> Result<Sums, TableError> {
        let Some(bytes) = self.meta.get(APPLIED)? else { return Ok(Sums::EMPTY) };
        Sums::decode(&self.sum_key, &bytes).ok_or(TableError::Unsound("its note of the position in the log is damaged"))
    }
}

const APPLIED: &str = "applied";

/// The sum of everything in a tree.
fn sum_of(key: &SumKey, tree: &Tree) -> Result<Sum, TableError> {
    let mut sum = Sum::default();
    for entry in tree {
        let (name, value) = entry?;
        sum.add(key, &name, &value);
    }
    Ok(sum)
}

/// The last row of each record: within one transaction, only that one is written.
fn last_of_each(rows: &[Row]) -> impl Iterator<Item = &Row> {
    fn name(row: &Row) -> (u8, &[u8]) {
        match &row.record {
            Record::Key(key) => (0, key.secret.digest.as_bytes()),
            Record::Tenant(tenant) => (1, tenant.tenant.as_str().as_bytes()),
        }
    }
    let last: HashMap<_, _> = rows.iter().enumerate().map(|(at, row)| (name(row), at)).collect();
    rows.iter().enumerate().filter(move |(at, row)| last.get(&name(row)) == Some(at)).map(|(_, row)| row)
}

fn id_entry(key: &KeyRecord) -> Vec<u8> {
    joined(&[key.tenant.as_str(), key.key_id.as_str()])
}

fn facets_of(key: &KeyRecord) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (tenant, id) = (key.tenant.as_str(), key.key_id.as_str());
    let owner = (!key.owner.is_empty()).then(|| joined(&[tenant, "o", &key.owner, id]));
    let labels = key.labels.iter().map(move |(name, value)| joined(&[tenant, "l", name, value, id]));
    let state = match key.policy.state {
        State::Active => None, // nearly all keys: the ids are their ordering
        state @ (State::Disabled | State::Revoked) => Some(joined(&[tenant, "s", state_name(state), id])),
    };
    owner.into_iter().chain(labels).chain(state)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::Disabled => "disabled",
        State::Revoked => "revoked",
    }
}

/// Parts with zero bytes between them. No part contains one: every text of a record is refused at the edge if it does.
fn joined(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
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
