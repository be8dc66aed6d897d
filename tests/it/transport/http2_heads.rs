//! Heads of calls: `content-length`, `grpc-timeout`, and heads that are too long.

use keyward::grpc::pb::{self, Reason};

use crate::support::h2peer::*;
use crate::support::harness::{Site, ask};

const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A call on the fast path, one on the slow path, and one that waits for the end of its body.
const BATCH: &str = "/keyward.v1.KeyVerify/BatchVerify";
const STREAM: &str = "/keyward.v1.KeyVerify/StreamVerify";

/// A literal field of any length, without indexing.
fn long_field(form: u8, name: &str, value_bytes: usize) -> Vec<u8> {
    let mut field = vec![form, name.len() as u8];
    field.extend(name.as_bytes());
    field.push(0x7f);
    let mut rest = value_bytes - 0x7f;
    while rest >= 0x80 {
        field.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    field.push(rest as u8);
    field.resize(field.len() + value_bytes, b'y');
    field
}

/// The frames of a header block.
fn in_frames(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut chunks = block.chunks(16_384).peekable();
    let (mut frames, mut kind, mut flags) = (vec![], HEADERS, flags);
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend(frame(kind, flags | last, stream, chunk));
        (kind, flags) = (CONTINUATION, 0);
    }
    frames
}

#[tokio::test]
async fn a_body_that_does_not_fit_its_content_length_is_malformed() {
    let site = Site::in_memory().await;
    let secret = site.admin_secret();
    let question = body(&ask("nonsense"));
    let explained = body(&pb::VerifyRequest { explain: true, ..ask("nonsense") });
    let (length, trailers) = (question.len(), field(0, "x", "y"));
    let mut peer = Peer::open(&site).await;
    let mut stream = 1;
    let said = |path: &str, said: &[&str]| {
        let fields: Vec<u8> = said.iter().flat_map(|value| field(0, "content-length", value)).collect();
        [head_of(path, secret), fields].concat()
    };

    // A body that fits is answered, on both paths, in one piece and in several, with padding and with
    // trailers.
    for body in [&question, &explained] {
        let exact = said(VERIFY, &[&body.len().to_string()]);
        let (left, right) = body.split_at(4);
        for pieces in [
            frame(DATA, END, stream, body),
            [frame(DATA, 0, stream + 2, left), frame(DATA, END, stream + 2, right)].concat(),
            [
                frame(DATA, PADDED, stream + 4, &[&[1][..], left, &[0]].concat()),
                frame(DATA, 0, stream + 4, right),
                frame(HEADERS, END_HEADERS | END, stream + 4, &trailers),
            ]
            .concat(),
        ] {
            peer.send(HEADERS, END_HEADERS, stream, &exact).await;
            peer.write(&pieces).await;
            assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
            stream += 2;
        }
    }
    // The same length twice counts once.
    peer.call(stream, &said(VERIFY, &[length.to_string().as_str(); 2]), &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
    stream += 2;

    // A body that does not fit is reset as soon as that is known, on either path.
    let (short, long) = ((length - 1).to_string(), (length + 1).to_string());
    for path in [VERIFY, BATCH, STREAM] {
        let too_much = [(END, "at its end"), (0, "before its end")].map(|(flags, when)| (flags, short.as_str(), when));
        for (flags, said_length, when) in too_much.into_iter().chain([(END, long.as_str(), "too little")]) {
            peer.send(HEADERS, END_HEADERS, stream, &said(path, &[said_length])).await;
            peer.send(DATA, 0, stream, &question[..3]).await;
            peer.until_pong(1).await;
            peer.send(DATA, flags, stream, &question[3..]).await;
            assert_eq!(peer.reset(stream).await, PROTOCOL_ERROR, "{path}: {when}");
            stream += 2;
        }
        peer.send(HEADERS, END_HEADERS, stream, &said(path, &[&long])).await;
        peer.send(DATA, 0, stream, &question).await;
        peer.send(HEADERS, END_HEADERS | END, stream, &trailers).await;
        assert_eq!(peer.reset(stream).await, PROTOCOL_ERROR, "{path}: too little, and trailers");
        stream += 2;
        peer.send(HEADERS, END_HEADERS | END, stream, &said(path, &[&long])).await;
        assert_eq!(peer.reset(stream).await, PROTOCOL_ERROR, "{path}: no body at all");
        stream += 2;
        let (exact, max) = (length.to_string(), u64::MAX.to_string());
        for bad in [&["x"][..], &[""], &["+5"], &["-5"], &["5, 5"], &["0x5"], &[&format!("{max}0")], &[&exact, &max]] {
            peer.send(HEADERS, END_HEADERS, stream, &said(path, bad)).await;
            assert_eq!(peer.reset(stream).await, PROTOCOL_ERROR, "{path}: {bad:?}");
            stream += 2;
        }
    }
    // Its window is given back, and the connection goes on.
    peer.call(stream, &head_of(VERIFY, secret), &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
}

#[tokio::test]
async fn a_malformed_timeout_is_refused_on_both_paths() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let question = body(&ask("nonsense"));
    let said = |path: &str, said: &[&str]| {
        let fields: Vec<u8> = said.iter().flat_map(|value| field(0, "grpc-timeout", value)).collect();
        [head_of(path, site.admin_secret()), fields].concat()
    };
    let mut stream = 1;
    for path in [VERIFY, "/grpc.health.v1.Health/Check", STREAM] {
        let bad = [&[""][..], &["S"], &["1"], &["1s"], &["100000000S"], &["-1S"], &["+1S"], &["1 S"], &["1.5S"]];
        for bad in bad.into_iter().chain([&["1S", "x"][..], &["x", "1S"]]) {
            peer.call(stream, &said(path, bad), &question).await;
            let told = peer.find(|frame| frame.kind == HEADERS && frame.stream == stream).await;
            assert!(told.ends() && told.field(":status") == Some("400"), "{path} {bad:?}: {told:?}");
            let says = told.field("grpc-message").is_some_and(|message| message.contains("grpc-timeout"));
            assert!(told.field("grpc-status") == Some("13") && says, "{path} {bad:?}: {told:?}");
            stream += 2;
        }
    }
    for good in [&["1S"][..], &["99999999n"], &["0H"], &["1S", "2S"]] {
        peer.call(stream, &said(VERIFY, good), &question).await;
        assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed, "{good:?}");
        stream += 2;
    }
}

