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

/// The time that a key is checked at: the clock's, and the latest that is known.
///
/// A clock can be set back. An end is checked against the later of the two, so that an expired key does not
/// work again; a beginning is checked against the clock alone, so that no key works too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    clock: UnixMillis,
    latest: UnixMillis,
}

impl Now {
    /// From the clock's time and that of the log's last entry.
    #[must_use]
    pub fn new(clock: UnixMillis, logged: UnixMillis) -> Self {
        Self { clock, latest: clock.max(logged) }
    }

    /// A time at which clock and log agree.
    #[must_use]
    pub fn at(clock: UnixMillis) -> Self {
        Self { clock, latest: clock }
    }

    /// The time for `not_before`, and for all that gives or gives back power.
    #[must_use]
    pub fn clock(self) -> UnixMillis {
        self.clock
    }

    /// The time for `expire_time`, and the stamp of a change that is made now: the log's times never go back.
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

    /// Moves the clock by so many milliseconds; a negative number moves it back.
    pub fn advance_ms(&self, by: i64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}
