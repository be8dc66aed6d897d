//! Typical keys, the same for a server and for an index without one.

use std::collections::BTreeMap;

use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, InvalidName, KeyId, TenantId};
use keyward_core::record::{AuditStamp, KeyPolicy, KeyRecord, KeySpec, StoredSecret};
use keyward_core::scope::Scope;

/// 2100-01-01T00:00:00Z: when typical keys end.
pub const EXPIRY_SECONDS: i64 = 4_102_444_800;
/// 2027-01-01T00:00:00Z: when typical keys are made.
const CREATED: UnixMillis = UnixMillis(1_798_761_600_000);

/// Owners, and scopes of the shared vocabulary.
const OWNERS: u64 = 1_000_000;
const SCOPES: u64 = 1_000;
/// One key in this many has labels.
const LABELLED: u64 = 10;

/// A typical key: an owner, 3 scopes of the vocabulary, an expiry far away, and labels on one in ten.
pub struct Typical {
    /// Its number.
    pub number: u64,
    /// Identity.
    pub key_id: String,
    /// The label that people see.
    pub display_name: String,
    /// Who it is issued to.
    pub owner: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

impl Typical {
    /// The key of a number.
    #[must_use]
    pub fn key(number: u64) -> Self {
        let mut labels = BTreeMap::new();
        if number.is_multiple_of(LABELLED) {
            let pairs = [("team", number % 100), ("plan", number % 3)];
            labels.extend(pairs.map(|(name, value)| (name.to_owned(), format!("{name}-{value}"))));
        }
        Self {
            number,
            key_id: format!("key_{number:012}"),
            display_name: format!("Integration {number}"),
            owner: format!("customer-{}", number % OWNERS),
            scopes: (0..3).map(|nth| scope(number, nth)).collect(),
            labels,
        }
    }

    /// The key as a record, as an engine would deliver it: each of its names is an allocation of its own.
    ///
    /// # Errors
    /// When a name of a typical key breaks its rule.
    pub fn record(self, digest: Digest, pepper: PepperId, revision: Revision) -> Result<KeyRecord, InvalidName> {
        let stamp = AuditStamp { time: CREATED, actor: ActorId::keyward() };
        Ok(KeyRecord {
            key_id: KeyId::parse(&self.key_id)?,
            tenant: TenantId::default_tenant(),
            secret: StoredSecret { version: 1, digest, pepper, hint: "kw_live_…abcd".into(), issued: None },
            previous: None,
            retired: None,
            spec: KeySpec {
                display_name: self.display_name,
                owner: self.owner,
                policy: KeyPolicy {
                    scopes: self.scopes.iter().map(|scope| Scope::parse(scope)).collect::<Result<_, _>>()?,
                    expire_time: Some(UnixMillis(EXPIRY_SECONDS * 1_000)),
                    ..KeyPolicy::default()
                },
                labels: self.labels,
                ..KeySpec::default()
            },
            state_reason: String::new(),
            state_changed: None,
            resume_time: None,
            deletion: None,
            delete_protected: false,
            ordinal: Some(u32::try_from(self.number).unwrap_or(u32::MAX)),
            created: stamp.clone(),
            updated: stamp,
            revision,
        })
    }
}

/// One of the three scopes of a key.
#[must_use]
pub fn scope(number: u64, nth: u64) -> String {
    format!("area{:02}.action{:02}", (number + nth) % SCOPES / 50, (number + nth) % SCOPES % 50)
}
