//! `keyward caller`: the keys of tenant `system`, whose scopes are roles.

use clap::{Args, Subcommand};

use super::client::ConnectArgs;
use super::failure::Failure;
use super::key::{
    CreateOutput, DeleteArgs, DisableArgs, GetArgs, IssueArgs, ListArgs, Move, StateArgs, change_state, create, get,
    list,
};
use super::print::CALLER_COLUMNS;

/// The tenant of callers.
const TENANT: &str = "system";
/// What every role begins with.
const ROLE_PREFIX: &str = "keyward.";

#[derive(Debug, Args)]
pub(super) struct CallerArgs {
    #[command(subcommand)]
    command: CallerCommand,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum CallerCommand {
    /// Issue a key to a caller of Keyward. Its secret is shown this once
    Create(Box<CreateArgs>),
    /// List callers and their roles
    List(ListArgs),
    /// Show one caller
    Get(GetArgs),
    /// Refuse a caller until it is enabled, or until a time
    Disable(DisableArgs),
    /// Let a disabled caller in again, with the same secret
    Enable(StateArgs),
    /// Refuse a caller for ever
    Revoke(StateArgs),
    /// Delete a caller's key. It is unknown from then on, and can be given back for 30 days
    Delete(DeleteArgs),
    /// Give a deleted key back, disabled
    Undelete(StateArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    #[command(flatten)]
    issue: IssueArgs,
    /// What the caller may do: admin, operator, issuer, viewer, auditor, verifier or backup, in all tenants,
    /// or in one, such as issuer@acme; may be repeated
    #[arg(long = "role", value_name = "ROLE", required = true, value_parser = role)]
    roles: Vec<String>,
    #[command(flatten)]
    output: CreateOutput,
}

pub(super) fn run(args: CallerArgs) -> Result<(), Failure> {
    let session = args.connect.session()?;
    let tenant = TENANT.to_owned();
    match args.command {
        CallerCommand::Create(args) => {
            let CreateArgs { issue, roles, output } = *args;
            create(session, output, issue.request(tenant, String::new(), roles)?)
        }
        CallerCommand::List(args) => list(session, tenant, args, CALLER_COLUMNS),
        CallerCommand::Get(args) => get(session, tenant, args),
        CallerCommand::Disable(args) => {
            let (args, to) = args.into_parts();
            change_state(session, tenant, args, to)
        }
        CallerCommand::Enable(args) => change_state(session, tenant, args, Move::Enable),
        CallerCommand::Revoke(args) => change_state(session, tenant, args, Move::Revoke),
        CallerCommand::Delete(args) => {
            let (args, to) = args.into_parts();
            change_state(session, tenant, args, to)
        }
        CallerCommand::Undelete(args) => change_state(session, tenant, args, Move::Undelete),
    }
}

/// A role with its prefix, which need not be typed. The server knows which there are.
#[expect(clippy::unnecessary_wraps, reason = "as clap wants it")]
fn role(text: &str) -> Result<String, &'static str> {
    let bare = text.strip_prefix(ROLE_PREFIX).unwrap_or(text);
    Ok(format!("{ROLE_PREFIX}{bare}"))
}
