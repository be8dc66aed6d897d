//! What every storage engine must do. Each test runs on each engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use keyward::store::{Commit, CommitError, KeyQuery, RecordWrite, SoughtText, Store};
use keyward_core::access::{Caller, Credential, Identity, Issue, RoleScope, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::DenyReason;
use keyward_core::digest::Digest;
use keyward_core::event::{Change, Revision};
use keyward_core::id::{ActorId, TenantId};
use keyward_core::identity::{Assignment, Identities, IdentityName, PeerIdentity};
use keyward_core::record::{Deletion, KeyPolicy, KeyRecord, KeySpec, ShownState, State, TenantRecord};
use keyward_core::scope::Scope;
use keyward_core::testing::tenant_record;

use crate::support::local_store::{commit, create, key, open};

macro_rules! on_every_engine {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test]
            async fn $test() {
                super::$test(std::sync::Arc::new(keyward::store::memory::MemoryStore::default())).await;
            })*
        }
        mod sled {
            $(#[tokio::test]
            async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                let store = std::sync::Arc::new(crate::support::local_store::open(&dir, 64 * 1024));
                super::$test(store.clone()).await;
                keyward::store::Store::close(&*store).await.unwrap();
            })*
        }
    };
}
pub(crate) use on_every_engine;

on_every_engine![
    what_is_committed_is_read_back,
    revisions_grow_by_one_and_failures_take_none,
    a_key_is_made_once,
    a_stale_version_is_refused,
    a_change_is_made_only_while_its_caller_may,
    a_change_is_made_only_while_the_identity_of_its_connection_holds,
    the_last_lasting_administrator_stays,
    a_commit_is_all_or_nothing,
    a_record_past_its_limit_is_refused,
    pages_are_ordered_and_complete,
    queries_meet_every_condition,
    changes_come_in_order_and_without_gaps,
    the_log_has_every_change_from_any_revision_on,
    the_log_is_read_while_it_is_written,
    a_subscription_goes_on_where_the_log_was_read_to,
    concurrent_writers_of_one_key_all_get_their_turn_or_are_told,
    a_closed_store_takes_nothing_more,
];

fn tenant(id: &str) -> Box<TenantRecord> {
    Box::new(tenant_record(id))
}

fn query(limit: usize) -> KeyQuery {
    KeyQuery {
        caller: ActorId::keyward(),
        tenant: TenantId::default_tenant(),
        states: vec![],
        clock: UnixMillis(0),
        owner: None,
        labels: BTreeMap::new(),
        key_ids: vec![],
        after: None,
        limit,
    }
}

async fn read(store: &dyn Store, key: &KeyRecord) -> Option<KeyRecord> {
    store.key(&key.tenant, &key.key_id).await.unwrap().map(|found| KeyRecord::clone(&found))
}

async fn what_is_committed_is_read_back(store: Arc<dyn Store>) {
    let made = create(&*store, 1).await;
    assert_eq!(read(&*store, &made).await, Some(made.clone()));
    assert_eq!(read(&*store, &key(2)).await, None);

    let mut changed = made.clone();
    changed.spec.policy.state = State::Disabled;
    let revision = store.commit(commit(vec![RecordWrite::Key(Box::new(changed.clone()))])).await.unwrap();
    assert_eq!(read(&*store, &made).await, Some(KeyRecord { revision, ..changed }));

    store.commit(commit(vec![RecordWrite::NewTenant(tenant("acme"))])).await.unwrap();
    assert_eq!(store.tenant(&TenantId::parse("acme").unwrap()).await.unwrap().unwrap().display_name, "acme");
    assert!(store.tenant(&TenantId::parse("globex").unwrap()).await.unwrap().is_none());
}

async fn revisions_grow_by_one_and_failures_take_none(store: Arc<dyn Store>) {
    for number in 1..=5 {
        assert_eq!(create(&*store, number).await.revision, Revision(u64::from(number)));
        let again = store.commit(commit(vec![RecordWrite::NewKey(Box::new(key(number)))])).await;
        assert!(matches!(again, Err(CommitError::Exists)));
        assert_eq!(store.revision(), Revision(u64::from(number)));
    }
}

