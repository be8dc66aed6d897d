//! What an observer is told, and when.

use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tower_service::Service;

use super::*;
use crate::{Connection, Handlers, Incoming, Runtimes, Shutdown};

fn reset(stream: u32, code: u32) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_head(&mut bytes, 4, kind::RST_STREAM, 0, stream);
    bytes.extend(code.to_be_bytes());
    bytes
}

/// A call that is reset for an error of the peer.
fn in_error(stream: u32) -> Vec<u8> {
    let mut bytes = head(stream, "/long");
    frame::put_window_update(&mut bytes, stream, 0);
    bytes
}

fn ping() -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_ping(&mut bytes, false, &[7; 8]);
    bytes
}

fn goaway(code: u32) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_head(&mut bytes, 8, kind::GOAWAY, 0, 0);
    bytes.extend([0; 4]);
    bytes.extend(code.to_be_bytes());
    bytes
}

/// A case: limits, what the peer sends, and what the observer is told.
type Case = (fn(&mut Limits), Vec<u8>, &'static [&'static str]);

#[test]
fn an_observer_is_told_of_what_is_rare() {
    let twice = |frames: Vec<u8>| frames.repeat(2);
    let whole = |stream: u32| {
        let mut call = head(stream, "/");
        frame::put_data(&mut call, stream, true, b"x");
        call
    };
    let cases: [Case; 11] = [
        (|_| {}, [whole(1), ping()].concat(), &[]),
        (|_| {}, in_error(1), &["reset sent: Protocol"]),
        (|_| {}, [head(1, "/"), reset(1, 8)].concat(), &["reset received: 8"]),
        (|_| {}, [head(1, "/"), reset(1, 0xffff_ffff)].concat(), &["reset received: 4294967295"]),
        // What comes behind a reset of the peer.
        (
            |_| {},
            [head(1, "/"), reset(1, 8), data(1, 0, b"x")].concat(),
            &["reset received: 8", "reset sent: StreamClosed"],
        ),
        (
            |limits| limits.streams_max = 1,
            [head(1, "/"), head(3, "/")].concat(),
            &["refused: TooManyStreams", "reset sent: RefusedStream"],
        ),
        (
            |limits| (limits.stranger_calls_max, limits.stranger_refusals_max) = (0, 1),
            [head(1, "/open"), head(3, "/open")].concat(),
            &["refused: TooManyRefusals", "reset sent: RefusedStream"],
        ),
        (
            |limits| limits.overhead_frames_max = 2,
            twice(ping()),
            &["flooded: OverheadFrames", "goaway sent: EnhanceYourCalm"],
        ),
        (
            |limits| limits.errors_max = 0,
            in_error(1),
            &["flooded: Errors", "goaway sent: EnhanceYourCalm", "reset sent: Protocol"],
        ),
        (|_| {}, goaway(11), &["goaway received: 11", "goaway sent: NoError"]),
        (|_| {}, data(1, 0, b"x"), &["goaway sent: Protocol"]),
    ];
    for (set, bytes, expected) in cases {
        let mut limits = Limits::DEFAULT;
        set(&mut limits);
        let (mut conn, _) = open_within(limits);
        let notes = conn.observer.clone();
        assert_eq!(notes.take(), ["opened"]);
        let _closes = receive(&mut conn, &bytes);
        assert_eq!(notes.take(), expected);
    }
}

#[test]
fn a_flood_that_goes_on_is_told_once() {
    let (mut conn, _) = open_within(Limits { overhead_frames_max: 2, ..LIMITS });
    let notes = conn.observer.clone();
    receive(&mut conn, &ping().repeat(2)).unwrap();
    assert_eq!(notes.take()[1..], ["flooded: OverheadFrames", "goaway sent: EnhanceYourCalm"]);
    receive(&mut conn, &ping().repeat(3)).unwrap_err();
    assert_eq!(notes.take(), ["goaway sent: EnhanceYourCalm"]);
}

#[derive(Clone)]
struct Answers;

impl Service<Request<Incoming>> for Answers {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Incoming>) -> Self::Future {
        ready(Ok(Response::new("the reply".to_owned())))
    }
}

fn connection<T>(io: T, notes: &Notes) -> Connection<T, Answers, Echo, (), Notes> {
    let here = Handle::current();
    let handlers = Handlers {
        fast_path: Echo,
        service: Answers,
        call_kind: |_| CallKind::default(),
        runtimes: Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here },
        extension: (),
        budget: roomy(),
        limits: SharedLimits::default(),
        observer: notes.clone(),
    };
    Connection::new(io, handlers)
}

/// Opened first, closed last and once, with the reason; and the bytes between are those of both ends.
#[tokio::test(start_paused = true)]
async fn an_observer_is_told_of_the_whole_life_of_a_connection() {
    let mut hello = PREFACE.to_vec();
    frame::put_settings(&mut hello, &[]);
    let mut call = [hello.clone(), head(1, "/")].concat();
    frame::put_data(&mut call, 1, true, b"x");
    let no_http2 = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    for (sent, ends, expected) in [
        (vec![], true, "closed"),
        (call, true, "closed"),
        (vec![], false, "closed: no connection preface has come"),
        (hello, false, "closed: nothing was heard for too long"),
        (no_http2, true, "closed: this is no HTTP/2 (Protocol)"),
    ] {
        let (notes, (io, mut peer)) = (Notes::default(), tokio::io::duplex(64 * 1024));
        peer.write_all(&sent).await.unwrap();
        if ends {
            peer.shutdown().await.unwrap();
        }
        let mut connection = connection(io, &notes);
        drop(connection.serve(pending(), false).await);
        drop(connection);
        let mut received = vec![];
        peer.read_to_end(&mut received).await.unwrap();
        let notes = notes.take();
        assert_eq!((&*notes[0], notes.last().unwrap().as_str()), ("opened", expected));
        let counts = notes.iter().filter_map(|note| note.strip_prefix("transferred: ")?.split_once(' '));
        let counts = counts.map(|(read, written)| (read.parse().unwrap(), written.parse().unwrap()));
        let total = counts.fold((0, 0), |(read, written), count: (usize, usize)| (read + count.0, written + count.1));
        assert_eq!(total, (sent.len(), received.len()), "{notes:?}");
        assert_eq!(notes.iter().filter(|note| note.starts_with("closed")).count(), 1, "{notes:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_dropped_or_evicted_is_told_as_closed() {
    let notes = Notes::default();
    drop(connection(tokio::io::duplex(64).0, &notes));
    assert_eq!(notes.take(), ["opened", "closed"]);
    let (io, _peer) = tokio::io::duplex(1_024);
    connection(io, &notes).serve(ready(Shutdown::Now), false).await.unwrap_err();
    let told = notes.take();
    assert_eq!(told[..2], ["opened", "goaway sent: NoError"]);
    assert_eq!(told.last().unwrap(), "closed: another connection needs its place");
}
