//! Stored bytes and issued secrets are public interfaces: what testdata/ holds must be readable for ever, and
//! what is written must not drift unnoticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use keyward::grpc::retry::seal_info;
use keyward::store::local::journal::frame::{Frame, FrameBuilder};
use keyward::store::local::journal::requests::RequestOf;
use keyward::store::local::journal::segment::{HeaderError, LineHeader, SealKey, SegmentHeader};
use keyward::store::local::journal::{ChainKey, Position};
use keyward::store::local::table::Row;
use keyward::store::record::{
    DecodeError, decode_issuer, decode_key, decode_line, decode_owner, decode_purge_mark, decode_tenant, encode_key,
    encode_tenant, pb, stateless_key_bytes,
};
use keyward::util::hpke::{KeyPair, PublicKey};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, Pepper, PepperId};
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::limits::{
    ACTOR_BYTES_MAX, ENVIRONMENT_BYTES_MAX, RECORD_BYTES_ISSUED_MAX, RECORD_BYTES_MAX, SECRET_PREFIX_BYTES_MAX,
    STATE_REASON_BYTES_MAX,
};
use keyward_core::record::{
    AuditStamp, Deletion, Hold, IssuerRecord, KeyPolicy, KeyRecord, KeySpec, LineRecord, LogId, OverlapStart,
    OwnerRecord, PreviousSecret, PurgeMark, RetiredSecret, State, StoredSecret, TenantRecord,
};
use keyward_core::scope::Scope;
use keyward_core::secret::{IssuedSecret, PresentedSecret};
use keyward_core::testing::FixedEntropy;
use proptest::prelude::*;
use prost::Message;
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
            issued: None,
        },
        previous: None,
        retired: None,
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
        resume_time: None,
        deletion: None,
        delete_protected: false,
        ordinal: None,
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
        hold: Hold::default(),
        keys_max: None,
        created: AuditStamp { time: UnixMillis(1_767_225_600_000), actor: ActorId::keyward() },
        updated: None,
        revision: Revision(7),
    }
}

fn actor(text: &str) -> ActorId {
    ActorId::parse(text).unwrap()
}

fn stamp(millis: i64, by: &str) -> AuditStamp {
    AuditStamp { time: UnixMillis(millis), actor: actor(by) }
}

fn secret(version: u32, first: u8) -> StoredSecret {
    let digest = Digest::from_bytes(std::array::from_fn(|at| first.wrapping_add(at as u8)));
    let issued = Some(stamp(1_790_000_000_000 + i64::from(version), "spiffe://example.org/ns/ops/sa/rotator"));
    StoredSecret { version, digest, issued, ..full_key().secret }
}

fn rotated_key() -> KeyRecord {
    let previous = PreviousSecret {
        secret: secret(2, 64),
        valid_until: Some(UnixMillis(1_790_000_600_000)),
        overlap_ms: 600_000,
        overlap_starts: OverlapStart::OnFirstUse,
    };
    let retired = RetiredSecret { secret: full_key().secret, time: UnixMillis(1_789_000_000_000) };
    KeyRecord {
        secret: secret(3, 128),
        previous: Some(previous),
        retired: Some(retired),
        state_changed: Some(stamp(1_790_000_000_001, "holder:acme/key_01kdvx1s00abcdefghjkmnpqrs")),
        resume_time: Some(UnixMillis(1_791_000_000_000)),
        delete_protected: true,
        ordinal: Some(0),
        updated: stamp(1_790_000_000_002, "unix:1000"),
        ..full_key()
    }
}

fn deleted_key() -> KeyRecord {
    let deletion = Deletion { time: UnixMillis(1_790_000_000_000), purge_time: UnixMillis(1_792_592_000_000) };
    KeyRecord { deletion: Some(deletion), ordinal: Some(7), ..bare_key() }
}

