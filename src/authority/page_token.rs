//! Page tokens, sealed and bound to their query.
//!
//! A token is the last id of a page, which the caller has just seen, and a keyed hash of it and of the query.
//! It can be read, but not forged, and not used with another query. The server keeps no state for it.

use data_encoding::BASE64URL_NOPAD;
use keyward_core::id::InvalidName;
use zeroize::Zeroizing;

use super::AuthorityError;

const SEAL_BYTES: usize = blake3::OUT_LEN;
const TOKEN_BYTES_MAX: usize = 256;

pub(super) struct PageTokens(Zeroizing<[u8; 32]>);

impl PageTokens {
    pub(super) fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// The token of the page after `last`; empty if this was the last page.
    pub(super) fn seal(&self, last: Option<&str>, query: &[&[u8]]) -> String {
        let Some(last) = last else { return String::new() };
        let mut token = self.seal_of(last.as_bytes(), query).as_bytes().to_vec();
        token.extend_from_slice(last.as_bytes());
        BASE64URL_NOPAD.encode(&token)
    }

    /// The id that a token's page comes after; `None` for the empty token, which asks for the first page.
    pub(super) fn open<T>(
        &self,
        token: &str,
        query: &[&[u8]],
        parse: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Result<Option<T>, AuthorityError> {
        if token.is_empty() {
            return Ok(None);
        }
        let refused = || AuthorityError::bad_field("page_token", "must be the next_page_token of this same query");
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refused());
        }
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).map_err(|_| refused())?;
        let (seal, last) = bytes.split_first_chunk::<SEAL_BYTES>().ok_or_else(refused)?;
        if blake3::Hash::from_bytes(*seal) != self.seal_of(last, query) {
            return Err(refused());
        }
        std::str::from_utf8(last).ok().and_then(|last| parse(last).ok()).map(Some).ok_or_else(refused)
    }

    /// The keyed hash. It is compared in constant time.
    fn seal_of(&self, last: &[u8], query: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in query.iter().chain([&last]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize()
    }
}
