//! Names that no key uses are freed, and no reader ever sees another key's name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use keyward::index::{CompactionStep, Index, NameKind, checkpoint};
use keyward_core::decision::Policy;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{Environment, TenantId};
use keyward_core::record::KeyRecord;
use keyward_core::scope::Scope;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::local_store::key;

/// A key whose every name says which form of which key it is.
fn form(number: u32, revision: u64) -> KeyRecord {
    let mut record = key(number);
    record.revision = Revision(revision);
    let tag = format!("{number}-{revision}");
    record.tenant = TenantId::parse(&format!("t{}", tag.replace('-', "x"))).unwrap();
    record.spec.owner = format!("owner-{tag}");
    record.spec.policy.environment = Environment::parse(&format!("e{}", revision % 5)).unwrap();
    record.spec.policy.scopes = (0..5).map(|nth| Scope::parse(&format!("scope-{tag}.{nth}")).unwrap()).collect();
    record.spec.display_name = tag;
    record
}

fn fold(index: &Index, records: impl IntoIterator<Item = KeyRecord>) {
    index.apply_records(&records.into_iter().map(|record| Record::Key(Arc::new(record))).collect::<Vec<_>>());
}

/// Reads a key and compares each of its names with the label, which is not a shared name.
fn assert_own_names(index: &Index, digest: &Digest) -> u64 {
    let entry = index.get(digest).unwrap();
    let tag = entry.display_name().to_owned();
    assert_eq!(entry.owner(), format!("owner-{tag}"));
    assert_eq!(entry.tenant().as_str(), format!("t{}", tag.replace('-', "x")));
    assert_eq!(entry.environment().as_str(), format!("e{}", entry.revision().0 % 5));
    let scopes: Vec<_> = entry.scopes().map(|scope| scope.as_str().to_owned()).collect();
    assert_eq!(scopes, (0..5).map(|nth| format!("scope-{tag}.{nth}")).collect::<Vec<_>>());
    // Again, after whatever others did meanwhile: it is still the same form.
    assert_eq!((entry.owner(), entry.display_name()), (&*format!("owner-{tag}"), &*tag));
    entry.revision().0
}

fn of_checkpoint(index: &Index) -> Index {
    let (copy, mut writer) = (Index::default(), index.checkpoint_writer());
    let mut parts = vec![vec![]; checkpoint::CHUNKS];
    parts.iter_mut().enumerate().for_each(|(number, part)| writer.write_chunk(number, part));
    drop(writer);
    // The last one comes first, as at a start.
    for (number, part) in parts.iter().enumerate().rev() {
        copy.read_chunk(number, part).unwrap();
    }
    copy
}

#[test]
fn names_go_when_no_key_uses_them() {
    let index = Index::default();
    fold(&index, (0..200).map(|number| form(number, 1)));
    assert_eq!(NameKind::ALL.map(|kind| index.names_in_use(kind)), [200, 200, 1, 1_000, 1]);
    assert_eq!(index.names_unused(), 0);
    let plain = |number: u32, revision| KeyRecord { revision: Revision(revision), ..key(number) };
    fold(&index, (0..200).map(|number| plain(number, 2)));
    assert_eq!(NameKind::ALL.map(|kind| index.names_in_use(kind)), [1, 3, 1, 0, 1]);
    assert_eq!(index.names_unused(), 200 + 200 + 1 + 1_000);
    let whole = of_checkpoint(&index);
    assert_eq!(whole.names_unused(), 0, "only names in use are written");
    index.compact();
    assert_eq!((index.names_unused(), index.compactions()), (0, 1));
    assert_eq!(NameKind::ALL.map(|kind| index.names_in_use(kind)), [1, 3, 1, 0, 1]);
    for number in 0..200 {
        let entry = index.get(&key(number).secret.digest).unwrap();
        assert_eq!((entry.owner(), entry.scopes().count()), (&*format!("owner-{}", number % 3), 0));
    }
}

