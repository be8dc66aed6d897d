//! Reads the journal for a salvage: past damage, and trusting nothing that can be made without the key.
//!
//! A frame is *genuine* if its entries lead from some position to the chain that it claims, because nobody
//! can compute that chain without the key. The position may come from the end of the previous frame, the
//! segment's header, the 32 bytes before the frame, which are the chain of a damaged frame, or a sealed file.
//! Consecutive genuine frames are a *run*.
//!
//! That is not enough: the log before a restore has the same key and the same revisions as the one after it.
//! So everything that counts must be consistent: see [`judge`].

use std::cmp::{Ordering, Reverse};
use std::fs;
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;

use crate::store::local::error::OpenError;
use crate::store::local::journal::frame::{ALIGNMENT_BYTES, Frame};
use crate::store::local::journal::scan::{segment_numbers, segment_path};
use crate::store::local::journal::segment::{CHAIN_AT, HEADER_BYTES, HEADER_BYTES_V1, SealKey, SegmentHeader};
use crate::store::local::journal::{Chain, ChainKey, Position};
use crate::store::record::pb;
use crate::util::files::with_path;

const CHAIN_BYTES: usize = 32;
/// Changes get their time before their place in the log, so the later of two neighbours may seem this much
/// earlier; and clocks are adjusted. In milliseconds.
const TIME_SLACK_MS: i64 = 60_000;

/// A position that a sealed file proves.
#[derive(Clone, Debug)]
pub(super) struct Anchor {
    pub(super) path: PathBuf,
    pub(super) position: Position,
    /// When the file was made, or its last change: it holds nothing that was made later.
    pub(super) time: UnixMillis,
}

/// Consecutive frames of one segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameRange {
    pub(super) segment: u64,
    from: usize,
    to: usize,
}

/// How a run is linked to this log, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tie {
    /// Only by its place: after a damaged frame, or after the header of a segment whose predecessor is
    /// missing or damaged.
    None,
    /// It begins where every log begins.
    Beginning,
    /// It contains a position that a sealed file proves.
    Anchor,
}

/// Consecutive genuine frames.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) start: Position,
    pub(super) end: Position,
    pub(super) tie: Tie,
    pub(super) ranges: Vec<FrameRange>,
    /// The anchors that it contains.
    found_positions: Vec<usize>,
    first_time: UnixMillis,
    last_time: UnixMillis,
}

/// The contents of the journal.
#[derive(Debug, Default)]
pub(super) struct Frames {
    pub(super) runs: Vec<Run>,
    /// Frames with a valid checksum that are not genuine.
    pub(super) unverified: Vec<FrameRange>,
    /// The highest revision claimed anywhere in the journal, true or not.
    pub(super) claimed: Revision,
    /// The highest revision that a sealed header proves.
    pub(super) proven: Revision,
    /// The revisions between lines, by sealed headers, in order: not the first, up to the second.
    pub(super) gaps: Vec<(Revision, Revision)>,
}

/// Reads every frame, at every possible offset.
pub(super) fn read(journal: &Path, key: &ChainKey, anchors: &[Anchor]) -> Result<Frames, OpenError> {
    let mut frames = Frames::default();
    let seals = SealKey::of(key);
    for segment in segment_numbers(journal)? {
        let path = segment_path(journal, segment);
        let bytes = fs::read(&path).map_err(with_path(&path))?;
        frames.read_header(&bytes, key, &seals);
        frames.read_segment(segment, &bytes, key, anchors);
    }
    Ok(frames)
}

impl Frames {
    fn read_header(&mut self, bytes: &[u8], key: &ChainKey, seals: &SealKey) {
        let Ok(header) = SegmentHeader::read(bytes, seals) else {
            // Also of a header whose seal is damaged.
            self.claim(SegmentHeader::read_unsealed(bytes).map_or(Revision(0), |header| header.start.revision));
            return;
        };
        let begins = header.start.revision;
        if header.log.is_none() {
            return self.claim(begins);
        }
        self.proven = self.proven.max(begins);
        if let Some(ended) = header.ended {
            self.gaps.push((ended, begins));
            // What comes before the line and what comes in it are one run.
            if let Some(run) = self.runs.last_mut().filter(|run| header.follows(&run.end, None, key)) {
                run.end = header.start;
            }
        }
    }

