//! Which services answer calls, as probes are told. The app and [`crate::disk_monitor`] tell it, and
//! [`crate::grpc::health`] passes it on.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// The services that are told of, by full name, and whether each serves. The empty name is the server as a whole.
pub type Statuses = BTreeMap<&'static str, bool>;

/// Knows the health of each service. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(watch::Sender<Statuses>);

impl Health {
    /// The health of these services, none of which serves yet.
    #[must_use]
    pub fn new(names: &[&'static str]) -> Self {
        Self(watch::Sender::new(names.iter().map(|name| (*name, false)).collect()))
    }

    /// Tells, of all of these at once, whether they serve.
    pub fn set(&self, names: &[&'static str], serves: bool) {
        self.0.send_if_modified(|statuses| {
            let changed = names.iter().map(|name| statuses.insert(name, serves) != Some(serves));
            // All are set, not only those before the first that changes.
            changed.fold(false, |any, changed| any | changed)
        });
    }

    /// What is known now, and later.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Statuses> {
        self.0.subscribe()
    }
}
