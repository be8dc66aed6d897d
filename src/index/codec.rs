//! Encodes numbers, texts and networks in memory that nothing else writes.

use std::net::IpAddr;
use std::ops::Range;

use ipnet::IpNet;

use crate::bytes_codec::put_varint;

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The length of the prefix, and the address.
pub(super) fn put_cidr(out: &mut Vec<u8>, cidr: &IpNet) {
    let (v4, v6);
    let octets: &[u8] = match cidr.addr() {
        IpAddr::V4(addr) => {
            v4 = addr.octets();
            &v4
        }
        IpAddr::V6(addr) => {
            v6 = addr.octets();
            &v6
        }
    };
    put_varint(out, 1 + octets.len() as u64);
    out.push(cidr.prefix_len());
    out.extend_from_slice(octets);
}

/// Reads what [`put_cidr`] wrote.
pub(super) fn cidr(piece: &[u8]) -> IpNet {
    let (len, octets) = piece.split_first().map_or((0, piece), |(len, octets)| (*len, octets));
    let addr = match (<[u8; 4]>::try_from(octets), <[u8; 16]>::try_from(octets)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        // Unreachable for packed entries; `::` matches no client.
        _ => IpAddr::from([0; 16]),
    };
    IpNet::new_assert(addr, len)
}

/// Reads packed bytes. Nothing else writes them, so malformed bytes are not reported.
#[derive(Clone)]
pub(super) struct PackedReader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> PackedReader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        byte
    }

    pub(super) fn varint(&mut self) -> u64 {
        let mut number = 0;
        let mut shift = 0;
        loop {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 || shift > 63 {
                return number;
            }
        }
    }

    /// The number of a name.
    pub(super) fn small(&mut self) -> u32 {
        self.varint() as u32
    }

    pub(super) fn millis(&mut self) -> i64 {
        let bytes = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        self.at += 8;
        bytes.map_or(0, |bytes| i64::from_le_bytes(*bytes))
    }

    pub(super) fn piece_range(&mut self) -> Range<usize> {
        let len = self.varint() as usize;
        let range = self.at..self.at + len;
        self.at = range.end;
        range
    }

    pub(super) fn skip(&mut self) {
        self.piece_range();
    }

    pub(super) fn piece(&mut self) -> &'a [u8] {
        let range = self.piece_range();
        self.bytes.get(range).unwrap_or_default()
    }
}
