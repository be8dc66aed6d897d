//! The feed of changes: a bounded window on the end of the log.
//!
//! An engine publishes each durable change once, in order. Subscribers read from the window at their own
//! pace. One that falls behind the window gets [`Lagged`]; the engine never waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use keyward_core::event::{Change, Revision};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Changes that the window holds. A subscriber further behind must load everything again.
pub const WINDOW_CHANGES_MAX: usize = 16_384;

/// Changes that one call of [`Subscription::next`] returns at most.
const BATCH_CHANGES_MAX: usize = 1_024;

/// The subscriber asked for changes that the window no longer holds. It must load everything again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes asked for are no longer kept; load anew")]
pub struct Lagged;

/// The publishing end.
#[derive(Clone, Debug)]
pub struct Feed {
    window: Arc<Mutex<Window>>,
    newest: watch::Sender<Revision>,
}

#[derive(Debug)]
struct Window {
    /// Everything after this revision is in `changes`.
    after: Revision,
    changes: VecDeque<Arc<Change>>,
}

impl Feed {
    /// A feed whose next change is the one after `revision`.
    #[must_use]
    pub fn starting_after(revision: Revision) -> Self {
        let window = Window { after: revision, changes: VecDeque::new() };
        Self { window: Arc::new(Mutex::new(window)), newest: watch::Sender::new(revision) }
    }

    /// Publishes changes that follow the newest one without a gap.
    pub fn publish(&self, changes: impl IntoIterator<Item = Arc<Change>>) {
        let mut window = self.window.lock();
        let mut newest = *self.newest.borrow();
        for change in changes {
            debug_assert_eq!(change.revision, newest.next(), "the feed has no gaps");
            newest = change.revision;
            window.changes.push_back(change);
            if window.changes.len() > WINDOW_CHANGES_MAX
                && let Some(oldest) = window.changes.pop_front()
            {
                window.after = oldest.revision;
            }
        }
        drop(window);
        self.newest.send_replace(newest);
    }

    /// The changes after `revision`.
    ///
    /// When the window does not reach back to `revision`, or has not reached it yet.
    pub fn subscribe(&self, revision: Revision) -> Result<Subscription, Lagged> {
        let reachable = self.window.lock().after <= revision && revision <= *self.newest.borrow();
        let newest = self.newest.subscribe();
        reachable.then(|| Subscription { window: self.window.clone(), newest, seen: revision }).ok_or(Lagged)
    }
}

/// The reading end.
#[derive(Debug)]
pub struct Subscription {
    window: Arc<Mutex<Window>>,
    newest: watch::Receiver<Revision>,
    seen: Revision,
}

impl Subscription {
    /// The next changes, as soon as there is one. `None` when the feed has ended and everything is read.
    ///
    /// When this subscriber has fallen behind the window.
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<Change>>>, Lagged> {
        let seen = self.seen;
        let ended = self.newest.wait_for(|newest| *newest > seen).await.is_err();
        let window = self.window.lock();
        if window.after > seen {
            return Err(Lagged);
        }
        // Revisions have no gaps, so a distance in revisions is a distance in the queue.
        let skip = usize::try_from(seen.0 - window.after.0).unwrap_or(usize::MAX);
        let changes: Vec<_> = window.changes.iter().skip(skip).take(BATCH_CHANGES_MAX).cloned().collect();
        if let Some(last) = changes.last() {
            self.seen = last.revision;
        }
        Ok(if changes.is_empty() && ended { None } else { Some(changes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64) -> Arc<Change> {
        Arc::new(Change { revision: Revision(revision), records: vec![] })
    }

    #[tokio::test]
    async fn a_subscriber_sees_every_change_once_and_in_order() {
        let feed = Feed::starting_after(Revision(10));
        let mut subscription = feed.subscribe(Revision(10)).unwrap();
        let mut seen = vec![];
        for first in [11_u64, 12, 4_000] {
            let from = seen.last().map_or(11, |&last: &u64| last + 1);
            feed.publish((from..=first).map(change));
            while seen.last() != Some(&first) {
                let changes = subscription.next().await.unwrap().unwrap();
                seen.extend(changes.iter().map(|c| c.revision.0));
            }
        }
        assert_eq!(seen, (11..=4_000).collect::<Vec<_>>());
        drop(feed);
        assert!(matches!(subscription.next().await, Ok(None)));
    }

    #[tokio::test]
    async fn a_subscriber_out_of_the_window_is_told_to_load_anew() {
        let feed = Feed::starting_after(Revision(0));
        let mut slow = feed.subscribe(Revision(0)).unwrap();
        feed.publish((1..=WINDOW_CHANGES_MAX as u64 + 1).map(change));
        assert_eq!(slow.next().await.err(), Some(Lagged));
        assert_eq!(feed.subscribe(Revision(0)).err(), Some(Lagged));
        assert!(feed.subscribe(Revision(1)).is_ok());
        assert_eq!(feed.subscribe(Revision(WINDOW_CHANGES_MAX as u64 + 2)).err(), Some(Lagged));
    }
}
