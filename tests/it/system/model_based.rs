//! Random calls against a plain map: after each, every verdict must be the map's.

use std::collections::BTreeMap;

use keyward::grpc::pb::{self, Matched, Reason};
use keyward::grpc::retry::seal_info;
use keyward::util::hpke::KeyPair;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost_types::Duration;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::harness::{
    Handle, Issued, Site, after_start, ask, delete, disable, error_reason, new_key, rotate, rotate_at_use, strings,
    suspend, update,
};

const SCOPES: [&[&str]; 4] = [&[], &["a"], &["a.*"], &["a", "b.c"]];
const REASONS: [&str; 3] = ["", "unpaid", "leaked"];
const WANTED: [&str; 4] = ["a", "a.x", "b", "b.c"];
/// How long deleted keys are kept.
const KEPT_MS: i64 = 60_000;

/// A call, or another event. Keys are numbered in the order in which they were made.
#[derive(Clone, Debug)]
enum Step {
    Create {
        scopes: usize,
        owner: u8,
        waits_ms: Option<u16>,
        lives_ms: Option<u16>,
        disabled: bool,
    },
    Disable(u8, usize),
    Enable(u8, usize),
    Revoke(u8, usize),
    Rescope(u8, usize),
    Reown(u8, u8),
    Expire(u8, Option<u16>),
    Rename(u8, u8),
    Rotate(u8, u16, bool),
    Finish(u8),
    Cancel(u8),
    Use(u8),
    Suspend(u8, u16, usize),
    Delete(u8, usize),
    Undelete(u8, usize),
    Protect(u8, bool),
    /// Suspends it, or resumes it.
    Hold(Holder, bool, usize),
    /// Refuses what was issued so many milliseconds before now, or before the call.
    Epoch(Holder, Option<u16>),
    Wait(u16),
    /// Until every key is purged that is deleted now.
    WaitLong,
    SetBack(u16),
    /// An earlier change, asked for again.
    Again(u8),
    Minutes(u8),
    Restart,
}

/// Whose keys are held. All keys are of one tenant and one issuer.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Tenant,
    Owner(u8),
    Issuer,
}

impl Holder {
    fn place(self) -> usize {
        match self {
            Self::Owner(owner) => usize::from(owner),
            Self::Tenant => 3,
            Self::Issuer => 4,
        }
    }
}

fn holder() -> impl Strategy<Value = Holder> {
    prop_oneof![3 => (0..3_u8).prop_map(Holder::Owner), 1 => Just(Holder::Tenant), 1 => Just(Holder::Issuer)]
}

fn step() -> impl Strategy<Value = Step> {
    let scopes = 0..SCOPES.len();
    let times = (prop::option::weighted(0.2, 1..1_000_u16), prop::option::weighted(0.3, 1..2_000_u16));
    let named = || (any::<u8>(), 0..REASONS.len());
    prop_oneof![
        4 => (scopes.clone(), 0..3_u8, times, prop::bool::weighted(0.1)).prop_map(
            |(scopes, owner, (waits_ms, lives_ms), disabled)| Step::Create { scopes, owner, waits_ms, lives_ms, disabled }
        ),
        3 => named().prop_map(|(key, reason)| Step::Disable(key, reason)),
        3 => named().prop_map(|(key, reason)| Step::Enable(key, reason)),
        1 => named().prop_map(|(key, reason)| Step::Revoke(key, reason)),
        2 => (any::<u8>(), scopes).prop_map(|(key, scopes)| Step::Rescope(key, scopes)),
        1 => (any::<u8>(), 0..3_u8).prop_map(|(key, owner)| Step::Reown(key, owner)),
        1 => (any::<u8>(), prop::option::of(1..2_000_u16)).prop_map(|(key, lives)| Step::Expire(key, lives)),
        1 => (any::<u8>(), 0..3_u8).prop_map(|(key, name)| Step::Rename(key, name)),
        3 => (any::<u8>(), prop_oneof![1 => Just(0), 3 => 1..2_000_u16], any::<bool>())
            .prop_map(|(key, overlap_ms, at_use)| Step::Rotate(key, overlap_ms, at_use)),
        1 => any::<u8>().prop_map(Step::Finish),
        1 => any::<u8>().prop_map(Step::Cancel),
        2 => any::<u8>().prop_map(Step::Use),
        2 => (any::<u8>(), 1..1_000_u16, 0..REASONS.len()).prop_map(|(key, ms, reason)| Step::Suspend(key, ms, reason)),
        2 => named().prop_map(|(key, reason)| Step::Delete(key, reason)),
        1 => named().prop_map(|(key, reason)| Step::Undelete(key, reason)),
        1 => (any::<u8>(), prop::bool::weighted(0.3)).prop_map(|(key, is)| Step::Protect(key, is)),
        2 => (holder(), prop::bool::weighted(0.4), 0..REASONS.len()).prop_map(|(of, suspended, reason)| {
            Step::Hold(of, suspended, reason)
        }),
        1 => (holder(), prop::option::of(0..1_500_u16)).prop_map(|(of, back)| Step::Epoch(of, back)),
        2 => (1..1_000_u16).prop_map(Step::Wait),
        1 => Just(Step::WaitLong),
        1 => (1..3_000_u16).prop_map(Step::SetBack),
        4 => any::<u8>().prop_map(Step::Again),
        1 => (1..5_u8).prop_map(Step::Minutes),
        1 => Just(Step::Restart),
    ]
}

