//! What every storage engine must do with keys that are rotated, deleted and purged, and with tenants, owners
//! and issuers that are held. Each test runs on each engine.

use std::sync::Arc;

use keyward::store::{Commit, CommitError, DueKey, KeyQuery, RecordWrite, Store};
use keyward_core::access::{Caller, Identity, Issue, Unauthorized};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::DenyReason;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, TenantId};
use keyward_core::limits::RECORD_BYTES_MAX;
use keyward_core::record::{
    AuditStamp, Deletion, Hold, IssuerRecord, KeyRecord, OverlapStart, OwnerRecord, PreviousSecret, PurgeMark,
    RetiredSecret, ShownState, State, TenantRecord,
};
use keyward_core::scope::Scope;
use keyward_core::testing::{rotated, stamp, tenant_record};

use super::conformance::on_every_engine;
use crate::support::local_store::{commit, create, key};

on_every_engine![
    a_rotated_key_keeps_its_id_and_its_number,
    a_rotation_is_refused_if_it_is_stale_or_takes_a_secret_that_is_there,
    a_digest_that_leaves_a_key_is_marked,
    a_purged_key_is_gone_and_its_id_stays_taken,
    a_deleted_key_is_read_and_not_listed,
    numbers_are_given_once,
    a_refused_change_takes_no_number,
    tenants_owners_and_issuers_change_by_revision,
    a_caller_makes_no_change_once_its_owner_or_issuer_is_held,
    a_caller_makes_changes_by_each_secret_that_works,
    the_last_lasting_administrator_is_not_purged,
    a_change_that_is_no_rotation_keeps_every_secret,
    what_would_be_read_as_something_else_is_not_written,
    many_deleted_keys_end_no_list,
    many_suspended_keys_end_no_list,
    keys_are_due_in_the_order_of_their_times,
    a_read_beside_rotations_and_a_purge_finds_the_key_or_nothing,
];

async fn read(store: &dyn Store, key: &KeyRecord) -> Option<KeyRecord> {
    store.key(&key.tenant, &key.key_id).await.unwrap().map(|found| KeyRecord::clone(&found))
}

async fn put(store: &dyn Store, write: RecordWrite) -> Result<Revision, CommitError> {
    store.commit(commit(vec![write])).await
}

/// Rotates a key, and returns it as it is stored.
async fn rotate(store: &dyn Store, key: &KeyRecord, number: u32) -> KeyRecord {
    let key = rotated(key, number);
    let revision = put(store, RecordWrite::RotatedKey(Box::new(key.clone()))).await.unwrap();
    KeyRecord { revision, ..key }
}

fn purge(key: &KeyRecord) -> RecordWrite {
    RecordWrite::Purge { tenant: key.tenant.clone(), key_id: key.key_id.clone(), revision: key.revision }
}

/// The purge marks of the changes after a revision.
async fn marks(store: &dyn Store, after: Revision) -> Vec<PurgeMark> {
    let changes = store.changes(after).unwrap().next().await.unwrap().unwrap();
    let records = changes.iter().flat_map(|change| &change.records);
    let marks = records.filter_map(|record| match record {
        Record::Purged(mark) => Some(PurgeMark::clone(mark)),
        _ => None,
    });
    marks.collect()
}

async fn a_rotated_key_keeps_its_id_and_its_number(store: Arc<dyn Store>) {
    let first = create(&*store, 1).await;
    let second = rotate(&*store, &first, 1).await;
    assert_eq!(read(&*store, &first).await, Some(second.clone()));
    assert_eq!(second.ordinal, first.ordinal);
    // A change that is no rotation leaves all secrets as they are.
    let mut changed = second.clone();
    changed.spec.description = "later".into();
    let revision = put(&*store, RecordWrite::Key(Box::new(changed.clone()))).await.unwrap();
    assert_eq!(read(&*store, &first).await, Some(KeyRecord { revision, ..changed }));
}

