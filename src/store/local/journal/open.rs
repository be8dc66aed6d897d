//! A journal that was read, and to which can be appended.

use super::writer::Writer;
use super::{ChainKey, Position};

/// The journal, ready to append.
pub(in crate::store::local) struct Journal {
    pub(in crate::store::local) writer: Writer,
    pub(in crate::store::local) key: ChainKey,
    pub(in crate::store::local) position: Position,
}
