//! The queue of the committer, in two lanes: urgent changes, and all others.
//!
//! The urgent lane is served first, also within a group that is being filled, and the lanes have separate
//! bounds. When the table writer is far behind, the ordinary lane is held back so that urgent changes still
//! find places there. In both lanes callers are served in turn, and none can fill a lane alone.

use std::time::{Duration, Instant};

use keyward_core::id::ActorId;
use parking_lot::{Condvar, Mutex};

use super::group::Request;
use crate::fair::{Bounds, Queue};

/// Bound on queued commits, for urgent ones and for all others. One more is refused.
pub const COMMIT_QUEUE_MAX: usize = 4_096;
/// Bound on one caller's queued ordinary commits. Callers are served in turn, so a caller waits only for
/// itself; refusing its commits would cost more, because they are retried.
pub const COMMIT_QUEUE_OF_ONE_MAX: usize = 2_560;

/// Urgent changes in one group at most while others are queued, which keep the rest.
const GROUP_NARROWING_MAX: usize = 192;
/// While this many groups are queued for the table writer, only urgent changes are taken.
pub(in crate::store::local) const TABLE_QUEUE_GROUPS_MAX: usize = 64;
/// While groups of this many bytes are queued for it, nothing is taken.
pub(super) const TABLE_QUEUE_BYTES_MAX: usize = 128 * 1024 * 1024;

const NARROWING: Bounds = Bounds { total: COMMIT_QUEUE_MAX, per_party: COMMIT_QUEUE_MAX / 8 };
const ORDINARY: Bounds = Bounds { total: COMMIT_QUEUE_MAX, per_party: COMMIT_QUEUE_OF_ONE_MAX };

pub(in crate::store::local) struct CommitQueue {
    state: Mutex<State>,
    /// Signalled when there may be something to take.
    work: Condvar,
}

struct State {
    narrowing: Queue<ActorId, Request>,
    ordinary: Queue<ActorId, Request>,
    /// Groups that wait for the table's writer.
    behind: usize,
    /// Bytes of their records.
    behind_bytes: usize,
    /// When the table writer last took one.
    taken: Instant,
    closed: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::local) enum PushError {
    Full,
    Closed,
}

/// What a group has taken so far.
#[derive(Debug, Default)]
pub(super) struct GroupShare {
    narrowing: usize,
}

impl CommitQueue {
    pub(in crate::store::local) fn new() -> Self {
        let state = State {
            narrowing: Queue::new(NARROWING),
            ordinary: Queue::new(ORDINARY),
            behind: 0,
            behind_bytes: 0,
            taken: Instant::now(),
            closed: false,
        };
        Self { state: Mutex::new(state), work: Condvar::new() }
    }

