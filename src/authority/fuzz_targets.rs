//! Fuzz targets for what is private to the authority. Only with the feature `_fuzz`. `fuzz/` runs them.

use keyward_core::id::KeyId;
use zeroize::Zeroizing;

use super::page_token::PageTokens;

/// Page tokens: a token opens to the id that it was made of, with the query that it was made for, and in no
/// other form. Any character of it may be another one: those of version, order, sort value, id and seal.
/// The input is a place in the token, the number of parts of a query, their lengths, a token or the text of
/// an id, and the parts.
pub fn page_tokens(data: &[u8]) {
    let tokens = PageTokens::new(Zeroizing::new([0x5a; 32]));
    let Some((&[flip, count], rest)) = data.split_first_chunk() else { return };
    let (lengths, mut rest) = rest.split_at(rest.len().min(usize::from(count % 6) + 1));
    let mut parts = vec![];
    for length in lengths {
        let (part, further) = rest.split_at(rest.len().min((*length).into()));
        parts.push(part);
        rest = further;
    }
    let Some((text, query)) = parts.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };

    if let Ok(opened) = tokens.open(text, query, KeyId::parse) {
        let last = opened.as_ref().map(KeyId::as_str);
        assert_eq!(tokens.seal(last, query), text, "a token that was not made so is accepted");
    }
    let Ok(id) = KeyId::parse(text) else { return };
    let mut token = tokens.seal(Some(text), query);
    assert!(tokens.open(&token, query, KeyId::parse).is_ok_and(|opened| opened == Some(id)), "a token is refused");

    // The same bytes, divided otherwise.
    let joined = query.concat();
    let (a, b) = joined.split_at(usize::from(flip) % (joined.len() + 1));
    if *query != [a, b] {
        assert!(tokens.open(&token, &[a, b], KeyId::parse).is_err(), "a token is accepted with another query");
    }
    let at = usize::from(flip) % token.len();
    let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
    token.replace_range(at..=at, other);
    assert!(tokens.open(&token, query, KeyId::parse).is_err(), "a token is accepted with another character");
}