fn hold() -> Hold {
    Hold {
        suspended: true,
        reason: "unpaid".into(),
        reject_issued_before: Some(UnixMillis(1_790_000_000_000)),
        changed: Some(stamp(1_790_000_000_001, "operator")),
    }
}

/// Of each kind that version 1 does not have, or not with these fields.
fn records_of_version_2() -> Vec<(&'static str, Record)> {
    let (id, updated, revision) = (full_key().key_id, stamp(1_790_000_000_001, "operator"), Revision(43));
    let changed = TenantRecord { hold: hold(), keys_max: Some(500), updated: Some(updated.clone()), ..tenant() };
    let owner = OwnerRecord {
        tenant: tenant().tenant,
        owner: "customer-7".into(),
        hold: hold(),
        updated: updated.clone(),
        revision,
    };
    let issuer = IssuerRecord { actor: actor("unix:1000"), hold: Hold::default(), updated, revision };
    let digests = vec![secret(1, 0).digest, secret(2, 64).digest];
    let time = UnixMillis(1_790_000_000_003);
    let mark = PurgeMark { tenant: tenant().tenant, key_id: id, digests, key_lives: true, time, revision };
    let line = LineRecord { log_id: LogId([5; 16]), ended: Revision(43), base: Revision(1 << 40), time };
    vec![
        ("records/key-v2-rotated.hex", Record::Key(Arc::new(rotated_key()))),
        ("records/key-v2-deleted.hex", Record::Key(Arc::new(deleted_key()))),
        ("records/tenant-v2.hex", Record::Tenant(Arc::new(changed))),
        ("records/owner-v2.hex", Record::Owner(Arc::new(owner))),
        ("records/issuer-v2.hex", Record::Issuer(Arc::new(issuer))),
        ("records/purge-mark-v2.hex", Record::Purged(Arc::new(mark))),
        ("records/line-v2.hex", Record::Line(Arc::new(line))),
    ]
}

#[test]
fn records_of_version_2_are_written_and_read_as_ever() {
    for (name, record) in records_of_version_2() {
        let row = Row::of(record);
        let golden = holds(name, &row.bytes);
        assert_eq!(golden[0], 2, "{name}");
        let read = match &row.record {
            Record::Key(key) => decode_key(&golden) == Ok(KeyRecord::clone(key)),
            Record::Tenant(tenant) => decode_tenant(&golden) == Ok(TenantRecord::clone(tenant)),
            Record::Owner(owner) => decode_owner(&golden) == Ok(OwnerRecord::clone(owner)),
            Record::Issuer(issuer) => decode_issuer(&golden) == Ok(IssuerRecord::clone(issuer)),
            Record::Purged(mark) => decode_purge_mark(&golden) == Ok(PurgeMark::clone(mark)),
            Record::Line(line) => decode_line(&golden) == Ok(LineRecord::clone(line)),
        };
        assert!(read, "{name}");
    }
}

/// What an older program would overlook, and what it may overlook.
#[test]
fn a_record_has_version_2_where_an_older_program_would_overlook_something() {
    let version = |change: &dyn Fn(&mut KeyRecord)| {
        let mut key = full_key();
        change(&mut key);
        encode_key(&key)[0]
    };
    assert_eq!(version(&|key| key.ordinal = Some(7)), 1);
    assert_eq!(version(&|key| key.state_changed = Some(stamp(1, "operator"))), 1);
    for (number, change) in [
        (&|key: &mut KeyRecord| key.secret.issued = Some(stamp(1, "operator"))) as &dyn Fn(&mut KeyRecord),
        &|key| key.previous = rotated_key().previous,
        &|key| key.retired = rotated_key().retired,
        &|key| key.resume_time = Some(UnixMillis(1)),
        &|key| key.deletion = deleted_key().deletion,
        &|key| key.delete_protected = true,
        &|key| key.created.actor = actor("unix:1"),
        &|key| key.updated.actor = actor("unix:1"),
        &|key| key.state_changed = Some(stamp(1, "unix:1")),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(version(change), 2, "change {number}");
    }
}