/// The model of a key.
struct Known {
    issued: Issued,
    secrets: Secrets,
    state: &'static str,
    reason: &'static str,
    /// When it entered its state, or was deleted or given back, and whether by Keyward itself.
    stated_ms: i64,
    by_keyward: bool,
    /// When a disabled key works again.
    resumes_ms: Option<i64>,
    /// When a deleted key is purged.
    purge_ms: Option<i64>,
    is_purged: bool,
    fields: Fields,
}

/// The model of a tenant, an owner or an issuer.
#[derive(Clone, Copy, Default)]
struct Held {
    suspended: bool,
    reason: &'static str,
    epoch_ms: Option<i64>,
}

/// The model of the secrets of a key.
struct Secrets {
    current: Secret,
    previous: Option<Previous>,
    retired: Option<Secret>,
    /// Those that were retired before that one.
    forgotten: Vec<String>,
    issued: u32,
}

struct Secret {
    version: u32,
    text: String,
    issued_ms: i64,
}

/// Which secret it is if it works, and when it was issued; or the verdict.
type Works = Result<(Matched, i64), Reason>;

struct Previous {
    secret: Secret,
    overlap_ms: i64,
    /// `None`: it waits for a use.
    ends_ms: Option<i64>,
}

impl Secrets {
    fn retire(&mut self, secret: Secret) {
        self.forgotten.extend(self.retired.replace(secret).map(|older| older.text));
    }

    /// What GetKey tells of them.
    fn told(&self) -> Vec<(u32, pb::SecretState)> {
        let previous = self.previous.as_ref().map(|it| (it.secret.version, pb::SecretState::Previous));
        let retired = self.retired.as_ref().map(|secret| (secret.version, pb::SecretState::Retired));
        [Some((self.current.version, pb::SecretState::Current)), previous, retired].into_iter().flatten().collect()
    }
}

#[derive(Clone, PartialEq)]
struct Fields {
    name: u8,
    scopes: usize,
    owner: u8,
    starts_ms: Option<i64>,
    ends_ms: Option<i64>,
    protected: bool,
}

impl Known {
    /// The state that it is shown in.
    fn shown(&self) -> &'static str {
        if self.purge_ms.is_some() { "deleted" } else { self.state }
    }

    fn state_is(&mut self, state: &'static str, stated_ms: i64) {
        (self.state, self.stated_ms, self.by_keyward, self.resumes_ms) = (state, stated_ms, false, None);
    }

    /// Whether a call was made. One that was not is refused for this reason, or because the key is gone.
    fn answers(&self, done: &Result<(), Status>, refused: Option<&str>) -> bool {
        let expected = if self.is_purged { Some("KEY_NOT_FOUND") } else { refused };
        assert_eq!(done.as_ref().err().map(error_reason).as_deref(), expected, "{:?}", self.issued.key);
        expected.is_none()
    }

    /// Every secret that it ever had.
    fn each_secret(&self, latest_ms: i64) -> Vec<(&str, Works)> {
        let is_hidden = self.is_purged || self.purge_ms.is_some() && self.state != "revoked";
        let rotated_out = if is_hidden { Reason::Unknown } else { Reason::RotatedOut };
        let Secrets { current, previous, retired, forgotten, issued: _ } = &self.secrets;
        let mut all = vec![(&*current.text, Ok((Matched::Current, current.issued_ms)))];
        all.extend(previous.iter().map(|Previous { secret, ends_ms, .. }| {
            let has_ended = ends_ms.is_some_and(|ends| ends <= latest_ms);
            let works = (Matched::Previous, secret.issued_ms);
            (&*secret.text, if has_ended { Err(rotated_out) } else { Ok(works) })
        }));
        all.extend(retired.iter().map(|secret| (&*secret.text, Err(rotated_out))));
        all.extend(forgotten.iter().map(|secret| (&**secret, Err(Reason::Unknown))));
        all
    }

    /// When the previous secret ends, with the key or before it.
    fn previous_ends(&self) -> Option<i64> {
        let ends = self.secrets.previous.as_ref()?.ends_ms?;
        Some(self.fields.ends_ms.map_or(ends, |of_key| of_key.min(ends)))
    }

    /// The expected verdict on a secret that works if the key does, and was issued at a time.
    fn reason(&self, wanted: &str, issued_ms: i64, around: &Surroundings) -> Reason {
        let Surroundings { now_ms, latest_ms, held } = *around;
        let is_hidden = self.is_purged || self.purge_ms.is_some() && self.state != "revoked";
        let of_it = [Holder::Tenant, Holder::Owner(self.fields.owner), Holder::Issuer].map(|of| held[of.place()]);
        if !is_hidden && of_it.iter().any(|held| held.suspended) {
            return Reason::OwnerSuspended;
        }
        if !is_hidden && of_it.iter().any(|held| held.epoch_ms.is_some_and(|epoch| issued_ms < epoch)) {
            return Reason::EpochRejected;
        }
        let has_scope = SCOPES[self.fields.scopes].iter().any(|granted| match granted.strip_suffix(".*") {
            Some(above) => wanted.strip_prefix(above).is_some_and(|rest| rest.starts_with('.')),
            None => *granted == wanted,
        });
        match (self.state, self.fields.starts_ms, self.fields.ends_ms) {
            _ if self.is_purged => Reason::Unknown,
            ("revoked", ..) => Reason::Revoked,
            _ if self.purge_ms.is_some() => Reason::Unknown,
            ("disabled", ..) if self.resumes_ms.is_some() => Reason::Suspended,
            ("disabled", ..) => Reason::Disabled,
            (_, Some(starts), _) if now_ms < starts => Reason::NotYetValid,
            (_, _, Some(ends)) if now_ms.max(latest_ms) >= ends => Reason::Expired,
            _ if !has_scope => Reason::ScopeMissing,
            _ => Reason::Ok,
        }
    }
}

