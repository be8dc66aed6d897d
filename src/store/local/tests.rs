//! What goes on while a part of the engine is held: the table's writer, or the threads that read lists.

use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use keyward_core::clock::ManualClock;
use keyward_core::record::{ShownState, State};
use keyward_core::testing::{SeededEntropy, key_record};
use prost::Message;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::committer::entry_bytes_max;
use super::committer::queue::TABLE_QUEUE_GROUPS_MAX;
use super::disk_space::free_bytes;
use super::journal::frame::{FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX};
use super::table::secondary_index::ListScan;
use super::*;
use crate::store::record::pb;
use crate::store::{EXAMINED_MIN, EXAMINED_PER_FOUND, RecordWrite};

/// Nothing here takes as long, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

fn open(dir: &tempfile::TempDir) -> Arc<LocalStore> {
    let options = StoreOptions {
        segment_bytes: 1024 * 1024,
        chain_key: Zeroizing::new([7; 32]),
        retention: Retention { bytes: u64::MAX, time: Duration::MAX },
        backup: BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX },
        clock: Arc::new(ManualClock::at(UnixMillis(1_000))),
        entropy: Arc::new(SeededEntropy::new(1)),
        bounds: Bounds::NONE,
        free_bytes,
        expectations: Expectations::default(),
    };
    Arc::new(LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, Arc::new(())).unwrap())
}

fn key(number: u64) -> KeyRecord {
    key_record(u32::try_from(number).unwrap())
}

fn commit(put: RecordWrite, narrows: bool) -> Commit {
    let (actor, target) = (ActorId::keyward(), String::new());
    Commit {
        actor,
        authorization: None,
        method: "Test",
        target,
        time: UnixMillis(1_000),
        narrows,
        urgent: narrows,
        writes: vec![put],
        retry: None,
    }
}

async fn create(store: &LocalStore, number: u64) -> KeyRecord {
    let revision = store.commit(commit(RecordWrite::NewKey(Box::new(key(number))), false)).await.unwrap();
    KeyRecord { revision, ..key(number) }
}

fn disabled(mut key: KeyRecord) -> Commit {
    key.spec.policy.state = State::Disabled;
    commit(RecordWrite::Key(Box::new(key)), true)
}

fn list(limit: usize) -> KeyQuery {
    let tenant = TenantId::default_tenant();
    let (states, labels, key_ids) = (vec![], Default::default(), vec![]);
    let clock = UnixMillis(0);
    KeyQuery { caller: ActorId::keyward(), tenant, states, clock, owner: None, labels, key_ids, after: None, limit }
}

#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "it holds up what would need it, and nothing else")]
async fn while_the_table_is_held_keys_are_disabled_and_other_changes_wait() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let held = store.table.scans().lock();
    // As many as may wait for it, each a group of its own.
    let mut keys = vec![];
    for number in 0..TABLE_QUEUE_GROUPS_MAX as u64 {
        keys.push(create(&store, number).await);
    }
    // How many the writer has taken by then to write them at once is up to it.
    while !store.commit_queue.is_held_back() {
        keys.push(create(&store, keys.len() as u64).await);
    }
    let made = keys.len();
    let mut waits = Box::pin(store.commit(commit(RecordWrite::NewKey(Box::new(key(9_000))), false)));
    assert!(poll!(&mut waits).is_pending());
    for key in keys.into_iter().take(20) {
        timeout(LIMIT, store.commit(disabled(key))).await.expect("it waits for the table").unwrap();
    }
    assert!(poll!(&mut waits).is_pending(), "it does not wait for the table");
    assert_eq!(store.waiting(), [0, 1]);
    drop(held);
    timeout(LIMIT, waits).await.unwrap().unwrap();
    assert_eq!(store.keys(list(1_000)).await.unwrap().records.len(), made + 1);
    store.close().await.unwrap();
}

