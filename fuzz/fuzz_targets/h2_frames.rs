//! Frames and the events of calls, without I/O: see `grpc_h2::fuzz_targets::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| grpc_h2::fuzz_targets::frames(data));
