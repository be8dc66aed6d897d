//! A key in the index, as Verify reads it: see `packing` for its bytes.

use std::marker::PhantomData;
use std::ops::Range;

use ipnet::IpNet;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::{Policy, Standing, StandingPolicy};
use keyward_core::event::Revision;
use keyward_core::holds::{Holding, Holds};
use keyward_core::id::{ActorId, Environment, KeyId, TenantId};
use keyward_core::record::{KeyPolicy, State};
use keyward_core::scope::Scope;

use super::codec::{PackedReader, cidr};
use super::interner::Names;
use super::packing::{Head, Issue, skip_restrictions};
use super::shard::ShardGuard;

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
        self.issue().time()
    }

    /// The number that the store gave the key. `None`: it has none yet.
    #[must_use]
    pub fn ordinal(&self) -> Option<u32> {
        self.issue().ordinal
    }

    /// Whether the secret is the previous one of the key.
    #[must_use]
    #[inline]
    pub fn is_of_previous(&self) -> bool {
        self.fields.head.is_previous()
    }

    /// Whether this is the current or the previous secret of a key that has both.
    #[must_use]
    #[inline]
    pub fn is_rotating(&self) -> bool {
        self.fields.head.is_rotating()
    }

    /// When the previous secret of such a key stops working, or has stopped. `None`: that is not settled yet.
    #[must_use]
    pub fn previous_end(&self) -> Option<UnixMillis> {
        let end = self.fields.head.overlap_end(self.bytes())?;
        Some(self.expire_time().map_or(end, |of_key| of_key.min(end)))
    }

    /// Whether the key is unknown to callers: it was deleted, and is not revoked.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.fields.head.is_deleted() && self.state() != State::Revoked
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
        let count = if self.fields.head.is_labelled() {
            if self.fields.head.is_restricted() {
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
        self.fields.head.is_restricted().then(|| self.after_issue())
    }
}

impl Policy for Entry<'_> {
    fn environment(&self) -> &Environment {
        named(self.names().environments.get(self.fields.environment))
    }

    fn state(&self) -> State {
        self.fields.head.state()
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
        self.fields.head.is_plain() && self.holding == Holding::default()
    }

    fn standing(&self) -> Standing {
        let (head, Holding { is_held, is_outdated }) = (&self.fields.head, self.holding);
        Standing {
            secret: head.secret(self.bytes()),
            is_deleted: head.is_deleted(),
            is_held,
            is_outdated,
            resume_time: head.time(self.bytes(), Head::RESUME_TIME),
        }
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
