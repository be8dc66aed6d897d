//! Records: keys, tenants and what else the log is made of.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use crate::clock::UnixMillis;
use crate::decision::{SecretUse, Standing, StandingPolicy};
use crate::digest::{Digest, PepperId};
use crate::enumerate;
use crate::event::Revision;
use crate::holds::{Holding, Holds};
use crate::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use crate::scope::Scope;

/// A key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Its name, unique in the tenant.
    pub key_id: KeyId,
    /// The tenant that the key belongs to.
    pub tenant: TenantId,
    /// What is stored of its current secret.
    pub secret: StoredSecret,
    /// The secret before it, which still works for a while.
    pub previous: Option<PreviousSecret>,
    /// The last secret that does not work any more: it is recognised, and refused as rotated out. Those
    /// before it are unknown.
    pub retired: Option<RetiredSecret>,
    /// What an operator gave it.
    pub spec: KeySpec,
    /// Why the key is in its state, or was deleted or given back.
    pub state_reason: String,
    /// When its state was last changed, or it was deleted or given back, and by whom. `None`: that was before
    /// this field existed.
    pub state_changed: Option<AuditStamp>,
    /// When a disabled key works again by itself. Until then it is suspended.
    pub resume_time: Option<UnixMillis>,
    /// It was deleted, and is kept for a while.
    pub deletion: Option<Deletion>,
    /// It cannot be deleted until this is taken back.
    pub delete_protected: bool,
    /// A number that the store gives the key when it is created: dense, and never given twice in one log.
    /// Keys of an older program have none until they change, and those that are created after all 2^32 - 1
    /// were given have none.
    pub ordinal: Option<u32>,
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
    /// When it was issued, and by whom. `None`: with the key.
    pub issued: Option<AuditStamp>,
}

/// A secret that was replaced by a newer one, and still works.
#[derive(Clone, Debug, PartialEq)]
pub struct PreviousSecret {
    /// The secret.
    pub secret: StoredSecret,
    /// It does not work from this time on. `None`: the overlap has not begun yet.
    pub valid_until: Option<UnixMillis>,
    /// How long both secrets work, in milliseconds.
    pub overlap_ms: u64,
    /// What begins the overlap.
    pub overlap_starts: OverlapStart,
}

enumerate! {
    /// What begins the time in which both secrets of a key work.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub enum OverlapStart {
        /// The issue of the newer secret.
        #[default]
        AtIssue,
        /// The first use of the newer secret.
        OnFirstUse,
    }
}

/// A secret that does not work any more.
#[derive(Clone, Debug, PartialEq)]
pub struct RetiredSecret {
    /// The secret.
    pub secret: StoredSecret,
    /// Since when.
    pub time: UnixMillis,
}

/// That a key was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// When.
    pub time: UnixMillis,
    /// When it is purged.
    pub purge_time: UnixMillis,
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

enumerate! {
    /// The state that a key is shown in at a time.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum ShownState {
        /// It is active, or was disabled until a time that has come.
        Active,
        /// It is disabled, for good or until a time to come.
        Disabled,
        /// It is revoked.
        Revoked,
        /// It was deleted, whatever else it is.
        Deleted,
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
    #[error("of a revoked key, only display_name, labels, annotations and delete_protected can be changed")]
    Edit,
    /// Of a key that was deleted.
    #[error("a deleted key can only be revoked or undeleted")]
    Deleted,
    /// A rotation of a key that will never work again, or one in which it has its secrets.
    #[error("the secrets of a revoked or expired key cannot be changed; create another key")]
    Rotation,
    /// The end of a rotation where none is pending.
    #[error("there is no rotation to cancel: the key has no previous secret that still works")]
    NoRotation,
}

