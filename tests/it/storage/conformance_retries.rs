//! What every storage engine must do with changes that are asked for again. Each test runs on each engine.

use std::sync::Arc;

use futures_util::future::join_all;
use keyward::store::local::journal::requests::{RequestOf, read_back};
use keyward::store::{Commit, CommitError, Outcome, ReadContext, Recalled, RecordWrite, Retry, Store};
use keyward_core::access::{Caller, Identity, Issue};
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, RequestId, TenantId};
use keyward_core::record::{KeyRecord, State};
use keyward_core::scope::Scope;

use super::conformance::on_every_engine;
use crate::support::local_store::{commit, create, key, open};

on_every_engine![
    a_request_is_made_once_and_told_of_as_it_was,
    an_id_belongs_to_its_caller_and_is_forgotten_after_ten_minutes,
    of_requests_in_one_group_the_first_is_made,
    a_request_that_was_refused_leaves_its_id_free,
];

const TEN_MINUTES_MS: i64 = 600_000;

fn retry(id: &str, payload: u8) -> Retry {
    Retry { request_id: RequestId::parse(id).unwrap(), payload_hash: [payload; 32] }
}

fn actor(name: &str) -> ActorId {
    ActorId::parse(name).unwrap()
}

/// A new key under a request id, with a sealed reply, by an actor at a time.
fn named(number: u32, id: &str, by: &str, time: i64) -> Commit {
    Commit {
        actor: actor(by),
        time: UnixMillis(time),
        retry: Some((retry(id, 1), Some(vec![number as u8; 60]))),
        ..commit(vec![RecordWrite::NewKey(Box::new(key(number)))])
    }
}

async fn outcome(store: &dyn Store, revision: Revision) -> Option<Outcome> {
    let reader = ReadContext { caller: actor("one"), urgent: false };
    store.outcome(&reader, revision).await.unwrap()
}

async fn a_request_is_made_once_and_told_of_as_it_was(store: Arc<dyn Store>) {
    let made = store.commit(named(1, "id", "one", 1_000)).await.unwrap();
    let stored = store.key(&key(1).tenant, &key(1).key_id).await.unwrap().unwrap();
    let mut later = KeyRecord::clone(&stored);
    later.spec.description = "later".into();
    store.commit(commit(vec![RecordWrite::Key(Box::new(later))])).await.unwrap();
    let before = store.revision();
    let again = store.commit(named(2, "id", "one", 1_000)).await;
    assert!(matches!(again, Err(CommitError::Repeated(revision)) if revision == made), "{again:?}");
    let reused = Commit { retry: Some((retry("id", 2), None)), ..named(2, "id", "one", 1_000) };
    assert!(matches!(store.commit(reused).await, Err(CommitError::RequestIdReused)));
    assert_eq!(store.revision(), before);
    assert_eq!(store.recall(&actor("one"), &retry("id", 1), UnixMillis(1_000)), Recalled::Made(made));
    assert_eq!(store.recall(&actor("one"), &retry("id", 2), UnixMillis(1_000)), Recalled::Reused);
    let told = outcome(&*store, made).await.unwrap();
    assert_eq!(told.records, [Record::Key(stored)]);
    assert_eq!(told.sealed_reply, Some(vec![1; 60]));
    assert!(outcome(&*store, before).await.is_none(), "it had no id");
}

async fn an_id_belongs_to_its_caller_and_is_forgotten_after_ten_minutes(store: Arc<dyn Store>) {
    let one = store.commit(named(1, "id", "one", 1_000)).await.unwrap();
    let two = store.commit(named(2, "id", "two", 1_000)).await.unwrap();
    let end = 1_000 + TEN_MINUTES_MS;
    for (by, made) in [("one", one), ("two", two)] {
        assert_eq!(store.recall(&actor(by), &retry("id", 1), UnixMillis(end - 1)), Recalled::Made(made));
        assert_eq!(store.recall(&actor(by), &retry("id", 1), UnixMillis(end)), Recalled::New);
    }
    let last = store.commit(named(3, "id", "one", end - 1)).await;
    assert!(matches!(last, Err(CommitError::Repeated(revision)) if revision == one), "{last:?}");
    let anew = store.commit(named(3, "id", "one", end)).await.unwrap();
    assert_eq!(store.recall(&actor("one"), &retry("id", 1), UnixMillis(end)), Recalled::Made(anew));
    assert_eq!(outcome(&*store, anew).await.unwrap().sealed_reply, Some(vec![3; 60]));
}

