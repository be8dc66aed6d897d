//! The age at which connections end. A client that keeps a connection for ever stays with one server however
//! many there are, and with a certificate that was renewed long ago.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use grpc_h2::Shutdown;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long streams that are open may go on after the GOAWAY.
pub const GRACE: Duration = Duration::from_secs(300);

/// Gives each connection its age. Clones go on with the same sequence.
#[derive(Clone, Debug)]
pub struct ConnectionAge {
    max: Duration,
    opened: Arc<AtomicU64>,
}

impl ConnectionAge {
    /// About so long: from nine to eleven tenths of it, so that connections that were opened together do not
    /// end together.
    #[must_use]
    pub fn about(max: Duration) -> Self {
        Self { max, opened: Arc::default() }
    }

    /// The age of the next connection. Multiples of the golden ratio, modulo 1, lie evenly however many there
    /// are (Knuth, The Art of Computer Programming, volume 3, section 6.4).
    fn next(&self) -> Duration {
        let nth = self.opened.fetch_add(1, Ordering::Relaxed);
        let share = nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let fifth = self.max / 5;
        let spread = (fifth.as_nanos() * u128::from(share)) >> 32;
        self.max - fifth / 2 + Duration::from_nanos(u64::try_from(spread).unwrap_or(u64::MAX))
    }

    /// Serves a connection until it ends. `serve` takes what tells how to stop: gracefully at its age or when
    /// `stop` is cancelled, at once when only `close` is.
    pub(super) async fn limit<F: Future<Output = ()>>(
        &self,
        close: &CancellationToken,
        stop: &CancellationToken,
        serve: impl FnOnce(Ending) -> F,
    ) {
        let aged = CancellationToken::new();
        let ending = Ending { age: self.next(), aged: aged.clone(), close: close.clone(), stop: stop.clone() };
        let overdue = async {
            aged.cancelled().await;
            let closed = tokio::time::timeout(GRACE, close.cancelled()).await.is_ok();
            if closed && stop.is_cancelled() {
                // It drains already, and whoever stops the server has a deadline for that.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = serve(ending) => {}
            () = overdue => {}
        }
    }
}

/// Tells a connection how to stop.
pub(super) struct Ending {
    age: Duration,
    aged: CancellationToken,
    close: CancellationToken,
    stop: CancellationToken,
}

impl Ending {
    /// When it is time.
    pub(super) async fn wait(self) -> Shutdown {
        let Self { age, aged, close, stop } = self;
        tokio::select! {
            biased;
            () = close.cancelled() => if stop.is_cancelled() { Shutdown::Graceful } else { Shutdown::Now },
            () = sleep(age) => {
                aged.cancel();
                Shutdown::Graceful
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_spread_over_a_fifth() {
        let age = ConnectionAge::about(Duration::from_secs(3_600));
        let mut ages: Vec<_> = std::iter::repeat_with(|| age.next()).take(100).collect();
        ages.sort_unstable();
        assert!(ages[0] >= Duration::from_secs(3_240) && ages[99] <= Duration::from_secs(3_960), "{ages:?}");
        let gaps = ages.windows(2).map(|two| two[1] - two[0]);
        assert!(gaps.max().unwrap() < Duration::from_secs(3 * 720 / 100), "{ages:?}");
        assert!(ConnectionAge::about(Duration::MAX).next() > Duration::from_secs(3_600));
    }
}
