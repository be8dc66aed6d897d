//! Shared parts of the benchmark programs. README.md says how they are used.

pub mod args;
pub mod fixture;
pub mod stats;
pub mod typical_key;