fn get(issued: &Issued) -> pb::GetKeyRequest {
    pb::GetKeyRequest { key_id: issued.key.key_id.clone(), tenant: issued.key.tenant.clone() }
}

struct Model {
    site: Site,
    issuer: String,
    pair: KeyPair,
    known: Vec<Known>,
    around: Surroundings,
    /// The changes that were made, each with its request id.
    made: Vec<Made>,
    /// How many requests there were.
    asked: u64,
}

/// What a verdict depends on besides the key.
#[derive(Clone, Copy, Default)]
struct Surroundings {
    now_ms: i64,
    /// The latest time of a change.
    latest_ms: i64,
    held: [Held; 5],
}

/// A change that was made: what was asked, when, and the answer.
struct Made {
    request: Asked,
    at_ms: i64,
    key: pb::Key,
    revision: u64,
    sealed: Vec<u8>,
}

enum Asked {
    Create(Box<pb::CreateKeyRequest>),
    Update(Box<pb::UpdateKeyRequest>),
    Disable(pb::DisableKeyRequest),
    Enable(pb::EnableKeyRequest),
    Revoke(pb::RevokeKeyRequest),
}

impl Asked {
    /// The key and the revision of the answer, and a sealed secret.
    async fn ask(&self, admin: &Handle) -> Result<(pb::Key, u64, Vec<u8>), Status> {
        let (key, revision, sealed) = match self {
            Self::Create(request) => {
                let reply = admin.create(pb::CreateKeyRequest::clone(request)).await?;
                (reply.key, reply.revision, reply.sealed_secret)
            }
            Self::Update(request) => {
                let reply = admin.update(pb::UpdateKeyRequest::clone(request)).await?;
                (reply.key, reply.revision, vec![])
            }
            Self::Disable(request) => {
                let reply = admin.disable(request.clone()).await?;
                (reply.key, reply.revision, vec![])
            }
            Self::Enable(request) => {
                let reply = admin.enable(request.clone()).await?;
                (reply.key, reply.revision, vec![])
            }
            Self::Revoke(request) => {
                let reply = admin.revoke(request.clone()).await?;
                (reply.key, reply.revision, vec![])
            }
        };
        Ok((key.unwrap(), revision, sealed))
    }
}

impl Surroundings {
    /// The time of a change.
    fn change_ms(&self) -> i64 {
        self.latest_ms.max(self.now_ms)
    }
}

