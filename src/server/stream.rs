//! Accepted connections. The only place that knows the kinds of streams.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use keyward_core::identity::{IdentityName, Peer, PeerIdentity};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::slots::{CredentialMark, Slot};
use super::tls::Protocol;
use super::tls::handshake::{HandshakeError, Pending, Turns, accept};
use super::tls::reload::{CallerGuard, Tls};
use super::tls::wiping::Wiping;

/// A stream of any kind, on the current runtime.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed: it is ten times as large as the others.
    Tls(Box<TlsStream<Wiping<TcpStream>>>),
}

/// Does the same with a stream of any kind.
macro_rules! with_stream {
    ($stream:expr, $io:ident => $does:expr) => {
        match $stream {
            Stream::Tcp($io) => $does,
            Stream::Unix($io) => $does,
            Stream::Tls($io) => $does,
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
            // It is made where it stays.
            Self::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
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
            Self::Tcp(_) | Self::Tls(_) => None,
            Self::Unix(stream) => stream.peer_cred().ok().map(|peer| peer.uid()),
        }
    }

    pub(super) fn ip(&self) -> Option<IpAddr> {
        let addr = match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Tls(stream) => stream.get_ref().0.get_ref().peer_addr().ok(),
            Self::Unix(_) => None,
        };
        addr.map(|addr| addr.ip().to_canonical())
    }
}

/// An accepted connection. Dropping it frees its slot.
#[derive(Debug)]
pub struct Conn {
    stream: Stream,
    slot: Slot,
    /// Watches over the certificate that the caller showed.
    certificate: Option<CallerGuard>,
}

/// How the connections of a listener are encrypted.
#[derive(Clone, Debug)]
pub struct EncryptsWith {
    /// The certificate and what callers' certificates are checked with.
    pub tls: Arc<Tls>,
    /// What is spoken within.
    pub protocol: Protocol,
    /// The handshakes under way.
    pub pending: Pending,
}

/// A connection that belongs to no runtime.
#[derive(Debug)]
pub struct Detached {
    stream: DetachedStream,
    slot: Slot,
}

impl Conn {
    pub(super) fn new(stream: Stream, slot: Slot) -> Self {
        Self { stream, slot, certificate: None }
    }

    /// Where it comes from.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let of_user = || Some(Arc::new(PeerIdentity::new(Some(IdentityName::of_uid(self.stream.uid()?)?), None)));
        let identity = self.certificate.as_ref().map(|guard| guard.identity().clone()).or_else(of_user);
        Peer::new(self.stream.ip(), identity)
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

    /// Answers a handshake, on the runtime on which the connection stays.
    ///
    /// # Errors
    /// When it fails.
    pub async fn encrypt(self, tls: &EncryptsWith, turns: &Turns) -> Result<Self, HandshakeError> {
        let Self { stream, slot, .. } = self;
        let Stream::Tcp(stream) = stream else { return Err(HandshakeError::NotTcp) };
        let EncryptsWith { tls, protocol, pending } = tls;
        let config = tls.config(*protocol);
        let (stream, shown) = accept(config.clone(), *protocol, pending, turns, stream).await?;
        let certificate = match shown.is_empty() {
            true => None,
            false => Some(tls.watch(shown, &config, slot.close_token()).ok_or(HandshakeError::Unreadable)?),
        };
        Ok(Self { stream: Stream::Tls(Box::new(stream)), slot, certificate })
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
        Ok(Conn::new(Stream::attach(self.stream)?, self.slot))
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = with_stream!(&mut self.stream, io => Pin::new(io).poll_read(cx, buf));
        match read {
            // Many clients close without the close_notify of TLS. What it guards against, an end that an
            // attacker makes, HTTP/2 sees by its own frames.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => read,
        }
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
