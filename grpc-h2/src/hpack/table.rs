//! The static and the dynamic table (RFC 7541, section 2.3 and appendix A).

use std::collections::VecDeque;
use std::sync::Arc;

use constant_time_eq::constant_time_eq;

use super::FieldKind;

/// The overhead of an entry, in bytes (RFC 7541, section 4.1).
pub(crate) const ENTRY_BYTES: usize = 32;

/// The static table, at index less one.
#[rustfmt::skip]
pub(super) const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// An entry of the dynamic table.
struct Entry {
    /// The name, and the value behind it. All entries with the same credential share one copy.
    text: Arc<[u8]>,
    name_bytes: usize,
    kind: FieldKind,
}

/// The dynamic table of a connection.
#[derive(Default)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    version: u64,
}

/// A field, from either table or a literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field<'a> {
    pub(crate) kind: FieldKind,
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl Table {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    /// Changes with each change of the table.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Its size in bytes (RFC 7541, section 4.1).
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&self, index: usize) -> Option<Field<'_>> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some(Field { kind: static_kind(index + 1), name, value });
        }
        let entry = self.entries.get(index - STATIC.len())?;
        let (name, value) = entry.text.split_at_checked(entry.name_bytes)?;
        Some(Field { kind: entry.kind, name, value })
    }

    /// Inserts a field, and evicts the oldest ones that have no room beside it (RFC 7541, section 4.4).
    pub(super) fn insert(&mut self, kind: FieldKind, name: &[u8], value: &[u8]) {
        self.version += 1;
        let bytes = name.len() + value.len() + ENTRY_BYTES;
        let shared = self.credential(kind, name, value).map(|entry| entry.text.clone());
        self.evict(self.bytes_max.saturating_sub(bytes));
        if bytes <= self.bytes_max {
            self.bytes += bytes;
            let text = shared.unwrap_or_else(|| [name, value].concat().into());
            self.entries.push_front(Entry { text, name_bytes: name.len(), kind });
        }
    }

    /// Whether a field is a credential that is in the dynamic table.
    pub(super) fn has_credential(&self, kind: FieldKind, name: &[u8], value: &[u8]) -> bool {
        self.credential(kind, name, value).is_some()
    }

    fn credential(&self, kind: FieldKind, name: &[u8], value: &[u8]) -> Option<&Entry> {
        if kind != FieldKind::Authorization {
            return None;
        }
        // Constant time: it may be another caller's.
        let is_it = |text: (&[u8], &[u8])| constant_time_eq(text.0, name) && constant_time_eq(text.1, value);
        self.entries.iter().find(|entry| entry.text.split_at_checked(entry.name_bytes).is_some_and(is_it))
    }

    /// Evicts everything, for an entry that is larger than the table (RFC 7541, section 4.4).
    pub(super) fn clear(&mut self) {
        self.version += 1;
        self.evict(0);
    }

    pub(super) fn resize(&mut self, bytes_max: usize) {
        self.version += 1;
        self.bytes_max = bytes_max;
        self.evict(bytes_max);
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= oldest.text.len() + ENTRY_BYTES;
        }
    }
}

/// The kind of a field of the static table.
fn static_kind(index: usize) -> FieldKind {
    match index {
        1 => FieldKind::Authority,
        2 | 3 => FieldKind::Method,
        4 | 5 => FieldKind::Path,
        6 | 7 => FieldKind::Scheme,
        // `:status`, which no request has, and `transfer-encoding`.
        8..=14 | 57 => FieldKind::Forbidden,
        23 => FieldKind::Authorization,
        28 => FieldKind::ContentLength,
        31 => FieldKind::ContentType,
        _ => FieldKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_the_static_table_are_those_of_its_names() {
        for (at, (name, value)) in STATIC.iter().enumerate() {
            assert_eq!(static_kind(at + 1), FieldKind::of(name, value), "{}", String::from_utf8_lossy(name));
        }
    }
}
