//! Logs, to stderr.

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::{EnvFilter, reload};

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

/// Says what is wrong with a filter: also with one that is in order and lets no line of ours through, because a level
/// or a module is spelt wrong.
///
/// # Errors
/// With that.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse_filter(filter).map_err(|error| format!("is not a filter: {error}"))?;
    // An empty text is a level, too.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    if filter.split(',').map(str::trim).any(|part| is_level(part) || part.starts_with("keyward")) {
        return Ok(());
    }
    Err("would silence every line of Keyward: name a level, such as info, or a module, such as keyward=debug; off is for \
         silence"
        .to_owned())
}

/// Log lines that wait to be written at most. When whoever reads them hangs, further ones are dropped: a stuck log must
/// not stop verdicts.
const LINES_WAITING_MAX: usize = 16_384;

/// The log of the process. What is still waiting is written when it is dropped.
#[must_use]
pub struct Log {
    set_filter: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error>>,
    _guard: WorkerGuard,
}

impl Log {
    /// Puts another filter in place. What `tell` logs at `info` is written whatever the filters say.
    pub fn set_filter(&self, filter: EnvFilter, tell: impl FnOnce()) {
        let set = |filter| {
            if let Err(error) = (self.set_filter)(filter) {
                tracing::error!(%error, "cannot set the log filter");
            }
        };
        set(EnvFilter::new("info"));
        tell();
        set(filter);
    }
}

/// Starts logging. A second time in one process changes nothing.
pub fn start(filter: EnvFilter, format: LogFormat) -> Log {
    let writer = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true);
    let (writer, guard) = writer.finish(std::io::stderr());
    let builder = tracing_subscriber::fmt().with_writer(writer);
    // Another subscriber is in place only where tests share a process; theirs then serves.
    match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Log { set_filter: Box::new(move |filter| handle.reload(filter)), _guard: guard }
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Log { set_filter: Box::new(move |filter| handle.reload(filter)), _guard: guard }
        }
    }
}
