//! The decision: may this key do this, now?
//!
//! Checks are pure functions. They run in one fixed order ([`Check::ORDER`]), and the first that fails gives
//! the reason.

use std::borrow::Borrow;
use std::net::IpAddr;

use crate::clock::{Now, UnixMillis};
use ipnet::IpNet;

use crate::id::Environment;
use crate::record::{KeyPolicy, State};
use crate::scope::Scope;

/// What a key is asked to be allowed.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRequest<'a> {
    /// Scopes that the key must all have.
    pub all_scopes: &'a [&'a str],
    /// Scopes of which the key must have one, if there are any.
    pub any_scopes: &'a [&'a str],
    /// The environment that the key must have.
    pub environment: Option<&'a str>,
    /// The service that the key is presented to.
    pub audience: Option<&'a str>,
    /// The address of the end client, which presented the key to that service.
    pub client_ip: Option<IpAddr>,
}

/// What a decision depends on. It is implemented by the record and by the index's packed form. An empty list
/// of scopes grants nothing; an empty list of audiences or networks restricts nothing.
pub trait Policy {
    /// The key's environment.
    fn environment(&self) -> &Environment;
    /// The key's state.
    fn state(&self) -> State;
    /// The scopes that it grants.
    fn scopes(&self) -> impl Iterator<Item = &Scope>;
    /// The services that accept it.
    fn audiences(&self) -> impl Iterator<Item = &str>;
    /// The networks that end clients must be in.
    fn allowed_cidrs(&self) -> impl Iterator<Item = IpNet>;
    /// It does not work before this time.
    fn not_before(&self) -> Option<UnixMillis>;
    /// It does not work from this time on.
    fn expire_time(&self) -> Option<UnixMillis>;
    /// What else bears on it.
    fn standing(&self) -> Standing;
    /// Whether nothing else does: the standing is the default one.
    fn is_plain(&self) -> bool {
        self.standing() == Standing::default()
    }
}

/// What bears on a verdict besides the key's own policy. By default nothing does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Which of the key's secrets was presented.
    pub secret: SecretUse,
    /// The key was deleted.
    pub is_deleted: bool,
    /// Its tenant, owner or issuer is suspended.
    pub is_held: bool,
    /// The secret was issued before the time from which its tenant, owner or issuer is accepted.
    pub is_outdated: bool,
    /// A disabled key works again from this time on.
    pub resume_time: Option<UnixMillis>,
}

/// Which of a key's secrets was presented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecretUse {
    /// The current one.
    #[default]
    Current,
    /// The one before it.
    Previous {
        /// It does not work from this time on. `None`: that is not settled yet.
        valid_until: Option<UnixMillis>,
    },
    /// One that does not work any more.
    Retired,
}

/// A policy, owned or borrowed, with what bears on it.
#[derive(Clone, Debug, PartialEq)]
pub struct StandingPolicy<P = KeyPolicy> {
    /// The policy.
    pub policy: P,
    /// What bears on it.
    pub standing: Standing,
}

impl<P: Borrow<KeyPolicy>> Policy for StandingPolicy<P> {
    fn environment(&self) -> &Environment {
        &self.policy.borrow().environment
    }

    fn state(&self) -> State {
        self.policy.borrow().state
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.policy.borrow().scopes()
    }

    fn audiences(&self) -> impl Iterator<Item = &str> {
        self.policy.borrow().audiences()
    }

    fn allowed_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.policy.borrow().allowed_cidrs()
    }

    fn not_before(&self) -> Option<UnixMillis> {
        self.policy.borrow().not_before
    }

    fn expire_time(&self) -> Option<UnixMillis> {
        self.policy.borrow().expire_time
    }

    fn standing(&self) -> Standing {
        self.standing
    }
}

/// The policy of the current secret of a key that nothing else bears on.
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

    fn standing(&self) -> Standing {
        Standing::default()
    }
}

/// Why a key is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenyReason {
    /// The text is not a secret.
    Malformed,
    /// There is no such key, or the caller may not see it.
    Unknown,
    /// The secret was replaced by a newer one of the key.
    RotatedOut,
    /// The key's tenant, owner or issuer is suspended.
    OwnerSuspended,
    /// The secret was issued before the time from which its tenant, owner or issuer is accepted.
    EpochRejected,
    /// The key is disabled.
    Disabled,
    /// The key is disabled until a time.
    Suspended,
    /// The key is revoked.
    Revoked,
    /// It is before the key's `not_before`.
    NotYetValid,
    /// The key's `expire_time` is over.
    Expired,
    /// The key has another environment.
    EnvironmentMismatch,
    /// The key has audiences, and this is none of them.
    AudienceMismatch,
    /// The end client's address is not in the key's networks, or is not known.
    IpNotAllowed,
    /// The key lacks a scope that was asked for.
    ScopeMissing,
}