impl Model {
    async fn take(&mut self, step: Step) {
        let admin = self.site.admin();
        match step {
            Step::Create { scopes, owner, waits_ms, lives_ms, disabled } => {
                let ends_ms = self.ahead(lives_ms);
                let starts_ms = waits_ms.map(|waits| self.around.now_ms + i64::from(waits));
                let starts_ms = starts_ms.filter(|&starts| ends_ms.is_none_or(|ends| starts < ends));
                let request = pb::CreateKeyRequest {
                    owner: format!("owner-{owner}"),
                    not_before: starts_ms.and_then(after_start),
                    expire_time: ends_ms.and_then(after_start),
                    disabled,
                    request_id: self.request_id(),
                    // Of some, the secret can be had again.
                    reply_public_key: if owner == 0 { vec![] } else { self.pair.public.as_bytes().to_vec() },
                    ..new_key("Key", SCOPES[scopes])
                };
                let reply = admin.create(request.clone()).await.unwrap();
                let (key, revision, sealed) = (reply.key.unwrap(), reply.revision, reply.sealed_secret);
                let secret = if owner == 0 { reply.secret } else { self.opened(&request.request_id, &sealed) };
                let issued = Issued { key: key.clone(), secret, revision };
                self.has_changed();
                let at_ms = self.around.change_ms();
                self.made.push(Made { request: Asked::Create(Box::new(request)), at_ms, key, revision, sealed });
                let state = if disabled { "disabled" } else { "active" };
                let current = Secret { version: 1, text: issued.secret.clone(), issued_ms: self.around.latest_ms };
                let secrets = Secrets { current, previous: None, retired: None, forgotten: vec![], issued: 1 };
                let fields = Fields { name: 0, scopes, owner, starts_ms, ends_ms, protected: false };
                self.known.push(Known {
                    issued,
                    secrets,
                    state,
                    reason: "",
                    stated_ms: self.around.latest_ms,
                    by_keyward: false,
                    resumes_ms: None,
                    purge_ms: None,
                    is_purged: false,
                    fields,
                });
            }
            Step::Disable(key, reason) => self.moved(&admin, key, "disabled", REASONS[reason]).await,
            Step::Enable(key, reason) => self.moved(&admin, key, "active", REASONS[reason]).await,
            Step::Revoke(key, reason) => self.moved(&admin, key, "revoked", REASONS[reason]).await,
            Step::Rescope(key, scopes) => {
                let sent = pb::Key { scopes: strings(SCOPES[scopes]), ..Default::default() };
                self.rewritten(&admin, key, "scopes", sent, |fields| fields.scopes = scopes).await;
            }
            Step::Reown(key, owner) => {
                let sent = pb::Key { owner: format!("owner-{owner}"), ..Default::default() };
                self.rewritten(&admin, key, "owner", sent, |fields| fields.owner = owner).await;
            }
            Step::Expire(key, lives_ms) => {
                let ends_ms = self.ahead(lives_ms);
                let begins = self.pick(key).and_then(|known| known.fields.starts_ms);
                if ends_ms.zip(begins).is_none_or(|(ends, begins)| begins < ends) {
                    let sent = pb::Key { expire_time: ends_ms.and_then(after_start), ..Default::default() };
                    self.rewritten(&admin, key, "expire_time", sent, |fields| fields.ends_ms = ends_ms).await;
                }
            }
            Step::Rename(key, name) => {
                let display_name = if name == 0 { "Key".to_owned() } else { format!("Key {name}") };
                let sent = pb::Key { display_name, ..Default::default() };
                self.rewritten(&admin, key, "display_name", sent, |fields| fields.name = name).await;
            }
            Step::Rotate(key, overlap_ms, at_use) => self.rotated(&admin, key, i64::from(overlap_ms), at_use).await,
            Step::Finish(key) => self.finished(&admin, key).await,
            Step::Cancel(key) => self.cancelled(&admin, key).await,
            Step::Use(key) => self.used(&admin, key).await,
            Step::Hold(of, suspended, reason) => self.hold(&admin, of, suspended, REASONS[reason]).await,
            Step::Epoch(of, back_ms) => self.set_epoch(&admin, of, back_ms).await,
            Step::Protect(key, protected) => {
                let sent = pb::Key { delete_protected: protected, ..Default::default() };
                let set = |fields: &mut Fields| fields.protected = protected;
                self.rewritten(&admin, key, "delete_protected", sent, set).await;
            }
            Step::Suspend(key, ms, reason) => self.suspended(&admin, key, i64::from(ms), REASONS[reason]).await,
            Step::Delete(key, reason) => self.deleted(&admin, key, REASONS[reason]).await,
            Step::Undelete(key, reason) => self.undeleted(&admin, key, REASONS[reason]).await,
            Step::SetBack(ms) => {
                self.site.clock.advance_ms(-i64::from(ms));
                self.around.now_ms -= i64::from(ms);
            }
            Step::Wait(ms) => self.wait(i64::from(ms)).await,
            Step::WaitLong => self.wait(KEPT_MS + (self.around.latest_ms - self.around.now_ms).max(0)).await,
            Step::Minutes(minutes) => self.wait(i64::from(minutes) * 60_000).await,
            Step::Again(number) => self.again(&admin, number).await,
            Step::Restart => self.site.restart().await,
        }
    }

