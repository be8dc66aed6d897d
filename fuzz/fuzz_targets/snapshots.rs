//! Snapshots and backups: see `keyward::store::sled::fuzz_targets::snapshots`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward::store::sled::fuzz_targets::snapshots(data));
