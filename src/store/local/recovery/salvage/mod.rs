//! Salvage, the last resort: turns a data directory that lacks acknowledged changes into one that starts,
//! with what can be recovered.
//!
//! The state comes from the newest intact snapshot or table, and later changes from the journal, past damage
//! too. Only data that was written with our key and is of one log is taken; [`runs`] says how that is
//! decided. Everything else is listed, and taken only on request. Missing changes are named, the old files
//! are moved aside, and the new log begins with an entry that says what was lost.

mod runs;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::LineRecord;

use self::runs::{FrameRange, Frames, Judged, Tie, entries_of, judge};
use self::sources::Sources;
use crate::store::local::checkpoint::snapshot;
use crate::store::local::dir::LockedDir;
use crate::store::local::disk_space::DiskSpace;
use crate::store::local::error::OpenError;
use crate::store::local::journal::frame::FrameBuilder;
use crate::store::local::journal::scan::End;
use crate::store::local::journal::segment::{LineHeader, SealKey};
use crate::store::local::journal::watermark::{Acknowledged, Watermark};
use crate::store::local::journal::writer::{CleanEnd, SpaceError};
use crate::store::local::journal::{Chain, ChainKey, Position};
use crate::store::local::options::StoreOptions;
use crate::store::local::recovery::offline_append::line_redo;
use crate::store::local::recovery::rebuild::{aside_of, rows_of};
use crate::store::local::recovery::recover::new_log_id;
use crate::store::local::table::Row;
use crate::store::local::table::checksums::{ChecksumKey, Checksums};
use crate::store::record::{RecordKind, pb};
use crate::util::files::{NewFile, create_private_dir, sync_parent, with_path};

/// Doubtful changes that are listed; more are only counted.
const LISTED_MAX: usize = 1_000;
/// Ranges of changes that the entry of a salvage names; of more it has the number. They must fit into a
/// frame.
const RANGES_TOLD_MAX: usize = 1_000;
/// Texts of doubtful changes are truncated to this length: their author is unknown.
const TEXT_MAX: usize = 200;
/// What nobody vouches for advances the new log by at most so many lines.
const CLAIMED_LINES_MAX: u64 = 1;

/// Ranges of changes: first and last revisions.
pub type Ranges = Vec<(Revision, Revision)>;

/// A change in the journal that cannot be shown to be of this log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubtful {
    /// The revision that it claims.
    pub revision: Revision,
    /// The call that it claims.
    pub method: String,
    /// The records that it writes, as `<tenant>/<key_id>` or `<tenant>`.
    pub targets: Vec<String>,
}

impl fmt::Display for Doubtful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}: {} of {}", self.revision, self.method, self.targets.join(", "))
    }
}

/// What cannot be shown to be of this log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unproven {
    /// Changes in the journal.
    pub changes: Vec<Doubtful>,
    /// How many more there are.
    pub more: usize,
    /// Snapshots and tables of another log under the same pepper file.
    pub files: Vec<PathBuf>,
}

impl Unproven {
    /// Whether there is nothing unproven.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.files.is_empty()
    }

    /// The warning for the operator; empty if there is nothing unproven.
    #[must_use]
    pub fn warning(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        format!(
            ". It leaves out what nothing shows to be of this log: somebody without the pepper file may have made it, or taken \
             it from an older copy. With --accept-unproven it is taken too:{self}"
        )
    }
}

impl fmt::Display for Unproven {
    /// One line each, beginning with a line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| write!(f, "\n  {change}"))?;
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        self.files.iter().try_for_each(|path| write!(f, "\n  {}", path.display()))
    }
}

/// What was recovered, and what was not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// The number of keys.
    pub keys: u64,
    /// The missing changes.
    pub missing: Ranges,
    /// Changes taken from after damage. They were made with this pepper file and fit everything else, but
    /// their link to the rest is lost.
    pub behind_damage: Ranges,
    /// What cannot be shown to be of this log.
    pub unproven: Unproven,
    /// The revision of the entry that records the loss.
    pub revision: Revision,
    /// The directory with the old files.
    pub aside: PathBuf,
}

