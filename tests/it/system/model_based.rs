//! Random calls against a plain map: after each, every verdict must be the map's.

use std::collections::BTreeMap;

use keyward::grpc::pb::{self, Reason};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::harness::{
    Handle, Issued, Site, after_start, ask, disable, error_reason, new_key, strings, update,
};

const SCOPES: [&[&str]; 4] = [&[], &["a"], &["a.*"], &["a", "b.c"]];
const REASONS: [&str; 3] = ["", "unpaid", "leaked"];
const WANTED: [&str; 4] = ["a", "a.x", "b", "b.c"];

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
    /// Suspends it, or resumes it.
    Hold(Holder, bool, usize),
    /// Refuses what was issued so many milliseconds before now, or before the call.
    Epoch(Holder, Option<u16>),
    Wait(u16),
    SetBack(u16),
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
        2 => (holder(), prop::bool::weighted(0.4), 0..REASONS.len()).prop_map(|(of, suspended, reason)| {
            Step::Hold(of, suspended, reason)
        }),
        1 => (holder(), prop::option::of(0..1_500_u16)).prop_map(|(of, back)| Step::Epoch(of, back)),
        2 => (1..1_000_u16).prop_map(Step::Wait),
        1 => (1..3_000_u16).prop_map(Step::SetBack),
        1 => Just(Step::Restart),
    ]
}

/// The model of a key.
struct Known {
    issued: Issued,
    state: &'static str,
    reason: &'static str,
    /// When it entered its state.
    stated_ms: i64,
    issued_ms: i64,
    fields: Fields,
}

/// The model of a tenant, an owner or an issuer.
#[derive(Clone, Copy, Default)]
struct Held {
    suspended: bool,
    reason: &'static str,
    epoch_ms: Option<i64>,
}

#[derive(Clone, PartialEq)]
struct Fields {
    name: u8,
    scopes: usize,
    owner: u8,
    starts_ms: Option<i64>,
    ends_ms: Option<i64>,
}

impl Known {
    /// The expected verdict.
    fn reason(&self, wanted: &str, now_ms: i64, latest_ms: i64, held: &[Held; 5]) -> Reason {
        let of_it = [Holder::Tenant, Holder::Owner(self.fields.owner), Holder::Issuer].map(|of| held[of.place()]);
        if of_it.iter().any(|held| held.suspended) {
            return Reason::OwnerSuspended;
        }
        if of_it.iter().any(|held| held.epoch_ms.is_some_and(|epoch| self.issued_ms < epoch)) {
            return Reason::EpochRejected;
        }
        let has_scope = SCOPES[self.fields.scopes].iter().any(|granted| match granted.strip_suffix(".*") {
            Some(above) => wanted.strip_prefix(above).is_some_and(|rest| rest.starts_with('.')),
            None => *granted == wanted,
        });
        match (self.state, self.fields.starts_ms, self.fields.ends_ms) {
            ("revoked", ..) => Reason::Revoked,
            ("disabled", ..) => Reason::Disabled,
            (_, Some(starts), _) if now_ms < starts => Reason::NotYetValid,
            (_, _, Some(ends)) if now_ms.max(latest_ms) >= ends => Reason::Expired,
            _ if !has_scope => Reason::ScopeMissing,
            _ => Reason::Ok,
        }
    }
}

struct Model {
    site: Site,
    issuer: String,
    known: Vec<Known>,
    now_ms: i64,
    /// The latest time of a change.
    latest_ms: i64,
    held: [Held; 5],
}

