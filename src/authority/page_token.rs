//! Page tokens, sealed and bound to their query.
//!
//! ```text
//! version u8: 2 │ order u8: 1, by id │ length of the sort value u16: 0 │ sort value │ id │ seal, 32 bytes
//! ```
//!
//! Id and sort value are those of the last record of a page, which the caller has just seen; a list in the
//! order of its ids has no other sort value. The seal is a keyed hash of all before it and of the query. A
//! token can be read, but not forged, and not used with another query. The server keeps no state for it.
//! docs/FORMAT.md has the bytes.

use data_encoding::BASE64URL_NOPAD;
use keyward_core::id::InvalidName;
use zeroize::Zeroizing;

use super::AuthorityError;

const VERSION: u8 = 2;
/// The list is in the order of the ids.
const ORDER_ID: u8 = 1;
/// What comes before the id in a list of that order, whose sort value is empty.
const BY_ID: [u8; 4] = [VERSION, ORDER_ID, 0, 0];
const SEAL_BYTES: usize = blake3::OUT_LEN;
/// The bytes of a token at most, decoded.
const TOKEN_BYTES_MAX: usize = 512;

pub(super) struct PageTokens(Zeroizing<[u8; 32]>);

impl PageTokens {
    pub(super) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// The token of the page after `last`, an id; empty if this was the last page.
    pub(super) fn seal(&self, last: Option<&str>, query: &[&[u8]]) -> String {
        let Some(last) = last else { return String::new() };
        let mut token = BY_ID.to_vec();
        token.extend_from_slice(last.as_bytes());
        let seal = self.seal_of(&token, query);
        token.extend_from_slice(seal.as_bytes());
        debug_assert!(token.len() <= TOKEN_BYTES_MAX, "an id is short");
        BASE64URL_NOPAD.encode(&token)
    }

    /// The id that a token's page comes after; `None` for the empty token, which asks for the first page.
    ///
    /// A token of the first version is refused like any other that was not made here for this query.
    pub(super) fn open<T>(
        &self,
        token: &str,
        query: &[&[u8]],
        parse: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Result<Option<T>, AuthorityError> {
        if token.is_empty() {
            return Ok(None);
        }
        self.id_in(token, query).and_then(|id| parse(&id).ok()).map(Some).ok_or_else(|| {
            let rule = "must be the next_page_token of this same query, made by this version of keyward; begin \
                the list anew, without a page_token";
            AuthorityError::bad_field("page_token", rule)
        })
    }

    /// The id in a token, if it was made for this query.
    fn id_in(&self, token: &str, query: &[&[u8]]) -> Option<String> {
        if token.len() > BASE64URL_NOPAD.encode_len(TOKEN_BYTES_MAX) {
            return None;
        }
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (sealed, seal) = bytes.split_last_chunk::<SEAL_BYTES>()?;
        if blake3::Hash::from_bytes(*seal) != self.seal_of(sealed, query) {
            return None;
        }
        String::from_utf8(sealed.strip_prefix(&BY_ID)?.to_vec()).ok()
    }

    /// The keyed hash of the query and of what precedes the seal. It is compared in constant time.
    fn seal_of(&self, sealed: &[u8], query: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in query.iter().chain([&sealed]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use keyward_core::id::KeyId;

    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const QUERY: &[&[u8]] = &[b"keys", b"acme"];

    fn tokens() -> PageTokens {
        PageTokens::new(Zeroizing::new(KEY))
    }

    /// The text of some bytes with a genuine seal behind them.
    fn sealed(bytes: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        for part in [b"keys", b"acme", bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        BASE64URL_NOPAD.encode(&[bytes, hasher.finalize().as_bytes()].concat())
    }

    #[test]
    fn a_token_has_the_bytes_that_are_described() {
        let id = KeyId::parse("key-000001").unwrap();
        let token = tokens().seal(Some(id.as_str()), QUERY);
        assert_eq!(token, sealed(b"\x02\x01\x00\x00key-000001"));
        assert_eq!(tokens().open(&token, QUERY, KeyId::parse).unwrap(), Some(id));
        assert_eq!(
            (tokens().seal(None, QUERY), tokens().open("", QUERY, KeyId::parse).unwrap()),
            (String::new(), None)
        );
    }

    /// Even with a genuine seal.
    #[test]
    fn another_version_order_or_length_is_refused() {
        let long = [&BY_ID[..], &[b'k'; TOKEN_BYTES_MAX]].concat();
        let others: &[&[u8]] = &[
            b"",
            b"key-000001",
            b"\x01\x01\x00\x00key-000001",
            b"\x03\x01\x00\x00key-000001",
            b"\x02\x02\x00\x00key-000001",
            b"\x02\x01\x03\x00key-000001",
            b"\x02\x01\x00\x00",
            b"\x02\x01\x00\x00k\xff-000001",
            &long,
        ];
        for other in others {
            assert!(tokens().open(&sealed(other), QUERY, KeyId::parse).is_err(), "{other:?}");
        }
    }

    #[test]
    fn a_token_of_the_longest_ids_is_within_its_bound() {
        let id = format!("k{}", "0".repeat(62));
        let token = tokens().seal(Some(&id), QUERY);
        assert!(token.len() <= BASE64URL_NOPAD.encode_len(TOKEN_BYTES_MAX));
        assert!(tokens().open(&token, QUERY, KeyId::parse).is_ok());
    }
}
