//! The binary: parses the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use keyward::cli::Cli;

/// Cheaper than the system's where many small things come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "_faults")]
    if let Err(refusal) = keyward::faults::refuse_without_consent() {
        eprintln!("keyward: {refusal}");
        return ExitCode::FAILURE;
    }
    Cli::parse().run()
}
