//! Counts and logs what happens on the connections of callers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use grpc_h2::{CloseReason, ErrorCode, Observer, Refused};
use parking_lot::Mutex;

use crate::metrics::{Closed, Flood, Http2Counts, RefusedStream, Side};

/// The least time between two warnings about peers, of all connections together: anyone who reaches a
/// listener can cause them.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

static WARNINGS: Mutex<Warnings> = Mutex::new(Warnings { warned_at: None, left_out: 0 });

/// Observes one connection.
#[derive(Debug)]
pub(super) struct ConnObserver {
    counts: Arc<Http2Counts>,
    peer: Option<IpAddr>,
    /// Whether there was a warning for this connection, or one was left out.
    is_warned: bool,
}

/// When the last warning was logged, and how many were left out since.
struct Warnings {
    warned_at: Option<Instant>,
    left_out: u64,
}

impl ConnObserver {
    pub(super) fn new(counts: Arc<Http2Counts>, peer: Option<IpAddr>) -> Self {
        Self { counts, peer, is_warned: false }
    }

    /// Warns once for a connection of a peer that breaks a rule or exceeds a bound.
    fn warn(&mut self, reason: &str) {
        if std::mem::replace(&mut self.is_warned, true) {
            return;
        }
        let admitted = WARNINGS.lock().admit(Instant::now());
        if let Some(left_out) = admitted {
            let peer = self.peer.map(tracing::field::display);
            tracing::warn!(peer, reason, left_out, "closing a connection whose peer breaks the rules");
        }
    }
}

