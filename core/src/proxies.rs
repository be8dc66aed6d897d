//! Proxies that may say which address a call comes from.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::address::{InvalidCidr, parse_address, parse_cidr};

/// The proxies in front of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    blocks: Vec<IpNet>,
    /// Whether those on a Unix socket are among them.
    has_unix: bool,
}

impl TrustedProxies {
    const UNIX: &str = "unix";

    /// Adds an address, a CIDR block, or with `unix` whoever is at the other end of a Unix socket.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn add(&mut self, text: &str) -> Result<(), InvalidCidr> {
        if text == Self::UNIX {
            self.has_unix = true;
        } else {
            self.blocks.push(parse_cidr(text)?);
        }
        Ok(())
    }

    /// Their texts.
    pub fn texts(&self) -> impl Iterator<Item = String> {
        let unix = self.has_unix.then(|| Self::UNIX.to_owned());
        self.blocks.iter().map(ToString::to_string).chain(unix)
    }

    /// Whether a peer is one of them; `None`: on a Unix socket.
    #[must_use]
    pub fn trust(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.has_unix, |peer| self.blocks.iter().any(|block| block.contains(&peer)))
    }

    /// The address that a call comes from: of a proxy that is trusted, the last one in the values of its
    /// `x-forwarded-for` that is not a trusted proxy itself, and its own address if there are no values. Of
    /// any other peer its own, whatever it sends. `None`: it came over a Unix socket, or what the proxy says
    /// is no address.
    pub fn client<'v>(
        &self,
        peer: Option<IpAddr>,
        forwarded: impl DoubleEndedIterator<Item = &'v [u8]>,
    ) -> Option<IpAddr> {
        if !self.trust(peer) {
            return peer;
        }
        // What is left of the first stranger was written by that stranger.
        let mut client = peer;
        for entry in forwarded.rev().flat_map(|value| value.rsplit(|byte| *byte == b',')) {
            let text = str::from_utf8(entry.trim_ascii()).ok()?;
            client = Some(parse_address(text)?);
            if !self.trust(client) {
                break;
            }
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_last_address_that_is_no_trusted_proxy_counts_and_only_a_trusted_one_is_heard() {
        let mut proxies = TrustedProxies::default();
        for text in ["10.0.0.0/8", "2001:db8::7"] {
            proxies.add(text).unwrap();
        }
        let client =
            |peer: &str, values: &[&str]| proxies.client(ip(peer), values.iter().map(|value| value.as_bytes()));
        for (peer, values, expected) in [
            ("203.0.113.7", &["198.51.100.1"][..], ip("203.0.113.7")),
            ("10.1.2.3", &[], ip("10.1.2.3")),
            ("10.1.2.3", &["198.51.100.1"], ip("198.51.100.1")),
            ("2001:db8::7", &["2001:db8::8"], ip("2001:db8::8")),
            ("10.1.2.3", &["192.0.2.1, 198.51.100.1,10.9.9.9"], ip("198.51.100.1")),
            ("10.1.2.3", &["192.0.2.1", "198.51.100.1", "10.9.9.9"], ip("198.51.100.1")),
            ("10.1.2.3", &["garbage, 198.51.100.1"], ip("198.51.100.1")),
            ("10.1.2.3", &["[2001:db8::9]:4711"], ip("2001:db8::9")),
            ("10.1.2.3", &["::ffff:198.51.100.1"], ip("198.51.100.1")),
            ("10.1.2.3", &["10.9.9.9, 10.8.8.8"], ip("10.9.9.9")),
            ("10.1.2.3", &["198.51.100.1, unknown"], None),
            ("10.1.2.3", &["198.51.100.1,"], None),
            ("10.1.2.3", &[""], None),
        ] {
            assert_eq!(client(peer, values), expected, "{peer} {values:?}");
        }
        let value = [&b"198.51.100.1"[..]];
        assert_eq!(proxies.client(None, value.into_iter()), None);
        proxies.add("unix").unwrap();
        assert_eq!(proxies.client(None, value.into_iter()), ip("198.51.100.1"));
        assert_eq!(proxies.texts().collect::<Vec<_>>(), ["10.0.0.0/8", "2001:db8::7/128", "unix"]);
        assert!(proxies.add("proxy.internal").is_err());
    }
}
