//! Floods: a peer that makes endless work is stopped or held back, and nothing grows.

use keyward::grpc::LIMITS;
use keyward::grpc::pb::{self, Reason};
use prost::Message;

use crate::support::h2peer::*;
use crate::support::harness::{Site, ask};

const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;
const CANCEL: [u8; 4] = [0, 0, 0, 8];

/// Calls that last as long as their bodies: on the shared runtime, and on the core of the connection.
const ENDLESS: [&str; 2] =
    ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Watch"];

#[tokio::test]
async fn overhead_frames_are_bounded() {
    let site = Site::in_memory().await;
    let open = frame(HEADERS, END_HEADERS, 1, &head(ENDLESS[0]));
    let floods = [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, b"")),
        ("acks of SETTINGS", frame(SETTINGS, END, 0, b"")),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0; 5])),
        ("empty DATA", frame(DATA, 0, 1, b"")),
        ("DATA of padding", frame(DATA, PADDED, 1, &[2, 0, 0])),
        ("unknown frames", frame(0xbe, 0, 1, b"x")),
    ];
    for (what, flood) in floods {
        let mut peer = Peer::open(&site).await;
        peer.write(&open).await;
        // Its head would count as an answer after GOAWAY.
        peer.find(|frame| frame.kind == HEADERS && frame.stream == 1).await;
        // A few of them do no harm.
        peer.write(&flood.repeat(100)).await;
        peer.until_pong(1).await;
        let (mut reader, mut writer) = peer.split();
        // The first excess drains the connection, on which a call is under way. The second one closes it.
        let flood = flood.repeat(2 * LIMITS.overhead_frames_max as usize + 2);
        // The server may close before it has read all of it.
        let written = tokio::spawn(async move {
            writer.write(&flood).await;
            writer
        });
        assert_eq!(reader.goaway().await, ENHANCE_YOUR_CALM, "{what}");
        written.abort();
    }
}

/// What common clients send beside each call adds up to far more than a peer without calls may send.
#[tokio::test]
async fn frames_that_come_with_calls_are_no_flood() {
    let site = Site::in_memory().await;
    let (block, question) = (head_of(VERIFY, site.admin_secret()), body(&ask("nonsense")));
    let window = 1_u32.to_be_bytes();
    let with_a_call = [
        ("PING, as grpc-go and grpc-java", frame(PING, 0, 0, &[7; 8])),
        ("RST_STREAM of a stream that has ended, as grpc-core", frame(RST_STREAM, 0, 0, &CANCEL)),
        ("WINDOW_UPDATE of a stream that has ended, as HAProxy", frame(WINDOW_UPDATE, 0, 0, &window)),
    ];
    for (what, further) in with_a_call {
        let mut peer = Peer::with(&site, &[(4, 0x7fff_ffff)]).await;
        peer.window_update(0, 0x7000_0000).await;
        let mut stream = 1_u32;
        for _ in 0..(LIMITS.overhead_frames_max / 1_000 + 2) {
            let mut calls = vec![];
            let first = stream;
            for _ in 0..1_000 {
                calls.extend(frame(HEADERS, END_HEADERS, stream, &block));
                calls.extend(frame(DATA, END, stream, &question));
                let mut further = further.clone();
                if further[3] != PING {
                    further[5..9].copy_from_slice(&stream.to_be_bytes());
                }
                calls.extend(further);
                stream += 2;
            }
            peer.write(&calls).await;
            let mut answered = first;
            while answered < stream {
                let frame = peer.next().await.unwrap_or_else(|| panic!("{what}: cut at stream {answered}"));
                assert!(!matches!(frame.kind, GOAWAY | RST_STREAM), "{what}: {frame:?}");
                answered += if frame.ends() { 2 } else { 0 };
            }
        }
    }
}

/// grpc-java sends the rest of a cancelled request behind its RST_STREAM.
#[tokio::test]
async fn data_behind_a_reset_of_the_peer_is_no_flood_of_errors() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let (block, question) = (head_of(VERIFY, site.admin_secret()), body(&ask("nonsense")));
    let mut stream = 1_u32;
    for mark in 0..(2 * LIMITS.errors_max / 100) as u8 {
        let mut calls = vec![];
        for _ in 0..100 {
            calls.extend(frame(HEADERS, END_HEADERS, stream, &block));
            calls.extend(frame(RST_STREAM, 0, stream, &CANCEL));
            calls.extend(frame(DATA, END, stream, &question));
            stream += 2;
        }
        peer.write(&calls).await;
        for frame in peer.until_pong(mark).await {
            assert!(frame.kind != GOAWAY, "it is cut before stream {stream}");
            // STREAM_CLOSED (RFC 9113, section 5.1).
            assert!(frame.kind != RST_STREAM || frame.code() == 5, "{frame:?}");
        }
    }
    peer.call(stream, &block, &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(stream).await.reason(), Reason::Malformed);
}

