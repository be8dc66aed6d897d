//! The command line.

mod admin_key;
mod backup;
mod caller;
mod check;
mod client;
mod config;
mod epoch;
mod failure;
mod health;
mod journal;
mod key;
mod logs;
mod make_secret;
mod manual;
mod owner;
mod print;
mod rebuild;
mod restore;
mod serve;
mod tenant;
mod tls;
mod when;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use keyward_core::secret::PresentedSecret;

use self::failure::Failure;
use crate::config::{Flags, Settings};
use crate::telemetry::{self, Log, LogFormat};
use crate::util::system::{TOOL_THREADS, check_clock, check_threads};

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
    Serve(serve::ServeArgs),
    /// Issue, find and change keys on a running server
    Key(Box<key::KeyArgs>),
    /// Create, change, suspend and list tenants on a running server
    Tenant(Box<tenant::TenantArgs>),
    /// Suspend and resume all keys of an owner, on a running server
    Owner(Box<owner::OwnerArgs>),
    /// Refuse every secret that was issued before a time, on a running server: after a leak
    Epoch(Box<epoch::EpochArgs>),
    /// Issue and change the keys of callers of Keyward, on a running server: those of tenant system, whose
    /// scopes are roles
    Caller(Box<caller::CallerArgs>),
    /// Look closer at what a running server logs
    Logs(Box<logs::LogsArgs>),
    /// Keep servers by name, each with how it is reached and the file of the caller's key, in the file that
    /// KW_CONTEXTS names [default: ~/.config/keyward/contexts.toml]
    #[command(subcommand)]
    Context(client::context::ContextCommand),
    /// Print the effective configuration, with the source of each setting.
    Config(SettingsArgs),
    /// Fetch a backup from a running server: every key at one revision, in a file. Keep it apart from the
    /// data, and keep a copy of the pepper file, without which it is of no use.
    Backup(backup::BackupArgs),
    /// Fill an empty data directory from a backup. The pepper file must be in place. With --journal, go on
    /// with the changes since the backup, up to --to-revision.
    Restore(restore::RestoreArgs),
    /// Read all of a data directory that nobody serves, or of a backup, and say what is wrong. The directory
    /// need not be writable. Exits with 1 on any doubt.
    Check(check::CheckArgs),
    /// Ask a running server whether it serves. The exit code is 0 if it does, 1 if it does not, 3 if it gives
    /// no answer, and 4 if it has no such service.
    Health(health::HealthArgs),
    /// Print who did what to which key and when, from the journal of a data directory that nobody serves:
    /// revision, time, caller, call, target, address, identity beside a key, with tabs between them. It need
    /// not be writable.
    Journal(journal::JournalArgs),
    /// Make a new administrator in a data directory that nobody serves: where the last one was lost. Its key
    /// goes to standard output, as one line, and is never shown again.
    AdminKey(admin_key::AdminKeyArgs),
    /// Print a new secret, for the first administrator of a server that has not started yet (the setting
    /// bootstrap_admin_file). It is nobody's key before that start.
    MakeSecret,
    /// Print the digest of the secret on standard input, by a pepper file (the setting
    /// bootstrap_admin_digest).
    Digest(make_secret::DigestArgs),
    /// Build the table of a data directory that nobody serves anew, from its snapshot and its journal.
    Rebuild(rebuild::RebuildArgs),
    /// Print a script that completes this program's commands in a shell
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write one for each command
    Man(manual::ManArgs),
}