/// Returns what [`salvage`] would not take. Changes nothing except what sled changes when it opens.
///
/// # Errors
/// When the disk fails, or nothing of what is there was written with our key.
pub fn preview(dir: &LockedDir, options: &StoreOptions) -> Result<Unproven, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    Evidence::read(dir, &key)?.unproven(dir)
}

/// Gathers what can be recovered and begins a new log with it, including what is unproven if `take_unproven`.
/// The new log is built beside the old files, and swapped in when it is durable.
///
/// # Errors
/// When the disk fails, or nothing of what is there was written with our key. Until the files change places,
/// nothing has changed; a failure while they do leaves a directory without a layout, which no start takes for
/// whole, and all old files, here or in the directory `lost.…`.
pub fn salvage(dir: &LockedDir, options: &StoreOptions, take_unproven: bool) -> Result<Salvaged, OpenError> {
    let key = ChainKey(options.chain_key.clone());
    let evidence = Evidence::read(dir, &key)?;
    let unproven = evidence.unproven(dir)?;
    let found = evidence.gather(dir, &key, take_unproven)?;
    drop(evidence);
    let missing = found.missing();
    let fresh = dir.path().join("rescue.new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(with_path(&fresh))?;
    }
    create_private_dir(&fresh).map_err(with_path(&fresh))?;
    let (keys, revision) =
        begin_log(&fresh, options, &key, &found, &missing).inspect_err(|_| drop(fs::remove_dir_all(&fresh)))?;

    let aside = aside_path(dir.path(), found.highest);
    create_private_dir(&aside).map_err(with_path(&aside))?;
    dir.mark_incomplete()?;
    let views = [dir.checkpoints(), dir.table(), aside_of(&dir.table())];
    for part in [dir.journal(), dir.snapshots(), dir.watermark()].into_iter().chain(views) {
        if let Some(name) = part.file_name().filter(|_| part.exists()) {
            fs::rename(&part, aside.join(name)).map_err(with_path(&part))?;
        }
    }
    sync_parent(&aside.join("journal"))?;
    for part in [dir.journal(), dir.snapshots(), dir.watermark()] {
        if let Some(name) = part.file_name() {
            fs::rename(fresh.join(name), &part).map_err(with_path(&part))?;
        }
    }
    fs::remove_dir(&fresh).map_err(with_path(&fresh))?;
    sync_parent(&dir.journal())?;
    dir.mark_complete()?;
    let behind_damage = found.behind_damage;
    Ok(Salvaged { keys, missing, behind_damage, unproven, revision, aside })
}

/// Builds snapshot, journal and watermark in a directory of their own. Returns the number of keys and the
/// last revision.
fn begin_log(
    fresh: &Path,
    options: &StoreOptions,
    key: &ChainKey,
    found: &Gathered,
    missing: &[(Revision, Revision)],
) -> Result<(u64, Revision), OpenError> {
    // Past every revision that may have been acknowledged: the log goes on in the line after its own.
    let (highest, time) = (found.highest, options.clock.now());
    let base = LineRecord::base_after(highest).ok_or(OpenError::NoLineLeft { revision: highest })?;
    let ended = missing.first().map_or(highest, |&(first, _)| Revision(first.0.saturating_sub(1)));
    let line = LineRecord { log_id: new_log_id(&*options.entropy)?, ended, base, time };
    let header = LineHeader::new(&line, &Chain::EMPTY, key);
    let base = header.header().start;
    let (journal, snapshots, watermark) = (fresh.join("journal"), fresh.join("snapshot"), fresh.join("watermark"));
    create_private_dir(&journal)?;
    create_private_dir(&snapshots)?;

    let form = snapshot::Form::Second(line.log_id);
    let keys = write_snapshot(&snapshots, form, &ChecksumKey::of(key), &found.records(), base, time)?;
    let (seals, room) = (SealKey::of(key), (options.segment_bytes, options.free_bytes));
    let mut writer = CleanEnd::make(&journal, &End::at(base))?.begin_line(room, &header, seals.clone())?;
    let mut frame = FrameBuilder::after(&base);
    frame.push(&data_loss_entry(found, &line, missing), key);
    let at = frame.end();
    let frame = frame.finish()?;
    writer.ensure_space(frame.len(), &base, DiskSpace::Ok).map_err(SpaceError::into_inner)?;
    writer.append(&frame)?;
    drop(Watermark::begin(&watermark, &at, writer.log_id(), seals)?);
    Ok((keys, at.revision))
}

