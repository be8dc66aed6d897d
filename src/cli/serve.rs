//! `keyward serve`.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;

use clap::Args;
use tokio::sync::oneshot;

use super::Options;
use crate::app::{App, Deps, Engine};
use crate::config::{Flags, Settings};
use crate::lifecycle::StopSignals;
use crate::system::{SystemClock, SystemEntropy, give_way, set_limits};
use crate::telemetry;

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Options,
    /// Start although the watermark is missing beside a journal with changes: take the journal's end for the end of the log. For one
    /// start, so there is no setting for it
    #[arg(long)]
    accept_watermark_loss: bool,
}

/// Serves until a signal says stop.
pub(super) fn run(options: Serve) -> Result<(), Box<dyn Error>> {
    let (flags, file) = options.settings.split();
    let flags = Flags { accept_watermark_loss: options.accept_watermark_loss, ..flags };
    let settings = Settings::load(&flags, file)?.settings;
    let _flush = telemetry::start(telemetry::parse_filter(&settings.log_filter)?, settings.log_format);
    set_limits();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if settings.serving_threads > 0 {
        // Verdicts have threads of their own, which are started from this one; and the store's are started from the runtime's.
        runtime.on_thread_start(give_way);
    }
    let runtime = runtime.enable_all().build()?;
    let served = runtime.block_on(serve(settings));
    // What has not ended by its deadline is not waited for once more.
    runtime.shutdown_background();
    served
}

async fn serve(settings: Settings) -> Result<(), Box<dyn Error>> {
    let mut signals = StopSignals::listen()?;
    let deps = Deps { clock: Arc::new(SystemClock), entropy: Arc::new(SystemEntropy), engine: Engine::Sled };
    let (tell, told) = oneshot::channel::<()>();
    let mut starting = pin!(App::start_unless(settings, deps, async { drop(told.await) }));
    let app = tokio::select! {
        started = &mut starting => started?,
        code = signals.next() => {
            drop(tell);
            tokio::select! {
                started = starting => if let Ok(app) = started { app.stop().await?; },
                _ = signals.next() => {}
            }
            // What is being read changes nothing that the next start would not do again, and cannot be cut short otherwise.
            tracing::warn!("stopped while starting");
            std::process::exit(code)
        }
    };
    signals.next().await;
    tracing::info!("stopping; a second signal ends the process at once");
    tokio::select! {
        stopped = app.stop() => Ok(stopped?),
        code = signals.next() => {
            tracing::warn!("stopped at once by a second signal");
            std::process::exit(code)
        }
    }
}
