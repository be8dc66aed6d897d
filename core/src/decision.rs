//! The verdict: may this key do this, now?
//!
//! Checks run in one fixed order ([`Check::ORDER`]), each a pure function, and the first that fails gives the reason. A
//! verdict reads nothing but its arguments.

use std::net::IpAddr;

use crate::clock::{Now, UnixMillis};
use ipnet::IpNet;

use crate::id::Environment;
use crate::record::{KeyPolicy, State};
use crate::scope::Scope;

/// What a verifier asks of a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRequest<'a> {
    /// The key must hold all of these.
    pub all_scopes: &'a [&'a str],
    /// The key must hold one of these, if there are any.
    pub any_scopes: &'a [&'a str],
    /// The environment that the key must be of.
    pub environment: Option<&'a str>,
    /// The service that the key is presented to.
    pub audience: Option<&'a str>,
    /// Where the end caller comes from.
    pub client_ip: Option<IpAddr>,
}

/// What a verdict depends on, however it is kept. An empty list of scopes grants nothing; an empty list of audiences or
/// networks restricts nothing.
pub trait Policy {
    /// Which environment the key is of.
    fn environment(&self) -> &Environment;
    /// Whether the key works.
    fn state(&self) -> State;
    /// What it may do.
    fn scopes(&self) -> impl Iterator<Item = &Scope>;
    /// Where it is accepted.
    fn audiences(&self) -> impl Iterator<Item = &str>;
    /// Where the end caller may come from.
    fn allowed_cidrs(&self) -> impl Iterator<Item = IpNet>;
    /// Refused before.
    fn not_before(&self) -> Option<UnixMillis>;
    /// Refused from.
    fn expire_time(&self) -> Option<UnixMillis>;
}

impl Policy for KeyPolicy {
    fn environment(&self) -> &Environment {
        &self.environment
    }

    fn state(&self) -> State {
        self.state
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.scopes.iter()
    }

    fn audiences(&self) -> impl Iterator<Item = &str> {
        self.audiences.iter().map(String::as_str)
    }

    fn allowed_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.allowed_cidrs.iter().copied()
    }

    fn not_before(&self) -> Option<UnixMillis> {
        self.not_before
    }

    fn expire_time(&self) -> Option<UnixMillis> {
        self.expire_time
    }
}

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// The text is not a secret.
    Malformed,
    /// There is no such key, or none that the caller may see.
    Unknown,
    /// The key is disabled.
    Disabled,
    /// The key is revoked.
    Revoked,
    /// The key's time has not come.
    NotYetValid,
    /// The key's time is over.
    Expired,
    /// The key is of another environment.
    EnvironmentMismatch,
    /// The key is not meant for this audience.
    AudienceMismatch,
    /// The end caller's address is not among the key's networks, or is not known.
    IpNotAllowed,
    /// The key does not hold a scope that was asked for.
    ScopeMissing,
}

impl DenyReason {
    /// What a web service should answer: 401 when the key does not work, 403 when it works but may not do this.
    #[must_use]
    pub fn http_status(self) -> u32 {
        match self {
            Self::Malformed | Self::Unknown | Self::Disabled | Self::Revoked | Self::NotYetValid | Self::Expired => 401,
            Self::EnvironmentMismatch | Self::AudienceMismatch | Self::IpNotAllowed | Self::ScopeMissing => 403,
        }
    }
}