#[tokio::test]
async fn while_all_lists_are_held_single_keys_are_read_and_disabled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let made = create(&store, 1).await;
    // In the table, and no longer kept beside it.
    store.caught_up().await.unwrap();
    let held = store.table.list_turns().begin_transaction();
    let mut lists: Vec<_> = (0..LISTS.per_party + 10).map(|_| Box::pin(store.keys(list(10)))).collect();
    for list in &mut lists {
        assert!(poll!(list).is_pending());
    }
    for urgent in [false, true] {
        let reader = ReadContext { caller: ActorId::keyward(), urgent };
        let read = store.key_for(&reader, &made.tenant, &made.key_id);
        assert!(timeout(LIMIT, read).await.expect("it waits for lists").unwrap().is_some());
    }
    timeout(LIMIT, store.commit(disabled(made))).await.expect("it waits for lists").unwrap();
    drop(held);
    for list in lists {
        assert_eq!(timeout(LIMIT, list).await.unwrap().unwrap().records.len(), 1);
    }
    store.close().await.unwrap();
}

/// With many other reads of keys waiting, the one before a change that takes power away waits for none of
/// them.
#[tokio::test]
async fn an_urgent_read_does_not_wait_for_other_reads_of_keys() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let made = create(&store, 1).await;
    store.caught_up().await.unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let mut others: Vec<_> = (0..KEY_THREADS + 10)
        .map(|_| {
            let held = held.clone();
            let read = move || Ok(Some(held.lock().recv().is_err()));
            Box::pin(store.key_readers.read(ActorId::keyward(), read))
        })
        .collect();
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    let reader = ReadContext { caller: ActorId::keyward(), urgent: true };
    let read = store.key_for(&reader, &made.tenant, &made.key_id);
    assert!(timeout(LIMIT, read).await.expect("it waits for other reads").unwrap().is_some());
    drop(release);
    for other in others {
        assert!(timeout(LIMIT, other).await.unwrap().unwrap());
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_long_list_gives_way_to_a_short_one_of_another_caller() {
    let readers = Readers::start("one", 1, None).unwrap();
    let (began, begins) = oneshot::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (mut began, mut slices) = (Some(began), 0);
    let order = Arc::new(Mutex::new(vec![]));
    let noted = order.clone();
    let long = readers.read(ActorId::keyward(), move || {
        if let Some(began) = began.take() {
            began.send(()).unwrap();
            assert!(held.recv().is_err());
        }
        slices += 1;
        Ok((slices == 100).then(|| noted.lock().push("long")))
    });
    let mut long = Box::pin(long);
    assert!(poll!(&mut long).is_pending());
    begins.await.unwrap();
    let noted = order.clone();
    let other = ActorId::parse("other").unwrap();
    let mut short = Box::pin(readers.read(other, move || {
        noted.lock().push("short");
        Ok(Some(()))
    }));
    assert!(poll!(&mut short).is_pending());
    drop(release);
    timeout(LIMIT, long).await.unwrap().unwrap();
    timeout(LIMIT, short).await.unwrap().unwrap();
    assert_eq!(*order.lock(), ["short", "long"]);
}

#[tokio::test]
async fn a_read_that_panics_ends_alone() {
    let readers = Readers::start("one", 1, None).unwrap();
    let read = readers.read(ActorId::keyward(), || -> Result<Option<()>, _> { panic!("sled may") });
    assert!(timeout(LIMIT, read).await.unwrap().is_err());
    assert_eq!(timeout(LIMIT, readers.read(ActorId::keyward(), || Ok(Some(7)))).await.unwrap().unwrap(), 7);
}

/// A list that is longer than a slice is the same as one that is not.
#[tokio::test]
async fn lists_are_whole_and_in_order_over_many_slices() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    const KEYS: u64 = 1_300;
    let commits: Vec<_> = (0..KEYS).map(key).collect();
    for some in commits.chunks(500) {
        let commits = some.iter().map(|key| store.commit(commit(RecordWrite::NewKey(Box::new(key.clone())), false)));
        for made in futures_util::future::join_all(commits).await {
            made.unwrap();
        }
    }
    let all = store.keys(list(2_000)).await.unwrap();
    assert!(all.records.iter().map(|key| &key.key_id).eq(commits.iter().map(|key| &key.key_id)));
    assert_eq!(all.next, None);
    for limit in [511, 512, 513, 1_024, 1_299] {
        let page = store.keys(list(limit)).await.unwrap();
        assert_eq!((page.records.len(), page.next.as_ref()), (limit, Some(&commits[limit - 1].key_id)));
        let rest = store.keys(KeyQuery { after: page.next, ..list(2_000) }).await.unwrap();
        assert_eq!(rest.records.len(), KEYS as usize - limit);
    }
    let none =
        store.keys(KeyQuery { states: vec![ShownState::Disabled, ShownState::Revoked], ..list(10) }).await.unwrap();
    assert!(none.records.is_empty() && none.next.is_none());
    store.close().await.unwrap();
}