async fn a_key_is_made_once(store: Arc<dyn Store>) {
    create(&*store, 1).await;
    let same_id = KeyRecord { secret: key(2).secret, ..key(1) };
    let same_secret = KeyRecord { key_id: key(2).key_id, ..key(1) };
    for twin in [same_id, same_secret] {
        let refused = store.commit(commit(vec![RecordWrite::NewKey(Box::new(twin))])).await;
        assert!(matches!(refused, Err(CommitError::Exists)));
    }
    // The tenant is part of the name.
    let elsewhere = KeyRecord { tenant: TenantId::system(), secret: key(3).secret, ..key(1) };
    store.commit(commit(vec![RecordWrite::NewKey(Box::new(elsewhere))])).await.unwrap();
    store.commit(commit(vec![RecordWrite::NewTenant(tenant("acme"))])).await.unwrap();
    let again = store.commit(commit(vec![RecordWrite::NewTenant(tenant("acme"))])).await;
    assert!(matches!(again, Err(CommitError::Exists)));
}

async fn a_stale_version_is_refused(store: Arc<dyn Store>) {
    let made = create(&*store, 1).await;
    let change = |from: &KeyRecord| commit(vec![RecordWrite::Key(Box::new(from.clone()))]);
    let revision = store.commit(change(&made)).await.unwrap();
    assert!(matches!(store.commit(change(&made)).await, Err(CommitError::Outdated)));
    let foreign = KeyRecord { secret: key(2).secret, revision, ..made.clone() };
    assert!(matches!(store.commit(change(&foreign)).await, Err(CommitError::Outdated)));
    assert!(matches!(store.commit(change(&key(9))).await, Err(CommitError::Outdated)));
    store.commit(change(&KeyRecord { revision, ..made })).await.unwrap();
}

async fn a_change_is_made_only_while_its_caller_may(store: Arc<dyn Store>) {
    let scopes = |scopes: &[&str]| scopes.iter().map(|s| Scope::parse(s).unwrap()).collect::<Vec<_>>();
    let mut caller = KeyRecord { tenant: TenantId::system(), ..key(900) };
    caller.spec.policy.scopes = scopes(&["keyward.issuer"]);
    let identity = Identity::of_key(caller.key_id.clone(), caller.secret.digest, None);
    let granted = |identity: &Identity| {
        let issuer = Caller::new(identity.clone(), &scopes(&["keyward.issuer"]));
        Some(issuer.grant::<Issue>(TenantId::default_tenant()).unwrap().authorization(UnixMillis(1_000)))
    };
    let issue = |number: u32| Commit {
        authorization: granted(&identity),
        ..commit(vec![RecordWrite::NewKey(Box::new(key(number)))])
    };
    let refusal = |outcome: Result<Revision, CommitError>| match outcome {
        Err(CommitError::Unauthorized(why)) => why,
        other => panic!("it is not refused for its caller: {other:?}"),
    };
    assert_eq!(refusal(store.commit(issue(901)).await), Unauthorized::Key(DenyReason::Unknown), "there is no such key");
    let made = store.commit(commit(vec![RecordWrite::NewKey(Box::new(caller.clone()))])).await.unwrap();
    store.commit(issue(901)).await.unwrap();

    let put = |key: &KeyRecord, policy: KeyPolicy| {
        let spec = KeySpec { policy, ..key.spec.clone() };
        commit(vec![RecordWrite::Key(Box::new(KeyRecord { spec, ..key.clone() }))])
    };
    let (works, mut now) = (caller.spec.policy.clone(), KeyRecord { revision: made, ..caller.clone() });
    let lost = [
        (KeyPolicy { state: State::Disabled, ..works.clone() }, Unauthorized::Key(DenyReason::Disabled)),
        (KeyPolicy { scopes: scopes(&["keyward.viewer"]), ..works.clone() }, Unauthorized::Role),
        (KeyPolicy { scopes: scopes(&["keyward.issuer@acme"]), ..works.clone() }, Unauthorized::Role),
        (KeyPolicy { expire_time: Some(UnixMillis(1_000)), ..works.clone() }, Unauthorized::Key(DenyReason::Expired)),
        (
            KeyPolicy { audiences: vec!["mail".into()], ..works.clone() },
            Unauthorized::Key(DenyReason::AudienceMismatch),
        ),
    ];
    for (number, (policy, why)) in (902..).zip(lost) {
        // One behind the other in the queue, and so, most often, in one group.
        let (taken, refused) = tokio::join!(store.commit(put(&now, policy)), store.commit(issue(number)));
        now.revision = taken.unwrap();
        assert_eq!(refusal(refused), why);
        assert_eq!(refusal(store.commit(issue(number)).await), why);
        assert!(read(&*store, &key(number)).await.is_none());
        now.revision = store.commit(put(&now, works.clone())).await.unwrap();
        store.commit(issue(number)).await.unwrap();
    }
    // A secret that is not the key's any more.
    let other = Identity::of_key(caller.key_id.clone(), Digest::from_bytes([9; 32]), None);
    let commit = Commit { authorization: granted(&other), ..issue(950) };
    assert_eq!(refusal(store.commit(commit).await), Unauthorized::Key(DenyReason::Unknown));
}

