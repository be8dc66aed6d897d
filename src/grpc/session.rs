//! An authenticated caller: judged when the call is admitted, and again before anything is done for it.

use std::net::IpAddr;
use std::sync::Arc;

use keyward_core::access::{Action, Caller, Credential, Identity, check_caller};
use keyward_core::clock::Now;
use keyward_core::decision::{DenyReason, Policy, StandingPolicy};
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, TenantId};
use keyward_core::identity::{Assignment, Peer, PeerIdentity};
use keyward_core::secret::PresentedSecret;

use super::state::VerifyState;
use super::status::Refusal;
use crate::authority::AuthorityError;
use crate::first_use::{FirstUse, FirstUses};
use crate::index::Entry;
use crate::services::Demand;

/// A caller, and what it takes to judge them again. The credential is not in it: its digest finds the key as
/// well. A clone is cheap.
///
/// There is no way to the [`Caller`] but through a judgement, so that none can be forgotten.
#[derive(Clone, Debug)]
pub struct CallerSession {
    /// Every change up to this revision has been looked at: whatever changes any key makes another one.
    as_of: Revision,
    /// The same of what the configuration gives to identities.
    generation: u64,
    demand: Demand,
    /// The form of the key. `None`: the caller has none.
    key: Option<KeyForm>,
    caller: Arc<Caller>,
}

/// A key, as it was looked up.
#[derive(Clone, Debug)]
struct KeyForm {
    revision: Revision,
    policy: Arc<StandingPolicy>,
    /// Whether the overlap with the secret before this one waits for a use.
    awaits_use: bool,
}

impl CallerSession {
    /// Finds the caller: by the key of their credential, or else by the identity of their connection. Whether
    /// the key works is not looked at yet.
    ///
    /// # Errors
    /// When there is a credential that is not the secret of a key of tenant `system`; or none, and the
    /// identity is not one that the configuration names; or when the listener demands both.
    pub fn find(ready: &VerifyState, credential: Option<&str>, peer: &Peer, demand: Demand) -> Result<Self, Refusal> {
        // Before what is looked up, so that it is at least as new.
        let (as_of, generation) = (ready.verifier.index().revision(), ready.identities.generation());
        let credential = match credential {
            Some(secret) => key_of(ready, secret).map_err(Refusal::BadCredential)?,
            None => {
                let identity = peer.identity().filter(|_| !ready.identities.is_empty());
                let name = identity.ok_or(Refusal::NoCredential)?.name().ok_or(Refusal::UnknownIdentity(None))?;
                Credential::Connection { name: name.clone(), identities: ready.identities.clone() }
            }
        };
        let identity = Identity { credential, peer: peer.ip(), connection: peer.identity().cloned() };
        let (key, caller) = look_up(ready, identity, demand)?;
        Ok(Self { as_of, generation, demand, key, caller })
    }

