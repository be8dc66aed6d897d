//! Changes that take power away overtake everything else, however much other callers ask for.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::poll;
use keyward::app::{Adjustable, App, Deps, Engine};
use keyward::authority::{Authority, AuthorityDeps, AuthorityError, ChangeOptions, Sweeper, Swept};
use keyward::config::{Flags, Settings};
use keyward::feed::{Lagged, Subscription};
use keyward::first_use::{FirstUse, FirstUses};
use keyward::grpc::pb::{self, Reason};
use keyward::grpc::status::status;
use keyward::index::Index;
use keyward::server::addr::ListenAddr;
use keyward::server::passed::PassedSockets;
use keyward::store::local::{COMMIT_QUEUE_MAX, COMMIT_QUEUE_OF_ONE_MAX, LocalStore, LockedDir, StoreOptions};
use keyward::store::memory::MemoryStore;
use keyward::store::{
    Backup, BackupError, BackupFormat, Commit, CommitError, DueKey, KeyQuery, LogStream, Outcome, Page, ReadContext,
    Recalled, RecordWrite, Retry, SoughtText, Store, StoreError, WriteHealth,
};
use keyward_core::access::{Caller, ChangeState, Grant, Identity, Issue};
use keyward_core::clock::{Clock, ManualClock, UnixMillis};
use keyward_core::digest::{Digest, Pepper, PepperRing};
use keyward_core::entropy::Entropy;
use keyward_core::event::{Record, Revision};
use keyward_core::head::Head;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::key_change::KeyChange;
use keyward_core::limits::DELETED_KEPT_MS_MIN;
use keyward_core::record::{
    IssuerRecord, KeyPolicy, KeyRecord, KeySpec, OverlapStart, OwnerRecord, State, StoredSecret, TenantRecord,
};
use keyward_core::rotation::Overlap;
use keyward_core::scope::Scope;
use keyward_core::testing::{SeededEntropy, tenant_record};
use tokio::sync::Notify;
use tokio::task::unconstrained;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_types::StatusExt;
use zeroize::Zeroizing;

use crate::support::harness::{Handle, START, error_reason};
use crate::support::local_store::{commit, create, key, open, options};

/// An upper bound for every wait, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(60);

fn actor(id: &str) -> ActorId {
    ActorId::parse(id).unwrap()
}

fn grants(caller: &str) -> (Grant<Issue>, Grant<ChangeState>) {
    let KeyRecord { key_id, secret, spec, .. } = caller_key(caller);
    let caller = Caller::new(Identity::of_key(key_id, secret.digest, None), &spec.policy.scopes);
    (caller.grant(TenantId::default_tenant()).unwrap(), caller.grant(TenantId::default_tenant()).unwrap())
}

/// The key of a caller, which may do everything.
fn caller_key(caller: &str) -> KeyRecord {
    let base = key(0);
    KeyRecord {
        key_id: KeyId::parse(caller).unwrap(),
        tenant: TenantId::system(),
        secret: StoredSecret { digest: Digest::from_bytes(*blake3::hash(caller.as_bytes()).as_bytes()), ..base.secret },
        spec: KeySpec {
            policy: KeyPolicy { scopes: vec![Scope::parse("keyward.admin").unwrap()], ..KeyPolicy::default() },
            ..base.spec
        },
        ..base
    }
}

/// An authority over a store, with the callers of [`grants`] in it, and an index that follows it.
async fn authority(store: Arc<dyn Store>) -> Authority {
    authority_at(store, Arc::new(ManualClock::at(START))).await.0
}

/// The same with its clock, and its index.
async fn authority_at(store: Arc<dyn Store>, clock: Arc<ManualClock>) -> (Authority, Arc<Index>) {
    for caller in ["caller", "operator", "theirs"] {
        store.commit(commit(vec![RecordWrite::NewKey(Box::new(caller_key(caller)))])).await.unwrap();
    }
    let index = Arc::new(Index::default());
    tokio::spawn({
        let (store, index) = (store.clone(), index.clone());
        async move {
            let mut changes = store.changes(Revision(0)).unwrap();
            while let Ok(Some(batch)) = changes.next().await {
                index.apply(&batch);
            }
        }
    });
    let authority = Authority::new(AuthorityDeps {
        store,
        index: index.clone(),
        peppers: Arc::new(PepperRing::new(vec![Pepper::new(Zeroizing::new([1; 32]))]).unwrap()),
        clock,
        entropy: Arc::new(SeededEntropy::new(1)),
        page_token_key: Zeroizing::new([1; 32]),
    });
    (authority, index)
}

