//! Narrowing changes: those that take power away from a key.

use crate::clock::UnixMillis;
use crate::record::{KeyPolicy, KeyRecord, State, StoredSecret};

/// Whether a change of a key may turn any verdict, at any time, from allow to deny. Such changes have
/// priority, and caches of verdicts must be told of them.
///
/// `false` is certain: the key was refused before, or all that a verdict depends on is as wide as before or
/// wider. Networks that cover an old one only together count as narrower. Holds are outside it: the owner
/// that a key is moved to may be suspended.
#[must_use]
pub fn narrows(before: &KeyRecord, after: &KeyRecord) -> bool {
    // Without `..`, so that a new field does not compile until it is considered here.
    let KeyRecord { key_id, tenant, secret: _, previous: _, retired: _, spec, resume_time: _, deletion, .. } = after;
    let KeyRecord { state_reason: _, state_changed: _, delete_protected: _, ordinal: _, .. } = after;
    let KeyRecord { created: _, updated: _, revision: _, .. } = after;
    if before.tenant != *tenant || before.key_id != *key_id {
        return true;
    }
    match (works(before), works(after)) {
        (Some(since), Some(from)) => {
            let lives_on = |(old, until)| living(after).any(|(new, end)| new == old && end >= until);
            from > since || !living(before).all(lives_on) || policy_narrows(&before.spec.policy, &spec.policy)
        }
        (Some(_), None) => true,
        // It was refused before. That it is refused for ever now is for caches to know.
        (None, _) => {
            let is_revoked = |key: &KeyRecord| key.spec.policy.state == State::Revoked;
            (is_revoked(after) && !is_revoked(before)) || (before.deletion.is_none() && deletion.is_some())
        }
    }
}

/// The time from which the state of a key allows it to work. `None`: never, unless it is changed.
fn works(key: &KeyRecord) -> Option<UnixMillis> {
    match (key.spec.policy.state, key.resume_time) {
        _ if key.deletion.is_some() => None,
        (State::Active, _) => Some(UnixMillis::MIN),
        (State::Disabled, resume_time) => resume_time,
        (State::Revoked, _) => None,
    }
}

/// The secrets that may work, each with its end.
fn living(key: &KeyRecord) -> impl Iterator<Item = (&StoredSecret, i64)> {
    let current = [(&key.secret, i64::MAX)].into_iter();
    current.chain(key.previous.iter().map(|previous| (&previous.secret, end(previous.valid_until))))
}

fn policy_narrows(before: &KeyPolicy, after: &KeyPolicy) -> bool {
    // Without `..`, so that a new field does not compile until it is considered here.
    let KeyPolicy { environment, state: _, scopes, audiences, allowed_cidrs, not_before, expire_time } = after;
    let holds_all = before.scopes.iter().all(|old| scopes.iter().any(|new| new.covers(old.as_str())));
    let heard_everywhere = covers(&before.audiences, audiences, |new, old| new == old);
    let reached_from_everywhere = covers(&before.allowed_cidrs, allowed_cidrs, |new, old| new.contains(old));
    let begins_as_early = begin(*not_before) <= begin(before.not_before);
    let lasts_as_long = end(*expire_time) >= end(before.expire_time);
    let of_the_same = *environment == before.environment;
    !(of_the_same && holds_all && heard_everywhere && reached_from_everywhere && begins_as_early && lasts_as_long)
}

/// Whether a restriction allows all that an older one did. An empty one allows everything.
fn covers<T>(before: &[T], after: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    let each_is_covered = || before.iter().all(|old| after.iter().any(|new| covers(new, old)));
    after.is_empty() || (!before.is_empty() && each_is_covered())
}

fn begin(not_before: Option<UnixMillis>) -> i64 {
    not_before.map_or(i64::MIN, |time| time.0)
}

