//! A start from an index checkpoint is fast, and loads the same index.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use keyward::index::{Index, checkpoint};
use keyward::store::local::recovery::salvage::salvage;
use keyward::store::local::{LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use keyward::store::{ChunkWriter, MaterializedView, RecordWrite, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::Policy;
use keyward_core::event::{Record, Revision};
use keyward_core::id::TenantId;
use keyward_core::record::{Deletion, KeyRecord, LineRecord, LogId, State};
use keyward_core::scope::Scope;
use keyward_core::testing::{rotated, tenant_record};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::storage::disk::copy_dir;
use crate::support::local_store::{commit, create, key, open, options};

const SEGMENT_BYTES: u64 = 16 * 1024;
/// Enough keys to fill some segments.
pub(crate) const KEYS: u32 = 400;
const DISABLED: u32 = 5;
/// The size of the summary at a checkpoint's end.
const END_BYTES: usize = 144;

/// An index that records how it was loaded.
pub(crate) struct Watched {
    pub(crate) index: Arc<Index>,
    form: u32,
    /// Chunks are written only from this revision on.
    write_from: AtomicU64,
    parts_read: AtomicUsize,
    records_taken: AtomicUsize,
    started_over: AtomicUsize,
    pub(crate) whole: Mutex<Vec<Revision>>,
}

impl Watched {
    pub(crate) fn new() -> Arc<Self> {
        Self::of_form(checkpoint::FORMAT_VERSION)
    }

    fn of_form(form: u32) -> Arc<Self> {
        Arc::new(Self {
            index: Arc::default(),
            form,
            write_from: AtomicU64::new(0),
            parts_read: AtomicUsize::new(0),
            records_taken: AtomicUsize::new(0),
            started_over: AtomicUsize::new(0),
            whole: Mutex::default(),
        })
    }

    /// Whether it was loaded from a checkpoint.
    pub(crate) fn knew_a_checkpoint(&self) -> bool {
        self.parts_read.load(Ordering::Relaxed) == checkpoint::CHUNKS && self.started_over.load(Ordering::Relaxed) == 0
    }

    /// Whether a checkpoint was discarded.
    pub(crate) fn let_go_of_a_checkpoint(&self) -> bool {
        self.started_over.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn records_taken(&self) -> usize {
        self.records_taken.load(Ordering::Relaxed)
    }
}

impl MaterializedView for Watched {
    fn load(&self, records: &[Record]) {
        self.records_taken.fetch_add(records.len(), Ordering::Relaxed);
        self.index.apply_records(records);
    }

    fn reset(&self) {
        self.started_over.fetch_add(1, Ordering::Relaxed);
        self.index.clear();
    }

    fn on_loaded(&self, revision: Revision) {
        self.whole.lock().push(revision);
        self.index.finish_loading();
        self.index.advance_to(revision);
    }

    fn revision(&self) -> Revision {
        self.index.revision()
    }

    fn latest_time(&self) -> UnixMillis {
        self.index.latest_time()
    }

    fn advance_time(&self, time: UnixMillis) {
        self.index.advance_time(time);
    }

    fn chunk_count(&self) -> usize {
        checkpoint::CHUNKS
    }

    fn format_version(&self) -> u32 {
        self.form
    }

    fn chunk_writer(&self) -> Box<dyn ChunkWriter + '_> {
        Box::new(Writing { view: self, chunks: self.index.checkpoint_writer() })
    }

    fn read_chunk(&self, number: usize, bytes: &[u8]) -> Option<()> {
        self.parts_read.fetch_add(1, Ordering::Relaxed);
        self.index.read_chunk(number, bytes)
    }
}

struct Writing<'a> {
    view: &'a Watched,
    chunks: checkpoint::CheckpointWriter<'a>,
}

impl ChunkWriter for Writing<'_> {
    fn write_chunk(&mut self, number: usize, out: &mut Vec<u8>) {
        while self.view.revision().0 < self.view.write_from.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.chunks.write_chunk(number, out);
    }
}

/// A store with a view that follows it.
struct Open {
    store: Arc<LocalStore>,
    view: Arc<Watched>,
    following: tokio::task::JoinHandle<()>,
}

impl Open {
    fn on(dir: &TempDir) -> Self {
        Self::with(dir, Watched::new()).unwrap()
    }