async fn a_change_is_made_only_while_the_identity_of_its_connection_holds(store: Arc<dyn Store>) {
    let name = IdentityName::parse("spiffe://prod.example/issuer").unwrap();
    let given = |roles: &[&str]| {
        let roles = roles.iter().map(|role| RoleScope::parse(&Scope::parse(role).unwrap()).unwrap()).collect();
        Assignment { name: name.clone(), roles, audience: None }
    };
    let identities = Arc::new(Identities::new([given(&["keyward.issuer"])]));
    let connection = || Arc::new(PeerIdentity::new(Some(name.clone()), Some(UnixMillis(1_000))));
    let asks = |number: u32, connection: &Arc<PeerIdentity>, clock: i64| {
        let credential = Credential::Connection { name: name.clone(), identities: identities.clone() };
        let identity = Identity { credential, peer: None, connection: Some(connection.clone()) };
        let issuer = Caller::assigned(identity, &given(&["keyward.issuer"]));
        let grant = issuer.grant::<Issue>(TenantId::default_tenant()).unwrap();
        let authorization = Some(grant.authorization(UnixMillis(clock)));
        Commit { authorization, ..commit(vec![RecordWrite::NewKey(Box::new(key(number)))]) }
    };
    let refusal = async |commit: Commit| match store.commit(commit).await {
        Err(CommitError::Unauthorized(why)) => why,
        other => panic!("it is not refused for its caller: {other:?}"),
    };
    let open = connection();
    store.commit(asks(960, &open, 1_000)).await.unwrap();
    assert_eq!(refusal(asks(961, &open, 1_001)).await, Unauthorized::Identity, "its certificate has ended");
    let withdrawn = connection();
    withdrawn.withdraw();
    assert_eq!(refusal(asks(961, &withdrawn, 1_000)).await, Unauthorized::Identity);
    identities.replace([given(&["keyward.issuer@acme", "keyward.viewer"])]);
    assert_eq!(refusal(asks(961, &open, 1_000)).await, Unauthorized::Role);
    identities.replace([]);
    assert_eq!(refusal(asks(961, &open, 1_000)).await, Unauthorized::Identity);
    identities.replace([given(&["keyward.issuer"])]);
    store.commit(asks(961, &open, 1_000)).await.unwrap();
}

async fn the_last_lasting_administrator_stays(store: Arc<dyn Store>) {
    let administrator = |number: u32| {
        let mut made = KeyRecord { tenant: TenantId::system(), ..key(number) };
        made.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
        made
    };
    let disabled = |key: &KeyRecord, revision: Revision| {
        let mut key = KeyRecord { revision, ..key.clone() };
        key.spec.policy.state = State::Disabled;
        RecordWrite::Key(Box::new(key))
    };
    assert_eq!(store.lasting_administrators(UnixMillis(1_000)), 0);
    let (one, two) = (administrator(1), administrator(2));
    let of_one = store.commit(commit(vec![RecordWrite::NewKey(Box::new(one.clone()))])).await.unwrap();
    let last = disabled(&one, of_one);
    let RecordWrite::Key(asked) = &last else { unreachable!() };
    assert!(matches!(store.check_administrators(asked, UnixMillis(1_000)), Err(CommitError::LastAdministrator)));
    assert!(matches!(store.commit(commit(vec![last])).await, Err(CommitError::LastAdministrator)));
    assert_eq!(store.revision(), of_one);
    assert_eq!(read(&*store, &one).await.unwrap().spec.policy.state, State::Active);

    // Two at once are as bad as one after the other; one that is made with the same commit is good.
    let of_two = store.commit(commit(vec![RecordWrite::NewKey(Box::new(two.clone()))])).await.unwrap();
    let both = vec![disabled(&one, of_one), disabled(&two, of_two)];
    assert!(matches!(store.commit(commit(both)).await, Err(CommitError::LastAdministrator)));
    let three = RecordWrite::NewKey(Box::new(administrator(3)));
    store.commit(commit(vec![disabled(&one, of_one), disabled(&two, of_two), three])).await.unwrap();
    assert_eq!(store.lasting_administrators(UnixMillis(1_000)), 1);
}

