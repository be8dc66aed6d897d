//! Sealing for the holder of a private key: HPKE (RFC 9180) in base mode, with DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256 and ChaCha20-Poly1305, and without associated data. The implementation is rustls's, on
//! aws-lc-rs, which draws the ephemeral key itself.

use std::fmt;

use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

/// Bytes of a public key, of a private key, and of an encapsulated key.
pub const KEY_BYTES: usize = 32;

/// A public key to seal to.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}

impl PublicKey {
    /// Reads a key. `None`: it has not [`KEY_BYTES`], or is a point of low order, which anybody could open
    /// what is sealed to.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let key = Self(bytes.try_into().ok()?);
        key.seal(&[], &[]).map(|_| key)
    }

    /// Seals a text: an encapsulated key, and then the ciphertext with its tag. `None`: the library failed.
    #[must_use]
    pub fn seal(&self, info: &[u8], text: &[u8]) -> Option<Vec<u8>> {
        let (EncapsulatedSecret(mut sealed), text) =
            SUITE.seal(info, &[], text, &HpkePublicKey(self.0.to_vec())).ok()?;
        sealed.extend_from_slice(&text);
        Some(sealed)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A key pair, to open with what was sealed.
pub struct KeyPair {
    /// The key to seal to.
    pub public: PublicKey,
    private: HpkePrivateKey,
}

impl KeyPair {
    /// Draws a key pair. `None`: the library failed.
    #[must_use]
    pub fn generate() -> Option<Self> {
        let (public, private) = SUITE.generate_key_pair().ok()?;
        Some(Self { public: PublicKey::read(&public.0)?, private })
    }

    /// A key pair of a private key, and its public key.
    #[must_use]
    pub fn of(private: &[u8; KEY_BYTES], public: PublicKey) -> Self {
        Self { public, private: private.to_vec().into() }
    }

    /// Opens what was sealed with the same `info`. `None`: it was not sealed to this key, or was altered.
    #[must_use]
    pub fn open(&self, info: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (encapsulated, text) = sealed.split_at_checked(KEY_BYTES)?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        SUITE.open(&encapsulated, info, &[], text, &self.private).ok().map(Zeroizing::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_for_its_holder_and_purpose_alone() {
        let (pair, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let sealed = pair.public.seal(b"info", b"text").unwrap();
        assert_eq!(pair.open(b"info", &sealed).unwrap().as_slice(), b"text");
        assert!(pair.open(b"other", &sealed).is_none());
        assert!(other.open(b"info", &sealed).is_none());
        assert!(pair.open(b"info", &sealed[..20]).is_none());
        assert_ne!(pair.public.seal(b"info", b"text").unwrap(), sealed, "each with a key of its own");
    }

    /// The points of low order: <https://www.rfc-editor.org/rfc/rfc7748#section-6.1>.
    #[test]
    fn a_key_that_anybody_could_open_is_none() {
        let order_8 = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ];
        let mut low: Vec<Vec<u8>> =
            order_8.iter().map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()).collect();
        low.push(vec![0; 32]);
        low.push([&[1][..], &[0; 31]].concat());
        // p - 1, p and p + 1.
        low.extend([0xec, 0xed, 0xee].map(|first| [&[first][..], &[0xff; 30], &[0x7f]].concat()));
        for key in low {
            assert!(PublicKey::read(&key).is_none(), "{key:02x?}");
        }
        assert!(PublicKey::read(&[9; 31]).is_none() && PublicKey::read(&[9; 33]).is_none());
        assert!(PublicKey::read(&[&[9][..], &[0; 31]].concat()).is_some());
    }
}
