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

use std::marker::PhantomData;
use std::ops::Range;

use crate::bytes_codec::put_varint;
use ipnet::IpNet;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::{Policy, SecretUse, Standing, StandingPolicy};
use keyward_core::event::Revision;
use keyward_core::holds::{Holding, Holds};
use keyward_core::id::{ActorId, Environment, KeyId, TenantId};
use keyward_core::record::{KeyPolicy, KeyRecord, State, StoredSecret};
use keyward_core::scope::Scope;

use super::codec::{PackedReader, cidr, put_bytes, put_cidr};
use super::interner::{NameKind, Names, Owner, OwnerLookup, ScopeLookup, TenantScope};
use super::shard::ShardGuard;

const STATE: u8 = 0b0000_0011;
const NOT_BEFORE: u8 = 0b0000_0100;
const EXPIRE_TIME: u8 = 0b0000_1000;
const RESTRICTED: u8 = 0b0001_0000;
const LABELLED: u8 = 0b0010_0000;
const NUMBERED: u8 = 0b0100_0000;
/// Another byte of flags follows: what bears on the key, or which of its secrets this is.
const STANDING: u8 = 0b1000_0000;

const PREVIOUS: u8 = 0b0000_0001;
const RETIRED: u8 = 0b0000_0010;
const DELETED: u8 = 0b0000_0100;
const RESUME_TIME: u8 = 0b0000_1000;
const VALID_UNTIL: u8 = 0b0001_0000;

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
        SecretUse::Current => (0, None),
        SecretUse::Previous { valid_until } => (PREVIOUS | flag(valid_until.is_some(), VALID_UNTIL), valid_until),
        SecretUse::Retired => (RETIRED, None),
    };
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
    (head.standing & (PREVIOUS | RETIRED | DELETED) == 0).then(|| state_in(head.flags))
}

fn state_in(flags: u8) -> State {
    match flags & STATE {
        0 => State::Active,
        1 => State::Disabled,
        _ => State::Revoked,
    }
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
struct Head {
    flags: u8,
    standing: u8,
    /// Where the times are.
    times: usize,
}

impl Head {
    /// The times, in the order in which they are written.
    const NOT_BEFORE: usize = 0;
    const EXPIRE_TIME: usize = 1;
    const RESUME_TIME: usize = 2;
    const VALID_UNTIL: usize = 3;

    #[inline]
    fn read(from: &mut PackedReader<'_>) -> Self {
        let flags = from.byte();
        let standing = if flags & STANDING != 0 { from.byte() } else { 0 };
        let times = from.at;
        let head = Self { flags, standing, times };
        if flags & (NOT_BEFORE | EXPIRE_TIME | STANDING) != 0 {
            from.at += 8 * head.has_time().into_iter().filter(|has| *has).count();
        }
        head
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
    fn time(&self, bytes: &[u8], which: usize) -> Option<UnixMillis> {
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

/// A key in the index, read in place. It shows the key as it was when it was found, whatever happens to the
/// key meanwhile, and keeps a generation of names alive; so it must not be stored, and lives no longer than a
/// borrow of the index.
pub struct Entry<'a> {
    shard: ShardGuard,
    fields: EntryFields,
    holding: Holding,
    index: PhantomData<&'a ()>,
}

/// Where the fields of an entry are in the bytes of its shard.
struct EntryFields {
    revision: Revision,
    tenant: u32,
    owner: u32,
    environment: u32,
    head: Head,
    scopes: Range<usize>,
    key_id: Range<usize>,
    display_name: Range<usize>,
    /// What comes after the display name: the issue, the restrictions and the labels.
    rest: Range<usize>,
}

impl Entry<'_> {
    pub(super) fn at(range: Range<usize>, shard: ShardGuard) -> Self {
        let fields = EntryFields::read(shard.bytes(), range);
        Self { shard, fields, holding: Holding::default(), index: PhantomData }
    }

    /// Looks up what is withheld.
    pub(super) fn hold_by(&mut self, holds: &Holds) {
        self.holding = holds.of(self.tenant(), self.owner(), self.issuer(), self.issue_time());
    }

    /// The tenant that the key belongs to.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        named(self.names().tenants.get(self.fields.tenant))
    }

    /// The owner of the key.
    #[must_use]
    pub fn owner(&self) -> &str {
        &named(self.names().owners.get(self.fields.owner)).name
    }

    /// Who issued the secret.
    #[must_use]
    pub fn issuer(&self) -> &ActorId {
        named(self.names().issuers.get(self.issue().issuer))
    }

    /// When the secret was issued, but not before 2020.
    #[must_use]
    pub fn issue_time(&self) -> UnixMillis {
        let since = i64::try_from(self.issue().since).unwrap_or(i64::MAX);
        UnixMillis(since.saturating_add(ISSUE_EPOCH_MS))
    }

    /// The number that the store gave the key. `None`: it has none yet.
    #[must_use]
    pub fn ordinal(&self) -> Option<u32> {
        self.issue().ordinal
    }

    /// Whether the key is unknown to callers: it was deleted, and is not revoked.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.fields.head.standing & DELETED != 0 && self.state() != State::Revoked
    }

    /// Identity within the tenant.
    #[must_use]
    pub fn key_id(&self) -> &str {
        text(self.key_id_bytes())
    }

    /// [`Entry::key_id`] as an owned value. `None`: it is no id, which packing does not make.
    #[must_use]
    pub fn to_key_id(&self) -> Option<KeyId> {
        KeyId::parse(self.key_id()).ok()
    }

    /// The revision of the key's last change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.fields.revision
    }

    /// [`Entry::key_id`] as it is written.
    #[must_use]
    pub fn key_id_bytes(&self) -> &[u8] {
        &self.bytes()[self.fields.key_id.clone()]
    }

    /// The label that people see.
    #[must_use]
    pub fn display_name(&self) -> &str {
        text(self.display_name_bytes())
    }

    /// [`Entry::display_name`] as it is written.
    #[must_use]
    pub fn display_name_bytes(&self) -> &[u8] {
        &self.bytes()[self.fields.display_name.clone()]
    }

    /// Labels, in the order of their names.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = self.after_issue();
        let count = if self.fields.head.flags & LABELLED != 0 {
            if self.is_restricted() {
                skip_restrictions(&mut rest);
            }
            rest.varint()
        } else {
            0
        };
        (0..count).map(move |_| (text(rest.piece()), text(rest.piece())))
    }

    /// The policy as an owned value, with what bears on it.
    #[must_use]
    pub fn to_policy(&self) -> StandingPolicy {
        let policy = KeyPolicy {
            environment: self.environment().clone(),
            state: self.state(),
            scopes: self.scopes().cloned().collect(),
            audiences: self.audiences().map(str::to_owned).collect(),
            allowed_cidrs: self.allowed_cidrs().collect(),
            not_before: self.not_before(),
            expire_time: self.expire_time(),
        };
        StandingPolicy { policy, standing: self.standing() }
    }

    fn is_restricted(&self) -> bool {
        self.fields.head.flags & RESTRICTED != 0
    }

    fn bytes(&self) -> &[u8] {
        self.shard.bytes()
    }

    /// The names that the numbers in this shard refer to.
    fn names(&self) -> &Names {
        self.shard.names()
    }

    fn reader(&self, range: Range<usize>) -> PackedReader<'_> {
        PackedReader { bytes: &self.bytes()[..range.end], at: range.start }
    }

    fn issue(&self) -> Issue {
        Issue::read(&mut self.reader(self.fields.rest.clone()), &self.fields.head)
    }

    fn after_issue(&self) -> PackedReader<'_> {
        let mut rest = self.reader(self.fields.rest.clone());
        Issue::read(&mut rest, &self.fields.head);
        rest
    }

    fn restrictions(&self) -> Option<PackedReader<'_>> {
        self.is_restricted().then(|| self.after_issue())
    }
}

