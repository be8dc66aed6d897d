//! Buffers that are reused, and overwrite what they no longer hold.

use std::fmt;
use std::ops::{Deref, DerefMut};

use zeroize::{Zeroize, zeroize_stack};

/// Whether functions take as much of the stack as without optimization. Fuzz targets have assertions too.
const IS_DEBUG: bool = cfg!(all(debug_assertions, not(feature = "_fuzz")));
/// Bytes of the stack that are overwritten after calls on the fast path, which goes less deep.
const FAST_PATH_STACK_BYTES: usize = if IS_DEBUG { 64 } else { 8 } * 1024;
/// The same after each poll of a call on the slow path.
const CALL_STACK_BYTES: usize = if IS_DEBUG { 256 } else { 32 } * 1024;

/// Bytes that may include secrets. What is removed is overwritten, so its spare capacity holds none of them.
/// Memory that it frees, when it grows or is dropped, is overwritten by the allocator.
///
/// It dereferences to a vector for writing; only its own methods may shorten it.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) const fn new() -> Self {
        Self(vec![])
    }

    /// Removes everything.
    pub(super) fn clear(&mut self) {
        self.0.as_mut_slice().zeroize();
        self.0.clear();
    }

    /// Removes the first bytes.
    pub(super) fn consume(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.len());
        let rest = self.0.len() - bytes;
        self.0.copy_within(bytes.., 0);
        self.0[rest..].zeroize();
        self.0.truncate(rest);
    }

    /// Replaces the contents.
    pub(super) fn replace(&mut self, bytes: &[u8]) {
        self.clear();
        self.0.extend_from_slice(bytes);
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Overwrites what functions that have returned left on the stack: some of them hashed secrets.
pub(super) fn wipe_stack_of_answers() {
    zeroize_stack::<FAST_PATH_STACK_BYTES>();
}

/// The same after a poll of a call on the slow path.
pub(super) fn wipe_stack_of_call() {
    zeroize_stack::<CALL_STACK_BYTES>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_stays_in_its_order() {
        let mut buffer = Buffer::new();
        buffer.extend_from_slice(b"abcdef");
        buffer.consume(2);
        assert_eq!(buffer.as_slice(), b"cdef");
        buffer.consume(9);
        assert!(buffer.is_empty());
        buffer.replace(b"gh");
        buffer.replace(b"i");
        assert_eq!((buffer.as_slice(), format!("{buffer:?}")), (&b"i"[..], "1 bytes".to_owned()));
        buffer.clear();
        assert!(buffer.is_empty());
    }
}