/// Arguments of commands that work on a data directory offline.
#[derive(Debug, Args)]
struct DataArgs {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Where the data is [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The file of Keyward's own secrets [default: <DATA_DIR>/pepper]
    #[arg(long, value_name = "FILE")]
    pepper_file: Option<PathBuf>,
}

impl DataArgs {
    /// The settings, with the flags of a command, and the log, which is written as long as it is held.
    fn settings(self, flags: Flags) -> Result<(Settings, Log), Box<dyn Error>> {
        check_clock()?;
        check_threads(TOOL_THREADS)?;
        let flags = Flags { data_dir: self.data_dir, pepper_file: self.pepper_file, ..flags };
        let settings = Settings::load(&flags, self.config)?.settings;
        let log = telemetry::start(&settings.log_filter, settings.log_format)?;
        Ok((settings, log))
    }
}

#[derive(Debug, Args)]
struct SettingsArgs {
    /// A TOML file of settings
    #[arg(long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: Option<PathBuf>,
    /// Where the data is; made if it is missing [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen; may be given several times; unix:/path too; port 0 is any free one
    /// [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Where to answer /livez, /readyz and /metrics over HTTP; unix:/path too; port 0 is any free one; off
    /// for nowhere [default: 127.0.0.1:9464]
    #[arg(long, value_name = "ADDR")]
    ops_listen: Option<String>,
    /// The file of Keyward's own secrets; made at the first start [default: <DATA_DIR>/pepper]
    #[arg(long, value_name = "FILE")]
    pepper_file: Option<PathBuf>,
    /// The certificate to encrypt with, followed by those of the authorities between it and the root, in PEM
    #[arg(long = "tls-certificate", value_name = "FILE")]
    tls_certificate_file: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long = "tls-key", value_name = "FILE")]
    tls_key_file: Option<PathBuf>,
    /// The authorities of callers' certificates, in PEM. Callers must then show one
    #[arg(long = "tls-client-ca", value_name = "FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// Listen on addresses that other machines reach although nothing encrypts there; for use behind a mesh
    #[arg(long)]
    allow_plaintext: bool,
    /// The journal must lead through this head, REVISION:CHAIN, which was kept apart from it, or nothing is
    /// served
    #[arg(long, value_name = "HEAD")]
    expect_head: Option<String>,
    /// Which log lines to write, such as info or keyward=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = log_format)]
    log_format: Option<LogFormat>,
}

impl SettingsArgs {
    fn split(self) -> (Flags, Option<PathBuf>) {
        let Self {
            config,
            data_dir,
            listen,
            ops_listen,
            pepper_file,
            tls_certificate_file,
            tls_key_file,
            tls_client_ca_file,
            allow_plaintext,
            expect_head,
            log_filter,
            log_format,
        } = self;
        let allow_plaintext = allow_plaintext.then_some(true);
        let flags = Flags {
            data_dir,
            listen,
            ops_listen,
            pepper_file,
            tls_certificate_file,
            tls_key_file,
            tls_client_ca_file,
            allow_plaintext,
            expect_head,
            log_filter,
            log_format,
            ..Flags::default()
        };
        (flags, config)
    }
}

impl Cli {
    /// Reads the command line. One that has the secret of a key in it is refused before anything repeats it.
    ///
    /// # Errors
    /// The exit code, when a mistake has been printed to stderr. Other mistakes end the process.
    pub fn read() -> Result<Self, ExitCode> {
        let has_secret = std::env::args_os().any(|argument| argument.to_str().is_some_and(holds_secret));
        if has_secret { Err(client::secret_as_argument().report()) } else { Ok(Self::parse()) }
    }

    /// Runs the command. An error is printed to stderr.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Command::Serve(args) => serve::run(args),
            Command::Key(args) => return ended(key::run(*args)),
            Command::Tenant(args) => return ended(tenant::run(*args)),
            Command::Owner(args) => return ended(owner::run(*args)),
            Command::Epoch(args) => return ended(epoch::run(*args)),
            Command::Caller(args) => return ended(caller::run(*args)),
            Command::Logs(args) => return ended(logs::run(*args)),
            Command::Context(command) => return ended(client::context::run(command)),
            Command::Completions(args) => return ended(manual::completions(&args)),
            Command::Man(args) => return ended(manual::man(&args)),
            Command::Config(args) => config::run(args.split()),
            Command::Backup(args) => backup::run(args),
            Command::Restore(args) => restore::run(args),
            Command::Check(args) => check::run(args),
            Command::Health(args) => return health::run(args),
            Command::Journal(args) => journal::run(args),
            Command::AdminKey(args) => admin_key::run(args),
            Command::MakeSecret => make_secret::make_secret(),
            Command::Digest(args) => make_secret::digest(args),
            Command::Rebuild(args) => rebuild::run(args),
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

/// The exit code of a command of the client. A failure is printed to stderr.
fn ended(done: Result<(), Failure>) -> ExitCode {
    done.map_or_else(Failure::report, |()| ExitCode::SUCCESS)
}

/// Whether a part of an argument is the secret of a key, in its form at least.
fn holds_secret(argument: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    argument.split(|c| !is_part(c)).any(|part| PresentedSecret::parse(part).is_ok())
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
