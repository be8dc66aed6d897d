//! Records as bytes. Bytes at rest are a public interface: what is written today decodes for ever.
//!
//! ```text
//! ┌─────────┬──────────────────────────────┬──────────────────────────┐
//! │ version │ body: protobuf, storage.v1   │ first 16 bytes of blake3 │
//! │ 1 byte  │                              │ of version and body      │
//! └─────────┴──────────────────────────────┴──────────────────────────┘
//! ```
//!
//! A record is written in version 1 if it has no field of version 2. In version 2 a field number below
//! [`IGNORABLE_FROM`] that is not known refuses the record: what it says may forbid what the rest allows.
//!
//! The body of a key holds its own digest, so a record that lands under another name is noticed.
//! docs/FORMAT.md and testdata/records/ have examples.

mod key;
mod line;
mod owner;
mod purge_mark;
mod tenant;

use std::sync::Arc;

use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::enumerate;
use keyward_core::event::Record;
use keyward_core::id::{ActorId, KeyId, TenantId};
use keyward_core::record::{AuditStamp, Hold};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key as decode_tag, decode_varint, skip_field};

pub use self::key::{decode_key, encode_key, stateless_key_bytes};
pub use self::line::{decode_line, encode_line};
pub use self::owner::{decode_issuer, decode_owner, encode_issuer, encode_owner};
pub use self::purge_mark::{decode_purge_mark, encode_purge_mark};
pub use self::tenant::{decode_tenant, encode_tenant};

/// The generated messages of what is kept on disk.
#[expect(clippy::must_use_candidate, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/keyward.storage.v1.rs"));
}

/// Field numbers from here on may be overlooked by a program that does not know them.
const IGNORABLE_FROM: u32 = 64;
const CHECKSUM_BYTES: usize = 16;

/// A version of the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One = 1,
    Two = 2,
}

enumerate! {
    /// The kinds of records, in the order of a snapshot.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub(super) enum RecordKind {
        Line,
        Tenant,
        Owner,
        Issuer,
        Purged,
        Key,
    }
}

impl RecordKind {
    /// Its number in a snapshot and in the table's sums.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tenant => 1,
            Self::Key => 2,
            Self::Owner => 3,
            Self::Issuer => 4,
            Self::Purged => 5,
            Self::Line => 6,
        }
    }

    /// The kind of a number. `None`: it is of a later program, or damaged.
    pub(super) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The kind of a record.
    pub(super) fn of(record: &Record) -> Self {
        match record {
            Record::Key(_) => Self::Key,
            Record::Tenant(_) => Self::Tenant,
            Record::Owner(_) => Self::Owner,
            Record::Issuer(_) => Self::Issuer,
            Record::Purged(_) => Self::Purged,
            Record::Line(_) => Self::Line,
        }
    }
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
    /// Written by a later program: the field may forbid what the rest allows.
    #[error("the record has field {0}, which this program does not know")]
    UnknownField(u32),
    /// The bytes have changed since they were written.
    #[error("the checksum does not match")]
    Checksum,
    /// The body is not of its form.
    #[error("the body does not decode: {0}")]
    Body(&'static str),
}

/// A record as bytes, in the lowest version that has all of it.
#[must_use]
pub fn encode(record: &Record) -> Vec<u8> {
    match record {
        Record::Key(key) => encode_key(key),
        Record::Tenant(tenant) => encode_tenant(tenant),
        Record::Owner(owner) => encode_owner(owner),
        Record::Issuer(issuer) => encode_issuer(issuer),
        Record::Purged(mark) => encode_purge_mark(mark),
        Record::Line(line) => encode_line(line),
    }
}

/// Whether stored bytes are of version 1.
pub(super) fn is_first_form(bytes: &[u8]) -> bool {
    bytes.first() == Some(&(Version::One as u8))
}

