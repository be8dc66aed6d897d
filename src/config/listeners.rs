//! Listeners as the settings file describes them.

use std::fmt::Write as _;

use serde::Deserialize;

use super::layers::NumberOrText;
use super::table::text;
use crate::server::addr::{ListenAddr, SocketAccess};
use crate::services::{ServiceGroup, Services};

/// A listener: an address, what is served there, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSettings {
    /// The address.
    pub address: ListenAddr,
    /// What is served.
    pub services: Services,
    /// The permissions of a Unix socket.
    pub access: SocketAccess,
    /// The users of this machine who may connect to a Unix socket, by number. `None`: whoever its
    /// permissions allow.
    pub allowed_uids: Option<Vec<u32>>,
    /// Connections at most, within the limit of all listeners. `None`: no limit of its own.
    pub connections_max: Option<usize>,
}

impl ListenerSettings {
    /// A listener that serves everything to whoever connects.
    #[must_use]
    pub fn of(address: ListenAddr, access: SocketAccess) -> Self {
        Self { address, services: Services::ALL, access, allowed_uids: None, connections_max: None }
    }

    /// As an inline table of TOML.
    pub(super) fn to_toml(&self) -> String {
        let Self { address, services, access, allowed_uids, connections_max } = self;
        let services: Vec<_> = services.groups().map(|group| text(&group.name())).collect();
        let mut toml = format!("{{ address = {}, services = [{}]", text(address), services.join(", "));
        // Writing to a string does not fail.
        if matches!(address, ListenAddr::Unix(_)) {
            let _ = write!(toml, ", socket_mode = \"{:04o}\"", access.mode);
            if let Some(group) = &access.group {
                let _ = write!(toml, ", socket_group = {}", text(group));
            }
        }
        if let Some(uids) = allowed_uids {
            let _ = write!(toml, ", allowed_uids = {uids:?}");
        }
        if let Some(connections) = connections_max {
            let _ = write!(toml, ", connections_max = {connections}");
        }
        toml.push_str(" }");
        toml
    }
}

/// A listener as it stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerTable {
    address: String,
    services: Vec<String>,
    socket_mode: Option<String>,
    socket_group: Option<NumberOrText>,
    allowed_uids: Option<Vec<u32>>,
    connections_max: Option<usize>,
}

impl ListenerTable {
    /// What it says. `access` applies where it says nothing of a socket.
    ///
    /// # Errors
    /// Every mistake, with the name of its field.
    pub(super) fn read(self, access: &SocketAccess) -> Result<ListenerSettings, Vec<String>> {
        let Self { address, services, socket_mode, socket_group, allowed_uids, connections_max } = self;
        let mut mistakes = vec![];
        let mut note = |field: &str, what: &str| mistakes.push(format!("{field} {what}"));
        let address = address.parse::<ListenAddr>().map_err(|error| note("address:", &error)).ok();
        let found: Vec<_> = services.iter().map(|name| name.parse::<ServiceGroup>()).collect();
        found.iter().filter_map(|group| group.as_ref().err()).for_each(|error| note("services", error));
        if services.is_empty() {
            note(
                "services",
                &format!("must have at least one of {}", ServiceGroup::ALL.map(ServiceGroup::name).join(", ")),
            );
        }
        let mode = socket_mode.map(|text| {
            let mode = u32::from_str_radix(text.trim(), 8).ok().filter(|mode| *mode <= 0o777);
            mode.or_else(|| {
                note("socket_mode", "must be a text of octal digits, such as \"0660\"");
                None
            })
        });
        let group = socket_group
            .map(|group| group.to_string().parse().map_err(|error: String| note("socket_group", &error)).ok());
        if connections_max == Some(0) {
            note("connections_max", "must be at least 1");
        }
        if !matches!(address, None | Some(ListenAddr::Unix(_))) {
            for (field, is_there) in [("socket_mode", mode.is_some()), ("socket_group", group.is_some())] {
                if is_there {
                    note(field, "is for a listener on unix:/path");
                }
            }
        }
        if allowed_uids.is_some() && matches!(address, Some(ListenAddr::Tcp(_))) {
            note("allowed_uids", "is for a listener on a Unix socket: an address does not tell who connects");
        }
        let Some(address) = address.filter(|_| mistakes.is_empty()) else { return Err(mistakes) };
        Ok(ListenerSettings {
            address,
            services: found.into_iter().flatten().collect(),
            access: SocketAccess {
                mode: mode.flatten().unwrap_or(access.mode),
                group: group.flatten().or_else(|| access.group.clone()),
            },
            allowed_uids,
            connections_max,
        })
    }
}
