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
    Create { scopes: usize, owner: u8, waits_ms: Option<u16>, lives_ms: Option<u16>, disabled: bool },
    Disable(u8, usize),
    Enable(u8, usize),
    Revoke(u8, usize),
    Rescope(u8, usize),
    Reown(u8, u8),
    Expire(u8, Option<u16>),
    Rename(u8, u8),
    Wait(u16),
    SetBack(u16),
    Restart,
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
    fields: Fields,
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
    fn reason(&self, wanted: &str, now_ms: i64, latest_ms: i64) -> Reason {
        let held = SCOPES[self.fields.scopes].iter().any(|granted| match granted.strip_suffix(".*") {
            Some(above) => wanted.strip_prefix(above).is_some_and(|rest| rest.starts_with('.')),
            None => *granted == wanted,
        });
        match (self.state, self.fields.starts_ms, self.fields.ends_ms) {
            ("revoked", ..) => Reason::Revoked,
            ("disabled", ..) => Reason::Disabled,
            (_, Some(starts), _) if now_ms < starts => Reason::NotYetValid,
            (_, _, Some(ends)) if now_ms.max(latest_ms) >= ends => Reason::Expired,
            _ if !held => Reason::ScopeMissing,
            _ => Reason::Ok,
        }
    }
}

struct Model {
    site: Site,
    known: Vec<Known>,
    now_ms: i64,
    /// The latest time of a change.
    latest_ms: i64,
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
                self.known.push(Known { issued, state, reason: "", stated_ms, fields });
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
                    known.reason(wanted, self.now_ms, self.latest_ms),
                    "{:?}",
                    known.issued.key
                );
            }
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
            let mut model = Model { site, known: vec![], now_ms: 0, latest_ms: 0 };
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
