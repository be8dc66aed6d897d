//! Stored bytes and issued secrets are public interfaces: what testdata/ holds must be readable for ever, and
//! what is written must not drift unnoticed.

use std::fs;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use keyward::store::local::journal::frame::{Frame, FrameBuilder, read_segment_header, segment_header};
use keyward::store::local::journal::{ChainKey, Position};
use keyward::store::record::{DecodeError, decode_key, decode_tenant, encode_key, encode_tenant, pb};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, Pepper, PepperId};
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyPolicy, KeyRecord, KeySpec, State, StoredSecret, TenantRecord};
use keyward_core::scope::Scope;
use keyward_core::secret::{IssuedSecret, PresentedSecret};
use keyward_core::testing::FixedEntropy;
use proptest::prelude::*;
use zeroize::Zeroizing;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

/// Compares bytes with the file that has them in hexadecimal. `WRITE_TESTDATA=1` writes a missing file, and
/// never changes one.
fn holds(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = testdata(name);
    if !path.exists() && std::env::var_os("WRITE_TESTDATA").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let hex = HEXLOWER.encode(bytes);
        let lines: Vec<_> = hex.as_bytes().chunks(100).map(|line| std::str::from_utf8(line).unwrap()).collect();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    let hex: String = fs::read_to_string(&path).unwrap().split_whitespace().collect();
    let golden = HEXLOWER.decode(hex.as_bytes()).unwrap();
    assert_eq!(HEXLOWER.encode(bytes), hex, "{name} has drifted");
    golden
}

fn full_key() -> KeyRecord {
    let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect();
    KeyRecord {
        key_id: KeyId::parse("key_01kdvx1s00abcdefghjkmnpqrs").unwrap(),
        tenant: TenantId::parse("acme").unwrap(),
        secret: StoredSecret {
            version: 1,
            digest: Digest::from_bytes(std::array::from_fn(|at| at as u8)),
            pepper: PepperId(0x0102_0304),
            hint: "acme_live_…wXyZ".into(),
        },
        spec: KeySpec {
            display_name: "Zapier".into(),
            description: "The sync of the CRM".into(),
            owner: "customer-7".into(),
            policy: KeyPolicy {
                environment: Environment::live(),
                state: State::Disabled,
                scopes: vec![Scope::parse("orders.*").unwrap(), Scope::parse("users.read").unwrap()],
                audiences: vec!["billing".into()],
                allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                not_before: Some(UnixMillis(1_767_225_600_001)),
                expire_time: Some(UnixMillis(1_798_761_600_000)),
            },
            labels: map(&[("team", "growth"), ("tier", "gold")]),
            annotations: map(&[("ticket", "KW-1")]),
        },
        state_reason: "unpaid".into(),
        state_changed: None,
        created: AuditStamp { time: UnixMillis(1_767_225_600_000), actor: ActorId::parse("issuer").unwrap() },
        updated: AuditStamp { time: UnixMillis(1_767_312_000_000), actor: ActorId::parse("operator").unwrap() },
        revision: Revision(42),
    }
}

fn bare_key() -> KeyRecord {
    let spec = KeySpec { display_name: full_key().spec.display_name, ..KeySpec::default() };
    KeyRecord { spec, state_reason: String::new(), ..full_key() }
}

fn tenant() -> TenantRecord {
    TenantRecord {
        tenant: TenantId::parse("acme").unwrap(),
        display_name: "Acme Inc.".into(),
        secret_prefix: SecretPrefix::parse("acme").unwrap(),
        created: AuditStamp { time: UnixMillis(1_767_225_600_000), actor: ActorId::keyward() },
        revision: Revision(7),
    }
}

#[test]
fn records_are_written_and_read_as_ever() {
    for (name, key) in [("records/key-v1-full.hex", full_key()), ("records/key-v1-bare.hex", bare_key())] {
        let golden = holds(name, &encode_key(&key));
        assert_eq!(decode_key(&golden), Ok(key));
    }
    let golden = holds("records/tenant-v1.hex", &encode_tenant(&tenant()));
    assert_eq!(decode_tenant(&golden), Ok(tenant()));
}

#[test]
fn journal_frames_are_written_and_read_as_ever() {
    let key = ChainKey(Zeroizing::new([0x11; 32]));
    let start = Position::START;
    let header = holds("journal/segment-header-v1.hex", &segment_header(&start));
    assert_eq!(read_segment_header(&header), Ok(start));

    let entry = |revision, method: &str, target: &str, record| pb::JournalEntry {
        revision,
        time_ms: 1_767_225_600_000,
        actor: "keyward".into(),
        method: method.into(),
        target: target.into(),
        redo: vec![pb::Redo { record: Some(record) }],
    };
    let entries = vec![
        entry(1, "CreateTenant", "acme", pb::redo::Record::Tenant(encode_tenant(&tenant()))),
        entry(2, "CreateKey", "acme/key_01kdvx1s00abcdefghjkmnpqrs", pb::redo::Record::Key(encode_key(&bare_key()))),
    ];
    let mut builder = FrameBuilder::after(&start);
    entries.iter().for_each(|entry| builder.push(entry, &key));
    let end = builder.end();
    let golden = holds("journal/frame-v1.hex", &builder.finish().unwrap());
    let frame = Frame::read(&golden).unwrap();
    assert_eq!(frame.bytes, golden.len());
    assert_eq!(frame.verify_after(&start, &key), Ok((entries, end)));
    let second = holds("journal/second-segment-header-v1.hex", &segment_header(&end));
    assert_eq!(read_segment_header(&second), Ok(end));

    let other = ChainKey(Zeroizing::new([0x12; 32]));
    assert!(frame.verify_after::<pb::JournalEntry>(&start, &other).is_err(), "another key's chain does not verify");
    for bit in 0..golden.len() * 8 {
        let mut flipped = golden.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let read = Frame::read(&flipped).map(|frame| frame.verify_after::<pb::JournalEntry>(&start, &key).is_ok());
        // Only the padding is not covered.
        let padding = bit / 8 >= golden.len() - (golden.len() - golden.iter().rposition(|&b| b != 0).unwrap() - 1);
        assert!(read != Some(true) || padding, "bit {bit}");
    }
}

