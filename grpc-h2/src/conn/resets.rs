//! Streams that were reset a short while ago. Frames may still come for them.

use std::collections::VecDeque;

/// An end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Us,
    Peer,
}

/// Closed streams that were reset.
#[derive(Default)]
pub(super) struct Resets {
    /// The peer may not know of it yet.
    by_us: VecDeque<u32>,
    /// Some clients still send the rest of the request.
    by_peer: VecDeque<u32>,
}

impl Resets {
    /// Remembers a stream; in place of the oldest one, if there are `max` of this side.
    pub(super) fn remember(&mut self, by: Side, stream: u32, max: usize) {
        let streams = match by {
            Side::Us => &mut self.by_us,
            Side::Peer => &mut self.by_peer,
        };
        if streams.len() == max {
            streams.pop_front();
        }
        streams.push_back(stream);
    }

    /// Who has reset a stream, if that is remembered.
    pub(super) fn find(&self, stream: u32) -> Option<Side> {
        if self.by_us.contains(&stream) {
            return Some(Side::Us);
        }
        self.by_peer.contains(&stream).then_some(Side::Peer)
    }

    /// Its size in memory, in bytes.
    pub(super) fn bytes(&self) -> usize {
        (self.by_us.capacity() + self.by_peer.capacity()) * size_of::<u32>()
    }
}