fn open_with(dir: &tempfile::TempDir, free_bytes: fn(&File) -> io::Result<u64>) -> Arc<LocalStore> {
    let options = StoreOptions { free_bytes, ..options(64 * 1024) };
    Arc::new(LocalStore::open(LockedDir::lock(dir.path()).unwrap(), &options, Arc::new(())).unwrap())
}

fn expires_at(ms: i64) -> KeyChange {
    KeyChange::ExpireTime(Some(UnixMillis(START.0 + ms)))
}

fn described(text: &str) -> KeyChange {
    KeyChange::Description(text.to_owned())
}

/// A store in memory that notes which changes take power away, holds up those of one key, and refuses some.
#[derive(Default)]
struct Watched {
    inner: MemoryStore,
    narrowing: Mutex<Vec<(&'static str, bool)>>,
    /// Why the next changes by Keyward itself are not made.
    refusals: Mutex<Vec<CommitError>>,
    held: Option<KeyId>,
    arrived: Notify,
    go_on: Notify,
}

#[async_trait]
impl Store for Watched {
    async fn key_for(
        &self,
        reader: &ReadContext,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.inner.key_for(reader, tenant, key_id).await
    }

    async fn keys(&self, query: KeyQuery) -> Result<Page<KeyRecord, KeyId>, StoreError> {
        self.inner.keys(query).await
    }

    async fn due(&self, after: Option<&DueKey>, until: UnixMillis, limit: usize) -> Result<Vec<DueKey>, StoreError> {
        self.inner.due(after, until, limit).await
    }

    async fn tenant(&self, tenant: &TenantId) -> Result<Option<Arc<TenantRecord>>, StoreError> {
        self.inner.tenant(tenant).await
    }

