//! What one verdict costs, beside the keyed hash of its secret, which is the least that it can cost.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use keyward::verify::{Outcome, Verifier};
use keyward_bench::args::Args;
use keyward_bench::fixture::{Failure, Fixture, NOW};
use keyward_bench::stats::{median, ratio, rounded};
use keyward_core::clock::Now;
use keyward_core::decision::{AccessRequest, DenyReason};
use keyward_core::secret::PresentedSecret;
use serde_json::{Map, Value, json};

/// Verdicts of one round.
const VERDICTS: usize = 100_000;

/// What is asked, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    /// Keys with 3 scopes, of which 1 is required.
    Hit,
    /// A secret that nobody has.
    Unknown,
    /// No secret.
    Garbage,
    /// The hash alone, of the secrets of [`Case::Hit`].
    Hash,
}

impl Case {
    const ALL: [Self; 4] = [Self::Hit, Self::Unknown, Self::Garbage, Self::Hash];

    fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Unknown => "unknown",
            Self::Garbage => "garbage",
            Self::Hash => "hash",
        }
    }

    /// Does it so often. `false`: something was not as expected.
    fn run(self, fixture: &Fixture, verifier: &Verifier) -> bool {
        let keys = fixture.known.iter().cycle().take(VERDICTS);
        let judge = |secret: &str, scope: &str| {
            let request = AccessRequest { all_scopes: &[scope], ..AccessRequest::default() };
            verifier
                .verify(
                    &fixture.caller,
                    &verifier.read(black_box(secret)),
                    None,
                    black_box(&request),
                    black_box(Now::at(NOW)),
                )
                .outcome
        };
        let mut keys = keys.map(|key| match self {
            Self::Hit => matches!(judge(&key.secret, &key.scope), Outcome::Allow(..)),
            Self::Unknown => matches!(judge(&fixture.unknown, &key.scope), Outcome::NoKey(DenyReason::Unknown)),
            Self::Garbage => matches!(judge(&fixture.garbage, &key.scope), Outcome::NoKey(DenyReason::Malformed)),
            Self::Hash => PresentedSecret::parse(black_box(&key.secret))
                .is_ok_and(|secret| black_box(fixture.peppers.current().digest(&secret)) == key.digest),
        });
        keys.all(|expected| expected)
    }
}

/// Nanoseconds of a verdict, by case, on one thread and on two at once.
pub(crate) fn measure(mut options: Args) -> Result<Value, Failure> {
    let keys = options.get("keys")?.unwrap_or(1_000);
    let rounds = options.get("rounds")?.unwrap_or(15);
    options.end()?;
    let fixture = Fixture::new(keys, usize::try_from(keys.min(1_000))?)?;
    let verifier = fixture.verifier()?;
    let mut found = Map::from_iter([("keys".to_owned(), json!(keys)), ("rounds".to_owned(), json!(rounds))]);
    for threads in [1, 2] {
        let mut times = Case::ALL.map(|_| vec![]);
        for round in 0..=rounds {
            for nth in 0..Case::ALL.len() {
                let at = (nth + round) % Case::ALL.len();
                let ns = nanos(Case::ALL[at], threads, &fixture, &verifier)?;
                // The first round warms up.
                if round > 0 {
                    times[at].push(ns);
                }
            }
        }
        let [.., hash] = &times;
        let rows = Case::ALL.into_iter().zip(&times).map(|(case, times)| {
            let row = json!({ "ns": rounded(median(times)), "ratio_to_hash": ratio(times, hash) });
            (case.name().to_owned(), row)
        });
        found.insert(format!("threads_{threads}"), rows.collect());
    }
    Ok(found.into())
}

/// Nanoseconds of a verdict, as each of the threads sees it.
fn nanos(case: Case, threads: usize, fixture: &Fixture, verifier: &Verifier) -> Result<f64, Failure> {
    let together = Barrier::new(threads);
    let run = || {
        together.wait();
        let began = Instant::now();
        case.run(fixture, verifier).then(|| began.elapsed().as_nanos() as f64 / VERDICTS as f64)
    };
    let times: Option<Vec<_>> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        started.into_iter().map(|thread| thread.join().ok().flatten()).collect()
    });
    times.map(|times| median(&times)).ok_or_else(|| format!("{case:?}: a verdict was not the one expected").into())
}
