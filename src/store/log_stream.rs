//! Changes that are read from the log, as a stream of batches.

use std::sync::Arc;

use keyward_core::event::{Change, Revision};
use tokio::sync::mpsc;

use super::StoreError;

/// A batch, or why there is no more.
pub(super) type Batch = Result<Vec<Arc<Change>>, StoreError>;

/// The changes between two revisions of the log, ordered and without gaps.
#[derive(Debug)]
pub struct LogStream {
    /// The last revision that was returned.
    read: Revision,
    until: Revision,
    batches: mpsc::Receiver<Batch>,
}

impl LogStream {
    /// A stream of the changes after `after` up to `until`, which `batches` supplies.
    pub(super) fn new(after: Revision, until: Revision, batches: mpsc::Receiver<Batch>) -> Self {
        Self { read: after, until, batches }
    }

    /// The revision of the last change of the stream.
    #[must_use]
    pub fn until(&self) -> Revision {
        self.until
    }

    /// The next changes. `None` when all up to [`LogStream::until`] were returned.
    ///
    /// # Errors
    /// When the engine fails, or what it supplies has a gap or breaks off.
    pub async fn next(&mut self) -> Result<Option<Vec<Arc<Change>>>, StoreError> {
        if self.read >= self.until {
            return Ok(None);
        }
        let broken = |what: &str| StoreError::Engine(format!("the log {what} after revision {}", self.read));
        let batch = self.batches.recv().await.ok_or_else(|| broken("breaks off"))??;
        let mut read = self.read;
        for change in &batch {
            if change.revision != read.next() {
                return Err(broken("has a gap"));
            }
            read = change.revision;
        }
        self.read = read;
        Ok(Some(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(revisions: impl IntoIterator<Item = u64>) -> Batch {
        let change = |revision| Arc::new(Change { revision: Revision(revision), records: vec![] });
        Ok(revisions.into_iter().map(change).collect())
    }

    fn stream(batches: Vec<Batch>) -> LogStream {
        let (sender, receiver) = mpsc::channel(8);
        batches.into_iter().for_each(|batch| sender.try_send(batch).unwrap());
        LogStream::new(Revision(4), Revision(9), receiver)
    }

    #[tokio::test]
    async fn a_log_that_breaks_off_or_has_a_gap_is_not_taken_for_a_whole_one() {
        let mut whole = stream(vec![batch(5..7), batch(7..10)]);
        for expected in [2, 3] {
            assert_eq!(whole.next().await.unwrap().unwrap().len(), expected);
        }
        assert!(whole.next().await.unwrap().is_none());

        for second in [vec![], vec![batch(8..10)], vec![batch(6..10)], vec![batch([7, 9])]] {
            let mut other = stream([vec![batch(5..7)], second].into_iter().flatten().collect());
            assert!(other.next().await.unwrap().is_some());
            assert!(other.next().await.is_err());
        }
    }
}