fn enveloped(version: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = [&[version], body].concat();
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..16]);
    bytes
}

#[test]
fn a_field_that_is_not_known_refuses_a_record_of_version_2_unless_it_may_be_overlooked() {
    let key = encode_key(&rotated_key());
    let body = &key[1..key.len() - 16];
    let with = |number: u32| {
        let mut body = body.to_vec();
        prost::encoding::uint64::encode(number, &1, &mut body);
        decode_key(&enveloped(2, &body))
    };
    for number in [29, 45, 63] {
        assert_eq!(with(number), Err(DecodeError::UnknownField(number)));
    }
    assert_eq!(with(64), Ok(rotated_key()));
    // Within a message too: in one of its secrets, and in a hold.
    let mut later = pb::KeyRecord::decode(body).unwrap().encode_to_vec();
    let mut secret = pb::KeyRecord::decode(body).unwrap().secrets[1].encode_to_vec();
    prost::encoding::uint64::encode(11, &1, &mut secret);
    prost::encoding::bytes::encode(3, &secret, &mut later);
    assert_eq!(decode_key(&enveloped(2, &later)), Err(DecodeError::UnknownField(11)));
    let mut hold = pb::StoredHold { suspended: true, ..Default::default() }.encode_to_vec();
    prost::encoding::uint64::encode(6, &1, &mut hold);
    let mut owner = vec![];
    prost::encoding::bytes::encode(3, &hold, &mut owner);
    assert_eq!(decode_owner(&enveloped(2, &owner)), Err(DecodeError::UnknownField(6)));
    // Version 1 was never strict, and nothing of it may be refused now.
    let first = encode_key(&full_key());
    let mut body = first[1..first.len() - 16].to_vec();
    prost::encoding::uint64::encode(29, &1, &mut body);
    assert_eq!(decode_key(&enveloped(1, &body)), Ok(full_key()));
    // A record has one form.
    assert_eq!(decode_key(&enveloped(2, &first[1..first.len() - 16])), Err(DecodeError::Body("version")));
    assert_eq!(decode_key(&enveloped(1, &key[1..key.len() - 16])), Err(DecodeError::Body("version")));
}

