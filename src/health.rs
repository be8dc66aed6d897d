//! The health of each service, as probes see it. [`crate::app`] and [`crate::disk_monitor`] set it, and
//! [`crate::grpc::health`] serves it.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// The full names of the services, and whether each serves. The empty name is the server as a whole.
pub type Statuses = BTreeMap<&'static str, bool>;

/// The health of each service. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(watch::Sender<Statuses>);

impl Health {
    /// The health of these services, none of which serves yet.
    #[must_use]
    pub fn new(names: &[&'static str]) -> Self {
        Self(watch::Sender::new(names.iter().map(|name| (*name, false)).collect()))
    }

    /// Sets for all of these, at once, whether they serve.
    pub fn set(&self, names: &[&'static str], serves: bool) {
        self.0.send_if_modified(|statuses| {
            let changed = names.iter().map(|name| statuses.insert(name, serves) != Some(serves));
            // Not `any`, which would stop at the first that changes.
            changed.fold(false, |any, changed| any | changed)
        });
    }

    /// The statuses, now and after each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Statuses> {
        self.0.subscribe()
    }
}