#[test]
fn whoever_reads_a_key_keeps_its_names_whatever_is_given_back_meanwhile() {
    let index = Index::default();
    fold(&index, (0..100).map(|number| form(number, 1)));
    let entry = index.get(&key(7).secret.digest).unwrap();
    fold(&index, (0..100).map(|number| form(number, 2)));
    index.compact();
    fold(&index, (0..100).map(|number| form(number, 3)));
    assert_eq!((entry.owner(), entry.tenant().as_str()), ("owner-7-1", "t7x1"));
    assert_eq!(entry.scopes().next().unwrap().as_str(), "scope-7-1.0");
    drop(entry);
    assert!((0..100).all(|number| assert_own_names(&index, &key(number).secret.digest) == 3));
}

/// Writers, compactions, checkpoints and readers, all at a time, with names that are never the same twice.
#[test]
fn nobody_reads_the_name_of_another_key_while_names_are_given_back() {
    const KEYS: u32 = 64;
    const FORMS: u64 = 120;
    let index = Index::default();
    fold(&index, (0..KEYS).map(|number| form(number, 1)));
    let (done, reads, checkpoints) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..3_u32 {
            let (index, done, reads) = (&index, &done, &reads);
            scope.spawn(move || {
                let digests: Vec<_> = (0..KEYS).map(|number| key(number).secret.digest).collect();
                let mut seen = vec![0; KEYS as usize];
                while !done.load(Ordering::Relaxed) {
                    for number in (reader..KEYS).chain(0..reader) {
                        let revision = assert_own_names(index, &digests[number as usize]);
                        assert!(revision >= seen[number as usize], "a key went back");
                        seen[number as usize] = revision;
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    index.read_ahead(&digests);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                index.compact();
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let copy = of_checkpoint(&index);
                assert_eq!(copy.len(), KEYS as usize);
                checkpoints.fetch_add(1, Ordering::Relaxed);
                assert!((0..KEYS).all(|number| assert_own_names(&copy, &key(number).secret.digest) > 0));
            }
        });
        // Two writers, each with keys of its own.
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let index = &index;
                scope.spawn(move || {
                    for revision in 2..FORMS {
                        fold(
                            index,
                            (0..KEYS).filter(|number| number % 2 == writer).map(|number| form(number, revision)),
                        );
                    }
                })
            })
            .collect();
        let written: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        written.into_iter().for_each(|written| written.unwrap());
    });
    let (reads, checkpoints, compactions) = (reads.into_inner(), checkpoints.into_inner(), index.compactions());
    assert!(
        reads > 0 && checkpoints > 0 && compactions > 0,
        "{reads} reads, {checkpoints} checkpoints, {compactions} compactions"
    );
    index.compact();
    assert_eq!(NameKind::ALL.map(|kind| index.names_in_use(kind)), [64, 64, 1, 320, 1], "each use was counted once");
    assert_eq!(index.names_unused(), 0);
}

/// The entries of a checkpoint must all be of one generation.
#[test]
fn no_compaction_goes_on_while_a_checkpoint_is_written() {
    const KEYS: u32 = 340;
    let index = Index::default();
    let many = |number: u32| {
        let scopes = (0..50).map(|nth| Scope::parse(&format!("scope-{number}.{nth}")).unwrap());
        let mut made = form(number, 1);
        made.spec.policy.scopes = scopes.collect();
        made
    };
    fold(&index, (0..KEYS).map(many));
    assert_eq!(index.compaction_step(), CompactionStep::Done, "nothing is unused");
    fold(&index, (0..KEYS).map(|number| form(number, 2)));
    assert!(index.wants_compaction());
    let (copy, mut writer, mut part) = (Index::default(), index.checkpoint_writer(), vec![]);
    for number in 0..checkpoint::CHUNKS {
        part.clear();
        writer.write_chunk(number, &mut part);
        thread::scope(|scope| {
            assert_eq!(scope.spawn(|| index.compaction_step()).join().unwrap(), CompactionStep::Wait)
        });
        // A change goes on all the same.
        fold(&index, [form(u32::try_from(number).unwrap(), 3 + number as u64)]);
        copy.read_chunk(number, &part).unwrap();
    }
    drop(writer);
    assert!((0..KEYS).all(|number| assert_own_names(&copy, &key(number).secret.digest) > 1));
    let mut steps = 0;
    while index.compaction_step() == CompactionStep::More {
        steps += 1;
    }
    assert!(steps > 64, "it is done in short steps: {steps}");
    assert_eq!((index.names_unused(), index.compactions()), (0, 1));
    assert!((0..KEYS).all(|number| assert_own_names(&index, &key(number).secret.digest) > 1));
}

