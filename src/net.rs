//! Listeners on TCP and Unix sockets, the bound on their connections, and where a connection comes from.

mod slots;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use self::slots::Slot;
pub use self::slots::{CredentialMark, SlotUsage, Slots};

/// Connections over all listeners at most, if the limit of open files allows.
const CONNECTIONS_MAX: usize = 8_192;
/// Files reserved for everything else: the journal, the table, the runtime.
const FILES_RESERVED: usize = 128;

/// The pause after accept fails, mostly for too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections there may be, so that the journal can always open its next segment. Logs a warning if
/// they are fewer than [`CONNECTIONS_MAX`].
#[must_use]
pub fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let connections = files.saturating_sub(FILES_RESERVED).clamp(1, CONNECTIONS_MAX);
    if connections < CONNECTIONS_MAX {
        tracing::warn!(
            files,
            connections,
            "the limit of open files leaves room for fewer connections than {CONNECTIONS_MAX}; raise it (ulimit -n, LimitNOFILE)"
        );
    }
    connections
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Whether it is reachable from this machine only.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            // Other programs take `@` as the abstract namespace; here it would create a file.
            Some(path) if path.starts_with('@') => {
                Err("must be the path of a socket in the file system; ./@ begins a path with an @".to_owned())
            }
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => text.parse().map(Self::Tcp).map_err(|_| {
                "must be an address with a port, such as 127.0.0.1:50051 or [::1]:50051, or unix:/path".to_owned()
            }),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The permissions of Unix sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Their mode.
    pub mode: u32,
    /// Their group. `None`: that of the process.
    pub group: Option<Group>,
}

impl Default for SocketAccess {
    /// The owner and the group, and no other user of the machine.
    fn default() -> Self {
        Self { mode: 0o660, group: None }
    }
}

/// A group of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name as given, which may be a number.
    name: String,
    number: u32,
}

/// The file of group names and numbers.
const GROUPS: &str = "/etc/group";

impl FromStr for Group {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let group = |number| Self { name: name.to_owned(), number };
        if let Ok(number) = name.parse() {
            return Ok(group(number));
        }
        let groups = fs::read_to_string(GROUPS).map_err(|error| format!("{GROUPS} cannot be read: {error}"))?;
        let number = groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        });
        number.map(group).ok_or_else(|| format!("must be a group in {GROUPS}, or its number"))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A bound listener.
#[derive(Debug)]
pub struct Listener {
    addr: ListenAddr,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Binds an address, with the default permissions.
    ///
    /// # Errors
    /// When it is in use or not available.
    pub async fn bind(addr: &ListenAddr) -> io::Result<Self> {
        Self::bind_for(addr, &SocketAccess::default()).await
    }

    /// Binds an address. `access` applies to Unix sockets.
    ///
    /// # Errors
    /// When it is in use or not available.
    pub async fn bind_for(addr: &ListenAddr, access: &SocketAccess) -> io::Result<Self> {
        match addr {
            ListenAddr::Tcp(addr) => {
                let socket = TcpListener::bind(addr).await?;
                Ok(Self { addr: ListenAddr::Tcp(socket.local_addr()?), socket: Socket::Tcp(socket) })
            }
            ListenAddr::Unix(path) => {
                remove_stale_socket(path)?;
                // Grants access only after the group is set.
                let before = umask(Mode::RWXG | Mode::RWXO);
                let bound = UnixListener::bind(path);
                umask(before);
                let socket = bound?;
                if let Some(group) = &access.group {
                    let refused = |error| named(error, &format!("cannot give the socket to the group {group}"));
                    chown(path, None, Some(group.number)).map_err(refused)?;
                }
                fs::set_permissions(path, fs::Permissions::from_mode(access.mode))?;
                Ok(Self { addr: addr.clone(), socket: Socket::Unix(socket) })
            }
        }
    }

    /// The address, with the assigned port.
    #[must_use]
    pub fn addr(&self) -> &ListenAddr {
        &self.addr
    }

    /// Accepts connections and sends them to `to` until `stop`, and then those that wait in the kernel's
    /// queue, which would be reset otherwise. Each closes when its child token of `end` is cancelled.
    pub async fn accept(
        self,
        slots: Slots,
        to: mpsc::Sender<io::Result<Conn>>,
        stop: CancellationToken,
        end: CancellationToken,
    ) {
        let _cleanup = RemoveSocket::of(&self.addr);
        let listener_slots = slots.for_listener();
        while let Some(accepted) = stop.run_until_cancelled(self.accept_one()).await {
            match accepted {
                Ok(stream) => {
                    // Without a slot, connections wait in the kernel's queue.
                    let entered = stop.run_until_cancelled(listener_slots.acquire(&end)).await;
                    let Some(slot) = entered.or_else(|| listener_slots.try_acquire(&end)) else { break };
                    if to.send(Ok(Conn::new(stream, slot))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(listen = %self.addr, %error, "cannot accept a connection; pausing");
                    stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
        let Ok(backlog) = self.socket.into_backlog() else { return };
        while let Ok(stream) = backlog.accept_one()
            && let Some(slot) = listener_slots.try_acquire(&end)
            && to.send(Ok(Conn::new(stream, slot))).await.is_ok()
        {}
    }

    async fn accept_one(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small replies must not wait for more.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Socket::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }
}

impl Socket {
    /// The listener without its runtime, which may not know yet of connections in the queue.
    fn into_backlog(self) -> io::Result<Backlog> {
        Ok(match self {
            Self::Tcp(listener) => Backlog::Tcp(listener.into_std()?),
            Self::Unix(listener) => Backlog::Unix(listener.into_std()?),
        })
    }
}

/// A listener in non-blocking mode, without a runtime.
#[derive(Debug)]
enum Backlog {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Backlog {
    fn accept_one(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(TcpStream::from_std(stream)?))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(UnixStream::from_std(stream)?))
            }
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

#[derive(Debug)]
enum DetachedStream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Conn {
    fn new(stream: Stream, slot: Slot) -> Self {
        Self { stream, slot }
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
        let stream = match self.stream {
            Stream::Tcp(stream) => DetachedStream::Tcp(stream.into_std()?),
            Stream::Unix(stream) => DetachedStream::Unix(stream.into_std()?),
        };
        Ok(Detached { stream, slot: self.slot })
    }
}

impl Detached {
    /// Puts the connection on the current runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn attach(self) -> io::Result<Conn> {
        let stream = match self.stream {
            DetachedStream::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
            DetachedStream::Unix(stream) => Stream::Unix(UnixStream::from_std(stream)?),
        };
        Ok(Conn { stream, slot: self.slot })
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Connected for Conn {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        match &self.stream {
            Stream::Tcp(stream) => Peer::Tcp(stream.peer_addr().ok()),
            Stream::Unix(_) => Peer::Unix,
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

fn named(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Removes the socket of a process that was killed. One that is in use stays, and binding fails.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Removes the socket of a listener from the file system.
struct RemoveSocket(Option<PathBuf>);

impl RemoveSocket {
    fn of(addr: &ListenAddr) -> Self {
        match addr {
            ListenAddr::Unix(path) => Self(Some(path.clone())),
            ListenAddr::Tcp(_) => Self(None),
        }
    }
}

impl Drop for RemoveSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}
