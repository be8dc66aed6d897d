//! Keys and tenants as facts, and the moves that a key can make.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::clock::UnixMillis;
use crate::digest::{Digest, PepperId};
use crate::event::Revision;
use crate::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use crate::scope::Scope;

/// A key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Identity within the tenant.
    pub key_id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// What verifies the key.
    pub secret: StoredSecret,
    /// The label that people see.
    pub display_name: String,
    /// A longer note.
    pub description: String,
    /// Who the key was issued to.
    pub owner: String,
    /// Why the key is in its state.
    pub state_reason: String,
    /// When the key came into its state, and by whom. `None`: unknown, because it did so before this was noted.
    pub state_changed: Option<AuditStamp>,
    /// What a verdict depends on.
    pub policy: KeyPolicy,
    /// Indexed labels.
    pub labels: BTreeMap<String, String>,
    /// Opaque notes.
    pub annotations: BTreeMap<String, String>,
    /// When the key was created, and by whom.
    pub created: AuditStamp,
    /// When the key was last changed, and by whom.
    pub updated: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}

/// The trace of a secret: enough to recognise it, not to remake it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSecret {
    /// Counts from 1.
    pub version: u32,
    /// The name under which the record is stored.
    pub digest: Digest,
    /// The pepper of the digest.
    pub pepper: PepperId,
    /// Prefix, environment and the last 4 characters.
    pub hint: String,
}

/// The part of a key that decides verdicts.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyPolicy {
    /// Part of the secret. Never changes.
    pub environment: Environment,
    /// Whether the key works.
    pub state: State,
    /// What it may do. Empty: nothing.
    pub scopes: Vec<Scope>,
    /// Where it is accepted. Empty: anywhere.
    pub audiences: Vec<String>,
    /// Where the end caller may come from. Empty: anywhere.
    pub allowed_cidrs: Vec<IpNet>,
    /// Refused before.
    pub not_before: Option<UnixMillis>,
    /// Refused from.
    pub expire_time: Option<UnixMillis>,
}

/// Whether a key works. Expiry is a time, not a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It works.
    Active,
    /// It is refused until it is enabled.
    Disabled,
    /// It is refused for ever.
    Revoked,
}

/// When, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditStamp {
    /// When.
    pub time: UnixMillis,
    /// By whom.
    pub actor: ActorId,
}

/// What a move did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The key is in another state than before, or has another reason for it.
    Changed,
    /// The key was in that state already, for that reason or for none that is given, and was left as it was.
    Unchanged,
}

/// A change that the key's state forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenChange {
    /// From revoked to another state.
    #[error("a revoked key stays revoked")]
    Reactivation,
    /// Of what a revoked key was.
    #[error("of a revoked key, only display_name, labels and annotations can be changed")]
    Edit,
}

impl KeyRecord {
    /// Moves the key to another state, or gives another reason for the one it is in. An empty reason for that leaves
    /// the old one. Who brought the key into its state, and when, stays as long as the state.
    ///
    /// # Errors
    /// When the key is revoked and is asked to be anything else.
    pub fn transition(&mut self, state: State, reason: &str, by: &AuditStamp) -> Result<Effect, ForbiddenChange> {
        match (self.policy.state, state) {
            (State::Revoked, State::Active | State::Disabled) => Err(ForbiddenChange::Reactivation),
            (from, to) if from == to && (reason.is_empty() || reason == self.state_reason) => Ok(Effect::Unchanged),
            (from @ (State::Active | State::Disabled), to) | (from @ State::Revoked, to @ State::Revoked) => {
                if from != to {
                    self.policy.state = to;
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
    /// Whether the fields of a key may become those of this one. What a revoked key was stays as it was, for
    /// whoever asks later; how people find and call it may change.
    ///
    /// # Errors
    /// When the key is revoked, and more than its label, its labels or its annotations differ.
    pub fn check_edit(&self, before: &Self) -> Result<(), ForbiddenChange> {
        if before.policy.state != State::Revoked {
            return Ok(());
        }
        let editable = Self {
            display_name: self.display_name.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            ..before.clone()
        };
        if *self == editable { Ok(()) } else { Err(ForbiddenChange::Edit) }
    }
}

/// A tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantRecord {
    /// Identity.
    pub tenant: TenantId,
    /// The name that people see.
    pub display_name: String,
    /// What the tenant's secrets begin with.
    pub secret_prefix: SecretPrefix,
    /// When the tenant was created, and by whom.
    pub created: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}
