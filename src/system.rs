//! The real clock and the real randomness: the only place that asks the system for either. And what the process asks of
//! the system for itself.

use std::time::{SystemTime, UNIX_EPOCH};

use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::entropy::{Entropy, EntropyError};
use rand::TryRng;
#[expect(clippy::disallowed_types, reason = "this is the randomness that everything else takes as a parameter")]
use rand::rngs::SysRng;
use rustix::process::{Resource, Rlimit, getpriority_process, getrlimit, setpriority_process, setrlimit};

/// How much nicer (setpriority(2)) than verdicts everything else is: where processors are short, it has a tenth of the share.
const NICER: i32 = 10;

/// The system's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else takes as a parameter")]
    fn now(&self) -> UnixMillis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The operating system's randomness.
#[derive(Clone, Copy, Debug)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        SysRng.try_fill_bytes(bytes).map_err(|e| EntropyError(e.to_string()))
    }
}

/// Lets other threads go before this one, and those that it starts, where processors are short.
pub fn give_way() {
    // On Linux, a priority is that of the calling thread.
    if let Err(error) = getpriority_process(None).and_then(|now| setpriority_process(None, now + NICER)) {
        tracing::warn!(%error, "cannot let verdicts go first");
    }
}

/// Asks for as many open files as the system grants, and for no core dumps, which would hold secrets. A refusal is logged
/// and no obstacle.
pub fn set_limits() {
    let files = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    let dumps = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    for (limit, refused) in [("open files", raised.err()), ("core dumps", dumps.err())] {
        if let Some(error) = refused {
            tracing::warn!(limit, %error, "cannot set a limit of the process");
        }
    }
}
