//! Logs, to stderr.

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// Reads a filter, such as `info` or `keyward=debug,h2=warn`.
///
/// # Errors
/// When it is not one.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// Log lines that wait to be written at most. When whoever reads them hangs, further ones are dropped: a stuck log must
/// not stop verdicts.
const LINES_WAITING_MAX: usize = 16_384;

/// Writes what is still waiting when it is dropped.
#[must_use]
pub struct Flush {
    _guard: WorkerGuard,
}

/// Starts logging. A second time in one process changes nothing.
pub fn start(filter: EnvFilter, format: LogFormat) -> Flush {
    let writer = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true);
    let (writer, guard) = writer.finish(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let started = match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    // Another subscriber is in place only where tests share a process; theirs then serves.
    drop(started);
    Flush { _guard: guard }
}
