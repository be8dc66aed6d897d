//! State shared by the services. Verdicts are answered once the index is loaded; changes and lists once the
//! store is open, which is often later. Until then health says NOT_SERVING and calls answer UNAVAILABLE.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use keyward_core::clock::{Clock, Now};
use keyward_core::digest::PepperRing;
use keyward_core::id::ActorId;
use keyward_core::identity::Identities;

use super::query::Ruling;
use super::status::Refusal;
use crate::authority::Authority;
use crate::first_use::{FirstUse, FirstUses};
use crate::metrics::Verdicts;
use crate::verify::{Outcome, Presented, Verifier};

/// What callers are authenticated and verdicts are made with.
pub struct VerifyState {
    /// The hot path.
    pub verifier: Verifier,
    /// What secrets are hashed with.
    pub peppers: Arc<PepperRing>,
    /// Counts what the hot path decides.
    pub verdicts: Verdicts,
    /// Where first uses of new secrets are noted.
    pub first_uses: FirstUses,
    /// What the configuration gives to the identities of connections.
    pub identities: Arc<Identities>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl VerifyState {
    /// The time by which keys are judged.
    #[must_use]
    pub fn now(&self) -> Now {
        Now::new(self.clock.now(), self.verifier.index().latest_time())
    }

    /// The first use of a new secret that a verdict on it is, if one waits for that and it is not noted yet.
    /// Nearly no verdict is one.
    #[inline]
    #[must_use]
    pub fn first_use(&self, ruling: &Ruling<'_>, secret: &Presented<'_>) -> Option<FirstUse> {
        if ruling.matched.begins_overlap { self.first_use_of(ruling, secret) } else { None }
    }

    #[cold]
    fn first_use_of(&self, ruling: &Ruling<'_>, secret: &Presented<'_>) -> Option<FirstUse> {
        let Outcome::Allow(entry) = &ruling.verdict.outcome else { return None };
        let mark = FirstUses::mark_of(&secret.digest()?);
        if self.first_uses.is_noted(mark) {
            return None;
        }
        let (tenant, key_id) = (entry.tenant().clone(), entry.to_key_id()?);
        Some(FirstUse { tenant, key_id, digest: self.verifier.known_digest(secret)?, mark })
    }
}

/// The log of the process, whose filter can be set while it runs.
pub trait LogControl: Send + Sync {
    /// The filter.
    fn filter(&self) -> String;

    /// Sets another one, and logs who asked for it.
    ///
    /// # Errors
    /// With the rule that it breaks.
    fn set_filter(&self, filter: &str, caller: &ActorId) -> Result<(), String>;
}

/// A handle on the state. Each part is set once.
#[derive(Clone, Default)]
pub struct StateHandle(Arc<ServerState>);

#[derive(Default)]
struct ServerState {
    ready: OnceLock<VerifyState>,
    authority: OnceLock<Authority>,
    log: OnceLock<Arc<dyn LogControl>>,
    waits_for_room: AtomicBool,
}

impl StateHandle {
    /// Makes the state ready for verdicts. A second time changes nothing.
    pub fn open(&self, ready: VerifyState) {
        drop(self.0.ready.set(ready));
    }

    /// Makes the state ready for changes and lists. A second time changes nothing.
    pub fn open_for_changes(&self, authority: Authority) {
        drop(self.0.authority.set(authority));
    }

    /// Lets the filter of the log be set. A second time changes nothing.
    pub fn control_log(&self, log: Arc<dyn LogControl>) {
        drop(self.0.log.set(log));
    }

    /// The log, if its filter can be set.
    ///
    /// # Errors
    /// When it cannot: the server is a part of another program.
    pub fn log(&self) -> Result<&dyn LogControl, Refusal> {
        self.0.log.get().map(|log| &**log).ok_or(Refusal::LogNotOurs)
    }

    /// Says whether the start waits for room on the disk.
    pub fn wait_for_room(&self, waits: bool) {
        self.0.waits_for_room.store(waits, Ordering::Relaxed);
    }

    /// What verdicts are made with.
    ///
    /// # Errors
    /// While the index is being filled.
    pub fn ready(&self) -> Result<&VerifyState, Refusal> {
        self.0.ready.get().ok_or(Refusal::Starting)
    }

    /// The write side.
    ///
    /// # Errors
    /// While the store is being opened.
    pub fn authority(&self) -> Result<&Authority, Refusal> {
        self.0.authority.get().ok_or_else(|| match self.0.waits_for_room.load(Ordering::Relaxed) {
            true => Refusal::StartNeedsRoom,
            false => Refusal::Starting,
        })
    }
}
