//! No change, in no order, removes the last lasting administrator.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward::keyring::Keyring;
use keyward::store::local::{LocalStore, LockedDir, StoreOptions};
use keyward::store::memory::MemoryStore;
use keyward::store::{Commit, CommitError, RecordWrite, Store};
use keyward_core::access::{Caller, ChangeState, Identity, Issue};
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{Deletion, Hold, IssuerRecord, KeyPolicy, KeyRecord, OwnerRecord, State};
use keyward_core::scope::Scope;
use keyward_core::testing::{CREATED, SeededEntropy, stamp};
use tonic::{Code, Status};

use keyward::grpc::pb;

use crate::support::harness::{
    Handle, Issued, START, Site, after_start, delete, disable, error_reason, new_key, strings, update,
};
use crate::support::local_store::{commit, key, open, options};

const NOW: UnixMillis = UnixMillis(1_000);

/// What one administrator does to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Disable,
    Suspend,
    Revoke,
    Delete,
    Narrow,
    NarrowToTenant,
    Date,
    Postpone,
    BindElsewhere,
    BindHere,
    BindToOthers,
    BindToUsToo,
    SuspendOwner,
    OutdateOwner,
    OutdateIssuer,
    GiveToHeldOwner,
}

const DEEDS: [Deed; 16] = [
    Deed::Disable,
    Deed::Revoke,
    Deed::Narrow,
    Deed::NarrowToTenant,
    Deed::Date,
    Deed::Postpone,
    Deed::BindElsewhere,
    Deed::BindHere,
    Deed::BindToOthers,
    Deed::BindToUsToo,
    Deed::Suspend,
    Deed::Delete,
    Deed::SuspendOwner,
    Deed::OutdateOwner,
    Deed::OutdateIssuer,
    Deed::GiveToHeldOwner,
];

/// An owner in tenant `system` that is suspended.
const HELD_OWNER: &str = "held";

fn scopes(scopes: &[&str]) -> Vec<Scope> {
    scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect()
}

impl Deed {
    /// The record that it writes. Each administrator has an owner and an issuer of its own.
    fn write(self, mut target: KeyRecord) -> RecordWrite {
        let outdated = Hold { reject_issued_before: Some(UnixMillis(CREATED.0 + 1)), ..Hold::default() };
        let owner = |owner: &str, hold: Hold| {
            let (tenant, owner, updated, revision) = (TenantId::system(), owner.to_owned(), stamp(), Revision(0));
            RecordWrite::Owner(Box::new(OwnerRecord { tenant, owner, hold, updated, revision }))
        };
        match self {
            Self::SuspendOwner => owner(&target.spec.owner, suspended()),
            Self::OutdateOwner => owner(&target.spec.owner, outdated),
            Self::OutdateIssuer => {
                let (actor, updated, revision) = (target.created.actor, stamp(), Revision(0));
                RecordWrite::Issuer(Box::new(IssuerRecord { actor, hold: outdated, updated, revision }))
            }
            Self::GiveToHeldOwner => {
                target.spec.owner = HELD_OWNER.into();
                RecordWrite::Key(Box::new(target))
            }
            _ => {
                self.apply(&mut target);
                RecordWrite::Key(Box::new(target))
            }
        }
    }

    /// The name of the record that it writes, of those that a target has.
    fn writes(self) -> &'static str {
        match self {
            Self::SuspendOwner | Self::OutdateOwner => "owner",
            Self::OutdateIssuer => "issuer",
            _ => "key",
        }
    }

    fn apply(self, key: &mut KeyRecord) {
        let policy: &mut KeyPolicy = &mut key.spec.policy;
        match self {
            Self::Disable => policy.state = State::Disabled,
            Self::Suspend => (policy.state, key.resume_time) = (State::Disabled, Some(UnixMillis(NOW.0 + 1))),
            Self::Delete => key.deletion = Some(Deletion { time: NOW, purge_time: UnixMillis(NOW.0 + 1) }),
            Self::Revoke => policy.state = State::Revoked,
            Self::Narrow => policy.scopes = scopes(&["keyward.operator", "keyward.issuer"]),
            Self::NarrowToTenant => policy.scopes = scopes(&["keyward.admin@default"]),
            Self::Date => policy.expire_time = Some(UnixMillis(NOW.0 + 1)),
            Self::Postpone => policy.not_before = Some(UnixMillis(NOW.0 + 1)),
            Self::BindElsewhere => policy.allowed_cidrs = vec!["192.0.2.0/24".parse().unwrap()],
            Self::BindHere => policy.allowed_cidrs = vec!["127.0.0.0/8".parse().unwrap()],
            Self::BindToOthers => policy.audiences = vec!["mail".into()],
            Self::BindToUsToo => policy.audiences = vec!["keyward".into(), "mail".into()],
            Self::SuspendOwner | Self::OutdateOwner | Self::OutdateIssuer | Self::GiveToHeldOwner => {}
        }
    }

    /// Whether the administrator that it is done to may still change others.
    fn leaves_power(self) -> bool {
        matches!(self, Self::Date | Self::BindHere | Self::BindToUsToo)
    }
}

