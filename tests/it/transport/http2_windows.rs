//! Windows: nothing is sent beyond them, and nothing is lost at them.

use keyward::grpc::pb::{self, Reason};

use crate::support::h2peer::*;
use crate::support::harness::{Site, ask, new_key};

const INITIAL_WINDOW_SIZE: u16 = 4;
const FLOW_CONTROL_ERROR: u32 = 3;
const BATCH: &str = "/keyward.v1.KeyVerify/BatchVerify";
/// The server's windows, in bytes.
const WINDOW: usize = 1024 * 1024;

/// For the fast path and for the slow path.
fn questions() -> [Vec<u8>; 2] {
    [body(&ask("nonsense")), body(&pb::VerifyRequest { explain: true, ..ask("nonsense") })]
}

#[tokio::test]
async fn a_reply_comes_byte_by_byte_if_the_window_is_one_byte() {
    let site = Site::in_memory().await;
    let mut peer = Peer::with(&site, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    for (stream, question) in [1, 3].into_iter().zip(questions()) {
        peer.call(stream, &head_of(VERIFY, site.admin_secret()), &question).await;
        let head = peer.find(|frame| frame.stream == stream).await;
        assert_eq!((head.kind, head.ends()), (HEADERS, false));
        let mut reply = vec![];
        loop {
            assert_eq!(peer.until_pong(1).await, [], "nothing more comes by itself");
            peer.window_update(stream, 1).await;
            let data = peer.find(|frame| frame.stream == stream).await;
            assert_eq!((data.kind, data.payload.len()), (DATA, 1));
            reply.extend(data.payload);
            let length = reply.get(1..5).map(|length| u32::from_be_bytes(length.try_into().unwrap()) as usize);
            if length.is_some_and(|length| reply.len() == 5 + length) {
                break;
            }
        }
        // Trailers need no window.
        let trailers = peer.find(|frame| frame.stream == stream).await;
        assert_eq!((trailers.kind, trailers.ends()), (HEADERS, true));
        assert_eq!(message::<pb::VerifyResponse>(&reply).reason(), Reason::Malformed);
    }
}

#[tokio::test]
async fn the_window_of_the_connection_holds_back_all_streams_and_lets_each_go_on() {
    let site = Site::in_memory().await;
    let mut peer = Peer::with(&site, &[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    let [short, long] = questions();
    // They use up the connection's 65,535 bytes.
    let batch = pb::BatchVerifyRequest { requests: vec![ask("nonsense"); 1_000] };
    let block = head_of(BATCH, site.admin_secret());
    for stream in (1..20).step_by(2) {
        peer.call(stream, &block, &body(&batch)).await;
    }
    let (mut bytes, mut ended) = (0, vec![]);
    while bytes < 65_535 {
        let frame = peer.next().await.unwrap();
        if frame.kind == DATA {
            bytes += frame.payload.len();
        }
        ended.extend(frame.ends().then_some(frame.stream));
    }
    assert_eq!(bytes, 65_535);
    peer.call(21, &head_of(VERIFY, site.admin_secret()), &short).await;
    peer.call(23, &head_of(VERIFY, site.admin_secret()), &long).await;
    let held = peer.until_pong(1).await;
    assert!(held.iter().all(|frame| frame.kind != DATA), "{held:?}");
    peer.window_update(0, 10_000_000).await;
    while ended.len() < 12 {
        ended.push(peer.find(Frame::ends).await.stream);
    }
    ended.sort_unstable();
    assert_eq!(ended, (1..24).step_by(2).collect::<Vec<_>>());
}

#[tokio::test]
async fn settings_move_the_windows_of_streams_that_there_are_below_zero_too() {
    let site = Site::in_memory().await;
    let mut peer = Peer::with(&site, &[(INITIAL_WINDOW_SIZE, 4)]).await;
    for (stream, question) in [1, 3].into_iter().zip(questions()) {
        peer.settings(&[(INITIAL_WINDOW_SIZE, 4)]).await;
        peer.call(stream, &head_of(VERIFY, site.admin_secret()), &question).await;
        let first = peer.find(|frame| frame.stream == stream && frame.kind == DATA).await;
        assert_eq!(first.payload.len(), 4);
        // Four bytes were sent, so the window is now minus four.
        peer.settings(&[(INITIAL_WINDOW_SIZE, 0)]).await;
        peer.window_update(stream, 4).await;
        let held = peer.until_pong(1).await;
        assert!(held.iter().all(|frame| frame.kind != DATA), "{held:?}");
        peer.window_update(stream, 2).await;
        let second = peer.find(|frame| frame.stream == stream).await;
        assert_eq!(second.payload.len(), 2);
        peer.settings(&[(INITIAL_WINDOW_SIZE, 1_000)]).await;
        let mut reply = [first.payload, second.payload].concat();
        reply.extend(peer.find(|frame| frame.stream == stream).await.payload);
        assert_eq!(message::<pb::VerifyResponse>(&reply).reason(), Reason::Malformed);
    }
    // Settings must not move a window beyond its bound either: here that of a call whose body never comes.
    peer.settings(&[(INITIAL_WINDOW_SIZE, 0)]).await;
    peer.send(HEADERS, END_HEADERS, 5, &head_of(VERIFY, site.admin_secret())).await;
    peer.window_update(5, 1).await;
    peer.settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    assert_eq!(peer.goaway().await, FLOW_CONTROL_ERROR);
}

#[tokio::test]
async fn a_batch_whose_reply_is_larger_than_the_windows_arrives_whole() {
    let site = Site::in_memory().await;
    let key = pb::CreateKeyRequest { owner: "o".repeat(60), ..new_key(&"n".repeat(60), &["a"]) };
    let issued = site.admin().issued(key).await;
    let mut peer = Peer::open(&site).await;
    let batch = pb::BatchVerifyRequest { requests: vec![ask(&issued.secret); 1_000] };
    let mut explained = batch.clone();
    explained.requests[0].explain = true;
    for (stream, batch) in [(1, batch), (3, explained)] {
        peer.send(HEADERS, END_HEADERS, stream, &head_of(BATCH, site.admin_secret())).await;
        let request = body(&batch);
        let mut chunks = request.chunks(10_000).peekable();
        while let Some(chunk) = chunks.next() {
            peer.send(DATA, if chunks.peek().is_none() { END } else { 0 }, stream, chunk).await;
        }
        let mut reply = vec![];
        loop {
            let frame = peer.find(|frame| frame.stream == stream).await;
            if frame.ends() {
                break;
            }
            if frame.kind == DATA {
                assert!(frame.payload.len() <= 16_384);
                peer.window_update(0, frame.payload.len() as u32).await;
                peer.window_update(stream, frame.payload.len() as u32).await;
                reply.extend(frame.payload);
            }
        }
        assert!(reply.len() > 65_535, "{}", reply.len());
        let reply: pb::BatchVerifyResponse = message(&reply);
        assert_eq!(reply.results.len(), 1_000);
    }
}

/// Each byte that was sent is given back some time, however the call ends.
#[tokio::test]
async fn windows_are_given_back_however_calls_end() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let mut peer = Peer::open(&site).await;
    let block = head_of(VERIFY, site.admin_secret());
    let mut window = 65_535_i64;
    let mut used = 0;
    let filler = vec![0; 16_384];
    let mut stream = 1;
    while used < 6 * WINDOW as i64 {
        for way in 0..6 {
            peer.send(HEADERS, END_HEADERS, stream, &block).await;
            let mut bytes = filler.len() as i64;
            match way {
                // Cancelled half way, without and with padding.
                0 => peer.send(DATA, 0, stream, &filler).await,
                1 => peer.send(DATA, PADDED, stream, &[&[200][..], &filler[1..]].concat()).await,
                // Answered: on the fast path, on it from pieces, and on the slow path.
                2 => {
                    bytes = body(&ask(&issued.secret)).len() as i64;
                    peer.send(DATA, END, stream, &body(&ask(&issued.secret))).await;
                }
                3 => {
                    let long = body(&ask(&"x".repeat(16_000)));
                    bytes = long.len() as i64;
                    peer.send(DATA, 0, stream, &long[..9_000]).await;
                    peer.send(DATA, END, stream, &long[9_000..]).await;
                }
                4 => {
                    let long = body(&pb::VerifyRequest { explain: true, ..ask(&"x".repeat(16_000)) });
                    bytes = long.len() as i64;
                    peer.send(DATA, END, stream, &long).await;
                }
                // Too late: the stream is gone.
                _ => {
                    peer.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
                    peer.send(DATA, END, stream, &filler).await;
                }
            }
            if way < 2 {
                peer.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
            }
            used += bytes;
            window -= bytes;
            stream += 2;
        }
        for frame in peer.until_pong(1).await {
            assert_ne!(frame.kind, GOAWAY);
            if frame.kind == WINDOW_UPDATE && frame.stream == 0 {
                window += i64::from(u32::from_be_bytes(frame.payload.try_into().unwrap()));
            }
        }
        peer.window_update(0, 1_000_000).await;
        assert!(window >= WINDOW as i64 / 2 - 3 * 16_384 && window <= WINDOW as i64, "{window} after {used}");
    }
}
