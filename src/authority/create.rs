//! Issuing a key.

use keyward_core::access::{Act, Grant, Issue, Role};
use keyward_core::digest::{Digest, PepperRing};
use keyward_core::entropy::Entropy;
use keyward_core::event::Revision;
use keyward_core::id::{KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyPolicy, KeyRecord, KeySpec, StoredSecret};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;

use super::{
    Authority, AuthorityError, RequestName, Resource, check_expiry, check_scopes, check_size, check_times, target,
};
use crate::store::{Commit, ReadContext, RecordWrite, Retry};
use crate::util::hpke::PublicKey;

/// The rule that a reserved key id breaks.
const RESERVED_RULE: &str = "in tenant 'system' must not be 'keyward' or begin with 'keyward-' or 'keyward_': so Keyward itself is named in the log";

/// The call, as the log names it.
const CREATE_KEY: &str = "CreateKey";

/// A key to be created.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// The id. `None`: one is generated.
    pub key_id: Option<KeyId>,
    /// Its fields.
    pub spec: KeySpec,
    /// Whether it cannot be deleted until this is taken back.
    pub delete_protected: bool,
}

/// A created key.
pub struct Created {
    /// The key.
    pub key: KeyRecord,
    /// Its secret.
    pub secret: Issued,
    /// The revision of its creation.
    pub revision: Revision,
}

/// The secret of a key, for the one reply that shows it.
pub enum Issued {
    /// The request was only to be validated.
    Nothing,
    /// For whoever reads the reply.
    Plain(IssuedSecret),
    /// For the holder of the caller's key pair.
    Sealed(Vec<u8>),
}

/// How to issue a secret.
#[derive(Clone, Debug, Default)]
pub struct IssueOptions {
    /// Whether to check everything and issue nothing.
    pub validate_only: bool,
    /// How the request is recognised when it is asked for again. `None`: not at all.
    pub request: Option<RequestName>,
    /// The key to seal the secret to. `None`: the reply has it as it is.
    pub reply_key: Option<PublicKey>,
}

impl IssueOptions {
    /// The request as the log has it. `None`: it is not recognised again.
    pub(super) fn retry<A: Act>(&self, method: &str, grant: &Grant<A>) -> Option<Retry> {
        self.request.as_ref().filter(|_| !self.validate_only).map(|request| request.retry(method, grant))
    }

    /// Makes the reply's part of a secret, and what is kept of it for a retry of the call.
    pub(super) fn seal(&self, method: &str, secret: IssuedSecret) -> Result<(Issued, Option<Vec<u8>>), AuthorityError> {
        seal((self.reply_key.as_ref(), self.request.as_ref()), method, secret)
    }
}

/// Makes the reply's part of a secret, and what is kept of it for a retry of the call.
pub(super) fn seal(
    (reply_key, request): (Option<&PublicKey>, Option<&RequestName>),
    method: &str,
    secret: IssuedSecret,
) -> Result<(Issued, Option<Vec<u8>>), AuthorityError> {
    let Some(reply_key) = reply_key else { return Ok((Issued::Plain(secret), None)) };
    let request_id = request.map_or("", |request| request.id.as_str());
    let sealed = reply_key.seal(&seal_info(method, request_id), secret.reveal().as_bytes());
    let sealed = sealed.ok_or_else(|| AuthorityError::bad_field("reply_public_key", "cannot be sealed to"))?;
    Ok((Issued::Sealed(sealed.clone()), Some(sealed)))
}

