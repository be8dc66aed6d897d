//! What a listener says of its callers: which groups of services it serves them, and what it demands.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use keyward_core::enumerate;
use keyward_core::identity::Peer;
use keyward_core::proxies::TrustedProxies;
use serde::{Deserialize, Serialize};

enumerate! {
    /// Services that are served together or not at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ServiceGroup {
        /// keyward.v1.KeyVerify.
        Verify,
        /// keyward.v1.KeyAdmin.
        Admin,
        /// keyward.v1.KeyAudit.
        Audit,
        /// grpc.health.v1.
        Health,
        /// grpc.reflection, v1 and v1alpha: of the services that the same listener serves.
        Reflection,
    }
}

impl ServiceGroup {
    /// Its name in settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Admin => "admin",
            Self::Audit => "audit",
            Self::Health => "health",
            Self::Reflection => "reflection",
        }
    }

    /// The full names of its services.
    fn services(self) -> &'static [&'static str] {
        match self {
            Self::Verify => &["keyward.v1.KeyVerify"],
            Self::Admin => &["keyward.v1.KeyAdmin"],
            Self::Audit => &["keyward.v1.KeyAudit"],
            Self::Health => &["grpc.health.v1.Health"],
            Self::Reflection => &["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"],
        }
    }
}

/// What a listener demands of callers, besides what TLS does. Probes and reflection are open to all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Demand {
    /// A key, or an identity of the connection that the configuration names.
    #[default]
    Either,
    /// A key, which decides, and such an identity.
    Both,
}

/// What holds for the callers of a listener.
#[derive(Clone, Debug)]
pub struct Terms {
    /// What they are served.
    pub services: Services,
    /// What they must show.
    pub demand: Demand,
    /// Who may say which address they call from. `None`: nobody.
    pub proxies: Option<Arc<TrustedProxies>>,
}

impl Terms {
    /// The address that a call comes from on the connection of a peer, with these values of
    /// `x-forwarded-for`.
    pub fn address_of<'v, V: DoubleEndedIterator<Item = &'v [u8]>>(
        &self,
        peer: &Peer,
        forwarded: impl FnOnce() -> V,
    ) -> Option<IpAddr> {
        self.proxies.as_ref().map_or(peer.ip(), |proxies| proxies.client(peer.ip(), forwarded()))
    }
}

/// The header in which a proxy says whom it speaks for.
pub const FORWARDED_FOR: &str = "x-forwarded-for";

impl FromStr for ServiceGroup {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|group| group.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("has '{}', and may have {names}", name.escape_debug())
        })
    }
}

/// A set of groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Services([bool; ServiceGroup::ALL.len()]);

impl Services {
    /// All of them.
    pub const ALL: Self = Self([true; ServiceGroup::ALL.len()]);

    /// Whether a group is among them.
    #[must_use]
    pub fn has(self, group: ServiceGroup) -> bool {
        self.0[group as usize]
    }

    /// The same without a group.
    #[must_use]
    pub fn without(mut self, group: ServiceGroup) -> Self {
        self.0[group as usize] = false;
        self
    }

    /// Those that are there, in order.
    pub fn groups(self) -> impl Iterator<Item = ServiceGroup> {
        ServiceGroup::ALL.into_iter().filter(move |group| self.has(*group))
    }

    /// Whether the service of this full name is served.
    #[must_use]
    pub fn serve(self, service: &str) -> bool {
        self.groups().any(|group| group.services().contains(&service))
    }

    /// Whether the call of this path is served.
    #[must_use]
    pub fn serve_path(self, path: &str) -> bool {
        let service = path.strip_prefix('/').and_then(|path| path.split_once('/')).map(|(service, _)| service);
        service.is_some_and(|service| self.serve(service))
    }

    /// Whether nothing of them is secret, so that callers have nothing to lose without encryption.
    #[must_use]
    pub fn are_public(self) -> bool {
        self.groups().all(|group| matches!(group, ServiceGroup::Health | ServiceGroup::Reflection))
    }
}

impl FromIterator<ServiceGroup> for Services {
    fn from_iter<I: IntoIterator<Item = ServiceGroup>>(groups: I) -> Self {
        let mut services = Self([false; ServiceGroup::ALL.len()]);
        groups.into_iter().for_each(|group| services.0[group as usize] = true);
        services
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.groups().map(ServiceGroup::name)).finish()
    }
}
