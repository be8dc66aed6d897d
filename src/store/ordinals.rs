//! The numbers that a store gives to keys.

use std::cell::Cell;

/// Numbers of keys, in order. None is given twice in one log.
#[derive(Debug, Default)]
pub(super) struct Ordinals {
    next: Cell<u32>,
}

impl Ordinals {
    /// Those from `next` on. `u32::MAX`: there are none.
    pub(super) fn starting_at(next: u32) -> Self {
        Self { next: Cell::new(next) }
    }

    /// A number that no key of this log has had. `None`: all were given, and keys go without one.
    pub(super) fn take(&self) -> Option<u32> {
        let next = self.next.get();
        self.next.set(next.checked_add(1)?);
        Some(next)
    }

    /// Tries a change. If it is refused, the numbers that it took can be given again: a caller whose changes
    /// are refused uses none up.
    pub(super) fn unless_refused<T, E>(&self, change: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let next = self.next.get();
        change().inspect_err(|_| self.next.set(next))
    }
}
