//! Listeners as the settings file describes them.

use std::fmt::Write as _;
use std::path::PathBuf;

use keyward_core::proxies::TrustedProxies;
use serde::Deserialize;

use super::layers::{NumberOrText, octal_mode};
use super::table::{text, word};
use crate::server::addr::{ListenAddr, SocketAccess};
use crate::server::tls::{ClientCertificates, ClientTls, TlsFiles};
use crate::services::{Demand, ServiceGroup, Services};

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
    /// What callers must show.
    pub demand: Demand,
    /// The proxies in front of it, which may say whom they speak for. `None`: none.
    pub trusted_proxies: Option<TrustedProxies>,
    /// Connections at most, within the limit of all listeners. `None`: no limit of its own.
    pub connections_max: Option<usize>,
    /// How connections are encrypted. `None`: not at all.
    pub tls: Option<TlsFiles>,
}

impl ListenerSettings {
    /// A listener that serves everything to whoever connects.
    #[must_use]
    pub fn of(address: ListenAddr, access: SocketAccess) -> Self {
        Self {
            address,
            services: Services::ALL,
            access,
            allowed_uids: None,
            demand: Demand::default(),
            trusted_proxies: None,
            connections_max: None,
            tls: None,
        }
    }

    /// As an inline table of TOML.
    pub(super) fn to_toml(&self) -> String {
        let Self { address, services, access, allowed_uids, demand, trusted_proxies, connections_max, tls } = self;
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
        let _ = write!(toml, ", demand = {}", word(demand));
        if let Some(proxies) = trusted_proxies {
            let proxies: Vec<_> = proxies.texts().map(|proxy| text(&proxy)).collect();
            let _ = write!(toml, ", trusted_proxies = [{}]", proxies.join(", "));
        }
        if let Some(connections) = connections_max {
            let _ = write!(toml, ", connections_max = {connections}");
        }
        if let Some(tls) = tls {
            let _ = write!(toml, ", tls = {}", tls_to_toml(tls));
        }
        toml.push_str(" }");
        toml
    }
}

/// The files of TLS as they stand in the file, or as settings of their own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsTable {
    pub(super) certificate_file: Option<PathBuf>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) client_ca_file: Option<PathBuf>,
    pub(super) client_crl_file: Option<PathBuf>,
    pub(super) client_certificates: Option<ClientCertificates>,
}

impl TlsTable {
    /// What it says.
    ///
    /// # Errors
    /// With the first field that is missing, or makes no sense without another.
    pub(super) fn read(self) -> Result<TlsFiles, String> {
        let Self { certificate_file, key_file, client_ca_file, client_crl_file, client_certificates } = self;
        let given = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        let [certificate, key, authorities, revoked] =
            [certificate_file, key_file, client_ca_file, client_crl_file].map(given);
        let certificate = certificate.ok_or("certificate_file must be given")?;
        let key = key.ok_or("key_file must be given")?;
        let client = match authorities {
            Some(authorities) => {
                Some(ClientTls { authorities, revoked, demand: client_certificates.unwrap_or_default() })
            }
            None if revoked.is_some() => return Err("client_crl_file needs a client_ca_file".to_owned()),
            None if client_certificates.is_some() => {
                return Err("client_certificates needs a client_ca_file".to_owned());
            }
            None => None,
        };
        Ok(TlsFiles { certificate, key, client })
    }
}

/// What a listener says of TLS.
#[derive(Deserialize)]
#[serde(untagged)]
enum TlsChoice {
    /// Whether to use the files that the settings have.
    Shared(bool),
    Own(TlsTable),
}

/// The files as an inline table.
fn tls_to_toml(files: &TlsFiles) -> String {
    let TlsFiles { certificate, key, client } = files;
    let mut toml =
        format!("{{ certificate_file = {}, key_file = {}", text(&certificate.display()), text(&key.display()));
    if let Some(ClientTls { authorities, revoked, demand }) = client {
        let _ = write!(toml, ", client_ca_file = {}", text(&authorities.display()));
        if let Some(revoked) = revoked {
            let _ = write!(toml, ", client_crl_file = {}", text(&revoked.display()));
        }
        let _ = write!(toml, ", client_certificates = {}", word(demand));
    }
    toml.push_str(" }");
    toml
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
    demand: Option<Demand>,
    #[serde(default)]
    trusted_proxies: Vec<String>,
    connections_max: Option<usize>,
    tls: Option<TlsChoice>,
}

impl ListenerTable {
    /// What it says. `access` applies where it says nothing of a socket, `shared` where it says `tls = true`.
    ///
    /// # Errors
    /// Every mistake, with the name of its field.
    pub(super) fn read(
        self,
        access: &SocketAccess,
        shared: Option<&TlsFiles>,
    ) -> Result<ListenerSettings, Vec<String>> {
        let Self {
            address,
            services,
            socket_mode,
            socket_group,
            allowed_uids,
            demand,
            trusted_proxies,
            connections_max,
            tls,
        } = self;
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
            octal_mode(&text).or_else(|| {
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
        let tls = match tls {
            None | Some(TlsChoice::Shared(false)) => None,
            Some(TlsChoice::Shared(true)) => {
                if shared.is_none() {
                    note("tls", "is true, and there are no tls_certificate_file and tls_key_file");
                }
                shared.cloned()
            }
            Some(TlsChoice::Own(table)) => table.read().map_err(|what| note("tls:", &what)).ok(),
        };
        if tls.is_some() && matches!(address, Some(ListenAddr::Unix(_))) {
            note("tls", "is for an address: a Unix socket does not leave this machine");
        }
        let mut proxies = TrustedProxies::default();
        for text in &trusted_proxies {
            if let Err(error) = proxies.add(text) {
                note("trusted_proxies", &format!("has '{}', which {error}; or 'unix'", text.escape_debug()));
            }
        }
        let demand = demand.unwrap_or_default();
        let proves = match &address {
            Some(ListenAddr::Tcp(_)) => tls.as_ref().is_some_and(|tls| tls.client.is_some()),
            // Which kind a socket is that is passed shows only at the start.
            Some(ListenAddr::Unix(_) | ListenAddr::Passed(_)) | None => true,
        };
        if demand == Demand::Both && !proves {
            note(
                "demand",
                "is both, and nothing proves who connects: it needs tls with a client_ca_file, or a Unix socket",
            );
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
            demand,
            trusted_proxies: (!trusted_proxies.is_empty()).then_some(proxies),
            connections_max,
            tls,
        })
    }
}