impl DenyReason {
    /// The status that a web service should answer with: 401 if the key does not work, 403 if it does but may
    /// not do this.
    #[must_use]
    pub fn http_status(self) -> u32 {
        match self {
            Self::Malformed
            | Self::Unknown
            | Self::RotatedOut
            | Self::OwnerSuspended
            | Self::EpochRejected
            | Self::Disabled
            | Self::Suspended
            | Self::Revoked
            | Self::NotYetValid
            | Self::Expired => 401,
            Self::EnvironmentMismatch | Self::AudienceMismatch | Self::IpNotAllowed | Self::ScopeMissing => 403,
        }
    }
}

/// Makes the enum, the order and the names from one list, so that no check can be missing in the order.
macro_rules! checks {
    ($($(#[$doc:meta])* $check:ident $name:literal,)+) => {
        /// One check of a key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Check {
            $($(#[$doc])* $check,)+
        }

        impl Check {
            /// The order in which checks run.
            pub const ORDER: [Self; [$($name),+].len()] = [$(Self::$check),+];

            /// The check's name on the wire: the field that it reads.
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
    /// The secret is the key's current one, or the one before it while that works.
    Secret "secret",
    /// The key's tenant, owner and issuer are not suspended.
    Owner "owner",
    /// The secret was issued late enough.
    Epoch "epoch",
    /// The key is active.
    State "state",
    /// It is not before `not_before`.
    NotBefore "not_before",
    /// It is before `expire_time`.
    ExpireTime "expire_time",
    /// The key has the environment that was asked for.
    Environment "environment",
    /// The key has the audience, or none.
    Audience "audience",
    /// The end client is in one of the key's networks, or it has none.
    ClientIp "client_ip",
    /// The key has all of `all_scopes`.
    AllScopes "all_scopes",
    /// The key has one of `any_scopes`, or none was asked for.
    AnyScopes "any_scopes",
}

impl Check {
    /// How many checks at the beginning of the order read the standing alone.
    const OF_STANDING: usize = 3;

    /// Runs the check.
    ///
    /// # Errors
    /// With the reason, if it fails.
    pub fn run(self, key: &impl Policy, request: &AccessRequest<'_>, now: Now) -> Result<(), DenyReason> {
        let holds = |required: &&str| key.scopes().any(|granted| granted.covers(required));
        let (passed, reason) = match self {
            Self::Secret => {
                let works = match key.standing().secret {
                    SecretUse::Current => true,
                    SecretUse::Previous { valid_until } => valid_until.is_none_or(|until| now.latest() < until),
                    SecretUse::Retired => false,
                };
                (works, DenyReason::RotatedOut)
            }
            Self::Owner => (!key.standing().is_held, DenyReason::OwnerSuspended),
            Self::Epoch => (!key.standing().is_outdated, DenyReason::EpochRejected),
            Self::State => return check_state(key, now),
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

fn check_state(key: &impl Policy, now: Now) -> Result<(), DenyReason> {
    if key.state() == State::Active && key.is_plain() {
        return Ok(());
    }
    match (key.state(), key.standing()) {
        (State::Revoked, _) => Err(DenyReason::Revoked),
        // What is kept of it is not for callers.
        (_, Standing { is_deleted: true, .. }) => Err(DenyReason::Unknown),
        (State::Active, _) => Ok(()),
        (State::Disabled, Standing { resume_time: Some(time), .. }) if now.clock() >= time => Ok(()),
        (State::Disabled, Standing { resume_time: Some(_), .. }) => Err(DenyReason::Suspended),
        (State::Disabled, Standing { resume_time: None, .. }) => Err(DenyReason::Disabled),
    }
}

/// Decides whether a key may do what is asked.
///
/// # Errors
/// With the reason of the first check that fails.
pub fn decide(key: &impl Policy, request: &AccessRequest<'_>, now: Now) -> Result<(), DenyReason> {
    let (of_standing, of_policy) = const { &Check::ORDER }.split_at(Check::OF_STANDING);
    // With a default standing, which nearly every key has, those of the standing pass.
    if !key.is_plain() {
        of_standing.iter().try_for_each(|check| check.run(key, request, now))?;
    }
    of_policy.iter().try_for_each(|check| check.run(key, request, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Scope;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn key() -> KeyPolicy {
        let scopes = vec![Scope::parse("orders.*").unwrap(), Scope::parse("users.read").unwrap()];
        KeyPolicy { scopes, ..KeyPolicy::default() }
    }

    #[test]
    fn the_checks_of_the_standing_come_first_and_pass_with_a_default_one() {
        let (of_standing, others) = Check::ORDER.split_at(Check::OF_STANDING);
        assert_eq!(of_standing, [Check::Secret, Check::Owner, Check::Epoch]);
        for check in of_standing {
            assert_eq!(check.run(&key(), &AccessRequest::default(), Now::at(NOW)), Ok(()), "{}", check.name());
        }
        assert!(!others.is_empty());
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
