//! The index holds what was applied to it, in whatever order, and returns all of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use keyward::index::Index;
use keyward_core::clock::UnixMillis;
use keyward_core::decision::Policy;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{Environment, KeyId, TenantId};
use keyward_core::record::{KeyPolicy, KeyRecord, KeySpec, State};
use keyward_core::scope::Scope;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::support::local_store::key;

fn policies() -> impl Strategy<Value = KeyPolicy> {
    let state = prop_oneof![Just(State::Active), Just(State::Disabled), Just(State::Revoked)];
    let cidr = prop_oneof![
        any::<([u8; 4], u8)>().prop_map(|(octets, len)| (octets.into(), len % 33)),
        any::<([u8; 16], u8)>().prop_map(|(octets, len)| (octets.into(), len % 129)),
    ]
    .prop_map(|(addr, len)| ipnet::IpNet::new(addr, len).unwrap());
    let scope = "[a-z]{1,9}(\\.[a-z]{1,9}){0,2}(\\.\\*)?".prop_map(|text| Scope::parse(&text).unwrap());
    let time = || option::of(any::<i64>().prop_map(UnixMillis));
    let lists = (vec(scope, 0..8), vec("\\PC{0,40}", 0..3), vec(cidr, 0..3));
    (state, lists, time(), time()).prop_map(|(state, (scopes, audiences, allowed_cidrs), not_before, expire_time)| {
        let environment = Environment::live();
        KeyPolicy { environment, state, scopes, audiences, allowed_cidrs, not_before, expire_time }
    })
}

prop_compose! {
    fn records()(
        // Few places, so that keys meet: the first bytes name a shard, the next are what it is ordered by.
        digest in prop_oneof![any::<[u8; 32]>(), (0..2_u8, 0..2_u8, 0..3_u8).prop_map(|(shard, prefix, rest)| {
            let mut digest = [7; 32];
            (digest[1], digest[5], digest[31]) = (shard, prefix, rest);
            digest
        })],
        revision in 1..400_u64,
        (tenant, owner, environment) in ("[a-c]", "\\PC{0,20}", "[a-z]{1,3}"),
        (key_id, display_name) in ("[a-z][a-z0-9_]{2,20}", "\\PC{0,200}"),
        labels in btree_map("[a-z]{1,9}", "\\PC{0,20}", 0..4),
        policy in policies(),
    ) -> KeyRecord {
        let mut record = key(0);
        record.secret.digest = Digest::from_bytes(digest);
        record.revision = Revision(revision);
        record.tenant = TenantId::parse(&tenant).unwrap();
        record.key_id = KeyId::parse(&key_id).unwrap();
        let policy = KeyPolicy { environment: Environment::parse(&environment).unwrap(), ..policy };
        record.spec = KeySpec { owner, display_name, labels, policy, ..record.spec };
        record
    }
}

/// What the index must hold of a key.
fn assert_holds(index: &Index, record: &KeyRecord) {
    let entry = index.get(&record.secret.digest).unwrap();
    assert_eq!(entry.to_policy().policy, record.spec.policy);
    assert_eq!(entry.revision(), record.revision);
    assert_eq!((entry.tenant(), entry.environment()), (&record.tenant, &record.spec.policy.environment));
    assert_eq!((entry.to_key_id(), entry.display_name()), (Some(record.key_id.clone()), &*record.spec.display_name));
    assert_eq!((entry.owner(), entry.expire_time()), (&*record.spec.owner, record.spec.policy.expire_time));
    let labels: BTreeMap<_, _> = entry.labels().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert_eq!(labels, record.spec.labels);
}

proptest! {
    #[test]
    fn the_newest_form_of_each_key_is_held_whatever_came_first(records in vec(records(), 1..40), batch in 1..9_usize) {
        let index = Index::default();
        let mut newest = BTreeMap::<[u8; 32], KeyRecord>::new();
        // No two forms of a key have the same revision.
        let numbered = records.into_iter().enumerate().map(|(at, mut record)| {
            record.revision = Revision(record.revision.0 * 100 + at as u64);
            record
        });
        let records: Vec<_> = numbered.collect();
        for records in records.chunks(batch) {
            for record in records {
                let digest = *record.secret.digest.as_bytes();
                if newest.get(&digest).is_none_or(|held| held.revision < record.revision) {
                    newest.insert(digest, record.clone());
                }
            }
            index.apply_records(&records.iter().map(|record| Record::Key(Arc::new(record.clone()))).collect::<Vec<_>>());
            prop_assert_eq!(index.len(), newest.len());
            for state in [State::Active, State::Disabled, State::Revoked] {
                let expected = newest.values().filter(|record| record.spec.policy.state == state).count();
                prop_assert_eq!(index.len_in(state), expected, "{:?}", state);
            }
            // Of those that are there, and of neighbours that are not.
            let others = (0..40).map(|byte| Digest::from_bytes([byte; 32]));
            index.read_ahead(&newest.keys().map(|digest| Digest::from_bytes(*digest)).chain(others).collect::<Vec<_>>());
            newest.values().for_each(|record| assert_holds(&index, record));
        }
        prop_assert!(index.get(&Digest::from_bytes([8; 32])).is_none());
        index.clear();
        prop_assert_eq!([State::Active, State::Disabled, State::Revoked].map(|state| index.len_in(state)), [0; 3]);
    }
}

#[test]
fn a_reader_sees_each_key_whole_while_others_are_put_beside_it() {
    let index = Index::default();
    // All in one shard, so that each change puts another in its place.
    let form = |number: u8, revision: u64| {
        let mut record = key(number.into());
        let mut digest = [0; 32];
        digest[31] = number;
        record.secret.digest = Digest::from_bytes(digest);
        record.revision = Revision(revision);
        record.spec.owner = format!("owner-{number}-{revision}");
        record.spec.display_name = format!("name-{number}-{revision}");
        Record::Key(Arc::new(record))
    };
    index.apply_records(&(0..100).map(|number| form(number, 1)).collect::<Vec<_>>());
    let done = AtomicBool::new(false);
    let reads = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut reads, mut seen) = (0_u64, [0; 100]);
                    while !done.load(Ordering::Relaxed) {
                        for number in 0..100_u8 {
                            let mut digest = [0; 32];
                            digest[31] = number;
                            let entry = index.get(&Digest::from_bytes(digest)).unwrap();
                            let revision = entry.revision().0;
                            assert_eq!(entry.owner(), format!("owner-{number}-{revision}"));
                            assert_eq!(entry.display_name(), format!("name-{number}-{revision}"));
                            assert!(revision >= seen[usize::from(number)], "a key went back");
                            seen[usize::from(number)] = revision;
                            reads += 1;
                        }
                    }
                    reads
                })
            })
            .collect();
        for revision in 2..300 {
            index.apply_records(&(0..100).step_by(7).map(|number| form(number, revision)).collect::<Vec<_>>());
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
    });
    assert!(reads > 0);
    assert_eq!(index.len(), 100);
}