    /// Adds a request to its lane.
    pub(in crate::store::local) fn push(&self, request: Request) -> Result<(), PushError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(PushError::Closed);
        }
        let lane = if request.commit.urgent { &mut state.narrowing } else { &mut state.ordinary };
        lane.push(request.commit.actor.clone(), request).map_err(|_| PushError::Full)?;
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Refuses further requests. Queued ones are still served.
    pub(in crate::store::local) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_one();
    }

    /// Waits for the first request of a group. `None` when the queue is closed and empty.
    pub(super) fn first(&self, share: &mut GroupShare) -> Option<Request> {
        let mut state = self.state.lock();
        loop {
            if let Some(request) = state.take(share) {
                return Some(request);
            }
            if state.closed && state.narrowing.is_empty() && state.ordinary.is_empty() {
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    /// The next request of a group, if there is one.
    pub(super) fn next(&self, share: &mut GroupShare) -> Option<Request> {
        self.state.lock().take(share)
    }

    /// Whether the ordinary lane is held back.
    #[cfg(test)]
    pub(in crate::store::local) fn is_held_back(&self) -> bool {
        self.state.lock().is_held_back()
    }

    /// How many are queued: urgent ones, and ordinary ones.
    pub(in crate::store::local) fn waiting(&self) -> [usize; 2] {
        let state = self.state.lock();
        [state.narrowing.len(), state.ordinary.len()]
    }

    /// A group of this many bytes was sent to the table writer.
    pub(super) fn group_sent(&self, bytes: usize) {
        let mut state = self.state.lock();
        if state.behind == 0 {
            state.taken = Instant::now();
        }
        state.behind += 1;
        state.behind_bytes += bytes;
    }

    /// The table writer has taken a group of this many bytes.
    pub(super) fn group_taken(&self, bytes: usize) {
        let mut state = self.state.lock();
        let held = state.is_held_back();
        state.behind -= 1;
        state.behind_bytes -= bytes;
        state.taken = Instant::now();
        if held {
            self.work.notify_one();
        }
    }

    /// How long requests have been held back because the table writer takes nothing.
    pub(in crate::store::local) fn stalled_for(&self) -> Duration {
        let state = self.state.lock();
        let waits = !state.ordinary.is_empty() || (state.is_full() && !state.narrowing.is_empty());
        if state.is_held_back() && waits { state.taken.elapsed() } else { Duration::ZERO }
    }
}

impl State {
    /// Whether the ordinary lane is held back.
    fn is_held_back(&self) -> bool {
        self.behind >= TABLE_QUEUE_GROUPS_MAX || self.is_full()
    }

    /// Whether both lanes are held back.
    fn is_full(&self) -> bool {
        self.behind_bytes >= TABLE_QUEUE_BYTES_MAX
    }

    fn take(&mut self, share: &mut GroupShare) -> Option<Request> {
        if self.is_full() {
            return None;
        }
        let others_wait = !self.is_held_back() && !self.ordinary.is_empty();
        if !(others_wait && share.narrowing >= GROUP_NARROWING_MAX)
            && let Some((_, request)) = self.narrowing.pop()
        {
            share.narrowing += 1;
            return Some(request);
        }
        if self.is_held_back() { None } else { self.ordinary.pop().map(|(_, request)| request) }
    }
}

#[cfg(test)]
mod tests {
    use keyward_core::clock::UnixMillis;
    use tokio::sync::oneshot;

    use super::*;
    use crate::store::Commit;

    fn request(actor: &str, narrows: bool) -> Request {
        let commit = Commit {
            actor: ActorId::parse(actor).unwrap(),
            authorization: None,
            method: "Test",
            target: String::new(),
            time: UnixMillis(0),
            narrows,
            urgent: narrows,
            writes: vec![],
            retry: None,
        };
        Request { commit, reply: oneshot::channel().0 }
    }

    fn actors(commit_queue: &CommitQueue) -> Vec<String> {
        let mut share = GroupShare::default();
        std::iter::from_fn(|| commit_queue.next(&mut share)).map(|request| request.commit.actor.to_string()).collect()
    }

    #[test]
    fn what_takes_power_away_is_taken_first_and_has_room_where_the_rest_has_none() {
        let commit_queue = CommitQueue::new();
        for actor in ["one", "two"] {
            while commit_queue.push(request(actor, false)).is_ok() {}
        }
        assert_eq!(commit_queue.push(request("three", false)), Err(PushError::Full));
        commit_queue.push(request("last", true)).unwrap();
        assert_eq!(commit_queue.first(&mut GroupShare::default()).unwrap().commit.actor.as_str(), "last");
    }

    #[test]
    fn one_caller_cannot_fill_a_lane() {
        let commit_queue = CommitQueue::new();
        for narrows in [true, false] {
            let taken = (0..COMMIT_QUEUE_MAX).filter(|_| commit_queue.push(request("much", narrows)).is_ok()).count();
            assert!(taken < COMMIT_QUEUE_MAX);
            commit_queue.push(request("other", narrows)).unwrap();
        }
        // And it only waits for itself.
        assert_eq!(actors(&commit_queue)[..3], ["much", "other", "much"]);
    }

    #[test]
    fn a_flood_that_takes_power_away_leaves_others_a_part_of_each_group() {
        let commit_queue = CommitQueue::new();
        for actor in ["one", "two"] {
            while commit_queue.push(request(actor, true)).is_ok() {}
        }
        commit_queue.push(request("other", false)).unwrap();
        let at = actors(&commit_queue).iter().position(|actor| actor == "other");
        assert_eq!(at, Some(GROUP_NARROWING_MAX));
    }

    #[test]
    fn while_the_table_is_far_behind_only_what_takes_power_away_is_taken() {
        let commit_queue = CommitQueue::new();
        for _ in 0..TABLE_QUEUE_GROUPS_MAX {
            commit_queue.group_sent(1);
        }
        commit_queue.push(request("other", false)).unwrap();
        commit_queue.push(request("urgent", true)).unwrap();
        assert_eq!(actors(&commit_queue), ["urgent"]);
        assert!(commit_queue.stalled_for() > Duration::ZERO);
        commit_queue.group_taken(1);
        assert_eq!(actors(&commit_queue), ["other"]);
        assert_eq!(commit_queue.stalled_for(), Duration::ZERO);
    }

    #[test]
    fn when_the_table_is_behind_by_too_many_bytes_nothing_is_taken() {
        let commit_queue = CommitQueue::new();
        commit_queue.group_sent(TABLE_QUEUE_BYTES_MAX - 1);
        commit_queue.push(request("one", true)).unwrap();
        assert_eq!(actors(&commit_queue), ["one"]);
        commit_queue.group_sent(1);
        commit_queue.push(request("two", true)).unwrap();
        assert!(actors(&commit_queue).is_empty() && commit_queue.stalled_for() > Duration::ZERO);
        commit_queue.group_taken(1);
        assert_eq!(actors(&commit_queue), ["two"]);
    }

    #[test]
    fn what_waits_when_the_lanes_close_is_still_given() {
        let commit_queue = CommitQueue::new();
        commit_queue.push(request("one", false)).unwrap();
        commit_queue.push(request("two", true)).unwrap();
        commit_queue.close();
        assert_eq!(commit_queue.push(request("three", true)), Err(PushError::Closed));
        let mut share = GroupShare::default();
        assert!(commit_queue.first(&mut share).is_some() && commit_queue.first(&mut share).is_some());
        assert!(commit_queue.first(&mut share).is_none());
    }
}
