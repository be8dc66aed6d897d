//! What was asked for under a request id lately, and what it came to: in the journal, and of what was sealed
//! in `replies`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, RequestId};
use parking_lot::Mutex;

use super::checkpoint::maintenance::RememberedChanges;
use super::error::OpenError;
use super::journal::requests::{FramePlace, RequestOf, entry_at, read_back};
use super::recovery::rebuild::rows_of;
use super::replies::{Replies, ReplyHash, ReplyPlace, hash_of};
use crate::store::retries::{Remembered, Retries, Staged, Uptime};
use crate::store::{Commit, Outcome, REMEMBERED_FOR, REMEMBERED_IN_ALL, Recalled, Retry, StoreError, is_remembered};

/// After a sealed reply could not be kept, changes that have one are refused for so long, one by one.
pub(super) const SEALED_REFUSED_FOR: Duration = Duration::from_secs(2);

/// Where a change is in the journal, and its sealed reply.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Place {
    frame: FramePlace,
    reply: Option<ReplyPlace>,
}

/// The requests of the last ten minutes.
#[derive(Debug)]
pub(super) struct RetryLog {
    journal: PathBuf,
    retries: Mutex<Retries<Place>>,
    uptime: Uptime,
    replies: Replies,
    /// When sealed replies could not be kept last.
    replies_failed: Mutex<Option<Instant>>,
}

/// The part of a group of commits that is not in the log yet.
#[derive(Debug)]
pub(super) struct StagedRequests {
    requests: Staged,
    /// The sealed replies of some of them, with their revisions.
    sealed: Vec<(Revision, Vec<u8>)>,
    sealed_bytes: usize,
    /// The latest time of one that has a sealed reply.
    latest: UnixMillis,
    #[cfg(feature = "fault-end-before-answer")]
    names: Vec<RequestId>,
}

impl Default for StagedRequests {
    fn default() -> Self {
        Self {
            requests: Staged::default(),
            sealed: vec![],
            sealed_bytes: 0,
            latest: UnixMillis::MIN,
            #[cfg(feature = "fault-end-before-answer")]
            names: vec![],
        }
    }
}

