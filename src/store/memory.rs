//! The in-memory engine, for tests: the contract of [`Store`] in its simplest form.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Change, Record, Revision};
use keyward_core::head::Head;
use keyward_core::holds::Holds;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::administrators::Administrators;
use super::bounds::{self, NameKind, NameUses, Pending};
use super::check::{RecordReader, WriteContext, authorize, check_and_encode, keep_caller};
use super::engine::{EngineError, LockedEngine, OpenContext, StorageEngine};
use super::ordinals::Ordinals;
use super::retries::{Remembered, Retries, Uptime};
use super::{
    Backup, BackupError, BackupFormat, Bounds, Commit, CommitError, DueKey, KeyQuery, LogStream, Outcome, Page,
    ReadContext, Recalled, Retry, Store, StoreError, WriteHealth,
};
use crate::feed::{Feed, Lagged, Subscription};

/// Changes in one batch of the log.
const LOG_BATCH_CHANGES: usize = 256;

/// Makes an empty [`MemoryStore`]. It has nothing to lock, and never has data when it is opened.
#[derive(Debug)]
pub struct MemoryEngine {
    /// Bounds on names.
    pub bounds: Bounds,
}

impl Default for MemoryEngine {
    fn default() -> Self {
        Self { bounds: Bounds::NONE }
    }
}

impl StorageEngine for MemoryEngine {
    fn lock(self: Box<Self>) -> Result<Box<dyn LockedEngine>, EngineError> {
        Ok(self)
    }
}

#[async_trait]
impl LockedEngine for MemoryEngine {
    fn has_data(&self) -> bool {
        false
    }

    async fn open(self: Box<Self>, context: OpenContext) -> Result<Arc<dyn Store>, EngineError> {
        context.view.on_loaded(Revision(0));
        Ok(Arc::new(MemoryStore::within(self.bounds)))
    }
}

/// Keeps everything in maps, and loses it with the process.
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    feed: Feed,
}

#[derive(Debug)]
struct State {
    bounds: Bounds,
    uses: NameUses,
    revision: Revision,
    /// Every change. It grows for as long as the store lives, as everything here does.
    log: Vec<Arc<Change>>,
    keys: BTreeMap<(TenantId, KeyId), Arc<KeyRecord>>,
    digests: HashSet<Digest>,
    /// Ids of keys that were purged. They stay taken: nothing tells when they may be free.
    purged: HashSet<(TenantId, KeyId)>,
    tenants: BTreeMap<TenantId, Arc<TenantRecord>>,
    owners: BTreeMap<(TenantId, String), Arc<OwnerRecord>>,
    issuers: BTreeMap<ActorId, Arc<IssuerRecord>>,
    holds: Holds,
    ordinals: Ordinals,
    administrators: Administrators,
    retries: Retries<()>,
    uptime: Uptime,
    /// What was sealed, for as long as the store lives.
    sealed: HashMap<Revision, Vec<u8>>,
    closed: bool,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::within(Bounds::NONE)
    }
}

impl MemoryStore {
    /// An empty store with bounds on its names.
    #[must_use]
    pub fn within(bounds: Bounds) -> Self {
        let state = State {
            bounds,
            uses: NameUses::default(),
            revision: Revision(0),
            log: vec![],
            keys: BTreeMap::new(),
            digests: HashSet::new(),
            purged: HashSet::new(),
            tenants: BTreeMap::new(),
            owners: BTreeMap::new(),
            issuers: BTreeMap::new(),
            holds: Holds::default(),
            ordinals: Ordinals::default(),
            administrators: Administrators::default(),
            retries: Retries::default(),
            uptime: Uptime::starting_now(),
            sealed: HashMap::new(),
            closed: false,
        };
        Self { state: Mutex::new(state), feed: Feed::starting_after(Revision(0)) }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn key_for(
        &self,
        _reader: &ReadContext,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.state.lock().key(tenant, key_id)
    }

    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        let state = self.state.lock();
        let selected = state.keys.values().filter(|key| query.selects(key)).cloned();
        Ok(Page::first(selected, query.limit, |key| key.key_id.clone()))
    }

