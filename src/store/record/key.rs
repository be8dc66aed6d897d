//! A key as bytes.

use ipnet::IpNet;
use keyward_core::digest::PepperId;
use keyward_core::event::Revision;
use keyward_core::id::Environment;
use keyward_core::record::{
    AuditStamp, Deletion, KeyPolicy, KeyRecord, KeySpec, OverlapStart, PreviousSecret, RetiredSecret, State,
    StoredSecret,
};
use keyward_core::scope::Scope;
use prost::Message;

use super::{
    CHECKSUM_BYTES, DecodeError, Known, Version, digest, envelope, key_id, millis, open, optional_stamp, pb, stamp,
    stamp_parts, tenant_id, time,
};

const KNOWN: Known = Known {
    fields: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28],
    within: &[(3, &Known { fields: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], within: &[] })],
};

/// A key as bytes.
#[must_use]
pub fn encode_key(key: &KeyRecord) -> Vec<u8> {
    envelope(version(key), &to_pb(key))
}

/// The size of a key without what comes to it later: its number, the reason and the author of its state, and
/// what rotations, suspensions and deletions add.
#[must_use]
pub fn stateless_key_bytes(key: &KeyRecord) -> usize {
    let secret = StoredSecret { issued: None, ..key.secret.clone() };
    let stateless = pb::KeyRecord {
        secrets: vec![secret_to_pb(&secret)],
        state_reason: String::new(),
        state_by: String::new(),
        state_time_ms: 0,
        resume_time_ms: 0,
        delete_time_ms: 0,
        purge_time_ms: 0,
        delete_protected: false,
        ordinal: 0,
        ..to_pb(key)
    };
    1 + stateless.encoded_len() + CHECKSUM_BYTES
}

/// The version that a key needs.
fn version(key: &KeyRecord) -> Version {
    // Without `..`, so that a new field does not compile until it is considered here.
    let KeyRecord { key_id: _, tenant: _, secret, previous, retired, spec: _, state_reason: _, .. } = key;
    let KeyRecord { state_changed, resume_time, deletion, delete_protected, ordinal: _, .. } = key;
    let KeyRecord { created, updated, revision: _, .. } = key;
    let is_plain = secret.issued.is_none() && previous.is_none() && retired.is_none();
    let stays = resume_time.is_none() && deletion.is_none() && !delete_protected;
    let stamps = [Some(created), Some(updated), state_changed.as_ref()];
    let by_words = stamps.into_iter().flatten().all(|stamp| stamp.actor.is_word());
    if is_plain && stays && by_words { Version::One } else { Version::Two }
}

fn to_pb(key: &KeyRecord) -> pb::KeyRecord {
    // Without `..`, so that a new field does not compile until it is stored.
    let KeyRecord {
        key_id,
        tenant,
        secret,
        previous,
        retired,
        spec,
        state_reason,
        state_changed,
        resume_time,
        deletion,
        delete_protected,
        ordinal,
        created,
        updated,
        revision,
    } = key;
    let KeySpec { display_name, description, owner, policy, labels, annotations } = spec;
    let KeyPolicy { environment, state, scopes, audiences, allowed_cidrs, not_before, expire_time } = policy;
    let (state_time_ms, state_by) = stamp_parts(state_changed.as_ref());
    let older = [previous.as_ref().map(previous_to_pb), retired.as_ref().map(retired_to_pb)];
    pb::KeyRecord {
        key_id: key_id.to_string(),
        tenant: tenant.to_string(),
        secrets: [Some(secret_to_pb(secret))].into_iter().chain(older).flatten().collect(),
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
        not_before_ms: millis(*not_before),
        expire_time_ms: millis(*expire_time),
        create_time_ms: created.time.0,
        created_by: created.actor.to_string(),
        update_time_ms: updated.time.0,
        updated_by: updated.actor.to_string(),
        revision: revision.0,
        resume_time_ms: millis(*resume_time),
        delete_time_ms: millis(deletion.map(|deletion| deletion.time)),
        purge_time_ms: millis(deletion.map(|deletion| deletion.purge_time)),
        delete_protected: *delete_protected,
        ordinal: ordinal.map_or(0, |ordinal| ordinal.saturating_add(1)),
        state_by,
        state_time_ms,
    }
}

fn secret_to_pb(secret: &StoredSecret) -> pb::StoredSecret {
    let StoredSecret { version, digest, pepper, hint, issued } = secret;
    let (create_time_ms, issued_by) = stamp_parts(issued.as_ref());
    pb::StoredSecret {
        version: *version,
        digest: digest.as_bytes().to_vec(),
        pepper_id: pepper.0,
        hint: hint.clone(),
        create_time_ms,
        issued_by,
        valid_until_ms: 0,
        overlap_ms: 0,
        overlap_starts: 0,
        retired_ms: 0,
    }
}

fn previous_to_pb(previous: &PreviousSecret) -> pb::StoredSecret {
    let PreviousSecret { secret, valid_until, overlap_ms, overlap_starts } = previous;
    let overlap_starts = match overlap_starts {
        OverlapStart::AtIssue => pb::StoredOverlapStart::AtIssue,
        OverlapStart::OnFirstUse => pb::StoredOverlapStart::OnFirstUse,
    };
    pb::StoredSecret {
        valid_until_ms: millis(*valid_until),
        overlap_ms: *overlap_ms,
        overlap_starts: overlap_starts.into(),
        ..secret_to_pb(secret)
    }
}

fn retired_to_pb(retired: &RetiredSecret) -> pb::StoredSecret {
    pb::StoredSecret { retired_ms: retired.time.0, ..secret_to_pb(&retired.secret) }
}

