//! Time as a parameter.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// Before every time.
    pub const MIN: Self = Self(i64::MIN);
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

/// The time by which a key is judged: what the clock says, and the latest that it is known to have been.
///
/// A clock can be set back. What ends a key's power is judged at the later of the two, so that an expired key does not come
/// alive again; what begins it is judged by the clock alone, so that no key works before its time has really come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    clock: UnixMillis,
    latest: UnixMillis,
}

impl Now {
    /// The clock's reading, and the time of the log's last entry.
    #[must_use]
    pub fn new(clock: UnixMillis, logged: UnixMillis) -> Self {
        Self { clock, latest: clock.max(logged) }
    }

    /// A time at which the clock and the log agree.
    #[must_use]
    pub fn at(clock: UnixMillis) -> Self {
        Self { clock, latest: clock }
    }

    /// What begins or returns power is judged by this.
    #[must_use]
    pub fn clock(self) -> UnixMillis {
        self.clock
    }

    /// What ends power is judged by this; and a change that is made now is stamped with it, so that the log's times never
    /// run back.
    #[must_use]
    pub fn latest(self) -> UnixMillis {
        self.latest
    }
}

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> UnixMillis;
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: UnixMillis) -> Self {
        Self(AtomicI64::new(now.0))
    }

    /// Moves the clock on, or back with a negative number.
    pub fn advance_ms(&self, by: i64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}
