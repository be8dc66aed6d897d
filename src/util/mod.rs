//! What several modules use: [`files`] that are durable, sealing ([`hpke`]), the [`system`]'s clock,
//! randomness and limits, the  [`machine`]'s memory, work on all cores ([`parallel`]), the [`progress`] of
//! long work, the [`terminal`],  and the end of the process ([`fatal`]).

pub mod fatal;
pub mod files;
pub mod hpke;
pub mod machine;
pub mod parallel;
pub mod progress;
pub mod system;
pub mod terminal;
