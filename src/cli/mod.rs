//! The command line.

mod config;
mod serve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Flags;
use crate::telemetry::LogFormat;

/// Keyward: a key authority. It issues API keys, and answers over gRPC whether a key may do this now.
#[derive(Debug, Parser)]
#[command(name = "keyward", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or ctrl-c. The first start on an empty data directory writes an admin key to
    /// <DATA_DIR>/admin.key.
    Serve(Options),
    /// Print the effective configuration, with the source of each setting.
    Config(Options),
}

#[derive(Debug, Args)]
struct Options {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Where the data is; made if it is missing [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen; may be given several times; unix:/path too; port 0 is any free one [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Where to answer /livez, /readyz and /metrics over HTTP; unix:/path too; port 0 is any free one; off for nowhere
    /// [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    ops_listen: Option<String>,
    /// The file of Keyward's own secrets; made at the first start [default: <DATA_DIR>/pepper]
    #[arg(long, value_name = "FILE")]
    pepper_file: Option<PathBuf>,
    /// Listen on addresses that other machines reach although nothing encrypts there; for use behind a mesh
    #[arg(long)]
    allow_plaintext: bool,
    /// Which log lines to write, such as info or keyward=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    log_format: Option<LogFormat>,
}

impl Options {
    fn split(self) -> (Flags, Option<PathBuf>) {
        let Self { config, data_dir, listen, ops_listen, pepper_file, allow_plaintext, log_filter, log_format } = self;
        let allow_plaintext = allow_plaintext.then_some(true);
        (Flags { data_dir, listen, ops_listen, pepper_file, allow_plaintext, log_filter, log_format }, config)
    }
}

impl Cli {
    /// Does what the command line says. Errors go to stderr, in one piece.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Serve(options) => serve::run(options.split()),
            Command::Config(options) => config::run(options.split()),
        };
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("keyward: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("must be text or json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
