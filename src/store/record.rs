//! Records as bytes. Bytes at rest are a public interface: what is written today decodes for ever.
//!
//! ```text
//! ┌─────────┬──────────────────────────────┬──────────────────────────┐
//! │ version │ body: protobuf, storage.v1   │ first 16 bytes of blake3 │
//! │ 1 byte  │                              │ of version and body      │
//! └─────────┴──────────────────────────────┴──────────────────────────┘
//! ```
//!
//! The body of a key holds its own digest, so a record that lands under another name is noticed.
//! docs/FORMAT.md and testdata/records/ have examples.

use ipnet::IpNet;
use keyward_core::clock::UnixMillis;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyPolicy, KeyRecord, KeySpec, State, StoredSecret, TenantRecord};
use keyward_core::scope::Scope;
use prost::Message;

/// The generated messages of what is kept on disk.
#[expect(clippy::must_use_candidate, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/keyward.storage.v1.rs"));
}

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 16;

/// The kinds of records, in the order of a snapshot. The numbers are those of a snapshot's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum RecordKind {
    Tenant = 1,
    Key = 2,
}

/// Bytes that are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short to be a record.
    #[error("the bytes are too few for a record")]
    Short,
    /// Written by a later program, or not at all.
    #[error("record version {0} is not known to this program")]
    UnknownVersion(u8),
    /// The bytes have changed since they were written.
    #[error("the checksum does not match")]
    Checksum,
    /// The body is not of its form.
    #[error("the body does not decode: {0}")]
    Body(&'static str),
}

/// A key as bytes.
#[must_use]
pub fn encode_key(key: &KeyRecord) -> Vec<u8> {
    envelope(&key_to_pb(key))
}

/// The size of a key without the fields about its state: reason, actor and time.
#[must_use]
pub fn stateless_key_bytes(key: &KeyRecord) -> usize {
    let (state_reason, state_by) = (String::new(), String::new());
    let stateless = pb::KeyRecord { state_reason, state_by, state_time_ms: 0, ..key_to_pb(key) };
    1 + stateless.encoded_len() + CHECKSUM_BYTES
}

fn key_to_pb(key: &KeyRecord) -> pb::KeyRecord {
    let millis = |time: &Option<UnixMillis>| time.map_or(0, |t| t.0);
    // Without `..`, so that a new field does not compile until it is stored.
    let KeyRecord { key_id, tenant, secret, spec, state_reason, state_changed, created, updated, revision } = key;
    let KeySpec { display_name, description, owner, policy, labels, annotations } = spec;
    let KeyPolicy { environment, state, scopes, audiences, allowed_cidrs, not_before, expire_time } = policy;
    pb::KeyRecord {
        key_id: key_id.to_string(),
        tenant: tenant.to_string(),
        secrets: vec![pb::StoredSecret {
            version: secret.version,
            digest: secret.digest.as_bytes().to_vec(),
            pepper_id: secret.pepper.0,
            hint: secret.hint.clone(),
        }],
        display_name: display_name.clone(),
        description: description.clone(),
        owner: owner.clone(),
        environment: environment.to_string(),
        state: match state {
            State::Active => pb::StoredState::Active,
            State::Disabled => pb::StoredState::Disabled,
            State::Revoked => pb::StoredState::Revoked,
        }
        .into(),
        state_reason: state_reason.clone(),
        scopes: scopes.iter().map(|s| s.as_str().to_owned()).collect(),
        audiences: audiences.clone(),
        allowed_cidrs: allowed_cidrs.iter().map(IpNet::to_string).collect(),
        labels: labels.clone(),
        annotations: annotations.clone(),
        not_before_ms: millis(not_before),
        expire_time_ms: millis(expire_time),
        create_time_ms: created.time.0,
        created_by: created.actor.to_string(),
        update_time_ms: updated.time.0,
        updated_by: updated.actor.to_string(),
        revision: revision.0,
        state_by: state_changed.as_ref().map(|stamp| stamp.actor.to_string()).unwrap_or_default(),
        state_time_ms: state_changed.as_ref().map_or(0, |stamp| stamp.time.0),
    }
}