async fn a_rotation_is_refused_if_it_is_stale_or_takes_a_secret_that_is_there(store: Arc<dyn Store>) {
    let (one, two) = (create(&*store, 1).await, create(&*store, 2).await);
    let rotation = |key: &KeyRecord| RecordWrite::RotatedKey(Box::new(key.clone()));
    let stale = KeyRecord { revision: Revision(99), ..rotated(&one, 1) };
    assert!(matches!(put(&*store, rotation(&stale)).await, Err(CommitError::Outdated)));
    let mut thief = rotated(&one, 1);
    thief.secret.digest = two.secret.digest;
    assert!(matches!(put(&*store, rotation(&thief)).await, Err(CommitError::Exists)));
    let one = rotate(&*store, &one, 1).await;
    // The previous secret is one that is there.
    thief = rotated(&two, 2);
    thief.secret.digest = one.previous.as_ref().unwrap().secret.digest;
    assert!(matches!(put(&*store, rotation(&thief)).await, Err(CommitError::Exists)));
    let newcomer = KeyRecord { secret: one.previous.as_ref().unwrap().secret.clone(), ..key(3) };
    assert!(matches!(put(&*store, RecordWrite::NewKey(Box::new(newcomer))).await, Err(CommitError::Exists)));
    // So is its own current one, which would be both.
    thief = rotated(&one, 4);
    thief.secret.digest = one.secret.digest;
    assert!(matches!(put(&*store, rotation(&thief)).await, Err(CommitError::Exists)));
    // Without the rotation, another secret is another key.
    let disguised = RecordWrite::Key(Box::new(rotated(&one, 3)));
    assert!(matches!(put(&*store, disguised).await, Err(CommitError::Outdated)));
    assert_eq!(read(&*store, &two).await, Some(two));
}

async fn a_digest_that_leaves_a_key_is_marked(store: Arc<dyn Store>) {
    let first = create(&*store, 1).await;
    let second = rotate(&*store, &first, 1).await;
    let third = rotate(&*store, &second, 2).await;
    assert_eq!(marks(&*store, first.revision).await, [], "all three secrets are the key's");
    let fourth = rotate(&*store, &third, 3).await;
    let expected = PurgeMark {
        tenant: first.tenant.clone(),
        key_id: first.key_id.clone(),
        digests: vec![first.secret.digest],
        key_lives: true,
        time: UnixMillis(1_000),
        revision: fourth.revision,
    };
    assert_eq!(marks(&*store, third.revision).await, std::slice::from_ref(&expected));
    // A rotation that is finished early drops what was the retired secret.
    let previous = fourth.previous.clone().unwrap();
    let finished = KeyRecord {
        previous: None,
        retired: Some(RetiredSecret { secret: previous.secret, time: UnixMillis(1_000) }),
        ..fourth.clone()
    };
    let revision = put(&*store, RecordWrite::RotatedKey(Box::new(finished))).await.unwrap();
    let digests = vec![second.secret.digest];
    assert_eq!(marks(&*store, fourth.revision).await, [PurgeMark { digests, revision, ..expected }]);
}

async fn a_purged_key_is_gone_and_its_id_stays_taken(store: Arc<dyn Store>) {
    let one = create(&*store, 1).await;
    let other = create(&*store, 2).await;
    let one = rotate(&*store, &one, 1).await;
    let stale = KeyRecord { revision: Revision(1), ..one.clone() };
    assert!(matches!(put(&*store, purge(&stale)).await, Err(CommitError::Outdated)));
    let revision = put(&*store, purge(&one)).await.unwrap();
    assert_eq!(read(&*store, &one).await, None);
    let mark = PurgeMark {
        tenant: one.tenant.clone(),
        key_id: one.key_id.clone(),
        digests: one.digests().collect(),
        key_lives: false,
        time: UnixMillis(1_000),
        revision,
    };
    assert_eq!(marks(&*store, one.revision).await, [mark]);
    assert!(matches!(put(&*store, purge(&one)).await, Err(CommitError::Outdated)));
    assert!(matches!(put(&*store, RecordWrite::Key(Box::new(one.clone()))).await, Err(CommitError::Outdated)));
    let again = RecordWrite::NewKey(Box::new(KeyRecord { secret: key(3).secret, ..key(1) }));
    assert!(matches!(put(&*store, again).await, Err(CommitError::Exists)));
    assert_eq!(listed(&*store).await, [other]);
    let elsewhere = KeyRecord { tenant: TenantId::system(), secret: key(3).secret, ..key(1) };
    put(&*store, RecordWrite::NewKey(Box::new(elsewhere))).await.unwrap();
}

fn query() -> KeyQuery {
    KeyQuery {
        caller: ActorId::keyward(),
        tenant: TenantId::default_tenant(),
        states: vec![],
        clock: UnixMillis(0),
        owner: None,
        labels: Default::default(),
        key_ids: vec![],
        after: None,
        limit: 100,
    }
}

