//! The fields of a key to be, as flags.

use std::collections::BTreeMap;

use clap::Args;
use prost_types::Timestamp;
use zeroize::Zeroizing;

use super::super::client::RetryArgs;
use super::super::failure::{Exit, Failure};
use super::super::when;
use crate::remote::{seal_info, wire};
use crate::util::hpke::KeyPair;

/// What keys and callers have in common when they are issued.
#[derive(Debug, Args)]
pub(in crate::cli) struct IssueArgs {
    /// The id to be [default: one that the server makes]
    #[arg(value_name = "KEY_ID", default_value = "", hide_default_value = true)]
    key_id: String,
    /// The label that people see, such as "Zapier"
    #[arg(long, value_name = "TEXT")]
    display_name: String,
    /// A longer note
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Who it is issued to: a customer, a team, a service
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    owner: String,
    /// A network that the end caller may come from, such as 10.0.0.0/8; may be repeated [default: any]
    #[arg(long = "allowed-cidr", value_name = "CIDR")]
    allowed_cidrs: Vec<String>,
    /// A service that accepts it; may be repeated [default: any]
    #[arg(long = "audience", value_name = "NAME")]
    audiences: Vec<String>,
    /// A label that lists can select by; may be repeated
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A note for programs; may be repeated
    #[arg(long = "annotation", value_name = "NAME=VALUE", value_parser = pair)]
    annotations: Vec<(String, String)>,
    /// Refused before this time: "in 2h", 2026-12-31, or RFC 3339 [default: at once]
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    not_before: Option<Timestamp>,
    /// Refused from this time on: "in 90d", 2026-12-31, or RFC 3339 [default: without end]
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    expires: Option<Timestamp>,
    /// Issue it disabled, to be enabled later
    #[arg(long)]
    disabled: bool,
    /// Refuse to delete it until this is taken back
    #[arg(long)]
    delete_protected: bool,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    retry: RetryArgs,
}

/// A key to be issued.
pub(in crate::cli) struct Issue {
    pub(super) request: wire::CreateKeyRequest,
    pub(super) reply_key: ReplyKey,
}

/// What opens a secret that comes sealed, so that the server can be asked again. It lives for one run.
pub(super) struct ReplyKey(Option<KeyPair>);

impl ReplyKey {
    /// Without one, the secret comes as it is: for a call that another run may ask again, or that issues
    /// nothing.
    pub(super) fn draw(retry: &RetryArgs, is_dry_run: bool) -> Result<Self, Failure> {
        let no_randomness = || Failure::new(Exit::Failed, "there is no randomness for a key pair");
        let is_wanted = !is_dry_run && !retry.is_given();
        is_wanted.then(|| KeyPair::generate().ok_or_else(no_randomness)).transpose().map(Self)
    }

    /// The public key, for the request.
    pub(super) fn public(&self) -> Vec<u8> {
        self.0.as_ref().map(|pair| pair.public.as_bytes().to_vec()).unwrap_or_default()
    }

    /// The secret of a reply to a call with a request id.
    pub(super) fn secret(
        &self,
        (call, request_id): (&str, &str),
        plain: String,
        sealed: &[u8],
    ) -> Result<Zeroizing<String>, Failure> {
        // A server that knows no sealed secrets sends it as it is.
        let (Some(pair), false) = (&self.0, sealed.is_empty()) else { return Ok(Zeroizing::new(plain)) };
        let opened = pair.open(&seal_info(call, request_id), sealed);
        let text =
            opened.and_then(|bytes| std::str::from_utf8(&bytes).ok().map(|text| Zeroizing::new(text.to_owned())));
        text.ok_or_else(|| Failure::new(Exit::Failed, "the server sealed the secret so that it does not open"))
    }
}

impl IssueArgs {
    pub(in crate::cli) fn request(
        self,
        tenant: String,
        environment: String,
        scopes: Vec<String>,
    ) -> Result<Issue, Failure> {
        let reply_key = ReplyKey::draw(&self.retry, self.dry_run)?;
        let request = wire::CreateKeyRequest {
            tenant,
            key_id: self.key_id,
            display_name: self.display_name,
            description: self.description,
            owner: self.owner,
            environment,
            scopes,
            audiences: self.audiences,
            allowed_cidrs: self.allowed_cidrs,
            labels: pairs(self.labels),
            annotations: pairs(self.annotations),
            not_before: self.not_before,
            expire_time: self.expires,
            disabled: self.disabled,
            delete_protected: self.delete_protected,
            validate_only: self.dry_run,
            request_id: self.retry.id()?,
            reply_public_key: reply_key.public(),
        };
        Ok(Issue { request, reply_key })
    }
}

/// A name and a value.
///
/// # Errors
/// Where there is no name.
pub(super) fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE"),
    }
}

pub(super) fn pairs(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}
