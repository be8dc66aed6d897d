//! Inspects a data directory that is not served: what is there, and what is wrong.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use keyward_core::event::Revision;
use keyward_core::head::Head;
use keyward_core::record::LineRecord;

use super::recover::{check_beginning, head_fault, read_table};
use crate::store::local::checkpoint::index_checkpoint::{self, Checkpoint, CheckpointKey};
use crate::store::local::checkpoint::snapshot;
use crate::store::local::dir::LockedDir;
use crate::store::local::error::OpenError;
use crate::store::local::journal::scan::{End, segment_numbers, verify};
use crate::store::local::journal::segment::SealKey;
use crate::store::local::journal::watermark::Acknowledged;
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::table::Table;
use crate::store::local::table::checksums::ChecksumKey;
use crate::util::files::{private_options, with_path};

/// A finding about one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The part: a name, or a path.
    pub part: String,
    /// What was found.
    pub says: String,
    /// Whether anything is wrong.
    pub doubt: bool,
}

impl Finding {
    fn fine(part: impl fmt::Display, says: impl fmt::Display) -> Self {
        Self { part: part.to_string(), says: says.to_string(), doubt: false }
    }

    fn doubt(part: impl fmt::Display, says: impl fmt::Display) -> Self {
        Self { part: part.to_string(), says: says.to_string(), doubt: true }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.doubt { "WRONG" } else { "ok" };
        write!(f, "{mark:<6} {}: {}", self.part, self.says)
    }
}

/// The findings about a directory.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// About each part.
    pub findings: Vec<Finding>,
    /// Where the journal ends, if it is intact.
    pub head: Option<Head>,
}

/// Reads everything in a directory, and checks the journal against a head, if one is given. Changes nothing
/// except what sled changes when it opens; in a read-only directory, a copy of the table is read.
///
/// When the disk fails. Damaged data is a finding, not an error.
pub fn inspect(dir: &LockedDir, key: &ChainKey, expected: Option<Head>) -> Result<Inspected, OpenError> {
    let checksum_key = ChecksumKey::of(key);
    let watermark = Acknowledged::read(&dir.watermark(), &SealKey::of(key))?;
    let mut findings = Vec::new();
    let (mut places, mut checkpoints) = (Vec::new(), Vec::new());
    for (_, path) in snapshot::list(&dir.snapshots())? {
        match snapshot::verify(&path, Some(&checksum_key), &|| Ok(())) {
            Ok(contents) => places.push((path.display().to_string(), contents.header.position, contents.keys)),
            Err(error) => findings.push(Finding::doubt(path.display(), error)),
        }
    }
    for (_, path) in index_checkpoint::list(&dir.checkpoints())? {
        match index_checkpoint::verify(&path, &CheckpointKey::of(key)) {
            Ok(checkpoint) => checkpoints.push((path, checkpoint)),
            Err(error) => {
                findings.push(Finding::doubt(path.display(), format!("{error}; the next start reads the table")))
            }
        }
    }
    let table_path = dir.table();
    // Dropped at the end, after the table in it.
    let copy = if table_path.exists() && !dir.is_writable() { Some(TableCopy::of(&table_path)?) } else { None };
    let read_path = copy.as_ref().map_or(&table_path, |copy| &copy.0);
    let table = match table_path.exists().then(|| read_table(read_path, key)) {
        None => {
            findings.push(Finding::fine(table_path.display(), "not there; the next start builds it"));
            None
        }
        Some(Ok(table)) => Some(table),
        Some(Err(error)) => {
            findings.push(Finding::doubt(table_path.display(), format!("{error}; the next start builds it anew")));
            None
        }
    };
    if let Some(checksums) = table.as_ref().map(Table::checksums).transpose().map_err(OpenError::Table)? {
        places.push((table_path.display().to_string(), checksums.position, checksums.keys()));
    }
    drop(table);
    drop(copy);

    let at_checkpoints = checkpoints.iter().flat_map(|(_, checkpoint)| [checkpoint.position, checkpoint.latest]);
    let wanted = places.iter().map(|(_, at, _)| *at).chain(at_checkpoints).chain(watermark.claimed());
    let wanted: Vec<_> = wanted.chain(expected.map(Position::from)).collect();
    let (end, mut found_positions) = match verify(&dir.journal(), key, &wanted) {
        Ok(verified) => verified,
        Err(error) => {
            findings.insert(0, Finding::doubt(dir.journal().display(), error));
            let whole = |at: Position, keys| format!("whole, {keys} keys at revision {}", at.revision);
            findings.extend(places.into_iter().map(|(part, at, keys)| Finding::fine(part, whole(at, keys))));
            return Ok(Inspected { findings, head: None });
        }
    };
    found_positions.insert(end.start);
    findings.push(of_journal(dir, &end)?);
    if let Err(error) = check_beginning(dir, key, &end) {
        findings.push(Finding::doubt(dir.journal().display(), error));
    }
    findings.push(of_watermark(dir, watermark, &end, &found_positions));
    findings.extend(expected.map(|head| of_head(head, &end, &found_positions)));
    for (part, at, keys) in places {
        findings.push(of_place(&part, at, keys, &end, &found_positions));
    }
    for (path, checkpoint) in checkpoints {
        findings.push(of_checkpoint(&path, &checkpoint, &end, &found_positions));
    }
    Ok(Inspected { findings, head: Some(end.position.into()) })
}

/// A temporary copy of a table: sled writes to what it opens.
struct TableCopy(PathBuf);