    async fn due(&self, after: Option<&DueKey>, until: UnixMillis, limit: usize) -> Result<Vec<DueKey>, StoreError> {
        let state = self.state.lock();
        let due = state.keys.values().filter_map(|key| {
            let (tenant, key_id) = (key.tenant.clone(), key.key_id.clone());
            key.due_time().map(|time| DueKey { time, tenant, key_id })
        });
        let mut due: Vec<_> = due.filter(|due| due.time <= until && after.is_none_or(|after| due > after)).collect();
        due.sort_unstable();
        due.truncate(limit);
        Ok(due)
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        self.state.lock().tenant(tenant)
    }

    async fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError> {
        self.state.lock().owner(tenant, owner)
    }

    async fn issuer(&self, issuer: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError> {
        self.state.lock().issuer(issuer)
    }

    async fn tenants(
        &self,
        _caller: &ActorId,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Page<TenantRecord, TenantId>, StoreError> {
        let state = self.state.lock();
        let past = |t: &&Arc<TenantRecord>| after.as_ref().is_none_or(|after| t.tenant > *after);
        Ok(Page::first(state.tenants.values().filter(past).cloned(), limit, |t| t.tenant.clone()))
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(StoreError::Closed.into());
        }
        authorize(&commit, &mut *state)?;
        state.check_retry(&commit)?;
        let clock = commit.clock();
        let revision = state.revision.next();
        let at = WriteContext { revision, time: commit.time, narrows: commit.narrows };
        let records = state.ordinals.unless_refused(|| {
            let mut staged = vec![];
            for put in commit.writes {
                check_and_encode(put, at, &*state, &mut staged)?;
            }
            let records: Vec<_> = staged.into_iter().map(|staged| staged.record).collect();
            keep_caller(commit.authorization.as_ref(), commit.time, records.iter(), &*state)?;
            state.administrators.check(records.iter(), clock)?;
            Ok::<_, CommitError>(records)
        })?;
        for record in &records {
            if state.administrators.apply(record).is_some() {
                state.administrators.warn_if_none(clock);
            }
            state.apply(record);
        }
        state.revision = revision;
        if let Some((retry, sealed)) = commit.retry {
            let change = Remembered::new(&commit.actor, &retry, (revision, commit.time), ());
            let since_s = state.uptime.seconds();
            state.retries.remember(change.since(since_s));
            state.sealed.extend(sealed.map(|sealed| (revision, sealed)));
        }
        let change = Arc::new(Change { revision, records });
        state.log.push(change.clone());
        self.feed.publish([change]);
        Ok(revision)
    }

    fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled {
        let state = self.state.lock();
        state.retries.recall(actor, retry, state.uptime.at(now))
    }

    async fn outcome(&self, _reader: &ReadContext, revision: Revision) -> Result<Option<Outcome>, StoreError> {
        let state = self.state.lock();
        let change = usize::try_from(revision.0).ok().and_then(|at| state.log.get(at.checked_sub(1)?));
        let change = change.filter(|_| state.retries.place_of(revision).is_some());
        Ok(change.map(|change| Outcome {
            records: change.records.clone(),
            sealed_reply: state.sealed.get(&revision).cloned(),
        }))
    }

    fn check_bounds(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        self.state.lock().check(before, key)
    }

    fn check_tenant_bound(&self) -> Result<(), CommitError> {
        self.state.lock().admit_tenant()
    }

    fn check_administrators(&self, key: &KeyRecord, clock: UnixMillis) -> Result<(), CommitError> {
        let record = Record::Key(Arc::new(key.clone()));
        self.state.lock().administrators.check([&record].into_iter(), clock)
    }

    fn check_hold(&self, record: &Record, clock: UnixMillis) -> Result<(), CommitError> {
        match record {
            Record::Owner(owner) if owner.revision == Revision(0) => {
                self.state.lock().admit_owner(&owner.tenant, &owner.owner)?;
            }
            Record::Issuer(issuer) if issuer.revision == Revision(0) => self.state.lock().admit_issuer()?,
            _ => {}
        }
        self.state.lock().administrators.check([record].into_iter(), clock)
    }

    fn lasting_administrators(&self, clock: UnixMillis) -> usize {
        let administrators = &mut self.state.lock().administrators;
        administrators.warn_if_none(clock);
        administrators.count(clock)
    }

    fn changes(&self, after: Revision) -> Result<Subscription, Lagged> {
        self.feed.subscribe(after)
    }

    async fn read_log(&self, after: Revision) -> Result<LogStream, StoreError> {
        let state = self.state.lock();
        // Revisions count from 1 and have no gaps.
        let skip = usize::try_from(after.0).unwrap_or(usize::MAX);
        let lacking = state.log.get(skip..).unwrap_or_default();
        let batches: Vec<_> = lacking.chunks(LOG_BATCH_CHANGES).map(<[_]>::to_vec).collect();
        let (sender, receiver) = mpsc::channel(batches.len().max(1));
        for batch in batches {
            sender.try_send(Ok(batch)).map_err(|_| StoreError::Closed)?;
        }
        Ok(LogStream::new(after, state.revision, receiver))
    }

    fn revision(&self) -> Revision {
        self.state.lock().revision
    }

    fn head(&self) -> Option<Head> {
        None
    }

    async fn write_health(&self) -> WriteHealth {
        WriteHealth::Writable
    }

    async fn backup(&self, _time: UnixMillis, _format: BackupFormat) -> Result<Backup, BackupError> {
        Err(BackupError::Failed("what is kept in memory has no backup".into()))
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.state.lock().closed = true;
        Ok(())
    }
}

impl State {
    fn check_retry(&mut self, commit: &Commit) -> Result<(), CommitError> {
        let Some((retry, _)) = &commit.retry else { return Ok(()) };
        let now = self.uptime.at(commit.time);
        match self.retries.recall(&commit.actor, retry, now) {
            Recalled::New if self.retries.has_room(0, commit.takes_power(), now) => Ok(()),
            Recalled::New => Err(CommitError::TooManyRequests),
            Recalled::Made(revision) => Err(CommitError::Repeated(revision)),
            Recalled::Reused => Err(CommitError::RequestIdReused),
        }
    }

