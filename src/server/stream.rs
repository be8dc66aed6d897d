//! Accepted connections. The only place that knows the kinds of streams.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::slots::{CredentialMark, Slot};

/// A stream of any kind, on the current runtime.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Does the same with a stream of any kind.
macro_rules! with_stream {
    ($stream:expr, $io:ident => $does:expr) => {
        match $stream {
            Stream::Tcp($io) => $does,
            Stream::Unix($io) => $does,
        }
    };
}

/// A stream that belongs to no runtime.
#[derive(Debug)]
enum DetachedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Stream {
    fn detach(self) -> io::Result<DetachedStream> {
        Ok(match self {
            Self::Tcp(stream) => DetachedStream::Tcp(stream.into_std()?),
            Self::Unix(stream) => DetachedStream::Unix(stream.into_std()?),
        })
    }

    fn attach(detached: DetachedStream) -> io::Result<Self> {
        Ok(match detached {
            DetachedStream::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream)?),
            DetachedStream::Unix(stream) => Self::Unix(UnixStream::from_std(stream)?),
        })
    }

    /// The user at the other end, if that is on this machine.
    pub(super) fn uid(&self) -> Option<u32> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(stream) => stream.peer_cred().ok().map(|peer| peer.uid()),
        }
    }

    fn peer(&self) -> Peer {
        match self {
            Self::Tcp(stream) => Peer::Tcp(stream.peer_addr().ok()),
            Self::Unix(_) => Peer::Unix,
        }
    }
}

/// Where a call comes from.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    /// From an address.
    Tcp(Option<SocketAddr>),
    /// From this machine, over a Unix socket.
    Unix,
}

impl Peer {
    /// The address, if there is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(addr) => addr.map(|addr| addr.ip().to_canonical()),
            Self::Unix => None,
        }
    }
}

/// An accepted connection. Dropping it frees its slot.
#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    slot: Slot,
}

/// A connection that belongs to no runtime.
#[derive(Debug)]
pub struct Detached {
    stream: DetachedStream,
    slot: Slot,
}

impl Conn {
    pub(super) fn new(stream: Stream, slot: Slot) -> Self {
        Self { stream, slot }
    }

    /// Where it comes from.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.stream.peer()
    }

    /// Marks the connection once it has shown a valid credential.
    #[must_use]
    pub fn mark(&self) -> CredentialMark {
        self.slot.mark()
    }

    /// Cancelled when the connection must close: at a stop, or because another one needs its slot.
    #[must_use]
    pub fn close_token(&self) -> CancellationToken {
        self.slot.close_token()
    }

    /// Takes the connection off its runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn detach(self) -> io::Result<Detached> {
        Ok(Detached { stream: self.stream.detach()?, slot: self.slot })
    }
}

impl Detached {
    /// Puts the connection on the current runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn attach(self) -> io::Result<Conn> {
        Ok(Conn { stream: Stream::attach(self.stream)?, slot: self.slot })
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with_stream!(&mut self.stream, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        with_stream!(&mut self.stream, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_stream!(&mut self.stream, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        with_stream!(&self.stream, io => io.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(&mut self.stream, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_stream!(&mut self.stream, io => Pin::new(io).poll_shutdown(cx))
    }
}
