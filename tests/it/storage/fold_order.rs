//! The index that records make does not depend on their order, however they are repeated and batched: a start
//! loads them on all cores, and a checkpoint is written while they are applied.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;

use keyward::index::{Index, checkpoint};
use keyward::store::Store;
use keyward::store::memory::MemoryStore;
use keyward_core::event::{Change, Record, Revision};
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::Builder;

use crate::support::lives::{self, Step, step, steps};
use crate::support::model::Model;

/// Steps of one writer at most.
const STEPS_MAX: usize = 50;
/// Writers of one log at most. An index is large, even when it is empty: so there is one for several.
const WRITERS_MAX: usize = 20;

/// What each writer of a log does.
fn logs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    vec(vec(step(), 1..STEPS_MAX), 1..WRITERS_MAX)
}

/// The log of the writers, and what must be there after it.
fn log_of(writers: Vec<Vec<Step>>) -> (Vec<Arc<Change>>, Model) {
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = MemoryStore::default();
        let mut writing = lives::writers(&store, 0..u32::try_from(writers.len()).unwrap()).await;
        for nth in 0..STEPS_MAX {
            for (writer, steps) in writing.iter_mut().zip(&writers) {
                if let Some(step) = steps.get(nth) {
                    writer.take(&store, *step).await;
                }
            }
        }
        let (mut log, mut changes) = (store.read_log(Revision(0)).await.unwrap(), vec![]);
        while let Some(batch) = log.next().await.unwrap() {
            changes.extend(batch);
        }
        (changes, Model::of(&writing))
    })
}

fn records_of(changes: &[Arc<Change>]) -> Vec<Record> {
    changes.iter().flat_map(|change| change.records.iter().cloned()).collect()
}

/// Random numbers that follow from a seed.
fn numbers(seed: u64) -> impl Iterator<Item = usize> {
    let words = move |nth: u64| *blake3::hash(&[seed.to_le_bytes(), nth.to_le_bytes()].concat()).as_bytes();
    (0_u64..).map(move |nth| usize::from_le_bytes(*words(nth).first_chunk().unwrap()))
}

/// The records in a random order, some of them several times, in batches of a few.
fn shuffled(records: &[Record], seed: u64) -> Vec<Vec<Record>> {
    let mut random = numbers(seed);
    let mut next = move || random.next().unwrap();
    let mut order: Vec<_> =
        records.iter().flat_map(|record| vec![record; 1 + usize::from(next().is_multiple_of(4))]).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, next() % (at + 1));
    }
    let (mut batches, mut order) = (vec![], order.into_iter().cloned());
    loop {
        let batch: Vec<_> = order.by_ref().take(1 + next() % 6).collect();
        if batch.is_empty() {
            return batches;
        }
        batches.push(batch);
    }
}

fn fold(index: &Index, batches: &[Vec<Record>]) {
    batches.iter().for_each(|batch| index.apply_records(batch));
    index.finish_loading();
}

/// An index has what the model says, and nothing else.
fn is(index: &Index, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(model.differences(index), Vec::<String>::new());
    prop_assert_eq!(model.differences_in_holds(index), Vec::<String>::new());
    Ok(())
}

/// An index that has followed a part of a log, and a checkpoint of it that was written while it followed the
/// rest: the chunks are of different moments.
fn checkpoint_amid(changes: &[Arc<Change>], begun_after: usize, seed: u64) -> Vec<Vec<u8>> {
    let index = Index::default();
    index.finish_loading();
    let (before, mut meanwhile) = changes.split_at(begun_after);
    index.apply(before);
    let mut writer = index.checkpoint_writer();
    let (mut chunks, mut random) = (vec![vec![]; checkpoint::CHUNKS], numbers(seed));
    let pause = checkpoint::CHUNKS / (meanwhile.len() + 1);
    for (number, chunk) in chunks.iter_mut().enumerate() {
        writer.write_chunk(number, chunk);
        if random.next().unwrap().is_multiple_of(pause + 1)
            && let Some((next, rest)) = meanwhile.split_first()
        {
            index.apply(std::slice::from_ref(next));
            meanwhile = rest;
        }
    }
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn records_may_be_loaded_in_any_order(writers in logs(), seed in any::<u64>()) {
        let (changes, model) = log_of(writers);
        let in_order = Index::default();
        in_order.finish_loading();
        in_order.apply(&changes);
        is(&in_order, &model)?;
        let in_any = Index::default();
        fold(&in_any, &shuffled(&records_of(&changes), seed));
        is(&in_any, &model)?;
        prop_assert_eq!(in_order.peppers(), in_any.peppers());
        prop_assert_eq!(in_order.latest_time(), in_any.latest_time());
        // And it goes on.
        in_any.apply(&changes);
        prop_assert_eq!(in_any.revision(), in_order.revision());
    }

    #[test]
    fn a_checkpoint_may_be_continued_in_any_order(
        writers in logs(),
        begun_after in any::<prop::sample::Index>(),
        seed in any::<u64>(),
    ) {
        let (changes, model) = log_of(writers);
        let begun_after = begun_after.index(changes.len());
        let chunks = checkpoint_amid(&changes, begun_after, seed);
        let index = Index::default();
        for (number, chunk) in chunks.iter().enumerate().rev() {
            prop_assert_eq!(index.read_chunk(number, chunk), Some(()));
        }
        fold(&index, &shuffled(&records_of(&changes[begun_after..]), seed));
        is(&index, &model)?;
    }
}

/// Also by several threads at a time.
#[test]
fn records_may_be_loaded_on_all_cores() {
    for seed in 0..8 {
        let each = (0..8).map(|writer| steps(8 * seed + writer).take(STEPS_MAX).collect());
        let (changes, model) = log_of(each.collect());
        let (index, batches) = (Index::default(), shuffled(&records_of(&changes), seed));
        let share = batches.len() / 4 + 1;
        thread::scope(|scope| {
            for batches in batches.chunks(share) {
                scope.spawn(|| batches.iter().for_each(|batch| index.apply_records(batch)));
            }
        });
        index.finish_loading();
        is(&index, &model).unwrap();
    }
}

/// What the marks are for.
#[test]
fn without_marks_a_digest_that_was_removed_leads_to_its_key() {
    let (changes, model) = log_of(vec![steps(1).take(STEPS_MAX).collect()]);
    let (marks, others): (Vec<_>, Vec<_>) =
        records_of(&changes).into_iter().partition(|record| matches!(record, Record::Purged(_)));
    let index = Index::default();
    fold(&index, &[others]);
    let differences = model.differences(&index);
    assert!(differences.iter().any(|it| it.contains("expected None, found Some")), "{differences:?}");
    index.apply_records(&marks);
    assert_eq!(model.differences(&index), Vec::<String>::new());
    // The steps are worth it.
    let lived: HashSet<_> = marks
        .iter()
        .filter_map(|mark| match mark {
            Record::Purged(mark) => Some(mark.key_lives),
            _ => None,
        })
        .collect();
    assert_eq!(lived, HashSet::from([true, false]));
}