/// The entry that records the missing changes, and what was taken on the operator's word alone.
fn data_loss_entry(found: &Gathered, line: &LineRecord, missing: &[(Revision, Revision)]) -> pb::JournalEntry {
    let told = |ranges: &[(Revision, Revision)]| match ranges {
        [] => "none".to_owned(),
        _ => {
            let named = ranges.iter().take(RANGES_TOLD_MAX).map(|(first, last)| format!("{first}-{last}"));
            let more = ranges.len().saturating_sub(RANGES_TOLD_MAX);
            let more = (more > 0).then(|| format!("and {more} more"));
            named.chain(more).collect::<Vec<_>>().join(",")
        }
    };
    let taken = match &*found.unproven {
        [] => String::new(),
        unproven => format!("; taken unproven: {}", told(unproven)),
    };
    pb::JournalEntry {
        revision: line.base.next().0,
        time_ms: line.time.0,
        actor: ActorId::keyward().to_string(),
        method: "AcceptDataLoss".into(),
        target: format!("revisions {}{taken}", told(missing)),
        redo: vec![line_redo(line)],
        ..pb::JournalEntry::default()
    }
}

fn aside_path(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("lost.{:020}", revision.0))
}

/// What was found, and which of it is of one log.
struct Evidence {
    sources: Sources,
    frames: Frames,
    judged: Judged,
    /// The complete source with the highest position, if any counts.
    base: Option<usize>,
    watermark: Acknowledged,
}

impl Evidence {
    fn read(dir: &LockedDir, key: &ChainKey) -> Result<Self, OpenError> {
        let watermark = Acknowledged::read(&dir.watermark(), &SealKey::of(key))?;
        let sources = sources::find(dir, key)?;
        let frames = runs::read(&dir.journal(), key, &sources.anchors)?;
        let anything = sources.snapshots + frames.runs.len() + frames.unverified.len() > 0;
        if anything && sources.anchors.is_empty() && frames.runs.is_empty() {
            return Err(OpenError::ForeignJournal { journal: dir.journal() });
        }
        let judged = judge(&frames.runs, &sources.anchors);
        let usable = (0..sources.anchors.len()).filter(|&nth| judged.anchors[nth] && sources.whole[nth]);
        let base = usable.max_by_key(|&nth| sources.anchors[nth].position.revision);
        Ok(Self { sources, frames, judged, base, watermark })
    }

    /// The frames that do not count.
    fn doubtful(&self) -> Vec<FrameRange> {
        let runs = self.frames.runs.iter().zip(&self.judged.runs).filter(|(_, counts)| !**counts);
        runs.flat_map(|(run, _)| run.ranges.iter().copied()).chain(self.frames.unverified.iter().copied()).collect()
    }

    fn unproven(&self, dir: &LockedDir) -> Result<Unproven, OpenError> {
        let mut unproven = Unproven::default();
        entries_of(&dir.journal(), &self.doubtful(), |entry| match unproven.changes.len() {
            LISTED_MAX.. => unproven.more += 1,
            _ => unproven.changes.push(doubtful(&entry)),
        })?;
        let files = self.sources.anchors.iter().zip(&self.judged.anchors).filter(|(_, counts)| !**counts);
        unproven.files = files.map(|(anchor, _)| anchor.path.clone()).collect();
        Ok(unproven)
    }

