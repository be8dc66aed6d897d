//! `keyward key get|disable|enable|revoke`, and the same for callers.

use clap::Args;

use super::super::client::{RetryArgs, Session};
use super::super::failure::Failure;
use super::super::print::{self, OutputArgs};
use crate::remote::wire;

#[derive(Debug, Args)]
pub(in crate::cli) struct GetArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct StateArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// Why; kept with the key
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Refuse unless this is the key's etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    retry: RetryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// From one state to another.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum Move {
    Disable,
    Enable,
    Revoke,
}

/// Prints a key.
pub(in crate::cli) fn get(session: Session, tenant: String, args: GetArgs) -> Result<(), Failure> {
    let request = wire::GetKeyRequest { key_id: args.key_id, tenant };
    let reply = session.run(async |client| Ok(client.get_key(request).await?))?;
    args.output.print(&print::key(&reply.key.unwrap_or_default()))
}

/// Changes the state of a key, and prints the key.
pub(in crate::cli) fn change_state(session: Session, tenant: String, args: StateArgs, to: Move) -> Result<(), Failure> {
    let StateArgs { key_id, reason, etag, dry_run: validate_only, retry, output } = args;
    let request_id = retry.id()?;
    let key = session.run(async |client| {
        Ok(match to {
            Move::Disable => {
                let request = wire::DisableKeyRequest { key_id, tenant, etag, reason, validate_only, request_id };
                client.disable_key(request).await?.key
            }
            Move::Enable => {
                let request = wire::EnableKeyRequest { key_id, tenant, etag, reason, validate_only, request_id };
                client.enable_key(request).await?.key
            }
            Move::Revoke => {
                let request = wire::RevokeKeyRequest { key_id, tenant, etag, reason, validate_only, request_id };
                client.revoke_key(request).await?.key
            }
        })
    })?;
    if validate_only {
        print::note_dry_run();
    }
    output.print(&print::key(&key.unwrap_or_default()))
}
