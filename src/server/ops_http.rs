//! Probes and metrics over plain HTTP/1.1, for orchestrators and Prometheus: `/livez`, `/readyz`, `/metrics`.
//!
//! It shows no secret and changes nothing. Connections, their duration and the size of a request are bounded.
//! A connection carries one request, so that none delays a stop.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use keyward_core::enumerate;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::slots::{SlotUsage, Slots};
use super::stream::{Conn, EncryptsWith};
use super::tls::handshake::Turns;
use crate::metrics::{Format, Metrics};

/// Connections at one time. Further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection may last, from accept to the last byte of the reply.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(5);
/// A request line and its headers at most, in bytes.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const ALLOWED: HeaderValue = HeaderValue::from_static("GET, HEAD");

enumerate! {
    /// The phase of a server's life.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Phase {
        /// It loads its data.
        Loading,
        /// It answers calls.
        Serving,
        /// It answers calls, and tells balancers to send new ones elsewhere: it is about to stop.
        Draining,
        /// It accepts no more connections, and finishes calls.
        Stopping,
    }
}

/// What the endpoints show.
#[derive(Clone, Debug)]
pub struct Ops {
    /// The phase of the server.
    pub phase: watch::Receiver<Phase>,
    /// The slots of the gRPC listeners.
    pub slots: Slots,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How connections are encrypted. `None`: not at all.
    pub encryption: Option<EncryptsWith>,
}

impl Ops {
    /// Answers every incoming connection, until it is dropped.
    pub async fn serve(self, mut incoming: mpsc::Receiver<io::Result<Conn>>) {
        // Dropping the set closes its connections: requests so late need no answer.
        let mut connections = JoinSet::new();
        while let Some(accepted) = incoming.recv().await {
            while connections.try_join_next().is_some() {}
            if let Ok(conn) = accepted {
                connections.spawn(self.clone().serve_connection(conn));
            }
        }
    }

    async fn serve_connection(self, conn: Conn) {
        let service = service_fn(|request| ready(Ok::<_, Infallible>(self.answer(&request))));
        let served = async {
            let conn = match &self.encryption {
                Some(encryption) => conn.encrypt(encryption, &Turns::default()).await.ok()?,
                None => conn,
            };
            let mut http = http1::Builder::new();
            let http = http.keep_alive(false).max_buf_size(REQUEST_BYTES_MAX);
            http.serve_connection(TokioIo::new(conn), service).await.ok()
        };
        // Slow clients and those that speak neither TLS nor HTTP are their own problem.
        drop(timeout(CONNECTION_TIME_MAX, served).await);
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<String> {
        let known: fn(&Self, &HeaderMap) -> Response<String> = match request.uri().path() {
            "/livez" => |_, _| text(StatusCode::OK, "ok"),
            "/readyz" => |ops, _| ops.readiness(),
            "/metrics" => |ops, headers| ops.exposition(format_of(headers)),
            _ => return text(StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics"),
        };
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            return known(self, request.headers());
        }
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
        refused.headers_mut().insert(header::ALLOW, ALLOWED);
        refused
    }

    fn readiness(&self) -> Response<String> {
        match *self.phase.borrow() {
            Phase::Loading => text(StatusCode::SERVICE_UNAVAILABLE, "loading"),
            Phase::Serving => self.capacity(),
            Phase::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
            Phase::Stopping => text(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        }
    }

    /// Ready, and how full it is. Callers without a credential cannot make it unready: they make room for
    /// others.
    fn capacity(&self) -> Response<String> {
        let SlotUsage { of, all, by_strangers, turned_away, is_full, is_full_of_known } = self.slots.usage();
        if is_full_of_known {
            let line = format!("full: {all} of {of} connections, all of callers with a credential; further ones wait");
            return text(StatusCode::SERVICE_UNAVAILABLE, &line);
        }
        if is_full {
            let line = format!(
                "ok\nfull: {all} of {of} connections, {by_strangers} of callers without a credential, of which the oldest make \
                 room for further ones ({turned_away} so far)"
            );
            return text(StatusCode::OK, &line);
        }
        text(StatusCode::OK, "ok")
    }

    fn exposition(&self, format: Format) -> Response<String> {
        match self.metrics.text(format) {
            Ok(metrics) => reply(StatusCode::OK, HeaderValue::from_static(format.content_type()), metrics),
            Err(error) => {
                tracing::error!(%error, "cannot write the metrics");
                text(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics")
            }
        }
    }
}

/// The format that the client prefers: OpenMetrics only if it is named, and no other text is preferred.
fn format_of(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut open_metrics, mut other) = (0.0, 0.0);
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(|part| part.trim().to_ascii_lowercase());
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.collect();
        let parameter = |name: &str| parameters.iter().find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let weight = parameter("q").map_or(1.0, |q| q.parse::<f32>().unwrap_or(0.0));
        let (best, versions): (_, &[&str]) = match &*media {
            "application/openmetrics-text" => (&mut open_metrics, &["1.0.0", "0.0.1"]),
            "text/plain" => (&mut other, &["0.0.4"]),
            _ => continue,
        };
        if parameter("version").is_none_or(|version| versions.contains(&version)) {
            *best = weight.max(*best);
        }
    }
    if open_metrics > 0.0 && open_metrics >= other { Format::OpenMetrics } else { Format::Text }
}

fn text(status: StatusCode, line: &str) -> Response<String> {
    reply(status, TEXT, format!("{line}\n"))
}

fn reply(status: StatusCode, content_type: HeaderValue, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}
