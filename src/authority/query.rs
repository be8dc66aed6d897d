//! Reads of keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_core::access::{Grant, Read};
use keyward_core::event::Revision;
use keyward_core::id::KeyId;
use keyward_core::record::{KeyRecord, State};

use super::{Authority, AuthorityError};
use crate::store::{KeyQuery, PagePermit, ReadContext, SoughtText};

/// Selects keys of a tenant.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// States. Empty: any.
    pub states: Vec<State>,
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
    /// Reads one key.
    ///
    /// # Errors
    /// When there is none.
    pub async fn key(&self, grant: &Grant<Read>, key_id: &KeyId) -> Result<(KeyRecord, Revision), AuthorityError> {
        let revision = self.store.revision();
        let reader = ReadContext { caller: grant.actor(), urgent: false };
        Ok((self.require_key(&reader, grant.tenant(), key_id).await?, revision))
    }

    /// A page of keys in the order of their ids.
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
        let Selector { states, owner, labels, key_ids } = selector;
        let (caller, tenant) = (grant.actor(), grant.tenant().clone());
        let query = KeyQuery { caller, tenant, states, owner, labels, key_ids, after, limit: page_size };
        let page = self.store.keys(query).await?;
        let next_page_token = self.page_tokens.seal(page.next.as_ref().map(KeyId::as_str), &bound);
        Ok(Listed { records: page.records, next_page_token, revision, held: page.permit })
    }
}

/// What a page token is bound to: all that selects the keys.
fn query_binding(grant: &Grant<Read>, selector: &Selector) -> Vec<Vec<u8>> {
    let Selector { states, owner, labels, key_ids } = selector;
    let states = states.iter().map(|state| match state {
        State::Active => b'a',
        State::Disabled => b'd',
        State::Revoked => b'r',
    });
    let mut parts = vec![b"keys".to_vec(), grant.tenant().as_str().into(), states.collect()];
    parts.push(owner.as_ref().map(|owner| owner.given().into()).unwrap_or_default());
    parts.push(labels.len().to_le_bytes().to_vec());
    parts.extend(labels.iter().flat_map(|(name, value)| [name.as_str().into(), value.given().into()]));
    parts.extend(key_ids.iter().map(|id| id.as_str().into()));
    parts
}
