//! `keyward serve`.

use std::cell::Cell;
use std::error::Error;
use std::sync::Arc;

use clap::Args;
use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;
use keyward_core::id::ActorId;
use keyward_core::identity::Identities;

use super::SettingsArgs;
use crate::app::{Adjustable, App, Deps, Engine, LogControl, StartError};
use crate::config::{Effective, Flags, Mistakes, Settings};
use crate::server::lifecycle::{Caught, Signals, Stop};
use crate::server::passed::PassedSockets;
use crate::telemetry::{self, LogFilter};
use crate::util::system::{
    HugePages, SystemClock, SystemEntropy, check_clock, check_files, check_threads, lower_priority, server_threads,
    set_limits,
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Start although the watermark is missing beside a journal with changes: take the journal's end for the
    /// end of the log. For one start, so there is no setting for it
    #[arg(long)]
    accept_watermark_loss: bool,
}

/// How a server ended.
enum Ended {
    /// After a shutdown, or because it could not start.
    InOrder(Result<(), Box<dyn Error>>),
    /// At once, with this exit code, whatever is under way.
    AtOnce(i32),
}

/// Serves until a signal says stop.
pub(super) fn run(args: ServeArgs) -> Result<(), Box<dyn Error>> {
    let (flags, file) = args.settings.split();
    let flags = Flags { accept_watermark_loss: args.accept_watermark_loss, ..flags };
    let settings = Settings::load(&flags, file.clone())?.settings;
    check_clock()?;
    let sockets = PassedSockets::from_env()?;
    // Before the log, which needs a thread too.
    check_threads(server_threads(settings.serving_threads))?;
    let log = telemetry::start(&settings.log_filter, settings.log_format)?;
    set_limits();
    // Before the index and the table take theirs.
    HugePages::forbid();
    check_files(settings.serving_threads)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if settings.serving_threads > 0 {
        // Only for this runtime: the threads that answer verdicts are started from the main thread, and keep
        // its priority. The store's are started from the runtime's, and inherit the lower one.
        runtime.on_thread_start(lower_priority());
    }
    let runtime = runtime.enable_all().build()?;
    let ended = runtime.block_on(async {
        let signals = Signals::listen(&Caught::ALL)?;
        let (stop, first) = (Stop::default(), Cell::new(None));
        let control: Arc<dyn LogControl> = Arc::new(ProcessLog(log.filter()));
        let adjustable = Adjustable { log: Some(control), ..Adjustable::default() };
        let obeying = obey(signals, &stop, &first, || {
            reread(Settings::load(&flags, file.clone()), &log.filter(), &adjustable.identities);
            adjustable.reload.ask();
        });
        Ok::<_, Box<dyn Error>>(tokio::select! {
            ended = serve(settings, sockets, adjustable.clone(), &stop, &first) => ended,
            code = obeying => Ended::AtOnce(code),
        })
    });
    // Tasks that have missed the shutdown deadline are not waited for.
    runtime.shutdown_background();
    match ended? {
        Ended::InOrder(ended) => ended,
        Ended::AtOnce(code) => {
            drop(log);
            std::process::exit(code)
        }
    }
}

/// Serves until `stop` is asked for. `asked_by` is the signal that did so.
async fn serve(
    settings: Settings,
    sockets: PassedSockets,
    adjustable: Adjustable,
    stop: &Stop,
    asked_by: &Cell<Option<Caught>>,
) -> Ended {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let engine = Engine::Sled.configure(&settings, &clock, &entropy);
    let deps = Deps { clock, entropy, sockets, adjustable, engine };
    let app = match App::start_unless(settings, deps, stop).await {
        Ok(app) => app,
        Err(StartError::Stopped) => {
            // Reading cannot be interrupted otherwise, and the next start does again whatever was not
            // finished.
            tracing::warn!("stopped while starting");
            return Ended::AtOnce(asked_by.get().map_or(1, Caught::exit_code));
        }
        Err(error) => return Ended::InOrder(Err(error.into())),
    };
    stop.asked().await;
    app.drain(stop).await;
    Ended::InOrder(app.stop().await.map_err(Into::into))
}

/// Handles signals. Returns an exit code when the process must end at once.
async fn obey(mut signals: Signals, stop: &Stop, first: &Cell<Option<Caught>>, reread: impl Fn()) -> i32 {
    loop {
        let caught = signals.next().await;
        let signal = caught.name();
        match caught {
            Caught::Hangup => reread(),
            Caught::User1 | Caught::User2 => tracing::info!(signal, "this signal means nothing here and is ignored"),
            Caught::Terminate | Caught::Interrupt if first.get().is_none() => {
                tracing::info!(signal, "stopping");
                first.set(Some(caught));
                stop.ask();
            }
            Caught::Terminate | Caught::Interrupt if stop.end_drain() => {
                tracing::info!(signal, "the drain delay is cut short");
            }
            Caught::Terminate | Caught::Interrupt => {
                tracing::warn!(signal, "stopped at once by another signal");
                return caught.exit_code();
            }
        }
    }
}

/// Applies the identities and the log filter of settings that were read again, and nothing else.
fn reread(settings: Result<Effective, Mistakes>, log: &LogFilter, identities: &Identities) {
    let kept = |error: &dyn std::fmt::Display| tracing::error!(%error, "SIGHUP: the log filter and identities stay as they are");
    let settings = match settings {
        Ok(effective) => effective.settings,
        Err(mistakes) => return kept(&mistakes),
    };
    let count = settings.identity.len();
    if identities.replace(settings.identity) {
        tracing::info!(identities = count, "SIGHUP: other identities are in use now");
    }
    let filter = &settings.log_filter;
    let told = || tracing::info!(log_filter = filter, "SIGHUP: the log filter was read again");
    if let Err(error) = log.set(filter, told) {
        kept(&error);
    }
}

/// The log of this process, as a call sets its filter.
struct ProcessLog(Arc<LogFilter>);

impl LogControl for ProcessLog {
    fn filter(&self) -> String {
        self.0.current()
    }

    fn set_filter(&self, filter: &str, caller: &ActorId) -> Result<(), String> {
        self.0.set(filter, || tracing::info!(log_filter = filter, %caller, "the log filter was set by a call"))
    }
}
