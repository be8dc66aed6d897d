//! A key as Verify needs it, packed: numbers for shared names, and texts as they are.
//!
//! ```text
//! revision, tenant, owner, environment        varints; all but the first are numbers of names, of the shard's
//!                                             generation
//! flags                                       state, and which of the optional fields are there
//! [standing]                                  a byte of flags: see `STANDING`
//! [not_before] [expire_time]                  8 bytes each, milliseconds since 1970
//! [resume_time] [valid_until]                 the same, if the standing says so
//! scopes                                      how many bytes, and their numbers: varints
//! key_id, display_name                        length and text
//! issuer                                      varint, the number of a name
//! issue time                                  varint, milliseconds since 2020
//! [ordinal]                                   varint
//! [audiences, allowed_cidrs]                  how many, and each with its length
//! [labels]                                    how many, and each name and value with its length
//! ```
//!
//! Most keys have neither a standing nor one of the last two lines. What a verdict seldom reads comes last.
//! The previous and the retired secret of a key have an entry each, which has all of the key too, so that a
//! lookup reads one entry.

use crate::bytes_codec::put_varint;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::SecretUse;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, Environment, TenantId};
use keyward_core::record::{KeyRecord, State, StoredSecret};

use super::codec::{PackedReader, put_bytes, put_cidr};
use super::interner::{NameKind, Names, Owner, OwnerLookup, ScopeLookup, TenantScope};

const STATE: u8 = 0b0000_0011;
const NOT_BEFORE: u8 = 0b0000_0100;
const EXPIRE_TIME: u8 = 0b0000_1000;
const RESTRICTED: u8 = 0b0001_0000;
const LABELLED: u8 = 0b0010_0000;
const NUMBERED: u8 = 0b0100_0000;
/// Another byte of flags follows: what bears on the key, which of its secrets this is, or that it has a
/// previous one.
const STANDING: u8 = 0b1000_0000;

const PREVIOUS: u8 = 0b0000_0001;
const RETIRED: u8 = 0b0000_0010;
const DELETED: u8 = 0b0000_0100;
const RESUME_TIME: u8 = 0b0000_1000;
/// Of the previous secret, in its own entry and in that of the current one.
const VALID_UNTIL: u8 = 0b0001_0000;
/// It is of the current secret, and there is a previous one.
const ROTATING: u8 = 0b0010_0000;

/// Issue times are counted from here: 2020-01-01. One that is earlier is taken for it.
const ISSUE_EPOCH_MS: i64 = 1_577_836_800_000;

/// The names with which an entry begins, after its revision.
const LEADING: [NameKind; 3] = [NameKind::Tenant, NameKind::Owner, NameKind::Environment];

/// The id and the display name, between the scopes and the issuer.
const TEXTS: usize = 2;