impl TableCopy {
    fn of(table: &Path) -> Result<Self, OpenError> {
        let path = env::temp_dir().join(format!("keyward-check-{}", std::process::id()));
        // An existing directory is not ours, and stays.
        DirBuilder::new().mode(0o700).create(&path).map_err(with_path(&path))?;
        let copy = Self(path);
        copy_files(table, &copy.0)?;
        Ok(copy)
    }
}

impl Drop for TableCopy {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the copy of the table");
        }
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<(), OpenError> {
    for entry in fs::read_dir(from).map_err(with_path(from))? {
        let entry = entry.map_err(with_path(from))?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().map_err(with_path(&from))?.is_dir() {
            DirBuilder::new().mode(0o700).create(&to).map_err(with_path(&to))?;
            copy_files(&from, &to)?;
        } else {
            // Not fs::copy, which would copy the read-only mode too.
            let copied = File::open(&from).and_then(|mut from| {
                let mut to = private_options().write(true).create_new(true).open(&to)?;
                io::copy(&mut from, &mut to)
            });
            copied.map_err(with_path(&from))?;
        }
    }
    Ok(())
}

fn of_head(head: Head, end: &End, found_positions: &HashSet<Position>) -> Finding {
    match head_fault(head, end, found_positions) {
        None => Finding::fine("head", format_args!("the journal leads through {head}")),
        Some(fault) => Finding::doubt("head", format_args!("the journal does not lead through {head}: {fault}")),
    }
}

fn of_journal(dir: &LockedDir, end: &End) -> Result<Finding, OpenError> {
    let segments = segment_numbers(&dir.journal())?.len();
    let (first, last) = (end.start.revision.next(), end.position.revision);
    let torn = end.segment.as_ref().filter(|segment| segment.torn > 0);
    let torn =
        torn.map_or("", |_| "; a crash tore a change that was never acknowledged, and the next start cuts it off");
    let span = match (end.changes_after(end.start.revision), &*end.gaps) {
        (0, _) => format!("nothing past revision {last}"),
        (_, []) => format!("revisions {first} to {last}"),
        (_, gaps) => spans(end.start.revision, gaps, last),
    };
    let log = end.log.map_or(String::new(), |log| format!("; line {}, log {log}", LineRecord::number_of(last)));
    let says = format_args!("{span}, in segments: {segments}; the chain holds{log}{torn}");
    Ok(Finding::fine(dir.journal().display(), says))
}

/// The revisions of each line that has any.
fn spans(start: Revision, gaps: &[(Revision, Revision)], last: Revision) -> String {
    let begins = [start].into_iter().chain(gaps.iter().map(|&(_, base)| base));
    let ends = gaps.iter().map(|&(ended, _)| ended).chain([last]);
    let lines = begins.zip(ends).filter(|(start, end)| start < end);
    let told: Vec<_> = lines.map(|(start, end)| format!("{} to {end}", start.next())).collect();
    format!("revisions {}", told.join(", "))
}

fn of_watermark(dir: &LockedDir, watermark: Acknowledged, end: &End, found_positions: &HashSet<Position>) -> Finding {
    let path = dir.watermark();
    if end.position.revision == Revision(0) && watermark.claimed().is_none_or(|at| at == Position::START) {
        return Finding::fine(path.display(), "nothing is acknowledged yet");
    }
    if let Some(what) = watermark.fault(end) {
        return Finding::doubt(
            path.display(),
            format_args!("it {what}, so nothing says how far the journal went; a start needs --accept-watermark-loss"),
        );
    }
    match watermark.claimed().unwrap_or(Position::START) {
        at if at.revision > end.position.revision => Finding::doubt(
            path.display(),
            format_args!(
                "revision {} was acknowledged, and the journal ends at {}",
                at.revision, end.position.revision
            ),
        ),
        at if found_positions.contains(&at) || at.revision < end.start.revision => {
            Finding::fine(path.display(), format_args!("revision {} was acknowledged", at.revision))
        }
        at => Finding::doubt(
            path.display(),
            format_args!("revision {} was acknowledged in another journal than this", at.revision),
        ),
    }
}

fn of_place(part: &str, at: Position, keys: u64, end: &End, found_positions: &HashSet<Position>) -> Finding {
    let Revision(revision) = at.revision;
    if found_positions.contains(&at) {
        let lacks = end.changes_after(at.revision);
        let behind = if lacks == 0 { String::new() } else { format!(", {lacks} changes before the journal's end") };
        return Finding::fine(part, format_args!("whole, {keys} keys at revision {revision}{behind}"));
    }
    match at.revision {
        past if past > end.position.revision => Finding::doubt(
            part,
            format_args!("it has revision {revision}, and the journal ends at {}", end.position.revision),
        ),
        before if before < end.start.revision => Finding::fine(
            part,
            format_args!("whole, {keys} keys at revision {revision}, before the journal's beginning"),
        ),
        _ => Finding::doubt(part, format_args!("it is of another journal, at revision {revision}")),
    }
}

fn of_checkpoint(path: &Path, checkpoint: &Checkpoint, end: &End, found_positions: &HashSet<Position>) -> Finding {
    let at = checkpoint.position.revision;
    if checkpoint.latest.revision > end.position.revision {
        let (latest, last) = (checkpoint.latest.revision, end.position.revision);
        return Finding::doubt(
            path.display(),
            format_args!("revision {latest} was acknowledged, and the journal ends at {last}"),
        );
    }
    if found_positions.contains(&checkpoint.position) && found_positions.contains(&checkpoint.latest) {
        return Finding::fine(path.display(), format_args!("whole, at revision {at}"));
    }
    Finding::fine(
        path.display(),
        format_args!("whole, at revision {at}, but not of this journal; the next start reads the table"),
    )
}
