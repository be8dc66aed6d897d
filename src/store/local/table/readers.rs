//! Reads of the table, on a few threads of their own, so that nothing else waits for them.
//!
//! Three kinds, each with its own threads: the read before a narrowing, other reads of one key, and lists.
//! Callers are served in turn. A list is read in slices; between two slices another caller's list has its
//! turn, and from time to time the table writer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use keyward_core::id::ActorId;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::Table;
use super::list_turns::ListTurns;
use crate::fair::{Bounds, Queue};
use crate::store::StoreError;

/// Bounds on queued reads of one kind.
const WAITING: Bounds = Bounds { total: 16_384, per_party: 4_096 };

/// A pool of reader threads.
pub(in crate::store::local) struct Readers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// For lists: the table, with whose writer they take turns.
    table: Option<Arc<Table>>,
}

struct State {
    queue: Queue<ActorId, Job>,
    closed: bool,
}

/// Reads a slice, and says whether there is more to read.
type Job = Box<dyn FnMut() -> Step + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Again,
    Done,
}

impl Readers {
    /// Starts the threads. With a table, they alternate with its writer.
    pub(in crate::store::local) fn start(
        name: &str,
        threads: usize,
        table: Option<Arc<Table>>,
    ) -> std::io::Result<Self> {
        let state = State { queue: Queue::new(WAITING), closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), table });
        let readers = Self { shared: shared.clone(), threads: Mutex::default() };
        for _ in 0..threads {
            let shared = shared.clone();
            let thread = Builder::new().name(name.to_owned()).spawn(move || shared.run())?;
            readers.threads.lock().push(thread);
        }
        Ok(readers)
    }

    /// Reads in slices: calls `slice` until it returns something.
    ///
    /// The error of the slice; [`StoreError::Overloaded`] when too many reads are queued.
    pub(in crate::store::local) async fn read<T: Send + 'static>(
        &self,
        caller: ActorId,
        mut slice: impl FnMut() -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let mut reply = Some(reply);
        let job = Box::new(move || {
            // The caller has gone away.
            if reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return Step::Done;
            }
            let read = match slice() {
                Ok(None) => return Step::Again,
                Ok(Some(found)) => Ok(found),
                Err(error) => Err(error),
            };
            if let Some(reply) = reply.take() {
                drop(reply.send(read));
            }
            Step::Done
        });
        {
            let mut state = self.shared.state.lock();
            if state.closed {
                return Err(StoreError::Closed);
            }
            state.queue.push(caller, job).map_err(|_| StoreError::Overloaded)?;
        }
        self.shared.work.notify_one();
        answer.await.map_err(|_| StoreError::Engine("a read of the table panicked, or the store closes".into()))?
    }

    /// Stops the threads and waits for them. Queued reads are dropped.
    pub(in crate::store::local) fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            state.closed = true;
            while state.queue.pop().is_some() {}
        }
        self.shared.work.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // Panics of reads are caught in the thread.
            drop(thread.join());
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn run(&self) {
        while self.wait() {
            let turns = self.table.as_ref().map(|table| table.list_turns());
            let _turn = turns.map(ListTurns::begin_list);
            while !turns.is_some_and(ListTurns::is_list_time_over)
                && let Some((caller, mut job)) = self.take()
            {
                // sled may panic: the caller then gets an error.
                let step = catch_unwind(AssertUnwindSafe(&mut job)).unwrap_or(Step::Done);
                let mut state = self.state.lock();
                if step == Step::Again && !state.closed {
                    state.queue.push_front(caller, job);
                }
            }
        }
    }

    /// Waits until there is something to read. `false` once closed.
    fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while state.queue.is_empty() && !state.closed {
            self.work.wait(&mut state);
        }
        !state.closed
    }

    fn take(&self) -> Option<(ActorId, Job)> {
        self.state.lock().queue.pop()
    }
}