/// Appends the packed entry of one of a key's secrets, and counts a use of each name in it.
pub(super) fn pack(key: &KeyRecord, secret: &StoredSecret, used: SecretUse, names: &Names, out: &mut Vec<u8>) {
    let (spec, policy) = (&key.spec, &key.spec.policy);
    let issued = key.issued(secret);
    let tenant = names.acquire::<TenantId>(&key.tenant);
    put_varint(out, key.revision.0);
    put_varint(out, tenant.into());
    put_varint(out, names.acquire::<Owner>(&OwnerLookup { tenant, name: &spec.owner }).into());
    put_varint(out, names.acquire::<Environment>(&policy.environment).into());

    let restricted = !policy.audiences.is_empty() || !policy.allowed_cidrs.is_empty();
    let state = match policy.state {
        State::Active => 0,
        State::Disabled => 1,
        State::Revoked => 2,
    };
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let (of_secret, valid_until) = match used {
        SecretUse::Current => match &key.previous {
            Some(previous) => (ROTATING, previous.valid_until),
            None => (0, None),
        },
        SecretUse::Previous { valid_until } => (PREVIOUS, valid_until),
        SecretUse::Retired => (RETIRED, None),
    };
    let of_secret = of_secret | flag(valid_until.is_some(), VALID_UNTIL);
    let standing = of_secret | flag(key.deletion.is_some(), DELETED) | flag(key.resume_time.is_some(), RESUME_TIME);
    out.push(
        state
            | flag(policy.not_before.is_some(), NOT_BEFORE)
            | flag(policy.expire_time.is_some(), EXPIRE_TIME)
            | flag(restricted, RESTRICTED)
            | flag(!spec.labels.is_empty(), LABELLED)
            | flag(key.ordinal.is_some(), NUMBERED)
            | flag(standing != 0, STANDING),
    );
    out.extend((standing != 0).then_some(standing));
    for time in [policy.not_before, policy.expire_time, key.resume_time, valid_until].into_iter().flatten() {
        out.extend_from_slice(&time.0.to_le_bytes());
    }
    let granted = policy.scopes.iter().map(|scope| ScopeLookup { tenant, scope });
    let numbers = granted.map(|granted| u64::from(names.acquire::<TenantScope>(&granted)));
    let mut scopes = Vec::with_capacity(2 * policy.scopes.len());
    numbers.for_each(|number| put_varint(&mut scopes, number));
    put_bytes(out, &scopes);
    put_bytes(out, key.key_id.as_str().as_bytes());
    put_bytes(out, spec.display_name.as_bytes());
    put_varint(out, names.acquire::<ActorId>(&issued.actor).into());
    put_varint(out, u64::try_from(issued.time.0.saturating_sub(ISSUE_EPOCH_MS)).unwrap_or(0));
    key.ordinal.into_iter().for_each(|ordinal| put_varint(out, ordinal.into()));
    if restricted {
        put_varint(out, policy.audiences.len() as u64);
        policy.audiences.iter().for_each(|audience| put_bytes(out, audience.as_bytes()));
        put_varint(out, policy.allowed_cidrs.len() as u64);
        policy.allowed_cidrs.iter().for_each(|cidr| put_cidr(out, cidr));
    }
    if !spec.labels.is_empty() {
        put_varint(out, spec.labels.len() as u64);
        for text in spec.labels.iter().flat_map(|(name, value)| [name, value]) {
            put_bytes(out, text.as_bytes());
        }
    }
}

/// The revision of a packed entry.
pub(super) fn revision_of(packed: &[u8]) -> Revision {
    Revision(PackedReader { bytes: packed, at: 0 }.varint())
}

/// The state that a packed entry is counted in. `None`: it is of an older secret, or of a deleted key.
pub(super) fn counted_state_of(packed: &[u8]) -> Option<State> {
    let mut from = PackedReader { bytes: packed, at: 0 };
    from.varint();
    for _ in LEADING {
        from.varint();
    }
    let head = Head::read(&mut from);
    (head.standing & (PREVIOUS | RETIRED | DELETED) == 0).then(|| head.state())
}

/// Calls `call` for each use of a name in a packed entry.
pub(super) fn each_name(packed: &[u8], mut call: impl FnMut(NameKind, u32)) {
    let mut from = PackedReader { bytes: packed, at: 0 };
    from.varint();
    LEADING.into_iter().for_each(|kind| call(kind, from.small()));
    Head::read(&mut from);
    let mut scopes = PackedReader { bytes: from.piece(), at: 0 };
    while !scopes.is_empty() {
        call(NameKind::Scope, scopes.small());
    }
    (0..TEXTS).for_each(|_| from.skip());
    call(NameKind::Issuer, from.small());
}

/// Appends a packed entry with new numbers for its names.
pub(super) fn renumber(packed: &[u8], mut number_of: impl FnMut(NameKind, u32) -> u32, out: &mut Vec<u8>) {
    let mut from = PackedReader { bytes: packed, at: 0 };
    put_varint(out, from.varint());
    for kind in LEADING {
        put_varint(out, number_of(kind, from.small()).into());
    }
    let head = from.at;
    Head::read(&mut from);
    out.extend_from_slice(packed.get(head..from.at).unwrap_or_default());
    let mut scopes = PackedReader { bytes: from.piece(), at: 0 };
    let mut numbers = Vec::with_capacity(scopes.bytes.len() + 8);
    while !scopes.is_empty() {
        put_varint(&mut numbers, number_of(NameKind::Scope, scopes.small()).into());
    }
    put_bytes(out, &numbers);
    let texts = from.at;
    (0..TEXTS).for_each(|_| from.skip());
    out.extend_from_slice(packed.get(texts..from.at).unwrap_or_default());
    put_varint(out, number_of(NameKind::Issuer, from.small()).into());
    out.extend_from_slice(packed.get(from.at..).unwrap_or_default());
}

/// What stands between the leading names and the scopes.
pub(super) struct Head {
    flags: u8,
    standing: u8,
    /// Where the times are.
    times: usize,
}

