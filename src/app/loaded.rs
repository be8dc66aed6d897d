//! The third stage of a start. From here on the index has every acknowledged change, there is a pepper for
//! each key, and verdicts are answered, unless the log is empty. The engine may still be reading its table:
//! changes and lists are refused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::Clock;
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use zeroize::Zeroizing;

use super::error::StartError;
use super::first_admin::bootstrap;
use super::frontend::Frontend;
use super::metric_sources::Observed;
use super::opening::Opening;
use super::serving::{App, close};
use crate::authority::{Authority, AuthorityDeps, Sweeper};
use crate::config::first_admin::FirstAdmin;
use crate::disk_monitor::DiskMonitor;
use crate::grpc::state::VerifyState;
use crate::index::follow::follow_log;
use crate::index::{Index, compact_when_due};
use crate::server::lifecycle::{Stop, Tasks};

/// A server whose index is loaded.
pub(super) struct Loaded {
    pub(super) data_dir: PathBuf,
    pub(super) first_admin: FirstAdmin,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) page_token_key: Zeroizing<[u8; 32]>,
    pub(super) peppers: Arc<PepperRing>,
    pub(super) index: Arc<Index>,
    pub(super) observed: Observed,
    pub(super) frontend: Frontend,
    pub(super) opening: Opening,
    /// What verdicts are made with, if none are answered yet because there are no keys.
    pub(super) unanswered: Option<VerifyState>,
}

impl Loaded {
    /// Waits until the store is open, lets the index follow it, makes the first administrator if the log is
    /// empty, and answers changes too.
    pub(super) async fn serve(self, stop: &Stop) -> Result<App, StartError> {
        let Self { data_dir, first_admin, clock, entropy, page_token_key, peppers, .. } = self;
        let Self { index, observed, frontend, opening, .. } = self;
        let store = match opening.store(stop).await {
            Ok(store) => store,
            Err(error) => return Err(frontend.abort(error, stop).await),
        };
        // It cannot be set already.
        observed.store.set(store.clone()).unwrap_or_default();
        let [background, monitors] = std::array::from_fn(|_| Tasks::default());
        // Every change waits for this task.
        let following = follow_log(store.clone(), index.clone(), background.stop_token());
        background.spawn_on(&frontend.urgent(), "follow log", following);
        background.spawn("compact names", compact_when_due(index.clone(), background.stop_token()));
        let authority = Authority::new(AuthorityDeps {
            store: store.clone(),
            index: index.clone(),
            peppers,
            clock: clock.clone(),
            entropy,
            page_token_key,
        });
        if let Err(error) = bootstrap(&authority, &first_admin, &data_dir).await {
            background.stop(Duration::ZERO).await;
            if let Err(error) = close(&*store).await {
                tracing::error!(%error, "the store cannot be closed");
            }
            return Err(frontend.abort(error, stop).await);
        }
        // It logs a warning if there is none.
        store.lasting_administrators(clock.now());
        if let Some(verify) = self.unanswered {
            frontend.answer_verdicts(verify);
        }
        frontend.answer_changes(authority);
        let (state, first_uses) = (frontend.state.clone(), observed.first_uses);
        let stop_recording = background.stop_token();
        background.spawn("first uses", async move {
            if let (Ok(authority), Some(queue)) = (state.authority(), first_uses.take_queue()) {
                authority.record_first_uses(&first_uses, queue, stop_recording).await;
            }
        });
        let (health, writable) = (frontend.health.clone(), observed.writable);
        let disk_monitor = DiskMonitor { store: store.clone(), health, writable };
        monitors.spawn("disk monitor", disk_monitor.run(monitors.stop_token()));
        let sweeper = Sweeper { store: store.clone(), index: index.clone(), clock, swept: observed.swept };
        monitors.spawn("sweep", sweeper.run(monitors.stop_token()));
        tracing::info!(keys = index.len(), revision = index.revision().0, "serving");
        Ok(App { store, frontend, background, monitors })
    }
}
