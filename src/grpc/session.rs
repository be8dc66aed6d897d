//! An authenticated caller: judged when the call is admitted, and again before anything is done for it.

use std::net::IpAddr;
use std::sync::Arc;

use keyward_core::access::{Action, Caller, Identity, check_caller};
use keyward_core::clock::Now;
use keyward_core::decision::{DenyReason, Policy, StandingPolicy};
use keyward_core::event::Revision;
use keyward_core::id::KeyId;
use keyward_core::secret::PresentedSecret;

use super::state::VerifyState;
use super::status::Refusal;
use crate::authority::AuthorityError;
use crate::index::Entry;

/// A caller, and what it takes to judge them again. The credential is not in it: its digest finds the key as
/// well. A clone is cheap.
///
/// There is no way to the [`Caller`] but through a judgement, so that none can be forgotten.
#[derive(Clone, Debug)]
pub struct CallerSession {
    /// Every change up to this revision has been looked at: whatever changes any key makes another one.
    as_of: Revision,
    /// The form of the key.
    revision: Revision,
    policy: Arc<StandingPolicy>,
    caller: Arc<Caller>,
}

impl CallerSession {
    /// Finds the key of a credential.
    ///
    /// # Errors
    /// When the credential is not the secret of a key of tenant `system`. Whether the key works is not looked
    /// at yet.
    pub fn find(ready: &VerifyState, credential: &str, peer: Option<IpAddr>) -> Result<Self, DenyReason> {
        let index = ready.verifier.index();
        let secret = PresentedSecret::parse(credential).map_err(|_| DenyReason::Malformed)?;
        // Before the entry, so that the entry is at least as new.
        let as_of = index.revision();
        let found = ready.peppers.digests(&secret).find_map(|digest| index.get(&digest).map(|entry| (digest, entry)));
        let (digest, entry) = found.filter(|(_, entry)| entry.tenant().is_system()).ok_or(DenyReason::Unknown)?;
        let key_id = entry.to_key_id().ok_or(DenyReason::Unknown)?;
        let caller = caller_of(&entry, Identity { key_id, digest, peer });
        Ok(Self { as_of, revision: entry.revision(), policy: Arc::new(entry.to_policy()), caller })
    }

    /// The caller's key.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        self.caller.key_id()
    }

    /// A number by which callers are told apart. Nobody can choose it: it is a part of a keyed digest.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.caller.identity().digest.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// The address that the caller called from.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.caller.identity().peer
    }

    /// Whether no key has changed since this was looked up.
    #[must_use]
    pub fn is_current(&self, ready: &VerifyState) -> bool {
        // The revision is told after the entries: while it stands still, what was read at it has not been
        // overtaken by any change that somebody was told of.
        self.as_of == ready.verifier.index().revision()
    }

    /// Looks the key up again, if any key has changed.
    ///
    /// # Errors
    /// When it is gone.
    pub fn refresh(&mut self, ready: &VerifyState) -> Result<(), DenyReason> {
        let index = ready.verifier.index();
        let as_of = index.revision();
        if self.as_of == as_of {
            return Ok(());
        }
        let identity = self.caller.identity();
        let entry = index.get(&identity.digest).ok_or(DenyReason::Unknown)?;
        if !self.is_of(&entry) {
            let caller = caller_of(&entry, identity.clone());
            (self.revision, self.policy, self.caller) = (entry.revision(), Arc::new(entry.to_policy()), caller);
        }
        self.as_of = as_of;
        Ok(())
    }

    /// The caller as they are now, if they may still do this somewhere.
    ///
    /// # Errors
    /// When their key does not work any more, or holds no role for this.
    pub fn caller(&mut self, ready: &VerifyState, action: Action, now: Now) -> Result<&Arc<Caller>, Refusal> {
        self.works(ready, now)?;
        if !self.caller.may_in_any_tenant(action) {
            return Err(AuthorityError::Denied.into());
        }
        Ok(&self.caller)
    }

    /// The same, whatever they may do.
    ///
    /// # Errors
    /// When their key does not work any more.
    pub fn works(&mut self, ready: &VerifyState, now: Now) -> Result<(), Refusal> {
        self.refresh(ready).map_err(Refusal::BadCredential)?;
        // Each time: the clock alone can end a key.
        check_caller(&*self.policy, self.peer(), now).map_err(Refusal::BadCredential)
    }

    /// Whether this was made of the entry as it is. What is withheld of tenants, owners and issuers changes
    /// without a change of the key.
    fn is_of(&self, entry: &Entry<'_>) -> bool {
        entry.revision() == self.revision && entry.standing() == self.policy.standing
    }

    /// The caller, if their key has not changed since they were judged, at `judged_at` if ever, and still
    /// works. `None`: they must be judged anew.
    #[must_use]
    pub fn unchanged(&self, ready: &VerifyState, judged_at: Option<Now>, now: Now) -> Option<&Caller> {
        let same = |entry: Entry<'_>| self.is_of(&entry);
        let unchanged =
            self.is_current(ready) || ready.verifier.index().get(&self.caller.identity().digest).is_some_and(same);
        let works = || judged_at == Some(now) || check_caller(&*self.policy, self.peer(), now).is_ok();
        (unchanged && works()).then_some(&*self.caller)
    }
}

fn caller_of(entry: &Entry<'_>, identity: Identity) -> Arc<Caller> {
    Arc::new(Caller::new(identity, entry.scopes()))
}
