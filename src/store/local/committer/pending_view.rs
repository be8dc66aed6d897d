//! The current records, as a commit of the group that is being made sees them.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::holds::Holds;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, TenantRecord};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::store::administrators::{self, Administrators, Undo};
use crate::store::bounds::{self, Bounds, NameKind, Pending};
use crate::store::check::RecordReader;
use crate::store::local::retries::{RetryLog, StagedRequests};
use crate::store::local::table::{Row, Table};
use crate::store::local::write_buffer::{Buffered, Maps, WriteBuffer};
use crate::store::ordinals::Ordinals;
use crate::store::{CommitError, MaterializedView, StoreError};

/// Cached keys of callers, so that authorizing a change needs no read of the table.
const CALLERS_MAX: usize = 1_024;

/// Current keys of some callers.
pub(super) type Callers = HashMap<KeyId, Arc<KeyRecord>>;

/// The current records: those of this group, else of the write buffer, else of the table.
pub(super) struct PendingView<'a> {
    pub(super) group: Maps,
    pub(super) write_buffer: &'a WriteBuffer,
    pub(super) table: &'a Table,
    pub(super) callers: &'a mut Callers,
    pub(super) names: &'a BoundedNames,
    pub(super) administrators: &'a Mutex<Administrators>,
    /// The changes of this group to the administrators.
    pub(super) taken: Vec<Undo>,
    pub(super) applied: &'a watch::Receiver<Revision>,
    /// Those of changes before this group.
    pub(super) holds: &'a Holds,
    pub(super) ordinals: &'a Ordinals,
    pub(super) retries: &'a RetryLog,
    /// The requests of this group.
    pub(super) requests: StagedRequests,
}

/// The bounds on names, and what they are checked against.
pub(super) struct BoundedNames {
    pub(super) bounds: Bounds,
    pub(super) view: Arc<dyn MaterializedView>,
    pub(super) pending: RefCell<Pending>,
}

impl PendingView<'_> {
    /// The newest form of a key that the table lacks.
    fn newer(&self, tenant: &TenantId, key_id: &KeyId) -> Option<Buffered> {
        self.group.key(tenant, key_id).or_else(|| self.write_buffer.key(tenant, key_id))
    }

    /// Checks that a lasting administrator remains, and applies the rows.
    pub(super) fn keep_administrator(&mut self, rows: &[Row], clock: UnixMillis) -> Result<(), CommitError> {
        if !rows.iter().any(|row| administrators::is_relevant(&row.record)) {
            return Ok(());
        }
        let mut administrators = self.administrators.lock();
        administrators.check(rows.iter().map(|row| &row.record), clock)?;
        self.taken.extend(rows.iter().filter_map(|row| administrators.apply(&row.record)));
        administrators.warn_if_none(clock);
        Ok(())
    }
}

impl RecordReader for PendingView<'_> {
    fn key(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match self.newer(tenant, key_id) {
            Some(newer) => Ok(newer.key()),
            None => self.table.key(tenant, key_id),
        }
    }

    fn is_purged(&self, tenant: &TenantId, key_id: &KeyId) -> Result<bool, StoreError> {
        match self.newer(tenant, key_id) {
            Some(newer) => Ok(newer.key().is_none()),
            None => self.table.is_purged(tenant, key_id),
        }
    }

    fn has_digest(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.group.has_digest(digest) || self.write_buffer.has_digest(digest) || self.table.has_digest(digest)?)
    }

    /// A read of the table would wait for the current transaction, and delay the whole group.
    fn is_current(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        let same = |there: &KeyRecord| there.revision == key.revision && there.secret.digest == key.secret.digest;
        if let Some(newer) = self.newer(&key.tenant, &key.key_id) {
            return Ok(newer.key().is_some_and(|there| same(&there)));
        }
        // The write buffer was read first: what it has released counts as applied, so a view that is at least
        // at `applied` knows it.
        let applied = *self.applied.borrow();
        if self.names.view.revision() >= applied
            && let Some(revision) = self.names.view.revision_of(key)
        {
            return Ok(revision == key.revision);
        }
        Ok(self.table.key(&key.tenant, &key.key_id)?.is_some_and(|there| same(&there)))
    }

    fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        Ok(self.group.tenant(tenant).or_else(|| self.write_buffer.tenant(tenant)))
    }

    fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError> {
        Ok(self.group.owner(tenant, owner).or_else(|| self.write_buffer.owner(tenant, owner)))
    }

    fn issuer(&self, actor: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError> {
        Ok(self.group.issuer(actor).or_else(|| self.write_buffer.issuer(actor)))
    }

    fn holds(&self) -> Cow<'_, Holds> {
        let group = self.group.holds();
        if group.is_empty() {
            return Cow::Borrowed(self.holds);
        }
        let mut all = self.holds.clone();
        all.join(group);
        Cow::Owned(all)
    }

    fn ordinals(&self) -> &Ordinals {
        self.ordinals
    }

    fn authorized_caller(&self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let system = TenantId::system();
        match (self.group.key(&system, key_id), self.callers.get(key_id)) {
            (Some(newer), _) => Ok(newer.key()),
            (None, Some(kept)) => Ok(Some(kept.clone())),
            (None, None) => self.key(&system, key_id),
        }
    }

    fn caller(&mut self, key_id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        // What this group writes may be given up: it is kept once it is durable.
        let is_kept = self.callers.contains_key(key_id) || self.group.key(&TenantId::system(), key_id).is_some();
        let found = self.authorized_caller(key_id)?;
        if let (Some(key), false) = (&found, is_kept) {
            if self.callers.len() == CALLERS_MAX {
                self.callers.clear();
            }
            self.callers.insert(key_id.clone(), key.clone());
        }
        Ok(found)
    }

    fn admit(&self, revision: Revision, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        let BoundedNames { bounds, view, pending } = self.names;
        let in_use = |kind: NameKind, asked: &[&str]| kind.in_use(&**view, &key.tenant, asked);
        bounds::check(bounds, &pending.borrow(), before, key, in_use)?;
        if in_use(NameKind::Owner, &[]).is_some() {
            pending.borrow_mut().note(revision, before, key);
        }
        Ok(())
    }

    fn admit_tenant(&self) -> Result<(), CommitError> {
        // The group's own tenants are not in the write buffer yet.
        bounds::check_tenants(&self.names.bounds, self.write_buffer.tenant_count() + self.group.tenants())
    }

    fn admit_owner(&self, tenant: &TenantId, owner: &str) -> Result<(), CommitError> {
        let records = self.write_buffer.owner_count(tenant) + self.group.owner_count(tenant);
        // A view that does not know the names in use bounds nothing.
        let in_use = NameKind::Owner.in_use(&*self.names.view, tenant, &[owner]).unwrap_or_default();
        bounds::check_owner(&self.names.bounds, records, &in_use)
    }

    fn admit_issuer(&self) -> Result<(), CommitError> {
        bounds::check_issuers(self.write_buffer.issuer_count() + self.group.issuer_count())
    }
}