impl Head {
    /// The times, in the order in which they are written.
    pub(super) const NOT_BEFORE: usize = 0;
    pub(super) const EXPIRE_TIME: usize = 1;
    pub(super) const RESUME_TIME: usize = 2;
    const VALID_UNTIL: usize = 3;

    #[inline]
    pub(super) fn read(from: &mut PackedReader<'_>) -> Self {
        let flags = from.byte();
        let standing = if flags & STANDING != 0 { from.byte() } else { 0 };
        let times = from.at;
        let head = Self { flags, standing, times };
        if flags & (NOT_BEFORE | EXPIRE_TIME | STANDING) != 0 {
            from.at += 8 * head.has_time().into_iter().filter(|has| *has).count();
        }
        head
    }

    pub(super) fn state(&self) -> State {
        match self.flags & STATE {
            0 => State::Active,
            1 => State::Disabled,
            _ => State::Revoked,
        }
    }

    pub(super) fn is_restricted(&self) -> bool {
        self.flags & RESTRICTED != 0
    }

    pub(super) fn is_labelled(&self) -> bool {
        self.flags & LABELLED != 0
    }

    /// Whether it has no standing: it is of the only secret of a key that works, and the key is not deleted
    /// and resumes at no time.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.standing == 0
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.standing & DELETED != 0
    }

    /// Which secret the entry in `bytes` is of.
    pub(super) fn secret(&self, bytes: &[u8]) -> SecretUse {
        match self.standing & (PREVIOUS | RETIRED) {
            0 => SecretUse::Current,
            PREVIOUS => SecretUse::Previous { valid_until: self.time(bytes, Self::VALID_UNTIL) },
            _ => SecretUse::Retired,
        }
    }

    /// Whether it is of the previous secret.
    #[inline]
    pub(super) fn is_previous(&self) -> bool {
        self.standing & PREVIOUS != 0
    }

    /// Whether the key has a current and a previous secret, and this is the entry of one of them.
    #[inline]
    pub(super) fn is_rotating(&self) -> bool {
        self.standing & (PREVIOUS | ROTATING) != 0
    }

    /// The end of the previous secret's overlap, if this is an entry of it or of the current one. `None`:
    /// there is none, or it has not begun.
    pub(super) fn overlap_end(&self, bytes: &[u8]) -> Option<UnixMillis> {
        self.time(bytes, Self::VALID_UNTIL)
    }

    fn has_time(&self) -> [bool; 4] {
        [
            self.flags & NOT_BEFORE != 0,
            self.flags & EXPIRE_TIME != 0,
            self.standing & RESUME_TIME != 0,
            self.standing & VALID_UNTIL != 0,
        ]
    }

    /// A time of the entry in `bytes`.
    pub(super) fn time(&self, bytes: &[u8], which: usize) -> Option<UnixMillis> {
        let has = self.has_time();
        has[which].then(|| {
            let before = has[..which].iter().filter(|has| **has).count();
            UnixMillis(PackedReader { bytes, at: self.times + 8 * before }.millis())
        })
    }
}

/// The number of the owner of the packed entry at `at`.
pub(super) fn owner_of(bytes: &[u8], at: usize) -> u32 {
    let mut from = PackedReader { bytes, at };
    let [_revision, _tenant, owner] = std::array::from_fn(|_| from.varint());
    owner as u32
}

/// By whom and when the secret was issued, and the number of its key.
pub(super) struct Issue {
    pub(super) issuer: u32,
    /// Milliseconds since 2020.
    since: u64,
    pub(super) ordinal: Option<u32>,
}

impl Issue {
    pub(super) fn read(from: &mut PackedReader<'_>, head: &Head) -> Self {
        let (issuer, since) = (from.small(), from.varint());
        Self { issuer, since, ordinal: (head.flags & NUMBERED != 0).then(|| from.small()) }
    }

    /// When the secret was issued, but not before 2020.
    pub(super) fn time(&self) -> UnixMillis {
        UnixMillis(i64::try_from(self.since).unwrap_or(i64::MAX).saturating_add(ISSUE_EPOCH_MS))
    }
}

/// Skips the audiences and networks of a restricted key.
pub(super) fn skip_restrictions(from: &mut PackedReader<'_>) {
    for _ in 0..2 {
        (0..from.varint()).for_each(|_| from.skip());
    }
}