/// What is durable is listed before the table has it: keys that it lacks, in their place, and the newer form
/// of others.
#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "it holds up what would need it, and nothing else")]
async fn while_the_table_is_held_lists_have_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    const KEYS: u64 = 400;
    let create_all = async |numbers: &mut dyn Iterator<Item = u64>| {
        let creates: Vec<_> = numbers.map(|number| create(&store, number)).collect();
        futures_util::future::join_all(creates).await
    };
    let older = create_all(&mut (0..KEYS).filter(|number| number % 3 == 0)).await;
    store.caught_up().await.unwrap();
    let held = store.table.scans().lock();
    create_all(&mut (0..KEYS).filter(|number| number % 3 != 0)).await;
    for key in older.iter().step_by(10) {
        store.commit(disabled(key.clone())).await.unwrap();
    }
    let is_disabled = |number: &u64| number.is_multiple_of(30);
    let listed = async |states: &[ShownState], limit: usize| {
        let (mut numbers, mut after) = (vec![], None);
        loop {
            let query = KeyQuery { states: states.to_vec(), after, ..list(limit) };
            let page = timeout(LIMIT, store.keys(query)).await.expect("it waits for the table").unwrap();
            numbers.extend(page.records.iter().map(|key| key.key_id.as_str()[4..].parse::<u64>().unwrap()));
            after = page.next;
            if after.is_none() {
                return numbers;
            }
        }
    };
    let all = async || {
        for limit in [1, 63, 64, 65, 1_000] {
            assert!(listed(&[], limit).await.into_iter().eq(0..KEYS), "{limit}");
            assert!(
                listed(&[ShownState::Disabled], limit).await.into_iter().eq((0..KEYS).filter(is_disabled)),
                "{limit}"
            );
            let active = (0..KEYS).filter(|number| !is_disabled(number));
            assert!(listed(&[ShownState::Active], limit).await.into_iter().eq(active), "{limit}");
        }
    };
    all().await;
    // However full the write buffer is, a list that names keys looks at those alone.
    let key_ids = older.iter().rev().map(|key| key.key_id.clone()).collect();
    let mut scan = ListScan::new(KeyQuery { key_ids, states: vec![ShownState::Disabled], ..list(1_000) });
    let page = loop {
        if let Some(page) = store.table.resume_list(&store.write_buffer, &mut scan).unwrap() {
            break page;
        }
    };
    assert!(scan.buffered() <= older.len(), "{}", scan.buffered());
    let named: Vec<_> = page.records.iter().map(|key| key.key_id.clone()).collect();
    assert!(named.iter().eq(older.iter().step_by(10).map(|key| &key.key_id)), "{named:?}");
    drop(held);
    all().await;
    store.caught_up().await.unwrap();
    all().await;
    store.close().await.unwrap();
}

fn labelled(number: u64, owner: &str, labels: &[(&str, &str)], state: State) -> KeyRecord {
    let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut key = key(number);
    (key.spec.owner, key.spec.labels) = (owner.into(), labels);
    key.spec.policy.state = state;
    key
}

async fn create_all(store: &LocalStore, keys: impl Iterator<Item = KeyRecord>) {
    let keys: Vec<_> = keys.collect();
    let put = |key: &KeyRecord| RecordWrite::NewKey(Box::new(key.clone()));
    for some in keys.chunks(500) {
        let writes = some.iter().map(put).collect();
        store.commit(Commit { writes, ..commit(put(&some[0]), false) }).await.unwrap();
    }
    store.caught_up().await.unwrap();
}

/// All pages of a list. None of them looks at more keys than it may, and none that leads on is empty.
fn pages(store: &LocalStore, query: KeyQuery) -> Result<Vec<u64>, StoreError> {
    let (mut numbers, mut query) = (vec![], query);
    loop {
        let mut scan = ListScan::new(query.clone());
        let page = loop {
            if let Some(page) = store.table.resume_list(&store.write_buffer, &mut scan)? {
                break page;
            }
        };
        let may_examine = EXAMINED_MIN + EXAMINED_PER_FOUND * page.records.len();
        assert!(scan.examined() <= may_examine, "{} of {may_examine}", scan.examined());
        assert!(page.next.is_none() || !page.records.is_empty());
        numbers.extend(page.records.iter().map(|key| key.key_id.as_str()[4..].parse::<u64>().unwrap()));
        query.after = page.next;
        if query.after.is_none() {
            return Ok(numbers);
        }
    }
}

