//! `keyward context`.

use std::path::{self, PathBuf};

use clap::{Args, Subcommand};

use super::super::failure::{Exit, Failure};
use super::super::print::{CONTEXT_COLUMNS, Fields, ListPrinter, OutputArgs};
use super::contexts::{Context, Contexts, path as contexts_path, unknown};
use crate::remote::RemoteAddr;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ContextCommand {
    /// List the contexts
    List(ListArgs),
    /// Use a context where no other is named
    Use(NameArgs),
    /// Make a context, or change what is given of one. The first one is used from then on
    Set(Box<SetArgs>),
    /// Delete a context. The key file stays
    Delete(NameArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct NameArgs {
    /// The context
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SetArgs {
    /// The context
    #[arg(value_name = "NAME")]
    name: String,
    /// The server: a host or an address with a port, or unix:/path
    #[arg(long, value_name = "ADDR")]
    server: Option<RemoteAddr>,
    /// The file of the caller's key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The tenant of commands that name none
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Whether to encrypt, and trust the authorities that this machine trusts
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    tls: Option<bool>,
    /// Encrypt, and trust the authorities in this PEM file alone
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The PEM file of the certificate to show, where the server demands one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The PEM file of its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the server's certificate must have [default: the host of its address]
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

pub(in crate::cli) fn run(command: ContextCommand) -> Result<(), Failure> {
    match command {
        ContextCommand::List(args) => list(&args),
        ContextCommand::Use(args) => Contexts::change(|all| {
            if !all.contexts.contains_key(&args.name) {
                return Err(unknown(&args.name));
            }
            all.current = Some(args.name);
            Ok(())
        }),
        ContextCommand::Set(args) => set(*args),
        ContextCommand::Delete(args) => Contexts::change(|all| {
            all.contexts.remove(&args.name).ok_or_else(|| unknown(&args.name))?;
            all.current.take_if(|current| *current == args.name);
            Ok(())
        }),
    }
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let all = contexts_path().map(|path| Contexts::read(&path)).transpose()?.unwrap_or_default();
    let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let of = |(name, context): (&String, &Context)| {
        let is_current = all.current.as_ref() == Some(name);
        Fields::default()
            .and_flag("current", is_current)
            .and_text("name", name)
            .and_text("server", context.server.as_deref().unwrap_or_default())
            .and_text("key_file", &shown(&context.key_file))
            .and_text("tenant", context.tenant.as_deref().unwrap_or_default())
            .and_flag("tls", context.tls().is_some())
            .and_text("ca", &shown(&context.ca))
            .and_text("cert", &shown(&context.cert))
            .and_text("key", &shown(&context.key))
            .and_text("server_name", context.server_name.as_deref().unwrap_or_default())
    };
    let rows: Vec<_> = all.contexts.iter().map(of).collect();
    let mut printer = ListPrinter::new(args.output.format(), CONTEXT_COLUMNS);
    printer.page(&rows)?;
    printer.end()
}

fn set(args: SetArgs) -> Result<(), Failure> {
    // They are used in other folders too.
    let whole = |file: Option<PathBuf>| {
        let of_file = |error| Failure::new(Exit::Usage, format!("a file's path cannot be used: {error}"));
        file.map(path::absolute).transpose().map_err(of_file)
    };
    let (key_file, ca, cert, key) = (whole(args.key_file)?, whole(args.ca)?, whole(args.cert)?, whole(args.key)?);
    let name = args.name;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(Failure::new(Exit::Usage, "the name of a context must be a text that can be seen"));
    }
    for file in [&key_file, &ca, &cert, &key].into_iter().flatten().filter(|file| !file.exists()) {
        eprintln!("keyward: {} is not there yet", file.display());
    }
    let is_current = Contexts::change(|all| {
        let context = all.contexts.entry(name.clone()).or_default();
        put(&mut context.server, args.server.map(|addr| addr.to_string()));
        put(&mut context.key_file, key_file);
        put(&mut context.tenant, args.tenant);
        put(&mut context.ca, ca);
        put(&mut context.cert, cert);
        put(&mut context.key, key);
        put(&mut context.server_name, args.server_name);
        match args.tls {
            Some(true) => context.tls = true,
            Some(false) => {
                (context.tls, context.ca, context.cert, context.key, context.server_name) =
                    (false, None, None, None, None);
            }
            None => {}
        }
        Ok(*all.current.get_or_insert_with(|| name.clone()) == name)
    })?;
    if !is_current {
        eprintln!("keyward: to use it from now on: keyward context use {name}");
    }
    Ok(())
}

fn put<T>(place: &mut Option<T>, given: Option<T>) {
    if given.is_some() {
        *place = given;
    }
}
