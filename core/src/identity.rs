//! Identities that a caller's connection proves, and what the configuration gives them.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::access::RoleScope;
use crate::clock::{Now, UnixMillis};
use crate::id::{ActorId, InvalidName};

/// The name of an identity: `spiffe://…` or `dns:<name>` of a client certificate, or `unix:<uid>` of a user
/// of this machine. It is the author of what its holder changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdentityName(ActorId);

impl IdentityName {
    /// Reads a name.
    ///
    /// # Errors
    /// With the rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        const RULE: InvalidName = InvalidName(
            "must be spiffe://<trust domain>/<path> as in a client certificate, dns:<name in lower case>, or unix:<uid>, of at most \
             256 bytes",
        );
        let is_identity = ["spiffe://", "dns:", "unix:"].iter().any(|kind| text.starts_with(kind));
        let actor = ActorId::parse(text).ok().filter(|_| is_identity);
        actor.map(Self).ok_or(RULE)
    }

    /// The name of a user of this machine.
    #[must_use]
    pub fn of_uid(uid: u32) -> Option<Self> {
        Self::parse(&format!("unix:{uid}")).ok()
    }

    /// As the author of a change.
    #[must_use]
    pub fn actor(&self) -> &ActorId {
        &self.0
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether a client certificate proves it.
    #[must_use]
    pub fn is_of_certificate(&self) -> bool {
        !self.as_str().starts_with("unix:")
    }
}

impl fmt::Display for IdentityName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a connection proves about its caller: by the certificate of TLS, or by the credentials of a Unix
/// socket.
#[derive(Debug)]
pub struct PeerIdentity {
    name: Option<IdentityName>,
    until: Option<UnixMillis>,
    is_withdrawn: AtomicBool,
}

impl PeerIdentity {
    /// An identity that holds up to and including a time. Without a name, as of a certificate with several,
    /// it gives nothing, but its end still ends the calls of its connection.
    #[must_use]
    pub fn new(name: Option<IdentityName>, until: Option<UnixMillis>) -> Self {
        Self { name, until, is_withdrawn: AtomicBool::new(false) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Option<&IdentityName> {
        self.name.as_ref()
    }

    /// Ends it, for good: its certificate is not trusted any more.
    pub fn withdraw(&self) {
        self.is_withdrawn.store(true, Ordering::Release);
    }

    /// Whether it was withdrawn.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.is_withdrawn.load(Ordering::Acquire)
    }

    /// Whether it holds.
    #[must_use]
    pub fn is_good(&self, now: Now) -> bool {
        !self.is_withdrawn() && self.until.is_none_or(|until| now.latest() <= until)
    }
}

/// Where a call comes from, as its connection knows it. A clone is cheap.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    ip: Option<IpAddr>,
    identity: Option<Arc<PeerIdentity>>,
}

impl Peer {
    /// The other end of a connection, with what it proves.
    #[must_use]
    pub fn new(ip: Option<IpAddr>, identity: Option<Arc<PeerIdentity>>) -> Self {
        Self { ip, identity }
    }

    /// The address. `None`: it is on this machine, over a Unix socket, or behind a proxy that does not tell
    /// it.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The same connection, for a call that came from another address: a proxy passed it on.
    #[must_use]
    pub fn on_behalf_of(self, ip: Option<IpAddr>) -> Self {
        Self { ip, ..self }
    }

    /// What it proves: by a client certificate, or as a user of this machine.
    #[must_use]
    pub fn identity(&self) -> Option<&Arc<PeerIdentity>> {
        self.identity.as_ref()
    }
}

/// What the configuration gives an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Whose it is.
    pub name: IdentityName,
    /// The roles of its holder in calls without a key. There may be none.
    pub roles: Vec<RoleScope>,
    /// The audience of every verdict that its holder asks for, with a key or without. `None`: the one in the
    /// request.
    pub audience: Option<String>,
}

/// All that the configuration gives to identities. It can be replaced at any time.
#[derive(Debug, Default)]
pub struct Identities {
    generation: AtomicU64,
    assigned: RwLock<HashMap<IdentityName, Arc<Assignment>>>,
}

impl Identities {
    /// From assignments. Of two for one name the last counts.
    #[must_use]
    pub fn new(assignments: impl IntoIterator<Item = Assignment>) -> Self {
        Self { generation: AtomicU64::new(0), assigned: RwLock::new(by_name(assignments)) }
    }

    /// Gives these and nothing else from now on: calls under way are judged by them too. Whether that changes
    /// anything.
    pub fn replace(&self, assignments: impl IntoIterator<Item = Assignment>) -> bool {
        let assignments = by_name(assignments);
        let mut assigned = self.assigned.write().unwrap_or_else(PoisonError::into_inner);
        if *assigned == assignments {
            return false;
        }
        *assigned = assignments;
        // After the assignments: what is looked up at a generation is at least as new.
        self.generation.fetch_add(1, Ordering::Release);
        true
    }

    /// A number that grows with each replacement. While it stands still, what was looked up since is current.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether it names none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.assigned.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What an identity is given. `None`: the configuration does not name it.
    #[must_use]
    pub fn of(&self, name: &IdentityName) -> Option<Arc<Assignment>> {
        self.assigned.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

fn by_name(assignments: impl IntoIterator<Item = Assignment>) -> HashMap<IdentityName, Arc<Assignment>> {
    assignments.into_iter().map(|assignment| (assignment.name.clone(), Arc::new(assignment))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_connection_can_prove_is_an_identity() {
        for good in ["spiffe://prod.example/ns/billing", "spiffe://prod.example", "dns:billing.internal", "unix:1001"] {
            assert_eq!(IdentityName::parse(good).unwrap().as_str(), good);
        }
        let bad = ["", "keyward", "key_01", "holder:acme/key_01", "dns:", "dns:A.b", "dns:*.b", "dns:a..b", "dns:a."];
        for bad in bad.into_iter().chain(["dns:-a.b", "dns:a_b", "unix:01", "spiffe://a/", "billing.internal"]) {
            assert!(IdentityName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_identity_ends_after_its_last_moment_or_when_it_is_withdrawn() {
        let ends = PeerIdentity::new(None, Some(UnixMillis(5)));
        assert!(ends.is_good(Now::at(UnixMillis(5))) && !ends.is_good(Now::at(UnixMillis(6))));
        assert!(!ends.is_good(Now::new(UnixMillis(1), UnixMillis(6))), "a clock that was set back revives nothing");
        let lasts = PeerIdentity::new(None, None);
        assert!(lasts.is_good(Now::at(UnixMillis(i64::MAX))));
        lasts.withdraw();
        assert!(!lasts.is_good(Now::at(UnixMillis(0))));
    }

    #[test]
    fn a_replacement_is_noticed_by_its_generation() {
        let name = |text| IdentityName::parse(text).unwrap();
        let given = |text| Assignment { name: name(text), roles: vec![], audience: None };
        let identities = Identities::new([given("unix:1"), given("unix:2")]);
        let before = identities.generation();
        assert!(!identities.replace([given("unix:2"), given("unix:1")]), "they are the same");
        assert_eq!(identities.generation(), before);
        assert!(identities.replace([given("unix:2")]));
        assert_ne!(identities.generation(), before);
        assert!(identities.of(&name("unix:1")).is_none() && identities.of(&name("unix:2")).is_some());
    }
}
