//! The last resort: a data directory that lacks acknowledged changes, made into one that starts, with what can be had.
//!
//! Every sound record is gathered: from snapshots, from a table that is sound, and from every sound frame of the journal,
//! also past damage. The newest form of each wins. What is missing is named, the old files are moved aside, and the new log
//! begins with an entry that says what was given up.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::ActorId;

use super::cut::Kind;
use super::dir::LockedDir;
use super::image::{self, ImageKey};
use super::journal::frame::{ALIGNMENT_BYTES, Frame, FrameBuilder, SEGMENT_HEADER_BYTES, read_segment_header};
use super::journal::scan::{End, segment_numbers, segment_path};
use super::journal::writer::{Room, RoomError, Writer};
use super::journal::{Chain, ChainKey, Position};
use super::rebuild::{aside_of, rows_of};
use super::recovery::read_table;
use super::snapshot::{self, SnapshotError};
use super::sums::{SumKey, Sums};
use super::table::Row;
use super::watermark::Watermark;
use super::{OpenError, Options};
use crate::files::{create_private_dir, named, private, sync_parent};
use crate::store::record::pb;

/// What was saved, and what was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// How many keys there are.
    pub keys: u64,
    /// The changes that are gone, as first and last revisions.
    pub missing: Vec<(Revision, Revision)>,
    /// The revision of the entry that says so.
    pub revision: Revision,
    /// Where the old files are.
    pub aside: PathBuf,
}

/// Gathers what can be had and begins a new log with it. The new log is made beside the old files; only when it is durable do
/// they change places.
///
/// # Errors
/// When the disk fails, or nothing of what is there was written with our key. Until the files change places, nothing has
/// changed; a failure while they do leaves a directory without a layout, which no start takes for whole, and all old files,
/// here or in the directory `lost.…`.
pub fn salvage(dir: &LockedDir, options: &Options) -> Result<Salvaged, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    let found = gather(dir, &key, &SumKey::of(&key))?;
    let missing = found.missing();
    let fresh = dir.path().join("rescue.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(named(&fresh))?;
    }
    create_private_dir(&fresh).map_err(named(&fresh))?;
    let (keys, revision) =
        begin_log(&fresh, options, &key, &found, &missing).inspect_err(|_| drop(fs::remove_dir_all(&fresh)))?;

    let aside = aside_path(dir.path(), found.highest);
    create_private_dir(&aside).map_err(named(&aside))?;
    dir.begin()?;
    let views = [dir.images(), dir.table(), aside_of(&dir.table())];
    for part in [dir.journal(), dir.snapshots(), dir.watermark()].into_iter().chain(views) {
        if let Some(name) = part.file_name().filter(|_| part.exists()) {
            fs::rename(&part, aside.join(name)).map_err(named(&part))?;
        }
    }
    sync_parent(&aside.join("journal"))?;
    for part in [dir.journal(), dir.snapshots(), dir.watermark()] {
        if let Some(name) = part.file_name() {
            fs::rename(fresh.join(name), &part).map_err(named(&part))?;
        }
    }
    fs::remove_dir(&fresh).map_err(named(&fresh))?;
    sync_parent(&dir.journal())?;
    dir.finish()?;
    Ok(Salvaged { keys, missing, revision, aside })
}

/// Makes snapshot, journal and watermark in a directory of their own; gives the number of keys and the last revision.
fn begin_log(
    fresh: &Path,
    options: &Options,
    key: &ChainKey,
    found: &Found,
    missing: &[(Revision, Revision)],
) -> Result<(u64, Revision), OpenError> {
    // Past every revision that anyone may have been told of.
    let revision = found.highest;
    let chain = Chain::EMPTY.after(key, format!("keyward data loss accepted at revision {revision}").as_bytes());
    let base = Position { revision, chain };
    let (journal, snapshots, watermark) = (fresh.join("journal"), fresh.join("snapshot"), fresh.join("watermark"));
    create_private_dir(&journal)?;
    create_private_dir(&snapshots)?;

    let keys = write_snapshot(&snapshots, &SumKey::of(key), &found.records, base, options.clock.now())?;
    let end = End { start: base, position: base, segment: None };
    let mut writer = Writer::resume(&journal, options.segment_bytes, &end)?;
    let mut frame = FrameBuilder::after(&base);
    frame.push(&confession(revision.next(), options.clock.now(), missing), key);
    let at = frame.end();
    let frame = frame.finish();
    writer.make_room(frame.len(), &base, Room::Ample).map_err(|error| match error {
        RoomError::NoRoom(error) | RoomError::Unknown(error) => error,
    })?;
    writer.append(&frame)?;
    let (watermark, _) = Watermark::open(&watermark)?;
    watermark.note(&at)?;
    watermark.sync()?;
    Ok((keys, at.revision))
}

