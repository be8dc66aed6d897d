//! Fuzz targets for what is private to this crate, and what they share. Only with the feature `_fuzz`.
//!
//! Each function takes the input of one run and panics when a property does not hold. `fuzz/` of the
//! repository runs them.

mod frames;
mod headers;
mod peer;

pub use self::frames::frames;
pub use self::headers::{head, hpack};
pub use self::peer::Peer;

/// Steps of one input at most.
const STEPS_MAX: usize = 32;

/// An input: steps, which say how its bytes are used, and the bytes. The bytes stay as they are, so that
/// recorded sessions can be seeds.
///
/// The first byte is the number of steps and, in its upper three bits, a choice; one byte for each step
/// follows.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// One of eight, for what holds in the whole run.
    pub choice: u8,
    steps: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    /// What follows the steps.
    pub bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// Splits an input.
    #[must_use]
    pub fn of(data: &'a [u8]) -> Self {
        let (count, rest) = data.split_first().map_or((0, data), |(count, rest)| (*count, rest));
        let (steps, bytes) = rest.split_at((usize::from(count) % STEPS_MAX).min(rest.len()));
        Self { choice: count / STEPS_MAX as u8, steps: steps.iter().cycle(), bytes }
    }

    /// The next step. After the last one comes the first one again; 0 if there are none.
    pub fn step(&mut self) -> u8 {
        self.steps.next().copied().unwrap_or_default()
    }

    /// Takes the next bytes, at most this many.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(bytes.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }
}
