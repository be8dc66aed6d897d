//! Counters of TLS handshakes.

use keyward_core::enumerate;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Labels;

enumerate! {
    /// Why a handshake failed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum FailedHandshake {
        /// It took too long.
        Timeout,
        /// Others needed its place, or the server stopped.
        Evicted,
        /// The client does not offer HTTP/2.
        NoHttp2,
        /// One side did not take what the other offered or showed.
        Refused,
        /// The client closed the connection, or the network failed.
        Network,
    }
}

impl FailedHandshake {
    fn label(self) -> &'static str {
        match self {
            Self::Timeout => "TIMEOUT",
            Self::Evicted => "EVICTED",
            Self::NoHttp2 => "NO_H2",
            Self::Refused => "REFUSED",
            Self::Network => "NETWORK",
        }
    }
}

/// Counters of handshakes.
#[derive(Debug)]
pub struct TlsCounts {
    done: Counter,
    failed: [Counter; FailedHandshake::ALL.len()],
}

impl TlsCounts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let handshakes = Family::<Labels<1>, Counter>::default();
        registry.register("tls_handshakes", "TLS handshakes of callers, by how they ended", handshakes.clone());
        let counter = |result| handshakes.get_or_create_owned(&[("result", result)]);
        Self { done: counter("OK"), failed: FailedHandshake::ALL.map(|why| counter(why.label())) }
    }

    /// Counts a handshake, and why it failed if it did.
    pub fn handshake(&self, failed: Option<FailedHandshake>) {
        failed.map_or(&self.done, |why| &self.failed[why as usize]).inc();
    }
}
