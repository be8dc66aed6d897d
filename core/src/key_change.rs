//! Changes of the fields that an operator gives a key.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::clock::UnixMillis;
use crate::record::KeySpec;
use crate::scope::Scope;

/// A new value for one field of a key. There is a variant for each field that may change: all of [`KeySpec`]
/// but the environment, which is part of the secret, and the state, which has calls of its own; and whether
/// the key may be deleted.
#[derive(Clone, Debug, PartialEq)]
pub enum KeyChange {
    /// A name for people.
    DisplayName(String),
    /// A longer note.
    Description(String),
    /// The holder of the key.
    Owner(String),
    /// The scopes that it grants.
    Scopes(Vec<Scope>),
    /// The services that accept it.
    Audiences(Vec<String>),
    /// The networks that end clients must be in.
    AllowedCidrs(Vec<IpNet>),
    /// Indexed labels.
    Labels(BTreeMap<String, String>),
    /// Opaque notes.
    Annotations(BTreeMap<String, String>),
    /// It does not work before this time.
    NotBefore(Option<UnixMillis>),
    /// It does not work from this time on.
    ExpireTime(Option<UnixMillis>),
    /// It cannot be deleted.
    DeleteProtected(bool),
}

impl KeyChange {
    /// Whether it changes what verdicts depend on. Only the records before and after show whether that takes
    /// power away ([`narrows`](crate::narrowing::narrows)).
    #[must_use]
    pub fn may_narrow(&self) -> bool {
        match self {
            Self::Scopes(_) | Self::Audiences(_) | Self::AllowedCidrs(_) | Self::NotBefore(_) | Self::ExpireTime(_) => {
                true
            }
            Self::DisplayName(_)
            | Self::Description(_)
            | Self::Owner(_)
            | Self::Labels(_)
            | Self::Annotations(_)
            | Self::DeleteProtected(_) => false,
        }
    }

    /// Puts the value in its field.
    pub fn apply(self, spec: &mut KeySpec, delete_protected: &mut bool) {
        match self {
            Self::DisplayName(value) => spec.display_name = value,
            Self::Description(value) => spec.description = value,
            Self::Owner(value) => spec.owner = value,
            Self::Scopes(value) => spec.policy.scopes = value,
            Self::Audiences(value) => spec.policy.audiences = value,
            Self::AllowedCidrs(value) => spec.policy.allowed_cidrs = value,
            Self::Labels(value) => spec.labels = value,
            Self::Annotations(value) => spec.annotations = value,
            Self::NotBefore(value) => spec.policy.not_before = value,
            Self::ExpireTime(value) => spec.policy.expire_time = value,
            Self::DeleteProtected(value) => *delete_protected = value,
        }
    }
}