#[tokio::test]
async fn the_few_disabled_keys_of_an_owner_with_many_are_listed_without_reading_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    const KEYS: u64 = 6_000;
    let state = |number: u64| match number {
        3_000 | 5_990 => State::Disabled,
        17 => State::Revoked,
        _ => State::Active,
    };
    create_all(&store, (0..KEYS).map(|n| labelled(n, "acme", &[("team", "growth")], state(n)))).await;
    let of_owner = |states: &[ShownState]| KeyQuery { owner: Some("acme".into()), states: states.to_vec(), ..list(50) };
    let of_label = |states: &[ShownState]| {
        let labels = [("team".to_owned(), "growth".into())].into();
        KeyQuery { labels, states: states.to_vec(), ..list(50) }
    };
    let of_any = |states: &[ShownState]| KeyQuery { states: states.to_vec(), ..list(50) };
    for query in [of_owner, of_any] as [fn(&[ShownState]) -> KeyQuery; 2] {
        assert_eq!(pages(&store, query(&[ShownState::Disabled])).unwrap(), [3_000, 5_990]);
        assert_eq!(pages(&store, query(&[ShownState::Disabled, ShownState::Revoked])).unwrap(), [17, 3_000, 5_990]);
        assert_eq!(pages(&store, query(&[ShownState::Active])).unwrap().len() as u64, KEYS - 3);
        assert_eq!(pages(&store, query(&[])).unwrap().len() as u64, KEYS);
    }
    assert_eq!(pages(&store, of_label(&[ShownState::Disabled])).unwrap(), [3_000, 5_990]);
    let both = KeyQuery { owner: Some("acme".into()), ..of_label(&[ShownState::Revoked]) };
    assert_eq!(pages(&store, both).unwrap(), [17]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn conditions_with_much_each_and_next_to_nothing_in_common_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let owner = |number: u64| if number.is_multiple_of(2) { "even" } else { "odd" };
    // Of `even`, the first 300 are gold, and one past many others.
    let labels = |number: u64| match number {
        number if number % 2 == 1 || number < 600 || number == 3_000 => &[("tier", "gold")][..],
        _ => &[],
    };
    create_all(&store, (0..4_000).map(|n| labelled(n, owner(n), labels(n), State::Active))).await;
    let gold = |owner: &str, limit: usize| KeyQuery {
        owner: Some(owner.into()),
        labels: [("tier".to_owned(), "gold".into())].into(),
        ..list(limit)
    };
    assert_eq!(pages(&store, gold("odd", 50)).unwrap().len(), 2_000);
    let first = store.keys(gold("even", 250)).await.unwrap();
    assert_eq!(first.records.len(), 250);
    // The page after it gives what there is, and ends short.
    let second = store.keys(KeyQuery { after: first.next, ..gold("even", 250) }).await.unwrap();
    assert_eq!((second.records.len(), second.next.is_some()), (50, true));
    let after = Some(KeyId::parse("key-002000").unwrap());
    let refused = store.keys(KeyQuery { after, ..gold("even", 250) }).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooSparse), "{refused}");
    // Where one of them has few, there is an end.
    let after = Some(KeyId::parse("key-003800").unwrap());
    assert!(pages(&store, KeyQuery { after, ..gold("even", 250) }).unwrap().is_empty());
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_table_of_the_layout_before_is_converted_and_one_of_an_unknown_layout_built_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    create_all(&store, (0..700).map(|n| labelled(n, "acme", &[], State::Active))).await;
    let suspended = KeyRecord { resume_time: Some(UnixMillis(5)), ..labelled(700, "acme", &[], State::Disabled) };
    create_all(&store, [suspended].into_iter()).await;
    store.close().await.unwrap();
    drop(store);
    let path = LockedDir::lock(dir.path()).unwrap().table();
    let layouts =
        [(None, true, 0), (Some([9]), false, 1), (Some([2]), true, 0), (Some([2]), false, 0), (Some([3]), false, 0)];
    for (layout, is_old, rebuilds) in layouts {
        {
            // Threads of the table that was just closed may still hold its file.
            crate::util::files::lock_with_retry(&std::fs::File::open(path.join("db")).unwrap()).unwrap();
            let db = sled::open(&path).unwrap();
            let (meta, facets) = (db.open_tree("meta").unwrap(), db.open_tree("facets").unwrap());
            match layout {
                Some(layout) => drop(meta.insert("layout", &layout).unwrap()),
                None => drop(meta.remove("layout").unwrap()),
            }
            if is_old {
                facets.clear().unwrap();
                facets.insert("default\0o\0acme\0key-000007", b"").unwrap();
                facets.insert("default\0o\0acme\0disabled\0key-000700", b"").unwrap();
            }
            db.flush().unwrap();
        }
        let store = open(&dir);
        assert_eq!(Store::table_stats(&*store).rebuilds, rebuilds, "{layout:?}");
        assert_eq!(pages(&store, KeyQuery { owner: Some("acme".into()), ..list(100) }).unwrap().len(), 701);
        assert_eq!(store.table.due(None, UnixMillis(5), 10).unwrap().len(), 1, "{layout:?}");
        assert!(store.table.has_current_layout().unwrap());
        store.close().await.unwrap();
    }
}

