//! The changes that were asked for under a request id in the last ten minutes, and so may be asked for again:
//! a view of the log.
//!
//! Times are those of the log: what was asked for at `t` is known to a request at any time before `t` plus
//! [`REMEMBERED_FOR`]. A log that has a time of the future, from a clock that was ahead, stands still until
//! then; so a change is also forgotten [`FORGOTTEN_AFTER_S`] after it was made, or read at a start.
//!
//! A change is looked up at its place in the log, so of two with one id one is made, and a crash forgets
//! nothing that is durable.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use hashbrown::HashTable;
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, RequestId};
use keyward_core::record::{KeyRecord, TenantRecord};
use tokio::time::Instant;

/// How long a change is remembered.
pub const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Seconds of the engine's uptime after which a change is forgotten whatever the log's time is: a minute more
/// than [`REMEMBERED_FOR`], for a clock that runs slow.
pub(super) const FORGOTTEN_AFTER_S: u32 = 660;
/// Changes that are remembered at most; one more with an id is refused. They take 72 bytes each, and their
/// index 5 to 10.
const REMEMBERED_MAX: usize = 4_000_000;
/// Changes that take power away and are remembered besides, when there are so many: a caller that fills the
/// table must not stop `keyward key disable`, which always has an id.
const REMEMBERED_RESERVE: usize = 16_384;
/// Both together.
pub const REMEMBERED_IN_ALL: usize = REMEMBERED_MAX + REMEMBERED_RESERVE;
/// Changes that a commit forgets at most. The committer must not pause: maintenance forgets the others.
const FORGOTTEN_BY_COMMIT_MAX: usize = 1_000;

/// Bytes of the hash by which a name and a payload are told apart. They stand for a caller's own choices: two
/// of other callers are never mixed up by chance.
const HASH_BYTES: usize = 16;

/// How a request can be recognised when it is asked for again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The caller's name for it.
    pub request_id: RequestId,
    /// The blake3 of what is asked for.
    pub payload_hash: [u8; 32],
}

/// How a request can be recognised, and the sealed part of its reply that is kept for that.
pub type RetryEntry = (Retry, Option<Vec<u8>>);

/// What a lookup of a request finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recalled {
    /// Nothing: it was not made in the last ten minutes.
    New,
    /// The same request was made, in the change of this revision.
    Made(Revision),
    /// The caller used the id for another request.
    Reused,
}

/// What a change came to, for a reply to its retry.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The records as they were then.
    pub records: Vec<Record>,
    /// The sealed part of the reply. `None`: there was none, or it has gone.
    pub sealed_reply: Option<Vec<u8>>,
}

impl Outcome {
    /// The key that it wrote.
    #[must_use]
    pub fn key(&self) -> Option<&KeyRecord> {
        self.records.iter().find_map(|record| if let Record::Key(key) = record { Some(&**key) } else { None })
    }

    /// The tenant that it wrote.
    #[must_use]
    pub fn tenant(&self) -> Option<&TenantRecord> {
        self.records.iter().find_map(|record| if let Record::Tenant(tenant) = record { Some(&**tenant) } else { None })
    }
}

/// A hash of something that a caller has chosen.
type Short = [u8; HASH_BYTES];

/// A remembered change. `P` is where an engine has what it came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remembered<P> {
    name: Short,
    payload: Short,
    time: UnixMillis,
    revision: Revision,
    /// The engine's uptime when it was made. 0: it was read at the start.
    since_s: u32,
    place: P,
}

impl<P> Remembered<P> {
    /// A change that an actor made at a time, before the engine was started.
    pub(super) fn new(actor: &ActorId, retry: &Retry, (revision, time): (Revision, UnixMillis), place: P) -> Self {
        let name = name_of(actor.as_str(), retry.request_id.as_str());
        Self { name, payload: short(&retry.payload_hash), time, revision, since_s: 0, place }
    }

    /// The same change, at the place that an engine has for its revision.
    pub(super) fn placed<Q>(self, place: impl FnOnce(P, Revision) -> Q) -> Remembered<Q> {
        let Self { name, payload, time, revision, since_s, place: before } = self;
        Remembered { name, payload, time, revision, since_s, place: place(before, revision) }
    }

    /// The same change, made at an uptime.
    pub(super) fn since(self, since_s: u32) -> Self {
        Self { since_s, ..self }
    }

