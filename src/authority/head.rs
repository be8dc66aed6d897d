//! The head of the log.

use keyward_core::access::{Grant, ReadHead};
use keyward_core::event::Revision;
use keyward_core::head::Head;

use super::Authority;

impl Authority {
    /// The revision of the last durable change, and the head of the log there, if the engine has a log.
    #[must_use]
    pub fn head(&self, _grant: &Grant<ReadHead>) -> (Revision, Option<Head>) {
        let head = self.store.head();
        (head.map_or_else(|| self.store.revision(), |head| head.revision), head)
    }
}