async fn a_commit_is_all_or_nothing(store: Arc<dyn Store>) {
    create(&*store, 1).await;
    let before = store.revision();
    let half_good = commit(vec![RecordWrite::NewKey(Box::new(key(2))), RecordWrite::NewKey(Box::new(key(1)))]);
    assert!(matches!(store.commit(half_good).await, Err(CommitError::Exists)));
    assert_eq!(read(&*store, &key(2)).await, None);
    assert_eq!(store.revision(), before);
    let good = commit(vec![RecordWrite::NewKey(Box::new(key(2))), RecordWrite::NewKey(Box::new(key(3)))]);
    let revision = store.commit(good).await.unwrap();
    for number in [2, 3] {
        assert_eq!(read(&*store, &key(number)).await.unwrap().revision, revision);
    }
}

async fn a_record_past_its_limit_is_refused(store: Arc<dyn Store>) {
    let mut large = key(1);
    large.spec.description = "x".repeat(7_000);
    let refused = store.commit(commit(vec![RecordWrite::NewKey(Box::new(large))])).await;
    assert!(matches!(refused, Err(CommitError::TooLarge { bytes }) if bytes > 7_000));
    assert_eq!(read(&*store, &key(1)).await, None);
}

async fn pages_are_ordered_and_complete(store: Arc<dyn Store>) {
    for number in (1..=20).rev() {
        create(&*store, number).await;
    }
    for limit in [1, 7, 19, 20, 21] {
        let mut seen = vec![];
        let mut next = query(limit);
        loop {
            let page = store.keys(next.clone()).await.unwrap();
            assert!(page.records.len() <= limit);
            seen.extend(page.records.iter().map(|k| k.key_id.clone()));
            let Some(after) = page.next else { break };
            next.after = Some(after);
        }
        assert!(seen.is_sorted());
        assert_eq!(seen.len(), 20, "limit {limit}");
    }
}