/// The entry that says what was given up.
fn confession(revision: Revision, time: UnixMillis, missing: &[(Revision, Revision)]) -> pb::JournalEntry {
    let ranges = missing.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(",");
    pb::JournalEntry {
        revision: revision.0,
        time_ms: time.0,
        actor: ActorId::keyward().to_string(),
        method: "AcceptDataLoss".into(),
        target: format!("revisions {}", if ranges.is_empty() { "none" } else { &ranges }),
        redo: vec![],
    }
}

fn aside_path(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("lost.{:020}", revision.0))
}

/// The newest form of each record that was found: by kind and name, its revision and its bytes.
type Records = BTreeMap<(Kind, Vec<u8>), (Revision, Vec<u8>)>;

/// What can be had.
#[derive(Debug, Default)]
struct Found {
    records: Records,
    /// Everything up to this revision is in the records, whatever the journal has.
    covered: Revision,
    /// Revisions past `covered` that the journal has, as first and last.
    journal: BTreeMap<Revision, Revision>,
    /// The highest revision that anything speaks of.
    highest: Revision,
    /// Frames and snapshots that are there, and those of them that were surely written with our key.
    there: usize,
    ours: usize,
}

impl Found {
    fn add(&mut self, row: Row) {
        let (place, revision) = match &row.record {
            Record::Tenant(tenant) => ((Kind::Tenant, tenant.tenant.as_str().as_bytes().to_vec()), tenant.revision),
            Record::Key(key) => ((Kind::Key, key.secret.digest.as_bytes().to_vec()), key.revision),
        };
        self.highest = self.highest.max(revision);
        match self.records.get(&place) {
            Some((newer, _)) if *newer >= revision => {}
            _ => drop(self.records.insert(place, (revision, row.bytes))),
        }
    }

    fn covers(&mut self, revision: Revision) {
        self.covered = self.covered.max(revision);
        self.highest = self.highest.max(revision);
    }

    fn missing(&self) -> Vec<(Revision, Revision)> {
        let mut missing = Vec::new();
        let mut next = self.covered.next();
        for (&first, &last) in &self.journal {
            if first > next {
                missing.push((next, Revision(first.0 - 1)));
            }
            next = next.max(last.next());
        }
        if next <= self.highest {
            missing.push((next, self.highest));
        }
        missing
    }
}

