//! What may be listened on, as settings say it: addresses, and who may connect to sockets in the file system.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
    /// A socket that already listens and is passed to the process, by its name
    /// (`sd_listen_fds_with_names(3)`).
    Passed(String),
}

impl ListenAddr {
    /// Whether it is reachable from this machine only. Of a socket that is passed this is not known before it
    /// is taken over, so it counts as one.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().is_loopback(),
            Self::Unix(_) | Self::Passed(_) => true,
        }
    }
}

impl FromStr for ListenAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(name) = text.strip_prefix("fd:") {
            return match name.is_empty() || name.contains(':') {
                true => Err("must name a socket after fd:, as LISTEN_FDNAMES names it".to_owned()),
                false => Ok(Self::Passed(name.to_owned())),
            };
        }
        match text.strip_prefix("unix:") {
            // Other programs take `@` as the abstract namespace; here it would create a file.
            Some(path) if path.starts_with('@') => {
                Err("must be the path of a socket in the file system; ./@ begins a path with an @".to_owned())
            }
            Some(path) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => text.parse().map(Self::Tcp).map_err(|_| {
                "must be an address with a port, such as 127.0.0.1:50051 or [::1]:50051, or unix:/path, or fd:NAME"
                    .to_owned()
            }),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Passed(name) => write!(f, "fd:{name}"),
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

impl Group {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
}

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