/// A record of a kind from bytes.
pub(super) fn decode(kind: RecordKind, bytes: &[u8]) -> Result<Record, DecodeError> {
    Ok(match kind {
        RecordKind::Key => Record::Key(Arc::new(decode_key(bytes)?)),
        RecordKind::Tenant => Record::Tenant(Arc::new(decode_tenant(bytes)?)),
        RecordKind::Owner => Record::Owner(Arc::new(decode_owner(bytes)?)),
        RecordKind::Issuer => Record::Issuer(Arc::new(decode_issuer(bytes)?)),
        RecordKind::Purged => Record::Purged(Arc::new(decode_purge_mark(bytes)?)),
        RecordKind::Line => Record::Line(Arc::new(decode_line(bytes)?)),
    })
}

/// The name of a record, unique among those of its kind. Snapshots and the table are in the order of names.
pub(super) fn name_of(record: &Record) -> Vec<u8> {
    match record {
        Record::Key(key) => key.secret.digest.as_bytes().to_vec(),
        Record::Tenant(tenant) => tenant.tenant.as_str().as_bytes().to_vec(),
        Record::Owner(owner) => joined(&owner.tenant, &owner.owner),
        Record::Issuer(issuer) => issuer.actor.as_str().as_bytes().to_vec(),
        Record::Purged(mark) => joined(&mark.tenant, mark.key_id.as_str()),
        Record::Line(line) => line.base.0.to_be_bytes().to_vec(),
    }
}

/// A record as an entry of the journal has it.
pub(super) fn redo(record: &Record, bytes: Vec<u8>) -> pb::Redo {
    use pb::redo::Record as Redo;
    let record = match record {
        Record::Key(_) => Redo::Key(bytes),
        Record::Tenant(_) => Redo::Tenant(bytes),
        Record::Owner(_) => Redo::Owner(bytes),
        Record::Issuer(_) => Redo::Issuer(bytes),
        Record::Purged(_) => Redo::Purged(bytes),
        Record::Line(_) => Redo::Line(bytes),
    };
    pb::Redo { record: Some(record) }
}

/// The kind and the bytes of a record in an entry of the journal.
pub(super) fn of_redo(redo: &pb::Redo) -> Result<(RecordKind, &[u8]), DecodeError> {
    use pb::redo::Record as Redo;
    Ok(match &redo.record {
        Some(Redo::Key(bytes)) => (RecordKind::Key, bytes),
        Some(Redo::Tenant(bytes)) => (RecordKind::Tenant, bytes),
        Some(Redo::Owner(bytes)) => (RecordKind::Owner, bytes),
        Some(Redo::Issuer(bytes)) => (RecordKind::Issuer, bytes),
        Some(Redo::Purged(bytes)) => (RecordKind::Purged, bytes),
        Some(Redo::Line(bytes)) => (RecordKind::Line, bytes),
        None => return Err(DecodeError::Body("redo")),
    })
}

fn joined(tenant: &TenantId, rest: &str) -> Vec<u8> {
    [tenant.as_str().as_bytes(), &[0], rest.as_bytes()].concat()
}

fn envelope(version: Version, body: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + body.encoded_len() + CHECKSUM_BYTES);
    bytes.push(version as u8);
    bytes.extend_from_slice(&body.encode_to_vec());
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM_BYTES]);
    bytes
}

/// The fields of a message that are known, and of the messages in them.
struct Known {
    fields: &'static [u32],
    within: &'static [(u32, &'static Known)],
}

const HOLD: Known = Known { fields: &[1, 2, 3, 4, 5], within: &[] };

/// Opens an envelope.
fn open<M: Message + Default>(bytes: &[u8], known: &Known) -> Result<(Version, M), DecodeError> {
    let body_end = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(DecodeError::Short)?;
    let (covered, checksum) = bytes.split_at(body_end);
    let (&version, body) = covered.split_first().ok_or(DecodeError::Short)?;
    let version = match version {
        1 => Version::One,
        2 => Version::Two,
        other => return Err(DecodeError::UnknownVersion(other)),
    };
    if blake3::hash(covered).as_bytes()[..CHECKSUM_BYTES] != *checksum {
        return Err(DecodeError::Checksum);
    }
    if version == Version::Two {
        check_fields(body, known)?;
    }
    Ok((version, M::decode(body).map_err(|_| DecodeError::Body("protobuf"))?))
}

