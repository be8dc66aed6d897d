//! The binary: parses the command line and runs the command.

use std::process::ExitCode;

use keyward::cli::Cli;
use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// mimalloc is faster than the system's allocator for many small objects. Freed memory is zeroed, and so is
/// the old place of what is reallocated, so that no crate leaves a secret behind in freed memory.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    #[cfg(feature = "_faults")]
    if let Err(refusal) = keyward::faults::refuse_without_consent() {
        eprintln!("keyward: {refusal}");
        return ExitCode::FAILURE;
    }
    Cli::read().map_or_else(|refused| refused, Cli::run)
}
