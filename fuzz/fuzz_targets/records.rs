//! Stored records of every kind and version: one that is accepted is written again in the one form that it
//! has, which is read as the same; without its checksum it is refused.
#![no_main]

use std::fmt::Debug;

use keyward::store::record::{
    DecodeError, decode_issuer, decode_key, decode_line, decode_owner, decode_purge_mark, decode_tenant, encode_issuer,
    encode_key, encode_line, encode_owner, encode_purge_mark, encode_tenant, pb, stateless_key_bytes,
};
use prost::Message;

/// A record of this body, as docs/FORMAT.md has it.
fn record(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[version], body].concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(&hash.as_bytes()[..16]);
    bytes
}

/// Whether the bytes are a record. If they are, it has one form.
fn round_trip<T: PartialEq + Debug>(
    bytes: &[u8],
    decode: fn(&[u8]) -> Result<T, DecodeError>,
    encode: fn(&T) -> Vec<u8>,
) -> Option<T> {
    let read = decode(bytes).ok()?;
    let again = encode(&read);
    assert_eq!(again[0], bytes[0], "it is written in another version");
    let second = decode(&again).expect("what was written is read");
    assert!(second == read, "it is read as another record");
    assert!(encode(&second) == again, "it has two forms");
    Some(read)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((what, body)) = data.split_first() else { return };
    // Two bits for what both versions have, and three for the rest.
    let (is_tenant, is_whole, rest) = (what & 1 == 1, what & 2 == 2, what >> 2 & 7);
    let version = if rest == 0 { 1 } else { 2 };
    let mut bytes = if is_whole { body.to_vec() } else { record(version, body) };
    let is_record = match rest {
        2 => round_trip(&bytes, decode_owner, encode_owner).map(drop),
        3 => round_trip(&bytes, decode_issuer, encode_issuer).map(drop),
        4 => round_trip(&bytes, decode_purge_mark, encode_purge_mark).map(drop),
        5 => round_trip(&bytes, decode_line, encode_line).map(drop),
        _ if is_tenant => round_trip(&bytes, decode_tenant, encode_tenant).map(|tenant| {
            let stored = pb::TenantRecord::decode(&bytes[1..bytes.len() - 16]).expect("it is of its form");
            assert_eq!((tenant.tenant.as_str(), tenant.revision.0), (&stored.tenant[..], stored.revision));
        }),
        _ => round_trip(&bytes, decode_key, encode_key).map(|key| {
            let stored = pb::KeyRecord::decode(&bytes[1..bytes.len() - 16]).expect("it is of its form");
            let digests: Vec<_> = key.digests().map(|digest| digest.as_bytes().to_vec()).collect();
            assert_eq!(key.key_id.as_str(), stored.key_id);
            assert!(digests.iter().eq(stored.secrets.iter().map(|secret| &secret.digest)));
            assert!((1..=3).contains(&digests.len()));
            assert_eq!(key.spec.policy.scopes.len(), stored.scopes.len());
            assert!(stateless_key_bytes(&key) <= encode_key(&key).len(), "without its state it is longer");
        }),
    };
    if is_record.is_none() {
        return;
    }
    let at = body.len() % bytes.len();
    bytes[at] ^= 1 << (what >> 5);
    assert!(decode_key(&bytes).is_err() && decode_tenant(&bytes).is_err(), "byte {at} was changed");
    assert!(decode_owner(&bytes).is_err() && decode_issuer(&bytes).is_err(), "byte {at} was changed");
    assert!(decode_purge_mark(&bytes).is_err() && decode_line(&bytes).is_err(), "byte {at} was changed");
});