fn suspended() -> Hold {
    Hold { suspended: true, ..Hold::default() }
}

/// Some administrators on a store, who all do something to another one. None of an earlier round is left.
struct Round {
    keys: Vec<KeyRecord>,
    /// Whom each acts on.
    on: Vec<usize>,
    deeds: Vec<Deed>,
    /// The record as each has read it.
    read: Vec<Option<KeyRecord>>,
    /// The deeds that had been done to it by then.
    done_by_then: Vec<usize>,
    suffered: Vec<Vec<Deed>>,
}

impl Round {
    async fn begin(store: &dyn Store, next: &mut u32, old: &[KeyRecord], on: &[usize], deeds: &[Deed]) -> Self {
        let mut keys = vec![];
        for _ in on {
            *next += 1;
            let mut made = KeyRecord { tenant: TenantId::system(), ..key(*next) };
            made.spec.policy.scopes = scopes(&["keyward.admin"]);
            made.spec.owner = format!("owner of {next}");
            made.created.actor = ActorId::parse(&format!("issuer-{next}")).unwrap();
            made.revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(made.clone()))])).await.unwrap();
            keys.push(made);
        }
        for old in old {
            let mut now = KeyRecord::clone(&*store.key(&old.tenant, &old.key_id).await.unwrap().unwrap());
            now.spec.policy.state = State::Revoked;
            store.commit(commit(vec![RecordWrite::Key(Box::new(now))])).await.unwrap();
        }
        if store.owner(&TenantId::system(), HELD_OWNER).await.unwrap().is_none() {
            let (tenant, owner, hold) = (TenantId::system(), HELD_OWNER.into(), suspended());
            let held = OwnerRecord { tenant, owner, hold, updated: stamp(), revision: Revision(0) };
            store.commit(commit(vec![RecordWrite::Owner(Box::new(held))])).await.unwrap();
        }
        let (read, suffered) = (on.iter().map(|_| None).collect(), on.iter().map(|_| vec![]).collect());
        let done_by_then = vec![0; on.len()];
        Self { keys, on: on.to_vec(), deeds: deeds.to_vec(), read, done_by_then, suffered }
    }

    async fn read(&mut self, store: &dyn Store, who: usize) {
        let target = &self.keys[self.on[who]];
        self.read[who] = Some(KeyRecord::clone(&*store.key(&target.tenant, &target.key_id).await.unwrap().unwrap()));
        self.done_by_then[who] = self.suffered[self.on[who]].len();
    }

    fn commit(&self, who: usize) -> Commit {
        let (actor, target) = (&self.keys[who], self.read[who].clone().unwrap());
        let deed = self.deeds[who];
        let digest = actor.secret.digest;
        let identity = Identity::of_key(actor.key_id.clone(), digest, Some("127.0.0.1".parse().unwrap()));
        let caller = Caller::new(identity, &scopes(&["keyward.admin"]));
        let authorization = match deed {
            Deed::Disable
            | Deed::Suspend
            | Deed::Revoke
            | Deed::Delete
            | Deed::SuspendOwner
            | Deed::OutdateOwner
            | Deed::OutdateIssuer => caller.grant::<ChangeState>(TenantId::system()).unwrap().authorization(NOW),
            _ => caller.grant::<Issue>(TenantId::system()).unwrap().authorization(NOW),
        };
        Commit {
            actor: ActorId::from(&actor.key_id),
            authorization: Some(authorization),
            narrows: true,
            urgent: true,
            ..commit(vec![deed.write(target)])
        }
    }

    /// What must come of a commit, said the long way.
    fn expected(&self, who: usize) -> &'static str {
        let (target, written) = (self.on[who], self.deeds[who].writes());
        // A key is changed as it was read; of owners and issuers there is no record before.
        let since = if written == "key" { self.done_by_then[who] } else { 0 };
        let changed_since = self.suffered[target][since..].iter().any(|deed| deed.writes() == written);
        match () {
            () if !self.suffered[who].iter().all(|deed| deed.leaves_power()) => "unauthorized",
            () if changed_since => "outdated",
            () if self.suffered[target].is_empty() && self.lasting() == 1 => "last administrator",
            () => "made",
        }
    }

    fn lasting(&self) -> usize {
        self.suffered.iter().filter(|deeds| deeds.is_empty()).count()
    }

    fn take(&mut self, who: usize, outcome: Result<Revision, CommitError>) {
        let came = match outcome {
            Ok(_) => "made",
            Err(CommitError::LastAdministrator) => "last administrator",
            Err(CommitError::Unauthorized(_)) => "unauthorized",
            Err(CommitError::Outdated) => "outdated",
            Err(other) => panic!("{other}"),
        };
        assert_eq!(came, self.expected(who), "{who} of {:?} on {:?}", self.deeds, self.on);
        if came == "made" {
            self.suffered[self.on[who]].push(self.deeds[who]);
        }
    }
}