impl Policy for Entry<'_> {
    fn environment(&self) -> &Environment {
        named(self.names().environments.get(self.fields.environment))
    }

    fn state(&self) -> State {
        state_in(self.fields.head.flags)
    }

    fn scopes(&self) -> impl Iterator<Item = &Scope> {
        let mut numbers = self.reader(self.fields.scopes.clone());
        let granted = &self.names().scopes;
        std::iter::from_fn(move || (!numbers.is_empty()).then(|| &named(granted.get(numbers.small())).scope))
    }

    fn audiences(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.restrictions();
        let count = rest.as_mut().map_or(0, PackedReader::varint);
        (0..count).filter_map(move |_| rest.as_mut().map(|rest| text(rest.piece())))
    }

    fn allowed_cidrs(&self) -> impl Iterator<Item = IpNet> {
        let mut rest = self.restrictions();
        let count = rest.as_mut().map_or(0, |rest| {
            (0..rest.varint()).for_each(|_| rest.skip());
            rest.varint()
        });
        (0..count).filter_map(move |_| rest.as_mut().map(|rest| cidr(rest.piece())))
    }

    fn not_before(&self) -> Option<UnixMillis> {
        self.fields.head.time(self.bytes(), Head::NOT_BEFORE)
    }

    fn expire_time(&self) -> Option<UnixMillis> {
        self.fields.head.time(self.bytes(), Head::EXPIRE_TIME)
    }

    #[inline]
    fn is_plain(&self) -> bool {
        self.fields.head.standing == 0 && self.holding == Holding::default()
    }

    fn standing(&self) -> Standing {
        let (head, Holding { is_held, is_outdated }) = (&self.fields.head, self.holding);
        let secret = match head.standing & (PREVIOUS | RETIRED) {
            0 => SecretUse::Current,
            PREVIOUS => SecretUse::Previous { valid_until: head.time(self.bytes(), Head::VALID_UNTIL) },
            _ => SecretUse::Retired,
        };
        let resume_time = head.time(self.bytes(), Head::RESUME_TIME);
        Standing { secret, is_deleted: head.standing & DELETED != 0, is_held, is_outdated, resume_time }
    }
}

/// By whom and when the secret was issued, and the number of its key.
struct Issue {
    issuer: u32,
    /// Milliseconds since 2020.
    since: u64,
    ordinal: Option<u32>,
}

impl Issue {
    fn read(from: &mut PackedReader<'_>, head: &Head) -> Self {
        let (issuer, since) = (from.small(), from.varint());
        Self { issuer, since, ordinal: (head.flags & NUMBERED != 0).then(|| from.small()) }
    }
}

impl EntryFields {
    fn read(bytes: &[u8], range: Range<usize>) -> Self {
        let mut from = PackedReader { bytes: &bytes[..range.end], at: range.start };
        let revision = Revision(from.varint());
        let [tenant, owner, environment] = std::array::from_fn(|_| from.small());
        let head = Head::read(&mut from);
        let [scopes, key_id, display_name] = std::array::from_fn(|_| from.piece_range());
        let rest = from.at..range.end;
        Self { revision, tenant, owner, environment, head, scopes, key_id, display_name, rest }
    }
}

#[expect(
    clippy::expect_used,
    reason = "a shard has no number but those that its generation of names gave out, which takes none back"
)]
fn named<T>(thing: Option<&T>) -> &T {
    thing.expect("a name that was given a number")
}

/// The bytes were packed from a text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn skip_restrictions(from: &mut PackedReader<'_>) {
    for _ in 0..2 {
        (0..from.varint()).for_each(|_| from.skip());
    }
}