async fn listed(store: &dyn Store) -> Vec<KeyRecord> {
    let page = store.keys(query()).await.unwrap();
    page.records.iter().map(|key| KeyRecord::clone(key)).collect()
}

async fn a_deleted_key_is_read_and_not_listed(store: Arc<dyn Store>) {
    let (one, other) = (create(&*store, 1).await, create(&*store, 2).await);
    let deletion = Some(Deletion { time: UnixMillis(1_000), purge_time: UnixMillis(2_000) });
    let deleted = KeyRecord { deletion, ..one.clone() };
    let revision = put(&*store, RecordWrite::Key(Box::new(deleted.clone()))).await.unwrap();
    assert_eq!(read(&*store, &one).await, Some(KeyRecord { revision, ..deleted }));
    assert_eq!(listed(&*store).await, std::slice::from_ref(&other));
    let undeleted = KeyRecord { revision, ..one };
    put(&*store, RecordWrite::Key(Box::new(undeleted))).await.unwrap();
    assert_eq!(listed(&*store).await.len(), 2);
}

async fn numbers_are_given_once(store: Arc<dyn Store>) {
    let mut given = vec![];
    for number in 1..=3 {
        let claims = KeyRecord { ordinal: Some(0), ..key(number) };
        put(&*store, RecordWrite::NewKey(Box::new(claims))).await.unwrap();
        given.push(read(&*store, &key(number)).await.unwrap().ordinal.unwrap());
    }
    let last = read(&*store, &key(3)).await.unwrap();
    put(&*store, purge(&last)).await.unwrap();
    given.push(create(&*store, 4).await.ordinal.unwrap());
    assert_eq!(given, [0, 1, 2, 3]);
    // A key of an older program has none, and gets one when it changes.
    let bare = KeyRecord { ordinal: None, ..read(&*store, &key(1)).await.unwrap() };
    put(&*store, RecordWrite::Key(Box::new(bare))).await.unwrap();
    assert_eq!(read(&*store, &key(1)).await.unwrap().ordinal, Some(4));
}

async fn a_refused_change_takes_no_number(store: Arc<dyn Store>) {
    let first = create(&*store, 1).await;
    let mut long = key(2);
    long.spec.description = "x".repeat(RECORD_BYTES_MAX);
    let refused = put(&*store, RecordWrite::NewKey(Box::new(long))).await;
    assert!(matches!(refused, Err(CommitError::TooLarge { .. })), "{refused:?}");
    // The second record of a commit is refused, when the first one has its number.
    let writes = vec![RecordWrite::NewKey(Box::new(key(3))), RecordWrite::NewKey(Box::new(key(1)))];
    let refused = store.commit(commit(writes)).await;
    assert!(matches!(refused, Err(CommitError::Exists)), "{refused:?}");
    assert_eq!((first.ordinal, create(&*store, 4).await.ordinal), (Some(0), Some(1)));
}

async fn tenants_owners_and_issuers_change_by_revision(store: Arc<dyn Store>) {
    let held = Hold { suspended: true, reason: "unpaid".into(), ..Hold::default() };
    let revision = put(&*store, RecordWrite::NewTenant(Box::new(tenant_record("acme")))).await.unwrap();
    let changed = TenantRecord { hold: held.clone(), updated: Some(stamp()), revision, ..tenant_record("acme") };
    let stale = TenantRecord { revision: Revision(0), ..changed.clone() };
    assert!(matches!(put(&*store, RecordWrite::Tenant(Box::new(stale))).await, Err(CommitError::Outdated)));
    let revision = put(&*store, RecordWrite::Tenant(Box::new(changed.clone()))).await.unwrap();
    let read = store.tenant(&changed.tenant).await.unwrap().unwrap();
    assert_eq!(*read, TenantRecord { revision, ..changed });

    let tenant = TenantId::default_tenant();
    let owner = |revision| {
        let owner =
            OwnerRecord { tenant: tenant.clone(), owner: "a".into(), hold: held.clone(), updated: stamp(), revision };
        RecordWrite::Owner(Box::new(owner))
    };
    let issuer = |revision| {
        let actor = ActorId::parse("issuer").unwrap();
        RecordWrite::Issuer(Box::new(IssuerRecord { actor, hold: held.clone(), updated: stamp(), revision }))
    };
    for write in [&owner as &dyn Fn(Revision) -> RecordWrite, &issuer] {
        assert!(matches!(put(&*store, write(Revision(1))).await, Err(CommitError::Outdated)));
        let revision = put(&*store, write(Revision(0))).await.unwrap();
        assert!(matches!(put(&*store, write(Revision(0))).await, Err(CommitError::Outdated)));
        put(&*store, write(revision)).await.unwrap();
    }
}