/// testdata/secrets.txt: random bytes, prefix, environment, secret, pepper, pepper id, digest; for other
/// implementations.
#[test]
fn secrets_and_digests_are_made_as_ever() {
    let randoms = [[0; 32], [0xff; 32], std::array::from_fn(|at| at as u8), {
        let mut one = [0; 32];
        one[31] = 1;
        one
    }];
    let mut lines = vec![];
    for (random, (prefix, environment)) in
        randoms.into_iter().zip([("kw", "live"), ("kw", "test"), ("acme", "live"), ("a", "b")])
    {
        let (prefix, environment) = (SecretPrefix::parse(prefix).unwrap(), Environment::parse(environment).unwrap());
        let secret = IssuedSecret::generate(&prefix, &environment, &FixedEntropy(random)).unwrap().reveal();
        let pepper_bytes = [0x22; 32];
        let pepper = Pepper::new(Zeroizing::new(pepper_bytes));
        let digest = pepper.digest(&PresentedSecret::parse(&secret).unwrap());
        lines.push(format!(
            "{} {prefix} {environment} {} {} {} {}",
            HEXLOWER.encode(&random),
            *secret,
            HEXLOWER.encode(&pepper_bytes),
            pepper.id(),
            HEXLOWER.encode(digest.as_bytes()),
        ));
    }
    let text = lines.join("\n") + "\n";
    let path = testdata("secrets.txt");
    if !path.exists() && std::env::var_os("WRITE_TESTDATA").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn what_is_not_a_record_of_ours_is_refused() {
    let good = encode_key(&full_key());
    assert_eq!(decode_key(&[]), Err(DecodeError::Short));
    assert_eq!(decode_key(&good[..16]), Err(DecodeError::Short));
    let mut later = good.clone();
    later[0] = 2;
    assert_eq!(decode_key(&later), Err(DecodeError::UnknownVersion(2)));
    for bit in 8..good.len() * 8 {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode_key(&flipped), Err(DecodeError::Checksum), "bit {bit}");
    }
    assert!(decode_key(&encode_tenant(&tenant())).is_err(), "a tenant is not a key");
}

prop_compose! {
    fn any_key()(
        id in "[a-z][a-z0-9_-]{2,62}",
        tenant in "[a-z][a-z0-9-]{0,62}",
        texts in prop::array::uniform4("\\PC{0,40}"),
        state in prop::sample::select(vec![State::Active, State::Disabled, State::Revoked]),
        scopes in prop::collection::vec("[a-z]{1,5}(\\.[a-z]{1,5}){0,2}(\\.\\*)?", 0..5),
        nets in prop::collection::vec((any::<[u8; 4]>(), 0..=32_u8), 0..3),
        times in (prop::option::of(1..i64::MAX), prop::option::of(1..i64::MAX)),
        labels in prop::collection::btree_map("[a-z]{1,9}", "\\PC{0,9}", 0..4),
        state_changed in prop::option::of((any::<i64>(), "[a-z]{3,9}").prop_map(|(time, actor)| {
            AuditStamp { time: UnixMillis(time), actor: ActorId::parse(&actor).unwrap() }
        })),
        digest: [u8; 32],
        numbers: (u32, u32, u64),
    ) -> KeyRecord {
        let [display_name, description, owner, state_reason] = texts;
        let nets = nets.into_iter().map(|(ip, len)| ipnet::IpNet::V4(ipnet::Ipv4Net::new(ip.into(), len).unwrap().trunc()));
        let policy = KeyPolicy {
            environment: Environment::live(),
            state,
            scopes: scopes.iter().map(|s| Scope::parse(s).unwrap()).collect(),
            audiences: vec![],
            allowed_cidrs: nets.collect(),
            not_before: times.0.map(UnixMillis),
            expire_time: times.1.map(UnixMillis),
        };
        KeyRecord {
            key_id: KeyId::parse(&id).unwrap(),
            tenant: TenantId::parse(&tenant).unwrap(),
            secret: StoredSecret {
                version: numbers.0,
                digest: Digest::from_bytes(digest),
                pepper: PepperId(numbers.1),
                hint: "h".into(),
            },
            spec: KeySpec { display_name, description, owner, policy, labels, annotations: full_key().spec.annotations },
            state_reason,
            state_changed,
            revision: Revision(numbers.2),
            ..full_key()
        }
    }
}

proptest! {
    #[test]
    fn any_record_is_read_back_as_it_was_written(key in any_key()) {
        prop_assert_eq!(decode_key(&encode_key(&key)), Ok(key));
    }

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode_key(&bytes).is_err());
        prop_assert!(decode_tenant(&bytes).is_err());
        prop_assert!(Frame::read(&bytes).is_none());
        prop_assert!(read_segment_header(&bytes).is_err());
    }
}