async fn of_requests_in_one_group_the_first_is_made(store: Arc<dyn Store>) {
    for round in 0..10_u32 {
        let id = format!("id-{round}");
        let commits = (0..32).map(|number| store.commit(named(1_000 + round * 32 + number, &id, "one", 1_000)));
        let (mut made, mut repeated) = (vec![], vec![]);
        for outcome in join_all(commits).await {
            match outcome {
                Ok(revision) => made.push(revision),
                Err(CommitError::Repeated(revision)) => repeated.push(revision),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!((made.len(), repeated.len()), (1, 31));
        assert!(repeated.iter().all(|revision| *revision == made[0]));
        assert_eq!(store.revision(), made[0]);
    }
}

async fn a_request_that_was_refused_leaves_its_id_free(store: Arc<dyn Store>) {
    store.commit(commit(vec![RecordWrite::NewKey(Box::new(key(1)))])).await.unwrap();
    assert!(matches!(store.commit(named(1, "id", "one", 1_000)).await, Err(CommitError::Exists)));
    assert_eq!(store.recall(&actor("one"), &retry("id", 1), UnixMillis(1_000)), Recalled::New);
    store.commit(named(2, "id", "one", 1_000)).await.unwrap();
}

#[tokio::test]
async fn requests_and_their_replies_are_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 64 * 1024);
    let mut made = vec![];
    for number in 1..200 {
        made.push(store.commit(named(number, &format!("id-{number}"), "one", 1_000)).await.unwrap());
    }
    store.close().await.unwrap();
    drop(store);
    let store = open(&dir, 64 * 1024);
    for (number, revision) in (1..200_u32).zip(made) {
        let id = format!("id-{number}");
        assert_eq!(store.recall(&actor("one"), &retry(&id, 1), UnixMillis(1_000)), Recalled::Made(revision));
        let told = outcome(&store, revision).await.unwrap();
        assert_eq!(told.sealed_reply, Some(vec![number as u8; 60]));
        assert_eq!(told.key().unwrap().key_id, key(number).key_id);
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn where_sealed_replies_cannot_be_kept_what_takes_power_away_is_made_all_the_same() {
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 1024 * 1024);
        std::fs::write(dir.path().join("replies"), "no directory").unwrap();
        let mut keys = vec![];
        for number in 0..64 {
            keys.push(create(&store, number).await);
        }
        let before = store.revision();
        // All are queued while the first of them are made.
        let disabled = keys.iter().zip(0_u8..).map(|(key, number)| {
            let mut disabled = key.clone();
            disabled.spec.policy.state = State::Disabled;
            let writes = vec![RecordWrite::Key(Box::new(disabled))];
            let retry = number.is_multiple_of(2).then(|| (retry(&format!("off-{number}"), 1), None));
            store.commit(Commit { narrows: true, urgent: number < 32, retry, ..commit(writes) })
        });
        let sealed = (0..64).map(|number| store.commit(named(1_000 + number, &format!("id-{number}"), "one", 1_000)));
        let (disabled, sealed) = tokio::join!(join_all(disabled), join_all(sealed));
        for refused in sealed {
            assert!(matches!(refused, Err(CommitError::DiskFull)), "{refused:?}");
        }
        for (disabled, key) in disabled.into_iter().zip(&keys) {
            disabled.unwrap();
            let key = store.key(&key.tenant, &key.key_id).await.unwrap().unwrap();
            assert_eq!(key.spec.policy.state, State::Disabled);
        }
        assert_eq!(store.revision().0, before.0 + 64);
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_whose_enabling_was_given_up_with_its_group_is_still_disabled() {
    let mut met = 0;
    for round in 0..50 {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 1024 * 1024);
        std::fs::write(dir.path().join("replies"), "no directory").unwrap();
        let mut caller = KeyRecord { tenant: TenantId::system(), ..key(1) };
        caller.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
        caller.spec.policy.state = State::Disabled;
        caller.revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(caller.clone()))])).await.unwrap();
        let mut enabled = caller.clone();
        enabled.spec.policy.state = State::Active;
        let identity = Identity::of_key(caller.key_id.clone(), caller.secret.digest, None);
        let grant = Caller::new(identity, &caller.spec.policy.scopes).grant::<Issue>(key(2).tenant).unwrap();
        let by_caller = |number| Commit {
            actor: ActorId::from(&caller.key_id),
            authorization: Some(grant.authorization(UnixMillis(1_000))),
            ..commit(vec![RecordWrite::NewKey(Box::new(key(number)))])
        };
        // What comes first is made while the others are queued. Callers take turns, so it is by another one.
        let fillers = (0..4).map(|number| Commit {
            actor: actor("another"),
            ..commit(vec![RecordWrite::NewKey(Box::new(key(100 + number)))])
        });
        let together = [
            commit(vec![RecordWrite::Key(Box::new(enabled))]),
            by_caller(2),
            named(3, &format!("id-{round}"), "one", 1_000),
        ];
        let results = join_all(fillers.chain(together).map(|made| store.commit(made))).await;
        let [.., enabling, change, _] = &results[..] else { panic!("{results:?}") };
        if matches!((enabling, change), (Err(CommitError::DiskFull), Err(CommitError::DiskFull))) {
            met += 1;
            let later = store.commit(by_caller(4)).await;
            assert!(matches!(later, Err(CommitError::Unauthorized(_))), "{later:?}");
        }
        store.close().await.unwrap();
    }
    assert!(met > 0, "no group had all three");
}

#[tokio::test]
async fn a_start_reads_the_newest_requests_up_to_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 64 * 1024);
    for number in 1..200 {
        store.commit(named(number, &format!("id-{number}"), "one", 1_000)).await.unwrap();
    }
    let last = store.revision();
    store.close().await.unwrap();
    for max in [1, 10, 150, 300] {
        let read = |entry: RequestOf, _| Some(entry.revision);
        let read = read_back(&dir.path().join("journal"), last, (UnixMillis(0), max), read).unwrap();
        let expected = last.0 + 1 - (max as u64).min(199);
        assert!(read.eq(expected..=last.0), "{max}");
    }
}