    fn with(dir: &TempDir, view: Arc<Watched>) -> Result<Self, OpenError> {
        Self::with_options(dir, view, &options(SEGMENT_BYTES))
    }

    fn with_options(dir: &TempDir, view: Arc<Watched>, options: &StoreOptions) -> Result<Self, OpenError> {
        let store = Arc::new(LocalStore::open(LockedDir::lock(dir.path()).unwrap(), options, view.clone())?);
        let mut changes = store.changes(store.revision()).unwrap();
        let index = view.index.clone();
        let following = tokio::spawn(async move {
            while let Ok(Some(batch)) = changes.next().await {
                index.apply(&batch);
            }
        });
        Ok(Self { store, view, following })
    }

    /// The index holds what the store holds, and nothing else.
    async fn is_whole(&self, keys: u32) {
        self.view.index.wait_for(self.store.revision()).await;
        for number in 0..keys {
            let kept = self.store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap();
            let entry = self.view.index.get(&kept.secret.digest).unwrap();
            assert_eq!(entry.revision(), kept.revision, "key {number}");
            assert_eq!(entry.to_policy().policy, kept.spec.policy);
            assert_eq!((entry.owner(), entry.display_name()), (&*kept.spec.owner, &*kept.spec.display_name));
            assert_eq!(entry.labels().count(), kept.spec.labels.len());
            assert_eq!(entry.state() == State::Disabled, number == DISABLED);
        }
        assert_eq!(self.view.index.len(), keys as usize);
        assert_eq!(self.view.index.revision(), self.store.revision());
        assert_eq!(self.view.index.peppers().len(), 1);
    }

    async fn disable(&self, number: u32) {
        disable(&self.store, number).await;
    }

    async fn close(self) {
        self.store.close().await.unwrap();
        drop(self.store);
        self.following.abort();
    }
}

fn checkpoints(dir: &TempDir) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.path().join("index")) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|it| it == "kwi")).collect()
}

/// The maintenance thread runs on its own: waits until it has done something.
async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::task::yield_now().await;
    }
}

/// Waits until there is a checkpoint that a start reads: the journal since then is no longer than the
/// checkpoint.
pub(crate) async fn wait_for_a_useful_checkpoint(dir: &TempDir) {
    wait_until("a checkpoint that a start reads", || {
        let Some(checkpoint) = checkpoints(dir).pop() else { return false };
        let Ok(bytes) = fs::metadata(&checkpoint).map(|found| found.len()) else { return false };
        let revision: u64 = checkpoint.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let segments =
            fs::read_dir(dir.path().join("journal")).unwrap().map(|it| fs::read(it.unwrap().path()).unwrap());
        let later = segments.filter(|segment| first_of(segment) > revision);
        later.map(|segment| segment.len() as u64).sum::<u64>() <= bytes
    })
    .await;
}

/// The revision of the first change in a segment.
fn first_of(segment: &[u8]) -> u64 {
    u64::from_le_bytes(segment[16..24].try_into().unwrap())
}

