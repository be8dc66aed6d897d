//! When an image of the view is made: a part of the keeper's work.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use keyward_core::event::Revision;

use super::cut::CutError;
use super::image::{self, Image};
use super::journal::Position;
use super::journal::scan::{segment_numbers, segment_path, segment_start};
use super::keeper::{Charge, KeepError};
use super::snapshot::SnapshotError;
use crate::files::{create_private_dir, remove_unfinished};

/// An image is made when the journal since the last one has so many full segments, and is as large as one part in so many of
/// the image: reading it takes about as long as reading the image, and an image costs few times what the journal did.
const IMAGE_SEGMENTS: u64 = 4;
const IMAGE_PART: u64 = 4;
/// Where there is none, so many keys are reason enough: to read them from the table takes half a second.
const IMAGE_KEYS: u64 = 100_000;
/// How often, and how long apart, it is looked whether the index has come up to the journal: 5 seconds in all.
const VIEW_TRIES: usize = 500;
const VIEW_PAUSE: Duration = Duration::from_millis(10);

impl Charge {
    /// Makes an image of the view if a start would have much to read without it.
    pub(super) fn keep_image(&self, image: &mut Option<Image>) -> Result<(), KeepError> {
        if self.view.parts() == 0 {
            return Ok(());
        }
        let mut later = segment_numbers(&self.journal)?;
        let Some(newest) = later.pop() else { return Ok(()) };
        let start = segment_start(&segment_path(&self.journal, newest))?;
        let mut lacking = 0;
        while let Some(number) = later.pop() {
            let path = segment_path(&self.journal, number);
            if image.is_some_and(|image| segment_start(&path).is_ok_and(|at| at.revision < image.position.revision)) {
                break;
            }
            lacking += fs::metadata(&path)?.len();
        }
        let due = match *image {
            Some(image) => lacking >= (IMAGE_SEGMENTS * self.segment_bytes).max(image.bytes / IMAGE_PART),
            None => lacking >= IMAGE_SEGMENTS * self.segment_bytes || self.keys()? >= IMAGE_KEYS,
        };
        if !due || image.is_some_and(|image| image.position == start) {
            return Ok(());
        }
        self.make_image(start, image)
    }

    /// Before the journal goes up to a revision: the image must not need any of that, or the next start could not use it.
    pub(super) fn keep_image_past(&self, revision: Revision, image: &mut Option<Image>) -> Result<(), KeepError> {
        if self.view.parts() == 0 || image.is_none_or(|image| image.position.revision >= revision) {
            return Ok(());
        }
        let Some(&newest) = segment_numbers(&self.journal)?.last() else { return Ok(()) };
        match self.make_image(segment_start(&segment_path(&self.journal, newest))?, image) {
            // Kept for the sake of the image, the journal would only take more room. It is a copy, and gives its own back.
            Err(error) if error.is_want_of_room() => {
                tracing::warn!(%error, "no newer image of the index can be made; the one that is there goes");
                image::remove_all(&self.images)?;
                *image = None;
                Ok(())
            }
            made => made,
        }
    }

    /// Makes an image that the journal goes on from at a position, which must be the beginning of a segment.
    fn make_image(&self, start: Position, image: &mut Option<Image>) -> Result<(), KeepError> {
        self.wait_for_view(start.revision)?;
        remove_unfinished(&self.images)?;
        create_private_dir(&self.images)?;
        let disk = self.room_for(&self.images, image.map_or(0, |image| image.bytes))?;
        let may_go_on = || self.may_go_on(&disk);
        // Nothing is folded before it is durable.
        let newest = || *self.durable.lock();
        let made = image::create(&*self.view, start, newest, &self.image_key, &self.images, &may_go_on)?;
        tracing::info!(revision = start.revision.0, bytes = made.bytes, "made an image of the index");
        *image = Some(made);
        Ok(())
    }

    /// The index follows the journal by itself, at once unless it is far behind.
    fn wait_for_view(&self, revision: Revision) -> Result<(), KeepError> {
        for _ in 0..VIEW_TRIES {
            if self.view.revision() >= revision {
                return Ok(());
            }
            self.serving()?;
            sleep(VIEW_PAUSE);
        }
        Err(KeepError::Behind)
    }

    fn keys(&self) -> Result<u64, KeepError> {
        Ok(self.table.sums().map_err(CutError::from).map_err(SnapshotError::from)?.keys.count())
    }
}