    /// The caller, as the log names them.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        self.caller.identity().actor()
    }

    /// What the caller was authenticated by.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.caller.identity()
    }

    /// A number by which callers are told apart. No caller can choose it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.caller.identity().number()
    }

    /// The address that the caller called from.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.caller.identity().peer
    }

    /// Whether no key and no identity has changed since this was looked up.
    #[must_use]
    pub fn is_current(&self, ready: &VerifyState) -> bool {
        // The revision is told after the entries: while it stands still, what was read at it has not been
        // overtaken by any change that somebody was told of.
        self.as_of == ready.verifier.index().revision() && self.is_given_the_same(ready)
    }

    /// Looks the caller up again, if any key or identity has changed.
    ///
    /// # Errors
    /// When the key is gone, or the configuration does not name the identity any more.
    pub fn refresh(&mut self, ready: &VerifyState) -> Result<(), Refusal> {
        let (as_of, generation) = (ready.verifier.index().revision(), ready.identities.generation());
        if self.as_of == as_of && self.generation == generation {
            return Ok(());
        }
        if self.generation != generation || self.key.is_some() && !self.key_is_the_same(ready) {
            (self.key, self.caller) = look_up(ready, self.caller.identity().clone(), self.demand)?;
        }
        (self.as_of, self.generation) = (as_of, generation);
        Ok(())
    }

    /// The caller as they are now, if they may still do this somewhere.
    ///
    /// # Errors
    /// When they are not authenticated any more, or hold no role for this.
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
    /// When their key does not work any more, or what their connection proves does not hold any more.
    pub fn works(&mut self, ready: &VerifyState, now: Now) -> Result<(), Refusal> {
        self.refresh(ready)?;
        // Each time: the clock alone can end a key and a certificate.
        if !self.caller.identity().connection_is_good(now) {
            return Err(Refusal::IdentityEnded);
        }
        self.check_key(now).map_err(Refusal::BadCredential)?;
        self.note_first_use(ready);
        Ok(())
    }

    /// A call that a new secret authenticates is a use of it, if the overlap with the one before waits for
    /// that.
    pub fn note_first_use(&self, ready: &VerifyState) {
        let (Credential::Key { key_id, digest }, Some(key)) = (&self.caller.identity().credential, &self.key) else {
            return;
        };
        if key.awaits_use {
            let (tenant, mark) = (TenantId::system(), FirstUses::mark_of(digest));
            ready.first_uses.note(FirstUse { tenant, key_id: key_id.clone(), digest: *digest, mark });
        }
    }

    /// The caller, if nothing of them has changed since they were judged, at `judged_at` if ever, and they
    /// are still authenticated. `None`: they must be judged anew.
    #[must_use]
    pub fn unchanged(&self, ready: &VerifyState, judged_at: Option<Now>, now: Now) -> Option<&Caller> {
        let works = || {
            let connection = self.caller.identity().connection.as_deref();
            let connection_is_good = connection.is_none_or(|connection| connection.is_good(now));
            connection_is_good && (judged_at == Some(now) || self.check_key(now).is_ok())
        };
        let unchanged = self.is_current(ready)
            || self.is_given_the_same(ready) && (self.key.is_none() || self.key_is_the_same(ready));
        (unchanged && works()).then_some(&*self.caller)
    }

    fn check_key(&self, now: Now) -> Result<(), DenyReason> {
        self.key.as_ref().map_or(Ok(()), |key| check_caller(&*key.policy, self.peer(), now))
    }

    /// Whether the key is in the form that this was made of.
    fn key_is_the_same(&self, ready: &VerifyState) -> bool {
        let (Credential::Key { digest, .. }, Some(key)) = (&self.caller.identity().credential, &self.key) else {
            return false;
        };
        // What is withheld of tenants, owners and issuers changes without a change of the key.
        ready
            .verifier
            .index()
            .get(digest)
            .is_some_and(|entry| entry.revision() == key.revision && entry.standing() == key.policy.standing)
    }

    /// Whether the configuration gives to identities what it gave, and the one of the connection was not
    /// withdrawn.
    fn is_given_the_same(&self, ready: &VerifyState) -> bool {
        let connection = self.caller.identity().connection.as_deref();
        self.generation == ready.identities.generation() && !connection.is_some_and(PeerIdentity::is_withdrawn)
    }
}

/// The key of a credential.
fn key_of(ready: &VerifyState, credential: &str) -> Result<Credential, DenyReason> {
    let index = ready.verifier.index();
    let secret = PresentedSecret::parse(credential).map_err(|_| DenyReason::Malformed)?;
    let found = ready.peppers.digests(&secret).find_map(|digest| index.get(&digest).map(|entry| (digest, entry)));
    let known = found.filter(|(_, entry)| entry.tenant().is_system() && !entry.is_hidden());
    let (digest, entry) = known.ok_or(DenyReason::Unknown)?;
    let key_id = entry.to_key_id().ok_or(DenyReason::Unknown)?;
    Ok(Credential::Key { key_id, digest })
}

/// Looks up a caller, as they are now.
fn look_up(ready: &VerifyState, identity: Identity, demand: Demand) -> Result<(Option<KeyForm>, Arc<Caller>), Refusal> {
    let name = identity.connection.as_deref().and_then(PeerIdentity::name);
    let assignment = name.and_then(|name| ready.identities.of(name));
    let assignment = assignment.as_deref();
    match (&identity.credential, assignment, demand) {
        (Credential::Key { .. }, None, Demand::Both) => Err(Refusal::NoIdentity),
        (Credential::Key { digest, .. }, _, _) => {
            let entry = ready.verifier.index().get(digest).filter(|entry| !entry.is_hidden());
            let entry = entry.ok_or(Refusal::BadCredential(DenyReason::Unknown))?;
            let awaits_use = entry.is_rotating() && !entry.is_of_previous() && entry.previous_end().is_none();
            let key = KeyForm { revision: entry.revision(), policy: Arc::new(entry.to_policy()), awaits_use };
            Ok((Some(key), caller_of(&entry, identity.clone(), assignment)))
        }
        (Credential::Connection { .. }, _, Demand::Both) => Err(Refusal::NoCredential),
        (Credential::Connection { name, .. }, None, Demand::Either) => {
            Err(Refusal::UnknownIdentity(Some(name.clone())))
        }
        (Credential::Connection { .. }, Some(assignment), Demand::Either) => {
            Ok((None, Arc::new(Caller::assigned(identity.clone(), assignment))))
        }
    }
}

fn caller_of(entry: &Entry<'_>, identity: Identity, assignment: Option<&Assignment>) -> Arc<Caller> {
    Arc::new(Caller::new(identity, entry.scopes()).with_audience(assignment))
}