/// A key from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_key`] of this or an earlier program wrote.
pub fn decode_key(bytes: &[u8]) -> Result<KeyRecord, DecodeError> {
    let pb: pb::KeyRecord = open(bytes)?;
    let state = match pb.state() {
        pb::StoredState::Active => State::Active,
        pb::StoredState::Disabled => State::Disabled,
        pb::StoredState::Revoked => State::Revoked,
        pb::StoredState::Unspecified => return Err(DecodeError::Body("state")),
    };
    let time = |ms| (ms != 0).then_some(UnixMillis(ms));
    // Without `..`, so that a new field does not compile until it is read.
    let pb::KeyRecord {
        key_id,
        tenant,
        secrets,
        display_name,
        description,
        owner,
        environment,
        state: _,
        state_reason,
        scopes,
        audiences,
        allowed_cidrs,
        labels,
        annotations,
        not_before_ms,
        expire_time_ms,
        create_time_ms,
        created_by,
        update_time_ms,
        updated_by,
        revision,
        state_by,
        state_time_ms,
    } = pb;
    let [secret] = <[_; 1]>::try_from(secrets).map_err(|_| DecodeError::Body("secrets"))?;
    let digest = <[u8; 32]>::try_from(secret.digest).map_err(|_| DecodeError::Body("digest"))?;
    let policy = KeyPolicy {
        environment: Environment::parse(&environment).map_err(|_| DecodeError::Body("environment"))?,
        state,
        scopes: parse_all(&scopes, |s| Scope::parse(s).map_err(|_| DecodeError::Body("scopes")))?,
        audiences,
        allowed_cidrs: parse_all(&allowed_cidrs, |s| s.parse().map_err(|_| DecodeError::Body("cidrs")))?,
        not_before: time(not_before_ms),
        expire_time: time(expire_time_ms),
    };
    Ok(KeyRecord {
        key_id: KeyId::parse(&key_id).map_err(|_| DecodeError::Body("key_id"))?,
        tenant: tenant_id(&tenant)?,
        secret: StoredSecret {
            version: secret.version,
            digest: Digest::from_bytes(digest),
            pepper: PepperId(secret.pepper_id),
            hint: secret.hint,
        },
        spec: KeySpec { display_name, description, owner, policy, labels, annotations },
        state_reason,
        state_changed: match state_by.as_str() {
            "" => None,
            actor => Some(stamp(state_time_ms, actor)?),
        },
        created: stamp(create_time_ms, &created_by)?,
        updated: stamp(update_time_ms, &updated_by)?,
        revision: Revision(revision),
    })
}

/// A tenant as bytes.
#[must_use]
pub fn encode_tenant(tenant: &TenantRecord) -> Vec<u8> {
    envelope(&pb::TenantRecord {
        tenant: tenant.tenant.to_string(),
        display_name: tenant.display_name.clone(),
        secret_prefix: tenant.secret_prefix.to_string(),
        create_time_ms: tenant.created.time.0,
        created_by: tenant.created.actor.to_string(),
        revision: tenant.revision.0,
    })
}

/// A tenant from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_tenant`] of this or an earlier program wrote.
pub fn decode_tenant(bytes: &[u8]) -> Result<TenantRecord, DecodeError> {
    let pb: pb::TenantRecord = open(bytes)?;
    Ok(TenantRecord {
        tenant: tenant_id(&pb.tenant)?,
        display_name: pb.display_name,
        secret_prefix: SecretPrefix::parse(&pb.secret_prefix).map_err(|_| DecodeError::Body("secret_prefix"))?,
        created: stamp(pb.create_time_ms, &pb.created_by)?,
        revision: Revision(pb.revision),
    })
}

fn envelope(body: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + body.encoded_len() + CHECKSUM_BYTES);
    bytes.push(VERSION);
    bytes.extend_from_slice(&body.encode_to_vec());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
    bytes
}

fn open<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    let body_end = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(DecodeError::Short)?;
    let (covered, checksum) = bytes.split_at(body_end);
    let (&version, body) = covered.split_first().ok_or(DecodeError::Short)?;
    if version != VERSION {
        return Err(DecodeError::UnknownVersion(version));
    }
    if blake3::hash(covered).as_bytes()[..CHECKSUM_BYTES] != *checksum {
        return Err(DecodeError::Checksum);
    }
    M::decode(body).map_err(|_| DecodeError::Body("protobuf"))
}

fn tenant_id(text: &str) -> Result<TenantId, DecodeError> {
    TenantId::parse(text).map_err(|_| DecodeError::Body("tenant"))
}

fn stamp(millis: i64, actor: &str) -> Result<AuditStamp, DecodeError> {
    let actor = ActorId::parse(actor).map_err(|_| DecodeError::Body("actor"))?;
    Ok(AuditStamp { time: UnixMillis(millis), actor })
}

fn parse_all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
    texts.iter().map(|text| parse(text)).collect()
}