    fn is_remembered(&self, now: Moment) -> bool {
        now.remembers(self.time, self.since_s)
    }

    /// Whether a request of the same name is this one or another. `None`: it is past its time.
    fn recalled(&self, retry: &Retry, now: Moment) -> Option<Recalled> {
        self.is_remembered(now).then(|| match self.payload == short(&retry.payload_hash) {
            true => Recalled::Made(self.revision),
            false => Recalled::Reused,
        })
    }
}

/// A time, by the log and by the engine's uptime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// The time of a change that is made now.
    pub(super) log: UnixMillis,
    /// Seconds since the engine was started.
    pub(super) uptime_s: u32,
}

impl Moment {
    /// Whether a change of this time, made at this uptime, is remembered now.
    pub(super) fn remembers(self, time: UnixMillis, since_s: u32) -> bool {
        is_remembered(time, self.log) && self.uptime_s.saturating_sub(since_s) < FORGOTTEN_AFTER_S
    }
}

/// Tells how long an engine has run, by a clock that is never set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uptime(Instant);

impl Uptime {
    /// Of an engine that is started now.
    pub(super) fn starting_now() -> Self {
        Self(Instant::now())
    }

    /// So many seconds.
    pub(super) fn seconds(self) -> u32 {
        u32::try_from(self.0.elapsed().as_secs()).unwrap_or(u32::MAX) // 136 years
    }

    /// Now, at a time of the log.
    pub(super) fn at(self, log: UnixMillis) -> Moment {
        Moment { log, uptime_s: self.seconds() }
    }
}

/// Whether a change of this time is remembered at another one.
#[must_use]
pub fn is_remembered(time: UnixMillis, now: UnixMillis) -> bool {
    now.0.saturating_sub(time.0) < i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX)
}

/// The remembered changes, in the order of the log.
#[derive(Debug)]
pub(super) struct Retries<P> {
    changes: VecDeque<Remembered<P>>,
    /// The number of the first one. Numbers wrap around, long after there are so many.
    first: u32,
    /// The number of the newest change of a name.
    by_name: HashTable<u32>,
    /// Drawn by the process: callers choose names, and must not be able to make them collide.
    hashes: RandomState,
    max: usize,
    reserve: usize,
}

impl<P> Default for Retries<P> {
    fn default() -> Self {
        Self::of_at_most(REMEMBERED_MAX, REMEMBERED_RESERVE)
    }
}

impl<P> Retries<P> {
    /// Of at most so many changes, and so many more that take power away.
    pub(super) fn of_at_most(max: usize, reserve: usize) -> Self {
        let (changes, by_name, hashes) = (VecDeque::new(), HashTable::new(), RandomState::new());
        Self { changes, first: 0, by_name, hashes, max, reserve }
    }

    /// What an actor's request is at a time.
    pub(super) fn recall(&self, actor: &ActorId, retry: &Retry, now: Moment) -> Recalled {
        let name = name_of(actor.as_str(), retry.request_id.as_str());
        let found = self.number_of(&name).and_then(|number| self.changes.get(self.index_of(number)));
        found.and_then(|change| change.recalled(retry, now)).unwrap_or(Recalled::New)
    }

    /// Whether one more can be remembered at a time, besides so many that are not there yet.
    pub(super) fn has_room(&mut self, more: usize, takes_power: bool, now: Moment) -> bool {
        self.forget(FORGOTTEN_BY_COMMIT_MAX, now);
        self.changes.len() + more < self.max + if takes_power { self.reserve } else { 0 }
    }

    /// Remembers a change, which comes after all others.
    pub(super) fn remember(&mut self, change: Remembered<P>) {
        let Self { changes, first, by_name, hashes, .. } = self;
        let name_of = |number: &u32| changes[number.wrapping_sub(*first) as usize].name;
        let hash = hashes.hash_one(change.name);
        if let Ok(entry) = by_name.find_entry(hash, |number| name_of(number) == change.name) {
            // It is past its time, and has not gone yet.
            entry.remove();
        }
        // Before the new one has its number: it has no place yet, by which it could be hashed again.
        by_name.reserve(1, |number| hashes.hash_one(name_of(number)));
        let number = first.wrapping_add(changes.len() as u32); // far below `u32::MAX`
        changes.push_back(change);
        by_name.insert_unique(hash, number, |_| hash);
    }