    /// Lets time pass, and waits until Keyward has made the changes that are due then.
    async fn wait(&mut self, ms: i64) {
        self.site.clock.advance_ms(ms);
        self.around.now_ms += ms;
        let (admin, now_ms, mut has_changed) = (self.site.admin(), self.around.now_ms, false);
        for known in &mut self.known {
            if known.purge_ms.is_some_and(|purge_ms| purge_ms <= now_ms) && !known.is_purged {
                while admin.get(get(&known.issued)).await.is_ok() {
                    tokio::task::yield_now().await;
                }
                (known.is_purged, has_changed) = (true, true);
            }
            if let Some(resumes_ms) = known.resumes_ms
                && resumes_ms <= now_ms
            {
                while admin.read(&known.issued.key).await.updated_by != "keyward" {
                    tokio::task::yield_now().await;
                }
                known.state_is("active", resumes_ms);
                (known.by_keyward, known.reason, has_changed) = (true, "", true);
            }
        }
        if has_changed {
            self.has_changed();
        }
    }

    async fn suspended(&mut self, admin: &Handle, key: u8, ms: i64, reason: &'static str) {
        let (at_ms, until_ms) = (self.around.change_ms(), self.around.now_ms + ms);
        let Some(known) = self.pick(key) else { return };
        let request = pb::DisableKeyRequest { reason: reason.into(), ..suspend(&known.issued.key, until_ms) };
        let done = admin.disable(request).await.map(drop);
        let is_forbidden = known.state == "revoked" || known.purge_ms.is_some();
        if known.answers(&done, is_forbidden.then_some("STATE_FORBIDS")) {
            let is_later = known.resumes_ms != Some(until_ms);
            let explains = !reason.is_empty() && known.reason != reason;
            if known.state != "disabled" || explains {
                known.reason = reason;
            }
            if is_later {
                known.state_is("disabled", at_ms);
                known.resumes_ms = Some(until_ms);
            }
            if is_later || explains {
                self.has_changed();
            }
        }
    }

    async fn deleted(&mut self, admin: &Handle, key: u8, reason: &'static str) {
        let at_ms = self.around.change_ms();
        let Some(known) = self.pick(key) else { return };
        let purge_after = Some(Duration { seconds: KEPT_MS / 1_000, nanos: 0 });
        let request = pb::DeleteKeyRequest { reason: reason.into(), purge_after, ..delete(&known.issued.key) };
        let done = admin.delete(request).await.map(drop);
        let is_deleted = known.purge_ms.is_some();
        let refused = (known.fields.protected && !is_deleted).then_some("DELETE_PROTECTED");
        if known.answers(&done, refused) && !is_deleted {
            known.state_is(known.state, at_ms);
            (known.purge_ms, known.reason) = (Some(at_ms + KEPT_MS), reason);
            self.has_changed();
        }
    }

    async fn undeleted(&mut self, admin: &Handle, key: u8, reason: &'static str) {
        let at_ms = self.around.change_ms();
        let Some(known) = self.pick(key) else { return };
        let pb::GetKeyRequest { key_id, tenant } = get(&known.issued);
        let request = pb::UndeleteKeyRequest { key_id, tenant, reason: reason.into(), ..Default::default() };
        let done = admin.undelete(request).await.map(drop);
        if known.answers(&done, None) && known.purge_ms.take().is_some() {
            known.state_is(if known.state == "revoked" { "revoked" } else { "disabled" }, at_ms);
            known.reason = reason;
            self.has_changed();
        }
    }

    /// Asks for an earlier change again: for ten minutes it makes nothing, and is answered as it was.
    async fn again(&self, admin: &Handle, number: u8) {
        let Some(made) = self.made.get(usize::from(number) % self.made.len().max(1)) else { return };
        if self.around.change_ms() - made.at_ms >= 600_000 {
            return;
        }
        match (made.request.ask(admin).await, &made.request) {
            (Err(refused), Asked::Create(request)) if request.reply_public_key.is_empty() => {
                let told = refused.get_details_error_info().unwrap();
                assert_eq!((&*told.reason, &told.metadata["key_id"]), ("SECRET_NOT_KEPT", &made.key.key_id));
            }
            (answer, _) => assert_eq!(answer.unwrap(), (made.key.clone(), made.revision, made.sealed.clone())),
        }
    }

    fn request_id(&mut self) -> String {
        self.asked += 1;
        format!("request-{}", self.asked)
    }

    fn opened(&self, id: &str, sealed: &[u8]) -> String {
        String::from_utf8(self.pair.open(&seal_info("CreateKey", id), sealed).unwrap().to_vec()).unwrap()
    }

    /// An expiry must be later than the clock and the log.
    fn ahead(&self, lives_ms: Option<u16>) -> Option<i64> {
        lives_ms.map(|lives| self.around.change_ms() + i64::from(lives))
    }

    fn has_changed(&mut self) {
        self.around.latest_ms = self.around.change_ms();
    }

