//! The second stage of a start. From here on callers and probes are answered: that the server is alive, and
//! that nothing is served yet. The index is empty.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use keyward_core::identity::Identities;

use super::error::StartError;
use super::frontend::Frontend;
use super::loaded::Loaded;
use super::metric_sources::Observed;
use super::opening::Opening;
use crate::config::Settings;
use crate::grpc::state::VerifyState;
use crate::index::Index;
use crate::keyring::Keyring;
use crate::server::lifecycle::Stop;
use crate::store::StoreError;
use crate::store::engine::LockedEngine;
use crate::verify::Verifier;

/// A server that listens.
pub(super) struct Listening {
    pub(super) settings: Settings,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) identities: Arc<Identities>,
    pub(super) engine: Box<dyn LockedEngine>,
    pub(super) keyring: Keyring,
    pub(super) index: Arc<Index>,
    pub(super) observed: Observed,
    pub(super) frontend: Frontend,
}

impl Listening {
    /// Opens the engine, which loads the index first, and waits until that is done. Then verdicts are
    /// answered, unless there are no keys yet.
    pub(super) async fn load(self, stop: &Stop) -> Result<Loaded, StartError> {
        let Self { settings, clock, entropy, identities, engine, keyring, index, observed, frontend } = self;
        let mut opening = Opening::start(engine, keyring.chain_key(), &index, &frontend.state);
        let (page_token_key, peppers) = (keyring.page_token_key(), Arc::new(keyring.peppers));
        let revision = match opening.index_loaded(stop).await {
            Ok(revision) => revision,
            Err(error) => return Err(frontend.abort(error, stop).await),
        };
        warn_of_clock(clock.now(), index.latest_time());
        let sound = check_peppers(&index, &peppers, &settings.pepper_file);
        let (opening, revision) = match (sound, revision) {
            (Ok(()), Some(revision)) => (opening, revision),
            (Ok(()), None) => return Err(frontend.abort(not_loaded(opening, stop).await, stop).await),
            (Err(error), _) => return Err(frontend.abort(refuse(error, opening, stop).await, stop).await),
        };
        let (verifier, verdicts) = (Verifier::new(index.clone(), peppers.clone()), frontend.verdicts.clone());
        let verify = VerifyState {
            verifier,
            peppers: peppers.clone(),
            verdicts,
            first_uses: observed.first_uses.clone(),
            identities,
            clock: clock.clone(),
        };
        // At a first start there are no keys, and no callers.
        let unanswered = match revision {
            Revision(0) => Some(verify),
            _ => {
                frontend.answer_verdicts(verify);
                None
            }
        };
        let Settings { data_dir, first_admin, .. } = settings;
        Ok(Loaded {
            data_dir,
            first_admin,
            clock,
            entropy,
            page_token_key,
            peppers,
            index,
            observed,
            frontend,
            opening,
            unanswered,
        })
    }
}

/// Why an engine has not loaded the index.
async fn not_loaded(opening: Opening, stop: &Stop) -> StartError {
    match opening.store(stop).await {
        Ok(_) => StoreError::Engine("it was opened without its records".into()).into(),
        Err(error) => error,
    }
}

/// Ends an opening whose records must not be served, when it has done what it is at.
async fn refuse(error: StartError, opening: Opening, stop: &Stop) -> StartError {
    tracing::error!(%error, "it will not start");
    opening.give_up();
    match opening.store(stop).await {
        Ok(store) => store.close().await.err().map_or(error, StartError::from),
        Err(StartError::Stopped) => StartError::Stopped,
        Err(_) => error,
    }
}

/// Warns of a clock that is behind the log: it was set back, or was ahead when the log was written.
fn warn_of_clock(clock: UnixMillis, logged: UnixMillis) {
    let Ok(behind_ms @ 1..) = u64::try_from(logged.0.saturating_sub(clock.0)) else { return };
    let behind = humantime::format_duration(Duration::from_millis(behind_ms));
    tracing::warn!(
        %behind, "the clock is behind the last change in the log; until it has caught up, keys expire by the log's time; set the \
                  clock"
    );
}

/// Checks that there is a pepper for every key: without it, a key could never be verified.
fn check_peppers(index: &Index, peppers: &PepperRing, path: &Path) -> Result<(), StartError> {
    match index.peppers().into_iter().find(|id| !peppers.holds(*id)) {
        None => Ok(()),
        Some(id) => Err(StartError::ForeignPepper { pepper: id.to_string(), path: path.to_owned() }),
    }
}
