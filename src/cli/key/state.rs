//! `keyward key get|disable|enable|revoke|delete|undelete`, and the same for callers.

use std::time::Duration;

use clap::Args;
use prost_types::Timestamp;

use super::super::client::{RetryArgs, Session};
use super::super::failure::Failure;
use super::super::print::{self, OutputArgs};
use super::super::when;
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

#[derive(Debug, Args)]
pub(in crate::cli) struct DisableArgs {
    #[command(flatten)]
    state: StateArgs,
    /// It works again from this time on: "in 2h", 2026-12-31, or RFC 3339 [default: when it is enabled]
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    resume_time: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteArgs {
    #[command(flatten)]
    state: StateArgs,
    /// How long it can still be given back, from 1m on, such as 7d [default: 30d]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    purge_after: Option<Duration>,
}

/// From one state to another.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum Move {
    Disable(Option<Timestamp>),
    Enable,
    Revoke,
    Delete(Option<prost_types::Duration>),
    Undelete,
}

impl DisableArgs {
    pub(in crate::cli) fn into_parts(self) -> (StateArgs, Move) {
        (self.state, Move::Disable(self.resume_time))
    }
}

impl DeleteArgs {
    pub(in crate::cli) fn into_parts(self) -> (StateArgs, Move) {
        let purge_after = self.purge_after.map(|time| prost_types::Duration {
            seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(time.subsec_nanos()).unwrap_or(0), // below 10^9
        });
        (self.state, Move::Delete(purge_after))
    }
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
            Move::Disable(resume_time) => {
                let request =
                    wire::DisableKeyRequest { key_id, tenant, etag, reason, resume_time, validate_only, request_id };
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
            Move::Delete(purge_after) => {
                let request =
                    wire::DeleteKeyRequest { key_id, tenant, etag, reason, purge_after, validate_only, request_id };
                client.delete_key(request).await?.key
            }
            Move::Undelete => {
                let request = wire::UndeleteKeyRequest { key_id, tenant, etag, reason, validate_only, request_id };
                client.undelete_key(request).await?.key
            }
        })
    })?;
    if validate_only {
        print::note_dry_run();
    }
    output.print(&print::key(&key.unwrap_or_default()))
}