/// A stopped store with a checkpoint, changes after it, and a key that was disabled after it.
pub(crate) async fn with_checkpoint() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::on(&dir);
    for number in 0..KEYS {
        create(&*open.store, number).await;
    }
    wait_for_a_useful_checkpoint(&dir).await;
    open.disable(DISABLED).await;
    open.is_whole(KEYS).await;
    open.close().await;
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_from_a_checkpoint_knows_every_change_since() {
    let dir = with_checkpoint().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint());
    let taken = open.view.records_taken();
    assert!(0 < taken && taken < KEYS as usize, "only what came after the checkpoint is read: {taken}");
    assert_eq!(*open.view.whole.lock(), [open.store.revision()], "it was told once that it is whole");
    open.is_whole(KEYS).await;
    // And life goes on: what was read from a checkpoint is written into the next one.
    for number in KEYS..3 * KEYS {
        create(&*open.store, number).await;
    }
    open.is_whole(3 * KEYS).await;
    wait_for_a_useful_checkpoint(&dir).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint());
    open.is_whole(3 * KEYS).await;
    assert_eq!(checkpoints(&dir).len(), 1, "one is kept");
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_written_amid_changes_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::on(&dir);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = open.store.clone();
        writers.spawn(async move {
            for number in (0..2 * KEYS).filter(|number| number % 8 == writer) {
                create(&*store, number).await;
            }
        });
    }
    writers.join_all().await;
    open.disable(DISABLED).await;
    wait_for_a_useful_checkpoint(&dir).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint());
    open.is_whole(2 * KEYS).await;
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_not_used() {
    let dir = with_checkpoint().await;
    let path = checkpoints(&dir).remove(0);
    let sound = fs::read(&path).unwrap();
    let end = sound.len();
    // A text of an entry, what tells of a shard, a name, the directory, each field of the end, its seal; and
    // pieces of it.
    let text = sound.windows(6).position(|bytes| bytes == b"Key 17").unwrap();
    let directory = [END_BYTES + 45, END_BYTES + 20];
    let fields = [144, 136, 132, 128, 120, 88, 80, 48, 44, 40, 32, 1];
    let mut spoiled: Vec<_> = [text, end / 3, end - END_BYTES - 12_000]
        .into_iter()
        .chain(directory.into_iter().chain(fields).map(|before| end - before))
        .map(|at| {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            bytes
        })
        .collect();
    spoiled.extend([0, 1, END_BYTES - 1, end / 2, end - 1].map(|length| sound[..length].to_vec()));
    // Another one is made where one is of no use.
    let put = |bytes: &[u8]| {
        checkpoints(&dir).iter().for_each(|path| fs::remove_file(path).unwrap());
        fs::write(&path, bytes).unwrap();
    };
    for bytes in spoiled {
        put(&bytes);
        let open = Open::on(&dir);
        assert!(!open.view.knew_a_checkpoint() && open.view.let_go_of_a_checkpoint());
        open.is_whole(KEYS).await;
        open.close().await;
    }
    put(&sound);
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint(), "the one that they were made from is sound");
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_form_is_not_used() {
    let dir = with_checkpoint().await;
    let open = Open::with(&dir, Watched::of_form(checkpoint::FORMAT_VERSION + 1)).unwrap();
    assert!(!open.view.knew_a_checkpoint() && open.view.let_go_of_a_checkpoint());
    open.is_whole(KEYS).await;
    open.close().await;
}

/// The same pepper file, other changes: a key that is disabled here works there.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_another_log_is_not_used() {
    let (dir, other) = (with_checkpoint().await, tempfile::tempdir().unwrap());
    let open = Open::on(&other);
    for number in (0..KEYS).rev() {
        create(&*open.store, number).await;
    }
    open.disable(DISABLED).await;
    wait_until("a checkpoint", || !checkpoints(&other).is_empty()).await;
    open.close().await;
    let (theirs, ours) = (checkpoints(&dir).remove(0), checkpoints(&other).remove(0));
    fs::copy(theirs, ours).unwrap();
    let open = Open::on(&other);
    assert!(!open.view.knew_a_checkpoint() && open.view.let_go_of_a_checkpoint());
    open.is_whole(KEYS).await;
    open.close().await;
}

/// Two histories that diverge: what one's checkpoint holds past that point is not true of the other. A key is
/// relabelled twice here and disabled there, so that the form in the checkpoint is the newer one.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_a_log_that_has_parted_from_this_one_is_not_used() {
    let here = tempfile::tempdir().unwrap();
    let store = open(&here, SEGMENT_BYTES); // which keeps no checkpoint
    for number in 0..KEYS {
        create(&store, number).await;
    }
    let parting = store.revision();
    store.close().await.unwrap();
    drop(store);
    let there = tempfile::tempdir().unwrap();
    copy_dir(here.path(), there.path());

    // Its first checkpoint begins before the parting, and is written when both changes are made.
    let view = Watched::new();
    view.write_from.store(parting.0 + 2, Ordering::Relaxed);
    let open = Open::with(&here, view).unwrap();
    for label in ["One", "Other"] {
        change(&open.store, DISABLED, |key| key.spec.display_name = label.to_owned()).await;
    }
    wait_until("a checkpoint", || !checkpoints(&here).is_empty()).await;
    open.close().await;

    let store = self::open(&there, SEGMENT_BYTES);
    disable(&store, DISABLED).await;
    for number in KEYS..KEYS + 3 {
        create(&store, number).await;
    }
    store.close().await.unwrap();
    drop(store);
    fs::create_dir_all(there.path().join("index")).unwrap();
    let checkpoint = checkpoints(&here).remove(0);
    let at = Revision(checkpoint.file_stem().unwrap().to_str().unwrap().parse().unwrap());
    assert!(at < parting && latest_of(&fs::read(&checkpoint).unwrap()) == parting.0 + 2);
    fs::copy(&checkpoint, there.path().join("index").join(checkpoint.file_name().unwrap())).unwrap();
    let open = Open::on(&there);
    assert!(!open.view.knew_a_checkpoint() && open.view.let_go_of_a_checkpoint());
    open.is_whole(KEYS + 3).await;
    open.close().await;
}

