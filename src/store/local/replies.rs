//! Sealed replies, kept for the retries of what issued a secret: `replies/` in the data directory.
//!
//! A reply is durable before the entry of the journal that has its hash. Whoever can read the log can so
//! tell whether a reply is the one that was given, and the log itself has no secret, sealed or not. A crash
//! between the two leaves a reply that no entry has; the next start removes it.
//!
//! Replies are appended to one file for a minute or so, and a file goes as a whole, when the last of its
//! replies is ten minutes old. docs/FORMAT.md has the bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use keyward_core::clock::UnixMillis;
use parking_lot::Mutex;

use crate::bytes_codec::Cursor;
use crate::store::retries::Moment;
use crate::util::files::{create_private_dir, numbered, private_options, sync_parent, with_path};

/// Bytes of all files at most; a change whose reply has no room is refused. That is some 1,500,000 replies in
/// ten minutes.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// A file takes no further replies when its first is this old, or it has this many bytes.
const FILE_MS_MAX: i64 = 60_000;
/// The same by the uptime, while the log's time stands still.
const FILE_UPTIME_S_MAX: u32 = 60;
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A longer file is not read: one takes the replies of another group of commits while it has less than
/// [`FILE_BYTES_MAX`].
const FILE_BYTES_READ_MAX: u64 = FILE_BYTES_MAX + 1024 * 1024;
/// Files at most; with as many, a change with a reply is refused. One is begun in a minute, and by each start
/// and after each failure.
const FILES_MAX: usize = 1_024;
/// The longest reply: an encapsulated key, a secret, and a tag.
pub(super) const REPLY_BYTES_MAX: usize = 512;

const MAGIC: &[u8; 8] = b"KEYWARDR";
const VERSION: u32 = 1;
const HEADER_BYTES: u32 = 16;
/// The hash of a reply, and its length.
const RECORD_HEADER_BYTES: usize = 32 + 4;
const EXTENSION: &str = "kwr";

/// The hash of a reply, by which an entry of the journal names it.
pub(super) type ReplyHash = [u8; 32];

/// Where a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyPlace {
    file: NonZeroU32,
    offset: u32,
}

/// The replies of a data directory.
#[derive(Debug)]
pub(super) struct Replies {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<NonZeroU32, Kept>,
    /// Bytes of all of them.
    bytes: u64,
    /// The highest number of a file so far.
    last: u32,
    /// The file that takes replies.
    open: Option<Open>,
}

/// A file.
#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: u64,
    /// The time of its latest reply, and the uptime. 0: it was there at the start.
    until: UnixMillis,
    since_s: u32,
}

#[derive(Debug)]
struct Open {
    number: NonZeroU32,
    file: File,
    began: Moment,
}

