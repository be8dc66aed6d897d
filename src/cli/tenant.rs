//! `keyward tenant`.

use clap::{Args, Subcommand};

use super::client::ConnectArgs;
use super::failure::Failure;
use super::key::{PageArgs, print_pages};
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

pub(super) fn run(args: TenantArgs) -> Result<(), Failure> {
    let session = args.connect.session()?;
    match args.command {
        TenantCommand::Create(args) => {
            let CreateArgs { tenant, display_name, secret_prefix, dry_run: validate_only, output } = args;
            let request = wire::CreateTenantRequest { tenant, display_name, secret_prefix, validate_only };
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
    }
}
