//! Verify's messages read and written by hand: as prost reads and writes them, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keyward::fast_path::codec::{Answer, Request, ToldKey};
use keyward::grpc::convert;
use keyward::grpc::pb;
use keyward::index::Index;
use keyward_core::clock::UnixMillis;
use keyward_core::event::{Record, Revision};
use keyward_core::record::{KeyPolicy, KeyRecord, KeySpec};
use keyward_core::scope::Scope;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, encode_varint, skip_field};
use prost_types::{DescriptorProto, FileDescriptorSet};

use crate::support::local_store::key;

/// The question as prost would have it.
fn of_ours(question: &Request<'_>) -> pb::VerifyRequest {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    pb::VerifyRequest {
        secret: question.secret.into(),
        tenant: question.tenant.into(),
        all_scopes: texts(question.all_scopes.as_slice()),
        any_scopes: texts(question.any_scopes.as_slice()),
        audience: question.audience.into(),
        client_ip: question.client_ip.into(),
        // As prost does: the low half of the number.
        mode: question.mode as i32,
        explain: question.explain,
        min_revision: question.min_revision,
        correlation_id: question.correlation_id.into(),
        environment: question.environment.into(),
    }
}

prop_compose! {
    fn requests()(
        (secret, tenant, audience, client_ip) in ("\\PC{0,60}", "[a-z]{0,9}", "\\PC{0,20}", "[0-9.:]{0,15}"),
        all_scopes in vec("[a-z.]{0,9}", 0..10),
        any_scopes in vec("[a-z.]{0,9}", 0..10),
        mode in prop_oneof![0..4_i32, any::<i32>()],
        explain: bool,
        min_revision in prop_oneof![0..300_u64, any::<u64>()],
        environment in prop_oneof![Just(String::new()), "\\PC{0,9}"],
        correlation_id in prop_oneof![Just(String::new()), "\\PC{1,20}"],
    ) -> pb::VerifyRequest {
        pb::VerifyRequest {
            secret,
            tenant,
            all_scopes,
            any_scopes,
            audience,
            client_ip,
            mode,
            explain,
            min_revision,
            correlation_id,
            environment,
        }
    }
}

fn index_of(record: KeyRecord) -> Index {
    let index = Index::default();
    index.apply_records(&[Record::Key(Arc::new(record))]);
    index
}

proptest! {
    #[test]
    fn a_request_is_read_as_prost_reads_it(request in requests()) {
        let bytes = request.encode_to_vec();
        let usual = request.all_scopes.len() <= 8 && request.any_scopes.len() <= 8;
        let read = Request::of_message(&bytes);
        prop_assert_eq!(read.is_some(), usual, "what is usual is read");
        if let Some(read) = read {
            prop_assert!(of_ours(&read) == request);
        }
    }

    /// A later version of the protos may have more fields, and of other types.
    #[test]
    fn fields_that_are_not_known_are_skipped(
        request in requests(),
        number in prop_oneof![Just(7_u32), 13..40_u32, Just((1 << 29) - 1)],
        (kind, more) in (prop::sample::select(vec![0_u32, 1, 2, 5]), vec(any::<u8>(), 0..20)),
        comes_first: bool,
    ) {
        let mut field = vec![];
        encode_varint(u64::from(number << 3 | kind), &mut field);
        match kind {
            0 => encode_varint(more.len() as u64 * 1_000_000_007, &mut field),
            1 => field.extend([9; 8]),
            5 => field.extend([9; 4]),
            _ => {
                encode_varint(more.len() as u64, &mut field);
                field.extend(&more);
            }
        }
        let bytes = request.encode_to_vec();
        let usual = Request::of_message(&bytes).is_some();
        let bytes = if comes_first { [field, bytes].concat() } else { [bytes, field].concat() };
        let read = Request::of_message(&bytes);
        prop_assert_eq!(read.is_some(), usual);
        if let Some(read) = read {
            prop_assert!(of_ours(&read) == request);
        }
        prop_assert!(pb::VerifyRequest::decode(&*bytes).unwrap() == request);
    }

    /// Bytes that nobody meant, and whole requests that were hurt.
    #[test]
    fn whatever_is_read_at_all_is_read_as_prost_reads_it(
        request in requests(),
        hurts in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        more in vec(any::<u8>(), 0..12),
    ) {
        let mut bytes = request.encode_to_vec();
        if !bytes.is_empty() {
            for (at, byte) in hurts {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes.extend(more);
        if let Some(read) = Request::of_message(&bytes) {
            let prost = pb::VerifyRequest::decode(&*bytes);
            prop_assert!(prost.is_ok(), "prost refuses it: {:?}", prost);
            prop_assert!(of_ours(&read) == prost.unwrap());
        }
    }

    #[test]
    fn a_body_is_one_message_that_is_not_compressed(request in requests(), flag in 0..3_u8, off in -2..3_i64) {
        let bytes = request.encode_to_vec();
        prop_assume!(Request::of_message(&bytes).is_some());
        let told = i64::try_from(bytes.len()).unwrap() + off;
        prop_assume!(told >= 0);
        let mut body = vec![flag];
        body.extend(u32::try_from(told).unwrap().to_be_bytes());
        body.extend(&bytes);
        prop_assert_eq!(Request::of_body(&body).is_some(), flag == 0 && off == 0);
    }

    #[test]
    fn an_answer_is_written_as_prost_writes_it(
        (display_name, owner) in ("\\PC{0,200}", "\\PC{0,40}"),
        scopes in vec("[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", 0..5),
        labels in btree_map("[a-z]{0,9}", "\\PC{0,20}", 0..4),
        expire_time in prop::option::of(prop_oneof![any::<i32>().prop_map(i64::from), 0..253_402_300_799_999_i64]),
        (decision, reason) in (0..3_i32, 0..18_i32),
        http_status in prop_oneof![Just(0_u32), Just(200), Just(401), any::<u32>()],
        as_of_revision in prop_oneof![0..300_u64, any::<u64>()],
        told in 0..3,
        matched in 0..3_i32,
        previous_valid_until in prop::option::of(prop_oneof![Just(0_i64), any::<i32>().prop_map(i64::from), 0..253_402_300_799_999_i64]),
        correlation_id in prop_oneof![Just(String::new()), "\\PC{1,20}"],
    ) {
        let decision = pb::Decision::try_from(decision).unwrap();
        let Ok(reason) = pb::Reason::try_from(reason) else { return Ok(()) };
        let base = key(1);
        let policy = KeyPolicy {
            scopes: scopes.iter().map(|scope| Scope::parse(scope).unwrap()).collect(),
            expire_time: expire_time.map(UnixMillis),
            ..KeyPolicy::default()
        };
        let labels: BTreeMap<_, _> = labels;
        let digest = base.secret.digest;
        let spec = KeySpec { display_name, owner, labels, policy, ..KeySpec::default() };
        let index = index_of(KeyRecord { spec, revision: Revision(1), ..base });
        let entry = index.get(&digest).unwrap();
        let key = match told {
            0 => ToldKey::Nothing,
            1 => ToldKey::Id(entry.key_id_bytes()),
            _ => ToldKey::All(&entry),
        };
        let matched = pb::Matched::try_from(matched).unwrap();
        let previous_valid_until = previous_valid_until.map(UnixMillis);
        let correlation = &*correlation_id;
        let answer = Answer {
            decision, reason, http_status, key, matched, previous_valid_until, as_of_revision, correlation_id: correlation,
        };
        let ours = answer.to_body();
        let prost = pb::VerifyResponse {
            decision: decision.into(),
            reason: reason.into(),
            http_status,
            key: match told {
                0 => None,
                1 => Some(pb::VerifiedKey { key_id: entry.key_id().to_owned(), ..Default::default() }),
                _ => Some(convert::verified_key(&entry)),
            },
            matched: matched.into(),
            previous_valid_until: previous_valid_until.map(convert::timestamp),
            as_of_revision,
            checks: vec![],
            correlation_id,
        };
        let message = prost.encode_to_vec();
        let prefix = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes()].concat();
        prop_assert_eq!(&*ours, &*[prefix, message].concat());
    }
}

fn message(name: &str) -> DescriptorProto {
    let files = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap().file;
    files.into_iter().flat_map(|file| file.message_type).find(|message| message.name() == name).unwrap()
}

/// The numbers of the fields in a message.
fn numbers(mut bytes: &[u8]) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    while !bytes.is_empty() {
        let (number, kind) = decode_key(&mut bytes).unwrap();
        skip_field(kind, number, &mut bytes, DecodeContext::default()).unwrap();
        numbers.insert(number);
    }
    numbers
}

