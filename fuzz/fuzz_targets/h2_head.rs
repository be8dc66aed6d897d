//! The heads of requests: see `grpc_h2::fuzz_targets::head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| grpc_h2::fuzz_targets::head(data));