    /// Of a revoked key, only how it is called may change; a change to what is there already is none.
    async fn rewritten(&mut self, admin: &Handle, key: u8, path: &str, sent: pb::Key, set: impl FnOnce(&mut Fields)) {
        let request_id = self.request_id();
        let Some(known) = self.pick(key) else { return };
        let mut fields = known.fields.clone();
        set(&mut fields);
        let changes = fields != known.fields;
        let is_fixed = known.state == "revoked" && !["display_name", "delete_protected"].contains(&path);
        let forbidden = changes && is_fixed || known.purge_ms.is_some();
        let (key_id, tenant) = (known.issued.key.key_id.clone(), known.issued.key.tenant.clone());
        let request = Asked::Update(Box::new(pb::UpdateKeyRequest {
            request_id,
            ..update(&pb::Key { key_id, tenant, ..sent }, &[path])
        }));
        let done = request.ask(admin).await;
        let told = done.as_ref().map(drop).map_err(Clone::clone);
        if known.answers(&told, forbidden.then_some("STATE_FORBIDS")) && changes {
            known.fields = fields;
            self.has_changed();
            self.has_made(request, done.unwrap());
        }
    }

    async fn moved(&mut self, admin: &Handle, key: u8, to: &'static str, reason: &'static str) {
        let at_ms = self.around.change_ms();
        let request_id = self.request_id();
        let Some(known) = self.pick(key) else { return };
        let name = pb::DisableKeyRequest { request_id, reason: reason.into(), ..disable(&known.issued.key) };
        let pb::DisableKeyRequest { key_id, tenant, reason: reason_too, request_id, .. } = name.clone();
        let request = match to {
            "disabled" => Asked::Disable(name),
            "active" => {
                let reason = reason_too;
                Asked::Enable(pb::EnableKeyRequest { key_id, tenant, reason, request_id, ..Default::default() })
            }
            _ => {
                let reason = reason_too;
                Asked::Revoke(pb::RevokeKeyRequest { key_id, tenant, reason, request_id, ..Default::default() })
            }
        };
        let done = request.ask(admin).await;
        let told = done.as_ref().map(drop).map_err(Clone::clone);
        let forbidden = to != "revoked" && (known.state == "revoked" || known.purge_ms.is_some());
        // A suspension becomes one without an end.
        let moves = known.state != to || known.resumes_ms.is_some();
        let explains = !reason.is_empty() && known.reason != reason;
        if known.answers(&told, forbidden.then_some("STATE_FORBIDS")) && (moves || explains) {
            if known.state != to || explains {
                known.reason = reason;
            }
            if moves {
                known.state_is(to, at_ms);
            }
            self.has_changed();
            self.has_made(request, done.unwrap());
        }
    }

    async fn rotated(&mut self, admin: &Handle, key: u8, overlap_ms: i64, at_use: bool) {
        let latest_ms = self.around.change_ms();
        let Some(known) = self.pick(key) else { return };
        let request = if at_use { rotate_at_use } else { rotate }(&known.issued.key, overlap_ms);
        let done = admin.rotate(request).await;
        let key_ends = known.fields.ends_ms;
        let is_dead = known.state == "revoked" || known.purge_ms.is_some();
        let is_forbidden = is_dead || key_ends.is_some_and(|ends| ends <= latest_ms);
        if !known.answers(&done.as_ref().map(drop).map_err(Clone::clone), is_forbidden.then_some("STATE_FORBIDS")) {
            return;
        }
        let secrets = &mut known.secrets;
        secrets.issued += 1;
        let newer = Secret { version: secrets.issued, text: done.unwrap().secret, issued_ms: latest_ms };
        let current = std::mem::replace(&mut secrets.current, newer);
        if let Some(previous) = secrets.previous.take() {
            secrets.retire(previous.secret);
        }
        if overlap_ms == 0 && !at_use {
            secrets.retire(current);
        } else {
            let ends_ms = (!at_use).then(|| earlier(latest_ms + overlap_ms, key_ends));
            secrets.previous = Some(Previous { secret: current, overlap_ms, ends_ms });
        }
        self.has_changed();
    }

    async fn finished(&mut self, admin: &Handle, key: u8) {
        let Some(known) = self.pick(key) else { return };
        let done = admin.finish_key(&known.issued.key).await.map(drop);
        let is_forbidden = known.state == "revoked" || known.purge_ms.is_some();
        if !known.answers(&done, is_forbidden.then_some("STATE_FORBIDS")) {
            return;
        }
        if let Some(previous) = known.secrets.previous.take() {
            known.secrets.retire(previous.secret);
            self.has_changed();
        }
    }

    async fn cancelled(&mut self, admin: &Handle, key: u8) {
        let latest_ms = self.around.change_ms();
        let Some(known) = self.pick(key) else { return };
        let done = admin.cancel_key(&known.issued.key).await.map(drop);
        let ends = [known.previous_ends(), known.fields.ends_ms];
        let has_ended = ends.into_iter().flatten().any(|ends| ends <= latest_ms);
        let is_pending = !has_ended && known.secrets.previous.is_some();
        let refused = match known.state {
            _ if known.purge_ms.is_some() => Some("STATE_FORBIDS"),
            "revoked" => Some("STATE_FORBIDS"),
            _ => (!is_pending).then_some("NO_ROTATION_PENDING"),
        };
        if !known.answers(&done, refused) {
            return;
        }
        let previous = known.secrets.previous.take().unwrap();
        let newer = std::mem::replace(&mut known.secrets.current, previous.secret);
        known.secrets.retire(newer);
        self.has_changed();
    }

