//! `keyward key`.

mod create;
mod fields;
mod find;
mod list;
mod rotate;
mod state;
mod update;

use clap::{Args, Subcommand};

pub(super) use self::create::{CreateOutput, create};
pub(super) use self::fields::IssueArgs;
pub(super) use self::list::{ListArgs, PageArgs, list, print_pages};
pub(super) use self::state::{DeleteArgs, DisableArgs, GetArgs, Move, StateArgs, change_state, get};
use super::client::ConnectArgs;
use super::failure::Failure;
use super::print::KEY_COLUMNS;

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
    /// The tenant [default: the context's, or the caller's only one, or `default`]
    #[arg(long, value_name = "TENANT", global = true)]
    tenant: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Issue a key. Its secret is shown this once
    Create(Box<create::CreateArgs>),
    /// List keys
    List(ListArgs),
    /// Show one key
    Get(GetArgs),
    /// Give a key another label, the display name that people see
    Label(update::LabelArgs),
    /// Change fields of a key
    Update(Box<update::UpdateArgs>),
    /// Make a key stop working until it is enabled, or until a time
    Disable(DisableArgs),
    /// Make a disabled key work again, with the same secret
    Enable(StateArgs),
    /// Make a key stop working for ever
    Revoke(StateArgs),
    /// Give a key another secret. The one before it works on for --overlap. The new one is shown this once
    Rotate(Box<rotate::RotateArgs>),
    /// End the secret before the newest one now
    FinishRotation(rotate::EndArgs),
    /// Take the newest secret back, and keep the one before it
    CancelRotation(rotate::EndArgs),
    /// Delete a key. It is unknown from then on, and can be given back for 30 days
    Delete(DeleteArgs),
    /// Give a deleted key back, disabled
    Undelete(StateArgs),
    /// Tell whose a secret is, and whether it works, in all tenants that the caller may see, or in --tenant.
    /// It is read from a file or typed unseen. This is no use of the key. The caller needs the role
    /// keyward.verifier, and one that reads keys for more than the id
    Find(find::FindArgs),
}

pub(super) fn run(args: KeyArgs) -> Result<(), Failure> {
    let KeyArgs { command, tenant, connect } = args;
    let session = connect.session()?;
    let pinned = tenant.clone();
    let tenant = session.tenant(tenant);
    match command {
        KeyCommand::Create(args) => {
            let create::CreateArgs { issue, environment, scopes, output } = *args;
            create(session, output, issue.request(tenant, environment, scopes)?)
        }
        KeyCommand::List(args) => list(session, tenant, args, KEY_COLUMNS),
        KeyCommand::Get(args) => get(session, tenant, args),
        KeyCommand::Label(args) => update::label(session, tenant, args),
        KeyCommand::Update(args) => update::update(session, tenant, *args),
        KeyCommand::Disable(args) => {
            let (args, to) = args.into_parts();
            change_state(session, tenant, args, to)
        }
        KeyCommand::Enable(args) => change_state(session, tenant, args, Move::Enable),
        KeyCommand::Revoke(args) => change_state(session, tenant, args, Move::Revoke),
        KeyCommand::Rotate(args) => rotate::rotate(session, tenant, *args),
        KeyCommand::FinishRotation(args) => rotate::end_rotation(session, tenant, args, rotate::End::Finish),
        KeyCommand::CancelRotation(args) => rotate::end_rotation(session, tenant, args, rotate::End::Cancel),
        KeyCommand::Delete(args) => {
            let (args, to) = args.into_parts();
            change_state(session, tenant, args, to)
        }
        KeyCommand::Undelete(args) => change_state(session, tenant, args, Move::Undelete),
        // In all tenants that the caller may see, unless the command names one.
        KeyCommand::Find(args) => find::find(session, pinned, args),
    }
}
