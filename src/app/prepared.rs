//! The first stage of a start. From here on the data is reserved for this process, and the pepper file is
//! read; where there are no data, it has been made. Nothing listens yet: a second start on the same data must
//! fail because of the data, and not because of a port.

use std::sync::Arc;

use keyward_core::clock::Clock;
use keyward_core::entropy::Entropy;
use keyward_core::identity::Identities;

use super::error::StartError;
use super::frontend::Frontend;
use super::listening::Listening;
use super::metric_sources::Observed;
use crate::config::Settings;
use crate::grpc::state::LogControl;
use crate::index::Index;
use crate::keyring::Keyring;
use crate::server::passed::PassedSockets;
use crate::server::tls::reload::Reload;
use crate::store::engine::{LockedEngine, StorageEngine};
use crate::util::files;

/// What a server is built from, besides its settings.
pub struct Deps {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The sockets that were passed to the process.
    pub sockets: PassedSockets,
    /// What can be changed while it runs.
    pub adjustable: Adjustable,
    /// The storage engine. See [`Engine::configure`](super::Engine::configure).
    pub engine: Box<dyn StorageEngine>,
}

/// What of a server can be changed while it runs. Clones share it.
#[derive(Clone, Default)]
pub struct Adjustable {
    /// Asks for certificates to be read again.
    pub reload: Reload,
    /// What the settings give to identities, from the start on. It may be replaced later.
    pub identities: Arc<Identities>,
    /// The log, if its filter can be set.
    pub log: Option<Arc<dyn LogControl>>,
}

/// A server that has its data and its secrets.
pub(super) struct Prepared {
    settings: Settings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    sockets: PassedSockets,
    adjustable: Adjustable,
    engine: Box<dyn LockedEngine>,
    keyring: Keyring,
}

impl Prepared {
    /// Makes the data directory if there is none, locks the engine, and opens the pepper file.
    pub(super) fn new(settings: Settings, deps: Deps) -> Result<Self, StartError> {
        let Deps { clock, entropy, sockets, adjustable, engine } = deps;
        adjustable.identities.replace(settings.identity.iter().cloned());
        let failed = |source| StartError::DataDir { path: settings.data_dir.clone(), source };
        files::create_private_dir(&settings.data_dir).map_err(failed)?;
        let engine = engine.lock()?;
        if !engine.has_data() {
            settings.first_admin.check(&settings.pepper_file)?;
        }
        let keyring = Keyring::open(&settings.pepper_file, !engine.has_data(), &*entropy)?;
        Ok(Self { settings, clock, entropy, sockets, adjustable, engine, keyring })
    }

    /// Opens the listeners, and answers whoever comes that nothing is served yet.
    pub(super) async fn listen(self) -> Result<Listening, StartError> {
        let (index, observed) = (Arc::new(Index::default()), Observed::default());
        let frontend =
            Frontend::start(&self.settings, (&self.sockets, &self.adjustable.reload), &index, &observed, &self.clock)
                .await?;
        let Self { settings, clock, entropy, adjustable, engine, keyring, .. } = self;
        let Adjustable { identities, log, .. } = adjustable;
        if let Some(log) = log {
            frontend.state.control_log(log);
        }
        Ok(Listening { settings, clock, entropy, identities, engine, keyring, index, observed, frontend })
    }
}
