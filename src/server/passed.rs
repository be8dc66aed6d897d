//! Sockets that a service manager passes to the process (`sd_listen_fds(3)`): they listen while no process
//! serves, so that a restart refuses no connection.

use std::io;
use std::os::fd::OwnedFd;

use parking_lot::Mutex;
use rustix::net::sockopt::socket_acceptconn;

/// The name of a socket that has none.
const NO_NAME: &str = "unknown";

/// The sockets that were passed and not taken over yet.
#[derive(Debug, Default)]
pub struct PassedSockets(Mutex<Vec<(String, OwnedFd)>>);

impl PassedSockets {
    /// Those that `LISTEN_FDS` speaks of. To be called once in a process: it takes them over.
    ///
    /// # Errors
    /// When the variables are malformed.
    pub fn from_env() -> io::Result<Self> {
        let passed = sd_listen_fds::get()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "LISTEN_PID or LISTEN_FDS is not a number"))?;
        let named = passed.into_iter().map(|(name, fd)| (name.unwrap_or_else(|| NO_NAME.to_owned()), fd.into_std()));
        Ok(Self(Mutex::new(named.collect())))
    }

    /// These sockets, by name.
    #[must_use]
    pub fn of(sockets: Vec<(String, OwnedFd)>) -> Self {
        Self(Mutex::new(sockets))
    }

    /// Takes over the sockets of a name, of which there may be several.
    ///
    /// # Errors
    /// When there are none, or one of them does not listen.
    pub(super) fn take(&self, name: &str) -> io::Result<Vec<OwnedFd>> {
        let mut left = self.0.lock();
        let (taken, others): (Vec<_>, Vec<_>) = std::mem::take(&mut *left).into_iter().partition(|(of, _)| of == name);
        *left = others;
        if taken.is_empty() {
            let names: Vec<_> = left.iter().map(|(name, _)| &**name).collect();
            let there =
                if names.is_empty() { "none is passed".to_owned() } else { format!("there are {}", names.join(", ")) };
            let what = format!("no socket of this name is passed to the process (LISTEN_FDNAMES): {there}");
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
        let fds: Vec<_> = taken.into_iter().map(|(_, fd)| fd).collect();
        if fds.iter().any(|fd| !socket_acceptconn(fd).unwrap_or(false)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "what is passed is not a socket that listens"));
        }
        Ok(fds)
    }

    /// The names of those that nobody took over.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.0.lock().iter().map(|(name, _)| name.clone()).collect()
    }
}