    /// Where an engine has what a change came to.
    pub(super) fn place_of(&self, revision: Revision) -> Option<&P> {
        let at = self.changes.binary_search_by_key(&revision, |change| change.revision).ok()?;
        self.changes.get(at).map(|change| &change.place)
    }

    /// Where an engine has the oldest change that is remembered at a time.
    pub(super) fn oldest(&self, now: Moment) -> Option<&P> {
        self.changes.iter().find(|change| change.is_remembered(now)).map(|change| &change.place)
    }

    /// Forgets what is past its time, but not more than so many. Returns whether that is all.
    pub(super) fn forget(&mut self, at_most: usize, now: Moment) -> bool {
        for _ in 0..at_most {
            let Some(oldest) = self.changes.front().filter(|oldest| !oldest.is_remembered(now)) else {
                self.shrink();
                return true;
            };
            let hash = self.hashes.hash_one(oldest.name);
            let first = self.first;
            if let Ok(entry) = self.by_name.find_entry(hash, |&number| number == first) {
                entry.remove();
            }
            self.changes.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        false
    }

    /// Gives back the memory that a rush has taken.
    fn shrink(&mut self) {
        if self.changes.len() < self.changes.capacity() / 4 {
            let Self { changes, first, by_name, hashes, .. } = self;
            changes.shrink_to(changes.len() * 2);
            let name_of = |number: &u32| changes[number.wrapping_sub(*first) as usize].name;
            by_name.shrink_to(changes.len() * 2, |number| hashes.hash_one(name_of(number)));
        }
    }

    fn number_of(&self, name: &Short) -> Option<u32> {
        let is_it = |&number: &u32| self.changes[self.index_of(number)].name == *name;
        self.by_name.find(self.hashes.hash_one(name), is_it).copied()
    }

    fn index_of(&self, number: u32) -> usize {
        number.wrapping_sub(self.first) as usize
    }
}

/// The same change twice in one group of commits: those before it that are not in the log yet.
#[derive(Debug, Default)]
pub(super) struct Staged(Vec<Remembered<()>>);

impl Staged {
    /// What an actor's request is to those before it. A group has 256 commits at most.
    pub(super) fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled {
        let name = name_of(actor.as_str(), retry.request_id.as_str());
        let found = self.0.iter().rev().find(|change| change.name == name);
        let now = Moment { log: now, uptime_s: 0 };
        found.and_then(|change| change.recalled(retry, now)).unwrap_or(Recalled::New)
    }