/// Every order of `count` callers who each read and then write.
fn interleavings(count: usize) -> Vec<Vec<usize>> {
    fn on(left: &mut Vec<u8>, so_far: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        if left.iter().all(|left| *left == 0) {
            all.push(so_far.clone());
        }
        for who in 0..left.len() {
            if left[who] > 0 {
                left[who] -= 1;
                so_far.push(who);
                on(left, so_far, all);
                so_far.pop();
                left[who] += 1;
            }
        }
    }
    let mut all = vec![];
    on(&mut vec![2; count], &mut vec![], &mut all);
    all
}

/// Runs cases of whom each acts on and what each does, in every order; gives how many commits were refused as
/// the last ones.
async fn every_order(store: &dyn Store, cases: impl IntoIterator<Item = (Vec<usize>, Vec<Deed>)>) -> usize {
    let (mut next, mut old, mut refused) = (0, vec![], 0);
    for (on, deeds) in cases {
        for order in interleavings(on.len()) {
            let mut round = Round::begin(store, &mut next, &old, &on, &deeds).await;
            let mut has_read = vec![false; on.len()];
            for who in order {
                if std::mem::replace(&mut has_read[who], true) {
                    let outcome = store.commit(round.commit(who)).await;
                    refused += usize::from(matches!(outcome, Err(CommitError::LastAdministrator)));
                    round.take(who, outcome);
                } else {
                    round.read(store, who).await;
                }
                assert_eq!(store.lasting_administrators(NOW), round.lasting());
                assert!(round.lasting() > 0);
            }
            old = round.keys;
        }
    }
    refused
}

fn pairs() -> Vec<(Vec<usize>, Vec<Deed>)> {
    DEEDS.iter().flat_map(|one| DEEDS.iter().map(|two| (vec![1, 0], vec![*one, *two]))).collect()
}

fn rings(size: usize) -> Vec<(Vec<usize>, Vec<Deed>)> {
    DEEDS.iter().map(|deed| ((0..size).map(|who| (who + 1) % size).collect(), vec![*deed; size])).collect()
}

/// Three, each on any other, so that two may act on one.
fn crossed() -> Vec<(Vec<usize>, Vec<Deed>)> {
    let two_ways = |who: usize| [(who + 1) % 3, (who + 2) % 3];
    let mut cases = vec![];
    for on in 0..8_usize {
        for deed in [Deed::Disable, Deed::Date, Deed::BindHere, Deed::SuspendOwner, Deed::GiveToHeldOwner] {
            cases.push(((0..3).map(|who| two_ways(who)[on >> who & 1]).collect(), vec![deed; 3]));
        }
    }
    cases
}

