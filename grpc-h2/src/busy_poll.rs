//! Adaptive busy-polling: when to poll for the next call instead of sleeping.
//!
//! With a caller that sends one call after another, each side sleeps while the other works, and waking a
//! thread on another processor takes longer than a call, and as much of a processor as polling for it
//! (docs/performance.md). So a connection whose calls come one by one, each soon after the last, is polled
//! for a moment before its thread sleeps. Each poll in vain raises the bar for the next one.

use std::time::{Duration, Instant};

/// How long to poll after the last call was read.
const SPIN_MAX: Duration = Duration::from_micros(100);
/// The largest gap between two calls of a streak, including the time to wake threads.
const GAP_MAX: Duration = Duration::from_micros(150);
/// Calls that a streak must have before its connection is polled.
const STREAK_MIN: u32 = 16;
/// The same after polling in vain again and again.
const STREAK_MAX: u32 = STREAK_MIN << 10;

/// How closely the calls of a connection follow each other.
#[derive(Debug)]
pub(super) struct BusyPoll {
    last_call_at: Instant,
    /// Calls without a larger gap than [`GAP_MAX`], up to the last one.
    streak: u32,
    streak_needed: u32,
}

impl BusyPoll {
    pub(super) fn new(now: Instant) -> Self {
        Self { last_call_at: now, streak: 0, streak_needed: STREAK_MIN }
    }

    /// Notes a read by which so many calls took the fast path. `alone`: no other connection of this thread
    /// was read since the last one.
    ///
    /// Reads without such a call, as those of an unauthenticated peer, neither count nor prolong polling.
    pub(super) fn on_read(&mut self, answered: u64, alone: bool, now: impl Fn() -> Instant) {
        match answered {
            0 if alone => {}
            1 if alone => {
                let last = std::mem::replace(&mut self.last_call_at, now());
                let soon = self.last_call_at.saturating_duration_since(last) <= GAP_MAX;
                self.streak = if soon { self.streak.saturating_add(1) } else { 0 };
                if self.streak > 2 * self.streak_needed {
                    self.streak_needed = STREAK_MIN;
                }
            }
            _ => self.streak = 0,
        }
    }

    /// Whether the next call is expected so soon that the thread should not sleep.
    pub(super) fn should_spin(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.streak < self.streak_needed {
            return false;
        }
        let waits = now().saturating_duration_since(self.last_call_at) < SPIN_MAX;
        if !waits {
            self.streak = 0;
            self.streak_needed = (2 * self.streak_needed).min(STREAK_MAX);
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS_10: Duration = Duration::from_micros(10);

    /// Makes calls that come alone, this far apart, and returns when the last one came.
    fn calls(busy_poll: &mut BusyPoll, from: Instant, count: u32, apart: Duration) -> Instant {
        (1..=count).fold(from, |_, nth| {
            let now = from + nth * apart;
            busy_poll.on_read(1, true, || now);
            now
        })
    }

    #[test]
    fn a_streak_of_calls_that_come_alone_is_polled_for() {
        let begin = Instant::now();
        let mut busy_poll = BusyPoll::new(begin);
        let last = calls(&mut busy_poll, begin, STREAK_MIN - 1, MICROS_10);
        assert!(!busy_poll.should_spin(|| last), "too few to know");
        busy_poll.on_read(1, true, || last + MICROS_10);
        assert!(busy_poll.should_spin(|| last + 2 * MICROS_10));
        busy_poll.on_read(0, true, || last + SPIN_MAX);
        assert!(busy_poll.should_spin(|| last + 2 * MICROS_10), "its head came first");
        assert!(!busy_poll.should_spin(|| last + MICROS_10 + SPIN_MAX), "a head is no call");
        let last = calls(&mut busy_poll, last, 10 * STREAK_MIN, MICROS_10);
        assert!(busy_poll.should_spin(|| last));
        busy_poll.on_read(2, true, || last + MICROS_10);
        assert!(!busy_poll.should_spin(|| last + MICROS_10), "others came with it");
        let last = calls(&mut busy_poll, last, 10 * STREAK_MIN, MICROS_10);
        assert!(busy_poll.should_spin(|| last));
        busy_poll.on_read(1, false, || last + MICROS_10);
        assert!(!busy_poll.should_spin(|| last + MICROS_10), "another connection is at work");
        let last = calls(&mut busy_poll, last, 10 * STREAK_MIN, GAP_MAX + MICROS_10);
        assert!(!busy_poll.should_spin(|| last), "they take their time");
    }

    #[test]
    fn polling_in_vain_is_short_and_makes_it_rarer() {
        let begin = Instant::now();
        let mut busy_poll = BusyPoll::new(begin);
        let mut last = begin;
        for doubled in 0..12 {
            let streak_needed = (STREAK_MIN << doubled).min(STREAK_MAX);
            last = calls(&mut busy_poll, last, streak_needed - 1, MICROS_10);
            assert!(!busy_poll.should_spin(|| last), "{streak_needed}");
            last = calls(&mut busy_poll, last, 1, MICROS_10);
            assert!(busy_poll.should_spin(|| last), "{streak_needed}");
            assert!(!busy_poll.should_spin(|| last + SPIN_MAX), "{streak_needed}");
            assert!(!busy_poll.should_spin(|| last), "it sleeps until the next one comes");
        }
        // A long streak lowers the bar again.
        last = calls(&mut busy_poll, last, 2 * STREAK_MAX + 1, MICROS_10);
        assert!(!busy_poll.should_spin(|| last + SPIN_MAX));
        last = calls(&mut busy_poll, last, 2 * STREAK_MIN, MICROS_10);
        assert!(busy_poll.should_spin(|| last));
    }
}