/// A caller of tenant `system`, and a change that it asks for.
struct Asking {
    key: KeyRecord,
}

impl Asking {
    async fn new(store: &dyn Store) -> Self {
        let mut key = KeyRecord { tenant: TenantId::system(), ..key(900) };
        key.spec.policy.scopes = vec![Scope::parse("keyward.issuer").unwrap()];
        put(store, RecordWrite::NewKey(Box::new(key.clone()))).await.unwrap();
        Self { key: read(store, &key).await.unwrap() }
    }

    fn asks(&self, digest: Digest, number: u32) -> Commit {
        let identity = Identity::of_key(self.key.key_id.clone(), digest, None);
        let caller = Caller::new(identity, &self.key.spec.policy.scopes);
        let grant = caller.grant::<Issue>(TenantId::default_tenant()).unwrap();
        let authorization = Some(grant.authorization(UnixMillis(1_000)));
        Commit { authorization, ..commit(vec![RecordWrite::NewKey(Box::new(key(number)))]) }
    }
}

fn refusal(outcome: Result<Revision, CommitError>) -> DenyReason {
    match outcome {
        Err(CommitError::Unauthorized(Unauthorized::Key(reason))) => reason,
        other => panic!("{other:?}"),
    }
}

async fn a_caller_makes_no_change_once_its_owner_or_issuer_is_held(store: Arc<dyn Store>) {
    let asking = Asking::new(&*store).await;
    let digest = asking.key.secret.digest;
    let suspended = Hold { suspended: true, ..Hold::default() };
    let outdated = Hold { reject_issued_before: Some(UnixMillis(1_001)), ..Hold::default() };
    let mut number = 901;
    let mut revision = [Revision(0); 2];
    for (hold, reason) in [(suspended, DenyReason::OwnerSuspended), (outdated, DenyReason::EpochRejected)] {
        for whose in [0, 1] {
            let write = |hold: Hold, revision| match whose {
                0 => RecordWrite::Owner(Box::new(OwnerRecord {
                    tenant: TenantId::system(),
                    owner: asking.key.spec.owner.clone(),
                    hold,
                    updated: stamp(),
                    revision,
                })),
                _ => RecordWrite::Issuer(Box::new(IssuerRecord {
                    actor: ActorId::keyward(),
                    hold,
                    updated: stamp(),
                    revision,
                })),
            };
            // One behind the other in the queue, and so, most often, in one group.
            let held = commit(vec![write(hold.clone(), revision[whose])]);
            let (held, refused) = tokio::join!(store.commit(held), store.commit(asking.asks(digest, number)));
            let at = held.unwrap();
            assert_eq!(refusal(refused), reason);
            assert_eq!(refusal(store.commit(asking.asks(digest, number)).await), reason);
            revision[whose] = put(&*store, write(Hold::default(), at)).await.unwrap();
            store.commit(asking.asks(digest, number)).await.unwrap();
            number += 1;
        }
    }
}

async fn a_caller_makes_changes_by_each_secret_that_works(store: Arc<dyn Store>) {
    let asking = Asking::new(&*store).await;
    let first = asking.key.secret.digest;
    let second = rotate(&*store, &asking.key, 1).await;
    store.commit(asking.asks(first, 901)).await.unwrap();
    store.commit(asking.asks(second.secret.digest, 902)).await.unwrap();
    // The overlap ends at the very time of the change.
    let ending = PreviousSecret { valid_until: Some(UnixMillis(1_000)), ..second.previous.clone().unwrap() };
    let ended = KeyRecord { previous: Some(ending), ..second.clone() };
    let revision = put(&*store, RecordWrite::RotatedKey(Box::new(ended))).await.unwrap();
    assert_eq!(refusal(store.commit(asking.asks(first, 903)).await), DenyReason::RotatedOut);
    let third = rotate(&*store, &KeyRecord { revision, ..second.clone() }, 2).await;
    assert_eq!(refusal(store.commit(asking.asks(first, 903)).await), DenyReason::RotatedOut);
    store.commit(asking.asks(second.secret.digest, 903)).await.unwrap();
    rotate(&*store, &third, 3).await;
    assert_eq!(refusal(store.commit(asking.asks(first, 904)).await), DenyReason::Unknown);
    // A caller that is purged makes none.
    let last = read(&*store, &asking.key).await.unwrap();
    let (purged, refused) =
        tokio::join!(store.commit(commit(vec![purge(&last)])), store.commit(asking.asks(last.secret.digest, 904)));
    purged.unwrap();
    assert_eq!(refusal(refused), DenyReason::Unknown);
    assert_eq!(refusal(store.commit(asking.asks(last.secret.digest, 904)).await), DenyReason::Unknown);
}

