//! Lists and transactions take turns on the table. sled locks each key that is read: under many writes, a
//! list would wait for a transaction at every few keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long lists go first after a transaction: several times as long as one takes. Under many writes, this
/// decides the shares of the machine: with less, a caller who creates keys leaves less than half of their
/// rate to the lists of another (`tests/crash/run crowd`).
const LIST_TIME: Duration = Duration::from_millis(150);

#[derive(Debug)]
pub(in crate::store::local) struct ListTurns {
    lock: RwLock<()>,
    transaction_waits: AtomicBool,
    last_transaction: Mutex<Instant>,
}

impl ListTurns {
    pub(in crate::store::local) fn new() -> Self {
        let last_transaction = Mutex::new(Instant::now());
        Self { lock: RwLock::default(), transaction_waits: AtomicBool::new(false), last_transaction }
    }

    /// Begins the turn of a list. Several lists share it.
    pub(super) fn begin_list(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read()
    }

    /// Whether lists should end their turns. All of them do so at the same time, because the transaction
    /// waits for the last one.
    pub(super) fn is_list_time_over(&self) -> bool {
        self.transaction_waits.load(Ordering::Relaxed) && self.last_transaction.lock().elapsed() >= LIST_TIME
    }

    /// Begins the turn of a transaction. There is one at a time.
    pub(in crate::store::local) fn begin_transaction(&self) -> TransactionTurn<'_> {
        self.transaction_waits.store(true, Ordering::Relaxed);
        let lock = self.lock.write();
        self.transaction_waits.store(false, Ordering::Relaxed);
        TransactionTurn { turns: self, lock: Some(lock) }
    }
}

/// The turn of a transaction. It ends when this is dropped.
pub(in crate::store::local) struct TransactionTurn<'a> {
    turns: &'a ListTurns,
    lock: Option<RwLockWriteGuard<'a, ()>>,
}

impl Drop for TransactionTurn<'_> {
    fn drop(&mut self) {
        *self.turns.last_transaction.lock() = Instant::now();
        // To waiting lists first: the next transaction comes at once.
        if let Some(lock) = self.lock.take() {
            RwLockWriteGuard::unlock_fair(lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_end_their_turns_when_a_transaction_waits_and_they_had_their_time() {
        let turns = ListTurns::new();
        let ended = |ago| *turns.last_transaction.lock() = Instant::now().checked_sub(ago).unwrap();
        let first = turns.begin_list();
        ended(2 * LIST_TIME);
        assert!(!turns.is_list_time_over(), "nothing waits");
        std::thread::scope(|scope| {
            let transaction = scope.spawn(|| drop(turns.begin_transaction()));
            while !turns.transaction_waits.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            assert!(turns.is_list_time_over());
            ended(Duration::ZERO);
            assert!(!turns.is_list_time_over(), "a transaction has just had its turn");
            assert!(!transaction.is_finished(), "a list has its turn");
            drop(first);
        });
        assert!(turns.last_transaction.lock().elapsed() < LIST_TIME && !turns.is_list_time_over());
        drop(turns.begin_list());
    }
}
