//! What the services work with, once it is there. Until then health says NOT_SERVING and calls answer UNAVAILABLE.

use std::sync::{Arc, OnceLock};

use keyward_core::clock::Clock;
use keyward_core::digest::PepperRing;

use super::status::Refusal;
use crate::authority::Authority;
use crate::metrics::Verdicts;
use crate::verify::Verifier;

/// What the services work with.
pub struct Ready {
    /// The write side.
    pub authority: Authority,
    /// The hot path.
    pub verifier: Verifier,
    /// What secrets are hashed with.
    pub peppers: Arc<PepperRing>,
    /// Counts what the hot path decides.
    pub verdicts: Verdicts,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Opens once, when the data is loaded.
#[derive(Clone, Default)]
pub struct Gate(Arc<OnceLock<Ready>>);

impl Gate {
    /// Opens the gate. A second time changes nothing.
    pub fn open(&self, ready: Ready) {
        drop(self.0.set(ready));
    }

    /// What the services work with.
    ///
    /// # Errors
    /// While the data is being loaded.
    pub fn ready(&self) -> Result<&Ready, Refusal> {
        self.0.get().ok_or(Refusal::Starting)
    }
}
