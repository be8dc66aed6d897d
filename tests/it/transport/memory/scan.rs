//! Reads the memory of another process and finds texts in it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

/// Bytes of a text that count as a trace of it. Sixteen base62 digits are 95 bits.
pub(crate) const PIECE_BYTES: usize = 16;
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 1 << 20;
const PAGE_BYTES: u64 = 4096;
/// Memory that was never used.
const ZEROS: [u8; 256] = [0; 256];
/// Bits of the hash by which nearly all places are passed over.
const HASH_BITS: u32 = 22;

/// Pieces to look for. What they are pieces of has a number.
pub(crate) struct Pieces {
    of: HashMap<[u8; PIECE_BYTES], usize>,
    /// Whether a piece may begin with four bytes, by their hash.
    hashes: Vec<bool>,
    /// How far the end of a piece is at least, where its last byte would be this one.
    skips: [usize; 256],
}

/// A piece that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// What it is a piece of.
    pub(crate) of: usize,
    /// Where, and how much of it in a row.
    #[expect(dead_code, reason = "shown when a test fails")]
    place: String,
    bytes: usize,
    at: u64,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        Self { of: HashMap::new(), hashes: vec![false; 1 << HASH_BITS], skips: [PIECE_BYTES; 256] }
    }

    /// Adds every piece of a text.
    pub(crate) fn add(&mut self, of: usize, text: &[u8]) {
        for piece in text.windows(PIECE_BYTES) {
            let piece: [u8; PIECE_BYTES] = piece.try_into().unwrap();
            self.hashes[hash(piece[..4].try_into().unwrap())] = true;
            for (at, byte) in piece.iter().enumerate() {
                let skip = &mut self.skips[usize::from(*byte)];
                *skip = (*skip).min(PIECE_BYTES - 1 - at);
            }
            self.of.insert(piece, of);
        }
    }

    /// Adds one piece of a text, so that the whole is counted once for each copy.
    pub(crate) fn add_one(&mut self, of: usize, text: &[u8]) {
        self.add(of, &text[..PIECE_BYTES]);
    }

    /// Finds them in all memory of a process that can be written to.
    pub(crate) fn find(&self, pid: u32) -> Vec<Found> {
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let pages = File::open(format!("/proc/{pid}/pagemap")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let (mut found, mut buffer) = (Vec::<Found>::new(), vec![0; CHUNK_BYTES + PIECE_BYTES]);
        for region in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw")))
        {
            let (from, to) = region.split(' ').next().unwrap().split_once('-').unwrap();
            let name = region.split_whitespace().nth(5).unwrap_or("anonymous");
            let [begin, end] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
            for (mut at, end) in used(&pages, begin, end) {
                while at < end {
                    let length = buffer.len().min((end - at) as usize);
                    // A region may go while it is read.
                    let Ok(read) = memory.read_at(&mut buffer[..length], at) else { break };
                    if read == 0 {
                        break;
                    }
                    self.find_in(&buffer[..read], |of, offset| {
                        let at = at + offset as u64;
                        match found.last_mut() {
                            Some(Found { of: last, at: begin, bytes, .. })
                                if *last == of && *begin + (*bytes - PIECE_BYTES) as u64 + 1 == at =>
                            {
                                *bytes += 1;
                            }
                            _ => found.push(Found {
                                of,
                                place: format!("{at:x} in {from} {name}"),
                                bytes: PIECE_BYTES,
                                at,
                            }),
                        }
                    });
                    // Pieces across the border are found with what follows.
                    at += if read == buffer.len() { read - PIECE_BYTES + 1 } else { read } as u64;
                }
            }
        }
        found
    }

    fn find_in(&self, bytes: &[u8], mut found: impl FnMut(usize, usize)) {
        let mut at = 0;
        while at + PIECE_BYTES <= bytes.len() {
            // Most of it is nothing.
            if bytes.get(at..at + ZEROS.len()) == Some(&ZEROS) {
                at += ZEROS.len() - PIECE_BYTES;
                continue;
            }
            let skip = self.skips[usize::from(bytes[at + PIECE_BYTES - 1])];
            if skip > 0 {
                at += skip;
                continue;
            }
            let piece: [u8; PIECE_BYTES] = bytes[at..at + PIECE_BYTES].try_into().unwrap();
            if self.hashes[hash([piece[0], piece[1], piece[2], piece[3]])]
                && let Some(of) = self.of.get(&piece)
            {
                found(*of, at);
            }
            at += 1;
        }
    }
}

/// The parts of a region that the process has ever used: most of what it may use it has not.
fn used(pages: &File, begin: u64, end: u64) -> Vec<(u64, u64)> {
    let mut entries = vec![0; ((end - begin) / PAGE_BYTES * 8) as usize];
    // Of a region that has gone meanwhile there is nothing.
    if pages.read_exact_at(&mut entries, begin / PAGE_BYTES * 8).is_err() {
        return vec![];
    }
    let mut parts = Vec::<(u64, u64)>::new();
    for (entry, page) in entries.chunks(8).zip((begin..).step_by(PAGE_BYTES as usize)) {
        // In memory, or swapped out (proc_pid_pagemap(5)).
        if u64::from_le_bytes(entry.try_into().unwrap()) >> 62 == 0 {
            continue;
        }
        match parts.last_mut() {
            Some((_, end)) if *end == page => *end += PAGE_BYTES,
            _ => parts.push((page, page + PAGE_BYTES)),
        }
    }
    parts
}

fn hash(bytes: [u8; 4]) -> usize {
    (u32::from_le_bytes(bytes).wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize
}