impl Model {
    async fn take(&mut self, step: Step) {
        let admin = self.site.admin();
        match step {
            Step::Create { scopes, owner, waits_ms, lives_ms, disabled } => {
                let ends_ms = self.ahead(lives_ms);
                let starts_ms = waits_ms.map(|waits| self.now_ms + i64::from(waits));
                let starts_ms = starts_ms.filter(|&starts| ends_ms.is_none_or(|ends| starts < ends));
                let request = pb::CreateKeyRequest {
                    owner: format!("owner-{owner}"),
                    not_before: starts_ms.and_then(after_start),
                    expire_time: ends_ms.and_then(after_start),
                    disabled,
                    ..new_key("Key", SCOPES[scopes])
                };
                let issued = admin.issued(request).await;
                self.has_changed();
                let state = if disabled { "disabled" } else { "active" };
                let (fields, stated_ms) = (Fields { name: 0, scopes, owner, starts_ms, ends_ms }, self.latest_ms);
                self.known.push(Known { issued, state, reason: "", stated_ms, issued_ms: stated_ms, fields });
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
            Step::Hold(of, suspended, reason) => self.hold(&admin, of, suspended, REASONS[reason]).await,
            Step::Epoch(of, back_ms) => self.set_epoch(&admin, of, back_ms).await,
            Step::SetBack(ms) => {
                self.site.clock.advance_ms(-i64::from(ms));
                self.now_ms -= i64::from(ms);
            }
            Step::Wait(ms) => {
                self.site.clock.advance_ms(i64::from(ms));
                self.now_ms += i64::from(ms);
            }
            Step::Restart => self.site.restart().await,
        }
    }

    /// An expiry must be later than the clock and the log.
    fn ahead(&self, lives_ms: Option<u16>) -> Option<i64> {
        lives_ms.map(|lives| self.now_ms.max(self.latest_ms) + i64::from(lives))
    }

    fn has_changed(&mut self) {
        self.latest_ms = self.latest_ms.max(self.now_ms);
    }

    /// Of a revoked key, only how it is called may change; a change to what is there already is none.
    async fn rewritten(&mut self, admin: &Handle, key: u8, path: &str, sent: pb::Key, set: impl FnOnce(&mut Fields)) {
        let Some(known) = self.pick(key) else { return };
        let mut fields = known.fields.clone();
        set(&mut fields);
        let (changes, forbidden) = (fields != known.fields, known.state == "revoked" && path != "display_name");
        let (key_id, tenant) = (known.issued.key.key_id.clone(), known.issued.key.tenant.clone());
        let done = admin.update(update(&pb::Key { key_id, tenant, ..sent }, &[path])).await;
        assert_eq!(done.as_ref().err().map(error_reason).as_deref(), (changes && forbidden).then_some("STATE_FORBIDS"));
        if changes && !forbidden {
            known.fields = fields;
            self.has_changed();
        }
    }

    async fn moved(&mut self, admin: &Handle, key: u8, to: &'static str, reason: &'static str) {
        let at_ms = self.latest_ms.max(self.now_ms);
        let Some(known) = self.pick(key) else { return };
        let name = pb::DisableKeyRequest { reason: reason.into(), ..disable(&known.issued.key) };
        let (key_id, tenant, reason_too) = (name.key_id.clone(), name.tenant.clone(), reason.to_owned());
        let done = match to {
            "disabled" => admin.disable(name).await.map(drop),
            "active" => {
                let request = pb::EnableKeyRequest { key_id, tenant, reason: reason_too, ..Default::default() };
                admin.enable(request).await.map(drop)
            }
            _ => {
                let request = pb::RevokeKeyRequest { key_id, tenant, reason: reason_too, ..Default::default() };
                admin.revoke(request).await.map(drop)
            }
        };
        let forbidden = known.state == "revoked" && to != "revoked";
        assert_eq!(done.is_err(), forbidden);
        let (moves, explains) = (known.state != to, !reason.is_empty() && known.reason != reason);
        if !forbidden && (moves || explains) {
            if moves {
                (known.state, known.stated_ms) = (to, at_ms);
            }
            known.reason = reason;
            self.has_changed();
        }
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
        let held = &mut self.held[of.place()];
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
        let now_ms = self.now_ms.max(self.latest_ms);
        let epoch_ms = match back_ms {
            Some(back) => now_ms - i64::from(back),
            None => self.now_ms.max(self.latest_ms + 1),
        };
        let reject_issued_before = back_ms.and_then(|_| after_start(epoch_ms));
        let request = pb::SetEpochRequest { holder: Some(asked), reject_issued_before, ..Default::default() };
        let done = admin.set_epoch(request).await;
        let held = &mut self.held[of.place()];
        let lowers = held.epoch_ms.is_some_and(|there| epoch_ms < there);
        assert_eq!(done.as_ref().err().map(error_reason).as_deref(), lowers.then_some("EPOCH_LOWERED"));
        if !lowers && held.epoch_ms.replace(epoch_ms) != Some(epoch_ms) {
            let at_ms = if back_ms.is_none() { epoch_ms } else { now_ms };
            self.latest_ms = self.latest_ms.max(at_ms);
        }
    }

    fn pick(&mut self, key: u8) -> Option<&mut Known> {
        let count = self.known.len();
        self.known.get_mut(usize::from(key) % count.max(1))
    }

    async fn compare(&self) {
        let admin = self.site.admin();
        for known in &self.known {
            let told = admin.read(&known.issued.key).await;
            let told = (&*told.state_reason, told.state_time, told.state_by == known.issued.key.created_by);
            assert_eq!(told, (known.reason, after_start(known.stated_ms), true), "{:?}", known.issued.key);
            for wanted in WANTED {
                let request = pb::VerifyRequest { all_scopes: strings(&[wanted]), ..ask(&known.issued.secret) };
                let verdict = admin.ask(request).await.unwrap();
                assert_eq!(
                    verdict.reason(),
                    known.reason(wanted, self.now_ms, self.latest_ms, &self.held),
                    "{:?}",
                    known.issued.key
                );
            }
        }
        for owner in 0..3_u8 {
            let request = pb::GetOwnerRequest { owner: format!("owner-{owner}"), ..Default::default() };
            let (told, held) = (admin.get_owner(request).await.unwrap().owner.unwrap(), self.held[usize::from(owner)]);
            assert_eq!(told.state() == pb::HolderState::Suspended, held.suspended);
            assert_eq!(
                (&*told.state_reason, told.reject_issued_before),
                (held.reason, held.epoch_ms.and_then(after_start))
            );
        }
        for (state, name) in
            [(pb::State::Active, "active"), (pb::State::Disabled, "disabled"), (pb::State::Revoked, "revoked")]
        {
            let mut expected = BTreeMap::new();
            for known in self.known.iter().filter(|k| k.state == name && k.fields.owner == 1) {
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
            let mut model = Model { site, issuer, known: vec![], now_ms: 0, latest_ms: 0, held: Default::default() };
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