/// Makes the checks, their order and their names from one list, so that none can be missing in the order.
macro_rules! checks {
    ($($(#[$doc:meta])* $check:ident $name:literal,)+) => {
        /// One check of a key that was found.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Check {
            $($(#[$doc])* $check,)+
        }

        impl Check {
            /// The order in which checks run.
            pub const ORDER: [Self; [$($name),+].len()] = [$(Self::$check),+];

            /// The name by which callers know the check: that of the field it reads.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$check => $name,)+
                }
            }
        }
    };
}

checks! {
    /// The key is active.
    State "state",
    /// Its time has come.
    NotBefore "not_before",
    /// Its time is not over.
    ExpireTime "expire_time",
    /// It is of the environment.
    Environment "environment",
    /// It is meant for the audience.
    Audience "audience",
    /// The end caller comes from one of its networks.
    ClientIp "client_ip",
    /// It holds all the scopes that must all be held.
    AllScopes "all_scopes",
    /// It holds one of the scopes of which one must be held.
    AnyScopes "any_scopes",
}

impl Check {
    /// Runs the check.
    ///
    /// # Errors
    /// With the reason, when it fails.
    pub fn run(self, key: &impl Policy, request: &AccessRequest<'_>, now: Now) -> Result<(), DenyReason> {
        let holds = |required: &&str| key.scopes().any(|granted| granted.covers(required));
        let (passed, reason) = match self {
            Self::State => match key.state() {
                State::Active => return Ok(()),
                State::Disabled => return Err(DenyReason::Disabled),
                State::Revoked => return Err(DenyReason::Revoked),
            },
            Self::NotBefore => (key.not_before().is_none_or(|from| now.clock() >= from), DenyReason::NotYetValid),
            Self::ExpireTime => (key.expire_time().is_none_or(|until| now.latest() < until), DenyReason::Expired),
            Self::Environment => {
                let same = |asked: &str| key.environment().as_str() == asked;
                (request.environment.is_none_or(same), DenyReason::EnvironmentMismatch)
            }
            Self::Audience => {
                let named = || request.audience.is_some_and(|asked| key.audiences().any(|a| a == asked));
                (key.audiences().next().is_none() || named(), DenyReason::AudienceMismatch)
            }
            Self::ClientIp => {
                let inside = || request.client_ip.is_some_and(|ip| key.allowed_cidrs().any(|net| net.contains(&ip)));
                (key.allowed_cidrs().next().is_none() || inside(), DenyReason::IpNotAllowed)
            }
            Self::AllScopes => (request.all_scopes.iter().all(holds), DenyReason::ScopeMissing),
            Self::AnyScopes => {
                (request.any_scopes.is_empty() || request.any_scopes.iter().any(holds), DenyReason::ScopeMissing)
            }
        };
        if passed { Ok(()) } else { Err(reason) }
    }
}

/// Decides about a key.
///
/// # Errors
/// With the reason of the first check that fails, when the key is refused.
pub fn decide(key: &impl Policy, request: &AccessRequest<'_>, now: Now) -> Result<(), DenyReason> {
    Check::ORDER.into_iter().try_for_each(|check| check.run(key, request, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Scope;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn key() -> KeyPolicy {
        KeyPolicy {
            environment: Environment::live(),
            state: State::Active,
            scopes: vec![Scope::parse("orders.*").unwrap(), Scope::parse("users.read").unwrap()],
            audiences: vec![],
            allowed_cidrs: vec![],
            not_before: None,
            expire_time: None,
        }
    }

    #[test]
    fn a_key_without_scopes_holds_none() {
        let bare = KeyPolicy { scopes: vec![], ..key() };
        let (none, some) = ([], ["orders.read"]);
        assert_eq!(
            decide(&bare, &AccessRequest { all_scopes: &none, ..AccessRequest::default() }, Now::at(NOW)),
            Ok(())
        );
        let all = AccessRequest { all_scopes: &some, ..AccessRequest::default() };
        let any = AccessRequest { any_scopes: &some, ..AccessRequest::default() };
        assert_eq!(decide(&bare, &all, Now::at(NOW)), Err(DenyReason::ScopeMissing));
        assert_eq!(decide(&bare, &any, Now::at(NOW)), Err(DenyReason::ScopeMissing));
    }

    #[test]
    fn all_means_all_and_any_means_one() {
        let (mixed, held) = (["orders.read", "users.write"], ["orders.read", "users.read"]);
        assert_eq!(
            decide(&key(), &AccessRequest { all_scopes: &mixed, ..AccessRequest::default() }, Now::at(NOW)),
            Err(DenyReason::ScopeMissing)
        );
        assert_eq!(
            decide(&key(), &AccessRequest { any_scopes: &mixed, ..AccessRequest::default() }, Now::at(NOW)),
            Ok(())
        );
        assert_eq!(
            decide(&key(), &AccessRequest { all_scopes: &held, ..AccessRequest::default() }, Now::at(NOW)),
            Ok(())
        );
    }

    #[test]
    fn a_key_lives_from_not_before_until_just_before_expire_time() {
        let timed = KeyPolicy { not_before: Some(UnixMillis(10)), expire_time: Some(UnixMillis(20)), ..key() };
        let at = |ms| decide(&timed, &AccessRequest::default(), Now::at(UnixMillis(ms)));
        assert_eq!(at(9), Err(DenyReason::NotYetValid));
        assert_eq!(at(10), Ok(()));
        assert_eq!(at(19), Ok(()));
        assert_eq!(at(20), Err(DenyReason::Expired));
    }

    /// The clock is set back from 25 to each of these, when the log has an entry of 25.
    #[test]
    fn a_clock_that_is_set_back_ends_no_end_and_begins_nothing() {
        let timed = KeyPolicy { not_before: Some(UnixMillis(10)), expire_time: Some(UnixMillis(20)), ..key() };
        let begun = KeyPolicy { expire_time: None, ..timed.clone() };
        let verdict = |key, clock| decide(key, &AccessRequest::default(), Now::new(UnixMillis(clock), UnixMillis(25)));
        for clock in [10, 19, 20, 25, 30] {
            assert_eq!(verdict(&timed, clock), Err(DenyReason::Expired), "{clock}");
            assert_eq!(verdict(&begun, clock), Ok(()), "{clock}");
        }
        assert_eq!(verdict(&begun, 9), Err(DenyReason::NotYetValid));
    }

    #[test]
    fn restrictions_refuse_what_is_not_said() {
        let bound = KeyPolicy {
            audiences: vec!["billing".into()],
            allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
            ..key()
        };
        let request = |audience, ip: Option<&str>| AccessRequest {
            audience,
            client_ip: ip.map(|ip| ip.parse().unwrap()),
            ..AccessRequest::default()
        };
        let verdict = |request: AccessRequest<'_>| decide(&bound, &request, Now::at(NOW));
        assert_eq!(verdict(request(None, Some("10.1.2.3"))), Err(DenyReason::AudienceMismatch));
        assert_eq!(verdict(request(Some("mail"), Some("10.1.2.3"))), Err(DenyReason::AudienceMismatch));
        assert_eq!(verdict(request(Some("billing"), None)), Err(DenyReason::IpNotAllowed));
        assert_eq!(verdict(request(Some("billing"), Some("11.0.0.1"))), Err(DenyReason::IpNotAllowed));
        assert_eq!(verdict(request(Some("billing"), Some("10.1.2.3"))), Ok(()));
        assert_eq!(verdict(request(Some("billing"), Some("2001:db8::1"))), Ok(()));
    }

    #[test]
    fn the_first_failure_in_order_is_the_reason() {
        let mut worst = KeyPolicy {
            environment: Environment::parse("test").unwrap(),
            state: State::Revoked,
            not_before: Some(UnixMillis(NOW.0 + 1)),
            expire_time: Some(UnixMillis(NOW.0 - 1)),
            audiences: vec!["billing".into()],
            allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            scopes: vec![],
        };
        let wanted = ["a"];
        let request = AccessRequest { all_scopes: &wanted, environment: Some("live"), ..AccessRequest::default() };
        let mut reasons = vec![];
        let mut mend: Vec<fn(&mut KeyPolicy)> = vec![
            |k| k.state = State::Disabled,
            |k| k.state = State::Active,
            |k| k.not_before = None,
            |k| k.expire_time = None,
            |k| k.environment = Environment::live(),
            |k| k.audiences.clear(),
            |k| k.allowed_cidrs.clear(),
            |k| k.scopes.push(Scope::parse("a").unwrap()),
        ];
        for mend in mend.drain(..) {
            reasons.push(decide(&worst, &request, Now::at(NOW)).unwrap_err());
            mend(&mut worst);
        }
        assert_eq!(
            reasons,
            [
                DenyReason::Revoked,
                DenyReason::Disabled,
                DenyReason::NotYetValid,
                DenyReason::Expired,
                DenyReason::EnvironmentMismatch,
                DenyReason::AudienceMismatch,
                DenyReason::IpNotAllowed,
                DenyReason::ScopeMissing,
            ]
        );
        assert_eq!(decide(&worst, &request, Now::at(NOW)), Ok(()));
    }
}
