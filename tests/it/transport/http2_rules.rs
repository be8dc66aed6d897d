//! The rules of HTTP/2, one by one: the peer is told which it broke, and only what must end ends.

use keyward::grpc::pb::{self, Reason};

use crate::support::h2peer::*;
use crate::support::harness::{Site, ask};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;

/// A call that is never answered, because its body never ends.
fn endless() -> Vec<u8> {
    head("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
}

#[tokio::test]
async fn an_error_of_the_connection_ends_it_with_its_code() {
    let site = Site::in_memory().await;
    let open = frame(HEADERS, END_HEADERS, 1, &endless());
    let then = |first: &[u8], second: Vec<u8>| [first, &second].concat();
    let settings = |name, value| frame(SETTINGS, 0, 0, &settings_payload(&[(name, value)]));
    let cases = [
        ("DATA of the connection", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("DATA of no stream", frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        ("DATA of a server's stream", then(&open, frame(DATA, 0, 2, b"x")), PROTOCOL_ERROR),
        ("padding longer than DATA", then(&open, frame(DATA, PADDED, 1, b"\x03ab")), PROTOCOL_ERROR),
        ("padding without a length", then(&open, frame(DATA, PADDED, 1, b"")), FRAME_SIZE_ERROR),
        ("HEADERS of the connection", frame(HEADERS, END_HEADERS, 0, &endless()), PROTOCOL_ERROR),
        ("HEADERS of a server's stream", frame(HEADERS, END_HEADERS, 2, &endless()), PROTOCOL_ERROR),
        ("padding longer than HEADERS", frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09\x82"), PROTOCOL_ERROR),
        ("half a priority", frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, &[0; 4]), FRAME_SIZE_ERROR),
        ("a stream before the last", then(&frame(HEADERS, END_HEADERS, 3, &endless()), open.clone()), STREAM_CLOSED),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &endless()), PROTOCOL_ERROR),
        ("PING within a block", then(&frame(HEADERS, 0, 1, &endless()), frame(PING, 0, 0, &[0; 8])), PROTOCOL_ERROR),
        (
            "another stream within a block",
            then(&frame(HEADERS, 0, 1, &endless()), frame(CONTINUATION, END_HEADERS, 3, b"")),
            PROTOCOL_ERROR,
        ),
        ("a block that cannot be read", frame(HEADERS, END_HEADERS, 1, &[0x80]), COMPRESSION_ERROR),
        ("RST_STREAM of the connection", frame(RST_STREAM, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("RST_STREAM of no stream", frame(RST_STREAM, 0, 1, &[0; 4]), PROTOCOL_ERROR),
        ("a short RST_STREAM", then(&open, frame(RST_STREAM, 0, 1, &[0; 3])), FRAME_SIZE_ERROR),
        ("SETTINGS of a stream", frame(SETTINGS, 0, 1, b""), PROTOCOL_ERROR),
        ("half a setting", frame(SETTINGS, 0, 0, &[0; 5]), FRAME_SIZE_ERROR),
        ("SETTINGS that say and ack", frame(SETTINGS, END, 0, &[0; 6]), FRAME_SIZE_ERROR),
        ("ENABLE_PUSH of 2", settings(2, 2), PROTOCOL_ERROR),
        ("INITIAL_WINDOW_SIZE of 2^31", settings(4, 1 << 31), FLOW_CONTROL_ERROR),
        ("MAX_FRAME_SIZE below its bounds", settings(5, 16_383), PROTOCOL_ERROR),
        ("MAX_FRAME_SIZE beyond its bounds", settings(5, 1 << 24), PROTOCOL_ERROR),
        ("PING of a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("a short PING", frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        ("GOAWAY of a stream", frame(GOAWAY, 0, 1, &[0; 8]), PROTOCOL_ERROR),
        ("a short GOAWAY", frame(GOAWAY, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        ("a window that grows by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("a window beyond 2^31-1", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), FLOW_CONTROL_ERROR),
        ("the window of no stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]), PROTOCOL_ERROR),
        ("a short WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), FRAME_SIZE_ERROR),
        ("PRIORITY of the connection", frame(PRIORITY, 0, 0, &[0; 5]), PROTOCOL_ERROR),
        ("a short PRIORITY of no stream", frame(PRIORITY, 0, 1, &[0; 4]), FRAME_SIZE_ERROR),
        ("PUSH_PROMISE", frame(5, END_HEADERS, 1, &[0; 4]), PROTOCOL_ERROR),
        ("a frame that is too long", frame(DATA, 0, 1, &[0; 16_385]), FRAME_SIZE_ERROR),
    ];
    for (what, bytes, code) in cases {
        let mut peer = Peer::open(&site).await;
        peer.write(&bytes).await;
        assert_eq!(peer.goaway().await, code, "{what}");
    }
}

#[tokio::test]
async fn a_connection_begins_with_the_preface_and_settings() {
    let site = Site::in_memory().await;
    let begins = [
        b"GET / HTTP/1.1\r\nhost: keyward\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nXX".to_vec(),
        [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(),
        [PREFACE, &frame(SETTINGS, END, 0, b"")].concat(),
    ];
    for bytes in begins {
        let mut peer = Peer::silent(&site).await;
        peer.write(&bytes).await;
        assert_eq!(peer.goaway().await, PROTOCOL_ERROR, "{}", String::from_utf8_lossy(&bytes));
    }
    // The same in pieces.
    let mut peer = Peer::silent(&site).await;
    for byte in [PREFACE, &frame(SETTINGS, 0, 0, b"")].concat() {
        peer.write(&[byte]).await;
    }
    peer.until_pong(1).await;
}

#[tokio::test]
async fn an_error_of_a_stream_ends_it_alone() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let mut stream = 1;
    let extra = |name: &str, value: &str| [endless(), field(0, name, value)].concat();
    let cases = [
        ("a capital", HEADERS, END_HEADERS, extra("X", "x"), PROTOCOL_ERROR),
        ("no path", HEADERS, END_HEADERS, vec![0x83, 0x86], PROTOCOL_ERROR),
        ("a pseudo-header at the end", HEADERS, END_HEADERS, extra(":authority", "x"), PROTOCOL_ERROR),
        ("connection", HEADERS, END_HEADERS, extra("connection", "close"), PROTOCOL_ERROR),
        ("te", HEADERS, END_HEADERS, extra("te", "gzip"), PROTOCOL_ERROR),
        ("a path that is none", HEADERS, END_HEADERS, head("no path"), PROTOCOL_ERROR),
    ];
    for (what, kind, flags, block, code) in cases {
        peer.send(kind, flags, stream, &block).await;
        assert_eq!(peer.reset(stream).await, code, "{what}");
        // Frames that were on their way are no error.
        peer.send(DATA, END, stream, b"x").await;
        stream += 2;
    }
    let broken = [
        ("trailers that do not end it", HEADERS, END_HEADERS, field(0, "x", "y"), PROTOCOL_ERROR),
        ("trailers with a pseudo-header", HEADERS, END_HEADERS | END, vec![0x84], PROTOCOL_ERROR),
        ("a window that grows by nothing", WINDOW_UPDATE, 0, vec![0; 4], PROTOCOL_ERROR),
        ("a window beyond 2^31-1", WINDOW_UPDATE, 0, vec![0x7f, 0xff, 0xff, 0xff], FLOW_CONTROL_ERROR),
        ("a short PRIORITY", PRIORITY, 0, vec![0; 4], FRAME_SIZE_ERROR),
    ];
    for (what, kind, flags, payload, code) in broken {
        // For a call on the slow path, and for one that waits for its body.
        for block in [endless(), head_of(VERIFY, site.admin_secret())] {
            peer.send(HEADERS, END_HEADERS, stream, &block).await;
            peer.send(kind, flags, stream, &payload).await;
            assert_eq!(peer.reset(stream).await, code, "{what}");
            stream += 2;
        }
    }
    // DATA and HEADERS after the end of the request, before the reply.
    let watch = head("/grpc.health.v1.Health/Watch");
    for (kind, flags, payload) in [(DATA, 0, b"x".to_vec()), (HEADERS, END_HEADERS | END, field(0, "x", "y"))] {
        peer.call(stream, &watch, &[0; 5]).await;
        peer.find(|frame| frame.stream == stream && frame.kind == DATA).await;
        peer.send(kind, flags, stream, &payload).await;
        assert_eq!(peer.reset(stream).await, STREAM_CLOSED);
        stream += 2;
    }
    peer.call(stream, &head_of(VERIFY, site.admin_secret()), &body(&ask("nonsense"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
    // DATA of a call that was answered.
    peer.send(DATA, 0, stream, b"x").await;
    assert_eq!(peer.reset(stream).await, STREAM_CLOSED);
    peer.until_pong(1).await;
}

#[tokio::test]
async fn headers_that_are_too_long_are_refused_and_the_next_are_read() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let secret = site.admin_secret();
    // The refused block inserts the credential into the table.
    let long = field(0, "x", &"y".repeat(200)).repeat(100);
    let block = [
        &[0x83, 0x86][..],
        &field(0, ":path", VERIFY),
        &long,
        &field(0x40, "authorization", &format!("Bearer {secret}")),
    ]
    .concat();
    peer.send(HEADERS, 0, 1, &block[..16_000]).await;
    peer.send(CONTINUATION, END_HEADERS, 1, &block[16_000..]).await;
    let refused = peer.find(|frame| frame.stream == 1).await;
    assert_eq!((refused.kind, refused.flags), (HEADERS, END_HEADERS | END));
    assert_eq!(refused.field(":status"), Some("431"));
    assert_eq!(peer.reset(1).await, 0, "the rest is not wanted");
    let block = [head(VERIFY), vec![0x80 | 62]].concat();
    peer.call(3, &block, &body(&ask("nonsense"))).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(3).await.reason(), Reason::Malformed);
}
