//! What the settings file gives to the identities of connections.

use std::collections::HashSet;

use keyward_core::access::RoleScope;
use keyward_core::identity::{Assignment, IdentityName};
use keyward_core::limits::AUDIENCE_BYTES_MAX;
use keyward_core::scope::Scope;
use serde::Deserialize;

use super::ListenerSettings;
use super::table::text;
use crate::server::addr::ListenAddr;

/// Identities in a configuration, at most.
const IDENTITIES_MAX: usize = 10_000;

/// An identity as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IdentityTable {
    name: String,
    #[serde(default)]
    roles: Vec<String>,
    audience: Option<String>,
}

impl IdentityTable {
    /// What it says.
    ///
    /// # Errors
    /// Every mistake, with the name of its field.
    pub(super) fn read(self) -> Result<Assignment, Vec<String>> {
        let Self { name, roles, audience } = self;
        let mut mistakes = vec![];
        let name = IdentityName::parse(&name).map_err(|rule| mistakes.push(format!("name {rule}"))).ok();
        let mut role = |text: &String| {
            let read = Scope::parse(text).and_then(|scope| RoleScope::parse(&scope));
            read.map_err(|rule| mistakes.push(format!("roles has '{}': {rule}", text.escape_debug()))).ok()
        };
        let roles: Vec<_> = roles.iter().filter_map(&mut role).collect();
        let is_audience =
            |text: &String| (1..=AUDIENCE_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if audience.as_ref().is_some_and(|text| !is_audience(text)) {
            mistakes.push(format!("audience must have 1 to {AUDIENCE_BYTES_MAX} bytes and no control characters"));
        }
        name.filter(|_| mistakes.is_empty()).map(|name| Assignment { name, roles, audience }).ok_or(mistakes)
    }
}

/// As an inline table of TOML.
pub(super) fn to_toml(Assignment { name, roles, audience }: &Assignment) -> String {
    let roles: Vec<_> = roles.iter().map(|role| text(&role.to_scope())).collect();
    let audience = audience.as_ref().map(|audience| format!(", audience = {}", text(audience))).unwrap_or_default();
    format!("{{ name = {}, roles = [{}]{audience} }}", text(name), roles.join(", "))
}

/// Why identities as a whole cannot be used, each with its number from 1, if it is about one of them: there
/// are too many, one is named twice, or no listener can prove it.
pub(super) fn mistakes_of(identities: &[Assignment], listeners: &[ListenerSettings]) -> Vec<String> {
    let mut mistakes = vec![];
    if identities.len() > IDENTITIES_MAX {
        mistakes.push(format!("must be at most {IDENTITIES_MAX}, and there are {}", identities.len()));
    }
    let is_passed = |listener: &ListenerSettings| matches!(listener.address, ListenAddr::Passed(_));
    let has_users = listeners.iter().any(|l| is_passed(l) || matches!(l.address, ListenAddr::Unix(_)));
    let has_certificates = listeners.iter().any(|l| l.tls.as_ref().is_some_and(|tls| tls.client.is_some()));
    let mut names = HashSet::new();
    for (at, Assignment { name, .. }) in identities.iter().enumerate() {
        let number = at + 1;
        if !names.insert(name) {
            mistakes.push(format!("number {number}: {name} is there already"));
        } else if name.is_of_certificate() && !has_certificates {
            mistakes.push(format!(
                "number {number}: {name} is of a client certificate, and no listener has a client_ca_file to check one with"
            ));
        } else if !name.is_of_certificate() && !has_users {
            mistakes.push(format!(
                "number {number}: {name} is of a user of this machine, and no listener is a Unix socket"
            ));
        }
    }
    mistakes
}
