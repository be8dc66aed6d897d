//! A start from an image of the index is quick, and knows no less.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use keyward::index::{Index, image};
use keyward::store::sled::{LockedDir, OpenError, SledStore};
use keyward::store::{Put, Store, View};
use keyward_core::decision::Policy;
use keyward_core::event::{Record, Revision};
use keyward_core::record::{KeyRecord, State};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::conformance::{commit, create, key, options};

const SEGMENT_BYTES: u64 = 16 * 1024;
/// So many fill some segments.
const KEYS: u32 = 400;
const DISABLED: u32 = 5;

/// An index that keeps an account of what it was filled with.
struct Watched {
    index: Arc<Index>,
    form: u32,
    parts_read: AtomicUsize,
    records_taken: AtomicUsize,
    started_over: AtomicUsize,
    whole: Mutex<Vec<Revision>>,
}

impl Watched {
    fn new() -> Arc<Self> {
        Self::of_form(image::FORM)
    }

    fn of_form(form: u32) -> Arc<Self> {
        Arc::new(Self {
            index: Arc::default(),
            form,
            parts_read: AtomicUsize::new(0),
            records_taken: AtomicUsize::new(0),
            started_over: AtomicUsize::new(0),
            whole: Mutex::default(),
        })
    }

    /// Whether it was filled from an image.
    fn knew_an_image(&self) -> bool {
        self.parts_read.load(Ordering::Relaxed) == image::PARTS && self.started_over.load(Ordering::Relaxed) == 0
    }

    fn records_taken(&self) -> usize {
        self.records_taken.load(Ordering::Relaxed)
    }
}

impl View for Watched {
    fn take(&self, records: &[Record]) {
        self.records_taken.fetch_add(records.len(), Ordering::Relaxed);
        self.index.fold(records);
    }

    fn start_over(&self) {
        self.started_over.fetch_add(1, Ordering::Relaxed);
        self.index.clear();
    }

    fn whole(&self, revision: Revision) {
        self.whole.lock().push(revision);
        self.index.reach(revision);
    }

    fn revision(&self) -> Revision {
        self.index.revision()
    }

    fn parts(&self) -> usize {
        image::PARTS
    }

    fn form(&self) -> u32 {
        self.form
    }

    fn write_part(&self, number: usize, out: &mut Vec<u8>) {
        self.index.write_part(number, out);
    }

    fn read_part(&self, number: usize, bytes: &[u8]) -> Option<()> {
        self.parts_read.fetch_add(1, Ordering::Relaxed);
        self.index.read_part(number, bytes)
    }
}

/// A store whose changes a view follows.
struct Open {
    store: Arc<SledStore>,
    view: Arc<Watched>,
    following: tokio::task::JoinHandle<()>,
}

impl Open {
    fn on(dir: &TempDir) -> Self {
        Self::with(dir, Watched::new()).unwrap()
    }

    fn with(dir: &TempDir, view: Arc<Watched>) -> Result<Self, OpenError> {
        let options = options(SEGMENT_BYTES);
        let store = Arc::new(SledStore::open(LockedDir::lock(dir.path()).unwrap(), &options, view.clone())?);
        let mut changes = store.changes(store.revision()).unwrap();
        let index = view.index.clone();
        let following = tokio::spawn(async move {
            while let Ok(Some(batch)) = changes.next().await {
                index.apply(&batch);
            }
        });
        Ok(Self { store, view, following })
    }

    /// The index is the fold of the log: it holds what the store holds, and nothing else.
    async fn is_whole(&self, keys: u32) {
        self.view.index.reached(self.store.revision()).await;
        for number in 0..keys {
            let kept = self.store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap();
            let entry = self.view.index.get(&kept.secret.digest).unwrap();
            assert_eq!(entry.revision(), kept.revision, "key {number}");
            assert_eq!(entry.to_policy(), kept.policy);
            assert_eq!((entry.owner(), entry.display_name()), (&*kept.owner, &*kept.display_name));
            assert_eq!(entry.labels().count(), kept.labels.len());
            assert_eq!(entry.state() == State::Disabled, number == DISABLED);
        }
        assert_eq!(self.view.index.len(), keys as usize);
        assert_eq!(self.view.index.revision(), self.store.revision());
        assert_eq!(self.view.index.peppers().len(), 1);
    }

    async fn disable(&self, number: u32) {
        let mut changed =
            KeyRecord::clone(&*self.store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap());
        changed.policy.state = State::Disabled;
        self.store.commit(commit(vec![Put::Key(Box::new(changed))])).await.unwrap();
    }

    async fn close(self) {
        self.store.close().await.unwrap();
        drop(self.store);
        self.following.abort();
    }
}

fn images(dir: &TempDir) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.path().join("index")) else { return vec![] };
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|it| it == "kwi")).collect()
}

/// The keeper works beside everything else: waits until it has done something.
async fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        tokio::task::yield_now().await;
    }
}

