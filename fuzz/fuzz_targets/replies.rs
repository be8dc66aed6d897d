//! Sealed replies: see `keyward::store::local::fuzz_targets::replies`.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

/// A directory of this process, in memory where there is one.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = if fs::exists("/dev/shm").unwrap_or_default() { "/dev/shm".into() } else { std::env::temp_dir() };
    let dir = base.join(format!("keyward-fuzz-replies-{}", std::process::id()));
    fs::create_dir_all(&dir).expect("a directory for replies");
    dir
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyward::store::local::fuzz_targets::replies(&DIR, data));
