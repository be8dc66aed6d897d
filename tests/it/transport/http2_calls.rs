//! Calls in every form that HTTP/2 allows, and the caller of each.

use keyward::grpc::pb::{self, Reason};

use crate::support::h2peer::*;
use crate::support::harness::{Issued, Site, ask, new_key};

async fn caller(site: &Site) -> Issued {
    let key = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Service", &["keyward.verifier"]) };
    site.admin().issued(key).await
}

/// For the fast path, and for the slow path, by asking for an explanation.
fn questions(secret: &str) -> [Vec<u8>; 2] {
    [body(&ask(secret)), body(&pb::VerifyRequest { explain: true, ..ask(secret) })]
}

async fn allowed(peer: &mut Peer, stream: u32) {
    assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Ok);
}

#[tokio::test]
async fn a_call_is_the_same_in_any_frames() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let mut peer = Peer::open(&site).await;
    let block = head_of(VERIFY, site.admin_secret());
    let mut stream = 1;
    for body in questions(&issued.secret) {
        // Blocks and bodies in pieces, with padding, and with unknown frames in between.
        let (left, right) = block.split_at(block.len() / 2);
        peer.send(HEADERS, 0, stream, left).await;
        for byte in &right[..10] {
            peer.send(CONTINUATION, 0, stream, &[*byte]).await;
        }
        peer.send(CONTINUATION, END_HEADERS, stream, &right[10..]).await;
        for byte in &body[..body.len() - 1] {
            peer.send(DATA, PADDED, stream, &[1, *byte, 0]).await;
            peer.send(0xbe, 0xff, stream, b"unknown").await;
        }
        peer.send(DATA, END, stream, &body[body.len() - 1..]).await;
        allowed(&mut peer, stream).await;
        stream += 2;

        let padded = [&[2][..], &[0, 0, 0, 0, 9], &block, &[0, 0]].concat();
        peer.send(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, stream, &padded).await;
        peer.send(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]).await;
        peer.send(DATA, 0, stream, &body).await;
        peer.send(DATA, END, stream, b"").await;
        allowed(&mut peer, stream).await;
        stream += 2;

        // Trailers end it too.
        peer.send(HEADERS, END_HEADERS, stream, &block).await;
        peer.send(DATA, 0, stream, &body).await;
        peer.send(HEADERS, END_HEADERS | END, stream, &field(0x40, "x", "y")).await;
        allowed(&mut peer, stream).await;
        stream += 2;

        // Byte by byte.
        for byte in [frame(HEADERS, END_HEADERS, stream, &block), frame(DATA, END, stream, &body)].concat() {
            peer.write(&[byte]).await;
        }
        allowed(&mut peer, stream).await;
        stream += 2;
    }
    // Many heads, then their bodies in another order.
    let [short, long] = questions(&issued.secret);
    for at in 0..20 {
        peer.send(HEADERS, END_HEADERS, stream + 2 * at, &block).await;
    }
    for at in (0..20).rev() {
        peer.send(DATA, END, stream + 2 * at, if at % 3 == 0 { &long } else { &short }).await;
        allowed(&mut peer, stream + 2 * at).await;
    }
}

#[tokio::test]
async fn a_call_without_a_body_is_refused() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    peer.send(HEADERS, END_HEADERS | END, 1, &head_of(VERIFY, site.admin_secret())).await;
    peer.find(|frame| frame.stream == 1 && frame.ends()).await;
    peer.until_pong(1).await;
}

/// Over a Unix socket, clients send its path as the authority, which is not a valid one.
#[tokio::test]
async fn requests_that_are_not_grpc_get_an_http_status() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let verify = |method: &[u8], content_type: &str| {
        let fields = [field(0, ":path", VERIFY), field(0, "content-type", content_type)];
        let credential = field(0, "authorization", &format!("Bearer {}", site.admin_secret()));
        [method, &[0x86], &fields.concat(), &credential].concat()
    };
    let (get, post) = (&[0x82][..], &[0x83][..]);
    let put = field(0, ":method", "PUT");
    let tried = [
        (verify(get, "application/grpc"), "405"),
        (verify(&put, "application/grpc"), "405"),
        (verify(post, "application/json"), "415"),
        (verify(post, "application/proto"), "415"),
        (verify(post, "application/grpc-web+proto"), "415"),
    ];
    for (stream, (block, status)) in (1..).step_by(2).zip(tried) {
        peer.call(stream, &block, &body(&ask("nonsense"))).await;
        let told = peer.find(|frame| frame.kind == HEADERS && frame.stream == stream).await;
        assert!(told.ends());
        assert_eq!(told.field(":status"), Some(status));
    }
    for (stream, content_type) in (101..).step_by(2).zip(["application/grpc", "application/grpc+proto"]) {
        peer.call(stream, &verify(post, content_type), &body(&ask("nonsense"))).await;
        assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
    }
}

