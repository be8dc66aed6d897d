//! Stored records: one that is accepted is written again in the one form that it has, which is read as the
//! same; without its checksum it is refused.
#![no_main]

use keyward::store::record::{decode_key, decode_tenant, encode_key, encode_tenant, pb, stateless_key_bytes};
use prost::Message;

/// A record of this body, as docs/FORMAT.md has it.
fn record(body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[1], body].concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(&hash.as_bytes()[..16]);
    bytes
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((what, body)) = data.split_first() else { return };
    let mut bytes = if what & 2 == 0 { record(body) } else { body.to_vec() };
    if what & 1 == 0 {
        let Ok(key) = decode_key(&bytes) else { return };
        let stored = pb::KeyRecord::decode(&bytes[1..bytes.len() - 16]).expect("what was accepted is of its form");
        let (id, digest) = (key.key_id.as_str(), key.secret.digest.as_bytes());
        assert_eq!((id, &digest[..]), (&stored.key_id[..], &stored.secrets[0].digest[..]));
        assert_eq!(key.spec.policy.scopes.len(), stored.scopes.len());
        let again = encode_key(&key);
        assert!(stateless_key_bytes(&key) <= again.len(), "without its state it is longer");
        assert!(decode_key(&again).is_ok_and(|read| read == key), "it is read as another key");
        assert!(encode_key(&decode_key(&again).unwrap()) == again, "it has two forms");
    } else {
        let Ok(tenant) = decode_tenant(&bytes) else { return };
        let stored = pb::TenantRecord::decode(&bytes[1..bytes.len() - 16]).expect("what was accepted is of its form");
        assert_eq!((tenant.tenant.as_str(), tenant.revision.0), (&stored.tenant[..], stored.revision));
        let again = encode_tenant(&tenant);
        assert!(decode_tenant(&again).is_ok_and(|read| read == tenant), "it is read as another tenant");
    }
    let at = body.len() % bytes.len();
    bytes[at] ^= 1 << (what >> 5);
    assert!(decode_key(&bytes).is_err() && decode_tenant(&bytes).is_err(), "byte {at} was changed");
});
