//! Fixtures for tests, behind the feature `test-util`: records with every field set to something valid, and
//! sources of randomness whose bytes are known.
//!
//! A test takes a fixture and changes what it is about: `KeyRecord { tenant, ..key_record(1) }`. A generator
//! of arbitrary records names every field instead, so that a new field cannot be forgotten there.

use std::sync::{Mutex, PoisonError};

use crate::clock::UnixMillis;
use crate::digest::{Digest, PepperId};
use crate::entropy::{Entropy, EntropyError};
use crate::event::Revision;
use crate::id::{ActorId, KeyId, SecretPrefix, TenantId};
use crate::record::{
    AuditStamp, Hold, KeyRecord, KeySpec, OverlapStart, PreviousSecret, RetiredSecret, StoredSecret, TenantRecord,
};

/// When the records of this module were created.
pub const CREATED: UnixMillis = UnixMillis(1_000);

/// Randomness that is the same in every run: blake3 as a stream of bytes from a seed.
#[derive(Debug)]
pub struct SeededEntropy(Mutex<blake3::OutputReader>);

impl SeededEntropy {
    /// The stream of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof()))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
        Ok(())
    }
}

/// Gives these bytes from their beginning, each time.
#[derive(Clone, Copy, Debug)]
pub struct FixedEntropy(pub [u8; 32]);

impl Entropy for FixedEntropy {
    /// # Errors
    /// When more than 32 bytes are asked for.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        let given = self.0.get(..bytes.len()).ok_or_else(|| EntropyError("it has 32 bytes".into()))?;
        bytes.copy_from_slice(given);
        Ok(())
    }
}

/// The author and the time of the records of this module.
#[must_use]
pub fn stamp() -> AuditStamp {
    AuditStamp { time: CREATED, actor: ActorId::keyward() }
}

/// A key of tenant `default`. Its number, of six digits or more, gives its id and its digest; it has no
/// owner, labels or texts, and revision 0.
#[must_use]
#[expect(clippy::expect_used, reason = "a fixture that is invalid fails its test")]
pub fn key_record(number: u32) -> KeyRecord {
    KeyRecord {
        key_id: KeyId::parse(&format!("key-{number:06}")).expect("an id"),
        tenant: TenantId::default_tenant(),
        secret: StoredSecret {
            version: 1,
            digest: Digest::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes()),
            pepper: PepperId(1),
            hint: "kw_live_…abcd".into(),
            issued: None,
        },
        previous: None,
        retired: None,
        spec: KeySpec::default(),
        state_reason: String::new(),
        state_changed: None,
        resume_time: None,
        deletion: None,
        delete_protected: false,
        ordinal: None,
        created: stamp(),
        updated: stamp(),
        revision: Revision(0),
    }
}

/// A key with another secret, whose digest follows from a number. The one before it is the previous secret,
/// without an end, and that before is the retired one.
#[must_use]
pub fn rotated(key: &KeyRecord, number: u32) -> KeyRecord {
    let retired = key.previous.as_ref().map(|previous| previous.secret.clone());
    let previous = PreviousSecret {
        secret: key.secret.clone(),
        valid_until: None,
        overlap_ms: 60_000,
        overlap_starts: OverlapStart::OnFirstUse,
    };
    let secret = StoredSecret {
        version: key.secret.version + 1,
        digest: Digest::from_bytes(*blake3::hash(&[b"rotated".as_slice(), &number.to_le_bytes()].concat()).as_bytes()),
        issued: Some(stamp()),
        ..key.secret.clone()
    };
    KeyRecord {
        secret,
        previous: Some(previous),
        retired: retired.map(|secret| RetiredSecret { secret, time: CREATED }),
        ..key.clone()
    }
}

/// A tenant that is called by its id, with the prefix `kw` and revision 0.
///
/// # Panics
/// When the id is not one.
#[must_use]
#[expect(clippy::expect_used, reason = "a fixture that is invalid fails its test")]
pub fn tenant_record(id: &str) -> TenantRecord {
    TenantRecord {
        tenant: TenantId::parse(id).expect("an id"),
        display_name: id.to_owned(),
        secret_prefix: SecretPrefix::kw(),
        hold: Hold::default(),
        keys_max: None,
        created: stamp(),
        updated: None,
        revision: Revision(0),
    }
}