impl RetryLog {
    /// Reads what a journal that was checked has of it up to a revision, and is remembered at a time.
    pub(super) fn open(
        journal: PathBuf,
        replies: &Path,
        (until, now): (Revision, UnixMillis),
    ) -> Result<Self, OpenError> {
        let for_ms = i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX);
        let since = UnixMillis(now.0.saturating_sub(for_ms));
        let mut sealed: HashMap<ReplyHash, (UnixMillis, Revision)> = HashMap::new();
        // What no caller can have written is none.
        let read = |entry: RequestOf, frame| {
            let time = UnixMillis(entry.time_ms);
            let change = is_remembered(time, now).then(|| read_request(&entry, frame)).flatten()?;
            if let Ok(hash) = entry.sealed_reply_hash.as_slice().try_into() {
                sealed.insert(hash, (time, Revision(entry.revision)));
            }
            Some(change)
        };
        let changes = read_back(&journal, until, (since, REMEMBERED_IN_ALL), read)?;
        let (replies, places) = Replies::open(replies, |hash| sealed.get(hash).map(|(time, _)| *time));
        let places: HashMap<Revision, ReplyPlace> =
            places.iter().filter_map(|(hash, place)| Some((sealed.get(hash)?.1, *place))).collect();
        drop(sealed);
        let mut retries = Retries::default();
        for change in changes {
            let place = |frame, revision| Place { frame, reply: places.get(&revision).copied() };
            retries.remember(change.placed(place));
        }
        let (retries, uptime) = (Mutex::new(retries), Uptime::starting_now());
        Ok(Self { journal, retries, uptime, replies, replies_failed: Mutex::default() })
    }

    /// What a caller's request is at a time, among all that is durable.
    pub(super) fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled {
        self.retries.lock().recall(actor, retry, self.uptime.at(now))
    }

    /// What a change came to. `None`: it is not remembered any more, or its segment has gone since.
    pub(super) fn outcome(&self, revision: Revision) -> Result<Option<Outcome>, StoreError> {
        let Some(place) = self.retries.lock().place_of(revision).copied() else { return Ok(None) };
        let entry = entry_at(&self.journal, place.frame, revision);
        let Some(entry) = entry.map_err(|error| StoreError::Engine(error.to_string()))? else { return Ok(None) };
        let records = rows_of(&entry)?.into_iter().map(|row| row.record).collect();
        let sealed_reply = place.reply.and_then(|place| self.replies.read(place, &entry.sealed_reply_hash));
        Ok(Some(Outcome { records, sealed_reply }))
    }

    /// Looks a request up, also among those of its own group, and checks that it can be remembered.
    pub(super) fn recall_staged(&self, staged: &StagedRequests, commit: &Commit) -> Result<Recalled, NotRemembered> {
        let Some((retry, sealed)) = &commit.retry else { return Ok(Recalled::New) };
        let (actor, now) = (&commit.actor, commit.time);
        let (mut retries, moment) = (self.retries.lock(), self.uptime.at(now));
        let recalled = match staged.requests.recall(actor, retry, now) {
            Recalled::New => retries.recall(actor, retry, moment),
            recalled => recalled,
        };
        if recalled == Recalled::New {
            let has_room = retries.has_room(staged.requests.len(), commit.takes_power(), moment);
            let sealed_bytes = sealed.as_ref().map_or(0, Vec::len);
            let has_space =
                sealed.is_none() || self.replies.has_room(staged.sealed.len() + 1, staged.sealed_bytes + sealed_bytes);
            if !has_room || !has_space {
                return Err(NotRemembered::TooMany);
            }
            let failed_lately = || self.replies_failed.lock().is_some_and(|at| at.elapsed() < SEALED_REFUSED_FOR);
            if sealed.is_some() && failed_lately() {
                return Err(NotRemembered::NotKept);
            }
        }
        Ok(recalled)
    }

    /// Makes the sealed replies of a group durable: to be called before its entries are. Returns where they
    /// are.
    ///
    /// # Errors
    /// When the disk fails or is full. None of them is kept then, and for [`SEALED_REFUSED_FOR`] no commit
    /// with one is taken: each would make a whole group fail.
    pub(super) fn keep_replies(&self, staged: &mut StagedRequests) -> io::Result<HashMap<Revision, ReplyPlace>> {
        if staged.sealed.is_empty() {
            return Ok(HashMap::new());
        }
        let (revisions, replies): (Vec<_>, Vec<_>) = std::mem::take(&mut staged.sealed).into_iter().unzip();
        let places = self.replies.append(&replies, self.uptime.at(staged.latest));
        *self.replies_failed.lock() = places.is_err().then(Instant::now);
        Ok(revisions.into_iter().zip(places?).collect())
    }

    /// Remembers the requests of a group that is durable.
    pub(super) fn remember(
        &self,
        staged: StagedRequests,
        frame: Option<FramePlace>,
        replies: &HashMap<Revision, ReplyPlace>,
    ) {
        // A journal that no place can name is longer than any disk.
        let Some(frame) = frame.filter(|_| staged.requests.len() > 0) else { return };
        let mut retries = self.retries.lock();
        let place = |revision| Place { frame, reply: replies.get(&revision).copied() };
        let since_s = self.uptime.seconds();
        staged.requests.placed(place).for_each(|change| retries.remember(change.since(since_s)));
    }
}

/// Why a request cannot be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotRemembered {
    /// As many are as may be.
    TooMany,
    /// A sealed reply could not be kept lately.
    NotKept,
}

/// Changes that maintenance forgets at most before it lets others look.
const FORGOTTEN_AT_ONCE_MAX: usize = 10_000;

impl RememberedChanges for RetryLog {
    fn oldest_segment(&self, now: UnixMillis) -> Option<u64> {
        self.retries.lock().oldest(self.uptime.at(now)).map(|place| place.frame.segment())
    }

    fn forget_expired(&self, now: UnixMillis) -> io::Result<()> {
        let now = self.uptime.at(now);
        // Others have their turns in between.
        while !self.retries.lock().forget(FORGOTTEN_AT_ONCE_MAX, now) {}
        self.replies.remove_expired(now)
    }
}

impl StagedRequests {
    /// Adds a request of a commit that is made in this revision.
    pub(super) fn push(
        &mut self,
        actor: &ActorId,
        (retry, sealed): (&Retry, Option<Vec<u8>>),
        (revision, time): (Revision, UnixMillis),
    ) {
        #[cfg(feature = "fault-end-before-answer")]
        self.names.push(retry.request_id.clone());
        self.requests.push(Remembered::new(actor, retry, (revision, time), ()));
        if let Some(sealed) = sealed {
            self.latest = self.latest.max(time);
            self.sealed_bytes += sealed.len();
            self.sealed.push((revision, sealed));
        }
    }
}

#[cfg(feature = "fault-end-before-answer")]
impl StagedRequests {
    /// Ends the process, as a kill does, if a request says so.
    pub(super) fn end_if_named(&self, beginning: &str) {
        if self.names.iter().any(|name| name.as_str().starts_with(beginning)) {
            std::process::abort();
        }
    }
}