impl Warnings {
    /// Whether a warning may be logged now, and how many were left out before it. If not, it is counted.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.warned_at.is_some_and(|warned_at| now.duration_since(warned_at) < LOG_INTERVAL) {
            self.left_out += 1;
            return None;
        }
        self.warned_at = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Observer for ConnObserver {
    fn opened(&mut self) {
        self.counts.opened();
    }

    fn closed(&mut self, why: Option<&CloseReason>) {
        let closed = match why {
            None => Closed::InOrder,
            Some(CloseReason::PrefaceTimeout) => Closed::PrefaceTimeout,
            Some(CloseReason::KeepaliveTimeout) => Closed::KeepaliveTimeout,
            Some(CloseReason::Evicted) => Closed::Evicted,
            Some(CloseReason::Io(_)) => Closed::Network,
            Some(CloseReason::Error(error)) => {
                self.warn(error.what);
                Closed::Error(error.code as u32)
            }
        };
        self.counts.closed(closed);
    }

    fn reset_sent(&mut self, code: ErrorCode) {
        self.counts.reset(Side::Us, code as u32);
    }

    fn reset_received(&mut self, code: u32) {
        self.counts.reset(Side::Peer, code);
    }

    fn stream_refused(&mut self, why: Refused) {
        self.counts.refused(match why {
            Refused::TooManyStreams => RefusedStream::TooManyStreams,
            Refused::TooManyRefusals => RefusedStream::TooManyRefusals,
        });
    }

    fn flooded(&mut self, by: grpc_h2::Flood) {
        let (flood, reason) = match by {
            grpc_h2::Flood::OverheadFrames => (Flood::Frames, "too many frames that carry no call on"),
            grpc_h2::Flood::Errors => (Flood::Errors, "too many errors"),
        };
        self.counts.flooded(flood);
        self.warn(reason);
    }

    fn goaway_sent(&mut self, code: ErrorCode) {
        self.counts.goaway(Side::Us, code as u32);
    }

    fn goaway_received(&mut self, code: u32) {
        self.counts.goaway(Side::Peer, code);
    }

    fn transferred(&mut self, received: usize, sent: usize) {
        self.counts.transferred(received, sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use grpc_h2::ConnError;

    use crate::metrics::{Format, MetricSources, Metrics};

    fn counts(metrics: &Metrics) -> Vec<String> {
        let text = metrics.text(Format::Text).unwrap();
        let moved = text.lines().filter(|line| line.starts_with("keyward_http2_") && !line.ends_with(" 0"));
        moved.map(|line| line.trim_start_matches("keyward_http2_").to_owned()).collect()
    }

    #[test]
    fn each_event_moves_its_counter_alone() {
        type Event = fn(&mut ConnObserver);
        let events: [(Event, &str); 17] = [
            (|observer| observer.opened(), "connections_opened_total 1"),
            (|observer| observer.closed(None), "connections_closed_total{reason=\"IN_ORDER\"} 1"),
            (
                |observer| observer.closed(Some(&CloseReason::PrefaceTimeout)),
                "connections_closed_total{reason=\"PREFACE_TIMEOUT\"} 1",
            ),
            (
                |observer| observer.closed(Some(&CloseReason::KeepaliveTimeout)),
                "connections_closed_total{reason=\"KEEPALIVE_TIMEOUT\"} 1",
            ),
            (|observer| observer.closed(Some(&CloseReason::Evicted)), "connections_closed_total{reason=\"EVICTED\"} 1"),
            (
                |observer| observer.closed(Some(&CloseReason::Io(std::io::ErrorKind::BrokenPipe.into()))),
                "connections_closed_total{reason=\"NETWORK\"} 1",
            ),
            (
                |observer| {
                    let error = ConnError { code: ErrorCode::FlowControl, what: "too much" };
                    observer.closed(Some(&CloseReason::Error(error)));
                },
                "connections_closed_total{reason=\"FLOW_CONTROL_ERROR\"} 1",
            ),
            (
                |observer| observer.reset_sent(ErrorCode::RefusedStream),
                "resets_total{by=\"us\",code=\"REFUSED_STREAM\"} 1",
            ),
            (|observer| observer.reset_received(8), "resets_total{by=\"peer\",code=\"CANCEL\"} 1"),
            (|observer| observer.reset_received(14), "resets_total{by=\"peer\",code=\"UNKNOWN\"} 1"),
            (
                |observer| observer.stream_refused(Refused::TooManyStreams),
                "streams_refused_total{reason=\"TOO_MANY_STREAMS\"} 1",
            ),
            (
                |observer| observer.stream_refused(Refused::TooManyRefusals),
                "streams_refused_total{reason=\"TOO_MANY_REFUSALS\"} 1",
            ),
            (|observer| observer.flooded(grpc_h2::Flood::OverheadFrames), "floods_total{kind=\"FRAMES\"} 1"),
            (|observer| observer.flooded(grpc_h2::Flood::Errors), "floods_total{kind=\"ERRORS\"} 1"),
            (
                |observer| observer.goaway_sent(ErrorCode::Compression),
                "goaways_total{by=\"us\",code=\"COMPRESSION_ERROR\"} 1",
            ),
            (|observer| observer.goaway_received(u32::MAX), "goaways_total{by=\"peer\",code=\"UNKNOWN\"} 1"),
            (|observer| observer.transferred(0, 7), "bytes_total{direction=\"out\"} 7"),
        ];
        for (event, expected) in events {
            let metrics = Metrics::new([], ["/a.B/C", "/a.B/D"], MetricSources::default());
            event(&mut ConnObserver::new(metrics.http2(), None));
            assert_eq!(counts(&metrics), [expected]);
        }
    }

    #[test]
    fn warnings_are_rare_and_tell_how_many_were_left_out() {
        let (mut warnings, began) = (Warnings { warned_at: None, left_out: 0 }, Instant::now());
        for round in 0..3 {
            let begin = began + LOG_INTERVAL * round;
            let expected = if round == 0 { 0 } else { 999 };
            assert_eq!(warnings.admit(begin), Some(expected));
            assert!((1..1_000).all(|at| warnings.admit(begin + LOG_INTERVAL / 1_000 * at).is_none()));
        }
    }
}