async fn a_change_that_is_no_rotation_keeps_every_secret(store: Arc<dyn Store>) {
    let key = create(&*store, 1).await;
    let key = rotate(&*store, &key, 1).await;
    // Without a mark, an index would go on with the previous secret.
    for changed in [
        KeyRecord { previous: None, ..key.clone() },
        KeyRecord { secret: key.previous.clone().unwrap().secret, previous: None, ..key.clone() },
    ] {
        let write = RecordWrite::Key(Box::new(changed));
        assert!(matches!(put(&*store, write).await, Err(CommitError::Outdated)));
    }
    assert_eq!(read(&*store, &key).await, Some(key));
}

async fn what_would_be_read_as_something_else_is_not_written(store: Arc<dyn Store>) {
    let key = create(&*store, 1).await;
    let at = |millis| Some(UnixMillis(millis));
    let ended = PreviousSecret { valid_until: at(0), ..rotated(&key, 1).previous.unwrap() };
    let endless = PreviousSecret { overlap_starts: OverlapStart::AtIssue, ..rotated(&key, 1).previous.unwrap() };
    let hold = Hold { reject_issued_before: at(0), ..Hold::default() };
    let owner = |owner: &str, hold: &Hold| {
        let (tenant, owner, revision) = (TenantId::default_tenant(), owner.to_owned(), Revision(0));
        RecordWrite::Owner(Box::new(OwnerRecord { tenant, owner, hold: hold.clone(), updated: stamp(), revision }))
    };
    let deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(0) });
    for write in [
        RecordWrite::RotatedKey(Box::new(KeyRecord { previous: Some(ended), ..rotated(&key, 1) })),
        RecordWrite::RotatedKey(Box::new(KeyRecord { previous: Some(endless), ..rotated(&key, 1) })),
        RecordWrite::Key(Box::new(KeyRecord { deletion, ..key.clone() })),
        RecordWrite::Key(Box::new(KeyRecord { resume_time: at(0), delete_protected: true, ..key.clone() })),
        owner("a", &hold),
        owner("", &Hold::default()),
    ] {
        let told = format!("{write:?}");
        assert!(matches!(put(&*store, write).await, Err(CommitError::Unstorable)), "{told}");
    }
    assert_eq!((read(&*store, &key).await, store.revision()), (Some(key.clone()), key.revision));
}

async fn many_deleted_keys_end_no_list(store: Arc<dyn Store>) {
    let deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(2) });
    let deleted = |number| RecordWrite::NewKey(Box::new(KeyRecord { deletion, ..key(number) }));
    store.commit(commit((0..600).map(deleted).collect())).await.unwrap();
    let last = create(&*store, 600).await;
    written(&*store).await;
    assert_eq!(listed(&*store).await, [last]);
}

async fn written(store: &dyn Store) {
    while store.stats().applied < store.revision() {
        tokio::task::yield_now().await;
    }
}

fn suspended(number: u32, until: i64) -> KeyRecord {
    let mut key = KeyRecord { resume_time: Some(UnixMillis(until)), ..key(number) };
    key.spec.policy.state = State::Disabled;
    key
}

/// Whether they count as active or as disabled is for the clock to say.
async fn many_suspended_keys_end_no_list(store: Arc<dyn Store>) {
    let some = (0..600).map(|number| RecordWrite::NewKey(Box::new(suspended(number, 1_000))));
    store.commit(commit(some.collect())).await.unwrap();
    let active = create(&*store, 600).await;
    let disabled = KeyRecord { resume_time: None, ..suspended(601, 1) };
    put(&*store, RecordWrite::NewKey(Box::new(disabled.clone()))).await.unwrap();
    for is_written in [false, true] {
        if is_written {
            written(&*store).await;
        }
        for (clock, active, disabled) in [(999, 1, 601), (1_000, 601, 1)] {
            for (state, expected) in [(ShownState::Active, active), (ShownState::Disabled, disabled)] {
                let query = KeyQuery { states: vec![state], clock: UnixMillis(clock), limit: 1_000, ..query() };
                let found = store.keys(query).await.unwrap().records.len();
                assert_eq!(found, expected, "{state:?} at {clock}, in the table: {is_written}");
            }
        }
    }
    drop(active);
}

