//! `keyward key create`, and what it shares with `keyward caller create` and `keyward key rotate`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use super::super::client::{SecretFile, Session};
use super::super::failure::{Exit, Failure};
use super::super::print::{self, Fields, Format, format_or_default};
use super::fields::{Issue, IssueArgs};
use crate::remote::{Client, wire};

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    pub(super) issue: IssueArgs,
    /// `live`, `test` or another short word, which is part of the secret [default: live]
    #[arg(long, value_name = "WORD", default_value = "", hide_default_value = true)]
    pub(super) environment: String,
    /// What the key may do, such as orders.read or orders.*; may be repeated [default: nothing]
    #[arg(long = "scope", value_name = "SCOPE")]
    pub(super) scopes: Vec<String>,
    #[command(flatten)]
    pub(super) output: CreateOutput,
}

/// Where the reply and the secret go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(in crate::cli) struct CreateOutput {
    /// How to print [default: table on a terminal, json elsewhere]
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<CreateFormat>,
    /// Write the secret to this file, which must not be there yet and which only its owner may read, and
    /// print the rest
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CreateFormat {
    /// For people
    Table,
    /// For programs: the reply, with the key and the secret
    Json,
    /// The secret alone, as one line
    Secret,
}

/// Issues a key.
pub(in crate::cli) fn create(session: Session, output: CreateOutput, new: Issue) -> Result<(), Failure> {
    let hint = "the secret is shown nowhere else: revoke the key, and issue another";
    let Issue { request, reply_key } = new;
    issue(session, output, request.validate_only, hint, async |client| {
        let request_id = request.request_id.clone();
        let reply = client.create_key(request).await?;
        let secret = reply_key.secret(("CreateKey", &request_id), reply.secret, &reply.sealed_secret)?;
        Ok((reply.key, secret, reply.revision))
    })
}

/// What comes of a call that issues a secret: the key, the secret and the revision.
pub(super) type Reply = (Option<wire::Key>, Zeroizing<String>, u64);

/// Makes a call that issues a secret, and puts the secret where it belongs. `hint` says what to do where that
/// fails.
pub(super) fn issue(
    session: Session,
    output: CreateOutput,
    is_dry_run: bool,
    hint: &'static str,
    call: impl AsyncFnOnce(&Client) -> Result<Reply, Failure>,
) -> Result<(), Failure> {
    if output.output == Some(CreateFormat::Secret) && (output.secret_file.is_some() || is_dry_run) {
        let what =
            "--output secret prints the secret, which goes elsewhere with --secret-file, and is none with --dry-run";
        return Err(Failure::new(Exit::Usage, what).hint("leave one of them out"));
    }
    let path = output.secret_file.as_deref().filter(|_| !is_dry_run);
    let ((key, secret, revision), file) = session.run(async |client| {
        // Before anything is issued. Where no reply comes, it goes.
        let file = path.map(SecretFile::create).transpose()?;
        Ok((call(&client).await?, file))
    })?;
    if is_dry_run {
        print::note_dry_run();
    }
    let issued = Issued { key: key.unwrap_or_default(), secret, revision, is_in_file: file.is_some(), hint };
    if let Some(file) = file {
        file.keep(&issued.secret).map_err(|error| issued.is_lost(&error))?;
    }
    issued.print(output.output)
}

/// A key with a secret that has been issued.
struct Issued {
    key: wire::Key,
    /// Empty: nothing was issued.
    secret: Zeroizing<String>,
    revision: u64,
    is_in_file: bool,
    hint: &'static str,
}

impl Issued {
    fn print(&self, format: Option<CreateFormat>) -> Result<(), Failure> {
        let format = match format {
            Some(CreateFormat::Table) => Some(Format::Table),
            Some(CreateFormat::Json) => Some(Format::Json),
            None => Some(format_or_default(None)),
            Some(CreateFormat::Secret) => None,
        };
        let secret = if self.is_in_file { "" } else { &self.secret };
        let key = print::key(&self.key);
        let text = Zeroizing::new(match format {
            None => format!("{secret}\n"),
            Some(Format::Table) => print::text(Format::Table, &key.and_text("secret", secret)),
            Some(Format::Json) => {
                let reply = Fields::default().and_object("key", key).and_text("secret", secret);
                print::text(Format::Json, &reply.and_long("revision", self.revision))
            }
        });
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Where the reader has gone, the secret has gone with it.
            Err(error) if !secret.is_empty() => return Err(self.is_lost(&error)),
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        if format == Some(Format::Table) && !secret.is_empty() && io::stdout().is_terminal() {
            eprintln!("keyward: the secret is shown this once; the server keeps only a keyed hash of it");
        }
        Ok(())
    }

    fn is_lost(&self, error: &io::Error) -> Failure {
        let id = &self.key.key_id;
        let what = format!("a secret of key {id} was issued, and could not be written: {error}");
        Failure::new(Exit::Failed, what).hint(self.hint)
    }
}
