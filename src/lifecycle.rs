//! Tasks with owners, and signals.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fatal::die;

/// The tasks of a server. They end when [`Tasks::stop`] is asked of them.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Tasks {
    /// Starts a task. One that panics takes the process with it: the others rely on it.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_on(&Handle::current(), name, task);
    }

    /// The same, on a runtime of the caller's choice.
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

    /// Starts a task, on a runtime of the caller's choice, on which nothing else relies. One that panics ends alone.
    pub fn spawn_lone_on(&self, runtime: &Handle, task: impl Future<Output = ()> + Send + 'static) {
        // A token of its own: it is looked at again and again, and what all share, all cores would wait for.
        let end = self.end.child_token();
        self.tracker.spawn_on(
            async move {
                let _ended = end.run_until_cancelled_owned(task).await;
            },
            runtime,
        );
    }

    /// What tells the tasks to stop.
    #[must_use]
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Tells the tasks to stop and waits for them; those that take longer than `deadline` are cut off
    /// (what they have started elsewhere, such as calls under way, ends with its runtime). Says whether all
    /// ended by themselves.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let in_time = timeout(deadline, self.tracker.wait()).await.is_ok();
        self.end.cancel();
        self.tracker.wait().await;
        in_time
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the signals over from the system's default, which is to end the process at once.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one, and says by which exit code a process dies of it.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + 15,
            _ = self.interrupt.recv() => 128 + 2,
        }
    }
}