async fn queries_meet_every_condition(store: Arc<dyn Store>) {
    let mut all = vec![];
    for number in 1..=24 {
        let mut made = create(&*store, number).await;
        made.spec.policy.state = [State::Active, State::Disabled, State::Revoked][number as usize / 8 % 3];
        // Some disabled ones until a time, and some that were deleted.
        made.resume_time = Some(UnixMillis(50)).filter(|_| number / 8 % 3 == 1 && number % 2 == 1);
        made.deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(9) }).filter(|_| number % 7 == 3);
        made.revision = store.commit(commit(vec![RecordWrite::Key(Box::new(made.clone()))])).await.unwrap();
        all.push(made);
    }
    let labels = |parity: &str| BTreeMap::from([("parity".to_owned(), parity.into())]);
    let of_two_forms = || Some(SoughtText::new("owner-2".into(), "owner-1".into()));
    let queries = [
        query(100),
        KeyQuery { states: vec![ShownState::Disabled], ..query(100) },
        KeyQuery { states: vec![ShownState::Active], ..query(100) },
        KeyQuery { states: vec![ShownState::Disabled, ShownState::Revoked], ..query(100) },
        KeyQuery { owner: Some("owner-1".into()), ..query(100) },
        KeyQuery { labels: labels("1"), ..query(100) },
        KeyQuery {
            owner: Some("owner-1".into()),
            labels: labels("1"),
            states: vec![ShownState::Revoked],
            ..query(100)
        },
        KeyQuery { key_ids: vec![key(9).key_id, key(3).key_id, key(99).key_id], ..query(100) },
        KeyQuery { key_ids: vec![key(3).key_id], states: vec![ShownState::Revoked], ..query(100) },
        KeyQuery { owner: Some("owner-2".into()), after: Some(key(11).key_id), ..query(3) },
        KeyQuery { owner: of_two_forms(), ..query(100) },
        KeyQuery { owner: of_two_forms(), labels: labels("1"), states: vec![ShownState::Revoked], ..query(100) },
        KeyQuery { owner: of_two_forms(), after: Some(key(11).key_id), ..query(3) },
        KeyQuery { tenant: TenantId::system(), ..query(100) },
    ];
    let of_states = |clock, states: &[ShownState]| KeyQuery {
        states: states.to_vec(),
        clock: UnixMillis(clock),
        owner: Some("owner-1".into()),
        ..query(100)
    };
    let at_times = [49, 50].into_iter().flat_map(|clock| {
        let alone = ShownState::ALL.map(|state| of_states(clock, &[state]));
        let pairs = [[ShownState::Active, ShownState::Deleted], [ShownState::Disabled, ShownState::Active]];
        let others = [of_states(clock, &ShownState::ALL), of_states(clock, &[])];
        let pairs = pairs.map(|states| of_states(clock, &states));
        let of_any = |query: &KeyQuery| KeyQuery { owner: None, ..query.clone() };
        let all = alone.into_iter().chain(pairs).chain(others).collect::<Vec<_>>();
        all.iter().map(of_any).collect::<Vec<_>>().into_iter().chain(all)
    });
    for query in queries.into_iter().chain(at_times) {
        let found: Vec<_> = store.keys(query.clone()).await.unwrap().records.iter().map(|k| k.key_id.clone()).collect();
        let expected = all.iter().filter(|k| query.selects(k)).take(query.limit).map(|k| k.key_id.clone());
        assert_eq!(found, expected.collect::<Vec<_>>(), "{query:?}");
    }
}

async fn changes_come_in_order_and_without_gaps(store: Arc<dyn Store>) {
    create(&*store, 1).await;
    let mut early = store.changes(Revision(1)).unwrap();
    let mut expected = vec![];
    for number in 2..=30 {
        expected.push(create(&*store, number).await.revision);
    }
    let mut late = store.changes(Revision(20)).unwrap();
    for (changes, after) in [(&mut early, 1), (&mut late, 20)] {
        let mut seen = vec![];
        while seen.last() != expected.last() {
            seen.extend(changes.next().await.unwrap().unwrap().iter().map(|c| c.revision));
        }
        assert_eq!(seen, (after + 1..=30).map(Revision).collect::<Vec<_>>());
    }
    assert!(store.changes(Revision(31)).is_err(), "a revision that does not exist yet");
}

async fn the_log_has_every_change_from_any_revision_on(store: Arc<dyn Store>) {
    // Over several segments and frames.
    let made = join_all((1..=600).map(|number| create(&*store, number))).await;
    let mut disabled = made[3].clone();
    disabled.spec.policy.state = State::Disabled;
    store.commit(commit(vec![RecordWrite::Key(Box::new(disabled))])).await.unwrap();
    let tenants = ["a", "b"].map(|id| RecordWrite::NewTenant(tenant(id)));
    let last = store.commit(commit(tenants.into())).await.unwrap();
    let mut published: Vec<Arc<Change>> = vec![];
    let mut changes = store.changes(Revision(0)).unwrap();
    while published.last().is_none_or(|change| change.revision < last) {
        published.extend(changes.next().await.unwrap().unwrap());
    }
    let text = |changes: &[Arc<Change>]| changes.iter().map(|change| format!("{change:?}")).collect::<Vec<_>>();
    for after in [0, 1, 255, 256, 257, 300, 599, 601, 602] {
        let mut log = store.read_log(Revision(after)).await.unwrap();
        assert_eq!(log.until(), last);
        let mut read = vec![];
        while let Some(batch) = log.next().await.unwrap() {
            read.extend(batch);
        }
        assert_eq!(text(&read), text(&published[usize::try_from(after).unwrap()..]), "after {after}");
    }
}

