//! `keyward key rotate|finish-rotation|cancel-rotation`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::super::client::{RetryArgs, Session};
use super::super::failure::Failure;
use super::super::print::{self, OutputArgs};
use super::create::{CreateOutput, issue};
use super::fields::ReplyKey;
use crate::remote::wire;

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// How long the secret before the new one works beside it, such as 24h, up to 365d [default: it ends at
    /// once, or with the first use]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    overlap: Option<Duration>,
    /// What begins that time
    #[arg(long, value_name = "WHEN", default_value = "issue")]
    overlap_starts: Starts,
    /// Refuse unless this is the key's etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    retry: RetryArgs,
    #[command(flatten)]
    output: CreateOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Starts {
    /// The issue of the new secret
    Issue,
    /// Its first use; until then the older one works without an end
    FirstUse,
}

#[derive(Debug, Args)]
pub(super) struct EndArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
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

/// How a rotation ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Finish,
    Cancel,
}

/// Gives a key another secret.
pub(super) fn rotate(session: Session, tenant: String, args: RotateArgs) -> Result<(), Failure> {
    let RotateArgs { key_id, overlap, overlap_starts, etag, dry_run: validate_only, retry, output } = args;
    let reply_key = ReplyKey::draw(&retry, validate_only)?;
    let request_id = retry.id()?;
    let overlap_starts = match overlap_starts {
        Starts::Issue => wire::OverlapStart::AtIssue,
        Starts::FirstUse => wire::OverlapStart::OnFirstUse,
    };
    // A longer span than its seconds can say is too long for the server, too.
    let span = |span: Duration| prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0),
    };
    let request = wire::RotateKeyRequest {
        key_id,
        tenant,
        etag,
        overlap: overlap.map(span),
        overlap_starts: overlap_starts.into(),
        validate_only,
        request_id: request_id.clone(),
        reply_public_key: reply_key.public(),
    };
    let hint = "the secret is shown nowhere else: cancel the rotation while the older secret works, or rotate again";
    issue(session, output, validate_only, hint, async |client| {
        let reply = client.rotate_key(request).await?;
        let secret = reply_key.secret(("RotateKey", &request_id), reply.secret, &reply.sealed_secret)?;
        Ok((reply.key, secret, reply.revision))
    })
}

/// Ends the rotation of a key, and prints the key.
pub(super) fn end_rotation(session: Session, tenant: String, args: EndArgs, end: End) -> Result<(), Failure> {
    let EndArgs { key_id, etag, dry_run: validate_only, retry, output } = args;
    let request_id = retry.id()?;
    let key = session.run(async |client| {
        Ok(match end {
            End::Finish => {
                let request = wire::FinishRotationRequest { key_id, tenant, etag, validate_only, request_id };
                client.finish_rotation(request).await?.key
            }
            End::Cancel => {
                let request = wire::CancelRotationRequest { key_id, tenant, etag, validate_only, request_id };
                client.cancel_rotation(request).await?.key
            }
        })
    })?;
    if validate_only {
        print::note_dry_run();
    }
    output.print(&print::key(&key.unwrap_or_default()))
}