/// Without watermark and table, and with the journal truncated, only the checkpoint proves that more was
/// acknowledged: up to where it begins, before that, and with nothing left of the journal.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_ahead_of_the_journal_stops_the_start() {
    let whole = with_checkpoint().await;
    let checkpoint = checkpoints(&whole).remove(0);
    let revision: u64 = checkpoint.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let latest = latest_of(&fs::read(&checkpoint).unwrap());
    for keep in [Keep::UpToTheImage, Keep::LessThanThat, Keep::Nothing] {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(whole.path(), dir.path());
        cut_off(&dir, revision, keep);
        assert!(LockedDir::lock(dir.path()).unwrap().has_data().unwrap(), "a new pepper file would make it look empty");
        let refused = Open::with(&dir, Watched::new()).err().unwrap();
        assert!(matches!(refused, OpenError::Missing { acknowledged, .. } if acknowledged.0 == latest), "{refused}");
    }
}

/// What comes after a checkpoint is read from the journal. If that is longer than the checkpoint, a start
/// from the table is faster.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_not_read_where_the_journal_since_then_is_longer() {
    let dir = with_checkpoint().await;
    let checkpoint = checkpoints(&dir).remove(0);
    let (name, bytes) = (checkpoint.file_name().unwrap().to_owned(), fs::read(&checkpoint).unwrap());
    let open = Open::on(&dir);
    for number in KEYS..3 * KEYS {
        create(&*open.store, number).await;
    }
    wait_until("another checkpoint", || !checkpoint.exists()).await;
    open.close().await;
    checkpoints(&dir).iter().for_each(|checkpoint| fs::remove_file(checkpoint).unwrap());
    fs::write(dir.path().join("index").join(name), &bytes).unwrap();
    let open = Open::on(&dir);
    assert_eq!(open.view.parts_read.load(Ordering::Relaxed), 0);
    assert!(!open.view.let_go_of_a_checkpoint(), "and nothing is wrong with it");
    open.is_whole(3 * KEYS).await;
    wait_for_a_useful_checkpoint(&dir).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint(), "another one was made in its place");
    open.is_whole(3 * KEYS).await;
    open.close().await;
}

/// A checkpoint that is not worth reading still proves what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_not_read_still_tells_of_missing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let view = Watched::new();
    view.write_from.store(u64::from(3 * KEYS), Ordering::Relaxed);
    let open = Open::with(&dir, view).unwrap();
    for number in 0..3 * KEYS {
        create(&*open.store, number).await;
    }
    // It begins where the journal was when its writing began, and knows of all that came until it was
    // written.
    wait_until("a checkpoint", || !checkpoints(&dir).is_empty()).await;
    let (checkpoint, bytes) =
        checkpoints(&dir).pop().map(|checkpoint| (checkpoint.clone(), fs::read(checkpoint).unwrap())).unwrap();
    open.close().await;
    let latest = latest_of(&bytes);
    assert_eq!(latest, u64::from(3 * KEYS));
    checkpoints(&dir).iter().for_each(|checkpoint| fs::remove_file(checkpoint).unwrap());
    fs::write(&checkpoint, &bytes).unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let mut segments: Vec<_> = fs::read_dir(dir.path().join("journal")).unwrap().map(|it| it.unwrap().path()).collect();
    segments.sort();
    let last = segments.into_iter().rfind(|segment| first_of(&fs::read(segment).unwrap()) <= latest).unwrap();
    fs::remove_file(last).unwrap();
    let view = Watched::new();
    let refused = Open::with(&dir, view.clone()).err().unwrap();
    assert!(matches!(refused, OpenError::Missing { acknowledged, .. } if acknowledged.0 == latest), "{refused}");
    assert_eq!(view.parts_read.load(Ordering::Relaxed), 0);
}

