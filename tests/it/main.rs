//! Keyward from the outside: a real server on a port of its own, with a clock and randomness that the test owns.
//!
//! One file per behaviour; `coverage`, `layering`, `golden` and `model` hold for the whole system; `conformance` is what
//! every storage engine must do. Start reading in `harness`.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod access;
mod administrators;
mod ahead;
mod backup;
mod bad_input;
mod batch;
mod binary;
mod bounds;
mod clock;
mod conformance;
mod coverage;
mod disabled_callers;
mod disk;
mod early;
mod fields;
mod figures;
mod forged;
mod full_disk;
mod golden;
mod h2peer;
mod harness;
mod head;
mod http2_calls;
mod http2_floods;
mod http2_heads;
mod http2_rules;
mod http2_time;
mod http2_windows;
mod image;
mod index;
mod keys;
mod layering;
mod leaving;
mod limits;
mod lists;
mod logs;
mod memory;
mod minted;
mod model;
mod names;
mod old_bytes;
mod ops;
mod places;
mod probes;
mod rescue;
mod restores;
mod restrictions;
mod retention;
mod room;
mod running;
mod segments;
mod serving;
mod settings;
mod slow_backup;
mod standing;
mod stopping;
mod stream;
mod tenants;
mod tools;
mod turns;
mod two_ways;
mod urgent;
mod ways;
mod wire;