    fn read_segment(&mut self, segment: u64, bytes: &[u8], key: &ChainKey, anchors: &[Anchor]) {
        // A damaged header may be of either version: no frame begins before this.
        let mut at = HEADER_BYTES_V1;
        while at < bytes.len() {
            let Some(frame) = Frame::read(&bytes[at..]) else {
                at += ALIGNMENT_BYTES;
                continue;
            };
            self.claim(frame.claimed_end().revision);
            let range = FrameRange { segment, from: at, to: at + frame.bytes };
            match self.genuine(&frame, at, bytes, key, anchors) {
                Some(link) => {
                    self.add(link, range);
                    at += frame.bytes;
                }
                None => {
                    self.unverified.push(range);
                    // It may claim a length that hides other frames.
                    at += ALIGNMENT_BYTES;
                }
            }
        }
    }

    fn claim(&mut self, revision: Revision) {
        self.claimed = self.claimed.max(revision);
    }

    /// Finds a position that a frame follows, if there is one.
    fn genuine(&self, frame: &Frame<'_>, at: usize, bytes: &[u8], key: &ChainKey, anchors: &[Anchor]) -> Option<Link> {
        let revision = Revision(frame.first.0.checked_sub(1)?);
        let known = self.runs.last().map(|run| run.end).into_iter().chain(anchors.iter().map(|anchor| anchor.position));
        let known = known.chain([Position::START]).filter(|position| position.revision == revision);
        let written = written_before(bytes, at).map(|chain| Position { revision, chain });
        known.chain(written).find_map(|start| Link::from(start, frame, key, anchors))
    }

    fn add(&mut self, link: Link, range: FrameRange) {
        if let Some(run) = self.runs.last_mut().filter(|run| run.end == link.start) {
            run.go_on(link, range);
        } else {
            self.runs.push(Run {
                start: link.start,
                end: link.end,
                tie: link.tie(),
                ranges: vec![range],
                found_positions: link.found_positions,
                first_time: link.last_time,
                last_time: link.last_time,
            });
        }
    }
}

/// The bytes where the chain before a frame may be. Anyone who can write the file can choose them, but cannot
/// compute the chain that follows from them.
fn written_before(bytes: &[u8], at: usize) -> impl Iterator<Item = Chain> {
    let chain_at = |from: usize| bytes.get(from..)?.first_chunk().copied().map(Chain);
    let header = if at == HEADER_BYTES_V1 || at == HEADER_BYTES { chain_at(CHAIN_AT) } else { None };
    // Padding zeros may separate a frame's chain from the next frame; and a chain may end in zeros.
    let zeros = bytes[..at].iter().rev().take(ALIGNMENT_BYTES - 1).take_while(|byte| **byte == 0).count();
    let ends = (0..=zeros).map(move |zeros| at - zeros);
    let before = ends.filter_map(move |end| chain_at(end.checked_sub(CHAIN_BYTES)?));
    header.into_iter().chain(before)
}

/// A genuine frame: its start, its end, and the anchors that it contains.
struct Link {
    start: Position,
    end: Position,
    found_positions: Vec<usize>,
    last_time: UnixMillis,
}

impl Link {
    fn from(start: Position, frame: &Frame<'_>, key: &ChainKey, anchors: &[Anchor]) -> Option<Self> {
        let mut found_positions = Vec::new();
        let mut on_position =
            |at: Position| found_positions.extend((0..anchors.len()).filter(|&nth| anchors[nth].position == at));
        on_position(start);
        let (entries, end) = frame.verify_each::<pb::JournalEntry>(&start, key, on_position).ok()?;
        let last_time = entries.iter().map(|entry| UnixMillis(entry.time_ms)).max()?;
        Some(Self { start, end, found_positions, last_time })
    }

    fn tie(&self) -> Tie {
        match () {
            () if !self.found_positions.is_empty() => Tie::Anchor,
            () if self.start == Position::START => Tie::Beginning,
            () => Tie::None,
        }
    }
}

impl Run {
    fn go_on(&mut self, link: Link, range: FrameRange) {
        self.tie = self.tie.max(link.tie());
        self.end = link.end;
        self.last_time = self.last_time.max(link.last_time);
        self.found_positions.extend(link.found_positions);
        match self.ranges.last_mut() {
            Some(last) if last.segment == range.segment && last.to == range.from => last.to = range.to,
            _ => self.ranges.push(range),
        }
    }

    /// Whether a run and an anchor can be of one log: the run contains the anchor, ends before it, or begins
    /// after it.
    fn allows(&self, nth: usize, anchor: &Anchor) -> bool {
        let at = anchor.position.revision;
        self.found_positions.contains(&nth)
            || (self.end.revision < at && can_come_first(self.last_time, anchor.time))
            || (at < self.start.revision && can_come_first(anchor.time, self.first_time))
    }