    /// Uses the current secret, which may begin an overlap.
    async fn used(&mut self, admin: &Handle, key: u8) {
        let (around, latest_ms) = (self.around, self.around.change_ms());
        let Some(known) = self.pick(key) else { return };
        let current = &known.secrets.current;
        let verdict = admin.ask(ask(&current.text)).await.unwrap();
        let granted = SCOPES[known.fields.scopes].first().copied().unwrap_or_default();
        let works = match known.reason(granted, current.issued_ms, &around) {
            Reason::Ok | Reason::ScopeMissing => Reason::Ok,
            reason => reason,
        };
        assert_eq!(verdict.reason(), works);
        let key_ends = known.fields.ends_ms;
        let waits = known.secrets.previous.as_mut().filter(|previous| previous.ends_ms.is_none());
        let Some(previous) = waits.filter(|_| works == Reason::Ok) else { return };
        previous.ends_ms = Some(earlier(latest_ms + previous.overlap_ms, key_ends));
        loop {
            let key = admin.read(&known.issued.key).await;
            // A read may be ahead of verdicts.
            let has_begun = key.secrets[1].valid_until.is_some();
            if has_begun && admin.verdict("none").await.as_of_revision >= key.revision {
                break;
            }
            tokio::task::yield_now().await;
        }
        self.has_changed();
    }

    async fn hold(&mut self, admin: &Handle, of: Holder, suspended: bool, reason: &'static str) {
        let (tenant, reason_too) = ("default".to_owned(), reason.to_owned());
        match (of, suspended) {
            (Holder::Tenant, true) => {
                let request = pb::SuspendTenantRequest { tenant, reason: reason_too, ..Default::default() };
                admin.suspend_tenant(request).await.map(drop)
            }
            (Holder::Tenant, false) => {
                let request = pb::ResumeTenantRequest { tenant, reason: reason_too, ..Default::default() };
                admin.resume_tenant(request).await.map(drop)
            }
            (Holder::Owner(owner), true) => {
                let owner = format!("owner-{owner}");
                let request = pb::SuspendOwnerRequest { owner, reason: reason_too, ..Default::default() };
                admin.suspend_owner(request).await.map(drop)
            }
            (Holder::Owner(owner), false) => {
                let owner = format!("owner-{owner}");
                let request = pb::ResumeOwnerRequest { owner, reason: reason_too, ..Default::default() };
                admin.resume_owner(request).await.map(drop)
            }
            // No call suspends an issuer.
            (Holder::Issuer, _) => return,
        }
        .unwrap();
        let held = &mut self.around.held[of.place()];
        if held.suspended != suspended || (!reason.is_empty() && held.reason != reason) {
            (held.suspended, held.reason) = (suspended, reason);
            self.has_changed();
        }
    }

    async fn set_epoch(&mut self, admin: &Handle, of: Holder, back_ms: Option<u16>) {
        use pb::set_epoch_request::Holder as Asked;
        let asked = match of {
            Holder::Tenant => Asked::Tenant("default".into()),
            Holder::Owner(owner) => {
                Asked::Owner(pb::OwnerName { owner: format!("owner-{owner}"), ..Default::default() })
            }
            Holder::Issuer => Asked::Issuer(self.issuer.clone()),
        };
        let now_ms = self.around.change_ms();
        let epoch_ms = match back_ms {
            Some(back) => now_ms - i64::from(back),
            None => self.around.now_ms.max(self.around.latest_ms + 1),
        };
        let reject_issued_before = back_ms.and_then(|_| after_start(epoch_ms));
        let request = pb::SetEpochRequest { holder: Some(asked), reject_issued_before, ..Default::default() };
        let done = admin.set_epoch(request).await;
        let held = &mut self.around.held[of.place()];
        let lowers = held.epoch_ms.is_some_and(|there| epoch_ms < there);
        assert_eq!(done.as_ref().err().map(error_reason).as_deref(), lowers.then_some("EPOCH_LOWERED"));
        if !lowers && held.epoch_ms.replace(epoch_ms) != Some(epoch_ms) {
            let at_ms = if back_ms.is_none() { epoch_ms } else { now_ms };
            self.around.latest_ms = self.around.latest_ms.max(at_ms);
        }
    }

    fn has_made(&mut self, request: Asked, (key, revision, sealed): (pb::Key, u64, Vec<u8>)) {
        self.made.push(Made { request, at_ms: self.around.change_ms(), key, revision, sealed });
    }

    fn pick(&mut self, key: u8) -> Option<&mut Known> {
        let count = self.known.len();
        self.known.get_mut(usize::from(key) % count.max(1))
    }