impl KeyRecord {
    /// Changes the state, or the reason for the present one. With the same state, an empty reason leaves the
    /// old one, and `state_changed` stays. A `resume_time` goes.
    ///
    /// # Errors
    /// When the key is revoked and another state is asked for, or deleted and another one than revoked.
    pub fn transition(&mut self, state: State, reason: &str, by: &AuditStamp) -> Result<Effect, ForbiddenChange> {
        let says_nothing_new = reason.is_empty() || reason == self.state_reason;
        match (self.spec.policy.state, state) {
            (State::Revoked, State::Active | State::Disabled) => Err(ForbiddenChange::Reactivation),
            (_, State::Active | State::Disabled) if self.deletion.is_some() => Err(ForbiddenChange::Deleted),
            (from, to) if from == to && says_nothing_new && self.resume_time.is_none() => Ok(Effect::Unchanged),
            (from @ (State::Active | State::Disabled), to) | (from @ State::Revoked, to @ State::Revoked) => {
                // A suspension that would end by itself becomes one that does not.
                let ends = self.resume_time.take().is_some();
                if from != to || ends {
                    self.spec.policy.state = to;
                    self.state_changed = Some(by.clone());
                }
                if from != to || !reason.is_empty() {
                    reason.clone_into(&mut self.state_reason);
                }
                self.updated = by.clone();
                Ok(Effect::Changed)
            }
        }
    }

    /// Disables the key until a time, which must lie ahead, whatever it was disabled until before. With the
    /// same time, an empty reason or the same one changes nothing.
    ///
    /// # Errors
    /// When the key is revoked or deleted.
    pub fn suspend(&mut self, until: UnixMillis, reason: &str, by: &AuditStamp) -> Result<Effect, ForbiddenChange> {
        let is_disabled = self.spec.policy.state == State::Disabled && self.deletion.is_none();
        let (before, changed) = (self.resume_time.filter(|_| is_disabled), self.state_changed.clone());
        if before == Some(until) && (reason.is_empty() || reason == self.state_reason) {
            return Ok(Effect::Unchanged);
        }
        // It says nothing new where the key is disabled for good, and no reason is given.
        self.transition(State::Disabled, reason, by)?;
        self.resume_time = Some(until);
        // Another reason alone is no other state.
        self.state_changed = if before == Some(until) { changed } else { Some(by.clone()) };
        self.updated = by.clone();
        Ok(Effect::Changed)
    }

    /// The key as it is at a time by the clock: active, by Keyward itself, if it was disabled until a time
    /// that has come. What is stored may not say so yet.
    #[must_use]
    pub fn as_of(&self, clock: UnixMillis) -> Cow<'_, Self> {
        match self.resumed(clock) {
            Some(since) => {
                let mut key = self.clone();
                key.resume_time = None;
                key.spec.policy.state = State::Active;
                key.state_reason.clear();
                key.state_changed = Some(AuditStamp { time: since, actor: ActorId::keyward() });
                Cow::Owned(key)
            }
            None => Cow::Borrowed(self),
        }
    }

    /// Since when the key works again, if it was disabled until a time that has come by the clock.
    #[must_use]
    pub fn resumed(&self, clock: UnixMillis) -> Option<UnixMillis> {
        let is_disabled = self.spec.policy.state == State::Disabled && self.deletion.is_none();
        self.resume_time.filter(|time| is_disabled && *time <= clock)
    }

    /// The state that it is shown in at a time by the clock.
    #[must_use]
    pub fn shown_state(&self, clock: UnixMillis) -> ShownState {
        match self.spec.policy.state {
            _ if self.deletion.is_some() => ShownState::Deleted,
            State::Disabled if self.resumed(clock).is_some() => ShownState::Active,
            State::Active => ShownState::Active,
            State::Disabled => ShownState::Disabled,
            State::Revoked => ShownState::Revoked,
        }
    }

    /// The time at which something is to become of the key without anybody's call: it is purged, or works
    /// again. `None`: nothing is.
    #[must_use]
    pub fn due_time(&self) -> Option<UnixMillis> {
        match (self.deletion, self.spec.policy.state) {
            (Some(deletion), _) => Some(deletion.purge_time),
            (None, State::Disabled) => self.resume_time,
            (None, State::Active | State::Revoked) => None,
        }
    }

    /// Deletes the key, which stays in its state below that until it is purged; a `resume_time` goes. A
    /// deleted key is left as it is.
    pub fn delete(&mut self, purge_time: UnixMillis, reason: &str, by: &AuditStamp) -> Effect {
        if self.deletion.is_some() {
            return Effect::Unchanged;
        }
        self.deletion = Some(Deletion { time: by.time, purge_time });
        self.resume_time = None;
        self.move_by(reason, by);
        Effect::Changed
    }

    /// Gives a deleted key back: disabled, or revoked if it is that. One that is not deleted is left as it
    /// is.
    pub fn undelete(&mut self, reason: &str, by: &AuditStamp) -> Effect {
        if self.deletion.take().is_none() {
            return Effect::Unchanged;
        }
        self.spec.policy.state = self.undeleted_state();
        self.move_by(reason, by);
        Effect::Changed
    }

    /// The state in which the key comes back if it is deleted.
    #[must_use]
    pub fn undeleted_state(&self) -> State {
        if self.spec.policy.state == State::Revoked { State::Revoked } else { State::Disabled }
    }

    fn move_by(&mut self, reason: &str, by: &AuditStamp) {
        reason.clone_into(&mut self.state_reason);
        self.state_changed = Some(by.clone());
        self.updated = by.clone();
    }
}

