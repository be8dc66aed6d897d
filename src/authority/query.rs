//! Reads of keys.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_core::access::{Grant, Read};
use keyward_core::event::Revision;
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, ShownState};

use super::{Authority, AuthorityError};
use crate::store::{KeyQuery, PagePermit, ReadContext, SoughtText};

/// Selects keys of a tenant.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// States. Empty: any but deleted, or any.
    pub states: Vec<ShownState>,
    /// Whether deleted keys are selected too, where no states are named.
    pub with_deleted: bool,
    /// The exact owner. `None`: any.
    pub owner: Option<SoughtText>,
    /// Labels that the keys must all have.
    pub labels: BTreeMap<String, SoughtText>,
    /// Ids. Empty: any.
    pub key_ids: Vec<KeyId>,
}

/// A page of a list.
#[derive(Debug)]
pub struct Listed<R> {
    /// The records.
    pub records: Vec<Arc<R>>,
    /// The token of the next page; empty if this is the last.
    pub next_page_token: String,
    /// The page has every change up to this revision.
    pub revision: Revision,
    /// The list's place among those under way. It is dropped once the records are in the reply.
    pub held: PagePermit,
}

impl Authority {
    /// Reads one key, as it is now. It may be deleted.
    ///
    /// # Errors
    /// When there is none.
    pub async fn key(&self, grant: &Grant<Read>, key_id: &KeyId) -> Result<(KeyRecord, Revision), AuthorityError> {
        let revision = self.store.revision();
        let reader = ReadContext { caller: grant.actor(), urgent: false };
        let key = self.require_key(&reader, grant.tenant(), key_id).await?;
        Ok((key.as_of(self.now().clock()).into_owned(), revision))
    }

    /// A page of keys in the order of their ids, as they are now.
    ///
    /// # Errors
    /// When the tenant is missing, the page token is not one of this query's, or too many lists of the caller
    /// wait.
    pub async fn keys(
        &self,
        grant: &Grant<Read>,
        selector: Selector,
        page_size: usize,
        page_token: &str,
    ) -> Result<Listed<KeyRecord>, AuthorityError> {
        self.require_tenant(grant.tenant()).await?;
        let revision = self.store.revision();
        let bound = query_binding(grant, &selector);
        let bound: Vec<&[u8]> = bound.iter().map(Vec::as_slice).collect();
        let after = self.page_tokens.open(page_token, &bound, KeyId::parse)?;
        let Selector { states, with_deleted, owner, labels, key_ids } = selector;
        let states = if states.is_empty() && with_deleted { ShownState::ALL.to_vec() } else { states };
        let (caller, tenant, clock) = (grant.actor(), grant.tenant().clone(), self.now().clock());
        let query = KeyQuery { caller, tenant, states, clock, owner, labels, key_ids, after, limit: page_size };
        let page = self.store.keys(query).await?;
        let next_page_token = self.page_tokens.seal(page.next.as_ref().map(KeyId::as_str), &bound);
        let as_of_now = |key: Arc<KeyRecord>| match key.as_of(clock) {
            Cow::Borrowed(_) => key,
            Cow::Owned(resumed) => Arc::new(resumed),
        };
        let records = page.records.into_iter().map(as_of_now).collect();
        Ok(Listed { records, next_page_token, revision, held: page.permit })
    }
}

/// What a page token is bound to: all that selects the keys.
fn query_binding(grant: &Grant<Read>, selector: &Selector) -> Vec<Vec<u8>> {
    let Selector { states, with_deleted, owner, labels, key_ids } = selector;
    let states = states.iter().map(|state| match state {
        ShownState::Active => b'a',
        ShownState::Disabled => b'd',
        ShownState::Revoked => b'r',
        ShownState::Deleted => b'x',
    });
    let states = states.chain(with_deleted.then_some(b'+'));
    let mut parts = vec![b"keys".to_vec(), grant.tenant().as_str().into(), states.collect()];
    parts.push(owner.as_ref().map(|owner| owner.given().into()).unwrap_or_default());
    parts.push(labels.len().to_le_bytes().to_vec());
    parts.extend(labels.iter().flat_map(|(name, value)| [name.as_str().into(), value.given().into()]));
    parts.extend(key_ids.iter().map(|id| id.as_str().into()));
    parts
}