/// What a sealed secret is bound to: the call and the request id.
#[must_use]
pub fn seal_info(method: &str, request_id: &str) -> Vec<u8> {
    // Neither has a byte 0.
    format!("keyward.v1.KeyAdmin/{method}\0{request_id}").into_bytes()
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
        options: &IssueOptions,
    ) -> Result<Created, AuthorityError> {
        let reader = ReadContext { caller: grant.actor(), urgent: false };
        let retry = options.retry(CREATE_KEY, grant);
        let created = self.create_key_now(grant, new, (options, retry.clone()));
        self.once(&reader, retry.as_ref(), created, |again| {
            let (key, secret, revision) = again.issued()?;
            Ok(Created { key, secret, revision })
        })
        .await
    }

    /// The same, whether or not it was made before.
    async fn create_key_now(
        &self,
        grant: &Grant<Issue>,
        new: NewKey,
        (options, retry): (&IssueOptions, Option<Retry>),
    ) -> Result<Created, AuthorityError> {
        if grant.tenant().is_system() && new.key_id.as_ref().is_some_and(KeyId::is_reserved) {
            return Err(AuthorityError::bad_field("key_id", RESERVED_RULE));
        }
        let tenant = self.require_tenant(grant.tenant()).await?;
        let now = self.now();
        let stamp = AuditStamp { time: now.latest(), actor: grant.actor() };
        let (key, secret) = self.mint_key(grant.tenant(), &tenant.secret_prefix, new, &stamp)?;
        let policy = &key.spec.policy;
        check_scopes("", grant.tenant(), &policy.scopes)?;
        check_times("", policy)?;
        check_expiry("", policy, stamp.time)?;
        check_size(&key)?;
        if options.validate_only {
            let reader = ReadContext { caller: grant.actor(), urgent: false };
            if self.store.key_for(&reader, &key.tenant, &key.key_id).await?.is_some() {
                return Err(AuthorityError::AlreadyExists(Resource::Key));
            }
            self.store.check_bounds(None, &key).map_err(|e| AuthorityError::from_commit(e, Resource::Key))?;
            return Ok(Created { key, secret: Issued::Nothing, revision: self.store.revision() });
        }
        let (secret, sealed) = options.seal(CREATE_KEY, secret)?;
        let commit = Commit {
            actor: stamp.actor,
            authorization: Some(grant.authorization(now.clock())),
            method: CREATE_KEY,
            target: target(&key.tenant, &key.key_id),
            time: stamp.time,
            narrows: false,
            urgent: false,
            writes: vec![RecordWrite::NewKey(Box::new(key.clone()))],
            retry: retry.map(|retry| (retry, sealed)),
        };
        let revision = self.commit(commit).await.map_err(|e| AuthorityError::from_commit(e, Resource::Key))?;
        Ok(Created { key: KeyRecord { revision, ..key }, secret, revision })
    }

    /// Makes a key and its secret, without a commit.
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

/// Makes keys and their secrets, and commits nothing.
pub struct KeyMinter<'a> {
    /// The current pepper keys the digest.
    pub peppers: &'a PepperRing,
    /// The source of randomness.
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
        let secret = IssuedSecret::generate(prefix, &new.spec.policy.environment, self.entropy)?;
        let presented = secret.as_presented();
        let digest = self.peppers.current().digest(&presented);
        let key = self.record(tenant, new, (digest, presented.hint()), stamp)?;
        Ok((key, secret))
    }

    /// The record of a new key whose secret has this digest, by the current pepper, and this hint.
    fn record(
        &self,
        tenant: &TenantId,
        new: NewKey,
        (digest, hint): (Digest, String),
        stamp: &AuditStamp,
    ) -> Result<KeyRecord, AuthorityError> {
        let key_id = match new.key_id {
            Some(chosen) => chosen,
            None => KeyId::generate(stamp.time, self.entropy)?,
        };
        Ok(KeyRecord {
            key_id,
            tenant: tenant.clone(),
            secret: StoredSecret { version: 1, digest, pepper: self.peppers.current().id(), hint, issued: None },
            previous: None,
            retired: None,
            spec: new.spec,
            state_reason: String::new(),
            state_changed: Some(stamp.clone()),
            resume_time: None,
            deletion: None,
            delete_protected: new.delete_protected,
            ordinal: None,
            created: stamp.clone(),
            updated: stamp.clone(),
            revision: Revision(0),
        })
    }

    /// Makes the key and the secret of a lasting administrator.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn mint_administrator(
        &self,
        display_name: &str,
        description: &str,
        stamp: &AuditStamp,
    ) -> Result<(KeyRecord, IssuedSecret), AuthorityError> {
        let new = new_administrator(display_name, description)?;
        self.mint(&TenantId::system(), &SecretPrefix::kw(), new, stamp)
    }

    /// Makes the key of a lasting administrator whose secret was made elsewhere. `digest` is by the current
    /// pepper.
    ///
    /// # Errors
    /// When the source of randomness fails.
    pub fn administrator_of(
        &self,
        (display_name, description): (&str, &str),
        (digest, hint): (Digest, String),
        stamp: &AuditStamp,
    ) -> Result<KeyRecord, AuthorityError> {
        let new = new_administrator(display_name, description)?;
        self.record(&TenantId::system(), new, (digest, hint), stamp)
    }
}

fn new_administrator(display_name: &str, description: &str) -> Result<NewKey, AuthorityError> {
    let admin = Scope::parse(Role::Admin.scope()).map_err(|rule| AuthorityError::bad_field("scopes", rule.0))?;
    let spec = KeySpec {
        display_name: display_name.to_owned(),
        description: description.to_owned(),
        policy: KeyPolicy { scopes: vec![admin], ..KeyPolicy::default() },
        ..KeySpec::default()
    };
    Ok(NewKey { spec, ..NewKey::default() })
}