/// Opens an envelope that must be of version 2.
fn open_second<M: Message + Default>(bytes: &[u8], known: &Known) -> Result<M, DecodeError> {
    match open(bytes, known)? {
        (Version::Two, body) => Ok(body),
        (Version::One, _) => Err(DecodeError::UnknownVersion(1)),
    }
}

/// Refuses a field that is not known and may not be overlooked, also within messages.
fn check_fields(mut body: &[u8], known: &Known) -> Result<(), DecodeError> {
    const DAMAGED: DecodeError = DecodeError::Body("protobuf");
    while !body.is_empty() {
        let (number, wire_type) = decode_tag(&mut body).map_err(|_| DAMAGED)?;
        if number < IGNORABLE_FROM && !known.fields.contains(&number) {
            return Err(DecodeError::UnknownField(number));
        }
        let field = body;
        skip_field(wire_type, number, &mut body, DecodeContext::default()).map_err(|_| DAMAGED)?;
        if let Some((_, within)) = known.within.iter().find(|(within, _)| *within == number)
            && wire_type == WireType::LengthDelimited
        {
            let mut field = &field[..field.len() - body.len()];
            decode_varint(&mut field).map_err(|_| DAMAGED)?;
            check_fields(field, within)?;
        }
    }
    Ok(())
}

fn millis(time: Option<UnixMillis>) -> i64 {
    time.map_or(0, |time| time.0)
}

fn time(millis: i64) -> Option<UnixMillis> {
    (millis != 0).then_some(UnixMillis(millis))
}

fn tenant_id(text: &str) -> Result<TenantId, DecodeError> {
    TenantId::parse(text).map_err(|_| DecodeError::Body("tenant"))
}

fn key_id(text: &str) -> Result<KeyId, DecodeError> {
    KeyId::parse(text).map_err(|_| DecodeError::Body("key_id"))
}

fn digest(bytes: Vec<u8>) -> Result<Digest, DecodeError> {
    Ok(Digest::from_bytes(<[u8; 32]>::try_from(bytes).map_err(|_| DecodeError::Body("digest"))?))
}

fn actor_id(text: &str) -> Result<ActorId, DecodeError> {
    ActorId::parse(text).map_err(|_| DecodeError::Body("actor"))
}

fn stamp(millis: i64, actor: &str) -> Result<AuditStamp, DecodeError> {
    Ok(AuditStamp { time: UnixMillis(millis), actor: actor_id(actor)? })
}

/// A stamp that is there if it has an actor.
fn optional_stamp(millis: i64, actor: &str) -> Result<Option<AuditStamp>, DecodeError> {
    if actor.is_empty() { Ok(None) } else { Ok(Some(stamp(millis, actor)?)) }
}

/// The parts of a stamp that may be missing.
fn stamp_parts(stamp: Option<&AuditStamp>) -> (i64, String) {
    stamp.map_or((0, String::new()), |stamp| (stamp.time.0, stamp.actor.to_string()))
}

/// `None` for a hold that was never changed.
fn hold_to_pb(hold: &Hold) -> Option<pb::StoredHold> {
    let Hold { suspended, reason, reject_issued_before, changed } = hold;
    let (change_time_ms, changed_by) = stamp_parts(changed.as_ref());
    let reject_issued_before_ms = millis(*reject_issued_before);
    let suspended = *suspended;
    (*hold != Hold::default()).then(|| pb::StoredHold {
        suspended,
        reason: reason.clone(),
        reject_issued_before_ms,
        change_time_ms,
        changed_by,
    })
}

fn hold(pb: Option<pb::StoredHold>) -> Result<Hold, DecodeError> {
    let Some(pb) = pb else { return Ok(Hold::default()) };
    let pb::StoredHold { suspended, reason, reject_issued_before_ms, change_time_ms, changed_by } = pb;
    let changed = optional_stamp(change_time_ms, &changed_by)?;
    Ok(Hold { suspended, reason, reject_issued_before: time(reject_issued_before_ms), changed })
}