/// A stopped store with an image, changes after it, and a key that was disabled after it.
async fn with_image() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let open = Open::on(&dir);
    for number in 0..KEYS {
        create(&*open.store, number).await;
    }
    wait_until("an image", || !images(&dir).is_empty()).await;
    open.disable(DISABLED).await;
    open.is_whole(KEYS).await;
    open.close().await;
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_from_an_image_knows_every_change_since() {
    let dir = with_image().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_an_image());
    let taken = open.view.records_taken();
    assert!(0 < taken && taken < KEYS as usize, "only what came after the image is read: {taken}");
    assert_eq!(*open.view.whole.lock(), [open.store.revision()], "it was told once that it is whole");
    open.is_whole(KEYS).await;
    // And life goes on: what was read from an image is written into the next one.
    for number in KEYS..3 * KEYS {
        create(&*open.store, number).await;
    }
    open.is_whole(3 * KEYS).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_an_image());
    open.is_whole(3 * KEYS).await;
    assert_eq!(images(&dir).len(), 1, "one is kept");
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_written_amid_changes_is_whole() {
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
    wait_until("an image", || !images(&dir).is_empty()).await;
    open.close().await;
    let open = Open::on(&dir);
    assert!(open.view.knew_an_image());
    open.is_whole(2 * KEYS).await;
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_image_is_not_used() {
    let dir = with_image().await;
    let path = images(&dir).remove(0);
    let sound = fs::read(&path).unwrap();
    let end = sound.len();
    // An entry, a name, the directory, each field of the end, its seal; and pieces of it.
    let mut spoiled: Vec<_> =
        [end / 3, end - 104 - 45, end - 104 - 20, end - 104, end - 96, end - 92, end - 88, end - 80, end - 48]
            .into_iter()
            .chain([end - 40, end - 36, end - 1])
            .map(|at| {
                let mut bytes = sound.clone();
                bytes[at] ^= 1;
                bytes
            })
            .collect();
    spoiled.extend([0, 1, 103, end / 2, end - 1].map(|length| sound[..length].to_vec()));
    // Another one is made where one is of no use.
    let put = |bytes: &[u8]| {
        images(&dir).iter().for_each(|path| fs::remove_file(path).unwrap());
        fs::write(&path, bytes).unwrap();
    };
    for bytes in spoiled {
        put(&bytes);
        let open = Open::on(&dir);
        assert!(!open.view.knew_an_image());
        open.is_whole(KEYS).await;
        open.close().await;
    }
    put(&sound);
    let open = Open::on(&dir);
    assert!(open.view.knew_an_image(), "the one that they were made from is sound");
    open.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_form_is_not_used() {
    let dir = with_image().await;
    let open = Open::with(&dir, Watched::of_form(image::FORM + 1)).unwrap();
    assert!(!open.view.knew_an_image());
    open.is_whole(KEYS).await;
    open.close().await;
}

/// The same pepper file, other changes: a key that is disabled here works there.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_log_is_not_used() {
    let (dir, other) = (with_image().await, tempfile::tempdir().unwrap());
    let open = Open::on(&other);
    for number in (0..KEYS).rev() {
        create(&*open.store, number).await;
    }
    open.disable(DISABLED).await;
    wait_until("an image", || !images(&other).is_empty()).await;
    open.close().await;
    let (theirs, ours) = (images(&dir).remove(0), images(&other).remove(0));
    fs::copy(theirs, ours).unwrap();
    let open = Open::on(&other);
    assert!(!open.view.knew_an_image());
    open.is_whole(KEYS).await;
    open.close().await;
}

/// With watermark, table and the journal's end gone, only the image knows that more was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_ahead_of_the_journal_stops_the_start() {
    let dir = with_image().await;
    let revision: u64 = images(&dir)[0].file_stem().unwrap().to_str().unwrap().parse().unwrap();
    fs::remove_file(dir.path().join("watermark")).unwrap();
    fs::remove_dir_all(dir.path().join("table")).unwrap();
    let mut segments: Vec<_> = fs::read_dir(dir.path().join("journal")).unwrap().map(|it| it.unwrap().path()).collect();
    segments.sort();
    for segment in segments.into_iter().rev() {
        let bytes = fs::read(&segment).unwrap();
        let first = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
        if first > revision {
            fs::remove_file(&segment).unwrap();
        }
    }
    let refused = Open::with(&dir, Watched::new()).err().unwrap();
    assert!(
        matches!(refused, OpenError::Missing { acknowledged, found, .. }
        if found == Revision(revision) && acknowledged > found),
        "{refused}"
    );
}

/// The golden bytes of the parts: who changes them must change [`image::FORM`] too, or a start would misread older images.
#[test]
fn the_form_of_an_image_has_not_drifted() {
    let index = Index::default();
    for number in 0..300 {
        let mut record = key(number);
        record.revision = Revision(u64::from(number) + 1);
        record.policy.expire_time = (number % 2 == 0).then_some(keyward_core::clock::UnixMillis(1_000));
        record.policy.allowed_cidrs.extend((number % 7 == 0).then(|| "10.0.0.0/8".parse::<ipnet::IpNet>().unwrap()));
        record.policy.scopes.extend((number % 3 == 0).then(|| keyward_core::scope::Scope::parse("a.b").unwrap()));
        index.fold(&[Record::Key(Arc::new(record))]);
    }
    let mut parts = vec![];
    (0..image::PARTS).for_each(|number| index.write_part(number, &mut parts));
    let golden = "68e88a4b02d76bab5ffbc52a97e58907bde60bf441f34294db552d63965fde7b";
    assert_eq!((image::FORM, blake3::hash(&parts).to_hex().as_str()), (1, golden));
}
