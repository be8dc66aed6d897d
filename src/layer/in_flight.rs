//! The bound on calls under way: each holds memory, and a place in the queues behind it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

/// Calls of authenticated callers that are under way, save those for verdicts that are no streams, and those
/// that only take power away. Clones share the count.
#[derive(Clone, Debug)]
pub struct CallsInFlight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    /// By the number of their caller.
    of: HashMap<u64, usize>,
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub struct CallInFlight {
    shared: Arc<Shared>,
    caller: u64,
}

impl CallsInFlight {
    /// So many at most.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared { max, state: Mutex::default() }))
    }

    /// Those under way now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.state.lock().all
    }

    /// Begins a call. `None`: there are as many as there may be, or half as many are this caller's.
    #[must_use]
    pub fn begin(&self, caller: u64) -> Option<CallInFlight> {
        let mut state = self.0.state.lock();
        let of_caller = state.of.get(&caller).copied().unwrap_or_default();
        if state.all >= self.0.max || of_caller >= self.0.max.div_ceil(2) {
            return None;
        }
        state.all += 1;
        state.of.insert(caller, of_caller + 1);
        Some(CallInFlight { shared: self.0.clone(), caller })
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.all -= 1;
        if let Entry::Occupied(mut of_caller) = state.of.entry(self.caller) {
            *of_caller.get_mut() -= 1;
            if *of_caller.get() == 0 {
                of_caller.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_calls_are_left_to_other_callers() {
        let calls = CallsInFlight::new(4);
        let mut greedy: Vec<_> = std::iter::from_fn(|| calls.begin(1)).collect();
        assert_eq!(greedy.len(), 2);
        let others: Vec<_> = [2, 3].map(|caller| calls.begin(caller).unwrap()).into();
        assert!(calls.begin(4).is_none(), "four are under way");
        greedy.pop();
        assert!(calls.begin(4).is_some());
        drop((greedy, others));
        assert_eq!((calls.count(), calls.0.state.lock().of.len()), (0, 0));
        assert!(CallsInFlight::new(1).begin(1).is_some());
    }
}
