//! Records of keys and tenants, and the states of a key.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::clock::UnixMillis;
use crate::digest::{Digest, PepperId};
use crate::enumerate;
use crate::event::Revision;
use crate::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use crate::scope::Scope;

/// A key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Its name, unique in the tenant.
    pub key_id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// What is stored of its secret.
    pub secret: StoredSecret,
    /// What an operator gave it.
    pub spec: KeySpec,
    /// Why the key is in its state.
    pub state_reason: String,
    /// When its state was last changed, and by whom. `None`: that was before this field existed.
    pub state_changed: Option<AuditStamp>,
    /// When it was created, and by whom.
    pub created: AuditStamp,
    /// When it was last changed, and by whom.
    pub updated: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}

/// What an operator gives a key. By default it is an active key of the environment `live` without a name, and
/// grants nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeySpec {
    /// A name for people.
    pub display_name: String,
    /// A longer note.
    pub description: String,
    /// The holder of the key.
    pub owner: String,
    /// What a verdict depends on.
    pub policy: KeyPolicy,
    /// Indexed labels.
    pub labels: BTreeMap<String, String>,
    /// Opaque notes.
    pub annotations: BTreeMap<String, String>,
}

/// What is stored of a secret: enough to recognise it, and nothing to recover it from.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSecret {
    /// Counts from 1.
    pub version: u32,
    /// The keyed hash, by which the record is stored and looked up.
    pub digest: Digest,
    /// The pepper that keyed the digest.
    pub pepper: PepperId,
    /// Prefix, environment and the last 4 characters, for people to tell secrets apart.
    pub hint: String,
}

/// The part of a key that verdicts depend on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyPolicy {
    /// Part of the secret. It never changes.
    pub environment: Environment,
    /// Whether the key works.
    pub state: State,
    /// The scopes that it grants. Empty: none.
    pub scopes: Vec<Scope>,
    /// The services that accept it. Empty: all.
    pub audiences: Vec<String>,
    /// The networks that end clients must be in. Empty: any.
    pub allowed_cidrs: Vec<IpNet>,
    /// It does not work before this time.
    pub not_before: Option<UnixMillis>,
    /// It does not work from this time on.
    pub expire_time: Option<UnixMillis>,
}

enumerate! {
    /// The state of a key. Expiry is a time, not a state.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub enum State {
        /// It works.
        #[default]
        Active,
        /// It is refused until it is enabled.
        Disabled,
        /// It is refused for ever.
        Revoked,
    }
}

impl State {
    /// As metrics and the table's secondary index spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Disabled => "disabled",
            Self::Revoked => "revoked",
        }
    }
}

/// The time and the author of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditStamp {
    /// When.
    pub time: UnixMillis,
    /// By whom.
    pub actor: ActorId,
}

/// What a change did to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It differs from before.
    Changed,
    /// It was like that already, and is left as it was.
    Unchanged,
}

/// A change that the key's state forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenChange {
    /// From revoked to another state.
    #[error("a revoked key stays revoked")]
    Reactivation,
    /// Of a field that is fixed once the key is revoked.
    #[error("of a revoked key, only display_name, labels and annotations can be changed")]
    Edit,
}

impl KeyRecord {
    /// Changes the state, or the reason for the present one. With the same state, an empty reason leaves the
    /// old one, and `state_changed` stays.
    ///
    /// # Errors
    /// When the key is revoked and another state is asked for.
    pub fn transition(&mut self, state: State, reason: &str, by: &AuditStamp) -> Result<Effect, ForbiddenChange> {
        match (self.spec.policy.state, state) {
            (State::Revoked, State::Active | State::Disabled) => Err(ForbiddenChange::Reactivation),
            (from, to) if from == to && (reason.is_empty() || reason == self.state_reason) => Ok(Effect::Unchanged),
            (from @ (State::Active | State::Disabled), to) | (from @ State::Revoked, to @ State::Revoked) => {
                if from != to {
                    self.spec.policy.state = to;
                    self.state_changed = Some(by.clone());
                }
                reason.clone_into(&mut self.state_reason);
                self.updated = by.clone();
                Ok(Effect::Changed)
            }
        }
    }
}

impl KeyRecord {
    /// Checks that the fields of `before` may become those of this one. A revoked key keeps what it was, for
    /// later inquiries; only what it is called and found by may change.
    ///
    /// # Errors
    /// When the key is revoked, and more than its `display_name`, labels or annotations differ.
    pub fn check_edit(&self, before: &Self) -> Result<(), ForbiddenChange> {
        if before.spec.policy.state != State::Revoked {
            return Ok(());
        }
        let editable = KeySpec {
            display_name: self.spec.display_name.clone(),
            labels: self.spec.labels.clone(),
            annotations: self.spec.annotations.clone(),
            ..before.spec.clone()
        };
        if *self == (Self { spec: editable, ..before.clone() }) { Ok(()) } else { Err(ForbiddenChange::Edit) }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantRecord {
    /// Its name.
    pub tenant: TenantId,
    /// A name for people.
    pub display_name: String,
    /// What the secrets of its keys begin with.
    pub secret_prefix: SecretPrefix,
    /// When the tenant was created, and by whom.
    pub created: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}