    async fn tenants(
        &self,
        caller: &ActorId,
        after: Option<TenantId>,
        limit: usize,
    ) -> Result<Page<TenantRecord, TenantId>, StoreError> {
        self.inner.tenants(caller, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, CommitError> {
        self.narrowing.lock().unwrap().push((commit.method, commit.narrows));
        let held = self.held.as_ref().is_some_and(|id| commit.target.ends_with(id.as_str()));
        if held && ["UpdateKey", "ResumeKey", "PurgeKey"].contains(&commit.method) {
            self.arrived.notify_one();
            self.go_on.notified().await;
        }
        if commit.authorization.is_none()
            && let Some(refusal) = self.refusals.lock().unwrap().pop()
        {
            return Err(refusal);
        }
        self.inner.commit(commit).await
    }

    fn recall(&self, actor: &ActorId, retry: &Retry, now: UnixMillis) -> Recalled {
        self.inner.recall(actor, retry, now)
    }

    async fn outcome(&self, reader: &ReadContext, revision: Revision) -> Result<Option<Outcome>, StoreError> {
        self.inner.outcome(reader, revision).await
    }

    fn check_bounds(&self, before: Option<&KeyRecord>, key: &KeyRecord) -> Result<(), CommitError> {
        self.inner.check_bounds(before, key)
    }

    fn check_tenant_bound(&self) -> Result<(), CommitError> {
        self.inner.check_tenant_bound()
    }

    fn check_administrators(&self, key: &KeyRecord, clock: UnixMillis) -> Result<(), CommitError> {
        self.inner.check_administrators(key, clock)
    }

    async fn owner(&self, tenant: &TenantId, owner: &str) -> Result<Option<Arc<OwnerRecord>>, StoreError> {
        self.inner.owner(tenant, owner).await
    }

    async fn issuer(&self, issuer: &ActorId) -> Result<Option<Arc<IssuerRecord>>, StoreError> {
        self.inner.issuer(issuer).await
    }

    fn check_hold(&self, record: &Record, clock: UnixMillis) -> Result<(), CommitError> {
        self.inner.check_hold(record, clock)
    }

    fn lasting_administrators(&self, clock: UnixMillis) -> usize {
        self.inner.lasting_administrators(clock)
    }

    fn changes(&self, after: Revision) -> Result<Subscription, Lagged> {
        self.inner.changes(after)
    }

    async fn read_log(&self, after: Revision) -> Result<LogStream, StoreError> {
        self.inner.read_log(after).await
    }

    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn head(&self) -> Option<Head> {
        self.inner.head()
    }

    async fn write_health(&self) -> WriteHealth {
        self.inner.write_health().await
    }

    async fn backup(&self, time: UnixMillis, format: BackupFormat) -> Result<Backup, BackupError> {
        self.inner.backup(time, format).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

/// What Keyward does by the clock is done to the key that it has read, or not at all.
#[tokio::test]
async fn what_is_due_gives_way_to_a_change_that_comes_in_between() {
    let (first, second) = (key(1).key_id, key(2).key_id);
    for held in [&first, &second] {
        let store = Arc::new(Watched { held: Some(held.clone()), ..Watched::default() });
        create(&store.inner, 1).await;
        create(&store.inner, 2).await;
        let (clock, swept) = (Arc::new(ManualClock::at(START)), Arc::<Swept>::default());
        let (authority, index) = authority_at(store.clone(), clock.clone()).await;
        let ((_, state), options) = (grants("caller"), ChangeOptions::default());
        let until = UnixMillis(START.0 + 60_000);
        authority.suspend(&state, &first, until, "", &options).await.unwrap();
        authority.delete_key(&state, &second, 60_000, "", &options).await.unwrap();
        clock.advance_ms(60_000);
        let sweeper = Sweeper { store: store.clone(), index, clock, swept: swept.clone() };
        let stop = CancellationToken::new();
        let sweeping = tokio::spawn(sweeper.run(stop.clone()));
        // Keyward has read the key, and its change is on its way.
        store.arrived.notified().await;
        if held == &first {
            authority.change_state(&state, &first, State::Disabled, "leaked", &options).await.unwrap();
        } else {
            authority.undelete_key(&state, &second, "", &options).await.unwrap();
        }
        store.go_on.notify_one();
        let is_done = || if held == &first { swept.purged() == 1 } else { swept.resumed() == 1 };
        while !is_done() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        sweeping.await.unwrap();
        let there = store.key(&TenantId::default_tenant(), held).await.unwrap().unwrap();
        assert_eq!((there.spec.policy.state, there.resume_time, there.deletion), (State::Disabled, None, None));
        assert_ne!(there.updated.actor, ActorId::keyward());
        assert_eq!(swept.resumed() + swept.purged(), 1, "the other one");
    }
}

#[tokio::test]
async fn a_change_says_whether_it_takes_power_away() {
    let store = Arc::new(Watched::default());
    create(&store.inner, 1).await;
    create_tenant(&store.inner).await;
    let authority = authority(store.clone()).await;
    let ((issue, state), id, options) = (grants("caller"), key(1).key_id, ChangeOptions::default());
    let scopes = |texts: &[&str]| KeyChange::Scopes(texts.iter().map(|text| Scope::parse(text).unwrap()).collect());
    for (change, narrows) in [
        (described("a note"), false),
        (scopes(&["a", "b"]), false),
        (scopes(&["a"]), true),
        (expires_at(1_000), true),
        (expires_at(2_000), false),
        (KeyChange::Audiences(vec!["billing".into()]), true),
        (KeyChange::Audiences(vec![]), false),
        (KeyChange::AllowedCidrs(vec!["10.0.0.0/8".parse().unwrap()]), true),
        (KeyChange::NotBefore(Some(START)), true),
    ] {
        authority.update_key(&issue, &id, std::slice::from_ref(&change), &options).await.unwrap();
        assert_eq!(store.narrowing.lock().unwrap().pop(), Some(("UpdateKey", narrows)), "{change:?}");
    }
    let rotated = async |ms, starts, narrows| {
        let key = authority.rotate_key(&issue, &id, Overlap { ms, starts }, (&options, None)).await.unwrap().key;
        assert_eq!(store.narrowing.lock().unwrap().pop(), Some(("RotateKey", narrows)), "{ms} ms, {starts:?}");
        key
    };
    rotated(5, OverlapStart::OnFirstUse, false).await;
    authority.cancel_rotation(&issue, &id, &options).await.unwrap();
    assert_eq!(store.narrowing.lock().unwrap().pop(), Some(("CancelRotation", true)));
    rotated(0, OverlapStart::AtIssue, true).await;
    rotated(5, OverlapStart::AtIssue, true).await;
    authority.finish_rotation(&issue, &id, &options).await.unwrap();
    assert_eq!(store.narrowing.lock().unwrap().pop(), Some(("FinishRotation", true)));
    for (to, method, narrows) in [
        (State::Disabled, "DisableKey", true),
        (State::Active, "EnableKey", false),
        (State::Revoked, "RevokeKey", true),
    ] {
        authority.change_state(&state, &id, to, "", &options).await.unwrap();
        assert_eq!(store.narrowing.lock().unwrap().pop(), Some((method, narrows)));
    }

    let owner = "somebody".into();
    let last = || store.narrowing.lock().unwrap().pop();
    for (suspended, reason, expected) in [
        (true, "unpaid", Some(("SuspendOwner", true))),
        // It only has another reason, and is urgent all the same.
        (true, "leaked", Some(("SuspendOwner", false))),
        (false, "paid", Some(("ResumeOwner", false))),
    ] {
        authority.suspend_owner(&state, &owner, suspended, reason, &options).await.unwrap();
        assert_eq!(last(), expected, "{reason}");
        authority.suspend_tenant(&state, suspended, reason, &options).await.unwrap();
        assert_eq!(last().map(|(_, narrows)| narrows), expected.map(|(_, narrows)| narrows), "{reason}");
    }
    authority.set_epoch_of_owner(&state, &owner, None, &options).await.unwrap();
    assert_eq!(last(), Some(("SetEpoch", true)));
}

async fn create_tenant(store: &dyn Store) {
    let tenant = RecordWrite::NewTenant(Box::new(tenant_record("default")));
    store.commit(commit(vec![tenant])).await.unwrap();
}

#[tokio::test]
async fn a_first_use_is_recorded_as_soon_as_changes_can_be_made_again() {
    let store = Arc::new(Watched::default());
    create(&store.inner, 1).await;
    create_tenant(&store.inner).await;
    let authority = Arc::new(authority(store.clone()).await);
    let ((issue, _), KeyRecord { tenant, key_id, .. }) = (grants("caller"), key(1));
    let overlap = Overlap { ms: 5_000, starts: OverlapStart::OnFirstUse };
    let rotated = authority.rotate_key(&issue, &key_id, overlap, (&ChangeOptions::default(), None)).await.unwrap();
    *store.refusals.lock().unwrap() = vec![CommitError::Overloaded, CommitError::DiskFull, CommitError::Outdated];
    let (uses, stop) = (FirstUses::default(), CancellationToken::new());
    let recording = tokio::spawn({
        let (authority, uses, stop) = (authority.clone(), uses.clone(), stop.clone());
        let queue = uses.take_queue().unwrap();
        async move { authority.record_first_uses(&uses, queue, stop).await }
    });
    let digest = rotated.key.secret.digest;
    let used = FirstUse { tenant, key_id, digest, mark: FirstUses::mark_of(&digest) };
    uses.note(used.clone());
    timeout(LIMIT, async {
        while uses.is_noted(used.mark) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let key = store.inner.key(&used.tenant, &used.key_id).await.unwrap().unwrap();
    assert_eq!(key.previous.as_ref().unwrap().valid_until, Some(UnixMillis(START.0 + 5_000)));
    assert_eq!(store.narrowing.lock().unwrap().pop(), Some(("BeginOverlap", true)));
    assert!(store.refusals.lock().unwrap().is_empty(), "it was refused before");
    stop.cancel();
    recording.await.unwrap();
}

/// Two ids that shared a turn when turns were found by 10 bits of a hash that everybody can compute.
fn once_in_the_same_turn() -> [KeyRecord; 2] {
    let turn_of = |id: &KeyId| {
        let [low, high, ..] = *blake3::hash(format!("default/{id}").as_bytes()).as_bytes();
        u16::from_le_bytes([low, high]) % 1_024
    };
    let of = |number: u32| (turn_of(&key(number).key_id), key(number));
    let (turn, first) = of(0);
    let second = (1..).map(of).find(|(other, _)| *other == turn).unwrap().1;
    [first, second]
}

#[tokio::test]
async fn no_key_id_can_be_chosen_to_hold_up_the_updates_of_another_key() {
    let keys = once_in_the_same_turn();
    let store = Arc::new(Watched { held: Some(keys[0].key_id.clone()), ..Watched::default() });
    for key in &keys {
        store.inner.commit(commit(vec![RecordWrite::NewKey(Box::new(key.clone()))])).await.unwrap();
    }
    let authority = Arc::new(authority(store.clone()).await);
    let ((issue, _), options) = (grants("theirs"), ChangeOptions::default());
    let updates: Vec<_> = (0..65).map(|number| described(&number.to_string())).collect();
    let mut theirs: Vec<_> = updates
        .iter()
        .map(|change| Box::pin(authority.update_key(&issue, &keys[0].key_id, std::slice::from_ref(change), &options)))
        .collect();
    for update in &mut theirs {
        assert!(poll!(update).is_pending());
    }
    store.arrived.notified().await;
    let changes = [described("ours")];
    let ours = authority.update_key(&issue, &keys[1].key_id, &changes, &options);
    timeout(LIMIT, ours).await.expect("it waits for another key").unwrap();
}

/// Its number in the order of the changes that were made.
async fn order_of(store: &dyn Store, number: u32) -> u64 {
    store.key(&key(number).tenant, &key(number).key_id).await.unwrap().unwrap().revision.0
}

static HELD: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());
static AT_THE_DISK: Notify = Notify::const_new();

/// The committer asks for the free space before each group: it can be held there.
fn held_disk(_: &File) -> io::Result<u64> {
    AT_THE_DISK.notify_one();
    let held = HELD.0.lock().unwrap();
    drop(HELD.1.wait_while(held, |held| *held).unwrap());
    Ok(u64::MAX)
}

#[tokio::test]
async fn with_the_queue_full_a_key_is_disabled_and_before_all_that_waits() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(&dir, held_disk);
    create(&*store, 1).await;
    create(&*store, 2).await;
    create(&*store, 3).await;
    let authority = authority(store.clone()).await;
    let three = key(3).key_id;
    let disabled =
        authority.change_state(&grants("operator").1, &three, State::Disabled, "", &ChangeOptions::default()).await;
    disabled.unwrap();
    *HELD.0.lock().unwrap() = true;
    timeout(LIMIT, AT_THE_DISK.notified()).await.unwrap();
    let by = |caller: &str, number: u32| {
        let put = RecordWrite::NewKey(Box::new(key(number)));
        let commit = Commit { actor: actor(caller), ..commit(vec![put]) };
        let store = store.clone();
        Box::pin(async move { store.commit(commit).await })
    };
    // The committer takes this one, and is held at the disk.
    let mut first = by("issuer", 100);
    assert!(poll!(&mut first).is_pending());
    timeout(LIMIT, AT_THE_DISK.notified()).await.unwrap();
    let of_one = COMMIT_QUEUE_OF_ONE_MAX as u32;
    let mut waiting: Vec<_> = (0..of_one).map(|number| by("issuer", 1_000 + number)).collect();
    for commit in &mut waiting {
        assert!(poll!(commit).is_pending());
    }
    assert!(matches!(by("issuer", 9_000).await, Err(CommitError::Overloaded)), "its part of the queue is full");
    let rest = COMMIT_QUEUE_MAX as u32 - of_one;
    let mut others: Vec<_> = (0..rest).map(|number| by("other", 20_000 + number)).collect();
    for commit in &mut others {
        assert!(poll!(commit).is_pending());
    }
    assert!(matches!(by("third", 9_001).await, Err(CommitError::Overloaded)), "the queue is full");

    let ((issue, state), options, changes) = (grants("operator"), ChangeOptions::default(), [expires_at(1_000)]);
    let (one, two) = (key(1).key_id, key(2).key_id);
    let mut disable = Box::pin(authority.change_state(&state, &one, State::Disabled, "", &options));
    let mut narrow = Box::pin(authority.update_key(&issue, &two, &changes, &options));
    let mut again = Box::pin(authority.change_state(&state, &three, State::Disabled, "another reason", &options));
    assert!(poll!(&mut disable).is_pending() && poll!(&mut narrow).is_pending() && poll!(&mut again).is_pending());
    // Until all are in the queue: the one that reads the key first must notice it.
    let mut queued = 0;
    while queued < 3 {
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            refused = &mut disable => panic!("{:?}", refused.err()),
            refused = &mut narrow => panic!("{:?}", refused.err()),
            refused = &mut again => panic!("{:?}", refused.err()),
        }
        queued = store.waiting()[0];
    }
    {
        let mut held = HELD.0.lock().unwrap();
        *held = false;
        HELD.1.notify_all();
    }
    let (disabled, narrowed, again) = timeout(LIMIT, async { tokio::join!(disable, narrow, again) }).await.unwrap();
    let last_narrowing = disabled.unwrap().revision.max(narrowed.unwrap().revision).max(again.unwrap().revision);
    timeout(LIMIT, first).await.unwrap().unwrap();
    for commit in waiting.into_iter().chain(others) {
        let revision = timeout(LIMIT, commit).await.unwrap().unwrap();
        assert!(revision > last_narrowing, "{revision} is before {last_narrowing}");
    }
    assert!(order_of(&*store, 100).await < last_narrowing.0, "only what was under way came before");
    store.close().await.unwrap();
}

static FREE: AtomicU64 = AtomicU64::new(u64::MAX);
const MIB: u64 = 1024 * 1024;

fn little_disk(_: &File) -> io::Result<u64> {
    Ok(FREE.load(Ordering::Relaxed))
}

#[tokio::test]
async fn with_little_room_a_key_can_be_narrowed_and_with_less_still_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_with(&dir, little_disk);
    for number in 1..=5 {
        create(&*store, number).await;
    }
    create_tenant(&*store).await;
    let authority = authority(store.clone()).await;
    let ((issue, state), options) = (grants("caller"), ChangeOptions::default());
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|number| key(number).key_id);
    let no_room = |refused: Option<AuthorityError>| assert!(matches!(refused, Some(AuthorityError::NoRoom)));

    FREE.store(63 * MIB, Ordering::Relaxed);
    assert_eq!(store.write_health().await, WriteHealth::DiskFull);
    authority.update_key(&issue, &one, &[expires_at(2_000)], &options).await.unwrap();
    no_room(authority.update_key(&issue, &one, &[expires_at(3_000)], &options).await.err());
    no_room(authority.update_key(&issue, &one, &[described("longer")], &options).await.err());
    authority.change_state(&state, &two, State::Disabled, "", &options).await.unwrap();
    no_room(authority.change_state(&state, &two, State::Active, "", &options).await.err());
    // Another reason takes nothing away, but it is a call that stops a key.
    authority.change_state(&state, &two, State::Disabled, "unpaid", &options).await.unwrap();
    let deleted = authority.delete_key(&state, &three, DELETED_KEPT_MS_MIN, "", &options).await.unwrap();
    no_room(authority.undelete_key(&state, &three, "", &options).await.err());
    // What frees room later takes some first.
    let (tenant, revision) = (TenantId::default_tenant(), deleted.revision);
    let purge = RecordWrite::Purge { tenant, key_id: three, revision };
    assert!(matches!(store.commit(commit(vec![purge])).await, Err(CommitError::DiskFull)));
    let owner = SoughtText::from("Zapier");
    let (held, epoch) = (Some(UnixMillis(START.0 - 1_000)), Some(START));
    authority.suspend_owner(&state, &owner, true, "unpaid", &options).await.unwrap();
    authority.set_epoch_of_owner(&state, &owner, held, &options).await.unwrap();
    no_room(authority.suspend_owner(&state, &owner, false, "paid", &options).await.err());

    // A key can be narrowed any number of times: what is left is kept for stopping keys.
    FREE.store(31 * MIB, Ordering::Relaxed);
    no_room(authority.update_key(&issue, &one, &[expires_at(1_000)], &options).await.err());
    no_room(authority.change_state(&state, &two, State::Disabled, "still unpaid", &options).await.err());
    // So can the end of a suspension be moved, and a secret be replaced.
    no_room(authority.suspend(&state, &one, UnixMillis(START.0 + 1_000), "", &options).await.err());
    let at_once = Overlap { ms: 0, starts: OverlapStart::AtIssue };
    no_room(authority.rotate_key(&issue, &one, at_once, (&options, None)).await.err());
    no_room(authority.suspend_owner(&state, &SoughtText::from("Slack"), true, "unpaid", &options).await.err());
    no_room(authority.set_epoch_of_owner(&state, &owner, epoch, &options).await.err());
    authority.change_state(&state, &one, State::Disabled, "", &options).await.unwrap();
    authority.change_state(&state, &four, State::Revoked, "", &options).await.unwrap();
    authority.delete_key(&state, &five, DELETED_KEPT_MS_MIN, "", &options).await.unwrap();

    FREE.store(15 * MIB, Ordering::Relaxed);
    no_room(authority.change_state(&state, &one, State::Revoked, "", &options).await.err());
    FREE.store(u64::MAX, Ordering::Relaxed);
    authority.change_state(&state, &one, State::Revoked, "", &options).await.unwrap();
    store.close().await.unwrap();
}

fn list(caller: &str) -> KeyQuery {
    KeyQuery {
        caller: actor(caller),
        tenant: TenantId::default_tenant(),
        states: vec![],
        clock: UnixMillis(0),
        owner: None,
        labels: Default::default(),
        key_ids: vec![],
        after: None,
        limit: 10,
    }
}

#[tokio::test]
async fn one_caller_has_few_lists_under_way_and_too_many_that_wait_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 64 * 1024);
    create(&store, 1).await;
    let mut pages = vec![];
    for _ in 0..32 {
        pages.push(store.keys(list("viewer")).await.unwrap());
    }
    // Each of them gets as far as it can by one poll.
    let list_all = || Box::pin(unconstrained(store.keys(list("viewer"))));
    let mut waiting: Vec<_> = (0..1_024).map(|_| list_all()).collect();
    for list in &mut waiting {
        assert!(poll!(list).is_pending());
    }
    let refused = timeout(LIMIT, store.keys(list("viewer"))).await.expect("it waits, too").unwrap_err();
    let refused = status(AuthorityError::from(refused));
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(refused.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    let tenants = store.tenants(&actor("viewer"), None, 10).await;
    assert!(matches!(tenants, Err(StoreError::Overloaded)), "tenants are lists, too");

    // Another caller waits for none of them.
    assert_eq!(timeout(LIMIT, store.keys(list("other"))).await.unwrap().unwrap().records.len(), 1);
    timeout(LIMIT, store.tenants(&actor("other"), None, 10)).await.unwrap().unwrap();
    drop(pages);
    for list in waiting {
        assert_eq!(timeout(LIMIT, list).await.unwrap().unwrap().records.len(), 1);
    }
    store.close().await.unwrap();
}

#[test]
fn the_store_needs_nothing_of_the_threads_that_others_may_fill() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, 64 * 1024);
        create(&store, 1).await;
        // The only thread that there is for what blocks.
        let blocked = tokio::task::spawn_blocking(move || held.recv().is_err());
        let all = async {
            assert_eq!(store.write_health().await, WriteHealth::Writable);
            assert!(store.key(&key(1).tenant, &key(1).key_id).await.unwrap().is_some());
            assert_eq!(store.keys(list("viewer")).await.unwrap().records.len(), 1);
            assert!(store.read_log(Revision(0)).await.unwrap().next().await.unwrap().is_some());
            store.close().await.unwrap();
        };
        timeout(LIMIT, all).await.unwrap();
        drop(release);
        assert!(blocked.await.unwrap());
    });
}

