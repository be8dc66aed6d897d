//! Keys without a server: a caller, a pepper, secrets with known digests, and records in the order of a
//! table.

use std::sync::Arc;

use keyward::index::Index;
use keyward::verify::{Outcome, Verifier};
use keyward_core::access::{Caller, Identity};
use keyward_core::clock::{Now, UnixMillis};
use keyward_core::decision::AccessRequest;
use keyward_core::digest::{Digest, Pepper, PepperRing};
use keyward_core::entropy::{Entropy, EntropyError};
use keyward_core::event::{Record, Revision};
use keyward_core::id::{Environment, KeyId, SecretPrefix};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::stats::Spread;
use crate::typical_key::{Typical, scope};

/// What every program here ends with, if it cannot go on.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// 2027-01-02T00:00:00Z: when verdicts are asked for.
pub const NOW: UnixMillis = UnixMillis(1_798_848_000_000);

/// Records in one batch, as the table delivers them.
const BATCH_RECORDS: usize = 1_024;
/// Numbers of keys and places in the order of digests have nothing to do with each other: this prime takes
/// one to the other.
const STRIDE: u64 = 2_654_435_761;

/// One key of the world whose secret is known.
pub struct Known {
    /// Its secret.
    pub secret: String,
    /// A scope that it has.
    pub scope: String,
    /// What its secret is stored under.
    pub digest: Digest,
    /// Which key it is.
    pub number: u64,
}

/// Keys, by number; the secrets of some of them are known.
pub struct Fixture {
    /// Who asks: a service with the role of a verifier.
    pub caller: Caller,
    /// One pepper.
    pub peppers: Arc<PepperRing>,
    /// How many keys there are.
    pub keys: u64,
    /// Those whose secrets are known, spread over all, in no order.
    pub known: Vec<Known>,
    /// A secret of the right form that nobody has.
    pub unknown: String,
    /// As long as a secret, and none.
    pub garbage: String,
}

impl Fixture {
    /// A world of some keys. The same each time.
    ///
    /// # Errors
    /// When a name breaks its rule, or there are to be more known keys than keys.
    pub fn new(keys: u64, known: usize) -> Result<Self, Failure> {
        if known as u64 > keys || known == 0 {
            return Err("there must be a known key, and no more of them than keys".into());
        }
        let peppers = PepperRing::new(vec![Pepper::new(Zeroizing::new([7; 32]))]).ok_or("a ring has a pepper")?;
        let entropy = Seeded(Mutex::new(Spread(1)));
        let secret = || IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &entropy);
        let mut issued = vec![];
        for _ in 0..known {
            let secret = secret()?;
            issued.push((peppers.current().digest(&secret.as_presented()), secret.reveal().to_string()));
        }
        let known = issued.into_iter().enumerate().map(|(nth, (digest, secret))| {
            let number = (nth as u64 * STRIDE) % keys;
            Known { secret, scope: scope(number, 0), digest, number }
        });
        let known: Vec<_> = known.collect();
        let unknown = secret()?.reveal().to_string();
        Ok(Self {
            caller: Caller::new(
                Identity::of_key(KeyId::parse("bench")?, Digest::from_bytes([0; 32]), None),
                &[Scope::parse("keyward.verifier")?],
            ),
            peppers: Arc::new(peppers),
            keys,
            garbage: format!("kw_live_{}", "x".repeat(unknown.len() - "kw_live_".len())),
            unknown,
            known,
        })
    }

    /// Every key, in batches and in the order of digests, as the table delivers them: made as they are asked
    /// for, so that there is never more than one batch.
    pub fn batches(&self) -> impl Iterator<Item = Result<Vec<Record>, Failure>> + '_ {
        let mut records = self.records();
        std::iter::from_fn(move || {
            let batch: Result<Vec<_>, _> = records.by_ref().take(BATCH_RECORDS).collect();
            batch.map(|batch| (!batch.is_empty()).then_some(batch)).transpose()
        })
    }

    fn records(&self) -> impl Iterator<Item = Result<Record, Failure>> + '_ {
        let mut known: Vec<_> = self.known.iter().map(|known| (*known.digest.as_bytes(), known.number)).collect();
        known.sort_unstable();
        let mut other_digests = ascending(self.keys - known.len() as u64);
        // The numbers from `known.len()` on, shuffled, are those of the others.
        let mut numbers = (known.len() as u64..self.keys).map(|nth| (nth * STRIDE) % self.keys);
        let mut known = known.into_iter().peekable();
        let mut next_other = other_digests.next();
        let pepper = self.peppers.current().id();
        std::iter::from_fn(move || {
            let (digest, number) = match (next_other, known.peek()) {
                (Some(other), Some((digest, _))) if *digest < other => known.next()?,
                (None, _) => known.next()?,
                (Some(other), _) => {
                    next_other = other_digests.next();
                    (other, numbers.next()?)
                }
            };
            let record = Typical::key(number).record(Digest::from_bytes(digest), pepper, Revision(number + 1));
            Some(record.map(|key| Record::Key(Arc::new(key))).map_err(Into::into))
        })
    }

    /// An index with every key.
    ///
    /// # Errors
    /// When a name breaks its rule.
    pub fn index(&self) -> Result<Arc<Index>, Failure> {
        let index = Index::default();
        for batch in self.batches() {
            index.apply_records(&batch?);
        }
        index.advance_to(Revision(self.keys));
        Ok(Arc::new(index))
    }

    /// A verifier over every key.
    ///
    /// # Errors
    /// When a name breaks its rule.
    pub fn verifier(&self) -> Result<Verifier, Failure> {
        Ok(Verifier::new(self.index()?, self.peppers.clone()))
    }

    /// Whether a verifier allows this secret, with this scope, to the caller.
    #[must_use]
    pub fn allows(&self, verifier: &Verifier, secret: &str, scope: &str) -> bool {
        let request = AccessRequest { all_scopes: &[scope], ..AccessRequest::default() };
        matches!(
            verifier.verify(&self.caller, &verifier.read(secret), None, &request, Now::at(NOW)).outcome,
            Outcome::Allow(..)
        )
    }
}

