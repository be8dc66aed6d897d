//! Counters of callers' connections.

use std::array;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use super::Labels;

/// The names of HTTP/2's error codes, by their numbers (RFC 9113, section 7), and one for all others.
const CODES: [&str; 15] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
    "UNKNOWN",
];

/// Counters by error code.
type ByCode = [Counter; CODES.len()];

/// Which end of a connection did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This server.
    Us,
    /// The client.
    Peer,
}

/// Why a connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// In order.
    InOrder,
    /// Its preface did not come in time.
    PrefaceTimeout,
    /// Its peer did not answer a PING.
    KeepaliveTimeout,
    /// Another connection needed its slot.
    Evicted,
    /// The network failed.
    Network,
    /// Its peer broke a rule, or exceeded a bound. It was sent this error code.
    Error(u32),
}

/// Why a call was refused with REFUSED_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedStream {
    /// Its connection has as many calls as it may have.
    TooManyStreams,
    /// Its connection has had no credential that works, and too many of its calls were refused before.
    TooManyRefusals,
}

/// What a connection was drained for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Frames that do not advance a call.
    Frames,
    /// Errors of the peer.
    Errors,
}

/// Counters of callers' connections.
#[derive(Debug, Default)]
pub struct Http2Counts {
    opened: Counter,
    in_order: Counter,
    preface_timeout: Counter,
    keepalive_timeout: Counter,
    evicted: Counter,
    network: Counter,
    closed_for_error: ByCode,
    resets: [ByCode; 2],
    goaways: [ByCode; 2],
    refused: [Counter; 2],
    floods: [Counter; 2],
    received_bytes: Counter,
    sent_bytes: Counter,
}

impl Http2Counts {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let opened = Counter::default();
        registry.register("http2_connections_opened", "Connections of callers that were accepted", opened.clone());
        let closed = Family::<Labels<1>, Counter>::default();
        let help = "Connections of callers that have closed, by why; if the peer broke a rule or exceeded a \
                    bound, by the error code that it was sent";
        registry.register("http2_connections_closed", help, closed.clone());
        let closed = |reason| closed.get_or_create_owned(&[("reason", reason)]);
        let resets = Family::<Labels<2>, Counter>::default();
        let help = "Streams that were reset, by whom and with which error code";
        registry.register("http2_resets", help, resets.clone());
        let goaways = Family::<Labels<2>, Counter>::default();
        let help = "GOAWAY frames, by who sent them and with which error code";
        registry.register("http2_goaways", help, goaways.clone());
        let refused = Family::<Labels<1>, Counter>::default();
        let help = "Calls that were refused with REFUSED_STREAM: their connection had too many under way, or has \
                    had no credential that works and too many refusals";
        registry.register("http2_streams_refused", help, refused.clone());
        let floods = Family::<Labels<1>, Counter>::default();
        let help = "Connections that were drained because their peers sent too many frames that advance no call, \
                    or made too many errors";
        registry.register("http2_floods", help, floods.clone());
        let bytes = Family::<Labels<1>, Counter>::default();
        let help = "Read from connections of callers and written to them";
        registry.register_with_unit("http2", help, Unit::Bytes, bytes.clone());
        Self {
            opened,
            in_order: closed("IN_ORDER"),
            preface_timeout: closed("PREFACE_TIMEOUT"),
            keepalive_timeout: closed("KEEPALIVE_TIMEOUT"),
            evicted: closed("EVICTED"),
            network: closed("NETWORK"),
            closed_for_error: CODES.map(closed),
            resets: by_side_and_code(&resets),
            goaways: by_side_and_code(&goaways),
            refused: ["TOO_MANY_STREAMS", "TOO_MANY_REFUSALS"]
                .map(|reason| refused.get_or_create_owned(&[("reason", reason)])),
            floods: ["FRAMES", "ERRORS"].map(|kind| floods.get_or_create_owned(&[("kind", kind)])),
            received_bytes: bytes.get_or_create_owned(&[("direction", "in")]),
            sent_bytes: bytes.get_or_create_owned(&[("direction", "out")]),
        }
    }

    /// Counts a connection that was accepted.
    pub fn opened(&self) {
        self.opened.inc();
    }

    /// Counts a connection that has closed.
    pub fn closed(&self, why: Closed) {
        let counter = match why {
            Closed::InOrder => &self.in_order,
            Closed::PrefaceTimeout => &self.preface_timeout,
            Closed::KeepaliveTimeout => &self.keepalive_timeout,
            Closed::Evicted => &self.evicted,
            Closed::Network => &self.network,
            Closed::Error(code) => of_code(&self.closed_for_error, code),
        };
        counter.inc();
    }

    /// Counts a stream that was reset with this error code.
    pub fn reset(&self, by: Side, code: u32) {
        let [us, peer] = &self.resets;
        of_code(of_side(by, us, peer), code).inc();
    }

    /// Counts a GOAWAY with this error code.
    pub fn goaway(&self, by: Side, code: u32) {
        let [us, peer] = &self.goaways;
        of_code(of_side(by, us, peer), code).inc();
    }

    /// Counts a call that was refused with REFUSED_STREAM.
    pub fn refused(&self, why: RefusedStream) {
        let [streams, refusals] = &self.refused;
        let counter = match why {
            RefusedStream::TooManyStreams => streams,
            RefusedStream::TooManyRefusals => refusals,
        };
        counter.inc();
    }

    /// Counts a connection that is drained because of its peer.
    pub fn flooded(&self, by: Flood) {
        let [frames, errors] = &self.floods;
        let counter = match by {
            Flood::Frames => frames,
            Flood::Errors => errors,
        };
        counter.inc();
    }

    /// Counts bytes of a connection.
    pub fn transferred(&self, received: usize, sent: usize) {
        if received > 0 {
            self.received_bytes.inc_by(received as u64);
        }
        if sent > 0 {
            self.sent_bytes.inc_by(sent as u64);
        }
    }
}

fn by_side_and_code(family: &Family<Labels<2>, Counter>) -> [ByCode; 2] {
    ["us", "peer"].map(|by| array::from_fn(|code| family.get_or_create_owned(&[("by", by), ("code", CODES[code])])))
}

fn of_side<'a>(by: Side, us: &'a ByCode, peer: &'a ByCode) -> &'a ByCode {
    match by {
        Side::Us => us,
        Side::Peer => peer,
    }
}

fn of_code(counters: &ByCode, code: u32) -> &Counter {
    let [.., unknown] = counters;
    usize::try_from(code).ok().and_then(|code| counters.get(code)).unwrap_or(unknown)
}