fn gather(dir: &LockedDir, key: &ChainKey, sum_key: &SumKey) -> Result<Found, OpenError> {
    let mut found = Found::default();
    if let (_, Some(watermark)) = Watermark::open(&dir.watermark())? {
        found.highest = watermark.revision;
    }
    for (_, path) in snapshot::list(&dir.snapshots())? {
        if let Ok(header) = snapshot::read_header(&path, None) {
            found.there += 1;
            found.highest = found.highest.max(header.position.revision);
        }
        // Its records are taken only once all of it is believed.
        match snapshot::verify(&path, Some(sum_key), &|| Ok(())) {
            Ok(contents) => {
                let file = fs::File::open(&path)?;
                let read = snapshot::read(file, Some(sum_key), |row| {
                    found.add(row);
                    Ok::<_, SnapshotError>(())
                });
                read.map_err(|error| io::Error::other(error.to_string()))?;
                found.covers(contents.header.position.revision);
                found.ours += 1;
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "passed over"),
        }
    }
    // They have no records, only what Verify needs of them; but they know up to where others were told.
    for (_, path) in image::list(&dir.images())? {
        match image::verify(&path, &ImageKey::of(key)) {
            Ok(image) => found.highest = found.highest.max(image.latest.revision),
            Err(error) => tracing::warn!(path = %path.display(), %error, "passed over"),
        }
    }
    // One that was set aside may be sound: it says so itself.
    for path in [dir.table(), aside_of(&dir.table())].iter().filter(|path| path.exists()) {
        match read_table(path, key) {
            Ok(table) => {
                for row in table.rows() {
                    found.add(row.map_err(|error| OpenError::Table(error.into()))?);
                }
                let applied = table.applied().map_err(OpenError::Table)?.revision;
                found.covers(applied);
                found.ours += usize::from(applied > Revision(0));
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "passed over"),
        }
    }
    for number in segment_numbers(&dir.journal())? {
        let path = segment_path(&dir.journal(), number);
        gather_segment(&fs::read(&path).map_err(named(&path))?, &path, key, &mut found);
    }
    if found.there > 0 && found.ours == 0 {
        return Err(OpenError::ForeignJournal { journal: dir.journal() });
    }
    Ok(found)
}

/// Takes every sound frame of a segment, wherever it begins.
fn gather_segment(bytes: &[u8], path: &Path, key: &ChainKey, found: &mut Found) {
    let mut at = SEGMENT_HEADER_BYTES;
    // What a frame must follow, if it is known: the chain then tells whether it is ours.
    let mut before = read_segment_header(bytes).ok();
    found.highest = found.highest.max(before.map_or(Revision(0), |start| start.revision));
    while at < bytes.len() {
        let Some(frame) = Frame::read(&bytes[at..]) else {
            at += ALIGNMENT_BYTES;
            before = None;
            continue;
        };
        found.there += 1;
        found.ours += usize::from(before.is_some_and(|before| frame.follow::<pb::JournalEntry>(&before, key).is_ok()));
        before = Some(frame.claimed_end());
        for entry in frame.entries::<pb::JournalEntry>() {
            let Ok((entry, _)) = entry else { break };
            match rows_of(&entry) {
                Ok(rows) => {
                    rows.into_iter().for_each(|row| found.add(row));
                    let revision = Revision(entry.revision);
                    found.highest = found.highest.max(revision);
                    match found.journal.range_mut(..=revision).next_back() {
                        Some((_, last)) if last.next() >= revision => *last = revision.max(*last),
                        _ => drop(found.journal.insert(revision, revision)),
                    }
                }
                Err(error) => tracing::warn!(path = %path.display(), revision = entry.revision, %error, "passed over"),
            }
        }
        at += frame.bytes;
    }
}

/// Writes what was gathered as a snapshot, and says how many keys it has.
fn write_snapshot(
    snapshots: &Path,
    key: &SumKey,
    records: &Records,
    at: Position,
    time: UnixMillis,
) -> Result<u64, OpenError> {
    let mut sums = Sums { position: at, ..Sums::EMPTY };
    for ((kind, name), (_, bytes)) in records {
        match kind {
            Kind::Tenant => sums.tenants.add(key, name, bytes),
            Kind::Key => sums.keys.add(key, name, bytes),
        }
    }
    let path = snapshot::path_of(snapshots, at.revision);
    let temporary = path.with_added_extension("new");
    let mut file = io::BufWriter::new(private().write(true).create(true).truncate(true).open(&temporary)?);
    let batch = records.iter().map(|((kind, _), (_, bytes))| (*kind, bytes.as_slice()));
    snapshot::write_records(&sums, key, time, batch, &mut file).map_err(|error| io::Error::other(error.to_string()))?;
    file.flush()?;
    file.get_ref().sync_all()?;
    snapshot::verify(&temporary, Some(key), &|| Ok(())).map_err(|error| io::Error::other(error.to_string()))?;
    fs::rename(&temporary, &path)?;
    sync_parent(&path)?;
    Ok(sums.keys.count())
}