/// So many digests of secrets that nobody has, spread over all that there can be, in their order.
pub fn ascending(count: u64) -> impl Iterator<Item = [u8; 32]> {
    let width = u64::MAX / count.max(1);
    let mut random = Spread(2);
    (0..count).map(move |nth| {
        let mut words = [0; 4].map(|_: u64| random.next().unwrap_or_default());
        words[0] = nth * width + words[0] % width; // each in a slice of its own, so that they ascend
        let mut bytes = [0; 32];
        bytes.chunks_mut(8).zip(words).for_each(|(chunk, word)| chunk.copy_from_slice(&word.to_be_bytes()));
        bytes
    })
}

/// Randomness that is the same each time.
struct Seeded(Mutex<Spread>);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyError> {
        let mut random = self.0.lock();
        for chunk in bytes.chunks_mut(8) {
            let word = random.next().unwrap_or_default().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_comes_once_in_the_order_of_digests_and_the_known_are_allowed() {
        let fixture = Fixture::new(3_000, 100).unwrap();
        let records = fixture.batches().flat_map(Result::unwrap);
        let keys = records.map(|record| match record {
            Record::Key(key) => (*key.secret.digest.as_bytes(), key.key_id.to_string()),
            other => panic!("{other:?}"),
        });
        let keys: Vec<_> = keys.collect();
        assert!(keys.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(keys.iter().map(|(_, id)| id).collect::<HashSet<_>>().len(), 3_000);
        assert_eq!(fixture.index().unwrap().len(), 3_000);
        let verifier = fixture.verifier().unwrap();
        assert!(fixture.known.iter().all(|known| fixture.allows(&verifier, &known.secret, &known.scope)));
        assert!(!fixture.allows(&verifier, &fixture.known[0].secret, "another.scope"));
        assert!(!fixture.allows(&verifier, &fixture.unknown, "another.scope"));
        assert!(!fixture.allows(&verifier, &fixture.garbage, "another.scope"));
    }
}