    fn apply(&mut self, record: &Record) {
        self.holds.apply(record);
        match record {
            Record::Key(key) => {
                self.digests.extend(key.digests());
                let before = self.keys.insert((key.tenant.clone(), key.key_id.clone()), key.clone());
                self.uses.change(before.as_deref(), Some(key));
            }
            Record::Purged(mark) => {
                let name = (mark.tenant.clone(), mark.key_id.clone());
                if !mark.key_lives
                    && let Some(before) = self.keys.remove(&name)
                {
                    self.uses.change(Some(&before), None);
                    self.purged.insert(name);
                }
            }
            Record::Tenant(tenant) => {
                self.tenants.insert(tenant.tenant.clone(), tenant.clone());
            }
            Record::Owner(owner) => {
                self.owners.insert((owner.tenant.clone(), owner.owner.clone()), owner.clone());
            }
            Record::Issuer(issuer) => {
                self.issuers.insert(issuer.actor.clone(), issuer.clone());
            }
            // Only a restore and a salvage begin lines, and there is nothing to restore.
            Record::Line(_) => {}
        }
    }

    fn check(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        let in_use = |kind: NameKind, asked: &[&str]| Some(self.uses.in_use(&key.tenant, kind, asked));
        bounds::check(&self.bounds, &Pending::default(), before, key, in_use)
    }
}

impl RecordReader for State {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(self.keys.get(&(tenant.clone(), key_id.clone())).cloned())
    }

    fn is_purged(&self, tenant: &TenantId, key_id: &KeyId) -> Result<bool, StoreError> {
        Ok(self.purged.contains(&(tenant.clone(), key_id.clone())))
    }

    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.digests.contains(digest))
    }

    fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError> {
        Ok(self.owners.get(&(tenant.clone(), owner.to_owned())).cloned())
    }

    fn issuer(&self, actor: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError> {
        Ok(self.issuers.get(actor).cloned())
    }

    fn holds(&self) -> Cow<'_, Holds> {
        Cow::Borrowed(&self.holds)
    }

    fn ordinals(&self) -> &Ordinals {
        &self.ordinals
    }

    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        Ok(self.tenants.get(tenant).cloned())
    }

    fn admit(&self, _: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        self.check(before, key)
    }

    fn admit_tenant(&self) -> Result<(), CommitError> {
        bounds::check_tenants(&self.bounds, self.tenants.len())
    }

    fn admit_owner(&self, tenant: &TenantId, owner: &str) -> Result<(), CommitError> {
        let count =
            self.owners.range((tenant.clone(), String::new())..).take_while(|((of, _), _)| of == tenant).count();
        bounds::check_owner(&self.bounds, count, &self.uses.in_use(tenant, NameKind::Owner, &[owner]))
    }

    fn admit_issuer(&self) -> Result<(), CommitError> {
        bounds::check_issuers(self.issuers.len())
    }
}