    /// Gathers the records, and what is known of the revisions.
    fn gather(&self, dir: &LockedDir, key: &ChainKey, take_unproven: bool) -> Result<Gathered, OpenError> {
        let mut found = Gathered::default();
        // What counts besides is older, and may have what was purged since.
        let is_other = |nth: &usize| take_unproven && self.sources.whole[*nth] && !self.judged.anchors[*nth];
        let others = (0..self.sources.anchors.len()).filter(is_other);
        for nth in self.base.into_iter().chain(others) {
            self.sources.records(nth, key, |row| found.add(row))?;
            found.covered = found.covered.max(self.sources.anchors[nth].position.revision);
        }
        let base = self.base.map_or(Revision(0), |nth| self.sources.anchors[nth].position.revision);
        for (run, counts) in self.frames.runs.iter().zip(&self.judged.runs) {
            if *counts && run.end.revision > base {
                entries_of(&dir.journal(), &run.ranges, |entry| found.take(&entry))?;
                if run.tie == Tie::None {
                    found.behind_damage.push((run.start.revision.max(base).next(), run.end.revision));
                }
            }
        }
        found.highest = found.highest.max(found.covered).max(self.sources.highest);
        let (sealed, claimed) = match self.watermark {
            Acknowledged::Nothing => (Revision(0), Revision(0)),
            Acknowledged::Unsealed(position) => (Revision(0), position.revision),
            Acknowledged::Sealed(position, _) => (position.revision, Revision(0)),
        };
        found.highest = found.highest.max(sealed).max(self.frames.proven);
        found.gaps.clone_from(&self.frames.gaps);
        // No revision may be used twice; but without the key nobody may push revisions out of reach either. A
        // claim within the last proven line moves nothing: the new log begins in the next one.
        let claimed = self.frames.claimed.max(claimed);
        let line_max = LineRecord::number_of(found.highest) + CLAIMED_LINES_MAX;
        let can_be = |revision| LineRecord::number_of(revision) <= line_max;
        if can_be(claimed) {
            found.highest = found.highest.max(claimed);
        } else {
            tracing::warn!(revision = claimed.0, "something claims a revision that cannot be; it is passed over");
        }
        if take_unproven {
            entries_of(&dir.journal(), &self.doubtful(), |entry| {
                if can_be(Revision(entry.revision)) {
                    found.take(&entry);
                    found.unproven.push((Revision(entry.revision), Revision(entry.revision)));
                }
            })?;
        }
        Ok(found)
    }
}

/// Describes a change that may be forged.
fn doubtful(entry: &pb::JournalEntry) -> Doubtful {
    let told = |text: &str| text.chars().take(TEXT_MAX).flat_map(char::escape_debug).collect::<String>();
    let targets = match rows_of(entry) {
        Ok(rows) => rows.iter().map(|row| told(&name_of(&row.record))).collect(),
        Err(error) => vec![format!("{}, whose records do not decode: {error}", told(&entry.target))],
    };
    Doubtful { revision: Revision(entry.revision), method: told(&entry.method), targets }
}

fn name_of(record: &Record) -> String {
    match record {
        Record::Tenant(tenant) => tenant.tenant.to_string(),
        Record::Key(key) => format!("{}/{}", key.tenant, key.key_id),
        Record::Owner(owner) => format!("{}, owner {}", owner.tenant, owner.owner),
        Record::Issuer(issuer) => format!("issuer {}", issuer.actor),
        Record::Purged(mark) => format!("{}/{}", mark.tenant, mark.key_id),
        Record::Line(line) => format!("log {}", line.log_id),
    }
}

/// What can be recovered.
#[derive(Debug, Default)]
struct Gathered {
    /// The newest form of each key, by its id: its digest changes with each rotation. `None`: it was purged.
    keys: BTreeMap<(TenantId, KeyId), (Revision, Option<Row>)>,
    /// The newest form of each other record, by kind and name.
    others: BTreeMap<(RecordKind, Vec<u8>), (Revision, Row)>,
    /// The records include everything up to this revision, whatever the journal has.
    covered: Revision,
    /// Revisions taken from the journal, as first and last.
    journal: BTreeMap<Revision, Revision>,
    /// The highest revision that may have been acknowledged.
    highest: Revision,
    behind_damage: Ranges,
    /// What was taken although it is unproven.
    unproven: Ranges,
    /// The revisions between lines, which no change has: not the first, up to the second.
    gaps: Ranges,
}