#[tokio::test]
async fn some_lasting_administrator_is_left_whatever_they_do_to_each_other_in_memory() {
    let store = MemoryStore::default();
    assert!(every_order(&store, pairs()).await > 0);
    assert!(every_order(&MemoryStore::default(), rings(3).into_iter().chain(crossed())).await > 0);
    assert!(every_order(&MemoryStore::default(), rings(4).into_iter().step_by(4)).await > 0);
}

#[tokio::test]
async fn some_lasting_administrator_is_left_whatever_they_do_to_each_other_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 16 * 1024 * 1024);
    let some = rings(3).into_iter().step_by(3);
    assert!(every_order(&store, pairs().into_iter().step_by(5).chain(some)).await > 0);
    store.close().await.unwrap();
}

/// All of them wait for the committer together, and so are in one group, most often.
#[tokio::test]
async fn of_a_ring_that_comes_at_once_one_is_left_and_a_restart_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Arc::new(open(&dir, 16 * 1024 * 1024));
    let (mut next, mut old) = (0, vec![]);
    for (on, deeds) in rings(4) {
        let mut round = Round::begin(&*store, &mut next, &old, &on, &deeds).await;
        for who in 0..on.len() {
            round.read(&*store, who).await;
        }
        let [a, b, c, d] = std::array::from_fn(|who| round.commit(who));
        let outcomes = tokio::join!(store.commit(a), store.commit(b), store.commit(c), store.commit(d));
        for (who, outcome) in [outcomes.0, outcomes.1, outcomes.2, outcomes.3].into_iter().enumerate() {
            round.take(who, outcome);
        }
        let left = round.lasting();
        assert!(left > 0, "{deeds:?}");
        store.close().await.unwrap();
        drop(store);
        store = Arc::new(open(&dir, 16 * 1024 * 1024));
        assert_eq!(store.lasting_administrators(NOW), left, "{deeds:?}");
        old = round.keys;
    }
    store.close().await.unwrap();
}

fn admin_key(label: &str) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { tenant: "system".into(), ..new_key(label, &["keyward.admin"]) }
}

/// The key that the first start made.
async fn bootstrap_key(site: &Site) -> pb::Key {
    let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
    let list = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
    site.admin().list(list).await.unwrap().keys.remove(0)
}

/// What an administrator can do to a key, through the calls that there are.
async fn each_deed(caller: &Handle, key: &pb::Key, validate_only: bool) -> Vec<(&'static str, Option<Status>)> {
    let (key_id, tenant) = (key.key_id.clone(), key.tenant.clone());
    let revoke = pb::RevokeKeyRequest { key_id, tenant, validate_only, ..Default::default() };
    let updated = [
        ("scopes", pb::Key { scopes: strings(&["keyward.operator"]), ..key.clone() }),
        ("scopes", pb::Key { scopes: strings(&["keyward.admin@default"]), ..key.clone() }),
        ("expire_time", pb::Key { expire_time: after_start(1_000_000), ..key.clone() }),
        ("not_before", pb::Key { not_before: after_start(1_000_000), ..key.clone() }),
        ("allowed_cidrs", pb::Key { allowed_cidrs: strings(&["127.0.0.0/8"]), ..key.clone() }),
        ("audiences", pb::Key { audiences: strings(&["billing"]), ..key.clone() }),
    ];
    let disable = pb::DisableKeyRequest { validate_only, ..disable(key) };
    let suspend = pb::DisableKeyRequest { resume_time: after_start(1_000_000), ..disable.clone() };
    let delete = pb::DeleteKeyRequest { validate_only, ..delete(key) };
    let mut done = vec![
        ("disable", caller.disable(disable).await.err()),
        ("suspend", caller.disable(suspend).await.err()),
        ("revoke", caller.revoke(revoke).await.err()),
        ("delete", caller.delete(delete).await.err()),
    ];
    for (path, key) in updated {
        let request = pb::UpdateKeyRequest { validate_only, ..update(&key, &[path]) };
        done.push((path, caller.update(request).await.err()));
    }
    done
}

