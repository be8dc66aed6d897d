//! Which way calls of Verify take: answered where they are read, or through the router; and why the latter.

use std::array;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why a call is not answered where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPathReason {
    /// The data is still being loaded.
    Starting,
    /// Each call is logged, as the log's filter has it.
    LogLevel,
    /// Another method or content type than usual, a compressed message, or a `grpc-timeout` that is malformed.
    Head,
    /// The caller has no credential, one that is refused or has just changed, or no role for it.
    Caller,
    /// So much of earlier replies waits for the peer that nothing is added to it.
    PeerReadsSlowly,
    /// The request is longer than what is gathered, of one call or of all on its connection.
    LongRequest,
    /// `explain` is asked for.
    Explain,
    /// `min_revision` is not reached yet.
    MinRevision,
    /// A field breaks its rule, or the message has an uncommon form.
    Message,
}

impl SlowPathReason {
    const ALL: [Self; 9] = [
        Self::Starting,
        Self::LogLevel,
        Self::Head,
        Self::Caller,
        Self::PeerReadsSlowly,
        Self::LongRequest,
        Self::Explain,
        Self::MinRevision,
        Self::Message,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Starting => "STARTING",
            Self::LogLevel => "LOG_LEVEL",
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

/// Counts the ways of one kind of call.
#[derive(Clone, Debug)]
pub struct FastPathCounts {
    fast: Counter,
    /// One for each of [`SlowPathReason::ALL`].
    slow: [Counter; SlowPathReason::ALL.len()],
}

impl FastPathCounts {
    /// Registers counters for each of these calls, by their names.
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

    /// Counts calls that were answered where they were read.
    pub fn fast(&self, calls: u64) {
        self.fast.inc_by(calls);
    }

    /// Counts one that was not.
    pub fn slow(&self, reason: SlowPathReason) {
        for (counter, each) in self.slow.iter().zip(SlowPathReason::ALL) {
            if each == reason {
                counter.inc();
            }
        }
    }
}