impl KeyRecord {
    /// Its secrets: the current one, the previous and the retired one.
    pub fn secrets(&self) -> impl Iterator<Item = &StoredSecret> {
        let older = [self.previous.as_ref().map(|it| &it.secret), self.retired.as_ref().map(|it| &it.secret)];
        [&self.secret].into_iter().chain(older.into_iter().flatten())
    }

    /// The digests of its secrets, under which it is found.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.secrets().map(|secret| secret.digest)
    }

    /// Which of its secrets has a digest. `None`: none of them.
    #[must_use]
    pub fn secret_use(&self, digest: &Digest) -> Option<SecretUse> {
        self.secret_of(digest).map(|(_, used)| used)
    }

    fn secret_of(&self, digest: &Digest) -> Option<(&StoredSecret, SecretUse)> {
        let previous =
            self.previous.as_ref().map(|it| (&it.secret, SecretUse::Previous { valid_until: it.valid_until }));
        let retired = self.retired.as_ref().map(|it| (&it.secret, SecretUse::Retired));
        let all = [Some((&self.secret, SecretUse::Current)), previous, retired];
        all.into_iter().flatten().find(|(secret, _)| secret.digest == *digest)
    }

    /// The policy for one who presents the secret with a digest. `None`: it is none of the key's.
    #[must_use]
    pub fn policy_of(&self, digest: &Digest, holds: &Holds) -> Option<StandingPolicy<&KeyPolicy>> {
        let (secret, used) = self.secret_of(digest)?;
        let Holding { is_held, is_outdated } = holds.of_secret(self, secret);
        let (is_deleted, resume_time) = (self.deletion.is_some(), self.resume_time);
        let standing = Standing { secret: used, is_deleted, is_held, is_outdated, resume_time };
        Some(StandingPolicy { policy: &self.spec.policy, standing })
    }

    /// When a secret of the key was issued, and by whom.
    #[must_use]
    pub fn issued<'a>(&'a self, secret: &'a StoredSecret) -> &'a AuditStamp {
        secret.issued.as_ref().unwrap_or(&self.created)
    }

    /// Checks that the fields of `before` may become those of this one. A revoked key keeps what it was, for
    /// later inquiries; only what it is called and found by may change, and whether it may be deleted.
    ///
    /// # Errors
    /// When the key is revoked, and more than its `display_name`, labels, annotations or `delete_protected`
    /// differ; or it is deleted.
    pub fn check_edit(&self, before: &Self) -> Result<(), ForbiddenChange> {
        if before.deletion.is_some() {
            return Err(ForbiddenChange::Deleted);
        }
        if before.spec.policy.state != State::Revoked {
            return Ok(());
        }
        let editable = KeySpec {
            display_name: self.spec.display_name.clone(),
            labels: self.spec.labels.clone(),
            annotations: self.spec.annotations.clone(),
            ..before.spec.clone()
        };
        let delete_protected = self.delete_protected;
        if *self == (Self { spec: editable, delete_protected, ..before.clone() }) {
            Ok(())
        } else {
            Err(ForbiddenChange::Edit)
        }
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
    /// Whether its keys are withheld.
    pub hold: Hold,
    /// The most keys that are not deleted. `None`: no limit of its own.
    pub keys_max: Option<u64>,
    /// When the tenant was created, and by whom.
    pub created: AuditStamp,
    /// When it was last changed, and by whom. `None`: never since.
    pub updated: Option<AuditStamp>,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}

