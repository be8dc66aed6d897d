//! Digests of secrets: blake3, keyed with the pepper.
//!
//! A stolen data directory is useless without the pepper, which may be kept elsewhere. A slow hash such as
//! argon2 protects guessable secrets. These have 256 random bits, and a slow hash would only help an attacker
//! to overload the server.

use std::fmt;
use std::hash::{Hash, Hasher};

use zeroize::Zeroizing;

use crate::limits::PEPPERS_MAX;
use crate::secret::PresentedSecret;

/// The keyed hash of a secret, by which its record is stored and looked up.
///
/// Equality takes the same time wherever two digests differ.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(blake3::Hash);

impl Digest {
    /// A digest read back from storage.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(blake3::Hash::from_bytes(bytes))
    }

    /// The digest as stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

// The bytes are uniform already, and without the pepper nobody can choose them: eight of them are a good
// hash.
impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = *self.0.as_bytes();
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({}…)", &self.0.to_hex()[..8])
    }
}

/// The name of a pepper. It is derived from the pepper, so that another pepper cannot have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PepperId(pub u32);

impl fmt::Display for PepperId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// 32 secret bytes that key the digests.
pub struct Pepper {
    id: PepperId,
    key: Zeroizing<[u8; 32]>,
}

impl Pepper {
    /// A pepper with this key.
    #[must_use]
    pub fn new(key: Zeroizing<[u8; 32]>) -> Self {
        let [a, b, c, d, ..] = blake3::derive_key("keyward 2026-11-23 pepper id v1", &*key);
        Self { id: PepperId(u32::from_be_bytes([a, b, c, d])), key }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> PepperId {
        self.id
    }

    /// The digest of a secret under this pepper.
    #[must_use]
    pub fn digest(&self, secret: &PresentedSecret<'_>) -> Digest {
        Digest(blake3::keyed_hash(&self.key, secret.as_bytes()))
    }
}

/// The current pepper, which keys new digests, and the retired ones, which old keys are still found by.
pub struct PepperRing {
    peppers: Vec<Pepper>,
}

impl PepperRing {
    /// A ring whose first pepper is the current one. `None` if there is no pepper, or more than
    /// [`PEPPERS_MAX`].
    #[must_use]
    pub fn new(peppers: Vec<Pepper>) -> Option<Self> {
        (1..=PEPPERS_MAX).contains(&peppers.len()).then_some(Self { peppers })
    }

    /// The pepper for new digests.
    #[must_use]
    pub fn current(&self) -> &Pepper {
        &self.peppers[0]
    }

    /// Whether the ring can still find digests under this pepper.
    #[must_use]
    pub fn holds(&self, id: PepperId) -> bool {
        self.peppers.iter().any(|p| p.id == id)
    }

    /// The digests that a secret may be stored under, the likeliest first. Each is computed when it is asked
    /// for.
    pub fn digests<'a>(&'a self, secret: &'a PresentedSecret<'_>) -> impl Iterator<Item = Digest> + 'a {
        self.peppers.iter().map(|p| p.digest(secret))
    }

    /// The peppers that are no longer used for new digests.
    #[must_use]
    pub fn retired(&self) -> &[Pepper] {
        &self.peppers[1..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use static_assertions::assert_not_impl_any;

    assert_not_impl_any!(Pepper: Clone, Copy, std::fmt::Debug, std::fmt::Display, PartialEq);
    assert_not_impl_any!(PepperRing: Clone, std::fmt::Debug);

    #[test]
    fn a_ring_holds_one_to_four_peppers() {
        let peppers = |n: u8| (0..n).map(|i| Pepper::new(Zeroizing::new([i; 32]))).collect();
        assert!(PepperRing::new(peppers(0)).is_none());
        assert!(PepperRing::new(peppers(4)).is_some());
        assert!(PepperRing::new(peppers(5)).is_none());
    }
}
