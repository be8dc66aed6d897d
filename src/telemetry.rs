//! The log, to stderr.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::{EnvFilter, reload};

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object per line.
    Json,
}

/// Parses a filter, such as `info` or `keyward=debug,h2=warn`.
///
/// # Errors
/// When it is not a filter.
pub fn parse_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(filter)
}

/// Checks a filter. One that lets no line of Keyward through is refused too: a level or a module is misspelt.
///
/// # Errors
/// With what is wrong.
pub fn check_filter(filter: &str) -> Result<(), String> {
    parse_filter(filter).map_err(|error| format!("is not a filter: {error}"))?;
    // An empty text would parse as a level.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_ours = |part: &str| {
        let rest = part.strip_prefix("keyward");
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['=', ':', '[']))
    };
    if filter.split(',').map(str::trim).any(|part| is_level(part) || is_ours(part)) {
        return Ok(());
    }
    Err("would silence every line of Keyward: name a level, such as info, or a module, such as keyward=debug; off is for \
         silence"
        .to_owned())
}

/// Log lines that wait to be written, at most. Further lines are dropped, so that a log that is not read does
/// not stop verdicts.
const LINES_WAITING_MAX: usize = 16_384;

/// The log of the process. Lines that wait are written when it is dropped.
#[must_use]
pub struct Log {
    filter: Arc<LogFilter>,
    _guard: WorkerGuard,
}

/// The filter of the log.
pub struct LogFilter {
    set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    current: Mutex<String>,
}

impl Log {
    /// Its filter.
    #[must_use]
    pub fn filter(&self) -> Arc<LogFilter> {
        self.filter.clone()
    }
}

impl LogFilter {
    /// The filter as it is.
    #[must_use]
    pub fn current(&self) -> String {
        self.current.lock().clone()
    }

    /// Sets another filter. What `tell` logs at `info` is written whatever the filters are.
    ///
    /// # Errors
    /// When it is not a filter.
    pub fn set(&self, filter: &str, tell: impl FnOnce()) -> Result<(), String> {
        check_filter(filter)?;
        let parsed = parse_filter(filter).map_err(|error| error.to_string())?;
        let set = |filter| {
            if let Err(error) = (self.set)(filter) {
                tracing::error!(%error, "cannot set the log filter");
            }
        };
        // One at a time: each is told of before it is in force.
        let mut current = self.current.lock();
        set(EnvFilter::new("info"));
        tell();
        set(parsed);
        filter.clone_into(&mut current);
        Ok(())
    }
}

/// Starts the log. A second call in one process has no effect.
///
/// # Errors
/// When it is not a filter.
pub fn start(filter: &str, format: LogFormat) -> Result<Log, ParseError> {
    let (writer, guard) = {
        let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true);
        builder.finish(std::io::stderr())
    };
    let builder = tracing_subscriber::fmt().with_writer(writer);
    let parsed = parse_filter(filter)?;
    // It fails only where tests share a process; the first subscriber is used then.
    let set: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync> = match format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
            let builder = builder.with_env_filter(parsed).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_env_filter(parsed).with_filter_reloading();
            let handle = builder.reload_handle();
            drop(builder.try_init());
            Box::new(move |filter| handle.reload(filter))
        }
    };
    let filter = Arc::new(LogFilter { set, current: Mutex::new(filter.to_owned()) });
    Ok(Log { filter, _guard: guard })
}
