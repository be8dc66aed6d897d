//! The number of keys in each state, updated with each change.

use std::sync::atomic::{AtomicUsize, Ordering};

use keyward_core::record::State;

/// Counts of keys by state.
#[derive(Debug, Default)]
pub(super) struct StateCounts {
    active: AtomicUsize,
    disabled: AtomicUsize,
    revoked: AtomicUsize,
}

impl StateCounts {
    pub(super) fn of(&self, state: State) -> usize {
        self.counter(state).load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, state: State) {
        self.counter(state).fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, state: State) {
        self.counter(state).fetch_sub(1, Ordering::Relaxed);
    }

    fn counter(&self, state: State) -> &AtomicUsize {
        match state {
            State::Active => &self.active,
            State::Disabled => &self.disabled,
            State::Revoked => &self.revoked,
        }
    }
}
