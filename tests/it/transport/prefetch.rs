//! With many keys, the secrets of calls that arrive together are prefetched: only the time that calls take
//! may show it.

use futures_util::{StreamExt, stream};
use keyward::grpc::pb::{self, Reason};
use keyward::index::ahead::KEYS_MIN;
use prost::Message;

use crate::support::h2peer::*;
use crate::support::harness::{Issued, Site, ask};

/// From this many keys on, secrets are prefetched.
const MANY: u32 = KEYS_MIN as u32;

/// A site with many keys, and a hundred of them.
async fn large_site() -> (Site, Vec<Issued>) {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let create = |number| {
        let admin = &admin;
        async move { admin.issue(&format!("Key {number}"), &["a"]).await }
    };
    let all: Vec<_> = stream::iter(0..MANY).map(create).buffer_unordered(64).collect().await;
    let known = all.into_iter().step_by(MANY as usize / 100).take(100).collect();
    (site, known)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_together_are_each_answered_about_their_own_key() {
    let (site, known) = large_site().await;
    let disabled = &known[7].key;
    site.admin().disable_key(disabled).await;
    let block = head_of(VERIFY, site.admin_secret());
    let mut peer = Peer::open(&site).await;
    // The caller is known from now on.
    peer.call(1, &block, &body(&ask("garbage"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed);

    let reason = |key: &pb::Key| if key.key_id == disabled.key_id { Reason::Disabled } else { Reason::Ok };
    let of = |issued: &Issued| (issued.secret.clone(), reason(&issued.key), Some(issued.key.key_id.clone()));
    let mut asked: Vec<_> = known.iter().map(of).collect();
    // One twice, and whatever is no secret of anybody: by its form, by its length, by its checksum, and for
    // want of a key.
    let mut mistyped = known[0].secret.clone();
    mistyped.replace_range(mistyped.len() - 6.., "000000");
    asked.insert(20, of(&known[3]));
    for (at, text) in [(21, "garbage".into()), (40, "x".repeat(2_000)), (50, mistyped)] {
        asked.insert(at, (text, Reason::Malformed, None));
    }
    let vectors = include_str!("../../../testdata/secrets.txt").lines();
    let nobodys = vectors.filter_map(|line| line.split(' ').nth(3)).take(3);
    nobodys.for_each(|secret| asked.insert(60, (secret.into(), Reason::Unknown, None)));
    assert_eq!(asked.len(), 107);
    let requests: Vec<_> = asked.iter().map(|(secret, ..)| ask(secret)).collect();

    let mut together = vec![];
    for (request, stream) in requests.iter().zip((3..).step_by(2)) {
        // Some take the long way.
        let request = pb::VerifyRequest { explain: stream % 14 == 1, ..request.clone() };
        together.extend(frame(HEADERS, END_HEADERS, stream, &block));
        together.extend(frame(DATA, END, stream, &body(&request)));
    }
    peer.write(&together).await;
    // In any order: the long way is longer.
    let mut bodies: Vec<Vec<u8>> = vec![vec![]; asked.len()];
    let mut ended = 0;
    while ended < asked.len() {
        let frame = peer.next().await.unwrap();
        if frame.kind == DATA {
            bodies[(frame.stream as usize - 3) / 2].extend(&frame.payload);
        }
        ended += usize::from(frame.stream >= 3 && frame.ends());
    }
    let single: Vec<pb::VerifyResponse> = bodies.iter().map(|body| message(body)).collect();
    let batch = site.admin().ask_all(pb::BatchVerifyRequest { requests }).await.unwrap();
    let batch = batch.results.into_iter().map(|result| match result.result {
        Some(pb::batch_verify_result::Result::Response(verdict)) => verdict,
        error => panic!("{error:?}"),
    });
    for verdicts in [single, batch.collect()] {
        assert_eq!(verdicts.len(), asked.len());
        for (at, (verdict, (_, reason, key_id))) in verdicts.iter().zip(&asked).enumerate() {
            assert_eq!(verdict.reason(), *reason, "{at}");
            assert_eq!(verdict.key.as_ref().map(|key| &key.key_id), key_id.as_ref(), "{at}");
        }
    }
}

/// Of a duplicate field, the last one counts: the prefetched secret is then another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_secrets_in_one_request_the_last_one_counts() {
    let (site, known) = large_site().await;
    let admin = site.admin_secret();
    let mut peer = Peer::open(&site).await;
    peer.call(1, &head_of(VERIFY, admin), &body(&ask("garbage"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed);
    let twice = |first: &Issued, last: &Issued| {
        [ask(&first.secret).encode_to_vec(), ask(&last.secret).encode_to_vec()].concat()
    };
    let pairs: Vec<_> = known.iter().zip(&known[1..]).collect();

    let mut together = vec![];
    for (at, (first, last)) in pairs.iter().enumerate() {
        let stream = 3 + 2 * at as u32;
        together.extend(frame(HEADERS, END_HEADERS, stream, &head_of(VERIFY, admin)));
        together.extend(frame(DATA, END, stream, &prefixed(&twice(first, last))));
    }
    peer.write(&together).await;
    for (at, (_, last)) in pairs.iter().enumerate() {
        let verdict = peer.reply::<pb::VerifyResponse>(3 + 2 * at as u32).await;
        assert_eq!(verdict.key.unwrap().key_id, last.key.key_id, "{at}");
    }

    let mut batch = vec![];
    for (first, last) in &pairs {
        prost::encoding::bytes::encode(1, &twice(first, last), &mut batch);
    }
    peer.call(1_001, &head_of("/keyward.v1.KeyVerify/BatchVerify", admin), &prefixed(&batch)).await;
    let results = peer.reply::<pb::BatchVerifyResponse>(1_001).await.results;
    assert_eq!(results.len(), pairs.len());
    for (at, (result, (_, last))) in results.into_iter().zip(&pairs).enumerate() {
        let Some(pb::batch_verify_result::Result::Response(verdict)) = result.result else { panic!("{at}") };
        assert_eq!(verdict.key.unwrap().key_id, last.key.key_id, "{at}");
    }
}
