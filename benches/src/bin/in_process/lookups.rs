//! Lookups and changes of loaded contestants, in turns: alone, and a reader beside a writer that never
//! pauses.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use keyward_bench::fixture::{Failure, Fixture, Known};
use keyward_bench::stats::{Spread, median, percentile, ratio, rounded};
use keyward_bench::typical_key::Typical;
use keyward_core::event::{Change, Record, Revision};
use serde_json::{Value, json};

use crate::baselines::Keeps;
use crate::index::Contestant;

/// Lookups of one round.
const LOOKUPS: usize = 200_000;
/// Changes of one round. They are made before, so that the writer does nothing but apply them.
const CHANGES: usize = 20_000;

/// What one contestant came to in each round.
#[derive(Default)]
struct Rounds {
    lookup_ns: Vec<f64>,
    apply_ns: Vec<f64>,
    beside_writer_median_ns: Vec<f64>,
    beside_writer_p99_ns: Vec<f64>,
    apply_beside_reader_ns: Vec<f64>,
}

type Figure = fn(&Rounds) -> &Vec<f64>;

const FIGURES: [(&str, Figure); 5] = [
    ("lookup_ns", |rounds| &rounds.lookup_ns),
    ("apply_ns", |rounds| &rounds.apply_ns),
    ("beside_writer_median_ns", |rounds| &rounds.beside_writer_median_ns),
    ("beside_writer_p99_ns", |rounds| &rounds.beside_writer_p99_ns),
    ("apply_beside_reader_ns", |rounds| &rounds.apply_beside_reader_ns),
];

/// Adds the figures of each contestant to what is found of it, with the ratios of the first to it: median,
/// lowest, highest.
pub(crate) fn measure(
    fixture: &Fixture,
    contestants: &[Contestant],
    rounds: usize,
    found: &mut Value,
) -> Result<(), Failure> {
    let mut measured: Vec<_> = contestants.iter().map(|_| Rounds::default()).collect();
    let mut revision = Revision(fixture.keys);
    let mut random = Spread(3);
    for round in 0..rounds {
        let alone = changes(fixture, &mut random, &mut revision)?;
        let beside = changes(fixture, &mut random, &mut revision)?;
        for nth in 0..contestants.len() {
            let at = (nth + round) % contestants.len();
            let (keeps, into) = (&*contestants[at].keeps, &mut measured[at]);
            into.lookup_ns.push(lookups(fixture, keeps, random.next().unwrap_or_default())?);
            into.apply_ns.push(apply(keeps, &alone));
            let [median, p99, apply] = reader_beside_writer(fixture, keeps, &beside)?;
            into.beside_writer_median_ns.push(median);
            into.beside_writer_p99_ns.push(p99);
            into.apply_beside_reader_ns.push(apply);
        }
    }
    for (one, rounds) in contestants.iter().zip(&measured) {
        for (name, figure) in FIGURES {
            let ratio = ratio(figure(&measured[0]), figure(rounds));
            found[one.name][name] = json!({ "median": rounded(median(figure(rounds))), "ratio": ratio });
        }
    }
    Ok(())
}

/// Known keys in no order, for ever.
fn any_of(fixture: &Fixture, seed: u64) -> impl Iterator<Item = &Known> {
    Spread(seed).map(|word| &fixture.known[(word % fixture.known.len() as u64) as usize])
}

/// Nanoseconds of a verdict about a key that is there.
fn lookups(fixture: &Fixture, keeps: &dyn Keeps, seed: u64) -> Result<f64, Failure> {
    let began = Instant::now();
    let all = any_of(fixture, seed).take(LOOKUPS).all(|key| black_box(keeps.allows(fixture, key)));
    let ns = began.elapsed().as_nanos() as f64 / LOOKUPS as f64;
    all.then_some(ns).ok_or_else(|| "a key was not found".into())
}

/// Changes of known keys, each of which the readers may be asking for.
fn changes(fixture: &Fixture, random: &mut Spread, revision: &mut Revision) -> Result<Vec<Arc<Change>>, Failure> {
    let pepper = fixture.peppers.current().id();
    let change = |key: &Known| {
        *revision = revision.next();
        let mut record = Typical::key(key.number).record(key.digest, pepper, *revision)?;
        record.spec.display_name = format!("Integration {} at {revision}", key.number);
        Ok(Arc::new(Change { revision: *revision, records: vec![Record::Key(Arc::new(record))] }))
    };
    any_of(fixture, random.next().unwrap_or_default()).take(CHANGES).map(change).collect()
}

/// Nanoseconds of a change, applied alone.
fn apply(keeps: &dyn Keeps, changes: &[Arc<Change>]) -> f64 {
    let began = Instant::now();
    changes.iter().for_each(|change| keeps.apply(change));
    began.elapsed().as_nanos() as f64 / changes.len() as f64
}

/// A reader, for as long as a writer applies changes as fast as it can: the median and the 99th percentile of
/// its lookups, each with the reading of the clock, and nanoseconds of a change.
fn reader_beside_writer(fixture: &Fixture, keeps: &dyn Keeps, changes: &[Arc<Change>]) -> Result<[f64; 3], Failure> {
    let (reading, written) = (AtomicBool::new(false), AtomicBool::new(false));
    let read = || {
        let mut times = Vec::with_capacity(LOOKUPS);
        for key in any_of(fixture, 4) {
            let began = Instant::now();
            if !black_box(keeps.allows(fixture, key)) {
                return None;
            }
            times.push(began.elapsed().as_nanos() as f64);
            reading.store(true, Ordering::Relaxed);
            if written.load(Ordering::Relaxed) {
                break;
            }
        }
        Some(times)
    };
    let (times, apply) = std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        while !reading.load(Ordering::Relaxed) && !reader.is_finished() {
            std::hint::spin_loop();
        }
        let apply = apply(keeps, changes);
        written.store(true, Ordering::Relaxed);
        (reader.join().ok().flatten(), apply)
    });
    let times = times.ok_or("a key was not found while others changed")?;
    Ok([median(&times), percentile(&times, 0.99), apply])
}
