//! The binary: parses the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use keyward::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
