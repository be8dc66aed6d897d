//! Changes that are asked for again: each is made once, and every further call has the answer of the first.

use keyward_core::access::{Act, Grant};
use keyward_core::event::Revision;
use keyward_core::id::RequestId;
use keyward_core::record::KeyRecord;

use super::{Authority, AuthorityError, Issued, Resource};
use crate::store::{Outcome, ReadContext, Recalled, Retry};

/// How a caller names a request, so that it is recognised when it is asked for again.
#[derive(Clone, Debug)]
pub struct RequestName {
    /// The caller's own name for it.
    pub id: RequestId,
    /// The blake3 of its message without that name.
    pub message_hash: [u8; 32],
}

impl RequestName {
    /// The same call of the same message in the same tenant. The tenant may be the caller's default one,
    /// which is not in the message.
    pub(super) fn retry<A: Act>(&self, method: &str, grant: &Grant<A>) -> Retry {
        let mut hasher = blake3::Hasher::new();
        // Neither has a byte 0.
        hasher.update(method.as_bytes()).update(&[0]).update(grant.tenant().as_str().as_bytes()).update(&[0]);
        hasher.update(&self.message_hash);
        Retry { request_id: self.id.clone(), payload_hash: *hasher.finalize().as_bytes() }
    }
}

/// A change that was made before.
#[derive(Debug)]
pub(super) struct Again {
    /// What it came to.
    pub(super) outcome: Outcome,
    /// Its revision.
    pub(super) revision: Revision,
}

impl Again {
    /// What issued a secret came to: the key, its secret as it was sealed then, and the revision.
    pub(super) fn issued(self) -> Result<(KeyRecord, Issued, Revision), AuthorityError> {
        let key = self.outcome.key().cloned().ok_or(AuthorityError::NotFound(Resource::Key))?;
        let not_kept = || AuthorityError::SecretNotKept { tenant: key.tenant.clone(), key_id: key.key_id.clone() };
        let sealed = self.outcome.sealed_reply.ok_or_else(not_kept)?;
        Ok((key, Issued::Sealed(sealed), self.revision))
    }
}

impl Authority {
    /// Makes a change, or answers by `again` if it was made before. What is refused is not remembered, and is
    /// decided anew. `change` must commit with `retry`, which decides between two calls at the same moment.
    pub(super) async fn once<T>(
        &self,
        reader: &ReadContext,
        retry: Option<&Retry>,
        change: impl Future<Output = Result<T, AuthorityError>> + Send,
        again: impl FnOnce(Again) -> Result<T, AuthorityError> + Send,
    ) -> Result<T, AuthorityError> {
        let Some(retry) = retry else { return change.await };
        // Before anything is checked: what the first call has changed may forbid the second.
        if let Some(revision) = self.recall(reader, retry)? {
            return self.again(reader, revision, again).await;
        }
        let revision = match change.await {
            Ok(done) => return Ok(done),
            Err(AuthorityError::Repeated(revision)) => revision,
            // The first call may have been made since, and be why this one is refused.
            Err(error) => self.recall(reader, retry)?.ok_or(error)?,
        };
        self.again(reader, revision, again).await
    }

    fn recall(&self, reader: &ReadContext, retry: &Retry) -> Result<Option<Revision>, AuthorityError> {
        match self.store.recall(&reader.caller, retry, self.now().latest()) {
            Recalled::New => Ok(None),
            Recalled::Made(revision) => Ok(Some(revision)),
            Recalled::Reused => Err(AuthorityError::RequestIdReused),
        }
    }

    async fn again<T>(
        &self,
        reader: &ReadContext,
        revision: Revision,
        again: impl FnOnce(Again) -> Result<T, AuthorityError>,
    ) -> Result<T, AuthorityError> {
        // Forgotten only now: it is ten minutes old.
        let outcome = self.store.outcome(reader, revision).await?.ok_or(AuthorityError::Repeated(revision))?;
        self.index.wait_for(revision).await;
        tracing::info!(caller = %reader.caller, revision = revision.0, "answered a request that was made before");
        again(Again { outcome, revision })
    }
}
