//! What the programs that measure have in common. README.md says how they are used.

pub mod figures;
pub mod options;
pub mod typical;
pub mod world;
