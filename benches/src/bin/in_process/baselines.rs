//! The index, and what it is compared with: maps of plain records, one behind a lock and one without.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use keyward::index::Index;
use keyward::verify::Verifier;
use keyward_bench::fixture::{Fixture, Known, NOW};
use keyward_core::access::Action;
use keyward_core::clock::Now;
use keyward_core::decision::{AccessRequest, decide};
use keyward_core::digest::Digest;
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::{Environment, KeyId, TenantId};
use keyward_core::record::{KeyPolicy, KeyRecord};
use keyward_core::secret::PresentedSecret;
use parking_lot::RwLock;

/// Something that keeps keys and judges secrets.
pub(crate) trait Keeps: Sync {
    /// Takes records in.
    fn fold(&self, records: &[Record]);
    /// Takes one change in.
    fn apply(&self, change: &Arc<Change>);
    /// Whether a key of the world may do what it has a scope for.
    fn allows(&self, fixture: &Fixture, key: &Known) -> bool;
}

/// The server's.
pub(crate) struct Ours {
    index: Arc<Index>,
    verifier: Verifier,
}

impl Ours {
    pub(crate) fn new(fixture: &Fixture) -> Self {
        let index = Arc::new(Index::default());
        Self { verifier: Verifier::new(index.clone(), fixture.peppers.clone()), index }
    }

    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }
}

impl Keeps for Ours {
    fn fold(&self, records: &[Record]) {
        self.index.apply_records(records);
    }

    fn apply(&self, change: &Arc<Change>) {
        self.index.apply(std::slice::from_ref(change));
    }

    fn allows(&self, fixture: &Fixture, key: &Known) -> bool {
        fixture.allows(&self.verifier, &key.secret, &key.scope)
    }
}

/// What Verify needs of a key, as plain fields.
#[expect(dead_code, reason = "what is not read weighs, all the same")]
struct Plain {
    key_id: KeyId,
    tenant: TenantId,
    display_name: Box<str>,
    owner: Box<str>,
    environment: Environment,
    policy: KeyPolicy,
    labels: BTreeMap<String, String>,
    revision: Revision,
}

impl Plain {
    fn of(key: &KeyRecord) -> Arc<Self> {
        Arc::new(Self {
            key_id: key.key_id.clone(),
            tenant: key.tenant.clone(),
            display_name: key.spec.display_name.as_str().into(),
            owner: key.spec.owner.as_str().into(),
            environment: key.spec.policy.environment.clone(),
            policy: key.spec.policy.clone(),
            labels: key.spec.labels.clone(),
            revision: key.revision,
        })
    }
}

/// A map of plain records.
trait Map: Sync {
    fn found(&self, digest: &Digest) -> Option<Arc<Plain>>;
    fn put(&self, keys: &mut dyn Iterator<Item = &KeyRecord>);
}

impl<M: Map> Keeps for M {
    fn fold(&self, records: &[Record]) {
        self.put(&mut records.iter().filter_map(|record| match record {
            Record::Key(key) => Some(&**key),
            _ => None,
        }));
    }

    fn apply(&self, change: &Arc<Change>) {
        self.fold(&change.records);
    }

    // As the verifier does it.
    fn allows(&self, fixture: &Fixture, key: &Known) -> bool {
        let Ok(secret) = PresentedSecret::parse(&key.secret) else { return false };
        let Some(entry) = self.found(&fixture.peppers.current().digest(&secret)) else { return false };
        let request = AccessRequest { all_scopes: &[&key.scope], ..AccessRequest::default() };
        fixture.caller.may(Action::Verify, &entry.tenant) && decide(&entry.policy, &request, Now::at(NOW)).is_ok()
    }
}

/// What is written without much thought: the standard map behind a lock.
#[derive(Default)]
pub(crate) struct Locked(RwLock<HashMap<[u8; 32], Arc<Plain>>>);

impl Map for Locked {
    fn found(&self, digest: &Digest) -> Option<Arc<Plain>> {
        self.0.read().get(digest.as_bytes()).cloned()
    }

    fn put(&self, keys: &mut dyn Iterator<Item = &KeyRecord>) {
        for key in keys {
            let mut map = self.0.write();
            if map.get(key.secret.digest.as_bytes()).is_none_or(|held| held.revision < key.revision) {
                map.insert(*key.secret.digest.as_bytes(), Plain::of(key));
            }
        }
    }
}

/// What the index was at first: a map whose readers take no lock.
#[derive(Default)]
pub(crate) struct Papaya(papaya::HashMap<Digest, Arc<Plain>, BuildHasherDefault<FirstWord>>);

impl Map for Papaya {
    fn found(&self, digest: &Digest) -> Option<Arc<Plain>> {
        self.0.pin().get(digest).cloned()
    }

    fn put(&self, keys: &mut dyn Iterator<Item = &KeyRecord>) {
        let map = self.0.pin();
        for key in keys {
            if map.get(&key.secret.digest).is_none_or(|held| held.revision < key.revision) {
                map.insert(key.secret.digest, Plain::of(key));
            }
        }
    }
}

/// Digests hash themselves: their bytes are uniform.
#[derive(Default)]
struct FirstWord(u64);

impl Hasher for FirstWord {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