/// The runtime that answers all other calls is full of work that never gives way.
#[test]
fn a_key_is_disabled_while_all_threads_for_other_calls_are_busy() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags {
        data_dir: Some(dir.path().to_owned()),
        listen: vec!["127.0.0.1:0".into()],
        ops_listen: Some("off".into()),
        log_filter: Some("off".into()),
        ..Flags::default()
    };
    let settings = Settings { serving_threads: 1, ..Settings::load(&flags, None).unwrap().settings };
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(START));
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(5));
    let engine = Engine::Sled.configure(&settings, &clock, &entropy);
    let deps = Deps { clock, entropy, sockets: PassedSockets::default(), adjustable: Adjustable::default(), engine };
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let app = servers.block_on(App::start(settings, deps)).unwrap();
    let ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!("a TCP listener") };
    let admin = std::fs::read_to_string(dir.path().join("admin.key")).unwrap();
    let connect = async || {
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        Handle::new(channel, Some(admin.trim().to_owned()))
    };

    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    clients.block_on(async {
        let other = connect().await;
        let issued = other.issue("Leaked", &[]).await;
        // It is served before all is busy, and asks for nothing that is answered elsewhere.
        let urgent = connect().await;
        assert_eq!(urgent.reason(&issued.secret).await, Reason::Ok);
        let busy = Arc::new(std::sync::Barrier::new(3));
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..2 {
            let (busy, held) = (busy.clone(), held.clone());
            servers.spawn(async move {
                busy.wait();
                assert!(held.lock().unwrap().recv().is_err());
            });
        }
        busy.wait();
        let disable = pb::DisableKeyRequest { key_id: issued.key.key_id.clone(), ..Default::default() };
        timeout(LIMIT, urgent.disable(disable)).await.expect("it waits for other calls").unwrap();
        assert_eq!(urgent.reason(&issued.secret).await, Reason::Disabled);
        let revoke = pb::RevokeKeyRequest { key_id: issued.key.key_id.clone(), ..Default::default() };
        timeout(LIMIT, urgent.revoke(revoke)).await.expect("it waits for other calls").unwrap();
        assert_eq!(urgent.reason(&issued.secret).await, Reason::Revoked);
        drop(release);
    });
    servers.block_on(app.stop()).unwrap();
}

#[tokio::test]
async fn an_update_that_may_narrow_is_not_refused_for_those_that_wait_and_may_not() {
    let store = Arc::new(Watched { held: Some(key(1).key_id), ..Watched::default() });
    create(&store.inner, 1).await;
    let authority = authority(store.clone()).await;
    let ((issue, _), id, options) = (grants("caller"), key(1).key_id, ChangeOptions::default());
    let updates: Vec<_> = (0..65).map(|number| described(&number.to_string())).collect();
    let mut waiting: Vec<_> = updates
        .iter()
        .map(|change| Box::pin(authority.update_key(&issue, &id, std::slice::from_ref(change), &options)))
        .collect();
    for update in &mut waiting {
        assert!(poll!(update).is_pending());
    }
    store.arrived.notified().await;
    let changes = [described("one more")];
    let refused = authority.update_key(&issue, &id, &changes, &options).await.err();
    assert!(matches!(refused, Some(AuthorityError::Overloaded)));
    let changes = [expires_at(1_000)];
    let mut narrow = Box::pin(authority.update_key(&issue, &id, &changes, &options));
    assert!(poll!(&mut narrow).is_pending(), "it waits for its turn");
}
