//! The hand-written reader of Verify and BatchVerify: what it reads, prost reads as the same; what prost
//! writes, it reads.
#![no_main]

use keyward::fast_path::codec::{Request, messages, secret_of_message};
use keyward::grpc::pb;
use prost::Message;

/// Scopes in a list that the reader takes.
const SCOPES_MAX: usize = 8;

fn to_prost(request: &Request<'_>) -> pb::VerifyRequest {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    pb::VerifyRequest {
        secret: request.secret.into(),
        tenant: request.tenant.into(),
        all_scopes: texts(request.all_scopes.as_slice()),
        any_scopes: texts(request.any_scopes.as_slice()),
        audience: request.audience.into(),
        client_ip: request.client_ip.into(),
        // As prost does: the low half of the number.
        mode: request.mode as i32,
        explain: request.explain,
        min_revision: request.min_revision,
        correlation_id: request.correlation_id.into(),
        environment: request.environment.into(),
    }
}

/// The body of a call with this message.
fn body(message: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(message.len()).unwrap_or_default().to_be_bytes()[..], message].concat()
}

fn check_message(message: &[u8]) {
    let ours = Request::of_message(message);
    let prost = pb::VerifyRequest::decode(message);
    assert!(Request::of_body(&body(message)) == ours, "its body is read otherwise");
    if let Some(ours) = &ours {
        assert!(prost.as_ref().is_ok_and(|prost| *prost == to_prost(ours)), "prost reads another request");
    }
    let Ok(prost) = prost else { return };
    let usual = prost.all_scopes.len() <= SCOPES_MAX && prost.any_scopes.len() <= SCOPES_MAX;
    let written = prost.encode_to_vec();
    let read = Request::of_message(&written);
    assert_eq!(read.is_some(), usual, "what is usual is read");
    assert!(read.is_none_or(|read| to_prost(&read) == prost), "what prost writes is read otherwise");
    if !prost.secret.is_empty() {
        assert_eq!(secret_of_message(&written), Some(&prost.secret[..]), "another secret is prefetched");
    }
}

fn check_batch(message: &[u8]) {
    let body = body(message);
    let Some(parts) = messages(&body) else { panic!("the body is one message") };
    let ours: Option<Vec<_>> =
        parts.map(|part| part.and_then(Request::of_message).map(|read| to_prost(&read))).collect();
    let prost = pb::BatchVerifyRequest::decode(message).map(|batch| batch.requests);
    if let Some(ours) = ours {
        assert!(prost.as_ref().is_ok_and(|prost| *prost == ours), "prost reads another batch");
    }
    let Ok(requests) = prost else { return };
    let written = self::body(&pb::BatchVerifyRequest { requests: requests.clone() }.encode_to_vec());
    let parts: Option<Vec<_>> = messages(&written).and_then(|parts| parts.collect());
    assert!(parts.is_some_and(|parts| parts.len() == requests.len()), "what prost writes has another length");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    check_message(data);
    check_batch(data);
    // Bodies that are no message of their length.
    let _read = (Request::of_body(data).is_some(), messages(data).map(Iterator::count));
});
