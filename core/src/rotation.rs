//! Rotation: a key gets another secret, and the one before it works on for a while.
//!
//! A key has a current secret, at most a previous one, and at most a retired one, which is refused as rotated
//! out. A rotation is pending while there is a previous one. It ends by the clock, by a call that finishes or
//! cancels it, or by the next rotation.

use crate::clock::UnixMillis;
use crate::digest::Digest;
use crate::record::{
    AuditStamp, Effect, ForbiddenChange, KeyRecord, OverlapStart, PreviousSecret, RetiredSecret, State, StoredSecret,
};

/// So long the secret before a new one must work, at least, where a lost reply would lock somebody out: time
/// to notice that there was none, and to ask again.
pub const REPLY_TIME_MS: i64 = 60_000;

/// How long the secret before a new one works beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// Milliseconds. 0: it ends when the overlap begins.
    pub ms: u64,
    /// What begins it.
    pub starts: OverlapStart,
}

impl KeyRecord {
    /// The version of the next secret: higher than that of any which is remembered, also of one that was
    /// taken back.
    #[must_use]
    pub fn next_secret_version(&self) -> u32 {
        self.secrets().map(|secret| secret.version).max().unwrap_or_default().saturating_add(1)
    }

    /// When the previous secret stops working: at the end of its overlap, or with the key itself if that is
    /// earlier. `None`: there is no previous one, or its overlap has not begun.
    #[must_use]
    pub fn previous_end(&self) -> Option<UnixMillis> {
        let valid_until = self.previous.as_ref()?.valid_until?;
        Some(self.within_life(valid_until))
    }

    /// Makes a secret the current one. The one that was current works on for the overlap, and the one before
    /// that is retired. `by` has the time of the latest change or later.
    ///
    /// # Errors
    /// When the key is revoked, deleted or expired.
    pub fn rotate(&mut self, secret: StoredSecret, overlap: Overlap, by: &AuditStamp) -> Result<(), ForbiddenChange> {
        self.check_rotatable()?;
        if self.spec.policy.expire_time.is_some_and(|until| until <= by.time) {
            return Err(ForbiddenChange::Rotation);
        }
        let Overlap { ms: overlap_ms, starts: overlap_starts } = overlap;
        self.retire_previous(by.time);
        let current = std::mem::replace(&mut self.secret, secret);
        if overlap == Overlap::default() {
            self.retired = Some(RetiredSecret { secret: current, time: by.time });
        } else {
            let valid_until = (overlap_starts == OverlapStart::AtIssue).then(|| self.overlap_end(overlap_ms, by.time));
            self.previous = Some(PreviousSecret { secret: current, valid_until, overlap_ms, overlap_starts });
        }
        self.updated = by.clone();
        Ok(())
    }

    /// Retires the previous secret now. Without one, nothing changes.
    ///
    /// # Errors
    /// When the key is revoked or deleted.
    pub fn finish_rotation(&mut self, by: &AuditStamp) -> Result<Effect, ForbiddenChange> {
        self.check_rotatable()?;
        if self.previous.is_none() {
            return Ok(Effect::Unchanged);
        }
        self.retire_previous(by.time);
        self.updated = by.clone();
        Ok(Effect::Changed)
    }

    /// Makes the previous secret the current one again, without an end, and retires the newer one.
    ///
    /// # Errors
    /// When the key is revoked or deleted, or there is no previous secret that works.
    pub fn cancel_rotation(&mut self, by: &AuditStamp) -> Result<(), ForbiddenChange> {
        self.check_rotatable()?;
        let has_ended = self.previous_end().is_some_and(|end| end <= by.time)
            || self.spec.policy.expire_time.is_some_and(|until| until <= by.time);
        let previous = self.previous.take_if(|_| !has_ended).ok_or(ForbiddenChange::NoRotation)?;
        let newer = std::mem::replace(&mut self.secret, previous.secret);
        self.retired = Some(RetiredSecret { secret: newer, time: by.time });
        self.updated = by.clone();
        Ok(())
    }

    /// Begins the overlap of a rotation whose new secret, which has this digest, was used. Nothing changes
    /// unless that is what the overlap waits for.
    pub fn begin_overlap(&mut self, used: &Digest, by: &AuditStamp) -> Effect {
        if self.secret.digest != *used || self.check_rotatable().is_err() {
            return Effect::Unchanged;
        }
        let waits = self.previous.as_ref().filter(|previous| previous.valid_until.is_none());
        let Some(valid_until) = waits.map(|previous| self.overlap_end(previous.overlap_ms, by.time)) else {
            return Effect::Unchanged;
        };
        self.previous.iter_mut().for_each(|previous| previous.valid_until = Some(valid_until));
        self.updated = by.clone();
        Effect::Changed
    }