/// What a step does to an index.
#[derive(Clone, Debug)]
enum Deed {
    RecordWrite(Vec<(u8, u8, u8, Vec<u8>)>),
    Compact,
    Checkpoint,
    Clear,
}

fn deeds() -> impl Strategy<Value = Deed> {
    let keys = vec((0..12_u8, 0..3_u8, 0..6_u8, vec(0..9_u8, 0..5)), 1..8);
    prop_oneof![6 => keys.prop_map(Deed::RecordWrite), 2 => Just(Deed::Compact), 1 => Just(Deed::Checkpoint), 1 => Just(Deed::Clear)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// After any sequence of steps, the index equals the map of the newest forms, and counts what they use.
    #[test]
    fn an_index_is_a_plain_map_and_counts_what_is_in_use(deeds in vec(deeds(), 1..12)) {
        let (mut index, mut map, mut revision) = (Index::default(), BTreeMap::<u32, KeyRecord>::new(), 0);
        for deed in deeds {
            match deed {
                Deed::RecordWrite(keys) => {
                    for (number, tenant, owner, scopes) in keys {
                        revision += 1;
                        let mut record = key(number.into());
                        record.revision = Revision(revision);
                        // A key keeps its tenant; here it need not.
                        record.tenant = TenantId::parse(&format!("tenant-{tenant}")).unwrap();
                        record.spec.owner = if owner == 0 { String::new() } else { format!("owner-{owner}") };
                        record.spec.policy.scopes =
                            scopes.iter().map(|scope| Scope::parse(&format!("scope.{scope}")).unwrap()).collect();
                        map.insert(number.into(), record.clone());
                        fold(&index, [record]);
                    }
                    // An older form changes nothing.
                    if let Some(newest) = map.values().next() {
                        let mut older = KeyRecord { revision: Revision(0), ..newest.clone() };
                        older.spec.owner = "old".into();
                        fold(&index, [older]);
                    }
                }
                Deed::Compact => index.compact(),
                Deed::Checkpoint => index = of_checkpoint(&index),
                Deed::Clear => {
                    index.clear();
                    map.clear();
                }
            }
            prop_assert_eq!(index.len(), map.len());
            for record in map.values() {
                let entry = index.get(&record.secret.digest).unwrap();
                prop_assert_eq!(entry.to_policy().policy, record.spec.policy.clone());
                prop_assert_eq!((entry.tenant(), entry.owner()), (&record.tenant, &*record.spec.owner));
                prop_assert_eq!(entry.revision(), record.revision);
            }
            for tenant in (0..3).map(|tenant| TenantId::parse(&format!("tenant-{tenant}")).unwrap()) {
                let keys = || map.values().filter(|key| key.tenant == tenant);
                let owners: BTreeSet<_> = keys().map(|key| &*key.spec.owner).filter(|owner| !owner.is_empty()).collect();
                let scopes: BTreeSet<_> = keys().flat_map(|key| &key.spec.policy.scopes).map(Scope::as_str).collect();
                let asked = ["owner-1", "owner-5", "old"];
                let missing: Vec<_> = (0..3).filter(|at| !owners.contains(asked[*at])).collect();
                let found = index.owners_in_use(&tenant, &asked);
                prop_assert_eq!((found.count, found.missing), (owners.len(), missing));
                let found = index.scopes_in_use(&tenant, &["scope.3"]);
                prop_assert_eq!((found.count, found.missing.is_empty()), (scopes.len(), scopes.contains("scope.3")));
            }
            let names: BTreeSet<_> =
                map.values().flat_map(|key| key.spec.policy.scopes.iter().map(|scope| (&key.tenant, scope))).collect();
            prop_assert_eq!(index.names_in_use(NameKind::Scope), names.len());
        }
        index.compact();
        prop_assert_eq!(index.names_unused(), 0);
    }
}
