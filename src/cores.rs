//! One thread for each core, each with a runtime of its own, on which connections live; and one for calls that go before
//! others.
//!
//! A runtime of one thread steals no work and shares no queue: what a connection does stays in the caches of one core.
//! Whatever may take long is done elsewhere, on the runtime that everything else runs on.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Threads on which the runtime of a core may block.
const BLOCKING_THREADS_MAX: usize = 16;

/// The threads. They end when this is stopped or dropped, and what still runs on them ends with them.
#[derive(Debug)]
pub struct Cores {
    runtimes: Vec<CoreRuntime>,
    urgent: Handle,
    threads: Vec<JoinHandle<()>>,
    end: DropGuard,
}

/// Where connections live. It counts those that do.
#[derive(Clone, Debug)]
pub struct CoreRuntime {
    handle: Handle,
    connections: Arc<()>,
}

/// A place in a home, free again when this is dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    _connection: Arc<()>,
}

impl CoreRuntime {
    /// The home that is the current runtime.
    #[must_use]
    pub fn current() -> Self {
        Self { handle: Handle::current(), connections: Arc::default() }
    }

    /// Its runtime.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Takes a place.
    #[must_use]
    pub fn connection_guard(&self) -> ConnectionGuard {
        ConnectionGuard { _connection: self.connections.clone() }
    }

    /// How many places are taken.
    #[must_use]
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.connections)
    }
}

impl Cores {
    /// Starts this many threads, and the one for what goes before others. Without any, all is done on the current runtime.
    ///
    /// # Errors
    /// When the system grants no thread, or nothing to wait for sockets with.
    pub fn start(count: usize) -> io::Result<Self> {
        let end = CancellationToken::new();
        let mut cores =
            Self { runtimes: vec![], urgent: Handle::current(), threads: vec![], end: end.clone().drop_guard() };
        for number in 0..count {
            let runtime = cores.start_one(format!("core-{number}"), end.clone())?;
            cores.runtimes.push(CoreRuntime { handle: runtime, connections: Arc::default() });
        }
        if count > 0 {
            cores.urgent = cores.start_one("urgent".to_owned(), end)?;
        }
        Ok(cores)
    }

    fn start_one(&mut self, name: String, end: CancellationToken) -> io::Result<Handle> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name(format!("{name} wait"))
            .build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
        self.threads.push(thread);
        Ok(handle)
    }

    /// Where connections live.
    #[must_use]
    pub fn runtimes(&self) -> &[CoreRuntime] {
        &self.runtimes
    }

    /// Where calls are answered that go before others.
    #[must_use]
    pub fn urgent(&self) -> Handle {
        self.urgent.clone()
    }

    /// Ends the threads and waits for them.
    pub fn stop(self) {
        drop(self.end);
        for thread in self.threads {
            // Tasks do not panic through their runtime.
            drop(thread.join());
        }
    }
}
