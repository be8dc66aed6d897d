//! Updates of one key take turns: arriving together, they would undo each other's reading again and again.
//!
//! Only updates: a disable never waits for them, and wins against the one that is under way at most a few times later.

use keyward_core::id::{KeyId, TenantId};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::AuthorityError;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys share this many turns.
const TURNS: usize = 1_024;
/// Updates that wait for one turn at most; one more is refused.
const WAITING_MAX: usize = 64;

pub(super) struct Turns(Vec<Turn>);

struct Turn {
    free: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Turn { free: Semaphore::new(1), waiting: AtomicUsize::new(0) }).collect())
    }
}

impl Turns {
    /// Waits for the turn of a key's update. It ends when the permit is dropped.
    pub(super) async fn take(&self, tenant: &TenantId, key_id: &KeyId) -> Result<SemaphorePermit<'_>, AuthorityError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(tenant.as_str().as_bytes()).update(b"/").update(key_id.as_str().as_bytes());
        let [low, high, ..] = *hasher.finalize().as_bytes();
        let turn = &self.0[usize::from(u16::from_le_bytes([low, high])) % TURNS];
        let waiting = Waiting::begin(&turn.waiting)?;
        let permit = turn.free.acquire().await.map_err(|_| AuthorityError::Overloaded);
        drop(waiting);
        permit
    }
}

/// Counts one that waits, also when it gives up.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Result<Self, AuthorityError> {
        let this = Self(waiting);
        match waiting.fetch_add(1, Ordering::Relaxed) {
            before if before >= WAITING_MAX => Err(AuthorityError::Overloaded),
            _ => Ok(this),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