/// A key from bytes.
///
/// # Errors
/// When the bytes are not what [`encode_key`] of this or an earlier program wrote.
pub fn decode_key(bytes: &[u8]) -> Result<KeyRecord, DecodeError> {
    let (envelope_version, pb): (_, pb::KeyRecord) = open(bytes, &KNOWN)?;
    let state = match pb.state() {
        pb::StoredState::Active => State::Active,
        pb::StoredState::Disabled => State::Disabled,
        pb::StoredState::Revoked => State::Revoked,
        pb::StoredState::Unspecified => return Err(DecodeError::Body("state")),
    };
    // Without `..`, so that a new field does not compile until it is read.
    let pb::KeyRecord {
        key_id: id,
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
        resume_time_ms,
        delete_time_ms,
        purge_time_ms,
        delete_protected,
        ordinal,
        state_by,
        state_time_ms,
    } = pb;
    let Secrets { secret, previous, retired } = secrets_from(secrets)?;
    let policy = KeyPolicy {
        environment: Environment::parse(&environment).map_err(|_| DecodeError::Body("environment"))?,
        state,
        scopes: parse_all(&scopes, |s| Scope::parse(s).map_err(|_| DecodeError::Body("scopes")))?,
        audiences,
        allowed_cidrs: parse_all(&allowed_cidrs, |s| s.parse().map_err(|_| DecodeError::Body("cidrs")))?,
        not_before: time(not_before_ms),
        expire_time: time(expire_time_ms),
    };
    let deletion = match (time(delete_time_ms), time(purge_time_ms)) {
        (None, None) => None,
        (Some(time), Some(purge_time)) => Some(Deletion { time, purge_time }),
        _ => return Err(DecodeError::Body("deletion")),
    };
    let key = KeyRecord {
        key_id: key_id(&id)?,
        tenant: tenant_id(&tenant)?,
        secret,
        previous,
        retired,
        spec: KeySpec { display_name, description, owner, policy, labels, annotations },
        state_reason,
        state_changed: optional_stamp(state_time_ms, &state_by)?,
        resume_time: time(resume_time_ms),
        deletion,
        delete_protected,
        ordinal: ordinal.checked_sub(1),
        created: stamp(create_time_ms, &created_by)?,
        updated: stamp(update_time_ms, &updated_by)?,
        revision: Revision(revision),
    };
    // So that a record has one form.
    if version(&key) != envelope_version { Err(DecodeError::Body("version")) } else { Ok(key) }
}

struct Secrets {
    secret: StoredSecret,
    previous: Option<PreviousSecret>,
    retired: Option<RetiredSecret>,
}

/// The current secret, and then at most one previous and one retired secret, in this order.
fn secrets_from(stored: Vec<pb::StoredSecret>) -> Result<Secrets, DecodeError> {
    const WRONG: DecodeError = DecodeError::Body("secrets");
    let mut stored = stored.into_iter().peekable();
    let (secret, of_current) = secret_from(stored.next().ok_or(WRONG)?)?;
    if of_current != SecretTimes::default() {
        return Err(WRONG);
    }
    let previous = stored.next_if(|older| older.retired_ms == 0).map(|older| {
        let (secret, SecretTimes { valid_until_ms, overlap_ms, overlap_starts, retired_ms: _ }) = secret_from(older)?;
        let overlap_starts = match pb::StoredOverlapStart::try_from(overlap_starts) {
            Ok(pb::StoredOverlapStart::AtIssue) => OverlapStart::AtIssue,
            Ok(pb::StoredOverlapStart::OnFirstUse) => OverlapStart::OnFirstUse,
            Ok(pb::StoredOverlapStart::Unspecified) | Err(_) => return Err(WRONG),
        };
        // An overlap that began with the issue has an end; without one, the secret would work for ever.
        let valid_until = time(valid_until_ms);
        if valid_until.is_none() && overlap_starts == OverlapStart::AtIssue {
            return Err(WRONG);
        }
        Ok(PreviousSecret { secret, valid_until, overlap_ms, overlap_starts })
    });
    let retired = stored.next().map(|older| {
        let (secret, times) = secret_from(older)?;
        let only_retired = SecretTimes { retired_ms: times.retired_ms, ..SecretTimes::default() };
        let time = time(times.retired_ms).filter(|_| times == only_retired).ok_or(WRONG)?;
        Ok(RetiredSecret { secret, time })
    });
    if stored.next().is_some() {
        return Err(WRONG);
    }
    Ok(Secrets { secret, previous: previous.transpose()?, retired: retired.transpose()? })
}

/// What a secret has besides while it is the previous or the retired one.
#[derive(Default, PartialEq)]
struct SecretTimes {
    valid_until_ms: i64,
    overlap_ms: u64,
    overlap_starts: i32,
    retired_ms: i64,
}

fn secret_from(stored: pb::StoredSecret) -> Result<(StoredSecret, SecretTimes), DecodeError> {
    let pb::StoredSecret {
        version,
        digest: bytes,
        pepper_id,
        hint,
        create_time_ms,
        issued_by,
        valid_until_ms,
        overlap_ms,
        overlap_starts,
        retired_ms,
    } = stored;
    let issued: Option<AuditStamp> = optional_stamp(create_time_ms, &issued_by)?;
    let secret = StoredSecret { version, digest: digest(bytes)?, pepper: PepperId(pepper_id), hint, issued };
    Ok((secret, SecretTimes { valid_until_ms, overlap_ms, overlap_starts, retired_ms }))
}

fn parse_all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, DecodeError>) -> Result<Vec<T>, DecodeError> {
    texts.iter().map(|text| parse(text)).collect()
}
