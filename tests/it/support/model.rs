//! What must be there of the keys of some writers at each revision: in an index, and in the table of an
//! engine.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use keyward::index::{Index, NameKind};
use keyward::store::local::{LocalStore, LockedDir, StoreOptions};
use keyward::store::record::encode;
use keyward::store::{MaterializedView, Store};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::StandingPolicy;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::holds::Holds;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{AuditStamp, KeyRecord, PurgeMark, State};
use keyward_core::testing::key_record;
use parking_lot::Mutex;

use super::lives::{BEGIN_MS, Writer};

/// What must be there of some keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    keys: BTreeMap<(TenantId, KeyId), KeyRecord>,
    purged: BTreeMap<(TenantId, KeyId), PurgeMark>,
    others: BTreeMap<String, Record>,
    /// Every digest that a key ever had.
    digests: BTreeSet<[u8; 32]>,
    /// The number that the next key is given.
    next_ordinal: u32,
}

impl Model {
    pub(crate) fn of<'a>(writers: impl IntoIterator<Item = &'a Writer>) -> Self {
        Self::at(Revision(u64::MAX), writers)
    }

    pub(crate) fn at<'a>(revision: Revision, writers: impl IntoIterator<Item = &'a Writer>) -> Self {
        Self::of_those(writers, |at| at <= revision)
    }

    /// Without the changes of some ranges: first and last revisions.
    pub(crate) fn without<'a>(lost: &[(Revision, Revision)], writers: impl IntoIterator<Item = &'a Writer>) -> Self {
        Self::of_those(writers, |at| !lost.iter().any(|(first, last)| (*first..=*last).contains(&at)))
    }

    fn of_those<'a>(writers: impl IntoIterator<Item = &'a Writer>, is_there: impl Fn(Revision) -> bool) -> Self {
        let mut model = Self::default();
        let history = writers.into_iter().flat_map(|writer| &writer.history);
        history.for_each(|record| model.add(record, is_there(record.revision())));
        model
    }

    /// Adds a record that is newer than all before it of its name. Of one that comes later, the digests only.
    fn add(&mut self, record: &Record, is_there: bool) {
        match record {
            Record::Key(key) => {
                self.digests.extend(key.digests().map(|digest| *digest.as_bytes()));
                if is_there {
                    self.next_ordinal = self.next_ordinal.max(key.ordinal.map_or(0, |ordinal| ordinal + 1));
                    self.keys.insert((key.tenant.clone(), key.key_id.clone()), KeyRecord::clone(key));
                }
            }
            Record::Purged(mark) if is_there => {
                let name = (mark.tenant.clone(), mark.key_id.clone());
                self.keys.remove(&name);
                self.purged.insert(name, PurgeMark::clone(mark));
            }
            other if is_there => drop(self.others.insert(name_of(other), other.clone())),
            _ => {}
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &KeyRecord> {
        self.keys.values()
    }

    /// The number that the next key is given.
    pub(crate) fn next_ordinal(&self) -> u32 {
        self.next_ordinal
    }

    /// The ids of keys that were purged.
    pub(crate) fn purged(&self) -> impl Iterator<Item = &(TenantId, KeyId)> {
        self.purged.keys()
    }

    fn holds(&self) -> Holds {
        let mut holds = Holds::default();
        for record in self.others.values() {
            holds.apply(record);
        }
        holds
    }

    /// The stored bytes of every record, by a name.
    pub(crate) fn records(&self) -> BTreeMap<String, Vec<u8>> {
        let keys = self.keys.values().map(|key| Record::Key(Arc::new(key.clone())));
        let marks = self.purged.values().map(|mark| Record::Purged(Arc::new(mark.clone())));
        keys.chain(marks).chain(self.others.values().cloned()).map(|it| (name_of(&it), encode(&it))).collect()
    }

    /// Where an index differs, in words.
    pub(crate) fn differences(&self, index: &Index) -> Vec<String> {
        let mut found = vec![];
        let mut expect = |what: &str, expected: &dyn Debug, there: &dyn Debug| {
            let (expected, there) = (format!("{expected:?}"), format!("{there:?}"));
            if expected != there {
                found.push(format!("{what}: expected {expected}, found {there}"));
            }
        };
        let holds = self.holds();
        let by_digest: HashMap<_, _> =
            self.keys().flat_map(|key| key.digests().map(move |it| (*it.as_bytes(), key))).collect();
        for digest in &self.digests {
            let name = Digest::from_bytes(*digest);
            let expected = by_digest.get(digest).and_then(|key| Found::of(key, &name, &holds));
            expect(&format!("{name:?}"), &expected, &Found::there(index, &name));
        }
        for state in State::ALL {
            let count = |key: &&KeyRecord| key.deletion.is_none() && key.spec.policy.state == state;
            expect(state.name(), &self.keys().filter(count).count(), &index.len_in(state));
        }
        expect("keys", &self.keys().filter(|key| key.deletion.is_none()).count(), &index.len());
        for kind in NameKind::ALL {
            expect(&format!("names: {kind:?}"), &self.names(kind).len(), &index.names_in_use(kind));
        }
        for tenant in self.names(NameKind::Tenant) {
            let id = TenantId::parse(&tenant).unwrap();
            for (kind, in_use) in [
                (NameKind::Owner, index.owners_in_use(&id, &[]).count),
                (NameKind::Scope, index.scopes_in_use(&id, &[]).count),
            ] {
                let of_tenant = format!("{tenant} ");
                let names = self.names(kind);
                let count = names.iter().filter(|name| name.starts_with(&of_tenant)).count();
                expect(&format!("{kind:?} of {tenant}"), &count, &in_use);
            }
        }
        found
    }

    /// Where an index differs in what it withholds, in words, also of holders that have no key now. Adds keys
    /// to it.
    pub(crate) fn differences_in_holds(&self, index: &Index) -> Vec<String> {
        let holds = self.holds();
        let holders: Vec<_> = self.others.values().cloned().collect();
        let of_each = |record: Record, number: usize| {
            let mut key = key_record(u32::MAX - u32::try_from(number).unwrap());
            key.revision = Revision(u64::MAX / 2);
            key.created = AuditStamp { time: UnixMillis(BEGIN_MS), actor: ActorId::keyward() };
            match record {
                Record::Tenant(tenant) => key.tenant = tenant.tenant.clone(),
                Record::Owner(owner) => (key.tenant, key.spec.owner) = (owner.tenant.clone(), owner.owner.clone()),
                Record::Issuer(issuer) => key.created.actor = issuer.actor.clone(),
                _ => {}
            }
            key
        };
        let probes: Vec<_> = holders.into_iter().enumerate().map(|(number, it)| of_each(it, number)).collect();
        index.apply_records(&probes.iter().map(|key| Record::Key(Arc::new(key.clone()))).collect::<Vec<_>>());
        let differing = probes.iter().filter_map(|key| {
            let (expected, there) =
                (Found::of(key, &key.secret.digest, &holds), Found::there(index, &key.secret.digest));
            (expected != there).then(|| format!("expected {expected:?}, found {there:?}"))
        });
        differing.collect()
    }

    /// The names of a kind in use, those of owners and scopes behind their tenant.
    fn names(&self, kind: NameKind) -> BTreeSet<String> {
        let each = self.keys().flat_map(|key| -> Vec<String> {
            let of_tenant = |name: &str| format!("{} {name}", key.tenant);
            match kind {
                NameKind::Tenant => vec![key.tenant.to_string()],
                NameKind::Owner => vec![of_tenant(&key.spec.owner)],
                NameKind::Environment => vec![key.spec.policy.environment.to_string()],
                NameKind::Scope => key.spec.policy.scopes.iter().map(|scope| of_tenant(scope.as_str())).collect(),
                NameKind::Issuer => key.secrets().map(|secret| key.issued(secret).actor.to_string()).collect(),
            }
        });
        each.collect()
    }
}

/// What a digest leads to.
#[derive(Debug, PartialEq)]
struct Found {
    tenant: TenantId,
    key_id: String,
    display_name: String,
    owner: String,
    issued: (ActorId, UnixMillis),
    ordinal: Option<u32>,
    revision: Revision,
    labels: BTreeMap<String, String>,
    policy: StandingPolicy,
}

impl Found {
    fn of(key: &KeyRecord, digest: &Digest, holds: &Holds) -> Option<Self> {
        let secret = key.secrets().find(|secret| secret.digest == *digest)?;
        let AuditStamp { time, actor } = key.issued(secret).clone();
        Some(Self {
            tenant: key.tenant.clone(),
            key_id: key.key_id.to_string(),
            display_name: key.spec.display_name.clone(),
            owner: key.spec.owner.clone(),
            issued: (actor, time),
            ordinal: key.ordinal,
            revision: key.revision,
            labels: key.spec.labels.clone(),
            policy: {
                let StandingPolicy { policy, standing } = key.policy_of(digest, holds)?;
                StandingPolicy { policy: policy.clone(), standing }
            },
        })
    }

    fn there(index: &Index, digest: &Digest) -> Option<Self> {
        let entry = index.get(digest)?;
        Some(Self {
            tenant: entry.tenant().clone(),
            key_id: entry.key_id().to_owned(),
            display_name: entry.display_name().to_owned(),
            owner: entry.owner().to_owned(),
            issued: (entry.issuer().clone(), entry.issue_time()),
            ordinal: entry.ordinal(),
            revision: entry.revision(),
            labels: entry.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            policy: entry.to_policy(),
        })
    }
}

fn name_of(record: &Record) -> String {
    match record {
        Record::Key(key) => format!("key {}/{}", key.tenant, key.key_id),
        Record::Tenant(tenant) => format!("tenant {}", tenant.tenant),
        Record::Owner(owner) => format!("owner {}/{}", owner.tenant, owner.owner),
        Record::Issuer(issuer) => format!("issuer {}", issuer.actor),
        Record::Purged(mark) => format!("purged {}/{}", mark.tenant, mark.key_id),
        Record::Line(line) => format!("line {}", line.base),
    }
}

/// The records that the table of a directory has. It must have all of the journal.
pub(crate) async fn records_in(dir: &Path, options: &StoreOptions) -> Vec<Record> {
    let view = Arc::new(Collected::default());
    LocalStore::open(LockedDir::lock(dir).unwrap(), options, view.clone()).unwrap().close().await.unwrap();
    view.0.lock().clone()
}

/// The stored bytes of records, by a name. Lines are left out: a restore and a salvage add them.
pub(crate) fn named(records: &[Record]) -> BTreeMap<String, Vec<u8>> {
    let records = records.iter().filter(|record| !matches!(record, Record::Line(_)));
    let named: Vec<_> = records.map(|record| (name_of(record), encode(record))).collect();
    let count = named.len();
    let named = BTreeMap::from_iter(named);
    assert_eq!(named.len(), count, "a record is there twice");
    named
}

/// A view that keeps what the table has. It has no checkpoint, so that the table is read.
#[derive(Default)]
struct Collected(Mutex<Vec<Record>>);

impl MaterializedView for Collected {
    fn load(&self, records: &[Record]) {
        self.0.lock().extend(records.iter().cloned());
    }

    fn reset(&self) {
        self.0.lock().clear();
    }

    fn on_loaded(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        Revision(u64::MAX)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis::MIN
    }

    fn advance_time(&self, _: UnixMillis) {}
}
