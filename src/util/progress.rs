//! The progress of long work: a bar on a terminal, lines in a log.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that takes less than this is not shown.
const SHOW_AFTER: Duration = Duration::from_millis(500);
/// The time between two lines in a log.
const LOG_INTERVAL: Duration = Duration::from_secs(5);
/// Steps between two reads of the clock.
const STEPS_PER_CLOCK_READ: u64 = 256;

/// Work of a known number of steps.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    steps_until_clock_read: u64,
    reported_at: Instant,
    is_shown: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins work of `total` steps.
    #[must_use]
    pub fn begin(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            done: 0,
            steps_until_clock_read: 0,
            reported_at: Instant::now(),
            is_shown: false,
            bar: None,
        }
    }

    /// Adds steps that are done.
    pub fn advance(&mut self, steps: u64) {
        self.done += steps;
        self.steps_until_clock_read = self.steps_until_clock_read.saturating_sub(steps);
        if self.steps_until_clock_read == 0 {
            self.steps_until_clock_read = STEPS_PER_CLOCK_READ;
            self.report();
        }
    }

    fn report(&mut self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
            return;
        }
        let wait = if self.is_shown { LOG_INTERVAL } else { SHOW_AFTER };
        if self.reported_at.elapsed() < wait {
            return;
        }
        self.is_shown = true;
        self.reported_at = Instant::now();
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(self.total), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos} of {len}, {eta} left");
            // It cannot fail: the template is valid.
            let bar = style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")));
            self.bar = Some(bar.with_message(self.what).with_position(self.done));
        } else {
            tracing::info!(done = self.done, of = self.total, "{}", self.what);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        } else if self.is_shown {
            tracing::info!(done = self.done, of = self.total, "{}", self.what);
        }
    }
}

/// Work of an unknown number of steps: a count on a terminal, and nothing elsewhere.
#[derive(Debug)]
pub struct Count {
    what: &'static str,
    done: u64,
    begun_at: Instant,
    bar: Option<ProgressBar>,
}

impl Count {
    /// Begins work. `what` stands behind the number of steps.
    #[must_use]
    pub fn begin(what: &'static str) -> Self {
        Self { what, done: 0, begun_at: Instant::now(), bar: None }
    }

    /// Adds steps that are done.
    pub fn advance(&mut self, steps: u64) {
        self.done += steps;
        if self.bar.is_none() && self.begun_at.elapsed() >= SHOW_AFTER && std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{spinner} {pos} {msg} so far, after {elapsed}");
            // It cannot fail: the template is valid.
            let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
            self.bar = Some(bar.with_message(self.what).with_elapsed(self.begun_at.elapsed()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done);
        }
    }

    /// Does something that may write to the same terminal, without the count in its way.
    pub fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(act),
            None => act(),
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
