//! A bound on the bytes of unanswered requests that the whole process holds: one for connections without a
//! valid credential, and one for all others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::OWN_BYTES;

/// Bytes that an account takes at a time, so that most changes touch no shared counter.
const STEP_BYTES: usize = 4 * 1024;
/// One connection may have this part of a bound.
const SHARE: usize = 8;

const _: () = assert!(OWN_BYTES.is_multiple_of(STEP_BYTES));

/// The bounds of a process, and what is held under them. Clones share both.
#[derive(Clone, Debug)]
pub struct Budget(Arc<[Pool; 2]>);

/// Whose requests they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Of connections that have not shown a valid credential.
    Strangers,
    /// Of all others.
    Known,
}

#[derive(Debug)]
struct Pool {
    bytes_max: usize,
    held: AtomicUsize,
    refused: AtomicU64,
}

impl Budget {
    /// Bounds in bytes. Each connection may hold [`OWN_BYTES`] in any case.
    #[must_use]
    pub fn new(strangers_bytes_max: usize, known_bytes_max: usize) -> Self {
        Self(Arc::new([strangers_bytes_max, known_bytes_max].map(|bytes_max| Pool {
            bytes_max,
            held: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })))
    }

    /// Bytes that are held now, including each connection's own.
    #[must_use]
    pub fn held(&self, callers: Callers) -> usize {
        self.pool(callers).held.load(Ordering::Relaxed)
    }

    /// Calls refused and connections closed for want of room.
    #[must_use]
    pub fn refused(&self, callers: Callers) -> u64 {
        self.pool(callers).refused.load(Ordering::Relaxed)
    }

    fn pool(&self, callers: Callers) -> &Pool {
        let [strangers, known] = &*self.0;
        match callers {
            Callers::Strangers => strangers,
            Callers::Known => known,
        }
    }
}

/// What a connection holds. Dropping it gives that back.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    callers: Callers,
    /// Bytes taken, at least [`OWN_BYTES`].
    taken: usize,
}

impl Account {
    /// The account of an unauthenticated connection.
    pub(super) fn open(budget: Budget) -> Self {
        let account = Self { budget, callers: Callers::Strangers, taken: OWN_BYTES };
        account.pool().held.fetch_add(OWN_BYTES, Ordering::Relaxed);
        account
    }

    /// Whether the connection has shown a valid credential.
    pub(super) fn is_known(&self) -> bool {
        self.callers == Callers::Known
    }

    /// The connection has shown a valid credential.
    pub(super) fn mark_known(&mut self) {
        self.pool().held.fetch_sub(self.taken, Ordering::Relaxed);
        self.callers = Callers::Known;
        self.pool().held.fetch_add(self.taken, Ordering::Relaxed);
    }

    /// Sets how many bytes are held. Returns false, and changes nothing, if that is too many.
    pub(super) fn try_set(&mut self, bytes: usize) -> bool {
        if bytes <= self.taken && self.taken - bytes < STEP_BYTES || bytes <= OWN_BYTES && self.taken == OWN_BYTES {
            return true;
        }
        let wanted = bytes.next_multiple_of(STEP_BYTES).max(OWN_BYTES);
        let Some(more) = wanted.checked_sub(self.taken) else {
            self.pool().held.fetch_sub(self.taken - wanted, Ordering::Relaxed);
            self.taken = wanted;
            return true;
        };
        let pool = self.pool();
        let is_mine = wanted <= OWN_BYTES.max(pool.bytes_max / SHARE);
        if !is_mine || pool.held.fetch_add(more, Ordering::Relaxed) + more > pool.bytes_max {
            if is_mine {
                pool.held.fetch_sub(more, Ordering::Relaxed);
            }
            return false;
        }
        self.taken = wanted;
        true
    }

    /// Sets how many bytes are held, even beyond the bound.
    pub(super) fn set_over_limit(&mut self, bytes: usize) {
        let wanted = bytes.next_multiple_of(STEP_BYTES).max(OWN_BYTES);
        self.pool().held.fetch_add(wanted, Ordering::Relaxed);
        self.pool().held.fetch_sub(self.taken, Ordering::Relaxed);
        self.taken = wanted;
    }

    pub(super) fn count_refusal(&self) {
        self.pool().refused.fetch_add(1, Ordering::Relaxed);
    }

    fn pool(&self) -> &Pool {
        self.budget.pool(self.callers)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.pool().held.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn an_account_has_its_own_bytes_and_a_share_of_the_rest() {
        let budget = Budget::new(MIB, 16 * MIB);
        let mut accounts: Vec<_> = (0..9).map(|_| Account::open(budget.clone())).collect();
        assert_eq!(budget.held(Callers::Strangers), 9 * OWN_BYTES);
        assert!(!accounts[0].try_set(MIB / SHARE + 1), "more than its share");
        let full = accounts.iter_mut().filter_map(|account| account.try_set(MIB / SHARE).then_some(())).count();
        assert_eq!(full, 7, "what the others have for themselves is taken");
        assert!(accounts.iter_mut().all(|account| account.try_set(OWN_BYTES)), "each has that");
        assert_eq!(budget.held(Callers::Strangers), 9 * OWN_BYTES);
        drop(accounts);
        assert_eq!(budget.held(Callers::Strangers), 0);
    }

    #[test]
    fn what_a_connection_holds_moves_to_the_other_bound_when_it_is_known() {
        let budget = Budget::new(MIB, 16 * MIB);
        let mut account = Account::open(budget.clone());
        assert!(account.try_set(100_000));
        account.mark_known();
        assert_eq!(budget.held(Callers::Strangers), 0);
        assert!((100_000..104_096).contains(&budget.held(Callers::Known)));
        account.set_over_limit(32 * MIB);
        assert!(!account.try_set(33 * MIB) && account.try_set(MIB));
        assert_eq!(budget.held(Callers::Known), MIB);
        drop(account);
        assert_eq!(budget.held(Callers::Known), 0);
    }
}
