//! With many keys, secrets of calls that come together are read ahead of the calls: nothing but the time that it takes may
//! tell.

use futures_util::{StreamExt, stream};
use keyward::grpc::pb::{self, Reason};

use crate::h2peer::*;
use crate::harness::{Issued, Site, ask};

/// From this many keys on, secrets are read ahead.
const MANY: u32 = 16_384;

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

    let mut unknown = known[0].secret.clone();
    unknown.replace_range(unknown.len() - 6.., "000000");
    let mut asked: Vec<_> = known.iter().map(|issued| (issued.secret.clone(), Some(&issued.key))).collect();
    // One that is none, one twice, one that is far too long, and one after it.
    asked.splice(20..20, [("garbage".into(), None), (known[3].secret.clone(), Some(&known[3].key))]);
    asked.insert(40, ("x".repeat(2_000), None));
    asked.insert(50, (unknown, None));
    let requests: Vec<_> = asked.iter().map(|(secret, _)| ask(secret)).collect();

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
        for (at, (verdict, (_, key))) in verdicts.iter().zip(&asked).enumerate() {
            let expected = match key {
                None => Reason::Malformed,
                Some(key) if key.key_id == disabled.key_id => Reason::Disabled,
                Some(_) => Reason::Ok,
            };
            assert_eq!(verdict.reason(), expected, "{at}");
            let told = verdict.key.as_ref().map(|key| &key.key_id);
            assert_eq!(told, key.map(|key| &key.key_id), "{at}");
        }
    }
}