async fn the_log_is_read_while_it_is_written(store: Arc<dyn Store>) {
    const CHANGES: u32 = 2_000;
    let written = join_all((0..CHANGES).map(|number| create(&*store, number)));
    let read = async {
        let (mut after, mut reads, mut seen) = (Revision(0), 0, 0);
        while after.0 < u64::from(CHANGES) {
            let mut log = store.read_log(after).await.unwrap();
            while let Some(batch) = log.next().await.unwrap() {
                assert!(!batch.is_empty());
                seen += batch.len();
            }
            after = log.until();
            reads += 1;
            tokio::task::yield_now().await;
        }
        (reads, seen)
    };
    let ((reads, seen), _) = tokio::join!(read, written);
    assert!(seen == CHANGES as usize && reads > 1, "{seen} in {reads}");
}

async fn a_subscription_goes_on_where_the_log_was_read_to(store: Arc<dyn Store>) {
    for number in 1..=10 {
        create(&*store, number).await;
    }
    let mut log = store.read_log(Revision(4)).await.unwrap();
    create(&*store, 11).await;
    let mut seen = vec![];
    while let Some(batch) = log.next().await.unwrap() {
        seen.extend(batch.iter().map(|change| change.revision.0));
    }
    let mut changes = store.changes(log.until()).unwrap();
    seen.extend(changes.next().await.unwrap().unwrap().iter().map(|change| change.revision.0));
    assert_eq!(seen, (5..=11).collect::<Vec<_>>());
}

async fn concurrent_writers_of_one_key_all_get_their_turn_or_are_told(store: Arc<dyn Store>) {
    let made = create(&*store, 1).await;
    let writers = (0..50).map(|number| {
        let (store, mut key) = (store.clone(), made.clone());
        async move {
            key.spec.description = format!("writer {number}");
            store.commit(commit(vec![RecordWrite::Key(Box::new(key))])).await
        }
    });
    let outcomes = futures_util::future::join_all(writers).await;
    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 1, "all began from the same version");
    assert!(outcomes.iter().all(|o| matches!(o, Ok(_) | Err(CommitError::Outdated))));

    let makers = (100..300).map(|number| {
        let store = store.clone();
        async move { create(&*store, number).await.revision }
    });
    let revisions: BTreeSet<_> = futures_util::future::join_all(makers).await.into_iter().collect();
    assert_eq!(revisions, (3..203).map(Revision).collect());
}

async fn a_closed_store_takes_nothing_more(store: Arc<dyn Store>) {
    create(&*store, 1).await;
    store.close().await.unwrap();
    let refused = store.commit(commit(vec![RecordWrite::NewKey(Box::new(key(2)))])).await;
    assert!(matches!(refused, Err(CommitError::Store(_))));
    store.close().await.unwrap();
}

/// Neither a duplicate id nor a duplicate secret is accepted.
async fn refuses_twins_of(store: &dyn Store, number: u32) {
    let other = key(1_000_000 + number);
    let same_id = KeyRecord { secret: other.secret, ..key(number) };
    let same_secret = KeyRecord { key_id: other.key_id, ..key(number) };
    for twin in [same_id, same_secret] {
        let refused = store.commit(commit(vec![RecordWrite::NewKey(Box::new(twin))])).await;
        assert!(matches!(refused, Err(CommitError::Exists)), "key {number}");
    }
}

#[tokio::test]
async fn a_key_is_made_once_also_when_only_the_table_has_it_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for start in 0..3 {
        let store = open(&dir, 64 * 1024);
        // What was there before, whether it has been read already or not.
        for number in 0..start * 100 {
            refuses_twins_of(&store, number).await;
        }
        for number in start * 100..(start + 1) * 100 {
            create(&store, number).await;
        }
        // A page is read when everything is in the table, and nothing is kept beside it.
        store.keys(query(1)).await.unwrap();
        for number in start * 100..(start + 1) * 100 {
            refuses_twins_of(&store, number).await;
        }
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn tenants_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..3 {
        let store = open(&dir, 64 * 1024);
        for before in 0..number {
            let id = format!("tenant-{before}");
            assert!(store.tenant(&TenantId::parse(&id).unwrap()).await.unwrap().is_some());
            let again = store.commit(commit(vec![RecordWrite::NewTenant(tenant(&id))])).await;
            assert!(matches!(again, Err(CommitError::Exists)));
        }
        store.commit(commit(vec![RecordWrite::NewTenant(tenant(&format!("tenant-{number}")))])).await.unwrap();
        store.close().await.unwrap();
    }
}