/// Whether all keys of a tenant, an owner or an issuer are refused, whatever their own state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hold {
    /// All of them.
    pub suspended: bool,
    /// Why.
    pub reason: String,
    /// Those whose secret was issued before this time.
    pub reject_issued_before: Option<UnixMillis>,
    /// When `suspended` was last changed, and by whom. `None`: never.
    pub changed: Option<AuditStamp>,
}

impl Hold {
    /// Suspends or resumes, or changes the reason for the present state. With the same state, an empty reason
    /// leaves the old one, and `changed` stays.
    pub fn suspend(&mut self, suspended: bool, reason: &str, by: &AuditStamp) -> Effect {
        let is_same = self.suspended == suspended;
        if is_same && (reason.is_empty() || reason == self.reason) {
            return Effect::Unchanged;
        }
        if !is_same {
            (self.suspended, self.changed) = (suspended, Some(by.clone()));
        }
        reason.clone_into(&mut self.reason);
        Effect::Changed
    }

    /// Refuses secrets that were issued before a time.
    ///
    /// # Errors
    /// With the time that it has, if that is later.
    pub fn reject_before(&mut self, time: UnixMillis) -> Result<Effect, UnixMillis> {
        match self.reject_issued_before.replace(time) {
            Some(later) if later > time => {
                self.reject_issued_before = Some(later);
                Err(later)
            }
            Some(same) if same == time => Ok(Effect::Unchanged),
            _ => Ok(Effect::Changed),
        }
    }
}

/// An owner of keys, if more is to be known of it than its name.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnerRecord {
    /// The tenant.
    pub tenant: TenantId,
    /// The owner of its keys.
    pub owner: String,
    /// Whether its keys are withheld.
    pub hold: Hold,
    /// When it was last changed, and by whom.
    pub updated: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}

/// An author of secrets, in all tenants, if more is to be known of it than its name.
#[derive(Clone, Debug, PartialEq)]
pub struct IssuerRecord {
    /// Who issues.
    pub actor: ActorId,
    /// Whether the keys whose secrets it issued are withheld.
    pub hold: Hold,
    /// When it was last changed, and by whom.
    pub updated: AuditStamp,
    /// The revision of the last change. The store sets it.
    pub revision: Revision,
}

/// Digests that lead nowhere from a revision on.
#[derive(Clone, Debug, PartialEq)]
pub struct PurgeMark {
    /// The tenant.
    pub tenant: TenantId,
    /// The key that they led to.
    pub key_id: KeyId,
    /// The digests.
    pub digests: Vec<Digest>,
    /// Whether the key itself is still there: it has rotated past these digests.
    pub key_lives: bool,
    /// When.
    pub time: UnixMillis,
    /// The revision of the change. The store sets it.
    pub revision: Revision,
}

/// The id of a log: 16 random bytes, in hexadecimal digits as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub [u8; 16]);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The beginning of a line: a part of the log that goes on from an older state, after a restore or a salvage.
/// Revisions of different lines never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineRecord {
    /// The log id from here on.
    pub log_id: LogId,
    /// The last revision of the lines before that this log has, with all before it.
    pub ended: Revision,
    /// The revision before the first of this line: a multiple of [`LineRecord::REVISIONS`].
    pub base: Revision,
    /// When.
    pub time: UnixMillis,
}

impl LineRecord {
    /// Revisions in a line: at 20,000 changes a second, 1.7 years.
    pub const REVISIONS: u64 = 1 << 40;

    /// The number of the line that a revision is of.
    #[must_use]
    pub fn number_of(revision: Revision) -> u64 {
        revision.0 / Self::REVISIONS
    }

    /// The base of the line after that of a revision. `None`: there is none.
    #[must_use]
    pub fn base_after(revision: Revision) -> Option<Revision> {
        (Self::number_of(revision) + 1).checked_mul(Self::REVISIONS).map(Revision)
    }