#[tokio::test]
async fn whoever_does_not_last_cannot_take_the_last_one_that_does() {
    for site in [Site::in_memory().await, Site::start().await] {
        let last = bootstrap_key(&site).await;
        let expiring = pb::CreateKeyRequest { expire_time: after_start(1_000_000), ..admin_key("Expiring") };
        let expiring = site.caller(&site.admin().issued(expiring).await.secret);
        for validate_only in [true, false] {
            for (deed, refused) in each_deed(&expiring, &last, validate_only).await {
                let refused = refused.expect(deed);
                let told = (refused.code(), error_reason(&refused));
                assert_eq!(told, (Code::FailedPrecondition, "LAST_ADMINISTRATOR".to_owned()), "{deed}");
                assert!(refused.message().contains("make another one first"), "{}", refused.message());
            }
        }
        assert_eq!(site.admin().read(&last).await, last, "nothing has changed");
        // How it is called, and that it is for Keyward, takes nothing away.
        let relabelled = pb::Key { display_name: "Mine".into(), audiences: strings(&["keyward"]), ..last.clone() };
        expiring.update(update(&relabelled, &["display_name", "audiences"])).await.unwrap();

        let second = site.admin().issued(admin_key("Second")).await;
        site.caller(&second.secret).disable_key(&last).await;
        let refused = expiring.disable(disable(&second.key)).await.unwrap_err();
        assert_eq!(error_reason(&refused), "LAST_ADMINISTRATOR");
        // One that lasts again is enough.
        expiring.enable_key(&last).await;
        expiring.disable_key(&second.key).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_administrators_at_the_same_moment_leave_one() {
    let site = Site::start().await;
    let mut last = Issued { key: bootstrap_key(&site).await, secret: site.admin_secret().to_owned(), revision: 0 };
    for round in 0..60 {
        let first = site.caller(&last.secret);
        let [one, two] = [first.issued(admin_key("One")).await, first.issued(admin_key("Two")).await];
        site.caller(&one.secret).disable_key(&last.key).await;
        let begin = Arc::new(tokio::sync::Barrier::new(2));
        let against = |who: &Issued, whom: &Issued| {
            let (caller, key, begin) = (site.caller(&who.secret), whom.key.clone(), begin.clone());
            let dated = pb::Key { expire_time: after_start(1_000_000), ..key.clone() };
            tokio::spawn(async move {
                begin.wait().await;
                match round % 2 {
                    0 => caller.disable(disable(&key)).await.map(drop),
                    _ => caller.update(update(&dated, &["expire_time"])).await.map(drop),
                }
            })
        };
        let (a, b) = (against(&one, &two), against(&two, &one));
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1, "round {round}: {a:?} {b:?}");
        last = if a.is_ok() { one } else { two };
    }
}

#[tokio::test]
async fn where_none_lasts_changes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, 16 * 1024 * 1024);
    let mut dated = KeyRecord { tenant: TenantId::system(), ..key(1) };
    dated.spec.policy.scopes = scopes(&["keyward.admin"]);
    dated.spec.policy.expire_time = Some(UnixMillis(NOW.0 + 1));
    dated.revision = store.commit(commit(vec![RecordWrite::NewKey(Box::new(dated.clone()))])).await.unwrap();
    assert_eq!(store.lasting_administrators(NOW), 0);
    dated.spec.policy.state = State::Disabled;
    store.commit(commit(vec![RecordWrite::Key(Box::new(dated))])).await.unwrap();
    store.close().await.unwrap();
}

/// One that is to last, and has not begun, lasts from its `not_before` on.
#[tokio::test]
async fn one_that_has_not_begun_is_none_yet() {
    let site = Site::in_memory().await;
    let last = bootstrap_key(&site).await;
    let later = pb::CreateKeyRequest { not_before: after_start(10_000), ..admin_key("Later") };
    site.admin().create(later).await.unwrap();
    let expiring = pb::CreateKeyRequest { expire_time: after_start(1_000_000), ..admin_key("Expiring") };
    let expiring = site.caller(&site.admin().issued(expiring).await.secret);
    assert_eq!(error_reason(&expiring.disable(disable(&last)).await.unwrap_err()), "LAST_ADMINISTRATOR");
    site.clock.advance_ms(10_000);
    expiring.disable(disable(&last)).await.unwrap();
}