/// A proxy's connection carries the calls of many clients: what one of them does ends no call of another.
#[tokio::test]
async fn calls_that_are_under_way_outlive_the_first_excess() {
    let site = Site::in_memory().await;
    let mut peer = Peer::open(&site).await;
    let (block, question) = (head_of(VERIFY, site.admin_secret()), body(&ask("nonsense")));
    peer.send(HEADERS, END_HEADERS, 1, &block).await;
    peer.write(&frame(PING, END, 0, &[7; 8]).repeat(LIMITS.overhead_frames_max as usize + 1)).await;
    let told = peer.find(|frame| frame.kind == GOAWAY).await;
    assert_eq!((told.code(), &told.payload[..4]), (ENHANCE_YOUR_CALM, &1_u32.to_be_bytes()[..]));
    peer.call(3, &block, &question).await;
    peer.send(DATA, END, 1, &question).await;
    assert_eq!(peer.reply::<pb::VerifyResponse>(1).await.reason(), Reason::Malformed);
    // The later call is not answered: GOAWAY told the peer to make it elsewhere.
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn resets_that_a_peer_provokes_are_bounded() {
    let site = Site::in_memory().await;
    for path in ENDLESS {
        let mut peer = Peer::open(&site).await;
        let mut stream = 1;
        let mut provoked = 0;
        // A valid call, and an error that makes the server reset it (MadeYouReset).
        let code = loop {
            peer.send(HEADERS, END_HEADERS, stream, &head(path)).await;
            peer.window_update(stream, 0).await;
            stream += 2;
            if let Some(end) = peer.until_reset_or_goaway().await {
                break end;
            }
            provoked += 1;
            assert!(provoked <= LIMITS.errors_max, "{path}");
        };
        assert_eq!((code, provoked), (ENHANCE_YOUR_CALM, LIMITS.errors_max), "{path}");
    }
}

#[tokio::test]
async fn header_blocks_without_end_are_bounded() {
    let site = Site::in_memory().await;
    let long = field(0, "x", &"y".repeat(200)).repeat(70);
    for (what, part) in [("empty", &b""[..]), ("long", &long), ("small", b"\x82")] {
        let mut peer = Peer::open(&site).await;
        peer.send(HEADERS, 0, 1, part).await;
        let mut flood = vec![];
        for _ in 0..100 {
            flood.extend(frame(CONTINUATION, 0, 1, part));
        }
        let (mut reader, mut writer) = peer.split();
        let written = tokio::spawn(async move { writer.write(&flood).await });
        assert_eq!(reader.goaway().await, ENHANCE_YOUR_CALM, "{what}");
        written.abort();
    }
}

#[tokio::test]
async fn concurrent_calls_are_bounded() {
    let site = Site::in_memory().await;
    for path in ENDLESS {
        let mut peer = Peer::open(&site).await;
        let places = LIMITS.streams_max as u32;
        for at in 0..places {
            // Without a credential there would be fewer.
            peer.send(HEADERS, END_HEADERS, 2 * at + 1, &head_of(path, site.admin_secret())).await;
        }
        let further = 2 * places + 1;
        for stream in [further, further + 2] {
            peer.call(stream, &head_of(VERIFY, site.admin_secret()), &body(&ask("nonsense"))).await;
            assert_eq!(peer.reset(stream).await, REFUSED_STREAM);
        }
        // A slot that becomes free can be taken.
        peer.send(RST_STREAM, 0, 1, &CANCEL).await;
        for stream in (further + 4..).step_by(2) {
            peer.call(stream, &head_of(VERIFY, site.admin_secret()), &body(&ask("nonsense"))).await;
            let first = peer.find(|frame| frame.stream == stream).await;
            if first.kind == HEADERS {
                break;
            }
            assert_eq!(first.code(), REFUSED_STREAM, "the call that was given up has not ended yet");
        }
    }
}

/// Rapid reset (CVE-2023-44487): cancelled calls count until they have ended, and a caller on another
/// connection is answered meanwhile.
#[tokio::test]
async fn rapidly_reset_calls_gain_nothing() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let issued = admin.issue("Key", &[]).await;
    let mut peer = Peer::open(&site).await;
    for round in 0..20 {
        let mut flood = vec![];
        for at in 0..300 {
            let stream = (round * 300 + at) * 2 + 1;
            flood.extend(frame(HEADERS, END_HEADERS, stream, &head(ENDLESS[at as usize % 2])));
            flood.extend(frame(RST_STREAM, 0, stream, &CANCEL));
        }
        peer.write(&flood).await;
        assert_eq!(admin.reason(&issued.secret).await, Reason::Ok);
        for frame in peer.until_pong(1).await {
            assert!(matches!(frame.kind, RST_STREAM | SETTINGS | HEADERS | WINDOW_UPDATE | DATA), "{frame:?}");
        }
    }
    let stream = 20 * 300 * 2 + 1;
    for stream in (stream..).step_by(2) {
        peer.call(stream, &head_of(VERIFY, site.admin_secret()), &body(&ask(&issued.secret))).await;
        let first = peer.find(|frame| frame.stream == stream).await;
        if first.kind == HEADERS {
            break;
        }
        assert_eq!(first.code(), REFUSED_STREAM);
    }
}

