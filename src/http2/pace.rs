//! When to look for the next call instead of sleeping until it comes.
//!
//! Who asks, waits for the answer and asks again leaves either side asleep while the other is at work, and to wake a thread on
//! another processor takes longer than a call, and as much of a processor as to look for its request meanwhile
//! (docs/performance.md). So a connection whose calls come one by one, each soon after the last, is looked at for a moment before its thread sleeps. The
//! moment is short, and whoever stops asking in this way is waited for ever more rarely.

use std::time::{Duration, Instant};

/// Since the last call was read: longer is not waited.
const PATIENCE: Duration = Duration::from_micros(100);
/// Calls that follow each other in this time do so soon, with the time in which threads are woken.
const SOON: Duration = Duration::from_micros(150);
/// So many calls must have come soon, one after the other.
const CALLS_MIN: u32 = 16;
/// So many, after having waited in vain again and again.
const CALLS_MAX: u32 = CALLS_MIN << 10;

/// How the calls of a connection follow each other.
#[derive(Debug)]
pub(super) struct Pace {
    read_at: Instant,
    /// Calls that came soon, up to the last one.
    soon: u32,
    needed: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { read_at: now, soon: 0, needed: CALLS_MIN }
    }

    /// Something was read by which so many calls were answered at once; `alone`, if no other connection of this thread was read
    /// from since the last time. The time is asked for if need be.
    ///
    /// What is not answered at once, for one thing because its caller is nobody, is waited for asleep: it neither counts nor
    /// puts off the end of a wait.
    pub(super) fn read(&mut self, answered: u64, alone: bool, now: impl Fn() -> Instant) {
        match answered {
            0 if alone => {}
            1 if alone => {
                let last = std::mem::replace(&mut self.read_at, now());
                let soon = self.read_at.saturating_duration_since(last) <= SOON;
                self.soon = if soon { self.soon.saturating_add(1) } else { 0 };
                if self.soon > 2 * self.needed {
                    self.needed = CALLS_MIN;
                }
            }
            _ => self.soon = 0,
        }
    }

    /// Whether the next call is to be expected so soon that the thread should not sleep. The time is asked for if need be.
    pub(super) fn is_hurried(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.soon < self.needed {
            return false;
        }
        let waits = now().saturating_duration_since(self.read_at) < PATIENCE;
        if !waits {
            self.soon = 0;
            self.needed = (2 * self.needed).min(CALLS_MAX);
        }
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS_10: Duration = Duration::from_micros(10);

    /// Calls that come alone, this far apart; and when the last one came.
    fn calls(pace: &mut Pace, from: Instant, count: u32, apart: Duration) -> Instant {
        (1..=count).fold(from, |_, nth| {
            let now = from + nth * apart;
            pace.read(1, true, || now);
            now
        })
    }

    #[test]
    fn a_call_is_waited_for_if_many_have_come_soon_and_alone() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let last = calls(&mut pace, begin, CALLS_MIN - 1, MICROS_10);
        assert!(!pace.is_hurried(|| last), "too few to know");
        pace.read(1, true, || last + MICROS_10);
        assert!(pace.is_hurried(|| last + 2 * MICROS_10));
        pace.read(0, true, || last + PATIENCE);
        assert!(pace.is_hurried(|| last + 2 * MICROS_10), "its head came first");
        assert!(!pace.is_hurried(|| last + MICROS_10 + PATIENCE), "a head is no call");
        let last = calls(&mut pace, last, 10 * CALLS_MIN, MICROS_10);
        assert!(pace.is_hurried(|| last));
        pace.read(2, true, || last + MICROS_10);
        assert!(!pace.is_hurried(|| last + MICROS_10), "others came with it");
        let last = calls(&mut pace, last, 10 * CALLS_MIN, MICROS_10);
        assert!(pace.is_hurried(|| last));
        pace.read(1, false, || last + MICROS_10);
        assert!(!pace.is_hurried(|| last + MICROS_10), "another connection is at work");
        let last = calls(&mut pace, last, 10 * CALLS_MIN, SOON + MICROS_10);
        assert!(!pace.is_hurried(|| last), "they take their time");
    }

    #[test]
    fn a_call_that_does_not_come_is_waited_for_shortly_and_ever_more_rarely() {
        let begin = Instant::now();
        let mut pace = Pace::new(begin);
        let mut last = begin;
        for doubled in 0..12 {
            let needed = (CALLS_MIN << doubled).min(CALLS_MAX);
            last = calls(&mut pace, last, needed - 1, MICROS_10);
            assert!(!pace.is_hurried(|| last), "{needed}");
            last = calls(&mut pace, last, 1, MICROS_10);
            assert!(pace.is_hurried(|| last), "{needed}");
            assert!(!pace.is_hurried(|| last + PATIENCE), "{needed}");
            assert!(!pace.is_hurried(|| last), "it sleeps until the next one comes");
        }
        // Who is in a hurry again for long is believed again.
        last = calls(&mut pace, last, 2 * CALLS_MAX + 1, MICROS_10);
        assert!(!pace.is_hurried(|| last + PATIENCE));
        last = calls(&mut pace, last, 2 * CALLS_MIN, MICROS_10);
        assert!(pace.is_hurried(|| last));
    }
}