/// The hash of a sealed reply, as an entry of the journal has it.
pub(super) fn sealed_reply_hash(sealed: Option<&Vec<u8>>) -> Vec<u8> {
    sealed.map_or_else(Vec::new, |sealed| hash_of(sealed).to_vec())
}

fn read_request(entry: &RequestOf, frame: FramePlace) -> Option<Remembered<FramePlace>> {
    let request_id = RequestId::parse(&entry.request_id).ok()?;
    let actor = ActorId::parse(&entry.actor).ok()?;
    let retry = Retry { request_id, payload_hash: entry.payload_hash.as_slice().try_into().ok()? };
    Some(Remembered::new(&actor, &retry, (Revision(entry.revision), UnixMillis(entry.time_ms)), frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SECURITY.md says what four million take.
    #[test]
    fn a_remembered_change_takes_72_bytes() {
        assert_eq!(size_of::<Remembered<Place>>(), 72);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_a_time_of_the_future_is_forgotten_while_the_log_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        std::fs::create_dir(&journal).unwrap();
        let log = RetryLog::open(journal, &dir.path().join("replies"), (Revision(0), UnixMillis(0))).unwrap();
        let (actor, ahead) = (ActorId::parse("one").unwrap(), UnixMillis(1_000_000_000_000_000));
        let retry = Retry { request_id: RequestId::parse("id").unwrap(), payload_hash: [1; 32] };
        let mut staged = StagedRequests::default();
        staged.push(&actor, (&retry, Some(vec![1; 60])), (Revision(1), ahead));
        let replies = log.keep_replies(&mut staged).unwrap();
        log.remember(staged, FramePlace::new(7, 64), &replies);
        let files = || std::fs::read_dir(dir.path().join("replies")).unwrap().count();
        for (seconds, recalled, oldest, left) in [
            (0, Recalled::Made(Revision(1)), Some(7), 1),
            (600, Recalled::Made(Revision(1)), Some(7), 1),
            (61, Recalled::New, None, 0),
        ] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            log.forget_expired(ahead).unwrap();
            assert_eq!(
                (log.recall(&actor, &retry, ahead), log.oldest_segment(ahead), files()),
                (recalled, oldest, left)
            );
        }
    }

    #[test]
    fn a_change_whose_segment_has_gone_is_not_known_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let log =
            RetryLog::open(dir.path().to_owned(), &dir.path().join("replies"), (Revision(0), UnixMillis(0))).unwrap();
        let mut staged = StagedRequests::default();
        let retry = Retry { request_id: RequestId::parse("id").unwrap(), payload_hash: [1; 32] };
        staged.push(&ActorId::keyward(), (&retry, None), (Revision(1), UnixMillis(0)));
        log.remember(staged, FramePlace::new(7, 64), &HashMap::new());
        assert!(log.outcome(Revision(1)).unwrap().is_none());
        // One that is there and does not have it is a fault.
        std::fs::write(super::super::journal::scan::segment_path(dir.path(), 7), [0; 1_000]).unwrap();
        log.outcome(Revision(1)).unwrap_err();
    }

    #[test]
    fn what_takes_power_away_has_ids_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let mut log =
            RetryLog::open(dir.path().to_owned(), &dir.path().join("replies"), (Revision(0), UnixMillis(0))).unwrap();
        log.retries = Mutex::new(Retries::of_at_most(1, 1));
        let retry = |id: u64| Retry { request_id: RequestId::parse(&format!("r{id}")).unwrap(), payload_hash: [1; 32] };
        let asked = |id: u64, (narrows, urgent)| {
            let commit = Commit {
                actor: ActorId::keyward(),
                authorization: None,
                method: "Test",
                target: String::new(),
                time: UnixMillis(0),
                narrows,
                urgent,
                writes: vec![],
                retry: Some((retry(id), None)),
            };
            log.recall_staged(&StagedRequests::default(), &commit)
        };
        let make = |id: u64| {
            let mut staged = StagedRequests::default();
            staged.push(&ActorId::keyward(), (&retry(id), None), (Revision(id), UnixMillis(0)));
            log.remember(staged, FramePlace::new(7, 64), &HashMap::new());
        };
        make(1);
        assert_eq!(asked(2, (false, false)), Err(NotRemembered::TooMany));
        assert_eq!((asked(2, (true, false)), asked(2, (false, true))), (Ok(Recalled::New), Ok(Recalled::New)));
        make(2);
        assert_eq!(asked(3, (true, true)), Err(NotRemembered::TooMany));
    }
}