/// A peer that sends and never reads: the server stops reading too, and goes on when the peer reads.
#[tokio::test]
async fn a_peer_that_does_not_read_is_not_read_either() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let peer = Peer::with(&site, &[(4, 0x7fff_ffff)]).await;
    let (mut reader, mut writer) = peer.split();
    writer.window_update(0, 0x7000_0000).await;
    let (block, question) = (head_of(VERIFY, site.admin_secret()), body(&ask(&issued.secret)));
    let mut stream = 1_u32;
    // Until more waits than the kernel buffers.
    let held = loop {
        let mut calls = vec![];
        for _ in 0..100 {
            calls.extend(frame(HEADERS, END_HEADERS, stream, &block));
            calls.extend(frame(DATA, END, stream, &question));
            stream += 2;
        }
        let writing = tokio::time::timeout(std::time::Duration::from_secs(2), writer.write_whole(&calls));
        match writing.await {
            Ok(()) => assert!(stream < 2_000_000, "it reads without end"),
            Err(_) => break stream,
        }
    };
    // Everything is answered in the end.
    let mut answered = 0;
    while answered < held / 2 - 100 {
        let frame = reader.find(|frame| frame.ends()).await;
        assert_eq!(frame.kind, HEADERS);
        answered += 1;
    }
}

/// A peer that opens no window makes replies wait. Beyond some megabytes no more are made, on either path:
/// calls wait, and are answered when the peer reads.
#[tokio::test]
async fn replies_that_wait_for_a_window_are_bounded() {
    const BOUND: usize = 4 * 1024 * 1024;
    let site = Site::in_memory().await;
    let key =
        pb::CreateKeyRequest { owner: "o".repeat(60), ..crate::support::harness::new_key(&"n".repeat(60), &["a"]) };
    let issued = site.admin().issued(key).await;
    let at_once = pb::BatchVerifyRequest { requests: vec![ask(&issued.secret); 1_000] };
    let mut as_calls = at_once.clone();
    as_calls.requests[0].explain = true;
    let block = head_of("/keyward.v1.KeyVerify/BatchVerify", site.admin_secret());
    // A call ends when the last of its reply is sent, and then the next one begins.
    for (way, batch, fills) in [("at once", at_once, true), ("as calls", as_calls, false)] {
        let reply = site.admin().ask_all(batch.clone()).await.unwrap().encoded_len();
        let most = BOUND / reply + 1;
        let least = if fills { most - 1 } else { 1 };
        // The requests that wait fit into the server's window.
        let calls = if fills { most as u32 + 6 } else { 12 };
        let mut peer = Peer::with(&site, &[(4, 0)]).await;
        let batch = body(&batch);
        let mut begun = 0;
        let heads = |frames: Vec<Frame>| frames.iter().filter(|frame| frame.kind == HEADERS).count();
        for call in 0..calls {
            let stream = 2 * call + 1;
            peer.send(HEADERS, END_HEADERS, stream, &block).await;
            let mut chunks = batch.chunks(16_384).peekable();
            while let Some(chunk) = chunks.next() {
                peer.send(DATA, if chunks.peek().is_none() { END } else { 0 }, stream, chunk).await;
            }
            // As many as there is room for are answered.
            begun += heads(peer.until_pong(1).await);
            while begun < least.min(call as usize + 1) {
                begun += heads(peer.until_pong(1).await);
            }
        }
        for mark in 2..50 {
            begun += heads(peer.until_pong(mark).await);
        }
        assert!(begun <= most, "{way}: {begun} replies of {reply} bytes");

        peer.settings(&[(4, 0x7fff_ffff)]).await;
        peer.window_update(0, 0x7000_0000).await;
        let mut ended = 0;
        while ended < calls {
            let frame = peer.next().await.unwrap();
            assert_ne!(frame.kind, RST_STREAM, "{way}");
            ended += u32::from(frame.ends());
        }
    }
}
