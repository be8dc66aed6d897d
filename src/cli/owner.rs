//! `keyward owner`.

use clap::{Args, Subcommand};

use super::client::{ConnectArgs, RetryArgs};
use super::failure::Failure;
use super::print::{self, OutputArgs};
use crate::remote::wire;

#[derive(Debug, Args)]
pub(super) struct OwnerArgs {
    #[command(subcommand)]
    command: OwnerCommand,
    /// The tenant [default: the context's, or the caller's only one, or `default`]
    #[arg(long, value_name = "TENANT", global = true)]
    tenant: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum OwnerCommand {
    /// Tell whether an owner is suspended, and why
    Get(GetArgs),
    /// Refuse all keys of an owner, those too that are issued meanwhile, until it is resumed
    Suspend(HoldArgs),
    /// Accept the keys of a suspended owner again
    Resume(HoldArgs),
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The owner, as keys have it
    #[arg(value_name = "OWNER")]
    owner: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct HoldArgs {
    /// The owner, as keys have it
    #[arg(value_name = "OWNER")]
    owner: String,
    #[command(flatten)]
    how: HoldOptions,
}

/// How a tenant or an owner is suspended or resumed.
#[derive(Debug, Args)]
pub(super) struct HoldOptions {
    /// Why; kept with it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) reason: String,
    /// Refuse unless this is its etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    pub(super) etag: String,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) retry: RetryArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

pub(super) fn run(args: OwnerArgs) -> Result<(), Failure> {
    let OwnerArgs { command, tenant, connect } = args;
    let session = connect.session()?;
    let tenant = session.tenant(tenant);
    match command {
        OwnerCommand::Get(GetArgs { owner, output }) => {
            let request = wire::GetOwnerRequest { owner, tenant };
            let reply = session.run(async |client| Ok(client.get_owner(request).await?))?;
            output.print(&print::owner(&reply.owner.unwrap_or_default()))
        }
        OwnerCommand::Suspend(HoldArgs { owner, how }) => {
            let HoldOptions { reason, etag, dry_run: validate_only, retry, output } = how;
            let request_id = retry.id()?;
            let request = wire::SuspendOwnerRequest { owner, tenant, etag, reason, validate_only, request_id };
            let reply = session.run(async |client| Ok(client.suspend_owner(request).await?))?;
            print_held(&output, print::owner(&reply.owner.unwrap_or_default()), reply.affected_keys, validate_only)
        }
        OwnerCommand::Resume(HoldArgs { owner, how }) => {
            let HoldOptions { reason, etag, dry_run: validate_only, retry, output } = how;
            let request_id = retry.id()?;
            let request = wire::ResumeOwnerRequest { owner, tenant, etag, reason, validate_only, request_id };
            let reply = session.run(async |client| Ok(client.resume_owner(request).await?))?;
            print_held(&output, print::owner(&reply.owner.unwrap_or_default()), reply.affected_keys, validate_only)
        }
    }
}

/// Prints a tenant, an owner or an issuer after a change, and how many keys that is about.
pub(super) fn print_held(
    output: &OutputArgs,
    holder: print::Fields,
    affected_keys: u64,
    validate_only: bool,
) -> Result<(), Failure> {
    if validate_only {
        print::note_dry_run();
    }
    output.print(&holder.and_long("affected_keys", affected_keys))
}
