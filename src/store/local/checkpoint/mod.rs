//! What lets the journal be short and a start quick: snapshots of the table, index checkpoints, backups, and
//! the thread that makes them and deletes what they cover.

pub mod backup;
pub mod index_checkpoint;
pub mod maintenance;
pub mod schedule;
pub mod snapshot;
