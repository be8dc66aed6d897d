//! Listeners on TCP and Unix sockets.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward_core::proxies::TrustedProxies;
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::addr::{ListenAddr, SocketAccess};
use super::passed::PassedSockets;
use super::slots::Slots;
use super::stream::{Conn, Stream};

/// Connections over all listeners at most, if the limit of open files allows.
const CONNECTIONS_MAX: usize = 8_192;
/// Files reserved for everything else: the journal, the table, the runtime.
const FILES_RESERVED: usize = 128;

/// The least time between two log messages about users who may not connect.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

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

/// Who is admitted on a listener.
#[derive(Debug)]
pub struct Admission {
    /// The slots of all listeners.
    pub slots: Slots,
    /// Connections of this one at most. `None`: as many as there are slots.
    pub connections_max: Option<usize>,
    /// The users of this machine who may connect. `None`: everybody.
    pub allowed_uids: Option<Vec<u32>>,
    /// Proxies, whose connections are not counted by their address.
    pub proxies: Option<Arc<TrustedProxies>>,
}

impl Admission {
    /// Whoever connects, as long as there are slots.
    #[must_use]
    pub fn of_all(slots: Slots) -> Self {
        Self { slots, connections_max: None, allowed_uids: None, proxies: None }
    }
}

/// A bound listener. The file of a Unix socket goes with it.
#[derive(Debug)]
pub struct Listener {
    addr: ListenAddr,
    socket: Socket,
    /// Whether it was passed to the process. Others may listen on it later, so what waits is left to them.
    is_passed: bool,
    /// Declared last, so that nobody listens any more when the file goes.
    cleanup: RemoveSocket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on an address. `access` applies to Unix sockets that are made. There are several listeners if
    /// several sockets were passed under one name.
    ///
    /// # Errors
    /// When it is in use or not available.
    pub async fn open(addr: &ListenAddr, access: &SocketAccess, passed: &PassedSockets) -> io::Result<Vec<Self>> {
        match addr {
            ListenAddr::Passed(name) => passed.take(name)?.into_iter().map(Self::take_over).collect(),
            _ => Ok(vec![Self::bind_for(addr, access).await?]),
        }
    }

    /// Takes over a socket that listens.
    fn take_over(fd: OwnedFd) -> io::Result<Self> {
        let cleanup = RemoveSocket(None);
        let tcp = std::net::TcpListener::from(fd);
        tcp.set_nonblocking(true)?;
        // Of a socket of another kind there is no such address.
        if let Ok(addr) = tcp.local_addr() {
            let socket = Socket::Tcp(TcpListener::from_std(tcp)?);
            return Ok(Self { addr: ListenAddr::Tcp(addr), socket, is_passed: true, cleanup });
        }
        let unix = std::os::unix::net::UnixListener::from(OwnedFd::from(tcp));
        let path = unix.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
        let socket = Socket::Unix(UnixListener::from_std(unix)?);
        Ok(Self { addr: ListenAddr::Unix(path), socket, is_passed: true, cleanup })
    }

    /// Binds an address, with the default permissions.
    ///
    /// # Errors
    /// When it is in use or not available.
    pub async fn bind(addr: &ListenAddr) -> io::Result<Self> {
        Self::bind_for(addr, &SocketAccess::default()).await
    }

    async fn bind_for(addr: &ListenAddr, access: &SocketAccess) -> io::Result<Self> {
        let is_passed = false;
        match addr {
            ListenAddr::Tcp(addr) => {
                let socket = TcpListener::bind(addr).await?;
                let addr = ListenAddr::Tcp(socket.local_addr()?);
                Ok(Self { addr, socket: Socket::Tcp(socket), is_passed, cleanup: RemoveSocket(None) })
            }
            ListenAddr::Passed(_) => Err(io::ErrorKind::Unsupported.into()),
            ListenAddr::Unix(path) => {
                remove_stale_socket(path)?;
                // Grants access only after the group is set.
                let before = umask(Mode::RWXG | Mode::RWXO);
                let bound = UnixListener::bind(path);
                umask(before);
                let socket = bound?;
                let cleanup = RemoveSocket(Some(path.clone()));
                if let Some(group) = &access.group {
                    let refused = |error| named(error, &format!("cannot give the socket to the group {group}"));
                    chown(path, None, Some(group.number())).map_err(refused)?;
                }
                fs::set_permissions(path, fs::Permissions::from_mode(access.mode))?;
                Ok(Self { addr: addr.clone(), socket: Socket::Unix(socket), is_passed, cleanup })
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
        admission: Admission,
        to: mpsc::Sender<io::Result<Conn>>,
        stop: CancellationToken,
        end: CancellationToken,
    ) {
        // Dropped from the last to the first: the file goes when nobody listens any more.
        let Self { addr, cleanup: _cleanup, socket, is_passed } = self;
        let Admission { slots, connections_max, allowed_uids, proxies } = admission;
        let listener_slots = slots.for_listener(connections_max);
        let is_allowed = |stream: &Stream| {
            allowed_uids.as_ref().is_none_or(|uids| stream.uid().is_some_and(|uid| uids.contains(&uid)))
        };
        let counted = |stream: &Stream| {
            stream.ip().filter(|ip| !proxies.as_ref().is_some_and(|proxies| proxies.trust(Some(*ip))))
        };
        let mut strangers = RefusedUids::default();
        while let Some(accepted) = stop.run_until_cancelled(socket.accept_one()).await {
            match accepted {
                Ok(stream) if !is_allowed(&stream) => strangers.refuse(&addr, stream.uid()),
                Ok(stream) => {
                    // Without a slot, connections wait in the kernel's queue.
                    let from = counted(&stream);
                    let entered = stop.run_until_cancelled(listener_slots.acquire(from, &end)).await;
                    let Some(slot) = entered.or_else(|| listener_slots.try_acquire(from, &end)) else { break };
                    if to.send(Ok(Conn::new(stream, slot))).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(listen = %addr, %error, "cannot accept a connection; pausing");
                    stop.run_until_cancelled(sleep(ACCEPT_PAUSE)).await;
                }
            }
        }
        if is_passed {
            return;
        }
        let Ok(backlog) = socket.into_backlog() else { return };
        while let Ok(stream) = backlog.accept_one()
            && is_allowed(&stream)
            && let Some(slot) = listener_slots.try_acquire(counted(&stream), &end)
            && to.send(Ok(Conn::new(stream, slot))).await.is_ok()
        {}
    }
}

impl Socket {
    async fn accept_one(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small replies must not wait for more.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
        }
    }

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

/// Connections of users who may not connect. Logged from time to time: they can come as fast as they please.
#[derive(Debug, Default)]
struct RefusedUids {
    logged_at: Option<Instant>,
    unlogged: u64,
}

impl RefusedUids {
    fn refuse(&mut self, addr: &ListenAddr, uid: Option<u32>) {
        self.unlogged += 1;
        if self.logged_at.is_none_or(|logged_at| logged_at.elapsed() >= LOG_INTERVAL) {
            self.logged_at = Some(Instant::now());
            let connections = std::mem::take(&mut self.unlogged);
            tracing::warn!(listen = %addr, uid, connections, "a user who is not in allowed_uids was refused");
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
#[derive(Debug)]
struct RemoveSocket(Option<PathBuf>);

impl Drop for RemoveSocket {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
    }
}
