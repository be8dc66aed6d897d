//! `keyward tenant`.

use clap::{Args, Subcommand};
use prost_types::FieldMask;

use super::client::{ConnectArgs, RetryArgs, Session};
use super::failure::Failure;
use super::key::{PageArgs, print_pages};
use super::owner::{HoldOptions, print_held};
use super::print::{self, ListPrinter, OutputArgs, TENANT_COLUMNS};
use crate::remote::wire;

#[derive(Debug, Args)]
pub(super) struct TenantArgs {
    #[command(subcommand)]
    command: TenantCommand,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Create a tenant
    Create(CreateArgs),
    /// List the tenants that the caller may see
    List(ListArgs),
    /// Show one tenant
    Get(GetArgs),
    /// Change a tenant's fields
    Update(UpdateArgs),
    /// Refuse all keys of a tenant, those too that are issued meanwhile, until it is resumed
    Suspend(HoldArgs),
    /// Accept the keys of a suspended tenant again
    Resume(HoldArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The tenant to be
    #[arg(value_name = "TENANT")]
    tenant: String,
    /// The name that people see
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    display_name: String,
    /// What the tenant's secrets begin with [default: kw]
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    secret_prefix: String,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    retry: RetryArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct ListArgs {
    #[command(flatten)]
    pages: PageArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The tenant
    #[arg(value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct UpdateArgs {
    /// The tenant
    #[arg(value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    changes: Changes,
    /// Refuse unless this is the tenant's etag
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
#[group(required = true, multiple = true)]
struct Changes {
    /// The name that people see; empty for none
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// What the tenant's secrets begin with: those that are issued from now on
    #[arg(long, value_name = "WORD")]
    secret_prefix: Option<String>,
}

#[derive(Debug, Args)]
struct HoldArgs {
    /// The tenant
    #[arg(value_name = "TENANT")]
    tenant: String,
    #[command(flatten)]
    how: HoldOptions,
}

pub(super) fn run(args: TenantArgs) -> Result<(), Failure> {
    let session = args.connect.session()?;
    match args.command {
        TenantCommand::Create(args) => {
            let CreateArgs { tenant, display_name, secret_prefix, dry_run: validate_only, retry, output } = args;
            let request_id = retry.id()?;
            let request = wire::CreateTenantRequest { tenant, display_name, secret_prefix, validate_only, request_id };
            let reply = session.run(async |client| Ok(client.create_tenant(request).await?))?;
            if validate_only {
                print::note_dry_run();
            }
            output.print(&print::tenant(&reply.tenant.unwrap_or_default()))
        }
        TenantCommand::List(ListArgs { pages, output }) => {
            let printer = ListPrinter::new(output.format(), TENANT_COLUMNS);
            session.run(async |client| {
                print_pages(printer, &pages, "tenants", async |page_token| {
                    let request = wire::ListTenantsRequest { page_size: pages.size(), page_token };
                    let page = client.list_tenants(request).await?;
                    Ok((page.tenants.iter().map(print::tenant).collect(), page.next_page_token))
                })
                .await
            })
        }
        TenantCommand::Get(GetArgs { tenant, output }) => {
            let request = wire::GetTenantRequest { tenant };
            let reply = session.run(async |client| Ok(client.get_tenant(request).await?))?;
            output.print(&print::tenant(&reply.tenant.unwrap_or_default()))
        }
        TenantCommand::Update(args) => update(session, args),
        TenantCommand::Suspend(HoldArgs { tenant, how }) => {
            let HoldOptions { reason, etag, dry_run: validate_only, retry, output } = how;
            let request_id = retry.id()?;
            let request = wire::SuspendTenantRequest { tenant, etag, reason, validate_only, request_id };
            let reply = session.run(async |client| Ok(client.suspend_tenant(request).await?))?;
            print_held(&output, print::tenant(&reply.tenant.unwrap_or_default()), reply.affected_keys, validate_only)
        }
        TenantCommand::Resume(HoldArgs { tenant, how }) => {
            let HoldOptions { reason, etag, dry_run: validate_only, retry, output } = how;
            let request_id = retry.id()?;
            let request = wire::ResumeTenantRequest { tenant, etag, reason, validate_only, request_id };
            let reply = session.run(async |client| Ok(client.resume_tenant(request).await?))?;
            print_held(&output, print::tenant(&reply.tenant.unwrap_or_default()), reply.affected_keys, validate_only)
        }
    }
}

fn update(session: Session, args: UpdateArgs) -> Result<(), Failure> {
    let UpdateArgs { tenant, changes, etag, dry_run: validate_only, retry, output } = args;
    let request_id = retry.id()?;
    let Changes { display_name, secret_prefix } = changes;
    let named = [("display_name", display_name.is_some()), ("secret_prefix", secret_prefix.is_some())];
    let paths = named.into_iter().filter(|(_, is_named)| *is_named).map(|(path, _)| path.to_owned()).collect();
    let (display_name, secret_prefix) = (display_name.unwrap_or_default(), secret_prefix.unwrap_or_default());
    let tenant = Some(wire::Tenant { tenant, display_name, secret_prefix, ..Default::default() });
    let update_mask = Some(FieldMask { paths });
    let request = wire::UpdateTenantRequest { tenant, update_mask, etag, validate_only, request_id };
    let reply = session.run(async |client| Ok(client.update_tenant(request).await?))?;
    if validate_only {
        print::note_dry_run();
    }
    output.print(&print::tenant(&reply.tenant.unwrap_or_default()))
}
