//! Errors of the table.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::store::StoreError;
use crate::store::record::DecodeError;
use crate::util::files::resource_limit;

/// Why the table cannot be used. It is then rebuilt from the journal, unless the disk failed.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk failed or is full. This says nothing about the table.
    #[error("{what}: {0}", what = resource_limit(.0).unwrap_or("the disk fails"))]
    Disk(io::Error),
    /// It does not match the journal.
    #[error("{0}")]
    Unsound(&'static str),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sled::Error> for TableError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Disk(error),
            other => Self::Store(other.into()),
        }
    }
}

impl From<DecodeError> for TableError {
    fn from(error: DecodeError) -> Self {
        Self::Store(error.into())
    }
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        Self::Engine(error.to_string())
    }
}

/// Runs a read of a table that may be damaged: sled panics on unexpected bytes.
pub(in crate::store::local) fn guard<T>(read: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(TableError::Unsound("sled panicked over it")))
}
