//! From what is on the disk to an open store, and what the tools do to a directory that nobody serves.

pub mod inspect;
pub mod offline_append;
pub mod read_only_fill;
pub mod rebuild;
pub mod recover;
pub mod restore;
pub mod salvage;
