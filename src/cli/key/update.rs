//! `keyward key label` and `keyward key update`.

use std::collections::BTreeMap;

use clap::{Args, ValueEnum};
use prost_types::{FieldMask, Timestamp};

use super::super::client::{RetryArgs, Session};
use super::super::failure::{Exit, Failure};
use super::super::print::{self, OutputArgs};
use super::super::when;
use super::fields::pair;
use crate::remote::{Client, wire};

// The label of a key is its display name. Labels that lists select by are set with `update --label`: what
// kubectl's `label` does is refused here, and the refusal says so, because it would rename the key.
#[derive(Debug, Args)]
pub(super) struct LabelArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// The label that people see from now on, such as "Internal Dashboard"
    #[arg(value_name = "TEXT")]
    display_name: String,
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// The key
    #[arg(value_name = "KEY_ID")]
    key_id: String,
    /// The label that people see
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// A longer note
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Who it was issued to
    #[arg(long, value_name = "TEXT")]
    owner: Option<String>,
    /// A scope, instead of all that it has; may be repeated
    #[arg(long = "scope", value_name = "SCOPE", conflicts_with_all = ["add_scopes", "remove_scopes"])]
    scopes: Vec<String>,
    /// A scope beside those that it has; may be repeated
    #[arg(long = "add-scope", value_name = "SCOPE")]
    add_scopes: Vec<String>,
    /// A scope that it has no longer; may be repeated
    #[arg(long = "remove-scope", value_name = "SCOPE")]
    remove_scopes: Vec<String>,
    /// A service that accepts it, instead of all that do; may be repeated
    #[arg(long = "audience", value_name = "NAME")]
    audiences: Vec<String>,
    /// A network that the end caller may come from, instead of all that there are; may be repeated
    #[arg(long = "allowed-cidr", value_name = "CIDR")]
    allowed_cidrs: Vec<String>,
    /// A label that lists can select by, beside those that it has; may be repeated
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A label that it has no longer; may be repeated
    #[arg(long = "remove-label", value_name = "NAME")]
    remove_labels: Vec<String>,
    /// A note for programs, beside those that it has; may be repeated
    #[arg(long = "annotation", value_name = "NAME=VALUE", value_parser = pair)]
    annotations: Vec<(String, String)>,
    /// A note that it has no longer; may be repeated
    #[arg(long = "remove-annotation", value_name = "NAME")]
    remove_annotations: Vec<String>,
    /// Refused before this time: "in 2h", 2026-12-31, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    not_before: Option<Timestamp>,
    /// Refused from this time on: "in 90d", 2026-12-31, or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = when::parse)]
    expires: Option<Timestamp>,
    /// Whether deleting it is refused
    #[arg(long, value_name = "true|false")]
    delete_protected: Option<bool>,
    /// Empty this field; may be repeated. Without scopes a key may do nothing; without the others of these it
    /// is bound by them no more
    #[arg(long, value_name = "FIELD")]
    clear: Vec<Clearable>,
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a change is made under.
#[derive(Debug, Args)]
struct GuardArgs {
    /// Refuse unless this is the key's etag
    #[arg(long, value_name = "ETAG", default_value = "", hide_default_value = true)]
    etag: String,
    /// Check everything on the server, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    retry: RetryArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Clearable {
    Description,
    Owner,
    Scopes,
    Audiences,
    AllowedCidrs,
    Labels,
    Annotations,
    NotBefore,
    Expires,
}

pub(super) fn label(session: Session, tenant: String, args: LabelArgs) -> Result<(), Failure> {
    let LabelArgs { key_id, display_name, guard, output } = args;
    if is_pair(&display_name) {
        let what =
            format!("'{display_name}' looks like a label that lists select by, and this is the name that people see");
        return Err(Failure::new(Exit::Usage, what)
            .hint(format!("keyward key update {key_id} --label '{display_name}'"))
            .hint(format!("if it is the name: keyward key update {key_id} --display-name '{display_name}'")));
    }
    let mut change = Change::of(key_id, tenant);
    change.key.display_name = display_name;
    change.mask("display_name");
    let key = session.run(async |client| change.make(&client, guard).await)?;
    output.print(&print::key(&key))
}

/// `name=value`, as kubectl has it.
fn is_pair(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| !name.is_empty() && !text.contains(char::is_whitespace))
}

pub(super) fn update(session: Session, tenant: String, args: UpdateArgs) -> Result<(), Failure> {
    session.run(async |client| args.make(&client, tenant).await)
}