/// By arithmetic no key is longer: it was issued with as much as may be, rotated twice by the longest
/// authors, suspended for the longest reason, and its ordinal and revision are the last ones.
#[test]
fn the_longest_key_can_be_rotated_suspended_deleted_and_revoked() {
    let author = actor(&format!("spiffe://{}", "a".repeat(ACTOR_BYTES_MAX - "spiffe://".len())));
    let by = AuditStamp { time: UnixMillis(i64::MAX), actor: author };
    let mut key = full_key();
    let (prefix, environment) = ("p".repeat(SECRET_PREFIX_BYTES_MAX), "e".repeat(ENVIRONMENT_BYTES_MAX));
    key.secret.hint = format!("{prefix}_{environment}_…wXyZ");
    key.spec.description = String::new();
    while stateless_key_bytes(&key) < RECORD_BYTES_ISSUED_MAX {
        key.spec.description.push('x');
    }
    let issued = Some(by.clone());
    let secret = StoredSecret { version: u32::MAX, issued, pepper: PepperId(u32::MAX), ..key.secret.clone() };
    key.previous = Some(PreviousSecret {
        secret: secret.clone(),
        valid_until: Some(UnixMillis(i64::MAX)),
        overlap_ms: u64::MAX,
        overlap_starts: OverlapStart::OnFirstUse,
    });
    key.retired = Some(RetiredSecret { secret: secret.clone(), time: UnixMillis(i64::MAX) });
    key.secret = secret;
    key.state_reason = "r".repeat(STATE_REASON_BYTES_MAX);
    (key.state_changed, key.created, key.updated) = (Some(by.clone()), by.clone(), by);
    key.resume_time = Some(UnixMillis(i64::MAX));
    key.deletion = Some(Deletion { time: UnixMillis(i64::MAX), purge_time: UnixMillis(i64::MAX) });
    (key.delete_protected, key.ordinal, key.revision) = (true, Some(u32::MAX - 1), Revision(u64::MAX));
    let bytes = encode_key(&key).len();
    assert!(bytes <= RECORD_BYTES_MAX, "{bytes}");
    assert_eq!(decode_key(&encode_key(&key)), Ok(key));
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

/// The log of the vectors.
const LOG: LogId = LogId([0x33; 16]);

fn holds_header(name: &str, header: SegmentHeader) {
    let seals = |byte| SealKey::of(&ChainKey(Zeroizing::new([byte; 32])));
    let golden = holds(name, &header.encode(&seals(0x11)));
    assert_eq!(SegmentHeader::read(&golden, &seals(0x11)), Ok(header));
    if header.log.is_some() {
        assert_eq!(SegmentHeader::read(&golden, &seals(0x12)), Err(HeaderError::Unsealed), "another pepper file");
    }
}

#[test]
fn journal_frames_are_written_and_read_as_ever() {
    let key = ChainKey(Zeroizing::new([0x11; 32]));
    let start = Position::START;
    holds_header("journal/segment-header-v1.hex", SegmentHeader { start, log: None, ended: None });
    holds_header("journal/segment-header-v2.hex", SegmentHeader::after(start, LOG));

    let entry = |revision, method: &str, target: &str, record| pb::JournalEntry {
        revision,
        time_ms: 1_767_225_600_000,
        actor: "keyward".into(),
        method: method.into(),
        target: target.into(),
        redo: vec![pb::Redo { record: Some(record) }],
        ..pb::JournalEntry::default()
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
    holds_header("journal/second-segment-header-v1.hex", SegmentHeader { start: end, log: None, ended: None });
    holds_header("journal/second-segment-header-v2.hex", SegmentHeader::after(end, LOG));
    let base = Revision(3 * LineRecord::REVISIONS);
    let line = LineRecord { log_id: LogId([0x44; 16]), ended: end.revision, base, time: UnixMillis(0) };
    let header = *LineHeader::new(&line, &end.chain, &key).header();
    holds_header("journal/line-header-v2.hex", header);
    assert!(header.follows(&end, Some(LOG), &key));

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

/// An entry whose request can be asked for again; chain key and position are those of the other frame.
#[test]
fn an_entry_with_a_request_id_is_written_and_read_as_ever() {
    let (key, start) = (ChainKey(Zeroizing::new([0x11; 32])), Position::START);
    let entry = pb::JournalEntry {
        revision: 1,
        time_ms: 1_767_225_600_000,
        actor: "key_01kdvx1s00abcdefghjkmnpqrs".into(),
        method: "CreateKey".into(),
        target: "acme/key_01kdvx1s00abcdefghjkmnpqrs".into(),
        peer: "192.0.2.1".into(),
        redo: vec![pb::Redo { record: Some(pb::redo::Record::Key(encode_key(&bare_key()))) }],
        request_id: "7f0c2a55-5a0e-4c7e-9f0e-6b1c3f8d2a10".into(),
        payload_hash: blake3::hash(b"payload").as_bytes().to_vec(),
        sealed_reply_hash: blake3::hash(b"reply").as_bytes().to_vec(),
        ..pb::JournalEntry::default()
    };
    let mut builder = FrameBuilder::after(&start);
    builder.push(&entry, &key);
    let end = builder.end();
    let golden = holds("journal/frame-v2-request.hex", &builder.finish().unwrap());
    let frame = Frame::read(&golden).unwrap();
    assert_eq!(frame.verify_after(&start, &key), Ok((vec![entry.clone()], end)));
    let [(request, _)] = &*frame.entries::<RequestOf>().map(Result::unwrap).collect::<Vec<_>>() else { panic!() };
    assert_eq!((&request.actor, &request.request_id), (&entry.actor, &entry.request_id));
    assert_eq!((&request.payload_hash, &request.sealed_reply_hash), (&entry.payload_hash, &entry.sealed_reply_hash));
    assert_eq!((request.revision, request.time_ms), (entry.revision, entry.time_ms));
}

/// testdata/sealed-secrets.txt: private key, public key, call, request id (`-`: none), secret, sealed secret;
/// for other implementations. Each is sealed with a key of its own, so none can be made again.
#[test]
fn sealed_secrets_open_as_ever() {
    const PUBLIC: &str = "07a37cbc142093c8b755dc1b10e86cb426374ad16aa853ed0bdfc0b2b86d1c7c";
    let private: [u8; 32] = std::array::from_fn(|at| at as u8 + 1);
    let public = PublicKey::read(&HEXLOWER.decode(PUBLIC.as_bytes()).unwrap()).unwrap();
    let path = testdata("sealed-secrets.txt");
    let secrets = fs::read_to_string(testdata("secrets.txt")).unwrap();
    let secrets = secrets.lines().map(|line| line.split(' ').nth(3).unwrap());
    if !path.exists() && std::env::var_os("WRITE_TESTDATA").is_some() {
        let calls = ["CreateKey", "CreateKey", "RotateKey", "RotateKey"];
        let ids = ["7f0c2a55-5a0e-4c7e-9f0e-6b1c3f8d2a10", "-", "!", "~~~~~~~~~~~~~~~~"];
        let lines = secrets.clone().zip(calls).zip(ids).map(|((secret, call), id)| {
            let info = seal_info(call, if id == "-" { "" } else { id });
            let sealed = HEXLOWER.encode(&public.seal(&info, secret.as_bytes()).unwrap());
            format!("{} {PUBLIC} keyward.v1.KeyAdmin/{call} {id} {secret} {sealed}\n", HEXLOWER.encode(&private))
        });
        fs::write(&path, lines.collect::<String>()).unwrap();
    }
    let pair = KeyPair::of(&private, public);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 4);
    for (line, expected) in text.lines().zip(secrets) {
        let [key, public, call, id, secret, sealed] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
        assert_eq!((key, public, secret), (&*HEXLOWER.encode(&private), PUBLIC, expected));
        let info = seal_info(call.rsplit('/').next().unwrap(), if id == "-" { "" } else { id });
        let opened = pair.open(&info, &HEXLOWER.decode(sealed.as_bytes()).unwrap()).unwrap();
        assert_eq!(opened.as_slice(), secret.as_bytes());
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
    later[0] = 3;
    assert_eq!(decode_key(&later), Err(DecodeError::UnknownVersion(3)));
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
        older in (prop::option::of(1..i64::MAX), any::<bool>(), any::<bool>(), any::<bool>()),
        standing in (prop::option::of(1..i64::MAX), any::<bool>(), any::<bool>(), prop::option::of(0..u32::MAX)),
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
                issued: older.3.then(|| stamp(5, "unix:5")),
            },
            previous: older.1.then(|| PreviousSecret {
                valid_until: older.0.map(UnixMillis),
                ..rotated_key().previous.unwrap()
            }),
            retired: rotated_key().retired.filter(|_| older.2),
            resume_time: standing.0.map(UnixMillis),
            deletion: deleted_key().deletion.filter(|_| standing.1),
            delete_protected: standing.2,
            ordinal: standing.3,
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
        prop_assert!(decode_owner(&bytes).is_err() && decode_issuer(&bytes).is_err());
        prop_assert!(decode_purge_mark(&bytes).is_err() && decode_line(&bytes).is_err());
        prop_assert!(Frame::read(&bytes).is_none());
        prop_assert!(SegmentHeader::read_unsealed(&bytes).is_err());
    }
}