    fn check_rotatable(&self) -> Result<(), ForbiddenChange> {
        match (self.deletion, self.spec.policy.state) {
            (Some(_), _) => Err(ForbiddenChange::Deleted),
            (None, State::Revoked) => Err(ForbiddenChange::Rotation),
            (None, State::Active | State::Disabled) => Ok(()),
        }
    }

    fn retire_previous(&mut self, now: UnixMillis) {
        let time = self.previous_end().map_or(now, |end| end.min(now));
        if let Some(previous) = self.previous.take() {
            self.retired = Some(RetiredSecret { secret: previous.secret, time });
        }
    }

    fn overlap_end(&self, overlap_ms: u64, begins: UnixMillis) -> UnixMillis {
        let ms = i64::try_from(overlap_ms).unwrap_or(i64::MAX);
        self.within_life(UnixMillis(begins.0.saturating_add(ms)))
    }

    /// A time, or the end of the key if that is earlier.
    fn within_life(&self, time: UnixMillis) -> UnixMillis {
        self.spec.policy.expire_time.map_or(time, |end| end.min(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::SecretUse;
    use crate::id::ActorId;
    use crate::record::Deletion;
    use crate::testing::key_record;

    const DAY: Overlap = Overlap { ms: 1_000, starts: OverlapStart::AtIssue };
    const AT_USE: Overlap = Overlap { ms: 1_000, starts: OverlapStart::OnFirstUse };
    const AT_ONCE: Overlap = Overlap { ms: 0, starts: OverlapStart::AtIssue };

    fn at(ms: i64) -> AuditStamp {
        AuditStamp { time: UnixMillis(ms), actor: ActorId::keyward() }
    }

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn secret(key: &KeyRecord, number: u8, ms: i64) -> StoredSecret {
        let (version, digest) = (key.next_secret_version(), digest(number));
        StoredSecret { version, digest, issued: Some(at(ms)), ..key.secret.clone() }
    }

    /// A key whose secret has number 1.
    fn key() -> KeyRecord {
        let key = key_record(1);
        KeyRecord { secret: StoredSecret { digest: digest(1), ..key.secret.clone() }, ..key }
    }

    fn rotated(mut key: KeyRecord, number: u8, overlap: Overlap, ms: i64) -> KeyRecord {
        key.rotate(secret(&key, number, ms), overlap, &at(ms)).unwrap();
        key
    }

    /// What each of the secrets 1 to 4 is, in a letter.
    fn uses(key: &KeyRecord) -> String {
        let letter = |used| match used {
            None => '-',
            Some(SecretUse::Current) => 'c',
            Some(SecretUse::Previous { .. }) => 'p',
            Some(SecretUse::Retired) => 'r',
        };
        (1..5).map(|number| letter(key.secret_use(&digest(number)))).collect()
    }

    #[test]
    fn a_newer_rotation_replaces_the_pending_one_and_the_oldest_leads_nowhere() {
        let mut key = rotated(key(), 2, DAY, 5_000);
        assert_eq!((uses(&key), key.previous_end()), ("pc--".into(), Some(UnixMillis(6_000))));
        key = rotated(key, 3, AT_USE, 5_500);
        assert_eq!((uses(&key), key.previous_end()), ("rpc-".into(), None));
        key = rotated(key, 4, AT_ONCE, 5_600);
        assert_eq!((uses(&key), key.secret.version), ("--rc".into(), 4));
    }

    #[test]
    fn a_retired_secret_is_remembered_until_another_one_is_retired() {
        let key = rotated(rotated(key(), 2, AT_ONCE, 5_000), 3, DAY, 5_001);
        assert_eq!(uses(&key), "rpc-");
        // It retired when it ended, and not when that was noted.
        let key = rotated(key, 4, DAY, 9_000);
        assert_eq!((uses(&key), key.retired.unwrap().time), ("-rpc".into(), UnixMillis(6_001)));
    }

    #[test]
    fn a_finished_rotation_has_no_previous_secret_and_finishing_again_changes_nothing() {
        let mut key = rotated(key(), 2, DAY, 5_000);
        assert_eq!(key.finish_rotation(&at(5_100)), Ok(Effect::Changed));
        assert_eq!((uses(&key), key.retired.clone().unwrap().time), ("rc--".into(), UnixMillis(5_100)));
        let finished = key.clone();
        assert_eq!(key.finish_rotation(&at(5_200)), Ok(Effect::Unchanged));
        assert_eq!(key, finished);
    }

    #[test]
    fn a_cancelled_rotation_gives_the_previous_secret_back_and_its_version_is_not_given_again() {
        let mut key = rotated(key(), 2, DAY, 5_000);
        key.cancel_rotation(&at(5_999)).unwrap();
        assert_eq!((uses(&key), key.secret.version), ("cr--".into(), 1));
        assert_eq!(key.cancel_rotation(&at(5_999)), Err(ForbiddenChange::NoRotation));
        let key = rotated(key, 3, DAY, 6_000);
        assert_eq!((uses(&key), key.secret.version), ("prc-".into(), 3));
    }

    #[test]
    fn there_is_nothing_to_cancel_from_the_end_of_the_overlap_on() {
        let mut key = rotated(key(), 2, DAY, 5_000);
        let before = key.clone();
        assert_eq!(key.cancel_rotation(&at(6_000)), Err(ForbiddenChange::NoRotation));
        assert_eq!(key, before);
        let mut waiting = rotated(before, 3, AT_USE, 6_000);
        waiting.spec.policy.expire_time = Some(UnixMillis(7_000));
        assert_eq!(waiting.clone().cancel_rotation(&at(7_000)), Err(ForbiddenChange::NoRotation));
        assert_eq!(waiting.cancel_rotation(&at(6_999)), Ok(()));
    }

    #[test]
    fn the_first_use_of_the_current_secret_begins_the_overlap_once() {
        let mut key = rotated(key(), 2, AT_USE, 5_000);
        assert_eq!(key.begin_overlap(&digest(1), &at(7_000)), Effect::Unchanged);
        assert_eq!(key.begin_overlap(&digest(2), &at(7_000)), Effect::Changed);
        assert_eq!(key.previous_end(), Some(UnixMillis(8_000)));
        assert_eq!(key.begin_overlap(&digest(2), &at(7_500)), Effect::Unchanged);
        // A use that is told of after the next rotation is not one of the newer secret.
        let mut newer = rotated(key, 3, AT_USE, 7_600);
        assert_eq!(newer.begin_overlap(&digest(2), &at(7_700)), Effect::Unchanged);
    }

    #[test]
    fn an_overlap_is_never_past_the_end_of_the_key_and_never_longer_than_it_was() {
        let mut key = key();
        key.spec.policy.expire_time = Some(UnixMillis(5_400));
        let mut key = rotated(key, 2, DAY, 5_000);
        assert_eq!(key.previous_end(), Some(UnixMillis(5_400)));
        key.spec.policy.expire_time = Some(UnixMillis(5_300));
        assert_eq!(key.previous_end(), Some(UnixMillis(5_300)));
        key.spec.policy.expire_time = None;
        assert_eq!(key.previous_end(), Some(UnixMillis(5_400)));
    }

    #[test]
    fn a_dead_key_is_not_rotated_and_a_disabled_one_is() {
        let mut key = rotated(key(), 2, DAY, 5_000);
        key.spec.policy.state = State::Disabled;
        assert!(key.clone().rotate(secret(&key, 3, 5_001), DAY, &at(5_001)).is_ok());
        key.spec.policy.expire_time = Some(UnixMillis(5_002));
        assert!(key.clone().rotate(secret(&key, 3, 5_001), DAY, &at(5_001)).is_ok());
        assert_eq!(key.clone().rotate(secret(&key, 3, 5_002), DAY, &at(5_002)), Err(ForbiddenChange::Rotation));
        let deletion = Some(Deletion { time: UnixMillis(5_001), purge_time: UnixMillis(9_000) });
        let deleted = KeyRecord { deletion, ..key.clone() };
        key.spec.policy.state = State::Revoked;
        for (dead, why) in [(key, ForbiddenChange::Rotation), (deleted, ForbiddenChange::Deleted)] {
            let now = at(5_001);
            assert_eq!(dead.clone().rotate(secret(&dead, 3, 5_001), DAY, &now), Err(why));
            assert_eq!(dead.clone().finish_rotation(&now), Err(why));
            assert_eq!(dead.clone().cancel_rotation(&now), Err(why));
            assert_eq!(dead.clone().begin_overlap(&digest(2), &now), Effect::Unchanged);
        }
    }
}
