//! Tests from the outside: a real server on a port of its own, with the test's clock and randomness.
//!
//! One file per behaviour, in folders whose `mod.rs` says what belongs there. `system` holds whichever part
//! changes; `storage::conformance` is what every storage engine must do. Start reading in `support::harness`.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod api;
mod serving;
mod storage;
mod support;
mod system;
mod transport;
