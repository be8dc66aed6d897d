//! The feed of changes: a bounded window on the end of the log.
//!
//! An engine publishes each durable change once, in order. Subscribers read from the window at their own
//! pace. One that falls behind the window gets [`Lagged`], and reads the log instead
//! ([`Store::read_log`](crate::store::Store::read_log)); the engine never waits for it.

mod memory;

use std::collections::VecDeque;
use std::sync::Arc;

use keyward_core::event::{Change, Revision};
use parking_lot::Mutex;
use tokio::sync::watch;

use self::memory::change_bytes;

/// Changes that the window holds at most. A subscriber further behind must read the log.
pub const WINDOW_CHANGES_MAX: usize = 16_384;
/// Memory that these changes take at most, in bytes, by an upper estimate. A change that takes more alone is
/// in the log only.
pub const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Changes that one call of [`Subscription::next`] returns at most.
const BATCH_CHANGES_MAX: usize = 1_024;

/// The subscriber asked for changes that the window no longer holds. It must read them from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the changes asked for are no longer in the window; read them from the log")]
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
    /// The changes, each with its memory in bytes.
    changes: VecDeque<(Arc<Change>, usize)>,
    /// The memory of all of them.
    bytes: usize,
}

impl Window {
    fn push(&mut self, change: Arc<Change>) {
        let bytes = change_bytes(&change);
        self.bytes += bytes;
        self.changes.push_back((change, bytes));
        while (self.changes.len() > WINDOW_CHANGES_MAX || self.bytes > WINDOW_BYTES_MAX)
            && let Some((oldest, bytes)) = self.changes.pop_front()
        {
            self.bytes -= bytes;
            self.after = oldest.revision;
        }
    }
}

impl Feed {
    /// A feed whose next change is the one after `revision`.
    #[must_use]
    pub fn starting_after(revision: Revision) -> Self {
        let window = Window { after: revision, changes: VecDeque::new(), bytes: 0 };
        Self { window: Arc::new(Mutex::new(window)), newest: watch::Sender::new(revision) }
    }

    /// Publishes changes that follow the newest one without a gap.
    pub fn publish(&self, changes: impl IntoIterator<Item = Arc<Change>>) {
        let mut window = self.window.lock();
        let mut newest = *self.newest.borrow();
        for change in changes {
            debug_assert_eq!(change.revision, newest.next(), "the feed has no gaps");
            newest = change.revision;
            window.push(change);
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
        let kept = window.changes.iter().skip(skip).take(BATCH_CHANGES_MAX);
        let changes: Vec<_> = kept.map(|(change, _)| change.clone()).collect();
        if let Some(last) = changes.last() {
            self.seen = last.revision;
        }
        Ok(if changes.is_empty() && ended { None } else { Some(changes) })
    }
}

#[cfg(test)]
mod tests {
    use std::iter::repeat_with;

    use keyward_core::event::Record;
    use keyward_core::testing::key_record;

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
    async fn a_subscriber_out_of_the_window_is_told_to_read_the_log() {
        let feed = Feed::starting_after(Revision(0));
        let mut slow = feed.subscribe(Revision(0)).unwrap();
        feed.publish((1..=WINDOW_CHANGES_MAX as u64 + 1).map(change));
        assert_eq!(slow.next().await.err(), Some(Lagged));
        assert_eq!(feed.subscribe(Revision(0)).err(), Some(Lagged));
        assert!(feed.subscribe(Revision(1)).is_ok());
        assert_eq!(feed.subscribe(Revision(WINDOW_CHANGES_MAX as u64 + 2)).err(), Some(Lagged));
    }

    /// A change of so many keys, each with as many short labels as there may be: they take far more memory
    /// than they have encoded bytes.
    fn change_of_keys(revision: u64, keys: u32) -> Arc<Change> {
        let record = |number| {
            let mut key = key_record(number);
            key.spec.labels = (0..32).map(|label| (format!("l{label}"), label.to_string())).collect();
            Record::Key(Arc::new(key))
        };
        Arc::new(Change { revision: Revision(revision), records: (0..keys).map(record).collect() })
    }

    #[tokio::test]
    async fn the_window_is_bounded_in_bytes_too() {
        let feed = Feed::starting_after(Revision(0));
        let mut slow = feed.subscribe(Revision(0)).unwrap();
        let one = change_bytes(&change_of_keys(1, 100));
        let fit = (WINDOW_BYTES_MAX / one) as u64;
        assert!(fit < WINDOW_CHANGES_MAX as u64, "so bytes are the bound that is reached");
        feed.publish((1..=fit).map(|revision| change_of_keys(revision, 100)));
        assert_eq!(slow.next().await.unwrap().unwrap()[0].revision, Revision(1));
        feed.publish([change_of_keys(fit + 1, 100)]);
        assert_eq!(feed.subscribe(Revision(0)).err(), Some(Lagged));
        assert!(feed.subscribe(Revision(1)).is_ok());
        assert!(feed.window.lock().bytes <= WINDOW_BYTES_MAX);

        // One that is too large alone is not kept, and neither is what came before it.
        let all = u32::try_from(fit + 1).unwrap() * 100;
        feed.publish([change_of_keys(fit + 2, all)]);
        assert_eq!(feed.window.lock().bytes, 0);
        assert_eq!(feed.subscribe(Revision(fit + 1)).err(), Some(Lagged));
        let mut next = feed.subscribe(Revision(fit + 2)).unwrap();
        feed.publish([change(fit + 3)]);
        assert_eq!(next.next().await.unwrap().unwrap()[0].revision, Revision(fit + 3));
    }

    #[test]
    fn the_bytes_of_the_window_are_those_of_its_changes() {
        let feed = Feed::starting_after(Revision(0));
        let mut revisions = 1..;
        let mut some = repeat_with(|| revisions.next().unwrap()).map(|at| change_of_keys(at, (at % 7) as u32));
        for _ in 0..5 {
            feed.publish(some.by_ref().take(WINDOW_CHANGES_MAX / 3));
            let window = feed.window.lock();
            assert_eq!(window.bytes, window.changes.iter().map(|(change, _)| change_bytes(change)).sum::<usize>());
            assert!(window.bytes <= WINDOW_BYTES_MAX && window.changes.len() <= WINDOW_CHANGES_MAX);
            assert_eq!(window.after.0 + window.changes.len() as u64, feed.newest.borrow().0);
        }
    }
}