#[tokio::test]
async fn any_authority_is_accepted() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let plain = head_of(VERIFY, site.admin_secret());
    let mut stream = 1;
    for authority in ["", "/run/keyward.sock", "%2Frun%2Fkeyward.sock", "a b", "x@y:z:0"] {
        let block = [&plain[..2], &field(0, ":authority", authority), &plain[2..]].concat();
        for body in questions("nonsense") {
            peer.call(stream, &block, &body).await;
            assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed, "{authority}");
            stream += 2;
        }
    }
}

/// Two callers on one connection, whose heads differ in an index, or not at all.
#[tokio::test]
async fn a_remembered_head_is_never_used_for_another_caller() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let issued = admin.issue("Key", &[]).await;
    let [one, other] = [caller(&site).await, caller(&site).await];
    let mut peer = Peer::open(&site).await;
    let bearer = |issued: &Issued| field(0x40, "authorization", &format!("Bearer {}", issued.secret));
    let question = body(&ask(&issued.secret));

    // Both are inserted into the table; `one` is the older.
    for (stream, caller) in [(1, &one), (3, &other)] {
        peer.call(stream, &[head(VERIFY), bearer(caller)].concat(), &question).await;
        allowed(&mut peer, stream).await;
    }
    let indexed = |index: u8| [head(VERIFY), vec![0x80 | index]].concat();
    let (is_one, is_other) = (indexed(63), indexed(62));
    let mut stream = 5;
    for _ in 0..10 {
        for block in [&is_one, &is_other, &is_other] {
            peer.call(stream, block, &question).await;
            allowed(&mut peer, stream).await;
            stream += 2;
        }
        // At once when it is disabled, and only that caller.
        admin.disable_key(&other.key).await;
        peer.call(stream, &is_other, &question).await;
        let refused = peer.find(|frame| frame.stream == stream).await;
        assert!(refused.ends(), "a refusal has no body");
        assert_eq!(refused.field("grpc-status"), Some("16"));
        peer.call(stream + 2, &is_one, &question).await;
        allowed(&mut peer, stream + 2).await;
        admin.enable_key(&other.key).await;
        stream += 4;
    }
    // The same bytes are another caller: a new entry moves the others.
    peer.call(stream, &is_other, &question).await;
    allowed(&mut peer, stream).await;
    admin.disable_key(&one.key).await;
    peer.call(stream + 2, &is_other, &question).await;
    allowed(&mut peer, stream + 2).await;
    peer.call(stream + 4, &[head(VERIFY), bearer(&one)].concat(), &question).await;
    peer.find(|frame| frame.stream == stream + 4 && frame.kind == HEADERS && frame.ends()).await;
    peer.call(stream + 6, &is_other, &question).await;
    let refused = peer.find(|frame| frame.stream == stream + 6).await;
    assert!(refused.ends(), "that is the disabled one now");
    peer.call(stream + 8, &is_one, &question).await;
    allowed(&mut peer, stream + 8).await;
}

#[tokio::test]
async fn a_peer_with_a_small_header_table_reads_the_replies() {
    let site = Site::in_memory().await;
    let mut peer = Peer::with(&site, &[(1, 0)]).await;
    for stream in [1, 3, 5] {
        peer.call(stream, &head_of(VERIFY, site.admin_secret()), &body(&ask("nonsense"))).await;
        let first = peer.find(|frame| frame.stream == stream).await;
        let head = [&[0x88][..], &field(0, "content-type", "application/grpc")].concat();
        let told = if stream == 1 { &[0x20][..] } else { &[] };
        assert_eq!(first.payload, [told, &head].concat());
        let last = peer.find(|frame| frame.stream == stream && frame.ends()).await;
        assert_eq!(last.payload, field(0, "grpc-status", "0"));
    }
}
