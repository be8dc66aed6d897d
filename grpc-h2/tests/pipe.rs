//! A connection over a pipe in memory.

use std::convert::Infallible;
use std::future::{Ready, pending, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use grpc_h2::{
    Budget, CallKind, CloseReason, Connection, Handlers, Incoming, Limits, NoFastPath, NoObserver, Runtimes,
    SharedLimits,
};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tower_service::Service;

const LIMIT: Duration = Duration::from_secs(10);

/// The preface, SETTINGS, and HEADERS of stream 1 that end it: POST /a/b over http.
const CALL: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
    \0\0\x1d\x01\x05\0\0\0\x01\x83\x86\x44\x04/a/b\x41\x01x\x5f\x10application/grpc";

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

/// A stream that writes nothing before it is flushed, as one that encrypts may do.
struct Buffered {
    io: DuplexStream,
    written: Vec<u8>,
}

impl AsyncRead for Buffered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Buffered {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, written } = &mut *self;
        while !written.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, written)? {
                Poll::Ready(bytes) => drop(written.drain(..bytes)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Pin::new(io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.as_mut().poll_flush(cx)? {
            Poll::Ready(()) => Pin::new(&mut self.io).poll_shutdown(cx),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn connection<T>(io: T) -> Connection<T, Answers, NoFastPath, ()> {
    let here = Handle::current();
    let handlers = Handlers {
        fast_path: NoFastPath,
        service: Answers,
        call_kind: |_| CallKind::default(),
        runtimes: Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here },
        extension: (),
        budget: Budget::new(1 << 20, 1 << 20),
        limits: SharedLimits::default(),
        observer: NoObserver,
    };
    Connection::new(io, handlers)
}

#[tokio::test]
async fn replies_are_flushed_even_if_the_pipe_is_narrow() {
    for pipe_bytes in [1, 7, 64 * 1024] {
        let (io, mut peer) = tokio::io::duplex(pipe_bytes);
        let mut connection = connection(Buffered { io, written: vec![] });
        let answered = async {
            peer.write_all(CALL).await.unwrap();
            let mut received = vec![];
            while !received.windows(9).any(|bytes| bytes == b"the reply") {
                assert_ne!(peer.read_buf(&mut received).await.unwrap(), 0, "{received:?}");
            }
        };
        tokio::select! {
            ended = connection.serve(pending(), false) => panic!("the connection has ended: {ended:?}"),
            answered = timeout(LIMIT, answered) => answered.expect("no reply comes"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_has_a_time_for_the_preface_and_keepalive_watches_it_afterwards() {
    let Limits { preface_timeout, keepalive_interval, keepalive_timeout, .. } = Limits::DEFAULT;
    let keepalive = keepalive_interval + keepalive_timeout;
    for (sent, lasts) in [(&CALL[..0], preface_timeout), (&CALL[..23], preface_timeout), (&CALL[..24], keepalive)] {
        let (io, mut peer) = tokio::io::duplex(64 * 1024);
        peer.write_all(sent).await.unwrap();
        let began = tokio::time::Instant::now();
        let ended = connection(io).serve(pending(), false).await;
        // The timer's resolution is a millisecond.
        assert_eq!(began.elapsed().as_secs(), lasts.as_secs(), "{} bytes: {ended:?}", sent.len());
        assert_eq!(matches!(ended, Err(CloseReason::PrefaceTimeout)), lasts == preface_timeout, "{ended:?}");
        assert_eq!(matches!(ended, Err(CloseReason::KeepaliveTimeout)), lasts == keepalive, "{ended:?}");
    }
}
