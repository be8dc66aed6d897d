//! A thread for each core, with a single-threaded runtime that serves connections; and a thread each for
//! urgent and for bulk calls.
//!
//! A single-threaded runtime steals no work and shares no queue: what a connection does stays in the caches
//! of one core. Work that may take long runs on the shared runtime.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::tls::handshake::Turns;

/// Blocking threads of each core's runtime at most.
const BLOCKING_THREADS_MAX: usize = 16;

/// The threads. They end when this is stopped or dropped, along with the tasks on them.
#[derive(Debug)]
pub struct Cores {
    runtimes: Vec<CoreRuntime>,
    urgent: Handle,
    bulk: Handle,
    threads: Vec<JoinHandle<()>>,
    end: DropGuard,
}

/// A runtime that serves connections, and counts them.
#[derive(Clone, Debug)]
pub struct CoreRuntime {
    handle: Handle,
    connections: Arc<()>,
    handshakes: Turns,
}

/// Counts as a connection until it is dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    _connection: Arc<()>,
}

impl CoreRuntime {
    fn on(handle: Handle) -> Self {
        Self { handle, connections: Arc::default(), handshakes: Turns::default() }
    }

    /// The current runtime.
    #[must_use]
    pub fn current() -> Self {
        Self::on(Handle::current())
    }

    /// A handle of the runtime.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The turns of its handshakes.
    #[must_use]
    pub fn handshakes(&self) -> Turns {
        self.handshakes.clone()
    }

    /// Counts a connection.
    #[must_use]
    pub fn connection_guard(&self) -> ConnectionGuard {
        ConnectionGuard { _connection: self.connections.clone() }
    }

    /// How many connections there are, plus one.
    #[must_use]
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.connections)
    }
}

impl Cores {
    /// Starts this many core threads, and those for urgent and for bulk calls. The latter runs
    /// `lower_priority` first. With none, everything runs on the current runtime.
    ///
    /// # Errors
    /// When the system grants no thread, or no descriptor for polling sockets.
    pub fn start(count: usize, lower_priority: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let end = CancellationToken::new();
        let mut cores = Self {
            runtimes: vec![],
            urgent: Handle::current(),
            bulk: Handle::current(),
            threads: vec![],
            end: end.clone().drop_guard(),
        };
        for number in 0..count {
            let runtime = cores.start_one(format!("core-{number}"), end.clone(), || ())?;
            cores.runtimes.push(CoreRuntime::on(runtime));
        }
        if count > 0 {
            cores.urgent = cores.start_one("urgent".to_owned(), end.clone(), || ())?;
            cores.bulk = cores.start_one("bulk".to_owned(), end, lower_priority)?;
        }
        Ok(cores)
    }

    fn start_one(
        &mut self,
        name: String,
        end: CancellationToken,
        begin: impl FnOnce() + Send + 'static,
    ) -> io::Result<Handle> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name(format!("{name} wait"))
            .build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            begin();
            runtime.block_on(end.cancelled());
            runtime.shutdown_background();
        })?;
        self.threads.push(thread);
        Ok(handle)
    }

    /// The runtimes that serve connections.
    #[must_use]
    pub fn runtimes(&self) -> &[CoreRuntime] {
        &self.runtimes
    }

    /// The runtime for urgent calls.
    #[must_use]
    pub fn urgent(&self) -> Handle {
        self.urgent.clone()
    }

    /// The runtime for bulk calls: those whose replies take long to make. On the shared one, each would wait
    /// for the changes of others twice, to begin and to be encoded.
    #[must_use]
    pub fn bulk(&self) -> Handle {
        self.bulk.clone()
    }

    /// Stops the threads and waits for them.
    pub fn stop(self) {
        drop(self.end);
        for thread in self.threads {
            // Panics of tasks stay in the runtime.
            drop(thread.join());
        }
    }
}
