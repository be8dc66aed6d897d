//! Failed authentications of callers: they are counted by their origin, told once a minute, and answered late
//! where there are many. A good credential is never held up, whatever its origin has done before.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_core::identity::{IdentityName, Peer};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::grpc::status::Refusal;
use crate::server::slots::network_of;

/// The time that failures are counted in.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Failures of one origin in a [`WINDOW`] that are answered at once.
pub const PROMPT_MAX: u32 = 20;
/// Origins that are told apart. Further ones are counted, and answered at once.
const ORIGINS_MAX: usize = 4_096;
/// Answers that wait at a time. Further ones are given at once.
const WAITING_MAX: u64 = 1_024;

/// The reasons that failures are counted by.
pub const REASONS: [&str; 5] = ["MISSING", "REFUSED", "IDENTITY_UNKNOWN", "IDENTITY_MISSING", "IDENTITY_REFUSED"];

/// Where a call comes from: an address, and what its connection proves.
type Origin = (Option<IpAddr>, Option<IdentityName>);

/// The failures of all callers. Clones share them.
#[derive(Clone, Debug)]
pub struct AuthnFailures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    delay: Duration,
    by_reason: [AtomicU64; REASONS.len()],
    waiting: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    failures: u64,
    of: HashMap<Origin, u32>,
}

/// An answer that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Wait {
    shared: Arc<Shared>,
}

impl AuthnFailures {
    /// Those of an origin with many are answered so late. Zero: never.
    #[must_use]
    pub fn new(delay: Duration) -> Self {
        let window = Mutex::new(Window { began: Instant::now(), failures: 0, of: HashMap::new() });
        Self(Arc::new(Shared { delay, by_reason: Default::default(), waiting: AtomicU64::new(0), window }))
    }

    /// How many there were for a reason.
    #[must_use]
    pub fn count(&self, reason: &'static str) -> u64 {
        let at = REASONS.iter().position(|known| *known == reason);
        at.map_or(0, |at| self.0.by_reason[at].load(Ordering::Relaxed))
    }

    /// How many answers wait now.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Counts a refusal, if it is a failed authentication. If its answer has to wait: for how long.
    pub(super) fn note(&self, refusal: &Refusal, peer: &Peer) -> Option<(Duration, Wait)> {
        let reason = match refusal {
            Refusal::NoCredential => 0,
            Refusal::BadCredential(_) => 1,
            Refusal::UnknownIdentity(_) => 2,
            Refusal::NoIdentity => 3,
            Refusal::IdentityEnded => 4,
            _ => return None,
        };
        self.0.by_reason[reason].fetch_add(1, Ordering::Relaxed);
        let origin = (peer.ip().map(network_of), peer.identity().and_then(|identity| identity.name().cloned()));
        let of_origin = self.0.window.lock().add(origin, Instant::now());
        if of_origin <= PROMPT_MAX || self.0.delay.is_zero() {
            return None;
        }
        let waits = self.0.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < WAITING_MAX).then_some(waiting + 1)
        });
        waits.ok().map(|_| (self.0.delay, Wait { shared: self.0.clone() }))
    }

    /// Tells of the failures of each [`WINDOW`], until `stop`.
    pub async fn tell(self, stop: CancellationToken) {
        let mut ticks = interval(WINDOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.0.window.lock().end(Instant::now());
        }
        self.0.window.lock().end(Instant::now());
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Window {
    /// Adds a failure, and returns how many its origin has had.
    fn add(&mut self, origin: Origin, now: Instant) -> u32 {
        if now.duration_since(self.began) >= WINDOW {
            self.end(now);
        }
        self.failures += 1;
        if self.of.len() >= ORIGINS_MAX && !self.of.contains_key(&origin) {
            return 0;
        }
        let of_origin = self.of.entry(origin).or_default();
        *of_origin = of_origin.saturating_add(1);
        *of_origin
    }

    /// Begins the next one. Logs what this one had.
    fn end(&mut self, now: Instant) {
        if let Some(((address, identity), most)) = self.of.iter().max_by_key(|(_, count)| **count) {
            let (address, identity) =
                (address.map(tracing::field::display), identity.as_ref().map(tracing::field::display));
            tracing::warn!(
                failures = self.failures,
                origins = self.of.len(),
                most,
                peer = address,
                identity,
                "callers could not be authenticated in the last minute; the peer is the one with most failures"
            );
        }
        *self = Self { began: now, failures: 0, of: HashMap::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(ip: &str) -> Peer {
        Peer::new(Some(ip.parse().unwrap()), None)
    }

    #[tokio::test(start_paused = true)]
    async fn the_failures_of_an_origin_are_answered_late_after_the_first_ones_of_a_minute() {
        let failures = AuthnFailures::new(Duration::from_secs(1));
        let late = |ip: &str| failures.note(&Refusal::NoCredential, &peer(ip)).is_some();
        for _ in 0..2 {
            for nth in 0..2 * PROMPT_MAX {
                assert_eq!(late("192.0.2.1"), nth >= PROMPT_MAX, "{nth}");
            }
            assert!(!late("192.0.2.2"), "another one");
            tokio::time::advance(WINDOW).await;
        }
        assert_eq!(failures.count("MISSING"), u64::from(2 * (2 * PROMPT_MAX + 1)));
        assert!(failures.note(&Refusal::Starting, &peer("192.0.2.1")).is_none());
        assert_eq!(failures.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn origins_and_answers_that_wait_are_bounded() {
        let failures = AuthnFailures::new(Duration::from_secs(1));
        let note = |number: u32| {
            let ip = std::net::Ipv4Addr::from_bits(number).into();
            failures.note(&Refusal::NoIdentity, &Peer::new(Some(ip), None))
        };
        for number in 0..2 * ORIGINS_MAX as u32 {
            assert!(note(number).is_none());
        }
        assert_eq!(failures.0.window.lock().of.len(), ORIGINS_MAX);
        let late = (0..2 * WAITING_MAX + u64::from(PROMPT_MAX)).filter_map(|_| note(1)).collect::<Vec<_>>();
        assert_eq!((late.len() as u64, failures.waiting()), (WAITING_MAX, WAITING_MAX));
        drop(late);
        assert_eq!(failures.waiting(), 0);
    }
}
