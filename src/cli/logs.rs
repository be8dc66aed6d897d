//! `keyward logs`.

use clap::{Args, Subcommand};

use super::client::ConnectArgs;
use super::failure::Failure;
use crate::remote::wire;

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    #[command(subcommand)]
    command: LogsCommand,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum LogsCommand {
    /// Set the filter of the server's log, until the server starts again or is told to read its settings
    /// (SIGHUP); without FILTER, print the present one
    Level(LevelArgs),
}

#[derive(Debug, Args)]
struct LevelArgs {
    /// A level, such as info or debug, or levels of modules, such as info,keyward::server=debug
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

pub(super) fn run(args: LogsArgs) -> Result<(), Failure> {
    let session = args.connect.session()?;
    let LogsCommand::Level(LevelArgs { filter }) = args.command;
    let request = wire::SetLogFilterRequest { filter: filter.clone().unwrap_or_default() };
    let previous = session.run(async |client| Ok(client.set_log_filter(request).await?.previous))?;
    match filter {
        Some(filter) => eprintln!("keyward: the log filter is {filter} now; before it was {previous}"),
        None => println!("{previous}"),
    }
    Ok(())
}
