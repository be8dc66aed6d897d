//! Logs refused calls. Anyone who reaches a listener can cause such lines, so their rate is bounded; further
//! ones are counted, and the count is logged.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use keyward_core::access::Identity;
use keyward_core::id::ActorId;
use keyward_core::identity::{IdentityName, Peer};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::status::Refusal;

/// Lines that are logged in one [`WINDOW`].
pub const LINES_MAX: u32 = 20;
/// The time that lines are counted in.
pub const WINDOW: Duration = Duration::from_secs(1);

static LINES: Lines = Lines::new(LINES_MAX);

/// Whether one more line may be logged now. If not, it is counted.
pub fn may_log() -> bool {
    LINES.admit(Instant::now())
}

/// Logs that a call was refused, or breaks off: which one, whose, from where, and why. `call` is a path that
/// is known.
pub fn log(call: &'static str, caller: &RefusedCaller, refusal: &Refusal) {
    if may_log() {
        let RefusedCaller { caller, identity, peer } = caller;
        let caller = caller.as_ref().map(tracing::field::display);
        let identity = identity.as_ref().map(tracing::field::display);
        let peer = peer.map(tracing::field::display);
        tracing::info!(call, caller, identity, peer, reason = %refusal, "call refused");
    }
}

/// Whose call was refused, as far as that is known.
#[derive(Clone, Debug, Default)]
pub struct RefusedCaller {
    /// The caller.
    pub caller: Option<ActorId>,
    /// What the connection proves, if that is not the caller.
    pub identity: Option<IdentityName>,
    /// The address.
    pub peer: Option<IpAddr>,
}

impl RefusedCaller {
    /// A caller whose key is not known.
    #[must_use]
    pub fn unknown(peer: &Peer) -> Self {
        let identity = peer.identity().and_then(|identity| identity.name().cloned());
        Self { caller: None, identity, peer: peer.ip() }
    }
}

impl From<&Identity> for RefusedCaller {
    fn from(known: &Identity) -> Self {
        Self { caller: Some(known.actor()), identity: known.proven_besides().cloned(), peer: known.peer }
    }
}

/// Logs, until `stop`, how many refusals were not logged.
pub async fn tell_left_out(stop: CancellationToken) {
    let mut ticks = interval(WINDOW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut stopped = false;
    while !stopped {
        stopped = stop.run_until_cancelled(ticks.tick()).await.is_none();
        let calls = LINES.left_out();
        if calls > 0 {
            tracing::warn!(calls, "more calls were refused than are logged one by one");
        }
    }
}

/// Lines of one kind, of which so many are logged in one [`WINDOW`].
pub struct Lines {
    max: u32,
    counts: Mutex<Counts>,
}

struct Counts {
    since: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl Lines {
    /// At most so many in one [`WINDOW`].
    #[must_use]
    pub const fn new(max: u32) -> Self {
        Self { max, counts: Mutex::new(Counts { since: None, logged: 0, left_out: 0 }) }
    }

    /// Whether one more line may be logged at this time. If not, it is counted.
    pub fn admit(&self, now: Instant) -> bool {
        let mut counts = self.counts.lock();
        if counts.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (counts.since, counts.logged) = (Some(now), 0);
        }
        if counts.logged == self.max {
            counts.left_out += 1;
            return false;
        }
        counts.logged += 1;
        true
    }

    /// How many lines were left out since this was asked last.
    fn left_out(&self) -> u64 {
        std::mem::take(&mut self.counts.lock().left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_a_second_are_logged_and_the_rest_are_counted() {
        let (lines, begin) = (Lines::new(LINES_MAX), Instant::now());
        for second in 0..3 {
            let admitted = (0..1_000).filter(|at| lines.admit(begin + WINDOW * second + WINDOW / 2_000 * *at)).count();
            assert_eq!(admitted, LINES_MAX as usize);
            assert_eq!(lines.left_out(), 1_000 - u64::from(LINES_MAX));
        }
        assert_eq!(lines.left_out(), 0);
    }
}
