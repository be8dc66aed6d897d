//! A record on its way into the table.

use std::collections::HashMap;

use keyward_core::event::Record;

use crate::store::record::RecordKind;

/// A record and its stored bytes.
#[derive(Debug)]
pub struct Row {
    /// The record.
    pub record: Record,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Row {
    pub(super) fn kind(&self) -> RecordKind {
        match self.record {
            Record::Key(_) => RecordKind::Key,
            Record::Tenant(_) => RecordKind::Tenant,
        }
    }

    /// Bytes of its name and its record.
    pub(super) fn size(&self) -> u64 {
        (self.name().len() + self.bytes.len()) as u64
    }

    /// Its name in its tree.
    pub(super) fn name(&self) -> &[u8] {
        match &self.record {
            Record::Key(key) => key.secret.digest.as_bytes(),
            Record::Tenant(tenant) => tenant.tenant.as_str().as_bytes(),
        }
    }
}

/// The last row of each record: only that one is written in a transaction.
pub(super) fn last_of_each(rows: &[Row]) -> impl Iterator<Item = &Row> {
    let last: HashMap<_, _> = rows.iter().enumerate().map(|(at, row)| ((row.kind(), row.name()), at)).collect();
    rows.iter().enumerate().filter(move |(at, row)| last.get(&(row.kind(), row.name())) == Some(at)).map(|(_, row)| row)
}
