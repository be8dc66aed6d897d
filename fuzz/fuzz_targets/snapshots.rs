//! Snapshots and backups: see `keyward::store::local::fuzz_targets::snapshots`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward::store::local::fuzz_targets::snapshots(data));
