//! Counters of the path that calls of Verify take: the fast path, or the slow one, and why.

use std::array;

use keyward_core::enumerate;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

enumerate! {
    /// Why a call takes the slow path.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum SlowPathReason {
        /// The index is being loaded.
        Starting,
        /// The call is logged, because the log's filter asks for a sample of calls.
        LogLevel,
        /// The call is logged, because the access log takes it.
        AccessLog,
        /// The head has another method or content type than usual, a compressed message, or a malformed
        /// `grpc-timeout`.
        Head,
        /// The caller has no credential, one that is refused or has just changed, or no role for the call.
        Caller,
        /// The peer reads too slowly: too many bytes of earlier replies wait for it.
        PeerReadsSlowly,
        /// The request is longer than what is buffered for one call, or for all calls of its connection.
        LongRequest,
        /// The request asks for `explain`.
        Explain,
        /// The index has not reached `min_revision` yet.
        MinRevision,
        /// A field breaks its rule, or the message has an unusual encoding.
        Message,
    }
}

impl SlowPathReason {
    fn label(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::LogLevel => "LOG_LEVEL",
            Self::AccessLog => "ACCESS_LOG",
            Self::Head => "HEAD",
            Self::Caller => "CALLER",
            Self::PeerReadsSlowly => "PEER_READS_SLOWLY",
            Self::LongRequest => "LONG_REQUEST",
            Self::Explain => "EXPLAIN",
            Self::MinRevision => "MIN_REVISION",
            Self::Message => "MESSAGE",
        }
    }
}

/// Counters of the paths that one kind of call takes.
#[derive(Clone, Debug)]
pub struct FastPathCounts {
    fast: Counter,
    /// One for each of [`SlowPathReason::ALL`].
    slow: [Counter; SlowPathReason::ALL.len()],
}

impl FastPathCounts {
    /// Registers counters for each of these calls.
    pub(super) fn register<const N: usize>(registry: &mut Registry, calls: [&'static str; N]) -> [Self; N] {
        let family = Family::<[(&'static str, &'static str); 2], Counter>::default();
        let help = "Calls answered where they were read (AT_ONCE), or else by why they were not";
        registry.register("calls_by_way", help, family.clone());
        calls.map(|call| {
            let counter = |way| family.get_or_create_owned(&[("call", call), ("way", way)]);
            let slow = array::from_fn(|number| counter(SlowPathReason::ALL[number].label()));
            Self { fast: counter("AT_ONCE"), slow }
        })
    }

    /// Counts calls on the fast path.
    pub fn fast(&self, calls: u64) {
        self.fast.inc_by(calls);
    }

    /// Counts a call on the slow path.
    pub fn slow(&self, reason: SlowPathReason) {
        for (counter, each) in self.slow.iter().zip(SlowPathReason::ALL) {
            if each == reason {
                counter.inc();
            }
        }
    }
}
