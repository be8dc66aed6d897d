//! `keyward epoch`.

use clap::{Args, Subcommand};
use prost_types::Timestamp;

use super::client::{ConnectArgs, RetryArgs, Session};
use super::failure::Failure;
use super::owner::print_held;
use super::print::{self, OutputArgs};
use super::when;
use crate::remote::wire;
use crate::remote::wire::{set_epoch_request as request, set_epoch_response as reply};

#[derive(Debug, Args)]
pub(super) struct EpochArgs {
    #[command(subcommand)]
    command: EpochCommand,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum EpochCommand {
    /// Tell from when on secrets are accepted: of a tenant, an owner or an issuer
    Get(GetArgs),
    /// Refuse every secret that was issued before a time: of a tenant, an owner or an issuer. This cannot be
    /// taken back: the time only grows
    Set(SetArgs),
}

/// Whose secrets.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct HolderArgs {
    /// Those of all keys of this tenant; with --owner, the tenant of that owner
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Those of the keys of this owner [its tenant by default: the context's, or the caller's only one, or
    /// `default`]
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// What this issuer issued, in all tenants: the key_id of a caller, spiffe://..., dns:<name>, unix:<uid>
    /// or keyward
    #[arg(long, value_name = "ISSUER", conflicts_with_all = ["tenant", "owner"])]
    issuer: Option<String>,
}

#[derive(Debug, Args)]
struct GetArgs {
    #[command(flatten)]
    holder: HolderArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct SetArgs {
    #[command(flatten)]
    holder: HolderArgs,
    /// The time, which must not lie in the future: "1h ago", 2026-12-31, or RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = when::parse_past)]
    before: Option<Timestamp>,
    /// Refuse unless this is the etag of the tenant, the owner or the issuer
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

pub(super) fn run(args: EpochArgs) -> Result<(), Failure> {
    let session = args.connect.session()?;
    match args.command {
        EpochCommand::Get(args) => get(session, args),
        EpochCommand::Set(args) => set(session, args),
    }
}

impl HolderArgs {
    fn holder(self, session: &Session) -> request::Holder {
        match self {
            Self { issuer: Some(issuer), .. } => request::Holder::Issuer(issuer),
            Self { owner: Some(owner), tenant, .. } => {
                request::Holder::Owner(wire::OwnerName { owner, tenant: session.tenant(tenant) })
            }
            Self { tenant, .. } => request::Holder::Tenant(tenant.unwrap_or_default()),
        }
    }
}

fn get(session: Session, args: GetArgs) -> Result<(), Failure> {
    let holder = args.holder.holder(&session);
    let fields = session.run(async |client| {
        Ok(match holder {
            request::Holder::Tenant(tenant) => {
                let reply = client.get_tenant(wire::GetTenantRequest { tenant }).await?;
                print::tenant(&reply.tenant.unwrap_or_default())
            }
            request::Holder::Owner(wire::OwnerName { owner, tenant }) => {
                let reply = client.get_owner(wire::GetOwnerRequest { owner, tenant }).await?;
                print::owner(&reply.owner.unwrap_or_default())
            }
            request::Holder::Issuer(issuer) => {
                let reply = client.get_issuer(wire::GetIssuerRequest { issuer }).await?;
                print::issuer(&reply.issuer.unwrap_or_default())
            }
        })
    })?;
    args.output.print(&fields)
}

fn set(session: Session, args: SetArgs) -> Result<(), Failure> {
    let SetArgs { holder, before: reject_issued_before, etag, dry_run: validate_only, retry, output } = args;
    let request_id = retry.id()?;
    let holder = Some(holder.holder(&session));
    let request = wire::SetEpochRequest { holder, reject_issued_before, etag, validate_only, request_id };
    let set = session.run(async |client| Ok(client.set_epoch(request).await?))?;
    let fields = match &set.holder {
        Some(reply::Holder::Tenant(tenant)) => print::tenant(tenant),
        Some(reply::Holder::Owner(owner)) => print::owner(owner),
        Some(reply::Holder::Issuer(issuer)) => print::issuer(issuer),
        None => print::Fields::default(),
    };
    print_held(&output, fields, set.affected_keys, validate_only)
}