/// No revision is acknowledged twice, even if only the checkpoint knows of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_goes_on_past_what_a_checkpoint_knows_of() {
    let dir = with_checkpoint().await;
    let checkpoint = checkpoints(&dir).remove(0);
    let revision: u64 = checkpoint.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let latest = latest_of(&fs::read(&checkpoint).unwrap());
    cut_off(&dir, revision, Keep::UpToTheImage);
    let salvaged = salvage(&LockedDir::lock(dir.path()).unwrap(), &options(SEGMENT_BYTES), false).unwrap();
    assert!(salvaged.revision.0 > latest, "{salvaged:?}");
    assert_eq!(salvaged.missing, [(Revision(revision + 1), Revision(latest))]);
    assert!(checkpoints(&dir).is_empty(), "it is moved aside with the log that it was of");
}

/// The form that had the latest time is overwritten before the checkpoint is made: it is in no record, nor in
/// the journal past the checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_knows_the_latest_time_of_the_log() {
    const LATE: UnixMillis = UnixMillis(9_000);
    let dir = tempfile::tempdir().unwrap();
    let open = Open::on(&dir);
    create(&*open.store, 0).await;
    change(&open.store, 0, |key| key.updated.time = LATE).await;
    change(&open.store, 0, |key| key.updated.time = UnixMillis(1_000)).await;
    for number in 1..KEYS {
        create(&*open.store, number).await;
    }
    wait_until("a checkpoint", || !checkpoints(&dir).is_empty()).await;
    open.disable(DISABLED).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_a_checkpoint());
    assert_eq!(open.view.index.latest_time(), LATE);
    open.close().await;
}

/// What the newest checkpoint needs is in the journal after each step of retention, and each start uses it.
#[tokio::test(flavor = "multi_thread")]
async fn retention_leaves_the_image_what_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { bytes: 6 * SEGMENT_BYTES, time: Duration::MAX };
    let options = StoreOptions { retention, ..options(SEGMENT_BYTES) };
    let mut begins = vec![];
    for start in 0..6 {
        let open = Open::with_options(&dir, Watched::new(), &options).unwrap();
        assert!(start == 0 || open.view.knew_a_checkpoint(), "start {start} read the table");
        for number in start * KEYS..(start + 1) * KEYS {
            // In this order: a checkpoint that is made in between is newer.
            let (is_one, begins_after) = (newest_checkpoint(&dir) > 0, journal_start(&dir));
            assert!(!is_one || begins_after <= newest_checkpoint(&dir), "key {number}");
            create(&*open.store, number).await;
        }
        // On a busy machine they come later than the keys.
        wait_until("a checkpoint that is worth reading", || {
            let newest = newest_checkpoint(&dir);
            newest > 0 && journal_bytes_after(&dir, newest) <= checkpoint_bytes(&dir)
        })
        .await;
        begins.push(journal_start(&dir));
        open.close().await;
        assert!(journal_start(&dir) <= newest_checkpoint(&dir), "after start {start}");
    }
    begins.dedup();
    assert!(begins.len() > 2, "the journal was shortened again and again: {begins:?}");
    let open = Open::with_options(&dir, Watched::new(), &options).unwrap();
    open.disable(DISABLED).await;
    open.is_whole(6 * KEYS).await;
    open.close().await;
}

/// The revision after which the journal begins. The oldest segment may go while it is looked at.
fn journal_start(dir: &TempDir) -> u64 {
    loop {
        let oldest = fs::read_dir(dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path()).min();
        if let Ok(bytes) = fs::read(oldest.unwrap()) {
            return u64::from_le_bytes(bytes[16..24].try_into().unwrap()) - 1;
        }
    }
}

/// The bytes of the segments that begin at a revision or later. One may be deleted meanwhile.
fn journal_bytes_after(dir: &TempDir, revision: u64) -> u64 {
    let segments =
        fs::read_dir(dir.path().join("journal")).unwrap().filter_map(|entry| fs::read(entry.ok()?.path()).ok());
    let starts = |bytes: &Vec<u8>| bytes.get(16..24).map(|start| u64::from_le_bytes(start.try_into().unwrap()) - 1);
    segments.filter(|bytes| starts(bytes).is_some_and(|start| start >= revision)).map(|bytes| bytes.len() as u64).sum()
}

/// The size of the largest checkpoint, which is the newest one.
fn checkpoint_bytes(dir: &TempDir) -> u64 {
    checkpoints(dir).iter().filter_map(|path| Some(fs::metadata(path).ok()?.len())).max().unwrap_or(0)
}