impl Replies {
    /// Reads a directory, and removes what no entry of the journal has. `time_of` tells the time of the entry
    /// that has a hash. Returns where the others are. What cannot be read or removed is logged and stays: it
    /// must not stop a start.
    pub(super) fn open(
        dir: &Path,
        time_of: impl Fn(&ReplyHash) -> Option<UnixMillis>,
    ) -> (Self, HashMap<ReplyHash, ReplyPlace>) {
        let (mut state, mut places) = (State::default(), HashMap::new());
        let replies = Self { dir: dir.to_owned(), state: Mutex::default() };
        let stays = |path: &Path, error: io::Error| {
            tracing::error!(path = %path.display(), %error, "sealed replies cannot be read; the start goes on without");
        };
        let files = numbered(dir, EXTENSION).unwrap_or_else(|error| {
            stays(dir, error);
            vec![]
        });
        for (number, path) in files {
            let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
            let Some(number) = number.filter(|number| replies.path(*number) == path) else {
                stays(&path, io::ErrorKind::InvalidFilename.into());
                continue;
            };
            // The next file comes after it, whatever it is.
            state.last = state.last.max(number.get());
            let bytes = match read_whole(&path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    stays(&path, error);
                    continue;
                }
            };
            let wanted = records(&bytes).filter_map(|(offset, hash, _)| Some((offset, hash, time_of(&hash)?)));
            let wanted: Vec<_> = wanted.collect();
            let until = wanted.iter().map(|(.., time)| *time).max();
            let Some(until) = until else {
                fs::remove_file(&path).unwrap_or_else(|error| stays(&path, error));
                continue;
            };
            places.extend(wanted.into_iter().map(|(offset, hash, _)| (hash, ReplyPlace { file: number, offset })));
            state.insert(number, Kept { bytes: bytes.len() as u64, until, since_s: 0 });
        }
        *replies.state.lock() = state;
        (replies, places)
    }

    /// Whether so many more bytes of replies have room.
    pub(super) fn has_room(&self, replies: usize, bytes: usize) -> bool {
        let state = self.state.lock();
        let bytes = state.bytes + (bytes + replies * RECORD_HEADER_BYTES) as u64 + u64::from(HEADER_BYTES);
        bytes <= BYTES_MAX && state.files.len() < FILES_MAX
    }

    /// Appends replies, and returns where they are once they are durable. After a failure, none of them
    /// counts, and the next ones go into another file.
    pub(super) fn append(&self, replies: &[Vec<u8>], now: Moment) -> io::Result<Vec<ReplyPlace>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut open = match state.open.take() {
            Some(open) if state.takes_more(&open, now) => open,
            _ => self.begin(state, now)?,
        };
        let kept = state.files.get_mut(&open.number).ok_or(io::ErrorKind::NotFound)?;
        let (mut bytes, mut places) = (vec![], Vec::with_capacity(replies.len()));
        for reply in replies {
            // A file has little more than FILE_BYTES_MAX.
            places.push(ReplyPlace { file: open.number, offset: (kept.bytes + bytes.len() as u64) as u32 });
            bytes.extend_from_slice(&hash_of(reply));
            bytes.extend_from_slice(&(reply.len() as u32).to_le_bytes()); // at most REPLY_BYTES_MAX
            bytes.extend_from_slice(reply);
        }
        if let Err(error) = open.file.write_all_at(&bytes, kept.bytes).and_then(|()| open.file.sync_data()) {
            let before = kept.bytes;
            self.give_up(state, &open, before);
            return Err(error);
        }
        kept.bytes += bytes.len() as u64;
        state.bytes += bytes.len() as u64;
        kept.until = kept.until.max(now.log);
        kept.since_s = now.uptime_s;
        open.began.log = open.began.log.min(now.log);
        state.open = Some(open);
        Ok(places)
    }

    fn begin(&self, state: &mut State, now: Moment) -> io::Result<Open> {
        create_private_dir(&self.dir)?;
        let number = state.last.checked_add(1).and_then(NonZeroU32::new).ok_or(io::ErrorKind::StorageFull)?;
        state.last = number.get();
        let path = self.path(number);
        let file = private_options().read(true).write(true).create_new(true).open(&path).map_err(with_path(&path))?;
        let open = Open { number, file, began: now };
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        if let Err(error) = open.file.write_all_at(&header, 0).and_then(|()| sync_parent(&path)) {
            self.give_up(state, &open, 0);
            return Err(error);
        }
        state.insert(number, Kept { bytes: u64::from(HEADER_BYTES), until: now.log, since_s: now.uptime_s });
        Ok(open)
    }

    /// Leaves a file as it was before a failure; one without a reply is removed. What the disk refuses is
    /// left to the next start: no entry names it.
    fn give_up(&self, state: &mut State, open: &Open, bytes: u64) {
        let done = if bytes > u64::from(HEADER_BYTES) {
            open.file.set_len(bytes)
        } else {
            state.remove(open.number);
            fs::remove_file(self.path(open.number))
        };
        if let Err(error) = done {
            let path = self.path(open.number);
            tracing::warn!(path = %path.display(), %error, "a file of sealed replies stays as a failure left it");
        }
    }

    /// Reads a reply that has this hash. `None`: it is not there, or it is another one.
    pub(super) fn read(&self, place: ReplyPlace, hash: &[u8]) -> Option<Vec<u8>> {
        let path = self.path(place.file);
        let mut bytes = vec![0; RECORD_HEADER_BYTES + REPLY_BYTES_MAX];
        let read = File::open(&path).and_then(|file| read_up_to(&file, &mut bytes, u64::from(place.offset)));
        let found = match read {
            Ok(read) => records_from(&bytes[..read], 0).next(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a sealed reply cannot be read");
                return None;
            }
        };
        let reply =
            found.filter(|(_, found, reply)| found == hash && hash_of(reply) == *found).map(|(.., reply)| reply);
        if reply.is_none() {
            tracing::error!(path = %path.display(), "a sealed reply is missing or is not the one that was given");
        }
        reply.map(<[u8]>::to_vec)
    }

    /// Removes the files whose replies are past their time.
    pub(super) fn remove_expired(&self, now: Moment) -> io::Result<()> {
        let mut state = self.state.lock();
        let expired =
            |(number, kept): (&NonZeroU32, &Kept)| (!now.remembers(kept.until, kept.since_s)).then_some(*number);
        let expired: Vec<_> = state.files.iter().filter_map(expired).collect();
        for number in &expired {
            if state.open.as_ref().is_some_and(|open| open.number == *number) {
                state.open = None;
            }
            let path = self.path(*number);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(with_path(&path)(error)),
                _ => state.remove(*number),
            }
        }
        Ok(())
    }

    fn path(&self, number: NonZeroU32) -> PathBuf {
        self.dir.join(format!("{number:012}.{EXTENSION}"))
    }
}

