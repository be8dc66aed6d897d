//! A caller whose call goes on: who was admitted when it began may not be any more.

use std::net::IpAddr;

use keyward_core::access::{Action, Caller};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::{Ask, DenyReason, Policy, decide};
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::id::KeyId;
use keyward_core::record::KeyPolicy;
use keyward_core::secret::PresentedSecret;

use super::ready::Ready;
use super::status::Refusal;
use crate::authority::AuthorityError;
use crate::index::Entry;

/// The audience by which a key can be bound to Keyward itself.
const AUDIENCE: &str = "keyward";

/// What a caller's own key is asked.
#[must_use]
pub fn ask(peer: Option<IpAddr>) -> Ask<'static> {
    Ask { audience: Some(AUDIENCE), client_ip: peer, ..Ask::default() }
}

/// A caller, and what it takes to check them again. The credential is not in it: its digest finds the key as well.
#[derive(Clone, Debug)]
pub struct Standing {
    digest: Digest,
    peer: Option<IpAddr>,
    /// Whatever changes any key makes another revision, and then the caller is looked up again.
    as_of: Revision,
    /// The form of the key.
    revision: Revision,
    policy: KeyPolicy,
    caller: Caller,
}

/// The caller that holds a key of tenant `system`.
#[must_use]
pub fn caller_of(entry: &Entry<'_>) -> Caller {
    Caller::new(entry.to_key_id(), entry.scopes())
}

impl Standing {
    /// The caller of a credential, as yet unchecked. `None`: it is not a key of tenant `system`.
    #[must_use]
    pub fn find(ready: &Ready, credential: &str, peer: Option<IpAddr>) -> Option<Self> {
        let index = ready.verifier.index();
        let secret = PresentedSecret::parse(credential).ok()?;
        // Before the entry, so that the entry is at least as new.
        let as_of = index.revision();
        let (digest, entry) =
            ready.peppers.digests(&secret).find_map(|digest| index.get(&digest).map(|entry| (digest, entry)))?;
        let (revision, policy, caller) = (entry.revision(), entry.to_policy(), caller_of(&entry));
        entry.tenant().is_system().then_some(Self { digest, peer, as_of, revision, policy, caller })
    }

    /// The caller's key.
    #[must_use]
    pub fn key_id(&self) -> &KeyId {
        self.caller.key_id()
    }

    /// The caller as they are now, if they may still do this somewhere.
    ///
    /// # Errors
    /// When their key does not work any more, or holds no role for this.
    pub fn caller(&mut self, ready: &Ready, action: Action, now: UnixMillis) -> Result<&Caller, Refusal> {
        let index = ready.verifier.index();
        let revision = index.revision();
        if self.as_of != revision {
            let entry = index.get(&self.digest).ok_or(Refusal::BadCredential(DenyReason::Unknown))?;
            if entry.revision() != self.revision {
                (self.revision, self.policy, self.caller) = (entry.revision(), entry.to_policy(), caller_of(&entry));
            }
            self.as_of = revision;
        }
        // Each time: the clock alone can end a key.
        decide(&self.policy, &ask(self.peer), now).map_err(Refusal::BadCredential)?;
        if !self.caller.may_somewhere(action) {
            return Err(AuthorityError::Denied.into());
        }
        Ok(&self.caller)
    }
}
