//! Why a command of the client failed: what is printed, and the exit code.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::remote::{CallError, Refused, RefusedKind};
use crate::util::terminal::harmless;

/// An exit code of the commands that call a server. `keyward health` has some of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// A file cannot be used, or the server fails for another reason than those below.
    Failed = 1,
    /// The command line is wrong, for the program or for the server's rules.
    Usage = 2,
    /// The server cannot be reached, or cannot do this now.
    Unavailable = 3,
    /// There is no such key, tenant or context.
    NotFound = 4,
    /// The caller is not known, or holds no role for this.
    Denied = 5,
    /// What is there forbids it: an id that is taken, an etag that is outdated, a state.
    Conflict = 6,
}

/// Exit codes and their meanings, as the manual has them.
pub(super) const EXIT_CODES: [(u8, &str); 7] = [
    (0, "done; of key find: a key has this secret, whatever its verdict"),
    (Exit::Failed as u8, "a file cannot be read or written, or the server failed"),
    (Exit::Usage as u8, "the command line is wrong, or the server refused a value in it"),
    (Exit::Unavailable as u8, "the server cannot be reached, did not answer in time, or cannot do this now: try again"),
    (Exit::NotFound as u8, "there is no such key, tenant or context; of key find: no key has this secret"),
    (Exit::Denied as u8, "the caller is not known to the server, or holds no role for this"),
    (Exit::Conflict as u8, "what is there forbids it: an id that is taken, an etag that is outdated, a state"),
];

/// Why a command failed. It never has a secret in it.
#[derive(Debug)]
pub(super) struct Failure {
    exit: Exit,
    what: String,
    /// What to do next, a line each.
    next: Vec<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), next: vec![] }
    }

    /// With what to do next.
    pub(super) fn hint(mut self, next: impl Into<String>) -> Self {
        self.next.push(next.into());
        self
    }

    /// Prints it, and gives its exit code.
    pub(super) fn report(self) -> ExitCode {
        eprintln!("keyward: {}", self);
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.next.iter().try_for_each(|next| write!(f, "\n  {next}"))
    }
}

impl Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let what = error.to_string();
        match error {
            CallError::Refused(refused) => of_refusal(&refused),
            CallError::KeyFile { .. } | CallError::NoKey { .. } => Self::new(Exit::Failed, what)
                .hint("name a file with the secret of a key of tenant system: --key-file, or `keyward context set`"),
            CallError::ExposedKeyFile { path, .. } => {
                Self::new(Exit::Failed, what).hint(format!("chmod 600 {}", path.display()))
            }
            CallError::Endpoint(_) => Self::new(Exit::Failed, what),
            CallError::Connect { .. } => Self::new(Exit::Unavailable, what)
                .hint("see that it runs, and that the address is right: --server, or `keyward context list`")
                .hint("see whether it encrypts (--tls, --ca), and demands a certificate (--cert, --key)"),
            CallError::TimedOut { is_change, .. } => may_be_done(Self::new(Exit::Unavailable, what), is_change),
            CallError::Broken { is_change, .. } => may_be_done(
                Self::new(Exit::Unavailable, what)
                    .hint("see whether the server encrypts (--tls, --ca), and demands a certificate (--cert, --key)"),
                is_change,
            ),
        }
    }
}

/// A change whose answer was lost may have been made.
fn may_be_done(failure: Failure, is_change: bool) -> Failure {
    match is_change {
        true => failure.hint("the change may have been made: look before you try again"),
        false => failure,
    }
}

fn of_refusal(refused: &Refused) -> Failure {
    let exit = match refused.kind {
        RefusedKind::BadRequest => Exit::Usage,
        RefusedKind::NotFound => Exit::NotFound,
        RefusedKind::Denied => Exit::Denied,
        RefusedKind::Conflict => Exit::Conflict,
        RefusedKind::Unavailable => Exit::Unavailable,
        RefusedKind::Other => Exit::Failed,
    };
    if !refused.violations.is_empty() {
        let what = format!("the server refused {} ({})", refused.call, refused.reason);
        let mut failure = Failure::new(exit, what);
        for (field, rule) in &refused.violations {
            failure = failure.hint(format!("{}: {}", named(field), harmless(rule)));
        }
        return failure;
    }
    let failure = Failure::new(exit, harmless(&refused.to_string()));
    match (next_step(refused), refused.retry_after) {
        (Some(next), _) => failure.hint(next),
        (None, Some(delay)) => failure.hint(format!("try again after {}", humantime::format_duration(delay))),
        (None, None) => failure,
    }
}

/// A field of a request, and the argument that sets it.
fn named(field: &str) -> String {
    let bare = field.strip_prefix("key.").or(field.strip_prefix("selector.")).unwrap_or(field);
    let name = bare.split(['[', '.']).next().unwrap_or(bare);
    let argument = match name {
        "key_id" => "KEY_ID",
        "tenant" => "TENANT, --tenant",
        "display_name" => "--display-name",
        "description" => "--description",
        "owner" => "--owner",
        "environment" => "--environment",
        "scopes" => "--scope, --role",
        "audiences" => "--audience",
        "allowed_cidrs" => "--allowed-cidr",
        "labels" => "--label",
        "annotations" => "--annotation",
        "not_before" => "--not-before",
        "expire_time" => "--expires",
        "resume_time" => "--resume-time",
        "purge_after" => "--purge-after",
        "delete_protected" => "--delete-protected",
        "etag" => "--etag",
        "request_id" => "--request-id",
        "reason" => "--reason",
        "secret_prefix" => "--secret-prefix",
        "page_size" => "--page-size",
        "overlap" => "--overlap",
        "page_token" => "--page-token",
        _ => return harmless(field),
    };
    format!("{} ({argument})", harmless(bare))
}

fn next_step(refused: &Refused) -> Option<String> {
    Some(match &*refused.reason {
        "CREDENTIAL_MISSING" | "IDENTITY_UNKNOWN" => {
            "name a file with the secret of a key of tenant system: --key-file, or `keyward context set`".to_owned()
        }
        "CREDENTIAL_REFUSED" => "call with another key: --key-file, or --context".to_owned(),
        "ROLE_MISSING" => match refused.role {
            "keyward.admin" => format!("{} needs the role keyward.admin of all tenants", refused.call),
            role => format!(
                "{} needs the role {role}, or keyward.admin, for this tenant; in tenant system keyward.admin",
                refused.call
            ),
        },
        "KEY_NOT_FOUND" => "`keyward key list` has the keys of a tenant; --tenant looks in another".to_owned(),
        "TENANT_NOT_FOUND" => "`keyward tenant list` has those that you may see".to_owned(),
        "KEY_EXISTS" => "choose another KEY_ID, or none: then the server makes one".to_owned(),
        "TENANT_EXISTS" => "choose another TENANT".to_owned(),
        "ETAG_MISMATCH" => "`keyward key get` has the key as it is now, and its etag; `tenant get`, `owner get` and `epoch get` likewise".to_owned(),
        "OWNER_HELD" => "`keyward owner get` says whether the owner is suspended, and why".to_owned(),
        "EPOCH_LOWERED" => "`keyward epoch get` has the time that is set".to_owned(),
        "DELETE_PROTECTED" => "`keyward key update KEY_ID --delete-protected false` lets it be deleted".to_owned(),
        "REQUEST_ID_REUSED" => "name each change anew with --request-id, or leave it out".to_owned(),
        "STATE_FORBIDS" => "`keyward key get` says which state the key is in, and why".to_owned(),
        _ => return None,
    })
}
