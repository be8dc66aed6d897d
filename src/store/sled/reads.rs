//! Reading the table: on a few threads of its own, so that nothing else waits for them, and no read waits for many.
//!
//! Three kinds, each with its own threads: the read before a change that takes power away, other reads of one key, and
//! lists. Callers take turns. A list is read in slices, and between two of them another caller's list has its turn; and
//! from time to time the table's writer has one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use keyward_core::id::ActorId;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::table::Table;
use crate::fair::{Bounds, Queue};
use crate::store::StoreError;

/// Reads that wait, of one kind.
const WAITING: Bounds = Bounds { total: 16_384, per_party: 4_096 };

/// For how long lists are read while the table's writer waits, or so: some times as long as its transaction takes.
/// Where much is written, this decides what each of them has of the machine: with less, a caller who creates keys
/// leaves less than half of their rate to the lists of another (`tests/crash/run crowd`).
const TURN_TIME: Duration = Duration::from_millis(150);

/// Threads that read.
pub(super) struct Readers {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// For lists: nothing is written to it during a turn.
    table: Option<Arc<Table>>,
}

struct State {
    queue: Queue<ActorId, Job>,
    closed: bool,
}

/// Reads a slice, and says whether there is more to do.
type Job = Box<dyn FnMut() -> Step + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Again,
    Done,
}

impl Readers {
    /// Starts threads. With a table, they take turns with what writes it.
    pub(super) fn start(name: &str, threads: usize, table: Option<Arc<Table>>) -> std::io::Result<Self> {
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

    /// Reads in slices: `slice` is called until it gives something.
    ///
    /// # Errors
    /// That of the slice; [`StoreError::Overloaded`] when too many reads wait.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        caller: ActorId,
        mut slice: impl FnMut() -> Result<Option<T>, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let mut reply = Some(reply);
        let job = Box::new(move || {
            // Nobody waits for it any more.
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

    /// Ends the threads, and waits for them. What waits is not read any more.
    pub(super) fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            state.closed = true;
            while state.queue.pop().is_some() {}
        }
        self.shared.work.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // What panics in it is caught.
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
            let _turn = self.table.as_ref().map(|table| table.lock_for_list());
            let began = Instant::now();
            while began.elapsed() < TURN_TIME
                && let Some((caller, mut job)) = self.take()
            {
                // sled may panic: its caller hears that there is no answer.
                let step = catch_unwind(AssertUnwindSafe(&mut job)).unwrap_or(Step::Done);
                let mut state = self.state.lock();
                if step == Step::Again && !state.closed {
                    state.queue.push_front(caller, job);
                }
            }
        }
    }

    /// Waits until there is something to read. It says no when there will be nothing more.
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