fn newest_checkpoint(dir: &TempDir) -> u64 {
    checkpoints(dir).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().parse().unwrap()).max().unwrap_or(0)
}

enum Keep {
    UpToTheImage,
    LessThanThat,
    Nothing,
}

/// Removes the watermark, the table and an end of the journal.
fn cut_off(dir: &TempDir, checkpoint: u64, keep: Keep) {
    fs::remove_file(dir.path().join("watermark")).unwrap();
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let mut segments: Vec<_> = fs::read_dir(dir.path().join("journal")).unwrap().map(|it| it.unwrap().path()).collect();
    segments.sort();
    let first = |segment: &PathBuf| u64::from_le_bytes(fs::read(segment).unwrap()[16..24].try_into().unwrap());
    let before = segments.iter().filter(|segment| first(segment) <= checkpoint).count();
    let kept = match keep {
        Keep::UpToTheImage => before,
        Keep::LessThanThat => before - 1,
        Keep::Nothing => 0,
    };
    segments.iter().skip(kept).for_each(|segment| fs::remove_file(segment).unwrap());
}

/// The revision after which there is no change in a checkpoint.
fn latest_of(checkpoint: &[u8]) -> u64 {
    u64::from_le_bytes(checkpoint[checkpoint.len() - 88..checkpoint.len() - 80].try_into().unwrap())
}

async fn disable(store: &LocalStore, number: u32) {
    change(store, number, |key| key.spec.policy.state = State::Disabled).await;
}

async fn change(store: &LocalStore, number: u32, change: impl FnOnce(&mut KeyRecord)) {
    let mut changed = KeyRecord::clone(&*store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap());
    change(&mut changed);
    store.commit(commit(vec![RecordWrite::Key(Box::new(changed))])).await.unwrap();
}

/// The golden bytes of the chunks. A change of them requires a new [`checkpoint::FORMAT_VERSION`], or a start
/// would misread older checkpoints.
#[test]
fn the_form_of_a_checkpoint_has_not_drifted() {
    let index = Index::default();
    let scopes = ["a.b", "a.*", "c"].map(|scope| Scope::parse(scope).unwrap());
    for number in 0..300 {
        let mut record = key(number);
        record.revision = Revision(u64::from(number) + 1);
        let some = |one_in: u32| number % one_in == 0;
        record.spec.policy.expire_time = some(2).then_some(UnixMillis(1_000));
        record.spec.policy.not_before = some(5).then_some(UnixMillis(-1));
        record.spec.policy.state = [State::Active, State::Disabled, State::Revoked][number as usize % 11 % 3];
        record.spec.policy.scopes.extend(scopes.iter().take(number as usize % 4).cloned());
        let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|network| network.parse::<IpNet>().unwrap());
        record.spec.policy.allowed_cidrs.extend(networks.into_iter().filter(|_| some(7)));
        record.spec.policy.audiences.extend(some(13).then(|| "orders".to_owned()));
        record.tenant = if some(17) { TenantId::system() } else { record.tenant };
        record.spec.labels = if some(3) { BTreeMap::new() } else { record.spec.labels };
        record.ordinal = some(4).then_some(number * 1_000);
        record.created.time = UnixMillis(1_790_000_000_000 + i64::from(number));
        record.resume_time = some(9).then_some(UnixMillis(5));
        record.deletion = some(19).then_some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(2) });
        let record = if some(6) { rotated(&rotated(&record, number), 1_000 + number) } else { record };
        index.apply_records(&[Record::Key(Arc::new(record))]);
    }
    let mut tenant = tenant_record("acme");
    tenant.hold.reject_issued_before = Some(UnixMillis(7));
    let line = LineRecord { log_id: LogId([5; 16]), ended: Revision(9), base: Revision(1 << 40), time: UnixMillis(3) };
    index.apply_records(&[Record::Tenant(Arc::new(tenant)), Record::Line(Arc::new(line))]);
    let mut chunks = vec![];
    let mut writer = index.checkpoint_writer();
    (0..checkpoint::CHUNKS).for_each(|number| writer.write_chunk(number, &mut chunks));
    let golden = "9e33fd799f8103050e60dfa1cc565d57e46978835a837d0b2c410879b581c2f9";
    assert_eq!((checkpoint::FORMAT_VERSION, blake3::hash(&chunks).to_hex().as_str()), (4, golden));
}
