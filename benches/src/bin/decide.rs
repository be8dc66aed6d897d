//! Verdicts and nothing else, to be counted: `decide <hit|unknown|garbage|denied> <verdicts>`.
//!
//! It prints how many allocations the verdicts made. ../../instructions runs it under callgrind, twice with
//! different numbers of verdicts; the difference is what the verdicts cost, without the start.

use std::alloc::System;
use std::hint::black_box;

use keyward::verify::{Outcome, Verifier};
use keyward_bench::fixture::{Failure, Fixture, NOW};
use keyward_core::clock::Now;
use keyward_core::decision::{AccessRequest, DenyReason};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

/// The system's, and counts.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Keys, and those of them that are asked about. The runs' numbers of verdicts are multiples of the latter.
const KEYS: u64 = 1_000;
const ASKED: usize = 250;

/// What becomes of one verdict.
type Expected = fn(&Outcome) -> bool;

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [case, verdicts] = &args[..] else { return Err("usage: decide <case> <verdicts>".into()) };
    let fixture = Fixture::new(KEYS, ASKED)?;
    let verifier = fixture.verifier()?;
    let known = |own_scope: bool| {
        let scope = |own: &'static str, key: &str| if own_scope { key.to_owned() } else { own.to_owned() };
        let asked = fixture.known.iter().map(|key| (key.secret.clone(), scope("another.scope", &key.scope)));
        asked.collect::<Vec<_>>()
    };
    let (asked, expected): (_, Expected) = match case.as_str() {
        "hit" => (known(true), |outcome| matches!(outcome, Outcome::Allow(..))),
        "denied" => (known(false), |outcome| matches!(outcome, Outcome::Deny(_, DenyReason::ScopeMissing))),
        "unknown" => (one(&fixture.unknown), |outcome| matches!(outcome, Outcome::NoKey(DenyReason::Unknown))),
        "garbage" => (one(&fixture.garbage), |outcome| matches!(outcome, Outcome::NoKey(DenyReason::Malformed))),
        _ => return Err("there is no such case".into()),
    };
    // Whatever is made at the first verdict is made.
    judge(&fixture, &verifier, &asked, ASKED, expected)?;
    let allocations = Region::new(ALLOCATOR);
    judge(&fixture, &verifier, &asked, verdicts.parse()?, expected)?;
    let made = allocations.change();
    println!("{}", made.allocations + made.reallocations);
    Ok(())
}

fn one(secret: &str) -> Vec<(String, String)> {
    vec![(secret.to_owned(), "area00.action00".to_owned())]
}

fn judge(
    fixture: &Fixture,
    verifier: &Verifier,
    asked: &[(String, String)],
    verdicts: usize,
    expected: Expected,
) -> Result<(), &'static str> {
    for (secret, scope) in asked.iter().cycle().take(verdicts) {
        let request = AccessRequest { all_scopes: &[scope], ..AccessRequest::default() };
        let verdict = verifier.verify(
            &fixture.caller,
            &verifier.read(black_box(secret)),
            None,
            black_box(&request),
            black_box(Now::at(NOW)),
        );
        if !expected(&black_box(verdict).outcome) {
            return Err("a verdict was not the one expected");
        }
    }
    Ok(())
}
