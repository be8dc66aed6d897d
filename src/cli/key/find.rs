//! `keyward key find`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use super::super::client::{Session, ask_for_secret, secret_as_argument};
use super::super::failure::{Exit, Failure};
use super::super::print::{self, Fields, OutputArgs};
use super::list::PAGE_SIZE_MAX;
use crate::remote::wire::batch_verify_result::Result as Answer;
use crate::remote::{CallError, Client, RefusedKind, wire};
use crate::util::terminal::harmless;

#[derive(Debug, Args)]
pub(super) struct FindArgs {
    /// A file with the secret; - is standard input [default: it is asked for]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Refused without a word of it. Otherwise clap would print it.
    #[arg(hide = true)]
    argument: Option<OsString>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Prints the verdict about a secret, and its key as far as the caller may read it.
pub(super) fn find(session: Session, tenant: Option<String>, args: FindArgs) -> Result<(), Failure> {
    if args.argument.is_some() {
        return Err(secret_as_argument());
    }
    session.run(async |client| {
        let secret = ask_for_secret(args.secret_file.as_deref()).await?;
        let tenant = tenant.unwrap_or_default();
        let request = wire::VerifyRequest {
            secret: secret.to_string(),
            tenant: tenant.clone(),
            mode: wire::Mode::Peek.into(),
            explain: true,
            ..Default::default()
        };
        let verdict = client.verify(request.clone()).await?;
        let Some(found) = &verdict.key else { return Err(not_found(&verdict)) };
        let tenant = match (&*found.tenant, &*tenant) {
            ("", "") => tenant_of(&client, &request).await?,
            ("", pinned) => Some(pinned.to_owned()),
            (told, _) => Some(told.to_owned()),
        };
        let key = match tenant {
            Some(tenant) => read(&client, found.key_id.clone(), tenant).await?,
            None => None,
        };
        if key.is_none() {
            eprintln!("keyward: this caller may not read the key itself, which takes the role keyward.viewer");
        }
        args.output.print(&print::verdict(&verdict, key))
    })
}

/// Without a key there is nothing to print.
fn not_found(verdict: &wire::VerifyResponse) -> Failure {
    let failure = match verdict.reason() {
        wire::Reason::Malformed => {
            Failure::new(Exit::NotFound, "this is not the secret of a key: it has not the form of one")
        }
        _ => Failure::new(Exit::NotFound, "no key that this caller may see has this secret"),
    };
    match verdict.checks.iter().find(|check| !check.detail.is_empty()) {
        Some(check) => failure.hint(harmless(&check.detail)),
        None => failure,
    }
}

/// The tenant of a secret whose verdict does not tell it, as that of a refused one does not. Each tenant that
/// the caller may see is asked for. `None`: they may see none.
async fn tenant_of(client: &Client, request: &wire::VerifyRequest) -> Result<Option<String>, Failure> {
    let mut page_token = String::new();
    loop {
        let page = client.list_tenants(wire::ListTenantsRequest { page_size: PAGE_SIZE_MAX, page_token }).await;
        let Some(page) = unless_denied(page)? else { return Ok(None) };
        let of = |tenant: &wire::Tenant| wire::VerifyRequest { tenant: tenant.tenant.clone(), ..request.clone() };
        let requests: Vec<_> = page.tenants.iter().map(of).collect();
        let results = match requests.is_empty() {
            true => vec![],
            false => client.batch_verify(wire::BatchVerifyRequest { requests }).await?.results,
        };
        let is_its = |result: &wire::BatchVerifyResult| match &result.result {
            Some(Answer::Response(verdict)) => verdict.key.is_some(),
            _ => false,
        };
        if let Some((tenant, _)) = page.tenants.into_iter().zip(results).find(|(_, result)| is_its(result)) {
            return Ok(Some(tenant.tenant));
        }
        if page.next_page_token.is_empty() {
            return Ok(None);
        }
        page_token = page.next_page_token;
    }
}

/// The key, if the caller may read it.
async fn read(client: &Client, key_id: String, tenant: String) -> Result<Option<Fields>, Failure> {
    let reply = unless_denied(client.get_key(wire::GetKeyRequest { key_id, tenant }).await)?;
    Ok(reply.map(|reply| print::key(&reply.key.unwrap_or_default())))
}

fn unless_denied<T>(reply: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match reply {
        // What a caller may not see looks to them as if it were not there.
        Err(CallError::Refused(refused)) if matches!(refused.kind, RefusedKind::Denied | RefusedKind::NotFound) => {
            Ok(None)
        }
        reply => reply.map(Some),
    }
}