impl State {
    fn insert(&mut self, number: NonZeroU32, kept: Kept) {
        self.bytes += kept.bytes;
        self.files.insert(number, kept);
    }

    fn remove(&mut self, number: NonZeroU32) {
        self.bytes -= self.files.remove(&number).map_or(0, |kept| kept.bytes);
    }

    fn takes_more(&self, open: &Open, now: Moment) -> bool {
        let is_short = self.files.get(&open.number).is_some_and(|kept| kept.bytes < FILE_BYTES_MAX);
        let is_new = now.log.0.saturating_sub(open.began.log.0) < FILE_MS_MAX
            && now.uptime_s.saturating_sub(open.began.uptime_s) < FILE_UPTIME_S_MAX;
        is_short && is_new
    }
}

/// Reads a regular file that has no more bytes than one of ours.
fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if about.len() > FILE_BYTES_READ_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::with_capacity(about.len() as usize); // at most FILE_BYTES_READ_MAX
    File::open(path)?.take(FILE_BYTES_READ_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The hash of a reply.
pub(super) fn hash_of(reply: &[u8]) -> ReplyHash {
    *blake3::hash(reply).as_bytes()
}

/// The replies in a file: where each is, its hash and its bytes. It ends before one that is not whole.
fn records(file: &[u8]) -> impl Iterator<Item = (u32, ReplyHash, &[u8])> {
    let mut header = Cursor(file);
    let is_ours = header.array() == Some(*MAGIC) && header.u32() == Some(VERSION);
    records_from(if is_ours { file } else { &[] }, HEADER_BYTES)
}

fn records_from(file: &[u8], begin: u32) -> impl Iterator<Item = (u32, ReplyHash, &[u8])> {
    let mut offset = begin as usize;
    std::iter::from_fn(move || {
        let mut rest = Cursor(file.get(offset..)?);
        let hash = rest.array()?;
        let length = rest.u32().map(|length| length as usize).filter(|length| *length <= REPLY_BYTES_MAX)?;
        let (at, reply) = (u32::try_from(offset).ok()?, rest.take(length)?);
        offset += RECORD_HEADER_BYTES + length;
        Some((at, hash, reply))
    })
}

/// Fills `bytes` as far as the file goes.
fn read_up_to(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], offset + read as u64)? {
            0 => break,
            some => read += some,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TIME: Moment = Moment { log: UnixMillis(1_000_000), uptime_s: 0 };

    fn reply(number: u8) -> Vec<u8> {
        vec![number; 100]
    }

    fn files(dir: &Path) -> usize {
        numbered(dir, EXTENSION).unwrap().len()
    }

    #[test]
    fn replies_are_read_back_also_by_the_next_process_and_others_are_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("replies");
        let (replies, _) = Replies::open(&dir, |_| None);
        let places = replies.append(&[reply(1), reply(2)], TIME).unwrap();
        let third = replies.append(&[reply(3)], TIME).unwrap()[0];
        assert_eq!(replies.read(places[1], &hash_of(&reply(2))), Some(reply(2)));
        assert_eq!(replies.read(places[1], &hash_of(&reply(1))), None, "another one");
        assert_eq!(replies.read(third, &hash_of(&reply(3))), Some(reply(3)));
        assert_eq!(files(&dir), 1);
        let path = replies.path(third.file);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

        let (again, found) = Replies::open(&dir, |hash| (*hash != hash_of(&reply(2))).then_some(TIME.log));
        assert_eq!(found.len(), 2, "one has no entry");
        assert_eq!(found[&hash_of(&reply(3))], third);
        assert_eq!(again.read(third, &hash_of(&reply(3))), Some(reply(3)));
        // It goes on in a file of its own.
        again.append(&[reply(4)], TIME).unwrap();
        assert_eq!(files(&dir), 2);
    }

    /// As docs/FORMAT.md has it.
    #[test]
    fn a_file_has_the_bytes_of_its_format() {
        let dir = tempfile::tempdir().unwrap();
        let (replies, _) = Replies::open(dir.path(), |_| None);
        replies.append(&[b"one".to_vec(), b"three".to_vec()], TIME).unwrap();
        let (one, three) = (blake3::hash(b"one"), blake3::hash(b"three"));
        let expected = [
            &b"KEYWARDR\x01\0\0\0\0\0\0\0"[..],
            one.as_bytes(),
            b"\x03\0\0\0one",
            three.as_bytes(),
            b"\x05\0\0\0three",
        ];
        assert_eq!(fs::read(dir.path().join("000000000001.kwr")).unwrap(), expected.concat());
    }

    #[test]
    fn a_file_that_was_tampered_with_or_cut_gives_nothing_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (replies, _) = Replies::open(dir.path(), |_| None);
        let places = replies.append(&[reply(1), reply(2)], TIME).unwrap();
        let path = replies.path(places[0].file);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).unwrap();
            for (number, place) in [1, 2].into_iter().zip(&places) {
                let read = replies.read(*place, &hash_of(&reply(number)));
                assert!(read.is_none() || read == Some(reply(number)), "byte {at}");
            }
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(replies.read(places[1], &hash_of(&reply(2))), None, "cut at {at}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(replies.read(places[1], &hash_of(&reply(2))), None);
    }

    #[test]
    fn replies_that_cannot_be_kept_leave_no_file_and_there_is_an_end_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("replies");
        let (replies, _) = Replies::open(&dir, |_| None);
        let end = |replies: &Replies| replies.state.lock().files.len();
        // The header can be written, and no more.
        let open = replies.begin(&mut replies.state.lock(), TIME).unwrap();
        let file = File::open(replies.path(open.number)).unwrap();
        replies.state.lock().open = Some(Open { file, ..open });
        assert_eq!((files(&dir), end(&replies)), (1, 1));
        replies.append(&[reply(1)], TIME).unwrap_err();
        assert_eq!((files(&dir), end(&replies), replies.state.lock().bytes), (0, 0, 0));

        // One that has a reply keeps it.
        let place = replies.append(&[reply(2)], TIME).unwrap()[0];
        let bytes = fs::metadata(replies.path(place.file)).unwrap().len();
        let file = File::open(replies.path(place.file)).unwrap();
        replies.state.lock().open.as_mut().unwrap().file = file;
        replies.append(&[reply(3)], TIME).unwrap_err();
        assert_eq!(replies.read(place, &hash_of(&reply(2))), Some(reply(2)));
        assert_eq!((files(&dir), end(&replies), replies.state.lock().bytes), (1, 1, bytes));

        for _ in 1..FILES_MAX {
            assert!(replies.has_room(1, 100));
            replies.append(&[reply(4)], TIME).unwrap();
            replies.state.lock().open = None;
        }
        assert!(!replies.has_room(1, 100));
    }

    #[test]
    fn a_file_goes_ten_minutes_after_its_last_reply_and_what_no_entry_has_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let (replies, _) = Replies::open(dir.path(), |_| None);
        let after = |ms| Moment { log: UnixMillis(TIME.log.0 + ms), ..TIME };
        replies.append(&[reply(1)], TIME).unwrap();
        replies.append(&[reply(2)], after(FILE_MS_MAX - 1)).unwrap();
        assert_eq!(files(dir.path()), 1);
        replies.append(&[reply(3)], after(FILE_MS_MAX)).unwrap();
        assert_eq!(files(dir.path()), 2);
        for (time, left) in [(FILE_MS_MAX - 2, 2), (FILE_MS_MAX - 1, 1), (FILE_MS_MAX, 0)] {
            replies.remove_expired(after(time + 600_000)).unwrap();
            assert_eq!(files(dir.path()), left, "{time}");
        }
        replies.append(&[reply(4)], after(1_000_000)).unwrap();
        let (_, found) = Replies::open(dir.path(), |_| None);
        assert_eq!((found.len(), files(dir.path())), (0, 0));
    }

    #[test]
    fn files_go_by_the_uptime_while_the_time_of_the_log_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let (replies, _) = Replies::open(dir.path(), |_| None);
        let after = |uptime_s| Moment { uptime_s, ..TIME };
        replies.append(&[reply(1)], TIME).unwrap();
        replies.append(&[reply(2)], after(59)).unwrap();
        assert_eq!(files(dir.path()), 1);
        replies.append(&[reply(3)], after(60)).unwrap();
        assert_eq!(files(dir.path()), 2);
        for (uptime_s, left) in [(59 + 659, 2), (59 + 660, 1), (60 + 660, 0)] {
            replies.remove_expired(after(uptime_s)).unwrap();
            assert_eq!(files(dir.path()), left, "{uptime_s}");
        }
    }

    #[test]
    fn a_start_goes_on_past_what_it_cannot_read() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("replies");
        fs::write(&dir, "no directory").unwrap();
        assert!(Replies::open(&dir, |_| None).1.is_empty());
        fs::remove_file(&dir).unwrap();

        let (replies, _) = Replies::open(&dir, |_| None);
        let place = replies.append(&[reply(1)], TIME).unwrap()[0];
        fs::create_dir(dir.join("000000000007.kwr")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.join("000000000008.kwr")).unwrap();
        let long = File::create(dir.join("000000000009.kwr")).unwrap();
        long.set_len(FILE_BYTES_READ_MAX + 1).unwrap();
        fs::write(dir.join("99999999999.kwr"), "another's").unwrap();
        fs::write(dir.join("1.kwr"), "another's").unwrap();
        let (replies, found) = Replies::open(&dir, |_| Some(TIME.log));
        assert_eq!(found, HashMap::from([(hash_of(&reply(1)), place)]));
        assert_eq!(files(&dir), 6);
        let next = replies.append(&[reply(2)], TIME).unwrap()[0];
        assert_eq!(next.file.get(), 10);
    }
}