/// A block of up to 16 frames that is too long is decoded to its end, since it may change the table.
#[tokio::test]
async fn headers_that_are_far_too_long_are_refused_and_the_next_are_read() {
    let site = Site::in_memory().await;
    let secret = site.admin_secret();
    let credential = || field(0x40, "authorization", &format!("Bearer {secret}"));
    let first = [&[0x83, 0x86][..], &field(0, ":path", VERIFY)].concat();
    let question = body(&ask("nonsense"));
    let many = |bytes: usize| field(0, "x", &"y".repeat(200)).repeat(bytes / 204);
    let cases = [
        ("17 KiB in many fields", many(17 << 10)),
        ("33 KiB in many fields", many(33 << 10)),
        ("250 KiB in many fields", many(250 << 10)),
        ("one field of 16 KiB and one byte", long_field(0, "x", (16 << 10) + 1)),
        ("one field of 100 KiB", long_field(0, "x", 100 << 10)),
        ("one field of 250 KiB that is to be remembered", long_field(0x40, "x", 250 << 10)),
        ("several of them", long_field(0, "x", 60 << 10).repeat(4)),
    ];
    for (what, long) in cases {
        let mut peer = Peer::open(&site).await;
        // An entry that is larger than the table evicts the others; nothing else does.
        let remembered = [&first[..], &field(0x40, "content-type", "application/grpc"), &credential()].concat();
        peer.call(1, &remembered, &question).await;
        assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed, "{what}");

        let block = [&first, &long, &credential()[..]].concat();
        peer.write(&in_frames(3, 0, &block)).await;
        let refused = peer.find(|frame| frame.stream == 3).await;
        assert_eq!((refused.kind, refused.flags), (HEADERS, END_HEADERS | END), "{what}");
        assert_eq!(refused.field(":status"), Some("431"), "{what}");
        assert_eq!(peer.reset(3).await, 0, "{what}: the rest is not wanted");

        // The credential behind it is the newest entry.
        let block = [head(VERIFY), vec![0x80 | 62]].concat();
        peer.call(5, &block, &question).await;
        assert_eq!(peer.reply::<pb::VerifyResponse>(5).await.reason(), Reason::Malformed, "{what}");
        // So are the entries before it, unless the long field has evicted them.
        let block = [&first[..], &[0x80 | 64, 0x80 | 62]].concat();
        peer.send(HEADERS, END_HEADERS, 7, &block).await;
        if what.ends_with("remembered") {
            assert_eq!(peer.goaway().await, 9, "{what}: such an entry is gone");
        } else {
            peer.send(DATA, END, 7, &question).await;
            assert_eq!(peer.reply::<pb::VerifyResponse>(7).await.reason(), Reason::Malformed, "{what}");
        }
    }
}

#[tokio::test]
async fn headers_past_every_bound_end_the_connection() {
    let site = Site::in_memory().await;
    for long in [long_field(0, "x", 300 << 10), field(0, "x", &"y".repeat(200)).repeat(1_500)] {
        let mut peer = Peer::open(&site).await;
        let block = [head(VERIFY), long].concat();
        peer.write(&in_frames(1, 0, &block)).await;
        assert_eq!(peer.goaway().await, ENHANCE_YOUR_CALM);
    }
    // A block that ends within a field is invalid, however long that is.
    for long in [long_field(0, "x", 100 << 10), long_field(0, "x", 20 << 10)] {
        let mut peer = Peer::open(&site).await;
        let block = [head(VERIFY), long].concat();
        peer.write(&in_frames(1, 0, &block[..block.len() - 1])).await;
        assert_eq!(peer.goaway().await, 9);
    }
}