#[tokio::test]
async fn a_key_of_system_has_a_role_and_no_other_key_has_one() {
    let site = Site::start().await;
    let admin = site.admin();
    let bare = pb::CreateKeyRequest { scopes: vec![], ..admin_key("Bare") };
    let refused = admin.create(bare).await.unwrap_err();
    assert_eq!(crate::support::harness::bad_fields(&refused), ["scopes"]);
    assert!(refused.message().contains("must have a role"), "{}", refused.message());
    let caller = admin.issued(admin_key("Caller")).await.key;
    let refused = admin.update(update(&pb::Key { scopes: vec![], ..caller }, &["scopes"])).await.unwrap_err();
    assert_eq!(crate::support::harness::bad_fields(&refused), ["key.scopes"]);

    for scope in ["keyward.verifier", "keyward.admin@default", "keyward.*", "keyward.anything"] {
        let refused = admin.create(new_key("Slip", &["orders.read", scope])).await.unwrap_err();
        assert_eq!(crate::support::harness::bad_fields(&refused), ["scopes[1]"], "{scope}");
        assert!(refused.message().contains("create it in tenant 'system'"), "{}", refused.message());
    }
    let ordinary = admin.issue("Ordinary", &["keyward", "keywards.read"]).await.key;
    let slip = pb::Key { scopes: strings(&["keyward.viewer"]), ..ordinary };
    let refused = admin.update(update(&slip, &["scopes"])).await.unwrap_err();
    assert_eq!(crate::support::harness::bad_fields(&refused), ["key.scopes[0]"]);
}

/// Changes records in the directory of a stopped server at a time, past the rules for new ones.
pub(crate) async fn write_to(dir: &std::path::Path, time: UnixMillis, change: impl Fn(KeyRecord) -> Option<KeyRecord>) {
    let keyring = Keyring::open(&dir.join("pepper"), false, &SeededEntropy::new(1)).unwrap();
    let options = StoreOptions { chain_key: keyring.chain_key(), ..options(16 * 1024 * 1024) };
    let store = LocalStore::open(LockedDir::lock(dir).unwrap(), &options, Arc::new(())).unwrap();
    let mut log = store.read_log(Revision(0)).await.unwrap();
    let mut keys = BTreeMap::new();
    while let Some(changes) = log.next().await.unwrap() {
        for record in changes.iter().flat_map(|change| &change.records) {
            if let Record::Key(key) = record {
                keys.insert(*key.secret.digest.as_bytes(), key.clone());
            }
        }
    }
    let changed = keys.into_values().filter_map(|key| change(KeyRecord::clone(&key)));
    let writes: Vec<_> = changed.map(|key| RecordWrite::Key(Box::new(key))).collect();
    for put in writes {
        store.commit(Commit { time, ..commit(vec![put]) }).await.unwrap();
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_is_stored_already_stays_and_may_be_changed_otherwise() {
    let mut site = Site::start().await;
    let admin = site.admin();
    let bare =
        admin.issued(pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Bare", &["keyward.viewer"]) }).await;
    let slip = admin.issue("Slip", &["orders.read"]).await;
    site.stop().await;
    let (bare_id, slip_id) = (bare.key.key_id.clone(), slip.key.key_id.clone());
    write_to(site.dir.path(), START, |mut key| {
        key.spec.policy.scopes = match key.key_id.as_str() {
            id if id == bare_id => vec![],
            id if id == slip_id => scopes(&["keyward.admin"]),
            _ => return None,
        };
        Some(key)
    })
    .await;
    site.try_start().await.unwrap();
    let admin = site.admin();
    for key in [&bare.key, &slip.key] {
        let relabelled = pb::Key { display_name: "Other".into(), owner: "owner".into(), ..key.clone() };
        let changed = admin.update(update(&relabelled, &["display_name", "owner"])).await.unwrap().key.unwrap();
        assert_eq!(changed.scopes.len(), usize::from(key.key_id == slip.key.key_id));
    }
    // A role outside of tenant `system` is none, whatever it is called.
    let refused = site.caller(&slip.secret).list(pb::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
    let asked =
        pb::VerifyRequest { all_scopes: strings(&["keyward.admin"]), ..crate::support::harness::ask(&slip.secret) };
    assert_eq!(admin.ask(asked).await.unwrap().reason(), pb::Reason::Ok);
    site.stop().await;
}
