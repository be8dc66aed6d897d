//! Owned tasks, the stop, and signals.

use std::future::{Future, poll_fn};
use std::io;
use std::panic::AssertUnwindSafe;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use keyward_core::enumerate;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::util::fatal::die;

/// The tasks of a server. They end after [`Tasks::stop`].
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Tasks {
    /// Spawns a task that others rely on. A panic in it ends the process.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), name, task);
    }

    /// The same, on the given runtime.
    pub fn spawn_on(&self, runtime: &Handle, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        let task = async move {
            match end.run_until_cancelled_owned(AssertUnwindSafe(task).catch_unwind()).await {
                Some(Ok(())) => tracing::debug!(task = name, "task ended"),
                None => tracing::debug!(task = name, "task was cut off"),
                Some(Err(_)) => die("a task that others rely on panicked", &name),
            }
        };
        self.tracker.spawn_on(task, runtime);
    }

    /// Spawns a task on the given runtime that no other relies on. A panic in it ends it alone.
    pub fn spawn_isolated_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        // A token of its own, which is polled often, so that cores do not contend for a shared one.
        let end = self.end.child_token();
        // Boxed, since each wrapper would reserve space for it.
        let task = Box::pin(task);
        self.tracker.spawn_on(
            async move {
                let _ended = end.run_until_cancelled_owned(task).await;
            },
            runtime,
        );
    }

    /// Cancelled when the tasks must stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells the tasks to stop and waits for them. Those that take longer than `deadline` are cut off; what
    /// they have spawned elsewhere, such as calls under way, ends with its runtime. Returns whether all ended
    /// in time.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let in_time = timeout(deadline, self.tracker.wait()).await.is_ok();
        self.end.cancel();
        self.tracker.wait().await;
        in_time
    }
}

/// The stop of a server, as its operator asks for it. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    asked: CancellationToken,
    drain_begun: CancellationToken,
    drain_over: CancellationToken,
}

impl Stop {
    /// Asks the server to stop.
    pub fn ask(&self) {
        self.asked.cancel();
    }

    /// Waits until the server is asked to stop.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// Ends the drain delay, and returns whether it was going on.
    #[must_use]
    pub fn end_drain(&self) -> bool {
        let is_draining = self.drain_begun.is_cancelled() && !self.drain_over.is_cancelled();
        if is_draining {
            self.drain_over.cancel();
        }
        is_draining
    }

    /// Waits for the drain delay, or until it is ended.
    pub async fn drain(&self, delay: Duration) {
        self.drain_begun.cancel();
        // Either way the token is cancelled below.
        drop(timeout(delay, self.drain_over.cancelled()).await);
        self.drain_over.cancel();
    }
}

enumerate! {
    /// A signal that the process handles.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Caught {
        /// SIGTERM.
        Terminate,
        /// SIGINT, as sent by ctrl-c.
        Interrupt,
        /// SIGHUP.
        Hangup,
        /// SIGUSR1.
        User1,
        /// SIGUSR2.
        User2,
    }
}

impl Caught {
    /// Its name, as in signal(7).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Hangup => "SIGHUP",
            Self::User1 => "SIGUSR1",
            Self::User2 => "SIGUSR2",
        }
    }

    /// The exit code of a process that is ended by it, as shells define it.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        128 + self.kind().as_raw_value()
    }

    fn kind(self) -> SignalKind {
        match self {
            Self::Terminate => SignalKind::terminate(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Hangup => SignalKind::hangup(),
            Self::User1 => SignalKind::user_defined1(),
            Self::User2 => SignalKind::user_defined2(),
        }
    }
}

/// Receives signals.
#[derive(Debug)]
pub struct Signals(Vec<(Caught, Signal)>);

impl Signals {
    /// Handles these signals instead of the default, which ends the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen(which: &[Caught]) -> io::Result<Self> {
        let listened = which.iter().map(|&caught| Ok((caught, signal(caught.kind())?)));
        listened.collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Caught {
        poll_fn(|cx| {
            let come =
                self.0.iter_mut().find_map(|(caught, signal)| signal.poll_recv(cx).is_ready().then_some(*caught));
            come.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
