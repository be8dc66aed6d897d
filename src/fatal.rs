//! The end of the process, for what must not go on.

use std::fmt::Display;
use std::time::Duration;

/// How long the log's thread gets to write why.
const LOG_DRAIN: Duration = Duration::from_millis(200);

/// Logs why, and what to do, and ends the process at once: no destructors, no flushes, nothing more acknowledged. `what`
/// says what happened; `cause` names the file, if it is one that fails.
pub fn die(what: &str, cause: &dyn Display) -> ! {
    tracing::error!(
        "{what}: {cause}. The process ends, so that nothing is acknowledged or allowed that should not be. Remove the cause \
         (a failing, full or read-only disk shows in the system's log), then start keyward again: the start finds every \
         acknowledged change, or says which file lacks it"
    );
    std::thread::sleep(LOG_DRAIN);
    std::process::abort()
}
