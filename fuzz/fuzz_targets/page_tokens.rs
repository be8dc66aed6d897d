//! Page tokens: see `keyward::authority::fuzz_targets::page_tokens`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward::authority::fuzz_targets::page_tokens(data));