impl UpdateArgs {
    async fn make(self, client: &Client, tenant: String) -> Result<(), Failure> {
        let mut guard = self.guard;
        let mut change = Change::of(self.key_id, tenant);
        let is_relative = [&self.add_scopes, &self.remove_scopes, &self.remove_labels, &self.remove_annotations];
        let is_relative =
            is_relative.iter().any(|list| !list.is_empty()) || !self.labels.is_empty() || !self.annotations.is_empty();
        if is_relative {
            // What is added to is what was read: if it changes meanwhile, the etag refuses the change.
            let request = wire::GetKeyRequest { key_id: change.key.key_id.clone(), tenant: change.key.tenant.clone() };
            let found = client.get_key(request).await?.key.unwrap_or_default();
            if guard.etag.is_empty() {
                guard.etag = found.etag;
            }
            (change.key.scopes, change.key.labels, change.key.annotations) =
                (found.scopes, found.labels, found.annotations);
        }
        for field in &self.clear {
            change.clear(*field);
        }
        change.text("display_name", self.display_name, |key| &mut key.display_name);
        change.text("description", self.description, |key| &mut key.description);
        change.text("owner", self.owner, |key| &mut key.owner);
        change.list("scopes", self.scopes, |key| &mut key.scopes);
        change.list("audiences", self.audiences, |key| &mut key.audiences);
        change.list("allowed_cidrs", self.allowed_cidrs, |key| &mut key.allowed_cidrs);
        change.scopes(self.add_scopes, &self.remove_scopes);
        change.pairs("labels", self.labels, &self.remove_labels, |key| &mut key.labels);
        change.pairs("annotations", self.annotations, &self.remove_annotations, |key| &mut key.annotations);
        if self.not_before.is_some() {
            change.key.not_before = self.not_before;
            change.mask("not_before");
        }
        if self.expires.is_some() {
            change.key.expire_time = self.expires;
            change.mask("expire_time");
        }
        if let Some(delete_protected) = self.delete_protected {
            change.key.delete_protected = delete_protected;
            change.mask("delete_protected");
        }
        let key = change.make(client, guard).await?;
        self.output.print(&print::key(&key))
    }
}

/// New values of fields, and which.
struct Change {
    key: wire::Key,
    paths: Vec<String>,
}

impl Change {
    fn of(key_id: String, tenant: String) -> Self {
        Self { key: wire::Key { key_id, tenant, ..Default::default() }, paths: vec![] }
    }

    async fn make(self, client: &Client, guard: GuardArgs) -> Result<wire::Key, Failure> {
        if self.paths.is_empty() {
            return Err(Failure::new(Exit::Usage, "nothing is to be changed")
                .hint("`keyward key update --help` has the fields, such as --owner"));
        }
        let request = wire::UpdateKeyRequest {
            key: Some(self.key),
            update_mask: Some(FieldMask { paths: self.paths }),
            etag: guard.etag,
            validate_only: guard.dry_run,
            request_id: guard.retry.id()?,
        };
        let is_dry_run = request.validate_only;
        let key = client.update_key(request).await?.key.unwrap_or_default();
        if is_dry_run {
            print::note_dry_run();
        }
        Ok(key)
    }

    fn mask(&mut self, path: &str) {
        if !self.paths.iter().any(|known| known == path) {
            self.paths.push(path.to_owned());
        }
    }

    fn text(&mut self, path: &str, text: Option<String>, field: impl Fn(&mut wire::Key) -> &mut String) {
        if let Some(text) = text {
            *field(&mut self.key) = text;
            self.mask(path);
        }
    }

    fn list(&mut self, path: &str, list: Vec<String>, field: impl Fn(&mut wire::Key) -> &mut Vec<String>) {
        if !list.is_empty() {
            *field(&mut self.key) = list;
            self.mask(path);
        }
    }

    fn scopes(&mut self, add: Vec<String>, remove: &[String]) {
        if !add.is_empty() || !remove.is_empty() {
            self.key.scopes.retain(|scope| !remove.contains(scope) && !add.contains(scope));
            self.key.scopes.extend(add);
            self.mask("scopes");
        }
    }

    fn pairs(
        &mut self,
        path: &str,
        add: Vec<(String, String)>,
        remove: &[String],
        field: impl Fn(&mut wire::Key) -> &mut BTreeMap<String, String>,
    ) {
        if !add.is_empty() || !remove.is_empty() {
            let pairs = field(&mut self.key);
            pairs.retain(|name, _| !remove.contains(name));
            pairs.extend(add);
            self.mask(path);
        }
    }

    fn clear(&mut self, field: Clearable) {
        let key = &mut self.key;
        let path = match field {
            Clearable::Description => "description",
            Clearable::Owner => "owner",
            Clearable::Scopes => {
                key.scopes.clear();
                "scopes"
            }
            Clearable::Audiences => "audiences",
            Clearable::AllowedCidrs => "allowed_cidrs",
            Clearable::Labels => {
                key.labels.clear();
                "labels"
            }
            Clearable::Annotations => {
                key.annotations.clear();
                "annotations"
            }
            Clearable::NotBefore => "not_before",
            Clearable::Expires => "expire_time",
        };
        self.mask(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_of_kubectls_kind_is_no_name() {
        for (text, expected) in
            [("team=payments", true), ("team=", true), ("Zapier", false), ("a = b", false), ("=x", false)]
        {
            assert_eq!(is_pair(text), expected, "{text}");
        }
    }
}
