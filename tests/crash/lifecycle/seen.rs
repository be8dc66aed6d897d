//! Reads everything back from an open store: all records by a backup, each key once more by its name, the
//! list, the log, and every digest in the index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use keyward::index::Index;
use keyward::store::record::{decode_issuer, decode_key, decode_owner, decode_purge_mark, decode_tenant};
use keyward::store::{BackupFormat, KeyQuery, Store, StoreError};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::StandingPolicy;
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{KeyRecord, TenantRecord};

use super::history::{Name, Oracle, Stored};
use crate::Failure;

/// The header of a backup of version 2, before its first record: docs/FORMAT.md.
const BACKUP_HEADER_BYTES: usize = 120;
/// Where a segment's header says the revision of its first entry.
const SEGMENT_BEGINS_AT: std::ops::Range<usize> = 16..24;
/// A segment may be deleted while the log is read: then it is read again, so many times at most.
const LOG_TRIES: usize = 5;
/// Keys of a page of the list.
const PAGE_KEYS: usize = 500;

/// Where a digest leads in the index.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lookup {
    pub(super) name: Name,
    pub(super) revision: Revision,
    pub(super) ordinal: Option<u32>,
    pub(super) policy: StandingPolicy,
}

/// What a store has.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Where the log ends.
    pub(super) revision: Revision,
    /// The first change that the journal still has.
    pub(super) begins: Revision,
    /// All records of a backup, and the marks of purged keys apart, because a key has the name of its mark.
    pub(super) records: BTreeMap<Name, Stored>,
    pub(super) marks: BTreeMap<Name, Stored>,
    /// Keys and tenants, as they are read by their names.
    pub(super) by_name: BTreeMap<Name, Option<Stored>>,
    /// The ids that lists have.
    pub(super) listed: BTreeSet<Name>,
    /// The changes of the journal.
    pub(super) log: BTreeMap<Revision, Vec<Stored>>,
    /// The entries of all digests there ever were that have one.
    pub(super) lookups: HashMap<Digest, Lookup>,
    /// How many keys the index counts.
    pub(super) indexed: usize,
}

impl Seen {
    /// Reads all of it. Nothing may be changed meanwhile.
    pub(super) async fn read(
        store: &dyn Store,
        index: &Index,
        journal: &Path,
        oracle: &Oracle,
    ) -> Result<Self, Failure> {
        let mut seen = Self { revision: store.revision(), ..Self::default() };
        seen.read_backup(store).await?;
        seen.read_by_name(store, oracle).await?;
        // After the records: a mark that is not among them was forgotten after the journal had lost its
        // beginning.
        seen.begins = beginning(journal)?;
        seen.read_log(store, journal).await?;
        index.wait_for(seen.revision).await;
        seen.indexed = index.len();
        for digest in &oracle.digests {
            if let Some(entry) = index.get(digest) {
                let name = Name::Key(entry.tenant().to_string(), entry.key_id().to_owned());
                let (revision, ordinal, policy) = (entry.revision(), entry.ordinal(), entry.to_policy());
                seen.lookups.insert(*digest, Lookup { name, revision, ordinal, policy });
            }
        }
        Ok(seen)
    }

    async fn read_backup(&mut self, store: &dyn Store) -> Result<(), Failure> {
        for stored in backup_records(store).await? {
            let among = if matches!(stored, Stored::Purged(_)) { &mut self.marks } else { &mut self.records };
            among.insert(stored.name(), stored);
        }
        Ok(())
    }