    /// Without a use, which would begin an overlap.
    async fn compare_secrets(&self, admin: &Handle, known: &Known) {
        let latest_ms = self.around.change_ms();
        let mode = pb::Mode::Peek.into();
        for (secret, works) in known.each_secret(latest_ms) {
            for wanted in WANTED {
                let request = pb::VerifyRequest { all_scopes: strings(&[wanted]), mode, ..ask(secret) };
                let verdict = admin.ask(request).await.unwrap();
                let expected = match works {
                    Ok((matched, issued_ms)) => match known.reason(wanted, issued_ms, &self.around) {
                        Reason::Ok => {
                            let ends = known.previous_ends().filter(|ends| latest_ms < *ends);
                            (Reason::Ok, matched, ends.and_then(after_start))
                        }
                        reason => (reason, Matched::Unspecified, None),
                    },
                    Err(reason) => (reason, Matched::Unspecified, None),
                };
                let told = (verdict.reason(), verdict.matched(), verdict.previous_valid_until);
                assert_eq!(told, expected, "{:?}", known.issued.key);
            }
        }
    }

    async fn compare(&self) {
        let admin = self.site.admin();
        for known in &self.known {
            if known.is_purged {
                assert_eq!(admin.get(get(&known.issued)).await.unwrap_err().code(), Code::NotFound);
            } else {
                let told = admin.read(&known.issued.key).await;
                let by = if known.by_keyward { "keyward" } else { &known.issued.key.created_by };
                let stated = (&*told.state_reason, told.state_time, &*told.state_by);
                assert_eq!(stated, (known.reason, after_start(known.stated_ms), by), "{:?}", known.issued.key);
                let times = (told.resume_time, told.purge_time, told.delete_protected);
                let expected = (known.resumes_ms.and_then(after_start), known.purge_ms.and_then(after_start));
                assert_eq!(times, (expected.0, expected.1, known.fields.protected), "{:?}", known.issued.key);
                let secrets: Vec<_> = told.secrets.iter().map(|secret| (secret.version, secret.state())).collect();
                assert_eq!(secrets, known.secrets.told(), "{:?}", known.issued.key);
            }
            self.compare_secrets(&admin, known).await;
        }
        for owner in 0..3_u8 {
            let request = pb::GetOwnerRequest { owner: format!("owner-{owner}"), ..Default::default() };
            let (told, held) =
                (admin.get_owner(request).await.unwrap().owner.unwrap(), self.around.held[usize::from(owner)]);
            assert_eq!(told.state() == pb::HolderState::Suspended, held.suspended);
            assert_eq!(
                (&*told.state_reason, told.reject_issued_before),
                (held.reason, held.epoch_ms.and_then(after_start))
            );
        }
        for (state, name) in [
            (pb::State::Active, "active"),
            (pb::State::Disabled, "disabled"),
            (pb::State::Revoked, "revoked"),
            (pb::State::Deleted, "deleted"),
        ] {
            let mut expected = BTreeMap::new();
            for known in self.known.iter().filter(|k| !k.is_purged && k.shown() == name && k.fields.owner == 1) {
                expected.insert(known.issued.key.key_id.clone(), ());
            }
            let selector =
                pb::KeySelector { states: vec![state.into()], owner: "owner-1".into(), ..Default::default() };
            let list = pb::ListKeysRequest { selector: Some(selector), page_size: 1_000, ..Default::default() };
            let listed = admin.list(list).await.unwrap().keys;
            assert!(listed.iter().map(|key| &key.key_id).eq(expected.keys()), "{name}");
        }
    }
}

fn earlier(ends_ms: i64, of_key: Option<i64>) -> i64 {
    of_key.map_or(ends_ms, |of_key| of_key.min(ends_ms))
}

fn run(cases: u32, steps: usize, on_disk: bool) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let strategy = prop::collection::vec(step(), 1..steps);
    let outcome = TestRunner::new(config).run(&strategy, |steps| {
        runtime.block_on(async {
            let site = if on_disk { Site::start().await } else { Site::in_memory().await };
            // Who issues all keys.
            let selector = pb::KeySelector { tenant: "system".into(), ..Default::default() };
            let callers = pb::ListKeysRequest { selector: Some(selector), ..Default::default() };
            let issuer = site.admin().list(callers).await.unwrap().keys.remove(0).key_id;
            let pair = KeyPair::generate().unwrap();
            let (known, made) = (vec![], vec![]);
            let mut model = Model { site, issuer, pair, known, around: Surroundings::default(), made, asked: 0 };
            for step in steps {
                if on_disk || !matches!(step, Step::Restart) {
                    model.take(step).await;
                }
                model.compare().await;
            }
        });
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn verdicts_are_those_of_a_plain_map_in_memory() {
    run(24, 40, false);
}

#[test]
fn verdicts_are_those_of_a_plain_map_on_disk_and_over_restarts() {
    run(6, 30, true);
}