async fn keys_are_due_in_the_order_of_their_times(store: Arc<dyn Store>) {
    let deletion = |purge_time| Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(purge_time) });
    let elsewhere = KeyRecord { tenant: TenantId::system(), ..suspended(5, 300) };
    let keys = [
        suspended(1, 400),
        KeyRecord { deletion: deletion(200), ..key(2) },
        // What is deleted is due for that.
        KeyRecord { deletion: deletion(500), ..suspended(3, 100) },
        suspended(4, 300),
        elsewhere,
        key(6),
        KeyRecord { resume_time: None, ..suspended(7, 1) },
    ];
    for key in keys {
        put(&*store, RecordWrite::NewKey(Box::new(key))).await.unwrap();
    }
    let due = async |after: Option<&DueKey>, until, limit| {
        written(&*store).await;
        store.due(after, UnixMillis(until), limit).await.unwrap()
    };
    let named = |time, tenant: &str, number| DueKey {
        time: UnixMillis(time),
        tenant: TenantId::parse(tenant).unwrap(),
        key_id: key(number).key_id,
    };
    let all = [
        named(200, "default", 2),
        named(300, "default", 4),
        named(300, "system", 5),
        named(400, "default", 1),
        named(500, "default", 3),
    ];
    assert_eq!(due(None, i64::MAX - 1, 10).await, all);
    for (until, count) in [(199, 0), (200, 1), (299, 1), (300, 3), (500, 5)] {
        assert_eq!(due(None, until, 10).await, all[..count], "{until}");
    }
    for at in 0..all.len() {
        let rest = due(Some(&all[at]), 500, 2).await;
        assert_eq!(rest, all[at + 1..].iter().take(2).cloned().collect::<Vec<_>>());
    }
    // One that is given back, works again or is purged is not due any more.
    for number in [1, 2, 3] {
        let there = read(&*store, &key(number)).await.unwrap();
        let write = match number {
            3 => purge(&there),
            _ => {
                let mut key = KeyRecord { deletion: None, resume_time: None, ..there };
                key.spec.policy.state = State::Active;
                RecordWrite::Key(Box::new(key))
            }
        };
        put(&*store, write).await.unwrap();
    }
    assert_eq!(due(None, i64::MAX - 1, 10).await, all[1..3]);
}

async fn a_read_beside_rotations_and_a_purge_finds_the_key_or_nothing(store: Arc<dyn Store>) {
    let first = create(&*store, 1).await;
    let changing = {
        let (store, mut key) = (store.clone(), first.clone());
        tokio::spawn(async move {
            for number in 0..300 {
                key = rotate(&*store, &key, number).await;
            }
            put(&*store, purge(&key)).await.unwrap();
        })
    };
    while !changing.is_finished() {
        // An error would fail a GetKey or a DisableKey of a key that is whole.
        store.key(&first.tenant, &first.key_id).await.unwrap();
        tokio::task::yield_now().await;
    }
    changing.await.unwrap();
    assert_eq!(read(&*store, &first).await, None);
}

async fn the_last_lasting_administrator_is_not_purged(store: Arc<dyn Store>) {
    let mut administrator = KeyRecord { tenant: TenantId::system(), ..key(1) };
    administrator.spec.policy.scopes = vec![Scope::parse("keyward.admin").unwrap()];
    put(&*store, RecordWrite::NewKey(Box::new(administrator.clone()))).await.unwrap();
    let there = read(&*store, &administrator).await.unwrap();
    assert!(matches!(put(&*store, purge(&there)).await, Err(CommitError::LastAdministrator)));
    let deletion = Some(Deletion { time: UnixMillis(1_000), purge_time: UnixMillis(2_000) });
    let deleted = RecordWrite::Key(Box::new(KeyRecord { deletion, ..there.clone() }));
    assert!(matches!(put(&*store, deleted).await, Err(CommitError::LastAdministrator)));
    let by = AuditStamp { time: UnixMillis(1_000), actor: ActorId::keyward() };
    let second = KeyRecord { key_id: key(2).key_id, secret: key(2).secret, updated: by, ..administrator };
    put(&*store, RecordWrite::NewKey(Box::new(second))).await.unwrap();
    put(&*store, purge(&there)).await.unwrap();
    assert_eq!(store.lasting_administrators(UnixMillis(1_000)), 1);
}