fn end(expire_time: Option<UnixMillis>) -> i64 {
    expire_time.map_or(i64::MAX, |time| time.0)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::*;
    use proptest::sample::subsequence;

    use super::*;
    use crate::clock::Now;
    use crate::decision::{AccessRequest, decide};
    use crate::digest::Digest;
    use crate::event::Revision;
    use crate::id::Environment;
    use crate::record::{Deletion, OverlapStart, PreviousSecret, StoredSecret};
    use crate::rotation::Overlap;
    use crate::scope::Scope;
    use crate::testing::{key_record, stamp};

    const SCOPES: [&str; 6] = ["a", "a.*", "a.b", "a.b.*", "a.b.c", "b"];
    const REQUIRED: [&str; 6] = ["a", "a.b", "a.b.c", "a.x", "b", "c"];
    const AUDIENCES: [&str; 2] = ["billing", "mail"];
    const NETWORKS: [&str; 6] = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0"];
    const ADDRESSES: [&str; 5] = ["10.1.2.3", "10.1.9.9", "10.9.9.9", "192.0.2.1", "2001:db8::1"];
    const TIMES: std::ops::Range<i64> = 0..6;

    fn key(policy: KeyPolicy) -> KeyRecord {
        let mut key = key_record(1);
        key.spec.policy = policy;
        key
    }

    fn some<T: Clone + std::fmt::Debug + 'static>(of: Vec<T>) -> impl Strategy<Value = Vec<T>> {
        let most = of.len();
        subsequence(of, 0..=most)
    }

    fn time() -> impl Strategy<Value = Option<UnixMillis>> {
        prop::option::of(TIMES.prop_map(UnixMillis))
    }

    fn policy() -> impl Strategy<Value = KeyPolicy> {
        let scopes = SCOPES.iter().map(|scope| Scope::parse(scope).unwrap()).collect();
        let networks = NETWORKS.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
        let audiences = AUDIENCES.iter().map(|&audience| audience.to_owned()).collect();
        let state = prop_oneof![6 => Just(State::Active), 1 => Just(State::Disabled), 1 => Just(State::Revoked)];
        (state, some(scopes), some(audiences), some(networks), time(), time()).prop_map(
            |(state, scopes, audiences, allowed_cidrs, not_before, expire_time)| KeyPolicy {
                environment: Environment::live(),
                state,
                scopes,
                audiences,
                allowed_cidrs,
                not_before,
                expire_time,
            },
        )
    }

    /// Every question that there is about these names, at every time.
    fn some_question_is_lost(before: &KeyPolicy, after: &KeyPolicy) -> bool {
        let audiences = std::iter::once(None).chain(AUDIENCES.map(Some));
        let addresses: Vec<Option<IpAddr>> =
            std::iter::once(None).chain(ADDRESSES.map(|ip| Some(ip.parse().unwrap()))).collect();
        let scopes: Vec<&[&str]> = std::iter::once(&[][..]).chain(REQUIRED.iter().map(std::slice::from_ref)).collect();
        let requests = audiences.flat_map(|audience| {
            let (addresses, scopes) = (&addresses, &scopes);
            addresses.iter().flat_map(move |&client_ip| {
                scopes.iter().map(move |&all_scopes| AccessRequest {
                    all_scopes,
                    any_scopes: &[],
                    environment: None,
                    audience,
                    client_ip,
                })
            })
        });
        let lost = |request: AccessRequest<'_>, now| {
            decide(before, &request, now).is_ok() && decide(after, &request, now).is_err()
        };
        let mut requests =
            requests.flat_map(|request| (-1..TIMES.end).map(move |now| (request, Now::at(UnixMillis(now)))));
        requests.any(|(request, now)| lost(request, now))
    }

    /// The same policy, wider in one way or in none.
    fn widened(policy: &KeyPolicy, way: u8) -> KeyPolicy {
        let mut wider = policy.clone();
        match way {
            0 => wider.scopes.push(Scope::parse("c").unwrap()),
            1 => wider.audiences.clear(),
            2 => wider.allowed_cidrs.clear(),
            3 => wider.not_before = None,
            4 => wider.expire_time = None,
            5 => wider.state = State::Active,
            6 if !wider.audiences.is_empty() => wider.audiences.push("more".into()),
            7 if !wider.allowed_cidrs.is_empty() => wider.allowed_cidrs.push("192.0.2.0/24".parse().unwrap()),
            _ => {}
        }
        // A revoked key stays so.
        wider.state = if policy.state == State::Revoked { State::Revoked } else { wider.state };
        wider
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_takes_an_answer_away_narrows(before in policy(), after in policy()) {
            if some_question_is_lost(&before, &after) {
                prop_assert!(narrows(&key(before), &key(after)));
            }
        }

        #[test]
        fn what_only_widens_does_not(policy in policy(), way in 0..9_u8) {
            let wider = widened(&policy, way);
            prop_assert!(!narrows(&key(policy), &key(wider)));
        }

        #[test]
        fn what_a_verdict_does_not_depend_on_does_not(policy in policy(), name in "[a-z]{0,8}") {
            let before = key(policy);
            let mut after = before.clone();
            after.spec.display_name.clone_from(&name);
            after.spec.owner.clone_from(&name);
            after.spec.description.clone_from(&name);
            after.spec.labels.insert("name".into(), name.clone());
            after.spec.annotations.insert("name".into(), name);
            after.revision = Revision(2);
            prop_assert!(!narrows(&before, &after));
        }

    }

    #[test]
    fn each_part_alone_is_enough() {
        let before = KeyPolicy {
            scopes: vec![Scope::parse("a.*").unwrap()],
            allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            expire_time: Some(UnixMillis(10)),
            ..KeyPolicy::default()
        };
        let parts: [fn(&mut KeyPolicy); 8] = [
            |after| after.environment = Environment::parse("test").unwrap(),
            |after| after.state = State::Disabled,
            |after| after.state = State::Revoked,
            |after| after.scopes = vec![Scope::parse("a.b").unwrap()],
            |after| after.audiences = vec!["billing".into()],
            |after| after.allowed_cidrs = vec!["10.0.0.0/9".parse().unwrap()],
            |after| after.not_before = Some(UnixMillis(5)),
            |after| after.expire_time = Some(UnixMillis(9)),
        ];
        for (number, part) in parts.into_iter().enumerate() {
            let mut after = before.clone();
            part(&mut after);
            assert!(narrows(&key(before.clone()), &key(after)), "part {number}");
        }
    }

    #[test]
    fn a_disabled_key_loses_nothing_more_until_it_is_revoked() {
        let bare = |state| KeyPolicy { state, ..KeyPolicy::default() };
        let scoped = KeyPolicy { scopes: vec![Scope::parse("a").unwrap()], ..bare(State::Disabled) };
        assert!(!narrows(&key(scoped), &key(bare(State::Disabled))));
        assert!(narrows(&key(bare(State::Disabled)), &key(bare(State::Revoked))));
        assert!(!narrows(&key(bare(State::Disabled)), &key(bare(State::Active))));
    }

    #[test]
    fn another_secret_narrows() {
        let before = key_record(1);
        let secret = StoredSecret { digest: Digest::from_bytes([2; 32]), ..before.secret.clone() };
        assert!(narrows(&before, &KeyRecord { secret, ..before.clone() }));
    }

    #[test]
    fn a_previous_secret_must_live_as_long_as_before() {
        let with = |valid_until| {
            let secret = StoredSecret { digest: Digest::from_bytes([2; 32]), ..key_record(1).secret };
            let previous = PreviousSecret { secret, valid_until, overlap_ms: 5, overlap_starts: OverlapStart::AtIssue };
            KeyRecord { previous: Some(previous), ..key_record(1) }
        };
        let (short, long) = (with(Some(UnixMillis(5))), with(Some(UnixMillis(6))));
        assert!(!narrows(&short, &long) && narrows(&long, &short));
        assert!(narrows(&with(None), &long) && !narrows(&long, &with(None)));
        assert!(narrows(&short, &key_record(1)) && !narrows(&key_record(1), &short));
    }

    #[test]
    fn a_rotation_narrows_unless_the_old_secret_works_until_the_new_one_is_used() {
        let before = key_record(1);
        let rotated = |ms, starts| {
            let mut key = before.clone();
            let secret = StoredSecret { version: 2, digest: Digest::from_bytes([2; 32]), ..before.secret.clone() };
            key.rotate(secret, Overlap { ms, starts }, &stamp()).unwrap();
            key
        };
        let (at_issue, at_use) = (rotated(5, OverlapStart::AtIssue), rotated(5, OverlapStart::OnFirstUse));
        assert!(narrows(&before, &rotated(0, OverlapStart::AtIssue)) && narrows(&before, &at_issue));
        assert!(!narrows(&before, &at_use));
        let mut begun = at_use.clone();
        begun.begin_overlap(&at_use.secret.digest, &stamp());
        let (mut finished, mut cancelled) = (at_issue.clone(), at_use.clone());
        finished.finish_rotation(&stamp()).unwrap();
        cancelled.cancel_rotation(&stamp()).unwrap();
        assert!(narrows(&at_use, &begun) && narrows(&at_issue, &finished) && narrows(&at_use, &cancelled));
        // Of a key that is refused there is nothing to take.
        let disabled = |mut key: KeyRecord| {
            key.spec.policy.state = State::Disabled;
            key
        };
        assert!(!narrows(&disabled(at_issue), &disabled(finished)));
    }

    #[test]
    fn a_suspension_narrows_unless_it_ends_a_longer_one() {
        let with = |state, resume: Option<i64>| {
            let mut key = KeyRecord { resume_time: resume.map(UnixMillis), ..key_record(1) };
            key.spec.policy.state = state;
            key
        };
        let active = with(State::Active, None);
        let (short, long) = (with(State::Disabled, Some(5)), with(State::Disabled, Some(6)));
        let disabled = with(State::Disabled, None);
        assert!(narrows(&active, &short) && narrows(&short, &long) && narrows(&long, &disabled));
        assert!(!narrows(&long, &short) && !narrows(&short, &active) && !narrows(&disabled, &long));
    }

    #[test]
    fn a_deletion_narrows_and_what_is_done_to_a_deleted_key_does_not() {
        let deletion = Some(Deletion { time: UnixMillis(1), purge_time: UnixMillis(2) });
        let (before, after) = (key_record(1), KeyRecord { deletion, ..key_record(1) });
        assert!(narrows(&before, &after) && !narrows(&after, &before) && !narrows(&after, &after));
        // For caches to know: it is not only unknown now.
        let mut revoked = after.clone();
        revoked.spec.policy.state = State::Revoked;
        assert!(narrows(&after, &revoked));
    }
}
