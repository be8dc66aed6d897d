//! What snapshot scans need of records that change while they run: each as it was before.

use std::collections::BTreeMap;

use sled::IVec;
use tokio_util::sync::CancellationToken;

use crate::store::record::RecordKind;

/// Memory for one pre-image besides its bytes: name, map entry and allocator overhead.
const ASIDE_RECORD_BYTES: u64 = 256;

/// A record's kind and its key in its tree.
pub(super) type Place = (RecordKind, IVec);

/// The scans in progress. The table holds this while it writes.
#[derive(Debug, Default)]
pub(in crate::store::local) struct SnapshotScans {
    begun: u64,
    pub(super) open: Vec<PreImages>,
}

/// The pre-images for one scan.
#[derive(Debug)]
pub(super) struct PreImages {
    /// The number of the scan.
    pub(super) number: u64,
    /// How far the scan has come: to a name of a kind, or to the end of the kind.
    pub(super) scanned_to: Option<(RecordKind, Option<IVec>)>,
    /// `None`: the record did not exist.
    pub(super) before: BTreeMap<Place, Option<IVec>>,
    pub(super) bytes: u64,
    bytes_max: u64,
    /// Cancelled when the pre-images exceed their bound. The scan is useless then.
    pub(super) overflowed: CancellationToken,
}

impl SnapshotScans {
    /// Saves a record as it was before its first change since each scan began.
    pub(in crate::store::local) fn keep(&mut self, kind: RecordKind, name: &[u8], before: Option<&IVec>) {
        if !self.open.is_empty() {
            let place = (kind, IVec::from(name));
            self.open.iter_mut().for_each(|scan| scan.keep(&place, before));
        }
    }

    /// Bytes of pre-images of all scans. Shared ones count twice.
    pub(in crate::store::local) fn bytes(&self) -> u64 {
        self.open.iter().map(|scan| scan.bytes).sum()
    }

    pub(super) fn begin(&mut self, bytes_max: u64) -> (u64, CancellationToken) {
        self.begun += 1;
        let (number, overflowed) = (self.begun, CancellationToken::new());
        let (before, told) = (BTreeMap::new(), overflowed.clone());
        self.open.push(PreImages { number, scanned_to: None, before, bytes: 0, bytes_max, overflowed });
        (number, told)
    }

    pub(super) fn end(&mut self, number: u64) -> Option<PreImages> {
        let at = self.open.iter().position(|scan| scan.number == number)?;
        Some(self.open.swap_remove(at))
    }
}

impl PreImages {
    fn keep(&mut self, place: &Place, before: Option<&IVec>) {
        if self.is_scanned(place) || self.overflowed.is_cancelled() || self.before.contains_key(place) {
            return;
        }
        let bytes = cost_of(before);
        if self.bytes + bytes > self.bytes_max {
            // The scan's owner frees the pre-images: there may be many, and the writer must not wait for
            // that.
            self.overflowed.cancel();
            return;
        }
        self.bytes += bytes;
        self.before.insert(place.clone(), before.cloned());
    }

    fn is_scanned(&self, (kind, name): &Place) -> bool {
        match &self.scanned_to {
            None => false,
            Some((to, _)) if kind != to => kind < to,
            Some((_, to)) => to.as_ref().is_none_or(|to| name <= to),
        }
    }

    /// Takes the records of a kind up to a name that have changed since the scan began, as they were then.
    pub(super) fn take_up_to(&mut self, kind: RecordKind, to: Option<&IVec>) -> Vec<(IVec, Option<IVec>)> {
        let is_meant = |(_, name): &Place| to.is_none_or(|to| name <= to);
        let of_kind = self.before.range((kind, IVec::default())..).map(|(place, _)| place);
        let places: Vec<_> = of_kind.take_while(|place| place.0 == kind && is_meant(place)).cloned().collect();
        let taken = places.into_iter().filter_map(|place| {
            let before = self.before.remove(&place)?;
            self.bytes -= cost_of(before.as_ref());
            Some((place.1, before))
        });
        taken.collect()
    }
}

/// The memory that a pre-image takes.
pub(super) fn cost_of(before: Option<&IVec>) -> u64 {
    ASIDE_RECORD_BYTES + before.map_or(0, |bytes| bytes.len() as u64)
}
