//! What is kept, and the index that is built from it: engines, journal, table, checkpoints, backups, and what
//! an operator does when some of it is lost.

mod backup;
mod backup_amid_removal;
mod conformance;
mod conformance_lifecycle;
mod conformance_retries;
pub(crate) mod disk;
mod fold_order;
pub(crate) mod follow;
mod full_disk;
mod index;
pub(crate) mod index_checkpoint;
mod interner;
mod lines;
mod log_head;
mod removal;
mod removal_sizes;
mod restores;
pub(crate) mod retention;
pub(crate) mod salvage;
mod salvage_forged;
mod salvage_rotated;
mod segments;
mod slow_backup;
mod start_from_checkpoint;