    async fn read_by_name(&mut self, store: &dyn Store, oracle: &Oracle) -> Result<(), Failure> {
        let asked = oracle.open.values().flat_map(|attempt| attempt.writes.iter().map(|write| write.name()));
        let asked: BTreeSet<Name> = asked.chain(oracle.known.keys().cloned()).collect();
        let mut tenants = BTreeSet::new();
        for name in asked {
            let found = match &name {
                Name::Key(tenant, key_id) => {
                    tenants.insert(tenant.clone());
                    let found = store.key(&TenantId::parse(tenant)?, &KeyId::parse(key_id)?).await?;
                    found.map(|key| Stored::Key(Box::new(KeyRecord::clone(&key))))
                }
                Name::Tenant(tenant) => {
                    store.tenant(&TenantId::parse(tenant)?).await?.map(|it| Stored::Tenant(TenantRecord::clone(&it)))
                }
                Name::Owner(..) | Name::Issuer(_) => continue,
            };
            self.by_name.insert(name, found);
        }
        for tenant in tenants {
            let tenant = TenantId::parse(&tenant)?;
            let mut after = None;
            loop {
                let query = KeyQuery {
                    caller: ActorId::keyward(),
                    tenant: tenant.clone(),
                    states: vec![],
                    clock: UnixMillis(0),
                    owner: None,
                    labels: BTreeMap::default(),
                    key_ids: vec![],
                    after,
                    limit: PAGE_KEYS,
                };
                let page = store.keys(query).await?;
                self.listed.extend(page.records.iter().map(|key| Name::key(&key.tenant, &key.key_id)));
                let Some(next) = page.next else { break };
                after = Some(next);
            }
        }
        Ok(())
    }

    async fn read_log(&mut self, store: &dyn Store, journal: &Path) -> Result<(), Failure> {
        let mut tries = LOG_TRIES;
        loop {
            tries -= 1;
            match self.try_read_log(store).await {
                Ok(()) => return Ok(()),
                Err(error) if tries == 0 => return Err(error.into()),
                Err(_) => self.begins = beginning(journal)?,
            }
        }
    }

    async fn try_read_log(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        self.log.clear();
        let mut log = store.read_log(Revision(self.begins.0.saturating_sub(1))).await?;
        while let Some(batch) = log.next().await? {
            let of = |records: &[_]| records.iter().filter_map(Stored::of).collect();
            self.log.extend(batch.iter().map(|change| (change.revision, of(&change.records))));
        }
        Ok(())
    }
}

/// Every record that a store has, by way of a backup, whose form is read here once more.
pub(crate) async fn backup_records(store: &dyn Store) -> Result<Vec<Stored>, Failure> {
    let mut backup = store.backup(UnixMillis(1_000), BackupFormat::Second).await?;
    let mut bytes = vec![];
    while let Some(piece) = backup.pieces.recv().await {
        bytes.extend(piece?);
    }
    let mut rest = bytes.get(BACKUP_HEADER_BYTES..).ok_or("a backup has no header")?;
    let mut records = vec![];
    while let Some((&kind, after)) = rest.split_first().filter(|(kind, _)| **kind != 0) {
        let (length, after) = after.split_first_chunk::<4>().ok_or("a backup ends within a record")?;
        let (record, after) =
            after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or("a backup ends within a record")?;
        rest = after;
        records.push(match kind {
            1 => Stored::Tenant(decode_tenant(record)?),
            2 => Stored::Key(Box::new(decode_key(record)?)),
            3 => Stored::Owner(decode_owner(record)?),
            4 => Stored::Issuer(decode_issuer(record)?),
            5 => Stored::Purged(decode_purge_mark(record)?),
            other => return Err(format!("a backup has a record of kind {other}").into()),
        });
    }
    Ok(records)
}

/// The first revision that the journal has.
fn beginning(journal: &Path) -> Result<Revision, Failure> {
    let mut segments: Vec<_> = fs::read_dir(journal)?.map(|entry| Ok(entry?.path())).collect::<Result<_, Failure>>()?;
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "kwj"));
    segments.sort();
    let header = fs::read(segments.first().ok_or("the journal has no segment")?)?;
    let begins = header.get(SEGMENT_BEGINS_AT).ok_or("a segment has no header")?;
    Ok(Revision(u64::from_le_bytes(begins.try_into()?)))
}
