//! The binary: parses the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use keyward::cli::Cli;
use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// Cheaper than the system's where many small things come and go. What is freed is overwritten with zeros, and what grows is
/// moved and its old place overwritten: whoever freed a secret, in whatever crate, leaves no trace of it.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> ExitCode {
    #[cfg(feature = "_faults")]
    if let Err(refusal) = keyward::faults::refuse_without_consent() {
        eprintln!("keyward: {refusal}");
        return ExitCode::FAILURE;
    }
    Cli::parse().run()
}
