//! What health asks of the committer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// When the committer began the current group, and when a group last found the disk full.
#[derive(Debug, Default)]
pub(in crate::store::local) struct Busy(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    since: Option<Instant>,
    no_room: Option<Instant>,
}

impl Busy {
    pub(super) fn begin(&self) {
        self.0.lock().since = Some(Instant::now());
    }

    pub(super) fn end(&self) {
        self.0.lock().since = None;
    }

    /// Notes whether a group had disk space. Returns whether that has changed.
    pub(super) fn has_room(&self, room: bool) -> bool {
        let before = std::mem::replace(&mut self.0.lock().no_room, (!room).then(Instant::now));
        before.is_none() != room
    }

    /// Whether a group found the disk full within this time, and none has had space since.
    pub(in crate::store::local) fn was_disk_full(&self, within: Duration) -> bool {
        self.0.lock().no_room.is_some_and(|at| at.elapsed() < within)
    }

    /// How long the current group has taken so far.
    pub(in crate::store::local) fn lasted(&self) -> Duration {
        self.0.lock().since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
