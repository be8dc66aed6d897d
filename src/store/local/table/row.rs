//! A record on its way into the table.

use std::collections::HashMap;

use keyward_core::event::Record;

use crate::store::record::{DecodeError, RecordKind, decode, encode, name_of, of_redo, pb};

/// A record, its name and its stored bytes.
#[derive(Debug)]
pub struct Row {
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub bytes: Vec<u8>,
    name: Vec<u8>,
}

impl Row {
    /// A record with the bytes that it has already.
    #[must_use]
    pub fn new(record: Record, bytes: Vec<u8>) -> Self {
        Self { name: name_of(&record), record, bytes }
    }

    /// A record, encoded.
    #[must_use]
    pub fn of(record: Record) -> Self {
        let bytes = encode(&record);
        Self::new(record, bytes)
    }

    /// The bytes of a record of a kind.
    pub(in crate::store::local) fn decode(kind: RecordKind, bytes: Vec<u8>) -> Result<Self, DecodeError> {
        Ok(Self::new(decode(kind, &bytes)?, bytes))
    }

    /// A record in an entry of the journal.
    pub(in crate::store::local) fn of_redo(redo: &pb::Redo) -> Result<Self, DecodeError> {
        let (kind, bytes) = of_redo(redo)?;
        Self::decode(kind, bytes.to_vec())
    }

    /// The kind of the record.
    pub(in crate::store::local) fn kind(&self) -> RecordKind {
        RecordKind::of(&self.record)
    }

    /// Bytes of its name and its record.
    pub(super) fn size(&self) -> u64 {
        (self.name.len() + self.bytes.len()) as u64
    }

    /// Its name in its tree.
    pub(in crate::store::local) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether the table keeps the record, and not only what follows from it.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(&self.record, Record::Purged(mark) if mark.key_lives)
    }
}

/// The last row of each record, in their order: only that one is written in a transaction.
pub(super) fn last_of_each(rows: &[Row]) -> impl Iterator<Item = &Row> {
    let last: HashMap<_, _> = rows.iter().enumerate().map(|(at, row)| ((row.kind(), row.name()), at)).collect();
    rows.iter().enumerate().filter(move |(at, row)| last.get(&(row.kind(), row.name())) == Some(at)).map(|(_, row)| row)
}