    /// Adds one.
    pub(super) fn push(&mut self, change: Remembered<()>) {
        self.0.push(change);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Those that were staged, each with its place.
    pub(super) fn placed<P>(self, mut place: impl FnMut(Revision) -> P) -> impl Iterator<Item = Remembered<P>> {
        self.0.into_iter().map(move |change| change.placed(|(), revision| place(revision)))
    }
}

fn name_of(actor: &str, request_id: &str) -> Short {
    // Neither has a byte 0.
    short(
        blake3::Hasher::new().update(actor.as_bytes()).update(&[0]).update(request_id.as_bytes()).finalize().as_bytes(),
    )
}

fn short(hash: &[u8; 32]) -> Short {
    let mut short = [0; HASH_BYTES];
    short.copy_from_slice(&hash[..HASH_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES_10: i64 = 600_000;

    fn at(log: i64) -> Moment {
        Moment { log: UnixMillis(log), uptime_s: 0 }
    }

    fn actor(name: &str) -> ActorId {
        ActorId::parse(name).unwrap()
    }

    fn retry(id: u64, payload: u8) -> Retry {
        Retry { request_id: RequestId::parse(&format!("r{id}")).unwrap(), payload_hash: [payload; 32] }
    }

    fn remember(retries: &mut Retries<()>, id: u64, (revision, time): (u64, i64)) {
        retries.remember(Remembered::new(&actor("one"), &retry(id, 1), (Revision(revision), UnixMillis(time)), ()));
    }

    #[test]
    fn a_request_is_known_for_ten_minutes_to_the_millisecond() {
        let mut retries = Retries::default();
        remember(&mut retries, 1, (7, 1_000));
        let known = |retries: &Retries<()>, time| retries.recall(&actor("one"), &retry(1, 1), at(time));
        assert_eq!(known(&retries, 1_000 + MINUTES_10 - 1), Recalled::Made(Revision(7)));
        assert_eq!(known(&retries, 1_000 + MINUTES_10), Recalled::New);
        assert_eq!(retries.recall(&actor("one"), &retry(1, 2), at(1_000)), Recalled::Reused);
        assert_eq!(retries.recall(&actor("two"), &retry(1, 1), at(1_000)), Recalled::New);
        assert_eq!(retries.recall(&actor("one"), &retry(2, 1), at(1_000)), Recalled::New);
    }

    #[test]
    fn an_id_that_was_forgotten_is_remembered_anew_however_the_times_of_changes_lie() {
        let mut retries = Retries::default();
        // A change whose time is earlier than that of the one before it.
        remember(&mut retries, 1, (1, 5_000));
        remember(&mut retries, 2, (2, 0));
        let now = at(MINUTES_10 + 1_000);
        assert_eq!(retries.recall(&actor("one"), &retry(2, 1), now), Recalled::New);
        assert!(retries.has_room(0, false, now));
        remember(&mut retries, 2, (3, now.log.0));
        assert_eq!(retries.recall(&actor("one"), &retry(2, 1), now), Recalled::Made(Revision(3)));
        assert!(retries.has_room(0, false, at(MINUTES_10 + 5_000)));
        assert_eq!(retries.changes.len(), 1);
        assert_eq!(retries.recall(&actor("one"), &retry(2, 1), now), Recalled::Made(Revision(3)));
        assert_eq!(retries.by_name.len(), 1);
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered_and_time_makes_room() {
        let mut retries = Retries::of_at_most(1_000, 0);
        for id in 0..1_000 {
            assert!(retries.has_room(0, false, at(0)));
            remember(&mut retries, id, (id + 1, i64::try_from(id).unwrap()));
        }
        assert!(!retries.has_room(0, false, at(MINUTES_10 - 1)));
        assert!(retries.has_room(0, false, at(MINUTES_10)));
        assert!(!retries.has_room(1, false, at(MINUTES_10)), "one that is not there yet counts");
        for id in 1..1_000 {
            let recalled = retries.recall(&actor("one"), &retry(id, 1), at(MINUTES_10));
            assert_eq!(recalled, Recalled::Made(Revision(id + 1)));
            assert!(retries.place_of(Revision(id + 1)).is_some());
        }
        assert!(retries.has_room(0, false, at(2 * MINUTES_10)));
        assert_eq!((retries.changes.len(), retries.by_name.len()), (0, 0));
        assert!(retries.changes.capacity() < 1_000, "{}", retries.changes.capacity());
    }

    #[test]
    fn a_change_whose_time_is_far_ahead_is_forgotten_by_the_uptime() {
        let mut retries = Retries::default();
        let ahead = UnixMillis(1_000_000_000_000_000);
        for (id, since_s) in [(1, 0), (2, 100)] {
            let change = Remembered::new(&actor("one"), &retry(id, 1), (Revision(id), ahead), id);
            retries.remember(change.since(since_s));
        }
        // The log's time stays.
        let after = |uptime_s| Moment { log: ahead, uptime_s };
        for (uptime_s, first, second, oldest) in [
            (FORGOTTEN_AFTER_S - 1, Recalled::Made(Revision(1)), Recalled::Made(Revision(2)), Some(&1)),
            (FORGOTTEN_AFTER_S, Recalled::New, Recalled::Made(Revision(2)), Some(&2)),
            (FORGOTTEN_AFTER_S + 99, Recalled::New, Recalled::Made(Revision(2)), Some(&2)),
            (FORGOTTEN_AFTER_S + 100, Recalled::New, Recalled::New, None),
        ] {
            let now = after(uptime_s);
            assert_eq!(retries.recall(&actor("one"), &retry(1, 1), now), first);
            assert_eq!(retries.recall(&actor("one"), &retry(2, 1), now), second);
            assert_eq!(retries.oldest(now), oldest);
        }
        assert_eq!(retries.changes.len(), 2);
        assert!(retries.has_room(0, false, after(FORGOTTEN_AFTER_S + 100)));
        assert_eq!((retries.changes.len(), retries.by_name.len()), (0, 0));
    }
}
