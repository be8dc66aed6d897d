//! The end of the process, for what must not go on.

use std::fmt::Display;
use std::time::Duration;

/// How long the log's thread gets to write why.
const LOG_DRAIN: Duration = Duration::from_millis(200);

/// Logs why and ends the process at once: no destructors, no flushes, nothing more acknowledged.
pub fn die(what: &str, cause: &dyn Display) -> ! {
    tracing::error!(%cause, "{what}; the process ends, so that nothing is acknowledged or allowed that should not be");
    std::thread::sleep(LOG_DRAIN);
    std::process::abort()
}
