//! Aborts the process when going on would break a promise.

use std::fmt::Display;
use std::time::Duration;

/// How long the log's thread gets to write the message.
const LOG_DRAIN: Duration = Duration::from_millis(200);

/// Logs what happened and what to do, and aborts the process: no destructors, no flushes, and nothing more is
/// acknowledged. `cause` names the file, if one failed.
pub fn die(what: &str, cause: &dyn Display) -> ! {
    tracing::error!(
        "{what}: {cause}. The process ends, so that nothing is acknowledged or allowed that should not be. Remove the cause \
         (a failing, full or read-only disk shows in the system's log), then start keyward again: the start finds every \
         acknowledged change, or says which file lacks it"
    );
    std::thread::sleep(LOG_DRAIN);
    std::process::abort()
}