fn declared(name: &str) -> BTreeSet<u32> {
    message(name).field.iter().map(|field| field.number() as u32).collect()
}

/// Fails when a message gets a field that was not added to the codec.
#[test]
fn the_codec_knows_every_field_of_the_protos() {
    let full = pb::VerifyRequest {
        secret: "s".into(),
        tenant: "t".into(),
        all_scopes: vec!["a".into()],
        any_scopes: vec!["b".into()],
        audience: "c".into(),
        client_ip: "d".into(),
        mode: 1,
        explain: true,
        min_revision: 1,
        correlation_id: "e".into(),
        environment: "f".into(),
    };
    let bytes = full.encode_to_vec();
    assert_eq!(numbers(&bytes), declared("VerifyRequest"));
    assert!(of_ours(&Request::of_message(&bytes).unwrap()) == full, "each is read");

    let base = key(1);
    let policy = KeyPolicy {
        scopes: vec![Scope::parse("a").unwrap()],
        expire_time: Some(UnixMillis(1_500)),
        ..KeyPolicy::default()
    };
    let labels = [("team".to_owned(), "growth".to_owned())].into();
    let digest = base.secret.digest;
    let (display_name, owner) = ("Zapier".to_owned(), "customer-1".to_owned());
    let spec = KeySpec { display_name, owner, labels, policy, ..KeySpec::default() };
    let index = index_of(KeyRecord { spec, revision: Revision(1), ..base });
    let entry = index.get(&digest).unwrap();
    let answer = Answer {
        decision: pb::Decision::Allow,
        reason: pb::Reason::Ok,
        http_status: 200,
        key: ToldKey::All(&entry),
        matched: pb::Matched::Previous,
        previous_valid_until: Some(UnixMillis(1_500)),
        as_of_revision: 1,
        correlation_id: "e",
    };
    let body = answer.to_body();
    let mut expected = declared("VerifyResponse");
    let checks = message("VerifyResponse").field.iter().find(|field| field.name() == "checks").unwrap().number();
    assert!(expected.remove(&(checks as u32)), "an explanation takes the slow path");
    assert_eq!(numbers(&body[5..]), expected);
    let told = pb::VerifyResponse::decode(&body[5..]).unwrap().key.unwrap().encode_to_vec();
    assert_eq!(numbers(&told), declared("VerifiedKey"));
}