impl Gathered {
    fn add(&mut self, row: Row) {
        let revision = row.record.revision();
        let (key, row) = match &row.record {
            Record::Key(key) => ((key.tenant.clone(), key.key_id.clone()), Some(row)),
            Record::Purged(mark) if mark.key_lives => return,
            // The new log has nothing that is older, so that the id is free again.
            Record::Purged(mark) => ((mark.tenant.clone(), mark.key_id.clone()), None),
            Record::Tenant(_) | Record::Owner(_) | Record::Issuer(_) | Record::Line(_) => {
                let place = (row.kind(), row.name().to_vec());
                if self.others.get(&place).is_none_or(|(newer, _)| *newer < revision) {
                    self.others.insert(place, (revision, row));
                }
                return;
            }
        };
        if self.keys.get(&key).is_none_or(|(newer, _)| *newer < revision) {
            self.keys.insert(key, (revision, row));
        }
    }

    /// All records, in the order of a snapshot.
    fn records(&self) -> BTreeMap<(RecordKind, &[u8]), &Row> {
        let keys = self.keys.values().filter_map(|(_, row)| row.as_ref());
        let rows = keys.chain(self.others.values().map(|(_, row)| row));
        rows.map(|row| ((row.kind(), row.name()), row)).collect()
    }

    /// Adds a change from the journal.
    fn take(&mut self, entry: &pb::JournalEntry) {
        let revision = Revision(entry.revision);
        match rows_of(entry) {
            // A record that claims to be newer than its change would survive every later change.
            Ok(rows) if rows.iter().any(|row| row.record.revision() != revision) => {
                return tracing::warn!(
                    revision = entry.revision,
                    "a change was passed over: its records are of another one"
                );
            }
            Ok(rows) => rows.into_iter().for_each(|row| self.add(row)),
            Err(error) => return tracing::warn!(revision = entry.revision, %error, "a change was passed over"),
        }
        self.highest = self.highest.max(revision);
        match self.journal.range_mut(..=revision).next_back() {
            Some((_, last)) if last.next() >= revision => *last = revision.max(*last),
            _ => drop(self.journal.insert(revision, revision)),
        }
    }

    fn missing(&self) -> Ranges {
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
        missing.into_iter().flat_map(|range| without(range, &self.gaps)).collect()
    }
}

/// A range of revisions, without those between lines.
fn without((first, last): (Revision, Revision), gaps: &[(Revision, Revision)]) -> Ranges {
    let (mut left, mut next) = (vec![], first);
    for &(ended, base) in gaps.iter().filter(|&&(ended, base)| ended < last && base >= first) {
        if next <= ended {
            left.push((next, ended));
        }
        next = next.max(base.next());
    }
    if next <= last {
        left.push((next, last));
    }
    left
}

/// Writes the gathered records as a snapshot. Returns the number of keys.
fn write_snapshot(
    snapshots: &Path,
    form: snapshot::Form,
    key: &ChecksumKey,
    records: &BTreeMap<(RecordKind, &[u8]), &Row>,
    at: Position,
    time: UnixMillis,
) -> Result<u64, OpenError> {
    let mut checksums = Checksums::at(at);
    for row in records.values() {
        checksums.of_mut(row.kind()).add(key, row.name(), &row.bytes);
        checksums.note_ordinal(&row.record);
    }
    let path = snapshot::path_of(snapshots, at.revision);
    let mut new = NewFile::create(&path)?;
    let mut file = io::BufWriter::new(&mut new);
    let batch = records.values().map(|row| (row.kind(), row.bytes.as_slice()));
    snapshot::write_records(&checksums, form, key, time, batch, &mut file)
        .map_err(|error| io::Error::other(error.to_string()))?;
    file.flush()?;
    drop(file);
    snapshot::verify(new.sync()?, Some(key), &|| Ok(())).map_err(|error| io::Error::other(error.to_string()))?;
    new.commit()?;
    Ok(checksums.keys())
}