    /// Whether a revision is of a line before, and of a change that this log does not have.
    #[must_use]
    pub fn is_gap(&self, revision: Revision) -> bool {
        self.ended < revision && revision <= self.base
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key_record;

    fn by(time: i64, actor: &str) -> AuditStamp {
        AuditStamp { time: UnixMillis(time), actor: ActorId::parse(actor).unwrap() }
    }

    #[test]
    fn a_key_that_is_disabled_until_a_time_is_active_from_then_on() {
        let mut key = key_record(1);
        assert_eq!(key.suspend(UnixMillis(50), "unpaid", &by(10, "one")), Ok(Effect::Changed));
        for (clock, state, due) in [(49, ShownState::Disabled, false), (50, ShownState::Active, true)] {
            let clock = UnixMillis(clock);
            assert_eq!((key.shown_state(clock), key.resumed(clock).is_some()), (state, due));
            assert_eq!(key.as_of(clock).spec.policy.state == State::Active, due);
        }
        assert_eq!(key.due_time(), Some(UnixMillis(50)));
        let resumed = key.as_of(UnixMillis(60)).into_owned();
        assert_eq!((resumed.resume_time, resumed.due_time(), &*resumed.state_reason), (None, None, ""));
        assert_eq!(resumed.state_changed, Some(by(50, "keyward")));
        assert_eq!(resumed.as_of(UnixMillis(60)), Cow::Borrowed(&resumed));
    }

    #[test]
    fn another_suspension_replaces_the_time_and_a_reason_alone_does_not_change_the_state() {
        let mut key = key_record(1);
        key.transition(State::Disabled, "unpaid", &by(10, "one")).unwrap();
        assert_eq!(key.suspend(UnixMillis(50), "", &by(11, "two")), Ok(Effect::Changed));
        assert_eq!((&*key.state_reason, key.state_changed.clone()), ("unpaid", Some(by(11, "two"))));
        assert_eq!(key.suspend(UnixMillis(50), "unpaid", &by(12, "three")), Ok(Effect::Unchanged));
        assert_eq!(key.suspend(UnixMillis(50), "leaked", &by(12, "three")), Ok(Effect::Changed));
        assert_eq!((&*key.state_reason, key.state_changed.clone()), ("leaked", Some(by(11, "two"))));
        assert_eq!(key.suspend(UnixMillis(40), "", &by(13, "four")), Ok(Effect::Changed));
        assert_eq!((key.resume_time, key.state_changed.clone()), (Some(UnixMillis(40)), Some(by(13, "four"))));
        key.transition(State::Revoked, "", &by(14, "five")).unwrap();
        assert_eq!(key.suspend(UnixMillis(90), "", &by(15, "six")), Err(ForbiddenChange::Reactivation));
    }

    #[test]
    fn a_deleted_key_is_purged_at_its_time_and_comes_back_disabled_or_revoked() {
        for revokes in [false, true] {
            let mut key = key_record(1);
            key.suspend(UnixMillis(50), "", &by(10, "one")).unwrap();
            assert_eq!(key.delete(UnixMillis(90), "left", &by(20, "two")), Effect::Changed);
            assert_eq!(key.delete(UnixMillis(99), "again", &by(21, "three")), Effect::Unchanged);
            assert_eq!((key.due_time(), key.resume_time), (Some(UnixMillis(90)), None));
            for clock in [0, 60, 100] {
                assert_eq!(key.shown_state(UnixMillis(clock)), ShownState::Deleted);
                assert_eq!(key.as_of(UnixMillis(clock)), Cow::Borrowed(&key));
            }
            assert_eq!(key.suspend(UnixMillis(90), "", &by(22, "four")), Err(ForbiddenChange::Deleted));
            if revokes {
                key.transition(State::Revoked, "leaked", &by(23, "five")).unwrap();
            }
            let state = if revokes { State::Revoked } else { State::Disabled };
            assert_eq!(key.undeleted_state(), state);
            assert_eq!(key.undelete("", &by(30, "six")), Effect::Changed);
            assert_eq!((key.spec.policy.state, key.deletion, key.due_time()), (state, None, None));
            assert_eq!(key.state_changed, Some(by(30, "six")));
            assert_eq!(key.undelete("", &by(31, "seven")), Effect::Unchanged);
        }
    }
}