    /// Whether another run can come later in the same log, with changes between them that are gone.
    fn lets_follow(&self, later: &Self) -> bool {
        let apart = self.end.revision < later.start.revision || self.end == later.start;
        apart && can_come_first(self.last_time, later.first_time)
    }
}

impl Anchor {
    /// Whether two anchors can be of one log.
    fn allows(&self, other: &Self) -> bool {
        match self.position.revision.cmp(&other.position.revision) {
            Ordering::Less => can_come_first(self.time, other.time),
            Ordering::Equal => self.position == other.position,
            Ordering::Greater => can_come_first(other.time, self.time),
        }
    }
}

fn can_come_first(first: UnixMillis, second: UnixMillis) -> bool {
    first.0 <= second.0.saturating_add(TIME_SLACK_MS)
}

/// Which runs and anchors are of one log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Judged {
    /// For each run, whether it counts.
    pub(super) runs: Vec<bool>,
    /// For each anchor, whether it counts.
    pub(super) anchors: Vec<bool>,
}

/// Decides which runs, given in the order of the journal, and which anchors are of one log. Of two that
/// exclude each other, the younger counts: a log that continues after a restore is younger than the log
/// before it, and nobody can make genuine data younger. Of two of the same age, the more strongly linked one
/// counts.
pub(super) fn judge(runs: &[Run], anchors: &[Anchor]) -> Judged {
    let mut judged = Judged { runs: vec![false; runs.len()], anchors: vec![false; anchors.len()] };
    let mut order: Vec<_> = (0..anchors.len()).map(Item::Anchor).chain((0..runs.len()).map(Item::Run)).collect();
    order.sort_by_key(|item| match *item {
        Item::Anchor(nth) => (Reverse(anchors[nth].time), Reverse(Tie::Anchor)),
        Item::Run(nth) => (Reverse(runs[nth].last_time), Reverse(runs[nth].tie)),
    });
    for item in order {
        let mut counting_runs = (0..runs.len()).filter(|&nth| judged.runs[nth]);
        let mut counting_anchors = (0..anchors.len()).filter(|&nth| judged.anchors[nth]);
        match item {
            Item::Anchor(nth) => {
                let anchor = &anchors[nth];
                judged.anchors[nth] = counting_anchors.all(|other| anchors[other].allows(anchor))
                    && counting_runs.all(|run| runs[run].allows(nth, anchor));
            }
            Item::Run(nth) => {
                let run = &runs[nth];
                let fits = |other: usize| match other < nth {
                    true => runs[other].lets_follow(run),
                    false => run.lets_follow(&runs[other]),
                };
                judged.runs[nth] =
                    counting_anchors.all(|anchor| run.allows(anchor, &anchors[anchor])) && counting_runs.all(fits);
            }
        }
    }
    judged
}

/// A run or an anchor, by its index.
#[derive(Clone, Copy)]
enum Item {
    Anchor(usize),
    Run(usize),
}

