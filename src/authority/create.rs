//! Issuing a key.

use std::collections::BTreeMap;

use ipnet::IpNet;
use keyward_core::access::{Grant, Issue, Role};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::PepperRing;
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use keyward_core::id::{Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyPolicy, KeyRecord, State, StoredSecret};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;

use super::{Authority, AuthorityError, Resource, check_expiry, check_scopes, check_size, check_times, target};
use crate::store::{Commit, ReadContext, RecordWrite};

/// What is wrong with a key id that the program keeps for itself.
const RESERVED_RULE: &str = "in tenant 'system' must not be 'keyward' or begin with 'keyward-' or 'keyward_': so Keyward itself is named in the log";

/// A key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The caller's choice of id.
    pub key_id: Option<KeyId>,
    /// The label that people see.
    pub display_name: String,
    /// A longer note.
    pub description: String,
    /// Who the key is issued to.
    pub owner: String,
    /// Part of the secret.
    pub environment: Environment,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Where it is accepted.
    pub audiences: Vec<String>,
    /// Where the end caller may come from.
    pub allowed_cidrs: Vec<IpNet>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Refused before.
    pub not_before: Option<UnixMillis>,
    /// Refused from.
    pub expire_time: Option<UnixMillis>,
    /// Create it disabled.
    pub disabled: bool,
}

/// A created key.
pub struct Created {
    /// The key.
    pub key: KeyRecord,
    /// Its secret, for the one reply that shows it. `None` if the call was only to be validated.
    pub secret: Option<IssuedSecret>,
    /// The revision at which the key exists.
    pub revision: Revision,
}

impl Authority {
    /// Issues a key.
    ///
    /// # Errors
    /// When the tenant is missing, the id is taken, a field breaks its rule, or the change cannot be made.
    pub async fn create_key(
        &self,
        grant: &Grant<Issue>,
        new: NewKey,
        validate_only: bool,
    ) -> Result<Created, AuthorityError> {
        if grant.tenant().is_system() && new.key_id.as_ref().is_some_and(KeyId::is_reserved) {
            return Err(AuthorityError::bad_field("key_id", RESERVED_RULE));
        }
        let tenant = self.require_tenant(grant.tenant()).await?;
        let now = self.now();
        let stamp = AuditStamp { time: now.latest(), actor: grant.actor() };
        let (key, secret) = self.mint_key(grant.tenant(), &tenant.secret_prefix, new, &stamp)?;
        check_scopes("", grant.tenant(), &key.policy.scopes)?;
        check_times("", &key.policy)?;
        check_expiry("", &key.policy, stamp.time)?;
        check_size(&key)?;
        if validate_only {
            let reader = ReadContext { caller: grant.actor(), urgent: false };
            if self.store.key_for(&reader, &key.tenant, &key.key_id).await?.is_some() {
                return Err(AuthorityError::AlreadyExists(Resource::Key));
            }
            self.store.check_bounds(None, &key).map_err(|e| AuthorityError::from_commit(e, Resource::Key))?;
            return Ok(Created { key, secret: None, revision: self.store.revision() });
        }
        let commit = Commit {
            actor: stamp.actor,
            authorization: Some(grant.authorization(now.clock())),
            method: "CreateKey",
            target: target(&key.tenant, &key.key_id),
            time: stamp.time,
            narrows: false,
            urgent: false,
            writes: vec![RecordWrite::NewKey(Box::new(key.clone()))],
        };
        let revision = self.commit(commit).await.map_err(|e| AuthorityError::from_commit(e, Resource::Key))?;
        Ok(Created { key: KeyRecord { revision, ..key }, secret: Some(secret), revision })
    }

    /// Makes a key and its secret, and commits nothing.
    pub(super) fn mint_key(
        &self,
        tenant: &TenantId,
        prefix: &SecretPrefix,
        new: NewKey,
        stamp: &AuditStamp,
    ) -> Result<(KeyRecord, IssuedSecret), AuthorityError> {
        let minter = KeyMinter { peppers: &self.peppers, entropy: &*self.entropy };
        let (key, secret) = minter.mint(tenant, prefix, new, stamp)?;
        Ok((KeyRecord { revision: self.store.revision(), ..key }, secret))
    }
}

/// What secrets are made with.
pub struct KeyMinter<'a> {
    /// The current one keys the digest.
    pub peppers: &'a PepperRing,
    /// The randomness.
    pub entropy: &'a dyn Entropy,
}

impl KeyMinter<'_> {
    fn mint(
        &self,
        tenant: &TenantId,
        prefix: &SecretPrefix,
        new: NewKey,
        stamp: &AuditStamp,
    ) -> Result<(KeyRecord, IssuedSecret), AuthorityError> {
        let secret = IssuedSecret::generate(prefix, &new.environment, self.entropy)?;
        let key_id = match new.key_id {
            Some(chosen) => chosen,
            None => KeyId::generate(stamp.time, self.entropy)?,
        };
        let pepper = self.peppers.current();
        let key = KeyRecord {
            key_id,
            tenant: tenant.clone(),
            secret: StoredSecret {
                version: 1,
                digest: pepper.digest(&secret.as_presented()),
                pepper: pepper.id(),
                hint: secret.hint(),
            },
            display_name: new.display_name,
            description: new.description,
            owner: new.owner,
            state_reason: String::new(),
            state_changed: Some(stamp.clone()),
            policy: KeyPolicy {
                environment: new.environment,
                state: if new.disabled { State::Disabled } else { State::Active },
                scopes: new.scopes,
                audiences: new.audiences,
                allowed_cidrs: new.allowed_cidrs,
                not_before: new.not_before,
                expire_time: new.expire_time,
            },
            labels: new.labels,
            annotations: new.annotations,
            created: stamp.clone(),
            updated: stamp.clone(),
            revision: Revision(0),
        };
        Ok((key, secret))
    }

    /// Makes a lasting administrator and its secret, and commits nothing.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn mint_administrator(
        &self,
        display_name: &str,
        description: &str,
        stamp: &AuditStamp,
    ) -> Result<(KeyRecord, IssuedSecret), AuthorityError> {
        let new = NewKey {
            key_id: None,
            display_name: display_name.to_owned(),
            description: description.to_owned(),
            owner: String::new(),
            environment: Environment::live(),
            scopes: vec![Scope::parse(Role::Admin.scope()).map_err(|r| AuthorityError::bad_field("scopes", r.0))?],
            audiences: vec![],
            allowed_cidrs: vec![],
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            not_before: None,
            expire_time: None,
            disabled: false,
        };
        self.mint(&TenantId::system(), &SecretPrefix::kw(), new, stamp)
    }
}