/// New keys in one commit, with descriptions as long as a record takes.
fn many(first: u64, count: u64) -> Commit {
    let long = |number| {
        let mut key = key(number);
        key.spec.description = "x".repeat(3_500);
        RecordWrite::NewKey(Box::new(key))
    };
    Commit {
        writes: (first..first + count).map(long).collect(),
        ..commit(RecordWrite::NewKey(Box::new(key(first))), false)
    }
}

#[tokio::test]
async fn what_no_frame_takes_is_refused_and_what_nearly_fills_one_is_read_again() {
    let fits = (PAYLOAD_BYTES_MAX - 200) / (entry_bytes_max(&many(0, 101)) - entry_bytes_max(&many(0, 100)));
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let refused = store.commit(many(0, fits as u64 + 2)).await;
    assert!(matches!(refused, Err(CommitError::TooLong { max: PAYLOAD_BYTES_MAX, .. })), "{refused:?}");
    assert_eq!(store.revision(), Revision(0), "nothing is written");

    // While the first is written, the others wait: each small one begins a group that has no room for a large
    // one.
    let (large, small) = (fits as u64, 5);
    let mut waiting = vec![store.commit(many(0, large))];
    for number in 1..=small {
        waiting.push(store.commit(commit(RecordWrite::NewKey(Box::new(key(1_000_000 + number))), false)));
        waiting.push(store.commit(many(number * large, large)));
    }
    for acknowledged in futures_util::future::join_all(waiting).await {
        acknowledged.unwrap();
    }
    assert_eq!(store.revision(), Revision(1 + 2 * small));
    store.close().await.unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.revision(), Revision(1 + 2 * small));
}

#[tokio::test]
async fn a_group_ends_before_the_commit_that_would_make_its_frame_longer_than_1_mib() {
    const COMMITS: u64 = 600;
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let waiting: Vec<_> = (0..COMMITS).map(|number| store.commit(many(number * 2, 2))).collect();
    for acknowledged in futures_util::future::join_all(waiting).await {
        acknowledged.unwrap();
    }
    store.close().await.unwrap();
    drop(store);
    let (mut lengths, mut commits) = (vec![], 0);
    let journal = LockedDir::lock(dir.path()).unwrap().journal();
    let key = journal::ChainKey(Zeroizing::new([7; 32]));
    journal::scan::scan_after(&journal, &key, Revision(0), |entries: Vec<pb::JournalEntry>, _| {
        let bytes: usize = entries.iter().map(Message::encoded_len).sum();
        assert!(bytes < FRAME_BYTES_MAX, "{bytes}");
        commits += entries.len();
        lengths.push(bytes);
    })
    .unwrap();
    assert_eq!(commits as u64, COMMITS);
    // 256 such commits would have 1.8 MiB.
    assert!(lengths.iter().any(|bytes| *bytes > FRAME_BYTES_MAX - 20_000), "no group was full: {lengths:?}");
}