/// Reads the frames of a range again.
pub(super) fn entries_of(
    journal: &Path,
    ranges: &[FrameRange],
    mut visit: impl FnMut(pb::JournalEntry),
) -> Result<(), OpenError> {
    let (mut segment, mut bytes) = (None, Vec::new());
    for range in ranges {
        if segment != Some(range.segment) {
            let path = segment_path(journal, range.segment);
            bytes = fs::read(&path).map_err(with_path(&path))?;
            segment = Some(range.segment);
        }
        let mut at = range.from;
        while at < range.to
            && let Some(frame) = bytes.get(at..).and_then(Frame::read)
        {
            frame.entries::<pb::JournalEntry>().map_while(Result::ok).for_each(|(entry, _)| visit(entry));
            at += frame.bytes;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    /// A position at a revision of a line; below 100 all lines are one.
    fn at(line: u8, revision: u64) -> Position {
        let line = if revision < 100 { 0 } else { line };
        Position {
            revision: Revision(revision),
            chain: Chain([line.wrapping_mul(31).wrapping_add(revision as u8); 32]),
        }
    }

    fn run(line: u8, revisions: std::ops::RangeInclusive<u64>, minutes: [i64; 2]) -> Run {
        let start = at(line, revisions.start() - 1);
        Run {
            start,
            end: at(line, *revisions.end()),
            tie: if start.revision == Revision(0) { Tie::Beginning } else { Tie::None },
            ranges: vec![],
            found_positions: vec![],
            first_time: UnixMillis(minutes[0] * MINUTE),
            last_time: UnixMillis(minutes[1] * MINUTE),
        }
    }

    fn anchor(line: u8, revision: u64, minutes: i64) -> Anchor {
        Anchor { path: PathBuf::new(), position: at(line, revision), time: UnixMillis(minutes * MINUTE) }
    }

    fn judged(runs: &[Run], anchors: &[Anchor]) -> (Vec<bool>, Vec<bool>) {
        let Judged { runs, anchors } = judge(runs, anchors);
        (runs, anchors)
    }

    #[test]
    fn what_is_left_of_one_log_counts_with_all_its_gaps() {
        let runs = [run(1, 1..=50, [0, 10]), run(1, 60..=119, [12, 20]), run(1, 121..=130, [20, 30])];
        let anchors = [anchor(1, 20, 4), anchor(1, 140, 31)];
        let found_positions = Run { found_positions: vec![0], ..runs[0].clone() };
        let runs = [found_positions, runs[1].clone(), runs[2].clone()];
        assert_eq!(judged(&runs, &anchors), (vec![true; 3], vec![true; 2]));
    }

    #[test]
    fn of_two_lines_the_younger_counts_wherever_the_other_was_put() {
        let newer = run(1, 1..=120, [0, 90]);
        for older in [run(2, 101..=103, [50, 55]), run(2, 119..=130, [50, 55]), run(2, 125..=130, [50, 55])] {
            assert_eq!(judged(&[newer.clone(), older.clone()], &[]).0, [true, false], "behind it: {older:?}");
            assert_eq!(judged(&[older.clone(), newer.clone()], &[]).0, [false, true], "before it: {older:?}");
        }
        // Right behind it, and of the revision that comes next: of what it follows, the chain tells.
        assert_eq!(judged(&[newer.clone(), run(2, 121..=121, [90, 90])], &[]).0, [true, false]);
        // What was put in place of a gap, and does not lead to what comes after it.
        let parts = [run(2, 1..=110, [0, 55]), run(1, 111..=120, [85, 90])];
        assert_eq!(judged(&parts, &[]).0, [false, true]);
    }

    #[test]
    fn a_snapshot_of_an_older_line_does_not_count() {
        let newer = run(1, 1..=120, [0, 90]);
        assert_eq!(judged(std::slice::from_ref(&newer), &[anchor(2, 110, 55)]), (vec![true], vec![false]));
        // Also past the end of the log: what is in it was there before the log's last changes.
        assert_eq!(judged(std::slice::from_ref(&newer), &[anchor(2, 150, 55)]), (vec![true], vec![false]));
        assert_eq!(judged(&[], &[anchor(2, 150, 55), anchor(1, 120, 90)]).1, [false, true]);
        assert_eq!(judged(&[], &[anchor(2, 120, 55), anchor(1, 120, 90)]).1, [false, true]);
        // And it does not vouch for changes of its own line.
        let older = Run { found_positions: vec![0], tie: Tie::Anchor, ..run(2, 105..=115, [50, 54]) };
        assert_eq!(judged(&[newer, older], &[anchor(2, 110, 55)]), (vec![true, false], vec![false]));
    }

    #[test]
    fn a_change_that_is_there_twice_counts_once() {
        let runs = [run(1, 1..=50, [0, 10]), run(1, 20..=30, [4, 6])];
        assert_eq!(judged(&runs, &[]).0, [true, false]);
    }

    #[test]
    fn the_chain_before_a_frame_is_looked_for_wherever_zeros_may_hide_its_end() {
        let mut bytes = vec![9; HEADER_BYTES + 48];
        let at = bytes.len();
        bytes[at - 5..].fill(0);
        let found: Vec<_> = written_before(&bytes, at).collect();
        assert_eq!(found.len(), 6);
        assert!(found.iter().any(|chain| chain.0[27..] == [0; 5]), "a chain may end in zeros");
        assert!(found.iter().any(|chain| chain.0 == [9; 32]), "and zeros may follow it");
        for header_bytes in [HEADER_BYTES_V1, HEADER_BYTES] {
            assert_eq!(written_before(&bytes, header_bytes).next().unwrap().0, [9; 32], "the header's comes first");
        }
        assert_eq!(written_before(&[], 0).count(), 0);
    }
}
