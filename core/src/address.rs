//! Parsing of networks and addresses. Both are read here, so that a key's networks and a caller's address can
//! be compared.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The longest zone of an IPv6 address, such as `eth0`.
const ZONE_BYTES_MAX: usize = 64;

/// Why a text is not a CIDR block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCidr {
    /// It is not an address with an optional prefix length.
    #[error(
        "must be a CIDR block such as 10.0.0.0/8 or 2001:db8::/32, or one address, in decimal digits without leading zeros"
    )]
    Form,
    /// It has bits set past its prefix length.
    #[error(
        "must have no bits set past its prefix length: write {block} for the block, or {address} for the one address"
    )]
    HostBits {
        /// The block, without those bits.
        block: IpNet,
        /// The address as a block of its own.
        address: IpNet,
    },
    /// It is an IPv4 block, mapped into IPv6.
    #[error("must be written as the IPv4 block {0}")]
    Mapped(IpNet),
}

/// Parses a CIDR block. An address alone is a block of one. A leading zero is refused, because some programs
/// read it as octal.
///
/// # Errors
/// See [`InvalidCidr`].
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidCidr> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address = address.parse::<IpAddr>().map_err(|_| InvalidCidr::Form)?;
    let all = IpNet::from(address);
    let bits = bits.map_or(Some(all.max_prefix_len()), number).ok_or(InvalidCidr::Form)?;
    let net = IpNet::new(address, bits).map_err(|_| InvalidCidr::Form)?;
    let mapped = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().zip(bits.checked_sub(96)),
        IpAddr::V4(_) => None,
    };
    if let Some((v4, bits)) = mapped {
        return Err(InvalidCidr::Mapped(IpNet::new(v4.into(), bits).map_err(|_| InvalidCidr::Form)?.trunc()));
    }
    if net != net.trunc() {
        return Err(InvalidCidr::HostBits { block: net.trunc(), address: all });
    }
    Ok(net)
}

/// Parses a client's address as servers and proxies write it. Port, brackets and zone are dropped, and an
/// IPv4-mapped IPv6 address becomes the IPv4 address. `None`: it is not an address.
#[must_use]
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let address = match text.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => parse_with_more(text)?,
    };
    // `::ffff:10.0.0.1` is what a dual-stack socket calls 10.0.0.1.
    Some(address.to_canonical())
}

fn parse_with_more(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_follows = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port_follows.then(|| parse_v6(address)).flatten();
    }
    match text.rsplit_once(':') {
        Some((address, port)) if address.contains('.') && !address.contains(':') => {
            is_port(port).then(|| address.parse::<Ipv4Addr>().ok()).flatten().map(IpAddr::V4)
        }
        _ => parse_v6(text),
    }
}

/// An IPv6 address with an optional zone.
fn parse_v6(text: &str) -> Option<IpAddr> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let is_zone = |zone: &str| {
        (1..=ZONE_BYTES_MAX).contains(&zone.len())
            && zone.bytes().all(|b| b.is_ascii_graphic() && !b"%[]/".contains(&b))
    };
    if !zone.is_none_or(is_zone) {
        return None;
    }
    address.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// A number without a sign and without leading zeros.
fn number(text: &str) -> Option<u8> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_is_what_it_says_or_is_refused() {
        let good = [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/32", "203.0.113.7/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:DB8:0::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ];
        for (text, block) in good {
            assert_eq!(parse_cidr(text).unwrap().to_string(), block, "{text}");
        }
        let meant = [
            ("10.1.2.3/8", ["10.0.0.0/8", "10.1.2.3/32"]),
            ("203.0.113.7/24", ["203.0.113.0/24", "203.0.113.7/32"]),
            ("2001:db8::1/32", ["2001:db8::/32", "2001:db8::1/128"]),
            ("::ffff:10.1.2.3/104", ["10.0.0.0/8", "IPv4"]),
            ("::ffff:10.1.2.3", ["10.1.2.3/32", "IPv4"]),
        ];
        for (text, named) in meant {
            let refused = parse_cidr(text).unwrap_err().to_string();
            assert!(named.iter().all(|named| refused.contains(named)), "{text}: {refused}");
        }
        for bad in [
            "",
            "/",
            "/8",
            "010.0.0.0/8",
            "10.0.0.00/8",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/ 8",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "10/8",
            "0x0a.0.0.0/8",
            "2001:db8::/129",
            "::1%eth0",
            "[::1]",
            "10.0.0.1:80",
            " 10.0.0.0/8",
            "10.0.0.0/8 ",
            "10.0.0.0/256",
            "example.com",
        ] {
            assert_eq!(parse_cidr(bad), Err(InvalidCidr::Form), "{bad}");
        }
    }

    #[test]
    fn an_address_is_read_without_port_and_zone() {
        let good = [
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3:4711", "10.1.2.3"),
            ("10.1.2.3:0", "10.1.2.3"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:443", "fe80::1"),
            ("[fe80::1%eth0.7]:443", "fe80::1"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("[::ffff:10.1.2.3]:443", "10.1.2.3"),
            // Without brackets, the last group is a group.
            ("2001:db8::1:443", "2001:db8::1:443"),
        ];
        for (text, address) in good {
            assert_eq!(parse_address(text).unwrap().to_string(), address, "{text}");
        }
        for bad in [
            "",
            ":",
            "10.1.2.3:",
            "10.1.2.3:65536",
            "10.1.2.3:+1",
            "10.1.2.3:4711:1",
            "010.1.2.3",
            "010.1.2.3:80",
            "10.1.2.3%eth0",
            "[10.1.2.3]:80",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]443",
            "[2001:db8::1]:",
            "[[::1]]",
            "fe80::1%",
            "fe80::1%a b",
            "fe80::1%25%3",
            "10.0.0.0/8",
            " 10.1.2.3",
            "10.1.2.3 ",
            "example.com:80",
            "unix:",
        ] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v4: [u8; 4], v6: [u8; 16], port: u16, bits in 0..33_u8) {
            let (v4, v6) = (Ipv4Addr::from(v4), Ipv6Addr::from(v6));
            prop_assert_eq!(parse_address(&format!("{v4}:{port}")), Some(IpAddr::V4(v4)));
            prop_assert_eq!(parse_address(&format!("[{v6}]:{port}")), Some(IpAddr::V6(v6).to_canonical()));
            let net = IpNet::new(v4.into(), bits).unwrap().trunc();
            prop_assert_eq!(parse_cidr(&net.to_string()), Ok(net));
            prop_assert_eq!(parse_cidr(&v4.to_string()), Ok(IpNet::from(IpAddr::V4(v4))));
        }

        /// One reading: a single address, as a block, holds exactly that address.
        #[test]
        fn a_text_means_the_same_as_network_and_as_address(text in "[0-9a-f.:]{0,16}") {
            if let (Ok(block), Some(address)) = (parse_cidr(&text), parse_address(&text)) {
                prop_assert!(block.contains(&address) && block.addr() == address);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,60}") {
            let _ = (parse_cidr(&text), parse_address(&text));
        }
    }
}
