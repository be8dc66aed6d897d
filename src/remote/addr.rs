//! Addresses of servers, as clients name them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteAddr {
    /// A host and a port.
    Tcp {
        /// A name or an address; IPv6 addresses are in brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl RemoteAddr {
    /// The address as a URI.
    #[must_use]
    pub fn uri(&self, is_encrypted: bool) -> String {
        match self {
            Self::Tcp { host, port } if is_encrypted => format!("https://{host}:{port}"),
            Self::Tcp { host, port } => format!("http://{host}:{port}"),
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Whether the address is on this machine: a loopback address, `localhost` or a Unix socket.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            Self::Unix(_) => true,
        }
    }
}

impl FromStr for RemoteAddr {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str =
            "must be a host or an address with a port, such as keyward.example:50051 or [::1]:50051, or unix:/path";
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(RULE) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(RULE)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(RULE)?;
        let is_name = |host: &str| {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        };
        let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_v6 = is_v6.is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
        if is_v6 || is_name(host) { Ok(Self::Tcp { host: host.to_owned(), port }) } else { Err(RULE) }
    }
}

impl fmt::Display for RemoteAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_socket() {
        for (text, is_local) in [
            ("keyward.example:50051", false),
            ("keyward-0.keyward_headless:50051", false),
            ("10.0.0.7:1", false),
            ("localhost:50051", true),
            ("127.0.0.1:65535", true),
            ("[::1]:50051", true),
            ("[2001:db8::1]:50051", false),
            ("unix:/run/keyward.sock", true),
        ] {
            let addr: RemoteAddr = text.parse().unwrap();
            assert_eq!((addr.to_string().as_str(), addr.is_local()), (text, is_local));
        }
        let wrong = [
            "",
            "keyward",
            "keyward:",
            ":50051",
            "keyward:0",
            "keyward:65536",
            "::1:50051",
            "[x]:1",
            "http://a:1",
            "a/b:1",
            "unix:",
        ];
        for text in wrong {
            assert!(text.parse::<RemoteAddr>().is_err(), "{text}");
        }
    }
}
