//! One key more in a directory that nobody serves: for operators who have lost every administrator.
//!
//! The directory is opened as a start opens it, with all its checks, and one entry is appended to the journal. The table gets the
//! key at the next start, from there.

use std::sync::atomic::{AtomicI64, Ordering};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::ActorId;
use keyward_core::record::KeyRecord;

use super::dir::LockedDir;
use super::journal::frame::FrameBuilder;
use super::journal::writer::{Room, RoomError};
use super::recovery::{self, Recovered, SoundTable};
use super::{OpenError, Options};
use crate::store::record::{encode_key, pb};
use crate::store::{PartWriter, View};

/// A directory that is whole, and ready for one entry more.
pub struct Log {
    recovered: Recovered,
    room: Room,
    latest: UnixMillis,
}

/// Why no key was added.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The directory is not whole, or the disk failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing was ever committed.
    #[error("there is no log here yet; the first start of `keyward serve` makes an administrator")]
    Empty,
    /// There is no room for a change that takes no power away.
    #[error("the disk is nearly full; make room first")]
    NoRoom,
}

impl Log {
    /// Opens a directory, and repairs in it what a start repairs.
    ///
    /// # Errors
    /// When it is damaged, lacks acknowledged changes or has no log yet, or there is no room.
    pub fn open(dir: &LockedDir, options: &Options) -> Result<Self, MintError> {
        let latest = Latest(AtomicI64::new(i64::MIN));
        let recovered = recovery::recover(dir, options, SoundTable::Keep, &latest)?;
        if recovered.journal.position.revision == Revision(0) {
            return Err(MintError::Empty);
        }
        let room = recovered.journal.writer.gauge(options.free_bytes).and_then(|gauge| gauge.room());
        match room.map_err(OpenError::from)? {
            room @ (Room::Ample | Room::Scarce) => Ok(Self { recovered, room, latest: latest.latest_time() }),
            Room::Last | Room::None => Err(MintError::NoRoom),
        }
    }

    /// The latest time of a record: no entry may be stamped with an earlier one.
    #[must_use]
    pub fn latest_time(&self) -> UnixMillis {
        self.latest
    }

    /// Appends an entry with a new key, made by the program itself, and gives its revision. It is durable then.
    ///
    /// # Errors
    /// When the disk fails. The entry may be there all the same.
    pub fn append(mut self, method: &str, mut key: KeyRecord) -> Result<Revision, MintError> {
        let journal = &mut self.recovered.journal;
        let before = journal.position;
        key.revision = before.revision.next();
        let entry = pb::JournalEntry {
            revision: key.revision.0,
            time_ms: key.updated.time.0,
            actor: ActorId::keyward().to_string(),
            method: method.to_owned(),
            target: format!("{}/{}", key.tenant, key.key_id),
            redo: vec![pb::Redo { record: Some(pb::redo::Record::Key(encode_key(&key))) }],
        };
        let mut frame = FrameBuilder::after(&before);
        frame.push(&entry, &journal.key);
        let end = frame.end();
        let frame = frame.finish();
        journal.writer.make_room(frame.len(), &before, self.room).map_err(|error| match error {
            RoomError::NoRoom(error) | RoomError::Unknown(error) => OpenError::from(error),
        })?;
        journal.writer.append(&frame).map_err(OpenError::from)?;
        // In the order of every commit: what is acknowledged is in the journal.
        self.recovered.watermark.note(&end).map_err(OpenError::from)?;
        self.recovered.watermark.sync().map_err(OpenError::from)?;
        Ok(end.revision)
    }
}

/// Finds out the latest time of all records.
struct Latest(AtomicI64);

impl View for Latest {
    fn take(&self, records: &[Record]) {
        records.iter().for_each(|record| self.reach_time(record.time()));
    }

    /// Times that are too late do no harm.
    fn start_over(&self) {}

    fn whole(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        Revision(0)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::Relaxed))
    }

    fn reach_time(&self, time: UnixMillis) {
        self.0.fetch_max(time.0, Ordering::Relaxed);
    }

    fn parts(&self) -> usize {
        0
    }

    fn form(&self) -> u32 {
        0
    }

    fn writer(&self) -> Box<dyn PartWriter + '_> {
        Box::new(())
    }

    fn read_part(&self, _: usize, _: &[u8]) -> Option<()> {
        None
    }
}
