//! Changes that are due by the clock, made by Keyward itself: a key whose suspension has ended becomes
//! active, and a deleted key whose time is over is purged.
//!
//! No verdict waits for them: it goes by the clock. Each is a commit of its own, so that the journal has it,
//! on the condition that the key is as it was read: a caller's change in between wins. They take turns with
//! callers' changes, and are refused like those while the disk is short of room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use keyward_core::clock::{Clock, Now, UnixMillis};
use keyward_core::id::ActorId;
use keyward_core::record::{AuditStamp, KeyRecord};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::target;
use crate::index::Index;
use crate::store::{Commit, CommitError, DueKey, RecordWrite, Store, StoreError};

/// How long after one look for keys that are due the next begins.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Keys that are read and changed at a time.
const BATCH_KEYS: usize = 100;
/// The pause after each batch. With it, at most 1,000 keys are changed in a second.
const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// Makes the changes that are due.
pub struct Sweeper {
    /// The store that they are committed to.
    pub store: Arc<dyn Store>,
    /// The index, which says how late the log is.
    pub index: Arc<Index>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What it has done.
    pub swept: Arc<Swept>,
}

/// What a [`Sweeper`] has done.
#[derive(Debug, Default)]
pub struct Swept {
    resumed: AtomicU64,
    purged: AtomicU64,
    late_ms: AtomicU64,
}

impl Swept {
    /// Keys whose suspension has ended, made active.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Keys purged.
    #[must_use]
    pub fn purged(&self) -> u64 {
        self.purged.load(Ordering::Relaxed)
    }

    /// How late the latest change of the last batch was, in milliseconds. 0: none was due.
    #[must_use]
    pub fn late_ms(&self) -> u64 {
        self.late_ms.load(Ordering::Relaxed)
    }
}

/// What became of a key that was due.
enum Outcome {
    Resumed,
    Purged,
    /// It is not due any more, or another change came first.
    Left,
    /// No change can be made now.
    Stopped,
}

impl Sweeper {
    /// Makes what is due, now and from then on, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut after = None;
        loop {
            let pause = if after.is_some() { BATCH_PAUSE } else { SWEEP_INTERVAL };
            let step = async {
                sleep(pause).await;
                self.sweep(after.take()).await
            };
            match stop.run_until_cancelled(step).await {
                Some(last) => after = last,
                None => return,
            }
        }
    }

    /// Makes the changes of one batch, after that of another key. Returns the last key of the batch, if there
    /// may be more.
    async fn sweep(&self, after: Option<DueKey>) -> Option<DueKey> {
        let clock = self.clock.now();
        let due = match self.store.due(after.as_ref(), clock, BATCH_KEYS).await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "the keys that are due cannot be read");
                return None;
            }
        };
        let outcomes = join_all(due.iter().map(|due| self.settle(due, clock))).await;
        let (mut purged, mut late_ms, mut is_stopped) = (0, 0, false);
        for (due, outcome) in due.iter().zip(outcomes) {
            match outcome {
                Outcome::Left => continue,
                Outcome::Resumed => drop(self.swept.resumed.fetch_add(1, Ordering::Relaxed)),
                Outcome::Purged => purged += 1,
                Outcome::Stopped => is_stopped = true,
            }
            late_ms = late_ms.max(clock.0.saturating_sub(due.time.0).unsigned_abs());
        }
        self.swept.late_ms.store(late_ms, Ordering::Relaxed);
        if purged > 0 {
            self.swept.purged.fetch_add(purged, Ordering::Relaxed);
            tracing::info!(keys = purged, "deleted keys were purged");
        }
        due.into_iter().nth(BATCH_KEYS - 1).filter(|_| !is_stopped)
    }

    async fn settle(&self, due: &DueKey, clock: UnixMillis) -> Outcome {
        let DueKey { tenant, key_id, .. } = due;
        let key = match self.store.key(tenant, key_id).await {
            Ok(Some(key)) => key,
            // What is due is read from the table, which may be behind.
            Ok(None) => return Outcome::Left,
            Err(_) => return Outcome::Stopped,
        };
        let time = Now::new(clock, self.index.latest_time()).latest();
        let stamp = AuditStamp { time, actor: ActorId::keyward() };
        let is_over = key.deletion.is_some_and(|deletion| deletion.purge_time <= clock);
        let (method, put) = if is_over {
            let (tenant, key_id) = (tenant.clone(), key_id.clone());
            ("PurgeKey", RecordWrite::Purge { tenant, key_id, revision: key.revision })
        } else if key.resumed(clock).is_some() {
            let active = KeyRecord { updated: stamp.clone(), ..key.as_of(clock).into_owned() };
            ("ResumeKey", RecordWrite::Key(Box::new(active)))
        } else {
            return Outcome::Left;
        };
        let target = target(tenant, key_id);
        let commit = Commit {
            actor: stamp.actor,
            authorization: None,
            method,
            target: target.clone(),
            time,
            narrows: false,
            urgent: false,
            retry: None,
            writes: vec![put],
        };
        match self.store.commit(commit).await {
            Ok(revision) => {
                // A purge takes nothing that anybody still had, and there may be many.
                if is_over {
                    tracing::debug!(method, %tenant, target, revision = revision.0, caller = "keyward", "changed");
                } else {
                    tracing::info!(method, %tenant, target, revision = revision.0, caller = "keyward", "changed");
                }
                self.index.wait_for(revision).await;
                if is_over { Outcome::Purged } else { Outcome::Resumed }
            }
            Err(CommitError::Outdated) => Outcome::Left,
            // The disk monitor tells of these.
            Err(CommitError::DiskFull | CommitError::Overloaded | CommitError::Store(StoreError::Closed)) => {
                Outcome::Stopped
            }
            Err(error) => {
                tracing::error!(method, target, %error, "a change that is due cannot be made");
                Outcome::Left
            }
        }
    }
}
